//! The local platform's data directory: one that an earlier gateway left is read, kept and continued.
//!
//! `tests/surface/fixtures/data` was written by `leasemux serve` with one service, `web`. Run 0 printed to
//! both outputs and was restarted; the gateway was killed while run 1 was printing.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use leasemux::model::id::LeaseId;
use rustix::process::Signal;
use serde_json::Value;

use super::{compare, compare_set, dir};
use crate::support::account;
use crate::support::process::Workspace;

/// The tenant of the fixture: the first one in `tests/vectors/wallets.json`.
const WALLETS: &str = include_str!("../../vectors/wallets.json");

/// What the service prints now. The fixture has a file `kept` in the service's home.
const SCRIPT: &str = "cat kept; exec sleep 1000";

/// The files and directories below `at`, relative to `root`.
fn tree(root: &Path, at: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(at).unwrap() {
        let path = entry.unwrap().path();
        let name = path.strip_prefix(root).unwrap().to_str().unwrap();
        if path.is_dir() {
            found.insert(format!("{name}/"));
            tree(root, &path, found);
        } else {
            found.insert(name.to_owned());
        }
    }
}

fn files(root: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    tree(root, root, &mut found);
    found
}

#[test]
fn surface_data_directory_of_an_earlier_gateway() {
    let fixture = dir().join("fixtures/data");
    let workspace = Workspace::new();
    for name in files(&fixture) {
        let to = workspace.path("data").join(&name);
        if name.ends_with('/') {
            fs::create_dir_all(to).unwrap();
        } else {
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(fixture.join(&name), to).unwrap();
        }
    }
    let wallets: Value = serde_json::from_str(WALLETS).unwrap();
    fs::write(workspace.path("words"), wallets[0]["mnemonic"].as_str().unwrap()).unwrap();
    let [alice, words] = ["alice", "words"].map(|name| workspace.path(name).to_str().unwrap().to_owned());
    let imported = workspace.run(&["identity", "import", "--dir", &alice, "--mnemonic-file", &words]);
    assert!(imported.status.success(), "{imported:?}");
    fs::copy(workspace.path("alice/cert.pem"), workspace.path("trusted/alice.pem")).unwrap();
    let owner = wallets[0]["address"].as_str().unwrap();
    let lease = LeaseId::new(owner, 7, 1, 1, account(200).as_str()).unwrap();
    let sdl = workspace.sdl("shop.yaml", &[("web", SCRIPT, 1)]);
    let gateway = workspace.serve(&[(&lease, &sdl)], &[]);
    let logs = workspace.start_logs(gateway.address, "alice", &lease, &["-f"]);
    logs.until_out("the line of the kept file", |out| {
        out.contains("kept from the first gateway").then_some(())
    });
    drop(logs);
    // From here on, all lines are in the log files.
    let done = workspace.logs(gateway.address, "alice", &lease, &["-t", "-o", "json"]);
    assert_eq!(done.status.code(), Some(6), "{done:?}");
    let mut shown = Vec::new();
    for line in done.out.lines() {
        let mut object: Value = serde_json::from_str(line).unwrap();
        let of_fixture =
            object["instance"].as_str().is_some_and(|run| run.ends_with("/0") || run.ends_with("/1"));
        if !of_fixture {
            // The times of the present run.
            object
                .as_object_mut()
                .unwrap()
                .retain(|name, _| !["time", "from", "to"].contains(&name.as_str()));
        }
        shown.push(format!("{object}\n"));
    }
    compare("data-logs.json", &shown.concat());
    let done = gateway.stop(Signal::TERM);
    assert!(done.status.success(), "{done:?}");
    for name in files(&fixture).iter().filter(|name| name.contains(".log")) {
        let read = |root: &Path| fs::read(root.join(name)).unwrap();
        assert!(read(&fixture) == read(&workspace.path("data")), "{name} was changed");
    }
    compare_set("data-files.txt", &files(&workspace.path("data")));
}
