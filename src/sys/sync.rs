//! Locks, atomics and wakers of the types that are model-checked: the ring, the waker gate, turns of tasks,
//! the count of an actor's followers, and the unsent bytes of a stream.
//!
//! Unit tests with the feature `loom` use loom's types instead, which run a test in all possible
//! interleavings. The models are in modules named `models`.

#[cfg(all(test, feature = "loom"))]
pub(crate) use self::model::{
    AtomicBool, AtomicU64, AtomicUsize, AtomicWaker, Mutex, MutexGuard, Notify, explore, spawn,
};
#[cfg(not(all(test, feature = "loom")))]
pub(crate) use {
    futures_util::task::AtomicWaker,
    parking_lot::{Mutex, MutexGuard},
    std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize},
    tokio::sync::Notify,
};

/// loom's types with the interfaces of the usual ones.
#[cfg(test)]
#[cfg(feature = "loom")]
mod model {
    use std::future::poll_fn;
    use std::sync::atomic::{AtomicU64 as Counter, Ordering};
    use std::sync::{Arc, PoisonError};
    use std::task::{Poll, Waker};

    pub(crate) use loom::sync::MutexGuard;
    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
    use loom::thread::{Builder, JoinHandle};

    /// Loom's default is too small for encoders without optimisation.
    const STACK_BYTES: usize = 256 << 10;

    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }

    #[derive(Debug)]
    pub(crate) struct AtomicWaker(loom::future::AtomicWaker);

    impl AtomicWaker {
        pub(crate) fn new() -> Self {
            Self(loom::future::AtomicWaker::new())
        }

        pub(crate) fn register(&self, waker: &Waker) {
            self.0.register_by_ref(waker);
        }

        pub(crate) fn wake(&self) {
            self.0.wake();
        }
    }

    /// For one task that waits. Like tokio's, it keeps one notification while no task waits.
    #[derive(Debug, Default)]
    pub(crate) struct Notify(Mutex<(bool, Option<Waker>)>);

    impl Notify {
        pub(crate) fn notify_one(&self) {
            let mut state = self.0.lock();
            state.0 = true;
            let waker = state.1.take();
            drop(state);
            if let Some(waker) = waker {
                waker.wake();
            }
        }

        pub(crate) async fn notified(&self) {
            poll_fn(|cx| {
                let mut state = self.0.lock();
                if std::mem::take(&mut state.0) {
                    return Poll::Ready(());
                }
                state.1 = Some(cx.waker().clone());
                Poll::Pending
            })
            .await;
        }
    }

    /// Runs `model` in all interleavings of its threads that preempt a thread at most `preemptions` times;
    /// `None`: in all. Prints their number. A model that cannot continue fails, so a lost wake-up does.
    pub(crate) fn explore(preemptions: Option<usize>, model: impl Fn() + Send + Sync + 'static) {
        let executions = Arc::new(Counter::new(0));
        let mut builder = loom::model::Builder::new();
        // The variable LOOM_MAX_PREEMPTIONS goes first.
        builder.preemption_bound = builder.preemption_bound.or(preemptions);
        let bound = builder.preemption_bound;
        let counted = Arc::clone(&executions);
        builder.check(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            model();
        });
        let executions = executions.load(Ordering::Relaxed);
        println!("{executions} executions, preemptions: {bound:?}");
        assert!(executions > 10, "the threads have not interleaved");
    }

    pub(crate) fn spawn<T: Send + 'static>(thread: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        Builder::new().stack_size(STACK_BYTES).spawn(thread).unwrap()
    }
}
