//! Settings of `context`.

use std::path::PathBuf;

use clap::Args;
use http::Uri;

use super::contexts::{ContextChange, name};
use super::resolver::Resolver;
use super::token_source::TokenSource;
use super::value::{file, gateway, identity, lease};
use crate::model::id::LeaseId;

const SET_EXAMPLES: &str = include_str!("help/context-set.txt").trim_ascii_end();

const NAME_EXAMPLES: &str = include_str!("help/context.txt").trim_ascii_end();

/// Create a context, or change values of it
///
/// Values that are not given stay as they are. The first context becomes the current one. Paths are stored
/// as absolute ones. Of a token, only the path of its file is stored.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(
    override_usage = "leasemux context set <NAME> [--gateway <URL>] [--identity <DIR> | --token <@FILE>] [--ca <FILE>] [--lease <LEASE>]",
    after_help = SET_EXAMPLES
)]
pub struct ContextSetConfig {
    /// Name of the context
    #[arg(value_name = "NAME", required = false, value_parser = name)]
    pub name: String,
    /// URL of the gateway
    #[arg(long, value_name = "URL", value_parser = gateway)]
    pub gateway: Option<Uri>,
    /// Directory with cert.pem and key.pem, as 'identity new' creates it
    #[arg(long, value_name = "DIR", value_parser = identity)]
    pub identity: Option<PathBuf>,
    /// @ and the file that holds a token; the token itself is not accepted, because it would be stored
    #[arg(long, hide_env_values = true, value_name = "@FILE", value_parser = TokenSource::parse)]
    pub token: Option<TokenSource>,
    /// PEM file with the gateway's certificate or its authority's
    #[arg(long, value_name = "FILE", value_parser = file)]
    pub ca: Option<PathBuf>,
    /// The lease: owner/dseq/gseq/oseq/provider
    #[arg(long, value_name = "LEASE", value_parser = lease)]
    pub lease: Option<LeaseId>,
}

/// The context that a command is about.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(after_help = NAME_EXAMPLES)]
pub(super) struct NamedArgs {
    /// Name of the context
    #[arg(value_name = "NAME", required = false, value_parser = name)]
    pub(super) name: String,
}

/// The context that a command is about, or the current one.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(after_help = NAME_EXAMPLES)]
pub(super) struct ShowArgs {
    /// Name of the context; default: the current one
    #[arg(value_name = "NAME", value_parser = name)]
    pub(super) name: Option<String>,
}

/// Print the names of all contexts, with their gateways, credentials and leases
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(after_help = NAME_EXAMPLES)]
pub(super) struct ListArgs {}

/// What to do with the contexts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContextCommand {
    /// Create or change one.
    Set(Box<ContextSetConfig>),
    /// Make this one the current one.
    Use(String),
    /// Print all.
    List,
    /// Print this one, or the current one.
    Show(Option<String>),
    /// Delete this one.
    Delete(String),
}

impl ContextSetConfig {
    /// Returns the values to store.
    pub fn change(&self) -> ContextChange {
        let token_file = match &self.token {
            Some(TokenSource::File(path)) => Some(path.clone()),
            Some(TokenSource::Given(_)) | None => None,
        };
        ContextChange {
            gateway: self.gateway.as_ref().map(|url| url.to_string().trim_end_matches('/').to_owned()),
            identity: self.identity.clone(),
            token_file,
            ca: self.ca.clone(),
            lease: self.lease.as_ref().map(ToString::to_string),
        }
    }
}

pub(super) fn check_name(resolver: &mut Resolver<'_>) {
    resolver.require("name", "the name of the context");
}

pub(super) fn check_set(resolver: &mut Resolver<'_>) {
    check_name(resolver);
    if resolver.is_given("identity") && resolver.is_given("token") {
        resolver.conflict("--identity and --token do not go together: a gateway takes one of them");
    }
    resolver.verify("token", |token: &TokenSource| match token {
        TokenSource::File(_) => Ok(()),
        TokenSource::Given(_) => {
            Err("must be @ and the file that holds the token, because it would be stored".to_owned())
        }
    });
    let ids = ["gateway", "identity", "token", "ca", "lease"];
    if ids.iter().all(|id| !resolver.is_given(id)) {
        resolver.conflict("there is nothing to set: give --gateway, --identity, --token, --ca or --lease");
    }
}
