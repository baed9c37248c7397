//! Access to the operating system, and waker gates.

pub mod dir_watch;
pub(crate) mod gated_poll;
pub mod pem;
pub mod process;
pub mod read;
