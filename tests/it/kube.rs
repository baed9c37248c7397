//! The `kube` platform on an API server inside the test that can fail in every way, over real gRPC where
//! followers matter.

pub(crate) mod cluster;
mod crds;
mod events;
mod gateways;
mod heartbeats;
mod kubelet_faults;
mod node_pods;
mod outages;
mod refill;
mod replacements;
mod rollouts;
mod stale;
mod start;
mod unreadable;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use leasemux::edge::admin::Exporter;
use leasemux::model::id::{Instance, LeaseId, Replica};
use leasemux::model::limits::Limits;
use leasemux::model::proto::lease::ServiceLogsRequest;
use leasemux::model::proto::lease::replica_event::Kind;
use leasemux::model::view::ReplicaState;
use leasemux::platform::coordination::LockState;
use leasemux::platform::kube::{ClusterAccess, KubeConfig, KubePlatform};
use leasemux::platform::node::NodePlatform;
use leasemux::platform::{Error, Platform as _, ReadFrom, RestartRequest, TailItem, TailRequest};
use leasemux::restart::probation::{Assessment, Probation};
use leasemux::sys::dir_watch::Notifier;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::json;

use self::cluster::{Cluster, RunKey};
use crate::support::gateway::{Gateway, PATIENCE, Setup, Stream};
use crate::support::loss_check::{Received, Seen};
use crate::support::seeds::seeds;
use crate::support::{account, replica};

const SERVICE: &str = "web";

/// Watches of a platform: namespaces, pods, deployments, stateful sets, services, host names, leased
/// addresses.
const WATCHES: usize = 7;

/// Longer than a silence is accepted.
const SILENCE: Duration = Duration::from_secs(61);

/// Rounds of all tasks without a new request after which no request is under way.
const RESTS: usize = 30;

/// A cluster with one lease, and a gateway on it.
struct Scenario {
    cluster: Cluster,
    platform: Arc<KubePlatform>,
    exporter: Exporter,
    setup: Setup,
    _dir: tempfile::TempDir,
}

/// Starts a platform on an API server.
pub(crate) async fn connect(cluster: &Cluster, dir: &tempfile::TempDir) -> Result<Arc<KubePlatform>, Error> {
    connect_counted(cluster, dir, &Exporter::new().unwrap()).await
}

async fn connect_counted(
    cluster: &Cluster,
    dir: &tempfile::TempDir,
    exporter: &Exporter,
) -> Result<Arc<KubePlatform>, Error> {
    let config = KubeConfig {
        cluster: ClusterAccess {
            kubeconfig: Some(kubeconfig(cluster, dir)),
            context: None,
            manifest_namespace: "lease".into(),
            coordination_namespace: None,
        },
        provider: account(200),
        hostname: "provider.example.com".into(),
    };
    KubePlatform::start(&config, &exporter.metrics).await
}

/// Writes a kubeconfig for an API server.
pub(crate) fn kubeconfig(cluster: &Cluster, dir: &tempfile::TempDir) -> PathBuf {
    let file = dir.path().join("kubeconfig");
    let config = format!(
        "{{apiVersion: v1, kind: Config, clusters: [{{name: c, cluster: {{server: 'http://{}'}}}}], users: [{{name: u, user: {{}}}}], \
         contexts: [{{name: c, context: {{cluster: c, user: u}}}}], current-context: c}}",
        cluster.address
    );
    std::fs::write(&file, config).unwrap();
    file
}

impl Scenario {
    async fn new(count: u32) -> Self {
        Self::with_limits(count, Limits::default()).await
    }

    async fn with_limits(count: u32, limits: Limits) -> Self {
        let (cluster, dir) = (Cluster::start().await, tempfile::tempdir().unwrap());
        let exporter = Exporter::new().unwrap();
        let platform = connect_counted(&cluster, &dir, &exporter).await.unwrap();
        Self::of(cluster, platform, exporter, dir, count, limits)
    }

    fn of(
        cluster: Cluster,
        platform: Arc<KubePlatform>,
        exporter: Exporter,
        dir: tempfile::TempDir,
        count: u32,
        limits: Limits,
    ) -> Self {
        let on = Arc::clone(&platform) as Arc<dyn leasemux::platform::Platform>;
        let gateway = Gateway::on_with(on, limits);
        let (owner, certificate) = gateway.tenant();
        let lease = LeaseId::new(owner.as_str(), 7, 1, 1, account(200).as_str()).unwrap();
        cluster.lease(&lease, SERVICE, count);
        Self { cluster, platform, exporter, setup: Setup { gateway, lease, certificate }, _dir: dir }
    }

