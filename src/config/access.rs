//! Whom a gateway lets in.

use std::path::PathBuf;
use std::time::Duration;

use http::Uri;
use http::uri::Scheme;

use super::cli::AccessArgs;
use super::faults::Resolver;
use super::probes::Probes;
use super::value::{directory, duration, file, node, parsed};
use crate::model::id::Address;

/// Shortest grace: below it a node that is restarted would lock tenants out.
const GRACE_MIN: Duration = Duration::from_secs(60);

/// Longest grace: for so long what was revoked may go on working.
const GRACE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// Whom a gateway lets in. There is a trust directory or a node, or both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessConfig {
    /// Directory of trusted tenants' certificates and account keys.
    pub trust_dir: Option<PathBuf>,
    /// The node that is asked.
    pub chain: Option<ChainSource>,
    /// The one provider whose leases are served; `None` = any.
    pub provider: Option<Address>,
}

/// An Akash node, and how it is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainSource {
    /// `http://host:port` or `https://host:port`.
    pub node: Uri,
    /// Who signs its certificate; `None` = an authority of the system.
    pub authorities: Option<PathBuf>,
    /// For how long known tenants go on while it does not answer.
    pub grace: Duration,
}

pub(super) fn resolve(args: &AccessArgs, probes: &Probes, read: &mut Resolver<'_>) -> Option<AccessConfig> {
    let trust_dir = read.one("trust_dir", args.trust_dir.as_ref(), directory);
    if args.trust_dir.is_none() && args.chain_grpc.is_none() {
        let what = "the directory of trusted tenants' certificates (*.pem) and account keys (*.pub), or --chain-grpc";
        read.missing("trust_dir", what);
    }
    let node = read.one("chain_grpc", args.chain_grpc.as_ref(), node);
    let authorities = read
        .one("chain_ca", args.chain_ca.as_ref(), |text| file(text).and_then(|file| probes.authorities(file)));
    if args.chain_grpc.is_none() && args.chain_ca.is_some() {
        read.missing("chain_grpc", "the node whose certificate --chain-ca signs");
    }
    if args.chain_ca.is_some() && node.as_ref().is_some_and(|node| node.scheme() == Some(&Scheme::HTTP)) {
        read.unfit("--chain-ca and --chain-grpc do not go together: an http node shows no certificate");
    }
    let grace = read.one("chain_grace", args.chain_grace.as_ref(), duration(GRACE_MIN..=GRACE_MAX));
    let provider = read.one("provider", args.provider.as_ref(), |text| {
        parsed::<Address>(text)
            .map_err(|_| "must be an account address (lower-case bech32: akash1…)".to_owned())
    });
    let chain = match node {
        None => None,
        Some(node) => Some(ChainSource { node, authorities, grace: grace? }),
    };
    Some(AccessConfig { trust_dir, chain, provider })
}
