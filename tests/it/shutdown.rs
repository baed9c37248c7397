//! Shutdown of the real program, and followers that resume at the next gateway.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;

use leasemux::client::connect::Connector;
use leasemux::client::error::CallError;
use leasemux::client::follow::{ConnectionChange, Follower, Sink};
use leasemux::config::Target;
use leasemux::loss_checker::{LossChecker, Order, Start};
use leasemux::model::id::LeaseId;
use leasemux::model::proto::lease::{ServiceLogs, ServiceLogsRequest};
use rustix::process::Signal;
use tokio::sync::watch;
use tokio::task::{JoinSet, block_in_place};
use tokio_util::sync::CancellationToken;

use crate::support::process::{PATIENCE, Program, Seen, Workspace, own_port};

/// Number of followers that resume.
const FOLLOWERS: usize = 100;

/// Lines of a run that each follower must have received.
const SOME_LINES: u64 = 100;

/// A service that prints about 100 lines per second, a small load even for a hundred followers.
pub(crate) const STEADY: &str = "n=0
    while :; do
      i=0
      while [ $i -lt 5 ]; do i=$((i+1)); n=$((n+1)); echo \"$n of a steady service\"; done
      sleep 0.05
    done";

/// A service that prints at full speed.
const FLOOD: &str = "n=0
    while :; do n=$((n+1)); echo \"$n drop in a flood that does not end\"; done";

/// Lines by run. The keys of one replica sort by run number, because there are fewer than ten runs.
type Runs = BTreeMap<String, u64>;

/// The followers, and the errors that ended them.
type Outcomes = JoinSet<(Watched, Option<CallError>)>;

/// A sink that checks entries and publishes the number of lines.
struct Watched {
    checker: LossChecker,
    runs: watch::Sender<Runs>,
    resumed: usize,
}

impl Sink for Watched {
    fn entry(&mut self, entry: &ServiceLogs) -> io::Result<()> {
        self.checker.feed(entry);
        if let Some(cursor) = entry.cursor.as_ref().filter(|_| entry.gap.is_none()) {
            let lines = memchr::memchr_iter(b'\n', &entry.logs).count() as u64;
            self.runs.send_modify(|runs| *runs.entry(cursor.instance.clone()).or_default() += lines);
        }
        Ok(())
    }

    fn connection(&mut self, change: &ConnectionChange<'_>) -> io::Result<()> {
        self.resumed += usize::from(matches!(change, ConnectionChange::Resumed));
        Ok(())
    }
}

/// Returns a connector for alice.
pub(crate) fn connector(workspace: &Workspace, gateway: SocketAddr) -> Connector {
    let target = Target {
        gateway: format!("https://{gateway}").parse().unwrap(),
        identity: Some(workspace.path("alice")),
        token: None,
        ca: Some(workspace.path("data/server.pem")),
        insecure: false,
    };
    Connector::new(&target).unwrap()
}

/// Starts followers with one connection each. Returns them and their progress.
fn start_followers(
    connector: &Connector,
    lease: &LeaseId,
    stop: &CancellationToken,
) -> (Outcomes, Vec<watch::Receiver<Runs>>) {
    let request = ServiceLogsRequest { lease_id: Some(lease.into()), follow: true, ..Default::default() };
    let mut tasks = JoinSet::new();
    let progress = (0..FOLLOWERS).map(|_| {
        let (runs, progress) = watch::channel(Runs::new());
        let follower = Follower::new(connector.clone(), request.clone());
        let mut watched = Watched { checker: LossChecker::new(Start::First, Order::Exact), runs, resumed: 0 };
        let stop = stop.clone();
        tasks.spawn(async move {
            let ended = stop.run_until_cancelled(follower.run(&mut watched)).await;
            (watched, ended.and_then(Result::err))
        });
        progress
    });
    let progress = progress.collect();
    (tasks, progress)
}

