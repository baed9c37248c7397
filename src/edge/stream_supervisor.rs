//! Supervision of HTTP/2 streams from outside their bodies.
//!
//! A body is not polled while its peer takes nothing, so it cannot notice that its credentials ended or that
//! the peer stalls. The connection's executor therefore runs each stream in a [`SupervisedStream`]. That
//! first asks the body to end, and if the peer does not take even that, drops the stream, which resets it.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::future::BoxFuture;
use parking_lot::Mutex;
use pin_project_lite::pin_project;
use tokio::sync::{oneshot, watch};

use super::drain::Drain;
use crate::model::metrics::Metrics;
use crate::stream::{StreamControl, StreamEnd};
use crate::sys::fair_poll::{Fair, SharedClass};
use crate::sys::gated_poll::Gated;

/// Time that a stream which must end has to send its status. A stream with revoked credentials ends within
/// this and the time to notice the revocation.
const LAST_STATUS_TIMEOUT: Duration = Duration::from_secs(1);

/// Passes the supervision of a call to the executor.
///
/// The dispatcher creates it for each call ([`Handoff::begin`]). The executor takes the receiver when hyper
/// gives it the stream. The service sends the [`Supervision`], and the stream's task then ends or drops the
/// stream. hyper calls the service and then, right after it, hands the stream to the executor. If hyper
/// changes this order, the test `logs::revoked_credential_ends_reading_and_stalled_streams` fails.
#[derive(Clone, Default)]
pub(super) struct Handoff(Arc<Mutex<Option<HandoffParts>>>);

/// The call's side, and the input of its supervisor.
type HandoffParts = (SupervisorHandle, oneshot::Receiver<Supervision>);

/// Connects a call with the supervisor of its stream. Cloning is cheap.
#[derive(Clone, Default)]
pub(super) struct SupervisorHandle(Arc<Mutex<HandleState>>);

#[derive(Default)]
struct HandleState {
    /// To the supervisor; used once.
    sender: Option<oneshot::Sender<Supervision>>,
    /// Dropped when the stream has ended.
    held: Option<Box<dyn Send>>,
}

/// The input of a supervisor.
struct Supervision {
    control: Arc<StreamControl>,
    /// Resolves when the stream must end.
    ends: BoxFuture<'static, StreamEnd>,
    /// The body may use the whole drain for its last messages: it reacts to [`StreamControl::end`], or is one
    /// message that is complete (the reply to a restart). Otherwise it has [`LAST_STATUS_TIMEOUT`].
    may_use_drain: bool,
}

/// Runs the streams of one connection.
#[derive(Clone)]
pub(super) struct StreamExecutor {
    pub(super) handoff: Handoff,
    pub(super) streams: StreamCount,
    pub(super) drain: Drain,
    /// The peer, if it is known.
    pub(super) address: Option<SocketAddr>,
    pub(super) stall: Duration,
    pub(super) metrics: Metrics,
    /// The class of the connection's tasks.
    pub(super) class: Option<SharedClass>,
}

/// The number of open streams of one connection. Cloning is cheap.
#[derive(Clone, Debug, Default)]
pub(super) struct StreamCount(watch::Sender<usize>);

/// Counts a stream as open. Released on drop.
#[derive(Debug)]
struct OpenStream(StreamCount);

pin_project! {
    struct SupervisedStream<F> {
        #[pin]
        stream: F,
        // Resolves when the stream must be dropped. Gated: the wake-ups for log lines need not poll this.
        cut: Gated<BoxFuture<'static, ()>>,
        // Keeps the permits of the call.
        handle: Option<SupervisorHandle>,
        open: OpenStream,
    }
}

// === impl Handoff ===

impl Handoff {
    /// Creates the handle of a call that begins now.
    pub(super) fn begin(&self) -> SupervisorHandle {
        let (sender, receiver) = oneshot::channel();
        let handle = SupervisorHandle::default();
        handle.0.lock().sender = Some(sender);
        *self.0.lock() = Some((handle.clone(), receiver));
        handle
    }
}

/// Returns the handle of a stream that does not run on the executor, and its supervisor. The supervisor
/// resolves when the stream must be dropped. Poll it before the stream in the same task, so that the stream
/// notices that it must end.
pub(super) fn supervised(
    address: Option<SocketAddr>,
    stall: Duration,
    metrics: Metrics,
) -> (SupervisorHandle, impl Future<Output = ()>) {
    let handoff = Handoff::default();
    let handle = handoff.begin();
    let receiver = handoff.0.lock().take().map(|(_, receiver)| receiver);
    (handle, supervise(receiver, address, stall, metrics))
}

// === impl SupervisorHandle ===

impl SupervisorHandle {
    /// Starts supervision of the stream of `control`, which must end when `ends` resolves.
    pub(super) fn supervise(&self, control: Arc<StreamControl>, ends: BoxFuture<'static, StreamEnd>) {
        self.send(Supervision { control, ends, may_use_drain: true });
    }

