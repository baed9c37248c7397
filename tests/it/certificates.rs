//! Certificates, by the program itself: the gateway's two (which name is shown which, and what comes of it when their files
//! change), and those that tenants made with other tools.

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
use crate::support::process::{Done, Gateway, World};

const OWN_END: &str = "leasemux_certificate_expiry_timestamp_seconds";
const PUBLIC_END: &str = "leasemux_ca_certificate_expiry_timestamp_seconds";

/// Files of `tests/vectors/certificates`, whose README tells how they were made: a certificate and its key each.
const FOREIGN: [&str; 4] = ["akashjs", "chain-sdk", "chain-sdk-next", "openssl-p384"];

/// The account that all of them name.
const FOREIGN_ACCOUNT: &str = "akash1kp030650r7q7kf83xrs6873dw3pxeg2c0kzl6q";

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A gateway with a certificate of its own and one for `localhost`, and a tenant of it.
struct Scene {
    world: World,
    gateway: Gateway,
    lease: LeaseId,
    token: String,
}

impl Scene {
    fn new() -> Self {
        let world = World::new();
        let lease = world.tenant("alice");
        let text = |name: &str| world.path(name).to_str().unwrap().to_owned();
        fs::copy(world.path("alice/account.pub"), world.path("trusted/alice.pub")).unwrap();
        let token = world.run(&["token", "new", "--identity", &text("alice")]).out.trim().to_owned();
        for (name, day) in [("own", 1), ("public", 2)] {
            pair(&world.path(name), day);
        }
        let sdl = world.sdl("shop.yaml", &[("web", "exec sleep 1000", 1)]);
        let flags = [("--tls", "own"), ("--ca-tls", "public")].map(|(flag, name)| {
            let file = |name: &str, file: &str| text(&format!("{name}/{file}"));
            [
                format!("{flag}-cert={}", file(name, "server.pem")),
                format!("{flag}-key={}", file(name, "server.key.pem")),
            ]
        });
        let flags: Vec<&str> = flags.as_flattened().iter().map(String::as_str).collect();
        let gateway =
            world.serve(&[(&lease, &sdl)], &[&flags[..], &["--public-hostname=localhost"]].concat());
        Self { world, gateway, lease, token }
    }

    /// A call, by whatever credentials, of somebody who believes only the certificate in this directory.
    fn call(&self, credentials: &str, believing: &Path) -> Done {
        let (lease, gateway) =
            (self.lease.to_string(), format!("--gateway=https://localhost:{}", self.gateway.address.port()));
        let ca = format!("--ca={}", believing.join("server.pem").display());
        self.world.run(&["status", &lease, &gateway, credentials, &ca])
    }

    /// By which certificate the gateway shows itself to who comes with these credentials.
    fn shown(&self, credentials: &str, expected: &Path, others: &[&Path]) {
        let done = self.call(credentials, expected);
        assert_eq!(done.status.code(), Some(0), "{done:?}");
        for other in others {
            let done = self.call(credentials, other);
            assert_eq!(done.status.code(), Some(3), "{done:?}");
            assert!(done.err.contains("is not trusted"), "{done:?}");
        }
    }
}

/// A pair in `dir`, made so many days ago.
fn pair(dir: &Path, days: u32) -> PathBuf {
    tls::ensure(dir, &[], SystemTime::now() - days * DAY).unwrap();
    dir.to_owned()
}

/// When the certificate in `dir` ends, in Unix seconds.
fn end(dir: &Path) -> u64 {
    let der = CertificateDer::from_pem_file(dir.join("server.pem")).unwrap();
    let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
    parsed.validity().not_after.timestamp().try_into().unwrap()
}

/// Puts the pair `from` in the place of the pair `to`, as whoever renews one does.
fn renew(from: &Path, to: &Path) {
    for name in ["server.key.pem", "server.pem"] {
        let next = to.join("next");
        fs::copy(from.join(name), &next).unwrap();
        fs::rename(next, to.join(name)).unwrap();
    }
}

