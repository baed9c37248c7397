//! Several gateways of one cluster: whichever a restart is sent to, never two replicas of a lease are down at once.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_core::future::BoxFuture;
use leasemux::edge::admin::Exporter;
use leasemux::model::id::{Instance, LeaseId, Replica};
use leasemux::model::view::{Filter, LeaseView};
use leasemux::platform::coordination::LeaseLocks;
use leasemux::platform::kube::KubeLeaseLocks;
use leasemux::platform::{Error, Platform, RestartRequest, Tail, TailRequest};
use leasemux::restart::{Rejection, ReplicaOutcome, Request, RestartJob, RestartManager};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use tonic::Code;

use super::{all, restart};
use crate::kube::cluster::Cluster;
use crate::support::gateway::Scene;
use crate::support::seeds::seeds;
use crate::support::world::{Comeback, World};
use crate::support::{lease, reason, replica};

/// Replicas of the one service.
const REPLICAS: u32 = 3;

/// More than anything here takes.
const LONG: Duration = Duration::from_secs(1_000_000);

/// One lease whose replicas take a while to come back, and an API server.
#[derive(Clone, Debug)]
struct Town {
    world: World,
    cluster: Cluster,
    lease: LeaseId,
    random: Arc<Mutex<StdRng>>,
    /// How often each replica was taken down.
    taken: Arc<Mutex<HashMap<u32, usize>>>,
    /// What must not be. (A panic in a task would end that task only.)
    wrong: Arc<Mutex<Vec<String>>>,
    tasks: TaskTracker,
}

/// How the API server can be reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Wire {
    #[default]
    Good,
    /// Slow, and answers are lost, before or after what was asked for was done.
    Bad,
    /// Not at all.
    Cut,
}

/// The platform as one gateway sees it.
#[derive(Debug)]
struct Place {
    town: Town,
    turns: KubeLeaseLocks,
}

struct Gateway {
    restarts: RestartManager,
    turns: KubeLeaseLocks,
    wire: Arc<Mutex<Wire>>,
}

impl Town {
    async fn new(seed: u64) -> Self {
        let (world, cluster, lease) = (World::default(), Cluster::start().await, lease(1));
        world.add_lease(&lease, &[("web", REPLICAS)]);
        cluster.lease(&lease, "web", REPLICAS);
        for index in 0..REPLICAS {
            world.start(&lease, &replica("web", index));
            world.set_comeback(&replica("web", index), Comeback::Never);
        }
        let random = Arc::new(Mutex::new(StdRng::seed_from_u64(seed)));
        Self {
            world,
            cluster,
            lease,
            random,
            taken: Arc::default(),
            wrong: Arc::default(),
            tasks: TaskTracker::new(),
        }
    }

    fn upto(&self, millis: u64) -> Duration {
        Duration::from_millis(self.random.lock().unwrap().random_range(0..=millis))
    }

    fn chance(&self, of: f64) -> bool {
        self.random.lock().unwrap().random_bool(of)
    }

    fn gateway(&self) -> Gateway {
        let (place, wire) = self.place();
        let turns = place.turns.clone();
        Gateway { restarts: RestartManager::new(place, Exporter::new().unwrap().metrics), turns, wire }
    }

