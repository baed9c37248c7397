//! The gateway's two certificates, by the program itself: which name is shown which, and what comes of it when their files change.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use leasemux::edge::tls;
use leasemux::model::id::LeaseId;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::support::process::{Done, Gateway, World};

const OWN_END: &str = "leasemux_certificate_expiry_timestamp_seconds";
const PUBLIC_END: &str = "leasemux_ca_certificate_expiry_timestamp_seconds";

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
