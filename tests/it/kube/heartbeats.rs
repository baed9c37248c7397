//! Heartbeats: kubelets and API servers that cannot be reached, and containers that do not start.

use std::time::Duration;

use leasemux::model::proto::lease::ServiceLogsRequest;
use leasemux::model::proto::lease::source_state::State;
use leasemux::model::time::LogTime;

use super::cluster::{Kubelets, LogAnswer, RunKey};
use super::outages::{elapse, newest};
use super::{SERVICE, Scenario};
use crate::support::gateway::Stream;
use crate::support::loss_check::Received;

const STEP: Duration = Duration::from_millis(500);

/// Longest time until a state is reported.
const LONGEST: Duration = Duration::from_secs(180);

/// Opens a follower with heartbeats, and waits until the log is read live.
async fn followed(scenario: &Scenario, run: &RunKey) -> Stream {
    let mut follower = open(scenario).await;
    scenario.cluster.print(run, 5, 1_000);
    follower.until(|received| received.lines(SERVICE, 0) >= 5).await;
    reported(&mut follower, |source| source == (State::Live, "")).await;
    follower
}

async fn open(scenario: &Scenario) -> Stream {
    let heartbeat = Some(prost_types::Duration { seconds: 1, nanos: 0 });
    let request = ServiceLogsRequest { follow: true, heartbeat, ..scenario.setup.request() };
    scenario.setup.open(request).await.unwrap()
}

/// Advances the clock until a heartbeat reports this state and reason.
async fn reported(follower: &mut Stream, wanted: impl Fn((State, &str)) -> bool) {
    let is_reported = |received: &Received| received.last_source(SERVICE, 0).is_some_and(&wanted);
    assert!(elapse(follower, LONGEST, STEP, is_reported).await, "{:?}", follower.received);
}

/// Returns the time in the last heartbeat.
fn since(follower: &Stream) -> (i64, i32) {
    let since = follower.received.sources(SERVICE, 0).last().unwrap().since.unwrap();
    (since.seconds, since.nanos)
}

#[tokio::test]
async fn log_of_unreachable_kubelet_is_reconnecting() {
    let scenario = Scenario::new(1).await;
    let run = scenario.run("a");
    scenario.shows(&[1]).await;
    let mut follower = followed(&scenario, &run).await;
    let before = LogTime::now().parts();
    scenario.cluster.kubelets(Kubelets::Unreachable);
    scenario.cluster.break_logs();
    scenario.cluster.print(&run, 5, 1_000);
    reported(&mut follower, |source| source == (State::Reconnecting, "LogUnavailable")).await;
    let broke = since(&follower);
    assert!((before..=LogTime::now().parts()).contains(&broke));
    // Further attempts fail.
    assert!(!elapse(&mut follower, Duration::from_secs(60), STEP, |seen| seen.lines(SERVICE, 0) > 5).await);
    assert_eq!(
        (follower.received.last_source(SERVICE, 0), since(&follower)),
        (Some((State::Reconnecting, "LogUnavailable")), broke)
    );
    scenario.cluster.kubelets(Kubelets::Serve);
    assert!(elapse(&mut follower, LONGEST, STEP, newest(&scenario, std::slice::from_ref(&run))).await);
    reported(&mut follower, |source| source == (State::Live, "")).await;
    assert_eq!(follower.received.assert_ordered(SERVICE, 0, &scenario.cluster.printed(&run)), 0);
}

#[tokio::test]
async fn log_of_halted_kubelet_is_reconnecting() {
    let scenario = Scenario::new(1).await;
    let run = scenario.run("a");
    scenario.shows(&[1]).await;
    let mut follower = followed(&scenario, &run).await;
    let before = LogTime::now().parts();
    // The API server keeps the follow open.
    scenario.cluster.kubelets(Kubelets::Halted);
    reported(&mut follower, |source| source == (State::Reconnecting, "LogUnavailable")).await;
    let broke = since(&follower);
    assert!((before..=LogTime::now().parts()).contains(&broke));
    let seen = follower.received.sources(SERVICE, 0).len();
    let more = |received: &Received| received.sources(SERVICE, 0).len() >= seen + 90;
    assert!(elapse(&mut follower, LONGEST, STEP, more).await);
    let states = follower.received.sources(SERVICE, 0)[seen..].iter();
    assert!(states.clone().all(|source| source.state() == State::Reconnecting), "{states:?}");
    assert_eq!(since(&follower), broke);
    // It is quiet again.
    scenario.cluster.kubelets(Kubelets::Serve);
    reported(&mut follower, |source| source == (State::Live, "")).await;
    // The next time it is back with a line.
    scenario.cluster.kubelets(Kubelets::Halted);
    reported(&mut follower, |source| source == (State::Reconnecting, "LogUnavailable")).await;
    scenario.cluster.print(&run, 1, 1_000);
    assert!(elapse(&mut follower, 4 * STEP, STEP, newest(&scenario, std::slice::from_ref(&run))).await);
    reported(&mut follower, |source| source == (State::Live, "")).await;
    assert_eq!(follower.received.assert_ordered(SERVICE, 0, &scenario.cluster.printed(&run)), 0);
}