    fn lease(&self) -> &LeaseId {
        &self.setup.lease
    }

    fn run(&self, pod: &str) -> RunKey {
        self.cluster.run(self.lease(), SERVICE, pod, 0)
    }

    /// Value of a counter of the watch of this kind.
    fn counted(&self, what: &str, resource: &str) -> u64 {
        let series = format!("leasemux_watch_{what}_total{{resource=\"{resource}\"}} ");
        let text = self.exporter.render();
        text.lines().find_map(|line| line.strip_prefix(&series)).unwrap().parse().unwrap()
    }

    /// Waits until the platform's view has these numbers of runs, one per replica.
    async fn shows(&self, runs: &[usize]) {
        let mut view = None;
        eventually(async || {
            if view.is_none() {
                view = self.platform.watch(self.lease()).await.ok();
            }
            let Some(view) = &view else { return false };
            let view = view.borrow();
            let of = |index| view.replica(&replica(SERVICE, index)).map(|found| found.runs.len());
            (0..).zip(runs).all(|(index, runs)| of(index) == Some(*runs))
        })
        .await;
    }

    async fn follow(&self) -> Stream {
        let request = ServiceLogsRequest { follow: true, ..self.setup.request() };
        self.setup.open(request).await.unwrap()
    }

    /// Opens a follower of new lines, and waits for a line of this run: from then on the shared tail reads
    /// the log.
    async fn followed_live(&self, run: &RunKey) -> Stream {
        let request = ServiceLogsRequest { follow: true, tail_lines: Some(0), ..self.setup.request() };
        let mut follower = self.setup.open(request).await.unwrap();
        while follower.received.lines(SERVICE, 0) == 0 {
            self.cluster.print(run, 1, 1);
            _ = follower.next_if_ready().await.unwrap();
        }
        follower
    }
}

/// Waits for a condition.
async fn eventually(mut condition: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("the condition holds at last");
}

/// Advances the clock. Sockets do not notice it.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

/// Advances the clock once no request is under way. Otherwise requests would time out that are answered at
/// once, and their kubelet or the API server would count as unreachable.
async fn pass_at_rest(scenario: &Scenario, follower: &mut Stream, time: Duration) {
    for _ in 0..20 {
        let requests = scenario.cluster.requests();
        // All tasks are on this thread: each call lets them run.
        for _ in 0..RESTS {
            _ = follower.next_if_ready().await.unwrap();
        }
        if requests == scenario.cluster.requests() {
            break;
        }
    }
    pass(time).await;
}

/// Takes responses until enough was received. Advances the clock by minutes while nothing comes.
async fn in_time(scenario: &Scenario, follower: &mut Stream, enough: impl Fn(&Received) -> bool) {
    for _ in 0..40 {
        for _ in 0..200 {
            if enough(&follower.received) {
                return;
            }
            _ = follower.next_if_ready().await.unwrap();
        }
        pass_at_rest(scenario, follower, SILENCE).await;
    }
    panic!("not enough: {:?}", follower.received);
}

fn ended_with(last: String) -> impl Fn(&Received) -> bool {
    let end = format!("{last}\n");
    move |received| received.ends_with(SERVICE, 0, &end)
}

#[tokio::test]
async fn many_followers_share_one_stream_per_replica() {
    let scenario = Scenario::new(2).await;
    let runs = [scenario.run("a"), scenario.run("b")];
    scenario.shows(&[1, 1]).await;
    for run in &runs {
        scenario.cluster.print(run, 10, 1_000);
    }
    let mut followers = Vec::new();
    for _ in 0..12 {
        let mut follower = scenario.follow().await;
        follower.until(|received| received.lines(SERVICE, 0) >= 10 && received.lines(SERVICE, 1) >= 10).await;
        followers.push(follower);
    }
    for run in &runs {
        scenario.cluster.print(run, 10, 1_000);
    }
    for follower in &mut followers {
        follower.until(|received| received.lines(SERVICE, 0) >= 20 && received.lines(SERVICE, 1) >= 20).await;
        for (index, run) in (0..).zip(&runs) {
            assert_eq!(follower.received.assert_ordered(SERVICE, index, &scenario.cluster.printed(run)), 0);
        }
    }
    // A backfill may have a follow of its own until it joins.
    eventually(async || scenario.cluster.follows() == 2).await;
}

