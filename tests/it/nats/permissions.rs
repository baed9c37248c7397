//! Credentials, permissions and TLS: `serve --check`, and a gateway that starts with wrong ones.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use leasemux::exchange::gateway_id::GatewayId;
use leasemux::exchange::nats::{self, Credentials, NatsOptions};
use leasemux::exchange::subjects::Subjects;
use leasemux::model::id::LeaseId;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustix::process::Signal;
use tempfile::TempDir;

use super::server::NatsServer;
use crate::support::process::{Done, Gateway, Program, Workspace};

/// A user of NATS's documentation: its seed, and its public key.
const SEED: &str = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY";
const USER: &str = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4";

/// A seed of another user.
const STRANGER: &str = "SUAIO3FHUX5PNV2LQIIP7TZ3N4L7TX3W53MQGEIVYFIGA635OZCKEYHFLM";

/// The permissions of a gateway in docs/FLEET.md.
const PERMISSIONS: &str =
    r#"{ publish: ["lm.east.>", "_INBOX.edge.>"], subscribe: ["lm.east.>", "_INBOX.edge.>"] }"#;

fn server(permissions: &str) -> Option<NatsServer> {
    NatsServer::with("nats", |_| {
        format!("authorization: {{ users: [{{ nkey: {USER}, permissions: {permissions} }}] }}")
    })
}

/// A gateway of a local service, not started.
struct Scenario {
    workspace: Workspace,
    lease: LeaseId,
    sdl: PathBuf,
}

impl Scenario {
    fn new() -> Self {
        let workspace = Workspace::new();
        let lease = workspace.tenant("alice");
        let sdl = workspace.sdl("alice.yaml", &[("web", "exec sleep 1000", 1)]);
        Self { workspace, lease, sdl }
    }

    fn start(&self, server: &NatsServer, more: &[&str]) -> Program {
        let url = format!("--nats={}", server.url());
        self.workspace.start_serve(&[(&self.lease, &self.sdl)], &[&[&*url, "--fleet=east"], more].concat())
    }

    /// Runs `serve --check`.
    fn check(&self, server: &NatsServer, more: &[&str]) -> Done {
        self.start(server, &[&["--check"], more].concat()).done()
    }

    /// Returns the flag with a user's seed.
    fn nkey(&self, seed: &str) -> String {
        let file = self.workspace.path("user.nk");
        fs::write(&file, seed).unwrap();
        format!("--nats-nkey={}", file.display())
    }
}

fn assert_valid(done: &Done) {
    assert!(done.status.success() && done.out == "the configuration is valid\n", "{done:?}");
}

fn assert_invalid(done: &Done, texts: &[&str]) {
    assert_eq!(done.status.code(), Some(2), "{done:?}");
    for text in texts {
        assert!(done.err.contains(text), "{text}: {done:?}");
    }
}

#[test]
fn check_uses_each_permission() {
    let Some(server) = server(PERMISSIONS) else { return };
    let scenario = Scenario::new();
    assert_valid(&scenario.check(&server, &[&scenario.nkey(SEED)]));
    assert_invalid(
        &scenario.check(&server, &[&scenario.nkey(STRANGER)]),
        &["error: --nats: cannot connect: authorization violation", "check --nats-creds, --nats-nkey"],
    );
    assert_invalid(&scenario.check(&server, &[]), &["--nats: cannot connect: authorization violation"]);
    let other = scenario.check(&server, &[&scenario.nkey(SEED), "--fleet=west"]);
    let missing =
        ["f", "c", "o", "g", "n"].map(|kind| format!("no permission to publish to lm.west.{kind}.*"));
    assert_invalid(&other, &missing.each_ref().map(String::as_str));
}

#[test]
fn check_names_each_missing_permission() {
    let permissions = r#"{
        publish: ["lm.east.f.*", "lm.east.c.*", "lm.east.o.*", "lm.east.g.*", "_INBOX.edge.>"],
        subscribe: ["lm.east.>"]
    }"#;
    let Some(server) = server(permissions) else { return };
    let scenario = Scenario::new();
    let done = scenario.check(&server, &[&scenario.nkey(SEED)]);
    let missing = "error: --nats: no permission to publish to lm.east.n.*; \
                   no permission to subscribe to _INBOX.edge.>\n";
    assert_invalid(&done, &[missing]);
}

