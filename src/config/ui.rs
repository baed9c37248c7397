//! Settings of `ui`.

use clap::Args;

use super::client::{EXIT_CODES, Target, check_target};
use super::lease_parts::LeaseSource;
use super::resolver::Resolver;
use super::value::lease;
use crate::model::id::LeaseId;
use crate::model::parse::number;

const EXAMPLES: &str = include_str!("help/ui.txt").trim_ascii_end();

/// Show a lease in a web page: replicas, live logs, restarts
///
/// Serves the page on this machine only (127.0.0.1). The printed address is good for one browser.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(
    override_usage = "leasemux ui [LEASE] [--identity <DIR> | --token <TOKEN|@FILE>] [--ca <FILE> | --insecure] [OPTIONS]",
    after_help = EXAMPLES,
    after_long_help = format!("{EXAMPLES}\n\n{EXIT_CODES}")
)]
pub struct UiConfig {
    /// The lease: owner/dseq/gseq/oseq/provider; default: that of the context
    #[arg(value_name = "LEASE", required = false, value_parser = lease)]
    pub lease: LeaseId,
    /// The parts of the lease, or a context that has one. Resolved: `lease` has the result.
    #[command(flatten)]
    pub source: LeaseSource,
    /// The gateway, and the credentials for it.
    #[command(flatten)]
    pub target: Target,
    /// Port of the page on 127.0.0.1; 0 = any free one
    #[arg(long, value_name = "PORT", default_value = "0", value_parser = number(0..=u16::MAX))]
    pub port: u16,
    /// Do not open a browser
    #[arg(long)]
    pub no_open: bool,
}

pub(super) fn check(resolver: &mut Resolver<'_>) {
    check_target(resolver);
}