#[tokio::test]
async fn random_failures_lose_and_repeat_nothing() {
    for seed in seeds(4) {
        println!("seed: {seed}");
        live(seed).await;
    }
}

/// Runs one random scenario.
async fn live(seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let scenario = Scenario::new(1).await;
    let mut runs = vec![scenario.run("a")];
    scenario.shows(&[1]).await;
    let cluster = &scenario.cluster;
    // The log is read before anything happens to it: positions count from the first line of the oldest file
    // that was read, and cannot be compared across a rotation and a clock that was set back.
    let _first = scenario.followed_live(&runs[0]).await;
    let mut follower = scenario.follow().await;
    let mut rotations = 0;
    // The run in which the clock was set back: the first line of a later file may be older than the run.
    let mut set_back = None;
    for _ in 0..25 {
        let run = runs.last().unwrap().clone();
        // After a clock was set back, reads that begin on both sides of a rotation disagree on positions.
        let may_rotate = !cluster.printed(&run).is_empty() && (run.2 == 0 || set_back != Some(run.2));
        match random.random_range(0..20) {
            0..=4 => {
                let steps = [0, 1, 1_000_000, 1_000_000_000, -3_600_000_000_000];
                let step = steps[random.random_range(0..steps.len())];
                cluster.print(&run, random.random_range(1..60), step);
                if step < 0 {
                    set_back = Some(run.2);
                }
            }
            5 => cluster.break_logs(),
            6 => cluster.complete_logs(),
            7 => cluster.send_message("unable to retrieve container logs for containerd://x"),
            8 => cluster.forget_history(),
            9 if may_rotate => {
                let first = format!("{}/0\n", run.2);
                in_time(&scenario, &mut follower, |received| received.text(SERVICE, 0).contains(&first))
                    .await;
                cluster.rotate(&run);
                rotations += 1;
            }
            10 => {
                // Of earlier runs only the previous one can be read.
                if !cluster.printed(&run).is_empty() {
                    cluster.print(&run, 1, 1);
                    let last = cluster.printed(&run).last().cloned().unwrap();
                    in_time(&scenario, &mut follower, ended_with(last)).await;
                    runs.push(cluster.crash(scenario.lease(), "a", &run));
                }
            }
            11 => cluster.silence_logs(),
            12 => {
                cluster.bookmark();
                cluster.compact();
            }
            13 => cluster.compact(),
            14 => {
                cluster.stop().await;
                cluster.print(&run, 2, 1_000);
                _ = follower.next_if_ready().await.unwrap();
                cluster.resume().await;
            }
            17 if may_rotate => {
                kubelet_faults::lag(&mut random, &scenario, &run, &mut follower).await;
                rotations += 1;
            }
            18 if !cluster.printed(&run).is_empty() && set_back != Some(run.2) => {
                kubelet_faults::restart_unreported(&mut random, &scenario, &mut runs, &mut follower).await;
                // Runs that came and went unseen are a gap.
                rotations += 1;
            }
            19 => cluster.exhaust(random.random()),
            _ => {
                _ = follower.next_if_ready().await.unwrap();
            }
        }
    }
    let run = runs.last().unwrap().clone();
    cluster.print(&run, 1, 1);
    let last = cluster.printed(&run).last().cloned().unwrap();
    in_time(&scenario, &mut follower, ended_with(last)).await;
    let gaps = kubelet_faults::check(&scenario, &follower.received, &runs);
    assert!(gaps == 0 || rotations > 0, "seed {seed}: {gaps} gaps without a rotation");
    assert_eq!(cluster.asked_since(), 0);
}

