//! Soak test: the real program over real sockets for minutes, with followers of every kind, while logs are
//! rotated, services and the gateway restart, the gateway is killed, and connections are reset. Speed is not
//! checked, only that every line is delivered once or reported lost, and that the gateway does not grow.
//!
//! ```sh
//! .ci/soak 900
//! ```
#![allow(clippy::print_stdout, reason = "prints its figures")]

#[cfg(feature = "nats")]
mod fleet;
mod followers;
mod relay;
#[cfg(feature = "nats")]
mod tails;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use leasemux::loss_checker::Tally;
use leasemux::model::id::LeaseId;
use leasemux::model::proto::lease::ServiceLogsRequest;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{JoinSet, block_in_place};
use tokio_util::sync::CancellationToken;

use self::followers::{Follower, GROUPS, Group, State, Target, pause};
use self::relay::Relay;
use crate::shutdown::connector;
use crate::support::counting::{CheckedFollower, Printed, counting_service};
use crate::support::process::{Gateway, Workspace, own_port};

/// Environment variable with the duration, in seconds.
const SECONDS: &str = "LEASEMUX_TEST_SOAK_SECONDS";

/// Duration without [`SECONDS`].
const SECONDS_DEFAULT: u64 = 60;

/// Time without disturbances before a measurement: longer than the longest delay before a reconnect.
const QUIET: Duration = Duration::from_secs(15);

/// Interval of disturbances.
const DISTURBED_EVERY: Duration = Duration::from_secs(3);

/// One in this many disturbances is a restart of the gateway.
const GATEWAY_RESTARTS_ONE_IN: u32 = 8;

/// Share of the duration in percent after which the gateway is not restarted, so that the last one lives long
/// enough to show growth.
const GATEWAY_RESTARTS_UNTIL: u32 = 60;

/// Time after which the gateway gives up a peer that does not read. Shorter than the pause of a stalled
/// follower.
const STALL_TIMEOUT: &str = "--stall-timeout=10s";

/// Threads of the blocking pool of a Tokio runtime. It keeps those that it once needed while it is used.
const BLOCKING_THREADS_MAX: u64 = 512;

const REPORT_EVERY: Duration = Duration::from_secs(60);

/// A gateway with its followers, and all that disturbs them.
struct Soak {
    workspace: Arc<Workspace>,
    lease: LeaseId,
    args: Vec<String>,
    gateway: Gateway,
    /// For gRPC, for the REST port, and for gRPC with frequent resets.
    relays: [Relay; 3],
    followers: Vec<Follower>,
    random: SmallRng,
    begin: Instant,
    duration: Duration,
    /// Cancelled by Ctrl-C.
    interrupted: CancellationToken,
    _signals: JoinSet<()>,
    /// Stops the followers and the restarts of services.
    stop: CancellationToken,
    restarter: std::thread::JoinHandle<()>,
    done: Disturbances,
    /// Names of the rotated files at the last look.
    rotated: BTreeSet<String>,
}

/// Number of disturbances by kind.
#[derive(Debug, Default)]
struct Disturbances {
    gateway_stops: u32,
    gateway_kills: u32,
    resets: usize,
    /// Refills by the gateways before the present one.
    refills: u64,
    /// Rotations that were seen. Files that were removed between two looks are missing.
    rotations: usize,
    restarts: Arc<AtomicU32>,
    failed_restarts: Arc<AtomicU32>,
}

/// What the gateway uses.
#[derive(Clone, Copy, Debug)]
struct Usage {
    memory_kib: u64,
    files: u64,
    threads: u64,
    tasks: u64,
}

/// Figures over all followers.
#[derive(Debug, Default)]
struct Totals {
    printed: u64,
    tally: Tally,
    unexplained: usize,
    repeated: usize,
    faults: Vec<String>,
}

// === impl Soak ===

