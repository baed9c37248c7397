//! What is known of peers by their addresses: what each has open, how fast it calls, and which are shut out for a while.
//!
//! A peer is shut out after too many failures of its own: calls without valid credentials, broken TLS handshakes, and
//! connections that end because the peer broke HTTP/2 ([`super::fault`]). While it is shut out, a new connection must show a
//! trusted certificate ([`PeerLimits::may_prove`]), and open connections on which no call has authenticated must go
//! ([`ShutOutNotice`]).
//!
//! Addresses are the real ones ([`super::proxy`]), and those of IPv6 count by their network ([`PeerNet`]). Only peers that have
//! something open, or have called or failed lately, are remembered.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::model::concurrency::{ConcurrencyLimiter, ConcurrencyPermit};
use crate::model::limits::{ConnectionLimits, QuotaLimits};
use crate::model::peer::PeerNet;
use crate::model::quota::{Exceeded, Quota, Subject};
use crate::model::rate::{Buckets, Rate};

/// Calls of health and reflection at once from one address. They need no credentials, so no owner's quota bounds them; a few
/// probes and balancers watch from one address.
const OPEN_CALLS_MAX: usize = 128;

/// A caller who may not open another such call may try again when somebody has ended one; nobody knows when.
const OPEN_CALLS_RETRY: Duration = Duration::from_secs(5);

/// Calls of health and reflection at once after a rest: as many as may be open, since all of them come back when a gateway
/// restarts.
const OPEN_CALLS_BURST: u64 = OPEN_CALLS_MAX as u64;

/// Handshakes in which a peer that is shut out may show a trusted certificate. One costs about a millisecond of a core, so a
/// shut-out address takes half a percent of one; tenants behind it that reconnect together get in within seconds.
const PROOFS: Rate = Rate::new(5, Duration::from_secs(1)).with_burst(20);

/// Certificates shown in such handshakes that may cause a question to the trust source, since nothing is known of them. Few,
/// because the source may be a chain node with a rate of its own that all strangers share.
const PROOF_QUESTIONS: Rate = Rate::new(6, Duration::from_secs(60));

/// In what time so many failures count.
const FAILURES_PER: Duration = Duration::from_secs(60);

/// Peers whose rates are remembered. An attacker with more networks than this can make the gateway forget its first ones.
const PEERS_KEPT: usize = 16_384;

/// The peers. Cloning is cheap.
#[derive(Clone, Debug)]
pub(super) struct PeerLimits(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    connections_max: usize,
    connections: ConcurrencyLimiter<PeerNet>,
    open_calls: ConcurrencyLimiter<PeerNet>,
    /// How many calls without credentials a second, and how many each peer has made.
    open_call_rate: Option<(u32, Buckets<PeerNet>)>,
    /// How many failures are let pass, and whose there were.
    failures: Option<(u32, Buckets<PeerNet>)>,
    proofs: Buckets<PeerNet>,
    proof_questions: Buckets<PeerNet>,
    /// Notified when a peer is shut out. Bounded by the number of open connections.
    notices: Mutex<HashMap<PeerNet, Arc<Notify>>>,
}

/// Tells one connection when its peer is shut out. Removed from the registry on drop.
#[derive(Debug)]
pub(super) struct ShutOutNotice {
    peers: PeerLimits,
    peer: PeerNet,
    notify: Arc<Notify>,
}

// === impl Peers ===

impl PeerLimits {
    /// Creates an empty registry. A rate of zero in `quota` means no limit.
    pub(super) fn new(limits: &ConnectionLimits, quota: &QuotaLimits) -> Self {
        let buckets = |most: u32, rate: Rate| (most > 0).then(|| (most, Buckets::new(rate, PEERS_KEPT)));
        let (calls, failures) = (quota.open_calls_per_second, quota.auth_failures_per_minute);
        let call_rate = Rate::new(u64::from(calls), Duration::from_secs(1));
        let call_rate = call_rate.with_burst(OPEN_CALLS_BURST.max(u64::from(calls)));
        Self(Arc::new(Shared {
            connections_max: limits.max_per_peer,
            connections: ConcurrencyLimiter::default(),
            open_calls: ConcurrencyLimiter::default(),
            open_call_rate: buckets(calls, call_rate),
            failures: buckets(failures, Rate::new(u64::from(failures), FAILURES_PER)),
            proofs: Buckets::new(PROOFS, PEERS_KEPT),
            proof_questions: Buckets::new(PROOF_QUESTIONS, PEERS_KEPT),
            notices: Mutex::default(),
        }))
    }

