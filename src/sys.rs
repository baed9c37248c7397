//! Access to the operating system, waker gates, fair turns of tasks, and types for model checking.

pub mod dir_watch;
pub(crate) mod fair_poll;
pub(crate) mod gated_poll;
pub(crate) mod memory_limit;
pub mod pem;
pub mod process;
pub mod read;
pub(crate) mod sync;
