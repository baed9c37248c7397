//! Limits how many logs are opened at once, in all and per node, and how often unreachable upstreams are
//! tried.
//!
//! Each open log is a connection to the API server, and one from there to the kubelet of the pod's node.
//! After an outage all tails ask at once. They are served in order, and a node that responds slowly does not
//! delay the others.
//!
//! While the API server or a kubelet cannot be reached, one of the waiting tails tries it about once a
//! second. As soon as it is reached all continue. So the cost of an outage does not depend on the number of
//! tails, and none of them sleeps past its end.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep_until};

use super::jittered;

/// Logs being opened at one API server. 64 TLS connections cost tens of milliseconds of one core, so ten
/// thousand tails are back within seconds, and other clients are served meanwhile.
const OPENS_AT_ONCE: usize = 64;

/// Logs being opened on one node: a quarter of all, so a node that responds slowly leaves most to the others.
/// A node has 110 pods, so all of its logs are open after seven rounds.
const OPENS_PER_NODE: usize = 16;

/// Nodes that are remembered before those without state are removed.
const NODES_KEPT: usize = 1_024;

/// Pause between two attempts to reach an upstream, jittered: a follower hardly notices it, nor does a server
/// that starts.
const TRY_INTERVAL: Duration = Duration::from_secs(1);

/// Longest wait for an upstream to return; then a read without follow fails.
const UNREACHABLE_MAX: Duration = Duration::from_secs(2);

/// Interval between two log messages that a node cannot follow logs.
const FOLLOW_WARN_INTERVAL: Duration = Duration::from_secs(300);

/// Time after which an outage that no request has met is forgotten.
const UNREACHABLE_KEPT: Duration = Duration::from_secs(60);

/// The limiter. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct OpenLimiter(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    server: Arc<Upstream>,
    /// The kubelets, by node. Lock order: before `Upstream::follow_warned`.
    nodes: Mutex<HashMap<String, Arc<Upstream>>>,
}

/// The API server or a kubelet.
#[derive(Debug)]
struct Upstream {
    /// The node of a kubelet; `None` for the API server.
    node: Option<String>,
    permits: Arc<Semaphore>,
    /// When it is tried next; `None` while it is reachable, as far as is known.
    next_try: watch::Sender<Option<Instant>>,
    /// When it was last logged that the kubelet cannot follow logs.
    follow_warned: Mutex<Option<Instant>>,
}

/// Permission to open one log, until it is dropped.
#[derive(Debug)]
pub(super) struct OpenPermit {
    upstreams: Vec<Arc<Upstream>>,
    _permits: Vec<OwnedSemaphorePermit>,
}

/// How far a request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reached {
    /// It did not reach the API server.
    Nothing,
    /// It reached the API server, which could not reach the kubelet.
    Server,
    /// It reached the API server at least.
    AtLeastServer,
    /// Unknown: no response came in time.
    Unknown,
    /// It reached both.
    Kubelet,
}

/// The API server or the kubelet could not be reached a moment ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unreachable;

// === impl OpenLimiter ===

impl OpenLimiter {
    pub(super) fn new() -> Self {
        Self(Arc::new(Inner { server: Upstream::new(None, OPENS_AT_ONCE), nodes: Mutex::default() }))
    }

    /// Waits until a log may be opened; `node` is that of its pod, if known. Cancel safe.
    ///
    /// # Errors
    /// [`Unreachable`] if an upstream is unreachable and other requests try it.
    pub(super) async fn acquire(&self, node: Option<&str>) -> Result<OpenPermit, Unreachable> {
        // The node comes first: a request that waits for its permit holds no permit of the others.
        let server = Arc::clone(&self.0.server);
        let upstreams: Vec<_> = node.map(|node| self.node(node)).into_iter().chain([server]).collect();
        let until = Instant::now() + UNREACHABLE_MAX;
        loop {
            let mut tries = Vec::with_capacity(upstreams.len());
            for upstream in &upstreams {
                tries.push(upstream.reachable_or_try(until).await?);
            }
            let mut permits = Vec::with_capacity(upstreams.len());
            for upstream in &upstreams {
                // The semaphores are never closed; if they were, opening without a permit would do less harm
                // than failing.
                permits.extend(Arc::clone(&upstream.permits).acquire_owned().await);
            }
            // One may have become unreachable while this request waited for permits.
            if upstreams.iter().zip(tries).all(|(upstream, tries)| tries || !upstream.is_unreachable()) {
                return Ok(OpenPermit { upstreams, _permits: permits });
            }
        }
    }

