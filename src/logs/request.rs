//! What a caller asked of the logs of a lease, checked and complete.

use std::collections::HashMap;

use crate::logs::frame::Representation;
use crate::model::id::{Instance, LeaseId, Replica};
use crate::model::position::Position;
use crate::model::time::LogTime;
use crate::model::view::Filter;

/// One request for logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogsRequest {
    /// Of which lease.
    pub lease: LeaseId,
    /// Of which services and replicas.
    pub filter: Filter,
    /// How much of what was, and whether to stay for what comes.
    pub extent: ReadRange,
    /// How lines look.
    pub representation: Representation,
    /// What happens if the follower falls behind.
    pub on_lag: LagPolicy,
    /// Replicas of which to go on behind a position; the others are served by `extent`.
    pub resume: HashMap<Replica, (Instance, Position)>,
}

/// How much of a log is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadRange {
    /// The run before the present one, and no more.
    Previous(BackfillFilter),
    /// Every readable run, to where the log ends now.
    UntilNow(BackfillFilter),
    /// Every readable run, and then what comes.
    Follow(BackfillFilter),
}

/// Which of the lines that are there already are wanted: all that no member rules out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackfillFilter {
    /// The last so many of each replica.
    pub last: Option<u64>,
    /// Those not older than this.
    pub since: Option<LogTime>,
}

/// What happens to a follower that falls behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LagPolicy {
    /// It skips what it lost and is told how much.
    #[default]
    Drop,
    /// Its stream ends with its cursors.
    Close,
}

// === impl ReadRange ===

impl ReadRange {
    /// Whether to stay for what comes.
    pub fn follows(self) -> bool {
        matches!(self, Self::Follow(_))
    }

    /// Which of what was there already.
    pub fn history(self) -> BackfillFilter {
        match self {
            Self::Previous(history) | Self::UntilNow(history) | Self::Follow(history) => history,
        }
    }
}
