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
use tonic::Code;

use crate::support::process::{Done, Gateway, Program, Workspace};

/// Variables, each with the script that prints its value.
const PYTHON: (&str, &str) = ("LEASEMUX_INTEROP_PYTHON", ".ci/python");
const REST_PYTHON: (&str, &str) =
    ("LEASEMUX_INTEROP_REST_PYTHON", ".ci/python tests/interop/rest/requirements.txt");
pub(crate) const NODE: (&str, &str) = ("LEASEMUX_INTEROP_NODE", ".ci/node");
const GO: (&str, &str) = ("LEASEMUX_INTEROP_GO", ".ci/go");

/// Output lines of each replica of `web`, for the client of the draft.
const LINES: u64 = 1_000;

/// Text of each line that a service counts: what JSON and HTML escape, and characters of several bytes. No
/// backslash or quote that a shell would change.
const TEXT: &str = "<b>\"50 %\" & more</b>\t\u{1} é ☃ \u{2028} 🦀 \
    xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\
    xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx";

/// The beginning of the notice before the end of a stream.
const SHUTDOWN: &str = "notice [leasemux: the gateway is shutting down";

/// Size of a line of control characters, which grow sixfold in JSON. In one frame, it would be over 1 MiB.
const LONG_LINE: u32 = 200_000;

/// Counts, slowly; fast while `flood` is open and `calm` is not, with this many lines at a time.
fn counting(burst: u32) -> String {
    let line = "n=$((n+1)); echo \"$n $text\"";
    format!(
        "n=0
         text='{TEXT}'
         while :; do
           {line}
           if [ -e $GATES/flood ] && [ ! -e $GATES/calm ]; then
             i=1; while [ $i -lt {burst} ]; do i=$((i+1)); {line}; done
           fi
           sleep 0.01
         done"
    )
}

/// A lease of two counting services, served on the REST port and on the port of the published proto.
struct Scenario {
    workspace: Workspace,
    lease: LeaseId,
    gateway: Gateway,
}

