//! Commands whose standard output is closed by its reader, with real pipes.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Stdio};
use std::time::Instant;

use leasemux::model::id::LeaseId;

use crate::support::process::{Gateway, LOOK, PATIENCE, Workspace};

/// Prints two lines and then nothing, so that no write of a follower fails.
const QUIET: &str = "echo 1 one; echo 2 startup complete; exec sleep 1000";

/// A command whose output is read by the test.
struct Piped {
    child: Child,
    name: String,
}

impl Piped {
    fn start(workspace: &Workspace, args: &[&str]) -> Self {
        let mut command = workspace.command(args);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        Self { child, name: args.join(" ") }
    }

    /// Reads lines until one contains `text`, closes the pipe, and returns the exit code and standard error.
    fn close_after(mut self, text: &str) -> (Option<i32>, String) {
        let mut output = BufReader::new(self.child.stdout.take().unwrap()).lines();
        assert!(output.any(|line| line.unwrap().contains(text)), "{} did not print {text}", self.name);
        drop(output);
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "{} does not end", self.name);
            std::thread::sleep(LOOK);
        };
        let mut stderr = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        (status.code(), stderr)
    }
}

impl Drop for Piped {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn call(workspace: &Workspace, gateway: &Gateway, lease: &LeaseId, command: &str, more: &[&str]) -> Piped {
    let args = workspace.call_args(command, gateway.address, "alice", lease);
    let args: Vec<&str> = args.iter().map(String::as_str).chain(more.iter().copied()).collect();
    Piped::start(workspace, &args)
}

#[test]
fn quiet_follow_ends_when_its_output_is_closed() {
    let workspace = Workspace::new();
    let lease = workspace.tenant("alice");
    let sdl = workspace.sdl("alice.yaml", &[("web", QUIET, 1)]);
    let gateway = workspace.serve(&[(&lease, &sdl)], &[]);
    for (command, more, text) in [
        ("logs", &["-f"][..], "startup complete"),
        ("logs", &["-f", "-o", "json", "--since=1h"], "startup complete"),
        ("status", &["-f"], "web/0"),
        ("status", &["-f", "-o", "json"], "\"service\":\"web\""),
    ] {
        let (code, stderr) = call(&workspace, &gateway, &lease, command, more).close_after(text);
        assert_eq!(code, Some(0), "{command} {more:?}: {stderr}");
        assert!(!stderr.contains("cannot write"), "{stderr}");
    }
}

#[test]
fn quiet_demo_stops_when_its_output_is_closed() {
    let workspace = Workspace::new();
    let sdl = workspace.sdl("quiet.yaml", &[("web", QUIET, 1)]);
    let demo = Piped::start(&workspace, &["demo", "--sdl", sdl.to_str().unwrap()]);
    let (code, stderr) = demo.close_after("startup complete");
    assert_eq!(code, Some(0), "{stderr}");
    workspace.until_nothing_is_left();
}