    fn place(&self) -> (Arc<Place>, Arc<Mutex<Wire>>) {
        let wire = Arc::new(Mutex::new(Wire::Good));
        let (cluster, town, state) = (self.cluster.clone(), self.clone(), Arc::clone(&wire));
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let (cluster, town, state) = (cluster.clone(), town.clone(), Arc::clone(&state));
            async move {
                let lost = || {
                    let mut lost = http::Response::new(full("{}"));
                    *lost.status_mut() = http::StatusCode::GATEWAY_TIMEOUT;
                    lost
                };
                let now = *state.lock().unwrap();
                match now {
                    Wire::Cut => std::future::pending().await,
                    Wire::Good => {}
                    Wire::Bad => {
                        tokio::time::sleep(town.upto(1_500)).await;
                        if town.chance(0.15) {
                            return Ok::<_, Infallible>(lost());
                        }
                    }
                }
                let answer = cluster.answer(request).await;
                if now == Wire::Bad {
                    tokio::time::sleep(town.upto(1_500)).await;
                    if town.chance(0.15) {
                        return Ok(lost());
                    }
                }
                Ok(answer)
            }
        });
        let turns = KubeLeaseLocks::new(kube::Client::new(service, "gateways"), "gateways".to_owned());
        (Arc::new(Place { town: self.clone(), turns }), wire)
    }

    fn is_up(&self, index: u32) -> bool {
        self.view().replica(&replica("web", index)).is_some_and(|slot| slot.present().is_some())
    }

    fn view(&self) -> Arc<LeaseView> {
        let watch = futures_util::FutureExt::now_or_never(self.world.watch(&self.lease)).unwrap();
        Arc::clone(&watch.unwrap().borrow())
    }

    /// A pod's deletion arrives.
    fn delete(&self, replica: &Replica, instance: &Instance) {
        let newest = self.view().replica(replica).and_then(|slot| slot.newest().cloned());
        if newest.is_none_or(|run| run.instance != *instance || run.end.is_some()) {
            return;
        }
        let down: Vec<u32> = (0..REPLICAS).filter(|index| !self.is_up(*index)).collect();
        if !down.is_empty() {
            self.wrong.lock().unwrap().push(format!("{replica} is taken down while {down:?} are down"));
        }
        *self.taken.lock().unwrap().entry(replica.index).or_default() += 1;
        let order = RestartRequest {
            lease: self.lease.clone(),
            replica: replica.clone(),
            instance: Some(instance.clone()),
        };
        futures_util::FutureExt::now_or_never(self.world.restart(order)).unwrap().unwrap();
        let (town, replica) = (self.clone(), replica.clone());
        self.tasks.spawn(async move {
            tokio::time::sleep(town.upto(40_000)).await;
            town.world.start(&town.lease, &replica);
        });
    }

    fn taken(&self) -> Vec<usize> {
        assert!(self.wrong.lock().unwrap().is_empty(), "{:?}", self.wrong.lock().unwrap());
        let taken = self.taken.lock().unwrap();
        (0..REPLICAS).map(|index| taken.get(&index).copied().unwrap_or_default()).collect()
    }

    fn request(&self, replicas: &[u32], id: Option<&str>) -> Request {
        let mut filter = Filter::everything();
        filter.add("web".parse().unwrap(), replicas);
        Request { lease: self.lease.clone(), filter, id: id.map(|id| id.parse().unwrap()) }
    }

    /// What each gateway's call does: asks the others, and begins if they know nothing.
    async fn call(&self, gateway: &Gateway, request: Request) -> Result<Arc<RestartJob>, Rejection> {
        if let Some(round) = gateway.restarts.find(&request)? {
            return Ok(round);
        }
        match gateway.restarts.adopt_remote(&request).await? {
            Some(round) => Ok(round),
            None => gateway.restarts.begin(request, &self.view()),
        }
    }

    /// Who has the turn, as the one object that there is says.
    fn holder(&self) -> Value {
        self.cluster.turns()[0]["spec"]["holderIdentity"].clone()
    }

    /// What is written on it.
    fn note(&self) -> Value {
        let turns = self.cluster.turns();
        serde_json::from_str(turns[0]["metadata"]["annotations"]["leasemux/restarts"].as_str().unwrap())
            .unwrap()
    }
}

impl Platform for Place {
    fn name(&self) -> &'static str {
        "place"
    }

    fn watch(&self, lease: &LeaseId) -> BoxFuture<'_, Result<watch::Receiver<Arc<LeaseView>>, Error>> {
        self.town.world.watch(lease)
    }

    fn tail(&self, request: TailRequest) -> BoxFuture<'_, Result<Tail, Error>> {
        self.town.world.tail(request)
    }

    /// What was sent arrives some time later, even if the sender has died meanwhile.
    fn restart(&self, request: RestartRequest) -> BoxFuture<'_, Result<(), Error>> {
        let town = self.town.clone();
        let sent = self.town.tasks.spawn(async move {
            let late = if town.chance(0.1) { 30_000 } else { 1_000 };
            tokio::time::sleep(town.upto(late)).await;
            town.delete(&request.replica, &request.instance.unwrap());
        });
        Box::pin(async move {
            sent.await.unwrap();
            Ok(())
        })
    }

    fn lease_locks(&self) -> Option<Arc<dyn LeaseLocks>> {
        Some(Arc::new(self.turns.clone()))
    }
}

