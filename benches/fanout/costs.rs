//! What else costs something: followers for whom nothing comes, followers that take nothing, replicas, handshakes, floods, and reading.

use std::path::PathBuf;

use clap::Subcommand;

use crate::Result;

mod crowd;
mod floods;
mod ingest;

/// Figures of the gateway by itself.
#[derive(Debug, Subcommand)]
pub(crate) enum Cost {
    /// Memory and CPU of followers for whom nothing comes: one on each connection, and a hundred.
    Idle {
        /// Followers.
        #[arg(long, default_value_t = 1_000)]
        followers: usize,
    },
    /// Memory of followers that take nothing, while another one takes everything.
    Stalled {
        /// Followers.
        #[arg(long, default_value_t = 100)]
        followers: usize,
        /// Megabytes published meanwhile.
        #[arg(long, default_value_t = 64)]
        megabytes: u64,
    },
    /// CPU for the same deliveries of one replica, and of as many as there are followers.
    Replicas {
        /// Followers, and replicas at most.
        #[arg(long, default_value_t = 5_000)]
        followers: usize,
    },
    /// TLS handshakes, one after the other, each with a certificate on both sides.
    Handshakes {
        /// How many.
        #[arg(long, default_value_t = 2_000)]
        count: usize,
    },
    /// A follower and the admin port while strangers flood the gateway with control frames of HTTP/2, kind by kind, beside the same
    /// without a flood.
    Floods {
        /// Connections that send, each from an address of its own (127.0.0.2 and following).
        #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..=200))]
        connections: u8,
        /// Seconds of each flood.
        #[arg(long, default_value_t = 6.0)]
        seconds: f64,
    },
    /// From a CRI log file to frames in the ring, beside `wc -l` and `cat` of the same file.
    Ingest {
        /// Megabytes of log.
        #[arg(long, default_value_t = 256)]
        megabytes: u64,
        /// Where to put the file instead of the system's place for temporary ones.
        #[arg(long)]
        dir: Option<PathBuf>,
    },
}

pub(crate) fn run(cost: &Cost) -> Result<()> {
    match cost {
        Cost::Idle { followers } => crowd::idle(*followers),
        Cost::Stalled { followers, megabytes } => crowd::stalled(*followers, *megabytes),
        Cost::Replicas { followers } => crowd::replicas(*followers),
        Cost::Handshakes { count } => crowd::handshakes(*count),
        Cost::Floods { connections, seconds } => floods::run(*connections, *seconds),
        Cost::Ingest { megabytes, dir } => ingest::run(*megabytes, dir.as_deref()),
    }
}
