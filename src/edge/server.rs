//! The gateway's own port: accept, TLS, connection.

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
use super::connection::{Connections, Origin};
use super::drain::Drain;
use super::service::SERVICE;
use super::tls::Offers;
use super::tls::stream::{self, TlsStream};
use crate::access::authenticator::Peer;
use crate::model::limits::Limits;
use crate::model::metrics::{ConnectionEnd, Handshake, Metrics};
use crate::model::proto::DESCRIPTORS;

/// Pause after a failed accept: most often there are no descriptors left, and there is no use in trying at once.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Kernel memory for what a peer has not taken yet, per connection. The kernel would grow it to 4 MiB for a stalled follower;
/// this still fills a link of 100 Mbit/s and 20 ms. (Linux doubles the number for its own bookkeeping.)
const SEND_BUFFER_BYTES: usize = 256 * 1024;

/// What was sent may go unacknowledged, or the peer's window stay shut, for as long as a stream may stall, and this; then the
/// kernel gives the connection up. Later than the streams, which say why they end and are counted.
const UNACKNOWLEDGED_BEYOND_STALL: Duration = Duration::from_secs(30);

/// A peer that is silent for this long is probed by the kernel, to find out whether it is still there: for the time before HTTP/2
/// asks for itself.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Serves the gateway's port.
#[derive(Clone, Debug)]
pub struct Server {
    /// What connections lead to.
    pub connections: Connections,
    /// How they are secured.
    pub tls: Offers,
    /// How many, how long.
    pub limits: Arc<Limits>,
    /// Proxies that are believed to say for whom they speak; from the connections of these, and of nobody else, a header is read.
    pub trusted_proxies: Arc<[IpNet]>,
    /// The end.
    pub drain: Drain,
}

/// Counts a connection as taken, and however it ends as closed.
struct Taken {
    metrics: Metrics,
    /// Until its end is known, it would be that it was cut off.
    end: ConnectionEnd,
}

/// The services beside the lease service: health, and reflection in both versions that clients ask for.
///
/// # Errors
/// If the descriptors, which are part of the program, are not what they should be.
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

/// Says in the health service whether the lease service takes calls.
pub async fn report_health(reporter: &HealthReporter, serving: bool) {
    let status =
        if serving { tonic_health::ServingStatus::Serving } else { tonic_health::ServingStatus::NotServing };
    reporter.set_service_status(SERVICE, status).await;
    reporter.set_service_status("", status).await;
}

// === impl Server ===

impl Server {
    /// Accepts connections until the gateway drains; those that are open then go on.
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
        let entrance = Arc::new(AdmissionLayer::new(self.limits.connection.max, trusted, peers, metrics));
        loop {
            match listener.accept().await {
                Ok((socket, address)) => {
                    let Some(room) = entrance.room(address) else { continue };
                    let (server, entrance) = (self.clone(), Arc::clone(&entrance));
                    self.drain.spawn(async move {
                        server.serve_socket(socket, address, &entrance).await;
                        drop(room);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn serve_socket(&self, mut socket: TcpStream, address: SocketAddr, entrance: &AdmissionLayer) {
        if let Err(error) = configure(&socket, self.limits.stall) {
            tracing::debug!(%error, %address, "setting socket options");
        }
        let admitted = tokio::select! {
            biased;
            () = self.drain.draining() => return,
            admitted = entrance.admit(&mut socket, address) => admitted,
        };
        let Some(admitted) = admitted else { return };
        let peer = admitted.address;
        let mut taken = Taken::new(&self.connections.metrics);
        let _door = self.drain.door(Some(peer));
        let began = Instant::now();
        // Boxed, so that a connection does not keep room for its handshake.
        let handshake = Box::pin(self.shake_hands(socket, &admitted, entrance)).await;
        let result = handshake.as_ref().err().copied().unwrap_or(Handshake::Ok);
        let metrics = &self.connections.metrics;
        metrics.handshakes.of(result).increment(1);
        let io = match handshake {
            Ok(io) => io,
            Err(Handshake::Drain) => return taken.ended(ConnectionEnd::Drain),
            Err(_) => return taken.ended(ConnectionEnd::Handshake),
        };
        metrics.handshake_time.record(began.elapsed().as_secs_f64());
        let public_name = io.server_name().and_then(|name| self.tls.public_name(name));
        let mut origin = Origin::new(Peer::new(io.peer_certificates()), Some(peer));
        origin.public_name = public_name;
        if admitted.must_prove {
            let proof = self.connections.prove(&mut origin);
            let proved = tokio::select! {
                biased;
                () = self.drain.draining() => return taken.ended(ConnectionEnd::Drain),
                proved = tokio::time::timeout(self.limits.connection.handshake, proof) => proved,
            };
            if proved != Ok(true) {
                tracing::debug!(%peer, "connection closed: its peer is shut out and showed no trusted certificate");
                return taken.ended(ConnectionEnd::ShutOut);
            }
        }
        taken.ended(self.connections.serve_from(io, origin).await);
    }

    async fn shake_hands(
        &self,
        socket: TcpStream,
        admitted: &Admitted,
        entrance: &AdmissionLayer,
    ) -> Result<Box<TlsStream<TcpStream>>, Handshake> {
        let peer = admitted.address;
        let handshake = stream::accept_by_name(&self.tls, socket);
        tokio::select! {
            biased;
            () = self.drain.draining() => Err(Handshake::Drain),
            done = tokio::time::timeout(self.limits.connection.handshake, handshake) => match done {
                // Boxed, since a future keeps room for whatever is moved through it.
                Ok(Ok(io)) => Ok(Box::new(io)),
                Ok(Err(error)) => {
                    tracing::debug!(%error, %peer, "TLS handshake failed");
                    // One that breaks off may be a probe, or a bad line.
                    if error.kind() == std::io::ErrorKind::InvalidData {
                        entrance.failed(admitted);
                    }
                    Err(Handshake::Failed)
                }
                Err(_) => {
                    tracing::debug!(%peer, "TLS handshake took too long");
                    Err(Handshake::Timeout)
                }
            },
        }
    }
}

// === impl Taken ===

impl Taken {
    fn new(metrics: &Metrics) -> Self {
        metrics.connections_accepted.increment(1);
        Self { metrics: metrics.clone(), end: ConnectionEnd::Cut }
    }

    fn ended(&mut self, end: ConnectionEnd) {
        self.end = end;
    }
}

impl Drop for Taken {
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