impl Soak {
    async fn start(seconds: u64, seed: u64) -> Self {
        let workspace = Arc::new(Workspace::detached());
        let lease = workspace.tenant("alice");
        let (steady, loud) = (counting_service(5, "0.05", false), counting_service(100, "0.05", false));
        let sdl = workspace.sdl("alice.yaml", &[("web", &steady, 2), ("loud", &loud, 1)]);
        let args = vec![
            format!("--lease={lease}={}", sdl.display()),
            format!("--listen=127.0.0.1:{}", own_port()),
            format!("--rest-listen=127.0.0.1:{}", own_port()),
            format!("--provider={}", lease.provider()),
            "--ring-max-bytes=64KiB".to_owned(),
            "--rotate-max-bytes=512KiB".to_owned(),
            "--kept-runs=4".to_owned(),
            "--restarts-per-hour=0".to_owned(),
            STALL_TIMEOUT.to_owned(),
        ];
        let gateway = serve(&workspace, &args);
        let grpc = gateway.address;
        let relays = [Relay::start(grpc).await, Relay::start(gateway.rest()).await, Relay::start(grpc).await];
        let (interrupted, signals) = until_interrupted();
        let stop = CancellationToken::new();
        let target = Target {
            request: ServiceLogsRequest {
                lease_id: Some((&lease).into()),
                follow: true,
                ..Default::default()
            },
            stable: connector(&workspace, relays[0].address),
            unstable: connector(&workspace, relays[2].address),
            rest: (relays[1].address, "/lease/7/1/1/logs".to_owned()),
            logs_args: {
                let args = workspace.logs_args(relays[0].address, "alice", &lease);
                args.into_iter().chain(["-f", "-o", "json"].map(str::to_owned)).collect()
            },
            workspace: Arc::clone(&workspace),
            stop: stop.clone(),
        };
        let followers = GROUPS.iter().flat_map(|group| group.start(&target)).collect();
        let done = Disturbances::default();
        let restarter = {
            let (workspace, stop) = (Arc::clone(&workspace), stop.clone());
            let args = workspace.call_args("restart", grpc, "alice", &lease);
            let (restarts, failed) = (Arc::clone(&done.restarts), Arc::clone(&done.failed_restarts));
            std::thread::spawn(move || {
                restart_services(&workspace, &args, DISTURBED_EVERY, [&restarts, &failed], &stop);
            })
        };
        Self {
            workspace,
            lease,
            args,
            gateway,
            relays,
            followers,
            random: SmallRng::seed_from_u64(seed),
            begin: Instant::now(),
            duration: Duration::from_secs(seconds),
            interrupted,
            _signals: signals,
            stop,
            restarter,
            done,
            rotated: BTreeSet::new(),
        }
    }

    /// Waits without disturbances, then measures the gateway.
    async fn measure(&mut self) -> Usage {
        self.wait(QUIET).await;
        block_in_place(|| Usage::of(&self.gateway))
    }

    async fn wait(&mut self, time: Duration) {
        self.interrupted.run_until_cancelled(tokio::time::sleep(time)).await;
        self.count_rotations();
    }

    /// Whether it is neither over nor interrupted, and all followers run.
    fn goes_on(&self) -> bool {
        let is_over = self.begin.elapsed() + QUIET >= self.duration || self.interrupted.is_cancelled();
        !is_over && !self.followers.iter().any(Follower::has_ended)
    }

    fn disturb(&mut self) {
        let may_restart = self.begin.elapsed() * 100 < self.duration * GATEWAY_RESTARTS_UNTIL;
        if may_restart && self.random.random_ratio(1, GATEWAY_RESTARTS_ONE_IN) {
            block_in_place(|| self.restart_gateway());
            return;
        }
        let share = if self.random.random_bool(0.3) { 1.0 } else { 0.2 };
        for (index, relay) in self.relays.iter().enumerate() {
            // The last one is the unstable one.
            let share = if index == 2 { 0.7 } else { share };
            self.done.resets += relay.reset(|| self.random.random_bool(share));
        }
    }

    fn restart_gateway(&mut self) {
        self.count_refills();
        let is_kill = self.random.random_bool(0.5);
        self.gateway.program.signal(if is_kill { Signal::KILL } else { Signal::TERM });
        // Its ports are free once it has ended.
        self.gateway.program.wait();
        if is_kill {
            self.done.gateway_kills += 1;
        } else {
            self.done.gateway_stops += 1;
        }
        self.gateway = serve(&self.workspace, &self.args);
    }

    /// Adds the refills of a gateway that is about to end.
    fn count_refills(&mut self) {
        let refills = ["first", "again"].map(|lag| format!("leasemux_refills_total{{lag=\"{lag}\"}}"));
        self.done.refills += refills.iter().map(|name| self.gateway.metric(name)).sum::<u64>();
    }

