//! The followers of the soak test. Each runs on its own thread, so that a pause stops its reading from the
//! socket.

use std::collections::BTreeMap;
use std::io::{self, BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use leasemux::client::connect::Connector;
use leasemux::client::follow::{ConnectionChange, Follower as Client, Sink};
use leasemux::loss_checker::Start;
use leasemux::model::proto::lease::{OnLag, ServiceLogs, ServiceLogsRequest};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::Message;
use tokio_util::sync::CancellationToken;

use crate::support::counting::CheckedFollower;
use crate::support::entries::entry;
use crate::support::loss_check::Frames;
use crate::support::process::{LOOK, Workspace, read_object};
use crate::support::rest::try_connect_tls;

/// Time for which a slow follower does not read: more lines than all buffers on the way hold.
const SLOW_PAUSE: Duration = Duration::from_secs(6);

/// Bytes that a slow follower reads between two pauses: about as fast as the services print.
const SLOW_BYTES: usize = 768 * 1024;

/// Time for which a stalled follower does not read: the gateway gives it up ([`STALL_TIMEOUT`](super)), and
/// the lines that it misses are no longer on disk.
const STALLED_PAUSE: Duration = Duration::from_secs(25);

/// Bytes that a stalled follower reads between two pauses.
const STALLED_BYTES: usize = 2 * 1024 * 1024;

/// Delay before a follower without a position connects again.
const RECONNECT: Duration = Duration::from_secs(1);

/// Followers of one kind.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) client: Via,
    pub(super) on_lag: OnLag,
    pub(super) pace: Pace,
    pub(super) count: usize,
}

/// How a follower connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Via {
    /// The client library; it resumes by its cursors.
    Grpc,
    /// The same, through connections that are reset every few seconds.
    Unstable,
    /// Websockets, which cannot resume: each connection is checked on its own.
    Websocket,
    /// Websockets with entries, which resume by their cursors.
    #[cfg_attr(not(feature = "nats"), allow(dead_code, reason = "only the soak of a fleet has them"))]
    Entries,
    /// `leasemux logs`.
    Program,
}

/// How a follower reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    Fast,
    /// With pauses.
    Slow,
    /// With pauses after which the gateway has given it up.
    Stalled,
    /// Not at all.
    Never,
}

pub(super) static GROUPS: &[Group] = &[
    Group { client: Via::Grpc, on_lag: OnLag::Drop, pace: Pace::Fast, count: 6 },
    Group { client: Via::Grpc, on_lag: OnLag::Refill, pace: Pace::Fast, count: 2 },
    Group { client: Via::Grpc, on_lag: OnLag::Close, pace: Pace::Fast, count: 2 },
    Group { client: Via::Grpc, on_lag: OnLag::Drop, pace: Pace::Slow, count: 2 },
    Group { client: Via::Grpc, on_lag: OnLag::Refill, pace: Pace::Slow, count: 3 },
    Group { client: Via::Grpc, on_lag: OnLag::Close, pace: Pace::Slow, count: 2 },
    Group { client: Via::Grpc, on_lag: OnLag::Drop, pace: Pace::Stalled, count: 1 },
    Group { client: Via::Grpc, on_lag: OnLag::Refill, pace: Pace::Stalled, count: 1 },
    Group { client: Via::Grpc, on_lag: OnLag::Drop, pace: Pace::Never, count: 2 },
    Group { client: Via::Unstable, on_lag: OnLag::Drop, pace: Pace::Fast, count: 2 },
    Group { client: Via::Unstable, on_lag: OnLag::Refill, pace: Pace::Slow, count: 2 },
    Group { client: Via::Websocket, on_lag: OnLag::Drop, pace: Pace::Fast, count: 2 },
    Group { client: Via::Websocket, on_lag: OnLag::Drop, pace: Pace::Slow, count: 1 },
    Group { client: Via::Websocket, on_lag: OnLag::Refill, pace: Pace::Slow, count: 2 },
    Group { client: Via::Websocket, on_lag: OnLag::Close, pace: Pace::Slow, count: 2 },
    Group { client: Via::Websocket, on_lag: OnLag::Drop, pace: Pace::Stalled, count: 1 },
    Group { client: Via::Program, on_lag: OnLag::Refill, pace: Pace::Fast, count: 1 },
    Group { client: Via::Program, on_lag: OnLag::Refill, pace: Pace::Stalled, count: 1 },
];

