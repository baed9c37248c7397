//! The gateway's ports: accept connections within their limits, and complete TLS.
//!
//! A connection over a limit is closed at once, before a TLS handshake costs anything, instead of left
//! waiting, so that the client can try another gateway, or later. Rejections are counted by reason. For each
//! reason the log has the first, and later ones at a bounded rate.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use parking_lot::Mutex;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tonic::service::Routes;
use tonic_health::server::HealthReporter;

use super::connection::Connections;
use super::proxy;
use super::published::DefaultProto;
use super::rest::RestService;
use super::service::{ConnectionInfo, SERVICE};
use super::tls::SniConfigs;
use super::tls::stream::{self, TlsStream};
use super::upstream::client_hello::{self, HelloError, Replayed, Route};
use super::upstream::copy::{Copied, CopyEnd};
use super::upstream::splice::{SpliceError, Splicing};
use crate::access::authenticator::ClientCertificate;
use crate::model::concurrency::ConcurrencyPermit;
use crate::model::metrics::{
    ConnectionEnd, ConnectionRejection, Handshake, LabelValue as _, Metrics, UpstreamFailure,
};
use crate::model::peer::PeerNet;
use crate::model::proto::DESCRIPTORS;
use crate::model::rate::{Bucket, Rate};
use crate::sys::fair_poll::{Fair, SharedClass};

/// Pause after a failed accept. Most often no file descriptor is free, so an immediate retry is useless.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Kernel memory per connection for data that the peer has not taken. The kernel would grow it to 4 MiB for a
/// stalled follower. This still fills a link of 100 Mbit/s and 20 ms. (Linux doubles the number for its own
/// bookkeeping.)
const SEND_BUFFER_BYTES: usize = 256 * 1024;

/// Unsent bytes in the kernel at which a socket of the REST port counts as full. Pings of a websocket wait
/// behind this data, and some clients give up after 15 s without one.
const REST_UNSENT_BYTES: u32 = 128 * 1024;

/// Time beyond the stall limit of streams after which the kernel gives up a connection whose data is not
/// acknowledged, or whose window stays shut. Later than the streams, whose ends are logged and counted.
const UNACKNOWLEDGED_BEYOND_STALL: Duration = Duration::from_secs(30);

/// Idle time after which the kernel probes a peer. Covers the time before HTTP/2 sends its own PINGs.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Least time between two log lines about rejected connections with the same reason, so that a flood of
/// connections does not flood the log.
const REJECTION_LOG_INTERVAL: Duration = Duration::from_secs(10);

/// The server of one port.
#[derive(Clone, Debug)]
pub struct Server {
    /// The protocol after the TLS handshake.
    pub protocol: Protocol,
    /// Serves accepted connections. Their limits and drain apply to the port, too.
    pub connections: Connections,
    /// The certificate for each requested server name.
    pub tls: SniConfigs,
    /// Proxies that must send a PROXY header. It is read from no other peer.
    pub trusted_proxies: Arc<[IpNet]>,
    /// Splices some connections to the provider behind the gateway; `None`: serves all.
    pub splicing: Option<Splicing>,
}

/// The protocol of a port.
#[derive(Clone, Debug)]
pub enum Protocol {
    /// gRPC over HTTP/2.
    Grpc,
    /// The REST and websocket interface over HTTP/1.1.
    Rest(RestService),
}

/// The limits of connections.
struct ConnectionLimiter {
    server: Server,
    /// By index of [`ConnectionRejection`].
    logs: Mutex<Vec<RejectionLog>>,
}

/// A connection within the limits.
struct Accepted {
    /// Its address; behind a trusted proxy, the one that the proxy names.
    address: SocketAddr,
    /// The peer is shut out, so the connection must present a trusted certificate.
    needs_trusted_certificate: bool,
    _permit: ConcurrencyPermit<PeerNet>,
}

/// Limits the log lines with one reason.
struct RejectionLog {
    bucket: Bucket,
    /// Rejections since the last logged one.
    not_logged: u64,
}

/// Counts a connection as accepted, and on drop as closed.
struct ConnectionCounter {
    metrics: Metrics,
    /// `Cut` until the end is known.
    end: ConnectionEnd,
}

