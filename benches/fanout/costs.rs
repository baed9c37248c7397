//! Costs other than fan-out: idle followers, stalled followers, replicas, handshakes, floods, other tenants
//! and log ingestion.

use std::path::PathBuf;

use clap::Subcommand;

use crate::Result;

mod floods;
mod followers;
mod ingest;
mod refill;
mod tenants;

/// A measurement of the gateway alone.
#[derive(Debug, Subcommand)]
pub(crate) enum Cost {
    /// Memory and CPU of idle followers, one and a hundred per connection.
    Idle {
        /// Number of followers.
        #[arg(long, default_value_t = 1_000)]
        followers: usize,
    },
    /// Memory of stalled followers, while another follower reads everything.
    Stalled {
        /// Number of followers.
        #[arg(long, default_value_t = 100)]
        followers: usize,
        /// Megabytes to publish.
        #[arg(long, default_value_t = 64)]
        megabytes: u64,
    },
    /// CPU per delivery with one replica, up to one replica per follower.
    Replicas {
        /// Number of followers, and most replicas.
        #[arg(long, default_value_t = 5_000)]
        followers: usize,
    },
    /// Sequential TLS handshakes with certificates on both sides.
    Handshakes {
        /// Number of handshakes.
        #[arg(long, default_value_t = 2_000)]
        count: usize,
    },
    /// A follower and the admin port while unauthenticated connections flood the gateway with HTTP/2 control
    /// frames, compared with no flood.
    Floods {
        /// Number of flooding connections, each from its own address (127.0.0.2 and following).
        #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..=200))]
        connections: u8,
        /// Seconds per flood.
        #[arg(long, default_value_t = 6.0)]
        seconds: f64,
    },
    /// A follower of one tenant while another tenant has many followers of a loud service.
    Tenants {
        /// Number of the other tenant's followers; at most one owner's streams, unless it is raised.
        #[arg(long, default_value_t = 1_000)]
        followers: usize,
        /// Number of connections that open during the measurement and then take nothing.
        #[arg(long, default_value_t = 2_000)]
        connections: usize,
        /// Kilobytes per second that the other tenant's service prints.
        #[arg(long, default_value_t = 400)]
        kilobytes: u64,
        /// Seconds per measurement.
        #[arg(long, default_value_t = 6.0)]
        seconds: f64,
    },
    /// Bytes read from a log for slow followers that are refilled, per delivered byte.
    Refill {
        /// Number of followers.
        #[arg(long, default_value_t = 16)]
        followers: usize,
        /// Megabytes per second that the service prints.
        #[arg(long, default_value_t = 4)]
        megabytes: usize,
        /// Length of a line.
        #[arg(long, default_value_t = 200)]
        line: usize,
        /// Seconds for each pattern of reading.
        #[arg(long, default_value_t = 30.0)]
        seconds: f64,
    },
    /// From a CRI log file to messages in the ring, compared with `wc -l` and `cat` of the same file.
    Ingest {
        /// Megabytes of the log file.
        #[arg(long, default_value_t = 256)]
        megabytes: u64,
        /// Directory of the file, instead of the system's temporary directory.
        #[arg(long)]
        dir: Option<PathBuf>,
    },
}

pub(crate) fn run(cost: &Cost) -> Result<()> {
    match cost {
        Cost::Idle { followers } => followers::idle(*followers),
        Cost::Stalled { followers, megabytes } => followers::stalled(*followers, *megabytes),
        Cost::Replicas { followers } => followers::replicas(*followers),
        Cost::Handshakes { count } => followers::handshakes(*count),
        Cost::Floods { connections, seconds } => floods::run(*connections, *seconds),
        Cost::Tenants { followers, connections, kilobytes, seconds } => {
            tenants::run(*followers, *connections, *kilobytes, *seconds)
        }
        Cost::Refill { followers, megabytes, line, seconds } => {
            refill::run(*followers, *megabytes, *line, *seconds)
        }
        Cost::Ingest { megabytes, dir } => ingest::run(*megabytes, dir.as_deref()),
    }
}
