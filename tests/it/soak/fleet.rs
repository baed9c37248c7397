//! Soak test of a fleet: five gateways on one NATS server, with followers at all of them, while publishers,
//! members and the server are killed, halted and shut down at random. Every line must be delivered once or
//! reported lost, and at the end each replica must have one log tail again.
//!
//! ```sh
//! .ci/soak --fleet 1800
//! ```
//!
//! The first gateway runs the services, and the others read them (`--attach`). Killing the first one ends the
//! services, so it is mostly halted: then the services wait for it. All other gateways lose nothing but their
//! memory.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use leasemux::model::id::LeaseId;
use leasemux::model::proto::lease::{OnLag, ServiceLogsRequest};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use rustix::process::Signal;
use serde_json::json;
use tokio::task::{JoinSet, block_in_place};
use tokio_util::sync::CancellationToken;

use super::followers::{Follower, Group, Pace, State, Target, Via};
use super::relay::Relay;
use super::tails::{TailCount, TailRecorder};
use super::{QUIET, REPORT_EVERY, STALL_TIMEOUT, Totals, restart_services, seconds, until_interrupted};
use crate::nats::server::NatsServer;
use crate::shutdown::connector;
use crate::support::counting::counting_service;
use crate::support::process::{Done, Gateway, LOOK, PATIENCE, Program, Workspace, get, own_port};

/// Environment variable with the file for the number of tails over time.
const JSON: &str = "LEASEMUX_TEST_SOAK_JSON";

const GATEWAYS: usize = 5;

/// The gateway that runs the services.
const LOCAL: usize = 0;

const REPLICAS: [&str; 3] = ["web/0", "web/1", "loud/0"];

/// Range of milliseconds between two faults: a takeover takes up to two seconds, and some faults overlap.
const FAULT_EVERY_MILLIS: std::ops::Range<u64> = 2_000..12_000;

/// Range of milliseconds for which something is down or halted: shorter and longer than what a fleet
/// tolerates before it acts (1 to 2 s).
const OUTAGE_MILLIS: std::ops::Range<u64> = 500..6_000;

/// Interval of looks at what is due.
const TICK: Duration = Duration::from_millis(50);

/// Interval of resets of roaming followers: long enough to join, and short enough to meet all gateways often.
const ROAM_EVERY: Duration = Duration::from_secs(7);

/// Interval of restarts of services.
const RESTART_EVERY: Duration = Duration::from_secs(45);

/// The first groups follow each gateway. The others roam: each of their connections goes to the next gateway,
/// where they resume.
static GROUPS: [Group; 9] = [
    Group { client: Via::Grpc, on_lag: OnLag::Drop, pace: Pace::Fast, count: 1 },
    Group { client: Via::Grpc, on_lag: OnLag::Refill, pace: Pace::Fast, count: 1 },
    Group { client: Via::Grpc, on_lag: OnLag::Drop, pace: Pace::Slow, count: 1 },
    Group { client: Via::Grpc, on_lag: OnLag::Refill, pace: Pace::Slow, count: 1 },
    Group { client: Via::Entries, on_lag: OnLag::Drop, pace: Pace::Fast, count: 1 },
    Group { client: Via::Entries, on_lag: OnLag::Refill, pace: Pace::Slow, count: 1 },
    Group { client: Via::Unstable, on_lag: OnLag::Drop, pace: Pace::Fast, count: 1 },
    Group { client: Via::Unstable, on_lag: OnLag::Refill, pace: Pace::Fast, count: 2 },
    Group { client: Via::Entries, on_lag: OnLag::Refill, pace: Pace::Fast, count: 2 },
];

/// Number of the groups that follow each gateway.
const STAYING: usize = 6;

/// Counters of gateways, as sums over all that ended or were read at the end.
const COUNTERS: [&str; 5] = [
    "leasemux_fleet_elections_total",
    "leasemux_fleet_conflicts_total",
    "leasemux_fleet_missed_total",
    "leasemux_fleet_repairs_total{by=\"ring\"}",
    "leasemux_fleet_repairs_total{by=\"source\"}",
];

