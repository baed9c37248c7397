//! Pods that are replaced: while logs are refused, and at gateways that have seen different changes. In
//! memory, with paused time.

use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use leasemux::edge::admin::Exporter;
use leasemux::model::id::LeaseId;
use leasemux::model::limits::Limits;
use leasemux::model::proto::lease::{OnLag, ServiceLogsRequest};
use leasemux::platform::Platform;
use leasemux::platform::kube::{ClusterAccess, KubeConfig, KubePlatform};

use super::cluster::{Cluster, Kubelets, LogAnswer, RunKey};
use super::{SERVICE, kubeconfig};
use crate::support::account;
use crate::support::gateway::{Gateway, Setup, Stream};
use crate::support::loss_check::Received;

/// A millisecond.
const STEP: i64 = 1_000_000;

/// Length of a line: some hundred fill ring, stream buffer, pipe and the client's window.
const LINE_BYTES: usize = 2_000;

/// How long logs are refused.
const REFUSED: Duration = Duration::from_secs(300);

/// Longer than any wait of a gateway for a log that can be read.
const BACK_MAX: Duration = Duration::from_secs(120);

/// How requests for logs fail.
#[derive(Clone, Copy, Debug)]
enum Failure {
    Status(u16),
    Unreachable,
    /// Only those for the log of the pod that is being deleted.
    OldPod,
}

/// A cluster in memory with a lease, and gateways on it.
struct World {
    cluster: Cluster,
    lease: LeaseId,
    gateways: Vec<Setup>,
    dir: tempfile::TempDir,
}

// === impl World ===

impl World {
    /// Creates a service of `count` replicas, and one gateway.
    async fn new(count: u32) -> Self {
        let (cluster, dir) = (Cluster::in_memory().await, tempfile::tempdir().unwrap());
        let gateway = gateway(&cluster, &dir).await;
        let (owner, certificate) = gateway.tenant();
        let lease = LeaseId::new(owner.as_str(), 7, 1, 1, account(200).as_str()).unwrap();
        cluster.lease(&lease, SERVICE, count);
        let gateways = vec![Setup { gateway, lease: lease.clone(), certificate }];
        let world = Self { cluster, lease, gateways, dir };
        world.settle().await;
        world
    }

    /// Starts another gateway.
    async fn add_gateway(&mut self) {
        let gateway = gateway(&self.cluster, &self.dir).await;
        let certificate = self.gateways[0].certificate.clone();
        gateway.believe(self.lease.owner(), &certificate);
        self.gateways.push(Setup { gateway, lease: self.lease.clone(), certificate });
        self.settle().await;
    }

    /// Lets all tasks work. Time is paused, so it advances when they wait.
    async fn settle(&self) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    fn start(&self, pod: &str, second: u32) -> RunKey {
        self.cluster.create_pod(&self.lease, SERVICE, "set", pod, second);
        self.cluster.start_pod(&self.lease, SERVICE, pod, 0)
    }

    fn print(&self, run: &RunKey, lines: usize) {
        let from = self.cluster.printed(run).len();
        let text = |number| format!("{}/{number} {}", run.0, "x".repeat(LINE_BYTES));
        let lines: Vec<String> = (from..from + lines).map(text).collect();
        self.cluster.print_lines(run, &lines, STEP);
    }

    fn fail(&self, failure: Failure, run: &RunKey) {
        match failure {
            Failure::Status(code) => self.cluster.refuse_logs(Some(StatusCode::from_u16(code).unwrap())),
            Failure::Unreachable => self.cluster.kubelets(Kubelets::Unreachable),
            Failure::OldPod => self.cluster.answer_logs(run, LogAnswer::CutOff),
        }
        self.cluster.break_logs();
    }

    fn heal(&self, run: &RunKey) {
        self.cluster.refuse_logs(None);
        self.cluster.kubelets(Kubelets::Serve);
        self.cluster.answer_logs(run, LogAnswer::Serve);
    }

    fn follow(&self, gateway: usize, on_lag: OnLag) -> ServiceLogsRequest {
        let request = self.gateways[gateway].request();
        ServiceLogsRequest { follow: true, on_lag: on_lag.into(), ..request }
    }
}

/// Starts a gateway on the `kube` platform.
async fn gateway(cluster: &Cluster, dir: &tempfile::TempDir) -> Gateway {
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
    let server = cluster.clone();
    let connector = tower::service_fn(move |_: hyper::Uri| std::future::ready(server.connect()));
    let metrics = Exporter::new().unwrap().metrics;
    let platform = KubePlatform::start_over(connector, &config, &metrics).await.unwrap();
    // A follower may read nothing for minutes.
    let stall = Duration::from_secs(3_600);
    let limits = Limits { ring_max_bytes: 64 * 1024, stall, ..Limits::default() };
    Gateway::on_with(platform as Arc<dyn Platform>, limits)
}