    /// One more connection, unless the peer has as many as it may.
    pub(super) fn connect(&self, peer: PeerNet) -> Option<ConcurrencyPermit<PeerNet>> {
        self.0.connections.hold(&peer, self.0.connections_max)
    }

    /// One more call that needs no credentials.
    ///
    /// # Errors
    /// The peer calls too often, or has as many open as it may.
    pub(super) fn open_call(
        &self,
        peer: PeerNet,
        now: Instant,
    ) -> Result<ConcurrencyPermit<PeerNet>, Exceeded> {
        let held = self.0.open_calls.hold(&peer, OPEN_CALLS_MAX).ok_or(Exceeded {
            quota: Quota::OpenCallsPerPeer,
            subject: Subject::Peer,
            limit: OPEN_CALLS_MAX as u64,
            retry_after: Some(OPEN_CALLS_RETRY),
        })?;
        self.open_message(peer, now)?;
        Ok(held)
    }

    /// One more request message of a call that needs no credentials. Each counts like a call: reflection answers any number
    /// of them in one.
    ///
    /// # Errors
    /// The peer sends them too often.
    pub(super) fn open_message(&self, peer: PeerNet, now: Instant) -> Result<(), Exceeded> {
        let Some((limit, rate)) = &self.0.open_call_rate else {
            return Ok(());
        };
        rate.try_take(&peer, 1, now).map_err(|wait| Exceeded {
            quota: Quota::OpenCallRatePerPeer,
            subject: Subject::Peer,
            limit: u64::from(*limit),
            retry_after: Some(wait),
        })
    }

    /// Whether a peer that is shut out may complete one more handshake, to show a trusted certificate.
    pub(super) fn may_prove(&self, peer: PeerNet, now: Instant) -> bool {
        self.0.proofs.try_take(&peer, 1, now).is_ok()
    }

    /// Whether the trust source may be asked about one more unknown certificate of a peer that is shut out.
    pub(super) fn may_ask_about(&self, peer: PeerNet, now: Instant) -> bool {
        self.0.proof_questions.try_take(&peer, 1, now).is_ok()
    }

    /// Registers a connection of this peer.
    pub(super) fn notice(&self, peer: PeerNet) -> ShutOutNotice {
        let notify = Arc::clone(self.notices().entry(peer).or_default());
        ShutOutNotice { peers: self.clone(), peer, notify }
    }

    fn notices(&self) -> MutexGuard<'_, HashMap<PeerNet, Arc<Notify>>> {
        self.0.notices.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Counts a failure of the peer: it did not show who it is, or broke TLS or HTTP/2. The last failure that is let pass shuts
    /// the peer out for a minute.
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
            tracing::warn!(
                %peer,
                failures = limit,
                "peer shut out for a minute: too many failed authentications or broken connections"
            );
            if let Some(notify) = self.notices().get(&peer) {
                notify.notify_waiters();
            }
        }
    }
}

// === impl ShutOutNotice ===

impl ShutOutNotice {
    /// Waits until the peer is shut out; returns at once if it is. Cancel safe.
    pub(super) async fn shut_out(&self) {
        loop {
            let notified = self.notify.notified();
            tokio::pin!(notified);
            // Registered before the look, so that no notification is lost in between.
            notified.as_mut().enable();
            if self.peers.listen(self.peer, tokio::time::Instant::now().into_std()).is_err() {
                return;
            }
            notified.await;
        }
    }
}

