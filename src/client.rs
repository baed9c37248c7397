//! The calls of the command line: `logs`, `status` and `restart`.
//!
//! [`connect`] opens connections as Akash clients do. [`follow`] drives one follower through reconnects into
//! a [`follow::Sink`], such as the printer of [`mod@print`]. [`mod@status`] and [`restart`] show tables. Text
//! from a gateway or a container is escaped before it reaches a terminal.

use std::io::Write;

pub mod connect;
pub mod error;
pub mod exit;
pub mod follow;
pub mod logs;
pub mod output_style;
pub mod print;
pub mod restart;
pub mod status;

mod clock;
mod highlighter;
mod interrupt;
mod json;
mod line_filter;
mod line_options;
mod line_writer;
mod lines;
mod live_line;
mod live_region;
mod output;
mod progress;
mod progress_row;
mod reconnect;
mod request;
mod restart_progress;
mod services;
mod table;
mod terminal;
#[cfg(test)]
pub(crate) mod testing;
mod tls;
mod until;

pub use self::json::escape as escape_json;
pub(crate) use self::output::stdout_closed;
pub use self::output::until_stdout_closed;
pub(crate) use self::request::{ANSWER_TIMEOUT, filters as service_filters, response};
pub use self::services::service_names;
pub use self::terminal::escape as escape_terminal;

/// Service and number of a replica.
type ReplicaKey = (String, u32);

/// Output of a command.
type Out<'a> = Box<dyn Write + Send + 'a>;
