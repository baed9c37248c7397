//! Runs simulations of the exchange between gateways, as tests/it/exchange.rs describes, and prints what they
//! did:
//!
//! ```sh
//! cargo run --release --example simulate_exchange -- --seeds 5000
//! ```
//!
//! Exits with 1 if a line was lost, repeated or wrong, or if not exactly one gateway published at the end,
//! and names the seeds.

#![allow(clippy::print_stdout, reason = "a program, and its output is the point")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "shared with tests: one that cannot go on fails")]
#![allow(dead_code, reason = "the tests use more of these modules")]

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Instant;

use clap::Parser;

use self::it::exchange::scenario::{self, Outcome};

#[path = "../tests/it"]
mod it {
    pub(crate) mod exchange;
}

/// Most seeds that are named.
const NAMED_MAX: usize = 20;

/// Simulates the exchange between gateways with random faults.
#[derive(Debug, Parser)]
struct Args {
    /// Number of seeds.
    #[arg(long, default_value_t = 1_000)]
    seeds: u64,
    /// First seed.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// End at the first error.
    #[arg(long)]
    until_error: bool,
}

/// Runs a scenario. A panic is an error of it.
fn simulate(seed: u64) -> Outcome {
    std::panic::catch_unwind(|| scenario::run(seed)).unwrap_or_else(|_| Outcome {
        seed,
        error: Some("panic".to_owned()),
        ..Outcome::default()
    })
}

fn main() -> ExitCode {
    let args = Args::parse();
    let (next, end) = (AtomicU64::new(args.from), args.from.saturating_add(args.seeds));
    let (mut counts, mut errors) = (BTreeMap::<&str, u64>::new(), BTreeMap::new());
    let (mut seeds, mut printed, mut received) = (0_u32, 0, 0);
    let began = Instant::now();
    std::thread::scope(|scope| {
        let (outcomes, all) = mpsc::sync_channel(64);
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            let (outcomes, next) = (outcomes.clone(), &next);
            scope.spawn(move || {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end || outcomes.send(simulate(seed)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(outcomes);
        for outcome in all {
            seeds += 1;
            (printed, received) = (printed + outcome.printed, received + outcome.received);
            for (name, count) in outcome.counts {
                *counts.entry(name).or_default() += count;
            }
            if let Some(error) = outcome.error {
                errors.insert(outcome.seed, error);
                if args.until_error {
                    next.store(end, Ordering::Relaxed);
                }
            }
        }
    });
    let seconds = began.elapsed().as_secs_f64();
    println!("seeds    {seeds} in {seconds:.0} s, {:.1} per second", f64::from(seeds) / seconds);
    println!("lines    {printed} printed, {received} received at the end");
    for (name, count) in counts {
        println!("{name}: {count}");
    }
    println!("seeds with errors: {}", errors.len());
    for (seed, error) in errors.iter().take(NAMED_MAX) {
        println!("--from {seed} --seeds 1: {error}");
    }
    ExitCode::from(u8::from(!errors.is_empty()))
}
