//! `identity import` in the whole program: from a mnemonic, and from files of Akash's own tools.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use leasemux::model::id::LeaseId;
use rustix::process::Signal;
use serde_json::Value;

use crate::support::account;
use crate::support::process::{Done, Workspace};
use crate::support::terminal::OnTerminal;

/// The first account in `tests/vectors/wallets.json`, which is also in the certificates of
/// `tests/vectors/certificates`.
const ADDRESS: &str = "akash1kp030650r7q7kf83xrs6873dw3pxeg2c0kzl6q";

fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors")
}

fn mnemonic() -> String {
    let wallets = fs::read_to_string(vectors().join("wallets.json")).unwrap();
    let wallets: Value = serde_json::from_str(&wallets).unwrap();
    assert_eq!(wallets[0]["address"], ADDRESS);
    wallets[0]["mnemonic"].as_str().unwrap().to_owned()
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leasemux"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("LEASEMUX_") {
            command.env_remove(name);
        }
    }
    command.args(["identity", "import"]).args(args);
    command
}

/// Runs `identity import` with this standard input.
fn import(args: &[&str], input: &str) -> Output {
    let mut child =
        command(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // The process may have ended already.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn imported_account_with_akash_certificate_is_served() {
    let workspace = Workspace::new();
    fs::write(workspace.path("words"), mnemonic()).unwrap();
    let path = |name: &str| workspace.path(name).to_str().unwrap().to_owned();
    let certificate = vectors().join("certificates/chain-sdk-go.pem");
    let [dir, words, trusted] = ["tenant", "words", "trusted"].map(path);
    let args = ["--dir", &dir, "--mnemonic-file", &words, "--cert", certificate.to_str().unwrap()];
    let done = workspace.run(&[&["identity", "import"], &args[..]].concat());
    assert_eq!((done.status.code(), done.out.trim()), (Some(0), ADDRESS), "{done:?}");
    // Nothing is overwritten.
    let done = workspace.run(&[&["identity", "import"], &args[..]].concat());
    assert_eq!(done.status.code(), Some(1), "{done:?}");
    assert!(done.err.contains("exists already"), "{done:?}");

    // The gateway trusts the tool's file, with the key in it, and the account.
    fs::copy(&certificate, Path::new(&trusted).join("tenant.pem")).unwrap();
    fs::copy(workspace.path("tenant/account.pub"), Path::new(&trusted).join("tenant.pub")).unwrap();
    let lease = LeaseId::new(ADDRESS, 7, 1, 1, account(200).as_str()).unwrap();
    let sdl = workspace.sdl("shop.yaml", &[("web", "exec sleep 1000", 1)]);
    let gateway = workspace.serve(&[(&lease, &sdl)], &[]);
    let (lease, url) = (lease.to_string(), format!("https://{}", gateway.address));
    let ca = path("data/server.pem");
    let status = |credentials: [&str; 2]| -> Done {
        workspace.run(&[&["status", &lease, "--gateway", &url, "--ca", &ca], &credentials[..]].concat())
    };
    let token = workspace.run(&["token", "new", "--identity", &dir]).out;
    for credentials in [["--identity", &dir], ["--token", token.trim()]] {
        let done = status(credentials);
        assert_eq!(done.status.code(), Some(0), "{done:?}");
    }
}

#[test]
fn mnemonic_is_read_from_standard_input() {
    let outer = tempfile::tempdir().unwrap();
    let dir = outer.path().join("tenant");
    let args = ["--dir", dir.to_str().unwrap(), "--mnemonic-file", "-"];
    let done = import(&args, &format!("\n  {}\n", mnemonic().replace(' ', "\n")));
    assert_eq!((done.status.code(), text(&done.stdout).trim()), (Some(0), ADDRESS), "{done:?}");
    assert_eq!(fs::read_to_string(dir.join("mnemonic")).unwrap(), format!("{}\n", mnemonic()));
}

#[test]
fn wrong_mnemonic_is_refused_and_not_repeated() {
    let outer = tempfile::tempdir().unwrap();
    let dir = outer.path().join("tenant");
    let args = ["--dir", dir.to_str().unwrap(), "--mnemonic-file", "-"];
    let good = mnemonic();
    let swapped = good.replacen("filter market", "market filter", 1);
    let unknown = good.replacen("noise", "secretword", 1);
    let short = good.rsplit_once(' ').unwrap().0;
    let long = "a".repeat(5_000);
    for (input, why) in [
        (swapped.as_str(), "standard input does not hold a mnemonic: its checksum does not match"),
        (&unknown, "word 3 is not in the English list"),
        (short, "it has 23 words instead of 12, 15, 18, 21 or 24"),
        ("", "it has 0 words"),
        (&long, "is larger than 4096 bytes"),
    ] {
        let done = import(&args, input);
        let err = text(&done.stderr);
        assert_eq!(done.status.code(), Some(1), "{err}");
        assert!(err.contains(why) && done.stdout.is_empty(), "{err}");
        for secret in ["secretword", "market", "aaaa"] {
            assert!(!err.contains(secret), "{err}");
        }
        assert!(!dir.exists());
    }
}

#[test]
fn import_without_a_terminal_names_the_flag() {
    let outer = tempfile::tempdir().unwrap();
    let dir = outer.path().join("tenant");
    let done = import(&["--dir", dir.to_str().unwrap()], &mnemonic());
    let err = text(&done.stderr);
    assert_eq!(done.status.code(), Some(2), "{err}");
    assert!(err.contains("--mnemonic-file -") && !dir.exists(), "{err}");
    // A mnemonic is never an argument.
    let done = import(&["--dir", dir.to_str().unwrap(), "--mnemonic", &mnemonic()], "");
    assert_eq!(done.status.code(), Some(2));
    assert!(!text(&done.stderr).contains("market"), "{done:?}");
}

#[test]
fn mnemonic_is_asked_for_without_echo() {
    let outer = tempfile::tempdir().unwrap();
    let dir = outer.path().join("tenant");
    let mut terminal = OnTerminal::start(command(&["--dir", dir.to_str().unwrap()]), 80);
    terminal.until_shown("Mnemonic (not shown): ");
    assert!(!terminal.echoes());
    terminal.type_in(&format!("{}\n", mnemonic()));
    terminal.until_shown(ADDRESS);
    assert_eq!(terminal.wait().code(), Some(0));
    assert!(terminal.echoes());
    let (_, shown) = terminal.finish();
    assert!(!shown.contains("market"), "{shown}");
    assert_eq!(fs::read_to_string(dir.join("mnemonic")).unwrap(), format!("{}\n", mnemonic()));
}

#[test]
fn ctrl_c_at_the_prompt_restores_the_echo() {
    let outer = tempfile::tempdir().unwrap();
    let dir = outer.path().join("tenant");
    let mut terminal = OnTerminal::start(command(&["--dir", dir.to_str().unwrap()]), 80);
    terminal.until_shown("Mnemonic (not shown): ");
    terminal.signal(Signal::INT);
    assert_eq!(terminal.wait().code(), Some(130));
    assert!(terminal.echoes() && !dir.exists());
}
