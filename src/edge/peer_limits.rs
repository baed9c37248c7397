//! Limits per peer address: open connections, calls without credentials, forwarded requests, and failures.
//!
//! A peer is shut out after too many failures: calls without valid credentials, broken TLS handshakes, and
//! connections that broke HTTP/2. While it is shut out, a new connection must present a trusted certificate
//! ([`PeerLimits::may_handshake`]), and open connections without an authenticated call ([`AuthState`]) must
//! close ([`ShutOutNotice`]).
//!
//! Addresses are those that a trusted proxy names ([`super::proxy`]); IPv6 counts by network ([`PeerNet`]).
//! Only peers that have something open, or called or failed recently, use memory.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::quotas::RateQuota;
use crate::model::concurrency::{ConcurrencyLimiter, ConcurrencyPermit};
use crate::model::limits::{ConnectionLimits, QuotaLimits};
use crate::model::peer::PeerNet;
use crate::model::quota::{Exceeded, Quota, Subject};
use crate::model::rate::{Buckets, Rate};

/// Health and reflection calls of one peer in progress. They need no credentials, so no owner's quota bounds
/// them. A few probes and balancers watch from one address.
const ANONYMOUS_CALLS_MAX: usize = 128;

/// Retry-after hint when too many such calls are open. The wait is unknown; five seconds bounds the retry
/// load.
const ANONYMOUS_CALLS_RETRY: Duration = Duration::from_secs(5);

/// Burst of health and reflection calls: as many as may be open, because all reconnect when a gateway
/// restarts.
const ANONYMOUS_CALLS_BURST: u64 = ANONYMOUS_CALLS_MAX as u64;

/// Burst of forwarded requests: as many as one peer may have in progress.
const FORWARDED_BURST: u64 = 256;

/// Handshakes in which a shut-out peer may present a trusted certificate. One costs about a millisecond of a
/// core, so a shut-out address uses half a percent of one. Tenants at that address that reconnect together
/// succeed within seconds.
const SHUT_OUT_HANDSHAKES: Rate = Rate::new(5, Duration::from_secs(1)).with_burst(20);

/// Unknown certificates of a shut-out peer that may cause a query to the trust source. Few, because the
/// source may be a chain node with a rate limit that all unknown callers share.
const SHUT_OUT_QUERIES: Rate = Rate::new(6, Duration::from_secs(60));

/// Period of the failure limit.
const FAILURES_PER: Duration = Duration::from_secs(60);

/// Peers whose rates are remembered. If an attacker has more networks than this, its first ones are
/// forgotten.
const PEERS_KEPT: usize = 16_384;

/// Rejected calls after which a connection must close, if the peer is shut out or calls too fast without
/// credentials. A client that observes `RetryInfo` is rejected once or twice. A rejection costs nearly as
/// much as an answer.
const REJECTIONS_MAX: u32 = 128;

/// Limits of all peers. Cloning is cheap.
#[derive(Clone, Debug)]
pub(super) struct PeerLimits(Arc<PeerTables>);

#[derive(Debug)]
struct PeerTables {
    connections_max: usize,
    connections: ConcurrencyLimiter<PeerNet>,
    anonymous_calls: ConcurrencyLimiter<PeerNet>,
    anonymous_call_rate: RateQuota<PeerNet>,
    forwarded_rate: RateQuota<PeerNet>,
    failures: RateQuota<PeerNet>,
    shut_out_handshakes: Buckets<PeerNet>,
    shut_out_queries: Buckets<PeerNet>,
    /// Notified when a peer is shut out. Bounded by the number of open connections.
    notices: Mutex<HashMap<PeerNet, Arc<Notify>>>,
}

/// Notifies one connection when its peer is shut out. Unregistered on drop.
#[derive(Debug)]
pub(super) struct ShutOutNotice {
    peers: PeerLimits,
    peer: PeerNet,
    notify: Arc<Notify>,
}

/// Authentication results of the calls on one connection, which matter while its peer is shut out. Cloning is
/// cheap.
#[derive(Clone, Debug, Default)]
pub(super) struct AuthState(Arc<AuthResults>);

