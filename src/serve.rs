//! The gateway as a whole: put together, run, and taken apart in order.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::net::{TcpListener, TcpSocket};
use tokio_util::task::AbortOnDropHandle;

use crate::access::authenticator::Authenticator;
use crate::access::{chain, dir};
use crate::config::ServeConfig;
use crate::edge::admin::{Admin, Exporter, Readiness};
use crate::edge::connection::Connections;
use crate::edge::drain::Drain;
use crate::edge::server::{self, Server};
use crate::edge::service::LeaseService;
use crate::edge::tls;
use crate::logs::actor::ActorContext;
use crate::logs::actors::ActorRegistry;
use crate::model::id::LeaseId;
use crate::platform;
use crate::platform::local::sdl::{Sdl, SdlError};
use crate::restart::RestartManager;
use crate::sys::notify::Notifier;

mod check;
mod fd_limit;
mod logging;
mod platform_setup;
mod runtimes;
mod shutdown;
mod trust;

pub use self::check::PROBES;
pub use self::runtimes::{SideRuntime, main_runtime};

use self::logging::Log;
use self::platform_setup::RunningPlatform;
use self::shutdown::{Running, Stops};

/// Connections that the kernel keeps until they are accepted: as many as the standard library asks for, for a burst of reconnects.
const BACKLOG: u32 = 1_024;

