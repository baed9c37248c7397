//! Random scenarios: replicas print, crash and are restarted; sources fail and lose lines; followers connect,
//! by gRPC or websocket, read a little, disconnect and resume, or are rejected by a quota. In any order, each
//! follower must get every line or an exact gap.

use std::time::Duration;

use futures_util::future::join_all;
use leasemux::model::id::{Instance, Replica};
use leasemux::model::limits::{Limits, QuotaLimits};
use leasemux::model::proto::lease::{OnLag, ServiceLogsRequest};
use leasemux::platform::{Platform as _, RestartRequest};
use proptest::prelude::*;
use tokio::io::DuplexStream;

use crate::rest::open_by_certificate;
use crate::support::gateway::{Setup, Stream};
use crate::support::loss_check::Received;
use crate::support::rest::WsFollower;

/// Replicas of the service.
const REPLICAS: u32 = 2;

/// Most followers at once.
const FOLLOWERS_MAX: usize = 4;

/// Delay before a rejected follower connects again.
const RECONNECT_DELAY: Duration = Duration::from_millis(20);

#[derive(Clone, Debug)]
enum Action {
    /// Prints lines of this length.
    Print {
        replica: u32,
        lines: usize,
        length: usize,
    },
    /// Ends the run, or starts the next one.
    StartOrEnd {
        replica: u32,
    },
    /// Ends the run and starts the next one.
    Restart {
        replica: u32,
    },
    Lose {
        replica: u32,
        lines: u64,
    },
    /// Lets reads fail, or work again.
    Fail {
        replica: u32,
        failing: bool,
    },
    Open {
        close_on_lag: bool,
        websocket: bool,
    },
    /// Reads up to this many responses, without waiting.
    Read {
        follower: usize,
        responses: usize,
    },
    /// Disconnects, then resumes from the cursors.
    Reconnect {
        follower: usize,
    },
    Wait {
        millis: u64,
    },
}

fn action() -> impl Strategy<Value = Action> {
    let replica = 0..REPLICAS;
    let length = prop_oneof![8 => 1..300_usize, 1 => 300..40_000_usize];
    prop_oneof![
        8 => (replica.clone(), 1..200_usize, length)
            .prop_map(|(replica, lines, length)| Action::Print { replica, lines: lines.min(400_000 / length), length }),
        2 => replica.clone().prop_map(|replica| Action::StartOrEnd { replica }),
        1 => replica.clone().prop_map(|replica| Action::Restart { replica }),
        1 => (replica.clone(), 1..9_u64).prop_map(|(replica, lines)| Action::Lose { replica, lines }),
        1 => (replica, any::<bool>()).prop_map(|(replica, failing)| Action::Fail { replica, failing }),
        2 => any::<(bool, bool)>().prop_map(|(close_on_lag, websocket)| Action::Open { close_on_lag, websocket }),
        6 => (0..FOLLOWERS_MAX, 1..30_usize).prop_map(|(follower, responses)| Action::Read { follower, responses }),
        2 => (0..FOLLOWERS_MAX).prop_map(|follower| Action::Reconnect { follower }),
        3 => (0..40_u64).prop_map(|millis| Action::Wait { millis }),
    ]
}

struct Scenario {
    setup: Setup,
    runs: Vec<Vec<Instance>>,
    running: Vec<bool>,
    followers: Vec<Follower>,
    printed: usize,
}

enum Follower {
    Grpc {
        stream: Option<Box<Stream>>,
        request: ServiceLogsRequest,
    },
    /// Has no cursors, so it begins again when it reconnects.
    WebSocket {
        stream: Box<WsFollower<DuplexStream>>,
        query: &'static str,
    },
}

impl Scenario {
    /// Starts with more lines than a stalled follower is sent, so that backfills overlap.
    fn new(history_reads: usize, history_wait: Duration) -> Self {
        // Without a request rate limit: rejected followers call often.
        let quota =
            QuotaLimits { history_reads, history_wait, requests_per_second: 0, ..QuotaLimits::default() };
        let limits = Limits { ring_max_bytes: 48 * 1024, quota, ..Limits::default() };
        let setup = Setup::new(limits, &[("web", REPLICAS)]);
        let mut scenario = Self {
            setup,
            runs: vec![Vec::new(); REPLICAS as usize],
            running: vec![false; REPLICAS as usize],
            followers: Vec::new(),
            printed: 0,
        };
        scenario.start_or_end(0);
        scenario.print(0, 1_000, 300);
        scenario
    }

