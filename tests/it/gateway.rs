//! The real program, with processes and sockets: the gateway of an operator, and `leasemux logs` of a tenant.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::time::SystemTime;

use leasemux::client::connect::Connector;
use leasemux::config::Target;
use leasemux::edge::tls;
use leasemux::model::id::LeaseId;
use leasemux::model::proto::lease::ServiceLogsRequest;
use rustix::process::Signal;
use tonic::{Code, Status};

use crate::support::process::{Done, Gateway, Judged, PATIENCE, Seen, Workspace, own_port};

mod limits;

/// Prints 3,000 lines as fast as it can, each time a gate opens.
const BURSTS: &str = "n=0
    for gate in one two; do
      until [ -e $GATES/$gate ]; do sleep 0.02; done
      i=0
      while [ $i -lt 3000 ]; do i=$((i+1)); n=$((n+1)); echo \"$n line of a burst\"; done
    done
    exec sleep 1000";

/// Prints a line, and when its gate opens, more than all buffers on the way to one follower hold.
const FLOOD: &str = "echo 1 before the flood
    until [ -e $GATES/one ]; do sleep 0.02; done
    n=1
    while [ $n -lt 60000 ]; do n=$((n+1)); echo \"$n drop in a flood that nobody who stands still can take in\"; done
    exec sleep 1000";

/// Lines of [`FLOOD`].
const FLOOD_LINES: u64 = 60_000;

/// Prints small groups of lines forever, and writes their number to a file.
const STEADY: &str = "n=0
    while :; do
      i=0
      while [ $i -lt 20 ]; do i=$((i+1)); n=$((n+1)); echo \"$n of a steady service\"; done
      echo $n > $GATES/printed
      sleep 0.05
    done";

/// Prints 300 lines, and 300 more when its gate opens: a bounded load for slow followers.
const GATED: &str = "n=0
    while [ $n -lt 300 ]; do n=$((n+1)); echo \"$n of a gated service\"; done
    until [ -e $GATES/more ]; do sleep 0.02; done
    while [ $n -lt 600 ]; do n=$((n+1)); echo \"$n of a gated service\"; done
    exec sleep 1000";

/// Exits with code 3 twice, and keeps running the third time. Each run prints 500 lines.
const CRASHING: &str = "until [ -e $GATES/one ]; do sleep 0.02; done
    echo >> $GATES/runs
    run=$(wc -l < $GATES/runs)
    n=0
    while [ $n -lt 500 ]; do n=$((n+1)); echo \"$n of run $run\"; done
    [ $run -ge 3 ] || exit 3
    exec sleep 1000";

/// A process with three children: one in the same session, one in its own, and an orphan. All ignore SIGTERM.
const STUBBORN: &str = "trap '' TERM HUP
    sleep 1001 &
    setsid sleep 1002 &
    (setsid sh -c 'sleep 1003 & exit' &)
    echo 1 up
    while :; do wait; done";

fn code(done: &Done, code: i32) {
    assert_eq!(done.status.code(), Some(code), "{done:?}");
}

/// Starts a gateway with one tenant, `alice`, and one lease.
fn serve(services: &[(&str, &str, u32)], flags: &[&str]) -> (Workspace, LeaseId, Gateway) {
    serve_with(Workspace::new(), services, flags)
}

fn serve_with(
    workspace: Workspace,
    services: &[(&str, &str, u32)],
    flags: &[&str],
) -> (Workspace, LeaseId, Gateway) {
    let lease = workspace.tenant("alice");
    let sdl = workspace.sdl("alice.yaml", services);
    let gateway = workspace.serve(&[(&lease, &sdl)], flags);
    (workspace, lease, gateway)
}

