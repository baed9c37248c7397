//! Crash test: the gateway is killed at random moments, while its services print and restart and their logs
//! are rotated. Each time, no process of a service may be left or run twice, the logs on disk must be whole,
//! and followers that reconnect must have every line that reached the disk, and a report of what did not.
//!
//! `LEASEMUX_TEST_KILLS` sets the number of kills per seed (`support::seeds`). The seed chooses the moments:
//!
//! ```sh
//! LEASEMUX_TEST_SEEDS=4 LEASEMUX_TEST_KILLS=50 cargo test --test it crash:: -- --nocapture
//! ```
#![allow(clippy::print_stdout, reason = "prints its figures")]

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use leasemux::client::connect::Connector;
use leasemux::client::follow::{ConnectionChange, Follower, Sink};
use leasemux::loss_checker::Start;
use leasemux::model::id::LeaseId;
use leasemux::model::proto::lease::{Cursor, OnLag, ServiceLogs, ServiceLogsRequest};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use rustix::process::Signal;
use tokio_util::sync::CancellationToken;

use crate::shutdown::connector;
use crate::support::counting::{CheckedFollower, counting_service, parse_line};
use crate::support::process::{Gateway, LOOK, Program, Workspace, own_port};
use crate::support::seeds::{number, seeds};

/// Environment variable with the number of kills per seed.
const KILLS: &str = "LEASEMUX_TEST_KILLS";

/// Kills per seed without [`KILLS`]: some seconds.
const KILLS_DEFAULT: u64 = 4;

/// The services, of one replica each.
const SERVICES: [&str; 3] = ["loud", "steady", "stubborn"];

/// Longest time from the start of a gateway until it is killed while it starts.
const STARTING_MAX: Duration = Duration::from_millis(400);

/// Longest time from the moment when a gateway is ready until it is killed.
const READY_MAX: Duration = Duration::from_millis(1_200);

/// Delay before a follower without back-off connects again.
const RECONNECT: Duration = Duration::from_millis(20);

/// Deadline for followers. On a starved machine, connections time out several times.
const PATIENCE: Duration = Duration::from_secs(300);

/// Lines of a run after which a follower counts as connected.
const SOME_LINES: u64 = 10;

/// Last line of each run in the logs, by replica and run.
type LastLines = BTreeMap<(String, u64), u64>;

struct Scenario {
    workspace: Workspace,
    lease: LeaseId,
    args: Vec<String>,
    random: SmallRng,
    followers: Vec<Watcher>,
    stop: CancellationToken,
    /// Last lines of all runs whose end was seen on disk.
    on_disk: LastLines,
    /// Kills while a gateway started, when it was ready, when followers had lines, and of these two during a
    /// restart.
    moments: [u32; 4],
}

/// A follower on its own thread.
struct Watcher {
    name: &'static str,
    has_back_off: bool,
    state: Arc<Mutex<State>>,
    thread: JoinHandle<()>,
}

#[derive(Debug)]
struct State {
    check: CheckedFollower,
    /// Streams that were opened. The library does not report its first one.
    streams: u64,
    /// The last error.
    error: String,
}

/// Feeds a follower of the client library.
struct StateSink(Arc<Mutex<State>>);

// === impl Scenario ===

impl Scenario {
    fn new(seed: u64) -> Self {
        let workspace = Workspace::new();
        let lease = workspace.tenant("alice");
        let loud = counting_service(50, "0.05", false);
        let steady = counting_service(5, "0.05", false);
        let stubborn = counting_service(5, "0.05", true);
        let [first, second, third] = SERVICES;
        let sdl =
            workspace.sdl("alice.yaml", &[(first, &loud, 1), (second, &steady, 1), (third, &stubborn, 1)]);
        let args = [
            format!("--lease={lease}={}", sdl.display()),
            format!("--listen=127.0.0.1:{}", own_port()),
            // Rotates several times per second, and removes no file of a run that is kept.
            "--rotate-max-bytes=16KiB".to_owned(),
            "--rotate-files=1000".to_owned(),
            "--kept-runs=4".to_owned(),
            "--stop-grace=500ms".to_owned(),
        ];
        let random = SmallRng::seed_from_u64(seed);
        let (followers, stop) = (Vec::new(), CancellationToken::new());
        Self {
            workspace,
            lease,
            args: args.into(),
            random,
            followers,
            stop,
            on_disk: LastLines::new(),
            moments: [0; 4],
        }
    }

