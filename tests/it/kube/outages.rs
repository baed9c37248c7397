//! Outages of kubelets and of the API server.

use std::time::Duration;

use futures_core::stream::BoxStream;
use futures_util::{FutureExt as _, StreamExt as _, stream};
use leasemux::model::id::Instance;
use leasemux::model::line::SourceGap;
use leasemux::model::proto::lease::replica_event::Kind;
use leasemux::platform::{Error, Platform as _, ReadFrom, TailItem, TailRequest};

use super::cluster::{Kubelets, RunKey};
use super::{SERVICE, Scenario, eventually, pass, read};
use crate::support::gateway::Stream;
use crate::support::loss_check::{Received, Seen};
use crate::support::replica;

/// Longest time from the end of an outage until all tails resume: about one attempt per second, and its
/// results.
const BACK_MAX: Duration = Duration::from_secs(6);

/// Advances the clock in small steps, each with real time for network traffic, until enough was received.
/// Returns whether it was.
pub(super) async fn elapse(
    follower: &mut Stream,
    longest: Duration,
    step: Duration,
    enough: impl Fn(&Received) -> bool,
) -> bool {
    for _ in 0..longest.as_millis() / step.as_millis() {
        for _ in 0..if step < Duration::from_secs(1) { 20 } else { 4 } {
            if enough(&follower.received) {
                return true;
            }
            _ = follower.next_if_ready().await.unwrap();
        }
        pass(step).await;
    }
    false
}

/// Opens a follower of three replicas that have printed lines.
async fn followed(scenario: &Scenario) -> ([RunKey; 3], Stream) {
    let runs = ["a", "b", "c"].map(|pod| scenario.run(pod));
    scenario.shows(&[1, 1, 1]).await;
    let mut follower = scenario.follow().await;
    for run in &runs {
        scenario.cluster.print(run, 5, 1_000);
    }
    follower.until(|received| (0..3).all(|index| received.lines(SERVICE, index) >= 5)).await;
    (runs, follower)
}

/// Whether the newest line of each run was received.
pub(super) fn newest(scenario: &Scenario, runs: &[RunKey]) -> impl Fn(&Received) -> bool + use<> {
    let newest: Vec<String> = runs.iter().map(|run| scenario.cluster.printed(run).pop().unwrap()).collect();
    move |received| {
        (0..).zip(&newest).all(|(index, line)| received.ends_with(SERVICE, index, &format!("{line}\n")))
    }
}

#[tokio::test]
async fn unreachable_kubelet_is_retried_until_all_resume() {
    let scenario = Scenario::new(3).await;
    let (runs, mut follower) = followed(&scenario).await;
    scenario.cluster.kubelets(Kubelets::Unreachable);
    scenario.cluster.complete_logs();
    // An open request would still send lines that are printed now.
    eventually(async || scenario.cluster.follows() == 0).await;
    for run in &runs {
        scenario.cluster.print(run, 5, 1_000);
    }
    let before = scenario.cluster.log_requests();
    let step = Duration::from_secs(1);
    assert!(
        !elapse(&mut follower, Duration::from_secs(300), step, |received| received.lines(SERVICE, 0) > 5)
            .await
    );
    let tries = scenario.cluster.log_requests() - before;
    assert!((30..=610).contains(&tries), "{tries} in five minutes");
    // A read without follow fails, and does not wait for the end of the outage.
    let instance = Instance::new(&runs[0].0, SERVICE, 0).unwrap();
    let mut reading = std::pin::pin!(read(&scenario.platform, scenario.lease(), ReadFrom::Start, &instance));
    let outcome = async {
        loop {
            match tokio::time::timeout(Duration::from_millis(5), &mut reading).await {
                Ok(read) => break read,
                Err(_) => pass(Duration::from_millis(500)).await,
            }
        }
    };
    assert!(matches!(outcome.await, Err(Error::Unavailable(_))));
    // One of the logs was rotated.
    scenario.cluster.rotate(&runs[0]);
    scenario.cluster.print(&runs[0], 10, 1_000);
    scenario.cluster.kubelets(Kubelets::Serve);
    assert!(
        elapse(&mut follower, BACK_MAX, Duration::from_millis(100), newest(&scenario, &runs)).await,
        "{:?}",
        follower.received
    );
    for (index, run) in (0..).zip(&runs) {
        let gaps = follower.received.assert_ordered(SERVICE, index, &scenario.cluster.printed(run));
        assert_eq!(gaps, usize::from(index == 0), "{index}");
    }
}

