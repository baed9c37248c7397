//! The gateway's goals: ratios to other contenders, and bounds on figures of its own.

use crate::contender::Kind::{self, Gateway, Naive, Nats, Raw, Redis, Ws};
use crate::measure::Sample;
use crate::plan::Cell;
use crate::plan::Regime::{self, Backlog, Lone, Paced};
use crate::plan::Security::{self, Plain, Tls};

/// Upper bound on the gateway's figure divided by a contender's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Goal {
    /// The gateway over gRPC, or over websockets.
    pub(crate) kind: Kind,
    pub(crate) against: Kind,
    pub(crate) figure: Figure,
    pub(crate) at_most: f64,
}

/// The compared figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Figure {
    /// Server CPU per message.
    Server,
    /// Server and client CPU per message. On loopback, either side may pay for a wake-up, which is most of
    /// the cost of a lone line.
    Total,
    /// Server CPU per byte sent. A websocket frame is longer than the line in a gRPC message.
    SentByte,
}

/// Upper bound on a figure of the gateway in one cell, optionally divided by its figure in another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bound {
    pub(crate) what: &'static str,
    pub(crate) of: Cell,
    pub(crate) over: Option<Cell>,
    pub(crate) figure: fn(&Sample) -> f64,
    pub(crate) at_most: f64,
    pub(crate) unit: &'static str,
}

/// Matches 100 and 1,000 followers.
const ANY: usize = 0;

type Row = (Security, Regime, u64, usize, Kind, Figure, f64);

const SERVER: Figure = Figure::Server;
const TOTAL: Figure = Figure::Total;

const GOALS: [Row; 23] = [
    (Tls, Backlog, 4_096, ANY, Raw, SERVER, 1.3),
    (Tls, Backlog, 4_096, ANY, Naive, SERVER, 0.5),
    (Tls, Backlog, 16_000, ANY, Raw, SERVER, 1.25),
    (Tls, Backlog, 16_000, ANY, Naive, SERVER, 0.5),
    (Tls, Lone, 100, 100, Raw, TOTAL, 1.6),
    (Tls, Lone, 100, 1_000, Raw, TOTAL, 2.0),
    (Plain, Backlog, 4_096, ANY, Raw, SERVER, 1.4),
    (Plain, Backlog, 4_096, ANY, Nats, SERVER, 0.35),
    (Plain, Backlog, 4_096, ANY, Redis, SERVER, 0.5),
    (Plain, Backlog, 4_096, ANY, Naive, SERVER, 0.3),
    (Plain, Backlog, 100, ANY, Raw, SERVER, 2.0),
    (Plain, Backlog, 100, ANY, Nats, SERVER, 0.2),
    (Plain, Backlog, 100, ANY, Redis, SERVER, 0.25),
    (Plain, Backlog, 100, ANY, Naive, SERVER, 0.16),
    (Plain, Backlog, 32_768, ANY, Raw, SERVER, 1.6),
    (Plain, Backlog, 32_768, ANY, Nats, SERVER, 0.5),
    (Plain, Backlog, 32_768, ANY, Naive, SERVER, 0.5),
    (Plain, Lone, 100, ANY, Nats, SERVER, 1.0),
    (Plain, Lone, 100, ANY, Raw, TOTAL, 1.5),
    (Plain, Lone, 4_096, ANY, Nats, SERVER, 1.0),
    (Plain, Lone, 4_096, ANY, Raw, TOTAL, 1.5),
    (Plain, Paced, 100, 100, Nats, SERVER, 0.25),
    (Plain, Paced, 100, 100, Redis, SERVER, 0.35),
];