/// What followers need to connect.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) workspace: Arc<Workspace>,
    pub(super) request: ServiceLogsRequest,
    pub(super) stable: Connector,
    pub(super) unstable: Connector,
    /// Address of the REST port, and the path of the lease's log.
    pub(super) rest: (SocketAddr, String),
    /// Arguments of `leasemux logs`.
    pub(super) logs_args: Vec<String>,
    pub(super) stop: CancellationToken,
}

/// A running follower.
pub(super) struct Follower {
    pub(super) group: &'static Group,
    pub(super) state: Arc<Mutex<State>>,
    thread: JoinHandle<()>,
}

/// What a follower has received.
#[derive(Debug)]
pub(super) struct State {
    pub(super) check: CheckedFollower,
    /// Connections after the first one.
    pub(super) reconnects: u64,
    /// Streams that the gateway closed because it lagged.
    pub(super) closed: u64,
    /// When it received the last entry, and the longest time between two entries.
    pub(super) entry_at: Instant,
    pub(super) longest_silence: Duration,
    /// Why it ended before it was stopped.
    pub(super) ended: Option<String>,
}

/// Where a follower's entries go.
struct CheckedSink {
    state: Arc<Mutex<State>>,
    pace: Pace,
    /// Bytes since the last pause.
    bytes: usize,
    stop: CancellationToken,
}

// === impl Group ===

impl Group {
    pub(super) fn name(&self) -> String {
        let Self { client, on_lag, pace, .. } = self;
        let client = match client {
            Via::Grpc => "gRPC",
            Via::Unstable => "gRPC, unstable",
            Via::Websocket => "websocket",
            Via::Entries => "websocket, entries",
            Via::Program => "leasemux logs",
        };
        let pace = match pace {
            Pace::Fast => "fast",
            Pace::Slow => "slow",
            Pace::Stalled => "stalled",
            Pace::Never => "never reads",
        };
        format!("{client}, {pace}, {}", on_lag.as_str_name())
    }

    /// Starts the followers of the group.
    pub(super) fn start(&'static self, target: &Target) -> impl Iterator<Item = Follower> {
        (0..self.count).map(move |_| {
            let start = if self.client == Via::Websocket { Start::Anywhere } else { Start::First };
            let check = CheckedFollower::new(start);
            let state = Arc::new(Mutex::new(State::new(check)));
            let stop = target.stop.clone();
            let sink = CheckedSink { state: Arc::clone(&state), pace: self.pace, bytes: 0, stop };
            let target = target.clone();
            let thread = std::thread::spawn(move || self.follow(&target, sink));
            Follower { group: self, state, thread }
        })
    }

    fn follow(&self, target: &Target, mut sink: CheckedSink) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let request = ServiceLogsRequest { on_lag: self.on_lag.into(), ..target.request.clone() };
        runtime.block_on(async {
            match (self.client, self.pace) {
                (Via::Grpc, Pace::Never) => never_read(&target.stable, request, &mut sink).await,
                (Via::Grpc, _) => read(target.stable.clone(), request, &mut sink).await,
                (Via::Unstable, _) => read(target.unstable.clone(), request, &mut sink).await,
                (Via::Websocket, _) => Box::pin(read_websockets(target, self.on_lag, &mut sink)).await,
                (Via::Entries, _) => read_entries(target, self.on_lag, &mut sink).await,
                (Via::Program, _) => read_program(target, &mut sink),
            }
        });
    }
}

/// Runs one follower of the client library.
async fn read(connector: Connector, request: ServiceLogsRequest, sink: &mut CheckedSink) {
    let stop = sink.stop.clone();
    let ended = stop.run_until_cancelled(Client::new(connector, request).run(sink)).await;
    sink.state().ended = ended.map(|ended| format!("{ended:?}"));
}

