//! Admission of connections: the limits that apply before a TLS handshake costs anything.
//!
//! A rejected connection is closed at once instead of left waiting, so that the client can try another
//! gateway, or later. Rejections are counted by reason. For each reason the log has the first, and later ones
//! at a bounded rate.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::peer_limits::PeerLimits;
use super::proxy;
use crate::model::concurrency::ConcurrencyPermit;
use crate::model::metrics::{ConnectionRefusal, LabelValue as _, Metrics};
use crate::model::peer::PeerNet;
use crate::model::rate::{Bucket, Rate};

/// Least time between two log lines with the same reason, so that a flood of connections does not flood the
/// log.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct AdmissionLayer {
    connections: Arc<Semaphore>,
    connections_max: usize,
    trusted_proxies: Arc<[IpNet]>,
    peers: PeerLimits,
    metrics: Metrics,
    /// By index of [`ConnectionRefusal`].
    logs: Mutex<Vec<RejectionLog>>,
}

#[derive(Debug)]
pub(super) struct Admitted {
    /// Its address; behind a trusted proxy, the one that the proxy names.
    pub(super) address: SocketAddr,
    /// The peer is shut out, so the connection must present a trusted certificate.
    pub(super) must_prove: bool,
    _permit: ConcurrencyPermit<PeerNet>,
}

/// Limits the log lines with one reason.
#[derive(Debug)]
struct RejectionLog {
    bucket: Bucket,
    /// Rejections since the last logged one.
    not_logged: u64,
}

// === impl AdmissionLayer ===

impl AdmissionLayer {
    pub(super) fn new(
        connections_max: usize,
        trusted_proxies: Arc<[IpNet]>,
        peers: PeerLimits,
        metrics: Metrics,
    ) -> Self {
        let log = || RejectionLog { bucket: Bucket::new(Rate::new(1, LOG_INTERVAL)), not_logged: 0 };
        let logs = Mutex::new(ConnectionRefusal::ALL.iter().map(|_| log()).collect());
        let connections = Arc::new(Semaphore::new(connections_max));
        Self { connections, connections_max, trusted_proxies, peers, metrics, logs }
    }

    /// Takes a permit for one more connection. `None`: the limit is reached, and the caller closes the
    /// connection.
    pub(super) fn try_acquire(&self, address: SocketAddr) -> Option<OwnedSemaphorePermit> {
        let permit = Arc::clone(&self.connections).try_acquire_owned().ok();
        if permit.is_none() {
            let why = format_args!("limit of {} connections reached", self.connections_max);
            self.reject(ConnectionRefusal::Limit, address, &why);
        }
        permit
    }

    /// Reads the PROXY header if `address` is a trusted proxy, and checks the limits of the peer. `None`: the
    /// caller closes the connection.
    pub(super) async fn admit(
        &self,
        io: &mut (impl AsyncRead + AsyncWrite + Unpin),
        address: SocketAddr,
    ) -> Option<Admitted> {
        let mut real = address;
        if proxy::is_trusted(&self.trusted_proxies, address.ip()) {
            match proxy::read(io).await {
                Ok(named) => real = named.unwrap_or(address),
                Err(error) => {
                    self.reject(ConnectionRefusal::Proxy, address, &error);
                    return None;
                }
            }
        }
        let peer = PeerNet::from(real.ip());
        let Some(permit) = self.peers.open_connection(peer) else {
            self.reject(ConnectionRefusal::PeerLimit, real, &"limit of connections per peer reached");
            return None;
        };
        let now = Instant::now().into_std();
        let shut_out = self.peers.check(peer, now).err();
        if let Some(exceeded) = &shut_out
            && !self.peers.may_prove(peer, now)
        {
            self.reject(ConnectionRefusal::AuthFailures, real, exceeded);
            return None;
        }
        Some(Admitted { address: real, must_prove: shut_out.is_some(), _permit: permit })
    }

    /// Counts a handshake that failed by the peer's fault.
    pub(super) fn record_failure(&self, admitted: &Admitted) {
        self.peers.record_failure(PeerNet::from(admitted.address.ip()), Instant::now().into_std());
    }

    fn reject(&self, reason: ConnectionRefusal, peer: SocketAddr, why: &dyn fmt::Display) {
        self.metrics.connections_refused.of(reason).increment(1);
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
