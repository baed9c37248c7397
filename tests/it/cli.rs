//! The command line, driven as a person would: wrong usage, help, the environment, exit codes.

use std::net::TcpListener;
use std::process::{Command, Output};

const LEASE: &str =
    "akash1angnwmnsv5vkp4jpgkdcunar8efpvennxwwcev/6194991/1/1/akash1nxq8gmsw2vlz3m68qvyvcf3kh6q269ajvqw6y0";

fn leasemux(args: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leasemux"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("LEASEMUX_") {
            command.env_remove(name);
        }
    }
    command.args(args).envs(environment.iter().copied()).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Runs it, expects wrong usage, and gives what it says.
fn refused(args: &[&str], environment: &[(&str, &str)]) -> String {
    let output = leasemux(args, environment);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
    assert_eq!(stdout(&output), "", "{args:?}");
    stderr(&output)
}

#[test]
fn help_is_an_answer() {
    for args in [
        &["--help"][..],
        &["-h"],
        &["serve", "--help"],
        &["logs", "--help"],
        &["logs", "-h"],
        &["identity", "--help"],
        &["identity", "new", "--help"],
        &["demo", "--help"],
    ] {
        let output = leasemux(args, &[]);
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        let help = stdout(&output);
        assert!(help.contains("Examples:") && help.contains("leasemux "), "{args:?}: {help}");
        assert!(!help.contains("shim"), "{args:?}");
    }
    for args in [&["--help"], &["logs", "--help"][..]] {
        let help = stdout(&leasemux(args, &[]));
        assert!(help.contains("Exit codes:") && help.contains("6  done, but lines were lost"), "{help}");
    }
    let version = stdout(&leasemux(&["--version"], &[]));
    assert_eq!(version, concat!("leasemux ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn what_is_no_command_is_wrong_usage() {
    for args in [
        &[][..],
        &["identity"],
        &["sserve"],
        &["--nonsense"],
        &["serve", "--nonsense"],
        &["logs", LEASE, "more"],
    ] {
        assert!(refused(args, &[]).contains("Usage:"), "{args:?}");
    }
}

#[test]
fn all_faults_are_told_at_once_and_where_they_come_from() {
    let said = refused(
        &["serve", "--listen", "nowhere", "--lease", "a=b", "--tls-cert", "/none"],
        &[("LEASEMUX_PACE", "fast"), ("LEASEMUX_ADMIN_LISTEN", "9446"), ("LEASEMUX_PLATFORM", "moon")],
    );
    for expected in [
        "--platform \"moon\" (from LEASEMUX_PLATFORM): must be 'local'",
        "--lease \"a=b\": the lease is not owner/dseq/gseq/oseq/provider; the SDL must be a readable file",
        "--trust-dir (or LEASEMUX_TRUST_DIR) is missing",
        "--listen \"nowhere\": must be host:port, such as 127.0.0.1:8446",
        "--admin-listen \"9446\" (from LEASEMUX_ADMIN_LISTEN): must be host:port",
        "--tls-key (or LEASEMUX_TLS_KEY) is missing",
        "--tls-cert \"/none\": must be a readable file",
        "--pace \"fast\" (from LEASEMUX_PACE): must be a time",
        "try 'leasemux serve --help'",
    ] {
        assert!(said.contains(expected), "{expected} in {said}");
    }
    assert_eq!(said.matches("error: ").count(), 8, "{said}");
}

#[test]
fn the_environment_gives_lists_and_switches() {
    let said = refused(
        &["logs", LEASE],
        &[
            ("LEASEMUX_SERVICE", "web, Api"),
            ("LEASEMUX_REPLICA", "0,x,"),
            ("LEASEMUX_FOLLOW", "perhaps"),
            ("LEASEMUX_IDENTITY", ""),
            ("LEASEMUX_GATEWAY", ""),
        ],
    );
    for expected in [
        "--service \"Api\" (from LEASEMUX_SERVICE)",
        "--replica \"x\" (from LEASEMUX_REPLICA)",
        "--follow \"perhaps\" (from LEASEMUX_FOLLOW): must be true or false",
    ] {
        assert!(said.contains(expected), "{expected} in {said}");
    }
    assert_eq!(said.matches("error: ").count(), 3, "{said}");
    let said = refused(&["logs", LEASE, "--previous"], &[("LEASEMUX_FOLLOW", "1")]);
    assert!(said.contains("--previous and --follow do not go together"), "{said}");
    // A flag wins over the environment.
    let said = refused(&["logs", "x", "--follow=false", "--previous"], &[("LEASEMUX_FOLLOW", "1")]);
    assert_eq!(said.matches("error: ").count(), 1, "{said}");
}

#[test]
fn a_gateway_that_is_not_there_is_unavailable() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let gateway = format!("https://{}", listener.local_addr().unwrap());
    drop(listener);
    for follow in [&[][..], &["--follow"]] {
        let args = [&["logs", LEASE, "--gateway", &gateway, "--insecure"], follow].concat();
        let output = leasemux(&args, &[]);
        assert_eq!(output.status.code(), Some(5));
        let said = stderr(&output);
        assert!(said.starts_with("leasemux: cannot reach the gateway at https://127.0.0.1:"), "{said}");
    }
}