#[derive(Debug, Default)]
struct AuthResults {
    /// Whether a call has authenticated. Never unset.
    ever_authenticated: AtomicBool,
    /// Whether the last authentication succeeded.
    last_succeeded: AtomicBool,
    /// Calls rejected because of their peer.
    rejections: AtomicU32,
    /// Notified at every [`REJECTIONS_MAX`]th rejection.
    flooded: Notify,
    /// Notified when a call is rejected because its peer is shut out.
    shut_out_rejected: Notify,
}

// === impl PeerLimits ===

impl PeerLimits {
    /// Creates limits of which nothing is used. A rate of zero in `quota` means no limit.
    pub(super) fn new(limits: &ConnectionLimits, quota: &QuotaLimits) -> Self {
        let (calls, failures) = (quota.open_calls_per_second, quota.auth_failures_per_minute);
        let call_rate = Rate::new(u64::from(calls), Duration::from_secs(1));
        let call_rate = call_rate.with_burst(ANONYMOUS_CALLS_BURST.max(u64::from(calls)));
        let failure_rate = Rate::new(u64::from(failures), FAILURES_PER);
        let forwarded = quota.forwarded_per_second;
        let forwarded_rate = Rate::new(u64::from(forwarded), Duration::from_secs(1));
        let forwarded_rate = forwarded_rate.with_burst(FORWARDED_BURST.max(u64::from(forwarded)));
        Self(Arc::new(PeerTables {
            connections_max: limits.max_per_peer,
            connections: ConcurrencyLimiter::default(),
            anonymous_calls: ConcurrencyLimiter::default(),
            anonymous_call_rate: RateQuota::new(
                Quota::AnonymousCallRatePerPeer,
                calls,
                call_rate,
                PEERS_KEPT,
            ),
            forwarded_rate: RateQuota::new(
                Quota::ForwardedRatePerPeer,
                forwarded,
                forwarded_rate,
                PEERS_KEPT,
            ),
            failures: RateQuota::new(Quota::AuthFailuresPerPeer, failures, failure_rate, PEERS_KEPT),
            shut_out_handshakes: Buckets::new(SHUT_OUT_HANDSHAKES, PEERS_KEPT),
            shut_out_queries: Buckets::new(SHUT_OUT_QUERIES, PEERS_KEPT),
            notices: Mutex::default(),
        }))
    }

    /// Counts one more connection, unless the peer has too many.
    pub(super) fn open_connection(&self, peer: PeerNet) -> Option<ConcurrencyPermit<PeerNet>> {
        self.0.connections.hold(&peer, self.0.connections_max)
    }

    /// Counts one more call without credentials, until the permit is dropped.
    ///
    /// # Errors
    /// The peer calls too often, or has too many such calls open.
    pub(super) fn begin_anonymous_call(
        &self,
        peer: PeerNet,
        now: Instant,
    ) -> Result<ConcurrencyPermit<PeerNet>, Exceeded> {
        let permit = self.0.anonymous_calls.hold(&peer, ANONYMOUS_CALLS_MAX).ok_or(Exceeded {
            quota: Quota::AnonymousCallsPerPeer,
            subject: Subject::Peer,
            limit: ANONYMOUS_CALLS_MAX as u64,
            retry_after: Some(ANONYMOUS_CALLS_RETRY),
        })?;
        self.count_message(peer, now)?;
        Ok(permit)
    }

    /// Counts one more request message of a call without credentials. Each costs as much as a call:
    /// reflection answers any number of them in one call.
    ///
    /// # Errors
    /// The peer sends them too often.
    pub(super) fn count_message(&self, peer: PeerNet, now: Instant) -> Result<(), Exceeded> {
        self.0.anonymous_call_rate.take(&peer, now, || Subject::Peer)
    }

    /// Counts one more request that is forwarded, whose credentials are not checked here.
    ///
    /// # Errors
    /// The peer sends them too often.
    pub(super) fn count_forwarded(&self, peer: PeerNet, now: Instant) -> Result<(), Exceeded> {
        self.0.forwarded_rate.take(&peer, now, || Subject::Peer)
    }