/// A fleet with its followers, and all that disturbs it.
struct FleetSoak {
    workspace: Arc<Workspace>,
    server: NatsServer,
    server_state: ServerState,
    gateways: Vec<Member>,
    tails: TailRecorder,
    /// For gRPC and for the REST port: each connection goes to the next gateway.
    roaming: [Relay; 2],
    followers: Vec<Follower>,
    random: SmallRng,
    begin: Instant,
    duration: Duration,
    /// Cancelled by Ctrl-C.
    interrupted: CancellationToken,
    _signals: JoinSet<()>,
    /// Stops the followers.
    stop: CancellationToken,
    /// Stops the restarts of services.
    stop_restarts: CancellationToken,
    restarter: Option<JoinHandle<()>>,
    /// Successful and failed restarts of services.
    restarts: [Arc<AtomicU32>; 2],
    /// What was done so far, and when.
    done: Vec<(Duration, &'static str)>,
    /// Times without the server.
    away: Vec<[Duration; 2]>,
    resets: usize,
}

/// A gateway, and how it is started.
struct Member {
    args: Vec<String>,
    grpc: SocketAddr,
    rest: SocketAddr,
    admin: SocketAddr,
    state: MemberState,
    /// What its processes have logged.
    log: String,
    counted: [u64; COUNTERS.len()],
}

enum MemberState {
    Running(Program),
    /// Continues at a moment.
    Halted(Program, Instant),
    /// Was told to end.
    Ending(JoinHandle<Done>),
    /// Starts at a moment.
    Down(Instant),
}

#[derive(Clone, Copy, Debug)]
enum ServerState {
    Running,
    /// Continues at a moment.
    Halted(Instant),
    /// Starts at a moment.
    Down(Instant),
}

// === impl FleetSoak ===

impl FleetSoak {
    async fn start(server: NatsServer, seconds: u64, seed: u64) -> Self {
        let workspace = Arc::new(Workspace::detached());
        let lease = workspace.tenant("alice");
        let (steady, loud) = (counting_service(5, "0.05", false), counting_service(20, "0.05", false));
        let sdl = workspace.sdl("alice.yaml", &[("web", &steady, 2), ("loud", &loud, 1)]);
        let services = format!("--lease={lease}={}", sdl.display());
        let url = server.url();
        let mut gateways: Vec<Member> =
            (0..GATEWAYS).map(|index| Member::new(&workspace, index, &lease, &services, &url)).collect();
        for gateway in &mut gateways {
            let started = block_in_place(|| Gateway::ready(gateway.start(&workspace)));
            gateway.state = MemberState::Running(started.program);
        }
        let grpc = gateways.iter().map(|gateway| gateway.grpc).collect();
        let rest = gateways.iter().map(|gateway| gateway.rest).collect();
        let roaming = [Relay::among(grpc).await, Relay::among(rest).await];
        let (interrupted, signals) = until_interrupted();
        let (stop, stop_restarts) = (CancellationToken::new(), CancellationToken::new());
        let target = |grpc, rest| Target {
            request: ServiceLogsRequest {
                lease_id: Some((&lease).into()),
                follow: true,
                ..Default::default()
            },
            stable: connector(&workspace, grpc),
            unstable: connector(&workspace, grpc),
            rest: (rest, "/lease/7/1/1/logs".to_owned()),
            logs_args: Vec::new(),
            workspace: Arc::clone(&workspace),
            stop: stop.clone(),
        };
        let mut followers = Vec::new();
        for gateway in &gateways {
            let target = target(gateway.grpc, gateway.rest);
            followers.extend(GROUPS[..STAYING].iter().flat_map(|group| group.start(&target)));
        }
        let target = target(roaming[0].address, roaming[1].address);
        followers.extend(GROUPS[STAYING..].iter().flat_map(|group| group.start(&target)));
        let begin = Instant::now();
        let tails = TailRecorder::start(gateways.iter().map(|gateway| gateway.admin).collect(), begin);
        let restarts = [Arc::<AtomicU32>::default(), Arc::default()];
        let restarter = {
            let (workspace, stop) = (Arc::clone(&workspace), stop_restarts.clone());
            let args = workspace.call_args("restart", gateways[LOCAL].grpc, "alice", &lease);
            let restarts = restarts.clone();
            Some(std::thread::spawn(move || {
                let restarts = restarts.each_ref().map(AsRef::as_ref);
                restart_services(&workspace, &args, RESTART_EVERY, restarts, &stop);
            }))
        };
        Self {
            workspace,
            server,
            server_state: ServerState::Running,
            gateways,
            tails,
            roaming,
            followers,
            random: SmallRng::seed_from_u64(seed),
            begin,
            duration: Duration::from_secs(seconds),
            interrupted,
            _signals: signals,
            stop,
            stop_restarts,
            restarter,
            restarts,
            done: Vec::new(),
            away: Vec::new(),
            resets: 0,
        }
    }

