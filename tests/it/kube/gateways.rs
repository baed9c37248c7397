//! Followers that resume at another gateway.

use leasemux::model::limits::Limits;
use leasemux::model::proto::lease::ServiceLogsRequest;

use super::{SERVICE, Scenario, connect, ended_with, eventually};
use crate::support::gateway::{Gateway, Setup, Stream};
use crate::support::loss_check::Seen;

/// A millisecond.
const STEP: i64 = 1_000_000;

/// Later than the first two seconds of a run, in which its log counts as not rotated.
const LATER: i64 = 3_000 * STEP;

/// Another gateway on the same cluster.
struct Other {
    setup: Setup,
    _dir: tempfile::TempDir,
}

impl Other {
    async fn new(scenario: &Scenario) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let platform = connect(&scenario.cluster, &dir).await.unwrap();
        let gateway = Gateway::on_with(platform, Limits::default());
        let (lease, certificate) = (scenario.lease().clone(), scenario.setup.certificate.clone());
        gateway.believe(lease.owner(), &certificate);
        Self { setup: Setup { gateway, lease, certificate }, _dir: dir }
    }

    fn request(&self) -> ServiceLogsRequest {
        ServiceLogsRequest { follow: true, ..self.setup.request() }
    }

    async fn resume(&self, stream: Stream) -> Stream {
        self.setup.resume(stream, self.request()).await
    }
}

#[tokio::test]
async fn resume_after_rotation_repeats_no_line_of_the_ring() {
    let scenario = Scenario::new(1).await;
    let first = scenario.run("a");
    scenario.shows(&[1]).await;
    let other = Other::new(&scenario).await;
    scenario.cluster.print(&first, 1, LATER);
    let mut here = scenario.follow().await;
    let mut there = other.setup.open(other.request()).await.unwrap();
    here.until(ended_with("0/0".to_owned())).await;
    there.until(ended_with("0/0".to_owned())).await;
    // Both rings have the next run from its first line on.
    let run = scenario.cluster.crash(scenario.lease(), "a", &first);
    scenario.cluster.print(&run, 1, LATER);
    here.until(ended_with("1/0".to_owned())).await;
    there.until(ended_with("1/0".to_owned())).await;
    let request = ServiceLogsRequest { follow: true, ..scenario.setup.request() };
    let mut away = scenario.setup.open(request).await.unwrap();
    away.until(ended_with("1/0".to_owned())).await;
    // No follower is left here: the position is found nowhere.
    scenario.cluster.rotate(&run);
    scenario.cluster.print(&run, 5, STEP);
    there.until(ended_with("1/5".to_owned())).await;
    let mut moved = other.resume(away).await;
    moved.until(ended_with("1/5".to_owned())).await;
    let printed = [scenario.cluster.printed(&first), scenario.cluster.printed(&run)].concat();
    moved.received.assert_ordered(SERVICE, 0, &printed);
}

#[tokio::test]
async fn gap_after_rotation_resumes_not_before_request() {
    let scenario = Scenario::new(1).await;
    let first = scenario.run("a");
    scenario.shows(&[1]).await;
    let other = Other::new(&scenario).await;
    scenario.cluster.print(&first, 1, LATER);
    let mut here = scenario.follow().await;
    here.until(ended_with("0/0".to_owned())).await;
    // The ring here has the next run from its first line on.
    let run = scenario.cluster.crash(scenario.lease(), "a", &first);
    scenario.cluster.print(&run, 4, LATER);
    here.until(ended_with("1/3".to_owned())).await;
    let request = || ServiceLogsRequest { follow: true, ..scenario.setup.request() };
    let mut away = scenario.setup.open(request()).await.unwrap();
    away.until(ended_with("1/3".to_owned())).await;
    // The newest file has no line yet: its positions count from the start of the run.
    scenario.cluster.rotate(&run);
    let mut moved = other.resume(away).await;
    eventually(async || {
        _ = moved.next_if_ready().await.unwrap();
        moved.received.of(SERVICE, 0).iter().any(|seen| matches!(seen, Seen::Gap(..)))
    })
    .await;
    let mut back = scenario.setup.resume(moved, request()).await;
    scenario.cluster.print(&run, 1, STEP);
    back.until(ended_with("1/4".to_owned())).await;
    let printed = [scenario.cluster.printed(&first), scenario.cluster.printed(&run)].concat();
    back.received.assert_ordered(SERVICE, 0, &printed);
}

