//! A random scenario. It depends on its seed alone.
//!
//! It avoids what docs/KUBERNETES.md lists as known limits of the Kubernetes API:
//! - After a clock was set back, that run's log is not rotated.
//! - A log that the API serves is not rotated between lines of one nanosecond.
//! - The first line of each run is written after the two seconds in which kubelets do not rotate.
//! - Before a run ends or a kubelet lags, all readers that can do so have read its lines. A crash of the machine
//!   ends the runs at any time.
//!
//! The API's log has neither the lines before a rotation nor damage. So logs are damaged, or rotated between
//! lines of one nanosecond, only if all gateways read files. Pods are not replaced.

use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::time::Duration;

use leasemux::model::limits::{Limits, QuotaLimits};
use leasemux::model::proto::lease::OnLag;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::task::LocalSet;

use super::check::{History, Progress, Source};
use super::clock;
use super::disk::DiskState;
use super::files::{Damage, NodeFiles};
use super::follower::{Follower, Pace};
use super::outcome::{Kind, Outcome, Violation};
use super::world::{self, World};
use crate::kube::cluster::{Kubelets, RunKey};

const SERVICE: &str = "web";
/// On the node whose files gateways may read.
const PODS: [&str; 2] = ["a", "b"];
/// The second one is on another node.
const PODS_APART: [&str; 2] = ["a", "far"];
const REPLICAS: usize = 2;
const SITES: usize = 2;
const FOLLOWERS_MAX: usize = 6;

/// Length of a long line: some hundred fill ring, stream buffer, pipe and the client's window.
const LONG_LINE: usize = 2_000;

const MILLISECOND: i64 = 1_000_000;
const SECOND: i64 = 1_000 * MILLISECOND;

/// Simulated time in which a follower gets the newest lines once all faults are over. A watch over a
/// half-open connection is replaced after five minutes.
const CATCH_UP_MAX: Duration = Duration::from_secs(3_600);

/// Something that happens, and how often.
#[derive(Clone, Copy, Debug)]
enum Action {
    Print,
    Wait,
    WaitLong,
    Open,
    ChangePace,
    Disconnect,
    Vanish,
    KillGateway,
    RestartGateway,
    JumpClock,
    SetBackLogClock,
    BreakLogs,
    CompleteLogs,
    SilenceLogs,
    SilenceWatches,
    SendMessage,
    ForgetHistory,
    Compact,
    Bookmark,
    StopApiServer,
    Kubelets,
    Exhaust,
    RefuseLogs,
    HoldLists,
    Heal,
    Rotate,
    Crash,
    LagKubelet,
    CrashUnreported,
    RemoveOldFiles,
    AddGarbage,
    ChangeDisk,
    CrashMachine,
}

const ACTIONS: [(u32, Action); 33] = [
    (30, Action::Print),
    (10, Action::Wait),
    (3, Action::WaitLong),
    (8, Action::Open),
    (8, Action::ChangePace),
    (4, Action::Disconnect),
    (2, Action::Vanish),
    (1, Action::KillGateway),
    (1, Action::RestartGateway),
    (1, Action::JumpClock),
    (1, Action::SetBackLogClock),
    (3, Action::BreakLogs),
    (3, Action::CompleteLogs),
    (1, Action::SilenceLogs),
    (1, Action::SilenceWatches),
    (1, Action::SendMessage),
    (1, Action::ForgetHistory),
    (1, Action::Compact),
    (1, Action::Bookmark),
    (1, Action::StopApiServer),
    (2, Action::Kubelets),
    (1, Action::Exhaust),
    (1, Action::RefuseLogs),
    (1, Action::HoldLists),
    (4, Action::Heal),
    (4, Action::Rotate),
    (3, Action::Crash),
    (1, Action::LagKubelet),
    (1, Action::CrashUnreported),
    (1, Action::RemoveOldFiles),
    (1, Action::AddGarbage),
    (2, Action::ChangeDisk),
    (3, Action::CrashMachine),
];

/// What happens to the files of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FilesKind {
    /// Only what the API shows as well.
    Usual,
    /// Rotated between lines of one nanosecond, too. Only if no gateway reads the API's log.
    OneNanosecond,
    /// Damaged by crashes of the machine. The same.
    Damaged,
}

