//! Certificates in the whole program: the gateway's two (which one is served for which name, and their
//! renewal), and those that tenants made with other tools.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use leasemux::edge::tls;
use leasemux::model::id::LeaseId;
use leasemux::model::proto::cert::State;
use rustix::process::Signal;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::support::account;
use crate::support::chain::Chain;
use crate::support::process::{Done, Gateway, Workspace};

const OWN_EXPIRY: &str = "leasemux_certificate_expiry_timestamp_seconds";
const PUBLIC_EXPIRY: &str = "leasemux_ca_certificate_expiry_timestamp_seconds";

/// Files of `tests/vectors/certificates`, each with a certificate and its key. The README there explains how
/// they were made.
const FOREIGN: [&str; 4] = ["akashjs", "chain-sdk", "chain-sdk-next", "openssl-p384"];

/// The account in all of them.
const FOREIGN_ACCOUNT: &str = "akash1kp030650r7q7kf83xrs6873dw3pxeg2c0kzl6q";

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A gateway with its own certificate and one for `localhost`, and a tenant.
struct Scenario {
    workspace: Workspace,
    gateway: Gateway,
    lease: LeaseId,
    token: String,
}

impl Scenario {
    fn new() -> Self {
        let workspace = Workspace::new();
        let lease = workspace.tenant("alice");
        let text = |name: &str| workspace.path(name).to_str().unwrap().to_owned();
        fs::copy(workspace.path("alice/account.pub"), workspace.path("trusted/alice.pub")).unwrap();
        let token = workspace.run(&["token", "new", "--identity", &text("alice")]).out.trim().to_owned();
        for (name, day) in [("own", 1), ("public", 2)] {
            create_pair(&workspace.path(name), day);
        }
        let sdl = workspace.sdl("shop.yaml", &[("web", "exec sleep 1000", 1)]);
        let flags = [("--tls", "own"), ("--ca-tls", "public")].map(|(flag, name)| {
            let file = |name: &str, file: &str| text(&format!("{name}/{file}"));
            [
                format!("{flag}-cert={}", file(name, "server.pem")),
                format!("{flag}-key={}", file(name, "server.key.pem")),
            ]
        });
        let flags: Vec<&str> = flags.as_flattened().iter().map(String::as_str).collect();
        let gateway =
            workspace.serve(&[(&lease, &sdl)], &[&flags[..], &["--public-hostname=localhost"]].concat());
        Self { workspace, gateway, lease, token }
    }

    /// Calls with these credentials and trusts only the gateway certificate in the directory `trusted`.
    fn call(&self, credentials: &str, trusted: &Path) -> Done {
        let (lease, gateway) =
            (self.lease.to_string(), format!("--gateway=https://localhost:{}", self.gateway.address.port()));
        let ca = format!("--ca={}", trusted.join("server.pem").display());
        self.workspace.run(&["status", &lease, &gateway, credentials, &ca])
    }

    /// Checks that the gateway serves exactly the certificate `expected` to a caller with these credentials.
    fn assert_served(&self, credentials: &str, expected: &Path, others: &[&Path]) {
        let done = self.call(credentials, expected);
        assert_eq!(done.status.code(), Some(0), "{done:?}");
        for other in others {
            let done = self.call(credentials, other);
            assert_eq!(done.status.code(), Some(3), "{done:?}");
            assert!(done.err.contains("is not trusted"), "{done:?}");
        }
    }
}

/// Creates a pair in `dir`, as of `days` ago.
fn create_pair(dir: &Path, days: u32) -> PathBuf {
    tls::ensure(dir, &[], SystemTime::now() - days * DAY).unwrap();
    dir.to_owned()
}

/// Returns the expiry of the certificate in `dir`, in Unix seconds.
fn expiry(dir: &Path) -> u64 {
    let der = CertificateDer::from_pem_file(dir.join("server.pem")).unwrap();
    let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
    parsed.validity().not_after.timestamp().try_into().unwrap()
}

/// Replaces the pair in `to` by the one in `from`, as a renewal does.
fn renew(from: &Path, to: &Path) {
    for name in ["server.key.pem", "server.pem"] {
        let next = to.join("next");
        fs::copy(from.join(name), &next).unwrap();
        fs::rename(next, to.join(name)).unwrap();
    }
}

