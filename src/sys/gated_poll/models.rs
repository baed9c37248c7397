//! Models of the waker gate: no interleaving loses a wake-up.

use std::future::poll_fn;

use loom::future::block_on;

use super::*;
use crate::sys::sync::{AtomicWaker, explore, spawn};

/// Becomes ready once.
#[derive(Debug)]
pub(in crate::sys) struct Signal {
    // Accessed relaxed: it is visible only if the wake-up is.
    is_set: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl Signal {
    pub(in crate::sys) fn new() -> Arc<Self> {
        Arc::new(Self { is_set: AtomicBool::new(false), waker: Mutex::new(None) })
    }

    pub(in crate::sys) fn set(&self) {
        self.is_set.store(true, Ordering::Relaxed);
        let waker = self.waker.lock().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Resolves when it is set. Registers its waker once, so that a later poll depends on the wake-up alone.
    pub(in crate::sys) fn wait(self: Arc<Self>) -> impl Future<Output = ()> + Unpin {
        let mut is_registered = false;
        poll_fn(move |cx| {
            if !std::mem::replace(&mut is_registered, true) {
                *self.waker.lock() = Some(cx.waker().clone());
            }
            if self.is_set.load(Ordering::Relaxed) { Poll::Ready(()) } else { Poll::Pending }
        })
    }
}

#[test]
fn wake_is_not_lost_among_other_wakes() {
    explore(Some(5), || {
        let (signal, lines) = (Signal::new(), Arc::new(AtomicWaker::new()));
        let mut gated = Gated::new(Arc::clone(&signal).wait());
        let setter = spawn(move || signal.set());
        let line = spawn({
            let lines = Arc::clone(&lines);
            move || lines.wake()
        });
        block_on(poll_fn(|cx| {
            lines.register(cx.waker());
            Pin::new(&mut gated).poll(cx)
        }));
        setter.join().unwrap();
        line.join().unwrap();
    });
}

#[test]
fn wake_reaches_task_that_polled_last() {
    explore(None, || {
        let signal = Signal::new();
        let mut gated = Gated::new(Arc::clone(&signal).wait());
        let setter = spawn(move || signal.set());
        let first_task = Pin::new(&mut gated).poll(&mut Context::from_waker(Waker::noop()));
        if first_task.is_pending() {
            block_on(gated);
        }
        setter.join().unwrap();
    });
}

#[test]
fn gated_stream_yields_every_item_of_two_senders() {
    explore(Some(5), || {
        let queue = Arc::new(Mutex::<(u32, Option<Waker>)>::default());
        let receive = {
            let queue = Arc::clone(&queue);
            futures_util::stream::poll_fn(move |cx| {
                let mut queue = queue.lock();
                if queue.0 == 0 {
                    queue.1 = Some(cx.waker().clone());
                    return Poll::Pending;
                }
                queue.0 -= 1;
                Poll::Ready(Some(()))
            })
        };
        let senders = [(); 2].map(|()| {
            let queue = Arc::clone(&queue);
            spawn(move || {
                let mut queue = queue.lock();
                queue.0 += 1;
                let waker = queue.1.take();
                drop(queue);
                if let Some(waker) = waker {
                    waker.wake();
                }
            })
        });
        let mut items = Gated::new(receive);
        for _ in 0..2 {
            block_on(poll_fn(|cx| Pin::new(&mut items).poll_next(cx)));
        }
        for sender in senders {
            sender.join().unwrap();
        }
    });
}
