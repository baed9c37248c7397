//! Random lives: replicas print, crash and come back, are restarted, sources fail and lose lines, followers come, read a little, are cut off and
//! go on, or are refused since others are reading. Whatever the order, in the end the oracle must hold for every follower.

use std::time::Duration;

use futures_util::future::join_all;
use leasemux::model::id::{Instance, Replica};
use leasemux::model::limits::{Limits, QuotaLimits};
use leasemux::model::proto::lease::{OnLag, ServiceLogsRequest};
use leasemux::platform::{Platform as _, RestartRequest};
use proptest::prelude::*;

use crate::support::gateway::{Scene, Stream};
use crate::support::oracle::Received;

/// Replicas of the one service.
const REPLICAS: u32 = 2;

/// Followers at once, at most.
const FOLLOWERS: usize = 4;

/// How long a follower who was sent away waits before they come again.
const PAUSE: Duration = Duration::from_millis(20);

#[derive(Clone, Debug)]
enum Action {
    /// Print so many lines of this length.
    Print { replica: u32, lines: usize, length: usize },
    /// End the run, or start the next one.
    Turn { replica: u32 },
    /// End the run so that the next one starts, as a restart does.
    Restart { replica: u32 },
    /// Lose so many lines.
    Lose { replica: u32, lines: u64 },
    /// Let reading fail, or work again.
    Fail { replica: u32, failing: bool },
    /// Come.
    Open { close_on_lag: bool },
    /// Take so many responses, as far as they are there.
    Read { follower: usize, responses: usize },
    /// Be cut off, and go on from the cursors.
    Cut { follower: usize },
    /// Let time go by.
    Wait { millis: u64 },
}

fn action() -> impl Strategy<Value = Action> {
    let replica = 0..REPLICAS;
    let length = prop_oneof![8 => 1..300_usize, 1 => 300..40_000_usize];
    prop_oneof![
        8 => (replica.clone(), 1..200_usize, length)
            .prop_map(|(replica, lines, length)| Action::Print { replica, lines: lines.min(400_000 / length), length }),
        2 => replica.clone().prop_map(|replica| Action::Turn { replica }),
        1 => replica.clone().prop_map(|replica| Action::Restart { replica }),
        1 => (replica.clone(), 1..9_u64).prop_map(|(replica, lines)| Action::Lose { replica, lines }),
        1 => (replica, any::<bool>()).prop_map(|(replica, failing)| Action::Fail { replica, failing }),
        2 => any::<bool>().prop_map(|close_on_lag| Action::Open { close_on_lag }),
        6 => (0..FOLLOWERS, 1..30_usize).prop_map(|(follower, responses)| Action::Read { follower, responses }),
        2 => (0..FOLLOWERS).prop_map(|follower| Action::Cut { follower }),
        3 => (0..40_u64).prop_map(|millis| Action::Wait { millis }),
    ]
}

struct Life {
    scene: Scene,
    runs: Vec<Vec<Instance>>,
    running: Vec<bool>,
    followers: Vec<Follower>,
    printed: usize,
}

struct Follower {
    stream: Option<Stream>,
    request: ServiceLogsRequest,
}

impl Life {
    /// Where so much history is read at once, and so long is waited for that. There is more of it from the start than one who does not read on is sent.
    fn new(history_reads: usize, history_wait: Duration) -> Self {
        // Who is refused at once calls often.
        let quota =
            QuotaLimits { history_reads, history_wait, requests_per_second: 0, ..QuotaLimits::default() };
        let limits = Limits { ring_max_bytes: 48 * 1024, quota, ..Limits::default() };
        let scene = Scene::new(limits, &[("web", REPLICAS)]);
        let mut life = Self {
            scene,
            runs: vec![Vec::new(); REPLICAS as usize],
            running: vec![false; REPLICAS as usize],
            followers: Vec::new(),
            printed: 0,
        };
        life.turn(0);
        life.print(0, 1_000, 300);
        life
    }

    fn print(&mut self, replica: u32, lines: usize, length: usize) {
        let Some(run) = self.newest(replica).cloned() else { return };
        let first = self.printed;
        self.printed += lines;
        let numbers = first..self.printed;
        self.scene.gateway.world.print(&run, numbers.map(|number| format!("{number:0length$}\n")));
    }

    fn turn(&mut self, index: u32) {
        let replica = Replica { service: "web".parse().unwrap(), index };
        let (world, lease) = (&self.scene.gateway.world, &self.scene.lease);
        let running = &mut self.running[index as usize];
        if *running {
            world.end(lease, &replica, 1);
        } else {
            self.runs[index as usize].push(world.start(lease, &replica));
        }
        *running = !*running;
    }

