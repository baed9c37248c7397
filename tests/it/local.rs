//! The local platform with real processes.

mod attached;
mod harm;
mod side;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use leasemux::model::id::{Address, Instance, LeaseId, Replica};
use leasemux::model::view::{LeaseView, ReplicaState, ReplicaView};
use leasemux::platform::local::sdl::Sdl;
use leasemux::platform::local::{Backoff, LocalConfig, LocalOptions, LocalPlatform};
use leasemux::platform::{Error, Platform as _, ReadFrom, RestartRequest, Tail, TailItem, TailRequest};
use leasemux::sys::dir_watch::Notifier;
use rustix::process::{Pid, Signal};
use tempfile::TempDir;
use tokio::sync::watch;

/// Limit on every wait, generous for loaded machines.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Polling interval of conditions without notification.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Data directory of [`gateway_to_be_killed`]. Unset when that runs as an ordinary test.
const GATEWAY_DIR: &str = "LEASEMUX_TEST_GATEWAY_DIR";

/// SDL of that gateway.
const GATEWAY_SDL: &str = "LEASEMUX_TEST_GATEWAY_SDL";

/// A lease whose service `web` runs a script. A variable in their environment marks its processes.
struct Fixture {
    dir: TempDir,
    mark: String,
    sdl: String,
    platform: Option<Arc<LocalPlatform>>,
}

// === impl Fixture ===

impl Fixture {
    fn new(script: &str) -> Self {
        let command = ["sh", "-c", script].map(|word| serde_json::to_string(word).unwrap());
        Self::of_command(&command.join(", "))
    }

    fn of_command(command: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mark = format!("LEASEMUX_TEST_MARK={}", dir.path().display());
        let sdl = format!(
            "{{version: '2.0', services: {{web: {{command: [{command}], env: ['{mark}', 'HOST=x=y']}}}}, \
             deployment: {{web: {{here: {{count: 1}}}}}}}}"
        );
        let platform = None;
        Self { dir, mark, sdl, platform }
    }

    fn config(&self) -> LocalConfig {
        config(self.dir.path(), &self.sdl)
    }

    fn start(self) -> Self {
        let config = self.config();
        self.start_with(config)
    }

    fn start_with(mut self, config: LocalConfig) -> Self {
        self.platform = Some(LocalPlatform::start(config, Notifier::start()).unwrap());
        self
    }

    /// Returns the home directory of the replica.
    fn home(&self) -> PathBuf {
        let home = format!("data/home/{}_web-0", lease().namespace());
        self.dir.path().canonicalize().unwrap().join(home)
    }

    /// Creates the pipe `go` in the home directory.
    fn create_pipe(&self) -> PathBuf {
        std::fs::create_dir_all(self.home()).unwrap();
        let pipe = self.home().join("go");
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        pipe
    }

    fn platform(&self) -> &LocalPlatform {
        self.platform.as_ref().unwrap()
    }

    async fn view(&self) -> watch::Receiver<Arc<LeaseView>> {
        self.platform().watch(&lease()).await.unwrap()
    }

    /// Waits until the replica satisfies `wanted`.
    async fn slot(&self, wanted: impl Fn(&ReplicaView) -> bool) -> ReplicaView {
        let mut view = self.view().await;
        let found = view.wait_for(|view| wanted(view.replica(&web()).unwrap()));
        let found = tokio::time::timeout(TIMEOUT, found).await.unwrap().unwrap();
        found.replica(&web()).unwrap().clone()
    }

    async fn tail(&self, instance: &Instance, follow: bool) -> Tail {
        let (lease, replica, instance, from) = (lease(), web(), instance.clone(), ReadFrom::Start);
        let request = TailRequest {
            lease,
            replica,
            instance,
            from,
            lines_after: None,
            oldest_read: None,
            is_next_run: false,
            follow,
        };
        self.platform().tail(request).await.unwrap()
    }

    /// Returns lines, bytes and exactness of the gap that the newest run's log begins with.
    async fn first_gap(&self, slot: &ReplicaView) -> (u64, u64, bool) {
        let mut tail = self.tail(&slot.newest().unwrap().instance, true).await;
        let first = tokio::time::timeout(TIMEOUT, tail.items.next()).await.unwrap().unwrap().unwrap();
        let TailItem::Gap(gap) = first else { panic!("{first:?}") };
        (gap.lines, gap.bytes, gap.exact)
    }