/// Receives what there is within this time, until it is enough. Returns whether it was.
async fn within(stream: &mut Stream, time: Duration, enough: impl Fn(&Received) -> bool) -> bool {
    let until = tokio::time::Instant::now() + time;
    while !enough(&stream.received) {
        if tokio::time::Instant::now() > until {
            return false;
        }
        if !stream.next_if_ready().await.unwrap() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    true
}

/// Number of lines of a pod.
fn lines_of(received: &Received, index: u32, run: &RunKey) -> usize {
    let begin = format!("{}/", run.0);
    received.text(SERVICE, index).lines().filter(|line| line.starts_with(&begin)).count()
}

/// Replaces a pod whose log is refused from before its deletion until after its removal. All followers must
/// get the lines of its successor.
async fn replace_refused(failure: Failure, is_started_before_removal: bool) {
    let mut world = World::new(1).await;
    world.add_gateway().await;
    let old = world.start("a", 0);
    world.settle().await;
    world.print(&old, 5);
    let mut followers = Vec::new();
    for (gateway, on_lag) in [(0, OnLag::Drop), (0, OnLag::Refill), (1, OnLag::Drop)] {
        let mut stream = world.gateways[gateway].open(world.follow(gateway, on_lag)).await.unwrap();
        assert!(within(&mut stream, BACK_MAX, |received| received.lines(SERVICE, 0) == 5).await);
        followers.push(stream);
    }
    // The second one reads nothing, and lags. The third one connects to the other gateway later.
    for _ in 0..20 {
        world.print(&old, 20);
        let printed = world.cluster.printed(&old).len();
        for index in [0, 2] {
            let has_all = |received: &Received| received.lines(SERVICE, 0) == printed;
            assert!(within(&mut followers[index], BACK_MAX, has_all).await, "{failure:?}: {index}");
        }
    }
    let begun = tokio::time::Instant::now();
    world.fail(failure, &old);
    world.print(&old, 3);
    tokio::time::sleep(REFUSED / 10).await;
    let away = followers.pop().unwrap();
    let away = world.gateways[0].resume(away, world.follow(0, OnLag::Drop)).await;
    followers.push(away);
    world.cluster.mark_deleted(&world.lease, "a");
    world.cluster.create_pod(&world.lease, SERVICE, "next", "b", 100);
    tokio::time::sleep(REFUSED / 10).await;
    let start = || {
        let new = world.cluster.start_pod(&world.lease, SERVICE, "b", 0);
        world.print(&new, 5);
        new
    };
    let mut new = is_started_before_removal.then(start);
    tokio::time::sleep(REFUSED / 10).await;
    world.cluster.end(&old);
    tokio::time::sleep(REFUSED / 10).await;
    world.cluster.remove("pods", &world.lease.namespace(), "a", false);
    tokio::time::sleep(REFUSED / 10).await;
    let new = new.take().unwrap_or_else(start);
    tokio::time::sleep_until(begun + REFUSED).await;
    world.heal(&old);
    world.print(&new, 5);
    let what = format!("{failure:?}, {is_started_before_removal}");
    for (number, follower) in followers.iter_mut().enumerate() {
        let has_all = |received: &Received| lines_of(received, 0, &new) == 10;
        let gets_all = within(follower, BACK_MAX, has_all).await;
        assert!(gets_all, "{what}: follower {number} has {:?}", follower.received.cursors);
        let printed = [world.cluster.printed(&old), world.cluster.printed(&new)].concat();
        // The last lines of the old pod can no longer be read.
        assert!(follower.received.assert_ordered(SERVICE, 0, &printed) >= 1, "{what}: {number}");
    }
    world.print(&new, 1);
    for follower in &mut followers {
        assert!(within(follower, BACK_MAX, |received| lines_of(received, 0, &new) == 11).await, "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn successor_of_pod_with_refused_log_is_followed() {
    let failures = [
        Failure::Status(500),
        Failure::Status(403),
        Failure::Status(503),
        Failure::Unreachable,
        Failure::OldPod,
    ];
    for failure in failures {
        for is_started_before_removal in [false, true] {
            replace_refused(failure, is_started_before_removal).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn resume_waits_until_gateways_agree_on_an_index() {
    let mut world = World::new(2).await;
    let namespace = world.lease.namespace();
    // The first gateway sees "z" before "a", which is first by name. It cannot write the indices.
    world.cluster.refuse_patches(Some(StatusCode::INTERNAL_SERVER_ERROR));
    let mut runs = Vec::new();
    for pod in ["z", "a"] {
        runs.push(world.start(pod, 0));
        world.settle().await;
    }
    tokio::time::sleep(Duration::from_secs(10)).await;
    for run in &runs {
        world.print(run, 5);
    }
    let mut stream = world.gateways[0].open(world.follow(0, OnLag::Drop)).await.unwrap();
    let has_five = |received: &Received| (0..2).all(|index| received.lines(SERVICE, index) == 5);
    assert!(within(&mut stream, BACK_MAX, has_five).await);
    assert_eq!(lines_of(&stream.received, 0, &runs[0]), 5);
    // Another gateway lists both at once.
    world.add_gateway().await;
    let mut moved = world.gateways[1].resume(stream, world.follow(1, OnLag::Drop)).await;
    let is_more = |received: &Received| !has_five(received);
    assert!(!within(&mut moved, Duration::from_secs(2), is_more).await, "{:?}", moved.received);
    // The first gateway's writes succeed.
    for (index, pod) in ["z", "a"].into_iter().enumerate() {
        world.cluster.edit_pod(&world.lease, pod, |object| {
            object["metadata"]["annotations"] = serde_json::json!({ "leasemux/replica": index.to_string() });
        });
    }
    world.cluster.refuse_patches(None);
    for run in &runs {
        world.print(run, 5);
    }
    let has_ten = |received: &Received| (0..2).all(|index| received.lines(SERVICE, index) == 10);
    assert!(within(&mut moved, BACK_MAX, has_ten).await, "{:?}", moved.received.cursors);
    for (index, run) in (0..).zip(&runs) {
        assert_eq!(moved.received.assert_ordered(SERVICE, index, &world.cluster.printed(run)), 0);
    }
    let written = ["z", "a"].map(|pod| world.cluster.annotation(&namespace, pod));
    assert_eq!(written, ["0", "1"].map(|index| Some(index.to_owned())));
}
