//! How many logs are being opened at once: in all, and of the pods of one node. And how often it is tried where nobody is reached.
//!
//! Each open log is a connection to the API server, and one from there to the kubelet of the pod's node. When one of them comes back,
//! all its tails ask at once. First come, first served; and a node that is slow to answer keeps nobody of another one waiting.
//!
//! While the API server, or a kubelet, cannot be reached, one of all who wait tries it about once a second, and as soon as it is
//! reached all go on. So an outage costs as little however many tails there are, and none of them sleeps through its end.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep_until};

use super::jittered;

/// Logs being opened at one API server: 64 connections with their handshakes are some tens of milliseconds of one of its cores, so
/// that ten thousand tails are back within seconds, and others are served meanwhile.
const OPENS_AT_ONCE: usize = 64;

/// Logs of one node's pods being opened: a quarter of all, so that one node that answers slowly leaves most to the others; and a node
/// has 110 pods, so that all of it is open after seven turns.
const OPENS_PER_NODE: usize = 16;

/// Nodes of which is known what is being opened, and whether they are reached, before those are forgotten of which nothing is to
/// be known.
const NODES_KEPT: usize = 1_024;

/// Pause from one try to the next where nobody is reached, about: what a follower hardly notices, and a server that begins to
/// answer does not either.
const TRY_EVERY: Duration = Duration::from_secs(1);

/// Longest wait of one who asks for the end of an outage: whoever does not follow is told of it by then.
const AWAY_MAX: Duration = Duration::from_secs(2);

/// The log says no more often than this that a node cannot follow logs.
const FOLLOW_WARN_EVERY: Duration = Duration::from_secs(300);

/// An outage that nobody has looked at for so long need not be remembered.
const AWAY_KEPT: Duration = Duration::from_secs(60);

/// See above. Cloning is cheap.
#[derive(Clone, Debug)]
pub(super) struct OpenLimiter(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// To the API server.
    server: Arc<Upstream>,
    /// From there to the kubelets.
    nodes: Mutex<HashMap<String, Arc<Upstream>>>,
}

/// The way to somebody who is asked for logs.
#[derive(Debug)]
struct Upstream {
    permits: Arc<Semaphore>,
    /// When it is to be tried next; `None` while it is open, as far as is known.
    next_try: watch::Sender<Option<Instant>>,
    /// When it was last logged that the kubelet cannot follow logs.
    follow_warned: Mutex<Option<Instant>>,
}

/// That a log may be opened, until it is dropped.
#[derive(Debug)]
pub(super) struct OpenPermit {
    server: Arc<Upstream>,
    node: Option<(String, Arc<Upstream>)>,
    _permits: (Option<OwnedSemaphorePermit>, Option<OwnedSemaphorePermit>),
}

/// How far a request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reached {
    /// Not even the API server.
    Nobody,
    /// The API server, and not the kubelet.
    Server,
    /// The API server at least.
    SomeWay,
    /// Nobody can tell: no answer came in time.
    Unknown,
    /// Both.
    Kubelet,
}

/// Somebody on the way could not be reached a moment ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unreachable;

// === impl OpenLimiter ===

impl OpenLimiter {
    /// None is being opened.
    pub(super) fn new() -> Self {
        Self(Arc::new(Inner { server: Upstream::new(OPENS_AT_ONCE), nodes: Mutex::default() }))
    }

    /// Waits until a log of a pod on `node`, if it is on one, may be opened. Nothing is lost if it is cancelled.
    ///
    /// # Errors
    /// [`Unreachable`] if that would be in vain: somebody else tries from time to time.
    pub(super) async fn acquire(&self, node: Option<&str>) -> Result<OpenPermit, Unreachable> {
        let server = Arc::clone(&self.0.server);
        let node = node.map(|node| (node.to_owned(), self.node(node)));
        let until = Instant::now() + AWAY_MAX;
        loop {
            let tries_node = match &node {
                Some((_, way)) => way.turn(until).await?,
                None => false,
            };
            let tries_server = server.turn(until).await?;
            // Never closed; and if they were, asking without a permit would be the lesser evil. The node's own first: who waits for
            // that holds nothing of the others'.
            let of_node = match &node {
                Some((_, way)) => Arc::clone(&way.permits).acquire_owned().await.ok(),
                None => None,
            };
            let of_all = Arc::clone(&server.permits).acquire_owned().await.ok();
            let lost_node = node.as_ref().is_some_and(|(_, way)| !tries_node && way.is_away());
            if lost_node || !tries_server && server.is_away() {
                // Lost while it was waited for.
                continue;
            }
            return Ok(OpenPermit { server, node, _permits: (of_node, of_all) });
        }
    }

