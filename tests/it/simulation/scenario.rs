//! A random scenario. It depends on its seed alone.
//!
//! It avoids what docs/KUBERNETES.md lists as known limits of the Kubernetes API:
//! - After a clock was set back, that run's log is not rotated.
//! - A log that the API serves is not rotated between lines of one nanosecond.
//! - The first line of each run is written after the two seconds in which kubelets do not rotate.
//! - Before a run ends or a kubelet lags, all readers that can do so have read its lines. A crash of the
//!   machine ends the runs at any time.
//!
//! The API's log has neither the lines before a rotation nor damage. So logs are damaged, or rotated between
//! lines of one nanosecond, only if all gateways read files. `pods` has the bounds of replaced pods.

mod actions;
mod containers;
mod faults;
mod pods;

use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use leasemux::model::limits::{Limits, QuotaLimits};
use leasemux::model::proto::lease::OnLag;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::task::LocalSet;

use self::actions::{ACTIONS, Action};
use self::pods::Replacement;
use super::check::{History, Progress};
use super::clock;
use super::files::NodeFiles;
use super::follower::{Follower, Pace};
use super::outcome::{Kind, Outcome, Violation};
use super::world::{self, SERVICE, TestFleet, World};
use crate::fleet::bus::Hub;
use crate::kube::cluster::RunKey;

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

/// Longest time of one simulation, on the clock of the machine. It takes seconds.
const REAL_TIME_MAX: Duration = Duration::from_secs(600);

/// Simulated time in which a follower gets the newest lines once all faults are over. A watch over a
/// half-open connection is replaced after five minutes.
const CATCH_UP_MAX: Duration = Duration::from_secs(3_600);

/// Simulated time within which one tail per replica is left. A gateway that gets no frames although the bus
/// can be used tails for itself for up to ten minutes; after failures of the source, none publishes for one
/// minute. How fast gateways resolve other faults is tested in `crate::exchange`.
const SHARED_WITHIN: Duration = Duration::from_secs(660);

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
    /// Runs in which the clock of the node was set back.
    set_back: BTreeSet<RunKey>,
    /// Per replica: the name of its newest pod.
    pods: Vec<String>,
    /// Number of pods that were created.
    pods_created: u32,
    /// Whether an owner may have one read of older lines at a time.
    has_one_read: bool,
    /// Per replica: the pod that is being replaced.
    replacements: Vec<Option<Replacement>>,
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
    let (done, outcome) = mpsc::channel();
    std::thread::spawn(move || {
        leasemux_determinism::begin(seed, clock::wall_clock);
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        // A platform starts in a future that is bound to its thread.
        let tasks = LocalSet::new();
        let outcome =
            std::panic::catch_unwind(AssertUnwindSafe(|| tasks.block_on(&runtime, simulate(seed, &root))));
        let outcome = outcome.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
            ended_by(seed, Violation { kind: Kind::Panic, text: text.unwrap_or_default() })
        });
        // After the limit, nothing waits for it.
        _ = done.send(outcome);
    });
    // Without a limit, tasks that wake each other for ever would hold the whole run.
    outcome.recv_timeout(REAL_TIME_MAX).unwrap_or_else(|_| {
        ended_by(seed, Violation::stuck(format!("no end within {REAL_TIME_MAX:?} of the machine's time")))
    })
}