    /// Reads the log of a run, to its present end or to the end of the run.
    async fn log(&self, instance: &Instance, follow: bool) -> String {
        let mut tail = self.tail(instance, follow).await;
        let mut log = String::new();
        let all = async {
            while let Some(item) = tail.items.next().await {
                match item.unwrap() {
                    TailItem::Lines(batch) => log.push_str(std::str::from_utf8(&batch.data).unwrap()),
                    TailItem::FollowUnavailable | TailItem::Interrupted(_) | TailItem::Resumed => {
                        panic!("a file can be followed")
                    }
                    TailItem::Gap(gap) => panic!("{gap:?} after {log:?}"),
                }
            }
        };
        tokio::time::timeout(TIMEOUT, all).await.unwrap();
        log
    }

    /// Waits for a line in the log of the running instance.
    async fn printed(&self, line: &str) -> Instance {
        let run = self.slot(|slot| slot.state == ReplicaState::Running).await.runs.pop().unwrap();
        let deadline = Instant::now() + TIMEOUT;
        while !self.log(&run.instance, false).await.lines().any(|found| found == line) {
            assert!(Instant::now() < deadline, "{line:?} was not printed");
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        run.instance
    }

    /// Returns the path of a log file, if it exists.
    fn path(&self, name: &str) -> Option<PathBuf> {
        let pods = std::fs::read_dir(self.dir.path().join("data/pods")).ok()?;
        pods.flatten().map(|pod| pod.path().join("web").join(name)).find(|path| path.exists())
    }

    /// Returns the content of a log file.
    fn file(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.path(name)?).ok()
    }

    /// Waits until the content of a log file satisfies `wanted`.
    async fn until_file(&self, name: &str, wanted: impl Fn(&str) -> bool) {
        let deadline = Instant::now() + TIMEOUT;
        while !self.file(name).is_some_and(|log| wanted(&log)) {
            assert!(Instant::now() < deadline, "{name}: {:?}", self.file(name));
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Requests the restart of a run.
    async fn restart(&self, instance: &Instance) -> Result<(), Error> {
        let instance = Some(instance.clone());
        self.platform().restart(RestartRequest { lease: lease(), replica: web(), instance }).await
    }

    /// Returns the processes of the service.
    fn processes(&self) -> BTreeSet<i32> {
        processes(&self.mark)
    }

    async fn until_processes(&self, wanted: impl Fn(&BTreeSet<i32>) -> bool) -> BTreeSet<i32> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let found = self.processes();
            if wanted(&found) {
                return found;
            }
            assert!(Instant::now() < deadline, "processes: {found:?}");
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
}

fn config(dir: &Path, sdl: &str) -> LocalConfig {
    let sdl = Sdl::parse(sdl).unwrap();
    LocalConfig {
        exe: env!("CARGO_BIN_EXE_leasemux").into(),
        public_hostname: "gateway.example".to_owned(),
        backoff: Backoff {
            first: Duration::from_millis(10),
            longest: Duration::from_millis(40),
            reset_after: Duration::from_secs(600),
        },
        ..LocalConfig::new(dir.join("data"), vec![(lease(), sdl)])
    }
}

fn stop_grace(stop_grace: Duration) -> LocalOptions {
    LocalOptions { stop_grace, ..LocalOptions::default() }
}

fn lease() -> LeaseId {
    let [owner, provider] = [1, 2].map(|n| Address::from_account([n; 20]));
    LeaseId::new(owner.as_str(), 7, 2, 3, provider.as_str()).unwrap()
}

fn web() -> Replica {
    Replica { service: "web".parse().unwrap(), index: 0 }
}

/// Starts [`gateway_to_be_killed`] as a process, by means of `starter`.
fn gateway(fixture: &Fixture, starter: &[&str]) -> Child {
    let program = std::env::current_exe().unwrap();
    let test = ["--exact", "local::gateway_to_be_killed", "--ignored", "--nocapture"];
    let mut words: Vec<&OsStr> = starter.iter().map(OsStr::new).collect();
    words.push(program.as_os_str());
    words.extend(test.map(OsStr::new));
    Command::new(words[0])
        .args(&words[1..])
        .env(GATEWAY_DIR, fixture.dir.path())
        .env(GATEWAY_SDL, &fixture.sdl)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// Returns processes with `mark` in their environment. Zombies have no environment.
fn processes(mark: &str) -> BTreeSet<i32> {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &i32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|entry| entry == mark.as_bytes())
    })
    .collect()
}

