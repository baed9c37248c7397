//! Detects that a stream was polled late, because its consumer was busy or blocked, or is slower than the
//! source.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker, ready};
use std::time::Duration;

use futures_core::Stream;
use futures_core::stream::BoxStream;
use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::time::Instant;

/// A stream that was ready for this long without being polled, less the time for which it waited for its
/// source since, is late. Far longer than a busy runtime needs, and shorter than a container needs to be
/// restarted.
const LATE_AFTER: Duration = Duration::from_secs(1);

/// Whether a stream was polled late. Shared with the stream.
#[derive(Clone, Debug, Default)]
pub(super) struct PollDelay(Arc<AtomicBool>);

/// A stream that records in its [`PollDelay`] that it was polled late.
struct Watched<T> {
    stream: BoxStream<'static, T>,
    delay: PollDelay,
    wake_time: Arc<WakeTime>,
    waker: Waker,
    /// How far the consumer is behind, up to [`LATE_AFTER`]. Delays add up: a slow consumer may poll every
    /// few milliseconds, minutes behind its source.
    behind: Duration,
    /// Since when there has been nothing to be polled.
    waits_since: Option<Instant>,
}

/// A waker that records when it was woken.
#[derive(Debug, Default)]
struct WakeTime {
    consumer: AtomicWaker,
    /// The first time since the stream was last polled.
    woken_at: Mutex<Option<Instant>>,
}

// === impl PollDelay ===

impl PollDelay {
    /// Returns whether the stream was polled late since the last call.
    pub(super) fn take(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }

    /// Watches a stream that is ready to be polled.
    pub(super) fn watch<T: 'static>(self, stream: BoxStream<'static, T>) -> impl Stream<Item = T> + Send {
        let wake_time = Arc::new(WakeTime::default());
        wake_time.record();
        let waker = Waker::from(Arc::clone(&wake_time));
        Watched { stream, delay: self, wake_time, waker, behind: Duration::ZERO, waits_since: None }
    }
}

// === impl Watched ===

impl<T> Watched<T> {
    /// Records that the stream is polled, and was ready since `woken_at`.
    fn record_poll(&mut self, woken_at: Instant) {
        let waited = self.waits_since.take().map_or(Duration::ZERO, |since| woken_at - since);
        self.behind = (self.behind.saturating_sub(waited) + woken_at.elapsed()).min(LATE_AFTER);
        if self.behind == LATE_AFTER {
            self.delay.0.store(true, Ordering::Relaxed);
        }
    }
}

impl<T> Stream for Watched<T> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let woken_at = self.wake_time.woken_at.lock().take();
        if let Some(woken_at) = woken_at {
            self.record_poll(woken_at);
        }
        self.wake_time.consumer.register(cx.waker());
        let Self { stream, waker, wake_time, waits_since, .. } = &mut *self;
        // Before the poll, which may already be woken during it.
        waits_since.get_or_insert_with(Instant::now);
        let item = ready!(stream.as_mut().poll_next(&mut Context::from_waker(waker)));
        // There may be more.
        *waits_since = None;
        wake_time.record();
        Poll::Ready(item)
    }
}

// === impl WakeTime ===

impl WakeTime {
    fn record(&self) {
        self.woken_at.lock().get_or_insert_with(Instant::now);
    }
}

impl Wake for WakeTime {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.record();
        self.consumer.wake();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{StreamExt as _, poll, stream};
    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn late_poll_is_recorded_and_silence_is_not() {
        let (sender, mut receiver) = mpsc::channel(2);
        let numbers = stream::poll_fn(move |cx| receiver.poll_recv(cx)).boxed();
        let delay = PollDelay::default();
        let mut stream = Box::pin(delay.clone().watch(numbers));
        assert_eq!(poll!(stream.next()), Poll::Pending);
        tokio::time::advance(LATE_AFTER).await;
        sender.send(1).await.unwrap();
        assert_eq!(stream.next().await, Some(1));
        assert!(!delay.take(), "nothing was there to be polled");
        assert_eq!(poll!(stream.next()), Poll::Pending);
        sender.send(2).await.unwrap();
        tokio::time::advance(LATE_AFTER).await;
        assert_eq!(stream.next().await, Some(2));
        assert!(delay.take(), "it was woken before");
        tokio::time::advance(LATE_AFTER).await;
        assert_eq!(poll!(stream.next()), Poll::Pending);
        assert!(delay.take(), "it was ready");
        assert!(!delay.take());
    }

    #[tokio::test(start_paused = true)]
    async fn short_delays_add_up_unless_the_source_is_waited_for() {
        let short = LATE_AFTER / 10;
        let delay = PollDelay::default();
        let mut stream = Box::pin(delay.clone().watch(stream::repeat(1).boxed()));
        for number in 1..=20 {
            tokio::time::advance(short).await;
            assert_eq!(stream.next().await, Some(1));
            assert_eq!(delay.take(), number >= 10, "{number}");
        }
        // A consumer that keeps up waits longer than it delays.
        let (sender, mut receiver) = mpsc::channel(1);
        let mut stream =
            Box::pin(delay.clone().watch(stream::poll_fn(move |cx| receiver.poll_recv(cx)).boxed()));
        for number in 0..100 {
            assert_eq!(poll!(stream.next()), Poll::Pending);
            tokio::time::advance(2 * short).await;
            sender.send(number).await.unwrap();
            tokio::time::advance(short).await;
            assert_eq!(stream.next().await, Some(number));
            assert!(!delay.take(), "{number}");
        }
    }
}
