//! Clients of other projects and in other languages, against the real program.
//!
//! Environment variables name what the clients run with; scripts in `.ci` create it and print the values.
//! Without its variable, a test reports that it tests nothing.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use leasemux::model::id::LeaseId;
use rustix::process::Signal;
use serde_json::Value;

use crate::support::process::{Done, Gateway, Program, Workspace};

/// Variables, each with the script that prints its value.
const PYTHON: (&str, &str) = ("LEASEMUX_INTEROP_PYTHON", ".ci/python");
const REST_PYTHON: (&str, &str) =
    ("LEASEMUX_INTEROP_REST_PYTHON", ".ci/python tests/interop/rest/requirements.txt");
const NODE: (&str, &str) = ("LEASEMUX_INTEROP_NODE", ".ci/node");
const GO: (&str, &str) = ("LEASEMUX_INTEROP_GO", ".ci/go");

/// Output lines of each replica of `web`, for the client of the draft.
const LINES: u64 = 1_000;

/// Counts, slowly; fast while `flood` is open and `calm` is not, with this many lines at a time.
fn counting(burst: u32) -> String {
    let line = format!("n=$((n+1)); echo \"$n {:x<200}\"", "");
    format!(
        "n=0
         while :; do
           {line}
           if [ -e $GATES/flood ] && [ ! -e $GATES/calm ]; then
             i=1; while [ $i -lt {burst} ]; do i=$((i+1)); {line}; done
           fi
           sleep 0.01
         done"
    )
}

/// A lease of two counting services, served on the REST port.
struct RestScenario {
    workspace: Workspace,
    lease: LeaseId,
    gateway: Gateway,
}

/// Returns the value of a variable, if it is set.
#[expect(clippy::print_stderr, reason = "says what is not tested")]
fn setting((variable, script): (&str, &str)) -> Option<OsString> {
    let value = std::env::var_os(variable).filter(|value| !value.is_empty());
    if value.is_none() {
        eprintln!("not tested: {variable} is not set ({script} prints a suitable value)");
    }
    value
}

/// Returns the path of a client's source.
fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop").join(name)
}