fn kill(pid: i32) {
    rustix::process::kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
}

fn parent(pid: i32) -> i32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap();
    line.trim().parse().unwrap()
}

fn ended(count: usize) -> impl Fn(&ReplicaView) -> bool {
    move |slot| slot.runs.iter().filter(|run| run.end.is_some()).count() >= count
}

fn is_in_back_off(slot: &ReplicaView) -> bool {
    matches!(&slot.state, ReplicaState::Waiting { reason, .. } if reason == "CrashLoopBackOff")
}

// === tests ===

#[tokio::test]
async fn service_inherits_no_environment_and_no_files() {
    // An inherited file that does not close on exec.
    let left_open = rustix::io::dup(std::fs::File::open("/dev/zero").unwrap()).unwrap();
    let fixture = Fixture::new(
        "for fd in /proc/$$/fd/*; do n=${fd##*/}; [ -e /proc/$$/fd/$n ] && echo \"fd $n\"; done
         readlink /proc/$$/fd/0; read line || echo no input; pwd; echo ready >&2; env; exec sleep 1000",
    )
    .start();
    let instance = fixture.printed("ready").await;
    let home = fixture.home().display().to_string();
    fixture.printed(&format!("HOME={home}")).await;
    fixture.slot(|slot| slot.ready).await;
    fixture.platform().stop(Duration::ZERO).await;
    let log = fixture.log(&instance, true).await;
    drop(left_open);

    let lines: BTreeSet<&str> = log.lines().collect();
    let fds: Vec<&&str> = lines.iter().filter(|line| line.starts_with("fd ")).collect();
    assert_eq!(fds, [&"fd 0", &"fd 1", &"fd 2"], "{log}");
    assert!(lines.contains("/dev/null") && lines.contains("no input"), "{log}");
    assert!(lines.contains(home.as_str()), "{log}");
    let lease = lease();
    let mut expected = String::new();
    for (name, value) in [
        ("AKASH_CLUSTER_PUBLIC_HOSTNAME", "gateway.example"),
        ("AKASH_DEPLOYMENT_SEQUENCE", "7"),
        ("AKASH_GROUP_SEQUENCE", "2"),
        ("AKASH_ORDER_SEQUENCE", "3"),
        ("AKASH_OWNER", lease.owner().as_str()),
        ("AKASH_PROVIDER", lease.provider().as_str()),
        ("HOME", &home),
        ("HOST", "x=y"),
        ("PATH", &std::env::var("PATH").unwrap()),
    ] {
        writeln!(expected, "{name}={value}").unwrap();
    }
    writeln!(expected, "{}", fixture.mark).unwrap();
    let mut expected: BTreeSet<&str> = expected.lines().collect();
    // Set by the shell.
    let shell = ["PWD=", "OLDPWD=", "SHLVL=", "_="];
    let found =
        lines.iter().filter(|line| line.contains('=') && !shell.iter().any(|name| line.starts_with(name)));
    for line in found {
        assert!(expected.remove(line), "{line} in {log}");
    }
    assert!(expected.is_empty(), "{expected:?} not in {log}");
}

/// Prints `up` when it has four processes that ignore SIGTERM: itself, a child, one in its own session, and
/// an orphan in its own session.
const STUBBORN: &str = "trap '' TERM HUP
    sleep 1001 &
    setsid sleep 1002 &
    (setsid sh -c 'sleep 1003 & exit' &)
    echo up
    while :; do wait; done";

#[tokio::test]
async fn dropped_platform_kills_all_descendants() {
    let mut fixture = Fixture::new(STUBBORN).start();
    fixture.printed("up").await;
    fixture.until_processes(|found| found.len() == 4).await;
    drop(fixture.platform.take());
    fixture.until_processes(BTreeSet::is_empty).await;
}

