//! How a gateway ends, and what those see who come back to the next one: the real program.

use std::collections::BTreeMap;
use std::io;

use leasemux::client::connect::Connector;
use leasemux::client::error::CallError;
use leasemux::client::follow::{ConnectionChange, Follower, Sink};
use leasemux::config::{ServerTrust, Target};
use leasemux::loss_checker::{LossChecker, Order, Start};
use leasemux::model::id::LeaseId;
use leasemux::model::proto::lease::{ServiceLogs, ServiceLogsRequest};
use rustix::process::Signal;
use tokio::sync::watch;
use tokio::task::{JoinSet, block_in_place};
use tokio_util::sync::CancellationToken;

use crate::support::process::{PATIENCE, Seen, World, own_port};

/// Those who come back.
const FOLLOWERS: usize = 100;

/// Lines that each has of a run before it goes on.
const SOME_LINES: u64 = 100;

/// Prints for ever, not so much that a hundred followers would be a load.
const STEADY: &str = "n=0
    while :; do
      i=0
      while [ $i -lt 5 ]; do i=$((i+1)); n=$((n+1)); echo \"$n of a steady service\"; done
      sleep 0.05
    done";

/// Prints for ever, as fast as it can.
const FLOOD: &str = "n=0
    while :; do n=$((n+1)); echo \"$n drop in a flood that does not end\"; done";

/// Lines by run. Those of one replica begin alike and end with the run's number, and there are fewer than ten.
type Runs = BTreeMap<String, u64>;

/// How each follower ended, as it does.
type Outcomes = JoinSet<(Watched, Option<CallError>)>;

/// A follower that is judged, and can be watched.
struct Watched {
    oracle: LossChecker,
    runs: watch::Sender<Runs>,
    resumed: usize,
}

impl Sink for Watched {
    fn entry(&mut self, entry: &ServiceLogs) -> io::Result<()> {
        self.oracle.feed(entry);
        if let Some(cursor) = entry.cursor.as_ref().filter(|_| entry.gap.is_none()) {
            let lines = memchr::memchr_iter(b'\n', &entry.logs).count() as u64;
            self.runs.send_modify(|runs| *runs.entry(cursor.instance.clone()).or_default() += lines);
        }
        Ok(())
    }

    fn connection(&mut self, turn: &ConnectionChange<'_>) -> io::Result<()> {
        self.resumed += usize::from(matches!(turn, ConnectionChange::Resumed));
        Ok(())
    }
}

fn connector(world: &World, gateway: &str) -> Connector {
    let target = Target {
        gateway: format!("https://{gateway}").parse().unwrap(),
        identity: Some(world.path("alice")),
        token: None,
        trust: ServerTrust::File(world.path("data/server.pem")),
    };
    Connector::new(&target).unwrap()
}