    fn count_rotations(&mut self) {
        let pods = std::fs::read_dir(self.workspace.path("data/pods")).unwrap().flatten();
        let services = pods.filter_map(|pod| std::fs::read_dir(pod.path()).ok()).flatten().flatten();
        let files = services.filter_map(|service| std::fs::read_dir(service.path()).ok()).flatten().flatten();
        let names = files.map(|file| file.path().display().to_string());
        let rotated: BTreeSet<String> = names.filter(|name| name.contains(".log.")).collect();
        self.done.rotations += rotated.difference(&self.rotated).count();
        self.rotated = rotated;
    }

    /// Prints a line about the time so far.
    fn report(&self) {
        let (printed, mut totals) = (self.workspace.printed(), Totals::default());
        for follower in &self.followers {
            totals.add(&follower.state.lock().unwrap().check, &printed);
        }
        let Usage { memory_kib, files, threads, tasks } = Usage::of(&self.gateway);
        println!(
            "{:4} s: {} lines printed, {} delivered, {} reported lost, unexplained {}, repeated {}; gateway: {} MiB, \
             {files} files, {threads} threads, {tasks} tasks; {}",
            self.begin.elapsed().as_secs(),
            printed.values().sum::<u64>(),
            totals.tally.lines,
            totals.tally.lost_lines,
            totals.unexplained,
            totals.repeated,
            memory_kib / 1024,
            self.done,
        );
    }

    /// Ends everything, and prints and checks the figures.
    fn finish(mut self, start: Usage, end: Usage) {
        self.stop.cancel();
        self.count_refills();
        let followers: Vec<_> = self.followers.into_iter().map(Follower::join).collect();
        self.restarter.join().unwrap();
        let elapsed = self.begin.elapsed().as_secs();
        let done = self.gateway.stop(Signal::TERM);
        self.workspace.until_nothing_is_left();
        let printed = self.workspace.printed();
        let totals = Totals::print(GROUPS, &followers, &printed);
        println!("\nafter {elapsed} s, {}", self.done);
        print!("{totals}");
        println!("gateway at the start           {start}");
        println!("gateway at the end             {end}");
        assert_eq!(totals.faults, [""; 0]);
        assert_eq!(done.status.code(), Some(0), "{done:?}");
        self.workspace.assert_no_double();
        assert!(totals.tally.lines > 0, "nothing was delivered to followers of {}", self.lease);
        if !self.interrupted.is_cancelled() {
            end.assert_bounded(&start);
        }
    }
}

/// Starts a gateway.
fn serve(workspace: &Workspace, args: &[String]) -> Gateway {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    block_in_place(|| workspace.serve(&[], &args))
}

/// Restarts one service after the other, and counts successes and failures: a gateway may end meanwhile.
fn restart_services(
    workspace: &Workspace,
    args: &[String],
    interval: Duration,
    [restarts, failed]: [&AtomicU32; 2],
    stop: &CancellationToken,
) {
    let mut services = ["web", "loud"].iter().cycle();
    while !stop.is_cancelled() {
        pause(stop, interval);
        let service = services.next().unwrap();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let done = workspace.run(&[&args[..], &["--timeout=20s", "--service", service]].concat());
        let count = if done.status.success() { restarts } else { failed };
        count.fetch_add(1, Ordering::Relaxed);
    }
}

// === impl Disturbances ===

impl std::fmt::Display for Disturbances {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { gateway_stops, gateway_kills, resets, refills, rotations, restarts, failed_restarts } =
            self;
        let [restarts, failed] = [restarts, failed_restarts].map(|count| count.load(Ordering::Relaxed));
        write!(
            f,
            "{gateway_stops} gateway restarts and {gateway_kills} kills, {restarts} restarts of services ({failed} cut \
             short), {resets} connections reset, {refills} refills, at least {rotations} rotations"
        )
    }
}

// === impl Usage ===

impl Usage {
    fn of(gateway: &Gateway) -> Self {
        Self {
            memory_kib: gateway.metric("process_resident_memory_bytes") / 1024,
            files: gateway.metric("process_open_fds"),
            threads: gateway.metric("process_threads"),
            tasks: gateway.metric("leasemux_tasks"),
        }
    }

