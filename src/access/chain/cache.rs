//! Cached answers of the chain. Uses no runtime; the caller passes the time.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::node::QueryError;
use super::{CONFIRMED_FOR, ENTRIES_MAX, GRACE_DIVISOR, NEGATIVE_ENTRIES_MAX, REFUSED_FOR, RETRY_AFTER};
use crate::access::refusal::Refusal;
use crate::access::trust::{
    Answer, RevocationSignal, TrustAnswer, TrustEntry, TrustId, TrustValue, TrustedItem, Unavailable,
};
use crate::model::metrics::ChainAnswerOrigin;

#[derive(Debug)]
pub(super) struct Cache {
    positive: HashMap<TrustId, PositiveEntry>,
    negative: HashMap<TrustId, NegativeEntry>,
    /// For how long entries are used without a confirmation.
    grace: Duration,
}

/// An item that was found on the chain.
#[derive(Debug)]
struct PositiveEntry {
    value: TrustValue,
    revocation: RevocationSignal,
    /// The last confirmation. May precede the start of the machine.
    confirmed: Instant,
    /// The last confirmation that is on disk.
    persisted: Instant,
    used: Instant,
    /// `Some` if the last query failed: when to retry.
    retry_at: Option<Instant>,
}

/// An item that was not found, or is refused.
#[derive(Debug)]
struct NegativeEntry {
    answer: TrustAnswer<TrustValue>,
    until: Instant,
}

/// The result of a lookup in the cache.
#[derive(Debug)]
pub(super) enum Lookup {
    /// The outcome is known, without a query.
    Known(Outcome, ChainAnswerOrigin),
    /// A query is necessary. `is_known`: it confirms a cached item.
    Query { is_known: bool },
}

/// The answer for the caller.
pub(super) type Outcome = Result<TrustAnswer<TrustValue>, Unavailable>;

/// What to change on disk.
#[derive(Debug, PartialEq)]
pub(super) enum DiskChange {
    None,
    Write {
        value: TrustValue,
        /// Removed to make room.
        replaced: Option<TrustId>,
    },
    Remove,
}

// === impl Cache ===

impl Cache {
    pub(super) fn new(grace: Duration) -> Self {
        Self { positive: HashMap::new(), negative: HashMap::new(), grace }
    }

    /// Inserts an entry of an earlier process. Its first lookup causes a query.
    pub(super) fn restore(&mut self, entry: TrustEntry, age: Duration, now: Instant) {
        if self.positive.len() < ENTRIES_MAX
            && age <= self.grace
            && let Some(confirmed) = now.checked_sub(age.max(CONFIRMED_FOR))
        {
            self.positive.insert(entry.key, PositiveEntry::new(entry.value, confirmed, now));
        }
    }

    pub(super) fn lookup(&mut self, key: &TrustId, now: Instant) -> Lookup {
        if let Some(entry) = self.positive.get_mut(key) {
            entry.used = now;
            if now - entry.confirmed < CONFIRMED_FOR {
                return Lookup::Known(Ok(entry.answer()), ChainAnswerOrigin::Cache);
            }
            if entry.retry_at.is_some_and(|at| now < at) && now - entry.confirmed <= self.grace {
                return Lookup::Known(Ok(entry.answer()), ChainAnswerOrigin::Grace);
            }
            return Lookup::Query { is_known: true };
        }
        match self.negative.get(key) {
            Some(entry) if now < entry.until => {
                Lookup::Known(Ok(entry.answer.clone()), ChainAnswerOrigin::Cache)
            }
            _ => Lookup::Query { is_known: false },
        }
    }

    /// Returns the item that was found last, however long ago. Does not count as a use.
    pub(super) fn peek(&self, key: &TrustId) -> Option<TrustedItem<TrustValue>> {
        self.positive.get(key).map(PositiveEntry::item)
    }

    /// Returns the items that running calls depend on and that must be confirmed now, longest unconfirmed
    /// first.
    pub(super) fn due(&self, now: Instant) -> Vec<TrustId> {
        let due = self.positive.iter().filter(|(_, entry)| {
            entry.revocation.is_shared()
                && now - entry.confirmed >= CONFIRMED_FOR
                && entry.retry_at.is_none_or(|at| now >= at)
        });
        let mut due: Vec<_> = due.map(|(key, entry)| (entry.confirmed, key.clone())).collect();
        due.sort_by_key(|(confirmed, _)| *confirmed);
        due.into_iter().map(|(_, key)| key).collect()
    }

    /// Ends running calls whose grace period is over, without waiting for a query, which may hang.
    pub(super) fn end_graces(&mut self, now: Instant) {
        for entry in self.positive.values_mut() {
            let over = entry.retry_at.is_some() && now - entry.confirmed > self.grace;
            if over && entry.revocation.is_shared() {
                // The entry stays, so that its next query counts as one for a known item. It gets a new
                // signal, so that the old one does not end later calls.
                std::mem::take(&mut entry.revocation).end_unconfirmed();
            }
        }
    }

