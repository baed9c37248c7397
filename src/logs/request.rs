//! A request for logs, validated and complete.

use std::collections::HashMap;

use crate::logs::frame::Representation;
use crate::model::id::{Instance, LeaseId, Replica};
use crate::model::position::Position;
use crate::model::time::LogTime;
use crate::model::view::Filter;

/// One request for logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogsRequest {
    /// The lease.
    pub lease: LeaseId,
    /// The selected services and replicas.
    pub filter: Filter,
    /// Which part of the logs to read.
    pub range: ReadRange,
    /// How lines are represented.
    pub representation: Representation,
    /// What happens when the follower lags.
    pub on_lag: LagPolicy,
    /// Replicas that continue after a position; the others are read by `range`.
    pub resume: HashMap<Replica, (Instance, Position)>,
}

/// Which part of a log to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadRange {
    /// Only the run before the current one.
    Previous(BackfillFilter),
    /// All readable runs, up to the current end of the log.
    UntilNow(BackfillFilter),
    /// All readable runs, then live lines.
    Follow(BackfillFilter),
}

/// Selects existing lines; a line must satisfy both conditions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackfillFilter {
    /// Only the last lines of each replica, this many.
    pub last: Option<u64>,
    /// Only lines that are not older.
    pub since: Option<LogTime>,
}

/// What happens when a follower lags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LagPolicy {
    /// It skips lines and receives a gap message with their count.
    #[default]
    Drop,
    /// Its stream ends, with cursors.
    Close,
}

// === impl ReadRange ===

impl ReadRange {
    /// Whether live lines follow.
    pub fn follows(self) -> bool {
        matches!(self, Self::Follow(_))
    }

    /// Returns the filter of existing lines.
    pub fn filter(self) -> BackfillFilter {
        match self {
            Self::Previous(filter) | Self::UntilNow(filter) | Self::Follow(filter) => filter,
        }
    }
}
