//! Rollouts, scaling and deletions: every living pod has its own replica index, is followed at once, and
//! ends without a false gap.
#![expect(clippy::print_stdout, reason = "shows the steps if the test fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use leasemux::model::proto::lease::replica_event::Kind;
use leasemux::model::proto::lease::replica_status::State;
use leasemux::model::view::{LeaseView, ReplicaState, ReplicaView};
use leasemux::platform::Platform as _;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::Value;

use super::cluster::{LogAnswer, RunKey};
use super::{RESTS, SERVICE, SILENCE, Scenario, connect, eventually, in_time, pass, pass_at_rest};
use crate::support::gateway::{PATIENCE, Stream};
use crate::support::loss_check::{Received, Seen};
use crate::support::replica;
use crate::support::seeds::seeds;
use crate::support::statuses::Statuses;

/// More replicas than any scenario has.
const SLOTS: u32 = 16;

/// Responses of a kubelet for the log of a pod that is being deleted.
const ANSWERS: [LogAnswer; 5] =
    [LogAnswer::Serve, LogAnswer::Message, LogAnswer::Refuse, LogAnswer::Forgot, LogAnswer::CutOff];

/// The lines of a run, of any replica.
fn lines_of(received: &Received, run: &RunKey) -> Vec<String> {
    let (uid, container, number) = run;
    let instance = format!("{uid}/{container}/{number}");
    let of_index = |index| received.of(SERVICE, index).iter();
    let bytes: Vec<u8> = (0..SLOTS)
        .flat_map(of_index)
        .filter_map(|seen| match seen {
            Seen::Logs(of, bytes) if *of == instance => Some(bytes.as_slice()),
            _ => None,
        })
        .flatten()
        .copied()
        .collect();
    String::from_utf8(bytes).unwrap().lines().map(str::to_owned).collect()
}

fn gaps(received: &Received) -> usize {
    let seen = (0..SLOTS).flat_map(|index| received.of(SERVICE, index));
    seen.filter(|seen| matches!(seen, Seen::Gap(..))).count()
}

/// Returns the replica of a pod.
fn replica_of<'a>(view: &'a LeaseView, uid: &str) -> Option<(u32, &'a ReplicaView)> {
    let service = view.services.get(&SERVICE.parse().unwrap())?;
    let has = |found: &ReplicaView| found.runs.iter().any(|run| run.instance.parts().0 == uid);
    service.replicas.iter().find(|(_, found)| has(found)).map(|(index, found)| (*index, found))
}

/// Compares the view with the API server's pods: each living pod must have its own index, and each pod that
/// has run must have one. Returns the difference.
fn differs(view: &LeaseView, pods: &[Value]) -> Option<String> {
    let mut taken = BTreeSet::new();
    for pod in pods {
        let (uid, container) = (&pod["metadata"]["uid"], &pod["status"]["containerStatuses"][0]);
        let uid = uid.as_str().unwrap();
        let has_run = container["restartCount"] != 0
            || container["state"]["running"].is_object()
            || container["lastState"]["terminated"].is_object();
        if !has_run {
            continue;
        }
        let Some((index, found)) = replica_of(view, uid) else { return Some(format!("{uid} is no replica")) };
        if !pod["metadata"]["deletionTimestamp"].is_null() {
            continue;
        }
        if !taken.insert(index) {
            return Some(format!("{uid} has index {index}, which another living pod has"));
        }
        let state = match &found.state {
            ReplicaState::Running => "running",
            ReplicaState::Waiting { reason, .. } => reason,
            ReplicaState::Terminated | ReplicaState::Unknown => "",
        };
        let expected = container["state"]["waiting"]["reason"].as_str().unwrap_or("running");
        let shown = (state, found.ready, u64::from(found.restarts));
        let wanted = (expected, container["ready"] == true, container["restartCount"].as_u64().unwrap());
        if shown != wanted {
            return Some(format!("{uid} at index {index} is shown as {shown:?}, expected {wanted:?}"));
        }
    }
    None
}