#[test]
fn followers_miss_nothing_while_logs_are_rotated() {
    let (workspace, lease, gateway) =
        serve(&[("web", BURSTS, 2)], &["--rotate-max-bytes=16KiB", "--rotate-files=100"]);
    let address = gateway.address;
    // One follower from the start, before the first line …
    let mut early = workspace.follow(address, "alice", &lease);
    gateway.until_metric("leasemux_followers", 2);
    workspace.open("one");
    early.until("half a burst", |seen| seen.runs("web/0").iter().sum::<u64>() >= 1500);
    // … one that backfills while more is printed …
    let mut late = workspace.follow(address, "alice", &lease);
    let all = |lines: u64| move |seen: &Seen| ["web/0", "web/1"].iter().all(|of| seen.runs(of) == [lines]);
    early.until("a burst", all(3000));
    late.until("a burst", all(3000));
    // … and one that starts at the last lines, as text.
    let tail =
        workspace.start_logs(address, "alice", &lease, &["-f", "--tail=2", "--service=web", "--replica=1"]);
    let tailed = |wanted: u64| {
        move |out: &str| {
            let numbers = out.lines().map(|line| {
                let number = line.strip_prefix("web/1 | ").unwrap().strip_suffix(" line of a burst").unwrap();
                number.parse::<u64>().unwrap()
            });
            let whole = out.ends_with('\n') && out.lines().count() as u64 == wanted;
            whole.then(|| assert!(numbers.eq(2999..2999 + wanted), "{out}"))
        }
    };
    tail.until_out("the last two lines", tailed(2));
    workspace.open("two");
    early.until("both bursts", all(6000));
    late.until("both bursts", all(6000));
    tail.until_out("the second burst", tailed(3002));

    let logs = std::fs::read_dir(workspace.path("data/pods")).unwrap();
    for pod in logs {
        let files = std::fs::read_dir(pod.unwrap().path().join("web")).unwrap().count();
        assert!(files >= 20, "rotated only {files} times");
    }
    for follower in [early, late] {
        let (seen, err) = follower.end();
        assert_eq!(seen.is_whole().lines, 12_000, "{err}");
    }
    // A read without follow returns the same lines, and ends.
    let done = workspace.logs(address, "alice", &lease, &["-o", "json"]);
    code(&done, 0);
    let seen = Seen::of(&done.out);
    assert_eq!((seen.is_whole().lines, seen.runs("web/1")), (12_000, vec![6000]));
    drop(tail);
    code(&gateway.stop(Signal::TERM), 0);
    workspace.until_nothing_is_left();
}

#[test]
fn crash_is_reported_and_its_run_can_be_read() {
    let (workspace, lease, gateway) = serve(&[("web", CRASHING, 1)], &["--rotate-max-bytes=8KiB"]);
    let mut json = workspace.follow(gateway.address, "alice", &lease);
    let text = workspace.start_logs(gateway.address, "alice", &lease, &["--follow"]);
    gateway.until_metric("leasemux_followers", 2);
    workspace.open("one");
    json.until("three runs", |seen| seen.runs("web/0") == [500, 500, 500]);
    text.until_out("three runs", |out| (out.matches('\n').count() == 1500).then_some(()));
    let expected = (1..=3).flat_map(|run| (1..=500).map(move |n| format!("web/0 | {n} of run {run}")));
    assert!(text.out.get().lines().eq(expected));
    text.until_said("web/0 * exited with code 3");

    let (seen, _) = json.end();
    assert_eq!(seen.is_whole().lines, 1500);
    let ends: Vec<_> = seen.events.iter().filter(|event| event["kind"] == "ended").collect();
    assert_eq!(ends.len(), 2, "{ends:?}");
    for (run, end) in ends.into_iter().enumerate() {
        assert_eq!((&end["exit_code"], &end["reason"]), (&3.into(), &"Error".into()), "{end}");
        assert!(end["instance"].as_str().unwrap().ends_with(&format!("/web/{run}")), "{end}");
        assert!(end["time"].as_str().unwrap().ends_with('Z'), "{end}");
    }
    assert!(seen.events("started") >= 2, "{:?}", seen.events);

    let previous = workspace.logs(gateway.address, "alice", &lease, &["--previous"]);
    code(&previous, 0);
    let run = |run: u32| (1..=500).map(move |n| format!("web/0 | {n} of run {run}"));
    assert!(previous.out.lines().eq(run(2)), "{previous:?}");
    let last = workspace.logs(gateway.address, "alice", &lease, &["--tail=1", "--timestamps"]);
    code(&last, 0);
    let (time, line) = last.out.strip_prefix("web/0 | ").unwrap().split_once(' ').unwrap();
    assert!(time.parse::<jiff::Timestamp>().is_ok() && line == "500 of run 3\n", "{last:?}");
    drop(text);
    code(&gateway.stop(Signal::TERM), 0);
    workspace.until_nothing_is_left();
}

