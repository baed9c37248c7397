//! The command line's own calls: following logs as a tenant, printing them, checking them.
//!
//! [`follow`] drives one follower through cuts and reconnects into a [`follow::Sink`]; [`mod@print`] and [`oracle`] are sinks.
//! [`mod@status`] and [`restart`] are the other two calls, shown as a table (`table`, which `screen` redraws in place;
//! `columns`: width of text).
//! [`connect`] opens connections as Akash clients do.

pub mod connect;
pub mod demo;
pub mod exit;
pub mod follow;
pub mod logs;
pub mod loss_checker;
pub mod print;
pub mod restart;
pub mod status;

mod clock;
mod columns;
mod json;
mod lines;
mod live_line;
mod live_region;
mod output;
mod progress;
mod table;
mod terminal;
mod tls;
mod until;

pub use self::json::escape as escape_json;
pub use self::output::until_reader_gone;
pub use self::terminal::harmless;

#[cfg(test)]
mod fake;
