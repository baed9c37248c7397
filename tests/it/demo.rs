//! `leasemux demo` as a user runs it.

use std::os::unix::process::ExitStatusExt as _;

use rustix::process::Signal;

use crate::support::process::{Program, Workspace, get};

#[cfg(feature = "nats")]
mod fleet;

/// Starts a demo and waits until it has printed lines of all three replicas.
fn started(workspace: &Workspace) -> Program {
    let demo = workspace.start(&["demo"]);
    demo.until_out("lines of all replicas", |out| {
        ["web/0 | 1 ", "web/1 | 1 ", "worker/0 | 1 "].iter().all(|line| out.contains(line)).then_some(())
    });
    workspace.until_processes(|found| {
        found.values().filter(|arguments| arguments.starts_with("sh -c")).count() >= 3
    });
    demo
}

fn leftovers(workspace: &Workspace) -> Vec<String> {
    let entries = std::fs::read_dir(workspace.path("tmp")).unwrap();
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn demo_ends_with_a_summary_and_leaves_nothing() {
    let workspace = Workspace::new();
    let done = workspace.run(&["demo", "--for", "3s", "--followers", "5"]);
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    let (lines, summary) = done.out.split_once("\nsummary\n").unwrap();
    assert!(
        lines.lines().all(|line| {
            let (replica, text) = line.split_once(" | ").unwrap();
            let number = text.split(' ').next().unwrap();
            ["web/0", "web/1", "worker/0"].contains(&replica) && number.parse::<u64>().is_ok()
        }),
        "{lines}"
    );
    for expected in [
        "followers        6 of 6 attached",
        "delivered        ",
        "reported lost    0 lines, 0 bytes, in 0 gaps",
        "gateway CPU      ",
        " s per million delivered lines",
        "gateway memory   ",
        "loss check       passed: ",
    ] {
        assert!(summary.contains(expected), "{expected} in {summary}");
    }
    // Each of the six followers has about as many lines as the printing one.
    let delivered = summary.split_once("delivered        ").unwrap().1.split(' ').next().unwrap();
    let (delivered, printed) = (delivered.parse::<usize>().unwrap(), lines.lines().count());
    assert!(printed >= 200 && delivered > 3 * printed, "{delivered} of {printed}");
    workspace.until_nothing_is_left();
    assert_eq!(leftovers(&workspace), [""; 0]);
}

#[test]
fn demo_with_ui_serves_the_page() {
    let workspace = Workspace::new();
    let mut command = workspace.command(&["demo", "--ui"]);
    // No browser opens on the desktop of the developer.
    command.env_remove("DISPLAY").env_remove("WAYLAND_DISPLAY");
    let demo = Program::start(command, "demo --ui".to_owned());
    demo.until_said("leasemux: page at http://127.0.0.1:");
    demo.until_out("lines", |out| out.contains("web/0 | 1 ").then_some(()));
    let said = demo.err.get();
    let (_, url) = said.split_once("page at http://").unwrap();
    let (address, path) = url.lines().next().unwrap().split_once('/').unwrap();
    let (head, _) = get(address.parse().unwrap(), "HTTP/1.0", &format!("/{path}")).unwrap();
    assert!(head.contains(" 303 ") && head.contains("set-cookie: leasemux-ui-"), "{head}");
    demo.signal(Signal::INT);
    let done = demo.done();
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    workspace.until_nothing_is_left();
}

#[test]
fn signal_stops_the_demo_in_order() {
    for signal in [Signal::INT, Signal::TERM] {
        let workspace = Workspace::new();
        let demo = started(&workspace);
        demo.signal(signal);
        let done = demo.done();
        assert_eq!(done.status.code(), Some(0), "{done:?}");
        assert!(
            done.out.contains("\nsummary\n") && done.out.contains("loss check       passed: "),
            "{done:?}"
        );
        // All processes have ended when the demo returns.
        assert_eq!(workspace.processes().len(), 0, "{:?}", workspace.processes());
        assert_eq!(leftovers(&workspace), [""; 0]);
    }
}

#[test]
fn killed_demo_ends_its_gateway_and_services() {
    let workspace = Workspace::new();
    let demo = started(&workspace);
    demo.signal(Signal::KILL);
    assert_eq!(demo.done().status.signal(), Some(9));
    workspace.until_nothing_is_left();
    // A killed demo leaves its directory, which a later demo removes.
    let left = leftovers(&workspace);
    assert!(left.len() == 1 && left[0].starts_with("leasemux-demo-"), "{left:?}");
}

#[test]
fn options_of_several_gateways_that_do_not_fit_are_rejected() {
    let workspace = Workspace::new();
    let server = format!("--nats-server={}", workspace.path("leasemux").display());
    for (args, error) in [
        (&["--gateways=0"][..], "must be a whole number from 1 to 5"),
        (&["--gateways=6"], "must be a whole number from 1 to 5"),
        (&[&server], "--nats-server goes with --gateways of at least 2"),
        #[cfg(feature = "nats")]
        (&["--gateways=2", "--for=7s"], "--for must be at least 8s with --gateways"),
        #[cfg(not(feature = "nats"))]
        (&["--gateways=2"], "without the feature `nats` (cargo build --features nats)"),
    ] {
        let done = workspace.run(&[&["demo"], args].concat());
        assert_eq!((done.status.code(), done.out.as_str()), (Some(2), ""), "{args:?} {done:?}");
        assert!(done.err.contains(error), "{args:?} {done:?}");
    }
}
