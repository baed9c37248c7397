//! Settings of `canary`.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use clap::Args;

use super::client::{CallConfig, EXIT_CODES, LAG_POLICIES, check_call};
use super::resolver::Resolver;
use super::service_selector::ServiceSelector;
use super::value::{Format, LOG_FORMATS, choice, listen_address};
use crate::model::parse::duration;
use crate::model::proto::lease::OnLag;

const EXAMPLES: &str = include_str!("help/canary.txt").trim_ascii_end();

/// Durations of a canary that ends by itself.
const DURATIONS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(7 * 24 * 3600);

/// Measure what a gateway delivers, loses, repeats and delays
///
/// Follows a service that prints numbered lines (examples/counter.yaml), as a tenant, and exports the result
/// as metrics for Prometheus.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(
    override_usage = "leasemux canary [LEASE] --service <NAME> [--identity <DIR> | --token <TOKEN|@FILE>] [--ca <FILE> | --insecure] [OPTIONS]",
    after_help = EXAMPLES,
    after_long_help = format!("{EXAMPLES}\n\n{EXIT_CODES}")
)]
pub struct CanaryConfig {
    /// The lease, the gateway, and the selected replicas.
    #[command(flatten)]
    pub call: CallConfig,
    /// Address for /metrics, /live and /ready
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:9447", value_parser = listen_address)]
    pub metrics_listen: SocketAddr,
    /// If this side is too slow: 'drop' skips lines and reports them, 'refill' reads them from the log again,
    /// 'close' reconnects and reads them again
    #[arg(long, value_name = "WHAT", default_value = "refill", value_parser = choice(LAG_POLICIES, "drop, refill or close"))]
    pub on_lag: OnLag,
    /// Duration; default: until Ctrl-C
    #[arg(long = "for", value_name = "TIME", value_parser = duration(DURATIONS))]
    pub duration: Option<Duration>,
    /// Format of the log on standard error: text or json
    #[arg(long, value_name = "FORM", default_value = "text", value_parser = choice(LOG_FORMATS, "text or json"))]
    pub log_format: Format,
}

pub(super) fn check(resolver: &mut Resolver<'_>) {
    check_call(resolver);
    resolver.verify("services", |service: &ServiceSelector| match service {
        ServiceSelector::Name(_) => Ok(()),
        ServiceSelector::Pattern(_) => Err("must be a name: a canary does not expand patterns".to_owned()),
    });
    // `check_call` reports replicas without a service.
    if !resolver.is_given("replicas") {
        resolver.require("services", "the service that counts");
    }
}
