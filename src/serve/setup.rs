//! Creates the configured platform and trust sources.

use std::sync::Arc;

use http::Uri;

use super::runtimes::SideRuntime;
use super::{ServeError, internal};
use crate::access::chain::{ChainConfig, ChainTrust};
use crate::access::dir::DirTrust;
use crate::access::provider::ProviderCertificates;
use crate::access::trust::{AnyOf, Trust};
use crate::config::{FleetOptions, GatewayRole, PlatformKind, ServeConfig};
use crate::edge::drain::Drain;
use crate::edge::forward::CallForwarder;
use crate::edge::upstream::client_hello::MtlsMode;
use crate::edge::upstream::grpc::UpstreamGrpc;
use crate::edge::upstream::limits::{TUNNELS_MAX, TunnelLimiter};
use crate::edge::upstream::provider::UpstreamProvider;
use crate::edge::upstream::splice::{Splicer, Splicing};
use crate::edge::upstream::target::{self, Endpoint};
use crate::exchange::bus::Bus;
use crate::exchange::fleet::{Fleet, FleetConfig};
use crate::exchange::gateway_id::GatewayId;
#[cfg(feature = "nats")]
use crate::exchange::nats::{Credentials, NatsBus, NatsOptions};
use crate::logs::actor::ActorContext;
use crate::logs::actors::ActorRegistry;
use crate::model::id::LeaseId;
use crate::model::metrics::Metrics;
use crate::platform::Platform;
use crate::platform::kube::{KubeConfig, KubePlatform};
use crate::platform::local::attached::AttachedPlatform;
use crate::platform::local::sdl::Sdl;
use crate::platform::local::{LocalConfig, LocalPlatform};
use crate::platform::node::NodePlatform;
use crate::sys::dir_watch::Notifier;

/// Directory of the chain cache, within the data directory.
const CHAIN_DIR: &str = "chain";

/// Starts the platform. For a cluster, waits until all objects are listed. Runs local services on `side`.
pub(super) async fn platform(
    config: &ServeConfig,
    leases: Vec<(LeaseId, Sdl)>,
    notifier: Notifier,
    metrics: &Metrics,
    side: &SideRuntime,
) -> Result<Arc<dyn Platform>, ServeError> {
    Ok(match (config.platform, &config.attach) {
        (PlatformKind::Local, Some(dir)) => {
            AttachedPlatform::start(dir, notifier).await.map_err(ServeError::Local)?
        }
        (PlatformKind::Local, None) => side
            .within(|| LocalPlatform::start(local_config(config, leases), notifier))
            .map_err(ServeError::Local)?,
        (PlatformKind::Kube, _) => cluster(config, metrics).await?,
        (PlatformKind::Node, _) => {
            let node = required(config.node.node_name.as_ref(), "--node-name")?;
            let kube = cluster(config, metrics).await?;
            Arc::new(NodePlatform::new(kube, notifier, node, config.node.pod_logs_dir.clone()))
        }
    })
}

fn local_config(config: &ServeConfig, leases: Vec<(LeaseId, Sdl)>) -> LocalConfig {
    let mut local = LocalConfig::new(config.data_dir.clone(), leases);
    local.options = config.local.clone();
    if let Some(hostname) = config.public_hostnames.first() {
        local.public_hostname.clone_from(hostname);
    }
    local
}

async fn cluster(config: &ServeConfig, metrics: &Metrics) -> Result<Arc<KubePlatform>, ServeError> {
    let options = &config.kube;
    let hostname = options.cluster_public_hostname.as_ref().or(config.public_hostnames.first());
    let kube = KubeConfig {
        cluster: options.access(),
        provider: required(config.access.provider.as_ref(), "--provider")?,
        hostname: hostname.cloned().unwrap_or_default(),
    };
    KubePlatform::start(&kube, metrics).await.map_err(ServeError::Kube)
}

/// Starts the bus of a fleet, if one is configured. Does not wait for a connection.
pub(super) async fn bus(config: &ServeConfig) -> Result<Option<(Arc<dyn Bus>, FleetConfig)>, ServeError> {
    let options = &config.fleet;
    let subjects = options.subjects(config.access.provider.as_ref()).map_err(internal)?;
    let Some(subjects) = subjects else { return Ok(None) };
    let gateway = GatewayId::random();
    let is_source = options.fleet_role == GatewayRole::Source;
    let node = config.node.node_name.as_deref().filter(|_| is_source);
    let bus = nats_bus(options, node, gateway).await?;
    let config = FleetConfig {
        gateway,
        subjects,
        grace: options.fleet_grace,
        direct_tails: options.fleet_direct_tails,
        members_max: options.fleet_members_max,
        shares_quotas: options.fleet_share_quotas,
        is_source,
    };
    Ok(Some((bus, config)))
}

#[cfg(feature = "nats")]
async fn nats_bus(
    options: &FleetOptions,
    node: Option<&str>,
    gateway: GatewayId,
) -> Result<Arc<dyn Bus>, ServeError> {
    Ok(Arc::new(NatsBus::start(&nats_options(options, node), gateway).await?))
}

/// Fails. The configuration rejects `--nats` before.
#[cfg(not(feature = "nats"))]
fn nats_bus(
    _: &FleetOptions,
    _: Option<&str>,
    _: GatewayId,
) -> impl Future<Output = Result<Arc<dyn Bus>, ServeError>> + use<> {
    std::future::ready(Err(internal("--nats needs a program with the feature `nats`")))
}

