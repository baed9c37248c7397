//! The gateway's platform: one lease with one service. The publisher's lines are distributed among its
//! replicas. Another tenant may have a lease whose service prints at a fixed rate.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_core::future::BoxFuture;
use futures_util::StreamExt as _;
use futures_util::stream;
use leasemux::model::id::{Address, Instance, LeaseId, Owner};
use leasemux::model::limits::READ_MAX_BYTES;
use leasemux::model::line::{Line, LineBatch};
use leasemux::model::position::Position;
use leasemux::model::time::LogTime;
use leasemux::model::view::{LeaseView, ReplicaState, ReplicaView, Run, ServiceView};
use leasemux::platform::{Error, Platform, RestartRequest, Tail, TailItem, TailRequest};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

use super::SERVICE;
use crate::Result;

/// Most batches that wait for an actor. Then the publisher waits.
const PENDING_MAX: usize = 16;

/// Interval at which the other tenant's service prints, in milliseconds.
const TICK_MILLIS: u64 = 5;

/// Length of its lines.
const LINE_BYTES: usize = 100;

/// A platform on which each replica has one run, whose log can be opened once.
pub(super) struct Source {
    lease: LeaseId,
    view: watch::Sender<Arc<LeaseView>>,
    logs: Mutex<Vec<Option<mpsc::Receiver<LineBatch>>>>,
    /// The lease of another tenant, and the bytes per second of each replica.
    neighbor: Option<(LeaseId, u64)>,
}

/// Distributes the publisher's lines among the replicas.
pub(super) struct Distributor {
    ingest: TcpListener,
    logs: Vec<(mpsc::Sender<LineBatch>, Position)>,
    /// Index of the replica that gets the next line.
    next: usize,
}

/// Returns the only lease, of `owner`.
pub(crate) fn lease(owner: &Owner) -> Result<LeaseId> {
    Ok(LeaseId::new(owner.as_str(), 1, 1, 1, Address::from_account([1; 20]).as_str())?)
}

/// Creates a service of `replicas`, fed by the connection to `ingest`.
pub(super) fn new(lease: LeaseId, replicas: u32, ingest: TcpListener) -> Result<(Source, Distributor)> {
    let mut replica_views = std::collections::BTreeMap::new();
    let (mut senders, mut receivers) = (Vec::new(), Vec::new());
    for index in 0..replicas {
        let instance = Instance::new(&format!("bench-{index}"), SERVICE, 0)?;
        let runs = vec![Run {
            instance,
            started: LogTime::now(),
            end: None,
            log_is_gone: false,
            later_unknown: false,
        }];
        let state = ReplicaState::Running;
        replica_views.insert(index, ReplicaView { runs, state, ready: true, ..ReplicaView::default() });
        let (sender, receiver) = mpsc::channel(PENDING_MAX);
        senders.push((sender, Position::START));
        receivers.push(Some(receiver));
    }
    let service = ServiceView { count: replicas, replicas: replica_views, ..ServiceView::default() };
    let view = LeaseView { services: [(SERVICE.parse()?, service)].into(), ..LeaseView::default() };
    let source = Source {
        lease,
        view: watch::Sender::new(Arc::new(view)),
        logs: Mutex::new(receivers),
        neighbor: None,
    };
    Ok((source, Distributor { ingest, logs: senders, next: 0 }))
}

/// Returns a log that grows by `rate` bytes per second.
fn steady_log(rate: u64) -> Tail {
    let bytes = usize::try_from(rate * TICK_MILLIS / 1_000).unwrap_or(usize::MAX);
    let lines = (bytes / LINE_BYTES).max(1);
    let mut text = [b'x'; LINE_BYTES];
    text[LINE_BYTES - 1] = b'\n';
    let data = Bytes::from(text.repeat(lines));
    let ends: Vec<usize> = (1..=lines).map(|number| number * LINE_BYTES).collect();
    let ticks = tokio::time::interval(Duration::from_millis(TICK_MILLIS));
    let items = stream::unfold((ticks, Position::START), move |(mut ticks, mut at)| {
        let (data, ends) = (data.clone(), ends.clone());
        async move {
            ticks.tick().await;
            Some((Ok(TailItem::Lines(batch(data, &ends, &mut at))), (ticks, at)))
        }
    });
    Tail { start: Position::START, unfinished: [false; 2], items: items.boxed() }
}