    /// Disturbs the fleet until the end of the time.
    async fn run(&mut self) {
        let (mut fault_at, mut report_at, mut roam_at) = (QUIET, REPORT_EVERY, QUIET);
        while self.goes_on() {
            self.interrupted.run_until_cancelled(tokio::time::sleep(TICK)).await;
            block_in_place(|| self.repair(Instant::now()));
            let elapsed = self.begin.elapsed();
            if elapsed >= fault_at {
                block_in_place(|| self.disturb());
                fault_at = elapsed + Duration::from_millis(self.random.random_range(FAULT_EVERY_MILLIS));
            }
            if elapsed >= roam_at {
                roam_at += ROAM_EVERY;
                self.resets += self.roaming.iter().map(|relay| relay.reset(|| true)).sum::<usize>();
            }
            if elapsed >= report_at {
                report_at += REPORT_EVERY;
                if block_in_place(|| self.report()) > 0 {
                    return;
                }
            }
        }
    }

    /// Whether it is neither over nor interrupted, and all followers run.
    fn goes_on(&self) -> bool {
        let is_over = self.begin.elapsed() + QUIET >= self.duration || self.interrupted.is_cancelled();
        !is_over && !self.followers.iter().any(Follower::has_ended)
    }

    /// Kills, halts or stops something.
    fn disturb(&mut self) {
        let until = Instant::now() + Duration::from_millis(self.random.random_range(OUTAGE_MILLIS));
        let percent = self.random.random_range(0..100);
        if percent < 25 {
            return self.disturb_server(until);
        }
        let role = if percent < 75 { "publisher" } else { "member" };
        let replica = REPLICAS[self.random.random_range(0..REPLICAS.len())];
        let mut candidates = self.tails.roles().gateways(role, replica);
        candidates.retain(|index| matches!(self.gateways[*index].state, MemberState::Running(_)));
        if candidates.is_empty() {
            return;
        }
        let index = candidates[self.random.random_range(0..candidates.len())];
        // An end of the gateway that runs the services ends them, too.
        let [kill_percent, stop_percent] = if index == LOCAL { [10, 10] } else { [40, 25] };
        let percent = self.random.random_range(0..100);
        let gateway = &mut self.gateways[index];
        let MemberState::Running(program) = std::mem::replace(&mut gateway.state, MemberState::Down(until))
        else {
            return;
        };
        let fault = if percent < kill_percent {
            gateway.count();
            program.signal(Signal::KILL);
            gateway.log.push_str(&program.done().err);
            "killed"
        } else if percent < kill_percent + stop_percent {
            gateway.count();
            program.signal(Signal::TERM);
            gateway.state = MemberState::Ending(std::thread::spawn(move || program.done()));
            "stopped"
        } else {
            self.tails.set_halted(index, true);
            program.signal(Signal::STOP);
            gateway.state = MemberState::Halted(program, until);
            "halted"
        };
        let kind = match (role, fault) {
            ("publisher", "killed") => "publisher killed",
            ("publisher", "stopped") => "publisher shut down",
            ("publisher", _) => "publisher halted",
            (_, "killed") => "member killed",
            (_, "stopped") => "member shut down",
            _ => "member halted",
        };
        self.done.push((self.begin.elapsed(), kind));
    }

    fn disturb_server(&mut self, until: Instant) {
        let ServerState::Running = self.server_state else { return };
        let now = self.begin.elapsed();
        let kind = if self.random.random_bool(0.5) {
            self.server.kill();
            self.server_state = ServerState::Down(until);
            "NATS killed"
        } else {
            self.server.signal(Signal::STOP);
            self.server_state = ServerState::Halted(until);
            "NATS halted"
        };
        self.done.push((now, kind));
        self.away.push([now; 2]);
    }

    /// Ends the faults that are due at `now`.
    fn repair(&mut self, now: Instant) {
        let is_back = match self.server_state {
            ServerState::Halted(until) if until <= now => {
                self.server.signal(Signal::CONT);
                true
            }
            ServerState::Down(until) if until <= now => {
                self.server.restart();
                true
            }
            _ => false,
        };
        if is_back {
            self.server_state = ServerState::Running;
            self.away.last_mut().expect("it was away")[1] = self.begin.elapsed();
        }
        for (index, gateway) in self.gateways.iter_mut().enumerate() {
            let state = std::mem::replace(&mut gateway.state, MemberState::Down(now));
            gateway.state = match state {
                MemberState::Running(mut program) => {
                    assert!(!program.has_ended(), "gateway {index} has ended: {}", program.err.get());
                    MemberState::Running(program)
                }
                MemberState::Halted(program, until) if until <= now => {
                    program.signal(Signal::CONT);
                    self.tails.set_halted(index, false);
                    MemberState::Running(program)
                }
                MemberState::Ending(ending) if ending.is_finished() => {
                    let done = ending.join().unwrap();
                    assert_eq!(done.status.code(), Some(0), "gateway {index}: {done:?}");
                    gateway.log.push_str(&done.err);
                    MemberState::Down(now)
                }
                MemberState::Down(until) if until <= now => {
                    MemberState::Running(gateway.start(&self.workspace))
                }
                other => other,
            };
        }
    }