struct Scenario {
    random: StdRng,
    world: World,
    history: History,
    /// Per replica: the clock of its node was set back in the present run.
    set_back: Vec<bool>,
    pods: [&'static str; REPLICAS],
    files_kind: FilesKind,
    followers: Vec<Follower>,
    opened: usize,
    outcome: Outcome,
}

/// Runs the scenario of a seed, in a thread that has used no random number yet.
pub(super) fn run(seed: u64) -> Outcome {
    // Not in the simulation's thread: its name is random.
    let logs = tempfile::tempdir().unwrap();
    let root = logs.path().to_owned();
    let simulation = std::thread::spawn(move || {
        leasemux_determinism::begin(seed, clock::wall_clock);
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        // A platform starts in a future that is bound to its thread.
        let tasks = LocalSet::new();
        let outcome =
            std::panic::catch_unwind(AssertUnwindSafe(|| tasks.block_on(&runtime, simulate(seed, &root))));
        outcome.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
            let violation = Some(Violation { kind: Kind::Panic, text: text.unwrap_or_default() });
            Outcome { seed, violation, ..Outcome::default() }
        })
    });
    simulation.join().expect("its panics are caught")
}

async fn simulate(seed: u64, root: &Path) -> Outcome {
    clock::start();
    let mut random = StdRng::seed_from_u64(seed);
    let history_reads = [1, 64][random.random_range(0..2)];
    let history_wait = Duration::from_millis([0, 20][random.random_range(0..2)]);
    // Without a request rate limit: rejected followers call often.
    let quota = QuotaLimits { history_reads, history_wait, requests_per_second: 0, ..QuotaLimits::default() };
    let limits = Limits { ring_max_bytes: 64 * 1024, quota, ..Limits::default() };
    let sites: [bool; SITES] = std::array::from_fn(|_| random.random_bool(0.6));
    let pods = [PODS, PODS_APART][random.random_range(0..2)];
    let kind = [FilesKind::Usual, FilesKind::OneNanosecond, FilesKind::Damaged][random.random_range(0..3)];
    // The API's log has neither the lines before a rotation nor damage.
    let files_kind = if sites == [true; SITES] { kind } else { FilesKind::Usual };
    let kept = random.random_range(2..6);
    let mut files = sites.contains(&true).then(|| NodeFiles::new(root, world::lease().namespace(), kept));
    let mut world = World::new(limits).await;
    let cluster = world.cluster.clone();
    cluster.lease(&world.lease, SERVICE, u32::try_from(REPLICAS).unwrap());
    let runs: Vec<_> = pods.iter().map(|pod| vec![cluster.run(&world.lease, SERVICE, pod, 0)]).collect();
    let on_node: Vec<bool> = pods.iter().map(|pod| !pod.starts_with("far")).collect();
    if let Some(files) = &mut files {
        for replica in (0..REPLICAS).filter(|replica| on_node[*replica]) {
            files.begin(pods[replica], &runs[replica][0]);
        }
    }
    world.start_all(&sites, on_node, files.as_ref());
    clock::record(format_args!("files at {sites:?}, {pods:?}, {files_kind:?}, {kept} kept"));
    let mut scenario = Scenario {
        random,
        world,
        history: History { cluster, runs, files },
        set_back: vec![false; REPLICAS],
        pods,
        files_kind,
        followers: Vec::new(),
        opened: 0,
        outcome: Outcome { seed, ..Outcome::default() },
    };
    scenario.outcome.violation = scenario.play().await.err();
    scenario.outcome.seconds = clock::elapsed().as_secs();
    scenario.outcome.hash = clock::finish();
    scenario.outcome
}

// === impl Scenario ===

impl Scenario {
    async fn play(&mut self) -> Result<(), Violation> {
        // One follower reads everything, so that each log has a reader from its first line on.
        self.follow(OnLag::Refill, None, Pace::Fast);
        self.print_first(0);
        self.print_first(1);
        self.catch_up().await?;
        for _ in 0..self.random.random_range(20..80) {
            let action = self.choose();
            clock::record(format_args!("{action:?}"));
            self.outcome.actions += 1;
            self.act(action).await?;
            self.turn().await?;
        }
        self.finish().await
    }

