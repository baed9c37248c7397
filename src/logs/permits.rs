//! Permits for history reads: so many in all, and of them only a share for one tenant, so that one who reads slowly, or not at
//! all, keeps nobody else from reading.

use std::sync::{Arc, Weak};

use dashmap::DashMap;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

use crate::model::id::Owner;

/// One tenant may hold at most one in so many of all permits.
const OWNER_SHARE: usize = 4;

/// Tenants that are remembered before those who hold nothing are forgotten.
const OWNERS_KEPT: usize = 1_024;

/// The permits. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct HistoryPermits(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    all: Arc<Semaphore>,
    per_owner: usize,
    owners: DashMap<Owner, Weak<Semaphore>>,
}

/// Allows one history read for as long as it lives.
#[derive(Debug)]
pub struct HistoryPermit {
    _of_owner: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

// === impl HistoryPermits ===

impl HistoryPermits {
    /// So many in all.
    pub fn new(all: usize) -> Self {
        Self(Arc::new(Shared {
            all: Arc::new(Semaphore::new(all)),
            per_owner: (all / OWNER_SHARE).max(1),
            owners: DashMap::new(),
        }))
    }

    /// Waits for a permit for `owner`; first come, first served. Nothing is lost if it is cancelled.
    ///
    /// # Errors
    /// Never: the semaphores are not closed.
    pub async fn acquire(&self, owner: &Owner) -> Result<HistoryPermit, AcquireError> {
        // The tenant's own first: who waits for it holds nothing of the others'.
        let of_owner = self.of_owner(owner).acquire_owned().await?;
        let of_all = Arc::clone(&self.0.all).acquire_owned().await?;
        Ok(HistoryPermit { _of_owner: of_owner, _of_all: of_all })
    }

    fn of_owner(&self, owner: &Owner) -> Arc<Semaphore> {
        let owners = &self.0.owners;
        if owners.len() >= OWNERS_KEPT {
            owners.retain(|_, permits| permits.strong_count() > 0);
        }
        let mut kept = owners.entry(owner.clone()).or_default();
        kept.upgrade().unwrap_or_else(|| {
            let fresh = Arc::new(Semaphore::new(self.0.per_owner));
            *kept = Arc::downgrade(&fresh);
            fresh
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::id::Address;

    #[tokio::test(start_paused = true)]
    async fn one_tenant_never_has_all_of_them() {
        let permits = HistoryPermits::new(8);
        let [greedy, other] = [1, 2].map(|number| Address::from_account([number; 20]));
        let mut held = Vec::new();
        let more = async {
            loop {
                held.push(permits.acquire(&greedy).await.unwrap());
            }
        };
        tokio::time::timeout(Duration::from_secs(1), more).await.unwrap_err();
        assert_eq!(held.len(), 2);
        let own = permits.acquire(&other).await.unwrap();
        drop(held);
        let again = permits.acquire(&greedy).await.unwrap();
        drop((own, again));
    }
}
