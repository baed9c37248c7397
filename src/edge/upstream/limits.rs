//! Limits of what the gateway has in progress at the provider: for all peers together, and for each of them.

use metrics::Gauge;

use crate::model::concurrency::{ConcurrencyLimiter, ConcurrencyPermit};
use crate::model::metrics::GaugeGuard;
use crate::model::peer::PeerNet;

/// Maximum spliced connections and tunnels. Each has two buffers of 16 KiB, so all have 32 MiB.
pub(crate) const TUNNELS_MAX: usize = 1_024;

/// A peer may use one part in this many of a limit. Credentials are not checked before forwarding, so nothing
/// else keeps one address from using all of it. Not a smaller part, because many users of Console have the
/// address of its proxy.
const PEER_SHARE: usize = 4;

/// Limits what is in progress. Cloning is cheap.
#[derive(Clone, Debug)]
pub(crate) struct SharedLimiter {
    max: usize,
    all: ConcurrencyLimiter<()>,
    of_peers: ConcurrencyLimiter<PeerNet>,
}

/// Counts something as in progress, until it is dropped.
#[derive(Debug)]
pub(crate) struct SharedPermit {
    _of_all: ConcurrencyPermit<()>,
    _of_peer: Option<ConcurrencyPermit<PeerNet>>,
}

/// Limits spliced connections and tunnels together. Cloning is cheap.
#[derive(Clone, Debug)]
pub(crate) struct TunnelLimiter {
    limiter: SharedLimiter,
    open: Gauge,
}

/// Allows one spliced connection or tunnel, until it is dropped.
#[derive(Debug)]
pub(crate) struct TunnelPermit {
    _permit: SharedPermit,
    _open: GaugeGuard,
}

// === impl SharedLimiter ===

impl SharedLimiter {
    /// Creates a limiter of `max` permits.
    pub(crate) fn new(max: usize) -> Self {
        Self { max, all: ConcurrencyLimiter::default(), of_peers: ConcurrencyLimiter::default() }
    }

    /// Returns a permit, if one is free and `peer` has not used its share.
    pub(crate) fn try_acquire(&self, peer: Option<PeerNet>) -> Option<SharedPermit> {
        let of_peer = match peer {
            Some(peer) => Some(self.of_peers.hold(&peer, self.max.div_ceil(PEER_SHARE))?),
            None => None,
        };
        Some(SharedPermit { _of_all: self.all.hold(&(), self.max)?, _of_peer: of_peer })
    }
}

// === impl TunnelLimiter ===

impl TunnelLimiter {
    /// Creates a limiter of at most `max` permits ([`TUNNELS_MAX`] but in tests). `open` counts them.
    pub(crate) fn new(max: usize, open: Gauge) -> Self {
        Self { limiter: SharedLimiter::new(max), open }
    }

    /// Returns a permit, if one is free and `peer` has not used its share.
    pub(crate) fn try_acquire(&self, peer: Option<PeerNet>) -> Option<TunnelPermit> {
        let permit = self.limiter.try_acquire(peer)?;
        Some(TunnelPermit { _permit: permit, _open: GaugeGuard::new(&self.open) })
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn one_peer_gets_a_quarter_of_a_limit() {
        let peer = |last: u8| Some(PeerNet::from(IpAddr::from([192, 0, 2, last])));
        let limiter = SharedLimiter::new(8);
        let of_first: Vec<_> = (0..2).map(|_| limiter.try_acquire(peer(1)).unwrap()).collect();
        assert!(limiter.try_acquire(peer(1)).is_none());
        let of_others: Vec<_> =
            (2..5).map(|last| [(); 2].map(|()| limiter.try_acquire(peer(last)).unwrap())).collect();
        assert!(limiter.try_acquire(peer(5)).is_none() && limiter.try_acquire(None).is_none());
        drop(of_first);
        let again = limiter.try_acquire(peer(1));
        assert!(again.is_some() && limiter.try_acquire(peer(5)).is_some());
        drop((of_others, again));
        assert_eq!((limiter.all.holders(), limiter.of_peers.holders()), (0, 0));
    }
}