#[test]
fn lagging_follower_gets_the_number_of_lost_lines() {
    let (workspace, lease, gateway) = serve(&[("web", FLOOD, 1)], &["--ring-max-bytes=64KiB"]);
    let mut slow = workspace.follow_dropping(gateway.address, "alice", &lease);
    let mut fast = workspace.follow(gateway.address, "alice", &lease);
    let mut refilled = workspace.follow(gateway.address, "alice", &lease);
    for follower in [&mut slow, &mut fast, &mut refilled] {
        follower.until("the first line", |seen| seen.runs("web/0") == [1]);
    }
    slow.program.signal(Signal::STOP);
    refilled.program.signal(Signal::STOP);
    workspace.open("one");
    // The other follower is not delayed.
    let end = |seen: &Seen| seen.tally().lines + seen.tally().lost_lines == FLOOD_LINES;
    fast.until("the end of the flood", end);
    slow.program.signal(Signal::CONT);
    refilled.program.signal(Signal::CONT);
    slow.until("the end of the flood", end);
    refilled.until("the end of the flood", end);
    assert!(gateway.metric("leasemux_refills_total{lag=\"first\"}") > 0);
    let lost_in_metric = gateway.metric("leasemux_lines_lost_total{cause=\"lag\"}");
    let (fast, slow) = (fast.end().0.verdict(), slow.end().0.verdict());
    assert!(slow.gaps >= 1 && slow.lost_lines > 0, "{slow:?}");
    assert!(slow.lines > 1 && slow.lines < FLOOD_LINES, "{slow:?}");
    // The log has all lines.
    let refilled = refilled.end().0.verdict();
    assert_eq!((refilled.lines, refilled.gaps), (FLOOD_LINES, 0), "{refilled:?}");
    let lost = fast.lost_lines + slow.lost_lines;
    assert_eq!(lost_in_metric, lost, "{fast:?} {slow:?}");
    code(&gateway.stop(Signal::TERM), 0);
    workspace.until_nothing_is_left();
}

#[test]
fn full_disk_loses_lines_only() {
    // A file size limit fails writes like a full disk, also within a record, and can be raised.
    let (workspace, lease, gateway) = serve_with(Workspace::limitable(), &[("web", STEADY, 2)], &[]);
    gateway.program.limit_files(Some(32 * 1024));
    let mut follower = workspace.follow(gateway.address, "alice", &lease);
    gateway.program.until_said_times("failed to write log, dropping output", 2);
    let read = gateway.metric("leasemux_lines_in_total");
    // For a while no log can be written. The services continue, as their files show.
    let full = workspace.number("printed");
    workspace.until_number("printed", full + 1000);
    gateway.program.limit_files(None);
    gateway.program.until_said_times("log can be written again", 2);
    // Each has more lines than both had before.
    follower.until("both replicas' gaps, and lines after them", |seen| {
        seen.tally().gaps >= 2 && seen.runs("web/0")[0] > read && seen.runs("web/1")[0] > read
    });
    let (seen, err) = follower.end();
    let tally = seen.verdict();
    assert!(tally.lost_lines > 0, "{tally:?} {err}");
    assert_eq!((seen.runs("web/0").len(), seen.runs("web/1").len(), seen.events("ended")), (1, 1, 0));
    let done = gateway.stop(Signal::TERM);
    code(&done, 0);
    assert!(done.err.lines().count() < 20, "{}", done.err);
    workspace.until_nothing_is_left();
}

#[test]
fn unwritable_log_loses_its_own_lines_only() {
    let (workspace, lease, gateway) = serve_with(Workspace::unheard(), &[("web", STEADY, 1)], &[]);
    let mut follower = workspace.follow(gateway.address, "alice", &lease);
    follower.until("lines", |seen| seen.runs("web/0").iter().sum::<u64>() > 100);
    // Each of these writes to the log: the directory watcher, and the task of a stream.
    let mallory = workspace.stranger("mallory");
    code(&workspace.logs(gateway.address, "mallory", &mallory, &[]), 3);
    let bob = workspace.tenant("bob");
    let deadline = std::time::Instant::now() + PATIENCE;
    while workspace.logs(gateway.address, "bob", &bob, &[]).status.code() != Some(4) {
        assert!(std::time::Instant::now() < deadline, "bob is not admitted");
    }
    let before = follower.seen.runs("web/0").iter().sum::<u64>();
    follower.until("more lines", |seen| seen.runs("web/0").iter().sum::<u64>() > before + 100);
    follower.end().0.is_whole();
    code(&gateway.stop(Signal::TERM), 0);
    workspace.until_nothing_is_left();
}