#[test]
fn names_are_shown_their_certificates_which_are_read_again_when_they_change_and_their_ends_are_told() {
    let scene = Scene::new();
    let (gateway, world) = (&scene.gateway, &scene.world);
    let [own, public] = ["own", "public"].map(|name| world.path(name));
    let [first_own, first_public] = ["first-own", "first-public"].map(|name| world.path(name));
    for (from, to) in [(&own, &first_own), (&public, &first_public)] {
        fs::create_dir(to).unwrap();
        renew(from, to);
    }
    assert_eq!((gateway.metric(OWN_END), gateway.metric(PUBLIC_END)), (end(&own), end(&public)));
    let (certificate, token) =
        (format!("--identity={}", world.path("alice").display()), format!("--token={}", scene.token));
    scene.shown(&certificate, &own, &[&public]);
    scene.shown(&token, &public, &[&own]);

    // Each is renewed apart from the other.
    renew(&pair(&world.path("next-public"), 3), &public);
    assert_ne!(end(&public), end(&first_public));
    gateway.until_metric(PUBLIC_END, end(&public));
    assert_eq!(gateway.metric(OWN_END), end(&first_own));
    scene.shown(&token, &public, &[&first_public, &own]);
    scene.shown(&certificate, &own, &[&public]);

    renew(&pair(&world.path("next-own"), 4), &own);
    gateway.until_metric(OWN_END, end(&own));
    assert_eq!(gateway.metric(PUBLIC_END), end(&public));
    scene.shown(&certificate, &own, &[&first_own, &public]);
}

#[test]
fn without_a_certificate_for_the_public_name_there_is_no_end_of_it() {
    let world = World::new();
    let lease = world.tenant("alice");
    let sdl = world.sdl("shop.yaml", &[("web", "exec sleep 1000", 1)]);
    let gateway = world.serve(&[(&lease, &sdl)], &[]);
    assert_eq!((gateway.metric(OWN_END), gateway.metric(PUBLIC_END)), (end(&world.path("data")), 0));
}

/// Certificate and key of the file `name`, in PEM.
fn foreign(name: &str) -> (String, String) {
    let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/certificates");
    let text = fs::read_to_string(vectors.join(format!("{name}.pem"))).unwrap();
    let key = text.find("-----BEGIN PRIVATE KEY-----").unwrap();
    let end = text.find("-----BEGIN EC PUBLIC KEY-----").unwrap_or(text.len());
    (text[..key].to_owned(), text[key..end].to_owned())
}

/// Makes an identity of each foreign certificate, and a lease of their account with its SDL.
fn foreign_tenants(world: &World) -> (LeaseId, PathBuf) {
    for name in FOREIGN {
        let (certificate, key) = foreign(name);
        fs::create_dir(world.path(name)).unwrap();
        fs::write(world.path(name).join("cert.pem"), certificate).unwrap();
        fs::write(world.path(name).join("key.pem"), key).unwrap();
    }
    let lease = LeaseId::new(FOREIGN_ACCOUNT, 7, 1, 1, account(200).as_str()).unwrap();
    (lease, world.sdl("shop.yaml", &[("web", "exec sleep 1000", 1)]))
}

/// A call with the identity `name`.
fn status_as(world: &World, gateway: &Gateway, lease: &LeaseId, name: &str) -> Done {
    let url = format!("--gateway=https://{}", gateway.address);
    let ca = format!("--ca={}", world.path("data/server.pem").display());
    let identity = format!("--identity={}", world.path(name).display());
    world.run(&["status", &lease.to_string(), &url, &ca, &identity])
}

#[test]
fn certificate_of_another_tool_works_from_a_trust_dir() {
    let world = World::new();
    let (lease, sdl) = foreign_tenants(&world);
    for name in FOREIGN {
        // With key and all, as a tenant may hand it over.
        let (certificate, key) = foreign(name);
        fs::write(world.path("trusted").join(format!("{name}.pem")), certificate + &key).unwrap();
    }
    let gateway = world.serve(&[(&lease, &sdl)], &[]);
    for name in FOREIGN {
        let done = status_as(&world, &gateway, &lease, name);
        assert_eq!(done.status.code(), Some(0), "{name}: {done:?}");
        assert!(done.out.contains("web"), "{name}: {done:?}");
    }
    let done = gateway.stop(Signal::TERM);
    assert!(!done.err.contains("CERTIFICATE_"), "{}", done.err);
}

/// The node answers from another thread meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn certificate_of_another_tool_works_from_the_chain() {
    let (world, chain) = (World::new(), Chain::default());
    let (lease, sdl) = foreign_tenants(&world);
    let node = chain.node(None).await;
    let chain_grpc = format!("--chain-grpc=http://{}", node.address);
    for name in FOREIGN {
        chain.publish(lease.owner(), &foreign(name).0, State::Valid);
        let gateway = world.serve(&[(&lease, &sdl)], &[&chain_grpc]);
        let done = status_as(&world, &gateway, &lease, name);
        assert_eq!(done.status.code(), Some(0), "{name}: {done:?}");
        assert_eq!(gateway.metric("leasemux_chain_queries_total{kind=\"certificate\",result=\"found\"}"), 1);
        gateway.stop(Signal::TERM);
    }
}
