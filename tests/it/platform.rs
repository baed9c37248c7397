//! The contract of every platform ([`leasemux::platform`]), tested on each: services on this machine, a
//! cluster, and a node of a cluster. Followers read over real gRPC and check that every line is delivered or
//! reported lost.

mod environments;

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::StreamExt as _;
use leasemux::model::id::{Instance, LeaseId, ServiceName};
use leasemux::model::limits::Limits;
use leasemux::model::position::Position;
use leasemux::model::proto::lease::ServiceLogsRequest;
use leasemux::model::proto::lease::replica_event::Kind;
use leasemux::model::proto::lease::source_state::State;
use leasemux::model::view::{ReplicaState, ReplicaView};
use leasemux::platform::{Error, ReadFrom, RestartRequest, Tail, TailItem, TailRequest};

use self::environments::{Attached, Cluster, Environment, Machine, Node};
use crate::support::gateway::{Gateway, PATIENCE, Setup, Stream};
use crate::support::loss_check::Received;
use crate::support::{account, replica};

/// The service that prints given lines.
const SERVICE: &str = "web";

/// A service that cannot start.
const STUCK: &str = "stuck";

/// Polling interval of conditions without notification.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Runs each test in each environment.
macro_rules! contract {
    ($($name:ident: $environment:ty),*; $tests:tt) => {
        $(contract!(@ $name $environment $tests);)*
    };
    (@ $name:ident $environment:ty { $($test:ident,)* }) => {
        mod $name {
            $(#[tokio::test] async fn $test() { super::$test::<$environment>().await; })*
        }
    };
}

contract! {
    local: super::Machine, attached: super::Attached, kube: super::Cluster, node: super::Node;
    {
        view_shows_running_replicas,
        missing_objects_are_not_found,
        lines_come_once_with_growing_positions,
        read_resumes_after_any_position,
        positions_are_the_same_in_every_read,
        last_lines_are_as_many_as_requested,
        runs_are_separate_through_a_crash,
        backfill_joins_live_output,
        rotated_away_lines_are_a_gap,
        ended_lease_ends_view_and_tail,
        one_tail_serves_all_followers,
        stuck_service_does_not_affect_others,
        heartbeats_tell_quiet_from_stuck,
    }
}

// Not `attached`: it restarts nothing.
contract! {
    local_restarts: super::Machine, kube_restarts: super::Cluster, node_restarts: super::Node;
    { restart_replaces_run_in_its_slot, }
}

/// An environment with one lease, and a gateway on it.
struct Stage<E> {
    environment: E,
    setup: Setup,
    /// Lines printed by each replica of the service.
    printed: BTreeMap<u32, Vec<String>>,
}

/// An item read from a log.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Read {
    /// A line, and the position after it.
    Line(String, Position),
    Gap,
}

// === impl Stage ===

impl<E: Environment> Stage<E> {
    /// Starts replicas of the service.
    async fn new(replicas: u32) -> Self {
        Self::with(replicas, false).await
    }

    /// Starts replicas of the service, and a service that cannot start if `stuck`.
    async fn with(replicas: u32, stuck: bool) -> Self {
        let (owner, certificate) = Gateway::new(Limits::default()).tenant();
        let lease = LeaseId::new(owner.as_str(), 7, 1, 1, account(200).as_str()).unwrap();
        let environment = E::start(&lease, replicas, stuck).await;
        let gateway = Gateway::on(environment.platform());
        gateway.believe(&owner, &certificate);
        let stage =
            Self { environment, setup: Setup { gateway, lease, certificate }, printed: BTreeMap::new() };
        for index in 0..replicas {
            stage.slot(index, |slot| slot.current_run().is_some()).await;
        }
        stage
    }

    /// Waits until a replica satisfies `wanted`.
    async fn slot(&self, index: u32, wanted: impl Fn(&ReplicaView) -> bool) -> ReplicaView {
        let mut view = None;
        eventually(async || {
            view = self.environment.platform().watch(&self.setup.lease).await.ok();
            view.is_some()
        })
        .await;
        let (mut view, replica) = (view.unwrap(), replica(SERVICE, index));
        let found = view.wait_for(|view| view.replica(&replica).is_some_and(&wanted));
        let found = tokio::time::timeout(PATIENCE, found).await.expect("the condition in time").unwrap();
        found.replica(&replica).unwrap().clone()
    }

    async fn current_run(&self, index: u32) -> Instance {
        let slot = self.slot(index, |slot| slot.current_run().is_some()).await;
        slot.current_run().unwrap().instance.clone()
    }

