//! skeleton
pub mod host;
pub mod model;
pub mod platform;
