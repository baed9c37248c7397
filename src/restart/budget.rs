//! Limits on the number of replicas in jobs that run or are remembered.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::model::id::Owner;
use crate::model::quota::{Exceeded, Quota, Subject};

/// Replicas in all jobs of one owner. More than the largest lease has, and one restart per second for more
/// than an hour.
const OWNER_REPLICAS_MAX: usize = 4_096;

/// Replicas in the jobs of all owners: about 30 MB.
const REPLICAS_MAX: usize = 131_072;

/// Retry hint when a limit is reached. Jobs are forgotten after an hour, but some of them are usually older.
const RETRY_AFTER: Duration = Duration::from_secs(60);

/// Counts replicas in jobs, per owner and in total.
#[derive(Clone, Debug, Default)]
pub(super) struct ReplicaBudget(Arc<Mutex<Counts>>);

#[derive(Debug, Default)]
struct Counts {
    total: usize,
    owners: HashMap<Owner, usize>,
}

/// The replicas of one job. Returns them to the budget on drop.
#[derive(Debug)]
pub(super) struct BudgetShare {
    budget: ReplicaBudget,
    owner: Owner,
    replicas: usize,
}

// === impl ReplicaBudget ===

impl ReplicaBudget {
    /// Reserves `replicas` for a job of `owner`, or returns the quota that is exceeded.
    pub(super) fn reserve(&self, owner: &Owner, replicas: usize) -> Result<BudgetShare, Exceeded> {
        let mut counts = self.0.lock();
        let of_owner = counts.owners.get(owner).copied().unwrap_or_default();
        let exceeded = |subject, limit: usize| {
            let (quota, retry_after) = (Quota::RestartsRemembered, Some(RETRY_AFTER));
            Exceeded { quota, subject, limit: limit as u64, retry_after }
        };
        if of_owner + replicas > OWNER_REPLICAS_MAX {
            return Err(exceeded(Subject::Owner(owner.clone()), OWNER_REPLICAS_MAX));
        }
        if counts.total + replicas > REPLICAS_MAX {
            return Err(exceeded(Subject::Gateway, REPLICAS_MAX));
        }
        counts.total += replicas;
        counts.owners.insert(owner.clone(), of_owner + replicas);
        drop(counts);
        Ok(BudgetShare { budget: self.clone(), owner: owner.clone(), replicas })
    }
}

// === impl BudgetShare ===

impl Drop for BudgetShare {
    fn drop(&mut self) {
        let mut counts = self.budget.0.lock();
        counts.total -= self.replicas;
        if let Entry::Occupied(mut of_owner) = counts.owners.entry(self.owner.clone()) {
            *of_owner.get_mut() -= self.replicas;
            if *of_owner.get() == 0 {
                of_owner.remove();
            }
        }
    }
}
