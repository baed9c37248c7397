//! Simulation of the whole gateway: random scenarios in which followers of several gateways read the logs of
//! a cluster, while everything fails that can. A seed reproduces a scenario exactly.
//!
//! Real parts: the edge from HTTP/2 on, multiplexer, `kube` platform with its HTTP client, `node` platform
//! with its log files, the exchange between gateways, which are a fleet or not. Simulated parts: the API
//! server with its kubelets and containers ([`crate::kube::cluster`]), what a node's kubelet and runtime do
//! to the files (`files`), the disk's delays, failures and notifications (`disk`), the bus
//! ([`crate::fleet::bus`]), the network (pipes in memory), time (paused; it advances when all tasks wait),
//! random numbers and the system's clock (`leasemux-determinism`). All tasks are on one thread; files are
//! read on it, too.
//!
//! `LEASEMUX_TEST_SEED` and `LEASEMUX_TEST_SEEDS` choose seeds as for other random tests; by default they are
//! the same each time. `cargo run --release --example simulate -- --seeds 5000` runs more. With
//! `LEASEMUX_SIMULATION_TRACE` and a file, one seed writes all its events.

mod check;
mod clock;
mod disk;
mod files;
mod follower;
pub(crate) mod outcome;
pub(crate) mod pool;
mod scenario;
mod world;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::ops::Range;

    use super::outcome::Outcome;
    use super::pool::{Worker, work};
    use crate::support::seeds::number;

    /// Seeds that `cargo test` runs.
    const SEEDS: u64 = 200;

    /// Seeds that run twice.
    const TWICE: u64 = 20;

    /// Returns the seeds to try, from 0 on unless the environment says otherwise. They are the same each
    /// time, so that a change is tested, and not chance. `.ci/full` tries others.
    fn seeds(count: u64) -> Range<u64> {
        let first = number("LEASEMUX_TEST_SEED").unwrap_or(0);
        first..first + number("LEASEMUX_TEST_SEEDS").unwrap_or(count)
    }

    /// This program, as a worker.
    fn worker() -> Worker {
        let args = [
            "--exact",
            "simulation::tests::worker_simulates_one_seed",
            "--ignored",
            "--nocapture",
            "--test-threads=1",
        ];
        Worker { program: std::env::current_exe().unwrap(), args: args.map(ToOwned::to_owned).to_vec() }
    }

    fn outcomes(seeds: impl Iterator<Item = u64> + Send) -> BTreeMap<u64, Outcome> {
        let at_once = std::thread::available_parallelism().map_or(1, usize::from);
        let mut outcomes = BTreeMap::new();
        worker().run(seeds, at_once, |outcome| drop(outcomes.insert(outcome.seed, outcome)));
        outcomes
    }

    #[test]
    #[ignore = "a process of the other tests"]
    fn worker_simulates_one_seed() {
        work();
    }

    #[test]
    fn seed_reproduces_all_events() {
        let seeds: Vec<u64> = seeds(TWICE).collect();
        let (first, second) = (outcomes(seeds.iter().copied()), outcomes(seeds.iter().copied()));
        for (seed, outcome) in &first {
            assert_eq!(*outcome, second[seed], "seed {seed}");
        }
    }

    #[test]
    fn random_faults_lose_and_repeat_nothing() {
        let outcomes = outcomes(seeds(SEEDS));
        let mut sum = Outcome::default();
        for outcome in outcomes.values() {
            assert_eq!(outcome.violation, None, "LEASEMUX_TEST_SEED={}", outcome.seed);
            sum.add(outcome);
        }
        println!("{sum:#?}");
    }
}
