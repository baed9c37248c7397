//! Builds the gateway, runs it and shuts it down.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use sd_notify::NotifyState;
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;

use crate::access::authenticator::Authenticator;
use crate::access::{chain, dir};
use crate::config::{GatewayRole, PlatformKind, ServeConfig};
use crate::edge::admin::{Admin, Exporter, Readiness};
use crate::edge::connection::Connections;
use crate::edge::drain::Drain;
use crate::edge::published::DefaultProto;
use crate::edge::rest::{RestService, RestSettings};
use crate::edge::server::{self, Protocol, Server};
use crate::edge::service::LeaseService;
use crate::edge::tls;
use crate::edge::upstream::provider::UpstreamProvider;
use crate::edge::upstream::splice::Splicing;
#[cfg(feature = "nats")]
use crate::exchange::nats::NatsError;
use crate::logs::actor::ActorContext;
use crate::logs::entry_name::NameStyle;
use crate::logs::memory_budget::MemoryBudget;
use crate::model::id::LeaseId;
use crate::platform;
use crate::platform::local::sdl::{Sdl, SdlError};
use crate::restart::RestartManager;
use crate::sys::dir_watch::Notifier;

mod check;
mod fd_limit;
mod isolation;
mod logging;
mod memory;
#[cfg_attr(not(feature = "otlp"), path = "serve/no_otlp.rs")]
mod otlp;
mod runtimes;
mod setup;
mod shutdown;
mod source;

pub use self::check::START_CHECKS;
pub use self::runtimes::{SideRuntime, main_runtime};

pub(crate) use self::logging::Log;
use self::otlp::Traces;
use self::shutdown::{Running, StopSignals};

/// Connections that the kernel queues until they are accepted. Enough for a burst of reconnects; the standard
/// library's value is 128.
const BACKLOG: u32 = 1_024;