#[tokio::test]
async fn missed_events_are_found_by_next_list() {
    let scenario = Scenario::new(2).await;
    let (a, _b) = (scenario.run("a"), scenario.run("b"));
    scenario.shows(&[1, 1]).await;
    let view = scenario.platform.watch(scenario.lease()).await.unwrap();
    scenario.cluster.print(&a, 3, 1_000);
    // The pod is removed without an event, and the versions of all watches are too old.
    let namespace = scenario.lease().namespace();
    scenario.cluster.remove("pods", &namespace, "a", true);
    scenario.cluster.forget_history();
    eventually(async || {
        let view = view.borrow();
        view.replica(&replica(SERVICE, 0))
            .is_some_and(|found| found.newest().is_none_or(|run| run.end.is_some()))
    })
    .await;
    for resource in ["pods", "deployments", "providerleasedips"] {
        eventually(async || {
            scenario.counted("failures", resource) >= 1 && scenario.counted("lists", resource) >= 2
        })
        .await;
    }
    scenario.cluster.remove("namespaces", "", &namespace, true);
    scenario.cluster.forget_history();
    eventually(async || view.borrow().ended).await;
    assert!(matches!(scenario.platform.watch(scenario.lease()).await, Err(Error::NotFound(_))));
}

#[tokio::test]
async fn written_indices_are_shared_among_gateways() {
    let scenario = Scenario::new(2).await;
    let namespace = scenario.lease().namespace();
    scenario.run("b");
    eventually(async || scenario.cluster.annotation(&namespace, "b").as_deref() == Some("0")).await;
    // Of the same age, and first by name: it does not take the written index.
    scenario.run("a");
    eventually(async || scenario.cluster.annotation(&namespace, "a").as_deref() == Some("1")).await;
    let dir = tempfile::tempdir().unwrap();
    let other = connect(&scenario.cluster, &dir).await.unwrap();
    let view = other.watch(scenario.lease()).await.unwrap();
    let instance =
        |index| view.borrow().replica(&replica(SERVICE, index)).unwrap().newest().unwrap().instance.clone();
    assert_eq!((instance(0).parts().0, instance(1).parts().0), ("uid-b", "uid-a"));
}

#[tokio::test]
async fn restart_deletes_the_requested_pod_once() {
    let scenario = Scenario::new(1).await;
    scenario.run("a");
    scenario.shows(&[1]).await;
    let meant = |uid: &str| RestartRequest {
        lease: scenario.lease().clone(),
        replica: replica(SERVICE, 0),
        instance: Some(Instance::new(uid, SERVICE, 0).unwrap()),
    };
    assert!(matches!(scenario.platform.restart(meant("uid-z")).await, Err(Error::Conflict(_))));
    scenario.platform.restart(meant("uid-a")).await.unwrap();
    let view = scenario.platform.watch(scenario.lease()).await.unwrap();
    let has_ended =
        || view.borrow().replica(&replica(SERVICE, 0)).is_some_and(|found| found.current_run().is_none());
    eventually(async || has_ended()).await;
    // A repeated request: the next pod is about to come.
    scenario.platform.restart(meant("uid-a")).await.unwrap();
    assert_eq!(scenario.cluster.deleted(), ["uid-a"]);
    scenario.run("b");
    eventually(async || !has_ended()).await;
    assert!(matches!(scenario.platform.restart(meant("uid-a")).await, Err(Error::Conflict(_))));
    assert_eq!(scenario.cluster.deleted(), ["uid-a"]);
}

#[tokio::test]
async fn terminal_waiting_reason_fails_restart_early() {
    let scenario = Scenario::new(1).await;
    scenario.run("a");
    scenario.shows(&[1]).await;
    let view = scenario.platform.watch(scenario.lease()).await.unwrap();
    let watched = replica(SERVICE, 0);
    let namespace = scenario.lease().namespace();
    scenario.cluster.remove("pods", &namespace, "a", false);
    for (reason, early) in [
        ("CrashLoopBackOff", 10),
        ("ImagePullBackOff", 10),
        ("CreateContainerConfigError", 10),
        ("Unschedulable", 60),
    ] {
        let status = if reason == "Unschedulable" {
            let unplaced =
                json!({ "type": "PodScheduled", "status": "False", "reason": reason, "message": "because" });
            json!({ "phase": "Pending", "conditions": [unplaced] })
        } else {
            let waiting = json!({ "waiting": { "reason": reason, "message": "because" } });
            json!({ "phase": "Pending", "containerStatuses": [{ "name": SERVICE, "image": "", "imageID": "", "ready": false,
                "restartCount": 0, "state": waiting }] })
        };
        let owner = json!({ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "set", "uid": "set", "controller": true });
        scenario.cluster.put(
            "pods",
            json!({ "metadata": { "name": "b", "namespace": namespace, "uid": "uid-b", "creationTimestamp": "2026-11-25T00:01:00Z",
                    "labels": { "akash.network": "true", "akash.network/manifest-service": SERVICE }, "ownerReferences": [owner] },
                "spec": { "containers": [] }, "status": status }),
        );
        eventually(async || {
            let view = view.borrow();
            view.replica(&watched).is_some_and(
                |found| matches!(&found.state, ReplicaState::Waiting { reason: why, .. } if why == reason),
            )
        })
        .await;
        let mut trial = Probation::new(watched.clone(), Some(Instance::new("uid-a", SERVICE, 0).unwrap()));
        let (just_before, early) = (Duration::from_secs(early - 1), Duration::from_secs(early));
        assert_eq!(trial.assess(&view.borrow(), just_before), Assessment::Open(early));
        assert_eq!(trial.assess(&view.borrow(), early), Assessment::Failed(format!("{reason}: because")));
    }
}

