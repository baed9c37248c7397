//! Followers that lag are sent the lines from the API server again.

use std::time::Duration;

use leasemux::model::limits::Limits;
use leasemux::model::proto::lease::{OnLag, ServiceLogsRequest};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::cluster::RunKey;
use super::kubelet_faults::check;
use super::{SERVICE, Scenario, ended_with, eventually, in_time};
use crate::support::gateway::Stream;
use crate::support::seeds::seeds;

/// A millisecond.
const STEP: i64 = 1_000_000;

/// Length of a line: some hundred fill ring, stream buffer, pipe and the client's window.
const LINE_BYTES: usize = 2_000;

impl Scenario {
    async fn with_small_ring() -> Self {
        // The clock advances by minutes at a time.
        let stall = Duration::from_secs(86_400);
        Self::with_limits(1, Limits { ring_max_bytes: 64 * 1024, stall, ..Limits::default() }).await
    }

    /// Returns a follower of new lines that is refilled. The shared tail reads the log from then on.
    async fn refilled(&self, run: &RunKey) -> Stream {
        let request = ServiceLogsRequest {
            follow: true,
            tail_lines: Some(0),
            on_lag: OnLag::Refill.into(),
            ..self.setup.request()
        };
        let mut follower = self.setup.open(request).await.unwrap();
        while follower.received.lines(SERVICE, 0) == 0 {
            self.print_wide(run, 1, STEP);
            _ = follower.next_if_ready().await.unwrap();
        }
        follower
    }

    fn print_wide(&self, run: &RunKey, lines: usize, step: i64) {
        let from = self.cluster.printed(run).len();
        let text = |number| format!("{}/{number} {}", run.2, "x".repeat(LINE_BYTES));
        let lines: Vec<String> = (from..from + lines).map(text).collect();
        self.cluster.print_lines(run, &lines, step);
    }

    /// Waits until the shared tail has read this number of lines.
    async fn has_read(&self, lines: usize) {
        eventually(async || self.setup.gateway.metric("leasemux_lines_in_total") >= lines as u64).await;
    }

    fn last_line(&self, run: &RunKey) -> String {
        self.cluster.printed(run).pop().unwrap()
    }
}

#[tokio::test]
async fn refill_requests_last_lines_only() {
    let scenario = Scenario::with_small_ring().await;
    let run = scenario.run("a");
    scenario.shows(&[1]).await;
    // A long log that no follower wants.
    scenario.cluster.print(&run, 20_000, STEP);
    let mut slow = scenario.refilled(&run).await;
    let first = slow.received.text(SERVICE, 0).lines().next().unwrap().to_owned();
    let read = scenario.setup.gateway.metric("leasemux_lines_in_total");
    let before = scenario.cluster.tails_asked().len();
    for step in 1..=20 {
        scenario.print_wide(&run, 50, 20 * STEP);
        scenario.has_read(usize::try_from(read).unwrap() + 50 * step).await;
    }
    slow.until(ended_with(scenario.last_line(&run))).await;
    let printed = scenario.cluster.printed(&run);
    let from = printed.iter().position(|line| *line == first).unwrap();
    assert_eq!(slow.received.assert_ordered(SERVICE, 0, &printed[from..]), 0);
    let asked = scenario.cluster.tails_asked()[before..].to_vec();
    assert!(
        !asked.is_empty() && asked.iter().all(|lines| lines.is_some_and(|lines| lines < 10_000)),
        "{asked:?}"
    );
    assert_eq!(scenario.setup.gateway.metric("leasemux_gaps_total{cause=\"lag\"}"), 0);
    assert!(scenario.setup.gateway.metric("leasemux_refills_total{lag=\"first\"}") >= 1);
    // The shared tail is the only follow that is left.
    eventually(async || scenario.cluster.follows() == 1).await;
}

#[tokio::test]
async fn refill_after_rotation_takes_the_rest_from_the_ring() {
    let scenario = Scenario::with_small_ring().await;
    let run = scenario.run("a");
    scenario.shows(&[1]).await;
    let mut slow = scenario.refilled(&run).await;
    let read = usize::try_from(scenario.setup.gateway.metric("leasemux_lines_in_total")).unwrap();
    // In steps that the ring holds, until the stream is full: the refill begins only when it is read.
    for step in 1..=40 {
        scenario.print_wide(&run, 10, STEP);
        scenario.has_read(read + 10 * step).await;
    }
    // The ring has more lines than the new file.
    scenario.cluster.rotate(&run);
    scenario.print_wide(&run, 2, STEP);
    scenario.has_read(read + 402).await;
    slow.until(ended_with(scenario.last_line(&run))).await;
    let printed = scenario.cluster.printed(&run);
    let first = slow.received.text(SERVICE, 0).lines().next().unwrap().to_owned();
    let from = printed.iter().position(|line| *line == first).unwrap();
    assert_eq!(slow.received.assert_ordered(SERVICE, 0, &printed[from..]), 1);
    let lost = slow.received.missing(SERVICE, 0);
    assert_eq!(slow.received.lines(SERVICE, 0) as u64 + lost, (printed.len() - from) as u64, "an exact gap");
    assert!(lost > 0);
    let metric = |name: &str| scenario.setup.gateway.metric(name);
    assert_eq!(metric("leasemux_lines_lost_total{cause=\"rotated\"}"), lost);
    assert_eq!(metric("leasemux_gaps_total{cause=\"lag\"}"), 0);
}

