//! Where clients arrive.

pub mod tls;
