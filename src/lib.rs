//! skeleton
pub mod access;
pub mod host;
pub mod model;
pub mod platform;
