//! Access to the operating system.

pub mod fd_limit;
pub mod notify;
pub mod pem;
pub mod process;
pub mod read;