    /// Has a replica print distinct lines, and waits until they can be read.
    async fn print(&mut self, index: u32, count: usize) {
        let printed = self.printed.entry(index).or_default();
        let lines: Vec<String> =
            (0..count).map(|n| format!("line {} of {index}", printed.len() + n)).collect();
        printed.extend_from_slice(&lines);
        self.environment.print(index, &lines);
        self.readable(index).await;
    }

    /// Waits until the last printed line can be read.
    async fn readable(&self, index: u32) {
        let last = self.printed[&index].last().unwrap();
        eventually(async || {
            let run = self.current_run(index).await;
            let read = self.read(index, run, ReadFrom::Last(1)).await.unwrap_or_default();
            matches!(read.as_slice(), [Read::Line(line, _)] if line == last)
        })
        .await;
    }

    /// Makes all lines printed so far unreadable.
    async fn rotate(&mut self, index: u32) {
        let run = self.current_run(index).await;
        let first = self.read(index, run.clone(), ReadFrom::Start).await.unwrap().remove(0);
        let filler = self.environment.rotate(index);
        self.printed.entry(index).or_default().extend(filler);
        eventually(async || {
            self.read(index, run.clone(), ReadFrom::Start).await.is_ok_and(|read| !read.contains(&first))
        })
        .await;
    }

    /// Ends the current run with exit code 3, and waits for the next one. Returns both.
    async fn crash(&mut self, index: u32) -> (Instance, Instance) {
        let first = self.current_run(index).await;
        self.environment.crash(index);
        let next = self.slot(index, |slot| slot.current_run().is_some_and(|run| run.instance != first)).await;
        (first, next.current_run().unwrap().instance.clone())
    }

    fn request(&self, index: u32, instance: Instance, from: ReadFrom, follow: bool) -> TailRequest {
        TailRequest {
            lease: self.setup.lease.clone(),
            replica: replica(SERVICE, index),
            instance,
            from,
            lines_after: None,
            oldest_read: None,
            is_next_run: false,
            follow,
        }
    }

    async fn tail(&self, request: TailRequest) -> Result<Tail, Error> {
        self.environment.platform().tail(request).await
    }

    /// Reads the log of a run to its present end.
    async fn read(&self, index: u32, run: Instance, from: ReadFrom) -> Result<Vec<Read>, Error> {
        let mut tail = self.tail(self.request(index, run, from, false)).await?;
        let mut read = Vec::new();
        while take(&mut tail, &mut read).await? {}
        Ok(read)
    }

    async fn follow(&self) -> Stream {
        let request = ServiceLogsRequest { follow: true, ..self.setup.request() };
        self.setup.open(request).await.unwrap()
    }

    /// Waits until a follower has all printed lines of a replica, and checks them. Returns the number of
    /// gaps.
    async fn check(&self, follower: &mut Stream, index: u32) -> usize {
        let printed = &self.printed[&index];
        let last = format!("{}\n", printed.last().unwrap());
        follower.until(|received| received.ends_with(SERVICE, index, &last)).await;
        follower.received.assert_ordered(SERVICE, index, printed)
    }
}

/// Reads the next item of a log. Returns `false` at its end.
async fn take(tail: &mut Tail, read: &mut Vec<Read>) -> Result<bool, Error> {
    match tokio::time::timeout(PATIENCE, tail.items.next()).await.expect("the next item").transpose()? {
        Some(TailItem::Lines(batch)) => {
            read.extend((0..batch.lines.len()).map(|index| {
                let text = String::from_utf8(batch.bytes(index).to_vec()).unwrap();
                Read::Line(text.trim_end().to_owned(), batch.lines[index].after)
            }));
        }
        Some(TailItem::Gap(_)) => read.push(Read::Gap),
        Some(TailItem::Interrupted(_) | TailItem::Resumed) => {}
        Some(TailItem::FollowUnavailable) => panic!("every log here can be followed"),
        None => return Ok(false),
    }
    Ok(true)
}

fn texts(read: &[Read]) -> Vec<&str> {
    let texts = read.iter().map(|read| match read {
        Read::Line(text, _) => text.as_str(),
        Read::Gap => "a gap",
    });
    texts.collect()
}

fn positions(read: &[Read]) -> Vec<Position> {
    let positions = read.iter().filter_map(|read| match read {
        Read::Line(_, after) => Some(*after),
        Read::Gap => None,
    });
    positions.collect()
}

/// Waits for a condition.
async fn eventually(mut condition: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("the condition in time");
}

// === the contract ===