#[tokio::test]
async fn refill_after_rotation_between_equal_times_gets_gap() {
    let scenario = Scenario::with_small_ring().await;
    let run = scenario.run("a");
    scenario.shows(&[1]).await;
    // Less than two seconds after the start of the container.
    let mut slow = scenario.refilled(&run).await;
    let read = usize::try_from(scenario.setup.gateway.metric("leasemux_lines_in_total")).unwrap();
    for step in 1..=80 {
        if step == 41 {
            scenario.cluster.rotate(&run);
        }
        scenario.print_wide(&run, 10, 0);
        scenario.has_read(read + 10 * step).await;
    }
    scenario.print_wide(&run, 1, STEP);
    slow.until(ended_with(scenario.last_line(&run))).await;
    assert!(scenario.setup.gateway.metric("leasemux_refills_total{lag=\"first\"}") >= 1);
    let first = slow.received.text(SERVICE, 0).lines().next().unwrap().to_owned();
    let printed = scenario.cluster.printed(&run);
    let from = printed.iter().position(|line| *line == first).unwrap();
    assert!(slow.received.assert_ordered(SERVICE, 0, &printed[from..]) >= 1);
}

#[tokio::test]
async fn random_failures_lose_nothing_of_refilled_follower() {
    for seed in seeds(4) {
        println!("seed: {seed}");
        let refills = live(seed).await;
        println!("refills: {refills}");
    }
}

/// Runs one random scenario. Returns the number of refills.
async fn live(seed: u64) -> u64 {
    let mut random = StdRng::seed_from_u64(seed);
    let scenario = Scenario::with_small_ring().await;
    let cluster = &scenario.cluster;
    let mut runs = vec![scenario.run("a")];
    scenario.shows(&[1]).await;
    // Keeps up, so that all lines are read.
    let mut quick = scenario.followed_live(&runs[0]).await;
    let request =
        ServiceLogsRequest { follow: true, on_lag: OnLag::Refill.into(), ..scenario.setup.request() };
    let mut slow = scenario.setup.open(request).await.unwrap();
    // A loss before the first line of the first run cannot be noticed.
    slow.until(|received| received.lines(SERVICE, 0) > 0).await;
    let mut rotations = 0;
    for _ in 0..30 {
        let run = runs.last().unwrap().clone();
        match random.random_range(0..16) {
            0..=6 => {
                if cluster.printed(&run).is_empty() {
                    // No file holds lines of one time only: lines before and after a rotation that have the
                    // time of the run's first line cannot be distinguished.
                    scenario.print_wide(&run, 2, 1);
                }
                let steps = [0, 1, STEP, 1_000 * STEP];
                scenario.print_wide(
                    &run,
                    random.random_range(1..80),
                    steps[random.random_range(0..steps.len())],
                );
                in_time(&scenario, &mut quick, ended_with(scenario.last_line(&run))).await;
            }
            7 => cluster.break_logs(),
            8 => cluster.complete_logs(),
            9 => cluster.send_message("unable to retrieve container logs for containerd://x"),
            10 => cluster.silence_logs(),
            11 if !cluster.printed(&run).is_empty() => {
                in_time(&scenario, &mut quick, ended_with(scenario.last_line(&run))).await;
                cluster.rotate(&run);
                rotations += 1;
            }
            12 if !cluster.printed(&run).is_empty() => {
                // Of earlier runs only the previous one can be read, and the slow follower needs it.
                scenario.print_wide(&run, 1, 1);
                in_time(&scenario, &mut quick, ended_with(scenario.last_line(&run))).await;
                in_time(&scenario, &mut slow, ended_with(scenario.last_line(&run))).await;
                runs.push(cluster.crash(scenario.lease(), "a", &run));
            }
            _ => {
                for _ in 0..random.random_range(1..20) {
                    _ = slow.next_if_ready().await.unwrap();
                }
            }
        }
    }
    let run = runs.last().unwrap().clone();
    scenario.print_wide(&run, 1, 1);
    in_time(&scenario, &mut slow, ended_with(scenario.last_line(&run))).await;
    let gaps = check(&scenario, &slow.received, &runs);
    assert!(gaps == 0 || rotations > 0, "seed {seed}: {gaps} gaps without a rotation");
    let refills =
        |lag: &str| scenario.setup.gateway.metric(&format!("leasemux_refills_total{{lag=\"{lag}\"}}"));
    refills("first") + refills("again")
}