#[test]
fn renewed_certificate_is_served_for_its_name_with_new_expiry() {
    let scenario = Scenario::new();
    let (gateway, workspace) = (&scenario.gateway, &scenario.workspace);
    let [own, public] = ["own", "public"].map(|name| workspace.path(name));
    let [first_own, first_public] = ["first-own", "first-public"].map(|name| workspace.path(name));
    for (from, to) in [(&own, &first_own), (&public, &first_public)] {
        fs::create_dir(to).unwrap();
        renew(from, to);
    }
    assert_eq!((gateway.metric(OWN_EXPIRY), gateway.metric(PUBLIC_EXPIRY)), (expiry(&own), expiry(&public)));
    let (certificate, token) =
        (format!("--identity={}", workspace.path("alice").display()), format!("--token={}", scenario.token));
    scenario.assert_served(&certificate, &own, &[&public]);
    scenario.assert_served(&token, &public, &[&own]);

    // One is renewed without the other.
    renew(&create_pair(&workspace.path("next-public"), 3), &public);
    assert_ne!(expiry(&public), expiry(&first_public));
    gateway.until_metric(PUBLIC_EXPIRY, expiry(&public));
    assert_eq!(gateway.metric(OWN_EXPIRY), expiry(&first_own));
    scenario.assert_served(&token, &public, &[&first_public, &own]);
    scenario.assert_served(&certificate, &own, &[&public]);

    renew(&create_pair(&workspace.path("next-own"), 4), &own);
    gateway.until_metric(OWN_EXPIRY, expiry(&own));
    assert_eq!(gateway.metric(PUBLIC_EXPIRY), expiry(&public));
    scenario.assert_served(&certificate, &own, &[&first_own, &public]);
}

#[test]
fn expiry_of_absent_public_certificate_is_zero() {
    let workspace = Workspace::new();
    let lease = workspace.tenant("alice");
    let sdl = workspace.sdl("shop.yaml", &[("web", "exec sleep 1000", 1)]);
    let gateway = workspace.serve(&[(&lease, &sdl)], &[]);
    assert_eq!(
        (gateway.metric(OWN_EXPIRY), gateway.metric(PUBLIC_EXPIRY)),
        (expiry(&workspace.path("data")), 0)
    );
}

/// Returns certificate and key in the file `name`, in PEM.
fn foreign(name: &str) -> (String, String) {
    let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/certificates");
    let text = fs::read_to_string(vectors.join(format!("{name}.pem"))).unwrap();
    let key = text.find("-----BEGIN PRIVATE KEY-----").unwrap();
    let end = text.find("-----BEGIN EC PUBLIC KEY-----").unwrap_or(text.len());
    (text[..key].to_owned(), text[key..end].to_owned())
}

/// Creates an identity from each foreign certificate, and a lease of their account with its SDL.
fn foreign_tenants(workspace: &Workspace) -> (LeaseId, PathBuf) {
    for name in FOREIGN {
        let (certificate, key) = foreign(name);
        fs::create_dir(workspace.path(name)).unwrap();
        fs::write(workspace.path(name).join("cert.pem"), certificate).unwrap();
        fs::write(workspace.path(name).join("key.pem"), key).unwrap();
    }
    let lease = LeaseId::new(FOREIGN_ACCOUNT, 7, 1, 1, account(200).as_str()).unwrap();
    (lease, workspace.sdl("shop.yaml", &[("web", "exec sleep 1000", 1)]))
}

/// Calls with the identity `name`.
fn status_as(workspace: &Workspace, gateway: &Gateway, lease: &LeaseId, name: &str) -> Done {
    let url = format!("--gateway=https://{}", gateway.address);
    let ca = format!("--ca={}", workspace.path("data/server.pem").display());
    let identity = format!("--identity={}", workspace.path(name).display());
    workspace.run(&["status", &lease.to_string(), &url, &ca, &identity])
}

#[test]
fn certificate_of_another_tool_works_from_a_trust_dir() {
    let workspace = Workspace::new();
    let (lease, sdl) = foreign_tenants(&workspace);
    for name in FOREIGN {
        // With the key, as a tenant may hand it over.
        let (certificate, key) = foreign(name);
        fs::write(workspace.path("trusted").join(format!("{name}.pem")), certificate + &key).unwrap();
    }
    let gateway = workspace.serve(&[(&lease, &sdl)], &[]);
    for name in FOREIGN {
        let done = status_as(&workspace, &gateway, &lease, name);
        assert_eq!(done.status.code(), Some(0), "{name}: {done:?}");
        assert!(done.out.contains("web"), "{name}: {done:?}");
    }
    let done = gateway.stop(Signal::TERM);
    assert!(!done.err.contains("CERTIFICATE_"), "{}", done.err);
}

/// The node answers on another thread.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn certificate_of_another_tool_works_from_the_chain() {
    let (workspace, chain) = (Workspace::new(), Chain::default());
    let (lease, sdl) = foreign_tenants(&workspace);
    let node = chain.node(None).await;
    let chain_grpc = format!("--chain-grpc=http://{}", node.address);
    for name in FOREIGN {
        chain.publish(lease.owner(), &foreign(name).0, State::Valid);
        let gateway = workspace.serve(&[(&lease, &sdl)], &[&chain_grpc]);
        let done = status_as(&workspace, &gateway, &lease, name);
        assert_eq!(done.status.code(), Some(0), "{name}: {done:?}");
        assert_eq!(gateway.metric("leasemux_chain_queries_total{kind=\"certificate\",result=\"found\"}"), 1);
        gateway.stop(Signal::TERM);
    }
}