#[tokio::test]
async fn source_needs_no_permission_to_read_lines() {
    let subjects = Subjects::new("east", None).unwrap();
    let node = subjects.node("node-1");
    let permissions = format!(
        r#"{{ publish: ["lm.east.f.*", "lm.east.c.*", "lm.east.g.*", "_INBOX.edge.>"],
              subscribe: ["lm.east.o.*", "lm.east.c.*", "lm.east.g.*", "{node}"] }}"#
    );
    let Some(server) = server(&permissions) else { return };
    let dir = tempfile::tempdir().unwrap();
    let seed = dir.path().join("user.nk");
    fs::write(&seed, SEED).unwrap();
    let check = async |node: Option<&str>| {
        let credentials = Some(Credentials::Nkey(seed.clone()));
        let source_node = node.map(str::to_owned);
        let options = NatsOptions { credentials, source_node, ..server.options() };
        nats::check(&options, &subjects, GatewayId([1; 16])).await.map_err(|error| error.to_string())
    };
    assert!(check(Some("node-1")).await.is_ok(), "{:?}", check(Some("node-1")).await);
    let other = check(Some("node-2")).await.unwrap_err();
    assert!(
        other.ends_with(&format!("no permission to subscribe to {}", subjects.node("node-2"))),
        "{other}"
    );
    let gateway = check(None).await.unwrap_err();
    assert!(gateway.contains("no permission to subscribe to lm.east.f.*"), "{gateway}");
}

#[test]
fn check_reports_an_unreachable_server() {
    let Some(mut server) = NatsServer::start() else { return };
    server.kill();
    let done = Scenario::new().check(&server, &[]);
    assert_invalid(&done, &["error: --nats: cannot connect: IO error", "check the address"]);
}

/// Connections to a server that hangs are accepted by the kernel.
#[tokio::test(start_paused = true)]
async fn check_of_many_servers_that_hang_ends() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("nats://{}", socket.local_addr().unwrap());
    let options = NatsOptions {
        servers: vec![url; 64],
        credentials: None,
        authorities: None,
        certificate: None,
        source_node: None,
    };
    let subjects = Subjects::new("east", None).unwrap();
    let error = nats::check(&options, &subjects, GatewayId([1; 16])).await.unwrap_err();
    assert_eq!(error.to_string(), "--nats: no server has answered within 20 s");
}

#[test]
fn gateway_with_wrong_credentials_serves_and_reports_it() {
    let Some(server) = server(PERMISSIONS) else { return };
    let scenario = Scenario::new();
    let gateway = Gateway::ready(scenario.start(&server, &[&scenario.nkey(STRANGER)]));
    gateway.program.until_said("failed to connect to NATS; retrying");
    gateway.program.until_said("authorization violation");
    let done = gateway.stop(Signal::TERM);
    assert_eq!(done.status.code(), Some(0), "{done:?}");
}

/// Writes an authority, and two certificates of it: for `localhost`, and for a gateway.
fn certificates(dir: &Path) {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    fs::write(dir.join("ca.pem"), authority.pem()).unwrap();
    for (file, host) in [("server", "localhost"), ("gateway", "gateway")] {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([host.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &authority).unwrap();
        fs::write(dir.join(format!("{file}.pem")), certificate.pem()).unwrap();
        fs::write(dir.join(format!("{file}.key")), key.serialize_pem()).unwrap();
    }
}

#[test]
fn tls_needs_the_authority_and_a_certificate() {
    let tls = |dir: &TempDir| {
        certificates(dir.path());
        let file = |name: &str| dir.path().join(name).display().to_string();
        let [cert, key, ca] = ["server.pem", "server.key", "ca.pem"].map(file);
        format!("tls: {{ cert_file: \"{cert}\", key_file: \"{key}\", ca_file: \"{ca}\", verify: true }}")
    };
    let Some(server) = NatsServer::with("tls", tls) else { return };
    let scenario = Scenario::new();
    let flag = |flag: &str, name: &str| format!("--nats-{flag}={}", server.path(name).display());
    let (ca, cert, key) = (flag("ca", "ca.pem"), flag("cert", "gateway.pem"), flag("key", "gateway.key"));
    assert_valid(&scenario.check(&server, &[&ca, &cert, &key]));
    assert_invalid(&scenario.check(&server, &[&ca]), &["error: --nats: cannot connect: "]);
    assert_invalid(
        &scenario.check(&server, &[&cert, &key]),
        &["error: --nats: cannot connect: ", "--nats-ca"],
    );
}