fn python(interpreter: &OsString, client: &str) -> Command {
    let mut command = Command::new(interpreter);
    // Do not leave compiled files in the source tree.
    command.arg(source(client)).env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

#[test]
fn python_client_of_unextended_draft_works() {
    let Some(interpreter) = setting(PYTHON) else { return };
    let workspace = Workspace::new();
    let lease = workspace.tenant("alice");
    workspace.tenant("mallory");
    let script = format!(
        "n=0; while [ $n -lt {LINES} ]; do n=$((n+1)); echo \"$n of {LINES}\"; done; exec sleep 1000"
    );
    let sdl = workspace.sdl("alice.yaml", &[("web", &script, 2), ("worker", "exec sleep 1000", 1)]);
    let gateway = workspace.serve(&[(&lease, &sdl)], &[]);
    let done = python(&interpreter, "client.py")
        .arg(format!("--address=localhost:{}", gateway.address.port()))
        .arg(format!("--ca={}", workspace.path("data/server.pem").display()))
        .arg(format!("--identity={}", workspace.path("alice").display()))
        .arg(format!("--stranger={}", workspace.path("mallory").display()))
        .args([format!("--lease={lease}"), format!("--lines={LINES}")])
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{out}{err}");
    assert_eq!(out, "all as the draft has it\n");
    assert_eq!(gateway.stop(Signal::TERM).status.code(), Some(0));
}

#[test]
fn python_rest_clients_account_for_every_line() {
    let Some(interpreter) = setting(REST_PYTHON) else { return };
    let scenario = RestScenario::new(200);
    let start = |client: &str, service: &str, more: &[String]| {
        let mut command = python(&interpreter, "rest_client.py");
        command.arg(format!("--client={client}")).arg(format!("--address={}", scenario.address()));
        command.arg(format!("--lease={}", scenario.lease)).arg(format!("--service={service}")).args(more);
        Program::start(command, client.to_owned())
    };
    let token = format!("--token={}", scenario.token());
    let websockets = start("websockets", "web,db", &[token, format!("--ca={}", scenario.ca())]);
    let akash = start("akash", "db", &[format!("--identity={}", scenario.identity())]);
    until(&websockets, "run web-1 1");
    scenario.follow_through(vec![websockets, akash]);
}

#[test]
fn javascript_rest_client_accounts_for_every_line() {
    let Some(modules) = setting(NODE) else { return };
    let scenario = RestScenario::new(200);
    let mut command = Command::new("node");
    command.arg(source("rest_client.mjs")).arg(modules).arg(scenario.address());
    command.args([&scenario.lease.to_string(), "web,db", &scenario.token(), &scenario.ca()]);
    let client = Program::start(command, "node".to_owned());
    until(&client, "run web-1 1");
    scenario.follow_through(vec![client]);
}

#[test]
fn slow_go_client_gets_pings_and_accounts_for_every_line() {
    let Some(program) = setting(GO) else { return };
    // Fewer lines at a time, since the flood lasts longer.
    let scenario = RestScenario::new(50);
    scenario.workspace.open("flood");
    let mut command = Command::new(program);
    // As the command line of Akash asks, and slower than the replicas print.
    let url = format!("wss://{}{}/logs?follow=true&services=web,db", scenario.address(), scenario.path());
    command.args(["-url", &url, "-token", &scenario.token(), "-ca", &scenario.ca()]);
    command.args(["-slow", "20s", "-pause", "100ms"]);
    let client = Program::start(command, "rest_client".to_owned());
    // It was slow for longer than it waits for a ping. It need not have lagged: a slow client may read older lines
    // all that time.
    until(&client, "slow");
    scenario.workspace.open("calm");
    scenario.restart();
    until(&client, "run db-0 2");
    scenario.drain(vec![client]);
}

#[test]
fn curl_gets_statuses_bodies_and_errors() {
    if Command::new("curl").arg("--version").output().is_err() {
        eprintln!("not tested: curl is not installed");
        return;
    }
    let scenario = RestScenario::new(1);
    scenario.workspace.stranger("mallory");
    let (path, service) = (scenario.path(), format!("{}/service", scenario.path()));
    let [status, logs] = ["status", "logs"].map(|route| format!("{path}/{route}"));
    let bearer = |tenant| format!("-HAuthorization: Bearer {}", scenario.token_of(tenant));
    let (alice, mallory) = (bearer("alice"), bearer("mallory"));
    let identity = scenario.identity();
    let (certificate, key) = (format!("{identity}/cert.pem"), format!("{identity}/key.pem"));
    let with_certificate = ["--cert", &certificate, "--key", &key];
    let (text, json) = ("text/plain; charset=utf-8", "application/json");

    // Open routes.
    for (route, key) in [("/version", "akash"), ("/address", "address"), ("/status", "address")] {
        let body = scenario.curl(&[], route).json(200);
        assert!(body.get(key).is_some(), "{route}: {body}");
    }
    scenario.curl(&[], "/foobar").is(404, text, "404 page not found\n");
    let wrong_method = scenario.curl(&["-XPOST"], "/version");
    assert_eq!((wrong_method.status, wrong_method.body.as_str()), (405, ""));

    // Statuses, with a token and with a certificate.
    for credentials in [&[alice.as_str()][..], &with_certificate] {
        let body = scenario.curl(credentials, &status).json(200);
        assert_eq!(body["services"]["web"]["total"], 2, "{body}");
        let body = scenario.curl(credentials, &format!("{service}/db/status")).json(200);
        assert_eq!((body["name"].as_str(), body["total"].as_u64()), (Some("db"), Some(1)), "{body}");
    }
    assert_eq!(scenario.curl(&[&alice], &format!("{service}/cache/status")).status, 404);

    // Credentials.
    let refused = |status: u16, message: &str, credentials: &[&str], route: &str| {
        scenario.curl(credentials, route).is(status, json, &format!("{{\"message\":\"{message}\"}}"));
    };
    refused(401, "unauthorized access", &[], &status);
    refused(401, "unauthorized access", &[], &logs);
    refused(400, "invalid authorization header", &["-HAuthorization: Basic x"], &status);
    refused(401, "JWT is invalid", &["-HAuthorization: Bearer x"], &status);
    let both = [&with_certificate[..], &[alice.as_str()]].concat();
    let ambiguous = "auth: ambiguous authentication. may not use mTLS and JWT at the same time";
    refused(400, ambiguous, &both, &status);
    assert_eq!(scenario.curl(&[&mallory], &status).status, 401);

    // Requests.
    let bad = |route: &str| {
        let answer = scenario.curl(&[&alice], route);
        assert_eq!((answer.status, answer.kind.as_str()), (400, text), "{route}: {}", answer.body);
        answer.body
    };
    bad("/lease/x/1/1/status");
    let comma = "parameter \"service\" must not contain trailing comma\n";
    assert_eq!(bad(&format!("{logs}?service=,")), comma);
    assert_eq!(bad(&format!("{logs}?tail=-2")), "parameter \"tail\" contains invalid value\n");
    bad(&format!("{logs}?follow=maybe"));
    // Not a websocket.
    bad(&logs);
    let RestScenario { gateway, .. } = scenario;
    assert_eq!(gateway.stop(Signal::TERM).status.code(), Some(0));
}

/// The answer to one request of curl.
struct Answer {
    status: u16,
    /// The content type.
    kind: String,
    body: String,
}

// === impl RestScenario ===

impl RestScenario {
    /// Starts services that print `burst` lines at a time during a flood.
    fn new(burst: u32) -> Self {
        let workspace = Workspace::new();
        let lease = workspace.tenant("alice");
        // Trusts her tokens too.
        fs::copy(workspace.path("alice/account.pub"), workspace.path("trusted/alice.pub")).unwrap();
        let script = counting(burst);
        let sdl = workspace.sdl("alice.yaml", &[("web", &script, 2), ("db", &script, 1)]);
        let provider = lease.to_string().rsplit('/').next().unwrap().to_owned();
        let flags = [
            "--rest-listen=127.0.0.1:0",
            &format!("--provider={provider}"),
            // Lagging takes fewer lines.
            "--ring-max-bytes=64KiB",
        ];
        let gateway = workspace.serve(&[(&lease, &sdl)], &flags);
        Self { workspace, lease, gateway }
    }

    fn address(&self) -> String {
        format!("localhost:{}", self.gateway.rest.unwrap().port())
    }

    /// Returns the path of the lease.
    fn path(&self) -> String {
        let lease = self.lease.to_string();
        let [_, dseq, gseq, oseq, _] = lease.split('/').collect::<Vec<_>>()[..] else { panic!("{lease}") };
        format!("/lease/{dseq}/{gseq}/{oseq}")
    }

    fn text(&self, path: &str) -> String {
        self.workspace.path(path).to_str().unwrap().to_owned()
    }

    fn ca(&self) -> String {
        self.text("data/server.pem")
    }

    fn identity(&self) -> String {
        self.text("alice")
    }

    fn token(&self) -> String {
        self.token_of("alice")
    }

    fn token_of(&self, tenant: &str) -> String {
        let done = self.workspace.run(&["token", "new", "--identity", &self.text(tenant)]);
        assert!(done.status.success(), "{done:?}");
        done.out.trim().to_owned()
    }

    /// Leads clients, which follow `db` at least, through a restart, a lag and a drain.
    fn follow_through(self, clients: Vec<Program>) {
        for client in &clients {
            until(client, "run db-0 1");
        }
        self.restart();
        for client in &clients {
            until(client, "run db-0 2");
        }

        for client in &clients {
            client.signal(Signal::STOP);
        }
        self.workspace.open("flood");
        self.gateway.until_nothing_is_taken();
        self.workspace.open("calm");
        for client in &clients {
            client.signal(Signal::CONT);
        }
        for client in &clients {
            until(client, "gap");
        }
        self.drain(clients);
    }

    /// Restarts `db`.
    fn restart(&self) {
        let mut args = self.workspace.call_args("restart", self.gateway.address, "alice", &self.lease);
        args.push("--service=db".to_owned());
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let done = self.workspace.run(&args);
        assert!(done.status.success(), "{done:?}");
    }

    /// Stops the gateway. Each client must see the close frame of a drain, and no loss without a notice.
    fn drain(self, clients: Vec<Program>) {
        let Self { gateway, .. } = self;
        assert_eq!(gateway.stop(Signal::TERM).status.code(), Some(0));
        for client in clients {
            let Done { status, out, err } = client.done();
            assert!(status.success() && out.ends_with("\nend 1001\n"), "{out}{err}");
        }
    }

    /// Requests `route` with further options of curl.
    fn curl(&self, options: &[&str], route: &str) -> Answer {
        let url = format!("https://{}{route}", self.address());
        let done = Command::new("curl")
            .args(["--silent", "--show-error", "--cacert", &self.ca()])
            .args(["--write-out", "\n%{http_code} %{content_type}"])
            .args(options)
            .arg(url)
            .output()
            .unwrap();
        let out = String::from_utf8(done.stdout).unwrap();
        assert!(done.status.success(), "{route}: {}", String::from_utf8_lossy(&done.stderr));
        let (body, end) = out.rsplit_once('\n').unwrap();
        let (status, kind) = end.split_once(' ').unwrap();
        Answer { status: status.parse().unwrap(), kind: kind.to_owned(), body: body.to_owned() }
    }
}

// === impl Answer ===

impl Answer {
    /// Checks the status, the beginning of the content type, and the body.
    fn is(&self, status: u16, kind: &str, body: &str) {
        let Self { status: got, kind: of, body: text } = self;
        assert!(*got == status && of.starts_with(kind) && text == body, "{got} {of}: {text}");
    }

    fn json(&self, status: u16) -> Value {
        assert!(self.status == status && self.kind.starts_with("application/json"), "{}", self.body);
        serde_json::from_str(&self.body).unwrap()
    }
}

/// Waits until a client has printed this line.
fn until(client: &Program, line: &str) {
    client.until_out(line, |out| out.lines().any(|printed| printed == line).then_some(()));
}