    fn print(&mut self, replica: u32, lines: usize, length: usize) {
        let Some(run) = self.newest(replica).cloned() else { return };
        let first = self.printed;
        self.printed += lines;
        let numbers = first..self.printed;
        self.setup.gateway.platform.print(&run, numbers.map(|number| format!("{number:0length$}\n")));
    }

    fn start_or_end(&mut self, index: u32) {
        let replica = Replica { service: "web".parse().unwrap(), index };
        let (platform, lease) = (&self.setup.gateway.platform, &self.setup.lease);
        let running = &mut self.running[index as usize];
        if *running {
            platform.end(lease, &replica, 1);
        } else {
            self.runs[index as usize].push(platform.start(lease, &replica));
        }
        *running = !*running;
    }

    async fn restart(&mut self, index: u32) {
        let Some(instance) = self.runs[index as usize].last().cloned() else { return };
        let replica = Replica { service: "web".parse().unwrap(), index };
        let (platform, lease) = (&self.setup.gateway.platform, self.setup.lease.clone());
        let order =
            RestartRequest { lease: lease.clone(), replica: replica.clone(), instance: Some(instance) };
        platform.restart(order).await.unwrap();
        let view = platform.watch(&lease).await.unwrap();
        let newest = view.borrow().replica(&replica).unwrap().current_run().unwrap().instance.clone();
        self.runs[index as usize].push(newest);
        self.running[index as usize] = true;
    }

    fn newest(&self, replica: u32) -> Option<&Instance> {
        self.runs[replica as usize].last().filter(|_| self.running[replica as usize])
    }

    async fn act(&mut self, action: Action) {
        let platform = self.setup.gateway.platform.clone();
        match action {
            Action::Print { replica, lines, length } => self.print(replica, lines, length),
            Action::StartOrEnd { replica } => self.start_or_end(replica),
            Action::Restart { replica } => self.restart(replica).await,
            Action::Lose { replica, lines } => {
                if let Some(run) = self.newest(replica) {
                    platform.lose(run, lines);
                }
            }
            Action::Fail { replica, failing } => {
                if let Some(run) = self.runs[replica as usize].last() {
                    platform.fail(run, failing);
                }
            }
            Action::Open { close_on_lag, websocket } => self.open(close_on_lag, websocket).await,
            Action::Read { follower, responses } => self.read(follower, responses).await,
            Action::Reconnect { follower } => self.reconnect(follower).await,
            Action::Wait { millis } => tokio::time::sleep(Duration::from_millis(millis)).await,
        }
    }

    async fn open(&mut self, close_on_lag: bool, websocket: bool) {
        if self.followers.len() == FOLLOWERS_MAX {
            return;
        }
        self.followers.push(if websocket {
            let query = if close_on_lag { "follow=true&on_lag=close" } else { "follow=true" };
            let stream = Box::new(open_by_certificate(&self.setup, query).await);
            Follower::WebSocket { stream, query }
        } else {
            let on_lag = if close_on_lag { OnLag::Close } else { OnLag::Drop };
            let request = ServiceLogsRequest { follow: true, on_lag: on_lag.into(), ..self.setup.request() };
            let stream = self.setup.open(request.clone()).await.unwrap();
            Follower::Grpc { stream: Some(Box::new(stream)), request }
        });
    }

    async fn read(&mut self, follower: usize, responses: usize) {
        let Some(follower) = self.followers.get_mut(follower) else { return };
        for _ in 0..responses {
            match follower.next_if_ready().await {
                Some(true) => {}
                None => return,
                Some(false) => follower.resume(&self.setup).await,
            }
        }
    }

    async fn reconnect(&mut self, follower: usize) {
        if let Some(follower) = self.followers.get_mut(follower) {
            follower.resume(&self.setup).await;
        }
    }

