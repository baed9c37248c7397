//! skeleton
pub mod edge;
pub mod host;
pub mod model;
pub mod platform;