    /// Logs that the kubelet of a node cannot follow logs, at most every [`FOLLOW_WARN_INTERVAL`].
    pub(super) fn follow_unavailable(&self, node: &str) {
        let kubelet = self.node(node);
        let now = Instant::now();
        let mut warned = kubelet.follow_warned.lock();
        if warned.is_none_or(|warned| now.duration_since(warned) >= FOLLOW_WARN_INTERVAL) {
            *warned = Some(now);
            tracing::warn!(
                node,
                "kubelet cannot follow logs, polling them: the node's inotify instances or watches are used up"
            );
        }
    }

    fn node(&self, node: &str) -> Arc<Upstream> {
        let mut nodes = self.0.nodes.lock();
        if let Some(known) = nodes.get(node) {
            return Arc::clone(known);
        }
        if nodes.len() >= NODES_KEPT {
            // The remaining ones are in use or unreachable: no more than there are tails or nodes.
            let now = Instant::now();
            nodes.retain(|_, kubelet| {
                let is_tried = kubelet.next_try.borrow().is_some_and(|next| next + UNREACHABLE_KEPT > now);
                let warned = *kubelet.follow_warned.lock();
                let is_warned = warned.is_some_and(|warned| warned + FOLLOW_WARN_INTERVAL > now);
                Arc::strong_count(kubelet) > 1 || is_tried || is_warned
            });
        }
        let fresh = Upstream::new(Some(node.to_owned()), OPENS_PER_NODE);
        nodes.insert(node.to_owned(), Arc::clone(&fresh));
        fresh
    }
}

// === impl OpenPermit ===

impl OpenPermit {
    /// Reports how far the request came, which wakes waiting requests.
    pub(super) fn report(&self, reached: Reached) {
        let (server, kubelet) = match reached {
            Reached::Nothing => (Some(false), None),
            Reached::Server => (Some(true), Some(false)),
            Reached::AtLeastServer => (Some(true), None),
            Reached::Unknown => (None, Some(false)),
            Reached::Kubelet => (Some(true), Some(true)),
        };
        for upstream in &self.upstreams {
            let is_reachable = if upstream.node.is_some() { kubelet } else { server };
            let changed = is_reachable.filter(|is_reachable| upstream.set_reachable(*is_reachable));
            match (changed, &upstream.node) {
                (Some(true), None) => tracing::info!("API server is reachable again"),
                (Some(false), None) => tracing::warn!("API server is unreachable, logs wait for it"),
                (Some(true), Some(node)) => tracing::info!(node, "kubelet is reachable again"),
                (Some(false), Some(node)) => {
                    tracing::warn!(node, "kubelet is unreachable, logs of its pods wait for it");
                }
                (None, _) => {}
            }
        }
    }
}

// === impl Upstream ===

impl Upstream {
    fn new(node: Option<String>, permits: usize) -> Arc<Self> {
        Arc::new(Self {
            node,
            permits: Arc::new(Semaphore::new(permits)),
            next_try: watch::Sender::new(None),
            follow_warned: Mutex::new(None),
        })
    }

    fn is_unreachable(&self) -> bool {
        self.next_try.borrow().is_some()
    }

    /// Waits until it is reachable (`false`), or until it is this request's turn to try it (`true`).
    async fn reachable_or_try(&self, until: Instant) -> Result<bool, Unreachable> {
        let mut next_try = self.next_try.subscribe();
        loop {
            let Some(next) = *next_try.borrow_and_update() else { return Ok(false) };
            if self.take_try() {
                return Ok(true);
            }
            if Instant::now() >= until {
                return Err(Unreachable);
            }
            tokio::select! {
                // Never fails, because the sender is in `self`.
                _ = next_try.changed() => {}
                () = sleep_until(next.min(until)) => {}
            }
        }
    }

    /// Takes the next attempt, if it is due.
    fn take_try(&self) -> bool {
        let now = Instant::now();
        self.next_try.send_if_modified(|next| {
            let is_due = next.is_some_and(|next| next <= now);
            if is_due {
                *next = Some(now + jittered(TRY_INTERVAL));
            }
            is_due
        })
    }

