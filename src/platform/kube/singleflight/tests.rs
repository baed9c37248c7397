use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::join_all;

use super::*;
use crate::model::id::{Address, Instance, LeaseId, Replica};
use crate::model::line::LineBatch;
use crate::model::time::LogTime;
use crate::platform::ReadFrom;

fn request(tenant: u8, from: ReadFrom) -> TailRequest {
    let [owner, provider] = [tenant, 200].map(|number| Address::from_account([number; 20]));
    TailRequest {
        lease: LeaseId::new(owner.as_str(), 7, 1, 1, provider.as_str()).unwrap(),
        replica: Replica { service: "web".parse().unwrap(), index: 0 },
        instance: Instance::new("uid", "web", 0).unwrap(),
        from,
        lines_after: None,
        oldest_read: None,
        is_next_run: false,
        follow: false,
    }
}

/// A log that counts how often it is opened.
#[derive(Clone, Debug, Default)]
struct Log {
    opened: Arc<AtomicUsize>,
    batches: usize,
    fails: bool,
}

const BATCH_BYTES: usize = 10_000;

impl Log {
    fn open(&self) -> impl Future<Output = Result<Tail, Error>> + Send + 'static {
        let log = self.clone();
        async move {
            log.opened.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(20)).await;
            if log.fails {
                return Err(Error::Unavailable("not now".to_owned()));
            }
            let after = |n| Position { time: LogTime::from_nanos(n), ordinal: 0, offset: 0 };
            let batches = (1..).take(log.batches).map(move |n| {
                let line = Line::whole(BATCH_BYTES, LogTime::from_nanos(n), after(n));
                Ok(TailItem::Lines(LineBatch { data: vec![b'x'; BATCH_BYTES].into(), lines: vec![line] }))
            });
            Ok(Tail { start: Position::START, unfinished: [false; 2], items: stream::iter(batches).boxed() })
        }
    }

    fn opened(&self) -> usize {
        self.opened.load(Ordering::Relaxed)
    }
}

/// Performs reads concurrently. Returns the bytes that each got; 0 for an error.
async fn read(reads: &SharedReads, log: &Log, requests: &[TailRequest]) -> Vec<usize> {
    let read = async |request: &TailRequest| {
        let Ok(tail) = reads.tail(request, || log.open()).await else { return 0 };
        assert_eq!(tail.start, Position::START);
        let items: Vec<_> = tail.items.map(Result::unwrap).collect().await;
        let bytes = items.iter().map(|item| match item {
            TailItem::Lines(batch) => batch.data.len(),
            _ => 0,
        });
        bytes.sum()
    };
    join_all(requests.iter().map(read)).await
}

#[tokio::test(start_paused = true)]
async fn equal_reads_share_one_call_and_others_do_not() {
    let (reads, log) = (SharedReads::default(), Log { batches: 5, ..Log::default() });
    let equal = vec![request(1, ReadFrom::Last(100)); 20];
    assert_eq!(read(&reads, &log, &equal).await, [5 * BATCH_BYTES; 20]);
    assert_eq!(log.opened(), 1);
    // Another tenant, and another start.
    let unlike =
        [request(1, ReadFrom::Last(100)), request(2, ReadFrom::Last(100)), request(1, ReadFrom::Last(99))];
    assert_eq!(read(&reads, &log, &unlike).await, [5 * BATCH_BYTES; 3]);
    assert_eq!(log.opened(), 4);
    // A result is not kept.
    assert_eq!(read(&reads, &log, &equal[..1]).await, [5 * BATCH_BYTES]);
    assert_eq!(log.opened(), 5);
    assert!(reads.0.lock().len() <= 1);
}

#[tokio::test(start_paused = true)]
async fn long_log_is_read_by_each_and_first_call_is_used() {
    let (reads, log) = (SharedReads::default(), Log { batches: 100, ..Log::default() });
    assert_eq!(read(&reads, &log, &vec![request(1, ReadFrom::Start); 5]).await, [100 * BATCH_BYTES; 5]);
    assert_eq!(log.opened(), 5);
}

#[tokio::test(start_paused = true)]
async fn later_read_makes_its_own_call() {
    let (reads, log) = (SharedReads::default(), Log { batches: 1, ..Log::default() });
    let request = request(1, ReadFrom::Last(1));
    let mut first = Box::pin(reads.tail(&request, || {
        let log = log.clone();
        async move {
            tokio::time::sleep(Duration::from_secs(10)).await;
            log.open().await
        }
    }));
    assert!(futures_util::poll!(&mut first).is_pending());
    tokio::time::advance(SAME_MOMENT).await;
    assert_eq!(read(&reads, &log, std::slice::from_ref(&request)).await, [BATCH_BYTES]);
    first.await.unwrap();
    assert_eq!(log.opened(), 2);
}

#[tokio::test(start_paused = true)]
async fn failure_is_shared_and_dropped_reader_fails_no_other() {
    let (reads, log) = (SharedReads::default(), Log { fails: true, ..Log::default() });
    let equal = vec![request(1, ReadFrom::Start); 3];
    assert_eq!(read(&reads, &log, &equal).await, [0; 3]);
    assert_eq!(log.opened(), 1);
    // The first reader is dropped, and the second one gets the result.
    let log = Log { batches: 1, ..Log::default() };
    let mut first = Box::pin(reads.tail(&equal[0], || log.open()));
    assert!(futures_util::poll!(&mut first).is_pending());
    let mut second = Box::pin(read(&reads, &log, &equal[..1]));
    assert!(futures_util::poll!(&mut second).is_pending());
    drop(first);
    assert_eq!((second.await, log.opened()), (vec![BATCH_BYTES], 1));
}