#[tokio::test]
async fn crashing_new_version_is_followed_at_once() {
    // Whether the new pod appears before the deletion of the old one.
    for creation_first in [false, true] {
        let scenario = Scenario::new(3).await;
        let (cluster, lease) = (&scenario.cluster, scenario.lease().clone());
        let mut old = Vec::new();
        for index in 0..3 {
            let pod = format!("old-{index}");
            cluster.create_pod(&lease, SERVICE, "old", &pod, index);
            old.push(cluster.start_pod(&lease, SERVICE, &pod, 0));
            cluster.print(&old[old.len() - 1], 5, 1_000);
        }
        scenario.shows(&[1, 1, 1]).await;
        let mut follower = scenario.follow().await;
        follower.until(|received| (0..3).all(|index| received.lines(SERVICE, index) >= 5)).await;
        followed_by_all(&scenario, &mut follower, &old[2]).await;
        // The rollout deletes the pod of replica 2.
        if creation_first {
            cluster.create_pod(&lease, SERVICE, "new", "new-0", 100);
            cluster.mark_deleted(&lease, "old-2");
        } else {
            cluster.mark_deleted(&lease, "old-2");
            cluster.create_pod(&lease, SERVICE, "new", "new-0", 100);
        }
        cluster.end_deleted(&lease, "old-2", &old[2], LogAnswer::Forgot, true);
        cluster.remove("pods", &lease.namespace(), "old-2", false);
        // The new version prints 30 lines and exits with 7, three times.
        let mut runs = vec![old[2].clone()];
        for restarts in 0..3 {
            let run = cluster.start_pod(&lease, SERVICE, "new-0", restarts);
            cluster.set_ready(&lease, "new-0", false);
            cluster.print(&run, 30, 1_000);
            in_time(&scenario, &mut follower, |received| lines_of(received, &run).len() == 30).await;
            cluster.exit_pod(&lease, "new-0", &run, 7);
            let ended = 2 + usize::try_from(restarts).unwrap();
            let ends = |received: &Received| {
                received.events(SERVICE, 2).iter().filter(|kind| **kind == Kind::Ended).count()
            };
            in_time(&scenario, &mut follower, |received| ends(received) == ended).await;
            runs.push(run);
        }
        // The status has each pod as kubectl shows it.
        let mut statuses = Statuses::follow(&scenario.setup).await;
        let crashing = |statuses: &Statuses| {
            statuses.replica(SERVICE, 2).is_some_and(|shown| {
                shown.instance == "uid-new-0/web/2"
                    && shown.restarts == 2
                    && !shown.ready
                    && shown.last_exit_code == Some(7)
                    && shown.message.starts_with("CrashLoopBackOff")
            })
        };
        statuses.until(crashing).await;
        for index in 0..2 {
            let shown = statuses.replica(SERVICE, index).unwrap();
            assert_eq!(shown.instance, format!("uid-old-{index}/web/0"));
            assert!(shown.ready && shown.state() == State::Running && shown.restarts == 0);
        }
        assert!(statuses.replica(SERVICE, 3).is_none() && follower.received.of(SERVICE, 3).is_empty());
        let printed: Vec<String> = runs.iter().flat_map(|run| cluster.printed(run)).collect();
        let received = lines(&follower.received, 2);
        assert_eq!((gaps(&follower.received), received), (0, printed));
        let mut events = follower.received.events(SERVICE, 2);
        events.retain(|kind| *kind != Kind::Waiting);
        let (ended, started) = (Kind::Ended, Kind::Started);
        assert_eq!(events, [ended, started, ended, started, ended, started, ended]);
    }
}

/// All lines of a replica.
fn lines(received: &Received, index: u32) -> Vec<String> {
    received.text(SERVICE, index).lines().map(str::to_owned).collect()
}

/// Waits until all tails of a run's log follow it: they will see its end.
async fn followed_by_all(scenario: &Scenario, follower: &mut Stream, run: &RunKey) {
    println!("{run:?}: waiting until it is followed");
    at_rest(scenario, follower, |_| scenario.cluster.follows_of(&run.0) > 0).await;
}