    async fn restart(&mut self, index: u32) {
        let Some(instance) = self.runs[index as usize].last().cloned() else { return };
        let replica = Replica { service: "web".parse().unwrap(), index };
        let (world, lease) = (&self.scene.gateway.world, self.scene.lease.clone());
        let order =
            RestartRequest { lease: lease.clone(), replica: replica.clone(), instance: Some(instance) };
        world.restart(order).await.unwrap();
        let view = world.watch(&lease).await.unwrap();
        let newest = view.borrow().replica(&replica).unwrap().present().unwrap().instance.clone();
        self.runs[index as usize].push(newest);
        self.running[index as usize] = true;
    }

    fn newest(&self, replica: u32) -> Option<&Instance> {
        self.runs[replica as usize].last().filter(|_| self.running[replica as usize])
    }

    async fn act(&mut self, action: Action) {
        let world = self.scene.gateway.world.clone();
        match action {
            Action::Print { replica, lines, length } => self.print(replica, lines, length),
            Action::Turn { replica } => self.turn(replica),
            Action::Restart { replica } => self.restart(replica).await,
            Action::Lose { replica, lines } => {
                if let Some(run) = self.newest(replica) {
                    world.lose(run, lines);
                }
            }
            Action::Fail { replica, failing } => {
                if let Some(run) = self.runs[replica as usize].last() {
                    world.fail(run, failing);
                }
            }
            Action::Open { close_on_lag } => self.open(close_on_lag).await,
            Action::Read { follower, responses } => self.read(follower, responses).await,
            Action::Cut { follower } => self.cut(follower).await,
            Action::Wait { millis } => tokio::time::sleep(Duration::from_millis(millis)).await,
        }
    }

    async fn open(&mut self, close_on_lag: bool) {
        if self.followers.len() == FOLLOWERS {
            return;
        }
        let on_lag = if close_on_lag { OnLag::Close } else { OnLag::Drop };
        let request = ServiceLogsRequest { follow: true, on_lag: on_lag.into(), ..self.scene.request() };
        let stream = self.scene.open(request.clone()).await.unwrap();
        self.followers.push(Follower { stream: Some(stream), request });
    }

    async fn read(&mut self, follower: usize, responses: usize) {
        let Some(follower) = self.followers.get_mut(follower) else { return };
        for _ in 0..responses {
            let Some(stream) = &mut follower.stream else { return };
            match stream.next_if_ready().await {
                Ok(true) => {}
                Ok(false) => return,
                Err(_) => follower.go_on(&self.scene).await,
            }
        }
    }

    async fn cut(&mut self, follower: usize) {
        if let Some(follower) = self.followers.get_mut(follower) {
            follower.go_on(&self.scene).await;
        }
    }

    /// Whether a follower has been told of everything.
    fn is_complete(&self, received: &Received) -> bool {
        (0..REPLICAS).all(|replica| {
            let produced: usize = self.runs[replica as usize]
                .iter()
                .map(|run| self.scene.gateway.world.produced(run).len())
                .sum();
            let missing = usize::try_from(received.missing("web", replica)).unwrap();
            received.lines("web", replica) + missing >= produced
        })
    }

    async fn finish(mut self) {
        let world = self.scene.gateway.world.clone();
        for runs in &self.runs {
            for run in runs {
                world.fail(run, false);
            }
        }
        let followers = std::mem::take(&mut self.followers);
        // Together: who reads may be who others wait for.
        join_all(followers.into_iter().map(|follower| self.read_out(follower))).await;
    }

    /// Has a follower read until it was told of everything, and asks the oracle.
    async fn read_out(&self, mut follower: Follower) {
        loop {
            let Some(stream) = &mut follower.stream else { unreachable!("there is always one") };
            if self.is_complete(&stream.received) {
                break;
            }
            if stream.next().await.is_err() {
                // Those who read have their turn too.
                tokio::time::sleep(PAUSE).await;
                follower.go_on(&self.scene).await;
            }
        }
        let Some(stream) = follower.stream else { unreachable!("there is always one") };
        for replica in 0..REPLICAS {
            let runs: Vec<_> = self.runs[replica as usize].iter().map(|run| (run, 0)).collect();
            stream.received.ask(&self.scene.gateway.world, "web", replica, &runs);
        }
    }
}

impl Follower {
    async fn go_on(&mut self, scene: &Scene) {
        if let Some(stream) = self.stream.take() {
            self.stream = Some(scene.resume(stream, self.request.clone()).await);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases()) })]

    #[test]
    fn whatever_happens_the_oracle_holds(
        actions in prop::collection::vec(action(), 1..60),
        history_reads in prop_oneof![Just(1), Just(64)],
        history_wait in prop_oneof![Just(Duration::ZERO), Just(Duration::from_millis(20))],
    ) {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mut life = Life::new(history_reads, history_wait);
            for action in actions {
                life.act(action).await;
            }
            life.finish().await;
        });
    }
}

/// How many lives: a few by default, more if `PROPTEST_CASES` says so.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(40)
}