    fn start_gateway(&self) -> Program {
        let args: Vec<&str> = self.args.iter().map(String::as_str).collect();
        self.workspace.start_serve(&[], &args)
    }

    fn follow(&mut self, gateway: &Gateway) {
        let connector = connector(&self.workspace, gateway.address);
        for (name, on_lag, has_back_off) in
            [("drop", OnLag::Drop, false), ("refill", OnLag::Refill, false), ("library", OnLag::Refill, true)]
        {
            let request = ServiceLogsRequest {
                lease_id: Some((&self.lease).into()),
                follow: true,
                on_lag: on_lag.into(),
                ..ServiceLogsRequest::default()
            };
            self.followers.push(Watcher::start(name, &connector, request, has_back_off, &self.stop));
        }
    }

    /// Lets a gateway run for a random time, and kills it.
    fn run_and_kill(&mut self) {
        let newest = self.newest_runs();
        let program = self.start_gateway();
        if self.random.random_ratio(1, 5) {
            self.moments[0] += 1;
            self.pause(STARTING_MAX);
            return program.kill();
        }
        let gateway = Gateway::ready(program);
        if self.random.random_ratio(1, 4) {
            self.moments[1] += 1;
        } else {
            self.until_lines_after(&gateway, &newest, |follower| !follower.has_back_off);
            self.moments[2] += 1;
        }
        // Ends with an error when the gateway is killed, or is killed itself.
        let restart = self.random.random_bool(0.3).then(|| self.start_restart(&gateway));
        self.moments[3] += u32::from(restart.is_some());
        self.pause(READY_MAX);
        gateway.program.kill();
        drop(restart);
    }

    fn pause(&mut self, longest: Duration) {
        std::thread::sleep(longest.mul_f64(self.random.random_range(0.0..1.0)));
    }

    fn start_restart(&mut self, gateway: &Gateway) -> Program {
        let mut args = self.workspace.call_args("restart", gateway.address, "alice", &self.lease);
        let service = SERVICES[self.random.random_range(0..SERVICES.len())];
        args.extend(["--service", service].map(str::to_owned));
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        self.workspace.start(&args)
    }

    /// Waits until all processes of services have ended, and checks what they have left.
    fn settle(&mut self) {
        let program = self.workspace.path("leasemux").display().to_string();
        self.workspace.until_processes(|found| found.values().all(|args| args.starts_with(&program)));
        self.on_disk.extend(read_logs(&self.workspace.path("data/pods")));
    }

    /// Returns the newest run of each replica that has printed.
    fn newest_runs(&self) -> BTreeMap<String, u64> {
        let mut newest = BTreeMap::new();
        for (replica, run) in self.workspace.printed().into_keys() {
            let newest = newest.entry(replica).or_insert(run);
            *newest = run.max(*newest);
        }
        newest
    }

    /// Waits until `followers` have lines of runs of all services that are newer than `before`.
    fn until_lines_after(
        &self,
        gateway: &Gateway,
        before: &BTreeMap<String, u64>,
        followers: impl Fn(&Watcher) -> bool,
    ) {
        let deadline = Instant::now() + PATIENCE;
        for Watcher { name, state, .. } in self.followers.iter().filter(|follower| followers(follower)) {
            for service in SERVICES {
                let before = before.get(&format!("{service}-0")).copied().unwrap_or_default();
                let position = || state.lock().unwrap().check.position(service, 0);
                while position() < (before + 1, SOME_LINES) {
                    let late = || {
                        format!(
                            "{name} is at {:?} of {service}, not after run {before}: {}\n{:?}\n{:#?}\n{}",
                            position(),
                            state.lock().unwrap().error,
                            self.newest_runs(),
                            self.workspace.processes(),
                            gateway.program.err.get()
                        )
                    };
                    assert!(Instant::now() < deadline, "{}", late());
                    std::thread::sleep(LOOK);
                }
            }
        }
    }