// === impl Source ===

impl Source {
    /// Adds a lease whose replicas print `rate` bytes per second each.
    pub(super) fn with_neighbor(self, lease: LeaseId, rate: u64) -> Self {
        Self { neighbor: Some((lease, rate)), ..self }
    }

    /// Returns the rate of the other tenant's service, if `lease` is its lease.
    fn neighbor_rate(&self, lease: &LeaseId) -> Option<u64> {
        self.neighbor.as_ref().filter(|(neighbor, _)| neighbor == lease).map(|(_, rate)| *rate)
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("lease", &self.lease).finish_non_exhaustive()
    }
}

impl Platform for Source {
    fn name(&self) -> &'static str {
        "bench"
    }

    fn watch(
        &self,
        lease: &LeaseId,
    ) -> BoxFuture<'_, std::result::Result<watch::Receiver<Arc<LeaseView>>, Error>> {
        let is_known = *lease == self.lease || self.neighbor_rate(lease).is_some();
        let found = is_known.then(|| self.view.subscribe());
        Box::pin(std::future::ready(found.ok_or_else(|| Error::NotFound(lease.to_string()))))
    }

    /// Followers request no older lines, so the only tail is the live one, from the first line on.
    fn tail(&self, request: TailRequest) -> BoxFuture<'_, std::result::Result<Tail, Error>> {
        if let Some(rate) = self.neighbor_rate(&request.lease) {
            return Box::pin(std::future::ready(Ok(steady_log(rate))));
        }
        let mut logs = self.logs.lock().unwrap_or_else(PoisonError::into_inner);
        let log = logs.get_mut(request.replica.index as usize).and_then(Option::take);
        let tail = log.ok_or_else(|| Error::Broken("a second tail was opened".to_owned())).map(|log| {
            let items =
                stream::unfold(log, |mut log| async { Some((Ok(TailItem::Lines(log.recv().await?)), log)) });
            Tail { start: Position::START, unfinished: [false; 2], items: items.boxed() }
        });
        Box::pin(std::future::ready(tail))
    }

    fn restart(&self, _: RestartRequest) -> BoxFuture<'_, std::result::Result<(), Error>> {
        Box::pin(std::future::ready(Err(Error::Broken("the publisher cannot be restarted".to_owned()))))
    }
}

// === impl Distributor ===

impl Distributor {
    /// Runs until the publisher disconnects.
    pub(super) async fn run(mut self) -> Result<()> {
        let (mut socket, _) = self.ingest.accept().await?;
        let mut buffer = BytesMut::new();
        while let Some(data) = read_lines(&mut socket, &mut buffer).await? {
            let ends: Vec<usize> = memchr::memchr_iter(b'\n', &data).map(|newline| newline + 1).collect();
            if let [(log, at)] = self.logs.as_mut_slice() {
                log.send(batch(data, &ends, at)).await?;
                continue;
            }
            let mut start = 0;
            for end in ends {
                let line = data.slice(start..end);
                let (log, at) = &mut self.logs[self.next];
                log.send(batch(line, &[end - start], at)).await?;
                self.next = (self.next + 1) % self.logs.len();
                start = end;
            }
        }
        Ok(())
    }
}

/// Returns all complete lines received so far; `None` at the end.
async fn read_lines(socket: &mut TcpStream, buffer: &mut BytesMut) -> Result<Option<Bytes>> {
    loop {
        buffer.reserve(READ_MAX_BYTES);
        if socket.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
        if let Some(last) = memchr::memrchr(b'\n', buffer) {
            return Ok(Some(buffer.split_to(last + 1).freeze()));
        }
    }
}

fn batch(data: Bytes, ends: &[usize], at: &mut Position) -> LineBatch {
    let time = LogTime::now();
    let line = |&end| {
        *at = at.after_line(time);
        Line::whole(end, time, *at)
    };
    LineBatch { data, lines: ends.iter().map(line).collect() }
}
