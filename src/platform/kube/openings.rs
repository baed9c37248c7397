//! How many logs are being opened at once: in all, and of the pods of one node.
//!
//! Each open log is a connection to the API server, and one from there to the kubelet of the pod's node. When one of them comes back,
//! all its tails ask at once. First come, first served; and a node that is slow to answer keeps nobody of another one waiting.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Logs being opened at one API server: 64 connections with their handshakes are some tens of milliseconds of one of its cores, so
/// that ten thousand tails are back within seconds, and others are served meanwhile.
const OPENS_AT_ONCE: usize = 64;

/// Logs of one node's pods being opened: a quarter of all, so that one node that answers slowly leaves most to the others; and a node
/// has 110 pods, so that all of it is open after seven turns.
const OPENS_PER_NODE: usize = 16;

/// Nodes whose openings are counted before those are looked for that have none any more.
const NODES_KEPT: usize = 1_024;

/// See above. Cloning is cheap.
#[derive(Clone, Debug)]
pub(super) struct Openings(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    all: Arc<Semaphore>,
    nodes: Mutex<HashMap<String, Weak<Semaphore>>>,
}

/// That a log may be opened, until it is dropped.
#[derive(Debug)]
pub(super) struct Opening {
    _of_node: Option<OwnedSemaphorePermit>,
    _of_all: Option<OwnedSemaphorePermit>,
}

// === impl Openings ===

impl Openings {
    /// None is being opened.
    pub(super) fn new() -> Self {
        let all = Arc::new(Semaphore::new(OPENS_AT_ONCE));
        Self(Arc::new(Inner { all, nodes: Mutex::default() }))
    }

    /// Waits until a log of a pod on `node`, if it is on one, may be opened. Nothing is lost if it is cancelled.
    pub(super) async fn acquire(&self, node: Option<&str>) -> Opening {
        // Never closed; and if they were, asking without a permit would be the lesser evil. The node's own first: who waits for
        // that holds nothing of the others'.
        let of_node = match node {
            Some(node) => self.of_node(node).acquire_owned().await.ok(),
            None => None,
        };
        let of_all = Arc::clone(&self.0.all).acquire_owned().await.ok();
        Opening { _of_node: of_node, _of_all: of_all }
    }

    fn of_node(&self, node: &str) -> Arc<Semaphore> {
        // Nothing that is done under the lock leaves it half done.
        let mut nodes = self.0.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = nodes.get(node).and_then(Weak::upgrade) {
            return known;
        }
        if nodes.len() >= NODES_KEPT {
            // Those that are left have a log being opened, or waited for: no more than there are tails.
            nodes.retain(|_, openings| openings.strong_count() > 0);
        }
        let fresh = Arc::new(Semaphore::new(OPENS_PER_NODE));
        nodes.insert(node.to_owned(), Arc::downgrade(&fresh));
        fresh
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// How many more may be opened.
    async fn take(openings: &Openings, node: Option<&str>, held: &mut Vec<Opening>) -> usize {
        let before = held.len();
        while let Ok(opening) = tokio::time::timeout(Duration::from_secs(1), openings.acquire(node)).await {
            held.push(opening);
        }
        held.len() - before
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_has_its_share_and_never_that_of_the_others() {
        let (openings, mut slow, mut held) = (Openings::new(), Vec::new(), Vec::new());
        assert_eq!(take(&openings, Some("slow"), &mut slow).await, OPENS_PER_NODE);
        // Those that wait for a node keep nobody of another one.
        let waiting: Vec<_> = (0..OPENS_AT_ONCE)
            .map(|_| {
                let openings = openings.clone();
                tokio_util::task::AbortOnDropHandle::new(
                    tokio_util::task::TaskTracker::new()
                        .spawn(async move { drop(openings.acquire(Some("slow")).await) }),
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

    #[tokio::test]
    async fn nodes_without_openings_are_forgotten() {
        let openings = Openings::new();
        for node in 0..3 * NODES_KEPT {
            drop(openings.acquire(Some(&node.to_string())).await);
        }
        assert!(openings.0.nodes.lock().unwrap().len() <= NODES_KEPT);
    }
}
