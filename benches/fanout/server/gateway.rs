//! The gateway, from accepting a connection to the ring, with its default limits.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_core::future::BoxFuture;
use leasemux::access::account::AccountKey;
use leasemux::access::authenticator::{Authenticator, ClientCertificate};
use leasemux::access::cert::Serial;
use leasemux::access::identity::IdentityFiles;
use leasemux::access::trust::{Trust, TrustAnswer, TrustedItem, Unavailable};
use leasemux::edge::admin::{Admin, Exporter, Readiness};
use leasemux::edge::connection::Connections;
use leasemux::edge::drain::Drain;
use leasemux::edge::rest::{RestService, RestSettings};
use leasemux::edge::server::{self, Protocol, Server};
use leasemux::edge::service::LeaseService;
#[cfg(feature = "nats")]
use leasemux::exchange::fleet::{Fleet, FleetConfig};
#[cfg(feature = "nats")]
use leasemux::exchange::gateway_id::GatewayId;
#[cfg(feature = "nats")]
use leasemux::exchange::nats::{NatsBus, NatsOptions};
#[cfg(feature = "nats")]
use leasemux::exchange::subjects::Subjects;
use leasemux::logs::actor::ActorContext;
use leasemux::logs::actors::ActorRegistry;
use leasemux::logs::entry_name::NameStyle;
use leasemux::logs::memory_budget::MemoryBudget;
use leasemux::logs::notice::Notices;
use leasemux::model::id::Owner;
use leasemux::model::limits::Limits;
use leasemux::restart::RestartManager;
use leasemux::serve::{SideRuntime, main_runtime};
use rustls::pki_types::CertificateDer;
use tokio::net::TcpListener;

use super::file_source::FileSource;
use super::{Listeners, NEIGHBOR_DIR, TENANT_DIR, Task, plain, source};
use crate::Result;

/// A tenant and its certificate.
type TrustedTenant = (Owner, TrustedItem);

/// Trusts these tenants.
#[derive(Debug)]
struct Tenants(Vec<TrustedTenant>);

/// Serves followers over gRPC, or over websockets of the REST port.
pub(super) fn serve(listeners: Listeners, task: &Task, pace: Duration) -> Result<()> {
    let (dir, replicas, websockets) = (&task.dir, task.replicas, task.kind.is_websocket());
    let runtime = if task.as_served {
        main_runtime()?
    } else {
        tokio::runtime::Builder::new_current_thread().enable_all().build()?
    };
    let side = SideRuntime::start()?;
    runtime.block_on(async {
        let followers = TcpListener::from_std(listeners.followers)?;
        let (tenant, chain) = load_tenant(&dir.join(TENANT_DIR))?;
        let owner = tenant.0.clone();
        let mut tenants = vec![tenant];
        let ingest = TcpListener::from_std(listeners.ingest)?;
        let lease = source::lease(&owner)?;
        let provider = lease.provider().clone();
        let (mut source, distributor) = source::new(lease, replicas, ingest)?;
        let file_source = task.logs.as_ref().map(|logs| FileSource::new(&owner, logs)).transpose()?;
        if let Some(rate) = task.neighbor_rate {
            let (neighbor, _) = load_tenant(&dir.join(NEIGHBOR_DIR))?;
            source = source.with_neighbor(source::lease(&neighbor.0)?, rate);
            tenants.push(neighbor);
        }

        let exporter = Exporter::new()?;
        let metrics = exporter.metrics.clone();
        let limits = limits(pace);
        let context = ActorContext {
            platform: match file_source {
                Some(files) => Arc::new(files),
                None => Arc::new(source),
            },
            limits: Arc::new(limits),
            metrics: metrics.clone(),
            names: NameStyle::default(),
            memory: MemoryBudget::default(),
        };
        let drain = Drain::default();
        if let Some(listener) = listeners.admin {
            let readiness = Readiness::default();
            readiness.set(true);
            let admin = Admin::new(exporter.clone(), readiness, drain.clone());
            side.within(|| {
                TcpListener::from_std(listener).map(|port| drain.spawn_background(admin.serve(port)))
            })?;
        }
        let restarts = RestartManager::new(Arc::clone(&context.platform), metrics.clone());
        let authenticator = Authenticator::new(Arc::new(Tenants(tenants)));
        let actors = actors(context, task.nats.as_deref()).await?;
        let service = LeaseService::new(authenticator, actors, restarts, drain.clone());
        let (routes, _health) = server::routes()?;
        let protocol = if websockets {
            let settings = RestSettings {
                provider,
                public_host: String::new(),
                notices: Notices::default(),
                native_events: true,
                token_grace: Duration::ZERO,
                serves_page: false,
            };
            Protocol::Rest(RestService::new(service.clone(), settings))
        } else {
            Protocol::Grpc
        };
        let connections = Connections::new(service, routes);
        let serving = async {
            match listeners.tls {
                Some(tls) => {
                    let tls = tls.into();
                    let trusted_proxies = Arc::default();
                    let splicing = None;
                    Server { protocol, connections, tls, trusted_proxies, splicing }.serve(followers).await;
                }
                None => serve_plain(connections, drain, followers, &chain).await,
            }
        };
        tokio::select! {
            () = serving => Ok(()),
            () = exporter.upkeep() => Ok(()),
            distributed = distributor.run() => distributed,
        }
    })
}

