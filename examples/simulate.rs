//! Runs simulations of the gateway, as tests/it/simulation.rs describes, and prints what they did:
//!
//! ```sh
//! cargo run --release --example simulate -- --seeds 5000
//! ```
//!
//! Exits with 1 if a line was lost, repeated or wrong, and names the seeds.

#![allow(dead_code, unused_imports, reason = "the tests use more of these modules")]
#![allow(clippy::print_stdout, reason = "a program, and its output is the point")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "shared with tests: one that cannot go on fails")]

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;

use self::it::simulation::outcome::Outcome;
use self::it::simulation::pool::{self, Worker};
use self::it::{fleet, kube, support};

#[path = "../tests/it"]
mod it {
    pub(crate) mod fleet {
        pub(crate) mod bus;
    }
    pub(crate) mod kube {
        pub(crate) mod cluster;
    }
    pub(crate) mod simulation;
    pub(crate) mod support {
        pub(crate) mod fake_platform;
        pub(crate) mod gateway;
        pub(crate) mod ids;
        pub(crate) mod loss_check;

        pub(crate) use ids::account;
    }
}

/// Most seeds that are named.
const NAMED_MAX: usize = 20;

/// Simulates the gateway with random faults.
#[derive(Debug, Parser)]
struct Args {
    /// Number of seeds.
    #[arg(long, default_value_t = 1_000)]
    seeds: u64,
    /// First seed.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Number of processes at once; default: one per processor.
    #[arg(long)]
    jobs: Option<usize>,
    /// End at the first error.
    #[arg(long)]
    until_error: bool,
    #[arg(long, hide = true)]
    worker: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.worker {
        pool::work();
        return ExitCode::SUCCESS;
    }
    let program = std::env::current_exe().expect("this program has a path");
    let worker = Worker { program, args: vec!["--worker".to_owned()] };
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let (mut sum, mut count) = (Outcome::default(), 0_u32);
    let mut violations = BTreeMap::new();
    let began = Instant::now();
    let failed = std::sync::atomic::AtomicBool::new(false);
    let is_over = || args.until_error && failed.load(std::sync::atomic::Ordering::Relaxed);
    let seeds = (args.from..args.from + args.seeds).take_while(|_| !is_over());
    worker.run(seeds, args.jobs.unwrap_or(processors), |outcome| {
        count += 1;
        sum.add(&outcome);
        if let Some(violation) = outcome.violation {
            failed.store(true, std::sync::atomic::Ordering::Relaxed);
            violations.insert(outcome.seed, violation);
        }
    });
    let seconds = began.elapsed().as_secs_f64();
    println!("seeds                {count} in {seconds:.0} s, {:.1} per second", f64::from(count) / seconds);
    println!("simulated time       {} h", sum.seconds / 3_600);
    println!("actions              {}, with faults {:?}", sum.actions, sum.faults);
    println!(
        "lines                {} printed, {} delivered, over {} streams",
        sum.printed, sum.lines, sum.streams
    );
    for (cause, (gaps, lines)) in &sum.gaps {
        println!("gaps                 {cause}: {gaps}, of {lines} lines");
    }
    for (cause, lines) in &sum.excused {
        println!("unknowable           {cause}: {lines} lines");
    }
    println!("ended streams        {:?}", sum.ends);
    let mut kinds = BTreeMap::from([("Loss".to_owned(), 0_usize), ("Repeat".to_owned(), 0)]);
    for violation in violations.values() {
        *kinds.entry(format!("{:?}", violation.kind)).or_default() += 1;
    }
    println!("seeds with errors    {kinds:?}");
    for (seed, violation) in violations.iter().take(NAMED_MAX) {
        println!("--from {seed} --seeds 1: {:?}: {}", violation.kind, violation.text);
    }
    ExitCode::from(u8::from(!violations.is_empty()))
}