#[test]
fn unread_log_delays_nothing() {
    // Trace output is far more than a pipe holds.
    let (workspace, lease, gateway) =
        serve_with(Workspace::unread(), &[("web", STEADY, 1)], &["--log-filter=trace"]);
    let mut follower = workspace.follow(gateway.address, "alice", &lease);
    for _ in 0..3 {
        let before = follower.seen.runs("web/0").iter().sum::<u64>();
        follower.until("more lines", |seen| seen.runs("web/0").iter().sum::<u64>() > before + 1000);
        assert!(gateway.get("/live").0.starts_with("http/1.1 200"));
    }
    follower.end().0.is_whole();
    code(&gateway.stop(Signal::TERM), 0);
}

#[test]
fn follow_continues_across_gateway_restarts() {
    let workspace = Workspace::new();
    let lease = workspace.tenant("alice");
    let sdl = workspace.sdl("alice.yaml", &[("web", STEADY, 1), ("api", STEADY, 2)]);
    let listen = format!("--listen=127.0.0.1:{}", own_port());
    let flags = [listen.as_str(), "--rotate-max-bytes=64KiB", "--rotate-files=1000"];
    let all = |seen: &Seen, runs: usize| {
        ["web/0", "api/0", "api/1"].iter().all(|of| {
            let found = seen.runs(of);
            found.len() == runs && found.iter().all(|lines| *lines > 200)
        })
    };
    let gateway = workspace.serve(&[(&lease, &sdl)], &flags);
    let mut follower = workspace.follow(gateway.address, "alice", &lease);
    follower.until("some lines", |seen| all(seen, 1));
    code(&gateway.stop(Signal::TERM), 0);
    follower.program.until_said("the gateway is shutting down");
    // The client reconnects while the gateway is down.
    follower.program.until_said("cannot reach the gateway at https://127.0.0.1:");
    let gateway = workspace.serve(&[(&lease, &sdl)], &flags);
    follower.until("lines of the second run", |seen| all(seen, 2));
    follower.program.until_said("reconnected, resuming where the stream ended");
    code(&gateway.stop(Signal::INT), 0);
    let gateway = workspace.serve(&[(&lease, &sdl)], &flags);
    follower.until("lines of the third run", |seen| all(seen, 3));
    // Both runs ended with their gateway; the next one reports it.
    follower.until("the ends", |seen| seen.events("ended") == 6);

    // The previous run has exactly the lines that the follower received.
    let done = workspace.logs(gateway.address, "alice", &lease, &["--previous", "-o", "json"]);
    code(&done, 0);
    let previous = Seen::of(&done.out);
    previous.is_whole();
    let (seen, err) = follower.end();
    seen.is_whole();
    for of in ["web/0", "api/0", "api/1"] {
        assert_eq!(previous.runs(of), [seen.runs(of)[1]], "{of}: {err}");
    }
    assert_eq!(err.matches("reconnected").count(), 2, "{err}");
    code(&gateway.stop(Signal::TERM), 0);
    workspace.until_nothing_is_left();
}

#[tokio::test]
async fn streams_of_a_stopping_gateway_end_with_unavailable() {
    let (workspace, lease, gateway) = serve(&[("web", STEADY, 1)], &[]);
    let target = Target {
        gateway: format!("https://{}", gateway.address).parse().unwrap(),
        identity: Some(workspace.path("alice")),
        token: None,
        ca: Some(workspace.path("data/server.pem")),
        insecure: false,
    };
    let mut client = Connector::new(&target).unwrap().connect().await.unwrap();
    let request = ServiceLogsRequest { lease_id: Some((&lease).into()), follow: true, ..Default::default() };
    let mut stream = client.service_logs(request).await.unwrap().into_inner();
    tokio::time::timeout(PATIENCE, stream.message()).await.unwrap().unwrap().unwrap();
    gateway.program.signal(Signal::TERM);
    let end: Status = tokio::time::timeout(PATIENCE, async {
        loop {
            if let Err(end) = stream.message().await {
                break end;
            }
        }
    })
    .await
    .unwrap();
    assert_eq!(end.code(), Code::Unavailable, "{end:?}");
    drop((stream, client));
    code(&gateway.program.done(), 0);
    workspace.until_nothing_is_left();
}