#[tokio::test]
async fn stop_returns_when_all_processes_are_gone() {
    let fixture = Fixture::new(STUBBORN).start();
    let instance = fixture.printed("up").await;
    fixture.until_processes(|found| found.len() == 4).await;
    fixture.platform().stop(Duration::from_millis(50)).await;
    assert_eq!(fixture.processes(), BTreeSet::new());
    let slot = fixture.slot(|slot| slot.state == ReplicaState::Terminated).await;
    let end = slot.run(&instance).unwrap().end.clone().unwrap();
    assert_eq!((end.signal, end.reason.as_str()), (Some(9), "GatewayStopped"));
}

#[tokio::test]
async fn stop_sends_sigterm_first() {
    let fixture = Fixture::new("trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.01; done").start();
    let instance = fixture.printed("up").await;
    let begin = Instant::now();
    fixture.platform().stop(10 * TIMEOUT).await;
    assert!(begin.elapsed() < TIMEOUT);
    let log = fixture.log(&instance, true).await;
    // The shell may also report the child that received the signal.
    let lines: Vec<&str> = log.lines().filter(|line| !line.contains("Terminated")).collect();
    assert_eq!(lines, ["up", "bye"]);
    let slot = fixture.slot(|slot| slot.state == ReplicaState::Terminated).await;
    let end = slot.runs.last().unwrap().end.clone().unwrap();
    assert_eq!((end.exit_code, end.reason.as_str()), (Some(7), "GatewayStopped"));
}

#[tokio::test]
async fn second_stop_may_shorten_grace_period() {
    let fixture = Fixture::new("trap '' TERM; echo up; while :; do sleep 0.01; done").start();
    fixture.printed("up").await;
    let (patient, ()) =
        tokio::join!(tokio::time::timeout(TIMEOUT, fixture.platform().stop(10 * TIMEOUT)), async {
            tokio::task::yield_now().await;
            fixture.platform().stop(Duration::ZERO).await;
        });
    patient.unwrap();
    assert_eq!(fixture.processes(), BTreeSet::new());
}

#[tokio::test]
async fn restart_is_graceful_and_skips_back_off() {
    let fixture = Fixture::new("trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.01; done");
    let backoff = Backoff { first: 10 * TIMEOUT, longest: 10 * TIMEOUT, reset_after: 10 * TIMEOUT };
    let config = LocalConfig { backoff, options: stop_grace(10 * TIMEOUT), ..fixture.config() };
    let fixture = fixture.start_with(config);
    let first = fixture.printed("up").await;
    fixture.restart(&first).await.unwrap();
    // A repeated request has no effect.
    fixture.restart(&first).await.ok();
    let slot = fixture.slot(|slot| slot.current_run().is_some_and(|run| run.instance != first)).await;
    let end = slot.last_end().unwrap();
    assert_eq!((end.exit_code, end.reason.as_str(), slot.restarts), (Some(7), "Restarted", 1));
    assert!(fixture.log(&first, true).await.lines().any(|line| line == "bye"));
    let second = fixture.printed("up").await;
    assert!(matches!(fixture.restart(&first).await, Err(Error::Conflict(_))));
    assert!(fixture.slot(|_| true).await.current_run().is_some_and(|run| run.instance == second));
    fixture.platform().stop(Duration::ZERO).await;
    assert!(matches!(fixture.restart(&second).await, Err(Error::Unavailable(_))));
}

#[tokio::test]
async fn restart_kills_stubborn_run_and_ends_back_off() {
    let fixture = Fixture::new(
        "[ -e crash ] && { echo crashed; exit 3; }; trap '' TERM; touch crash; echo up; while :; do sleep 0.01; done",
    );
    let backoff = Backoff { first: 10 * TIMEOUT, longest: 10 * TIMEOUT, reset_after: 20 * TIMEOUT };
    let config = LocalConfig { backoff, options: stop_grace(Duration::from_millis(50)), ..fixture.config() };
    let fixture = fixture.start_with(config);
    let first = fixture.printed("up").await;
    fixture.restart(&first).await.unwrap();
    let slot = fixture.slot(is_in_back_off).await;
    let end = slot.run(&first).unwrap().end.clone().unwrap();
    assert_eq!((end.signal, end.reason.as_str()), (Some(9), "Restarted"));
    let second = slot.newest().unwrap().instance.clone();
    assert_eq!(slot.last_end().unwrap().exit_code, Some(3));
    std::fs::remove_file(fixture.home().join("crash")).unwrap();
    fixture.restart(&second).await.unwrap();
    fixture.slot(|slot| slot.current_run().is_some_and(|run| run.instance.parts().2 == 2)).await;
    fixture.platform().stop(Duration::ZERO).await;
}

