//! Several gateways of one cluster: whichever receives a restart, at most one replica of a lease is down at a
//! time.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_core::future::BoxFuture;
use leasemux::edge::admin::Exporter;
use leasemux::model::id::{Instance, LeaseId, Replica};
use leasemux::model::view::{Filter, LeaseView};
use leasemux::platform::coordination::RestartLocks;
use leasemux::platform::kube::KubeRestartLocks;
use leasemux::platform::{Error, Platform, RestartRequest, Tail, TailRequest};
use leasemux::restart::{JobRequest, ReplicaOutcome, RequestError, RestartJob, RestartManager};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use tonic::Code;

use super::{all, restart};
use crate::kube::cluster::Cluster;
use crate::support::fake_platform::{FakePlatform, RestartBehavior};
use crate::support::gateway::Setup;
use crate::support::seeds::seeds;
use crate::support::{lease, reason, replica};

/// Replicas of the only service.
const REPLICAS: u32 = 3;

/// Longer than any scenario.
const LONG: Duration = Duration::from_secs(1_000_000);

/// One lease whose replicas take some time to start again, and an API server.
#[derive(Clone, Debug)]
struct Scenario {
    platform: FakePlatform,
    cluster: Cluster,
    lease: LeaseId,
    random: Arc<Mutex<StdRng>>,
    /// How often each replica was stopped.
    stopped: Arc<Mutex<HashMap<u32, usize>>>,
    /// Violations. (A panic in a task would end that task only.)
    violations: Arc<Mutex<Vec<String>>>,
    tasks: TaskTracker,
}

/// The connection between a gateway and the API server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Network {
    #[default]
    Good,
    /// Slow. Requests and responses get lost.
    Bad,
    /// No response at all.
    Cut,
}

/// The platform as one gateway sees it.
#[derive(Debug)]
struct GatewayPlatform {
    scenario: Scenario,
    locks: KubeRestartLocks,
}

struct Gateway {
    restarts: RestartManager,
    locks: KubeRestartLocks,
    network: Arc<Mutex<Network>>,
}

impl Scenario {
    async fn new(seed: u64) -> Self {
        let (platform, cluster, lease) = (FakePlatform::default(), Cluster::start().await, lease(1));
        platform.add_lease(&lease, &[("web", REPLICAS)]);
        cluster.lease(&lease, "web", REPLICAS);
        for index in 0..REPLICAS {
            platform.start(&lease, &replica("web", index));
            platform.set_restart_behavior(&replica("web", index), RestartBehavior::Never);
        }
        let random = Arc::new(Mutex::new(StdRng::seed_from_u64(seed)));
        Self {
            platform,
            cluster,
            lease,
            random,
            stopped: Arc::default(),
            violations: Arc::default(),
            tasks: TaskTracker::new(),
        }
    }

    fn up_to(&self, millis: u64) -> Duration {
        Duration::from_millis(self.random.lock().unwrap().random_range(0..=millis))
    }

    fn happens(&self, probability: f64) -> bool {
        self.random.lock().unwrap().random_bool(probability)
    }

    fn gateway(&self) -> Gateway {
        let (platform, network) = self.gateway_platform();
        let locks = platform.locks.clone();
        Gateway { restarts: RestartManager::new(platform, Exporter::new().unwrap().metrics), locks, network }
    }

