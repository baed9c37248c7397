//! Random scenarios: replicas print, crash and are restarted; sources fail and lose lines; followers connect,
//! by gRPC in either proto or by websocket, read a little, disconnect and resume, or are rejected by a quota.
//! In any order, each follower must get every line or an exact gap.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use leasemux::model::id::{Instance, Replica};
use leasemux::model::limits::{Limits, QuotaLimits};
use leasemux::model::proto::lease::{OnLag, ServiceLogsRequest};
use leasemux::model::published::ServiceLogsResponse;
use leasemux::platform::{Platform as _, RestartRequest};
use proptest::prelude::*;
use tokio::io::DuplexStream;
use tokio::time::Instant;
use tonic::Streaming;

use crate::published::{Client, of};
use crate::rest::open_by_certificate;
use crate::support::gateway::{PATIENCE, Setup, Stream};
use crate::support::loss_check::{Received, Seen};
use crate::support::rest::WsFollower;

/// Replicas of the service.
const REPLICAS: u32 = 2;

/// Most followers at once.
const FOLLOWERS_MAX: usize = 4;

/// Delay before a rejected follower connects again.
const RECONNECT_DELAY: Duration = Duration::from_millis(20);

/// Time in which a follower has joined the logs that can be read.
const JOIN_TIME: Duration = Duration::from_millis(50);

/// Longest time until a follower has got everything.
const DRAIN_MAX: Duration = Duration::from_secs(600);

/// How a follower connects.
#[derive(Clone, Copy, Debug)]
enum Protocol {
    Draft,
    WebSocket,
    Published,
}

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
    /// Opens a follower. One of the published proto has fewer notices instead of `OnLag::Close`.
    /// One of the draft's proto gets heartbeats with `heartbeats`.
    Open {
        on_lag: OnLag,
        protocol: Protocol,
        heartbeats: bool,
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
    let on_lag = prop_oneof![1 => Just(OnLag::Drop), 1 => Just(OnLag::Close), 2 => Just(OnLag::Refill)];
    let protocol = prop_oneof![Just(Protocol::Draft), Just(Protocol::WebSocket), Just(Protocol::Published)];
    let length = prop_oneof![8 => 1..300_usize, 1 => 300..40_000_usize];
    prop_oneof![
        8 => (replica.clone(), 1..200_usize, length)
            .prop_map(|(replica, lines, length)| Action::Print { replica, lines: lines.min(400_000 / length), length }),
        2 => replica.clone().prop_map(|replica| Action::StartOrEnd { replica }),
        1 => replica.clone().prop_map(|replica| Action::Restart { replica }),
        1 => (replica.clone(), 1..9_u64).prop_map(|(replica, lines)| Action::Lose { replica, lines }),
        1 => (replica, any::<bool>()).prop_map(|(replica, failing)| Action::Fail { replica, failing }),
        3 => (on_lag, protocol, any::<bool>()).prop_map(|(on_lag, protocol, heartbeats)| Action::Open { on_lag, protocol, heartbeats }),
        6 => (0..FOLLOWERS_MAX, 1..30_usize).prop_map(|(follower, responses)| Action::Read { follower, responses }),
        2 => (0..FOLLOWERS_MAX).prop_map(|follower| Action::Reconnect { follower }),
        3 => (0..40_u64).prop_map(|millis| Action::Wait { millis }),
        1 => (900..2_500_u64).prop_map(|millis| Action::Wait { millis }),
    ]
}

/// Before an action, logs that cannot be read for this long become readable. The longest wait is 2.5 s, and a
/// follower gives up the log of an older run after 5 s, with a gap of unknown size. That cannot be checked.
const FAILING_MAX: Duration = Duration::from_secs(2);

struct Scenario {
    setup: Setup,
    runs: Vec<Vec<Instance>>,
    running: Vec<bool>,
    /// Whether the log could not be read at some time: then it takes a while until it is read again.
    has_failed: Vec<bool>,
    /// Since when some log cannot be read.
    failing_since: Option<Instant>,
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
    Published(PublishedFollower),
}