    /// Applies the result of a query.
    pub(super) fn apply(
        &mut self,
        key: &TrustId,
        answer: Result<Answer<TrustValue>, QueryError>,
        now: Instant,
    ) -> (Outcome, DiskChange) {
        match answer {
            Ok(Answer::Trusted(value)) => self.found(key, value, now),
            Ok(Answer::Unknown) => self.not_trusted(key, Answer::Unknown, now),
            Ok(Answer::Refused(refusal)) => self.not_trusted(key, Answer::Refused(refusal), now),
            Err(_) => self.failed(key, now),
        }
    }

    fn found(&mut self, key: &TrustId, value: TrustValue, now: Instant) -> (Outcome, DiskChange) {
        self.negative.remove(key);
        if let Some(entry) = self.positive.get_mut(key) {
            let is_same = entry.value == value;
            if !is_same {
                entry.revocation.end_trust();
                (entry.value, entry.revocation) = (value, RevocationSignal::default());
            }
            (entry.confirmed, entry.retry_at) = (now, None);
            if is_same && now - entry.persisted < self.grace / GRACE_DIVISOR {
                return (Ok(entry.answer()), DiskChange::None);
            }
            entry.persisted = now;
            return (Ok(entry.answer()), DiskChange::Write { value: entry.value.clone(), replaced: None });
        }
        let mut replaced = None;
        if self.positive.len() >= ENTRIES_MAX {
            replaced = self.remove_least_recent();
            if replaced.is_none() {
                return (Ok(Answer::Refused(Refusal::TrustBusy)), DiskChange::None);
            }
        }
        let entry = PositiveEntry::new(value.clone(), now, now);
        let answer = entry.answer();
        self.positive.insert(key.clone(), entry);
        (Ok(answer), DiskChange::Write { value, replaced })
    }

    fn not_trusted(
        &mut self,
        key: &TrustId,
        answer: TrustAnswer<TrustValue>,
        now: Instant,
    ) -> (Outcome, DiskChange) {
        let removed = self.positive.remove(key);
        if let Some(entry) = &removed {
            entry.revocation.end_trust();
        }
        if self.negative.len() >= NEGATIVE_ENTRIES_MAX {
            self.negative.retain(|_, entry| now < entry.until);
        }
        // Without an entry, the next lookup causes a query.
        if self.negative.len() < NEGATIVE_ENTRIES_MAX {
            let entry = NegativeEntry { answer: answer.clone(), until: now + REFUSED_FOR };
            self.negative.insert(key.clone(), entry);
        }
        let change = if removed.is_some() { DiskChange::Remove } else { DiskChange::None };
        (Ok(answer), change)
    }

    fn failed(&mut self, key: &TrustId, now: Instant) -> (Outcome, DiskChange) {
        let Some(entry) = self.positive.get_mut(key) else {
            return (Err(Unavailable), DiskChange::None);
        };
        if now - entry.confirmed <= self.grace {
            entry.retry_at = Some(now + RETRY_AFTER);
            return (Ok(entry.answer()), DiskChange::None);
        }
        entry.revocation.end_unconfirmed();
        self.positive.remove(key);
        (Err(Unavailable), DiskChange::Remove)
    }

    /// Removes the least recently used entry that no running call depends on, and returns its key.
    fn remove_least_recent(&mut self) -> Option<TrustId> {
        let idle = self.positive.iter().filter(|(_, entry)| !entry.revocation.is_shared());
        let oldest = idle.min_by_key(|(_, entry)| entry.used).map(|(key, _)| key.clone())?;
        self.positive.remove(&oldest);
        Some(oldest)
    }

    /// Returns the number of entries that are in use although the last query to confirm them failed.
    pub(super) fn on_grace(&self, now: Instant) -> usize {
        let on_grace =
            |entry: &&PositiveEntry| entry.retry_at.is_some() && now - entry.confirmed <= self.grace;
        self.positive.values().filter(on_grace).count()
    }

    pub(super) fn len(&self) -> usize {
        self.positive.len()
    }
}

// === impl PositiveEntry ===

impl PositiveEntry {
    fn new(value: TrustValue, confirmed: Instant, now: Instant) -> Self {
        let revocation = RevocationSignal::default();
        Self { value, revocation, confirmed, persisted: now, used: now, retry_at: None }
    }

    fn item(&self) -> TrustedItem<TrustValue> {
        TrustedItem { value: self.value.clone(), revocation: self.revocation.clone() }
    }

    fn answer(&self) -> TrustAnswer<TrustValue> {
        Answer::Trusted(self.item())
    }
}