#[tokio::test]
async fn restart_lock_has_one_holder_among_gateways() {
    let scenario = Scenario::new(1).await;
    scenario.run("a");
    scenario.shows(&[1]).await;
    let dir = tempfile::tempdir().unwrap();
    let other = connect(&scenario.cluster, &dir).await.unwrap();
    let mut turns = [&scenario.platform, &other]
        .map(|platform| platform.restart_locks().unwrap().candidate(scenario.lease()));
    assert_eq!(turns[0].acquire_or_observe().await.unwrap(), LockState::Held(String::new()));
    turns[0].write_payload("first".to_owned()).await.unwrap();
    let LockState::HeldByOther { holder, payload: note } = turns[1].acquire_or_observe().await.unwrap()
    else {
        panic!("both hold the lock")
    };
    assert!(note == "first" && !holder.is_empty());
    assert_eq!(other.restart_locks().unwrap().payload(scenario.lease()).await.unwrap(), "first");
    turns[0].release("second".to_owned()).await.unwrap();
    assert_eq!(turns[1].acquire_or_observe().await.unwrap(), LockState::Held("second".to_owned()));
    // The first gateway no longer holds the lock.
    assert!(matches!(turns[0].write_payload("third".to_owned()).await, Err(Error::Conflict(_))));
    turns[1].release(String::new()).await.unwrap();
    assert!(scenario.cluster.lease_objects().is_empty());
}

#[tokio::test]
async fn start_names_all_missing_permissions() {
    let (cluster, dir) = (Cluster::start().await, tempfile::tempdir().unwrap());
    cluster.deny("get", "pods/log");
    cluster.deny("watch", "deployments");
    cluster.deny("update", "leases");
    // Optional: only logged.
    cluster.deny("patch", "pods");
    let error = connect(&cluster, &dir).await.unwrap_err().to_string();
    assert!(error.contains("get pods/log in the whole cluster"), "{error}");
    assert!(error.contains("watch deployments.apps in the whole cluster"), "{error}");
    assert!(error.contains("update leases.coordination.k8s.io in namespace default"), "{error}");
    assert!(!error.contains("patch"), "{error}");
}

#[tokio::test]
async fn node_reads_own_pods_from_disk_without_requests() {
    let (scenario, logs) = (Scenario::new(2).await, tempfile::tempdir().unwrap());
    // Of the same age, so the names decide about the indices.
    let (here, elsewhere) = (scenario.run("a-near"), scenario.run("far"));
    scenario.shows(&[1, 1]).await;
    let dir = logs.path().join(format!("{}_a-near_{}/{SERVICE}", scenario.lease().namespace(), here.0));
    std::fs::create_dir_all(&dir).unwrap();
    let line = |n: usize| format!("2026-11-25T00:00:01.{n:09}Z stdout F 0/{n}\n");
    std::fs::write(dir.join("0.log"), (0..10).map(line).collect::<String>()).unwrap();
    scenario.cluster.print(&elsewhere, 10, 1_000);
    let kube = Arc::clone(&scenario.platform);
    let node = NodePlatform::new(kube, Notifier::start(), "node1".into(), logs.path().into());
    let gateway = Gateway::on(Arc::new(node));
    gateway.believe(scenario.lease().owner(), &scenario.setup.certificate);
    let setup =
        Setup { gateway, lease: scenario.lease().clone(), certificate: scenario.setup.certificate.clone() };
    let request = ServiceLogsRequest { follow: true, ..setup.request() };
    let mut follower = setup.open(request).await.unwrap();
    let all = |lines| move |received: &Received| (0..2).all(|index| received.lines(SERVICE, index) >= lines);
    follower.until(all(10)).await;
    let mut file = std::fs::File::options().append(true).open(dir.join("0.log")).unwrap();
    std::io::Write::write_all(&mut file, (10..20).map(line).collect::<String>().as_bytes()).unwrap();
    scenario.cluster.print(&elsewhere, 10, 1_000);
    follower.until(all(20)).await;
    let printed: Vec<String> = (0..20).map(|n| format!("0/{n}")).collect();
    assert_eq!(
        (
            follower.received.assert_ordered(SERVICE, 0, &printed),
            follower.received.assert_ordered(SERVICE, 1, &printed)
        ),
        (0, 0)
    );
    // A backfill may have a follow of its own until it joins.
    eventually(async || scenario.cluster.follows() == 1).await;
    assert!(scenario.cluster.logs_opened_of("a-near") == 0 && scenario.cluster.logs_opened_of("far") > 0);
    // The run ends, and the next one is read as well.
    let next = scenario.cluster.crash(scenario.lease(), "a-near", &here);
    std::fs::write(dir.join("1.log"), line(20)).unwrap();
    follower.until(|received| received.lines(SERVICE, 0) >= 21).await;
    assert_eq!(next.2, 1);
    assert_eq!(follower.received.events(SERVICE, 0), [Kind::Ended, Kind::Started]);
}