#[tokio::test]
async fn worker_finishes_while_master_waits() {
    let fixture = Fixture::new(
        "sh -c 'while ! [ -e go ]; do sleep 0.01; done; echo worker finished' &
         worker=$!
         trap 'echo master waits; wait $worker; echo worker status $?; exit 0' TERM
         echo up; while :; do sleep 0.01; done",
    );
    let config = LocalConfig { options: stop_grace(10 * TIMEOUT), ..fixture.config() };
    let fixture = fixture.start_with(config);
    let first = fixture.printed("up").await;
    fixture.restart(&first).await.unwrap();
    assert_eq!(fixture.printed("master waits").await, first);
    std::fs::write(fixture.home().join("go"), "").unwrap();
    let slot = fixture.slot(|slot| slot.run(&first).is_some_and(|run| run.end.is_some())).await;
    let end = slot.run(&first).unwrap().end.clone().unwrap();
    assert_eq!((end.exit_code, end.signal, end.reason.as_str()), (Some(0), None, "Restarted"));
    let log = fixture.log(&first, true).await;
    assert_eq!(log, "up\nmaster waits\nworker finished\nworker status 0\n");
    fixture.platform().stop(Duration::ZERO).await;
}

#[tokio::test]
async fn worker_is_killed_when_master_exits() {
    let fixture = Fixture::new("(trap '' TERM; echo up; while :; do sleep 0.01; done) & wait").start();
    fixture.printed("up").await;
    // The grace period is not used up.
    tokio::time::timeout(TIMEOUT, fixture.platform().stop(10 * TIMEOUT)).await.unwrap();
    assert_eq!(fixture.processes(), BTreeSet::new());
}

#[tokio::test]
async fn orphans_of_run_are_killed() {
    let fixture = Fixture::new("setsid sleep 1000 & echo up; exit 0").start();
    let slot = fixture.slot(ended(3)).await;
    let end = slot.runs[0].end.clone().unwrap();
    assert_eq!((end.exit_code, end.reason.as_str()), (Some(0), "Completed"));
    // The current run may have two processes.
    fixture.until_processes(|found| found.len() <= 2).await;
    fixture.platform().stop(Duration::ZERO).await;
    assert_eq!(fixture.processes(), BTreeSet::new());
}

#[tokio::test]
async fn log_is_complete_when_run_end_is_published() {
    let fixture = Fixture::new(
        "i=0; while [ $i -lt 5000 ]; do i=$((i+1)); echo \"line $i of a service that ends at once\"; done
         printf unfinished; kill -9 $$",
    )
    .start();
    let slot = fixture.slot(ended(1)).await;
    let run = &slot.runs[0];
    let end = run.end.clone().unwrap();
    assert_eq!((end.exit_code, end.signal, end.reason.as_str()), (None, Some(9), "Error"));
    let log = fixture.log(&run.instance, false).await;
    let expected: Vec<String> = (1..=5000)
        .map(|n| format!("line {n} of a service that ends at once"))
        .chain(["unfinished".to_owned()])
        .collect();
    assert!(log.lines().eq(expected), "{} lines", log.lines().count());
}

#[tokio::test]
async fn follower_reads_run_to_its_end() {
    let fixture = Fixture::new("echo one; read line < go; echo two; echo oops >&2; exit 3");
    let pipe = fixture.create_pipe();
    let fixture = fixture.start();
    let instance = fixture.printed("one").await;
    let go = tokio::task::spawn_blocking(move || std::fs::write(pipe, "go\n").unwrap());
    let log = fixture.log(&instance, true).await;
    go.await.unwrap();
    let mut lines: Vec<&str> = log.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["one", "oops", "two"]);
    let slot = fixture.slot(|slot| slot.run(&instance).is_some_and(|run| run.end.is_some())).await;
    assert_eq!(slot.run(&instance).unwrap().end.as_ref().unwrap().exit_code, Some(3));
}

