//! The `kube` and `node` platforms with a whole gateway on a real cluster, given by `KUBECONFIG`. Each test
//! creates a lease as an Akash provider would, and removes it again, even if it fails.
//!
//! ```sh
//! KUBECONFIG=~/.kube/config cargo test --test cluster -- --ignored --test-threads=1
//! ```
//!
//! `LEASEMUX_TEST_IMAGE` is the image of the services, which must have a shell (default: `busybox`). If this
//! machine is a node of the cluster and `/var/log/pods` can be read, `LEASEMUX_TEST_NODE` is its name;
//! otherwise `node` is not tested.
//!
//! Log requests are counted by the API server's own metrics, for all clients, so no other client should start
//! or stop following logs meanwhile. Each log test checks that every number came once and in order, or was
//! lost in a gap.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

#[path = "cluster/lease.rs"]
mod lease;
#[allow(dead_code, unused_imports, reason = "shared with the other tests")]
#[path = "it/support/mod.rs"]
mod support;

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::{self, FuturesUnordered};
use leasemux::edge::admin::Exporter;
use leasemux::edge::rest::RestSettings;
use leasemux::logs::notice::Notices;
use leasemux::model::id::Replica;
use leasemux::model::proto::lease::ServiceLogsRequest;
use leasemux::model::proto::lease::replica_event::Kind;
use leasemux::platform::kube::KubePlatform;
use leasemux::platform::node::NodePlatform;
use leasemux::platform::{Platform, RestartRequest};
use leasemux::sys::dir_watch::Notifier;
use tokio::io::DuplexStream;

use self::lease::{Lease, PATIENCE, Service, kube_config};
use self::support::gateway::{Gateway, Setup, Stream};
use self::support::loss_check::{Received, Seen};
use self::support::rest::WsFollower;
use self::support::statuses::Statuses;
use self::support::{account, replica};

/// Followers of one pod.
const CROWD: usize = 300;

/// Followers that start at once: as many reads of older lines as one owner may have.
const STARTING_AT_ONCE: usize = 16;

/// Followers of one pod by websocket.
const WEBSOCKETS: usize = 1_000;

/// A lease in the cluster, and a gateway that serves it.
struct Scenario {
    platform: Arc<dyn Platform>,
    setup: Setup,
    lease: Lease,
}

// === impl Scenario ===

impl Scenario {
    async fn new(services: &[Service]) -> Self {
        let kube = KubePlatform::start(&kube_config(), &Exporter::new().unwrap().metrics).await.unwrap();
        Self::on(kube, services).await
    }

    /// With the `node` platform, if this machine is a node.
    async fn on_node(services: &[Service]) -> Option<Self> {
        let node = std::env::var("LEASEMUX_TEST_NODE").ok()?;
        let kube = KubePlatform::start(&kube_config(), &Exporter::new().unwrap().metrics).await.unwrap();
        let platform = NodePlatform::new(kube, Notifier::start(), node, "/var/log/pods".into());
        Some(Self::on(Arc::new(platform), services).await)
    }

    async fn on(platform: Arc<dyn Platform>, services: &[Service]) -> Self {
        let gateway = Gateway::on(Arc::clone(&platform));
        let (owner, certificate) = gateway.tenant();
        let lease = Lease::make(&owner, services).await;
        let setup = Setup { gateway, lease: lease.id.clone(), certificate };
        let scenario = Self { platform, setup, lease };
        for service in services {
            for index in 0..service.replicas {
                scenario.running(&replica(service.name, index), "").await;
            }
        }
        scenario
    }

