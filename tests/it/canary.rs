//! `leasemux canary` beside a real gateway: rotation, restarts, a lagging canary.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use leasemux::model::id::LeaseId;
use rustix::process::Signal;

use crate::support::process::{Done, PATIENCE, Program, Workspace, get, own_port};

/// After a signal, prints more than the ring and all buffers of a stream and of the kernel can hold.
const FLOOD: &str = "n=1
    echo leasemux-canary run=flood n=1 at=1
    until [ -e $GATES/flood ]; do sleep 0.02; done
    while [ $n -lt 200000 ]; do n=$((n+1)); echo leasemux-canary run=flood n=$n at=1 in a flood; done
    echo $n > $GATES/flooded
    exec sleep 1000";

const FLOOD_LINES: u64 = 200_000;

struct Canary {
    program: Program,
    metrics: SocketAddr,
}

impl Canary {
    fn start(workspace: &Workspace, gateway: SocketAddr, lease: &LeaseId, more: &[&str]) -> Self {
        let mut args = workspace.call_args("canary", gateway, "alice", lease);
        args.extend(["--service=counter", "--metrics-listen=127.0.0.1:0"].map(str::to_owned));
        let args: Vec<&str> = args.iter().map(String::as_str).chain(more.iter().copied()).collect();
        let program = workspace.start(&args);
        let metrics = program.until_out("its ready line", |out| {
            let line = out.split_once('\n')?.0.strip_prefix("leasemux canary ready: metrics http://")?;
            Some(line.parse().unwrap())
        });
        Self { program, metrics }
    }