    /// Prints a line about the time so far. Returns the number of faults that followers have seen.
    fn report(&self) -> usize {
        let (printed, mut totals) = (self.workspace.printed(), Totals::default());
        for follower in &self.followers {
            totals.add(&follower.state.lock().unwrap().check, &printed);
        }
        println!(
            "{:4} s: {} lines printed, {} delivered, {} reported lost, unexplained {}, repeated {}; {} log tails; {}",
            self.begin.elapsed().as_secs(),
            printed.values().sum::<u64>(),
            totals.tally.lines,
            totals.tally.lost_lines,
            totals.unexplained,
            totals.repeated,
            self.tails.roles().tails(),
            self.summary(),
        );
        totals.faults.len()
    }

    fn summary(&self) -> String {
        let mut counts = BTreeMap::<_, u32>::new();
        for (_, kind) in &self.done {
            *counts.entry(*kind).or_default() += 1;
        }
        let [restarts, failed] = self.restarts.each_ref().map(|count| count.load(Ordering::Relaxed));
        let counts: Vec<String> = counts.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        format!(
            "{}, {restarts} restarts of services ({failed} cut short), {} connections reset",
            counts.join(", "),
            self.resets
        )
    }

    /// Ends all faults. Waits until each replica has one tail, and all followers have all lines of this
    /// moment.
    fn settle(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            // All is due.
            self.repair(Instant::now() + Duration::from_secs(3_600));
            let is_running = |gateway: &Member| matches!(gateway.state, MemberState::Running(_));
            if self.gateways.iter().all(is_running) && self.tails.roles().is_settled(GATEWAYS, &REPLICAS) {
                break;
            }
            assert!(Instant::now() < deadline, "not settled: {:#?}", self.tails.roles());
            std::thread::sleep(LOOK);
        }
        println!(
            "\nall gateways run again; {} log tails for {} replicas",
            self.tails.roles().tails(),
            REPLICAS.len()
        );
        let printed = self.workspace.printed();
        for replica in REPLICAS {
            let (service, index) = replica.split_once('/').unwrap();
            let name = format!("{service}-{index}");
            let newest = printed.iter().rfind(|((of, _), _)| *of == name);
            let ((_, run), lines) = newest.expect("it has printed");
            for (number, follower) in self.followers.iter().enumerate() {
                let position =
                    || follower.state.lock().unwrap().check.position(service, index.parse().unwrap());
                while position() < (*run, *lines) {
                    let late = Instant::now() > deadline;
                    let what = follower.group.name();
                    assert!(
                        !late,
                        "{number}, {what}: {replica} is at {:?}, not at run {run}, line {lines}",
                        position()
                    );
                    std::thread::sleep(LOOK);
                }
            }
        }
        println!("all followers have all lines");
    }

    /// Ends everything, and prints and checks the figures.
    fn finish(mut self) {
        self.stop_restarts.cancel();
        self.restarter.take().expect("it is joined once").join().unwrap();
        let is_whole = !self.interrupted.is_cancelled() && !self.followers.iter().any(Follower::has_ended);
        if is_whole {
            self.settle();
        }
        let (elapsed, summary) = (self.begin.elapsed(), self.summary());
        let counts = self.tails.stop();
        self.stop.cancel();
        let followers: Vec<_> = self.followers.into_iter().map(Follower::join).collect();
        let mut counted = [0; COUNTERS.len()];
        let mut logs = Vec::new();
        for mut gateway in self.gateways {
            if let MemberState::Running(_) = gateway.state {
                gateway.count();
            }
            counted.iter_mut().zip(gateway.counted).for_each(|(sum, count)| *sum += count);
            logs.push(gateway.end());
        }
        self.workspace.until_nothing_is_left();
        let printed = self.workspace.printed();
        let totals = Totals::print(&GROUPS, &followers, &printed);
        let is_fast = |(group, _): &&(&Group, State)| group.pace == Pace::Fast;
        let silence = followers.iter().filter(is_fast).map(|(_, state)| state.longest_silence).max();
        println!("\nafter {} s, {summary}", elapsed.as_secs());
        print!("{totals}");
        println!(
            "longest silence                {:.1} s, of followers that always read",
            silence.unwrap().as_secs_f64()
        );
        for (name, count) in COUNTERS.iter().zip(counted) {
            println!("{name} {count}");
        }
        if let Some(path) = std::env::var_os(JSON).map(PathBuf::from) {
            write_json(&path, elapsed, &counts, &self.away, &self.done);
            if !totals.faults.is_empty() {
                for (index, log) in logs.iter().enumerate() {
                    std::fs::write(path.with_extension(format!("gateway-{index}.log")), log).unwrap();
                }
            }
        }
        assert_eq!(totals.faults, [""; 0]);
        self.workspace.assert_no_double();
        assert!(totals.tally.lines > 0, "nothing was delivered");
    }
}