/// Starts followers, each with a connection of its own; and where each one's progress can be seen.
fn crowd(
    connector: &Connector,
    lease: &LeaseId,
    stop: &CancellationToken,
) -> (Outcomes, Vec<watch::Receiver<Runs>>) {
    let request = ServiceLogsRequest { lease_id: Some(lease.into()), follow: true, ..Default::default() };
    let mut tasks = JoinSet::new();
    let progress = (0..FOLLOWERS).map(|_| {
        let (runs, progress) = watch::channel(Runs::new());
        let follower = Follower::new(connector.clone(), request.clone());
        let mut watched = Watched { oracle: LossChecker::new(Start::First, Order::Exact), runs, resumed: 0 };
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

/// Waits until each follower has some lines of so many runs.
async fn until_all_have(progress: &mut [watch::Receiver<Runs>], runs: usize) {
    let wait = async {
        for one in progress {
            let enough = |seen: &Runs| seen.len() == runs && seen.values().all(|lines| *lines >= SOME_LINES);
            one.wait_for(enough).await.expect("a follower ended");
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("lines");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_followers_lose_and_repeat_nothing_through_a_restart() {
    let world = World::new();
    let lease = world.tenant("alice");
    let sdl = world.sdl("alice.yaml", &[("web", STEADY, 1)]);
    let listen = format!("--listen=127.0.0.1:{}", own_port());
    let serve = || block_in_place(|| world.serve(&[(&lease, &sdl)], &[&listen]));
    let gateway = serve();
    let stop = CancellationToken::new();
    let (mut tasks, mut progress) = crowd(&connector(&world, &gateway.address.to_string()), &lease, &stop);
    until_all_have(&mut progress, 1).await;
    gateway.until_metric("leasemux_connections", FOLLOWERS as u64);
    let done = block_in_place(|| gateway.stop(Signal::TERM));
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    assert!(!done.err.contains("did not end in time"), "{}", done.err);
    let gateway = serve();
    until_all_have(&mut progress, 2).await;

    // The first run as it is on disk is what every one of them has of it, to the last line printed before the end.
    let previous =
        block_in_place(|| world.logs(gateway.address, "alice", &lease, &["--previous", "-o", "json"]));
    let first = Seen::of(&previous.out).runs("web/0");
    stop.cancel();
    let mut judged = 0;
    while let Some(outcome) = tasks.join_next().await {
        let (watched, error) = outcome.unwrap();
        assert!(error.is_none(), "{error:?}");
        let tally = watched.oracle.verdict().unwrap_or_else(|violation| panic!("{violation}"));
        assert_eq!((tally.gaps, tally.lost_lines, tally.checked), (0, 0, tally.lines), "{tally:?}");
        assert_eq!(watched.runs.borrow().values().next(), first.first());
        assert!(watched.resumed >= 1);
        judged += 1;
    }
    assert_eq!(judged, FOLLOWERS);
    let done = block_in_place(|| gateway.stop(Signal::TERM));
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    block_in_place(|| world.until_nothing_is_left());
}

#[test]
fn a_lame_duck_serves_on_and_is_no_longer_ready() {
    let world = World::new();
    let lease = world.tenant("alice");
    let sdl = world.sdl("alice.yaml", &[("web", STEADY, 1)]);
    let gateway = world.serve(&[(&lease, &sdl)], &["--lame-duck=10m"]);
    let mut follower = world.follow(gateway.address, "alice", &lease);
    follower.until("lines", |seen| seen.tally().lines > 20);
    gateway.program.signal(Signal::TERM);
    gateway.program.until_said("not ready; serving until");
    assert!(gateway.get("/ready").0.starts_with("http/1.1 503"));
    assert!(gateway.get("/live").0.starts_with("http/1.1 200"));
    // Who is there is served, and so is who still comes.
    let lines = follower.seen.tally().lines;
    follower.until("more lines", |seen| seen.tally().lines > lines + 20);
    let done = world.logs(gateway.address, "alice", &lease, &["--tail=3"]);
    // What is printed while the last three are read comes along.
    assert!(done.status.code() == Some(0) && done.out.lines().count() >= 3, "{done:?}");
    let (seen, err) = follower.end();
    seen.is_whole();
    assert!(!err.contains("shutting down"), "{err}");
    // A second signal does not wait.
    gateway.program.signal(Signal::TERM);
    let done = gateway.program.done();
    assert!(done.err.contains("stopping at once"), "{}", done.err);
    world.until_nothing_is_left();
}

#[test]
fn only_a_gateway_that_is_polled_waits_for_pollers() {
    let world = World::new();
    let lease = world.tenant("alice");
    let sdl = world.sdl("alice.yaml", &[("web", STEADY, 1)]);
    let stop = |polled: bool, flags: &[&str]| {
        let gateway = world.serve(&[(&lease, &sdl)], flags);
        if polled {
            gateway.get("/ready");
        }
        let done = gateway.stop(Signal::TERM);
        assert_eq!(done.status.code(), Some(0), "{done:?}");
        assert_eq!(done.err.matches("INFO leasemux::serve: stopped").count(), 1, "{}", done.err);
        done.err.contains("not ready; serving until")
    };
    assert!(!stop(false, &[]), "nobody would learn of it");
    assert!(stop(true, &[]));
    assert!(!stop(true, &["--lame-duck=0"]));
    assert!(stop(false, &["--lame-duck=10ms"]), "asked for is asked for");
}

#[test]
fn the_log_names_who_held_the_door() {
    let world = World::new();
    let lease = world.tenant("alice");
    let sdl = world.sdl("alice.yaml", &[("web", FLOOD, 1)]);
    let gateway = world.serve(&[(&lease, &sdl)], &["--drain-timeout=100ms", "--ring-max-bytes=64KiB"]);
    let mut follower = world.follow(gateway.address, "alice", &lease);
    follower.until("lines", |seen| seen.tally().lines > 20);
    // It takes nothing any more, and once everything on the way is full, not even an end.
    follower.program.signal(Signal::STOP);
    gateway.until_nothing_is_taken();
    let done = gateway.stop(Signal::TERM);
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    let said = done.err.lines().find(|line| line.contains("did not end in time, cut off"));
    let said = said.unwrap_or_else(|| panic!("{}", done.err));
    assert!(said.contains("connections=1") && said.contains("first=[127.0.0.1:"), "{said}");
    drop(follower);
    world.until_nothing_is_left();
}