    fn choose(&mut self) -> Action {
        let all = ACTIONS.iter().map(|(weight, _)| weight).sum();
        let mut number: u32 = self.random.random_range(0..all);
        for (weight, action) in ACTIONS {
            match number.checked_sub(weight) {
                Some(rest) => number = rest,
                None => return action,
            }
        }
        unreachable!("below the sum of all weights")
    }

    fn one_of<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.random.random_range(0..of.len())]
    }

    fn replica(&mut self) -> usize {
        self.random.random_range(0..REPLICAS)
    }

    fn newest(&self, replica: usize) -> RunKey {
        self.history.runs[replica].last().expect("a replica has a run").clone()
    }

    async fn act(&mut self, action: Action) -> Result<(), Violation> {
        let cluster = self.history.cluster.clone();
        match action {
            Action::Print => {
                let replica = self.replica();
                let (lines, length) = if self.random.random() { (1..200, 0) } else { (1..60, LONG_LINE) };
                let (lines, step) =
                    (self.random.random_range(lines), self.one_of(&[0, 1, MILLISECOND, SECOND]));
                self.print(replica, lines, length, step);
            }
            Action::Wait => {
                let millis = self.one_of(&[1, 10, 100, 1_000]);
                self.pass(Duration::from_millis(millis)).await?;
            }
            Action::WaitLong => {
                let seconds = self.one_of(&[10, 61, 300, 600]);
                self.pass(Duration::from_secs(seconds)).await?;
            }
            Action::Open if self.followers.len() == FOLLOWERS_MAX => {}
            Action::Open => {
                let on_lag = self.one_of(&[OnLag::Drop, OnLag::Refill, OnLag::Close]);
                let tail = self.one_of(&[None, None, Some(0), Some(10)]);
                let pace = self.pace();
                self.follow(on_lag, tail, pace);
            }
            Action::ChangePace => {
                let pace = self.pace();
                if let Some(follower) = self.any_follower() {
                    self.followers[follower].pace = pace;
                }
            }
            Action::Disconnect => {
                let follower = self.random.random_range(0..self.followers.len());
                self.followers[follower].disconnect();
            }
            Action::Vanish => {
                if let Some(follower) = self.any_follower() {
                    self.followers.remove(follower);
                }
            }
            Action::KillGateway | Action::RestartGateway => {
                let site = self.random.random_range(0..SITES);
                self.fault(action);
                if matches!(action, Action::KillGateway) {
                    self.world.kill(site);
                } else {
                    self.world.restart(site).await;
                }
            }
            Action::JumpClock => clock::jump(self.one_of(&[-7_200, -60, 60, 86_400])),
            Action::SetBackLogClock => {
                let replica = self.replica();
                self.settle(replica);
                let (lines, file) = cluster.extent(&self.newest(replica));
                // A file whose first line is older than the run cannot be placed.
                if lines > file {
                    self.fault(action);
                    self.set_back[replica] = true;
                    self.print(replica, 1, 0, -3_600 * SECOND);
                }
            }
            Action::Heal => self.heal().await,
            Action::Rotate | Action::Crash => self.end_file_or_run(action).await?,
            Action::LagKubelet => self.lag_kubelet().await?,
            Action::CrashUnreported => self.crash_unreported().await?,
            Action::RemoveOldFiles | Action::AddGarbage | Action::ChangeDisk => self.disturb_files(action),
            Action::CrashMachine => self.crash_machine(),
            other => self.disturb(other).await,
        }
        Ok(())
    }

    /// Rotates a log, or lets a container crash.
    async fn end_file_or_run(&mut self, action: Action) -> Result<(), Violation> {
        let replica = self.replica();
        let is_crash = matches!(action, Action::Crash);
        if !is_crash && self.set_back[replica] {
            return Ok(());
        }
        if is_crash || self.random.random() {
            self.catch_up().await?;
        }
        self.fault(action);
        if is_crash {
            let lines = self.random.random_range(0..20);
            self.print(replica, lines, 0, MILLISECOND);
            self.settle(replica);
            self.crash(replica);
        } else {
            self.rotate(replica);
        }
        Ok(())
    }

    fn rotate(&mut self, replica: usize) {
        let run = self.newest(replica);
        let Some(files) = self.history.files_of(replica) else {
            self.history.cluster.rotate(&run);
            return;
        };
        files.rotate(&run, &mut self.random);
        if self.random.random() {
            self.settle(replica);
        }
    }

    /// Completes the rotation of a log.
    fn settle(&mut self, replica: usize) {
        let run = self.newest(replica);
        if self.history.files_of(replica).is_some_and(|files| files.settle(&run)) {
            self.history.cluster.rotate(&run);
        }
    }

    /// Disturbs the node's files.
    fn disturb_files(&mut self, action: Action) {
        let replica = self.replica();
        let run = self.newest(replica);
        let state = self.one_of(&[DiskState::Slow, DiskState::Unreliable, DiskState::Broken]);
        let most = self.random.random_range(1..4);
        let Some(files) = self.history.files_of(replica) else { return };
        match action {
            Action::RemoveOldFiles => files.remove_oldest(&run, most),
            Action::AddGarbage => files.add_garbage(&run),
            _ => files.disk.set(state),
        }
        self.fault(action);
    }

    /// Ends the runs of all containers of the node, and all gateways. What was written last may be lost.
    fn crash_machine(&mut self) {
        if self.files_kind != FilesKind::Damaged {
            return;
        }
        self.fault(Action::CrashMachine);
        for site in 0..SITES {
            self.world.kill(site);
        }
        for replica in 0..REPLICAS {
            let run = self.newest(replica);
            let damage = self.one_of(&[
                Damage::None,
                Damage::CutActive,
                Damage::CutCompressed,
                Damage::EmptyCompressed,
                Damage::Zeros,
            ]);
            if let Some(files) = self.history.files_of(replica) {
                files.halt(&run);
                files.damage(&run, damage, &mut self.random);
                clock::record(format_args!("{}: {damage:?}", run.0));
                self.crash(replica);
            }
        }
    }

    /// Disturbs connections, the API server or kubelets.
    async fn disturb(&mut self, action: Action) {
        let cluster = self.history.cluster.clone();
        self.fault(action);
        match action {
            Action::BreakLogs => cluster.break_logs(),
            Action::CompleteLogs => cluster.complete_logs(),
            Action::SilenceLogs => cluster.silence_logs(),
            Action::SilenceWatches => cluster.silence_watches(),
            Action::SendMessage => {
                cluster.send_message("unable to retrieve container logs for containerd://x");
            }
            Action::ForgetHistory => cluster.forget_history(),
            Action::Compact => cluster.compact(),
            Action::Bookmark => cluster.bookmark(),
            Action::StopApiServer => cluster.stop().await,
            Action::Kubelets => {
                let state = self.one_of(&[Kubelets::Unreachable, Kubelets::Unaware]);
                cluster.kubelets(state);
                if self.random.random() {
                    cluster.complete_logs();
                }
            }
            Action::Exhaust => cluster.exhaust(true),
            Action::RefuseLogs => {
                let code = self.one_of(&[403_u16, 429, 500, 503]);
                cluster.refuse_logs(Some(hyper::StatusCode::from_u16(code).unwrap()));
            }
            Action::HoldLists => cluster.hold_lists(true),
            _ => {}
        }
    }

    fn fault(&mut self, action: Action) {
        *self.outcome.faults.entry(format!("{action:?}")).or_default() += 1;
    }

    /// Ends all faults that do not end by themselves.
    async fn heal(&mut self) {
        let cluster = &self.history.cluster;
        cluster.resume().await;
        cluster.kubelets(Kubelets::Serve);
        cluster.exhaust(false);
        cluster.refuse_logs(None);
        cluster.hold_lists(false);
        if let Some(files) = &self.history.files {
            files.disk.set(DiskState::Fast);
        }
    }

    /// The first line comes after the time in which kubelets do not rotate.
    fn print_first(&mut self, replica: usize) {
        self.print(replica, 1, 0, 3 * SECOND);
    }

    fn print(&mut self, replica: usize, lines: usize, length: usize, step: i64) {
        let run = self.newest(replica);
        let from = self.history.cluster.extent(&run).0;
        let text = |number| format!("{}/{number} {}", run.2, "x".repeat(length));
        let lines: Vec<String> = (from..from + lines).map(text).collect();
        // The first line of a file is later than the last one of the file before.
        let is_first_of_file = from == self.history.cluster.extent(&run).1
            && (self.files_kind != FilesKind::OneNanosecond || from == 0 || !self.is_on_node(replica));
        let (first, rest) = lines.split_at(usize::from(is_first_of_file).min(lines.len()));
        self.history.cluster.print_lines(&run, first, step.max(MILLISECOND));
        self.history.cluster.print_lines(&run, rest, step);
        self.write(replica, &run, from + lines.len());
        self.outcome.printed += lines.len() as u64;
        clock::record(format_args!("{} prints {from} to {}, step {step}", run.0, from + lines.len()));
    }

    /// Writes the lines up to `end` to the file.
    fn write(&mut self, replica: usize, run: &RunKey, end: usize) {
        let cluster = self.history.cluster.clone();
        if let Some(files) = self.history.files_of(replica) {
            files.write(&cluster, run, end, &mut self.random);
        }
    }

    fn is_on_node(&self, replica: usize) -> bool {
        (0..SITES).any(|site| self.world.source(site, replica) == Source::Files)
    }

    /// Ends a run and starts the next one.
    fn crash(&mut self, replica: usize) {
        let pod = self.pods[replica];
        let next = self.history.cluster.crash(&self.world.lease, pod, &self.newest(replica));
        self.begin(replica, next);
    }

    fn begin(&mut self, replica: usize, run: RunKey) {
        let pod = self.pods[replica];
        if let Some(files) = self.history.files_of(replica) {
            files.begin(pod, &run);
        }
        self.history.runs[replica].push(run);
        self.set_back[replica] = false;
        self.print_first(replica);
    }

    /// Lets a kubelet lag with a log.
    async fn lag_kubelet(&mut self) -> Result<(), Violation> {
        let replica = self.replica();
        if self.set_back[replica] {
            return Ok(());
        }
        self.catch_up().await?;
        self.settle(replica);
        self.fault(Action::LagKubelet);
        // A newest file of one line, sent twice, looks like two equal lines.
        let newest = self.random.random_range(2..50);
        let left_out: Vec<usize> =
            (0..self.random.random_range(0..3)).map(|_| self.random.random_range(2..50)).collect();
        let (rest, step) = (self.random.random_range(0..50), self.one_of(&[1, MILLISECOND, 2 * SECOND]));
        let run = self.newest(replica);
        let mut end = self.history.cluster.extent(&run).0 + rest;
        self.history.cluster.lag(&run, rest, &left_out, newest, step);
        self.write(replica, &run, end);
        for lines in left_out.iter().copied().chain([newest]) {
            if let Some(files) = self.history.files_of(replica) {
                files.rotate(&run, &mut self.random);
                files.settle(&run);
            }
            end += lines;
            self.write(replica, &run, end);
        }
        self.outcome.printed += (rest + newest + left_out.iter().sum::<usize>()) as u64;
        Ok(())
    }

    /// Restarts a container once or twice before the API server learns of it.
    async fn crash_unreported(&mut self) -> Result<(), Violation> {
        let replica = self.replica();
        self.catch_up().await?;
        self.fault(Action::CrashUnreported);
        // A response that completes just before the run ends looks like the end of the run.
        self.pass(Duration::from_secs(2)).await?;
        for _ in 0..self.random.random_range(1..3) {
            self.settle(replica);
            let next = self.history.cluster.crash_unreported(&self.newest(replica));
            self.begin(replica, next);
            let lines = self.random.random_range(0..5);
            self.print(replica, lines, 0, MILLISECOND);
        }
        let seconds = self.random.random_range(0..15);
        self.pass(Duration::from_secs(seconds)).await?;
        let runs = &self.history.runs[replica];
        self.history.cluster.crash(&self.world.lease, self.pods[replica], &runs[runs.len() - 2]);
        Ok(())
    }

    fn pace(&mut self) -> Pace {
        let slow = Pace::Slow(self.random.random_range(1..4));
        self.one_of(&[Pace::Fast, slow, slow, Pace::Stalled])
    }

    /// Any follower but the first, which always reads.
    fn any_follower(&mut self) -> Option<usize> {
        (self.followers.len() > 1).then(|| self.random.random_range(1..self.followers.len()))
    }

    fn follow(&mut self, on_lag: OnLag, tail: Option<u64>, pace: Pace) {
        self.followers.push(Follower::new(self.opened, on_lag, tail, pace, REPLICAS));
        self.opened += 1;
    }

    /// Lets every follower read, and those without a stream connect to any gateway that runs.
    async fn turn(&mut self) -> Result<(), Violation> {
        self.world.progress().await;
        for run in self.history.files.as_mut().map(NodeFiles::step).unwrap_or_default() {
            self.history.cluster.rotate(&run);
        }
        for follower in &mut self.followers {
            if follower.site().is_none() {
                let site = self.random.random_range(0..self.world.sites());
                let site = if self.world.is_running(site) { site } else { 1 - site };
                follower.open(site, &mut self.world, &self.history, &mut self.outcome).await?;
            }
            follower.read(&self.history, &mut self.outcome).await?;
        }
        Ok(())
    }

    /// Lets time pass. Followers read meanwhile.
    async fn pass(&mut self, time: Duration) -> Result<(), Violation> {
        const TURNS: u32 = 8;
        for _ in 0..TURNS {
            tokio::time::sleep(time / TURNS).await;
            self.turn().await?;
        }
        Ok(())
    }

    /// Ends all faults, and waits until all followers that read have the newest lines.
    async fn catch_up(&mut self) -> Result<(), Violation> {
        self.heal().await;
        for replica in 0..REPLICAS {
            self.settle(replica);
            // A newest file without a line hides the ones before it.
            let (lines, file) = self.history.cluster.extent(&self.newest(replica));
            if lines == file {
                self.print(replica, 1, 0, MILLISECOND);
            }
        }
        let ends: Vec<_> = (0..REPLICAS).map(|replica| self.history.end(replica)).collect();
        let until = clock::elapsed() + CATCH_UP_MAX;
        let mut pause = Duration::from_millis(10);
        loop {
            self.turn().await?;
            let is_behind = |progress: &Progress, replica: usize| {
                // A follower of new lines may have received none.
                progress.next.is_some() && !progress.is_at(ends[replica])
            };
            let mut reading = self.followers.iter().filter(|follower| follower.pace == Pace::Fast);
            let behind =
                reading.find(|follower| (0..REPLICAS).any(|at| is_behind(&follower.replicas[at], at)));
            let first = &self.followers[0].replicas;
            let has_begun = first.iter().all(|progress| progress.next.is_some());
            if has_begun && behind.is_none() && self.is_served() {
                return Ok(());
            }
            if clock::elapsed() > until {
                let who = behind.unwrap_or(&self.followers[0]);
                let at: Vec<_> = who.replicas.iter().map(|progress| progress.next).collect();
                return Err(Violation::stuck(format!("{who} is at {at:?}, not at {ends:?}")));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(10));
        }
    }

    /// Whether all gateways run and all followers are connected.
    fn is_served(&self) -> bool {
        (0..SITES).all(|site| self.world.is_running(site))
            && self.followers.iter().all(|follower| follower.site().is_some())
    }

    /// Ends all faults, and checks that every follower gets all lines.
    async fn finish(&mut self) -> Result<(), Violation> {
        clock::record(format_args!("finish"));
        for follower in &mut self.followers {
            follower.pace = Pace::Fast;
        }
        self.catch_up().await?;
        // A follower of new lines gets these.
        for replica in 0..REPLICAS {
            self.print(replica, 1, 0, MILLISECOND);
        }
        self.catch_up().await
    }
}