async fn view_shows_running_replicas<E: Environment>() {
    let stage = Stage::<E>::new(2).await;
    let view = stage.environment.platform().watch(&stage.setup.lease).await.unwrap();
    let view = view.borrow().clone();
    assert!(!view.ended);
    assert_eq!(view.services.keys().map(ServiceName::as_str).collect::<Vec<_>>(), [SERVICE]);
    let service = &view.services[&SERVICE.parse().unwrap()];
    assert_eq!((service.count, service.replicas.keys().copied().collect::<Vec<_>>()), (2, vec![0, 1]));
    for slot in service.replicas.values() {
        assert_eq!((&slot.state, slot.runs.len(), slot.restarts), (&ReplicaState::Running, 1, 0));
    }
    assert_ne!(stage.current_run(0).await, stage.current_run(1).await);
}

async fn missing_objects_are_not_found<E: Environment>() {
    let stage = Stage::<E>::new(1).await;
    let (platform, lease) = (stage.environment.platform(), &stage.setup.lease);
    let run = stage.current_run(0).await;
    let of_another = LeaseId::new(account(9).as_str(), 7, 1, 1, account(200).as_str()).unwrap();
    assert!(matches!(platform.watch(&of_another).await, Err(Error::NotFound(_))));
    let request = stage.request(0, run.clone(), ReadFrom::Start, false);
    let unknown = Instance::new("uid", SERVICE, 0).unwrap();
    for request in [
        TailRequest { lease: of_another.clone(), ..request.clone() },
        TailRequest { replica: replica(SERVICE, 1), ..request.clone() },
        TailRequest { instance: unknown, ..request },
    ] {
        assert!(matches!(platform.tail(request).await, Err(Error::NotFound(_))));
    }
    for (lease, replica) in [(of_another, replica(SERVICE, 0)), (lease.clone(), replica("other", 0))] {
        let request = RestartRequest { lease, replica, instance: Some(run.clone()) };
        assert!(matches!(platform.restart(request).await, Err(Error::NotFound(_))));
    }
}

async fn lines_come_once_with_growing_positions<E: Environment>() {
    let mut stage = Stage::<E>::new(1).await;
    stage.print(0, 30).await;
    let mut follower = stage.follow().await;
    let run = stage.current_run(0).await;
    let mut tail = stage.tail(stage.request(0, run, ReadFrom::Start, true)).await.unwrap();
    let mut read = Vec::new();
    while read.len() < 30 {
        assert!(take(&mut tail, &mut read).await.unwrap());
    }
    stage.print(0, 30).await;
    while read.len() < 60 {
        assert!(take(&mut tail, &mut read).await.unwrap());
    }
    assert_eq!(texts(&read), stage.printed[&0]);
    let positions = [vec![tail.start], positions(&read)].concat();
    assert!(positions.is_sorted_by(|before, after| before < after), "{positions:?}");
    assert_eq!(stage.check(&mut follower, 0).await, 0);
}

async fn read_resumes_after_any_position<E: Environment>() {
    let mut stage = Stage::<E>::new(1).await;
    stage.print(0, 12).await;
    let run = stage.current_run(0).await;
    let all = stage.read(0, run.clone(), ReadFrom::Start).await.unwrap();
    assert_eq!(texts(&all), stage.printed[&0]);
    for (index, position) in positions(&all).into_iter().enumerate() {
        let rest = stage.read(0, run.clone(), ReadFrom::After(position)).await.unwrap();
        assert_eq!(rest, all[index + 1..], "after line {index}");
        let mut tail =
            stage.tail(stage.request(0, run.clone(), ReadFrom::After(position), true)).await.unwrap();
        assert_eq!(tail.start, position);
        let mut read = Vec::new();
        while read.len() < rest.len() {
            assert!(take(&mut tail, &mut read).await.unwrap());
        }
        assert_eq!(read, rest);
    }
}

async fn positions_are_the_same_in_every_read<E: Environment>() {
    let mut stage = Stage::<E>::new(1).await;
    stage.print(0, 20).await;
    let run = stage.current_run(0).await;
    let mut tail = stage.tail(stage.request(0, run.clone(), ReadFrom::Start, true)).await.unwrap();
    let mut followed = Vec::new();
    while followed.len() < 20 {
        assert!(take(&mut tail, &mut followed).await.unwrap());
    }
    let all = stage.read(0, run.clone(), ReadFrom::Start).await.unwrap();
    assert_eq!(followed, all);
    for count in [1, 7, 20, 100] {
        let last = stage.read(0, run.clone(), ReadFrom::Last(count)).await.unwrap();
        let from = all.len().saturating_sub(usize::try_from(count).unwrap());
        assert_eq!(last, all[from..]);
    }
}