#[tokio::test]
async fn published_port_is_for_requests_with_a_lease_only() {
    let (workspace, lease, gateway) =
        serve(&[("web", "echo 1 of a service; exec sleep 1000", 1)], &["--published-listen=127.0.0.1:0"]);
    let address = gateway.program.out.get();
    let (_, address) = address.trim_end().split_once(" published https://").unwrap();
    // `leasemux logs` speaks the draft at both ports.
    let follow = |address| workspace.follow(address, "alice", &lease);
    let mut followers = [follow(gateway.address), follow(address.parse().unwrap())];
    for follower in &mut followers {
        follower.until("a line", |seen| seen.runs("web/0") == [1]);
    }
    let done = workspace.logs(address.parse().unwrap(), "alice", &lease, &[]);
    code(&done, 0);
    assert!(done.out.contains("1 of a service"), "{done:?}");
    // The response is not one of the draft.
    let target = Target {
        gateway: format!("https://{address}").parse().unwrap(),
        identity: Some(workspace.path("alice")),
        token: None,
        ca: Some(workspace.path("data/server.pem")),
        insecure: false,
    };
    let mut client = Connector::new(&target).unwrap().connect().await.unwrap();
    let request = ServiceLogsRequest { lease_id: Some((&lease).into()), ..Default::default() };
    let mut stream = client.service_logs(request).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap_err().message().contains("decode"));
    drop((stream, client));
    code(&gateway.stop(Signal::TERM), 0);
    drop(followers);
    workspace.until_nothing_is_left();
}

#[test]
fn second_signal_stops_the_gateway_at_once() {
    // The services would use their whole grace period, and this follower never reads.
    let (workspace, lease, gateway) = serve(&[("web", STUBBORN, 1)], &["--drain-timeout=10m"]);
    let mut follower = workspace.follow(gateway.address, "alice", &lease);
    follower.until("a line", |seen| seen.runs("web/0") == [1]);
    follower.program.signal(Signal::STOP);
    gateway.program.signal(Signal::INT);
    gateway.program.until_said("stopping");
    gateway.program.signal(Signal::TERM);
    let done = gateway.program.done();
    code(&done, 0);
    assert!(done.err.contains("stopping at once"), "{}", done.err);
    drop(follower);
    workspace.until_nothing_is_left();
}

#[test]
fn sighup_stops_the_gateway_unless_nohup() {
    let (workspace, lease, gateway) = serve(&[("web", STEADY, 1)], &[]);
    let mut follower = workspace.follow(gateway.address, "alice", &lease);
    follower.until("lines", |seen| seen.runs("web/0").iter().sum::<u64>() > 100);
    // Twice, by the shell and by the kernel.
    gateway.program.signal(Signal::HUP);
    gateway.program.until_said("SIGHUP");
    let done = gateway.stop(Signal::HUP);
    code(&done, 0);
    assert!(done.err.contains("stopped") && !done.err.contains("stopping at once"), "{}", done.err);
    follower.program.until_said("the gateway is shutting down");
    follower.end().0.is_whole();

    let (_workspace, _, gateway) = serve_with(Workspace::nohup(), &[("web", STEADY, 1)], &[]);
    gateway.program.signal(Signal::HUP);
    let done = gateway.stop(Signal::TERM);
    code(&done, 0);
    assert!(!done.err.contains("SIGHUP"), "{}", done.err);
}

#[test]
fn killed_gateway_leaves_no_descendants() {
    let (workspace, lease, gateway) = serve(&[("web", STUBBORN, 2), ("api", STEADY, 1)], &[]);
    let mut follower = workspace.follow(gateway.address, "alice", &lease);
    follower.until("lines", |seen| seen.runs("web/0") == [1] && seen.runs("web/1") == [1]);
    let sleeps = |count: usize| {
        move |found: &std::collections::BTreeMap<i32, String>| {
            found.values().filter(|arguments| arguments.starts_with("sleep 100")).count() == count
        }
    };
    workspace.until_processes(sleeps(6));
    gateway.program.signal(Signal::KILL);
    assert_eq!(gateway.program.done().status.signal(), Some(9));
    follower.program.until_said("; reconnecting in ");
    let said = follower.program.err.get();
    assert!(!said.contains("close_notify"), "a text of a library: {said}");
    // Only the follower is left, which tries to reconnect.
    workspace.until_processes(|found| found.len() == 1);
    let (seen, _) = follower.end();
    seen.is_whole();
    workspace.until_nothing_is_left();
}

