//! Settings of the REST port of `serve`.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use http::Uri;

use super::resolver::Resolver;
use super::start_checks::StartChecks;
use super::value::{choice, file, hostname, listen_address, provider_url};
use crate::edge::upstream::client_hello::MtlsMode;
use crate::logs::entry_name::NameStyle;
use crate::logs::notice::Notices;
use crate::model::parse::duration;

/// Maximum ages of streams whose token has expired. Longer ones would hide a withdrawn tenant's stream from
/// review; the account's key still ends it at once.
const MAX_AGE: RangeInclusive<Duration> = Duration::from_secs(60)..=Duration::from_secs(30 * 24 * 3_600);

const NAMES: &[(&str, NameStyle)] = &[("pod", NameStyle::Pod), ("replica", NameStyle::Replica)];

const NOTICES: &[(&str, Notices)] =
    &[("all", Notices::All), ("loss", Notices::Loss), ("none", Notices::None)];

const EXPIRED: &[(&str, ExpiredTokens)] =
    &[("continue", ExpiredTokens::Continue), ("close", ExpiredTokens::Close)];

const EVENTS: &[(&str, EventSource)] = &[
    ("native", EventSource::Native),
    ("upstream", EventSource::Upstream),
    ("synthetic", EventSource::Synthetic),
];

pub(super) const MTLS: &[(&str, MtlsMode)] =
    &[("passthrough", MtlsMode::Passthrough), ("terminate", MtlsMode::Terminate)];

/// Settings of the REST and websocket port.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(next_help_heading = "REST and websockets (clients of the Akash provider)")]
pub(crate) struct RestOptions {
    /// Address for clients of the Akash provider (REST and websockets over TLS), such as 0.0.0.0:8443; needs
    /// --provider; default: off
    #[arg(long, value_name = "HOST:PORT", value_parser = listen_address)]
    pub(crate) rest_listen: Option<SocketAddr>,
    /// Names of replicas in log frames: 'pod' (as the Akash provider) or 'replica' (web-0); default: pod in a
    /// cluster, else replica
    #[arg(long, value_name = "WHAT", value_parser = choice(NAMES, "'pod' or 'replica'"))]
    pub(crate) rest_names: Option<NameStyle>,
    /// Notice lines about gaps, restarts and ends in log streams: all, loss (gaps, errors, ends) or none
    #[arg(long, value_name = "WHICH", default_value = "all", value_parser = choice(NOTICES, "all, loss or none"))]
    pub(crate) rest_notices: Notices,
    /// Where events come from: native (the cluster, if it permits that, else synthetic), upstream
    /// (--upstream-provider) or synthetic (starts and ends of replicas, made here); default: upstream with a
    /// provider, else native
    #[arg(long, value_name = "WHERE", value_parser = choice(EVENTS, "native, upstream or synthetic"))]
    pub(crate) rest_events: Option<EventSource>,
    /// What happens to a stream when its token expires: continue (as the Akash provider) or close
    // Console opens its stream once, with a token of 30 minutes.
    #[arg(long, value_name = "WHAT", default_value = "continue", value_parser = choice(EXPIRED, "continue or close"))]
    pub(crate) rest_expired: ExpiredTokens,
    /// Maximum age of a stream whose token has expired
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = duration(MAX_AGE))]
    pub(crate) rest_max_age: Duration,
    /// Serve a web page at /ui of the REST port: replicas, live logs and restarts, for tenants who paste a
    /// token
    #[arg(long)]
    pub(crate) rest_ui: bool,
    /// The Akash provider behind the gateway (https://HOST:PORT), which gets all REST requests that are not
    /// served here; default: none
    #[arg(long, value_name = "URL", value_parser = provider_url)]
    pub(crate) upstream_provider: Option<Uri>,
    /// Host name in the certificate of --upstream-provider and --upstream-grpc; default: the first
    /// --public-hostname, else the host in the URL
    #[arg(long, value_name = "HOST", value_parser = hostname)]
    pub(crate) upstream_name: Option<String>,
    /// PEM file with the authorities of the certificate of --upstream-provider and --upstream-grpc; default:
    /// the system's authorities, and with --chain-grpc also the provider's certificates on the chain
    #[arg(long, value_name = "FILE", value_parser = file)]
    pub(crate) upstream_ca: Option<PathBuf>,
    /// What happens to connections for other names than --public-hostname, as of clients with certificates:
    /// passthrough (to the provider) or terminate (served here); default: passthrough with a provider
    #[arg(long, value_name = "WHAT", value_parser = choice(MTLS, "passthrough or terminate"))]
    pub(crate) rest_mtls: Option<MtlsMode>,
}

/// What happens to a stream when its token expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExpiredTokens {
    Continue,
    Close,
}

/// Where events come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EventSource {
    Native,
    Upstream,
    Synthetic,
}

// === impl RestOptions ===