/// Creates the services beside the lease service: health, and reflection in both versions that clients use.
///
/// # Errors
/// The descriptors, which are part of the program, are invalid.
pub fn routes() -> Result<(Routes, HealthReporter), tonic_reflection::server::Error> {
    let (reporter, health) = tonic_health::server::health_reporter();
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let routes = Routes::new(health)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .prepare();
    Ok((routes, reporter))
}

/// Sets the status that the health service reports.
pub async fn report_health(reporter: &HealthReporter, serving: bool) {
    let status =
        if serving { tonic_health::ServingStatus::Serving } else { tonic_health::ServingStatus::NotServing };
    reporter.set_service_status(SERVICE, status).await;
    reporter.set_service_status("", status).await;
}

// === impl Server ===

impl Server {
    /// Returns the server of another gRPC port, of this proto. Some of its connections are spliced as
    /// `splicing` says.
    #[must_use]
    pub fn for_proto(&self, proto: DefaultProto, splicing: Option<Splicing>) -> Self {
        Self { connections: self.connections.for_proto(proto), splicing, ..self.clone() }
    }

    /// Accepts connections until the gateway drains. Open connections continue.
    pub async fn serve(self, listener: TcpListener) {
        tokio::select! {
            biased;
            () = self.connections.drain.draining() => {}
            () = self.accept(listener) => {}
        }
    }