/// Returns the value of a variable, if it is set.
#[expect(clippy::print_stderr, reason = "says what is not tested")]
pub(crate) fn setting((variable, script): (&str, &str)) -> Option<OsString> {
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

pub(crate) fn node(modules: &OsString, client: &str) -> Command {
    let mut command = Command::new(Path::new(modules).join("node_modules/.bin/node"));
    command.arg(source(client)).arg(modules);
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
    let long = format!("head -c {LONG_LINE} /dev/zero | tr '\\0' '\\1'; echo; exec sleep 1000");
    let scenario = Scenario::with(200, &[("long", &long, 1)]);
    let start = |client: &str, service: &str, more: &[String]| {
        let mut command = python(&interpreter, "rest_client.py");
        command.arg(format!("--client={client}")).arg(format!("--address={}", scenario.address()));
        command.arg(format!("--lease={}", scenario.lease)).arg(format!("--service={service}"));
        command.arg(format!("--text={TEXT}")).args(more);
        Program::start(command, client.to_owned())
    };
    let token = format!("--token={}", scenario.token());
    let [ca, long] = [format!("--ca={}", scenario.ca()), format!("--long={LONG_LINE}")];
    let websockets = start("websockets", "web,db,long", &[token, ca, long]);
    let akash = start("akash", "db", &[format!("--identity={}", scenario.identity())]);
    until(&websockets, "run web-1 1");
    until(&websockets, "long");
    scenario.follow_through(vec![websockets, akash]);
}

#[test]
fn javascript_rest_client_accounts_for_every_line() {
    let Some(modules) = setting(NODE) else { return };
    let scenario = Scenario::new(200);
    let mut command = node(&modules, "rest_client.mjs");
    command.args([&scenario.address(), &scenario.lease.to_string(), "web,db"]);
    command.args([&scenario.token(), &scenario.ca(), TEXT]);
    let client = Program::start(command, "rest_client.mjs".to_owned());
    until(&client, "run web-1 1");
    scenario.follow_through(vec![client]);
}

#[test]
fn chain_sdk_gets_statuses_logs_and_errors() {
    let Some(modules) = setting(NODE) else { return };
    let scenario = Scenario::new(1);
    let Done { status, out, err } = scenario.chain_sdk(&modules, "unary").done();
    assert!(status.success() && out.ends_with("all as published\n"), "{out}{err}");
}

#[test]
fn chain_sdk_streams_account_for_every_line() {
    let Some(modules) = setting(NODE) else { return };
    let scenario = Scenario::new(200);
    let client = scenario.chain_sdk(&modules, "stream");
    for line in ["run web-0 1", "run web-1 1", "run db-0 1", "status 1"] {
        until(&client, line);
    }
    scenario.lead(&[&client]);
    let ends_of_both = Code::Unavailable as i32;
    let out = scenario.drain(vec![client], &format!("end {ends_of_both} {ends_of_both}"));
    // Before and after the restart. A status that is replaced at once need not be sent.
    assert!(out[0].matches("status 1\n").count() >= 2, "{}", out[0]);
}

#[test]
fn slow_go_client_gets_pings_and_accounts_for_every_line() {
    let Some(program) = setting(GO) else { return };
    // Fewer lines at a time, since the flood lasts longer.
    let scenario = Scenario::new(20);
    scenario.workspace.open("flood");
    let mut command = Command::new(program);
    // As the command line of Akash asks, and slower than the replicas print.
    let url = format!("wss://{}{}/logs?follow=true&services=web,db", scenario.address(), scenario.path());
    command.args(["-url", &url, "-token", &scenario.token(), "-ca", &scenario.ca()]);
    command.args(["-text", TEXT, "-slow", "25s", "-pause", "100ms"]);
    let client = Program::start(command, "rest_client".to_owned());
    // It was slow for longer than it waits for a ping. It need not have lagged: a slow client may read older
    // lines all that time.
    until(&client, "slow");
    scenario.workspace.open("calm");
    scenario.restart();
    until(&client, "run db-0 2");
    scenario.drain_websockets(vec![client]);
}

#[test]
fn curl_gets_statuses_bodies_and_errors() {
    if Command::new("curl").arg("--version").output().is_err() {
        eprintln!("not tested: curl is not installed");
        return;
    }
    let scenario = Scenario::new(1);
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

    let missing = scenario.curl(&[&alice], &status.replace("/lease/7/", "/lease/8/"));
    assert_eq!((missing.status, missing.kind.as_str()), (404, text), "{}", missing.body);

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
    let Scenario { gateway, .. } = scenario;
    assert_eq!(gateway.stop(Signal::TERM).status.code(), Some(0));
}

/// The answer to one request of curl.
struct Answer {
    status: u16,
    /// The content type.
    kind: String,
    body: String,
}

// === impl Scenario ===

impl Scenario {
    /// Starts services that print `burst` lines at a time during a flood.
    fn new(burst: u32) -> Self {
        Self::with(burst, &[])
    }

    /// Also starts `more` services.
    fn with(burst: u32, more: &[(&str, &str, u32)]) -> Self {
        let workspace = Workspace::new();
        let lease = workspace.tenant("alice");
        // Trusts her tokens too.
        fs::copy(workspace.path("alice/account.pub"), workspace.path("trusted/alice.pub")).unwrap();
        let script = counting(burst);
        let services = [&[("web", &*script, 2), ("db", &script, 1)][..], more].concat();
        let sdl = workspace.sdl("alice.yaml", &services);
        let flags = [
            "--rest-listen=127.0.0.1:0",
            "--published-listen=127.0.0.1:0",
            &format!("--provider={}", lease.provider()),
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
        format!("/lease/{}/{}/{}", self.lease.dseq(), self.lease.gseq(), self.lease.oseq())
    }

    /// Starts the client of chain-sdk.
    fn chain_sdk(&self, modules: &OsString, mode: &str) -> Program {
        let mut command = node(modules, "published_client.mjs");
        command.arg(mode).arg(format!("localhost:{}", self.gateway.port("published").port()));
        command.args([&self.lease.to_string(), &self.identity(), TEXT]);
        Program::start(command, format!("published_client.mjs {mode}"))
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

    /// Leads websocket clients, which follow `db` at least, through a restart, a lag and a drain.
    fn follow_through(self, clients: Vec<Program>) {
        self.lead(&clients.iter().collect::<Vec<_>>());
        self.drain_websockets(clients);
    }

    /// Leads clients, which follow `db` at least, through a restart and a lag.
    fn lead(&self, clients: &[&Program]) {
        for client in clients {
            until(client, "run db-0 1");
        }
        self.restart();
        for client in clients {
            until(client, "run db-0 2");
        }

        for client in clients {
            client.signal(Signal::STOP);
        }
        self.workspace.open("flood");
        self.gateway.until_nothing_is_taken();
        self.workspace.open("calm");
        for client in clients {
            client.signal(Signal::CONT);
        }
        for client in clients {
            until(client, "gap");
        }
    }

    /// Restarts `db`.
    fn restart(&self) {
        let mut args = self.workspace.call_args("restart", self.gateway.address, "alice", &self.lease);
        args.push("--service=db".to_owned());
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let done = self.workspace.run(&args);
        assert!(done.status.success(), "{done:?}");
    }

    /// Stops the gateway. Each client must see the notice and the close frame of a drain, and no loss without
    /// a notice.
    fn drain_websockets(self, clients: Vec<Program>) {
        for out in self.drain(clients, "end 1001") {
            assert!(out.lines().any(|line| line.starts_with(SHUTDOWN)), "{out}");
        }
    }

    /// Stops the gateway. Each client must succeed, and print `end` last. Returns their outputs.
    fn drain(self, clients: Vec<Program>, end: &str) -> Vec<String> {
        let Self { gateway, .. } = self;
        assert_eq!(gateway.stop(Signal::TERM).status.code(), Some(0));
        let outputs = clients.into_iter().map(|client| {
            let Done { status, out, err } = client.done();
            assert!(status.success() && out.lines().last() == Some(end), "{out}{err}");
            out
        });
        outputs.collect()
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