/// Returns the default limits, but a single tenant at a single address may open all streams and connections.
fn limits(pace: Duration) -> Limits {
    let mut limits = Limits { pace, ..Limits::default() };
    limits.connection.max_per_peer = limits.connection.max;
    limits.quota.streams_per_owner = limits.quota.streams;
    limits.quota.requests_per_second = u32::MAX;
    limits
}

/// Creates the registry of actors. With the URL of a NATS server, they share their tails with those of the
/// other gateways of this server.
#[cfg(feature = "nats")]
async fn actors(context: ActorContext, nats: Option<&str>) -> Result<ActorRegistry> {
    let Some(url) = nats else { return Ok(ActorRegistry::new(context)) };
    let gateway = GatewayId::random();
    let options = NatsOptions {
        servers: vec![url.to_owned()],
        credentials: None,
        authorities: None,
        certificate: None,
        source_node: None,
    };
    let bus = Arc::new(NatsBus::start(&options, gateway).await?);
    // As with the default flags.
    let subjects = Subjects::new("bench", None)?;
    let config = FleetConfig {
        gateway,
        subjects,
        grace: Duration::from_secs(1),
        direct_tails: 256,
        members_max: 4_096,
        shares_quotas: false,
        is_source: false,
    };
    let fleet = Fleet::start(bus, config, context.metrics.clone());
    Ok(ActorRegistry::in_fleet(context, fleet))
}

#[cfg(not(feature = "nats"))]
fn actors(context: ActorContext, nats: Option<&str>) -> std::future::Ready<Result<ActorRegistry>> {
    std::future::ready(match nats {
        Some(_) => Err("a fleet needs the feature `nats`".into()),
        None => Ok(ActorRegistry::new(context)),
    })
}

/// Returns the tenant with its identity in `dir`, and its certificate chain.
fn load_tenant(dir: &Path) -> Result<(TrustedTenant, Vec<CertificateDer<'static>>)> {
    let identity = IdentityFiles::load(dir)?;
    let owner = identity.address().clone();
    let (chain, _) = identity.into_parts();
    let der = chain.first().ok_or("the tenant has no certificate")?.as_ref();
    Ok(((owner, TrustedItem::new(der.into())), chain))
}

/// Serves without TLS, which the gateway does not do in production, to measure the cost of TLS. All peers are
/// the tenant.
async fn serve_plain(
    connections: Connections,
    drain: Drain,
    followers: TcpListener,
    chain: &[CertificateDer<'static>],
) {
    let certificate = ClientCertificate::new(Some(chain));
    while let Ok((socket, _)) = followers.accept().await {
        let (connections, certificate) = (connections.clone(), certificate.clone());
        drain.spawn(async move {
            connections.serve(plain::Corked::new(socket), certificate, None).await;
        });
    }
}

// === impl Tenants ===

impl Trust for Tenants {
    fn certificate<'a>(
        &'a self,
        owner: &'a Owner,
        _: &'a Serial,
    ) -> BoxFuture<'a, std::result::Result<TrustAnswer, Unavailable>> {
        let found = self.0.iter().find(|(tenant, _)| tenant == owner);
        let answer = found.map_or(TrustAnswer::Unknown, |(_, item)| TrustAnswer::Trusted(item.clone()));
        Box::pin(std::future::ready(Ok(answer)))
    }

    fn account_key<'a>(
        &'a self,
        _: &'a Owner,
    ) -> BoxFuture<'a, std::result::Result<TrustAnswer<AccountKey>, Unavailable>> {
        Box::pin(std::future::ready(Ok(TrustAnswer::Unknown)))
    }
}