/// Waits until each follower has enough lines of this many runs.
async fn all_have_lines(progress: &mut [watch::Receiver<Runs>], runs: usize) {
    let wait = async {
        for one in progress {
            let enough = |seen: &Runs| seen.len() == runs && seen.values().all(|lines| *lines >= SOME_LINES);
            one.wait_for(enough).await.expect("a follower ended");
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("lines in time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn followers_lose_nothing_through_gateway_restart() {
    let workspace = Workspace::new();
    let lease = workspace.tenant("alice");
    let sdl = workspace.sdl("alice.yaml", &[("web", STEADY, 1)]);
    let listen = format!("--listen=127.0.0.1:{}", own_port());
    let serve = || block_in_place(|| workspace.serve(&[(&lease, &sdl)], &[&listen]));
    let gateway = serve();
    let stop = CancellationToken::new();
    let (mut tasks, mut progress) = start_followers(&connector(&workspace, gateway.address), &lease, &stop);
    all_have_lines(&mut progress, 1).await;
    gateway.until_metric("leasemux_connections", FOLLOWERS as u64);
    let done = block_in_place(|| gateway.stop(Signal::TERM));
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    assert!(!done.err.contains("drain deadline passed"), "{}", done.err);
    let gateway = serve();
    all_have_lines(&mut progress, 2).await;

    // Every follower has all lines of the first run that are on disk.
    let previous =
        block_in_place(|| workspace.logs(gateway.address, "alice", &lease, &["--previous", "-o", "json"]));
    let first = Seen::of(&previous.out).runs("web/0");
    stop.cancel();
    let mut checked = 0;
    while let Some(outcome) = tasks.join_next().await {
        let (watched, error) = outcome.unwrap();
        assert!(error.is_none(), "{error:?}");
        let tally = watched.checker.verdict().unwrap_or_else(|violation| panic!("{violation}"));
        assert_eq!((tally.gaps, tally.lost_lines, tally.checked), (0, 0, tally.lines), "{tally:?}");
        assert_eq!(watched.runs.borrow().values().next(), first.first());
        assert!(watched.resumed >= 1);
        checked += 1;
    }
    assert_eq!(checked, FOLLOWERS);
    let done = block_in_place(|| gateway.stop(Signal::TERM));
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    block_in_place(|| workspace.until_nothing_is_left());
}

#[test]
fn lame_duck_serves_but_is_not_ready() {
    let workspace = Workspace::new();
    let lease = workspace.tenant("alice");
    let sdl = workspace.sdl("alice.yaml", &[("web", STEADY, 1)]);
    let gateway = workspace.serve(&[(&lease, &sdl)], &["--lame-duck=10m"]);
    let mut follower = workspace.follow(gateway.address, "alice", &lease);
    follower.until("lines", |seen| seen.tally().lines > 20);
    gateway.program.signal(Signal::TERM);
    gateway.program.until_said("not ready; serving until");
    assert!(gateway.get("/ready").0.starts_with("http/1.1 503"));
    assert!(gateway.get("/live").0.starts_with("http/1.1 200"));
    // Existing and new clients are served.
    let lines = follower.seen.tally().lines;
    follower.until("more lines", |seen| seen.tally().lines > lines + 20);
    let done = workspace.logs(gateway.address, "alice", &lease, &["--tail=3"]);
    // Lines printed during the read are included.
    assert!(done.status.code() == Some(0) && done.out.lines().count() >= 3, "{done:?}");
    let (seen, err) = follower.end();
    seen.is_whole();
    assert!(!err.contains("shutting down"), "{err}");
    // A second signal stops at once.
    gateway.program.signal(Signal::TERM);
    let done = gateway.program.done();
    assert!(done.err.contains("stopping at once"), "{}", done.err);
    workspace.until_nothing_is_left();
}

#[test]
fn systemd_is_notified_of_start_and_stop() {
    let workspace = Workspace::new();
    let lease = workspace.tenant("alice");
    let sdl = workspace.sdl("alice.yaml", &[("web", STEADY, 1)]);
    let path = workspace.path("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let receive = || {
        let mut buffer = [0; 256];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    };
    let args = workspace.serve_args(&[(&lease, &sdl)]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut command = workspace.command(&args);
    command.env("NOTIFY_SOCKET", &path);
    let program = Program::start(command, "serve".to_owned());
    assert_eq!(receive().trim_end(), "READY=1");
    program.signal(Signal::TERM);
    assert_eq!(receive().trim_end(), "STOPPING=1");
    assert_eq!(program.done().status.code(), Some(0));
    // Without a reader, the gateway starts as well.
    drop(socket);
    let mut command = workspace.command(&args);
    command.env("NOTIFY_SOCKET", &path);
    let program = Program::start(command, "serve".to_owned());
    program.until_said("failed to notify systemd");
    program.signal(Signal::TERM);
    assert_eq!(program.done().status.code(), Some(0));
    workspace.until_nothing_is_left();
}

#[test]
fn only_polled_gateway_waits_for_pollers() {
    let workspace = Workspace::new();
    let lease = workspace.tenant("alice");
    let sdl = workspace.sdl("alice.yaml", &[("web", STEADY, 1)]);
    let stop = |polled: bool, flags: &[&str]| {
        let gateway = workspace.serve(&[(&lease, &sdl)], flags);
        if polled {
            gateway.get("/ready");
        }
        let done = gateway.stop(Signal::TERM);
        assert_eq!(done.status.code(), Some(0), "{done:?}");
        assert_eq!(done.err.matches("INFO leasemux::serve: stopped").count(), 1, "{}", done.err);
        done.err.contains("not ready; serving until")
    };
    assert!(!stop(false, &[]), "no poller to wait for");
    assert!(stop(true, &[]));
    assert!(!stop(true, &["--lame-duck=0"]));
    assert!(stop(false, &["--lame-duck=10ms"]), "requested explicitly");
}

#[test]
fn log_names_connections_cut_at_deadline() {
    let workspace = Workspace::new();
    let lease = workspace.tenant("alice");
    let sdl = workspace.sdl("alice.yaml", &[("web", FLOOD, 1)]);
    let gateway = workspace.serve(&[(&lease, &sdl)], &["--drain-timeout=100ms", "--ring-max-bytes=64KiB"]);
    let mut follower = workspace.follow(gateway.address, "alice", &lease);
    follower.until("lines", |seen| seen.tally().lines > 20);
    // The stopped follower reads nothing. Once all buffers are full, it does not even receive the end of its
    // stream.
    follower.program.signal(Signal::STOP);
    gateway.until_nothing_is_taken();
    let done = gateway.stop(Signal::TERM);
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    let said = done.err.lines().find(|line| line.contains("drain deadline passed, cutting connections"));
    let said = said.unwrap_or_else(|| panic!("{}", done.err));
    assert!(said.contains("connections=1") && said.contains("first=[127.0.0.1:"), "{said}");
    drop(follower);
    workspace.until_nothing_is_left();
}