#[test]
fn tenants_see_their_own_leases_only() {
    let workspace = Workspace::new();
    let (alice, bob) = (workspace.tenant("alice"), workspace.tenant("bob"));
    let mallory = workspace.stranger("mallory");
    let sdls = ["alice", "bob"].map(|name| {
        let script =
            format!("n=0; while [ $n -lt 100 ]; do n=$((n+1)); echo $n {name}; done; exec sleep 1000");
        workspace.sdl(&format!("{name}.yaml"), &[(&format!("{name}s"), script.as_str(), 1)])
    });
    let gateway = workspace.serve(&[(&alice, &sdls[0]), (&bob, &sdls[1])], &[]);
    let address = gateway.address;
    for (name, lease) in [("alice", &alice), ("bob", &bob)] {
        let mut follower = workspace.follow(address, name, lease);
        follower.until("all lines", |seen| seen.runs(&format!("{name}s/0")) == [100]);
        let (seen, _) = follower.end();
        assert_eq!(seen.is_whole().lines, 100);
        let out = workspace.logs(address, name, lease, &[]).out;
        assert!(out.lines().all(|line| line.ends_with(&format!(" {name}"))), "{out}");
    }
    // Another tenant's lease is refused with the same text whether it exists or not.
    let none = bob.to_string().replace("/7/1/1/", "/8/1/1/").parse().unwrap();
    let refusals = [&bob, &none].map(|lease| {
        let done = workspace.logs(address, "alice", lease, &["-f"]);
        code(&done, 3);
        assert_eq!(done.out, "");
        done.err.replace(&lease.to_string(), "it")
    });
    assert_eq!(refusals[0], refusals[1]);
    assert_eq!(refusals[0].lines().count(), 1, "{refusals:?}");
    code(&workspace.logs(address, "mallory", &mallory, &[]), 3);
    let nobody =
        workspace.run(&["logs", &alice.to_string(), &format!("--gateway=https://{address}"), "--insecure"]);
    code(&nobody, 3);
    let impostor = workspace.logs_args(address, "alice", &alice);
    let impostor: Vec<&str> =
        impostor.iter().map(String::as_str).filter(|arg| !arg.starts_with("--ca")).collect();
    let untrusted = workspace.run(&impostor);
    code(&untrusted, 3);
    assert!(untrusted.err.contains("--ca FILE"), "{untrusted:?}");

    // Things that do not exist.
    let gone = alice.to_string().replace("/7/1/1/", "/8/1/1/").parse().unwrap();
    code(&workspace.logs(address, "alice", &gone, &["-f"]), 4);
    let unknown = workspace.logs(address, "alice", &alice, &["--service=bobs"]);
    code(&unknown, 4);
    assert!(unknown.err.contains("bobs"), "{unknown:?}");
    code(&workspace.logs(address, "alice", &alice, &["--service=alices", "--replica=1"]), 4);
    code(&workspace.logs(address, "alice", &alice, &["--previous"]), 4);
    code(&workspace.logs(address, "alice", &alice, &["--previous", "-f"]), 2);

    code(&gateway.stop(Signal::TERM), 0);
    code(&workspace.logs(address, "alice", &alice, &["-f"]), 5);
    workspace.until_nothing_is_left();
}

#[test]
fn metrics_show_one_tail_for_all_followers() {
    const FOLLOWERS: u64 = 20;
    let (workspace, lease, gateway) = serve(&[("frontend", GATED, 2)], &[]);
    let mut followers: Vec<Judged> =
        (0..FOLLOWERS).map(|_| workspace.follow(gateway.address, "alice", &lease)).collect();
    for (lines, gate) in [(300, "more"), (600, "done")] {
        for follower in &mut followers {
            follower.until("lines", |seen| {
                ["frontend/0", "frontend/1"].iter().all(|of| seen.runs(of) == [lines])
            });
        }
        workspace.open(gate);
    }
    let metric = |name: &str| gateway.metric(name);
    assert_eq!(metric("leasemux_followers"), 2 * FOLLOWERS);
    assert_eq!(metric("leasemux_streams{method=\"ServiceLogs\"}"), FOLLOWERS);
    assert_eq!(metric("leasemux_actors"), 2);
    assert_eq!(metric("leasemux_source_opens_total{read=\"live\"}"), 2);
    // Each follower backfills the lines printed before it.
    assert!(metric("leasemux_lines_in_total") > 0);
    assert_eq!(metric("leasemux_lines_delivered_total"), FOLLOWERS * 1200);
    assert_eq!(metric("leasemux_lines_lost_total{cause=\"lag\"}"), 0);

    let (head, metrics) = gateway.get("/metrics");
    assert!(head.starts_with("http/1.1 200"), "{head}");
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    let secrets =
        [lease.owner().as_str(), lease.provider().as_str(), "alice", "frontend", &lease.namespace()];
    for secret in secrets {
        assert!(!metrics.contains(secret), "{secret} in {metrics}");
    }
    let mut samples = 0;
    for line in metrics.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap();
        assert!(name.starts_with("leasemux_") || name.starts_with("process_"), "{line}");
        let family =
            ["_bucket", "_sum", "_count"].iter().find_map(|part| name.strip_suffix(part)).unwrap_or(name);
        for head in ["HELP", "TYPE"] {
            assert_eq!(metrics.matches(&format!("# {head} {family} ")).count(), 1, "{head} of {line}");
        }
        samples += 1;
    }
    assert!(samples > 30, "{metrics}");

    for (path, status, body) in
        [("/live", "200", "live\n"), ("/ready", "200", "ready\n"), ("/none", "404", "not found: try")]
    {
        let (head, found) = gateway.get(path);
        assert!(head.starts_with(&format!("http/1.1 {status}")) && found.starts_with(body), "{path}: {head}");
    }
    for follower in followers {
        follower.end().0.is_whole();
    }
    code(&gateway.stop(Signal::TERM), 0);
    workspace.until_nothing_is_left();
}

