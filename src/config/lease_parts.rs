//! The lease of a command by its parts, as Akash's own tools take it.

use clap::Args;

use super::resolver::Resolver;
use super::value::address;
use crate::access::identity::IdentityFiles;
use crate::model::id::{Address, LeaseId};
use crate::model::parse::number;

/// Group and order of almost all leases.
const USUAL_SEQUENCE: u32 = 1;

/// Parts of a lease, and the context that may have one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
pub struct LeaseSource {
    /// Take gateway, credentials and lease from this context; default: the current one (see 'context')
    #[arg(long, value_name = "NAME", value_parser = super::contexts::name)]
    pub context: Option<String>,
    /// Deployment of the lease, instead of LEASE; the owner is the account of --identity
    #[arg(long, value_name = "N", value_parser = number(1..=u64::MAX))]
    pub dseq: Option<u64>,
    /// Group of the lease; 1 if not given
    #[arg(long, value_name = "N", value_parser = number(1..=u32::MAX))]
    pub gseq: Option<u32>,
    /// Order of the lease; 1 if not given
    #[arg(long, value_name = "N", value_parser = number(1..=u32::MAX))]
    pub oseq: Option<u32>,
    /// Provider of the lease; default: that of the context's lease
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    pub provider: Option<Address>,
}

/// Makes a lease of its parts, if they are given instead of it.
pub(super) fn resolve(resolver: &mut Resolver<'_>) {
    let typed = ["dseq", "gseq", "oseq", "provider"].into_iter().find(|id| resolver.is_typed(id));
    if resolver.is_typed("lease") {
        if let Some(id) = typed {
            resolver.conflict(&format!("--{id} and LEASE do not go together: LEASE has all parts"));
        }
        return;
    }
    if !resolver.is_given("dseq") {
        if let Some(id) = typed {
            resolver.conflict(&format!("--{id} needs --dseq: together they are the lease"));
        }
        return;
    }
    let Some(dseq) = resolver.get::<u64>("dseq").copied() else { return };
    let sequence = |id: &str| resolver.get::<u32>(id).copied().unwrap_or(USUAL_SEQUENCE);
    let (gseq, oseq) = (sequence("gseq"), sequence("oseq"));
    let of_context = || resolver.get::<LeaseId>("lease").map(|lease| lease.provider().clone());
    let Some(provider) = resolver.get::<Address>("provider").cloned().or_else(of_context) else {
        return resolver.require("provider", "the account of the lease's provider");
    };
    let Some(dir) = resolver.get::<std::path::PathBuf>("identity").cloned() else {
        if !resolver.is_given("identity") {
            resolver.conflict(
                "--dseq needs --identity, whose account owns the lease; with --token, give the whole LEASE",
            );
        }
        return;
    };
    let lease = IdentityFiles::load(&dir).map_err(|error| error.to_string()).and_then(|identity| {
        let owner = identity.address().as_str();
        LeaseId::new(owner, dseq, gseq, oseq, provider.as_str()).map_err(|error| error.to_string())
    });
    match lease {
        Ok(lease) => resolver.supply("lease", &lease.to_string()),
        Err(reason) => resolver.conflict(&format!("--dseq and --identity are no lease: {reason}")),
    }
}