    /// Compares the followers with the logs and with what the services have printed.
    fn check(self, seed: u64, kills: u64) {
        let printed = self.workspace.printed();
        let lines: u64 = printed.values().sum();
        let [starting, ready, followed, restarting] = self.moments;
        println!(
            "seed {seed}: {kills} kills ({starting} while starting, {ready} when ready, {followed} while followed; of \
             these {restarting} during a restart), {} runs with {lines} lines, followers:",
            printed.len()
        );
        for Watcher { name, state, thread, .. } in self.followers {
            thread.join().unwrap();
            let state = Arc::into_inner(state).unwrap().into_inner().unwrap();
            let tally = state.check.tally();
            let mut compared = 0;
            for change in state.check.changes().iter().filter(|change| !change.is_rotated()) {
                if let Some(on_disk) = self.on_disk.get(&(change.replica.clone(), change.run)) {
                    assert_eq!(change.last, *on_disk, "{name}: {change:?}");
                    compared += 1;
                }
            }
            println!(
                "  {name}: {} streams, {} lines, {} reported lost in {} gaps, {compared} ends of runs as on disk",
                state.streams, tally.lines, tally.lost_lines, tally.gaps
            );
            assert_eq!(state.check.faults(&printed), [""; 0], "{name}");
        }
        self.workspace.assert_no_double();
    }
}

/// Reads and checks all logs of a data directory. Returns the last line of each run.
fn read_logs(pods: &Path) -> LastLines {
    let mut last_lines = LastLines::new();
    for pod in list(pods) {
        for service in list(&pod) {
            // The files of each run, oldest first: rotated ones have a time after the name of the active one.
            let mut runs: BTreeMap<u32, Vec<(bool, String)>> = BTreeMap::new();
            for file in list(&service) {
                let name = file.file_name().unwrap().to_str().unwrap();
                if let Some((run, rest)) = name.split_once(".log") {
                    runs.entry(run.parse().unwrap())
                        .or_default()
                        .push((rest.is_empty(), file.display().to_string()));
                }
            }
            for (index, files) in runs.into_values().enumerate() {
                let mut files = files;
                files.sort();
                // The removal of the oldest run may have been interrupted.
                let end = read_run(&files, index == 0);
                last_lines.extend(end);
            }
        }
    }
    last_lines
}

/// Reads the log of one run. Returns its replica, number and last line, if it has one.
fn read_run(files: &[(bool, String)], may_lack_first: bool) -> Option<((String, u64), u64)> {
    let (mut time, mut content) = (String::new(), String::new());
    let mut end: Option<((String, u64), u64)> = None;
    for (index, (_, path)) in files.iter().enumerate() {
        let text = fs::read_to_string(path).unwrap();
        for record in text.split_inclusive('\n') {
            let Some(record) = record.strip_suffix('\n') else {
                assert_eq!(index + 1, files.len(), "{path} ends with half a record: {record:?}");
                break;
            };
            let words: Vec<&str> = record.splitn(4, ' ').collect();
            let [at, stream, tags, rest] = words[..] else { panic!("{record:?} in {path}") };
            assert!(time.as_str() < at, "{record:?} in {path} is not after {time}");
            at.clone_into(&mut time);
            if stream == "stderr" || tags.contains("lost=") {
                continue;
            }
            content.push_str(rest);
            if tags == "F" {
                let line = std::mem::take(&mut content);
                let (number, replica, run) =
                    parse_line(line.as_bytes()).unwrap_or_else(|| panic!("{record:?} in {path}"));
                let key = (replica.to_owned(), run);
                match &end {
                    Some((before, last)) => {
                        assert_eq!((before, last + 1), (&key, number), "{record:?} in {path}");
                    }
                    None => assert!(number == 1 || may_lack_first, "{path} begins with {record:?}"),
                }
                end = Some((key, number));
            }
        }
    }
    end
}

fn list(dir: &Path) -> Vec<std::path::PathBuf> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect()
}

// === impl Watcher ===