/// A follower that has no cursors and is sent new lines only.
struct PublishedFollower {
    stream: Box<Streaming<ServiceLogsResponse>>,
    received: Received,
    notices: &'static str,
    /// For each replica, the number of lines when it had surely joined. `None`: not known.
    joined: Vec<Option<usize>>,
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
            has_failed: vec![false; REPLICAS as usize],
            failing_since: None,
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
        if self.failing_since.is_some_and(|since| since.elapsed() >= FAILING_MAX) {
            self.make_readable();
        }
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
                    self.has_failed[replica as usize] |= failing;
                    if failing {
                        self.failing_since.get_or_insert_with(Instant::now);
                    }
                }
            }
            Action::Open { on_lag, protocol, heartbeats } => self.open(on_lag, protocol, heartbeats).await,
            Action::Read { follower, responses } => self.read(follower, responses).await,
            Action::Reconnect { follower } => self.reconnect(follower).await,
            Action::Wait { millis } => tokio::time::sleep(Duration::from_millis(millis)).await,
        }
    }

    async fn open(&mut self, on_lag: OnLag, protocol: Protocol, heartbeats: bool) {
        if self.followers.len() == FOLLOWERS_MAX {
            return;
        }
        self.followers.push(match protocol {
            Protocol::WebSocket => {
                let query = match on_lag {
                    OnLag::Drop => "follow=true",
                    OnLag::Refill => "follow=true&on_lag=refill",
                    OnLag::Close => "follow=true&on_lag=close",
                };
                let stream = Box::new(open_by_certificate(&self.setup, query).await);
                Follower::WebSocket { stream, query }
            }
            Protocol::Draft => {
                let heartbeat = heartbeats.then_some(prost_types::Duration { seconds: 1, nanos: 0 });
                let request = ServiceLogsRequest {
                    follow: true,
                    on_lag: on_lag.into(),
                    heartbeat,
                    ..self.setup.request()
                };
                let stream = self.setup.open(request.clone()).await.unwrap();
                Follower::Grpc { stream: Some(Box::new(stream)), request }
            }
            Protocol::Published => {
                let notices = if on_lag == OnLag::Close { "loss" } else { "all" };
                Follower::Published(self.open_published(notices).await)
            }
        });
    }

    async fn open_published(&self, notices: &'static str) -> PublishedFollower {
        let mut client = Client::new(&self.setup).await.with("leasemux-notices", notices);
        let stream = client.stream("StreamServiceLogs", of(&self.setup, &[])).await.unwrap();
        tokio::time::sleep(JOIN_TIME).await;
        let joined = (0..REPLICAS)
            .map(|replica| (!self.has_failed[replica as usize]).then(|| self.produced(replica).len()));
        let joined = joined.collect();
        PublishedFollower { stream: Box::new(stream), received: Received::default(), notices, joined }
    }

    /// Returns the lines of all runs of a replica; `None` for a lost one.
    fn produced(&self, replica: u32) -> Vec<Option<Bytes>> {
        let runs = self.runs[replica as usize].iter();
        runs.flat_map(|run| self.setup.gateway.platform.produced(run)).collect()
    }

    async fn read(&mut self, index: usize, responses: usize) {
        for _ in 0..responses {
            let Some(follower) = self.followers.get_mut(index) else { return };
            match follower.next_if_ready().await {
                Some(true) => {}
                None => return,
                Some(false) => self.reconnect(index).await,
            }
        }
    }

    async fn reconnect(&mut self, index: usize) {
        if index >= self.followers.len() {
            return;
        }
        let mut follower = self.followers.swap_remove(index);
        self.resume(&mut follower).await;
        self.followers.push(follower);
        let last = self.followers.len() - 1;
        self.followers.swap(index, last);
    }

    async fn resume(&self, follower: &mut Follower) {
        match follower {
            Follower::Grpc { stream, request } => {
                if let Some(ended) = stream.take() {
                    *stream = Some(Box::new(self.setup.resume(*ended, request.clone()).await));
                }
            }
            Follower::WebSocket { stream, query } => **stream = open_by_certificate(&self.setup, query).await,
            Follower::Published(PublishedFollower { notices, .. }) => {
                let notices = *notices;
                for replica in 0..REPLICAS {
                    if let Some(start) = self.start(follower, replica) {
                        self.check(follower, replica, start);
                    }
                }
                *follower = Follower::Published(self.open_published(notices).await);
            }
        }
    }

    /// Returns the first line that a follower must get, if that is known.
    fn start(&self, follower: &Follower, replica: u32) -> Option<usize> {
        let Follower::Published(PublishedFollower { received, joined, .. }) = follower else {
            return Some(0);
        };
        let joined = joined[replica as usize];
        let produced = self.produced(replica);
        let place = |text: &[u8]| produced.iter().position(|line| line.as_deref() == Some(text));
        let (mut missing, mut line) = (0, Vec::new());
        for seen in received.of("web", replica) {
            match seen {
                Seen::Event(..) => {}
                Seen::Gap(lines, ..) => {
                    missing += usize::try_from(*lines).unwrap();
                    // The gap counts a line of which only the beginning was received.
                    line.clear();
                }
                Seen::Logs(_, bytes) => {
                    for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
                        line.extend_from_slice(piece);
                        if !line.ends_with(b"\n") {
                            continue;
                        }
                        if let Some(first) = place(&line) {
                            let start =
                                first.checked_sub(missing).expect("a gap of lines that were produced");
                            assert!(
                                joined.is_none_or(|joined| start <= joined),
                                "{start}, but joined at {joined:?}"
                            );
                            return Some(start);
                        }
                        assert!(
                            missing > 0,
                            "only the rest of a line that a gap has counted is not a whole line"
                        );
                        line.clear();
                    }
                }
            }
        }
        joined
    }

    /// Whether a follower got every line, or a gap for it. If it seems so, checks for other loss and for
    /// repeats.
    fn is_complete(&self, follower: &Follower) -> bool {
        (0..REPLICAS).all(|replica| {
            let Some(start) = self.start(follower, replica) else { return true };
            let received = follower.received();
            let missing = usize::try_from(received.missing("web", replica)).unwrap();
            let produced = self.produced(replica).len();
            // The first condition is cheap. It counts a line twice if its beginning is in a gap and its end
            // was received.
            start + received.lines("web", replica) + missing >= produced
                && start + self.check(follower, replica, start) == produced
        })
    }

    /// Checks what a follower got from line `start` on for loss and repeats. Returns the number of
    /// lines that it got, or a gap for them.
    fn check(&self, follower: &Follower, replica: u32, start: usize) -> usize {
        let mut skipped = start;
        let runs = self.runs[replica as usize].iter().map(|run| {
            let of_run = skipped.min(self.setup.gateway.platform.produced(run).len());
            skipped -= of_run;
            (run, of_run)
        });
        let runs: Vec<_> = runs.collect();
        follower.received().checked(&self.setup.gateway.platform, "web", replica, &runs).0
    }

    fn make_readable(&mut self) {
        for run in self.runs.iter().flatten() {
            self.setup.gateway.platform.fail(run, false);
        }
        self.failing_since = None;
    }

    async fn finish(mut self) {
        self.make_readable();
        let followers = std::mem::take(&mut self.followers);
        // Concurrently: a follower may wait for the permit of another.
        join_all(followers.into_iter().map(|follower| self.drain(follower))).await;
    }

    /// Reads until the follower is complete.
    async fn drain(&self, mut follower: Follower) {
        let began = Instant::now();
        while !self.is_complete(&follower) {
            // Heartbeats would keep it waiting for ever.
            assert!(began.elapsed() < DRAIN_MAX, "incomplete: {:?}", follower.received());
            if !follower.next().await {
                // Lets other followers proceed.
                tokio::time::sleep(RECONNECT_DELAY).await;
                self.resume(&mut follower).await;
            }
        }
        if follower.is_refilled() {
            for replica in 0..REPLICAS {
                // The logs still have all lines.
                assert_eq!(follower.received().lag_gaps("web", replica), 0, "{:?}", follower.received());
            }
        }
    }
}

