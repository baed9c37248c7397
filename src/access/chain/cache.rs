//! What the chain said, and until when that counts. Knows no runtime; the time is passed in.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::node::{Answer, QueryError};
use super::{CONFIRMED_FOR, ENTRIES_MAX, PERSIST_PART, REFUSALS_MAX, REFUSED_FOR, RETRY_AFTER};
use crate::access::dir::item::{TrustKey, TrustValue};
use crate::access::refusal::Refusal;
use crate::access::trust::RevocationSignal;
use crate::model::metrics::ChainAnswer;

/// Everything that is known.
#[derive(Debug)]
pub(super) struct Cache {
    good: HashMap<TrustKey, PositiveEntry>,
    bad: HashMap<TrustKey, NegativeEntry>,
    grace: Duration,
}

/// What was found on the chain.
#[derive(Debug)]
struct PositiveEntry {
    content: TrustValue,
    hold: RevocationSignal,
    /// When the chain said so last.
    confirmed: Age,
    /// The same, as the disk has it; `None` = not at all.
    persisted: Option<Instant>,
    /// When it was asked for last.
    used: Instant,
    /// Not before this is the chain asked again, if it did not answer.
    retry_at: Option<Instant>,
}

/// What was not, or must not be believed.
#[derive(Debug)]
struct NegativeEntry {
    refusal: Option<Refusal>,
    until: Instant,
}

/// How long ago something was, which may be longer than the machine runs.
#[derive(Clone, Copy, Debug)]
struct Age {
    at: Instant,
    before: Duration,
}

/// What is known of a name.
#[derive(Debug)]
pub(super) enum Lookup {
    Known(Outcome, ChainAnswer),
    /// The chain must be asked.
    Ask {
        /// Whether it is a matter of confirming what is known.
        known: bool,
    },
}

/// What whoever asks is told.
#[derive(Clone, Debug)]
pub(super) enum Outcome {
    Trusted(TrustValue, RevocationSignal),
    Unknown,
    Refused(Refusal),
    Unavailable,
}

/// What is to be done on disk.
#[derive(Debug, PartialEq)]
pub(super) enum Change {
    Nothing,
    Keep {
        content: TrustValue,
        /// Had to be forgotten for it.
        instead_of: Option<TrustKey>,
    },
    Forget,
}

// === impl Cache ===

impl Cache {
    pub(super) fn new(grace: Duration) -> Self {
        Self { good: HashMap::new(), bad: HashMap::new(), grace }
    }

    /// Takes over what an earlier process knew. It is to be confirmed at the next opportunity.
    pub(super) fn restore(&mut self, name: TrustKey, content: TrustValue, age: Duration, now: Instant) {
        if self.good.len() < ENTRIES_MAX && age <= self.grace {
            let before = age.max(CONFIRMED_FOR);
            let confirmed = Age { at: now, before };
            let persisted = Some(now);
            let hold = RevocationSignal::default();
            self.good.insert(
                name,
                PositiveEntry { content, hold, confirmed, persisted, used: now, retry_at: None },
            );
        }
    }

    pub(super) fn look(&mut self, name: &TrustKey, now: Instant) -> Lookup {
        if let Some(good) = self.good.get_mut(name) {
            good.used = now;
            if good.confirmed.age(now) < CONFIRMED_FOR {
                return Lookup::Known(good.outcome(), ChainAnswer::Cache);
            }
            if good.retry_at.is_some_and(|at| now < at) && good.confirmed.age(now) <= self.grace {
                return Lookup::Known(good.outcome(), ChainAnswer::Grace);
            }
            return Lookup::Ask { known: true };
        }
        match self.bad.get(name) {
            Some(bad) if now < bad.until => {
                let outcome = bad.refusal.map_or(Outcome::Unknown, Outcome::Refused);
                Lookup::Known(outcome, ChainAnswer::Cache)
            }
            _ => Lookup::Ask { known: false },
        }
    }

    /// Returns what was found under this name last, however long ago it was confirmed. Does not count as a use of it.
    pub(super) fn known(&self, name: &TrustKey) -> Option<(TrustValue, RevocationSignal)> {
        self.good.get(name).map(|good| (good.content.clone(), good.hold.clone()))
    }

    /// What running streams stand on and must be confirmed now, what was confirmed longest ago first.
    pub(super) fn due(&self, now: Instant) -> Vec<TrustKey> {
        let due = self.good.iter().filter(|(_, good)| {
            good.hold.is_shared()
                && good.confirmed.age(now) >= CONFIRMED_FOR
                && good.retry_at.is_none_or(|at| now >= at)
        });
        let mut due: Vec<_> = due.map(|(name, good)| (good.confirmed.age(now), name.clone())).collect();
        due.sort_by_key(|(age, _)| Reverse(*age));
        due.into_iter().map(|(_, name)| name).collect()
    }

