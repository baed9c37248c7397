//! The admin port of a running gateway, as operators and Prometheus see it.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use leasemux::model::id::LeaseId;
use rustix::process::Signal;
use serde_json::Value;

use crate::deploy::{not_tested, promtool};
use crate::support::process::{Gateway, PATIENCE, Program, Workspace, get, own_port};

/// After a signal, prints more than the ring and all buffers of a stream and of the kernel can hold.
const FLOOD: &str = "echo 1 before the flood
    until [ -e $GATES/one ]; do sleep 0.02; done
    n=1
    while [ $n -lt 200000 ]; do n=$((n+1)); echo \"$n drop in a flood that a stopped follower cannot receive\"; done
    echo $n > $GATES/flooded
    exec sleep 1000";

/// Prints without end.
const STEADY: &str = "while :; do echo a line; sleep 0.05; done";

fn serve(script: &str, flags: &[&str]) -> (Workspace, LeaseId, Gateway) {
    let workspace = Workspace::new();
    let lease = workspace.tenant("alice");
    let sdl = workspace.sdl("alice.yaml", &[("web", script, 1)]);
    let gateway = workspace.serve(&[(&lease, &sdl)], flags);
    (workspace, lease, gateway)
}

#[track_caller]
fn until<T>(event: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = poll() {
            return found;
        }
        assert!(Instant::now() < deadline, "timed out waiting for {event}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn promtool_accepts_metrics_of_running_gateway() {
    let (workspace, lease, gateway) = serve(STEADY, &[]);
    let mut follower = workspace.follow(gateway.address, "alice", &lease);
    follower.until("lines", |seen| !seen.runs("web/0").is_empty());
    let (_, metrics) = gateway.get("/metrics");
    let Some(output) = promtool(&["check", "metrics"], &metrics) else { return };
    assert!(output.status.success(), "{output:?}");
    assert!(output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn prometheus_scrapes_gateway_and_loads_alerts() {
    let (workspace, lease, gateway) = serve(STEADY, &[]);
    let mut follower = workspace.follow(gateway.address, "alice", &lease);
    follower.until("lines", |seen| !seen.runs("web/0").is_empty());
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus/alerts.yaml");
    let config = format!(
        "{{global: {{scrape_interval: 1s, evaluation_interval: 1s}}, rule_files: ['{}'], \
         scrape_configs: [{{job_name: leasemux, static_configs: [{{targets: ['{}']}}]}}]}}",
        rules.display(),
        gateway.admin
    );
    let file = workspace.path("prometheus.yaml");
    std::fs::write(&file, config).unwrap();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, own_port()));
    let mut command = Command::new("prometheus");
    command.arg(format!("--config.file={}", file.display()));
    command.arg(format!("--storage.tsdb.path={}", workspace.path("tsdb").display()));
    command.arg(format!("--web.listen-address={address}"));
    if let Err(error) = Command::new("prometheus").arg("--version").output() {
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
        not_tested("prometheus");
        return;
    }
    let _prometheus = Program::start(command, "prometheus".to_owned());
    let query_api = |path: &str| {
        let (head, body) = get(address, "HTTP/1.0", path).ok()?;
        head.contains(" 200 ").then(|| serde_json::from_str::<Value>(&body).unwrap()["data"].take())
    };
    let value = |query: &str| {
        let answer = query_api(&format!("/api/v1/query?query={query}"))?;
        Some(answer["result"][0]["value"][1].as_str()?.to_owned())
    };
    until("a scrape", || value("up").filter(|up| up == "1"));
    assert_eq!(value("leasemux_build_info").as_deref(), Some("1"));
    until("lines", || value("leasemux_lines_delivered_total").filter(|lines| lines != "0"));
    until("processor time", || value("process_cpu_seconds_total").filter(|seconds| seconds != "0"));
    let rules = until("the alerts", || {
        let answer = query_api("/api/v1/rules")?;
        let rules = answer["groups"][0]["rules"].as_array()?.clone();
        rules.iter().all(|rule| rule["health"] == "ok").then_some(rules)
    });
    assert!(rules.len() > 10);
    let firing = rules.iter().filter(|rule| rule["state"] == "firing").map(|rule| &rule["name"]);
    assert_eq!(firing.collect::<Vec<_>>(), Vec::<&Value>::new());
}

#[test]
fn lagging_follower_is_listed_for_operator() {
    let (workspace, lease, gateway) = serve(FLOOD, &["--ring-max-bytes=64KiB"]);
    let mut quick = workspace.follow(gateway.address, "alice", &lease);
    let slow = workspace.follow_dropping(gateway.address, "alice", &lease);
    quick.until("the first line", |seen| !seen.runs("web/0").is_empty());
    slow.program.until_out("the first line", |out| out.contains("before the flood").then_some(()));
    assert_eq!(gateway.get("/followers").1, "no follower lags\n");
    slow.program.signal(Signal::STOP);
    workspace.open("one");
    workspace.until_number("flooded", 200_000);
    let list: Value = until("lag", || {
        let (head, body) = gateway.get("/followers?format=json");
        assert!(head.contains("content-type: application/json"), "{head}");
        let list: Value = serde_json::from_str(&body).unwrap();
        let followers = list["followers"].as_array().unwrap();
        let has_losses = |follower: &Value| follower["lost_lines"].as_u64() > Some(0);
        let slow = followers
            .iter()
            .any(|follower| has_losses(follower) && follower["stalled_seconds"].as_f64() > Some(1.0));
        slow.then_some(list)
    });
    let worst = &list["followers"][0];
    assert_eq!(worst["owner"], lease.owner().as_str());
    assert_eq!((&worst["lease"], &worst["replica"]), (&lease.to_string().into(), &"web/0".into()));
    assert!(worst["peer"].as_str().unwrap().starts_with("127.0.0.1:") && worst["stream"].as_u64() > Some(0));
    assert!(worst["behind_lines"].as_u64() >= worst["lost_lines"].as_u64());
    assert!(worst["behind_bytes"].as_u64() > Some(0) && worst["unsent_bytes"].as_u64() > Some(0));
    assert_eq!(list["left_out"], 0);
    let (head, table) = gateway.get("/followers");
    assert!(head.contains("content-type: text/plain"), "{head}");
    let mut rows = table.lines();
    let headings = rows.next().unwrap();
    assert!(headings.trim().starts_with("WAITING") && headings.ends_with("LEASE"), "{table}");
    assert!(rows.any(|row| row.contains("web/0") && row.ends_with(&lease.to_string())), "{table}");
    assert!(gateway.get("/followers?format=xml").0.starts_with("http/1.1 400"), "{table}");
    // It continues, receives a gap, and no longer lags.
    slow.program.signal(Signal::CONT);
    until("the end of the lag", || (gateway.get("/followers").1 == "no follower lags\n").then_some(()));
    assert_eq!(gateway.metric("leasemux_followers_lagging"), 0);
    quick.end().0.verdict();
    slow.end().0.verdict();
}

#[test]
fn connections_and_handshakes_are_counted() {
    let (workspace, lease, gateway) = serve(STEADY, &["--handshake-timeout=5s"]);
    let read_to_end = |mut socket: TcpStream| {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        // Only the end of the connection matters, not what the gateway sends.
        let _ = socket.read_to_end(&mut Vec::new());
    };
    let mut http1_client = TcpStream::connect(gateway.address).unwrap();
    http1_client.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    read_to_end(http1_client);
    gateway.until_metric("leasemux_tls_handshakes_total{result=\"failed\"}", 1);
    read_to_end(TcpStream::connect(gateway.address).unwrap());
    gateway.until_metric("leasemux_tls_handshakes_total{result=\"timeout\"}", 1);
    gateway.until_metric("leasemux_connections_closed_total{reason=\"handshake\"}", 2);
    workspace.logs(gateway.address, "alice", &lease, &["--tail=1"]);
    gateway.until_metric("leasemux_connections_closed_total{reason=\"peer\"}", 1);
    gateway.until_metric("leasemux_connections", 0);
    assert_eq!(gateway.metric("leasemux_tls_handshakes_total{result=\"ok\"}"), 1);
    assert_eq!(gateway.metric("leasemux_tls_handshake_seconds_count"), 1);
    assert_eq!(gateway.metric("leasemux_connections_accepted_total"), 3);
    assert_eq!(gateway.metric("leasemux_requests_total{method=\"ServiceLogs\",code=\"OK\"}"), 1);
}
