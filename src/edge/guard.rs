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
use tokio::time::{Instant, Sleep};

use super::drain::Drain;
use super::idle::{Activity, Open};
use crate::model::metrics::Metrics;
use crate::stream::{End, StreamState};

/// How long a stream that must end may take to tell its peer: within this, and the time it takes to notice, the stream of a
/// caller who may not any more has ended.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Links a call to the guard of the stream that it runs on: hyper calls the service and hands the stream to the executor one
/// right after the other.
#[derive(Clone, Debug, Default)]
pub(super) struct Handoff(Arc<Mutex<Option<Watched>>>);

/// What a guard is told of its stream, once the call was admitted.
#[derive(Clone, Default)]
pub(super) struct Watched(Arc<Mutex<Announced>>);

/// What a call announced of its stream.
#[derive(Default)]
struct Announced {
    watch: Option<Watch>,
    /// Let go of when the stream has ended.
    kept: Option<Box<dyn Send>>,
}

struct Watch {
    state: Arc<StreamState>,
    /// Resolves when the stream must end.
    ends: BoxFuture<'static, End>,
    /// Whether it listens, and may take as long as the drain does to say its last words. Otherwise it has [`LAST_WORDS`].
    listens: bool,
}

/// Runs the streams of one connection.
#[derive(Clone, Debug)]
pub(super) struct StreamExecutor {
    pub(super) handoff: Handoff,
    pub(super) activity: Activity,
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
        // Also keeps what the call wants kept.
        watched: Option<Watched>,
        watch: Option<Watch>,
        open: Open,
        // When the stream must have ended, or is looked at next.
        #[pin]
        timer: Option<Sleep>,
        ending: bool,
        // Whether the timer is for its last words.
        must_end: bool,
        address: Option<SocketAddr>,
        stall: Duration,
        metrics: Metrics,
    }
}

// === impl Handoff ===

impl Handoff {
    /// A place for what the call that begins now will tell its guard.
    pub(super) fn begin(&self) -> Watched {
        let watched = Watched::default();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(watched.clone());
        watched
    }

    fn take(&self) -> Option<Watched> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
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
    pub(super) fn watch(&self, state: Arc<StreamState>, ends: BoxFuture<'static, End>) {
        self.set(Watch { state, ends, listens: true });
    }

    /// A stream that knows nothing of all this ends soon after the gateway begins to.
    pub(super) fn watch_other(&self, drain: Drain) {
        let ends = Box::pin(async move {
            drain.draining().await;
            End::Draining
        });
        self.set(Watch { state: StreamState::new(), ends, listens: false });
    }

    /// Keeps this for as long as the stream is there, whatever becomes of its body.
    pub(super) fn keep(&self, kept: impl Send + 'static) {
        self.lock().kept = Some(Box::new(kept));
    }

    fn set(&self, watch: Watch) {
        self.lock().watch = Some(watch);
    }

    fn take(&self) -> Option<Watch> {
        self.lock().watch.take()
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
        let guard = Guard {
            stream,
            watched: self.handoff.take(),
            watch: None,
            open: self.activity.open(),
            timer: None,
            ending: false,
            must_end: false,
            address: self.address,
            stall: self.stall,
            metrics: self.metrics.clone(),
        };
        let drain = self.drain.clone();
        self.drain.spawn(async move {
            tokio::select! {
                biased;
                () = drain.cut() => {}
                () = guard => {}
            }
        });
    }
}

// === impl Guard ===

impl<F: Future<Output = ()>> Future for Guard<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        if let Some(watch) = this.watch.as_mut()
            && !*this.ending
            && let Poll::Ready(end) = watch.ends.as_mut().poll(cx)
        {
            *this.ending = true;
            if let End::Refused(refusal) = end {
                this.metrics.auth_refusals.count(refusal.reason());
            }
            // Draining has a deadline of its own.
            if !watch.listens || matches!(end, End::Refused(_)) {
                this.timer.set(Some(tokio::time::sleep(LAST_WORDS)));
                *this.must_end = true;
            }
            watch.state.end(end);
        }
        if this.stream.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        if this.watch.is_none()
            && let Some(watch) = this.watched.as_ref().and_then(Watched::take)
        {
            watch.state.comes_from(*this.address);
            *this.watch = Some(watch);
            this.timer.set(Some(tokio::time::sleep(*this.stall)));
            // For its end to be listened for.
            cx.waker().wake_by_ref();
        }
        let Some(watch) = this.watch.as_ref() else {
            return Poll::Pending;
        };
        while let Some(timer) = this.timer.as_mut().as_pin_mut() {
            if timer.poll(cx).is_pending() {
                break;
            }
            let stalled = watch.state.stalled();
            if *this.must_end || stalled >= *this.stall {
                if !*this.must_end {
                    this.metrics.stalled_streams.increment(1);
                    tracing::info!(?stalled, "stream reset: its peer takes nothing");
                }
                return Poll::Ready(());
            }
            let next = Instant::now() + this.stall.saturating_sub(stalled);
            this.timer.set(Some(tokio::time::sleep_until(next)));
        }
        Poll::Pending
    }
}
