//! Access to the operating system, waker gates, and types for model checking.

pub mod dir_watch;
pub(crate) mod gated_poll;
pub(crate) mod memory_limit;
pub mod pem;
pub mod process;
pub mod read;
pub(crate) mod sync;