#[tokio::test]
async fn crash_is_followed_by_back_off() {
    let fixture = Fixture::new("exit 3");
    let mut config = fixture.config();
    config.backoff.first = Duration::from_secs(7 * 60);
    config.backoff.longest = config.backoff.first;
    let fixture = fixture.start_with(config);
    let slot = fixture.slot(is_in_back_off).await;
    let message = "back-off 420s restarting: it ended with exit code 3".to_owned();
    let reason = "CrashLoopBackOff".to_owned();
    assert_eq!(slot.state, ReplicaState::Waiting { reason, message });
    assert_eq!((slot.restarts, slot.ready, slot.runs.len()), (0, false, 1));
    fixture.platform().stop(Duration::ZERO).await;
}

#[tokio::test]
async fn start_failure_is_explained() {
    let plain = tempfile::NamedTempFile::new().unwrap();
    std::fs::set_permissions(plain.path(), PermissionsExt::from_mode(0o644)).unwrap();
    let plain = serde_json::to_string(plain.path().to_str().unwrap()).unwrap();
    for (command, code) in [("leasemux-no-such-program", 127), ("/no/such/program", 127), (&plain, 126)] {
        let fixture = Fixture::of_command(command).start();
        let slot = fixture.slot(|slot| ended(2)(slot) && is_in_back_off(slot)).await;
        let end = slot.runs[0].end.clone().unwrap();
        assert_eq!((end.exit_code, end.signal, end.reason.as_str()), (Some(code), None, "StartError"));
        assert!(
            matches!(&slot.state, ReplicaState::Waiting { message, .. } if message.contains("restarting: cannot start")),
            "{:?}",
            slot.state
        );
        assert_eq!(fixture.log(&slot.runs[0].instance, false).await, "");
    }
}

#[tokio::test]
async fn old_runs_are_removed_and_numbers_continue() {
    let mut fixture = Fixture::new("echo hello; exit 1");
    let mut config = fixture.config();
    config.options.kept_runs = 2;
    fixture = fixture.start_with(config.clone());
    let slot = fixture.slot(|slot| slot.restarts >= 4 && slot.ready).await;
    assert!(slot.runs.len() <= 3, "{:?}", slot.runs);
    fixture.platform().stop(Duration::ZERO).await;
    let before = fixture.slot(|slot| slot.state == ReplicaState::Terminated).await;
    drop(fixture.platform.take());

    config.backoff.first = 10 * TIMEOUT;
    config.backoff.longest = 10 * TIMEOUT;
    fixture = fixture.start_with(config);
    let at_once = fixture.view().await.borrow().replica(&web()).unwrap().clone();
    let names = |slot: &ReplicaView| slot.runs.iter().map(|run| run.instance.clone()).collect::<Vec<_>>();
    assert_eq!(names(&at_once), names(&before));
    assert!(at_once.runs.iter().all(|run| run.end.as_ref().unwrap().reason == "GatewayStopped"));
    // The last run may have been stopped before it printed anything.
    let [.., kept, last] = &at_once.runs[..] else { panic!("{at_once:?}") };
    let (uid, _, number) = last.instance.parts();
    let next = Instance::new(uid, "web", number + 1).unwrap();
    let slot = fixture.slot(|slot| slot.run(&next).is_some()).await;
    assert_eq!(fixture.log(&kept.instance, false).await, "hello\n");
    assert_eq!(slot.run(&kept.instance), Some(kept));
    fixture.platform().stop(Duration::ZERO).await;
}

#[tokio::test]
async fn data_directory_is_used_by_one_gateway() {
    let fixture = Fixture::new("sleep 1000").start();
    assert!(matches!(
        LocalPlatform::start(fixture.config(), Notifier::polling()),
        Err(Error::Unavailable(_))
    ));
}

#[tokio::test]
async fn killed_shim_ends_service_and_is_replaced() {
    let fixture = Fixture::new("echo up; exec sleep 1000").start();
    let instance = fixture.printed("up").await;
    let service = fixture.until_processes(|found| found.len() == 1).await.pop_first().unwrap();
    let shim = parent(service);
    let name = std::fs::read_to_string(format!("/proc/{shim}/comm")).unwrap();
    assert_eq!(name.trim(), "lease-shim");
    let arguments = std::fs::read(format!("/proc/{shim}/cmdline")).unwrap();
    assert_eq!(arguments, b"lease-shim\0shim\0run\0");
    kill(shim);
    fixture.until_processes(|found| found.len() == 1 && !found.contains(&service)).await;
    let slot = fixture.slot(|slot| slot.restarts == 1 && slot.ready).await;
    let end = slot.run(&instance).unwrap().end.clone().unwrap();
    assert_eq!((end.exit_code, end.signal, end.reason.as_str()), (None, None, "Error"));
}

