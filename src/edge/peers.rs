//! What is known of peers by their addresses: how much each has open, and who is not listened to for a while.
//!
//! Addresses are the real ones ([`super::proxy`]), and those of IPv6 count by their network ([`PeerNet`]). Only who has
//! something open, or has failed lately, is remembered.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::model::count::{Counts, Held};
use crate::model::limits::ConnectionLimits;
use crate::model::peer::PeerNet;
use crate::model::quota::{Exceeded, Quota, Subject};
use crate::model::rate::{Buckets, Rate};

/// Calls of health and reflection at once from one address. They need no credentials, so no owner's quota bounds them; a few
/// probes and balancers watch from one address.
const OPEN_CALLS_MAX: usize = 128;

/// A caller who may not open another such call may try again when somebody has ended one; nobody knows when.
const OPEN_CALLS_RETRY: Duration = Duration::from_secs(5);

/// In what time so many failures count.
const FAILURES_PER: Duration = Duration::from_secs(60);

/// Peers of whom failures are remembered. One who commands more networks than this can make the gateway forget its first ones.
const FAILURES_KEPT: usize = 16_384;

/// The peers. Cloning is cheap.
#[derive(Clone, Debug)]
pub(super) struct Peers(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    connections_max: usize,
    connections: Counts<PeerNet>,
    open_calls: Counts<PeerNet>,
    /// How many failures are let pass, and whose there were.
    failures: Option<(u32, Buckets<PeerNet>)>,
}

// === impl Peers ===

impl Peers {
    /// Nobody yet. So many failures a minute are let pass of each; zero = any number.
    pub(super) fn new(limits: &ConnectionLimits, failures_per_minute: u32) -> Self {
        let rate = Rate::new(u64::from(failures_per_minute), FAILURES_PER);
        let failures = (failures_per_minute > 0).then(|| Buckets::new(rate, FAILURES_KEPT));
        Self(Arc::new(Shared {
            connections_max: limits.max_per_peer,
            connections: Counts::default(),
            open_calls: Counts::default(),
            failures: failures.map(|failures| (failures_per_minute, failures)),
        }))
    }

    /// One more connection, unless the peer has as many as it may.
    pub(super) fn connect(&self, peer: PeerNet) -> Option<Held<PeerNet>> {
        self.0.connections.hold(&peer, self.0.connections_max)
    }

    /// One more call that needs no credentials.
    ///
    /// # Errors
    /// The peer has as many as it may.
    pub(super) fn open_call(&self, peer: PeerNet) -> Result<Held<PeerNet>, Exceeded> {
        self.0.open_calls.hold(&peer, OPEN_CALLS_MAX).ok_or(Exceeded {
            quota: Quota::OpenCallsPerPeer,
            subject: Subject::Peer,
            limit: OPEN_CALLS_MAX as u64,
            retry_after: Some(OPEN_CALLS_RETRY),
        })
    }

    /// Whether the peer is listened to.
    ///
    /// # Errors
    /// It has failed too often; and how long it will not be.
    pub(super) fn listen(&self, peer: PeerNet, now: Instant) -> Result<(), Exceeded> {
        let Some((limit, failures)) = &self.0.failures else {
            return Ok(());
        };
        let wait = failures.wait_for(&peer, 1, now);
        if wait.is_zero() {
            return Ok(());
        }
        Err(Exceeded {
            quota: Quota::AuthFailuresPerPeer,
            subject: Subject::Peer,
            limit: u64::from(*limit),
            retry_after: Some(wait),
        })
    }

    /// Notes that the peer did not show who it is. With the last failure that was let pass it owes a minute of silence.
    pub(super) fn failed(&self, peer: PeerNet, now: Instant) {
        let Some((limit, failures)) = &self.0.failures else {
            return;
        };
        if failures.try_take(&peer, 1, now).is_err() {
            // What was under way when it went silent.
            return;
        }
        if !failures.wait_for(&peer, 1, now).is_zero() {
            failures.take(&peer, u64::from(*limit), now);
            tracing::warn!(%peer, failures = limit, "too many failed authentications, not listened to for a minute");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(last: u8) -> PeerNet {
        PeerNet::from(std::net::IpAddr::from([192, 0, 2, last]))
    }

    #[test]
    fn who_fails_too_often_is_not_listened_to_for_a_minute() {
        let peers = Peers::new(&ConnectionLimits::default(), 10);
        let (bad, good) = (peer(1), peer(2));
        let start = Instant::now();
        for _ in 0..10 {
            assert_eq!(peers.listen(bad, start), Ok(()));
            peers.failed(bad, start);
        }
        let exceeded = peers.listen(bad, start).unwrap_err();
        assert_eq!((exceeded.quota, exceeded.limit), (Quota::AuthFailuresPerPeer, 10));
        let wait = exceeded.retry_after.unwrap();
        assert!(wait >= FAILURES_PER && wait < 2 * FAILURES_PER, "{wait:?}");
        assert_eq!(peers.listen(good, start), Ok(()));
        // Failures that were under way do not make it longer.
        peers.failed(bad, start);
        assert_eq!(peers.listen(bad, start).unwrap_err().retry_after, Some(wait));
        let over = start + wait;
        assert_eq!(peers.listen(bad, over), Ok(()));
        // Who goes on as before is sent away sooner.
        peers.failed(bad, over);
        assert!(peers.listen(bad, over).is_err());
    }

    #[test]
    fn who_fails_now_and_then_is_listened_to() {
        let peers = Peers::new(&ConnectionLimits::default(), 60);
        let mut now = Instant::now();
        for _ in 0..1_000 {
            assert_eq!(peers.listen(peer(1), now), Ok(()));
            peers.failed(peer(1), now);
            now += Duration::from_secs(1);
        }
        let unlimited = Peers::new(&ConnectionLimits::default(), 0);
        for _ in 0..1_000 {
            unlimited.failed(peer(1), now);
        }
        assert_eq!(unlimited.listen(peer(1), now), Ok(()));
    }

    #[test]
    fn each_peer_has_so_many_connections_and_open_calls() {
        let limits = ConnectionLimits { max_per_peer: 2, ..ConnectionLimits::default() };
        let peers = Peers::new(&limits, 0);
        let held = [peers.connect(peer(1)).unwrap(), peers.connect(peer(1)).unwrap()];
        assert!(peers.connect(peer(1)).is_none());
        let other = peers.connect(peer(2)).unwrap();
        drop(held);
        let again = peers.connect(peer(1)).unwrap();
        drop((again, other));
        let calls: Vec<_> = (0..OPEN_CALLS_MAX).map(|_| peers.open_call(peer(1)).unwrap()).collect();
        assert_eq!(peers.open_call(peer(1)).unwrap_err().quota, Quota::OpenCallsPerPeer);
        drop(calls);
        assert!(peers.open_call(peer(1)).is_ok());
    }
}
