//! What a caller may do.

use crate::model::id::{LeaseId, Owner};

use super::refusal::Refusal;

/// What can be done with a lease. The names are those of Akash's tokens (AEP-64).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// See how services are doing.
    Status,
    /// Read their logs.
    Logs,
    /// Restart them.
    Restart,
}

/// Who a caller was found to be, and with that, what they may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    owner: Owner,
}

// === impl Identity ===

impl Identity {
    /// The owner in person, proved by a certificate: every scope on every lease of theirs.
    pub(super) fn owner_in_person(owner: Owner) -> Self {
        Self { owner }
    }

    /// The account.
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Whether the caller may do this with `lease`. To be asked before anything is looked up, so that the answer cannot depend
    /// on what exists.
    ///
    /// # Errors
    /// [`Refusal::NotYours`] for a lease of another owner, existing or not.
    pub fn may(&self, lease: &LeaseId, scope: Scope) -> Result<(), Refusal> {
        if *lease.owner() == self.owner {
            return Ok(());
        }
        tracing::debug!(owner = %self.owner, %lease, ?scope, "refused: the lease of another owner");
        Err(Refusal::NotYours)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::refusal::Kind;
    use crate::model::id::Address;

    #[test]
    fn an_owner_may_everything_with_their_own_leases_and_nothing_else() {
        let [alice, bob, provider] = [1, 2, 3].map(|n| Address::from_account([n; 20]));
        let identity = Identity::owner_in_person(alice.clone());
        let lease = |owner: &Address| LeaseId::new(owner.as_str(), 7, 1, 1, provider.as_str()).unwrap();
        for scope in [Scope::Status, Scope::Logs, Scope::Restart] {
            assert_eq!(identity.may(&lease(&alice), scope), Ok(()));
            let refusal = identity.may(&lease(&bob), scope).unwrap_err();
            assert_eq!(refusal, Refusal::NotYours);
            assert_eq!(refusal.kind(), Kind::PermissionDenied);
        }
    }
}
