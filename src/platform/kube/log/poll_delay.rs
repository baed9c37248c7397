//! Detects that a stream was polled late, because its consumer was busy or blocked.

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

/// A stream that was not polled for this long after it was woken is late. Far longer than a busy runtime
/// needs, and shorter than a container needs to be restarted.
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
        Watched { stream, delay: self, waker: Waker::from(Arc::clone(&wake_time)), wake_time }
    }
}

// === impl Watched ===

impl<T> Stream for Watched<T> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let woken_at = self.wake_time.woken_at.lock().take();
        if woken_at.is_some_and(|at| at.elapsed() >= LATE_AFTER) {
            self.delay.0.store(true, Ordering::Relaxed);
        }
        self.wake_time.consumer.register(cx.waker());
        let Self { stream, waker, wake_time, .. } = &mut *self;
        let item = ready!(stream.as_mut().poll_next(&mut Context::from_waker(waker)));
        // There may be more.
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
}