/// Why a gateway cannot run. The text is for the operator and names the flag or file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// SDL files that cannot be run, each with its lease.
    #[error("{}", told(.0))]
    Sdl(Vec<(LeaseId, PathBuf, SdlError)>),
    /// The trust directory cannot be used.
    #[error("--trust-dir: {0}")]
    Trust(#[from] dir::OpenError),
    /// The chain cannot be asked.
    #[error("--chain-grpc, --chain-ca or --data-dir: {0}")]
    Chain(#[from] chain::ChainError),
    /// There is no usable server certificate.
    #[error("--tls-cert, --tls-key or --data-dir: {0}")]
    Tls(#[from] tls::Error),
    /// The certificate for the public host names cannot be used.
    #[error("--ca-tls-cert or --ca-tls-key: {0}")]
    CaTls(tls::Error),
    /// An address is taken, or not this machine's.
    #[error("{flag}: cannot listen on {address}: {source}")]
    Listen {
        /// The flag.
        flag: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
    /// The services cannot be started, which begins with the data directory.
    #[error("--data-dir: {}", with_source(.0))]
    Local(platform::Error),
    /// The cluster cannot be used: its configuration, or permissions.
    #[error("--platform kube: {}", with_source(.0))]
    Kube(platform::Error),
    /// Something that depends on nothing outside the program, or on the system as a whole.
    #[error("cannot start: {0}")]
    Internal(Box<dyn std::error::Error + Send + Sync>),
}

/// Runs a gateway until it is asked to stop: by SIGTERM, by SIGINT, by SIGHUP unless it was started to ignore that, or by the end of
/// its standard input if `config` says so. Then
/// it serves on for the lame-duck time, streams end with their cursors, connections close, services stop. A second signal stops
/// everything at once.
///
/// Prints one line to standard output when it is ready, with the addresses that it listens on; logs to standard error.
///
/// # Errors
/// Whatever keeps it from starting. Once it is ready it does not fail.
pub async fn run(config: ServeConfig) -> Result<(), ServeError> {
    let log = Log::start(&config);
    tokio::select! {
        biased;
        ended = serve(config) => ended,
        never = log.tell_losses() => match never {},
    }
}

async fn serve(config: ServeConfig) -> Result<(), ServeError> {
    // From here on a signal is not lost.
    let mut stops = Stops::new(config.lifeline).map_err(internal)?;
    let (running, ready) = tokio::select! {
        started = start(config) => started?,
        reason = stops.wait() => {
            tracing::info!(reason, "stopped before it was ready");
            return Ok(());
        }
    };
    let mut stdout = std::io::stdout();
    // Nobody may be there to read it.
    let _ = writeln!(stdout, "{ready}").and_then(|()| stdout.flush());
    let reason = stops.wait().await;
    tracing::info!(reason, "stopping");
    tokio::select! {
        () = running.stop() => tracing::info!("stopped"),
        reason = stops.wait() => tracing::warn!(reason, "stopping at once"),
    }
    Ok(())
}

async fn start(mut config: ServeConfig) -> Result<(Running, String), ServeError> {
    let leases = read_sdls(&config.leases)?;
    fd_limit::allow(&mut config.limits, &config.platform);
    let notifier = Notifier::start();
    let exporter = Exporter::new().map_err(internal)?;
    let offers = offers(&config, &notifier, &exporter)?;
    let socket = bind("--listen", config.listen)?;
    let admin_listener = listen("--admin-listen", bind("--admin-listen", config.admin_listen)?)?;
    let addresses = (socket.local_addr().map_err(internal)?, admin_listener.local_addr().map_err(internal)?);
    let trust = trust::open(&config, &notifier, &exporter.metrics).await?;
    let drain = Drain::default();
    let readiness = Readiness::default();
    let admin = Admin::new(exporter.clone(), readiness.clone(), drain.clone());
    let side = SideRuntime::start().map_err(internal)?;
    let admin_listener = admin_listener.into_std().map_err(internal)?;
    side.within(|| {
        TcpListener::from_std(admin_listener).map(|socket| drain.spawn_beside(admin.serve(socket)))
    })
    .map_err(internal)?;

    let place = RunningPlatform::start(&config, leases, notifier, &exporter.metrics, &side).await?;
    let trusted_proxies = config.trusted_proxies.into();
    let limits = Arc::new(config.limits);
    let world = ActorContext {
        platform: place.platform(),
        limits: Arc::clone(&limits),
        metrics: exporter.metrics.clone(),
    };
    let restarts = RestartManager::new(Arc::clone(&world.platform), exporter.metrics.clone());
    let fanout = ActorRegistry::new(world);
    exporter.followers.set(fanout.clone());
    let gate = Authenticator::new(trust)
        .with_token_lifetime(limits.token_lifetime)
        .with_provider(config.access.provider.clone());
    let service = LeaseService::new(gate, fanout.clone(), restarts.clone(), drain.clone());
    let (routes, health) = server::routes().map_err(internal)?;
    let connections =
        Connections::new(service, routes, Arc::clone(&limits), exporter.metrics.clone(), drain.clone());
    let server = Server {
        connections,
        tls: offers,
        limits: Arc::clone(&limits),
        trusted_proxies,
        drain: drain.clone(),
    };
    // Until here connections are refused: a platform that is not there yet may be waited for, and a caller would wait in its handshake.
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
        fanout,
        restarts,
        place,
        limits,
        stop_grace: config.stop_grace,
        _upkeep: AbortOnDropHandle::new(upkeep),
        _side: side,
    };
    let (gateway, admin) = addresses;
    tracing::info!(%gateway, %admin, platform = running.place.platform().name(), "ready");
    Ok((running, format!("leasemux ready: gateway https://{gateway} admin http://{admin}")))
}

/// What the gateway offers to clients, kept like its files.
fn offers(config: &ServeConfig, notifier: &Notifier, exporter: &Exporter) -> Result<tls::Offers, ServeError> {
    let own = tls::server_config_of(Arc::new(pair(config, notifier, exporter)?))?;
    let offers = tls::Offers::from(Arc::new(own));
    let Some((certificate, key)) = &config.ca_tls else {
        return Ok(offers);
    };
    let ends = exporter.metrics.ca_certificate_end.clone();
    let pair = tls::ReloadingCert::open(certificate, key, notifier, ends).map_err(ServeError::CaTls)?;
    let public = tls::public_server_config_of(Arc::new(pair))?;
    Ok(offers.with_public(&config.public_hostnames, Arc::new(public)))
}

/// What the gateway presents to clients, kept like its files.
fn pair(
    config: &ServeConfig,
    notifier: &Notifier,
    exporter: &Exporter,
) -> Result<tls::ReloadingCert, tls::Error> {
    let ends = exporter.metrics.certificate_end.clone();
    if let Some((certificate, key)) = &config.tls {
        return tls::ReloadingCert::open(certificate, key, notifier, ends);
    }
    let mut hosts = config.public_hostnames.clone();
    if !config.listen.ip().is_unspecified() {
        hosts.push(config.listen.ip().to_string());
    }
    let made = tls::ensure(&config.data_dir, &hosts, SystemTime::now())?;
    if made.fresh {
        tracing::info!(
            certificate = %made.certificate.display(),
            "a certificate was made: clients need it (--ca), also those that trust an earlier one"
        );
    }
    tls::ReloadingCert::open(&made.certificate, &made.key, notifier, ends)
}

fn read_sdls(leases: &[(LeaseId, PathBuf)]) -> Result<Vec<(LeaseId, Sdl)>, ServeError> {
    let mut read = Vec::new();
    let mut faulty = Vec::new();
    for (lease, file) in leases {
        match Sdl::read(file) {
            Ok(sdl) => read.push((lease.clone(), sdl)),
            Err(error) => faulty.push((lease.clone(), file.clone(), error)),
        }
    }
    if faulty.is_empty() { Ok(read) } else { Err(ServeError::Sdl(faulty)) }
}

fn told(faulty: &[(LeaseId, PathBuf, SdlError)]) -> String {
    let each =
        faulty.iter().map(|(lease, file, error)| format!("--lease {lease}={}: {error}", file.display()));
    each.collect::<Vec<_>>().join("\n")
}

/// In the operator's words: without the category, which is for callers, and with what the system said.
fn with_source(error: &platform::Error) -> String {
    match error {
        platform::Error::NotFound(what)
        | platform::Error::Conflict(what)
        | platform::Error::Unavailable(what)
        | platform::Error::Broken(what) => what.clone(),
        platform::Error::Io { context, source } => format!("{context}: {source}"),
    }
}

/// Takes an address, without accepting connections yet.
fn bind(flag: &'static str, address: SocketAddr) -> Result<TcpSocket, ServeError> {
    let bind = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // A gateway that was just stopped leaves connections behind that would keep the address.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        Ok(socket)
    };
    bind().map_err(|source| ServeError::Listen { flag, address, source })
}

/// Accepts connections from now on.
fn listen(flag: &'static str, socket: TcpSocket) -> Result<TcpListener, ServeError> {
    let address = socket.local_addr().map_err(internal)?;
    socket.listen(BACKLOG).map_err(|source| ServeError::Listen { flag, address, source })
}

fn internal(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ServeError {
    ServeError::Internal(error.into())
}
