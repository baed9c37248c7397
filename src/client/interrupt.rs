//! Erases drawn progress on Ctrl-C.

use std::sync::Arc;

use parking_lot::Mutex;
use signal_hook::consts::SIGINT;
use signal_hook::low_level::emulate_default_handler;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

/// From now on, Ctrl-C erases what is drawn on standard error, and then ends the program as before. `drawn` is
/// the number of drawn rows, `erasure` returns what erases them.
///
/// The handler is a task of its own, because the command may be blocked on a full pipe. Keep the returned owner
/// of the task until the command ends: afterwards Ctrl-C has no effect, because a signal that was handled once
/// does not get its default action back.
pub(super) fn erase_on_interrupt(drawn: Arc<Mutex<usize>>, erasure: fn(usize) -> Vec<u8>) -> JoinSet<()> {
    let mut task = JoinSet::new();
    let Ok(mut interrupts) = signal(SignalKind::interrupt()) else {
        // Ctrl-C keeps its default action.
        return task;
    };
    task.spawn(async move {
        while interrupts.recv().await.is_some() {
            // Held until the program ends, so that nothing is drawn after it.
            let rows = drawn.lock();
            if *rows > 0 {
                // Not by `std::io::stderr`, whose lock the command may hold while it is blocked.
                let _ = rustix::io::write(rustix::stdio::stderr(), &erasure(*rows));
            }
            // Ends the program by the signal, so that a shell ends its script, too.
            let _ = emulate_default_handler(SIGINT);
        }
    });
    task
}
