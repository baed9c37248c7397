//! What delivering a line to many followers costs: server CPU per message and per GB, beside the least that the same TLS
//! library allows ("raw") and beside the obvious tonic server ("naive"), all in one interleaved run.
//!
//! Each contender is a process of its own, so that its CPU time is its own. The parent publishes messages to it over TCP and
//! follows them over TLS, both from one thread, with at most a window of messages outstanding: a large window makes a
//! backlog, a window of one makes every message a wake-up and a write of its own ("lone"). On loopback a sender pays for
//! much of the receiver's work, and who pays for a wake-up varies; hence also the column for server and client together.
//!
//! `cargo bench --bench fanout -- --help` lists the flags.

#![allow(missing_docs, clippy::print_stdout, reason = "a program, and its output is the point")]

mod contender;
mod drain;
mod measure;
mod naive;
mod raw;
mod wire;

use std::error::Error;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use contender::Kind;
use measure::{Load, Sample};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Messages outstanding at most in a backlog, in bytes: what a loud service is ahead of its followers.
const BACKLOG_BYTES: usize = 512 * 1024;

/// Messages outstanding at most in a backlog of small messages.
const BACKLOG_MESSAGES: usize = 1_024;

/// Server CPU per delivered message, beside raw sockets and a naive server.
#[derive(Debug, Parser)]
struct Args {
    /// Followers, one TLS connection each.
    #[arg(long, default_value_t = 100)]
    followers: usize,
    /// Message sizes in bytes, newline included.
    #[arg(long, value_delimiter = ',', default_values_t = [4096, 100])]
    sizes: Vec<usize>,
    /// Contenders.
    #[arg(long, value_delimiter = ',', default_values_t = [Kind::Raw, Kind::Naive])]
    only: Vec<Kind>,
    /// Repetitions; the table shows medians.
    #[arg(long, default_value_t = 5)]
    reps: usize,
    /// Seconds measured in each.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// One short repetition with few followers: whether it works, not how fast.
    #[arg(long)]
    quick: bool,
    /// Set by cargo.
    #[arg(long, hide = true)]
    bench: bool,
    /// Be this contender, serving the parent process.
    #[arg(long, hide = true)]
    contender: Option<Kind>,
    /// Where a contender finds its certificate.
    #[arg(long, hide = true, default_value = ".")]
    dir: std::path::PathBuf,
}

fn main() -> Result<()> {
    let mut args = Args::parse();
    contender::raise_file_limit()?;
    if let Some(kind) = args.contender {
        return contender::serve(kind, &args.dir, args.sizes.first().copied().unwrap_or(1));
    }
    if args.quick {
        (args.followers, args.reps, args.seconds) = (args.followers.min(20), 1, 0.3);
    }
    for &size in &args.sizes {
        let backlog = (BACKLOG_BYTES / size.max(1)).clamp(1, BACKLOG_MESSAGES);
        for (regime, window) in [("backlog", backlog), ("lone", 1)] {
            let load =
                Load { followers: args.followers, size, window, span: Duration::from_secs_f64(args.seconds) };
            println!("\n{regime} of {size} B messages, {} followers, window {window}", args.followers);
            table(&args.only, &run(&args, &load)?);
        }
    }
    Ok(())
}

/// Samples of each contender, one of each per repetition, so that a noisy minute hits all alike.
fn run(args: &Args, load: &Load) -> Result<Vec<Vec<Sample>>> {
    let mut samples = vec![Vec::new(); args.only.len()];
    for _ in 0..args.reps.max(1) {
        for (kind, samples) in args.only.iter().zip(&mut samples) {
            let sample = measure::sample(*kind, load);
            samples.push(sample.map_err(|e| format!("{kind}: {e}"))?);
        }
    }
    Ok(samples)
}

/// Ratios are to the first contender.
fn table(kinds: &[Kind], samples: &[Vec<Sample>]) {
    println!(
        "{:10} {:>12} {:>8} {:>8} {:>14} {:>9} {:>7}",
        "", "us/message", "s/GB", "ratio", "server+client", "MB/s", "spread"
    );
    let first = samples
        .first()
        .map_or((1.0, 1.0), |first| (median(first, Sample::server), median(first, Sample::total)));
    for (kind, samples) in kinds.iter().zip(samples) {
        let (server, total) = (median(samples, Sample::server), median(samples, Sample::total));
        let ends =
            |pick: fn(f64, f64) -> f64| samples.iter().map(Sample::server).reduce(pick).unwrap_or(server);
        println!(
            "{:10} {:12.2} {:8.3} {:7.2}x {:13.2}x {:9.0} {:6.0}%",
            kind.to_string(),
            server * 1e6,
            median(samples, Sample::server_per_byte) * 1e9,
            server / first.0,
            total / first.1,
            median(samples, Sample::bytes_per_second) / 1e6,
            (ends(f64::max) - ends(f64::min)) / server * 100.0,
        );
    }
}

fn median(samples: &[Sample], value: fn(&Sample) -> f64) -> f64 {
    let mut values: Vec<f64> = samples.iter().map(value).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.to_possible_value().map_or(Ok(()), |value| f.pad(value.get_name()))
    }
}