/// Why the gateway cannot start. The text is for the operator and names the flag or file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// Invalid SDL files, each with its lease.
    #[error("{}", sdl_errors(.0))]
    Sdl(Vec<(LeaseId, PathBuf, SdlError)>),
    /// The trust directory cannot be read.
    #[error("--trust-dir: {0}")]
    Trust(#[from] dir::OpenError),
    /// The client for the Akash node cannot be created.
    #[error("--chain-grpc, --chain-ca or --data-dir: {0}")]
    Chain(#[from] chain::ChainError),
    /// No server certificate can be loaded or created.
    #[error("--tls-cert, --tls-key or --data-dir: {0}")]
    Tls(#[from] tls::Error),
    /// The certificate for the public host names cannot be loaded.
    #[error("--ca-tls-cert or --ca-tls-key: {0}")]
    CaTls(tls::Error),
    /// The provider behind the gateway cannot be used.
    #[error("--upstream-provider, --upstream-grpc, --upstream-name or --upstream-ca: {0}")]
    Upstream(Box<dyn std::error::Error + Send + Sync>),
    /// A listening address cannot be bound.
    #[error("{flag}: cannot listen on {address}: {source}")]
    Listen {
        /// The flag that names the address.
        flag: &'static str,
        /// The address that was tried.
        address: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
    /// The local platform cannot start; usually the data directory is the reason.
    #[error("--data-dir: {}", operator_text(.0))]
    Local(platform::Error),
    /// The cluster's configuration or permissions do not suffice.
    #[error("--platform kube or node: {}", operator_text(.0))]
    Kube(platform::Error),
    /// The export of traces cannot be set up.
    #[error("--otlp-endpoint: {0}")]
    Otlp(Box<dyn std::error::Error + Send + Sync>),
    /// NATS cannot be used. That no server can be reached is no error.
    #[cfg(feature = "nats")]
    #[error(transparent)]
    Nats(#[from] NatsError),
    /// A system resource is missing, such as a thread.
    #[error("cannot start: {0}")]
    Internal(Box<dyn std::error::Error + Send + Sync>),
}

/// Runs a gateway until SIGTERM, SIGINT, SIGHUP (unless ignored at start) or, if configured, the end of
/// standard input. It then continues to serve for the lame-duck time, ends streams with their cursors, closes
/// connections and stops services. A second signal stops everything at once.
///
/// Prints one line with the listening addresses to standard output when it is ready. Logs to standard error.
/// Reports the start and the stop to systemd, if a unit of the type `notify` started the process.
///
/// # Errors
/// Any failure to start. Returns no error once it is ready.
pub async fn run(config: ServeConfig) -> Result<(), ServeError> {
    let log = Log::start(config.log_format, &config.log_filter);
    tokio::select! {
        biased;
        result = serve(config) => result,
        never = log.report_losses() => match never {},
    }
}

async fn serve(config: ServeConfig) -> Result<(), ServeError> {
    // Installed first, so that no signal is missed during the start.
    let signals = StopSignals::new(config.lifeline).map_err(internal)?;
    if config.fleet.fleet_role == GatewayRole::Source {
        let start = Box::pin(source::start(config));
        run_until_stopped(signals, start, source::RunningSource::stop).await
    } else {
        run_until_stopped(signals, Box::pin(start(config)), Running::stop).await
    }
}

/// Starts a gateway, and stops it at the first signal; at once at the second one.
async fn run_until_stopped<R, S: Future<Output = ()>>(
    mut signals: StopSignals,
    start: impl Future<Output = Result<(R, String), ServeError>>,
    stop: impl FnOnce(R) -> S,
) -> Result<(), ServeError> {
    let (running, ready) = tokio::select! {
        started = start => started?,
        reason = signals.wait() => {
            tracing::info!(reason, "stopped during start");
            return Ok(());
        }
    };
    let mut stdout = io::stdout();
    // Standard output may be closed.
    let _ = writeln!(stdout, "{ready}").and_then(|()| stdout.flush());
    notify_systemd(NotifyState::Ready);
    let reason = signals.wait().await;
    notify_systemd(NotifyState::Stopping);
    tracing::info!(reason, "stopping");
    tokio::select! {
        () = stop(running) => tracing::info!("stopped"),
        reason = signals.wait() => tracing::warn!(reason, "stopping at once"),
    }
    Ok(())
}

/// Does nothing without the variable `NOTIFY_SOCKET`, which systemd sets.
fn notify_systemd(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "failed to notify systemd");
    }
}

#[expect(clippy::too_many_lines, reason = "the steps of a start, in order")]
async fn start(mut config: ServeConfig) -> Result<(Running, String), ServeError> {
    let leases = read_sdls(&config.leases)?;
    fd_limit::apply(&mut config.limits, config.platform);
    memory::apply(&mut config.limits);
    let notifier = Notifier::start();
    let side = SideRuntime::start().map_err(internal)?;
    let exporter = exporter(&side)?;
    let certificates = certificates(&config, &notifier, &exporter)?;
    let sni_configs = certificates.grpc_configs(&config.public_hostnames)?;
    let socket = bind_for("--listen", config.listen)?;
    let rest_port = match config.rest.rest_listen {
        Some(address) => {
            let tls = certificates.rest_configs(&config.public_hostnames)?;
            Some((bind_for("--rest-listen", address)?, tls))
        }
        None => None,
    };
    let published_port = config.published.published_listen;
    let published_port = published_port.map(|address| bind_for("--published-listen", address)).transpose()?;
    let admin_listener = listen("--admin-listen", bind_for("--admin-listen", config.admin_listen)?)?;
    let addresses = (socket.local_addr().map_err(internal)?, admin_listener.local_addr().map_err(internal)?);
    let trust = setup::trust(&config, &notifier, &exporter.metrics).await?;
    let drain = Drain::default();
    let upstream = setup::upstream(&config, &trust, &exporter.metrics, &drain)?;
    let readiness = Readiness::default();
    serve_admin(admin_listener, exporter.clone(), &readiness, &drain, &side)?;

    let platform = setup::platform(&config, leases, notifier, &exporter.metrics, &side).await?;
    let bus = setup::bus(&config).await?;
    let trusted_proxies = config.trusted_proxies.into();
    let limits = Arc::new(config.limits);
    let context = ActorContext {
        memory: MemoryBudget::new(limits.memory_budget, &exporter.metrics),
        platform: Arc::clone(&platform),
        limits: Arc::clone(&limits),
        metrics: exporter.metrics.clone(),
        names: config.rest.rest_names.unwrap_or(match config.platform {
            PlatformKind::Local => NameStyle::Replica,
            PlatformKind::Kube | PlatformKind::Node => NameStyle::Pod,
        }),
    };
    let restarts = RestartManager::new(Arc::clone(&context.platform), exporter.metrics.clone());
    let (actors, fleet) = setup::actors(context, bus);
    exporter.followers.set(actors.clone());
    let authenticator = Authenticator {
        trust,
        token_lifetime_max: limits.token_lifetime,
        provider: config.access.provider.clone(),
    };
    let traces = {
        let (endpoint, metrics) = (config.otlp_endpoint.as_ref(), &exporter.metrics);
        let dropped = |loss| metrics.spans_dropped.of(loss).clone();
        side.within(|| Traces::start(endpoint, metrics.spans_exported.clone(), dropped))?
    };
    let service = LeaseService::new(authenticator, actors.clone(), restarts.clone(), drain.clone())
        .with_tracer(traces.tracer());
    let (routes, health) = server::routes().map_err(internal)?;
    let mut connections = Connections::new(service.clone(), routes);
    let mut published_splicing = None;
    if let Some((forwarder, splicing)) = upstream.grpc {
        connections = connections.with_forwarder(forwarder);
        published_splicing = Some(splicing);
    }
    let server =
        Server { protocol: Protocol::Grpc, connections, tls: sni_configs, trusted_proxies, splicing: None };
    if let Some((provider, _)) = &upstream.rest {
        let (provider, platform, readiness) = (provider.clone(), Arc::clone(&platform), readiness.clone());
        let is_provider_reachable = move || {
            let provider = provider.clone();
            async move { provider.is_reachable().await }
        };
        let watch = isolation::watch(move || platform.is_reachable(), is_provider_reachable, readiness);
        drain.spawn_background(watch);
    }
    // Listen only now. The start may wait for the platform, and callers would wait in their handshakes.
    let rest_address = match (rest_port, config.access.provider) {
        (Some(port), Some(provider)) => {
            let settings = RestSettings {
                provider,
                public_host: config.public_hostnames.first().cloned().unwrap_or_default(),
                notices: config.rest.rest_notices,
                native_events: config.rest.has_native_events(),
                token_grace: config.rest.token_grace(),
                serves_page: config.rest.rest_ui,
            };
            let rest = RestService::new(service, settings);
            let (address, serving) =
                rest_server(&server, rest, port, upstream.rest, config.rest.forwards_events())?;
            drain.spawn(serving);
            Some(address)
        }
        _ => None,
    };
    let mut published_address = None;
    if let Some(socket) = published_port {
        let server = server.for_proto(DefaultProto::Published, published_splicing);
        let listener = listen("--published-listen", socket)?;
        published_address = Some(listener.local_addr().map_err(internal)?);
        drain.spawn(server.serve(listener));
    }
    drain.spawn(server.serve(listen("--listen", socket)?));
    server::report_health(&health, true).await;
    readiness.set(true);

    let open = drain.clone();
    #[expect(clippy::disallowed_methods, reason = "owned: the handle aborts it")]
    let upkeep = tokio::spawn(async move { open.while_open(|| exporter.upkeep()).await });
    let running = Running {
        drain,
        readiness,
        health,
        fleet,
        actors,
        restarts,
        platform,
        traces,
        limits,
        stop_grace: config.local.stop_grace,
        _upkeep: AbortOnDropHandle::new(upkeep),
        _side: side,
    };
    let ready = ready_line(running.platform.name(), addresses, rest_address, published_address);
    Ok((running, ready))
}

/// Creates the metrics, which also count the tasks of all runtimes.
fn exporter(side: &SideRuntime) -> Result<Exporter, ServeError> {
    let mut exporter = Exporter::new().map_err(internal)?;
    for runtime in [Some(Handle::current()), side.handle()].into_iter().flatten() {
        exporter.count_tasks_of(runtime);
    }
    Ok(exporter)
}

/// Serves the admin port on `side`, until `drain` is closed.
fn serve_admin(
    listener: TcpListener,
    exporter: Exporter,
    readiness: &Readiness,
    drain: &Drain,
    side: &SideRuntime,
) -> Result<(), ServeError> {
    let admin = Admin::new(exporter, readiness.clone(), drain.clone());
    let listener = listener.into_std().map_err(internal)?;
    side.within(|| TcpListener::from_std(listener).map(|socket| drain.spawn_background(admin.serve(socket))))
        .map_err(internal)
}

/// Returns the address of the REST port, and the future that serves it as `server` does the gRPC port.
fn rest_server(
    server: &Server,
    mut rest: RestService,
    (socket, tls): (TcpSocket, tls::SniConfigs),
    upstream: Option<(UpstreamProvider, Splicing)>,
    forwards_events: bool,
) -> Result<(SocketAddr, impl Future<Output = ()> + Send + 'static), ServeError> {
    let mut splicing = None;
    if let Some((provider, of_provider)) = upstream {
        rest = rest.with_upstream(provider, forwards_events);
        splicing = Some(of_provider);
    }
    let server = Server { protocol: Protocol::Rest(rest), tls, splicing, ..server.clone() };
    let listener = listen("--rest-listen", socket)?;
    let address = listener.local_addr().map_err(internal)?;
    Ok((address, server.serve(listener)))
}

/// Logs the addresses of the ports, and returns the line for standard output.
fn ready_line(
    platform: &str,
    (gateway, admin): (SocketAddr, SocketAddr),
    rest: Option<SocketAddr>,
    published: Option<SocketAddr>,
) -> String {
    tracing::info!(
        %gateway,
        %admin,
        rest = rest.map(tracing::field::display),
        published = published.map(tracing::field::display),
        platform,
        "ready"
    );
    let port = |name: &str, address: Option<SocketAddr>| {
        address.map(|address| format!(" {name} https://{address}")).unwrap_or_default()
    };
    let others = [port("rest", rest), port("published", published)].concat();
    format!("leasemux ready: gateway https://{gateway} admin http://{admin}{others}")
}

/// The certificates that the ports present.
struct Certificates {
    own: Arc<tls::ReloadingCert>,
    /// The one of an authority, for the public host names.
    public: Option<Arc<tls::ReloadingCert>>,
}

// === impl Certificates ===

impl Certificates {
    /// Builds the configurations of the gRPC port.
    fn grpc_configs(&self, hosts: &[String]) -> Result<tls::SniConfigs, ServeError> {
        let sni_configs = tls::SniConfigs::from(Arc::new(tls::server_config(Arc::clone(&self.own) as _)?));
        let Some(public) = &self.public else { return Ok(sni_configs) };
        let public = tls::public_server_config(Arc::clone(public) as _)?;
        Ok(sni_configs.with_public(hosts, Arc::new(public)))
    }

    /// Builds the configurations of the REST port. It asks clients of the public names for a certificate too:
    /// clients that have one and no token can then read logs.
    fn rest_configs(&self, hosts: &[String]) -> Result<tls::SniConfigs, ServeError> {
        let config = |certificate: &Arc<tls::ReloadingCert>| {
            tls::http1_server_config(Arc::clone(certificate) as _).map(Arc::new)
        };
        let sni_configs = tls::SniConfigs::from(config(&self.own)?);
        let Some(public) = &self.public else { return Ok(sni_configs) };
        Ok(sni_configs.with_public(hosts, config(public)?))
    }
}

/// Opens the certificates. They are reloaded when their files change.
fn certificates(
    config: &ServeConfig,
    notifier: &Notifier,
    exporter: &Exporter,
) -> Result<Certificates, ServeError> {
    let own = Arc::new(certificate(config, notifier, exporter)?);
    let (Some(certificate), Some(key)) = (&config.access.ca_tls_cert, &config.access.ca_tls_key) else {
        return Ok(Certificates { own, public: None });
    };
    let ends = exporter.metrics.ca_certificate_end.clone();
    let public = tls::ReloadingCert::open(certificate, key, notifier, ends).map_err(ServeError::CaTls)?;
    Ok(Certificates { own, public: Some(Arc::new(public)) })
}

/// Opens the configured certificate, or the gateway's own, which is created if it does not exist.
fn certificate(
    config: &ServeConfig,
    notifier: &Notifier,
    exporter: &Exporter,
) -> Result<tls::ReloadingCert, tls::Error> {
    let ends = exporter.metrics.certificate_end.clone();
    if let (Some(certificate), Some(key)) = (&config.tls_cert, &config.tls_key) {
        return tls::ReloadingCert::open(certificate, key, notifier, ends);
    }
    let mut hosts = config.public_hostnames.clone();
    if !config.listen.ip().is_unspecified() {
        hosts.push(config.listen.ip().to_string());
    }
    let own = tls::ensure(&config.data_dir, &hosts, SystemTime::now())?;
    if own.fresh {
        tracing::info!(
            certificate = %own.certificate.display(),
            "created a self-signed certificate; clients must trust it (--ca)"
        );
    }
    tls::ReloadingCert::open(&own.certificate, &own.key, notifier, ends)
}

fn read_sdls(leases: &[(LeaseId, PathBuf)]) -> Result<Vec<(LeaseId, Sdl)>, ServeError> {
    let mut sdls = Vec::new();
    let mut faulty = Vec::new();
    for (lease, file) in leases {
        match Sdl::read(file) {
            Ok(sdl) => sdls.push((lease.clone(), sdl)),
            Err(error) => faulty.push((lease.clone(), file.clone(), error)),
        }
    }
    if faulty.is_empty() { Ok(sdls) } else { Err(ServeError::Sdl(faulty)) }
}

fn sdl_errors(faulty: &[(LeaseId, PathBuf, SdlError)]) -> String {
    let each =
        faulty.iter().map(|(lease, file, error)| format!("--lease {lease}={}: {error}", file.display()));
    each.collect::<Vec<_>>().join("\n")
}

/// Returns the operator's text of a platform error: without its category, which is for callers, and with the
/// system's error.
fn operator_text(error: &platform::Error) -> String {
    match error {
        platform::Error::NotFound(what)
        | platform::Error::Conflict(what)
        | platform::Error::Unavailable(what)
        | platform::Error::Broken(what) => what.clone(),
        platform::Error::Io { context, source } => format!("{context}: {source}"),
        platform::Error::ReadOnly => error.to_string(),
    }
}

fn bind_for(flag: &'static str, address: SocketAddr) -> Result<TcpSocket, ServeError> {
    bind(address).map_err(|source| ServeError::Listen { flag, address, source })
}

/// Binds a socket without listening.
fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Connections of a gateway that has just stopped would otherwise block the address.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

fn listen(flag: &'static str, socket: TcpSocket) -> Result<TcpListener, ServeError> {
    let address = socket.local_addr().map_err(internal)?;
    socket.listen(BACKLOG).map_err(|source| ServeError::Listen { flag, address, source })
}

fn internal(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ServeError {
    ServeError::Internal(error.into())
}