#[tokio::test]
async fn kubelet_without_its_pods_ends_no_log() {
    let scenario = Scenario::new(3).await;
    let (runs, mut follower) = followed(&scenario).await;
    scenario.cluster.kubelets(Kubelets::Unaware);
    scenario.cluster.complete_logs();
    // An open request would still send lines that are printed now.
    eventually(async || scenario.cluster.follows() == 0).await;
    for run in &runs {
        scenario.cluster.print(run, 5, 1_000);
    }
    let asked = scenario.cluster.log_requests();
    let step = Duration::from_secs(1);
    assert!(
        !elapse(&mut follower, Duration::from_secs(10), step, |received| received.lines(SERVICE, 0) > 5)
            .await
    );
    assert!(scenario.cluster.log_requests() > asked + 3);
    let instance = Instance::new(&runs[0].0, SERVICE, 0).unwrap();
    let outcome = read(&scenario.platform, scenario.lease(), ReadFrom::Start, &instance).await;
    assert!(matches!(outcome, Err(Error::Unavailable(_))), "{outcome:?}");
    scenario.cluster.kubelets(Kubelets::Serve);
    let step = Duration::from_millis(500);
    assert!(elapse(&mut follower, Duration::from_secs(60), step, newest(&scenario, &runs)).await);
    for (index, run) in (0..).zip(&runs) {
        assert_eq!(follower.received.assert_ordered(SERVICE, index, &scenario.cluster.printed(run)), 0);
    }
}

#[tokio::test]
async fn api_server_back_after_long_outage_is_used_at_once() {
    let scenario = Scenario::new(3).await;
    let (runs, mut follower) = followed(&scenario).await;
    scenario.cluster.stop().await;
    for run in &runs {
        scenario.cluster.print(run, 5, 1_000);
    }
    let step = Duration::from_secs(1);
    assert!(
        !elapse(&mut follower, Duration::from_secs(300), step, |received| received.lines(SERVICE, 0) > 5)
            .await
    );
    // A run has ended meanwhile, and the next one begins: the watches have to report it.
    let next = scenario.cluster.crash(scenario.lease(), "c", &runs[2]);
    scenario.cluster.print(&next, 5, 1_000);
    scenario.cluster.resume().await;
    let step = Duration::from_millis(100);
    assert!(
        elapse(&mut follower, BACK_MAX, step, newest(&scenario, &runs[..2])).await,
        "{:?}",
        follower.received
    );
    let last = scenario.cluster.printed(&next).pop().unwrap();
    let last = move |received: &Received| received.ends_with(SERVICE, 2, &format!("{last}\n"));
    assert!(elapse(&mut follower, 2 * BACK_MAX, step, last).await, "{:?}", follower.received);
    let third = [scenario.cluster.printed(&runs[2]), scenario.cluster.printed(&next)].concat();
    for (index, printed) in
        [(0, scenario.cluster.printed(&runs[0])), (1, scenario.cluster.printed(&runs[1])), (2, third)]
    {
        assert_eq!(follower.received.assert_ordered(SERVICE, index, &printed), 0);
    }
}