    /// Notes whether it is reachable. Returns whether this is a change.
    fn set_reachable(&self, reachable: bool) -> bool {
        self.next_try.send_if_modified(|next| {
            let is_change = next.is_none() != reachable;
            if is_change {
                *next = (!reachable).then(|| Instant::now() + jittered(TRY_INTERVAL));
            }
            is_change
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio_util::task::AbortOnDropHandle;
    use tokio_util::task::TaskTracker;

    use super::*;

    /// Acquires permits until none is left. Returns their number.
    async fn take(limiter: &OpenLimiter, node: Option<&str>, held: &mut Vec<OpenPermit>) -> usize {
        let before = held.len();
        while let Ok(permit) = tokio::time::timeout(Duration::from_secs(1), limiter.acquire(node)).await {
            held.push(permit.unwrap());
        }
        held.len() - before
    }

    /// Tails that open a node's logs until a request reaches the kubelet.
    fn tails(
        limiter: &OpenLimiter,
        node: &'static str,
        asks: &watch::Sender<Vec<Instant>>,
        is: &watch::Sender<Reached>,
    ) -> Vec<AbortOnDropHandle<()>> {
        let tail = || {
            let (limiter, asks, is) = (limiter.clone(), asks.clone(), is.subscribe());
            AbortOnDropHandle::new(TaskTracker::new().spawn(async move {
                loop {
                    let Ok(permit) = limiter.acquire(Some(node)).await else { continue };
                    asks.send_modify(|asks| asks.push(Instant::now()));
                    let reached = *is.borrow();
                    permit.report(reached);
                    if reached == Reached::Kubelet {
                        return;
                    }
                }
            }))
        };
        (0..200).map(|_| tail()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn slow_node_leaves_permits_to_others() {
        let (limiter, mut slow, mut held) = (OpenLimiter::new(), Vec::new(), Vec::new());
        assert_eq!(take(&limiter, Some("slow"), &mut slow).await, OPENS_PER_NODE);
        // Requests that wait for a node do not delay those for another one.
        let waiting: Vec<_> = (0..OPENS_AT_ONCE)
            .map(|_| {
                let limiter = limiter.clone();
                AbortOnDropHandle::new(
                    TaskTracker::new().spawn(async move { drop(limiter.acquire(Some("slow")).await) }),
                )
            })
            .collect();
        tokio::task::yield_now().await;
        assert_eq!(take(&limiter, Some("other"), &mut held).await, OPENS_PER_NODE);
        assert_eq!(take(&limiter, None, &mut held).await, OPENS_AT_ONCE - 2 * OPENS_PER_NODE);
        assert_eq!(take(&limiter, Some("third"), &mut held).await, 0);
        drop((held, slow));
        for waits in waiting {
            waits.await.unwrap();
        }
        assert_eq!(take(&limiter, None, &mut Vec::new()).await, OPENS_AT_ONCE);
    }

    #[tokio::test(start_paused = true)]
    async fn outage_is_tried_once_a_second_until_all_resume() {
        for lost in [Reached::Nothing, Reached::Server] {
            let (limiter, asks, is) =
                (OpenLimiter::new(), watch::Sender::new(Vec::new()), watch::Sender::new(lost));
            let tails = tails(&limiter, "node", &asks, &is);
            tokio::time::sleep(Duration::from_secs(1)).await;
            // No more than were running when it was lost.
            let first = asks.borrow().len();
            assert!(first <= OPENS_PER_NODE + 2, "{first}");
            tokio::time::sleep(Duration::from_secs(600)).await;
            let tries = asks.borrow().len() - first;
            assert!((400..=1_200).contains(&tries), "{tries} in ten minutes");
            is.send_replace(Reached::Kubelet);
            let back = Instant::now();
            futures_util::future::join_all(tails).await;
            assert!(back.elapsed() <= TRY_INTERVAL.mul_f64(1.5), "{:?}", back.elapsed());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn unreachable_node_delays_no_other() {
        let limiter = OpenLimiter::new();
        limiter.acquire(Some("lost")).await.unwrap().report(Reached::Server);
        let begin = Instant::now();
        limiter.acquire(Some("other")).await.unwrap().report(Reached::Kubelet);
        assert_eq!(begin.elapsed(), Duration::ZERO);
        // An attempt that is never reported is not the last one.
        for _ in 0..3 {
            drop(limiter.acquire(Some("lost")).await.unwrap());
        }
        assert!(begin.elapsed() <= TRY_INTERVAL.mul_f64(4.5));
        // Requests do not wait longer than the limit.
        let begin = Instant::now();
        let others = (0..20).map(|_| limiter.acquire(Some("lost")));
        let failed = futures_util::future::join_all(others).await.into_iter().filter(Result::is_err).count();
        assert!(failed >= 15 && begin.elapsed() <= UNREACHABLE_MAX, "{failed}");
    }

    #[tokio::test(start_paused = true)]
    async fn nodes_without_state_are_removed() {
        let limiter = OpenLimiter::new();
        let known = |limiter: &OpenLimiter| limiter.0.nodes.lock().len();
        for node in 0..3 * NODES_KEPT {
            drop(limiter.acquire(Some(&node.to_string())).await);
        }
        assert!(known(&limiter) <= NODES_KEPT);
        for node in 0..2 * NODES_KEPT {
            limiter.acquire(Some(&format!("lost {node}"))).await.unwrap().report(Reached::Server);
        }
        assert!(known(&limiter) >= 2 * NODES_KEPT);
        tokio::time::sleep(UNREACHABLE_KEPT + 2 * TRY_INTERVAL).await;
        drop(limiter.acquire(Some("another")).await);
        assert_eq!(known(&limiter), 1);
    }
}