async fn last_lines_are_as_many_as_requested<E: Environment>() {
    let mut stage = Stage::<E>::new(1).await;
    stage.print(0, 10).await;
    let printed = stage.printed[&0].clone();
    let run = stage.current_run(0).await;
    for (count, from) in [(0, 10), (3, 7), (10, 0), (1_000, 0)] {
        let read = stage.read(0, run.clone(), ReadFrom::Last(count)).await.unwrap();
        assert_eq!(texts(&read), printed[from..]);
        // The same over gRPC.
        let request = ServiceLogsRequest { tail_lines: Some(count), ..stage.setup.request() };
        let mut stream = stage.setup.open(request).await.unwrap();
        assert_eq!(stream.end().await.code(), tonic::Code::Ok);
        assert_eq!(stream.received.text(SERVICE, 0).lines().collect::<Vec<_>>(), printed[from..]);
    }
}

async fn runs_are_separate_through_a_crash<E: Environment>() {
    let mut stage = Stage::<E>::new(1).await;
    stage.print(0, 5).await;
    let mut follower = stage.follow().await;
    follower.until(|received| received.lines(SERVICE, 0) >= 5).await;
    stage.print(0, 5).await;
    let (first, second) = stage.crash(0).await;
    stage.print(0, 5).await;
    let slot = stage.slot(0, |slot| slot.runs.len() == 2).await;
    let end = slot.run(&first).unwrap().end.as_ref().unwrap();
    assert_eq!((end.exit_code, end.signal, slot.restarts), (Some(3), None, 1));
    assert_eq!(stage.check(&mut follower, 0).await, 0);
    let events = follower.received.events(SERVICE, 0);
    assert_eq!(events.iter().filter(|kind| **kind == Kind::Ended).count(), 1, "{events:?}");
    assert_eq!(events.last(), Some(&Kind::Started), "{events:?}");
    // Each run has its own log. That of the previous run can also be read over gRPC.
    let printed = &stage.printed[&0];
    assert_eq!(texts(&stage.read(0, first, ReadFrom::Start).await.unwrap()), printed[..10]);
    assert_eq!(texts(&stage.read(0, second, ReadFrom::Start).await.unwrap()), printed[10..]);
    let request = ServiceLogsRequest { previous: true, ..stage.setup.request() };
    let mut stream = stage.setup.open(request).await.unwrap();
    assert_eq!(stream.end().await.code(), tonic::Code::Ok);
    assert_eq!(stream.received.text(SERVICE, 0).lines().collect::<Vec<_>>(), printed[..10]);
}

async fn backfill_joins_live_output<E: Environment>() {
    let mut stage = Stage::<E>::new(1).await;
    stage.print(0, 50).await;
    let mut followers = Vec::new();
    for _ in 0..4 {
        followers.push(stage.follow().await);
        stage.print(0, 20).await;
    }
    for follower in &mut followers {
        assert_eq!(stage.check(follower, 0).await, 0);
    }
}

async fn rotated_away_lines_are_a_gap<E: Environment>() {
    let mut stage = Stage::<E>::new(1).await;
    stage.print(0, 10).await;
    let request = ServiceLogsRequest { follow: true, ..stage.setup.request() };
    let mut follower = stage.follow().await;
    follower.until(|received| received.lines(SERVICE, 0) >= 10).await;
    let run = stage.current_run(0).await;
    let position = positions(&stage.read(0, run.clone(), ReadFrom::Start).await.unwrap())[4];
    // It resumes at a gateway that has not read the log yet.
    let gateway = Gateway::on(stage.environment.platform());
    gateway.believe(stage.setup.lease.owner(), &stage.setup.certificate);
    let elsewhere =
        Setup { gateway, lease: stage.setup.lease.clone(), certificate: stage.setup.certificate.clone() };
    let received = std::mem::take(&mut follower.received);
    drop(follower);
    stage.rotate(0).await;
    stage.print(0, 5).await;
    let read = stage.read(0, run, ReadFrom::After(position)).await.unwrap();
    assert_eq!(read.first(), Some(&Read::Gap));
    assert!(!read[1..].contains(&Read::Gap) && stage.printed[&0].ends_with(&owned(&texts(&read[1..]))));
    let resume = received.cursors.values().cloned().collect();
    let mut follower = elsewhere.open(ServiceLogsRequest { resume, ..request }).await.unwrap();
    follower.received = received;
    // Whether only lines already read are missing is unknown, so there is a gap.
    assert_eq!(stage.check(&mut follower, 0).await, 1);
}