impl RestOptions {
    /// Returns for how long a stream may outlive its token.
    pub(crate) fn token_grace(&self) -> Duration {
        match self.rest_expired {
            ExpiredTokens::Continue => self.rest_max_age,
            ExpiredTokens::Close => Duration::ZERO,
        }
    }

    /// Returns whether the provider gets requests for events, if there is one.
    pub(crate) fn forwards_events(&self) -> bool {
        matches!(self.rest_events, None | Some(EventSource::Upstream))
    }

    /// Returns whether events that are served here come from the platform, if it has any.
    pub(crate) fn has_native_events(&self) -> bool {
        self.rest_events != Some(EventSource::Synthetic)
    }

    /// Returns what happens to connections for other names than the public ones, if there is a provider.
    pub(crate) fn mtls_mode(&self) -> MtlsMode {
        self.rest_mtls.unwrap_or(MtlsMode::Passthrough)
    }
}

/// Checks the settings against others.
pub(super) fn check(resolver: &mut Resolver<'_>, checks: &StartChecks) {
    if resolver.is_given("rest_listen") {
        resolver.require("provider", "the provider's address, which the paths of --rest-listen leave out");
    }
    resolver.verify("upstream_ca", |file: &PathBuf| (checks.authorities)(file));
    for id in ["upstream_name", "upstream_ca"] {
        if resolver.is_given(id) && !resolver.is_given("upstream_grpc") {
            let flag = id.replace('_', "-");
            resolver.require("upstream_provider", &format!("the provider that --{flag} is about"));
        }
    }
    if resolver.get::<bool>("rest_ui") == Some(&true) {
        resolver.require("rest_listen", "the address of the page of --rest-ui");
    }
    let has_upstream = resolver.is_given("upstream_provider");
    if has_upstream {
        resolver.require("rest_listen", "the address for the requests that --upstream-provider gets");
    }
    if resolver.get::<EventSource>("rest_events") == Some(&EventSource::Upstream) {
        resolver.require("upstream_provider", "the provider that --rest-events upstream asks");
    }
    let is_passthrough = match resolver.get::<MtlsMode>("rest_mtls") {
        Some(mode) => *mode == MtlsMode::Passthrough,
        None => has_upstream && !resolver.is_given("rest_mtls"),
    };
    if is_passthrough {
        require_for_passthrough(resolver, "upstream_provider", "rest_mtls");
    }
}

/// Requires what `passthrough`, the value of `mode`, needs besides the provider in `upstream`.
pub(super) fn require_for_passthrough(resolver: &mut Resolver<'_>, upstream: &str, mode: &str) {
    let mode = mode.replace('_', "-");
    resolver.require(upstream, &format!("the provider that --{mode} passthrough passes connections to"));
    let what = format!(
        "the host name tells clients with a token from those with a certificate only if an authority vouches for \
         it; get such a certificate, or set --{mode} terminate: manifests and shells then need a token"
    );
    resolver.require("ca_tls_cert", &what);
}

#[cfg(test)]
mod tests {
    use clap::FromArgMatches as _;

    use super::*;

    fn options(args: &[&str]) -> Result<RestOptions, clap::Error> {
        let command = RestOptions::augment_args(clap::Command::new("serve").no_binary_name(true));
        RestOptions::from_arg_matches(&command.try_get_matches_from(args)?)
    }

    #[test]
    fn expired_token_keeps_stream_up_to_maximum_age() {
        let grace = |args: &[&str]| options(args).unwrap().token_grace();
        assert_eq!(grace(&[]), Duration::from_secs(24 * 3_600));
        assert_eq!(grace(&["--rest-max-age=60s"]), Duration::from_secs(60));
        assert_eq!(grace(&["--rest-max-age=720h"]), *MAX_AGE.end());
        assert_eq!(grace(&["--rest-expired=close", "--rest-max-age=1h"]), Duration::ZERO);
        for bad in ["--rest-max-age=59s", "--rest-max-age=721h", "--rest-expired=never"] {
            assert!(options(&[bad]).is_err(), "{bad}");
        }
    }

    #[test]
    fn words_select_what_they_say() {
        let parsed = |args: &[&str]| options(args).unwrap();
        let default = parsed(&[]);
        assert_eq!((default.rest_names, default.rest_notices), (None, Notices::All));
        assert_eq!((default.forwards_events(), default.mtls_mode()), (true, MtlsMode::Passthrough));
        let other = parsed(&[
            "--rest-names=pod",
            "--rest-notices=loss",
            "--rest-events=synthetic",
            "--rest-mtls=terminate",
        ]);
        assert_eq!((other.rest_names, other.rest_notices), (Some(NameStyle::Pod), Notices::Loss));
        assert_eq!((other.forwards_events(), other.mtls_mode()), (false, MtlsMode::Terminate));
        let replica = parsed(&["--rest-names=replica", "--rest-notices=none", "--rest-events=upstream"]);
        assert_eq!((replica.rest_names, replica.rest_notices), (Some(NameStyle::Replica), Notices::None));
        assert!(replica.forwards_events());
    }
}