#[test]
fn tasks_of_connections_are_counted() {
    let (workspace, lease, gateway) = serve(&[("web", STEADY, 1)], &[]);
    let before = gateway.metric("leasemux_tasks");
    let mut followers = [(); 4].map(|()| workspace.follow(gateway.address, "alice", &lease));
    for follower in &mut followers {
        follower.until("lines", |seen| seen.tally().lines > 0);
    }
    let meanwhile = gateway.metric("leasemux_tasks");
    assert!(before > 0 && meanwhile >= before + 4, "{before}, then {meanwhile}");
}

#[test]
fn certificate_is_reloaded_while_running() {
    let workspace = Workspace::new();
    let lease = workspace.tenant("alice");
    let sdl = workspace.sdl("alice.yaml", &[("web", STEADY, 1)]);
    let used = workspace.path("tls");
    std::fs::create_dir(&used).unwrap();
    let made = ["old", "new"].map(|name| tls::ensure(&workspace.path(name), &[], SystemTime::now()).unwrap());
    let (certificate, key) = (used.join("tls.crt"), used.join("tls.key"));
    let copy = |from: &Path, to: &Path| assert!(std::fs::copy(from, to).unwrap() > 0);
    copy(&made[0].certificate, &certificate);
    copy(&made[0].key, &key);
    let flags = [format!("--tls-cert={}", certificate.display()), format!("--tls-key={}", key.display())];
    let gateway = workspace.serve(&[(&lease, &sdl)], &[&flags[0], &flags[1]]);
    let trusting = |made: &tls::Generated, more: &[&str]| {
        let mut args = workspace.logs_args(gateway.address, "alice", &lease);
        args.pop();
        args.push(format!("--ca={}", made.certificate.display()));
        args.extend(more.iter().map(|&flag| flag.to_owned()));
        workspace.start(&args.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let mut follower = Judged::new(trusting(&made[0], &["-f", "-o", "json"]));
    follower.until("lines", |seen| seen.runs("web/0").iter().sum::<u64>() > 100);

    // One half alone is not used, and logged once.
    copy(&made[1].certificate, &certificate);
    gateway.program.until_said("failed to reload certificate or key, keeping the previous pair");
    code(&trusting(&made[0], &["--tail=1"]).done(), 0);
    copy(&made[1].key, &key);
    gateway.program.until_said("reloaded certificate");
    code(&trusting(&made[1], &["--tail=1"]).done(), 0);
    code(&trusting(&made[0], &["--tail=1"]).done(), 3);
    assert_eq!(gateway.program.err.get().matches("failed to reload").count(), 1);

    // Open connections are not affected.
    let before = follower.seen.runs("web/0").iter().sum::<u64>();
    follower.until("more lines", |seen| seen.runs("web/0").iter().sum::<u64>() > before + 500);
    let (seen, err) = follower.end();
    seen.is_whole();
    assert!(!err.contains("reconnecting"), "{err}");
    code(&gateway.stop(Signal::TERM), 0);
}

#[test]
fn new_certificate_is_logged() {
    let (workspace, lease, gateway) = serve(&[("web", STEADY, 1)], &[]);
    let sdl = workspace.path("alice.yaml");
    let is_logged =
        |gateway: Gateway| gateway.stop(Signal::TERM).err.contains("created a self-signed certificate");
    assert!(is_logged(gateway));
    assert!(!is_logged(workspace.serve(&[(&lease, &sdl)], &[])), "it was kept");
    assert!(is_logged(workspace.serve(&[(&lease, &sdl)], &["--public-hostname=gw.example.com"])));
}

#[test]
fn new_certificate_has_the_listen_address() {
    let (workspace, lease, gateway) = serve(&[("web", STEADY, 1)], &["--listen=127.0.0.2:0"]);
    let done = workspace.logs(gateway.address, "alice", &lease, &["--tail=0"]);
    code(&done, 0);
    code(&gateway.stop(Signal::TERM), 0);
}

#[test]
fn identity_is_created_once() {
    let workspace = Workspace::new();
    let lease = workspace.stranger("alice");
    let dir = workspace.path("alice");
    let files = || ["cert.pem", "key.pem", "address"].map(|name| std::fs::read(dir.join(name)).unwrap());
    let before = files();
    assert_eq!(String::from_utf8_lossy(&before[2]).trim(), lease.owner().as_str());
    assert_eq!(std::fs::metadata(dir.join("key.pem")).unwrap().permissions().mode() & 0o7777, 0o600);
    let again = workspace.run(&["identity", "new", "--dir", dir.to_str().unwrap()]);
    code(&again, 1);
    assert!(again.err.contains("exists already") && again.err.lines().count() == 1, "{again:?}");
    assert_eq!(files(), before);
}

#[test]
fn startup_errors_are_one_line() {
    let (workspace, lease, gateway) = serve(&[("web", STEADY, 1)], &[]);
    let good = workspace.path("alice.yaml");
    let image = workspace.path("image.yaml");
    std::fs::write(
        &image,
        "{version: '2.0', services: {web: {image: nginx}}, deployment: {web: {a: {count: 1}}}}",
    )
    .unwrap();
    let broken = workspace.path("broken.yaml");
    std::fs::write(&broken, "services: [").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listener.local_addr().unwrap();
    let spoilt = workspace.path("spoilt");
    std::fs::create_dir(&spoilt).unwrap();
    std::fs::write(spoilt.join("pods"), "not a directory").unwrap();
    let file = good.display();
    let other = format!("--data-dir={}", workspace.path("other").display());
    let cases: [(&Path, Vec<String>, i32, &str); 9] = [
        (&good, vec![other.clone(), "--trust-dir=/none".to_owned()], 2, "--trust-dir \"/none\""),
        (&good, vec![other.clone(), format!("--trust-dir={file}")], 2, "--trust-dir \""),
        (&image, vec![other.clone()], 1, "processes, not images"),
        (&broken, vec![other.clone()], 1, "broken.yaml"),
        (&good, vec![other.clone(), format!("--listen={taken}")], 1, "--listen: cannot listen on 127.0.0.1:"),
        (
            &good,
            vec![other.clone(), format!("--admin-listen={taken}")],
            1,
            "--admin-listen: cannot listen on 127.0.0.1:",
        ),
        (&good, vec![], 1, "--data-dir: "),
        (&good, vec![format!("--data-dir={file}")], 2, "--data-dir \""),
        (&good, vec![format!("--data-dir={}", spoilt.display())], 1, "(os error "),
    ];
    for (sdl, flags, expected, text) in cases {
        let mut args = workspace.serve_args(&[(&lease, sdl)]);
        for flag in flags {
            let name = flag.split_once('=').unwrap().0;
            args.retain(|arg| arg.split_once('=').is_none_or(|(known, _)| known != name));
            args.push(flag);
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let done = workspace.run(&args);
        code(&done, expected);
        assert_eq!(done.out, "", "{text}: {done:?}");
        let lines: Vec<&str> = done.err.lines().filter(|line| line.contains(text)).collect();
        assert_eq!(lines.len(), 1, "{text}: {done:?}");
    }
    // The running gateway is not affected.
    let mut follower = workspace.follow(gateway.address, "alice", &lease);
    follower.until("lines", |seen| seen.runs("web/0").iter().sum::<u64>() > 100);
    follower.end().0.is_whole();
    code(&gateway.stop(Signal::TERM), 0);
    workspace.until_nothing_is_left();
}
