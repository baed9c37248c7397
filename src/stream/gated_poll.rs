//! Polling a part of a task only when that part was woken.
//!
//! A follower's task is woken for each line, and most of what it waits for beside the line (the end of its caller's standing, the
//! drain, timers, changes of the view) has nothing to say then. Asking each of them takes a lock of something that all followers
//! share. A bell stands between such a part and its task: the part is polled with a waker of its own, and while that has not
//! rung, polling it costs one look at a flag.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use futures_core::Stream;

/// The bell of one part of a task.
#[derive(Debug)]
pub struct WakeGate {
    wire: Arc<GateWaker>,
    /// Rings it.
    waker: Waker,
    /// The task that is told, as the wire knows it.
    task: Option<Waker>,
}

/// A part with its bell: a future or a stream that is polled only when it was woken itself.
#[derive(Debug)]
pub struct Gated<P> {
    bell: WakeGate,
    part: P,
}

#[derive(Debug)]
struct GateWaker {
    rung: AtomicBool,
    /// The task that polls. It stays when it is woken: a poll that finds nothing need not put it back.
    task: Mutex<Option<Waker>>,
}

// === impl Bell ===

impl WakeGate {
    /// One that has rung: the first poll goes through.
    pub fn new() -> Self {
        let wire = Arc::new(GateWaker { rung: AtomicBool::new(true), task: Mutex::default() });
        Self { waker: Waker::from(Arc::clone(&wire)), wire, task: None }
    }

    /// Polls `part` if the bell has rung since the last time, or if it was ready then; `Pending` otherwise. Like any poll it
    /// may be called from another task than before.
    pub fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        part: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        let is_known = self.task.as_ref().is_some_and(|task| task.will_wake(cx.waker()));
        if is_known && !self.wire.rung.load(Ordering::Acquire) {
            return Poll::Pending;
        }
        if !is_known {
            // Before the flag is looked at: who rings afterwards finds the task.
            *self.wire.task() = Some(cx.waker().clone());
            self.task = Some(cx.waker().clone());
        }
        if !self.wire.rung.swap(false, Ordering::AcqRel) {
            return Poll::Pending;
        }
        let polled = part(&mut Context::from_waker(&self.waker));
        if polled.is_ready() {
            // It waits for nothing now, so nobody would ring for what it has next.
            self.wire.rung.store(true, Ordering::Release);
        }
        polled
    }
}

impl Default for WakeGate {
    fn default() -> Self {
        Self::new()
    }
}

// === impl Wire ===

impl GateWaker {
    fn task(&self) -> MutexGuard<'_, Option<Waker>> {
        self.task.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for GateWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // One who finds it rung already may leave: the task was told, and has not looked yet.
        if !self.rung.swap(true, Ordering::AcqRel)
            && let Some(task) = &*self.task()
        {
            task.wake_by_ref();
        }
    }
}

// === impl Gated ===

impl<P> Gated<P> {
    /// `part`, with a bell of its own.
    pub fn new(part: P) -> Self {
        Self { bell: WakeGate::new(), part }
    }
}

impl<F: Future + Unpin> Future for Gated<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let Self { bell, part } = self.get_mut();
        bell.poll(cx, |cx| Pin::new(part).poll(cx))
    }
}

impl<S: Stream + Unpin> Stream for Gated<S> {
    type Item = S::Item;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<S::Item>> {
        let Self { bell, part } = self.get_mut();
        bell.poll(cx, |cx| Pin::new(part).poll_next(cx))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use futures_util::task::noop_waker;
    use tokio::sync::mpsc;

    use super::*;

    /// Counts how often it was woken.
    #[derive(Default)]
    struct Task(AtomicUsize);

    impl Wake for Task {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_part_is_polled_only_when_it_was_woken() {
        let task = Arc::new(Task::default());
        let waker = Waker::from(Arc::clone(&task));
        let mut cx = Context::from_waker(&waker);
        let mut bell = WakeGate::new();
        let mut part_waker = None;
        let polled = bell.poll(&mut cx, |cx| {
            part_waker = Some(cx.waker().clone());
            Poll::<()>::Pending
        });
        assert!(polled.is_pending());
        let part_waker = part_waker.unwrap();
        for _ in 0..3 {
            let polled = bell.poll(&mut cx, |_| -> Poll<()> { panic!("nobody rang") });
            assert!(polled.is_pending());
        }
        part_waker.wake_by_ref();
        part_waker.wake_by_ref();
        assert_eq!(task.0.load(Ordering::SeqCst), 1);
        assert!(bell.poll(&mut cx, |_| Poll::Ready(())).is_ready());
        // What is ready is asked again without being woken.
        assert!(bell.poll(&mut cx, |_| Poll::Ready(())).is_ready());
        assert!(bell.poll(&mut cx, |_| Poll::<()>::Pending).is_pending());
        part_waker.wake();
        assert_eq!(task.0.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn a_part_that_moved_to_another_task_wakes_that_one() {
        let [first, second] = [(); 2].map(|()| Arc::new(Task::default()));
        let mut bell = WakeGate::new();
        let mut part_waker = None;
        let first_waker = Waker::from(Arc::clone(&first));
        let polled = bell.poll(&mut Context::from_waker(&first_waker), |cx| {
            part_waker = Some(cx.waker().clone());
            Poll::<()>::Pending
        });
        assert!(polled.is_pending());
        let second_waker = Waker::from(Arc::clone(&second));
        let polled = bell.poll(&mut Context::from_waker(&second_waker), |_| Poll::Ready(()));
        assert!(polled.is_pending());
        part_waker.unwrap().wake();
        assert_eq!((first.0.load(Ordering::SeqCst), second.0.load(Ordering::SeqCst)), (0, 1));
    }

    #[tokio::test]
    async fn a_stream_behind_a_bell_loses_nothing() {
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
    fn it_may_be_polled_without_a_task() {
        let waker = noop_waker();
        let mut never = Gated::new(std::future::pending::<()>());
        assert!(Pin::new(&mut never).poll(&mut Context::from_waker(&waker)).is_pending());
    }
}