    /// Whether a follower got every line, or a gap for it. Checks for other loss and for repeats if it seems so.
    fn is_complete(&self, received: &Received) -> bool {
        (0..REPLICAS).all(|replica| {
            let platform = &self.setup.gateway.platform;
            let runs: Vec<_> = self.runs[replica as usize].iter().map(|run| (run, 0)).collect();
            let produced: usize = runs.iter().map(|(run, _)| platform.produced(run).len()).sum();
            let missing = usize::try_from(received.missing("web", replica)).unwrap();
            // The first condition is cheap. It counts a line twice if its beginning is in a gap and its end
            // was received.
            received.lines("web", replica) + missing >= produced
                && received.checked(platform, "web", replica, &runs).0 == produced
        })
    }

    async fn finish(mut self) {
        let platform = self.setup.gateway.platform.clone();
        for runs in &self.runs {
            for run in runs {
                platform.fail(run, false);
            }
        }
        let followers = std::mem::take(&mut self.followers);
        // Concurrently: a follower may wait for the permit of another.
        join_all(followers.into_iter().map(|follower| self.drain(follower))).await;
    }

    /// Reads until the follower is complete.
    async fn drain(&self, mut follower: Follower) {
        while !self.is_complete(follower.received()) {
            if !follower.next().await {
                // Lets other followers proceed.
                tokio::time::sleep(RECONNECT_DELAY).await;
                follower.resume(&self.setup).await;
            }
        }
    }
}

impl Follower {
    fn received(&self) -> &Received {
        match self {
            Self::Grpc { stream, .. } => &stream.as_ref().expect("a follower always has a stream").received,
            Self::WebSocket { stream, .. } => &stream.received,
        }
    }

    /// Receives one response, or returns false at the end.
    async fn next(&mut self) -> bool {
        match self {
            Self::Grpc { stream, .. } => {
                stream.as_mut().expect("a follower always has a stream").next().await.is_ok()
            }
            Self::WebSocket { stream, .. } => stream.next().await,
        }
    }

    /// Receives one response, if one arrives without waiting; `Some(false)` at the end.
    async fn next_if_ready(&mut self) -> Option<bool> {
        match self {
            Self::Grpc { stream, .. } => {
                let next = stream.as_mut().expect("a follower always has a stream").next_if_ready().await;
                next.map_or(Some(false), |ready| ready.then_some(true))
            }
            Self::WebSocket { stream, .. } => stream.next_if_ready().await,
        }
    }

    async fn resume(&mut self, setup: &Setup) {
        match self {
            Self::Grpc { stream, request } => {
                if let Some(ended) = stream.take() {
                    *stream = Some(Box::new(setup.resume(*ended, request.clone()).await));
                }
            }
            Self::WebSocket { stream, query } => **stream = open_by_certificate(setup, query).await,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases()) })]

    #[test]
    fn followers_get_every_line_or_exact_gap(
        actions in prop::collection::vec(action(), 1..60),
        history_reads in prop_oneof![Just(1), Just(64)],
        history_wait in prop_oneof![Just(Duration::ZERO), Just(Duration::from_millis(20))],
    ) {
        run(actions, history_reads, history_wait);
    }
}

/// The ring holds less than the two pieces of such a line, encoded for gRPC and for websockets. So a follower
/// that lags continues within a line, which counts as lost.
#[test]
fn gap_ends_within_line_that_ring_cannot_hold() {
    let print = |lines, length| Action::Print { replica: 0, lines, length };
    let open = |websocket| Action::Open { close_on_lag: false, websocket };
    let actions = vec![
        open(false),
        print(1, 1),
        print(1, 1),
        Action::Fail { replica: 0, failing: true },
        open(true),
        print(1, 1),
        open(false),
        Action::StartOrEnd { replica: 0 },
        Action::StartOrEnd { replica: 0 },
        print(12, 32_717),
    ];
    run(actions, 1, Duration::from_millis(20));
}

/// Runs a scenario on one thread, with the clock paused.
fn run(actions: Vec<Action>, history_reads: usize, history_wait: Duration) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut scenario = Scenario::new(history_reads, history_wait);
        for action in actions {
            scenario.act(action).await;
        }
        scenario.finish().await;
    });
}

/// Returns how many scenarios to run: `PROPTEST_CASES`, or a few.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(40)
}
