//! The classes of the tasks of connections and streams: one for each owner, and one for all connections that
//! have not authenticated a call yet.

use std::sync::Arc;

use dashmap::DashMap;

use crate::model::id::Owner;
use crate::sys::fair_poll::{TaskClass, WeakTaskClass};

/// Turns of an owner's tasks for each worker. Four polls per turn take up to about 100 us each, so a busy
/// owner delays each poll of another one by less than 2 ms. With more turns, workers would not be busier: the
/// end of each turn wakes the next task.
const TURNS_OF_OWNER: usize = 4;

/// The same for connections without an owner: a handshake takes up to a millisecond at a time.
const TURNS_OF_UNAUTHENTICATED: usize = 2;

/// Owners in the map before those without tasks are removed.
const OWNERS_MAX: usize = 1_024;

/// The classes of one gateway. Cloning is cheap.
#[derive(Clone, Debug)]
pub(super) struct TaskClasses(Arc<Classes>);

#[derive(Debug)]
struct Classes {
    unauthenticated: TaskClass,
    owners: DashMap<Owner, WeakTaskClass>,
}

// === impl TaskClasses ===

impl TaskClasses {
    /// Creates the classes for tasks of the present runtime.
    pub(super) fn new() -> Self {
        let unauthenticated = TaskClass::new(TURNS_OF_UNAUTHENTICATED);
        Self(Arc::new(Classes { unauthenticated, owners: DashMap::new() }))
    }

    /// Returns the class of connections that have not authenticated a call yet.
    pub(super) fn unauthenticated(&self) -> TaskClass {
        self.0.unauthenticated.clone()
    }

    /// Returns the class of `owner`.
    pub(super) fn of(&self, owner: &Owner) -> TaskClass {
        let owners = &self.0.owners;
        // The usual case, which must not scan the map.
        if let Some(class) = owners.get(owner).and_then(|class| class.upgrade()) {
            return class;
        }
        if owners.len() >= OWNERS_MAX {
            owners.retain(|_, class| class.upgrade().is_some());
        }
        // The entry stays locked, so that two callers cannot both create a class.
        let mut entry = owners.entry(owner.clone()).or_default();
        entry.upgrade().unwrap_or_else(|| {
            let class = TaskClass::new(TURNS_OF_OWNER);
            *entry = class.downgrade();
            class
        })
    }
}