/// A crash of the machine may leave the end of a compressed log incomplete.
#[tokio::test]
async fn follower_gets_gap_after_line_cut_in_compressed_log() {
    let (scenario, logs) = (Scenario::new(1).await, tempfile::tempdir().unwrap());
    let run = scenario.run("a");
    scenario.shows(&[1]).await;
    let dir = logs.path().join(format!("{}_a_{}/{SERVICE}", scenario.lease().namespace(), run.0));
    std::fs::create_dir_all(&dir).unwrap();
    let line = |n: usize| format!("2026-11-25T00:00:01.{n:09}Z stdout F line {n}\n");
    let (active, rotated) = (dir.join("0.log"), dir.join("0.log.20261125-000001"));
    let content: String = (0..3).map(line).collect();
    std::fs::write(&active, &content).unwrap();
    let node = NodePlatform::new(
        Arc::clone(&scenario.platform),
        Notifier::polling(),
        "node1".into(),
        logs.path().into(),
    );
    let gateway = Gateway::on(Arc::new(node));
    gateway.believe(scenario.lease().owner(), &scenario.setup.certificate);
    let setup =
        Setup { gateway, lease: scenario.lease().clone(), certificate: scenario.setup.certificate.clone() };
    let request = ServiceLogsRequest { follow: true, ..setup.request() };
    let mut first = setup.open(request.clone()).await.unwrap();
    first.until(|received| received.lines(SERVICE, 0) == 3).await;
    // The next line comes through the ring.
    std::fs::rename(&active, &rotated).unwrap();
    std::fs::write(&active, line(3)).unwrap();
    first.until(|received| received.lines(SERVICE, 0) == 4).await;
    let copy = std::fs::File::create(dir.join("0.log.20261125-000001.gz")).unwrap();
    let mut copy = flate2::write::GzEncoder::new(copy, flate2::Compression::fast());
    std::io::Write::write_all(&mut copy, content.strip_suffix(" 2\n").unwrap().as_bytes()).unwrap();
    copy.finish().unwrap();
    std::fs::remove_file(&rotated).unwrap();
    let mut second = setup.open(request).await.unwrap();
    second.until(|received| received.lines(SERVICE, 0) == 3).await;
    let seen = second.received.of(SERVICE, 0);
    assert!(seen.iter().any(|seen| matches!(seen, Seen::Gap(1, 0, false))), "{seen:?}");
    assert!(second.received.text(SERVICE, 0).ends_with("line 3\n"));
}

/// Reads one run without follow.
async fn read(
    platform: &KubePlatform,
    lease: &LeaseId,
    from: ReadFrom,
    instance: &Instance,
) -> Result<Vec<String>, Error> {
    let replica = Replica { service: SERVICE.parse().unwrap(), index: 0 };
    let request = TailRequest {
        lease: lease.clone(),
        replica,
        instance: instance.clone(),
        from,
        lines_after: None,
        oldest_read: None,
        is_next_run: false,
        follow: false,
    };
    let mut tail = platform.tail(request).await?;
    let mut lines = Vec::new();
    while let Some(item) = tail.items.next().await {
        match item? {
            TailItem::Lines(batch) => {
                lines.extend((0..batch.lines.len()).map(|index| {
                    String::from_utf8(batch.bytes(index).to_vec()).unwrap().trim_end().to_owned()
                }));
            }
            TailItem::FollowUnavailable | TailItem::Interrupted(_) | TailItem::Resumed => {
                panic!("a read does not follow")
            }
            TailItem::Gap(gap) => lines.push(format!("{:?}", gap.cause)),
        }
    }
    Ok(lines)
}