/// Opens streams and reads none of them.
async fn never_read(connector: &Connector, request: ServiceLogsRequest, sink: &mut CheckedSink) {
    while !sink.stop.is_cancelled() {
        if let Ok(mut client) = connector.connect().await
            && let Ok(_stream) = client.service_logs(request.clone()).await
        {
            sink.stop.run_until_cancelled(tokio::time::sleep(STALLED_PAUSE)).await;
        }
        sink.state().reconnects += 1;
        sink.stop.run_until_cancelled(tokio::time::sleep(RECONNECT)).await;
    }
}

/// Opens one websocket with entries after the other, each after the cursors of all before.
async fn read_entries(target: &Target, on_lag: OnLag, sink: &mut CheckedSink) {
    let stop = sink.stop.clone();
    let mut cursors = BTreeMap::new();
    stop.run_until_cancelled(async {
        loop {
            if Box::pin(read_entries_once(target, on_lag, &mut cursors, sink)).await.is_some() {
                sink.state().reconnects += 1;
            }
            tokio::time::sleep(RECONNECT).await;
        }
    })
    .await;
}

/// Reads a websocket with entries until it ends. Returns `None` if it cannot be opened.
async fn read_entries_once(
    target: &Target,
    on_lag: OnLag,
    cursors: &mut BTreeMap<(String, u64), String>,
    sink: &mut CheckedSink,
) -> Option<()> {
    let (address, path) = &target.rest;
    let mut path =
        format!("{path}?follow=true&format=entries&on_lag={}", on_lag.as_str_name().to_lowercase());
    for cursor in cursors.values() {
        path.push_str("&resume=");
        path.push_str(cursor);
    }
    let (pem, identity) = (target.workspace.path("data/server.pem"), target.workspace.path("alice"));
    let io = try_connect_tls(*address, &pem, Some(&identity)).await.ok()?;
    let request = format!("ws://provider.test{path}").into_client_request().unwrap();
    let (mut socket, _) = client_async(request, io).await.ok()?;
    while let Some(Ok(message)) = socket.next().await {
        let Message::Text(text) = message else { continue };
        let object: Value = serde_json::from_str(text.as_str()).expect("an object");
        // An error concerns the whole stream, which then ends.
        let (Some(service), Some(replica)) = (object["service"].as_str(), object["replica"].as_u64()) else {
            continue;
        };
        sink.take(&entry(&object, false));
        if let Some(cursor) = object["cursor"].as_str() {
            cursors.insert((service.to_owned(), replica), cursor.to_owned());
        }
    }
    Some(())
}

/// Opens one websocket after the other.
async fn read_websockets(target: &Target, on_lag: OnLag, sink: &mut CheckedSink) {
    let stop = sink.stop.clone();
    let (address, path) = &target.rest;
    // Without a position, only the last lines are of interest.
    let path = format!("{path}?follow=true&tail=100&on_lag={}", on_lag.as_str_name().to_lowercase());
    let (pem, identity) = (target.workspace.path("data/server.pem"), target.workspace.path("alice"));
    loop {
        let read = Box::pin(read_websocket(*address, &path, &pem, &identity, sink));
        if stop.run_until_cancelled(read).await.is_none() {
            return;
        }
        {
            let mut state = sink.state();
            state.check.reconnect_anew();
            state.reconnects += 1;
        }
        stop.run_until_cancelled(tokio::time::sleep(RECONNECT)).await;
    }
}

/// Reads a websocket until it ends. Returns `None` if it cannot be opened.
async fn read_websocket(
    address: SocketAddr,
    path: &str,
    pem: &Path,
    identity: &Path,
    sink: &mut CheckedSink,
) -> Option<()> {
    let io = try_connect_tls(address, pem, Some(identity)).await.ok()?;
    let request = format!("ws://provider.test{path}").into_client_request().unwrap();
    let (mut socket, _) = client_async(request, io).await.ok()?;
    let mut frames = Frames::default();
    while let Some(Ok(message)) = socket.next().await {
        match message {
            Message::Text(text) => {
                if let (_, Some(entry)) = frames.read(text.as_str()) {
                    sink.take(&entry);
                }
            }
            Message::Close(Some(frame)) => {
                sink.state().closed += u64::from(frame.reason.as_str() == "follower lagged");
            }
            _ => {}
        }
    }
    Some(())
}