/// Returns how to reach the NATS servers. `source_node`: the node of a gateway without followers.
#[cfg(feature = "nats")]
pub(super) fn nats_options(options: &FleetOptions, source_node: Option<&str>) -> NatsOptions {
    let creds = options.nats_creds.clone().map(Credentials::Creds);
    NatsOptions {
        servers: options.nats.clone().map(|servers| servers.0).unwrap_or_default(),
        credentials: creds.or(options.nats_nkey.clone().map(Credentials::Nkey)),
        authorities: options.nats_ca.clone(),
        certificate: options.nats_cert.clone().zip(options.nats_key.clone()),
        source_node: source_node.map(str::to_owned),
    }
}

/// Returns a setting that the platform needs. The checks of the configuration report it if it is missing.
pub(super) fn required<T: Clone>(value: Option<&T>, flag: &str) -> Result<T, ServeError> {
    value.cloned().ok_or_else(|| internal(format!("{flag} is missing")))
}

/// Creates the registry of actors. With a bus, they share their live tails with the other gateways of the fleet.
pub(super) fn actors(
    context: ActorContext,
    bus: Option<(Arc<dyn Bus>, FleetConfig)>,
) -> (ActorRegistry, Option<Fleet>) {
    let Some((bus, config)) = bus else { return (ActorRegistry::new(context), None) };
    let fleet = Fleet::start(bus, config, context.metrics.clone());
    (ActorRegistry::in_fleet(context, fleet.clone()), Some(fleet))
}

/// Opens the trust directory and the chain source. The directory is asked first because it needs no query.
pub(super) async fn trust(
    config: &ServeConfig,
    notifier: &Notifier,
    metrics: &Metrics,
) -> Result<Arc<dyn Trust>, ServeError> {
    let mut sources: Vec<Arc<dyn Trust>> = Vec::new();
    let access = &config.access;
    if let Some(dir) = &access.trust_dir {
        let trust = DirTrust::open(dir, notifier, config.limits.trust_poll).await?;
        if trust.trusted() == 0 && access.chain_grpc.is_none() {
            tracing::warn!(
                dir = %dir.display(),
                "trust directory is empty; add certificates (*.pem) or account keys (*.pub)"
            );
        }
        sources.push(Arc::new(trust));
    }
    if let Some(node) = &access.chain_grpc {
        let chain = ChainConfig {
            node: node.clone(),
            authorities: access.chain_ca.clone(),
            dir: config.data_dir.join(CHAIN_DIR),
            grace: access.chain_grace,
            queries_per_second: config.limits.quota.chain_queries_per_second.into(),
        };
        sources.push(Arc::new(ChainTrust::open(&chain, metrics.clone())?));
    }
    Ok(Arc::new(AnyOf(sources)))
}

/// The provider behind the gateway.
pub(super) struct Upstream {
    /// For the REST port.
    pub(super) rest: Option<(UpstreamProvider, Splicing)>,
    /// For both gRPC ports, and the splicing of `--published-listen`.
    pub(super) grpc: Option<(CallForwarder, Splicing)>,
}

/// Creates the clients of the provider behind the gateway and the splicing of its connections, as configured.
/// Does not connect.
pub(super) fn upstream(
    config: &ServeConfig,
    trust: &Arc<dyn Trust>,
    metrics: &Metrics,
    drain: &Drain,
) -> Result<Upstream, ServeError> {
    let unusable = |error: target::TargetError| ServeError::Upstream(error.into());
    let ServeConfig { rest, published, access, public_hostnames, .. } = config;
    let name = rest.upstream_name.as_ref().or(public_hostnames.first()).map(String::as_str);
    let provider_trust = match (&rest.upstream_ca, &access.provider) {
        (Some(authorities), _) => target::Trust::Authorities(authorities.clone()),
        (None, Some(provider)) if access.chain_grpc.is_some() => {
            let certificates = ProviderCertificates::new(Arc::clone(trust), provider.clone());
            target::Trust::SystemOrChain(Arc::new(certificates))
        }
        (None, _) => target::Trust::System,
    };
    let tunnels = TunnelLimiter::new(TUNNELS_MAX, metrics.passthrough_connections.clone());
    let splicing = |endpoint: &Endpoint, mode| Splicing {
        splicer: Splicer::new(endpoint.clone(), tunnels.clone(), drain.clone()),
        mode,
    };
    let for_rest = |address: &Uri| {
        let endpoint = Endpoint::parse(address)?;
        let splicing = splicing(&endpoint, rest.mtls_mode());
        let provider =
            UpstreamProvider::new(endpoint, name, &provider_trust, tunnels.clone(), drain.clone())?;
        Ok((provider, splicing))
    };
    let for_grpc = |address: &Uri| {
        let endpoint = Endpoint::parse(address)?;
        let splicing = splicing(&endpoint, published.mtls_mode());
        let direct = match (published.published_listen, public_hostnames.first()) {
            // A connection for this name is spliced.
            (Some(listen), Some(host)) if published.mtls_mode() == MtlsMode::Passthrough => {
                format!("mtls.{host}:{}", listen.port())
            }
            _ => endpoint.to_string(),
        };
        let upstream = UpstreamGrpc::new(endpoint, name, &provider_trust, drain.clone())?;
        Ok((CallForwarder::new(upstream, &direct), splicing))
    };
    Ok(Upstream {
        rest: rest.upstream_provider.as_ref().map(for_rest).transpose().map_err(unusable)?,
        grpc: published.upstream_grpc.as_ref().map(for_grpc).transpose().map_err(unusable)?,
    })
}
