//! Tokens in the whole program: signed, checked, used.

use std::fs;
use std::time::Instant;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::account;
use crate::support::process::{Done, PATIENCE, Workspace};

fn code(done: &Done, expected: i32) {
    assert_eq!(done.status.code(), Some(expected), "{done:?}");
}

#[test]
fn unusable_arguments_exit_with_usage_and_a_hint() {
    let workspace = Workspace::new();
    let lease = workspace.stranger("alice").to_string();
    let other = workspace.stranger("bob").to_string();
    let text = |path: std::path::PathBuf| path.to_str().unwrap().to_owned();
    let [alice, trusted] = ["alice", "trusted"].map(|name| text(workspace.path(name)));
    let new = |more: &[&str]| workspace.run(&[&["token", "new", "--identity", &alice], more].concat());
    for (more, said) in [
        (&["--lease", &lease, "--service", "web"][..], "--scope (or LEASEMUX_SCOPE) is missing"),
        (&["--lease", &lease, "--scope", "logs"], "--service (or LEASEMUX_SERVICE) is missing"),
        (&["--service", "web"], "--lease (or LEASEMUX_LEASE) is missing"),
        (&["--scope", "log"], "`log` is not a scope; there are: send-manifest"),
        (&["--scope", "logs", "--service", "web", "--lease", &other], "is not one of the identity's account"),
        (&["--ttl", "169h"], "from 1s to 168h"),
        (&["--lease", &lease, "--scope", "logs", "--service", "*web"], "*web"),
    ] {
        let done = new(more);
        code(&done, 2);
        assert!(done.err.contains(said) && done.out.is_empty(), "{done:?}");
    }
    let done = workspace.run(&["token", "new", "--identity", &trusted]);
    code(&done, 1);
    assert!(done.err.contains("mnemonic"), "{done:?}");

    let token = new(&[]).out;
    let token = token.trim();
    let key_of = |name: &str| {
        let line = fs::read_to_string(workspace.path(name).join("account.pub")).unwrap();
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    let check = |more: &[&str]| workspace.run(&[&["token", "check"], more].concat());
    let long = format!("{}0", key_of("alice"));
    fs::write(workspace.path("two"), "one two\n").unwrap();
    let two = format!("@{}", text(workspace.path("two")));
    for (more, said) in [
        (&[token, "--key", &long][..], "66 hexadecimal digits"),
        (&[token, "--key", "zz"], "66 hexadecimal digits"),
        (&[&two, "--key", &key_of("alice")], "does not hold a token"),
        (&[token, "--key", &key_of("alice"), "--at", "tomorrow"], "RFC 3339"),
        (&[token], "--key (or LEASEMUX_KEY) is missing"),
    ] {
        let done = check(more);
        code(&done, 2);
        assert!(done.err.contains(said) && done.out.is_empty() && !done.err.contains(token), "{done:?}");
    }
    let done = check(&[token, "--key", &key_of("bob")]);
    code(&done, 1);
    let bob = fs::read_to_string(workspace.path("bob/address")).unwrap();
    let whose = format!("; --key is that of {}", bob.trim());
    assert!(done.err.contains("refused: ACCOUNT_UNKNOWN: ") && done.err.contains(&whose), "{done:?}");
}

#[test]
fn gateway_enforces_token_lifetime_and_provider() {
    let workspace = Workspace::new();
    let lease = workspace.tenant("alice");
    let text = |path: std::path::PathBuf| path.to_str().unwrap().to_owned();
    let alice = text(workspace.path("alice"));
    fs::copy(workspace.path("alice/account.pub"), workspace.path("trusted/alice.pub")).unwrap();
    let sdl = workspace.sdl("shop.yaml", &[("web", "exec sleep 1000", 1)]);
    let provider = format!("--provider={}", lease.provider());
    let gateway = workspace.serve(&[(&lease, &sdl)], &["--token-max-lifetime=10m", &provider]);
    let address = format!("https://{}", gateway.address);
    let ca = text(workspace.path("data/server.pem"));
    let elsewhere = format!("{}/7/1/1/{}", lease.owner(), account(201));
    let here = lease.to_string();
    for (ttl, lease, exit, said) in [
        ("10m", &here, 0, ""),
        ("10m1s", &here, 3, "the token is valid for 10m 1s, from `nbf` to `exp`; at most 10m is allowed"),
        ("168h", &here, 3, "the token is valid for 168h, from `nbf` to `exp`; at most 10m is allowed"),
        ("10m", &elsewhere, 3, "not at the provider that this gateway serves"),
    ] {
        let token = workspace.run(&["token", "new", "--identity", &alice, "--ttl", ttl]).out;
        let done =
            workspace.run(&["status", lease, "--gateway", &address, "--ca", &ca, "--token", token.trim()]);
        code(&done, exit);
        assert!(done.err.contains(said), "{done:?}");
    }
    // The same for a certificate.
    let done =
        workspace.run(&["status", &elsewhere, "--gateway", &address, "--ca", &ca, "--identity", &alice]);
    code(&done, 3);
    assert!(done.err.contains("not at the provider"), "{done:?}");
}

/// Checks that a token is refused at other times, by another provider, and for its lifetime.
fn assert_check_refuses(workspace: &Workspace, options: &[&str], stranger: &str, token: &str) {
    for (more, reason) in [
        (&["--at", "2100-01-01T00:00:00Z"][..], "TOKEN_EXPIRED"),
        (&["--at", "1h"], "TOKEN_NOT_YET_VALID"),
        (&["--provider", stranger], "LEASE_NOT_GRANTED"),
        (&["--token-max-lifetime", "1m"], "TOKEN_LIFETIME"),
    ] {
        let args = [&["token", "check"], options, more].concat();
        let done = workspace.run(&args);
        code(&done, 1);
        assert!(done.err.contains(&format!("refused: {reason}: ")) && !done.err.contains(token), "{done:?}");
    }
}

#[test]
fn token_is_signed_checked_used_and_never_shown() {
    let workspace = Workspace::new();
    let lease = workspace.stranger("alice");
    let text = |path: std::path::PathBuf| path.to_str().unwrap().to_owned();
    let [alice, trusted, file] = ["alice", "trusted", "web.token"].map(|name| text(workspace.path(name)));
    let lease_text = lease.to_string();
    let print = |name: &str| format!("echo a line; echo 1 > $GATES/{name}; sleep 1000");
    let [web, api] = ["web", "api"].map(print);
    let sdl = workspace.sdl("shop.yaml", &[("web", &web, 1), ("api", &api, 1)]);
    fs::copy(workspace.path("alice/account.pub"), workspace.path("trusted/alice.pub")).unwrap();

    let new = |service: &str| {
        let grant = ["--lease", &lease_text, "--scope", "logs", "--service", service];
        workspace.run(&[&["token", "new", "--identity", &alice], &grant[..]].concat())
    };
    let done = new("web");
    code(&done, 0);
    let token = done.out.trim().to_owned();
    fs::write(&file, &done.out).unwrap();
    let at_file = format!("@{file}");

    let done = workspace.run(&[
        "token",
        "check",
        &at_file,
        "--trust-dir",
        &trusted,
        "--provider",
        lease.provider().as_str(),
    ]);
    code(&done, 0);
    let claims: Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!(claims["iss"], lease.owner().as_str());
    assert_eq!(claims["leases"]["permissions"][0]["deployments"][0]["services"][0], "web");
    let key = fs::read_to_string(workspace.path("alice/account.pub")).unwrap();
    let key = key.split_whitespace().nth(1).unwrap();
    code(&workspace.run(&["token", "check", &token, "--key", key]), 0);
    assert_check_refuses(&workspace, &[&at_file, "--trust-dir", &trusted], lease.owner().as_str(), &token);
    let done = workspace.run(&["token", "check", &format!("{token}x"), "--key", key]);
    code(&done, 1);
    assert!(!done.err.contains(&token), "{done:?}");

    let gateway = workspace.serve(&[(&lease, &sdl)], &[]);
    let address = format!("https://{}", gateway.address);
    let ca = text(workspace.path("data/server.pem"));
    let logs = |more: &[&str]| {
        workspace.run(&[&["logs", &lease_text, "--gateway", &address, "--ca", &ca], more].concat())
    };
    // The output reaches the log file a moment after both have printed.
    let until_logs = |token: &str, replicas: &[&str]| {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let done = logs(&["--token", token]);
            code(&done, 0);
            if replicas.iter().all(|replica| done.out.contains(replica)) {
                return done;
            }
            assert!(Instant::now() < deadline, "{done:?}");
        }
    };
    workspace.until_number("web", 1);
    workspace.until_number("api", 1);
    let done = until_logs(&at_file, &["web/0"]);
    assert!(!done.out.contains("api/0"), "{done:?}");
    let done = logs(&["--token", &token, "--service", "api"]);
    code(&done, 3);
    assert!(done.err.contains("service") && !done.err.contains(&token), "{done:?}");
    let every = new("*").out;
    until_logs(every.trim(), &["web/0", "api/0"]);
    let done = logs(&["--token", "not.a.token"]);
    code(&done, 3);
    let done = logs(&["--token", &token, "--identity", &alice]);
    code(&done, 2);
    assert!(!done.err.contains(&token), "{done:?}");

    let done = gateway.stop(Signal::TERM);
    code(&done, 0);
    assert!(!done.err.contains(&token) && !done.err.contains("eyJ"), "{}", done.err);
    assert!(done.err.contains("leasemux::audit") && done.err.contains("SERVICE_NOT_GRANTED"), "{}", done.err);
}