fn ended_by(seed: u64, violation: Violation) -> Outcome {
    Outcome { seed, violation: Some(violation), ..Outcome::default() }
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
    let fleet = random.random::<bool>().then(|| TestFleet {
        hub: Hub::new(random.random()),
        direct_tails: [1, 256][random.random_range(0..2)],
        numbers: vec![None; SITES],
    });
    let is_fleet = fleet.is_some();
    let mut world = World::new(limits, fleet).await;
    let cluster = world.cluster.clone();
    cluster.lease(&world.lease, SERVICE, u32::try_from(REPLICAS).unwrap());
    let mut runs = Vec::new();
    for (number, pod) in (0..).zip(pods) {
        cluster.create_pod(&world.lease, SERVICE, "set", pod, number);
        let run = cluster.start_pod(&world.lease, SERVICE, pod, 0);
        if let Some(files) = files.as_mut().filter(|_| !pod.starts_with("far")) {
            files.begin(pod, &run);
        }
        runs.push(vec![run]);
    }
    world.start_all(&sites, files.as_ref());
    clock::record(format_args!(
        "files at {sites:?}, {pods:?}, {files_kind:?}, {kept} kept, fleet: {is_fleet}"
    ));
    let mut scenario = Scenario {
        random,
        world,
        history: History { cluster, current: vec![0; REPLICAS], runs, files },
        set_back: BTreeSet::new(),
        has_one_read: history_reads == 1,
        pods_created: u32::try_from(REPLICAS).unwrap(),
        pods: pods.map(ToOwned::to_owned).to_vec(),
        replacements: (0..REPLICAS).map(|_| None).collect(),
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

    async fn act(&mut self, action: Action) -> Result<(), Violation> {
        match action {
            Action::Print => {
                let replica = self.replica();
                let (lines, length) = if self.random.random() { (1..200, 0) } else { (1..60, LONG_LINE) };
                let (lines, step) =
                    (self.random.random_range(lines), self.one_of(&[0, 1, MILLISECOND, SECOND]));
                if let Some((at, _)) = self.any_open_run(replica) {
                    self.print(replica, at, lines, length, step);
                }
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
            Action::SetBackLogClock => self.set_back_clock(action),
            Action::Heal => self.heal().await,
            Action::Rotate | Action::Crash => self.end_file_or_run(action).await?,
            Action::LagKubelet => self.lag_kubelet().await?,
            Action::CrashUnreported => self.crash_unreported().await?,
            Action::RemoveOldFiles | Action::AddGarbage | Action::ChangeDisk => self.disturb_files(action),
            Action::CrashMachine => self.crash_machine(),
            Action::ReplacePod => self.replace_pod().await?,
            Action::StepPod => self.step_pod().await?,
            Action::DisturbBus | Action::CloseBus => self.disturb_bus(action),
            Action::HealBus => self.heal_bus(),
            other => self.disturb(other).await,
        }
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
            self.settle_all(replica);
            // A newest file without a line hides the ones before it.
            for (at, run) in self.open_runs(replica) {
                let (lines, file) = self.history.cluster.extent(&run);
                if lines == file {
                    self.print(replica, at, 1, 0, MILLISECOND);
                }
            }
        }
        let ends: Vec<_> = (0..REPLICAS).map(|replica| self.history.end(replica)).collect();
        let readable: Vec<usize> = (0..REPLICAS).filter(|at| !self.is_log_removed(*at)).collect();
        let until = clock::elapsed() + CATCH_UP_MAX;
        let mut pause = Duration::from_millis(10);
        loop {
            self.turn().await?;
            let is_behind = |progress: &Progress, replica: usize| {
                // The rest of a removed log may be lost. The gap has no line after it until the next run.
                let is_lost = progress.has_unknown_gap() && self.is_replaced(replica, ends[replica].0);
                // A follower of new lines may have received none.
                progress.next.is_some() && !progress.is_at(ends[replica]) && !is_lost
            };
            let mut reading = self.followers.iter().filter(|follower| follower.pace == Pace::Fast);
            let behind =
                reading.find(|follower| readable.iter().any(|at| is_behind(&follower.replicas[*at], *at)));
            let first = &self.followers[0].replicas;
            let has_begun = first.iter().all(|progress| progress.next.is_some());
            if has_begun && behind.is_none() && self.is_served() {
                return Ok(());
            }
            if clock::elapsed() > until {
                let who = behind.unwrap_or(&self.followers[0]);
                let at: Vec<_> = who.replicas.iter().map(|progress| progress.next).collect();
                let roles = self.world.roles();
                return Err(Violation::stuck(format!(
                    "{who} is at {at:?}, not at {ends:?}; roles: {roles:?}"
                )));
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
        self.finish_replacements().await?;
        self.catch_up().await?;
        // A follower of new lines gets these.
        for replica in 0..REPLICAS {
            let (at, _) = self.newest(replica);
            self.print(replica, at, 1, 0, MILLISECOND);
        }
        self.catch_up().await?;
        self.check_shared().await
    }

    /// Checks that the gateways of a fleet have one tail per replica in all, soon after the last fault.
    async fn check_shared(&mut self) -> Result<(), Violation> {
        if self.world.fleet().is_none() {
            return Ok(());
        }
        let until = clock::elapsed() + SHARED_WITHIN;
        loop {
            self.pass(Duration::from_secs(1)).await?;
            let roles = self.world.roles();
            let own_tails =
                |roles: &Vec<&str>| roles.iter().filter(|role| !matches!(**role, "member" | "idle")).count();
            let unshared = roles.iter().find(|(_, roles)| own_tails(roles) > 1);
            let Some((replica, roles)) = unshared else { return Ok(()) };
            if clock::elapsed() > until {
                return Err(Violation::unshared(format!("{replica}: {roles:?}")));
            }
        }
    }
}
