//! A Python client, generated from the unextended draft of the protocol, against the real program.
//!
//! `LEASEMUX_INTEROP_PYTHON` names a Python with the packages of `tests/interop/requirements.txt`
//! (`.ci/python` creates one). Without it the test reports that it tests nothing.

use std::path::Path;
use std::process::Command;

use rustix::process::Signal;

use crate::support::process::Workspace;

/// Variable with the path of the Python interpreter.
const PYTHON: &str = "LEASEMUX_INTEROP_PYTHON";

/// Output lines of each replica of `web`.
const LINES: u64 = 1_000;

#[test]
fn python_client_of_unextended_draft_works() {
    let Some(python) = std::env::var_os(PYTHON) else {
        eprintln!("not tested: {PYTHON} is not set (.ci/python creates a suitable Python)");
        return;
    };
    let workspace = Workspace::new();
    let lease = workspace.tenant("alice");
    workspace.tenant("mallory");
    let script = format!(
        "n=0; while [ $n -lt {LINES} ]; do n=$((n+1)); echo \"$n of {LINES}\"; done; exec sleep 1000"
    );
    let sdl = workspace.sdl("alice.yaml", &[("web", &script, 2), ("worker", "exec sleep 1000", 1)]);
    let gateway = workspace.serve(&[(&lease, &sdl)], &[]);
    let client = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/client.py");
    let done = Command::new(python)
        .arg(client)
        .arg(format!("--address=localhost:{}", gateway.address.port()))
        .arg(format!("--ca={}", workspace.path("data/server.pem").display()))
        .arg(format!("--identity={}", workspace.path("alice").display()))
        .arg(format!("--stranger={}", workspace.path("mallory").display()))
        .args([format!("--lease={lease}"), format!("--lines={LINES}")])
        // Do not leave compiled files in the source tree.
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{out}{err}");
    assert_eq!(out, "all as the draft has it\n");
    assert_eq!(gateway.stop(Signal::TERM).status.code(), Some(0));
}
