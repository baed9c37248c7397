//! Runs each seed in a process of its own. tokio mixes the number of runtimes that a process has started into
//! its seeds, and some crates keep a seed for the whole process.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Mutex, mpsc};

use super::outcome::{Kind, Outcome, Violation};

/// The variable with the seed of a worker.
const SEED: &str = "LEASEMUX_SIMULATION_SEED";

/// First word of the line with the outcome.
const OUTCOME: &str = "outcome: ";

/// Longest text of a process that ended without an outcome.
const TEXT_MAX: usize = 2_000;

/// A program that calls [`work`].
#[derive(Clone, Debug)]
pub(crate) struct Worker {
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<String>,
}

/// Runs the seed in the environment, and prints its outcome.
#[expect(clippy::print_stdout, reason = "the worker's output")]
pub(crate) fn work() {
    if std::env::var_os("RUST_LOG").is_some() {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time().init();
    }
    let seed = std::env::var(SEED).unwrap_or_else(|_| panic!("{SEED} is set by the parent process"));
    let outcome = super::scenario::run(seed.parse().unwrap());
    // After what the test harness has printed.
    println!("\n{OUTCOME}{}", serde_json::to_string(&outcome).unwrap());
}

impl Worker {
    /// Runs seeds, some at once. Calls `done` with each outcome, in any order.
    pub(crate) fn run(
        &self,
        seeds: impl IntoIterator<Item = u64, IntoIter: Send>,
        at_once: usize,
        mut done: impl FnMut(Outcome),
    ) {
        let seeds = Mutex::new(seeds.into_iter());
        let (outcomes, received) = mpsc::channel();
        std::thread::scope(|scope| {
            for _ in 0..at_once {
                let (outcomes, seeds) = (outcomes.clone(), &seeds);
                scope.spawn(move || {
                    loop {
                        // Not in the loop's head, where the lock would be held for the whole turn.
                        let seed = seeds.lock().unwrap().next();
                        let Some(seed) = seed else { return };
                        if outcomes.send(self.run_one(seed)).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(outcomes);
            received.into_iter().for_each(&mut done);
        });
    }

    fn run_one(&self, seed: u64) -> Outcome {
        let mut command = Command::new(&self.program);
        command.args(&self.args).env(SEED, seed.to_string()).stdin(Stdio::null());
        let output = command.output().expect("a worker starts");
        let text = String::from_utf8_lossy(&output.stdout);
        let outcome = text.lines().find_map(|line| line.strip_prefix(OUTCOME));
        outcome.map_or_else(
            || {
                let all = format!("{}\n{text}{}", output.status, String::from_utf8_lossy(&output.stderr));
                let text = all.chars().take(TEXT_MAX).collect();
                let violation = Some(Violation { kind: Kind::Panic, text });
                Outcome { seed, violation, ..Outcome::default() }
            },
            |outcome| serde_json::from_str(outcome).expect("an outcome"),
        )
    }
}