    /// Takes one of the handshakes in which a shut-out peer may present a trusted certificate. Returns
    /// whether there was one.
    pub(super) fn may_handshake(&self, peer: PeerNet, now: Instant) -> bool {
        self.0.shut_out_handshakes.try_take(&peer, 1, now).is_ok()
    }

    /// Returns whether one more unknown certificate of a shut-out peer may cause a query to the trust source.
    pub(super) fn may_query_trust(&self, peer: PeerNet, now: Instant) -> bool {
        self.0.shut_out_queries.try_take(&peer, 1, now).is_ok()
    }

    /// Registers a connection of this peer, which is notified when the peer is shut out.
    pub(super) fn register_connection(&self, peer: PeerNet) -> ShutOutNotice {
        let notify = Arc::clone(self.0.notices.lock().entry(peer).or_default());
        ShutOutNotice { peers: self.clone(), peer, notify }
    }

    /// Checks that the peer is not shut out.
    ///
    /// # Errors
    /// It is; the error has the remaining time.
    pub(super) fn check_shut_out(&self, peer: PeerNet, now: Instant) -> Result<(), Exceeded> {
        self.0.failures.check(&peer, now, || Subject::Peer)
    }

    /// Counts a failure of the peer: it did not authenticate, or broke TLS or HTTP/2. The last failure within
    /// the limit shuts the peer out for a minute.
    pub(super) fn record_failure(&self, peer: PeerNet, now: Instant) {
        let RateQuota { limit, buckets: Some(failures), .. } = &self.0.failures else {
            return;
        };
        if failures.try_take(&peer, 1, now).is_err() {
            // In progress when the peer was shut out.
            return;
        }
        if !failures.wait_for(&peer, 1, now).is_zero() {
            // The bucket is empty. A debt of the whole limit makes the peer wait for a full period, not only
            // until the next token.
            failures.take(&peer, u64::from(*limit), now);
            tracing::warn!(
                %peer,
                failures = limit,
                "shut out peer for a minute: too many failed authentications or broken connections"
            );
            if let Some(notify) = self.0.notices.lock().get(&peer) {
                notify.notify_waiters();
            }
        }
    }
}

// === impl ShutOutNotice ===

impl ShutOutNotice {
    /// Waits until the peer is shut out. Cancel safe.
    pub(super) async fn shut_out(&self) {
        loop {
            let notified = self.notify.notified();
            tokio::pin!(notified);
            // Registered before the check, so that no notification is lost in between.
            notified.as_mut().enable();
            if self.peers.check_shut_out(self.peer, tokio::time::Instant::now().into_std()).is_err() {
                return;
            }
            notified.await;
        }
    }
}

impl Drop for ShutOutNotice {
    fn drop(&mut self) {
        let mut notices = self.peers.0.notices.lock();
        // The table's reference and this one.
        if Arc::strong_count(&self.notify) <= 2 {
            notices.remove(&self.peer);
        }
    }
}

// === impl AuthState ===

impl AuthState {
    /// Records a successful authentication.
    pub(super) fn record_success(&self) {
        self.0.ever_authenticated.store(true, Ordering::Relaxed);
        self.0.last_succeeded.store(true, Ordering::Relaxed);
    }

    /// Records a failed authentication.
    pub(super) fn record_failure(&self) {
        self.0.last_succeeded.store(false, Ordering::Relaxed);
    }

    /// Returns whether a call has authenticated. The connection may then stay open while its peer is shut
    /// out.
    pub(super) fn is_authenticated(&self) -> bool {
        self.0.ever_authenticated.load(Ordering::Relaxed)
    }

    /// Returns whether calls skip the shut-out check. A failure ends that, so
    /// that a caller with one good token cannot try bad ones.
    pub(super) fn last_call_authenticated(&self) -> bool {
        self.0.last_succeeded.load(Ordering::Relaxed)
    }

    /// Records a call without credentials that was rejected because its peer calls too fast.
    pub(super) fn record_rejection(&self) {
        let before = self.0.rejections.fetch_add(1, Ordering::Relaxed);
        if before % REJECTIONS_MAX == REJECTIONS_MAX - 1 {
            // Stores a permit if no task waits at the moment.
            self.0.flooded.notify_one();
        }
    }

