//! The command line's own calls: following logs as a tenant, printing them, checking them.
//!
//! [`follow`] drives one follower through cuts and reconnects into a [`follow::Sink`]; [`mod@print`] and [`oracle`] are sinks.
//! [`connect`] opens connections as Akash clients do.

pub mod connect;
pub mod demo;
pub mod exit;
pub mod follow;
pub mod logs;
pub mod oracle;
pub mod print;

mod json;
mod lines;
mod progress;
mod terminal;
mod tls;

#[cfg(test)]
mod fake;
