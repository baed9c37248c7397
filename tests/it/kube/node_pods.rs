//! Pods that are removed, on a gateway that reads the files of their node.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use leasemux::model::proto::lease::ServiceLogsRequest;
use leasemux::model::proto::lease::replica_event::Kind;
use leasemux::platform::Platform as _;
use leasemux::platform::node::NodePlatform;
use leasemux::sys::dir_watch::Notifier;

use super::cluster::RunKey;
use super::{RESTS, SERVICE, Scenario, eventually, pass};
use crate::support::gateway::{Gateway, Setup, Stream};
use crate::support::replica;

/// How long a container is left to print after its pod was removed.
const RUNS_ON: Duration = Duration::from_secs(3);

/// Longer than a gateway waits for the log of such a pod to be removed.
const WAITS_FOR: Duration = Duration::from_secs(40);

/// The log file of a run on the node.
fn log_file(logs: &tempfile::TempDir, scenario: &Scenario, pod: &str, run: &RunKey) -> PathBuf {
    let dir = logs.path().join(format!("{}_{pod}_{}/{SERVICE}", scenario.lease().namespace(), run.0));
    fs::create_dir_all(&dir).unwrap();
    dir.join("0.log")
}

fn records(numbers: std::ops::Range<usize>) -> String {
    numbers.fold(String::new(), |mut text, n| {
        writeln!(text, "2026-11-25T00:00:01.{n:09}Z stdout F 0/{n}").unwrap();
        text
    })
}

/// A follower of a pod that was deleted by force and whose container runs on.
struct ForcedDeletion {
    scenario: Scenario,
    logs: tempfile::TempDir,
    /// The log of the pod. It has ten lines, which the follower has received.
    file: PathBuf,
    follower: Stream,
}

async fn delete_by_force() -> ForcedDeletion {
    let (scenario, logs) = (Scenario::new(1).await, tempfile::tempdir().unwrap());
    let (cluster, lease) = (&scenario.cluster, scenario.lease().clone());
    let run = scenario.run("a");
    scenario.shows(&[1]).await;
    let file = log_file(&logs, &scenario, "a", &run);
    fs::write(&file, records(0..10)).unwrap();
    let kube = Arc::clone(&scenario.platform);
    let node = NodePlatform::new(kube, Notifier::start(), "node1".into(), logs.path().into());
    let gateway = Gateway::on(Arc::new(node));
    gateway.believe(lease.owner(), &scenario.setup.certificate);
    let certificate = scenario.setup.certificate.clone();
    let setup = Setup { gateway, lease: lease.clone(), certificate };
    let mut follower = setup.open(ServiceLogsRequest { follow: true, ..setup.request() }).await.unwrap();
    follower.until(|received| received.lines(SERVICE, 0) == 10).await;
    // The container is not reported to have ended, and prints on.
    cluster.remove("pods", &lease.namespace(), "a", false);
    let view = scenario.platform.watch(&lease).await.unwrap();
    let is_removed = || {
        let view = view.borrow();
        let found = view.replica(&replica(SERVICE, 0)).and_then(|found| found.runs.first());
        found.is_some_and(|run| run.end.is_some())
    };
    eventually(async || is_removed()).await;
    for _ in 0..RESTS {
        _ = follower.next_if_ready().await.unwrap();
    }
    ForcedDeletion { scenario, logs, file, follower }
}

#[tokio::test]
async fn pod_deleted_by_force_is_read_until_its_log_is_removed() {
    let ForcedDeletion { scenario, logs, file, mut follower } = delete_by_force().await;
    pass(RUNS_ON).await;
    for _ in 0..RESTS {
        _ = follower.next_if_ready().await.unwrap();
    }
    File::options().append(true).open(&file).unwrap().write_all(records(10..20).as_bytes()).unwrap();
    follower.until(|received| received.lines(SERVICE, 0) == 20).await;
    // Its kubelet removes the log, and the pod that replaces it is read.
    fs::remove_dir_all(file.parent().unwrap()).unwrap();
    let next = scenario.run("b");
    fs::write(log_file(&logs, &scenario, "b", &next), records(0..5)).unwrap();
    follower.until(|received| received.lines(SERVICE, 0) == 25).await;
    let numbers = (0..20).chain(0..5).map(|n| format!("0/{n}"));
    let lines: Vec<String> = follower.received.text(SERVICE, 0).lines().map(str::to_owned).collect();
    assert_eq!(lines, numbers.collect::<Vec<String>>());
    assert!(follower.received.events(SERVICE, 0).contains(&Kind::Started));
}

#[tokio::test]
async fn pod_deleted_by_force_that_prints_for_long_has_a_gap() {
    let ForcedDeletion { scenario, logs, file, mut follower } = delete_by_force().await;
    let next = scenario.run("b");
    fs::write(log_file(&logs, &scenario, "b", &next), records(20..25)).unwrap();
    pass(WAITS_FOR).await;
    follower.until(|received| received.lines(SERVICE, 0) == 15).await;
    // The gap says that these lines may exist.
    File::options().append(true).open(&file).unwrap().write_all(records(10..20).as_bytes()).unwrap();
    let printed: Vec<String> = (0..25).map(|number| format!("0/{number}")).collect();
    assert_eq!(follower.received.assert_ordered(SERVICE, 0, &printed), 1);
}