/// Waits until this holds and no request is under way.
async fn at_rest(scenario: &Scenario, follower: &mut Stream, holds: impl Fn(&Received) -> bool) {
    loop {
        in_time(scenario, follower, &holds).await;
        let requests = scenario.cluster.requests();
        // All tasks are on this thread: each call lets them run.
        for _ in 0..RESTS {
            _ = follower.next_if_ready().await.unwrap();
        }
        if requests == scenario.cluster.requests() && holds(&follower.received) {
            return;
        }
    }
}

#[tokio::test]
async fn duplicate_index_of_older_gateway_is_corrected() {
    let scenario = Scenario::new(2).await;
    let (cluster, lease) = (&scenario.cluster, scenario.lease().clone());
    let namespace = lease.namespace();
    cluster.refuse_patches(Some(hyper::StatusCode::INTERNAL_SERVER_ERROR));
    for (set, pod, second) in [("old", "old-0", 0), ("new", "new-0", 1)] {
        cluster.create_pod(&lease, SERVICE, set, pod, second);
        cluster.edit_pod(&lease, pod, |object| {
            object["metadata"]["annotations"] = serde_json::json!({ "leasemux/replica": "0" });
        });
        cluster.start_pod(&lease, SERVICE, pod, 0);
    }
    scenario.shows(&[1, 1]).await;
    cluster.refuse_patches(None);
    // Any change of the pod writes its index again.
    cluster.set_ready(&lease, "new-0", false);
    eventually(async || cluster.annotation(&namespace, "new-0").as_deref() == Some("1")).await;
    assert_eq!(cluster.annotation(&namespace, "old-0").as_deref(), Some("0"));
}

#[tokio::test]
async fn reused_index_begins_without_gap() {
    // The next pod comes before or after the former one is removed.
    for is_forgotten in [false, true] {
        let scenario = Scenario::new(2).await;
        let (cluster, lease) = (&scenario.cluster, scenario.lease().clone());
        let mut runs = Vec::new();
        for (pod, second) in [("a", 0), ("b", 1)] {
            cluster.create_pod(&lease, SERVICE, "set", pod, second);
            runs.push(cluster.start_pod(&lease, SERVICE, pod, 0));
        }
        scenario.shows(&[1, 1]).await;
        let mut follower = scenario.follow().await;
        for pod in ["c", "d"] {
            let run = runs.last().unwrap().clone();
            cluster.print(&run, 5, 1_000);
            in_time(&scenario, &mut follower, |received| lines_of(received, &run).len() == 5).await;
            followed_by_all(&scenario, &mut follower, &run).await;
            cluster.scale(&lease, SERVICE, 1);
            let former = run.0.strip_prefix("uid-").unwrap();
            cluster.mark_deleted(&lease, former);
            cluster.end_deleted(&lease, former, &run, LogAnswer::Refuse, true);
            cluster.remove("pods", &lease.namespace(), former, false);
            let times =
                follower.received.events(SERVICE, 1).iter().filter(|kind| **kind == Kind::Gone).count();
            let gone = |received: &Received| {
                received.events(SERVICE, 1).iter().filter(|kind| **kind == Kind::Gone).count() > times
            };
            in_time(&scenario, &mut follower, gone).await;
            if is_forgotten {
                pass(Duration::from_secs(30)).await;
            }
            cluster.scale(&lease, SERVICE, 2);
            cluster.create_pod(&lease, SERVICE, "set", pod, 2);
            // A follower that starts now finds only the run of the former pod.
            let mut late = scenario.follow().await;
            late.until(|received| received.events(SERVICE, 1).contains(&Kind::Waiting)).await;
            let next = cluster.start_pod(&lease, SERVICE, pod, 0);
            cluster.print(&next, 5, 1_000);
            for follower in [&mut follower, &mut late] {
                in_time(&scenario, follower, |received| lines_of(received, &next).len() == 5).await;
                assert_eq!(gaps(&follower.received), 0, "{:?}", follower.received);
            }
            runs.push(next);
        }
        let printed: Vec<String> = runs[1..].iter().flat_map(|run| cluster.printed(run)).collect();
        assert_eq!(lines(&follower.received, 1), printed);
    }
}

