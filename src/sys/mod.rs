//! What the operating system offers, in the form that the rest wants it.

pub mod files;
pub mod notify;
pub mod process;
