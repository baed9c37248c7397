//! What delivering a line to many followers costs the server: CPU per message and per GB, of the gateway, of the least that the
//! same TLS library allows ("raw") and of the obvious tonic server ("naive"), all in one interleaved run.
//!
//! Each contender is a process of its own with one thread, so that its CPU time is its own. The parent publishes numbered lines
//! to it over TCP and follows them over mutual TLS, a connection per follower, all from one thread and with at most a window of
//! messages outstanding: a large window makes a backlog; a window of one makes every message a wake-up and a write of its own
//! ("lone"). In the end it asks whether every follower got as much as was published, and compares one follower's lines with
//! what was published byte by byte.
//!
//! On loopback a sender pays for much of the receiver's work, and who pays for a wake-up varies; hence also the column for
//! server and client together, which is the one to read for lone messages.

#![allow(missing_docs, clippy::print_stdout, reason = "a program, and its output is the point")]

mod contender;
mod drain;
mod follower;
mod gateway;
mod measure;
mod naive;
mod raw;
mod table;
mod wire;

use std::error::Error;
use std::time::Duration;

use clap::Parser;
use clap::builder::RangedU64ValueParser;
use leasemux::model::limits::Limits;

use contender::Kind;
use measure::Load;
use table::Samples;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Messages outstanding at most in a backlog, in bytes: what a loud service is ahead of its followers. Far below the gateway's
/// ring, so that nobody lags.
const BACKLOG_BYTES: usize = 512 * 1024;

/// Messages outstanding at most in a backlog of small messages.
const BACKLOG_MESSAGES: usize = 1_024;

/// Server CPU per delivered message of the gateway, beside raw sockets and a naive server.
#[derive(Debug, Parser)]
#[command(name = "cargo bench --bench fanout --")]
struct Args {
    /// Followers, one TLS connection each.
    #[arg(long, default_value_t = 100)]
    followers: usize,
    /// Message sizes in bytes, newline included, at least 16.
    #[arg(long, value_delimiter = ',', default_values_t = [table::CLIFF_BYTES, 100],
        value_parser = RangedU64ValueParser::<usize>::new().range(16..=65_536))]
    sizes: Vec<usize>,
    /// Contenders.
    #[arg(long, value_delimiter = ',', default_values_t = [Kind::Raw, Kind::Naive, Kind::Gateway])]
    only: Vec<Kind>,
    /// Repetitions; the table shows medians.
    #[arg(long, default_value_t = 5)]
    reps: usize,
    /// Seconds measured in each.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// How long the gateway lets lines wait for more, in milliseconds [default: as served in a backlog, 0 for lone messages].
    #[arg(long)]
    pace: Option<u64>,
    /// One short repetition with few followers: whether it works, not how fast.
    #[arg(long)]
    quick: bool,
    /// Set by cargo.
    #[arg(long, hide = true)]
    bench: bool,
    /// Be this contender, serving the parent process.
    #[arg(long, hide = true)]
    contender: Option<Kind>,
    /// Where a contender finds its tenant, and puts its certificate.
    #[arg(long, hide = true, default_value = ".")]
    dir: std::path::PathBuf,
}

fn main() -> Result<()> {
    let mut args = Args::parse();
    contender::raise_file_limit()?;
    if let Some(kind) = args.contender {
        return contender::serve(kind, &args);
    }
    if args.quick {
        (args.followers, args.reps, args.seconds) = (args.followers.min(20), 1, 0.3);
    }
    let cores = std::thread::available_parallelism()?;
    println!("{} followers, {} x {} s, {cores} cores", args.followers, args.reps, args.seconds);
    for &size in &args.sizes {
        let backlog = (BACKLOG_BYTES / size).clamp(1, BACKLOG_MESSAGES);
        println!("\nbacklog of {size} B messages, {backlog} outstanding");
        let samples = run(&args, size, backlog, Limits::default().pace)?;
        table::print(&samples);
        if size == table::CLIFF_BYTES {
            table::print_cliffs(&samples);
        }
        println!("\nlone {size} B messages");
        table::print(&run(&args, size, 1, Duration::ZERO)?);
    }
    Ok(())
}

/// Samples of each contender, one of each per repetition, so that a noisy minute hits all alike.
fn run(args: &Args, size: usize, window: usize, pace: Duration) -> Result<Samples> {
    let load = Load {
        followers: args.followers,
        size,
        window,
        pace: args.pace.map_or(pace, Duration::from_millis),
        span: Duration::from_secs_f64(args.seconds),
    };
    let mut samples: Samples = args.only.iter().map(|kind| (*kind, Vec::new())).collect();
    for _ in 0..args.reps.max(1) {
        for (kind, samples) in &mut samples {
            samples.push(measure::sample(*kind, &load).map_err(|e| format!("{kind}: {e}"))?);
        }
    }
    Ok(samples)
}
