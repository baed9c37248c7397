//! The permits for tails of replicas that a gateway does not publish.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A permit for one tail.
pub(crate) type DirectTailPermit = OwnedSemaphorePermit;

/// Permits, and the number of those that wait for one. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct DirectTails {
    permits: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
}

/// One that waits.
struct Waiting(Arc<AtomicUsize>);

// === impl DirectTails ===

impl DirectTails {
    pub(crate) fn new(limit: usize) -> Self {
        Self { permits: Arc::new(Semaphore::new(limit)), waiting: Arc::default() }
    }

    /// Waits for a permit; those that wait get one in order. Cancel safe, but for the place in the order.
    pub(crate) async fn acquire(&self) -> Option<DirectTailPermit> {
        if let Some(permit) = self.try_acquire() {
            return Some(permit);
        }
        let _waiting = Waiting::new(&self.waiting);
        // The semaphore is never closed.
        Arc::clone(&self.permits).acquire_owned().await.ok()
    }

    /// Returns a permit, if one is free and nobody waits for it.
    pub(crate) fn try_acquire(&self) -> Option<DirectTailPermit> {
        Arc::clone(&self.permits).try_acquire_owned().ok()
    }

    /// Whether anyone waits for a permit.
    pub(crate) fn has_waiting(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }
}

// === impl Waiting ===

impl Waiting {
    fn new(waiting: &Arc<AtomicUsize>) -> Self {
        waiting.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(waiting))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
