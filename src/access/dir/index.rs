//! The items that are trusted at one moment, replaced as a whole.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::RwLock;

use crate::access::trust::{TrustKey, TrustValue, TrustedItem};

#[derive(Debug, Default)]
pub(super) struct Index(RwLock<Arc<HashMap<TrustKey, TrustedItem<TrustValue>>>>);

/// The effect of a replacement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) added: usize,
    pub(super) revoked: usize,
}

impl Index {
    pub(super) fn get(&self, key: &TrustKey) -> Option<TrustedItem<TrustValue>> {
        self.0.read().get(key).cloned()
    }

    pub(super) fn len(&self) -> usize {
        self.0.read().len()
    }

    /// Trusts exactly `wanted`. Items that were trusted before keep their signal; the others are revoked.
    pub(super) fn replace(&self, wanted: HashMap<TrustKey, TrustValue>) -> Change {
        let before = Arc::clone(&self.0.read());
        let mut added = 0;
        let mut after = HashMap::with_capacity(wanted.len());
        for (key, value) in wanted {
            let kept = before.get(&key).filter(|old| *old.value() == value).cloned();
            let trusted = kept.unwrap_or_else(|| {
                added += 1;
                TrustedItem::new(value)
            });
            after.insert(key, trusted);
        }
        let after = Arc::new(after);
        *self.0.write() = Arc::clone(&after);
        // Revoked after the replacement, so that a caller that asks again does not find the old item.
        let mut revoked = 0;
        for (key, old) in before.iter() {
            if after.get(key).is_none_or(|new| new.value() != old.value()) {
                old.revoke();
                revoked += 1;
            }
        }
        Change { added, revoked }
    }
}
