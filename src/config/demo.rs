//! Settings of `demo`.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::resolver::Resolver;
use super::value::{file, must_be};
use crate::model::parse::{duration, number, show_duration};

/// Maximum number of followers of a demo, which one machine has ports and files for.
const FOLLOWERS_MAX: usize = 20_000;

/// Durations of a demo.
const DEMO: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(24 * 3600);

/// Numbers of gateways. Each is a process with its own log tails and a ring of several megabytes per replica, so
/// one machine shows nothing more with a larger fleet.
const GATEWAYS: RangeInclusive<usize> = 1..=5;

/// Minimum duration of a demo with several gateways: three seconds until one is killed, two for the takeover, and
/// the start of the killed one.
const FLEET_DEMO_MIN: Duration = Duration::from_secs(8);

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
    /// Number of gateways; from two on, they share log tails over an own NATS server, and one is killed to show
    /// the takeover
    #[arg(long, value_name = "N", default_value = "1", value_parser = number(GATEWAYS))]
    pub gateways: usize,
    /// The program nats-server for --gateways; default: found on the PATH
    #[arg(long, value_name = "FILE", value_parser = file)]
    pub nats_server: Option<PathBuf>,
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

/// Checks the settings against each other.
pub(super) fn check(resolver: &mut Resolver<'_>) {
    let is_built = cfg!(feature = "nats");
    resolver.verify("gateways", |gateways: &usize| {
        let valid = "1: this program was built without the feature `nats` (cargo build --features nats)";
        must_be((is_built || *gateways == 1).then_some(()), valid)
    });
    if resolver.get("gateways") == Some(&1_usize) {
        if resolver.is_given("nats_server") {
            resolver
                .conflict("--nats-server goes with --gateways of at least 2: one gateway needs no server");
        }
    } else if resolver.get("duration").is_some_and(|duration: &Duration| *duration < FLEET_DEMO_MIN) {
        let least = show_duration(FLEET_DEMO_MIN);
        resolver.conflict(&format!("--for must be at least {least} with --gateways, to show a takeover"));
    }
}
