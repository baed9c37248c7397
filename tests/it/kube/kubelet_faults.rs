//! Kubelets that lag, that serve a run that the API server does not know, or that cannot follow logs.

use std::collections::HashMap;
use std::ops::Range;
use std::time::Duration;

use leasemux::model::proto::lease::replica_event::Kind;
use rand::RngExt as _;
use rand::rngs::StdRng;

use super::cluster::{Kubelets, RunKey};
use super::{SERVICE, Scenario, ended_with, eventually, in_time, pass};
use crate::support::gateway::Stream;
use crate::support::loss_check::{Received, Seen};

/// A millisecond.
const STEP: i64 = 1_000_000;

/// Lines of a file, a millisecond apart, that exceed the window of remembered lines.
const LONG: usize = 6_000;

/// Checks that each line was received once, in order and under its own run, and that lost lines have a gap.
/// Lines that a kubelet left out may have it later. Returns the number of gaps.
pub(super) fn check(scenario: &Scenario, received: &Received, runs: &[RunKey]) -> usize {
    let (mut printed, mut left_out) = (Vec::new(), Vec::<Range<usize>>::new());
    for run in runs {
        let base = printed.len();
        left_out
            .extend(scenario.cluster.left_out(run).into_iter().map(|out| base + out.start..base + out.end));
        printed.extend(scenario.cluster.printed(run));
    }
    let index: HashMap<&str, usize> = printed.iter().map(String::as_str).zip(0..).collect();
    let is_excused =
        |lines: Range<usize>| lines.into_iter().all(|at| left_out.iter().any(|out| out.contains(&at)));
    let (mut expected, mut gaps, mut after_gap, mut partial) = (0, 0, false, String::new());
    for seen in received.of(SERVICE, 0) {
        match seen {
            Seen::Gap(..) => (gaps, after_gap) = (gaps + 1, true),
            Seen::Event(..) => {}
            Seen::Logs(instance, bytes) => {
                partial.push_str(std::str::from_utf8(bytes).unwrap());
                while let Some((line, rest)) = partial.split_once('\n') {
                    assert_eq!(
                        line.split('/').next(),
                        instance.rsplit('/').next(),
                        "{line} under {instance}"
                    );
                    let at = index[line];
                    assert!(at >= expected, "{line} repeated or out of order");
                    assert!(
                        at == expected || after_gap || is_excused(expected..at),
                        "lines {expected} to {at} are missing without a gap: {:?}",
                        &printed[expected..at]
                    );
                    (expected, after_gap) = (at + 1, false);
                    partial = rest.to_owned();
                }
            }
        }
    }
    assert!(
        expected == printed.len() || after_gap,
        "the last {} lines are missing",
        printed.len() - expected
    );
    gaps
}

/// Lets a kubelet lag with a run's log, once its first line has been read. A newest file of a single line,
/// sent twice, looks like two equal lines.
pub(super) async fn lag(random: &mut StdRng, scenario: &Scenario, run: &RunKey, follower: &mut Stream) {
    let first = format!("{}/0\n", run.2);
    in_time(scenario, follower, |received| received.text(SERVICE, 0).contains(&first)).await;
    let lines = |random: &mut StdRng| {
        if random.random_ratio(1, 4) {
            random.random_range(LONG / 2..LONG)
        } else {
            random.random_range(2..50)
        }
    };
    let left_out: Vec<usize> = (0..random.random_range(0..3)).map(|_| lines(random)).collect();
    let (rest, newest) = (random.random_range(0..50), lines(random));
    let steps = [1, STEP, 2_000_000_000];
    scenario.cluster.lag(run, rest, &left_out, newest, steps[random.random_range(0..steps.len())]);
}

/// Restarts the container once or twice before the API server learns of it. Every run prints lines.
pub(super) async fn restart_unreported(
    random: &mut StdRng,
    scenario: &Scenario,
    runs: &mut Vec<RunKey>,
    follower: &mut Stream,
) {
    let cluster = &scenario.cluster;
    let run = runs.last().unwrap().clone();
    // Kubelets keep one previous run, so the present lines are read first.
    cluster.print(&run, 1, STEP);
    in_time(scenario, follower, ended_with(cluster.printed(&run).last().cloned().unwrap())).await;
    // A response that completes just before the run ends looks like the end of the run: see
    // docs/KUBERNETES.md.
    wait(follower, Duration::from_secs(2)).await;
    if random.random() {
        runs.push(cluster.crash(scenario.lease(), "a", &run));
    }
    cluster.print(runs.last().unwrap(), random.random_range(1..5), STEP);
    for _ in 0..random.random_range(1..3) {
        let next = cluster.crash_unreported(runs.last().unwrap());
        cluster.print(&next, random.random_range(1..5), STEP);
        runs.push(next);
    }
    for _ in 0..random.random_range(0..8) {
        for _ in 0..8 {
            _ = follower.next_if_ready().await.unwrap();
        }
        pass(Duration::from_millis(random.random_range(0..2_000))).await;
    }
    cluster.crash(scenario.lease(), "a", &runs[runs.len() - 2]);
}

/// Takes responses while the clock advances by `time`.
async fn wait(follower: &mut Stream, time: Duration) {
    const STEP: Duration = Duration::from_millis(250);
    for _ in 0..time.as_millis() / STEP.as_millis() {
        for _ in 0..8 {
            _ = follower.next_if_ready().await.unwrap();
        }
        pass(STEP).await;
    }
}

