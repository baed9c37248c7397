//! A client in another language, generated from the bare draft, against the real program.
//!
//! It needs a Python with what `tests/interop/requirements.txt` names, given by `LEASEMUX_INTEROP_PYTHON`; `.ci/python` makes one.
//! Without it there is nothing to test, which is said.

use std::path::Path;
use std::process::Command;

use rustix::process::Signal;

use crate::support::process::World;

/// What names the Python to use.
const PYTHON: &str = "LEASEMUX_INTEROP_PYTHON";

/// Lines that each replica of `web` prints.
const LINES: u64 = 1_000;

#[test]
fn a_client_of_the_bare_draft_in_another_language() {
    let Some(python) = std::env::var_os(PYTHON) else {
        eprintln!("not tested: {PYTHON} names no Python (.ci/python makes one)");
        return;
    };
    let world = World::new();
    let lease = world.tenant("alice");
    world.tenant("mallory");
    let script = format!(
        "n=0; while [ $n -lt {LINES} ]; do n=$((n+1)); echo \"$n of {LINES}\"; done; exec sleep 1000"
    );
    let sdl = world.sdl("alice.yaml", &[("web", &script, 2), ("worker", "exec sleep 1000", 1)]);
    let gateway = world.serve(&[(&lease, &sdl)], &[]);
    let client = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/client.py");
    let done = Command::new(python)
        .arg(client)
        .arg(format!("--address=localhost:{}", gateway.address.port()))
        .arg(format!("--ca={}", world.path("data/server.pem").display()))
        .arg(format!("--identity={}", world.path("alice").display()))
        .arg(format!("--stranger={}", world.path("mallory").display()))
        .args([format!("--lease={lease}"), format!("--lines={LINES}")])
        // What it compiles is kept nowhere.
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{out}{err}");
    assert_eq!(out, "all as the draft has it\n");
    assert_eq!(gateway.stop(Signal::TERM).status.code(), Some(0));
}
