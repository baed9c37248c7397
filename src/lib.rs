//! skeleton
pub mod client;
pub mod config;
pub mod host;
pub mod model;
pub mod platform;