#[tokio::test]
async fn older_pod_that_took_an_index_later_is_read_later() {
    let scenario = Scenario::new(1).await;
    let (cluster, lease) = (&scenario.cluster, scenario.lease().clone());
    // Two surplus pods: the older one waits for an index, until the younger one is deleted.
    for (pod, second) in [("old", 0), ("older", 1), ("younger", 2)] {
        cluster.create_pod(&lease, SERVICE, "set", pod, second);
    }
    cluster.start_pod(&lease, SERVICE, "old", 0);
    let first = cluster.start_pod(&lease, SERVICE, "younger", 0);
    cluster.print(&first, 5, 1_000);
    scenario.shows(&[1, 1]).await;
    cluster.mark_deleted(&lease, "younger");
    let second = cluster.start_pod(&lease, SERVICE, "older", 0);
    cluster.print(&second, 5, 1_000);
    scenario.shows(&[1, 2]).await;
    let mut follower = scenario.follow().await;
    in_time(&scenario, &mut follower, |received| lines_of(received, &first).len() == 5).await;
    followed_by_all(&scenario, &mut follower, &first).await;
    // Both are being deleted, and the younger one ends first.
    cluster.mark_deleted(&lease, "older");
    let view = scenario.platform.watch(&lease).await.unwrap();
    eventually(async || view.borrow().replica(&replica(SERVICE, 1)).is_some_and(|found| !found.ready)).await;
    for (pod, run) in [("younger", &first), ("older", &second)] {
        in_time(&scenario, &mut follower, |received| lines_of(received, run).len() == 5).await;
        followed_by_all(&scenario, &mut follower, run).await;
        cluster.end_deleted(&lease, pod, run, LogAnswer::Serve, true);
    }
    for pod in ["younger", "older"] {
        cluster.remove("pods", &lease.namespace(), pod, false);
    }
    in_time(&scenario, &mut follower, |received| received.events(SERVICE, 1).contains(&Kind::Gone)).await;
    let printed = [cluster.printed(&first), cluster.printed(&second)].concat();
    assert_eq!((gaps(&follower.received), lines(&follower.received, 1)), (0, printed));
}

#[tokio::test]
async fn pod_gone_before_its_log_was_read_is_a_gap() {
    let scenario = Scenario::new(1).await;
    let (cluster, lease) = (&scenario.cluster, scenario.lease().clone());
    let mut runs = Vec::new();
    let mut run = |pod: &str, second| {
        cluster.create_pod(&lease, SERVICE, "set", pod, second);
        let run = cluster.start_pod(&lease, SERVICE, pod, 0);
        cluster.print(&run, 5, 1_000);
        runs.push(run);
    };
    run("old", 0);
    scenario.shows(&[1]).await;
    let mut follower = scenario.follow().await;
    in_time(&scenario, &mut follower, |received| received.lines(SERVICE, 0) == 5).await;
    // The replacement of a pod that ends slowly is replaced, too.
    cluster.mark_deleted(&lease, "old");
    run("lost", 1);
    scenario.shows(&[2]).await;
    cluster.mark_deleted(&lease, "lost");
    cluster.remove("pods", &lease.namespace(), "lost", false);
    run("new", 2);
    scenario.shows(&[3]).await;
    for _ in 0..3 {
        pass_at_rest(&scenario, &mut follower, Duration::from_secs(11)).await;
    }
    followed_by_all(&scenario, &mut follower, &runs[0]).await;
    cluster.end_deleted(&lease, "old", &runs[0], LogAnswer::Serve, true);
    cluster.remove("pods", &lease.namespace(), "old", false);
    in_time(&scenario, &mut follower, |received| lines_of(received, &runs[2]).len() == 5).await;
    let printed = [cluster.printed(&runs[0]), cluster.printed(&runs[2])].concat();
    assert_eq!((gaps(&follower.received), lines(&follower.received, 0)), (1, printed));
}