impl Drop for ShutOutNotice {
    fn drop(&mut self) {
        let mut notices = self.peers.notices();
        // The registry's own and this one.
        if Arc::strong_count(&self.notify) <= 2 {
            notices.remove(&self.peer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failing(failures: u32) -> PeerLimits {
        let quota = QuotaLimits { auth_failures_per_minute: failures, ..QuotaLimits::default() };
        PeerLimits::new(&ConnectionLimits::default(), &quota)
    }

    fn peer(last: u8) -> PeerNet {
        PeerNet::from(std::net::IpAddr::from([192, 0, 2, last]))
    }

    #[test]
    fn who_fails_too_often_is_not_listened_to_for_a_minute() {
        let peers = failing(10);
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
        let peers = failing(60);
        let mut now = Instant::now();
        for _ in 0..1_000 {
            assert_eq!(peers.listen(peer(1), now), Ok(()));
            peers.failed(peer(1), now);
            now += Duration::from_secs(1);
        }
        let unlimited = failing(0);
        for _ in 0..1_000 {
            unlimited.failed(peer(1), now);
        }
        assert_eq!(unlimited.listen(peer(1), now), Ok(()));
    }

    #[test]
    fn each_peer_has_so_many_connections_and_open_calls() {
        let limits = ConnectionLimits { max_per_peer: 2, ..ConnectionLimits::default() };
        let peers =
            PeerLimits::new(&limits, &QuotaLimits { open_calls_per_second: 0, ..QuotaLimits::default() });
        let now = Instant::now();
        let held = [peers.connect(peer(1)).unwrap(), peers.connect(peer(1)).unwrap()];
        assert!(peers.connect(peer(1)).is_none());
        let other = peers.connect(peer(2)).unwrap();
        drop(held);
        let again = peers.connect(peer(1)).unwrap();
        drop((again, other));
        let calls: Vec<_> = (0..OPEN_CALLS_MAX).map(|_| peers.open_call(peer(1), now).unwrap()).collect();
        assert_eq!(peers.open_call(peer(1), now).unwrap_err().quota, Quota::OpenCallsPerPeer);
        drop(calls);
        assert!(peers.open_call(peer(1), now).is_ok());
    }

    #[test]
    fn calls_without_credentials_have_a_rate_per_peer() {
        let quota = QuotaLimits { open_calls_per_second: 2, ..QuotaLimits::default() };
        let peers = PeerLimits::new(&ConnectionLimits::default(), &quota);
        let now = Instant::now();
        for _ in 0..OPEN_CALLS_BURST {
            drop(peers.open_call(peer(1), now).unwrap());
        }
        let exceeded = peers.open_call(peer(1), now).unwrap_err();
        assert_eq!((exceeded.quota, exceeded.limit), (Quota::OpenCallRatePerPeer, 2));
        assert_eq!(exceeded.retry_after, Some(Duration::from_millis(500)));
        assert!(peers.open_call(peer(2), now).is_ok());
        let later = now + Duration::from_millis(500);
        assert!(peers.open_call(peer(1), later).is_ok());
        assert!(peers.open_message(peer(1), later).is_err());
    }

    #[test]
    fn shut_out_peer_proves_itself_at_a_rate() {
        let peers = failing(1);
        let now = Instant::now();
        let handshakes = (0..1_000).filter(|_| peers.may_prove(peer(1), now)).count();
        let questions = (0..1_000).filter(|_| peers.may_ask_about(peer(1), now)).count();
        assert_eq!((handshakes, questions), (20, 6));
        let later = now + Duration::from_secs(10);
        let handshakes = (0..1_000).filter(|_| peers.may_prove(peer(1), later)).count();
        let questions = (0..1_000).filter(|_| peers.may_ask_about(peer(1), later)).count();
        assert_eq!((handshakes, questions), (20, 1));
        assert!(peers.may_prove(peer(2), now));
    }

    #[tokio::test(start_paused = true)]
    async fn connections_learn_that_their_peer_is_shut_out() {
        let peers = failing(2);
        let now = || tokio::time::Instant::now().into_std();
        let (bad, same, good) = (peers.notice(peer(1)), peers.notice(peer(1)), peers.notice(peer(2)));
        let short = Duration::from_millis(1);
        peers.failed(peer(1), now());
        tokio::time::timeout(short, bad.shut_out()).await.unwrap_err();
        let (bad_told, same_told, ()) = tokio::join!(
            tokio::time::timeout(short, bad.shut_out()),
            tokio::time::timeout(short, same.shut_out()),
            async { peers.failed(peer(1), now()) },
        );
        assert!(bad_told.is_ok() && same_told.is_ok());
        tokio::time::timeout(short, good.shut_out()).await.unwrap_err();
        // A connection that comes later is told at once.
        peers.notice(peer(1)).shut_out().await;
        drop((bad, good));
        assert_eq!(peers.notices().len(), 1);
        drop(same);
        assert_eq!(peers.notices().len(), 0);
    }
}
