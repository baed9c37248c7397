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
use crate::logs::frame::Representation;
use crate::model::id::{Address, LeaseId};
use crate::model::limits::Limits;
use crate::model::view::{Filter, ReplicaState, ReplicaView, ServiceView};
use crate::platform::{Error, Platform, RestartRequest, Tail, TailRequest};

/// Longer than anything takes here, but for what never comes.
const REST: Duration = Duration::from_secs(1);

/// A platform on which nothing has ever run.
#[derive(Debug)]
struct Nothing;

impl Platform for Nothing {
    fn name(&self) -> &'static str {
        "nothing"
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

/// Counts how often it was woken.
#[derive(Default)]
struct Task(AtomicUsize);

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A body that is polled as HTTP/2 does it: again as long as it has something, and then when it has woken its task.
struct Polled {
    body: LogsBody,
    task: Arc<Task>,
}

impl Polled {
    /// One that follows what `view` tells of, with room for so many replicas.
    fn new(view: watch::Receiver<Arc<LeaseView>>, replicas: usize) -> Self {
        let [owner, provider] = [1, 2].map(|number| Address::from_account([number; 20]));
        let request = LogsRequest {
            lease: LeaseId::new(owner.as_str(), 7, 1, 1, provider.as_str()).unwrap(),
            filter: Filter::everything(),
            extent: ReadRange::Follow(BackfillFilter::default()),
            representation: Representation::Plain,
            on_lag: LagPolicy::Drop,
            resume: HashMap::new(),
        };
        let mut limits = Limits::default();
        limits.quota.replicas_per_request = replicas;
        let permits = BackfillLimiter::new(&limits.quota);
        let metrics = Metrics::register(&NoopRecorder);
        let world = ActorContext { platform: Arc::new(Nothing), limits: Arc::new(limits), metrics };
        let trailers: Trailers = Box::new(|_| HeaderMap::new());
        let body =
            LogsBody::new(request, ActorRegistry::new(world), permits, view, StreamControl::new(), trailers);
        Self { body, task: Arc::default() }
    }

    /// What it sends until it is at rest, and everything else is too.
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
                Poll::Ready(other) => panic!("it has ended: {other:?}"),
                Poll::Pending => {
                    tokio::time::sleep(REST).await;
                    if self.task.0.load(Ordering::SeqCst) == woken {
                        return String::from_utf8_lossy(&sent).into_owned();
                    }
                }
            }
        }
    }

    /// Has it put the next message, and no other, into a hand-over.
    fn fill_with_one(&mut self) -> usize {
        let waker = Waker::from(Arc::clone(&self.task));
        let full = vec![0; STREAM_SEND_MAX_BYTES - 1];
        let mut batch = Batch::beginning_with(Some(full.into()));
        assert!(self.body.fill(&mut Context::from_waker(&waker), &mut batch).is_none());
        batch.parts.len() - 1
    }
}

/// A view of these replicas of `web`, none of which runs, and each for a reason of its own.
fn waiting(indices: &[u32]) -> Arc<LeaseView> {
    let slot = |index: &u32| {
        let state = ReplicaState::Waiting { reason: format!("Reason{index}"), message: String::new() };
        (*index, ReplicaView { state, ..ReplicaView::default() })
    };
    let replicas = indices.iter().map(slot).collect();
    let service = ServiceView { replicas, ..ServiceView::default() };
    Arc::new(LeaseView { services: [("web".parse().unwrap(), service)].into(), ..LeaseView::default() })
}

#[tokio::test(start_paused = true)]
async fn who_comes_in_anothers_place_is_asked_at_once_since_nobody_would_wake_them() {
    let (views, view) = watch::channel(waiting(&[0]));
    let mut polled = Polled::new(view, 1);
    assert!(polled.sent().await.contains("Reason0"));
    views.send_replace(waiting(&[0, 1]));
    assert_eq!(polled.sent().await, "", "there is no place for it");
    views.send_replace(waiting(&[1]));
    tokio::time::sleep(REST).await;
    // The last news of the first one go out by themselves. That it is over shows with the next poll, which has nothing to send.
    assert_eq!(polled.fill_with_one(), 1);
    assert_eq!(polled.body.lanes.len(), 1);
    assert!(polled.sent().await.contains("Reason1"));
}