/// Writes the number of tails over time, for `examples/plot.rs`.
fn write_json(
    path: &Path,
    elapsed: Duration,
    counts: &[TailCount],
    away: &[[Duration; 2]],
    done: &[(Duration, &'static str)],
) {
    let away: Vec<_> = away.iter().map(|times| times.map(|time| time.as_secs_f64())).collect();
    let report = json!({
        "seconds": elapsed.as_secs_f64(),
        "gateways": GATEWAYS,
        "replicas": REPLICAS.len(),
        "tails": counts.iter().map(|count| (count.at.as_secs_f64(), count.tails)).collect::<Vec<_>>(),
        "away": away,
        "faults": done.iter().map(|(at, kind)| (at.as_secs_f64(), *kind)).collect::<Vec<_>>(),
    });
    std::fs::write(path, report.to_string()).unwrap();
}

// === impl Member ===

impl Member {
    fn new(workspace: &Workspace, index: usize, lease: &LeaseId, services: &str, nats: &str) -> Self {
        let [grpc, rest, admin] = [(); 3].map(|()| SocketAddr::from(([127, 0, 0, 1], own_port())));
        let mut args = vec![
            format!("--listen={grpc}"),
            format!("--rest-listen={rest}"),
            format!("--admin-listen={admin}"),
            format!("--provider={}", lease.provider()),
            format!("--nats={nats}"),
            "--ring-max-bytes=64KiB".to_owned(),
            STALL_TIMEOUT.to_owned(),
        ];
        let path = |name: &str| workspace.path(name).display().to_string();
        if index == LOCAL {
            args.extend(
                ["--rotate-max-bytes=512KiB", "--kept-runs=4", "--restarts-per-hour=0"].map(str::to_owned),
            );
            args.push(services.to_owned());
        } else {
            args.push(format!("--attach={}", path("data")));
            args.push(format!("--data-dir={}", path(&format!("data-{index}"))));
            // Clients trust the certificate of the first one.
            args.push(format!("--tls-cert={}", path("data/server.pem")));
            args.push(format!("--tls-key={}", path("data/server.key.pem")));
        }
        let state = MemberState::Down(Instant::now());
        Self { args, grpc, rest, admin, state, log: String::new(), counted: [0; COUNTERS.len()] }
    }

    fn start(&self, workspace: &Workspace) -> Program {
        let args: Vec<&str> = self.args.iter().map(String::as_str).collect();
        workspace.start_serve(&[], &args)
    }

    /// Adds the counters of a process that is about to end. One that has just started may not answer.
    fn count(&mut self) {
        let Ok((_, metrics)) = get(self.admin, "HTTP/1.1", "/metrics") else { return };
        for (sum, name) in self.counted.iter_mut().zip(COUNTERS) {
            let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            *sum += value.map_or(0, |value| value.parse::<u64>().unwrap());
        }
    }

    /// Ends the process, which must run, be halted or be ending. Returns what all processes have logged.
    fn end(mut self) -> String {
        let done = match self.state {
            MemberState::Running(program) | MemberState::Halted(program, _) => {
                program.signal(Signal::TERM);
                program.signal(Signal::CONT);
                program.done()
            }
            MemberState::Ending(ending) => ending.join().unwrap(),
            MemberState::Down(_) => return self.log,
        };
        assert_eq!(done.status.code(), Some(0), "{done:?}");
        self.log.push_str(&done.err);
        self.log
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: .ci/full runs it"]
async fn soak_of_fleet_loses_nothing_unreported() {
    let Some(server) = NatsServer::start() else { return };
    let (seconds, seed) = (seconds(), u64::from(std::process::id()));
    let mut soak = FleetSoak::start(server, seconds, seed).await;
    println!("seed {seed}, {seconds} s, {GATEWAYS} gateways, {} followers", soak.followers.len());
    soak.run().await;
    block_in_place(|| soak.finish());
}
