//! What watches over one HTTP/2 stream from outside its body.
//!
//! A body is not polled while its peer takes nothing, so it could neither notice that its caller was refused in mid-stream nor
//! that nobody reads any more. The connection's executor therefore runs each stream within a guard, which can end it: first by
//! asking its body, and if the peer does not even take that, by dropping the stream, which resets it.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::future::BoxFuture;
use pin_project_lite::pin_project;
use tokio::sync::oneshot;

use super::drain::Drain;
use super::idle::{Open, StreamCount};
use crate::model::metrics::Metrics;
use crate::stream::gated_poll::Gated;
use crate::stream::{StreamControl, StreamEnd};

/// How long a stream that must end may take to tell its peer: within this, and the time it takes to notice, the stream of a
/// caller who may not any more has ended.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Links a call to the guard of the stream that it runs on: hyper calls the service and hands the stream to the executor one
/// right after the other.
#[derive(Clone, Debug, Default)]
pub(super) struct Handoff(Arc<Mutex<Option<Ends>>>);

/// What a call holds, and what the guard of its stream does.
type Ends = (Watched, oneshot::Receiver<Watch>);

/// Where a call says, once it was admitted, what its guard must know. Cloning is cheap.
#[derive(Clone, Default)]
pub(super) struct Watched(Arc<Mutex<Announced>>);

/// What a call announces of its stream.
#[derive(Default)]
struct Announced {
    /// To the guard, once.
    watch: Option<oneshot::Sender<Watch>>,
    /// Let go of when the stream has ended.
    kept: Option<Box<dyn Send>>,
}

/// What a guard is told of its stream.
struct Watch {
    state: Arc<StreamControl>,
    /// Resolves when the stream must end.
    ends: BoxFuture<'static, StreamEnd>,
    /// Whether it listens, and may take as long as the drain does to say its last words. Otherwise it has [`LAST_WORDS`].
    listens: bool,
}

/// Runs the streams of one connection.
#[derive(Clone, Debug)]
pub(super) struct StreamExecutor {
    pub(super) handoff: Handoff,
    pub(super) activity: StreamCount,
    pub(super) drain: Drain,
    /// Whose they are, if that is known.
    pub(super) address: Option<SocketAddr>,
    pub(super) stall: Duration,
    pub(super) metrics: Metrics,
}

pin_project! {
    struct Guard<F> {
        #[pin]
        stream: F,
        // Resolves when the stream must be dropped. Nothing of it concerns a line, so no line asks it.
        cut: Gated<BoxFuture<'static, ()>>,
        // Keeps what the call wants kept.
        watched: Option<Watched>,
        open: Open,
    }
}

// === impl Handoff ===

impl Handoff {
    /// A place for what the call that begins now will tell its guard.
    pub(super) fn begin(&self) -> Watched {
        let (sender, receiver) = oneshot::channel();
        let watched = Watched::default();
        watched.lock().watch = Some(sender);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((watched.clone(), receiver));
        watched
    }

    fn take(&self) -> Option<Ends> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("state", &self.state).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Watched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watched")
    }
}

// === impl Watched ===

impl Watched {
    /// From now on the stream of `state` is watched, and ends when `ends` says so.
    pub(super) fn watch(&self, state: Arc<StreamControl>, ends: BoxFuture<'static, StreamEnd>) {
        self.set(Watch { state, ends, listens: true });
    }

    /// The state of a stream that knows nothing of all this, watched from now on: it ends soon after the gateway begins to.
    pub(super) fn watch_other(&self, drain: Drain) -> Arc<StreamControl> {
        let ends = Box::pin(async move {
            drain.draining().await;
            StreamEnd::Draining
        });
        let state = StreamControl::new();
        self.set(Watch { state: Arc::clone(&state), ends, listens: false });
        state
    }

    /// Keeps this for as long as the stream is there, whatever becomes of its body.
    pub(super) fn keep(&self, kept: impl Send + 'static) {
        self.lock().kept = Some(Box::new(kept));
    }

    fn set(&self, watch: Watch) {
        let guard = self.lock().watch.take();
        if let Some(guard) = guard {
            // A guard that has gone meanwhile took the stream along.
            let _ = guard.send(watch);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Announced> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl StreamExecutor ===

impl<F> hyper::rt::Executor<F> for StreamExecutor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let (watched, announced) = self.handoff.take().unzip();
        // The drain's hard end is not for it to wait for: that cuts the connection, and HTTP/2 its streams.
        let cut = watch(announced, self.address, self.stall, self.metrics.clone());
        let open = self.activity.open();
        self.drain.spawn(Guard { stream, cut: Gated::new(Box::pin(cut)), watched, open });
    }
}

/// Watches over a stream once its call was admitted: asks it to end when it must, and returns when it must be dropped.
#[expect(
    clippy::manual_async_fn,
    reason = "an async fn keeps what it is given twice, and each stream has one"
)]
fn watch(
    announced: Option<oneshot::Receiver<Watch>>,
    address: Option<SocketAddr>,
    stall: Duration,
    metrics: Metrics,
) -> impl Future<Output = ()> {
    async move {
        let Some(Ok(Watch { state, ends, listens })) = (match announced {
            Some(announced) => Some(announced.await),
            None => None,
        }) else {
            // It was refused, or is none of ours: it ends by itself.
            return std::future::pending().await;
        };
        state.set_peer(address);
        let takes_nothing = takes_nothing(&state, stall, &metrics);
        tokio::pin!(takes_nothing);
        let end = tokio::select! {
            biased;
            end = ends => end,
            () = &mut takes_nothing => return,
        };
        if let StreamEnd::Refused(refusal) = end {
            metrics.auth_refusals.count(refusal.reason());
        }
        // Draining has a deadline of its own.
        let must_end = !listens || matches!(end, StreamEnd::Refused(_));
        state.end(end);
        if must_end {
            // Boxed: few streams come to it, and each would have room for it.
            Box::pin(tokio::time::sleep(LAST_WORDS)).await;
        } else {
            takes_nothing.await;
        }
    }
}

/// Waits until the peer has taken nothing of what it was sent for as long as `stall`.
async fn takes_nothing(state: &StreamControl, stall: Duration, metrics: &Metrics) {
    let mut next = stall;
    loop {
        tokio::time::sleep(next).await;
        let stalled = state.stalled();
        if stalled >= stall {
            metrics.stalled_streams.increment(1);
            tracing::info!(stream = state.id(), peer = ?state.peer(), ?stalled, "stream reset: its peer takes nothing");
            return;
        }
        next = stall.saturating_sub(stalled);
    }
}

// === impl Guard ===

impl<F: Future<Output = ()>> Future for Guard<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        // First: whether the stream is to end is for its body to know before it is asked for more.
        if Pin::new(this.cut).poll(cx).is_ready() {
            return Poll::Ready(());
        }
        this.stream.poll(cx)
    }
}
