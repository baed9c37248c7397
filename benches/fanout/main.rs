//! Measures the server's cost of delivering lines to many followers. Compares the gateway with raw sockets, a
//! simple tonic server, websockets, and (without TLS) NATS and Redis, in one interleaved run.
//! docs/PERFORMANCE.md has the method and the last results.
//!
//! Each contender runs in its own process ([`server`], [`peers`]). This process publishes numbered lines to
//! it over TCP and follows them over one connection per follower, from one thread ([`client`]). CPU time and
//! memory come from the operating system ([`measure`]). A sample counts only if every follower received every
//! line.

#![allow(missing_docs, clippy::print_stdout, reason = "a program that prints its results")]

mod client;
mod contender;
mod costs;
#[cfg(feature = "nats")]
mod fleet;
mod goals;
mod measure;
mod peers;
mod plan;
mod report;
mod server;

use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::RangedU64ValueParser;
use clap::{Parser, Subcommand};

use contender::Kind;
use plan::{Cell, Regime, Security};
use report::{Report, Row};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Measures the server's cost of delivering lines to many followers, compared with other servers.
#[derive(Debug, Parser)]
#[allow(clippy::struct_excessive_bools, reason = "flags")]
#[command(name = "cargo bench --bench fanout --", args_conflicts_with_subcommands = true)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// Run a few cells, in under three minutes.
    #[arg(long)]
    quick: bool,
    /// Run one cell and check only the two cliffs (docs/PERFORMANCE.md); the exit code is the result.
    #[arg(long)]
    gate: bool,
    /// Compare websockets, of the gateway and of two libraries, with gRPC.
    #[arg(long)]
    websockets: bool,
    /// Measure a fleet over a NATS server: CPU per frame, delays and takeovers. Needs the feature `nats`.
    #[arg(long)]
    fleet: bool,
    /// Add NATS and Redis if they are installed (apt-get install nats-server redis-server).
    #[arg(long)]
    peers: bool,
    /// Run only these contenders.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Kind>,
    /// Run cells of these regimes, instead of the default plan.
    #[arg(long, value_delimiter = ',')]
    regimes: Vec<Regime>,
    /// Message sizes in bytes, newline included.
    #[arg(long, value_delimiter = ',', default_values_t = [4_096, 100],
        value_parser = RangedU64ValueParser::<u64>::new().range(client::LINE_MIN_BYTES..=65_536))]
    sizes: Vec<u64>,
    /// Numbers of followers.
    #[arg(long, value_delimiter = ',', default_values_t = [100])]
    followers: Vec<usize>,
    /// With or without TLS.
    #[arg(long, value_delimiter = ',', default_value = "tls")]
    security: Vec<Security>,
    /// Repetitions per cell; the table shows medians.
    #[arg(long, default_value_t = 5)]
    reps: usize,
    /// Seconds per repetition.
    #[arg(long, default_value_t = 0.7)]
    seconds: f64,
    /// Write the results to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Set by cargo.
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a contender for the parent process.
    #[command(hide = true)]
    Serve(server::Task),
    /// Send or receive frames for the parent process.
    #[cfg(feature = "nats")]
    #[command(hide = true)]
    Probe(fleet::Probe),
    #[command(flatten)]
    Cost(costs::Cost),
}

fn main() -> Result<()> {
    let args = Args::parse();
    leasemux::sys::process::raise_fd_limit(u64::MAX);
    match &args.command {
        Some(Command::Serve(task)) => server::serve(task),
        #[cfg(feature = "nats")]
        Some(Command::Probe(probe)) => probe.run(),
        Some(Command::Cost(cost)) => costs::run(cost),
        None if args.fleet => measure_fleet(args.reps),
        None => compare(&args),
    }
}

#[cfg(feature = "nats")]
fn measure_fleet(reps: usize) -> Result<()> {
    fleet::run(reps)
}

#[cfg(not(feature = "nats"))]
fn measure_fleet(_: usize) -> Result<()> {
    Err("--fleet needs the feature `nats`: cargo bench --bench fanout --features nats -- --fleet".into())
}

fn compare(args: &Args) -> Result<()> {
    let mut kinds = match (args.only.as_slice(), args.websockets) {
        ([], true) => vec![Kind::Raw, Kind::Gateway, Kind::Ws, Kind::Tungstenite, Kind::TokioWebsockets],
        ([], false) => vec![Kind::Raw, Kind::Naive, Kind::Gateway],
        (only, _) => only.to_vec(),
    };
    if args.peers && !args.gate {
        kinds.extend([Kind::Nats, Kind::Redis]);
    }
    let reps = if args.quick { args.reps.min(3) } else { args.reps.max(1) };
    let mut report = Report::new(args.seconds, reps);
    println!("{reps} repetitions of {} s, medians", args.seconds);
    let mut all_kept = true;
    for cell in cells(args) {
        // Many followers take seconds to connect.
        let reps = if cell.followers > 1_000 { reps.min(3) } else { reps };
        let rows = run(&cell, &mut kinds, reps, Duration::from_secs_f64(args.seconds))?;
        let goals = if args.gate { goals::GATE.to_vec() } else { goals::of(&cell) };
        all_kept &= report.add(&cell, rows, &goals);
    }
    report.conclude(&goals::BOUNDS);
    if let Some(path) = &args.json {
        report.write(path)?;
    }
    if args.gate && !all_kept {
        return Err("the gateway is beyond a cliff, see docs/PERFORMANCE.md".into());
    }
    Ok(())
}

fn cells(args: &Args) -> Vec<Cell> {
    if args.gate {
        return vec![plan::GATE];
    }
    if args.regimes.is_empty() && args.websockets {
        return plan::websockets();
    }
    if args.regimes.is_empty() {
        return if args.quick { plan::quick() } else { plan::full() };
    }
    let mut cells = Vec::new();
    for &security in &args.security {
        for &regime in &args.regimes {
            for &size in &args.sizes {
                cells.extend(args.followers.iter().map(|&followers| Cell {
                    regime,
                    size,
                    followers,
                    security,
                }));
            }
        }
    }
    cells
}

/// Takes samples of all contenders, in turns, so that noise affects all alike. Skips contenders that are not
/// installed.
fn run(cell: &Cell, kinds: &mut Vec<Kind>, reps: usize, span: Duration) -> Result<Vec<Row>> {
    let mut samples: Vec<(Kind, Vec<_>)> =
        kinds.iter().filter(|kind| cell.admits(**kind)).map(|kind| (*kind, Vec::new())).collect();
    for _ in 0..reps {
        for (kind, samples) in &mut samples {
            match measure::sample(*kind, cell, span).map_err(|e| format!("{cell}: {kind}: {e}"))? {
                Some(sample) => samples.push(sample),
                None if kinds.contains(kind) => {
                    println!("{kind} is not installed, skipped");
                    kinds.retain(|other| other != kind);
                }
                None => {}
            }
        }
    }
    samples.retain(|(_, samples)| !samples.is_empty());
    Ok(samples.into_iter().map(|(kind, samples)| Row::new(*cell, kind, samples)).collect())
}
