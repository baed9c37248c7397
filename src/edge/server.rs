//! The gateway's main port: accepts connections, and completes TLS.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tonic::service::Routes;
use tonic_health::server::HealthReporter;

use super::admission::{AdmissionLayer, Admitted};
use super::connection::Connections;
use super::drain::Drain;
use super::service::{ConnectionInfo, SERVICE};
use super::tls::SniConfigs;
use super::tls::stream::{self, TlsStream};
use crate::access::authenticator::Peer;
use crate::model::limits::Limits;
use crate::model::metrics::{ConnectionEnd, Handshake, Metrics};
use crate::model::proto::DESCRIPTORS;

/// Pause after a failed accept. Most often no file descriptor is free, so an immediate retry is useless.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Kernel memory per connection for data that the peer has not taken. The kernel would grow it to 4 MiB for a
/// stalled follower. This still fills a link of 100 Mbit/s and 20 ms. (Linux doubles the number for its own
/// bookkeeping.)
const SEND_BUFFER_BYTES: usize = 256 * 1024;

/// Time beyond the stall limit of streams after which the kernel gives up a connection whose data is not
/// acknowledged, or whose window stays shut. Later than the streams, whose ends are logged and counted.
const UNACKNOWLEDGED_BEYOND_STALL: Duration = Duration::from_secs(30);

/// Idle time after which the kernel probes a peer. Covers the time before HTTP/2 sends its own PINGs.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// The server of the gateway's main port.
#[derive(Clone, Debug)]
pub struct Server {
    /// Serves accepted connections.
    pub connections: Connections,
    /// TLS configurations.
    pub tls: SniConfigs,
    /// Limits of connections.
    pub limits: Arc<Limits>,
    /// Proxies that must send a PROXY header. It is read from no other peer.
    pub trusted_proxies: Arc<[IpNet]>,
    /// Graceful shutdown.
    pub drain: Drain,
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
    /// Accepts connections until the gateway drains. Open connections continue.
    pub async fn serve(self, listener: TcpListener) {
        let drain = self.drain.clone();
        tokio::select! {
            biased;
            () = drain.draining() => {}
            () = self.accept(listener) => {}
        }
    }

    async fn accept(self, listener: TcpListener) {
        let peers = self.connections.peers().clone();
        let metrics = self.connections.metrics.clone();
        let trusted = Arc::clone(&self.trusted_proxies);
        let admission = Arc::new(AdmissionLayer::new(self.limits.connection.max, trusted, peers, metrics));
        loop {
            match listener.accept().await {
                Ok((socket, address)) => {
                    let Some(permit) = admission.try_acquire(address) else { continue };
                    let (server, admission) = (self.clone(), Arc::clone(&admission));
                    self.drain.spawn(async move {
                        server.serve_socket(socket, address, &admission).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "failed to accept connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn serve_socket(&self, mut socket: TcpStream, address: SocketAddr, admission: &AdmissionLayer) {
        if let Err(error) = configure(&socket, self.limits.stall) {
            tracing::debug!(%error, %address, "failed to set socket options");
        }
        let admitted = tokio::select! {
            biased;
            () = self.drain.draining() => return,
            admitted = admission.admit(&mut socket, address) => admitted,
        };
        let Some(admitted) = admitted else { return };
        let peer = admitted.address;
        let mut counter = ConnectionCounter::new(&self.connections.metrics);
        let _guard = self.drain.track_connection(Some(peer));
        let started = Instant::now();
        // Boxed, so that a connection does not reserve memory for its handshake.
        let handshake = Box::pin(self.handshake(socket, &admitted, admission)).await;
        let result = handshake.as_ref().err().copied().unwrap_or(Handshake::Ok);
        let metrics = &self.connections.metrics;
        metrics.handshakes.of(result).increment(1);
        let io = match handshake {
            Ok(io) => io,
            Err(Handshake::Drain) => return counter.set_end(ConnectionEnd::Drain),
            Err(_) => return counter.set_end(ConnectionEnd::Handshake),
        };
        metrics.handshake_time.record(started.elapsed().as_secs_f64());
        let mut info = ConnectionInfo::new(Peer::new(io.peer_certificates()), Some(peer));
        info.public_name = io.server_name().and_then(|name| self.tls.public_name(name));
        if admitted.must_prove {
            let proof = self.connections.prove(&info);
            let proved = tokio::select! {
                biased;
                () = self.drain.draining() => return counter.set_end(ConnectionEnd::Drain),
                proved = tokio::time::timeout(self.limits.connection.handshake, proof) => proved,
            };
            if proved != Ok(true) {
                tracing::debug!(%peer, "closed connection: shut-out peer has no trusted certificate");
                return counter.set_end(ConnectionEnd::ShutOut);
            }
        }
        counter.set_end(self.connections.serve_connection(io, info).await);
    }

    async fn handshake(
        &self,
        socket: TcpStream,
        admitted: &Admitted,
        admission: &AdmissionLayer,
    ) -> Result<Box<TlsStream<TcpStream>>, Handshake> {
        let peer = admitted.address;
        let handshake = stream::accept_by_name(&self.tls, socket);
        tokio::select! {
            biased;
            () = self.drain.draining() => Err(Handshake::Drain),
            done = tokio::time::timeout(self.limits.connection.handshake, handshake) => match done {
                // Boxed, because a future reserves memory for each value moved through it.
                Ok(Ok(io)) => Ok(Box::new(io)),
                Ok(Err(error)) => {
                    tracing::debug!(%error, %peer, "TLS handshake failed");
                    // Other errors may come from a port probe or a bad line.
                    if error.kind() == std::io::ErrorKind::InvalidData {
                        admission.record_failure(admitted);
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

// === impl ConnectionCounter ===

impl ConnectionCounter {
    fn new(metrics: &Metrics) -> Self {
        metrics.connections_accepted.increment(1);
        Self { metrics: metrics.clone(), end: ConnectionEnd::Cut }
    }

    fn set_end(&mut self, end: ConnectionEnd) {
        self.end = end;
    }
}

impl Drop for ConnectionCounter {
    fn drop(&mut self) {
        self.metrics.connections_closed.of(self.end).increment(1);
    }
}

fn configure(socket: &TcpStream, stall: Duration) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    let socket = SockRef::from(socket);
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    socket.set_tcp_user_timeout(Some(stall.saturating_add(UNACKNOWLEDGED_BEYOND_STALL)))?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE))
}
