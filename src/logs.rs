//! The log multiplexer: one actor per replica reads its log once, for all followers.
//!
//! The path of a line:
//! 1. [`actor`] tails the replica's log, and starts with the first follower. [`actors`] is the registry.
//! 2. [`chunk`] groups lines into chunks. A chunk leaves when it is full, at once after a quiet moment, or at
//!    the end of the pace interval.
//! 3. `encoder` encodes a chunk, once per representation: as a gRPC message ([`message`], `published`) or as
//!    websocket frames ([`websocket`], `entries`).
//! 4. [`ring`] holds recent messages, bounded in bytes, and counts exactly what a lagging follower misses.
//! 5. `replica_stream` is one replica's part of a response: a `backfill` reads lines older than the ring and
//!    joins it, then a ring reader follows live. `backfill_limits` bounds backfills.
//! 6. `body` merges these parts into the response, as fast as HTTP/2 takes them. `heartbeat` reports the
//!    state of silent replicas to clients that ask for it.
//!
//! [`memory_budget`] bounds the memory of rings, send buffers and backfills together.
//!
//! Each follower has two tasks. The ring wakes the task of its stream (`edge::stream_supervisor`), which
//! polls the body and hands frames to HTTP/2. The task of its connection (`edge::connection`) writes them.

use std::collections::HashMap;
use std::time::Duration;

use self::representation::Representation;
use crate::model::id::{Instance, LeaseId, Replica};
use crate::model::position::Position;
use crate::model::time::LogTime;
use crate::model::view::Filter;

pub mod actor;
pub mod actors;
pub(crate) mod backfill;
pub(crate) mod backfill_limits;
pub(crate) mod body;
pub mod chunk;
pub(crate) mod collector;
mod encoder;
pub(crate) mod entries;
pub mod entry_name;
mod heartbeat;
pub mod live;
pub mod memory_budget;
pub mod message;
pub mod notice;
pub mod publish_service;
mod published;
mod replica_stream;
pub mod representation;
pub mod ring;
mod run_record;
pub mod websocket;

/// A validated request for logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogsRequest {
    /// The lease whose logs are read.
    pub lease: LeaseId,
    /// The selected services and replicas.
    pub filter: Filter,
    /// Which part of the logs to read.
    pub range: ReadRange,
    /// How lines are represented.
    pub representation: Representation,
    /// What happens when the follower lags.
    pub on_lag: LagPolicy,
    /// Silence of a replica after which a heartbeat is sent; `None` = no heartbeats.
    pub heartbeat: Option<Duration>,
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
    /// It is sent these lines from the log again. Only lines that the log no longer has become a gap.
    Refill,
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
