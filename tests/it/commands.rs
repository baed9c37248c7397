//! `leasemux status` and `leasemux restart` with real processes and sockets.

use std::collections::BTreeMap;

use leasemux::model::id::LeaseId;
use rustix::process::Signal;
use serde_json::Value;

use crate::support::process::{Done, Gateway, Judged, Program, Workspace, own_port};

/// Prints forever.
const STEADY: &str = "n=0; while :; do n=$((n+1)); echo \"$n of a steady service\"; sleep 0.05; done";

/// Runs until it is restarted after `broken` was created; then it exits at once.
const BREAKS: &str = "echo 1 up; [ -e $GATES/broken ] && exit 3; exec sleep 1000";

fn serve(services: &[(&str, &str, u32)], flags: &[&str]) -> (Workspace, LeaseId, Gateway) {
    let workspace = Workspace::new();
    let lease = workspace.tenant("alice");
    let sdl = workspace.sdl("alice.yaml", services);
    let gateway = workspace.serve(&[(&lease, &sdl)], flags);
    (workspace, lease, gateway)
}

fn start(workspace: &Workspace, gateway: &Gateway, lease: &LeaseId, command: &str, more: &[&str]) -> Program {
    let args = workspace.call_args(command, gateway.address, "alice", lease);
    let args: Vec<&str> = args.iter().map(String::as_str).chain(more.iter().copied()).collect();
    workspace.start(&args)
}

fn call(workspace: &Workspace, gateway: &Gateway, lease: &LeaseId, command: &str, more: &[&str]) -> Done {
    start(workspace, gateway, lease, command, more).done()
}

fn assert_code(done: &Done, code: i32) {
    assert_eq!(done.status.code(), Some(code), "{done:?}");
}

/// Returns the replicas of a status response by name.
fn replicas(answer: &str) -> BTreeMap<String, Value> {
    let answer: Value = serde_json::from_str(answer).unwrap();
    let services = answer["services"].as_array().unwrap().clone();
    let each = services.iter().flat_map(|service| {
        let replicas = service["replicas"].as_array().unwrap().clone();
        replicas
            .into_iter()
            .map(|one| (format!("{}/{}", service["service"].as_str().unwrap(), one["replica"]), one))
    });
    each.collect()
}

/// Waits until `count` replicas are ready and returns their status.
fn until_ready(
    workspace: &Workspace,
    gateway: &Gateway,
    lease: &LeaseId,
    count: usize,
) -> BTreeMap<String, Value> {
    let follow = start(workspace, gateway, lease, "status", &["--follow", "-o", "json"]);
    follow.until_out("an answer with all ready", |out| {
        let (whole, _) = out.rsplit_once('\n')?;
        let all = replicas(whole.lines().last()?);
        (all.len() == count && all.values().all(|one| one["ready"] == true)).then_some(all)
    })
}

#[test]
fn status_prints_a_table_or_json() {
    let (workspace, lease, gateway) = serve(&[("api", "exec sleep 1000", 1), ("web", STEADY, 2)], &[]);
    let all = until_ready(&workspace, &gateway, &lease, 3);
    assert!(all["web/1"]["instance"].as_str().unwrap().ends_with("/web/0"), "{all:?}");
    assert!(all["web/1"]["started_at"].is_string());
    let table = call(&workspace, &gateway, &lease, "status", &[]);
    assert_code(&table, 0);
    let lines: Vec<&str> = table.out.lines().collect();
    assert!(lines[0].starts_with("REPLICA  STATE    READY  RESTARTS  AGE"), "{}", table.out);
    assert!(lines[1].starts_with("api/0    running  yes    0"), "{}", table.out);
    assert_eq!(lines[4..], ["", "api: 1 of 1 available", "web: 2 of 2 available"], "{}", table.out);
    let some =
        call(&workspace, &gateway, &lease, "status", &["--service", "web", "--replica", "1", "-o", "json"]);
    assert_eq!(replicas(&some.out).into_keys().collect::<Vec<_>>(), ["web/1"]);
    // A name that does not exist: the error lists those that do.
    for command in ["status", "logs", "restart"] {
        let nowhere = call(&workspace, &gateway, &lease, command, &["--service", "nope"]);
        assert_code(&nowhere, 4);
        assert!(nowhere.err.ends_with("no service nope; it has api, web\n"), "{}", nowhere.err);
    }
}

#[test]
fn followed_status_prints_changes_across_gateway_restart() {
    let listen = format!("--listen=127.0.0.1:{}", own_port());
    let (workspace, lease, gateway) = serve(&[("api", "exec sleep 1000", 1), ("web", BREAKS, 1)], &[&listen]);
    until_ready(&workspace, &gateway, &lease, 2);
    let follow = start(&workspace, &gateway, &lease, "status", &["--follow"]);
    follow.until_out("the table", |out| out.contains("web/0    running").then_some(()));
    workspace.open("broken");
    assert_code(&call(&workspace, &gateway, &lease, "restart", &["--service", "web", "--timeout", "0"]), 8);
    follow.until_out("the crash", |out| out.lines().find(|line| line.contains("exit 3 (Error)")).map(|_| ()));
    let printed = follow.out.get();
    assert_eq!(printed.matches("REPLICA").count(), 1, "{printed}");
    assert_eq!(printed.matches("api/0").count(), 1, "only what changed: {printed}");
    gateway.stop(Signal::TERM);
    follow.until_said("; reconnecting in ");
    let sdl = workspace.path("alice.yaml");
    let gateway = workspace.serve(&[(&lease, &sdl)], &[&listen]);
    follow.until_said("reconnected");
    follow.until_out("the run of the new gateway", |out| (out.matches("api/0").count() > 1).then_some(()));
    gateway.stop(Signal::TERM);
}

