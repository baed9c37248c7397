//! What commands do when the reader of their standard output goes: real pipes.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Stdio};
use std::time::Instant;

use leasemux::model::id::LeaseId;

use crate::support::process::{Gateway, LOOK, PATIENCE, World};

/// Prints, and is quiet from then on: no write of a follower's notices anything.
const QUIET: &str = "echo 1 one; echo 2 startup complete; exec sleep 1000";

/// A command whose output is a pipe that this test reads.
struct Piped {
    child: Child,
    what: String,
}

impl Piped {
    fn start(world: &World, args: &[&str]) -> Self {
        let mut command = world.command(args);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        Self { child, what: args.join(" ") }
    }

    /// Reads lines until one has `text`, closes the pipe, and returns the exit code and what was said on standard error.
    fn close_after(mut self, text: &str) -> (Option<i32>, String) {
        let mut output = BufReader::new(self.child.stdout.take().unwrap()).lines();
        assert!(output.any(|line| line.unwrap().contains(text)), "{} did not print {text}", self.what);
        drop(output);
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "{} does not end", self.what);
            std::thread::sleep(LOOK);
        };
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (status.code(), said)
    }
}

impl Drop for Piped {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn call(world: &World, gateway: &Gateway, lease: &LeaseId, command: &str, more: &[&str]) -> Piped {
    let args = world.call_args(command, gateway.address, "alice", lease);
    let args: Vec<&str> = args.iter().map(String::as_str).chain(more.iter().copied()).collect();
    Piped::start(world, &args)
}

#[test]
fn quiet_follow_ends_when_its_reader_goes() {
    let world = World::new();
    let lease = world.tenant("alice");
    let sdl = world.sdl("alice.yaml", &[("web", QUIET, 1)]);
    let gateway = world.serve(&[(&lease, &sdl)], &[]);
    for (command, more, text) in [
        ("logs", &["-f"][..], "startup complete"),
        ("logs", &["-f", "-o", "json", "--since=1h"], "startup complete"),
        ("status", &["-f"], "web/0"),
        ("status", &["-f", "-o", "json"], "\"service\":\"web\""),
    ] {
        let (code, said) = call(&world, &gateway, &lease, command, more).close_after(text);
        assert_eq!(code, Some(0), "{command} {more:?}: {said}");
        assert!(!said.contains("cannot write"), "{said}");
    }
}

#[test]
fn quiet_demo_ends_in_order_when_its_reader_goes() {
    let world = World::new();
    let sdl = world.sdl("quiet.yaml", &[("web", QUIET, 1)]);
    let demo = Piped::start(&world, &["demo", "--sdl", sdl.to_str().unwrap()]);
    let (code, said) = demo.close_after("startup complete");
    assert_eq!(code, Some(0), "{said}");
    world.until_nothing_is_left();
}