    fn gateway_platform(&self) -> (Arc<GatewayPlatform>, Arc<Mutex<Network>>) {
        let network = Arc::new(Mutex::new(Network::Good));
        let (cluster, scenario, state) = (self.cluster.clone(), self.clone(), Arc::clone(&network));
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let (cluster, scenario, state) = (cluster.clone(), scenario.clone(), Arc::clone(&state));
            async move {
                let timeout = || {
                    let mut timeout = http::Response::new(full("{}"));
                    *timeout.status_mut() = http::StatusCode::GATEWAY_TIMEOUT;
                    timeout
                };
                let now = *state.lock().unwrap();
                match now {
                    Network::Cut => std::future::pending().await,
                    Network::Good => {}
                    Network::Bad => {
                        tokio::time::sleep(scenario.up_to(1_500)).await;
                        if scenario.happens(0.15) {
                            return Ok::<_, Infallible>(timeout());
                        }
                    }
                }
                let answer = cluster.answer(request).await;
                if now == Network::Bad {
                    tokio::time::sleep(scenario.up_to(1_500)).await;
                    if scenario.happens(0.15) {
                        return Ok(timeout());
                    }
                }
                Ok(answer)
            }
        });
        let locks = KubeRestartLocks::new(kube::Client::new(service, "gateways"), "gateways".to_owned());
        (Arc::new(GatewayPlatform { scenario: self.clone(), locks }), network)
    }

    fn is_up(&self, index: u32) -> bool {
        self.view().replica(&replica("web", index)).is_some_and(|slot| slot.current_run().is_some())
    }

    fn view(&self) -> Arc<LeaseView> {
        let watch = futures_util::FutureExt::now_or_never(self.platform.watch(&self.lease)).unwrap();
        Arc::clone(&watch.unwrap().borrow())
    }

    /// Deletes the pod of an instance, and starts another one later.
    fn delete(&self, replica: &Replica, instance: &Instance) {
        let newest = self.view().replica(replica).and_then(|slot| slot.newest().cloned());
        if newest.is_none_or(|run| run.instance != *instance || run.end.is_some()) {
            return;
        }
        let down: Vec<u32> = (0..REPLICAS).filter(|index| !self.is_up(*index)).collect();
        if !down.is_empty() {
            let violation = format!("{replica} is stopped while {down:?} are down");
            self.violations.lock().unwrap().push(violation);
        }
        *self.stopped.lock().unwrap().entry(replica.index).or_default() += 1;
        let request = RestartRequest {
            lease: self.lease.clone(),
            replica: replica.clone(),
            instance: Some(instance.clone()),
        };
        futures_util::FutureExt::now_or_never(self.platform.restart(request)).unwrap().unwrap();
        let (scenario, replica) = (self.clone(), replica.clone());
        self.tasks.spawn(async move {
            tokio::time::sleep(scenario.up_to(40_000)).await;
            scenario.platform.start(&scenario.lease, &replica);
        });
    }

    /// Returns how often each replica was stopped.
    fn stopped(&self) -> Vec<usize> {
        assert_eq!(*self.violations.lock().unwrap(), Vec::<String>::new());
        let stopped = self.stopped.lock().unwrap();
        (0..REPLICAS).map(|index| stopped.get(&index).copied().unwrap_or_default()).collect()
    }

    fn request(&self, replicas: &[u32], id: Option<&str>) -> JobRequest {
        let mut filter = Filter::everything();
        filter.add("web".parse().unwrap(), replicas);
        JobRequest { lease: self.lease.clone(), filter, id: id.map(|id| id.parse().unwrap()) }
    }

    /// Calls a gateway as the service does: first looks for a known job, here and at other gateways, then
    /// begins one.
    async fn call(&self, gateway: &Gateway, request: JobRequest) -> Result<Arc<RestartJob>, RequestError> {
        match gateway.restarts.find_or_adopt(&request).await? {
            Some(job) => Ok(job),
            None => gateway.restarts.begin(request, &self.view()),
        }
    }

    /// Returns the holder of the restart lock.
    fn holder(&self) -> Value {
        self.cluster.lease_objects()[0]["spec"]["holderIdentity"].clone()
    }

    /// Returns the restart record.
    fn record(&self) -> Value {
        let locks = self.cluster.lease_objects();
        serde_json::from_str(locks[0]["metadata"]["annotations"]["leasemux/restarts"].as_str().unwrap())
            .unwrap()
    }
}

impl Platform for GatewayPlatform {
    fn name(&self) -> &'static str {
        "gateway"
    }

    fn watch(&self, lease: &LeaseId) -> BoxFuture<'_, Result<watch::Receiver<Arc<LeaseView>>, Error>> {
        self.scenario.platform.watch(lease)
    }

    fn tail(&self, request: TailRequest) -> BoxFuture<'_, Result<Tail, Error>> {
        self.scenario.platform.tail(request)
    }

    /// The request takes effect some time later, even if the gateway has died by then.
    fn restart(&self, request: RestartRequest) -> BoxFuture<'_, Result<(), Error>> {
        let scenario = self.scenario.clone();
        let sent = self.scenario.tasks.spawn(async move {
            let delay = if scenario.happens(0.1) { 30_000 } else { 1_000 };
            tokio::time::sleep(scenario.up_to(delay)).await;
            scenario.delete(&request.replica, &request.instance.unwrap());
        });
        Box::pin(async move {
            sent.await.unwrap();
            Ok(())
        })
    }

    fn restart_locks(&self) -> Option<Arc<dyn RestartLocks>> {
        Some(Arc::new(self.locks.clone()))
    }
}