    fn metric(&self, name: &str) -> u64 {
        let (_, page) = get(self.metrics, "HTTP/1.0", "/metrics").unwrap();
        let series = format!("leasemux_canary_{name}");
        let value = page.lines().find_map(|line| line.strip_prefix(&series)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {series} in {page}")).parse().unwrap()
    }

    #[track_caller]
    fn until(&self, what: &str, is_met: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_met(self) {
            assert!(Instant::now() < deadline, "timed out: {what}\n{}", self.program.err.get());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for this many more lines.
    #[track_caller]
    fn until_more(&self, lines: u64) {
        let wanted = self.metric("lines_delivered_total") + lines;
        self.until("lines", |canary| canary.metric("lines_delivered_total") >= wanted);
    }

    fn end(self) -> Done {
        self.program.signal(Signal::TERM);
        self.program.done()
    }
}

/// Writes the SDL of the example with other values of its environment.
fn counter(workspace: &Workspace, values: &[(&str, &str)]) -> PathBuf {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/counter.yaml");
    let mut text = fs::read_to_string(example).unwrap();
    for (from, to) in values {
        assert!(text.contains(from), "{from}");
        text = text.replace(from, to);
    }
    let path = workspace.path("counter.yaml");
    fs::write(&path, text).unwrap();
    path
}

#[test]
fn canary_counts_through_rotation_and_restarts() {
    let workspace = Workspace::new();
    let lease = workspace.tenant("alice");
    let sdl = counter(
        &workspace,
        &[
            ("INTERVAL=1", "INTERVAL=0.02"),
            ("BURST=1", "BURST=10"),
            ("PAD=0", "PAD=100"),
            ("count: 1}", "count: 2}"),
        ],
    );
    let listen = format!("--listen=127.0.0.1:{}", own_port());
    // The canary may take seconds to reconnect: the lines of that time must remain.
    let flags = [&*listen, "--rotate-max-bytes=64KiB", "--rotate-files=100"];
    let gateway = workspace.serve(&[(&lease, &sdl)], &flags);
    let canary = Canary::start(&workspace, gateway.address, &lease, &["--log-format=json"]);
    assert!(get(canary.metrics, "HTTP/1.0", "/ready").unwrap().0.starts_with("http/1.0 "));
    canary.until("the first line", |canary| canary.metric("lines_delivered_total") > 0);
    assert!(get(canary.metrics, "HTTP/1.0", "/ready").unwrap().0.starts_with("http/1.0 200 "));
    canary.until("both replicas", |canary| canary.metric("runs_total") == 2);
    assert_eq!(canary.metric("replicas"), 2);
    // Some hundred kilobytes.
    canary.until_more(2_000);
    let runs = canary.metric("runs_total");
    let mut args = workspace.call_args("restart", gateway.address, "alice", &lease);
    args.extend(["--all", "--timeout=0"].map(str::to_owned));
    let done = workspace.run(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(done.status.code() == Some(0) || done.status.code() == Some(8), "{done:?}");
    canary.until("another run", |canary| canary.metric("runs_total") > runs);
    canary.until_more(200);
    let runs = canary.metric("runs_total");
    gateway.stop(Signal::TERM);
    canary.until("the end of the stream", |canary| canary.metric("connected") == 0);
    let _gateway = workspace.serve(&[(&lease, &sdl)], &flags);
    canary.until("another run", |canary| canary.metric("runs_total") > runs);
    canary.until_more(200);
    assert!(canary.metric("disconnects_total{reason=\"unavailable\"}") > 0);
    for kind in ["unreported", "repeated", "out_of_order", "overreported"] {
        assert_eq!(canary.metric(&format!("lines_{kind}_total")), 0, "{kind}");
    }
    assert_eq!(canary.metric("lines_unknown_total{kind=\"malformed\"}"), 0);
    assert_eq!(canary.metric("clock_ahead_seconds"), 0, "the clock of the service");
    assert!(canary.metric("delay_seconds_bucket{le=\"30\"}") > 1_000, "the clock of the service");
    let done = canary.end();
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    assert!(done.out.contains("  loss check       passed\n"), "{done:?}");
    let is_json = |line: &str| serde_json::from_str::<serde_json::Value>(line).is_ok();
    assert!(done.err.lines().all(is_json) && done.err.contains("\"reason\":\"unavailable\""), "{}", done.err);
}

#[test]
fn lagging_canary_counts_the_exact_loss() {
    let workspace = Workspace::new();
    let lease = workspace.tenant("alice");
    let sdl = workspace.sdl("counter.yaml", &[("counter", FLOOD, 1)]);
    let gateway = workspace.serve(&[(&lease, &sdl)], &["--ring-max-bytes=64KiB"]);
    let mut quick = workspace.follow(gateway.address, "alice", &lease);
    quick.until("the first line", |seen| !seen.runs("counter/0").is_empty());
    let canary = Canary::start(&workspace, gateway.address, &lease, &["--on-lag=drop"]);
    // All streams of the two followers.
    gateway.until_metric("leasemux_followers", 2);
    canary.program.signal(Signal::STOP);
    workspace.open("flood");
    workspace.until_number("flooded", FLOOD_LINES);
    canary.program.signal(Signal::CONT);
    let lost = |canary: &Canary| canary.metric("lines_lost_total{cause=\"lag\"}");
    let total = |canary: &Canary| canary.metric("lines_delivered_total") + lost(canary);
    // It started after the first line.
    canary.until("all lines", |canary| total(canary) >= FLOOD_LINES - 1);
    assert_eq!(total(&canary), FLOOD_LINES - 1);
    assert!(lost(&canary) > 0 && canary.metric("gaps_total{exact=\"true\"}") > 0);
    let done = canary.end();
    assert_eq!(done.status.code(), Some(6), "{done:?}");
    assert!(done.out.contains("  unreported       0 lines\n"), "{done:?}");
    assert!(done.out.contains("  overreported     0 lines\n"), "{done:?}");
    assert!(done.err.contains("lines were reported as lost"), "{done:?}");
}

#[test]
fn rejected_canary_ends_and_waits_for_no_gateway() {
    let workspace = Workspace::new();
    let lease = workspace.tenant("alice");
    let sdl = counter(&workspace, &[("INTERVAL=1", "INTERVAL=0.1")]);
    let gateway = workspace.serve(&[(&lease, &sdl)], &[]);
    workspace.stranger("mallory");
    let mut args = workspace.call_args("canary", gateway.address, "mallory", &lease);
    args.extend(["--service=counter", "--metrics-listen=127.0.0.1:0"].map(str::to_owned));
    let done = workspace.run(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(done.status.code(), Some(3), "{done:?}");
    // The canary may start before the gateway, as in the same pod.
    let listen = SocketAddr::from(([127, 0, 0, 1], own_port()));
    let canary = Canary::start(&workspace, listen, &lease, &[]);
    canary.until("an attempt", |canary| canary.metric("disconnects_total{reason=\"unavailable\"}") > 0);
    let (flag, data) =
        (format!("--listen={listen}"), format!("--data-dir={}", workspace.path("data").display()));
    gateway.stop(Signal::TERM);
    let _gateway = workspace.serve(&[(&lease, &sdl)], &[&flag, &data]);
    canary.until_more(3);
    // Revoked while it is connected, and trusted again.
    let (trusted, kept) = (workspace.path("trusted/alice.pem"), workspace.path("kept.pem"));
    fs::rename(&trusted, &kept).unwrap();
    canary.until("a rejection", |canary| canary.metric("disconnects_total{reason=\"rejected\"}") > 0);
    fs::rename(&kept, &trusted).unwrap();
    canary.until_more(3);
    let done = canary.end();
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    assert!(done.out.contains("  loss check       passed\n"), "{done:?}");
}