    /// Waits until a replica runs as another instance than `other`. Returns its pod's uid.
    async fn running(&self, replica: &Replica, other: &str) -> String {
        let found = async {
            loop {
                if let Ok(mut view) = self.platform.watch(&self.setup.lease).await {
                    let uid = |view: &leasemux::model::view::LeaseView| {
                        let uid = view.replica(replica)?.current_run()?.instance.parts().0.to_owned();
                        (uid != other).then_some(uid)
                    };
                    if let Ok(view) = view.wait_for(|view| uid(view).is_some()).await {
                        break uid(&view).unwrap();
                    }
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PATIENCE, found).await.expect("it runs in time")
    }

    async fn follow(&self) -> Stream {
        let request = ServiceLogsRequest { follow: true, ..self.setup.request() };
        self.setup.open(request).await.unwrap()
    }

    /// Follows by websocket, with these parameters.
    async fn follow_by_websocket(&self, query: &str) -> WsFollower<DuplexStream> {
        let settings = RestSettings {
            provider: account(200),
            public_host: "provider.example.com".into(),
            notices: Notices::All,
            native_events: false,
            token_grace: Duration::ZERO,
            serves_page: false,
        };
        let io = self.setup.gateway.connect_rest(settings, Some(self.setup.certificate.clone()), None);
        let path = format!("/lease/1/1/1/logs?follow=true{query}");
        let mut follower = WsFollower::open(io, &path, &[]).await;
        follower.keeps_frames = false;
        follower
    }

    /// Restarts a replica as the gateway does, and waits for the next pod. Returns the uids of both.
    async fn restart(&self, replica: &Replica) -> (String, String) {
        let instance = {
            let view = self.platform.watch(&self.setup.lease).await.unwrap();
            let view = view.borrow();
            view.replica(replica).unwrap().current_run().unwrap().instance.clone()
        };
        let uid = instance.parts().0.to_owned();
        let request = RestartRequest {
            lease: self.setup.lease.clone(),
            replica: replica.clone(),
            instance: Some(instance),
        };
        self.platform.restart(request).await.unwrap();
        let next = self.running(replica, &uid).await;
        (uid, next)
    }
}

/// Beginning of a run that is not the first one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Beginning {
    /// At its first line.
    FirstLine,
    /// At the first line that existed when the previous run had ended: the first file of a busy run may have
    /// been rotated away by then, which cannot be detected.
    OldestFile,
}

/// Checks that every line is the next number of its run, or follows a gap. Returns the numbers of lines and
/// of runs.
#[track_caller]
fn check(received: &Received, service: &str, index: u32) -> (usize, usize) {
    check_from(Beginning::FirstLine, received, service, index)
}

/// [`check`] for runs with this beginning.
#[track_caller]
fn check_from(beginning: Beginning, received: &Received, service: &str, index: u32) -> (usize, usize) {
    let (mut run, mut runs, mut expected, mut lines) = (None, 0, None::<u64>, 0);
    let (mut partial, mut after_gap) = (String::new(), false);
    for seen in received.of(service, index) {
        match seen {
            Seen::Event(..) => {}
            Seen::Gap(..) => (expected, partial, after_gap) = (None, String::new(), true),
            Seen::Logs(of, bytes) => {
                if run.as_ref() != Some(of) {
                    // Each run counts from its beginning; the first one from its oldest line.
                    let is_whole = runs > 0 && beginning == Beginning::FirstLine;
                    expected = (is_whole && !after_gap).then_some(0);
                    (run, runs, partial) = (Some(of.clone()), runs + 1, String::new());
                }
                after_gap = false;
                partial.push_str(std::str::from_utf8(bytes).unwrap());
                while let Some((line, rest)) = partial.split_once('\n') {
                    let number: u64 = line.parse().expect("a number");
                    assert_eq!(number, expected.unwrap_or(number), "in place of the next number of {of}");
                    (expected, lines) = (Some(number + 1), lines + 1);
                    partial = rest.to_owned();
                }
            }
        }
    }
    (lines, runs)
}

/// Follows until a replica has printed in this number of runs.
async fn until_runs(stream: &mut Stream, service: &str, index: u32, runs: usize) {
    stream.until(|received| check(received, service, index).1 >= runs).await;
}

#[tokio::test]
#[ignore = "needs a cluster: KUBECONFIG"]
async fn follow_survives_rotations_and_restart() {
    let scenario = Scenario::new(&[Service::loud("web", 2)]).await;
    let mut stream = scenario.follow().await;
    // Thousands of lines, which pass rotations if log files are small.
    stream.until(|received| received.lines("web", 0) >= 5_000 && received.lines("web", 1) >= 5_000).await;
    let other = scenario.running(&replica("web", 1), "").await;
    scenario.restart(&replica("web", 0)).await;
    let check_replica =
        |received: &Received, index| check_from(Beginning::OldestFile, received, "web", index);
    stream.until(|received| check_replica(received, 0).1 >= 2).await;
    assert_eq!(scenario.running(&replica("web", 1), "").await, other);
    assert!(stream.received.events("web", 0).contains(&Kind::Ended));
    assert_eq!((check_replica(&stream.received, 0).1, check_replica(&stream.received, 1).1), (2, 1));
}

#[tokio::test]
#[ignore = "needs a cluster: KUBECONFIG"]
async fn stateful_set_keeps_its_ordinals() {
    let scenario = Scenario::new(&[Service::numbered("db", 2)]).await;
    let mut stream = scenario.follow().await;
    stream.until(|received| received.lines("db", 0) >= 10 && received.lines("db", 1) >= 10).await;
    let (before, after) = scenario.restart(&replica("db", 1)).await;
    assert_ne!(before, after, "the same name, and another pod");
    until_runs(&mut stream, "db", 1, 2).await;
    scenario.lease.scale("db", 3).await;
    stream.until(|received| received.lines("db", 2) >= 10).await;
    scenario.lease.scale("db", 1).await;
    let gone = |received: &Received, index| received.events("db", index).contains(&Kind::Gone);
    stream.until(|received| gone(received, 2) && gone(received, 1)).await;
    for (index, runs) in [(0, 1), (1, 2), (2, 1)] {
        let (lines, seen_runs) = check(&stream.received, "db", index);
        assert!(lines >= 10 && seen_runs == runs, "db/{index}: {lines} lines of {seen_runs} runs");
    }
    assert!(!gone(&stream.received, 0));
}

#[tokio::test]
#[ignore = "needs a cluster: KUBECONFIG"]
async fn rollout_reuses_slots_and_loses_nothing() {
    let scenario = Scenario::new(&[Service::quiet("web", 2)]).await;
    let mut stream = scenario.follow().await;
    stream.until(|received| received.lines("web", 0) >= 10 && received.lines("web", 1) >= 10).await;
    scenario.lease.roll_out("web").await;
    for index in 0..2 {
        until_runs(&mut stream, "web", index, 2).await;
        assert!(stream.received.events("web", index).contains(&Kind::Ended));
    }
    assert!(stream.received.of("web", 2).is_empty(), "no third slot was made");
}

#[tokio::test]
#[ignore = "needs a cluster: KUBECONFIG"]
async fn deleted_pods_are_read_to_their_ends() {
    let scenario = Scenario::new(&[Service::quiet("web", 3)]).await;
    let mut stream = scenario.follow().await;
    for round in 1..=2 {
        for index in 0..3 {
            until_runs(&mut stream, "web", index, round).await;
        }
        scenario.lease.delete_pods().await;
    }
    for index in 0..3 {
        until_runs(&mut stream, "web", index, 3).await;
    }
}

#[tokio::test]
#[ignore = "needs a cluster: KUBECONFIG"]
async fn crash_loop_has_events_and_status() {
    let scenario = Scenario::new(&[Service::crashing("worker", 7)]).await;
    let mut stream = scenario.follow().await;
    let mut statuses = Statuses::follow(&scenario.setup).await;
    until_runs(&mut stream, "worker", 0, 2).await;
    let events = stream.received.events("worker", 0);
    assert!(events.contains(&Kind::Ended) && events.contains(&Kind::Started), "{events:?}");
    let seen_runs = |statuses: &Statuses| {
        statuses.replica("worker", 0).is_some_and(|seen_runs| {
            seen_runs.restarts >= 1
                && seen_runs.last_exit_code == Some(7)
                && seen_runs.message.contains("CrashLoopBackOff")
        })
    };
    statuses.until(seen_runs).await;
    let (lines, runs) = check(&stream.received, "worker", 0);
    assert!(lines > 0 && runs >= 2);
}

#[tokio::test]
#[ignore = "needs a cluster: KUBECONFIG"]
async fn hundreds_of_followers_are_one_log_request() {
    let scenario = Scenario::new(&[Service::quiet("web", 1)]).await;
    let before = scenario.lease.log_requests().await;
    // Each follower reads the older lines itself, so no more start at once than may read at once.
    let start = async || {
        let mut stream = scenario.follow().await;
        stream.until(|received| received.lines("web", 0) >= 10).await;
        stream
    };
    let mut crowd = vec![start().await];
    scenario.lease.wait_for_log_requests(before + 1).await;
    let coming = stream::iter(1..CROWD).map(|_| start()).buffer_unordered(STARTING_AT_ONCE);
    crowd.extend(coming.collect::<Vec<_>>().await);
    // All of them reach the same position, however late they started.
    let goal = "300\n";
    let reading: FuturesUnordered<_> = crowd
        .iter_mut()
        .map(|stream| stream.until(|received| received.text("web", 0).contains(goal)))
        .collect();
    reading.collect::<()>().await;
    // One for the replica, and not one for each.
    scenario.lease.wait_for_log_requests(before + 1).await;
    for stream in &crowd {
        let (lines, runs) = check(&stream.received, "web", 0);
        assert!(lines >= 300 && runs == 1, "{lines} lines of {runs} runs");
    }
}

#[tokio::test]
#[ignore = "needs a cluster: KUBECONFIG"]
async fn thousand_websockets_are_one_log_request() {
    let scenario = Scenario::new(&[Service::quiet("web", 1)]).await;
    let before = scenario.lease.log_requests().await;
    let mut first = scenario.follow_by_websocket("").await;
    first.until("some lines", |first| first.received.lines("web", 0) >= 50).await;
    scenario.lease.wait_for_log_requests(before + 1).await;
    let finished = scenario.lease.finished_log_requests().await;
    // New lines, and the last ones, which the first follower's ring has.
    let coming = stream::iter(1..WEBSOCKETS)
        .map(|number| scenario.follow_by_websocket(if number % 2 == 0 { "&tail=0" } else { "&tail=10" }))
        .buffer_unordered(STARTING_AT_ONCE);
    let mut crowd: Vec<_> = coming.collect().await;
    // The newest line of the last one is the goal of all.
    let mut last = scenario.follow_by_websocket("&tail=0").await;
    last.until("a line", |last| last.received.lines("web", 0) >= 1).await;
    let goal = last.received.text("web", 0);
    crowd.push(first);
    let reading: FuturesUnordered<_> = crowd
        .iter_mut()
        .map(|follower| follower.until("the goal", |each| each.received.ends_with("web", 0, &goal)))
        .collect();
    reading.collect::<()>().await;
    assert_eq!(scenario.lease.log_requests().await, before + 1, "one for the replica");
    assert_eq!(scenario.lease.finished_log_requests().await, finished, "and none for each");
    for follower in &crowd {
        assert_eq!(check(&follower.received, "web", 0).1, 1);
        assert_eq!(follower.received.missing("web", 0), 0);
    }
}

#[tokio::test]
#[ignore = "needs a cluster: KUBECONFIG, and LEASEMUX_TEST_NODE"]
async fn node_follows_its_pods_without_log_request() {
    let Some(scenario) = Scenario::on_node(&[Service::loud("web", 1), Service::numbered("db", 1)]).await
    else {
        eprintln!("not tested: LEASEMUX_TEST_NODE does not say which node this is");
        return;
    };
    let before = scenario.lease.log_requests().await;
    let mut stream = scenario.follow().await;
    stream.until(|received| received.lines("web", 0) >= 5_000 && received.lines("db", 0) >= 10).await;
    assert_eq!(scenario.lease.log_requests().await, before);
    scenario.restart(&replica("db", 0)).await;
    until_runs(&mut stream, "db", 0, 2).await;
    assert_eq!((check(&stream.received, "web", 0).1, check(&stream.received, "db", 0).1), (1, 2));
}