impl Gateway {
    fn set(&self, network: Network) {
        *self.network.lock().unwrap() = network;
    }
}

fn full(text: &'static str) -> http_body_util::combinators::BoxBody<bytes::Bytes, std::io::Error> {
    use http_body_util::BodyExt as _;
    http_body_util::Full::from(text).map_err(|never| match never {}).boxed()
}

fn outcomes(job: &RestartJob) -> Vec<Option<ReplicaOutcome>> {
    job.outcomes().map(|(_, outcome)| outcome.cloned()).collect()
}

fn all_active() -> Vec<Option<ReplicaOutcome>> {
    vec![Some(ReplicaOutcome::Active); REPLICAS as usize]
}

#[tokio::test(start_paused = true)]
async fn same_call_at_two_gateways_restarts_once() {
    let scenario = Scenario::new(1).await;
    let (a, b) = (scenario.gateway(), scenario.gateway());
    let request = scenario.request(&[], Some("deploy-7"));
    let (first, second) =
        tokio::join!(scenario.call(&a, request.clone()), scenario.call(&b, request.clone()));
    let (first, second) = (first.unwrap(), second.unwrap());
    tokio::join!(first.wait(LONG), second.wait(LONG));
    assert_eq!((outcomes(&first), outcomes(&second)), (all_active(), all_active()));
    assert_eq!(scenario.stopped(), [1, 1, 1]);
    // A new gateway finds the outcome too. Another request with the same id is rejected.
    let third = scenario.gateway();
    let job = scenario.call(&third, request).await.unwrap();
    job.wait(LONG).await;
    assert_eq!((outcomes(&job), scenario.stopped()), (all_active(), vec![1, 1, 1]));
    let other = scenario.request(&[1], Some("deploy-7"));
    assert_eq!(scenario.call(&scenario.gateway(), other).await.unwrap_err(), RequestError::RequestIdReused);
    // Nobody holds the lock now. It belongs to the lease's namespace, and is deleted when the hour is over.
    let object = scenario.cluster.lease_objects().remove(0);
    let transitions = object["spec"]["leaseTransitions"].as_u64().unwrap();
    assert!(transitions <= 2, "a holder lost the lock although it renewed it: {transitions}");
    assert!(object["spec"]["holderIdentity"].is_null(), "{object}");
    assert_eq!(object["metadata"]["ownerReferences"][0]["name"], scenario.lease.namespace());
    assert_eq!(object["metadata"]["namespace"], "gateways");
    for gateway in [&a, &b] {
        gateway.locks.sweep().await;
    }
    assert_eq!(scenario.cluster.lease_objects().len(), 1);
    tokio::time::sleep(Duration::from_secs(4_000)).await;
    for gateway in [&a, &b] {
        gateway.locks.sweep().await;
    }
    assert!(scenario.cluster.lease_objects().is_empty());
}

#[tokio::test(start_paused = true)]
async fn call_without_id_leaves_no_lock_object() {
    let scenario = Scenario::new(2).await;
    let (a, b) = (scenario.gateway(), scenario.gateway());
    let (first, second) = tokio::join!(
        scenario.call(&a, scenario.request(&[], None)),
        scenario.call(&b, scenario.request(&[], None))
    );
    let (first, second) = (first.unwrap(), second.unwrap());
    tokio::join!(first.wait(LONG), second.wait(LONG));
    assert_eq!((outcomes(&first), outcomes(&second)), (all_active(), all_active()));
    assert_eq!(scenario.stopped(), [2, 2, 2]);
    for gateway in [&a, &b] {
        gateway.restarts.finish(LONG).await;
    }
    assert!(scenario.cluster.lease_objects().is_empty(), "{:?}", scenario.cluster.lease_objects());
}

