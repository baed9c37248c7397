//! Settings of `demo`.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::value::file;
use crate::model::parse::{duration, number};

/// Maximum number of followers of a demo, which one machine has ports and files for.
const FOLLOWERS_MAX: usize = 20_000;

/// Durations of a demo.
const DEMO: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(24 * 3600);

const EXAMPLES: &str = include_str!("help/demo.txt").trim_ascii_end();

/// Run a gateway with sample services, and follow their logs
///
/// Processes and connections are real (gRPC over mutual TLS), and removed at the end. The exit code is 1 if a
/// follower misses a line that was not reported as lost, or receives one twice.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(after_help = EXAMPLES)]
pub struct DemoConfig {
    /// Duration; default: until Ctrl-C
    #[arg(long = "for", value_name = "TIME", value_parser = duration(DEMO))]
    pub duration: Option<Duration>,
    /// Number of additional followers, which count and check
    #[arg(long, value_name = "N", default_value = "0", value_parser = number(0..=FOLLOWERS_MAX))]
    pub followers: usize,
    /// SDL file of the services to run instead of the sample
    #[arg(long, value_name = "FILE", value_parser = file)]
    pub sdl: Option<PathBuf>,
    /// Show the lease in a web page, too, and open it in a browser
    #[arg(long)]
    pub ui: bool,
    /// Show the gateway's own log
    #[arg(short, long)]
    pub verbose: bool,
}