async fn restart_replaces_run_in_its_slot<E: Environment>() {
    let mut stage = Stage::<E>::new(2).await;
    stage.print(1, 5).await;
    let mut follower = stage.follow().await;
    follower.until(|received| received.lines(SERVICE, 1) >= 5).await;
    let (other, first) = (stage.current_run(0).await, stage.current_run(1).await);
    let platform = stage.environment.platform();
    let request = |instance: &Instance| RestartRequest {
        lease: stage.setup.lease.clone(),
        replica: replica(SERVICE, 1),
        instance: Some(instance.clone()),
    };
    // A request for a run of another replica does nothing.
    assert!(matches!(platform.restart(request(&other)).await, Err(Error::Conflict(_))));
    let restart = request(&first);
    platform.restart(restart.clone()).await.unwrap();
    stage.environment.replace(1).await;
    let slot = stage.slot(1, |slot| slot.current_run().is_some_and(|run| run.instance != first)).await;
    assert!(slot.run(&first).is_none_or(|run| run.end.is_some()));
    assert!(matches!(platform.restart(restart).await, Err(Error::Conflict(_))));
    assert_eq!(stage.current_run(0).await, other);
    stage.print(1, 5).await;
    assert_eq!(stage.check(&mut follower, 1).await, 0);
    let events = follower.received.events(SERVICE, 1);
    assert_eq!(events.last(), Some(&Kind::Started), "{events:?}");
}

async fn ended_lease_ends_view_and_tail<E: Environment>() {
    let mut stage = Stage::<E>::new(1).await;
    stage.print(0, 5).await;
    let run = stage.current_run(0).await;
    let mut view = stage.environment.platform().watch(&stage.setup.lease).await.unwrap();
    let mut tail = stage.tail(stage.request(0, run, ReadFrom::Start, true)).await.unwrap();
    let mut read = Vec::new();
    while read.len() < 5 {
        assert!(take(&mut tail, &mut read).await.unwrap());
    }
    // Read before the end: the log of a removed pod cannot be read.
    let reading = async {
        while read.len() < 10 {
            assert!(take(&mut tail, &mut read).await.unwrap());
        }
    };
    tokio::join!(reading, stage.print(0, 5));
    stage.environment.end().await;
    while take(&mut tail, &mut read).await.unwrap() {}
    assert_eq!(texts(&read), stage.printed[&0]);
    let nothing_runs = |view: &std::sync::Arc<leasemux::model::view::LeaseView>| {
        view.ended || view.replica(&replica(SERVICE, 0)).is_some_and(|slot| slot.current_run().is_none())
    };
    // A closed channel means the same.
    tokio::time::timeout(PATIENCE, view.wait_for(nothing_runs)).await.unwrap().ok();
}

async fn one_tail_serves_all_followers<E: Environment>() {
    let mut stage = Stage::<E>::new(2).await;
    let mut followers = Vec::new();
    for _ in 0..6 {
        let mut follower = stage.follow().await;
        stage.print(0, 3).await;
        stage.print(1, 3).await;
        for index in 0..2 {
            assert_eq!(stage.check(&mut follower, index).await, 0);
        }
        followers.push(follower);
    }
    for follower in &mut followers {
        for index in 0..2 {
            assert_eq!(stage.check(follower, index).await, 0);
        }
    }
    assert_eq!(stage.setup.gateway.metric("leasemux_source_opens_total{read=\"live\"}"), 2);
}

async fn stuck_service_does_not_affect_others<E: Environment>() {
    let mut stage = Stage::<E>::with(1, true).await;
    let mut follower = stage.follow().await;
    follower.until(|received| received.events(STUCK, 0).contains(&Kind::Waiting)).await;
    stage.print(0, 10).await;
    assert_eq!(stage.check(&mut follower, 0).await, 0);
    assert_eq!(follower.received.text(STUCK, 0), "");
}

async fn heartbeats_tell_quiet_from_stuck<E: Environment>() {
    let mut stage = Stage::<E>::with(1, true).await;
    let heartbeat = Some(prost_types::Duration { seconds: 1, nanos: 0 });
    let request = ServiceLogsRequest { follow: true, heartbeat, ..stage.setup.request() };
    let mut follower = stage.setup.open(request).await.unwrap();
    stage.print(0, 10).await;
    assert_eq!(stage.check(&mut follower, 0).await, 0);
    let quiet = |received: &Received| received.last_source(SERVICE, 0) == Some((State::Live, ""));
    let is_stuck = |(state, reason): (State, &str)| state == State::Waiting && !reason.is_empty();
    follower.until(|received| quiet(received) && received.last_source(STUCK, 0).is_some_and(is_stuck)).await;
    stage.print(0, 10).await;
    assert_eq!(stage.check(&mut follower, 0).await, 0);
}

fn owned(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}