#[test]
fn restart_waits_for_outcome_and_followers_stay() {
    let (workspace, lease, gateway) = serve(&[("web", STEADY, 2)], &[]);
    let before = until_ready(&workspace, &gateway, &lease, 2);
    let mut logs: Judged = workspace.follow(gateway.address, "alice", &lease);
    logs.until("lines of both", |seen| !seen.runs("web/0").is_empty() && !seen.runs("web/1").is_empty());
    let done = call(&workspace, &gateway, &lease, "restart", &["--service", "web"]);
    assert_code(&done, 0);
    assert_eq!(done.out, "REPLICA  STATE   MESSAGE\nweb/0    active\nweb/1    active\n");
    let after = until_ready(&workspace, &gateway, &lease, 2);
    for name in ["web/0", "web/1"] {
        assert_eq!((&after[name]["restarts"], &after[name]["last_reason"]), (&1.into(), &"Restarted".into()));
        assert_ne!(before[name]["instance"], after[name]["instance"]);
    }
    logs.until("both runs of both", |seen| seen.runs("web/0").len() == 2 && seen.runs("web/1").len() == 2);
    // Without waiting; then the outcome is requested by the request id.
    let args = ["--service", "web", "--replica", "0", "--request-id", "by-name", "-o", "json"];
    let at_once = call(&workspace, &gateway, &lease, "restart", &[&args[..], &["--timeout", "0"]].concat());
    assert_code(&at_once, 8);
    assert!(at_once.err.contains("--request-id by-name"), "{}", at_once.err);
    let waited = call(&workspace, &gateway, &lease, "restart", &args);
    assert_code(&waited, 0);
    assert_eq!(
        waited.out,
        "{\"request_id\":\"by-name\",\"status\":[{\"service\":\"web\",\"replica\":\"0\",\"state\":\"active\"}]}\n"
    );
    assert_eq!(
        until_ready(&workspace, &gateway, &lease, 2)["web/0"]["restarts"],
        2,
        "once for the two calls"
    );
    logs.until("the third run", |seen| seen.runs("web/0").len() == 3);
    gateway.stop(Signal::TERM);
    logs.program.signal(Signal::INT);
    let (seen, _) = logs.end();
    seen.verdict();
}

#[test]
fn failed_restart_is_reported_and_skips_the_others() {
    let (workspace, lease, gateway) = serve(&[("api", BREAKS, 1), ("web", STEADY, 1)], &[]);
    until_ready(&workspace, &gateway, &lease, 2);
    // Restarting every service needs `--all`.
    let unspecified = call(&workspace, &gateway, &lease, "restart", &[]);
    assert_code(&unspecified, 2);
    assert!(unspecified.err.contains("--all"), "{}", unspecified.err);
    assert_code(&call(&workspace, &gateway, &lease, "restart", &["--all", "--service", "web"]), 2);
    workspace.open("broken");
    let done = call(&workspace, &gateway, &lease, "restart", &["--all"]);
    assert_code(&done, 7);
    let lines: Vec<&str> = done.out.lines().collect();
    assert_eq!(lines[1], "api/0    failure  the new run exited with code 3 (Error)", "{}", done.out);
    assert_eq!(lines[2], "web/0    failure  not attempted: the restart of api/0 failed", "{}", done.out);
    let status = call(&workspace, &gateway, &lease, "status", &["--service", "web", "-o", "json"]);
    assert_eq!(replicas(&status.out)["web/0"]["restarts"], 0);
}

#[test]
fn patterns_of_services_are_expanded() {
    let quiet = "echo up; exec sleep 1000";
    let (workspace, lease, gateway) =
        serve(&[("api", quiet, 1), ("web-a", quiet, 1), ("web-b", quiet, 1)], &[]);
    until_ready(&workspace, &gateway, &lease, 3);
    let logs = call(&workspace, &gateway, &lease, "logs", &["--service", "web-*", "-f", "--max-lines", "2"]);
    assert_code(&logs, 0);
    let mut lines: Vec<&str> = logs.out.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["web-a/0 | up", "web-b/0 | up"]);
    let status = call(&workspace, &gateway, &lease, "status", &["--service", "*-b", "-o", "json"]);
    assert_eq!(replicas(&status.out).into_keys().collect::<Vec<_>>(), ["web-b/0"]);
    let restart = call(&workspace, &gateway, &lease, "restart", &["--service", "web-?"]);
    assert_code(&restart, 0);
    assert_eq!(restart.out, "REPLICA  STATE   MESSAGE\nweb-a/0  active\nweb-b/0  active\n");
    for command in ["logs", "status", "restart"] {
        let none = call(&workspace, &gateway, &lease, command, &["--service", "db-*"]);
        assert_code(&none, 4);
        let expected =
            "leasemux: --service \"db-*\" matches none of the lease's services: api, web-a, web-b\n";
        assert_eq!(none.err, expected, "{command}");
    }
}
