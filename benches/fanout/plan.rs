//! What is measured: regimes, cells, and which of them a run goes through.

use std::fmt;
use std::time::Duration;

use clap::ValueEnum;
use leasemux::model::limits::Limits;
use serde::Serialize;

use crate::contender::Kind;

/// Messages outstanding at most in a backlog, in bytes: what a loud service is ahead of its followers. Far below the gateway's
/// ring, so that nobody lags.
const BACKLOG_BYTES: u64 = 512 * 1024;

/// Messages outstanding at most in a backlog of small messages.
const BACKLOG_MESSAGES: u64 = 1_024;

/// Lines per second of the paced regime: a busy service.
const PACED_LINES: u64 = 1_000;

/// How messages come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Regime {
    /// As fast as the slowest follower takes them, always some more waiting.
    Backlog,
    /// One at a time, the next when the last has reached everyone: each is a wake-up and a write of its own.
    Lone,
    /// A thousand a second, whoever has got them or not; the gateway paces them as it is served.
    Paced,
}

/// Whether connections are secured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Security {
    /// Mutual TLS 1.3, the real case.
    Tls,
    /// Nothing. The product has no such port; what stands in for it is in `server/plain.rs`.
    Plain,
}

/// One row of the plan: all contenders bear this, in turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Cell {
    pub(crate) regime: Regime,
    /// Bytes of a message, newline included.
    pub(crate) size: u64,
    pub(crate) followers: usize,
    pub(crate) security: Security,
}

/// How much the publisher may be ahead.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Flow {
    /// Messages that the slowest follower has not got yet, at most.
    Window(u64),
    /// Messages per second.
    Rate(u64),
}

/// What a run without a choice goes through: the cells that the goals are about, and the curves over the number of followers.
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

/// One cell of each regime and both kinds of connection: under three minutes.
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

/// The one cell that shows on which side of both cliffs the gateway is.
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

    /// How long the gateway lets lines wait for more: as served, but for lone ones.
    pub(crate) fn pace(&self) -> Duration {
        if self.regime == Regime::Lone { Duration::ZERO } else { Limits::default().pace }
    }

    /// Who can bear it: the peers are measured as they come, without TLS.
    pub(crate) fn admits(&self, kind: Kind) -> bool {
        self.security == Security::Plain || !kind.is_peer()
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { regime, size, followers, security } = self;
        write!(f, "{regime:?}, {size} B, {followers} followers, {security:?}")
    }
}