#[tokio::test]
async fn failed_index_write_is_retried() {
    // It fails, or it has just been started and knows no permissions.
    for refused in [hyper::StatusCode::INTERNAL_SERVER_ERROR, hyper::StatusCode::FORBIDDEN] {
        let scenario = Scenario::new(2).await;
        let namespace = scenario.lease().namespace();
        scenario.cluster.refuse_patches(Some(refused));
        scenario.run("a");
        scenario.run("b");
        scenario.shows(&[1, 1]).await;
        eventually(async || scenario.cluster.patches_refused() > 0).await;
        scenario.cluster.refuse_patches(None);
        let written = || ["a", "b"].map(|pod| scenario.cluster.annotation(&namespace, pod));
        let mut minutes = 0..5;
        while written() != ["0", "1"].map(|index| Some(index.to_owned())) {
            minutes.next().expect("the index is written within minutes");
            pass(Duration::from_secs(61)).await;
            for _ in 0..50 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
    }
}

#[tokio::test]
async fn log_removed_before_its_pod_is_no_loss() {
    let scenario = Scenario::new(1).await;
    let run = scenario.run("a");
    scenario.shows(&[1]).await;
    // The end of a log that is not followed yet is unknown.
    let _first = scenario.followed_live(&run).await;
    let mut follower = scenario.follow().await;
    scenario.cluster.print(&run, 5, 1_000);
    let printed = scenario.cluster.printed(&run).len();
    follower.until(|received| received.lines(SERVICE, 0) == printed).await;
    eventually(async || scenario.cluster.follows() == 1).await;
    // The container has ended and is removed, and the pod exists for a while.
    scenario.cluster.send_message("unable to retrieve container logs for containerd://0");
    scenario.cluster.end(&run);
    eventually(async || !scenario.cluster.has_message()).await;
    scenario.cluster.remove("pods", &scenario.lease().namespace(), "a", false);
    follower.until(|received| received.events(SERVICE, 0).contains(&Kind::Ended)).await;
    assert_eq!(follower.received.assert_ordered(SERVICE, 0, &scenario.cluster.printed(&run)), 0);
}

/// Follows the log of a run, until a new line has come. Returns the items after it.
async fn followed_log(scenario: &Scenario, run: &RunKey) -> BoxStream<'static, Result<TailItem, Error>> {
    let request = TailRequest {
        lease: scenario.lease().clone(),
        replica: replica(SERVICE, 0),
        instance: Instance::new("uid-a", SERVICE, 0).unwrap(),
        from: ReadFrom::Start,
        lines_after: None,
        oldest_read: None,
        is_next_run: false,
        follow: true,
    };
    scenario.cluster.print(run, 5, 1_000);
    let mut items = scenario.platform.tail(request).await.unwrap().items;
    let (mut printed, mut lines) = (5, 0);
    eventually(async || {
        if let Some(item) = items.next().now_or_never() {
            let TailItem::Lines(batch) = item.unwrap().unwrap() else { panic!("a gap") };
            lines += batch.lines.len();
        }
        if lines == 5 && printed == 5 && scenario.cluster.follows() == 1 {
            scenario.cluster.print(run, 1, 1_000);
            printed += 1;
        }
        lines == 6
    })
    .await;
    items
}

/// Returns the remaining lines and gaps.
async fn rest(items: BoxStream<'static, Result<TailItem, Error>>) -> Vec<TailItem> {
    let all: Vec<TailItem> = items.map(Result::unwrap).collect().await;
    all.into_iter().filter(|item| matches!(item, TailItem::Lines(_) | TailItem::Gap(_))).collect()
}

#[tokio::test]
async fn log_removed_while_its_reader_waits_is_a_gap() {
    let scenario = Scenario::new(1).await;
    let run = scenario.run("a");
    scenario.shows(&[1]).await;
    let items = followed_log(&scenario, &run).await;
    // Nobody reads while the follow ends, the run prints more and ends, and its log is removed.
    scenario.cluster.complete_logs();
    eventually(async || scenario.cluster.follows() == 0).await;
    scenario.cluster.print(&run, 3, 1_000);
    scenario.cluster.end(&run);
    scenario.cluster.remove("pods", &scenario.lease().namespace(), "a", false);
    scenario.shows(&[]).await;
    pass(Duration::from_secs(2)).await;
    let rest = rest(items).await;
    assert!(matches!(rest[..], [TailItem::Gap(SourceGap { exact: false, .. })]), "{rest:?}");
}

#[tokio::test]
async fn log_removed_for_later_runs_is_a_gap() {
    let scenario = Scenario::new(1).await;
    let run = scenario.run("a");
    scenario.shows(&[1]).await;
    let mut items = followed_log(&scenario, &run).await;
    scenario.cluster.complete_logs();
    eventually(async || {
        _ = items.next().now_or_never();
        scenario.cluster.follows() == 0
    })
    .await;
    // The run prints more before the log is opened again, and two later ones are started.
    let view = scenario.platform.watch(scenario.lease()).await.unwrap();
    scenario.cluster.print(&run, 3, 1_000);
    let second = scenario.cluster.crash(scenario.lease(), "a", &run);
    scenario.cluster.crash(scenario.lease(), "a", &second);
    let newest = || view.borrow().replica(&replica(SERVICE, 0))?.newest().map(|run| run.instance.to_string());
    let mut early = Vec::new();
    eventually(async || {
        early.extend(items.next().now_or_never().flatten());
        newest().is_some_and(|run| run.ends_with("/2"))
    })
    .await;
    let rest = rest(stream::iter(early).chain(items).boxed()).await;
    assert!(matches!(rest[..], [TailItem::Gap(SourceGap { exact: false, .. })]), "{rest:?}");
}