#[tokio::test]
async fn kubelet_lagging_two_rotations_repeats_nothing() {
    for (newest, left_out) in [(LONG, vec![LONG]), (LONG, vec![10, LONG]), (50, vec![10])] {
        let scenario = Scenario::new(1).await;
        let run = scenario.run("a");
        scenario.shows(&[1]).await;
        let mut follower = scenario.follow().await;
        scenario.cluster.print(&run, 20, STEP);
        follower.until(|received| received.lines(SERVICE, 0) >= 20).await;
        // Until the follower has joined the shared tail.
        wait(&mut follower, Duration::from_secs(2)).await;
        eventually(async || scenario.cluster.follows() == 1).await;
        scenario.cluster.lag(&run, 10, &left_out, newest, STEP);
        in_time(&scenario, &mut follower, ended_with(scenario.cluster.printed(&run).pop().unwrap())).await;
        scenario.cluster.print(&run, 10, STEP);
        in_time(&scenario, &mut follower, ended_with(scenario.cluster.printed(&run).pop().unwrap())).await;
        // The gap comes with the first repeated line, which may follow the last new one.
        for _ in 0..100 {
            _ = follower.next_if_ready().await.unwrap();
        }
        assert!(check(&scenario, &follower.received, &[run]) >= 1, "{left_out:?}");
    }
}

#[tokio::test]
async fn unreported_restart_before_first_read_mixes_no_runs() {
    // The number of unreported restarts. Of two, the log of the first run is gone.
    for unreported in 1..=2 {
        let scenario = Scenario::new(1).await;
        let first = scenario.run("a");
        scenario.shows(&[1]).await;
        // No line of the run can be read before its end.
        scenario.cluster.kubelets(Kubelets::Unreachable);
        scenario.cluster.print(&first, 5, STEP);
        let mut follower = scenario.follow().await;
        wait(&mut follower, Duration::from_secs(1)).await;
        let mut runs = vec![first.clone()];
        for _ in 0..unreported {
            let next = scenario.cluster.crash_unreported(runs.last().unwrap());
            scenario.cluster.print(&next, 5, STEP);
            runs.push(next);
        }
        scenario.cluster.kubelets(Kubelets::Serve);
        wait(&mut follower, Duration::from_secs(20)).await;
        assert_eq!(follower.received.lines(SERVICE, 0), 0, "{:?}", follower.received.of(SERVICE, 0));
        let last = scenario.cluster.crash(scenario.lease(), "a", &runs[unreported - 1]);
        in_time(&scenario, &mut follower, ended_with(scenario.cluster.printed(&last).pop().unwrap())).await;
        let gaps = check(&scenario, &follower.received, &runs);
        assert_eq!((gaps > 0, follower.received.lines(SERVICE, 0)), (unreported > 1, 10), "{unreported}");
    }
}

#[tokio::test]
async fn unreported_restart_of_killed_container_loses_nothing() {
    let scenario = Scenario::new(1).await;
    let mut runs = vec![scenario.run("a")];
    scenario.shows(&[1]).await;
    let mut follower = scenario.follow().await;
    scenario.cluster.print(&runs[0], 5, STEP);
    follower.until(|received| received.lines(SERVICE, 0) >= 5).await;
    for _ in 0..3 {
        // The API server learns of its start only. It is killed soon after, and restarted.
        let run = scenario.cluster.crash(scenario.lease(), "a", runs.last().unwrap());
        scenario.cluster.print(&run, 5, STEP);
        runs.push(run.clone());
        in_time(&scenario, &mut follower, ended_with(scenario.cluster.printed(&run).pop().unwrap())).await;
        scenario.cluster.print(&run, 3, STEP);
        let next = scenario.cluster.crash_unreported(&run);
        scenario.cluster.print(&next, 5, STEP);
        runs.push(next);
        wait(&mut follower, Duration::from_secs(8)).await;
        let reported = scenario.cluster.crash(scenario.lease(), "a", &run);
        in_time(&scenario, &mut follower, ended_with(scenario.cluster.printed(&reported).pop().unwrap()))
            .await;
    }
    assert_eq!(check(&scenario, &follower.received, &runs), 0);
}

#[tokio::test]
async fn follower_learns_that_a_log_cannot_be_followed() {
    let scenario = Scenario::new(1).await;
    let run = scenario.run("a");
    scenario.shows(&[1]).await;
    scenario.cluster.print(&run, 5, STEP);
    scenario.cluster.exhaust(true);
    let mut followers = Vec::new();
    for lines in [10, 15] {
        let mut follower = scenario.follow().await;
        // A later follower learns of it with the next trial.
        let knows = |received: &Received| received.events(SERVICE, 0).contains(&Kind::Waiting);
        for _ in 0..60 {
            if knows(&follower.received) {
                break;
            }
            wait(&mut follower, Duration::from_secs(1)).await;
        }
        assert!(knows(&follower.received), "{:?}", follower.received);
        scenario.cluster.print(&run, 5, STEP);
        wait(&mut follower, Duration::from_secs(5)).await;
        in_time(&scenario, &mut follower, |received| received.lines(SERVICE, 0) >= lines).await;
        followers.push(follower);
    }
    // Instances are available again: the log is followed without a new request of the followers.
    scenario.cluster.exhaust(false);
    for _ in 0..60 {
        if scenario.cluster.follows() > 0 {
            break;
        }
        wait(&mut followers[0], Duration::from_secs(1)).await;
    }
    eventually(async || scenario.cluster.follows() > 0).await;
    scenario.cluster.print(&run, 5, STEP);
    for follower in &mut followers {
        follower.until(|received| received.lines(SERVICE, 0) >= 20).await;
        assert_eq!(check(&scenario, &follower.received, std::slice::from_ref(&run)), 0);
    }
}