    async fn accept(&self, listener: TcpListener) {
        let limiter = Arc::new(ConnectionLimiter::new(self.clone()));
        loop {
            match listener.accept().await {
                Ok((socket, address)) => {
                    let Some(permit) = limiter.try_acquire(address) else { continue };
                    let limiter = Arc::clone(&limiter);
                    let class = SharedClass::new(self.connections.service.classes.unauthenticated());
                    let of_connection = class.clone();
                    let serving = async move {
                        limiter.server.serve_socket(socket, address, &limiter, of_connection).await;
                        drop(permit);
                    };
                    self.connections.drain.spawn(Fair::new(serving, class));
                }
                Err(error) => {
                    tracing::warn!(%error, "failed to accept connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn serve_socket(
        &self,
        mut socket: TcpStream,
        address: SocketAddr,
        limiter: &ConnectionLimiter,
        class: SharedClass,
    ) {
        if let Err(error) = configure(&socket, self.connections.limits.stall, &self.protocol) {
            tracing::debug!(%error, %address, "failed to set socket options");
        }
        let accepted = tokio::select! {
            biased;
            () = self.connections.drain.draining() => return,
            accepted = limiter.accept(&mut socket, address) => accepted,
        };
        let Some(accepted) = accepted else { return };
        let mut counter = ConnectionCounter::new(&self.connections.metrics);
        let _guard = self.connections.drain.track_connection(Some(accepted.address));
        counter.end = self.serve_accepted(socket, &accepted, class).await;
    }

    async fn serve_accepted(
        &self,
        socket: TcpStream,
        accepted: &Accepted,
        class: SharedClass,
    ) -> ConnectionEnd {
        let (connections, peer) = (&self.connections, accepted.address);
        let started = Instant::now();
        let socket = match &self.splicing {
            None => Replayed::untouched(socket),
            // Boxed, so that a connection does not reserve memory for its splicing.
            Some(splicing) => match Box::pin(self.splice(splicing, socket, accepted)).await {
                Ok(terminated) => terminated,
                Err(end) => return end,
            },
        };
        // Boxed for the same reason.
        let handshake = Box::pin(self.handshake(socket, peer)).await;
        let result = handshake.as_ref().err().copied().unwrap_or(Handshake::Ok);
        connections.metrics.handshakes.of(result).increment(1);
        let io = match handshake {
            Ok(io) => io,
            Err(Handshake::Drain) => return ConnectionEnd::Drain,
            Err(_) => return ConnectionEnd::Handshake,
        };
        connections.metrics.handshake_time.record(started.elapsed().as_secs_f64());
        let mut info = ConnectionInfo::new(ClientCertificate::new(io.peer_certificates()), Some(peer));
        info.class = Some(class);
        info.public_name = io.server_name().and_then(|name| self.tls.public_name(name));
        if accepted.needs_trusted_certificate {
            let check = connections.service.has_trusted_certificate(&info);
            let is_trusted = tokio::select! {
                biased;
                () = connections.drain.draining() => return ConnectionEnd::Drain,
                is_trusted = tokio::time::timeout(connections.limits.connection.handshake, check) => is_trusted,
            };
            if is_trusted != Ok(true) {
                tracing::debug!(%peer, "closed connection: shut-out peer has no trusted certificate");
                return ConnectionEnd::ShutOut;
            }
        }
        match &self.protocol {
            Protocol::Grpc => connections.serve_connection(io, info).await,
            Protocol::Rest(service) => service.serve_connection(io, info).await,
        }
    }

    /// Reads the `ClientHello`. Returns the connection if the gateway terminates its TLS. Otherwise splices
    /// it, and returns how it ended.
    async fn splice(
        &self,
        splicing: &Splicing,
        mut socket: TcpStream,
        accepted: &Accepted,
    ) -> Result<Replayed<TcpStream>, ConnectionEnd> {
        let (connections, peer) = (&self.connections, accepted.address);
        let metrics = &connections.metrics;
        let hello = tokio::select! {
            biased;
            () = connections.drain.draining() => return Err(ConnectionEnd::Drain),
            hello = client_hello::read(&mut socket) => hello,
        };
        let hello = hello.map_err(|error| {
            tracing::debug!(%error, %peer, "failed to read ClientHello");
            let result =
                if matches!(error, HelloError::Timeout) { Handshake::Timeout } else { Handshake::Failed };
            metrics.handshakes.of(result).increment(1);
            if let HelloError::NotTls(_) | HelloError::TooLong = error {
                let now = Instant::now().into_std();
                connections.service.peers.record_failure(PeerNet::from(peer.ip()), now);
            }
            ConnectionEnd::Handshake
        })?;
        let is_public = |name: &str| self.tls.public_name(name).is_some();
        if hello.route(splicing.mode, is_public) == Route::Terminate {
            return Ok(hello.replay(socket));
        }
        // Such a peer must prove itself, which it cannot do here.
        if accepted.needs_trusted_certificate {
            return Err(ConnectionEnd::ShutOut);
        }
        Err(match splicing.splicer.splice(hello, socket, PeerNet::from(peer.ip())).await {
            Ok(copied) => {
                let Copied { from_client_bytes, from_upstream_bytes, end } = copied;
                tracing::debug!(%peer, from_client_bytes, from_upstream_bytes, ?end, "spliced connection ended");
                match end {
                    CopyEnd::Complete => ConnectionEnd::Peer,
                    CopyEnd::Failed => ConnectionEnd::Error,
                    CopyEnd::Idle => ConnectionEnd::Idle,
                }
            }
            Err(error) => {
                tracing::debug!(%error, %peer, "failed to splice connection");
                let failure = match error {
                    SpliceError::Cut => return Err(ConnectionEnd::Cut),
                    SpliceError::Limit => UpstreamFailure::Busy,
                    SpliceError::Connect(_) => UpstreamFailure::Connect,
                };
                let failures = match self.protocol {
                    Protocol::Grpc => &metrics.grpc_upstream_failures,
                    Protocol::Rest(_) => &metrics.rest_upstream_failures,
                };
                failures.of(failure).increment(1);
                ConnectionEnd::Error
            }
        })
    }

    async fn handshake(
        &self,
        socket: Replayed<TcpStream>,
        peer: SocketAddr,
    ) -> Result<Box<TlsStream<Replayed<TcpStream>>>, Handshake> {
        let connections = &self.connections;
        let handshake = stream::accept_by_name(&self.tls, socket);
        tokio::select! {
            biased;
            () = connections.drain.draining() => Err(Handshake::Drain),
            done = tokio::time::timeout(connections.limits.connection.handshake, handshake) => match done {
                // Boxed, because a future reserves memory for each value moved through it.
                Ok(Ok(io)) => Ok(Box::new(io)),
                Ok(Err(error)) => {
                    tracing::debug!(%error, %peer, "TLS handshake failed");
                    // Other errors may come from a port probe or a bad line.
                    if error.kind() == std::io::ErrorKind::InvalidData {
                        let now = Instant::now().into_std();
                        connections.service.peers.record_failure(PeerNet::from(peer.ip()), now);
                    }
                    Err(Handshake::Failed)
                }
                Err(_) => {
                    tracing::debug!(%peer, "TLS handshake timed out");
                    Err(Handshake::Timeout)
                }
            },
        }
    }
}

// === impl ConnectionLimiter ===

impl ConnectionLimiter {
    fn new(server: Server) -> Self {
        let log =
            || RejectionLog { bucket: Bucket::new(Rate::new(1, REJECTION_LOG_INTERVAL)), not_logged: 0 };
        let logs = Mutex::new(ConnectionRejection::ALL.iter().map(|_| log()).collect());
        Self { server, logs }
    }

    /// Takes a permit for one more connection. `None`: the limit is reached, and the caller closes the
    /// connection.
    fn try_acquire(&self, address: SocketAddr) -> Option<OwnedSemaphorePermit> {
        let permit = Arc::clone(&self.server.connections.permits).try_acquire_owned().ok();
        if permit.is_none() {
            let max = self.server.connections.limits.connection.max;
            let why = format_args!("limit of {max} connections reached");
            self.reject(ConnectionRejection::Limit, address, &why);
        }
        permit
    }

    /// Reads the PROXY header if `address` is a trusted proxy, and checks the limits of the peer. `None`: the
    /// caller closes the connection.
    async fn accept(&self, socket: &mut TcpStream, address: SocketAddr) -> Option<Accepted> {
        let mut real = address;
        if proxy::is_trusted(&self.server.trusted_proxies, address.ip()) {
            match proxy::read(socket).await {
                Ok(named) => real = named.unwrap_or(address),
                Err(error) => {
                    self.reject(ConnectionRejection::Proxy, address, &error);
                    return None;
                }
            }
        }
        let (peers, peer) = (&self.server.connections.service.peers, PeerNet::from(real.ip()));
        let Some(permit) = peers.open_connection(peer) else {
            self.reject(ConnectionRejection::PeerLimit, real, &"limit of connections per peer reached");
            return None;
        };
        let now = Instant::now().into_std();
        let shut_out = peers.check_shut_out(peer, now).err();
        if let Some(exceeded) = &shut_out
            && !peers.may_handshake(peer, now)
        {
            self.reject(ConnectionRejection::AuthFailures, real, exceeded);
            return None;
        }
        Some(Accepted { address: real, needs_trusted_certificate: shut_out.is_some(), _permit: permit })
    }

    fn reject(&self, reason: ConnectionRejection, peer: SocketAddr, why: &dyn fmt::Display) {
        self.server.connections.metrics.connections_rejected.of(reason).increment(1);
        let not_logged = {
            let mut logs = self.logs.lock();
            let Some(log) = logs.get_mut(reason.index()) else { return };
            if log.bucket.try_take(1, Instant::now().into_std()).is_err() {
                log.not_logged += 1;
                return;
            }
            std::mem::take(&mut log.not_logged)
        };
        tracing::warn!(%peer, %why, not_logged_since = not_logged, "rejected connection");
    }
}

// === impl ConnectionCounter ===

impl ConnectionCounter {
    fn new(metrics: &Metrics) -> Self {
        metrics.connections_accepted.increment(1);
        Self { metrics: metrics.clone(), end: ConnectionEnd::Cut }
    }
}

impl Drop for ConnectionCounter {
    fn drop(&mut self) {
        self.metrics.connections_closed.of(self.end).increment(1);
    }
}

fn configure(socket: &TcpStream, stall: Duration, protocol: &Protocol) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    let socket = SockRef::from(socket);
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    if let Protocol::Rest(_) = protocol {
        socket.set_tcp_notsent_lowat(REST_UNSENT_BYTES)?;
    }
    socket.set_tcp_user_timeout(Some(stall.saturating_add(UNACKNOWLEDGED_BEYOND_STALL)))?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE))
}
