//! Who may connect: what is decided over a connection before its TLS handshake costs anything.
//!
//! Whoever may not is closed at once, rather than left to wait: the client sees it, and can try another gateway or later. Each is
//! counted by reason, and some are logged: the first, and then one in a while with the number of those in between.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::peer_limits::PeerLimits;
use super::proxy;
use crate::model::concurrency::ConcurrencyPermit;
use crate::model::metrics::{ConnectionRefusal, LabelValue as _, Metrics};
use crate::model::peer::PeerNet;
use crate::model::rate::{Bucket, Rate};

/// For each reason the log tells of one refusal in so long: a flood of connections is not to become one of lines.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// Lets connections in, or not.
#[derive(Debug)]
pub(super) struct AdmissionLayer {
    all: Arc<Semaphore>,
    limit: usize,
    trusted: Arc<[IpNet]>,
    peers: PeerLimits,
    metrics: Metrics,
    said: Mutex<Vec<Said>>,
}

/// A connection that was let in, for as long as it lives.
#[derive(Debug)]
pub(super) struct Admitted {
    /// Where it really comes from.
    pub(super) address: SocketAddr,
    /// Its peer is shut out: the connection may go on only with a trusted certificate.
    pub(super) must_prove: bool,
    _of_peer: ConcurrencyPermit<PeerNet>,
}

/// What the log was told of one reason.
#[derive(Debug)]
struct Said {
    bucket: Bucket,
    /// Refusals since, that it was not told of.
    kept_back: u64,
}

// === impl AdmissionLayer ===

impl AdmissionLayer {
    /// For so many connections at once. Those of `trusted` are asked for whom they speak.
    pub(super) fn new(limit: usize, trusted: Arc<[IpNet]>, peers: PeerLimits, metrics: Metrics) -> Self {
        let fresh = || Said { bucket: Bucket::new(Rate::new(1, SAY_EVERY)), kept_back: 0 };
        let said = ConnectionRefusal::ALL.iter().map(|_| fresh()).collect();
        let all = Arc::new(Semaphore::new(limit));
        Self { all, limit, trusted, peers, metrics, said: Mutex::new(said) }
    }

    /// Room for one more connection. `None` if there is none: it is counted and logged, and only to be closed.
    pub(super) fn room(&self, address: SocketAddr) -> Option<OwnedSemaphorePermit> {
        let room = Arc::clone(&self.all).try_acquire_owned().ok();
        if room.is_none() {
            self.refuse(ConnectionRefusal::Limit, address, &format_args!("{} are open", self.limit));
        }
        room
    }

    /// Finds out where the connection `io` from `address` really comes from, and whether that peer may connect. `None` if not, as
    /// for [`AdmissionLayer::room`].
    pub(super) async fn admit(
        &self,
        io: &mut (impl AsyncRead + AsyncWrite + Unpin),
        address: SocketAddr,
    ) -> Option<Admitted> {
        let mut real = address;
        if proxy::is_trusted(&self.trusted, address.ip()) {
            match proxy::read(io).await {
                Ok(named) => real = named.unwrap_or(address),
                Err(error) => {
                    self.refuse(ConnectionRefusal::Proxy, address, &error);
                    return None;
                }
            }
        }
        let peer = PeerNet::from(real.ip());
        let Some(of_peer) = self.peers.connect(peer) else {
            self.refuse(ConnectionRefusal::PeerLimit, real, &"it has as many open as one peer may");
            return None;
        };
        let now = Instant::now().into_std();
        let shut_out = self.peers.listen(peer, now).err();
        if let Some(exceeded) = &shut_out
            && !self.peers.may_prove(peer, now)
        {
            self.refuse(ConnectionRefusal::AuthFailures, real, exceeded);
            return None;
        }
        Some(Admitted { address: real, must_prove: shut_out.is_some(), _of_peer: of_peer })
    }

    /// Notes that the peer's handshake failed by its own fault.
    pub(super) fn failed(&self, admitted: &Admitted) {
        self.peers.failed(PeerNet::from(admitted.address.ip()), Instant::now().into_std());
    }

    fn refuse(&self, reason: ConnectionRefusal, peer: SocketAddr, why: &dyn fmt::Display) {
        self.metrics.connections_refused.of(reason).increment(1);
        let kept_back = {
            let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(said) = said.get_mut(reason.index()) else { return };
            if said.bucket.try_take(1, Instant::now().into_std()).is_err() {
                said.kept_back += 1;
                return;
            }
            std::mem::take(&mut said.kept_back)
        };
        tracing::warn!(%peer, %why, not_logged_since = kept_back, "connection closed at once");
    }
}
