use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Wake, Waker};
use std::time::Duration;

use bytes::Buf as _;
use futures_core::future::BoxFuture;
use http_body::Body as _;
use metrics::NoopRecorder;

use super::*;
use crate::logs::actor::ActorContext;
use crate::logs::message::Representation;
use crate::model::id::{Address, LeaseId};
use crate::model::limits::Limits;
use crate::model::metrics::Metrics;
use crate::model::view::{Filter, ReplicaState, ReplicaView, ServiceView};
use crate::platform::{Error, Platform, RestartRequest, Tail, TailRequest};

/// Longer than any event in these tests takes.
const QUIET_PERIOD: Duration = Duration::from_secs(1);

/// A platform without leases.
#[derive(Debug)]
struct EmptyPlatform;

impl Platform for EmptyPlatform {
    fn name(&self) -> &'static str {
        "empty"
    }

    fn watch(&self, _: &LeaseId) -> BoxFuture<'_, Result<watch::Receiver<Arc<LeaseView>>, Error>> {
        Box::pin(async { Err(Error::NotFound("no lease".into())) })
    }

    fn tail(&self, _: TailRequest) -> BoxFuture<'_, Result<Tail, Error>> {
        Box::pin(async { Err(Error::NotFound("no log".into())) })
    }

    fn restart(&self, _: RestartRequest) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async { Err(Error::NotFound("no replica".into())) })
    }
}

/// A waker that counts its calls.
#[derive(Default)]
struct WakeCounter(AtomicUsize);

impl Wake for WakeCounter {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A body polled as by HTTP/2: repeatedly while it is ready, then after each wake.
struct Polled {
    body: LogsBody,
    task: Arc<WakeCounter>,
}

impl Polled {
    /// Follows the replicas of `view`, at most `replicas` at a time.
    fn new(view: watch::Receiver<Arc<LeaseView>>, replicas: usize) -> Self {
        let [owner, provider] = [1, 2].map(|number| Address::from_account([number; 20]));
        let request = LogsRequest {
            lease: LeaseId::new(owner.as_str(), 7, 1, 1, provider.as_str()).unwrap(),
            filter: Filter::everything(),
            range: ReadRange::Follow(BackfillFilter::default()),
            representation: Representation::Plain,
            on_lag: LagPolicy::Drop,
            resume: HashMap::new(),
        };
        let mut limits = Limits::default();
        limits.quota.replicas_per_request = replicas;
        let limiter = BackfillLimiter::new(&limits.quota);
        let metrics = Metrics::register(&NoopRecorder);
        let context = ActorContext { platform: Arc::new(EmptyPlatform), limits: Arc::new(limits), metrics };
        let trailers: Trailers = Box::new(|_| HeaderMap::new());
        let body = LogsBody::new(
            request,
            ActorRegistry::new(context),
            limiter,
            view,
            StreamControl::new(),
            trailers,
        );
        Self { body, task: Arc::default() }
    }

    /// Returns the bytes that it sends until it stays pending.
    async fn sent(&mut self) -> String {
        let waker = Waker::from(Arc::clone(&self.task));
        let mut cx = Context::from_waker(&waker);
        let mut sent = Vec::new();
        loop {
            let woken = self.task.0.load(Ordering::SeqCst);
            match Pin::new(&mut self.body).poll_frame(&mut cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    let mut messages = frame.into_data().unwrap();
                    sent.extend(messages.copy_to_bytes(messages.remaining()));
                }
                Poll::Ready(other) => panic!("body has ended: {other:?}"),
                Poll::Pending => {
                    tokio::time::sleep(QUIET_PERIOD).await;
                    if self.task.0.load(Ordering::SeqCst) == woken {
                        return String::from_utf8_lossy(&sent).into_owned();
                    }
                }
            }
        }
    }

    /// Fills a batch that has room for one message. Returns how many were added.
    fn fill_one_message(&mut self) -> usize {
        let waker = Waker::from(Arc::clone(&self.task));
        let full = vec![0; STREAM_SEND_MAX_BYTES - 1];
        let mut batch = Batch::beginning_with(Some(full.into()));
        assert!(self.body.fill(&mut Context::from_waker(&waker), &mut batch).is_none());
        batch.parts.len() - 1
    }
}

/// A view of these replicas of `web`, each waiting for its own reason.
fn waiting(indices: &[u32]) -> Arc<LeaseView> {
    let entry = |index: &u32| {
        let state = ReplicaState::Waiting { reason: format!("Reason{index}"), message: String::new() };
        (*index, ReplicaView { state, ..ReplicaView::default() })
    };
    let replicas = indices.iter().map(entry).collect();
    let service = ServiceView { replicas, ..ServiceView::default() };
    Arc::new(LeaseView { services: [("web".parse().unwrap(), service)].into(), ..LeaseView::default() })
}

#[tokio::test(start_paused = true)]
async fn replacement_replica_is_polled_without_wake() {
    let (views, view) = watch::channel(waiting(&[0]));
    let mut polled = Polled::new(view, 1);
    assert!(polled.sent().await.contains("Reason0"));
    views.send_replace(waiting(&[0, 1]));
    assert_eq!(polled.sent().await, "", "the quota is used up");
    views.send_replace(waiting(&[1]));
    tokio::time::sleep(QUIET_PERIOD).await;
    // The last event of the first replica is sent on its own. Its end shows in the next poll, which has
    // nothing to send.
    assert_eq!(polled.fill_one_message(), 1);
    assert_eq!(polled.body.streams.len(), 1);
    assert!(polled.sent().await.contains("Reason1"));
}
