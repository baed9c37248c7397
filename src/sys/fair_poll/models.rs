//! Models of turns: no interleaving loses a wake-up or a turn.

use loom::future::block_on;

use super::*;
use crate::sys::gated_poll::models::Signal;
use crate::sys::sync::{explore, spawn};

/// Two tasks share one turn, and one waits for the other.
#[test]
fn tasks_that_share_a_turn_complete_and_return_it() {
    explore(Some(3), || {
        let class = SharedClass::new(TaskClass::new(1));
        let signal = Signal::new();
        let waiting = Fair::new(Arc::clone(&signal).wait(), class.clone());
        let setting = Fair::new(async move { signal.set() }, class.clone());
        let setter = spawn(move || block_on(setting));
        block_on(waiting);
        setter.join().unwrap();
        let class = class.get();
        let queue = class.0.queue.lock();
        assert_eq!((queue.turns, queue.waiting.len()), (0, 0));
    });
}

/// A task is woken from elsewhere, and another one that waits for the only turn is dropped.
#[test]
fn woken_task_gets_turn_of_dropped_one() {
    explore(Some(3), || {
        let class = SharedClass::new(TaskClass::new(1));
        let signal = Signal::new();
        let waiting = Fair::new(Arc::clone(&signal).wait(), class.clone());
        let mut dropped = Fair::new(std::future::pending::<()>(), class.clone());
        let threads = [
            spawn(move || signal.set()),
            spawn(move || {
                let mut cx = Context::from_waker(Waker::noop());
                assert!(Pin::new(&mut dropped).poll(&mut cx).is_pending());
                drop(dropped);
            }),
        ];
        block_on(waiting);
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(class.get().0.queue.lock().turns, 0);
    });
}