/// Returns the goals of `cell`.
pub(crate) fn of(cell: &Cell) -> Vec<Goal> {
    let matching = GOALS.iter().filter(|(security, regime, size, followers, ..)| {
        let goal = Cell { security: *security, regime: *regime, size: *size, followers: cell.followers };
        let counted = [100, 1_000].contains(&cell.followers);
        goal == *cell && (*followers == cell.followers || *followers == ANY && counted)
    });
    let grpc =
        matching.map(|&(.., against, figure, at_most)| Goal { kind: Gateway, against, figure, at_most });
    let websocket = (cell.security == Tls && cell.regime == Backlog).then_some(WEBSOCKET);
    grpc.chain(websocket).collect()
}

/// Goal of websockets for a backlog over TLS.
const WEBSOCKET: Goal = Goal { kind: Ws, against: Gateway, figure: Figure::SentByte, at_most: 1.3 };

const fn cell(security: Security, regime: Regime, size: u64, followers: usize) -> Cell {
    Cell { regime, size, followers, security }
}

/// The gateway's default pace interval, in seconds.
const PACE: f64 = 0.005;

const MEBIBYTE: f64 = 1_048_576.0;

/// Bounds on the gateway's own figures.
pub(crate) const BOUNDS: [Bound; 6] = [
    Bound {
        what: "p99 delay of paced lines over TLS",
        of: cell(Tls, Paced, 100, 100),
        over: None,
        figure: |sample| sample.p99 / PACE,
        at_most: 3.0,
        unit: "paces of 5 ms",
    },
    Bound {
        what: "p99 delay of paced lines without TLS",
        of: cell(Plain, Paced, 100, 100),
        over: None,
        figure: |sample| sample.p99 / PACE,
        at_most: 3.0,
        unit: "paces of 5 ms",
    },
    Bound {
        what: "server CPU of a backlog of 4 KiB for 100 followers, TLS over plain",
        of: cell(Tls, Backlog, 4_096, 100),
        over: Some(cell(Plain, Backlog, 4_096, 100)),
        figure: |sample| sample.server,
        at_most: 2.0,
        unit: "x",
    },
    Bound {
        what: "server CPU of a message of a backlog of 4 KiB over TLS, 10,000 followers over 10",
        of: cell(Tls, Backlog, 4_096, 10_000),
        over: Some(cell(Tls, Backlog, 4_096, 10)),
        figure: |sample| sample.server,
        at_most: 2.0,
        unit: "x",
    },
    Bound {
        what: "server CPU of a lone line of 100 B over TLS, 10,000 followers over 10",
        of: cell(Tls, Lone, 100, 10_000),
        over: Some(cell(Tls, Lone, 100, 10)),
        figure: |sample| sample.server,
        at_most: 2.0,
        unit: "x",
    },
    Bound {
        what: "memory of the whole server with 10,000 followers over TLS",
        of: cell(Tls, Backlog, 4_096, 10_000),
        over: None,
        figure: |sample| sample.memory / MEBIBYTE,
        at_most: 400.0,
        unit: "MiB",
    },
];

/// Goals of `--gate`: wide enough for a noisy machine of two cores, and below the cost of either cliff.
/// Messages that are shared but sent one by one cost twice as much as the naive server. A system call per
/// DATA frame costs about twice as much as raw sockets.
pub(crate) const GATE: [Goal; 2] = [
    Goal { kind: Gateway, against: Raw, figure: SERVER, at_most: 1.75 },
    Goal { kind: Gateway, against: Naive, figure: SERVER, at_most: 0.75 },
];

/// Returns the word that reports whether a goal was met.
pub(crate) fn verdict(value: f64, at_most: f64) -> &'static str {
    if value <= at_most { "met" } else { "MISSED" }
}

// === impl Figure ===

impl Figure {
    pub(crate) fn of(self, sample: &Sample) -> f64 {
        match self {
            Self::Server => sample.server,
            Self::Total => sample.total(),
            Self::SentByte => sample.server / sample.sent,
        }
    }

    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Server => "server CPU",
            Self::Total => "server and client CPU",
            Self::SentByte => "server CPU per byte sent",
        }
    }
}