#[tokio::test]
async fn resume_in_run_unknown_to_gateway_waits_for_it() {
    let scenario = Scenario::new(1).await;
    let first = scenario.run("a");
    scenario.shows(&[1]).await;
    // The watches of this gateway are silent from now on, and those of the other one are not.
    scenario.cluster.silence_watches();
    let other = Other::new(&scenario).await;
    scenario.cluster.print(&first, 3, STEP);
    let mut there = other.setup.open(other.request()).await.unwrap();
    there.until(ended_with("0/2".to_owned())).await;
    let run = scenario.cluster.crash(scenario.lease(), "a", &first);
    scenario.cluster.print(&run, 3, STEP);
    there.until(ended_with("1/2".to_owned())).await;
    let request = ServiceLogsRequest { follow: true, ..scenario.setup.request() };
    let mut moved = scenario.setup.resume(there, request).await;
    let lines = moved.received.lines(SERVICE, 0);
    for _ in 0..300 {
        _ = moved.next_if_ready().await.unwrap();
    }
    assert_eq!(moved.received.lines(SERVICE, 0), lines, "{:?}", moved.received);
    // The watches are opened again.
    scenario.cluster.stop().await;
    scenario.cluster.print(&run, 3, STEP);
    scenario.cluster.resume().await;
    eventually(async || {
        _ = moved.next_if_ready().await.unwrap();
        moved.received.lines(SERVICE, 0) == 9
    })
    .await;
    let printed = [scenario.cluster.printed(&first), scenario.cluster.printed(&run)].concat();
    assert_eq!(moved.received.assert_ordered(SERVICE, 0, &printed), 0);
}

#[tokio::test]
async fn resume_in_pod_unknown_to_gateway_waits_for_it() {
    let scenario = Scenario::new(1).await;
    let first = scenario.run("a");
    scenario.shows(&[1]).await;
    // The watches of this gateway are silent from now on, and those of the other one are not.
    scenario.cluster.silence_watches();
    let other = Other::new(&scenario).await;
    scenario.cluster.print(&first, 3, STEP);
    let mut there = other.setup.open(other.request()).await.unwrap();
    there.until(ended_with("0/2".to_owned())).await;
    scenario.cluster.end(&first);
    scenario.cluster.remove("pods", &scenario.lease().namespace(), "a", false);
    let run = scenario.run("b");
    let lines = ["b/0", "b/1", "b/2"].map(ToOwned::to_owned);
    scenario.cluster.print_lines(&run, &lines, STEP);
    there.until(ended_with("b/2".to_owned())).await;
    let request = ServiceLogsRequest { follow: true, ..scenario.setup.request() };
    let mut moved = scenario.setup.resume(there, request).await;
    let received = moved.received.of(SERVICE, 0).len();
    for _ in 0..300 {
        _ = moved.next_if_ready().await.unwrap();
    }
    assert_eq!(moved.received.of(SERVICE, 0).len(), received, "{:?}", moved.received);
    // The watches are opened again.
    scenario.cluster.stop().await;
    scenario.cluster.print_lines(&run, &["b/3".to_owned()], STEP);
    scenario.cluster.resume().await;
    eventually(async || {
        _ = moved.next_if_ready().await.unwrap();
        moved.received.lines(SERVICE, 0) == 7
    })
    .await;
    let printed = [scenario.cluster.printed(&first), scenario.cluster.printed(&run)].concat();
    assert_eq!(moved.received.assert_ordered(SERVICE, 0, &printed), 0);
}
