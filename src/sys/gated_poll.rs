//! Polls a part of a task only after that part was woken.
//!
//! Each line wakes a follower's task. Most other futures of that task (revocation of the credential,
//! shutdown, timers, view changes) are not ready then, and polling each of them takes a lock that all
//! followers share. A gate gives such a future a waker of its own: until that waker fires, polling costs one
//! load of a flag.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Wake, Waker};

use futures_core::Stream;

use crate::sys::sync::{AtomicBool, Mutex};

#[cfg(test)]
#[cfg(feature = "loom")]
pub(super) mod models;

/// Decides whether one part of a task needs to be polled.
#[derive(Debug)]
struct WakeGate {
    shared: Arc<GateWaker>,
    /// `shared` as a waker, for the part.
    waker: Waker,
    /// Copy of the task's waker in `shared`, to compare it without the lock.
    task: Option<Waker>,
}

/// A future or stream with a gate: polled only after it was woken itself.
#[derive(Debug)]
pub(crate) struct Gated<P> {
    gate: WakeGate,
    part: P,
}

/// The waker of a part: opens the gate, then wakes the task.
#[derive(Debug)]
struct GateWaker {
    /// The part was woken since its last poll.
    open: AtomicBool,
    /// The task that polls the part. Kept when it is woken, so that a poll need not store it again.
    task: Mutex<Option<Waker>>,
}

// === impl WakeGate ===

impl WakeGate {
    /// Creates an open gate: the first poll passes.
    fn new() -> Self {
        let shared = Arc::new(GateWaker { open: AtomicBool::new(true), task: Mutex::default() });
        Self { waker: Waker::from(Arc::clone(&shared)), shared, task: None }
    }

    /// Polls `part` if it was woken since its last poll, or was ready then. Returns `Pending` otherwise. Like
    /// any poll, it may be called from another task than before.
    fn poll<T>(&mut self, cx: &mut Context<'_>, part: impl FnOnce(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
        let is_same_task = self.task.as_ref().is_some_and(|task| task.will_wake(cx.waker()));
        if is_same_task && !self.shared.open.load(Ordering::Acquire) {
            return Poll::Pending;
        }
        if !is_same_task {
            // Before the flag is checked: a wake after the check then finds the new task.
            *self.shared.task.lock() = Some(cx.waker().clone());
            self.task = Some(cx.waker().clone());
        }
        if !self.shared.open.swap(false, Ordering::AcqRel) {
            return Poll::Pending;
        }
        let polled = part(&mut Context::from_waker(&self.waker));
        if polled.is_ready() {
            // A ready part has registered no waker, so nothing would open the gate for its next item.
            self.shared.open.store(true, Ordering::Release);
        }
        polled
    }
}

// === impl GateWaker ===

impl Wake for GateWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // If the gate is open already, the task was woken and has not polled yet.
        if !self.open.swap(true, Ordering::AcqRel)
            && let Some(task) = &*self.task.lock()
        {
            task.wake_by_ref();
        }
    }
}

// === impl Gated ===

impl<P> Gated<P> {
    /// Adds a gate to `part`.
    pub(crate) fn new(part: P) -> Self {
        Self { gate: WakeGate::new(), part }
    }
}

impl<F: Future + Unpin> Future for Gated<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let Self { gate, part } = self.get_mut();
        gate.poll(cx, |cx| Pin::new(part).poll(cx))
    }
}

impl<S: Stream + Unpin> Stream for Gated<S> {
    type Item = S::Item;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<S::Item>> {
        let Self { gate, part } = self.get_mut();
        gate.poll(cx, |cx| Pin::new(part).poll_next(cx))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use futures_util::task::noop_waker;
    use tokio::sync::mpsc;

    use super::*;

    /// A waker that counts its calls.
    #[derive(Default)]
    struct WakeCounter(AtomicUsize);

    impl Wake for WakeCounter {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn part_is_polled_only_after_wake() {
        let task = Arc::new(WakeCounter::default());
        let waker = Waker::from(Arc::clone(&task));
        let mut cx = Context::from_waker(&waker);
        let mut gate = WakeGate::new();
        let mut part_waker = None;
        let polled = gate.poll(&mut cx, |cx| {
            part_waker = Some(cx.waker().clone());
            Poll::<()>::Pending
        });
        assert!(polled.is_pending());
        let part_waker = part_waker.unwrap();
        for _ in 0..3 {
            let polled = gate.poll(&mut cx, |_| -> Poll<()> { panic!("polled without a wake") });
            assert!(polled.is_pending());
        }
        part_waker.wake_by_ref();
        part_waker.wake_by_ref();
        assert_eq!(task.0.load(Ordering::SeqCst), 1);
        assert!(gate.poll(&mut cx, |_| Poll::Ready(())).is_ready());
        // A ready part is polled again without a wake.
        assert!(gate.poll(&mut cx, |_| Poll::Ready(())).is_ready());
        assert!(gate.poll(&mut cx, |_| Poll::<()>::Pending).is_pending());
        part_waker.wake();
        assert_eq!(task.0.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn part_wakes_task_that_polled_it_last() {
        let [first, second] = [(); 2].map(|()| Arc::new(WakeCounter::default()));
        let mut gate = WakeGate::new();
        let mut part_waker = None;
        let first_waker = Waker::from(Arc::clone(&first));
        let polled = gate.poll(&mut Context::from_waker(&first_waker), |cx| {
            part_waker = Some(cx.waker().clone());
            Poll::<()>::Pending
        });
        assert!(polled.is_pending());
        let second_waker = Waker::from(Arc::clone(&second));
        let polled = gate.poll(&mut Context::from_waker(&second_waker), |_| Poll::Ready(()));
        assert!(polled.is_pending());
        part_waker.unwrap().wake();
        assert_eq!((first.0.load(Ordering::SeqCst), second.0.load(Ordering::SeqCst)), (0, 1));
    }

    #[tokio::test]
    async fn gated_stream_yields_every_item() {
        let (sender, mut receiver) = mpsc::channel(1);
        let numbers = futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx));
        let mut numbers = Gated::new(numbers);
        let send = async {
            for number in 0..100 {
                sender.send(number).await.unwrap();
            }
            drop(sender);
        };
        let receive = async {
            let mut all = Vec::new();
            while let Some(number) = std::future::poll_fn(|cx| Pin::new(&mut numbers).poll_next(cx)).await {
                all.push(number);
            }
            all
        };
        let ((), all) = tokio::join!(send, receive);
        assert_eq!(all, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn gated_future_accepts_noop_waker() {
        let waker = noop_waker();
        let mut never = Gated::new(std::future::pending::<()>());
        assert!(Pin::new(&mut never).poll(&mut Context::from_waker(&waker)).is_pending());
    }
}