/// The log of a run is slow to end. Meanwhile the view names the next run, and no longer does.
#[tokio::test]
async fn run_that_was_named_and_went_before_it_was_read_is_a_gap() {
    let scenario = Scenario::new(1).await;
    let (cluster, lease) = (&scenario.cluster, scenario.lease().clone());
    cluster.create_pod(&lease, SERVICE, "set", "old", 0);
    let first = cluster.start_pod(&lease, SERVICE, "old", 0);
    cluster.print(&first, 5, 1_000);
    scenario.shows(&[1]).await;
    let mut follower = scenario.follow().await;
    in_time(&scenario, &mut follower, |received| received.lines(SERVICE, 0) == 5).await;
    followed_by_all(&scenario, &mut follower, &first).await;
    cluster.silence_logs();
    cluster.end(&first);
    let lost = cluster.start_pod(&lease, SERVICE, "old", 1);
    cluster.print(&lost, 5, 1_000);
    scenario.shows(&[2]).await;
    cluster.mark_deleted(&lease, "old");
    cluster.create_pod(&lease, SERVICE, "set", "new", 1);
    let after = cluster.start_pod(&lease, SERVICE, "new", 0);
    cluster.print(&after, 5, 1_000);
    scenario.shows(&[3]).await;
    cluster.end_deleted(&lease, "old", &lost, LogAnswer::Refuse, true);
    cluster.remove("pods", &lease.namespace(), "old", false);
    in_time(&scenario, &mut follower, |received| lines_of(received, &after).len() == 5).await;
    let printed = [cluster.printed(&first), cluster.printed(&after)].concat();
    assert_eq!(lines(&follower.received, 0), printed);
    // One gap for the rest of the first run, whose log is gone, and one for the lost run.
    let seen = follower.received.of(SERVICE, 0);
    let started = Seen::Event(Kind::Started, "uid-new/web/0".to_owned());
    let at = seen.iter().position(|seen| *seen == started).unwrap();
    assert_eq!((&seen[at + 1], gaps(&follower.received)), (&Seen::Gap(0, 0, false), 2));
}

/// No watch tells how a pod went: its container may have been restarted before.
#[tokio::test]
async fn pod_that_went_unseen_is_a_gap() {
    for is_seen in [true, false] {
        let scenario = Scenario::new(1).await;
        let (cluster, lease) = (&scenario.cluster, scenario.lease().clone());
        cluster.create_pod(&lease, SERVICE, "set", "old", 0);
        let first = cluster.start_pod(&lease, SERVICE, "old", 0);
        cluster.print(&first, 5, 1_000);
        scenario.shows(&[1]).await;
        let mut follower = scenario.follow().await;
        in_time(&scenario, &mut follower, |received| received.lines(SERVICE, 0) == 5).await;
        followed_by_all(&scenario, &mut follower, &first).await;
        cluster.end(&first);
        cluster.remove("pods", &lease.namespace(), "old", !is_seen);
        if !is_seen {
            cluster.forget_history();
        }
        cluster.create_pod(&lease, SERVICE, "set", "new", 1);
        let last = cluster.start_pod(&lease, SERVICE, "new", 0);
        cluster.print(&last, 5, 1_000);
        in_time(&scenario, &mut follower, |received| lines_of(received, &last).len() == 5).await;
        let printed = [cluster.printed(&first), cluster.printed(&last)].concat();
        assert_eq!(lines(&follower.received, 0), printed);
        assert_eq!(gaps(&follower.received), usize::from(!is_seen), "seen: {is_seen}");
    }
}

#[tokio::test]
async fn random_rollout_follows_every_pod() {
    for seed in seeds(4) {
        println!("seed: {seed}");
        RandomRollout::new(seed).await.live().await;
    }
}

/// State of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Creating,
    Running,
    /// The run has crashed, and the next one is due.
    Crashed,
    /// It is being deleted. Whether its container has run and was not seen to end.
    Dying(bool),
    Gone,
}

#[derive(Clone, Debug)]
struct Pod {
    name: String,
    version: u32,
    phase: Phase,
    runs: Vec<RunKey>,
    /// Its replica index, once seen.
    index: Option<u32>,
    /// Its number among the deleted pods.
    deletion: Option<usize>,
}