    /// Records a call that was rejected because its peer is shut out.
    pub(super) fn record_shut_out_rejection(&self) {
        self.0.shut_out_rejected.notify_one();
        self.record_rejection();
    }

    /// Waits until a call is rejected because its peer is shut out. For one waiter. Cancel safe.
    pub(super) async fn shut_out_rejected(&self) {
        self.0.shut_out_rejected.notified().await;
    }

    /// Waits until [`REJECTIONS_MAX`] calls were rejected since this last resolved. For one waiter. Cancel
    /// safe.
    pub(super) async fn flooded(&self) {
        self.0.flooded.notified().await;
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
    fn peer_with_many_failures_is_shut_out_for_a_minute() {
        let peers = failing(10);
        let (bad, good) = (peer(1), peer(2));
        let start = Instant::now();
        for _ in 0..10 {
            assert_eq!(peers.check_shut_out(bad, start), Ok(()));
            peers.record_failure(bad, start);
        }
        let exceeded = peers.check_shut_out(bad, start).unwrap_err();
        assert_eq!((exceeded.quota, exceeded.limit), (Quota::AuthFailuresPerPeer, 10));
        let wait = exceeded.retry_after.unwrap();
        assert!(wait >= FAILURES_PER && wait < 2 * FAILURES_PER, "{wait:?}");
        assert_eq!(peers.check_shut_out(good, start), Ok(()));
        // Failures in progress at that time do not extend it.
        peers.record_failure(bad, start);
        assert_eq!(peers.check_shut_out(bad, start).unwrap_err().retry_after, Some(wait));
        let over = start + wait;
        assert_eq!(peers.check_shut_out(bad, over), Ok(()));
        // The next failure shuts it out again at once.
        peers.record_failure(bad, over);
        assert!(peers.check_shut_out(bad, over).is_err());
    }

    #[test]
    fn peer_with_rare_failures_is_not_shut_out() {
        let peers = failing(60);
        let mut now = Instant::now();
        for _ in 0..1_000 {
            assert_eq!(peers.check_shut_out(peer(1), now), Ok(()));
            peers.record_failure(peer(1), now);
            now += Duration::from_secs(1);
        }
        let unlimited = failing(0);
        for _ in 0..1_000 {
            unlimited.record_failure(peer(1), now);
        }
        assert_eq!(unlimited.check_shut_out(peer(1), now), Ok(()));
    }

    #[test]
    fn connections_and_anonymous_calls_are_limited_per_peer() {
        let limits = ConnectionLimits { max_per_peer: 2, ..ConnectionLimits::default() };
        let peers =
            PeerLimits::new(&limits, &QuotaLimits { open_calls_per_second: 0, ..QuotaLimits::default() });
        let now = Instant::now();
        let held = [peers.open_connection(peer(1)).unwrap(), peers.open_connection(peer(1)).unwrap()];
        assert!(peers.open_connection(peer(1)).is_none());
        let other = peers.open_connection(peer(2)).unwrap();
        drop(held);
        let again = peers.open_connection(peer(1)).unwrap();
        drop((again, other));
        let calls: Vec<_> =
            (0..ANONYMOUS_CALLS_MAX).map(|_| peers.begin_anonymous_call(peer(1), now).unwrap()).collect();
        assert_eq!(peers.begin_anonymous_call(peer(1), now).unwrap_err().quota, Quota::AnonymousCallsPerPeer);
        drop(calls);
        assert!(peers.begin_anonymous_call(peer(1), now).is_ok());
    }

    #[test]
    fn calls_without_credentials_have_a_rate_per_peer() {
        let quota = QuotaLimits { open_calls_per_second: 2, ..QuotaLimits::default() };
        let peers = PeerLimits::new(&ConnectionLimits::default(), &quota);
        let now = Instant::now();
        for _ in 0..ANONYMOUS_CALLS_BURST {
            drop(peers.begin_anonymous_call(peer(1), now).unwrap());
        }
        let exceeded = peers.begin_anonymous_call(peer(1), now).unwrap_err();
        assert_eq!((exceeded.quota, exceeded.limit), (Quota::AnonymousCallRatePerPeer, 2));
        assert_eq!(exceeded.retry_after, Some(Duration::from_millis(500)));
        assert!(peers.begin_anonymous_call(peer(2), now).is_ok());
        let later = now + Duration::from_millis(500);
        assert!(peers.begin_anonymous_call(peer(1), later).is_ok());
        assert!(peers.count_message(peer(1), later).is_err());
    }

    #[test]
    fn forwarded_requests_have_their_own_rate() {
        let quota =
            QuotaLimits { forwarded_per_second: 2, open_calls_per_second: 1, ..QuotaLimits::default() };
        let peers = PeerLimits::new(&ConnectionLimits::default(), &quota);
        let now = Instant::now();
        for _ in 0..FORWARDED_BURST {
            peers.count_forwarded(peer(1), now).unwrap();
        }
        let exceeded = peers.count_forwarded(peer(1), now).unwrap_err();
        assert_eq!((exceeded.quota, exceeded.limit), (Quota::ForwardedRatePerPeer, 2));
        assert_eq!(exceeded.retry_after, Some(Duration::from_millis(500)));
        assert!(peers.count_forwarded(peer(2), now).is_ok());
        assert!(peers.count_message(peer(1), now).is_ok());
    }

    #[test]
    fn handshakes_of_a_shut_out_peer_are_rate_limited() {
        let peers = failing(1);
        let now = Instant::now();
        let handshakes = (0..1_000).filter(|_| peers.may_handshake(peer(1), now)).count();
        let queries = (0..1_000).filter(|_| peers.may_query_trust(peer(1), now)).count();
        assert_eq!((handshakes, queries), (20, 6));
        let later = now + Duration::from_secs(10);
        let handshakes = (0..1_000).filter(|_| peers.may_handshake(peer(1), later)).count();
        let queries = (0..1_000).filter(|_| peers.may_query_trust(peer(1), later)).count();
        assert_eq!((handshakes, queries), (20, 1));
        assert!(peers.may_handshake(peer(2), now));
    }

    #[tokio::test(start_paused = true)]
    async fn shut_out_notifies_all_connections_of_the_peer() {
        let peers = failing(2);
        let now = || tokio::time::Instant::now().into_std();
        let (bad, same, good) = (
            peers.register_connection(peer(1)),
            peers.register_connection(peer(1)),
            peers.register_connection(peer(2)),
        );
        let short = Duration::from_millis(1);
        peers.record_failure(peer(1), now());
        tokio::time::timeout(short, bad.shut_out()).await.unwrap_err();
        let (bad_notified, same_notified, ()) = tokio::join!(
            tokio::time::timeout(short, bad.shut_out()),
            tokio::time::timeout(short, same.shut_out()),
            async { peers.record_failure(peer(1), now()) },
        );
        assert!(bad_notified.is_ok() && same_notified.is_ok());
        tokio::time::timeout(short, good.shut_out()).await.unwrap_err();
        // A later connection is notified at once.
        peers.register_connection(peer(1)).shut_out().await;
        drop((bad, good));
        assert_eq!(peers.0.notices.lock().len(), 1);
        drop(same);
        assert_eq!(peers.0.notices.lock().len(), 0);
    }

    #[test]
    fn failed_call_is_not_excused_by_an_earlier_success() {
        let state = AuthState::default();
        assert!(!state.is_authenticated() && !state.last_call_authenticated());
        state.record_success();
        assert!(state.is_authenticated() && state.last_call_authenticated());
        state.record_failure();
        assert!(state.is_authenticated() && !state.last_call_authenticated());
        state.record_success();
        assert!(state.last_call_authenticated());
    }

    #[tokio::test(start_paused = true)]
    async fn many_rejections_are_a_flood() {
        let state = AuthState::default();
        let short = Duration::from_millis(1);
        for _ in 1..REJECTIONS_MAX {
            state.record_rejection();
        }
        tokio::time::timeout(short, state.flooded()).await.unwrap_err();
        state.record_rejection();
        tokio::time::timeout(short, state.flooded()).await.unwrap();
        state.record_rejection();
        tokio::time::timeout(short, state.flooded()).await.unwrap_err();
    }
}
