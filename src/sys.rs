//! Access to the operating system, and waker gates.

pub mod fd_limit;
pub(crate) mod gated_poll;
pub mod notify;
pub mod pem;
pub mod process;
pub mod read;