    /// Asserts that nothing has grown without bound since `start`. The same followers are connected at both
    /// times, but some are between two connections.
    fn assert_bounded(&self, start: &Self) {
        for (what, start, end, more) in [
            ("memory, in KiB", start.memory_kib, self.memory_kib, 64 * 1024),
            ("open files", start.files, self.files, 24),
            ("threads", start.threads, self.threads, BLOCKING_THREADS_MAX),
            ("tasks", start.tasks, self.tasks, 24),
        ] {
            assert!(end <= start + start / 4 + more, "{what} grew from {start} to {end}");
        }
    }
}

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { memory_kib, files, threads, tasks } = self;
        write!(f, "{} MiB, {files} files, {threads} threads, {tasks} tasks", memory_kib / 1024)
    }
}

// === impl Totals ===

impl Totals {
    /// Prints a line about the followers of each group. Returns the sum of all.
    fn print(groups: &'static [Group], followers: &[(&'static Group, State)], printed: &Printed) -> Self {
        let mut totals = Self { printed: printed.values().sum(), ..Self::default() };
        println!(
            "\nfollowers                            number      lines    lost   gaps  reconnects  closed"
        );
        for group in groups {
            let (mut tally, mut reconnects, mut closed) = (Tally::default(), 0, 0);
            let (mut number, name) = (0, group.name());
            for (_, state) in followers.iter().filter(|(of, _)| std::ptr::eq(*of, group)) {
                totals.add(&state.check, printed);
                totals.faults.extend(state.ended.iter().map(|end| format!("{name}: ended: {end}")));
                tally.add(&state.check.tally());
                number += 1;
                reconnects += state.reconnects;
                closed += state.closed;
            }
            let Tally { lines, lost_lines, gaps, .. } = tally;
            println!(
                "{name:<36} {number:>6} {lines:>10} {lost_lines:>7} {gaps:>6} {reconnects:>11} {closed:>7}"
            );
        }
        totals
    }

    fn add(&mut self, check: &CheckedFollower, printed: &Printed) {
        self.tally.add(&check.tally());
        let faults = check.faults(printed);
        let unexplained = faults.iter().filter(|fault| fault.contains("missing")).count();
        self.unexplained += unexplained;
        self.repeated += faults.len() - unexplained;
        self.faults.extend(faults);
    }
}

impl std::fmt::Display for Totals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { printed, tally, unexplained, repeated, .. } = self;
        writeln!(f, "lines printed by the services  {printed}")?;
        writeln!(f, "lines delivered                {}", tally.lines)?;
        writeln!(f, "lines reported lost            {} in {} gaps", tally.lost_lines, tally.gaps)?;
        writeln!(f, "losses not explained           {unexplained}")?;
        writeln!(f, "repeated or misplaced          {repeated}")
    }
}

/// Returns the duration that [`SECONDS`] sets.
fn seconds() -> u64 {
    std::env::var(SECONDS).ok().and_then(|text| text.parse().ok()).unwrap_or(SECONDS_DEFAULT)
}

/// Returns a token that Ctrl-C cancels, and the tasks that wait for it.
fn until_interrupted() -> (CancellationToken, JoinSet<()>) {
    let interrupted = CancellationToken::new();
    let mut signals = JoinSet::new();
    for kind in [SignalKind::interrupt(), SignalKind::terminate()] {
        let (mut signal, interrupted) = (signal(kind).unwrap(), interrupted.clone());
        signals.spawn(async move {
            signal.recv().await;
            interrupted.cancel();
        });
    }
    (interrupted, signals)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: .ci/full runs it"]
async fn soak_of_all_disturbances_loses_nothing_unreported() {
    let seconds = seconds();
    let seed = u64::from(std::process::id());
    let followers: usize = GROUPS.iter().map(|group| group.count).sum();
    println!("seed {seed}, {seconds} s, {followers} followers");
    let mut soak = Soak::start(seconds, seed).await;
    let start = soak.measure().await;
    println!("gateway at the start: {start}");
    let mut report_at = REPORT_EVERY;
    while soak.goes_on() {
        soak.disturb();
        soak.wait(DISTURBED_EVERY).await;
        if soak.begin.elapsed() >= report_at {
            report_at += REPORT_EVERY;
            block_in_place(|| soak.report());
        }
    }
    let end = soak.measure().await;
    block_in_place(|| soak.finish(start, end));
}