#[tokio::test(start_paused = true)]
async fn restart_of_dead_gateway_is_resumed_by_another() {
    let scenario = Scenario::new(3).await;
    let (a, b) = (scenario.gateway(), scenario.gateway());
    let request = scenario.request(&[], Some("deploy-8"));
    scenario.call(&a, request.clone()).await.unwrap();
    while scenario.is_up(1) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(scenario.record()["hand"]["index"], 1);
    // The gateway cannot release the lock.
    a.set(Network::Cut);
    drop(a);
    let (died, holder) = (tokio::time::Instant::now(), scenario.holder());
    let job = scenario.call(&b, request).await.unwrap();
    // The first outcome is known at once.
    assert_eq!(outcomes(&job), [Some(ReplicaOutcome::Active), None, None]);
    while scenario.holder() == holder {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // The lock expires by the observer's clock, counted from its first observation.
    assert!((15..=20).contains(&died.elapsed().as_secs()), "{:?}", died.elapsed());
    job.wait(LONG).await;
    assert_eq!((outcomes(&job), scenario.stopped()), (all_active(), vec![1, 1, 1]));
}

#[tokio::test(start_paused = true)]
async fn shutdown_releases_lock_and_another_gateway_resumes() {
    let scenario = Scenario::new(4).await;
    let (a, b) = (scenario.gateway(), scenario.gateway());
    let request = scenario.request(&[], Some("deploy-9"));
    let first = scenario.call(&a, request.clone()).await.unwrap();
    while scenario.is_up(0) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    a.restarts.finish(LONG).await;
    assert!(matches!(
        &outcomes(&first)[..],
        [Some(ReplicaOutcome::Active), Some(ReplicaOutcome::NotAttempted(_)), Some(_)]
    ));
    assert!(scenario.cluster.lease_objects()[0]["spec"]["holderIdentity"].is_null());
    let job = scenario.call(&b, request).await.unwrap();
    job.wait(LONG).await;
    assert_eq!((outcomes(&job), scenario.stopped()), (all_active(), vec![1, 1, 1]));
}

#[tokio::test(start_paused = true)]
async fn isolated_gateway_stops_no_replica() {
    let scenario = Scenario::new(5).await;
    let (a, b) = (scenario.gateway(), scenario.gateway());
    a.set(Network::Cut);
    let rejection = scenario.call(&a, scenario.request(&[], None)).await.unwrap_err();
    assert!(matches!(rejection, RequestError::LockUnavailable(_)), "{rejection:?}");
    // A gateway that is cut off during a restart finishes the current replica, and attempts no other without
    // the lock.
    let first = scenario.call(&b, scenario.request(&[], Some("deploy-10"))).await.unwrap();
    while scenario.is_up(0) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    b.set(Network::Cut);
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(scenario.stopped(), [1, 0, 0]);
    a.set(Network::Good);
    let second = scenario.call(&a, scenario.request(&[], Some("deploy-10"))).await.unwrap();
    second.wait(LONG).await;
    assert_eq!((outcomes(&second), scenario.stopped()), (all_active(), vec![1, 1, 1]));
    // That gateway has given up. It finds the outcome of the other one when it is called again.
    first.wait(LONG).await;
    assert!(matches!(
        &outcomes(&first)[1..],
        [Some(ReplicaOutcome::NotAttempted(_)), Some(ReplicaOutcome::NotAttempted(_))]
    ));
    b.set(Network::Good);
    let third = scenario.call(&b, scenario.request(&[], Some("deploy-10"))).await.unwrap();
    third.wait(LONG).await;
    assert_eq!((outcomes(&third), scenario.stopped()), (all_active(), vec![1, 1, 1]));
}

#[tokio::test(start_paused = true)]
async fn replica_is_not_stopped_before_record_is_written() {
    let scenario = Scenario::new(8).await;
    let gateway = scenario.gateway();
    let job = scenario.call(&gateway, scenario.request(&[], None)).await.unwrap();
    for is_up in [false, true] {
        while scenario.is_up(0) != is_up {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    // The lock is still held when the first replica has its outcome, and the second one cannot be recorded.
    tokio::time::sleep(Duration::from_millis(4_800)).await;
    gateway.set(Network::Cut);
    job.wait(LONG).await;
    assert_eq!(scenario.stopped(), [1, 0, 0]);
    assert!(matches!(
        &outcomes(&job)[..2],
        [Some(ReplicaOutcome::Active), Some(ReplicaOutcome::NotAttempted(_))]
    ));
}

#[tokio::test(start_paused = true)]
async fn call_is_unavailable_while_lock_is_unreachable() {
    let scenario = Scenario::new(7).await;
    let (platform, network) = scenario.gateway_platform();
    let gateway = crate::support::gateway::Gateway::on(platform);
    let (owner, certificate) = gateway.tenant();
    let lease = LeaseId::new(owner.as_str(), 7, 1, 1, scenario.lease.provider().as_str()).unwrap();
    scenario.platform.add_lease(&lease, &[("web", 1)]);
    scenario.platform.start(&lease, &replica("web", 0));
    let served = Setup { gateway, lease, certificate };
    *network.lock().unwrap() = Network::Cut;
    let status = restart(&served, all(&served, super::LONG)).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "PLATFORM_UNAVAILABLE"));
    assert!(scenario.platform.restarted().is_empty());
}

#[tokio::test(start_paused = true)]
async fn record_keeps_64_newest_calls() {
    let scenario = Scenario::new(6).await;
    let gateway = scenario.gateway();
    for call in 0..70 {
        let id = format!("{call}-{}", "x".repeat(120));
        let job = scenario.call(&gateway, scenario.request(&[call % REPLICAS], Some(&id))).await.unwrap();
        // Before the next call, so that all calls fit into an hour.
        job.wait(LONG).await;
    }
    gateway.restarts.finish(LONG).await;
    let record = scenario.record();
    let calls = record["calls"].as_array().unwrap();
    assert_eq!(calls.len(), 64);
    assert!(calls[0]["id"].as_str().unwrap().starts_with("6-"), "the oldest are dropped: {}", calls[0]);
}

#[tokio::test(start_paused = true)]
async fn random_calls_never_stop_two_replicas_at_once() {
    for seed in seeds(20) {
        println!("seed: {seed}");
        run_random(seed).await;
    }
}

/// Runs a random scenario with three gateways: calls to any of them, bad and broken connections, crashes.
async fn run_random(seed: u64) {
    let scenario = Scenario::new(seed).await;
    let mut random = StdRng::seed_from_u64(!seed);
    let mut gateways: Vec<Gateway> = (0..3).map(|_| scenario.gateway()).collect();
    let mut jobs: Vec<(String, Arc<RestartJob>)> = Vec::new();
    for _ in 0..random.random_range(5..30) {
        let at = random.random_range(0..gateways.len());
        match random.random_range(0..12) {
            0..=4 => {
                // Each id goes with the same replicas.
                let number = random.random_range(0..4_u32);
                let replicas: Vec<u32> = if number == 3 { vec![] } else { vec![number] };
                let id = random.random_bool(0.7).then(|| format!("call-{number}"));
                let request = scenario.request(&replicas, id.as_deref());
                match tokio::time::timeout(Duration::from_secs(60), scenario.call(&gateways[at], request))
                    .await
                {
                    Ok(Ok(job)) => jobs.push((id.unwrap_or_default(), job)),
                    Ok(Err(RequestError::LockUnavailable(_))) => {}
                    other => panic!("seed {seed}: {other:?}"),
                }
            }
            5 => gateways[at].set(Network::Bad),
            6 => gateways[at].set(Network::Cut),
            7 | 8 => gateways[at].set(Network::Good),
            9 => {
                if random.random() {
                    gateways[at].set(Network::Cut);
                }
                gateways[at] = scenario.gateway();
            }
            _ => tokio::time::sleep(Duration::from_millis(random.random_range(0..30_000))).await,
        }
    }
    for gateway in &gateways {
        gateway.set(Network::Good);
    }
    assert!(!jobs.is_empty() || scenario.stopped() == [0, 0, 0]);
    for (_, job) in &jobs {
        job.wait(LONG).await;
        assert!(outcomes(job).iter().all(Option::is_some), "seed {seed}: {job:?}");
    }
    for gateway in gateways {
        gateway.restarts.finish(LONG).await;
    }
    for number in 0..4 {
        let name = format!("call-{number}");
        let known = jobs.iter().filter(|(id, _)| *id == name).flat_map(|(_, job)| outcomes(job));
        // A gateway that was cut off may see that another call replaces the run that it watches.
        let is_wrong = |outcome: &ReplicaOutcome| matches!(outcome, ReplicaOutcome::Failed(why) if !why.ends_with("(Restarted)"));
        let known: Vec<ReplicaOutcome> = known.flatten().collect();
        assert!(!known.iter().any(is_wrong), "seed {seed}: {known:?}");
    }
    scenario.tasks.close();
    scenario.tasks.wait().await;
    let violations = scenario.violations.lock().unwrap();
    assert!(violations.is_empty(), "seed {seed}: {violations:?}");
}
