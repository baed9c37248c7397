//! What a simulation reports.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The result of one simulation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) seed: u64,
    /// Hash of all events.
    pub(crate) hash: String,
    pub(crate) actions: u64,
    pub(crate) faults: BTreeMap<String, u64>,
    /// Number of opened streams.
    pub(crate) streams: u64,
    /// Lines that were printed.
    pub(crate) printed: u64,
    /// Lines that all followers received.
    pub(crate) lines: u64,
    /// Number of gaps and their lines, by cause.
    pub(crate) gaps: BTreeMap<String, (u64, u64)>,
    /// Missing lines of which no gateway can know, by cause.
    pub(crate) excused: BTreeMap<String, u64>,
    /// Number of ended streams, by status.
    pub(crate) ends: BTreeMap<String, u64>,
    /// Simulated time.
    pub(crate) seconds: u64,
    /// The first error, which ended the simulation.
    pub(crate) violation: Option<Violation>,
}

/// An error of the gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Violation {
    pub(crate) kind: Kind,
    pub(crate) text: String,
}

/// The kind of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    /// Lines are missing without a gap.
    Loss,
    /// A line came again, or out of order.
    Repeat,
    /// A gap has another size than the lines that are missing, a line was never printed, or belongs to another
    /// run.
    Wrong,
    /// A follower does not get the newest lines although all faults are over.
    Stuck,
    /// Gateways of a fleet do not share the tail of a replica although all faults are over.
    Unshared,
    /// A panic.
    Panic,
}

// === impl Outcome ===

impl Outcome {
    pub(super) fn excuse(&mut self, cause: &str, lines: u64) {
        *self.excused.entry(cause.to_owned()).or_default() += lines;
    }

    /// Adds the figures of another outcome.
    pub(crate) fn add(&mut self, other: &Self) {
        self.actions += other.actions;
        self.streams += other.streams;
        self.printed += other.printed;
        self.lines += other.lines;
        self.seconds += other.seconds;
        for (cause, (count, lines)) in &other.gaps {
            let sum = self.gaps.entry(cause.clone()).or_default();
            (sum.0, sum.1) = (sum.0 + count, sum.1 + lines);
        }
        for (sums, counts) in [
            (&mut self.faults, &other.faults),
            (&mut self.excused, &other.excused),
            (&mut self.ends, &other.ends),
        ] {
            for (name, count) in counts {
                *sums.entry(name.clone()).or_default() += count;
            }
        }
    }
}

// === impl Violation ===

impl Violation {
    pub(super) fn loss(text: String) -> Self {
        Self { kind: Kind::Loss, text }
    }

    pub(super) fn repeat(text: String) -> Self {
        Self { kind: Kind::Repeat, text }
    }

    pub(super) fn wrong(text: String) -> Self {
        Self { kind: Kind::Wrong, text }
    }

    pub(super) fn stuck(text: String) -> Self {
        Self { kind: Kind::Stuck, text }
    }

    pub(super) fn unshared(text: String) -> Self {
        Self { kind: Kind::Unshared, text }
    }

    /// Says which follower it is about.
    pub(super) fn of(self, who: impl std::fmt::Display) -> Self {
        Self { text: format!("{who}: {}", self.text), ..self }
    }
}