    /// Logs that the kubelet of a node cannot follow logs, from time to time.
    pub(super) fn follow_unavailable(&self, node: &str) {
        let way = self.node(node);
        let now = Instant::now();
        let mut warned = way.follow_warned.lock().unwrap_or_else(PoisonError::into_inner);
        if warned.is_none_or(|warned| now.duration_since(warned) >= FOLLOW_WARN_EVERY) {
            *warned = Some(now);
            tracing::warn!(
                node,
                "kubelet cannot follow logs: the node's inotify instances or watches are used up; reading them every few seconds"
            );
        }
    }

    fn node(&self, node: &str) -> Arc<Upstream> {
        // Nothing that is done under the lock leaves it half done.
        let mut nodes = self.0.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = nodes.get(node) {
            return Arc::clone(known);
        }
        if nodes.len() >= NODES_KEPT {
            // Those that are left have a log being opened, or waited for, or cannot be reached: no more than there are tails, or nodes.
            let now = Instant::now();
            nodes.retain(|_, way| {
                let is_tried = way.next_try.borrow().is_some_and(|next| next + AWAY_KEPT > now);
                let warned = *way.follow_warned.lock().unwrap_or_else(PoisonError::into_inner);
                let is_warned = warned.is_some_and(|warned| warned + FOLLOW_WARN_EVERY > now);
                Arc::strong_count(way) > 1 || is_tried || is_warned
            });
        }
        let fresh = Upstream::new(OPENS_PER_NODE);
        nodes.insert(node.to_owned(), Arc::clone(&fresh));
        fresh
    }
}

// === impl OpenPermit ===

impl OpenPermit {
    /// Tells the others how far the request came.
    pub(super) fn reached(&self, reached: Reached) {
        match reached {
            Reached::Nobody if self.server.told(false) => {
                tracing::warn!("the API server is not reached: logs wait for it");
            }
            Reached::Server | Reached::SomeWay | Reached::Kubelet if self.server.told(true) => {
                tracing::info!("the API server is reached again");
            }
            _ => {}
        }
        let Some((node, way)) = &self.node else { return };
        match reached {
            Reached::Server | Reached::Unknown if way.told(false) => {
                tracing::warn!(node, "a kubelet is not reached: logs of its pods wait for it");
            }
            Reached::Kubelet if way.told(true) => tracing::info!(node, "a kubelet is reached again"),
            _ => {}
        }
    }
}

// === impl Way ===

impl Upstream {
    fn new(permits: usize) -> Arc<Self> {
        Arc::new(Self {
            permits: Arc::new(Semaphore::new(permits)),
            next_try: watch::Sender::new(None),
            follow_warned: Mutex::new(None),
        })
    }

    fn is_away(&self) -> bool {
        self.next_try.borrow().is_some()
    }

    /// Waits until it is open, or to be tried: `true` if it is tried.
    async fn turn(&self, until: Instant) -> Result<bool, Unreachable> {
        let mut next_try = self.next_try.subscribe();
        loop {
            let Some(next) = *next_try.borrow_and_update() else { return Ok(false) };
            if self.take_turn() {
                return Ok(true);
            }
            if Instant::now() >= until {
                return Err(Unreachable);
            }
            tokio::select! {
                // The sender is here.
                _ = next_try.changed() => {}
                () = sleep_until(next.min(until)) => {}
            }
        }
    }

    /// Takes the next try, if it is due.
    fn take_turn(&self) -> bool {
        let now = Instant::now();
        self.next_try.send_if_modified(|next| {
            let is_due = next.is_some_and(|next| next <= now);
            if is_due {
                *next = Some(now + jittered(TRY_EVERY));
            }
            is_due
        })
    }