#[tokio::test]
async fn killed_gateway_takes_all_descendants_along() {
    let fixture = Fixture::new(STUBBORN);
    let mut gateway = gateway(&fixture, &[]);
    fixture.until_processes(|found| found.len() == 4).await;
    // Killed before it has printed, it would die of SIGPIPE.
    fixture.until_file("0.log", |log| log.ends_with(" stdout F up\n")).await;
    gateway.kill().unwrap();
    assert_eq!(gateway.wait().unwrap().signal(), Some(9));
    fixture.until_processes(BTreeSet::is_empty).await;
    // The next gateway continues.
    let fixture = fixture.start();
    let slot = fixture.slot(|slot| slot.ready).await;
    assert_eq!((slot.restarts, slot.runs.len()), (1, 2));
    // The content of the pipes is in no log; the log of the next run reports that.
    assert_eq!(fixture.first_gap(&slot).await, (0, 0, false));
    fixture.platform().stop(Duration::ZERO).await;
}

#[tokio::test]
async fn example_sdl_numbers_its_lines() {
    let dir = tempfile::tempdir().unwrap();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/shop.yaml");
    let sdl = std::fs::read_to_string(file).unwrap();
    let platform = LocalPlatform::start(config(dir.path(), &sdl), Notifier::start()).unwrap();
    let view = platform.watch(&lease()).await.unwrap();
    let replicas = [("web", 0), ("web", 1), ("worker", 0)]
        .map(|(service, index)| Replica { service: service.parse().unwrap(), index });
    let log = async |replica: &Replica| {
        let run = view.borrow().replica(replica).unwrap().newest().cloned()?;
        let request = TailRequest {
            lease: lease(),
            replica: replica.clone(),
            instance: run.instance,
            from: ReadFrom::Start,
            lines_after: None,
            oldest_read: None,
            is_next_run: false,
            follow: false,
        };
        let items = platform.tail(request).await.unwrap().items;
        let items: Vec<_> = items.map(Result::unwrap).collect().await;
        let log = items.iter().map(|item| match item {
            TailItem::Lines(batch) => String::from_utf8(batch.data.to_vec()).unwrap(),
            TailItem::FollowUnavailable | TailItem::Interrupted(_) | TailItem::Resumed => {
                panic!("a file can be followed")
            }
            TailItem::Gap(gap) => panic!("{gap:?}"),
        });
        Some(log.collect::<String>())
    };
    let deadline = Instant::now() + TIMEOUT;
    for (replica, enough) in replicas.iter().zip([" warn: upstream", "\n50 ", " warn: batch=3 "]) {
        while !log(replica).await.is_some_and(|log| log.contains(enough)) {
            assert!(Instant::now() < deadline, "{enough:?} is not in the log of {replica}");
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
    platform.stop(Duration::ZERO).await;
    for replica in &replicas {
        let log = log(replica).await.unwrap();
        let lines = log.lines().map(|line| line.split(' ').next().unwrap().parse::<usize>().unwrap());
        let mut numbers: Vec<usize> = lines.collect();
        numbers.sort_unstable();
        assert!(numbers.iter().copied().eq(1..=numbers.len()), "{replica}: {numbers:?}");
    }
}

#[tokio::test]
#[ignore = "not a test: a gateway that other tests kill"]
async fn gateway_to_be_killed() {
    let (Some(dir), Ok(sdl)) = (std::env::var_os(GATEWAY_DIR), std::env::var(GATEWAY_SDL)) else {
        return;
    };
    let platform = LocalPlatform::start(config(Path::new(&dir), &sdl), Notifier::start()).unwrap();
    // A limit, in case the parent dies before it kills this process.
    tokio::time::sleep(10 * TIMEOUT).await;
    platform.stop(Duration::ZERO).await;
}