/// Runs `leasemux logs` and reads its output. If it is to stall, it is stopped by signals.
fn read_program(target: &Target, sink: &mut CheckedSink) {
    let args: Vec<&str> = target.logs_args.iter().map(String::as_str).collect();
    let mut command: Command = target.workspace.command(&args);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let out = BufReader::new(child.stdout.take().unwrap());
    let pid = Pid::from_child(&child);
    let (pace, stop) = (sink.pace, sink.stop.clone());
    // The signals are the pauses.
    sink.pace = Pace::Fast;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            while !stop.is_cancelled() {
                pause(&stop, STALLED_PAUSE);
                if pace == Pace::Stalled {
                    let _ = kill_process(pid, Signal::STOP);
                    pause(&stop, STALLED_PAUSE);
                    let _ = kill_process(pid, Signal::CONT);
                }
            }
            let _ = kill_process(pid, Signal::INT);
        });
        for line in out.split(b'\n') {
            // The last line may be incomplete when the program is ended.
            if let Ok(line) = String::from_utf8(line.unwrap())
                && line.ends_with('}')
                && let (_, Some(entry)) = read_object(&line)
            {
                sink.take(&entry);
            }
        }
        if !sink.stop.is_cancelled() {
            sink.state().ended = Some("its output ended".to_owned());
        }
    });
    child.wait().unwrap();
}

/// Waits, unless it is stopped.
pub(super) fn pause(stop: &CancellationToken, time: Duration) {
    let end = Instant::now() + time;
    while !stop.is_cancelled() && Instant::now() < end {
        std::thread::sleep(LOOK);
    }
}

// === impl Follower ===

impl Follower {
    /// Waits until the follower has ended, which must have been stopped.
    pub(super) fn join(self) -> (&'static Group, State) {
        let panicked = self.thread.join().is_err();
        let state = Arc::into_inner(self.state).expect("its thread has ended");
        let mut state = state.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        if panicked {
            state.ended = Some("it panicked".to_owned());
        }
        (self.group, state)
    }

    pub(super) fn has_ended(&self) -> bool {
        self.thread.is_finished() || self.state.lock().unwrap().ended.is_some()
    }
}

// === impl State ===

impl State {
    fn new(check: CheckedFollower) -> Self {
        let (entry_at, longest_silence) = (Instant::now(), Duration::ZERO);
        Self { check, reconnects: 0, closed: 0, entry_at, longest_silence, ended: None }
    }

    fn take(&mut self, entry: &ServiceLogs) {
        let now = Instant::now();
        self.longest_silence = self.longest_silence.max(now - self.entry_at);
        self.entry_at = now;
        self.check.feed(entry);
    }
}

// === impl CheckedSink ===

impl CheckedSink {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn take(&mut self, entry: &ServiceLogs) {
        self.state().take(entry);
        self.bytes += entry.logs.len();
        let (bytes, time) = match self.pace {
            Pace::Slow => (SLOW_BYTES, SLOW_PAUSE),
            Pace::Stalled => (STALLED_BYTES, STALLED_PAUSE),
            Pace::Fast | Pace::Never => return,
        };
        if self.bytes >= bytes {
            self.bytes = 0;
            pause(&self.stop, time);
        }
    }
}

impl Sink for CheckedSink {
    fn entry(&mut self, entry: &ServiceLogs) -> io::Result<()> {
        self.take(entry);
        Ok(())
    }

    fn connection(&mut self, change: &ConnectionChange<'_>) -> io::Result<()> {
        let mut state = self.state();
        match change {
            ConnectionChange::Lost { error, .. } => {
                state.closed += u64::from(error.to_string().contains("could not keep up"));
            }
            ConnectionChange::Resumed => state.reconnects += 1,
            ConnectionChange::WithoutRefill => state.ended = Some("no refills".to_owned()),
        }
        Ok(())
    }
}