#[tokio::test]
async fn read_returns_requested_run_only() {
    let scenario = Scenario::new(1).await;
    let first = scenario.run("a");
    scenario.cluster.print(&first, 3, 1_000);
    let second = scenario.cluster.crash(scenario.lease(), "a", &first);
    scenario.cluster.print(&second, 3, 1_000);
    scenario.shows(&[2]).await;
    let instance = |number| Instance::new("uid-a", SERVICE, number).unwrap();
    let lines =
        async |from, number| read(&scenario.platform, scenario.lease(), from, &instance(number)).await;
    assert_eq!(lines(ReadFrom::Start, 0).await.unwrap(), ["0/0", "0/1", "0/2"]);
    assert_eq!(lines(ReadFrom::Last(2), 1).await.unwrap(), ["1/1", "1/2"]);
    assert!(matches!(lines(ReadFrom::Start, 2).await, Err(Error::NotFound(_))));
    // A message of the kubelet is not a log.
    scenario.cluster.send_message("unable to retrieve container logs for containerd://x");
    assert!(matches!(lines(ReadFrom::Start, 1).await, Err(Error::Unavailable(_))));
}

#[tokio::test]
async fn concurrent_equal_reads_share_one_request() {
    let scenario = Scenario::new(1).await;
    let run = scenario.run("a");
    scenario.cluster.print(&run, 150, 1_000);
    scenario.shows(&[1]).await;
    let printed = scenario.cluster.printed(&run)[50..].to_vec();
    let instance = Instance::new("uid-a", SERVICE, 0).unwrap();
    let equal = (0..20).map(|_| read(&scenario.platform, scenario.lease(), ReadFrom::Last(100), &instance));
    for lines in futures_util::future::join_all(equal).await {
        assert_eq!(lines.unwrap(), printed);
    }
    assert_eq!(scenario.cluster.logs_opened_of("a"), 1);
    // Over gRPC each caller gets all lines, shared or not.
    let callers = (0..20).map(async |_| {
        let request = ServiceLogsRequest { tail_lines: Some(100), ..scenario.setup.request() };
        let mut stream = scenario.setup.open(request).await.unwrap();
        assert_eq!(stream.end().await.code(), tonic::Code::Ok);
        stream.received.assert_ordered(SERVICE, 0, &printed)
    });
    assert_eq!(futures_util::future::join_all(callers).await, [0; 20]);
}

#[tokio::test]
async fn half_open_log_connection_loses_nothing() {
    let scenario = Scenario::new(1).await;
    let run = scenario.run("a");
    scenario.shows(&[1]).await;
    let mut follower = scenario.follow().await;
    for lines in [5, 10] {
        scenario.cluster.print(&run, 5, 1_000);
        follower.until(|received| received.lines(SERVICE, 0) >= lines).await;
    }
    // Twice: the next connection is half open, too.
    for _ in 0..2 {
        scenario.cluster.silence_logs();
        scenario.cluster.print(&run, 5, 1_000);
        let last = scenario.cluster.printed(&run).last().cloned().unwrap();
        in_time(&scenario, &mut follower, ended_with(last)).await;
    }
    // Again, with the end of the run.
    scenario.cluster.silence_logs();
    let next = scenario.cluster.crash(scenario.lease(), "a", &run);
    scenario.cluster.print(&next, 5, 1_000);
    let last = scenario.cluster.printed(&next).last().cloned().unwrap();
    in_time(&scenario, &mut follower, ended_with(last)).await;
    let printed = [scenario.cluster.printed(&run), scenario.cluster.printed(&next)].concat();
    assert_eq!(follower.received.assert_ordered(SERVICE, 0, &printed), 0);
}