#[test]
fn token_of_a_week_works_where_the_gateway_allows_it() {
    let workspace = Workspace::new();
    let lease = workspace.tenant("alice");
    let text = |path: std::path::PathBuf| path.to_str().unwrap().to_owned();
    fs::copy(workspace.path("alice/account.pub"), workspace.path("trusted/alice.pub")).unwrap();
    let sdl = workspace.sdl("shop.yaml", &[("web", "exec sleep 1000", 1)]);
    let gateway = workspace.serve(&[(&lease, &sdl)], &["--token-max-lifetime=168h"]);
    let url = format!("https://{}", gateway.address);
    let ca = text(workspace.path("data/server.pem"));
    let alice = text(workspace.path("alice"));
    for ttl in ["48h", "168h"] {
        let token = workspace.run(&["token", "new", "--identity", &alice, "--ttl", ttl]).out;
        let lease = lease.to_string();
        let done =
            workspace.run(&["status", &lease, "--gateway", &url, "--ca", &ca, "--token", token.trim()]);
        code(&done, 0);
        let key = fs::read_to_string(workspace.path("alice/account.pub")).unwrap();
        let key = key.split_whitespace().nth(1).unwrap();
        let check = |more: &[&str]| {
            workspace.run(
                &[&["token", "check", token.trim(), "--key", key, "--token-max-lifetime"], more].concat(),
            )
        };
        code(&check(&[ttl]), 0);
        let done = check(&["90m"]);
        code(&done, 1);
        let both =
            format!("TOKEN_LIFETIME: the token is valid for {ttl}, from `nbf` to `exp`; at most 1h 30m ");
        assert!(done.err.contains(&both), "{done:?}");
        let done = check(&["90m", "--at", "2100-01-01T00:00:00Z"]);
        code(&done, 1);
        assert!(done.err.contains("refused: TOKEN_EXPIRED: "), "{done:?}");
    }
    // The limit is at most a week.
    let mut args = workspace.serve_args(&[(&lease, &sdl)]);
    args.extend(["--token-max-lifetime=604801s", "--check"].map(str::to_owned));
    let done = workspace.run(&args.iter().map(String::as_str).collect::<Vec<_>>());
    code(&done, 2);
    assert!(done.err.contains("from 1s to 168h"), "{done:?}");
}