impl Watcher {
    fn start(
        name: &'static str,
        connector: &Connector,
        request: ServiceLogsRequest,
        has_back_off: bool,
        stop: &CancellationToken,
    ) -> Self {
        let check = CheckedFollower::new(Start::First);
        let state =
            Arc::new(Mutex::new(State { check, streams: u64::from(has_back_off), error: String::new() }));
        let (connector, stop, fed) = (connector.clone(), stop.clone(), Arc::clone(&state));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(stop.run_until_cancelled(async {
                if has_back_off {
                    let ended = Follower::new(connector, request).run(&mut StateSink(Arc::clone(&fed))).await;
                    fed.lock().unwrap().error = format!("{ended:?}");
                } else {
                    reconnect_at_once(&connector, request, &fed).await;
                }
            }));
        });
        Self { name, has_back_off, state, thread }
    }
}

/// Opens one stream after the other, each after the cursors of all before.
async fn reconnect_at_once(connector: &Connector, mut request: ServiceLogsRequest, state: &Mutex<State>) {
    let mut cursors = BTreeMap::new();
    loop {
        request.resume = cursors.values().cloned().collect();
        let error = read(connector, request.clone(), &mut cursors, state).await;
        state.lock().unwrap().error = error;
        tokio::time::sleep(RECONNECT).await;
    }
}

/// Reads one stream to its end. Returns its error.
async fn read(
    connector: &Connector,
    request: ServiceLogsRequest,
    cursors: &mut BTreeMap<(String, u32), Cursor>,
    state: &Mutex<State>,
) -> String {
    let mut client = match connector.connect().await {
        Ok(client) => client,
        Err(error) => return error.to_string(),
    };
    let mut stream = match client.service_logs(request).await {
        Ok(response) => response.into_inner(),
        Err(status) => return status.to_string(),
    };
    state.lock().unwrap().streams += 1;
    loop {
        let response = match stream.message().await {
            Ok(Some(response)) => response,
            ended => return format!("{ended:?}"),
        };
        let mut state = state.lock().unwrap();
        for entry in response.services {
            state.check.feed(&entry);
            if let Some(cursor) = entry.cursor {
                cursors.insert((entry.name, entry.replica), cursor);
            }
        }
    }
}

impl Sink for StateSink {
    fn entry(&mut self, entry: &ServiceLogs) -> io::Result<()> {
        self.0.lock().unwrap().check.feed(entry);
        Ok(())
    }

    fn connection(&mut self, change: &ConnectionChange<'_>) -> io::Result<()> {
        self.0.lock().unwrap().streams += u64::from(matches!(change, ConnectionChange::Resumed));
        Ok(())
    }
}

/// Kills a gateway this many times.
fn scenario(seed: u64, kills: u64) {
    println!("seed: {seed}");
    let mut scenario = Scenario::new(seed);
    let gateway = Gateway::ready(scenario.start_gateway());
    scenario.follow(&gateway);
    // An error before the first response is final for the library.
    scenario.until_lines_after(&gateway, &BTreeMap::new(), |_| true);
    gateway.program.kill();
    scenario.moments[2] += 1;
    for _ in 1..kills {
        // Otherwise the next gateway starts while the services of the killed one end.
        if scenario.random.random_bool(0.5) {
            scenario.settle();
        }
        scenario.run_and_kill();
    }
    scenario.settle();
    let newest = scenario.newest_runs();
    let gateway = Gateway::ready(scenario.start_gateway());
    scenario.until_lines_after(&gateway, &newest, |_| true);
    let done = gateway.stop(Signal::TERM);
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    scenario.settle();
    scenario.stop.cancel();
    scenario.check(seed, kills);
}

#[test]
fn killed_gateway_loses_nothing_unreported() {
    let kills = number(KILLS).unwrap_or(KILLS_DEFAULT);
    std::thread::scope(|scope| {
        let scenarios: Vec<_> =
            seeds(1).map(|seed| (seed, scope.spawn(move || scenario(seed, kills)))).collect();
        for (seed, scenario) in scenarios {
            assert!(scenario.join().is_ok(), "seed {seed} failed");
        }
    });
}