    /// Ends what streams run on by a grace that is over: of this a node that hangs must not be the judge.
    pub(super) fn end_graces(&mut self, now: Instant) {
        for good in self.good.values_mut() {
            if good.retry_at.is_some() && good.confirmed.age(now) > self.grace && good.hold.is_shared() {
                std::mem::take(&mut good.hold).lapse();
            }
        }
    }

    /// Takes what came of asking.
    pub(super) fn take(
        &mut self,
        name: &TrustKey,
        answer: Result<Answer, QueryError>,
        now: Instant,
    ) -> (Outcome, Change) {
        match answer {
            Ok(Answer::Found(content)) => self.found(name, content, now),
            Ok(Answer::Unknown) => self.refused(name, None, now),
            Ok(Answer::Refused(refusal)) => self.refused(name, Some(refusal), now),
            Err(_) => self.silent(name, now),
        }
    }

    fn found(&mut self, name: &TrustKey, content: TrustValue, now: Instant) -> (Outcome, Change) {
        self.bad.remove(name);
        let confirmed = Age { at: now, before: Duration::ZERO };
        if let Some(good) = self.good.get_mut(name) {
            let same = good.content == content;
            if !same {
                good.hold.withdraw();
                (good.content, good.hold) = (content, RevocationSignal::default());
            }
            (good.confirmed, good.retry_at) = (confirmed, None);
            let stale = good.persisted.is_none_or(|at| now - at >= self.grace / PERSIST_PART);
            if same && !stale {
                return (good.outcome(), Change::Nothing);
            }
            good.persisted = Some(now);
            let content = good.content.clone();
            return (good.outcome(), Change::Keep { content, instead_of: None });
        }
        let mut instead_of = None;
        if self.good.len() >= ENTRIES_MAX {
            instead_of = self.make_room();
            if instead_of.is_none() {
                return (Outcome::Refused(Refusal::TrustBusy), Change::Nothing);
            }
        }
        let (hold, persisted) = (RevocationSignal::default(), Some(now));
        let good = PositiveEntry { content, hold, confirmed, persisted, used: now, retry_at: None };
        let told = (good.outcome(), Change::Keep { content: good.content.clone(), instead_of });
        self.good.insert(name.clone(), good);
        told
    }

    fn refused(&mut self, name: &TrustKey, refusal: Option<Refusal>, now: Instant) -> (Outcome, Change) {
        let known = self.good.remove(name);
        if let Some(good) = &known {
            good.hold.withdraw();
        }
        if self.bad.len() >= REFUSALS_MAX {
            self.bad.retain(|_, bad| now < bad.until);
        }
        // One that is not remembered is asked for again.
        if self.bad.len() < REFUSALS_MAX {
            self.bad.insert(name.clone(), NegativeEntry { refusal, until: now + REFUSED_FOR });
        }
        let change = if known.is_some() { Change::Forget } else { Change::Nothing };
        (refusal.map_or(Outcome::Unknown, Outcome::Refused), change)
    }

    fn silent(&mut self, name: &TrustKey, now: Instant) -> (Outcome, Change) {
        let Some(good) = self.good.get_mut(name) else {
            return (Outcome::Unavailable, Change::Nothing);
        };
        if good.confirmed.age(now) <= self.grace {
            good.retry_at = Some(now + RETRY_AFTER);
            return (good.outcome(), Change::Nothing);
        }
        good.hold.lapse();
        self.good.remove(name);
        (Outcome::Unavailable, Change::Forget)
    }

    /// Forgets what was not asked for longest and nobody stands on, and names it.
    fn make_room(&mut self) -> Option<TrustKey> {
        let idle = self.good.iter().filter(|(_, good)| !good.hold.is_shared());
        let oldest = idle.min_by_key(|(_, good)| good.used).map(|(name, _)| name.clone())?;
        self.good.remove(&oldest);
        Some(oldest)
    }

    /// How many go on though the node did not answer when it was last asked to confirm them.
    pub(super) fn on_grace(&self, now: Instant) -> usize {
        let goes_on =
            |good: &&PositiveEntry| good.retry_at.is_some() && good.confirmed.age(now) <= self.grace;
        self.good.values().filter(goes_on).count()
    }

    pub(super) fn len(&self) -> usize {
        self.good.len()
    }
}

// === impl Good ===

impl PositiveEntry {
    fn outcome(&self) -> Outcome {
        Outcome::Trusted(self.content.clone(), self.hold.clone())
    }
}

// === impl Age ===

impl Age {
    fn age(self, now: Instant) -> Duration {
        now.saturating_duration_since(self.at).saturating_add(self.before)
    }
}
