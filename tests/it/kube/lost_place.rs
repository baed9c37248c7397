//! Kubelets that lose their place in a log, serve a run that the API server does not know of, or cannot follow a log at all.

use std::collections::HashMap;
use std::ops::Range;
use std::time::Duration;

use leasemux::model::proto::lease::replica_event::Kind;
use rand::RngExt as _;
use rand::rngs::StdRng;

use super::cluster::{Kubelets, RunKey};
use super::{SERVICE, Stage, ended_with, eventually, in_time, pass};
use crate::support::gateway::Stream;
use crate::support::oracle::{Received, Seen};

/// A millisecond.
const STEP: i64 = 1_000_000;

/// Lines of a file that a gateway does not remember as a whole, a millisecond apart.
const LONG: usize = 6_000;

/// Checks that what was received is what the runs printed, each line under its own run, once and in order, and that a gap stands
/// wherever lines are missing. Lines that a kubelet left out in silence need none at their place. Returns the number of gaps.
pub(super) fn check(stage: &Stage, received: &Received, runs: &[RunKey]) -> usize {
    let (mut printed, mut left_out) = (Vec::new(), Vec::<Range<usize>>::new());
    for run in runs {
        let base = printed.len();
        left_out.extend(stage.cluster.left_out(run).into_iter().map(|out| base + out.start..base + out.end));
        printed.extend(stage.cluster.printed(run));
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
                    assert!(at >= expected, "{line} again, or out of order");
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

/// Lets a kubelet fall behind with the present run's log, once its first line has been read. A newest file of one line only, sent twice,
/// cannot be told from two equal lines.
pub(super) async fn fall_behind(random: &mut StdRng, stage: &Stage, run: &RunKey, follower: &mut Stream) {
    let first = format!("{}/0\n", run.2);
    in_time(follower, |received| received.text(SERVICE, 0).contains(&first)).await;
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
    stage.cluster.fall_behind(run, rest, &left_out, newest, steps[random.random_range(0..steps.len())]);
}

/// Lets the container restart once or twice before the API server learns of it. Every run prints something.
pub(super) async fn restart_untold(
    random: &mut StdRng,
    stage: &Stage,
    runs: &mut Vec<RunKey>,
    follower: &mut Stream,
) {
    let cluster = &stage.cluster;
    let run = runs.last().unwrap().clone();
    // Kubelets keep one run before the present one, so what was printed up to now is read first.
    cluster.print(&run, 1, STEP);
    in_time(follower, ended_with(cluster.printed(&run).last().cloned().unwrap())).await;
    // A response that its kubelet completed just before a run ended looks like the run's end: see the documents.
    wait(follower, Duration::from_secs(2)).await;
    if random.random() {
        runs.push(cluster.crash(stage.lease(), "a", &run));
    }
    cluster.print(runs.last().unwrap(), random.random_range(1..5), STEP);
    for _ in 0..random.random_range(1..3) {
        let next = cluster.crash_untold(runs.last().unwrap());
        cluster.print(&next, random.random_range(1..5), STEP);
        runs.push(next);
    }
    for _ in 0..random.random_range(0..8) {
        for _ in 0..8 {
            _ = follower.next_if_ready().await.unwrap();
        }
        pass(Duration::from_millis(random.random_range(0..2_000))).await;
    }
    cluster.crash(stage.lease(), "a", &runs[runs.len() - 2]);
}

/// Takes what comes while so much time passes.
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
async fn kubelet_two_rotations_behind_repeats_nothing() {
    for (newest, left_out) in [(LONG, vec![LONG]), (LONG, vec![10, LONG]), (50, vec![10])] {
        let stage = Stage::new(1).await;
        let run = stage.run("a");
        stage.shows(&[1]).await;
        let mut follower = stage.follow().await;
        stage.cluster.print(&run, 20, STEP);
        follower.until(|received| received.lines(SERVICE, 0) >= 20).await;
        // Until the follower has joined the one stream of its replica.
        wait(&mut follower, Duration::from_secs(2)).await;
        eventually(async || stage.cluster.follows().0 == 1).await;
        stage.cluster.fall_behind(&run, 10, &left_out, newest, STEP);
        in_time(&mut follower, ended_with(stage.cluster.printed(&run).pop().unwrap())).await;
        stage.cluster.print(&run, 10, STEP);
        in_time(&mut follower, ended_with(stage.cluster.printed(&run).pop().unwrap())).await;
        // The gap comes with the first line that is sent again, which may be after the last new one.
        for _ in 0..100 {
            _ = follower.next_if_ready().await.unwrap();
        }
        assert!(check(&stage, &follower.received, &[run]) >= 1, "{left_out:?}");
    }
}

#[tokio::test]
async fn untold_restart_before_the_first_read_mixes_no_runs() {
    // How many runs come and go untold. Of two, the first one's log is gone.
    for untold in 1..=2 {
        let stage = Stage::new(1).await;
        let first = stage.run("a");
        stage.shows(&[1]).await;
        // Nothing of the run can be read before it has ended.
        stage.cluster.kubelets(Kubelets::Away);
        stage.cluster.print(&first, 5, STEP);
        let mut follower = stage.follow().await;
        wait(&mut follower, Duration::from_secs(1)).await;
        let mut runs = vec![first.clone()];
        for _ in 0..untold {
            let next = stage.cluster.crash_untold(runs.last().unwrap());
            stage.cluster.print(&next, 5, STEP);
            runs.push(next);
        }
        stage.cluster.kubelets(Kubelets::Serve);
        wait(&mut follower, Duration::from_secs(20)).await;
        assert_eq!(follower.received.lines(SERVICE, 0), 0, "{:?}", follower.received.of(SERVICE, 0));
        let last = stage.cluster.crash(stage.lease(), "a", &runs[untold - 1]);
        in_time(&mut follower, ended_with(stage.cluster.printed(&last).pop().unwrap())).await;
        let gaps = check(&stage, &follower.received, &runs);
        assert_eq!((gaps > 0, follower.received.lines(SERVICE, 0)), (untold > 1, 10), "{untold}");
    }
}

#[tokio::test]
async fn killed_container_that_restarts_untold_loses_nothing() {
    let stage = Stage::new(1).await;
    let mut runs = vec![stage.run("a")];
    stage.shows(&[1]).await;
    let mut follower = stage.follow().await;
    stage.cluster.print(&runs[0], 5, STEP);
    follower.until(|received| received.lines(SERVICE, 0) >= 5).await;
    for _ in 0..3 {
        // The API server learns that it has begun, and no more: it is killed soon after, and restarted.
        let run = stage.cluster.crash(stage.lease(), "a", runs.last().unwrap());
        stage.cluster.print(&run, 5, STEP);
        runs.push(run.clone());
        in_time(&mut follower, ended_with(stage.cluster.printed(&run).pop().unwrap())).await;
        stage.cluster.print(&run, 3, STEP);
        let next = stage.cluster.crash_untold(&run);
        stage.cluster.print(&next, 5, STEP);
        runs.push(next);
        wait(&mut follower, Duration::from_secs(8)).await;
        let told = stage.cluster.crash(stage.lease(), "a", &run);
        in_time(&mut follower, ended_with(stage.cluster.printed(&told).pop().unwrap())).await;
    }
    assert_eq!(check(&stage, &follower.received, &runs), 0);
}

#[tokio::test]
async fn follower_learns_that_a_log_cannot_be_followed() {
    let stage = Stage::new(1).await;
    let run = stage.run("a");
    stage.shows(&[1]).await;
    stage.cluster.print(&run, 5, STEP);
    stage.cluster.exhaust(true);
    let mut followers = Vec::new();
    for lines in [10, 15] {
        let mut follower = stage.follow().await;
        // One that comes later learns of it with the next trial.
        let told = |received: &Received| received.events(SERVICE, 0).contains(&Kind::Waiting);
        for _ in 0..60 {
            if told(&follower.received) {
                break;
            }
            wait(&mut follower, Duration::from_secs(1)).await;
        }
        assert!(told(&follower.received), "{:?}", follower.received);
        stage.cluster.print(&run, 5, STEP);
        wait(&mut follower, Duration::from_secs(5)).await;
        in_time(&mut follower, |received| received.lines(SERVICE, 0) >= lines).await;
        followers.push(follower);
    }
    // There are instances again: it is followed, and nobody had to ask anew.
    stage.cluster.exhaust(false);
    for _ in 0..60 {
        if stage.cluster.follows().0 > 0 {
            break;
        }
        wait(&mut followers[0], Duration::from_secs(1)).await;
    }
    eventually(async || stage.cluster.follows().0 > 0).await;
    stage.cluster.print(&run, 5, STEP);
    for follower in &mut followers {
        follower.until(|received| received.lines(SERVICE, 0) >= 20).await;
        assert_eq!(check(&stage, &follower.received, std::slice::from_ref(&run)), 0);
    }
}