    /// Whether somebody was reached; `true` if that is news.
    fn told(&self, reached: bool) -> bool {
        self.next_try.send_if_modified(|next| {
            let is_news = next.is_none() != reached;
            if is_news {
                *next = (!reached).then(|| Instant::now() + jittered(TRY_EVERY));
            }
            is_news
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio_util::task::AbortOnDropHandle;
    use tokio_util::task::TaskTracker;

    use super::*;

    /// How many more may be opened.
    async fn take(openings: &OpenLimiter, node: Option<&str>, held: &mut Vec<OpenPermit>) -> usize {
        let before = held.len();
        while let Ok(opening) = tokio::time::timeout(Duration::from_secs(1), openings.acquire(node)).await {
            held.push(opening.unwrap());
        }
        held.len() - before
    }

    /// Tails that ask for a node's logs again and again, until one of the requests has reached somebody. Each tells how far.
    fn tails(
        openings: &OpenLimiter,
        node: &'static str,
        asks: &watch::Sender<Vec<Instant>>,
        is: &watch::Sender<Reached>,
    ) -> Vec<AbortOnDropHandle<()>> {
        let tail = || {
            let (openings, asks, is) = (openings.clone(), asks.clone(), is.subscribe());
            AbortOnDropHandle::new(TaskTracker::new().spawn(async move {
                loop {
                    let Ok(opening) = openings.acquire(Some(node)).await else { continue };
                    asks.send_modify(|asks| asks.push(Instant::now()));
                    let reached = *is.borrow();
                    opening.reached(reached);
                    if reached == Reached::Kubelet {
                        return;
                    }
                }
            }))
        };
        (0..200).map(|_| tail()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_has_its_share_and_never_that_of_the_others() {
        let (openings, mut slow, mut held) = (OpenLimiter::new(), Vec::new(), Vec::new());
        assert_eq!(take(&openings, Some("slow"), &mut slow).await, OPENS_PER_NODE);
        // Those that wait for a node keep nobody of another one.
        let waiting: Vec<_> = (0..OPENS_AT_ONCE)
            .map(|_| {
                let openings = openings.clone();
                AbortOnDropHandle::new(
                    TaskTracker::new().spawn(async move { drop(openings.acquire(Some("slow")).await) }),
                )
            })
            .collect();
        tokio::task::yield_now().await;
        assert_eq!(take(&openings, Some("other"), &mut held).await, OPENS_PER_NODE);
        assert_eq!(take(&openings, None, &mut held).await, OPENS_AT_ONCE - 2 * OPENS_PER_NODE);
        assert_eq!(take(&openings, Some("third"), &mut held).await, 0);
        drop((held, slow));
        for waits in waiting {
            waits.await.unwrap();
        }
        assert_eq!(take(&openings, None, &mut Vec::new()).await, OPENS_AT_ONCE);
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_is_tried_once_a_second_and_its_end_is_seen_by_all() {
        for lost in [Reached::Nobody, Reached::Server] {
            let (openings, asks, is) =
                (OpenLimiter::new(), watch::Sender::new(Vec::new()), watch::Sender::new(lost));
            let tails = tails(&openings, "node", &asks, &is);
            tokio::time::sleep(Duration::from_secs(1)).await;
            // No more than were under way when it was lost.
            let first = asks.borrow().len();
            assert!(first <= OPENS_PER_NODE + 2, "{first}");
            tokio::time::sleep(Duration::from_secs(600)).await;
            let tries = asks.borrow().len() - first;
            assert!((400..=1_200).contains(&tries), "{tries} in ten minutes");
            is.send_replace(Reached::Kubelet);
            let back = Instant::now();
            futures_util::future::join_all(tails).await;
            assert!(back.elapsed() <= TRY_EVERY.mul_f64(1.5), "{:?}", back.elapsed());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_lost_keeps_nobody_from_another() {
        let openings = OpenLimiter::new();
        openings.acquire(Some("lost")).await.unwrap().reached(Reached::Server);
        let begin = Instant::now();
        openings.acquire(Some("other")).await.unwrap().reached(Reached::Kubelet);
        assert_eq!(begin.elapsed(), Duration::ZERO);
        // A try that nobody comes back from is not the last one.
        for _ in 0..3 {
            drop(openings.acquire(Some("lost")).await.unwrap());
        }
        assert!(begin.elapsed() <= TRY_EVERY.mul_f64(4.5));
        // Who waits in vain is told.
        let begin = Instant::now();
        let others = (0..20).map(|_| openings.acquire(Some("lost")));
        let told = futures_util::future::join_all(others).await.into_iter().filter(Result::is_err).count();
        assert!(told >= 15 && begin.elapsed() <= AWAY_MAX, "{told}");
    }

    #[tokio::test(start_paused = true)]
    async fn nodes_of_which_nothing_is_to_be_known_are_forgotten() {
        let openings = OpenLimiter::new();
        let known = |openings: &OpenLimiter| openings.0.nodes.lock().unwrap().len();
        for node in 0..3 * NODES_KEPT {
            drop(openings.acquire(Some(&node.to_string())).await);
        }
        assert!(known(&openings) <= NODES_KEPT);
        for node in 0..2 * NODES_KEPT {
            openings.acquire(Some(&format!("lost {node}"))).await.unwrap().reached(Reached::Server);
        }
        assert!(known(&openings) >= 2 * NODES_KEPT);
        tokio::time::sleep(AWAY_KEPT + 2 * TRY_EVERY).await;
        drop(openings.acquire(Some("another")).await);
        assert_eq!(known(&openings), 1);
    }
}