impl Follower {
    fn is_refilled(&self) -> bool {
        match self {
            Self::Grpc { request, .. } => request.on_lag() == OnLag::Refill,
            Self::WebSocket { query, .. } => query.ends_with("refill"),
            Self::Published(_) => false,
        }
    }

    fn received(&self) -> &Received {
        match self {
            Self::Grpc { stream, .. } => &stream.as_ref().expect("a follower always has a stream").received,
            Self::WebSocket { stream, .. } => &stream.received,
            Self::Published(published) => &published.received,
        }
    }

    /// Receives one response, or returns false at the end.
    async fn next(&mut self) -> bool {
        match self {
            Self::Grpc { stream, .. } => {
                stream.as_mut().expect("a follower always has a stream").next().await.is_ok()
            }
            Self::WebSocket { stream, .. } => stream.next().await,
            Self::Published(published) => published.next(PATIENCE).await.expect("a response or the end"),
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
            Self::Published(published) => published.next(Duration::from_millis(1)).await,
        }
    }
}

impl PublishedFollower {
    /// Receives one response within this time; `Some(false)` at the end.
    async fn next(&mut self, time: Duration) -> Option<bool> {
        let response = tokio::time::timeout(time, self.stream.message()).await.ok()?;
        let response =
            response.unwrap_or_else(|status| panic!("it never lags out and is never rejected: {status:?}"));
        let is_open = response.is_some();
        response
            .into_iter()
            .flat_map(|response| response.services)
            .for_each(|entry| self.received.take_published(entry));
        Some(is_open)
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
    let open = |protocol| Action::Open { on_lag: OnLag::Drop, protocol, heartbeats: false };
    let actions = vec![
        open(Protocol::Draft),
        print(1, 1),
        print(1, 1),
        Action::Fail { replica: 0, failing: true },
        open(Protocol::WebSocket),
        print(1, 1),
        open(Protocol::Draft),
        Action::StartOrEnd { replica: 0 },
        Action::StartOrEnd { replica: 0 },
        print(12, 32_717),
    ];
    run(actions, 1, Duration::from_millis(20));
}

/// The log of the first run fails for longer than a follower would wait for it after the next one has
/// started.
#[test]
fn log_that_fails_for_long_becomes_readable() {
    let wait = |millis| Action::Wait { millis };
    let actions = vec![
        Action::Fail { replica: 0, failing: true },
        Action::Open { on_lag: OnLag::Drop, protocol: Protocol::Draft, heartbeats: false },
        wait(2_499),
        wait(2_499),
        Action::StartOrEnd { replica: 0 },
        wait(1_077),
        Action::StartOrEnd { replica: 0 },
        wait(950),
    ];
    run(actions, 1, Duration::ZERO);
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