/// A random rollout of a deployment whose versions may crash.
struct RandomRollout {
    seed: u64,
    random: StdRng,
    scenario: Scenario,
    follower: Stream,
    pods: Vec<Pod>,
    count: usize,
    version: u32,
    /// Number of lists of pods when the history was last forgotten.
    forgotten_at: Option<usize>,
    /// Pods whose removal no watch may have told: they may have had later runs.
    unseen: usize,
}

impl Pod {
    fn uid(&self) -> String {
        format!("uid-{}", self.name)
    }

    fn lives(&self) -> bool {
        matches!(self.phase, Phase::Creating | Phase::Running | Phase::Crashed)
    }
}

impl RandomRollout {
    async fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let count = random.random_range(1..4_u32);
        let scenario = Scenario::new(count).await;
        eventually(async || scenario.platform.watch(scenario.lease()).await.is_ok()).await;
        let follower = scenario.follow().await;
        let count = usize::try_from(count).unwrap();
        let pods = Vec::new();
        Self { seed, random, scenario, follower, pods, count, version: 0, forgotten_at: None, unseen: 0 }
    }

    fn chance(&mut self, of: f64) -> bool {
        self.random.random_bool(of)
    }

    /// Picks a pod for which this holds.
    fn any(&mut self, holds: impl Fn(&Pod) -> bool) -> Option<usize> {
        let all: Vec<usize> = (0..self.pods.len()).filter(|at| holds(&self.pods[*at])).collect();
        (!all.is_empty()).then(|| all[self.random.random_range(0..all.len())])
    }

    async fn live(mut self) {
        for _ in 0..60 {
            match self.random.random_range(0..22) {
                0..=5 => self.control(),
                6..=8 => self.start(),
                9..=11 => self.print(),
                12 | 13 => self.crash().await,
                14 => self.version += 1,
                15 => {
                    self.count = self.random.random_range(1..5);
                    let count = u32::try_from(self.count).unwrap();
                    self.scenario.cluster.scale(self.scenario.lease(), SERVICE, count);
                }
                // An operator deletes a pod.
                16 => {
                    if let Some(at) = self.any(Pod::lives) {
                        self.delete(at);
                    }
                }
                17..=19 => self.finish().await,
                20 => pass_at_rest(&self.scenario, &mut self.follower, Duration::from_secs(11)).await,
                _ => self.receive_all().await,
            }
        }
        // The rollout completes.
        for _ in 0..200 {
            self.control();
            self.start();
            if self.pods.iter().any(|pod| pod.phase == Phase::Crashed) {
                self.version += u32::from(self.chance(0.2));
            }
            self.finish().await;
        }
        self.receive_all().await;
        self.check().await;
    }

    /// The next step of the controllers: delete a surplus or outdated pod, create a missing one.
    fn control(&mut self) {
        let living = self.pods.iter().filter(|pod| pod.lives()).count();
        let available = self.pods.iter().filter(|pod| pod.phase == Phase::Running).count();
        let version = self.version;
        if living > self.count {
            let at = self.any(Pod::lives).unwrap();
            self.delete(at);
        } else if living < self.count {
            self.create();
        } else if let Some(at) = self.any(|pod| pod.lives() && pod.version != version) {
            // At most one may be unavailable.
            let is_available = self.pods[at].phase == Phase::Running;
            if is_available && available < self.count {
                return;
            }
            // The two controllers of the replica sets do not wait for each other.
            if self.chance(0.4) {
                self.create();
                self.delete(at);
            } else {
                self.delete(at);
                if self.chance(0.7) {
                    self.create();
                }
            }
        }
    }

    fn create(&mut self) {
        let (cluster, lease) = (&self.scenario.cluster, self.scenario.lease());
        let name = format!("{}-{}", ["p", "a", "z"][self.random.random_range(0..3)], self.pods.len());
        let second = u32::try_from(self.pods.len()).unwrap();
        cluster.create_pod(lease, SERVICE, &format!("set-{}", self.version), &name, second);
        let pod = Pod {
            name,
            version: self.version,
            phase: Phase::Creating,
            runs: Vec::new(),
            index: None,
            deletion: None,
        };
        self.pods.push(pod);
    }

    fn delete(&mut self, at: usize) {
        let (cluster, lease) = (&self.scenario.cluster, self.scenario.lease());
        let deletion = self.pods.iter().filter(|pod| pod.deletion.is_some()).count();
        let pod = &mut self.pods[at];
        pod.deletion = Some(deletion);
        println!("{} in {:?}: deleted, {:?}", pod.name, pod.index, pod.phase);
        cluster.mark_deleted(lease, &pod.name);
        pod.phase = Phase::Dying(!pod.runs.is_empty());
    }

    /// The kubelet starts a container.
    fn start(&mut self) {
        let Some(at) = self.any(|pod| matches!(pod.phase, Phase::Creating | Phase::Crashed)) else { return };
        let (cluster, lease) = (&self.scenario.cluster, self.scenario.lease());
        let pod = &mut self.pods[at];
        let restarts = u32::try_from(pod.runs.len()).unwrap();
        println!("{}: run {restarts} starts", pod.name);
        pod.runs.push(cluster.start_pod(lease, SERVICE, &pod.name, restarts));
        pod.phase = Phase::Running;
    }

    /// A container prints.
    fn print(&mut self) {
        let Some(at) = self.any(|pod| matches!(pod.phase, Phase::Running)) else { return };
        let lines = self.random.random_range(1..40);
        self.scenario.cluster.print(self.pods[at].runs.last().unwrap(), lines, 1_000);
    }

    /// Waits until the view has all living pods, and stores their indices.
    async fn observe(&mut self) {
        let view = self.scenario.platform.watch(self.scenario.lease()).await.unwrap();
        let pods = self.scenario.cluster.pods(self.scenario.lease());
        let shown = tokio::time::timeout(PATIENCE, async {
            while differs(&view.borrow(), &pods).is_some() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        let is_shown = shown.await.is_ok();
        assert!(is_shown, "seed {}: {:?}", self.seed, differs(&view.borrow(), &pods));
        let view = view.borrow();
        for pod in &mut self.pods {
            pod.index = replica_of(&view, &pod.uid()).map(|(index, _)| index).or(pod.index);
        }
    }

    /// Whether the log of a pod waits for the end of another log of its replica.
    fn waits(&self, at: usize) -> bool {
        let pod = &self.pods[at];
        self.pods.iter().enumerate().any(|(other, before)| {
            other != at
                && before.index == pod.index
                && matches!(before.phase, Phase::Dying(_))
                && (pod.lives() || before.deletion < pod.deletion)
        })
    }

    /// A container crashes, once all its lines were received: kubelets keep one previous run.
    async fn crash(&mut self) {
        let Some(at) = self.any(|pod| pod.phase == Phase::Running) else { return };
        self.observe().await;
        if self.waits(at) {
            return;
        }
        let run = self.pods[at].runs.last().unwrap().clone();
        self.scenario.cluster.print(&run, 1, 1_000);
        self.receive_all().await;
        followed_by_all(&self.scenario, &mut self.follower, &run).await;
        let asked = self.scenario.cluster.log_requests();
        println!("{}: crashes", self.pods[at].name);
        self.scenario.cluster.exit_pod(self.scenario.lease(), &self.pods[at].name, &run, 7);
        // The log is read to its end before the next run begins or the pod is gone.
        let cluster = &self.scenario.cluster;
        at_rest(&self.scenario, &mut self.follower, |_| cluster.log_requests() > asked).await;
        self.pods[at].phase = Phase::Crashed;
    }

    /// The container of a pod that is being deleted ends, and the pod is removed.
    async fn finish(&mut self) {
        let Some(at) = self.any(|pod| matches!(pod.phase, Phase::Dying(_))) else { return };
        self.observe().await;
        let pod = self.pods[at].clone();
        if pod.phase == Phase::Dying(true) {
            if self.waits(at) {
                return;
            }
            self.receive_all().await;
            let run = pod.runs.last().unwrap();
            if !self.scenario.cluster.ended(run) {
                followed_by_all(&self.scenario, &mut self.follower, run).await;
            }
            let answer = ANSWERS[self.random.random_range(0..ANSWERS.len())];
            let is_reported = self.chance(0.6);
            println!("{}: ends, {answer:?}, reported {is_reported}", pod.name);
            self.scenario.cluster.end_deleted(self.scenario.lease(), &pod.name, run, answer, is_reported);
            if self.chance(0.5) {
                _ = self.follower.next_if_ready().await.unwrap();
                pass(Duration::from_millis(400)).await;
                _ = self.follower.next_if_ready().await.unwrap();
            }
        }
        let quietly = self.chance(0.1);
        self.scenario.cluster.remove("pods", &self.scenario.lease().namespace(), &pod.name, quietly);
        println!("{}: gone, quietly {quietly}", pod.name);
        let lists = self.scenario.cluster.lists_of_pods();
        if quietly {
            self.forgotten_at = Some(lists);
            self.scenario.cluster.forget_history();
        }
        self.unseen += usize::from(self.forgotten_at == Some(lists));
        self.pods[at].phase = Phase::Gone;
    }

    /// Waits until all lines were received, except those that wait for another pod's end.
    async fn receive_all(&mut self) {
        let seed = self.seed;
        self.observe().await;
        let expected: BTreeMap<RunKey, Vec<String>> = (0..self.pods.len())
            .filter(|at| !self.waits(*at))
            .flat_map(|at| self.pods[at].runs.iter())
            .map(|run| (run.clone(), self.scenario.cluster.printed(run)))
            .collect();
        let has_all = |received: &Received| {
            expected.iter().all(|(run, printed)| lines_of(received, run).len() >= printed.len())
        };
        for _ in 0..20 {
            for _ in 0..200 {
                if has_all(&self.follower.received) {
                    return;
                }
                _ = self.follower.next_if_ready().await.unwrap();
            }
            pass_at_rest(&self.scenario, &mut self.follower, SILENCE).await;
        }
        let missing = expected
            .iter()
            .find(|(run, printed)| lines_of(&self.follower.received, run).len() < printed.len());
        panic!(
            "seed {seed}: not all lines of {missing:?} came: {:?}, {:?}",
            self.pods, self.follower.received
        );
    }

    /// Checks that the follower got all lines, and that a new gateway gives each pod the same index.
    async fn check(&self) {
        let seed = self.seed;
        for run in self.pods.iter().flat_map(|pod| &pod.runs) {
            let received = lines_of(&self.follower.received, run);
            assert_eq!(received, self.scenario.cluster.printed(run), "seed {seed}: {run:?}");
        }
        let (received, unseen) = (&self.follower.received, self.unseen);
        assert!(gaps(received) <= unseen, "seed {seed}: more than {unseen} gaps: {received:?}");
        // A failed write of an index is retried.
        let namespace = self.scenario.lease().namespace();
        let is_unwritten =
            |pod: &Pod| pod.lives() && self.scenario.cluster.annotation(&namespace, &pod.name).is_none();
        let mut minutes = 0..10;
        while self.pods.iter().any(is_unwritten) {
            minutes.next().expect("all indices are written within minutes");
            pass(SILENCE).await;
            for _ in 0..50 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let other = connect(&self.scenario.cluster, &dir).await.unwrap();
        let views = [&self.scenario.platform, &other].map(|platform| platform.watch(self.scenario.lease()));
        let [one, other] = futures_util::future::join_all(views).await.try_into().unwrap();
        let (one, other) = (one.unwrap(), other.unwrap());
        for pod in self.pods.iter().filter(|pod| pod.phase == Phase::Running) {
            let indices =
                [&one, &other].map(|view| replica_of(&view.borrow(), &pod.uid()).map(|(index, _)| index));
            assert_eq!(indices[0], indices[1], "seed {seed}: {}", pod.name);
        }
    }
}
