//! What is trusted at one moment, replaced as a whole.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use crate::access::cert::Serial;
use crate::access::trust::Trusted;
use crate::model::id::Owner;

/// Under which name a certificate is trusted.
pub(super) type Key = (Owner, Serial);

/// All certificates that are trusted.
#[derive(Debug, Default)]
pub(super) struct Index(RwLock<Arc<HashMap<Key, Trusted>>>);

/// What a replacement came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) added: usize,
    pub(super) withdrawn: usize,
}

// === impl Index ===

impl Index {
    pub(super) fn get(&self, owner: &Owner, serial: &Serial) -> Option<Trusted> {
        self.all().get(&(owner.clone(), serial.clone())).cloned()
    }

    pub(super) fn len(&self) -> usize {
        self.all().len()
    }

    /// Trusts exactly `wanted`. What was trusted before and still is keeps its standing; for the rest it ends.
    pub(super) fn replace(&self, wanted: HashMap<Key, Arc<[u8]>>) -> Change {
        let before = self.all();
        let kept = |key: &Key, der: &Arc<[u8]>| before.get(key).filter(|old| old.der() == der).cloned();
        let mut added = 0;
        let mut after = HashMap::with_capacity(wanted.len());
        for (key, der) in wanted {
            let trusted = kept(&key, &der).unwrap_or_else(|| {
                added += 1;
                Trusted::new(der)
            });
            after.insert(key, trusted);
        }
        let after = Arc::new(after);
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&after);
        // Only now: whoever is told, and asks again, must not find the old answer.
        let mut withdrawn = 0;
        for (key, old) in before.iter() {
            if after.get(key).is_none_or(|new| new.der() != old.der()) {
                old.withdraw();
                withdrawn += 1;
            }
        }
        Change { added, withdrawn }
    }

    fn all(&self) -> Arc<HashMap<Key, Trusted>> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

// === impl Change ===

impl Change {
    pub(super) fn any(self) -> bool {
        self.added > 0 || self.withdrawn > 0
    }
}