impl Gateway {
    fn set(&self, wire: Wire) {
        *self.wire.lock().unwrap() = wire;
    }
}

fn full(text: &'static str) -> http_body_util::combinators::BoxBody<bytes::Bytes, std::io::Error> {
    use http_body_util::BodyExt as _;
    http_body_util::Full::from(text).map_err(|never| match never {}).boxed()
}

fn verdicts(round: &RestartJob) -> Vec<Option<ReplicaOutcome>> {
    round.outcomes().map(|(_, verdict)| verdict.cloned()).collect()
}

fn all_active() -> Vec<Option<ReplicaOutcome>> {
    vec![Some(ReplicaOutcome::Active); REPLICAS as usize]
}

#[tokio::test(start_paused = true)]
async fn the_same_call_at_two_gateways_restarts_once_and_both_are_told() {
    let town = Town::new(1).await;
    let (a, b) = (town.gateway(), town.gateway());
    let request = town.request(&[], Some("deploy-7"));
    let (first, second) = tokio::join!(town.call(&a, request.clone()), town.call(&b, request.clone()));
    let (first, second) = (first.unwrap(), second.unwrap());
    tokio::join!(first.wait(LONG), second.wait(LONG));
    assert_eq!((verdicts(&first), verdicts(&second)), (all_active(), all_active()));
    assert_eq!(town.taken(), [1, 1, 1]);
    // A gateway that has just come is told as well, and so is one that asks for something else by that name.
    let third = town.gateway();
    let round = town.call(&third, request).await.unwrap();
    round.wait(LONG).await;
    assert_eq!((verdicts(&round), town.taken()), (all_active(), vec![1, 1, 1]));
    let other = town.request(&[1], Some("deploy-7"));
    assert_eq!(town.call(&town.gateway(), other).await.unwrap_err(), Rejection::IdReused);
    // The object is nobody's now, belongs to the lease's namespace, and is deleted when the hour is over.
    let object = town.cluster.turns().remove(0);
    let transitions = object["spec"]["leaseTransitions"].as_u64().unwrap();
    assert!(transitions <= 2, "who renews keeps the turn until it is over: {transitions}");
    assert!(object["spec"]["holderIdentity"].is_null(), "{object}");
    assert_eq!(object["metadata"]["ownerReferences"][0]["name"], town.lease.namespace());
    assert_eq!(object["metadata"]["namespace"], "gateways");
    for gateway in [&a, &b] {
        gateway.turns.sweep().await;
    }
    assert_eq!(town.cluster.turns().len(), 1);
    tokio::time::sleep(Duration::from_secs(4_000)).await;
    for gateway in [&a, &b] {
        gateway.turns.sweep().await;
    }
    assert!(town.cluster.turns().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_has_no_name_leaves_nothing_behind() {
    let town = Town::new(2).await;
    let (a, b) = (town.gateway(), town.gateway());
    let (first, second) =
        tokio::join!(town.call(&a, town.request(&[], None)), town.call(&b, town.request(&[], None)));
    let (first, second) = (first.unwrap(), second.unwrap());
    tokio::join!(first.wait(LONG), second.wait(LONG));
    assert_eq!((verdicts(&first), verdicts(&second)), (all_active(), all_active()));
    assert_eq!(town.taken(), [2, 2, 2]);
    for gateway in [&a, &b] {
        gateway.restarts.finish(LONG).await;
    }
    assert!(town.cluster.turns().is_empty(), "{:?}", town.cluster.turns());
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_dies_amid_a_restart_is_succeeded() {
    let town = Town::new(3).await;
    let (a, b) = (town.gateway(), town.gateway());
    let request = town.request(&[], Some("deploy-8"));
    town.call(&a, request.clone()).await.unwrap();
    while town.is_up(1) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(town.note()["hand"]["index"], 1);
    // Not even a word of farewell gets through.
    a.set(Wire::Cut);
    drop(a);
    let (died, holder) = (tokio::time::Instant::now(), town.holder());
    let round = town.call(&b, request).await.unwrap();
    // What has come of the first is known at once.
    assert_eq!(verdicts(&round), [Some(ReplicaOutcome::Active), None, None]);
    while town.holder() == holder {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // By the clock of who looks: from the first look on, and not much longer.
    assert!((15..=20).contains(&died.elapsed().as_secs()), "{:?}", died.elapsed());
    round.wait(LONG).await;
    assert_eq!((verdicts(&round), town.taken()), (all_active(), vec![1, 1, 1]));
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_shuts_down_gives_its_turn_back_and_another_goes_on() {
    let town = Town::new(4).await;
    let (a, b) = (town.gateway(), town.gateway());
    let request = town.request(&[], Some("deploy-9"));
    let first = town.call(&a, request.clone()).await.unwrap();
    while town.is_up(0) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    a.restarts.finish(LONG).await;
    assert!(matches!(
        &verdicts(&first)[..],
        [Some(ReplicaOutcome::Active), Some(ReplicaOutcome::NotAttempted(_)), Some(_)]
    ));
    assert!(town.cluster.turns()[0]["spec"]["holderIdentity"].is_null());
    let round = town.call(&b, request).await.unwrap();
    round.wait(LONG).await;
    assert_eq!((verdicts(&round), town.taken()), (all_active(), vec![1, 1, 1]));
}

#[tokio::test(start_paused = true)]
async fn who_cannot_reach_the_others_takes_nothing_down() {
    let town = Town::new(5).await;
    let (a, b) = (town.gateway(), town.gateway());
    a.set(Wire::Cut);
    let refused = town.call(&a, town.request(&[], None)).await.unwrap_err();
    assert!(matches!(refused, Rejection::Alone(_)), "{refused:?}");
    // Cut off amid a restart: the replica in hand is seen to its end, and no further one is touched before the turn is back.
    let first = town.call(&b, town.request(&[], Some("deploy-10"))).await.unwrap();
    while town.is_up(0) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    b.set(Wire::Cut);
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(town.taken(), [1, 0, 0]);
    a.set(Wire::Good);
    let second = town.call(&a, town.request(&[], Some("deploy-10"))).await.unwrap();
    second.wait(LONG).await;
    assert_eq!((verdicts(&second), town.taken()), (all_active(), vec![1, 1, 1]));
    // The one that was cut off has given up, and is told when it is asked again.
    first.wait(LONG).await;
    assert!(matches!(
        &verdicts(&first)[1..],
        [Some(ReplicaOutcome::NotAttempted(_)), Some(ReplicaOutcome::NotAttempted(_))]
    ));
    b.set(Wire::Good);
    let third = town.call(&b, town.request(&[], Some("deploy-10"))).await.unwrap();
    third.wait(LONG).await;
    assert_eq!((verdicts(&third), town.taken()), (all_active(), vec![1, 1, 1]));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_taken_down_that_is_not_written_down() {
    let town = Town::new(8).await;
    let gateway = town.gateway();
    let round = town.call(&gateway, town.request(&[], None)).await.unwrap();
    for is_up in [false, true] {
        while town.is_up(0) != is_up {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    // The turn is held still when the first has its verdict, and the second cannot be written down.
    tokio::time::sleep(Duration::from_millis(4_800)).await;
    gateway.set(Wire::Cut);
    round.wait(LONG).await;
    assert_eq!(town.taken(), [1, 0, 0]);
    assert!(matches!(
        &verdicts(&round)[..2],
        [Some(ReplicaOutcome::Active), Some(ReplicaOutcome::NotAttempted(_))]
    ));
}

#[tokio::test(start_paused = true)]
async fn a_call_is_unavailable_while_the_turn_cannot_be_asked_for() {
    let town = Town::new(7).await;
    let (place, wire) = town.place();
    let gateway = crate::support::gateway::Gateway::on(place);
    let (owner, certificate) = gateway.tenant();
    let lease = LeaseId::new(owner.as_str(), 7, 1, 1, town.lease.provider().as_str()).unwrap();
    town.world.add_lease(&lease, &[("web", 1)]);
    town.world.start(&lease, &replica("web", 0));
    let scene = Scene { gateway, lease, certificate };
    *wire.lock().unwrap() = Wire::Cut;
    let status = restart(&scene, all(&scene, super::LONG)).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "PLATFORM_UNAVAILABLE"));
    assert!(town.world.restarted().is_empty());
}

#[tokio::test(start_paused = true)]
async fn so_many_calls_are_remembered_and_no_more() {
    let town = Town::new(6).await;
    let gateway = town.gateway();
    for call in 0..70 {
        let id = format!("{call}-{}", "x".repeat(120));
        let round = town.call(&gateway, town.request(&[call % REPLICAS], Some(&id))).await.unwrap();
        // So that the hour of the first is not over before the last comes.
        round.wait(LONG).await;
    }
    gateway.restarts.finish(LONG).await;
    let note = town.note();
    let calls = note["calls"].as_array().unwrap();
    assert_eq!(calls.len(), 64);
    assert!(calls[0]["id"].as_str().unwrap().starts_with("6-"), "the oldest are dropped: {}", calls[0]);
}

#[tokio::test(start_paused = true)]
async fn whichever_gateway_is_asked_never_two_replicas_are_down() {
    for seed in seeds(20) {
        println!("seed: {seed}");
        live(seed).await;
    }
}

/// One random life of three gateways: calls to any of them, bad wires, cuts, deaths.
async fn live(seed: u64) {
    let town = Town::new(seed).await;
    let mut random = StdRng::seed_from_u64(!seed);
    let mut gateways: Vec<Gateway> = (0..3).map(|_| town.gateway()).collect();
    let mut rounds: Vec<(String, Arc<RestartJob>)> = Vec::new();
    for _ in 0..random.random_range(5..30) {
        let at = random.random_range(0..gateways.len());
        match random.random_range(0..12) {
            0..=4 => {
                // Each name goes with the same replicas.
                let name = random.random_range(0..4_u32);
                let replicas: Vec<u32> = if name == 3 { vec![] } else { vec![name] };
                let id = random.random_bool(0.7).then(|| format!("call-{name}"));
                let request = town.request(&replicas, id.as_deref());
                match tokio::time::timeout(Duration::from_secs(60), town.call(&gateways[at], request)).await {
                    Ok(Ok(round)) => rounds.push((id.unwrap_or_default(), round)),
                    Ok(Err(Rejection::Alone(_))) => {}
                    other => panic!("seed {seed}: {other:?}"),
                }
            }
            5 => gateways[at].set(Wire::Bad),
            6 => gateways[at].set(Wire::Cut),
            7 | 8 => gateways[at].set(Wire::Good),
            9 => {
                if random.random() {
                    gateways[at].set(Wire::Cut);
                }
                gateways[at] = town.gateway();
            }
            _ => tokio::time::sleep(Duration::from_millis(random.random_range(0..30_000))).await,
        }
    }
    for gateway in &gateways {
        gateway.set(Wire::Good);
    }
    assert!(!rounds.is_empty() || town.taken() == [0, 0, 0]);
    for (_, round) in &rounds {
        round.wait(LONG).await;
        assert!(verdicts(round).iter().all(Option::is_some), "seed {seed}: {round:?}");
    }
    for gateway in gateways {
        gateway.restarts.finish(LONG).await;
    }
    for name in 0..4 {
        let name = format!("call-{name}");
        let told = rounds.iter().filter(|(id, _)| *id == name).flat_map(|(_, round)| verdicts(round));
        // A gateway that was cut off may see the run that it waits for make way for another's call.
        let is_wrong = |verdict: &ReplicaOutcome| matches!(verdict, ReplicaOutcome::Failed(why) if !why.ends_with("(Restarted)"));
        let told: Vec<ReplicaOutcome> = told.flatten().collect();
        assert!(!told.iter().any(is_wrong), "seed {seed}: {told:?}");
    }
    town.tasks.close();
    town.tasks.wait().await;
    assert!(town.wrong.lock().unwrap().is_empty(), "seed {seed}: {:?}", town.wrong.lock().unwrap());
}