#[tokio::test]
async fn follower_ahead_of_lost_stream_gets_one_gap() {
    // Times that grow, tie, and go back.
    for step in [1_000, 0, -3_600_000_000_000] {
        let scenario = Scenario::new(1).await;
        let run = scenario.run("a");
        scenario.shows(&[1]).await;
        scenario.cluster.print(&run, 5, 1);
        let _first = scenario.followed_live(&run).await;
        // The shared tail does not get these lines. A later follower has read some of them and waits for the
        // shared tail.
        scenario.cluster.silence_logs();
        scenario.cluster.print(&run, 10, step);
        let seen = scenario.cluster.printed(&run).len();
        let mut follower = scenario.follow().await;
        follower.until(|received| received.lines(SERVICE, 0) == seen).await;
        scenario.cluster.print(&run, 10, step);
        scenario.cluster.rotate(&run);
        scenario.cluster.print(&run, 30, step);
        let last = scenario.cluster.printed(&run).last().cloned().unwrap();
        in_time(&scenario, &mut follower, ended_with(last)).await;
        assert_eq!(
            follower.received.assert_ordered(SERVICE, 0, &scenario.cluster.printed(&run)),
            1,
            "step {step}"
        );
    }
}

#[tokio::test]
async fn half_open_watches_are_replaced_in_minutes() {
    let scenario = Scenario::new(1).await;
    let first = scenario.run("a");
    scenario.shows(&[1]).await;
    let mut follower = scenario.follow().await;
    scenario.cluster.print(&first, 5, 1_000);
    follower.until(|received| received.lines(SERVICE, 0) >= 5).await;
    scenario.cluster.silence_watches();
    let second = scenario.cluster.crash(scenario.lease(), "a", &first);
    scenario.cluster.print(&second, 5, 1_000);
    in_time(&scenario, &mut follower, |received| received.lines(SERVICE, 0) >= 10).await;
    let printed = [scenario.cluster.printed(&first), scenario.cluster.printed(&second)].concat();
    assert_eq!(follower.received.assert_ordered(SERVICE, 0, &printed), 0);
    assert_eq!(follower.received.events(SERVICE, 0), [Kind::Ended, Kind::Started]);
}

#[tokio::test]
async fn watches_resume_from_bookmarks_without_list() {
    let scenario = Scenario::new(2).await;
    scenario.run("a");
    scenario.shows(&[1]).await;
    let (_, lists) = scenario.cluster.bookmarks_and_lists();
    scenario.cluster.bookmark();
    eventually(async || scenario.cluster.bookmarks_and_lists().0 >= WATCHES).await;
    scenario.cluster.compact();
    scenario.run("b");
    scenario.shows(&[1, 1]).await;
    assert_eq!(scenario.cluster.bookmarks_and_lists().1, lists);
    // Without bookmarks, watches without a later event must list.
    scenario.cluster.compact();
    eventually(async || scenario.cluster.bookmarks_and_lists().1 > lists).await;
}

#[tokio::test]
async fn platform_waits_for_api_server_and_resumes() {
    let (cluster, dir) = (Cluster::stopped(), tempfile::tempdir().unwrap());
    let platform = {
        let mut starting = std::pin::pin!(connect(&cluster, &dir));
        // Refused, and tried again after a while.
        assert!(tokio::time::timeout(Duration::from_millis(50), &mut starting).await.is_err());
        cluster.resume().await;
        starting.await.unwrap()
    };
    let scenario = Scenario::of(cluster, platform, Exporter::new().unwrap(), dir, 1, Limits::default());
    let first = scenario.run("a");
    scenario.shows(&[1]).await;
    let mut follower = scenario.follow().await;
    scenario.cluster.print(&first, 5, 1_000);
    follower.until(|received| received.lines(SERVICE, 0) >= 5).await;
    scenario.cluster.stop().await;
    scenario.cluster.print(&first, 5, 1_000);
    // It is still stopped at the next attempt.
    assert!(!follower.next_if_ready().await.unwrap());
    let second = scenario.cluster.crash(scenario.lease(), "a", &first);
    scenario.cluster.print(&second, 5, 1_000);
    scenario.cluster.resume().await;
    in_time(&scenario, &mut follower, |received| received.lines(SERVICE, 0) >= 15).await;
    let printed = [scenario.cluster.printed(&first), scenario.cluster.printed(&second)].concat();
    assert_eq!(follower.received.assert_ordered(SERVICE, 0, &printed), 0);
    assert_eq!(follower.received.events(SERVICE, 0), [Kind::Ended, Kind::Started]);
}