#[tokio::test]
async fn unreported_run_is_not_read_as_previous_one() {
    let scenario = Scenario::new(1).await;
    let run = scenario.run("a");
    scenario.shows(&[1]).await;
    let mut follower = scenario.follow().await;
    scenario.cluster.print(&run, 5, 1_000);
    follower.until(|received| received.lines(SERVICE, 0) >= 5).await;
    // While the kubelet cannot report, the run prints more, ends, and is followed by the next one.
    scenario.cluster.kubelets(Kubelets::Unreachable);
    scenario.cluster.complete_logs();
    scenario.cluster.print(&run, 3, 1_000);
    let next = scenario.cluster.crash_unreported(&run);
    scenario.cluster.print(&next, 1, 1_000_000_000);
    scenario.cluster.print(&next, 4, 1_000);
    scenario.cluster.kubelets(Kubelets::Serve);
    let step = Duration::from_millis(100);
    assert!(elapse(&mut follower, BACK_MAX, step, |received| received.lines(SERVICE, 0) >= 8).await);
    assert!(!elapse(&mut follower, BACK_MAX, step, |received| received.lines(SERVICE, 0) > 8).await);
    assert_eq!(scenario.cluster.crash(scenario.lease(), "a", &run), next);
    assert!(elapse(&mut follower, BACK_MAX, step, |received| received.lines(SERVICE, 0) >= 13).await);
    let printed = [scenario.cluster.printed(&run), scenario.cluster.printed(&next)].concat();
    assert_eq!(follower.received.assert_ordered(SERVICE, 0, &printed), 0);
    assert_eq!(follower.received.events(SERVICE, 0), [Kind::Ended, Kind::Started]);
}

#[tokio::test]
async fn run_ended_unreported_waits_for_api_server() {
    // The number of runs that come and go before the API server knows.
    for later in 1..=2 {
        let scenario = Scenario::new(1).await;
        let run = scenario.run("a");
        scenario.shows(&[1]).await;
        let mut follower = scenario.follow().await;
        scenario.cluster.print(&run, 5, 1_000);
        follower.until(|received| received.lines(SERVICE, 0) >= 5).await;
        // While the kubelet cannot report, the log is rotated, the run ends, and others follow it.
        scenario.cluster.kubelets(Kubelets::Unreachable);
        scenario.cluster.break_logs();
        scenario.cluster.print(&run, 3, 1_000);
        scenario.cluster.rotate(&run);
        scenario.cluster.print(&run, 2, 1_000);
        let mut runs = vec![run.clone()];
        for _ in 0..later {
            let next = scenario.cluster.crash_unreported(runs.last().unwrap());
            scenario.cluster.print(&next, 4, 1_000);
            runs.push(next);
        }
        scenario.cluster.kubelets(Kubelets::Serve);
        // No line of another run comes.
        let (silence, step) = (Duration::from_secs(50), Duration::from_secs(1));
        let early = elapse(&mut follower, silence, step, |received| received.lines(SERVICE, 0) > 5).await;
        assert!(!early, "{later}: {:?}", follower.received.of(SERVICE, 0));
        let (last, before) = (runs[later].2, &runs[later - 1]);
        assert_eq!(scenario.cluster.crash(scenario.lease(), "a", before), runs[later]);
        let (newest, step) = (format!("{last}/3\n"), Duration::from_millis(100));
        let ends = |received: &Received| received.ends_with(SERVICE, 0, &newest);
        assert!(elapse(&mut follower, BACK_MAX, step, ends).await);
        let printed: Vec<String> = runs.iter().flat_map(|run| scenario.cluster.printed(run)).collect();
        follower.received.assert_ordered(SERVICE, 0, &printed);
        for seen in follower.received.of(SERVICE, 0) {
            let Seen::Logs(of, bytes) = seen else { continue };
            let (number, text) = (of.rsplit('/').next(), std::str::from_utf8(bytes).unwrap());
            assert!(text.lines().all(|line| line.split('/').next() == number), "of {of}: {text}");
        }
    }
}
