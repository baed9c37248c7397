//! What is trusted at one moment, replaced as a whole.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use super::item::{TrustKey, TrustValue};
use crate::access::account::AccountKey;
use crate::access::cert::Serial;
use crate::access::trust::{Certificate, TrustedItem};
use crate::model::id::Owner;

/// All that is trusted.
#[derive(Debug, Default)]
pub(super) struct Index(RwLock<Arc<HashMap<TrustKey, TrustedItem<TrustValue>>>>);

/// What a replacement came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) added: usize,
    pub(super) withdrawn: usize,
}

// === impl Index ===

impl Index {
    pub(super) fn certificate(&self, owner: &Owner, serial: &Serial) -> Option<TrustedItem> {
        let trusted = self.all().get(&TrustKey::Certificate(owner.clone(), serial.clone())).cloned()?;
        match trusted.what() {
            TrustValue::Certificate(der) => {
                Some(TrustedItem::held(Certificate::clone(der), trusted.hold().clone()))
            }
            TrustValue::Account(_) => None,
        }
    }

    pub(super) fn account(&self, owner: &Owner) -> Option<TrustedItem<AccountKey>> {
        let trusted = self.all().get(&TrustKey::Account(owner.clone())).cloned()?;
        match trusted.what() {
            TrustValue::Account(key) => Some(TrustedItem::held(key.clone(), trusted.hold().clone())),
            TrustValue::Certificate(_) => None,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.all().len()
    }

    /// Trusts exactly `wanted`. What was trusted before and still is keeps its standing; for the rest it ends.
    pub(super) fn replace(&self, wanted: HashMap<TrustKey, TrustValue>) -> Change {
        let before = self.all();
        let kept = |name: &TrustKey, content: &TrustValue| {
            before.get(name).filter(|old| old.what() == content).cloned()
        };
        let mut added = 0;
        let mut after = HashMap::with_capacity(wanted.len());
        for (name, content) in wanted {
            let trusted = kept(&name, &content).unwrap_or_else(|| {
                added += 1;
                TrustedItem::new(content)
            });
            after.insert(name, trusted);
        }
        let after = Arc::new(after);
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&after);
        // Only now: whoever is told, and asks again, must not find the old answer.
        let mut withdrawn = 0;
        for (name, old) in before.iter() {
            if after.get(name).is_none_or(|new| new.what() != old.what()) {
                old.withdraw();
                withdrawn += 1;
            }
        }
        Change { added, withdrawn }
    }

    fn all(&self) -> Arc<HashMap<TrustKey, TrustedItem<TrustValue>>> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

// === impl Change ===

impl Change {
    pub(super) fn any(self) -> bool {
        self.added > 0 || self.withdrawn > 0
    }
}