#[tokio::test]
async fn log_is_reconnecting_without_the_api_server() {
    let scenario = Scenario::new(1).await;
    let run = scenario.run("a");
    scenario.shows(&[1]).await;
    let mut follower = followed(&scenario, &run).await;
    let before = LogTime::now().parts();
    scenario.cluster.stop().await;
    scenario.cluster.print(&run, 5, 1_000);
    reported(&mut follower, |(state, _)| state == State::Reconnecting).await;
    let broke = since(&follower);
    assert!((before..=LogTime::now().parts()).contains(&broke));
    reported(&mut follower, |source| source == (State::Reconnecting, "PlatformUnreachable")).await;
    assert_eq!(since(&follower), broke);
    scenario.cluster.resume().await;
    assert!(elapse(&mut follower, LONGEST, STEP, newest(&scenario, std::slice::from_ref(&run))).await);
    reported(&mut follower, |source| source == (State::Live, "")).await;
    assert_eq!(follower.received.assert_ordered(SERVICE, 0, &scenario.cluster.printed(&run)), 0);
}

#[tokio::test]
async fn container_that_does_not_start_is_waiting() {
    let scenario = Scenario::new(1).await;
    scenario.shows(&[0]).await;
    let mut follower = open(&scenario).await;
    reported(&mut follower, |source| source == (State::Waiting, "Pending")).await;
    scenario.cluster.stuck(scenario.lease(), SERVICE, "a");
    reported(&mut follower, |source| source == (State::Waiting, "ImagePullBackOff")).await;
    let run = scenario.run("a");
    scenario.cluster.print(&run, 5, 1_000);
    assert!(elapse(&mut follower, LONGEST, STEP, newest(&scenario, std::slice::from_ref(&run))).await);
    reported(&mut follower, |source| source == (State::Live, "")).await;
    assert_eq!(follower.received.assert_ordered(SERVICE, 0, &scenario.cluster.printed(&run)), 0);
}

#[tokio::test]
async fn polled_log_is_live() {
    let scenario = Scenario::new(1).await;
    let run = scenario.run("a");
    scenario.shows(&[1]).await;
    let mut follower = followed(&scenario, &run).await;
    // The kubelet cannot follow: its log is read every two seconds.
    scenario.cluster.exhaust(true);
    scenario.cluster.complete_logs();
    scenario.cluster.print(&run, 5, 1_000);
    assert!(elapse(&mut follower, LONGEST, STEP, newest(&scenario, std::slice::from_ref(&run))).await);
    reported(&mut follower, |source| source == (State::Live, "")).await;
    let before = follower.received.sources(SERVICE, 0).len();
    let more = |received: &Received| received.sources(SERVICE, 0).len() >= before + 15;
    assert!(elapse(&mut follower, LONGEST, STEP, more).await);
    let states = follower.received.sources(SERVICE, 0)[before..].iter();
    assert!(states.clone().all(|source| source.state() == State::Live), "{:?}", states.collect::<Vec<_>>());
    // The polls fail.
    scenario.cluster.answer_logs(&run, LogAnswer::Message);
    reported(&mut follower, |source| source == (State::Reconnecting, "LogUnavailable")).await;
    scenario.cluster.answer_logs(&run, LogAnswer::Serve);
    reported(&mut follower, |source| source == (State::Live, "")).await;
    assert_eq!(follower.received.assert_ordered(SERVICE, 0, &scenario.cluster.printed(&run)), 0);
}
