//! Erases drawn progress on Ctrl-C.

use std::sync::Arc;

use parking_lot::Mutex;
use signal_hook::consts::SIGINT;
use signal_hook::low_level::emulate_default_handler;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use crate::sys::process;

/// From now on, Ctrl-C erases what is drawn on standard error, and then ends the program as before. `drawn`
/// is the number of drawn rows, `erasure` returns what erases them. If the program was started with SIGINT
/// ignored, as a background job of a script is, the signal stays ignored.
///
/// The handler is a task of its own, because the command may be blocked on a full pipe. Keep the returned
/// owner of the task until the command ends: afterwards Ctrl-C has no effect, because a signal that was
/// handled once does not get its default action back.
pub(super) fn erase_on_interrupt(drawn: Arc<Mutex<usize>>, erasure: fn(usize) -> Vec<u8>) -> JoinSet<()> {
    let mut task = JoinSet::new();
    let interrupt = SignalKind::interrupt();
    // Also assumed if the signal mask cannot be read: the row is then not erased, and nothing else changes.
    let is_ignored =
        u32::try_from(interrupt.as_raw_value()).is_ok_and(|number| process::ignores(number).unwrap_or(true));
    if is_ignored {
        return task;
    }
    let Ok(mut interrupts) = signal(interrupt) else {
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
