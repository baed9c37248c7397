//! The measured cells, and the plans that list them.

use std::fmt;
use std::time::Duration;

use clap::ValueEnum;
use leasemux::model::limits::Limits;
use serde::Serialize;

use crate::contender::Kind;

/// Most outstanding bytes in a backlog: a busy service is ahead of its followers by as much. Far below the
/// size of the gateway's ring, so that no follower lags.
const BACKLOG_BYTES: u64 = 512 * 1024;

/// Most outstanding messages in a backlog of small messages.
const BACKLOG_MESSAGES: u64 = 1_024;

/// Bytes that each follower of a backlog over TLS reads before the measurement. The gateway limits the data
/// on its way to a websocket, sends a ping per half of the limit, and doubles the limit from 16 KiB to 4 MiB
/// as the client reads about as much. After these bytes, pings are at least a megabyte apart.
const WARM_UP_BYTES: u64 = 2 * 1024 * 1024;

/// Lines per second of the paced regime, as from a busy service.
const PACED_LINES: u64 = 1_000;

/// How messages are published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Regime {
    /// As fast as the slowest follower reads, with more messages always outstanding.
    Backlog,
    /// One at a time, the next after all followers have the last: each costs a wake-up and a write.
    Lone,
    /// A thousand per second, at a fixed rate; the gateway uses its default pace interval.
    Paced,
}

/// Whether connections are secured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Security {
    /// Mutual TLS 1.3, as in production.
    Tls,
    /// No TLS. The gateway has no such port; `server/plain.rs` replaces its TLS stream.
    Plain,
}

/// One load, which all contenders run in turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Cell {
    pub(crate) regime: Regime,
    /// Bytes of a message, newline included.
    pub(crate) size: u64,
    pub(crate) followers: usize,
    pub(crate) security: Security,
}

/// How far the publisher may be ahead of the followers.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Flow {
    /// At most this many messages that the slowest follower has not received.
    Window(u64),
    /// Messages per second.
    Rate(u64),
}

/// The default plan: the cells of all goals, and the curves over the number of followers.
pub(crate) fn full() -> Vec<Cell> {
    let mut cells = Vec::new();
    let mut add = |security, regime, sizes: &[u64], followers: &[usize]| {
        for &size in sizes {
            cells.extend(followers.iter().map(|&followers| Cell { regime, size, followers, security }));
        }
    };
    add(Security::Tls, Regime::Backlog, &[4_096], &[1, 10, 100, 1_000, 10_000]);
    add(Security::Tls, Regime::Backlog, &[100, 16_000, 32_768], &[100]);
    add(Security::Tls, Regime::Lone, &[100], &[1, 10, 100, 1_000, 10_000]);
    add(Security::Tls, Regime::Lone, &[4_096], &[100, 1_000]);
    add(Security::Tls, Regime::Paced, &[100], &[100]);
    add(Security::Plain, Regime::Backlog, &[100, 4_096, 32_768], &[100, 1_000]);
    add(Security::Plain, Regime::Lone, &[100, 4_096], &[100, 1_000]);
    add(Security::Plain, Regime::Paced, &[100], &[100]);
    cells
}

/// A plan of under three minutes: each regime, with and without TLS.
pub(crate) fn quick() -> Vec<Cell> {
    let cell = |regime, size, security| Cell { regime, size, followers: 100, security };
    vec![
        cell(Regime::Backlog, 4_096, Security::Tls),
        cell(Regime::Backlog, 100, Security::Tls),
        cell(Regime::Lone, 100, Security::Tls),
        cell(Regime::Paced, 100, Security::Tls),
        cell(Regime::Backlog, 4_096, Security::Plain),
        cell(Regime::Lone, 100, Security::Plain),
        cell(Regime::Paced, 100, Security::Plain),
    ]
}

/// The cells that compare websockets with gRPC, by the length of lines: a frame has about 60 bytes besides.
pub(crate) fn websockets() -> Vec<Cell> {
    let mut cells = Vec::new();
    for size in [50, 200, 1_000] {
        let cell = |followers| Cell { regime: Regime::Backlog, size, followers, security: Security::Tls };
        cells.extend([1, 100, 1_000].map(cell));
    }
    cells
}

/// The cell of `--gate`, in which both cliffs would show.
pub(crate) const GATE: Cell =
    Cell { regime: Regime::Backlog, size: 4_096, followers: 100, security: Security::Tls };

// === impl Cell ===

impl Cell {
    pub(crate) fn flow(&self) -> Flow {
        match self.regime {
            Regime::Backlog => Flow::Window((BACKLOG_BYTES / self.size).clamp(1, BACKLOG_MESSAGES)),
            Regime::Lone => Flow::Window(1),
            Regime::Paced => Flow::Rate(PACED_LINES),
        }
    }

    /// The gateway's pace interval: the default, but zero for lone lines.
    pub(crate) fn pace(&self) -> Duration {
        if self.regime == Regime::Lone { Duration::ZERO } else { Limits::default().pace }
    }

    /// Bytes that all followers together read before the measurement; the same for all contenders.
    pub(crate) fn warm_up_bytes(&self) -> u64 {
        match (self.regime, self.security) {
            (Regime::Backlog, Security::Tls) => WARM_UP_BYTES * self.followers as u64,
            _ => 0,
        }
    }

    /// Whether `kind` can run this cell. Servers of other projects run with their default setup, without TLS.
    /// Websockets run with TLS.
    pub(crate) fn admits(&self, kind: Kind) -> bool {
        match self.security {
            Security::Plain => !kind.is_websocket(),
            Security::Tls => !kind.is_peer(),
        }
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { regime, size, followers, security } = self;
        write!(f, "{regime:?}, {size} B, {followers} followers, {security:?}")
    }
}