    /// Starts supervision of a stream whose body does not react to its control. It ends soon after the
    /// gateway drains.
    pub(super) fn supervise_foreign(&self, drain: Drain) -> Arc<StreamControl> {
        let ends = Box::pin(async move {
            drain.draining().await;
            StreamEnd::Draining
        });
        let control = StreamControl::new();
        self.send(Supervision { control: Arc::clone(&control), ends, may_use_drain: false });
        control
    }

    /// Keeps `held` until the stream has ended, even if its body was dropped before. There is one slot,
    /// because a call takes its permits in one place. A second use would release the first permits.
    pub(super) fn hold(&self, held: impl Send + 'static) {
        self.0.lock().held = Some(Box::new(held));
    }

    fn send(&self, supervision: Supervision) {
        let sender = self.0.lock().sender.take();
        if let Some(sender) = sender {
            // Fails only if the stream was dropped meanwhile.
            let _ = sender.send(supervision);
        }
    }
}

// === impl StreamExecutor ===

impl<F> hyper::rt::Executor<F> for StreamExecutor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let (handle, receiver) = self.handoff.0.lock().take().unzip();
        // Does not wait for the drain deadline: that cuts the connection, and HTTP/2 its streams.
        let cut = supervise(receiver, self.address, self.stall, self.metrics.clone());
        let open = self.streams.open();
        let stream = SupervisedStream { stream, cut: Gated::new(Box::pin(cut)), handle, open };
        match &self.class {
            Some(class) => self.drain.spawn(Fair::new(stream, class.clone())),
            None => self.drain.spawn(stream),
        }
    }
}

/// Supervises a stream once its call was admitted: asks it to end when it must, and returns when it must be
/// dropped.
#[expect(clippy::manual_async_fn, reason = "an async fn stores its arguments twice, and each stream has one")]
fn supervise(
    receiver: Option<oneshot::Receiver<Supervision>>,
    address: Option<SocketAddr>,
    stall: Duration,
    metrics: Metrics,
) -> impl Future<Output = ()> {
    async move {
        let Some(Ok(Supervision { control, ends, may_use_drain })) = (match receiver {
            Some(receiver) => Some(receiver.await),
            None => None,
        }) else {
            // The call failed, or hyper opened the stream for itself: it ends by itself.
            return std::future::pending().await;
        };
        control.set_peer(address);
        let stalled = stalled(&control, stall, &metrics);
        tokio::pin!(stalled);
        let end = tokio::select! {
            biased;
            end = ends => end,
            () = &mut stalled => return,
        };
        if let StreamEnd::Refused(refusal) = end {
            metrics.auth_refusals.of(refusal).increment(1);
        }
        // A drain has its own deadline.
        let must_end = !may_use_drain || matches!(end, StreamEnd::Refused(_));
        control.end(end);
        if must_end {
            // Boxed: few streams get here, and each would reserve memory for it.
            Box::pin(tokio::time::sleep(LAST_STATUS_TIMEOUT)).await;
        } else {
            stalled.await;
        }
    }
}

/// Waits until the peer has taken nothing for as long as `stall` although something was sent.
async fn stalled(control: &StreamControl, stall: Duration, metrics: &Metrics) {
    let mut next = stall;
    loop {
        tokio::time::sleep(next).await;
        let stalled = control.stalled();
        if stalled >= stall {
            metrics.stalled_streams.increment(1);
            tracing::info!(stream = control.id(), peer = ?control.peer(), ?stalled, "reset stalled stream");
            return;
        }
        next = stall.saturating_sub(stalled);
    }
}

// === impl SupervisedStream ===

impl<F: Future<Output = ()>> Future for SupervisedStream<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        // First, so that the body knows that it must end before it is polled for more.
        if Pin::new(this.cut).poll(cx).is_ready() {
            return Poll::Ready(());
        }
        this.stream.poll(cx)
    }
}

// === impl StreamCount ===

impl StreamCount {
    fn open(&self) -> OpenStream {
        self.0.send_modify(|open| *open += 1);
        OpenStream(self.clone())
    }

    /// Waits until no stream was open for `time`. Notices a stream that was open for a moment only.
    pub(super) async fn idle(&self, time: Duration) {
        let mut open = self.0.subscribe();
        loop {
            // `changed` fails only when the sender is dropped, and `self` keeps it.
            if *open.borrow_and_update() > 0 {
                let _ = open.changed().await;
            } else if tokio::time::timeout(time, open.changed()).await.is_err() {
                return;
            }
        }
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.0.send_modify(|open| *open -= 1);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn idle_resolves_after_time_without_streams() {
        let streams = StreamCount::default();
        let began = Instant::now();
        streams.idle(10 * SECOND).await;
        assert_eq!(began.elapsed(), 10 * SECOND);

        let calls = async {
            for _ in 0..5 {
                tokio::time::sleep(9 * SECOND).await;
                // Closed before `idle` runs.
                drop(streams.open());
            }
            let long = streams.open();
            tokio::time::sleep(100 * SECOND).await;
            drop(long);
        };
        let began = Instant::now();
        tokio::join!(streams.idle(10 * SECOND), calls);
        assert_eq!(began.elapsed(), (45 + 100 + 10) * SECOND);
    }
}
