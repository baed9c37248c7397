//! The gateway's own server certificate, for operators without one.
//!
//! It is self-signed and kept across restarts, so that clients configure trust in `server.pem` once. It is
//! replaced when it expires within 30 days, lacks a host, or cannot be read.

use std::collections::BTreeSet;
use std::fs::Permissions;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256,
};
use rustls::client::verify_server_name;
use rustls::pki_types::ServerName;
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use tempfile::NamedTempFile;
use time::OffsetDateTime;

use super::cert_reload::validity;
use super::{Error, load};

/// File of the certificate, which clients trust.
pub const CERTIFICATE_FILE: &str = "server.pem";

/// File of the private key, readable by its owner only.
pub(crate) const KEY_FILE: &str = "server.key.pem";

/// Validity of a new certificate. Ten years, because clients have copies of it; no authority limits it.
const VALIDITY: Duration = Duration::from_secs(3_650 * DAY_SECS);

/// A certificate that expires sooner than this is replaced at start.
const RENEW: Duration = Duration::from_secs(30 * DAY_SECS);

/// How far clients' clocks may be slow.
const CLOCK_SKEW: Duration = Duration::from_secs(DAY_SECS);

const DAY_SECS: u64 = 24 * 60 * 60;

/// Names of every gateway, beside its public host names.
const LOCAL_HOSTS: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// Prefix of the name by which clients with a certificate connect to an Akash provider.
const MTLS_PREFIX: &str = "mtls.";

/// A certificate and its key, ready for [`super::load`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generated {
    /// File of the certificate.
    pub certificate: PathBuf,
    /// File of the private key.
    pub key: PathBuf,
    /// Whether it is new: clients that trust an earlier one must be given this one.
    pub(crate) fresh: bool,
}

/// Ensures that `dir` has a certificate that is valid at `now` for this machine and for `hosts` (names or
/// addresses), and for each name with the prefix `mtls.` that is not too long.
///
/// # Errors
/// [`Error::Host`] for an invalid host, [`Error::File`] if `dir` cannot be written.
pub fn ensure(dir: &Path, hosts: &[String], now: SystemTime) -> Result<Generated, Error> {
    let names = names(hosts)?;
    let mut generated =
        Generated { certificate: dir.join(CERTIFICATE_FILE), key: dir.join(KEY_FILE), fresh: false };
    let kept = load(&generated.certificate, &generated.key);
    if kept.is_ok_and(|kept| is_usable(&kept, &names, now)) {
        return Ok(generated);
    }
    let (certificate, key) = make(names, now).map_err(|e| Error::Library(e.to_string()))?;
    std::fs::create_dir_all(dir).map_err(|e| cannot_write(dir, e))?;
    // The key first: after a crash in between the pair does not match, and the next start replaces it.
    replace(dir, &generated.key, &key, 0o600).map_err(|e| cannot_write(&generated.key, e))?;
    replace(dir, &generated.certificate, &certificate, 0o644)
        .map_err(|e| cannot_write(&generated.certificate, e))?;
    generated.fresh = true;
    Ok(generated)
}

/// Returns the names and addresses that the certificate must have, in a form that clients can verify: with
/// any other, [`is_usable`] would fail at every start.
fn names(hosts: &[String]) -> Result<BTreeSet<String>, Error> {
    let mut names = BTreeSet::new();
    for host in LOCAL_HOSTS.into_iter().chain(hosts.iter().map(String::as_str)) {
        match ServerName::try_from(host) {
            Ok(ServerName::IpAddress(ip)) => names.insert(IpAddr::from(ip).to_string()),
            Ok(ServerName::DnsName(name)) => {
                // The library removes a trailing dot, which names in certificates do not have.
                let name = name.as_ref().to_ascii_lowercase();
                let prefixed = format!("{MTLS_PREFIX}{name}");
                // The prefix can make it too long.
                if ServerName::try_from(prefixed.as_str()).is_ok() {
                    names.insert(prefixed);
                }
                names.insert(name)
            }
            _ => return Err(Error::Host(host.to_owned())),
        };
    }
    Ok(names)
}

fn make(names: BTreeSet<String>, now: SystemTime) -> Result<(String, String), rcgen::Error> {
    // rcgen detects which names are addresses.
    let mut params = CertificateParams::new(names.into_iter().collect::<Vec<_>>())?;
    let now = OffsetDateTime::from(now);
    params.not_before = now - CLOCK_SKEW;
    params.not_after = now + VALIDITY;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "leasemux gateway");
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let certificate = params.self_signed(&key)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

fn is_usable(kept: &CertifiedKey, names: &BTreeSet<String>, now: SystemTime) -> bool {
    let Some((start, end)) = validity(kept) else { return false };
    let Ok(certificate) = kept.end_entity_cert().and_then(ParsedCertificate::try_from) else { return false };
    let has = |name: &String| {
        ServerName::try_from(name.as_str()).is_ok_and(|name| verify_server_name(&certificate, &name).is_ok())
    };
    start <= now && end >= now + RENEW && names.iter().all(has)
}

/// Replaces the file at `path` atomically.
fn replace(dir: &Path, path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let mut file = NamedTempFile::new_in(dir)?;
    file.write_all(text.as_bytes())?;
    file.as_file().set_permissions(Permissions::from_mode(mode))?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

fn cannot_write(path: &Path, source: io::Error) -> Error {
    Error::File { action: "write", path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use x509_parser::prelude::{FromDer as _, X509Certificate};

    use super::*;

    use std::sync::Arc;

    use rustls::RootCertStore;
    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier as _;
    use rustls::pki_types::UnixTime;

    const HOST: &str = "provider.example.com";

    /// Damages valid files.
    type Spoil = fn(&Generated);

    fn hosts(hosts: &[&str]) -> Vec<String> {
        hosts.iter().map(|&host| host.to_owned()).collect()
    }

    fn bytes(generated: &Generated) -> (Vec<u8>, Vec<u8>) {
        (std::fs::read(&generated.certificate).unwrap(), std::fs::read(&generated.key).unwrap())
    }

    #[test]
    fn certificate_is_created_once_and_reused() {
        let dir = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        // With `mtls.`, the first one has 253 bytes, the maximum.
        let [long, longer, longest] = [248, 249, 253]
            .map(|length| format!("{0}.{0}.{0}.{1}", "a".repeat(63), "a".repeat(length - 192)));
        let dotted = format!("dotted.{HOST}.");
        let all = [HOST, "10.0.0.1", "::ffff:10.0.0.1", &dotted, &long, &longer, &longest];
        let first = ensure(&dir.path().join("data"), &hosts(&all), now).unwrap();
        assert!(first.fresh);
        let made = bytes(&first);

        let later = now + VALIDITY - RENEW - Duration::from_secs(DAY_SECS);
        let undotted = dotted.trim_end_matches('.');
        for wanted in [&all[..], &["PROVIDER.example.com"], &[undotted], &[]] {
            let again = ensure(&dir.path().join("data"), &hosts(wanted), later).unwrap();
            assert!(!again.fresh, "{wanted:?}");
            assert_eq!(bytes(&again), made);
        }
    }

    #[test]
    fn unusable_certificate_is_replaced() {
        let now = SystemTime::now();
        let cases: [(&str, &[&str], SystemTime, Spoil); 7] = [
            ("a host is missing", &[HOST], now, |_| ()),
            ("an address is missing", &["10.0.0.1"], now, |_| ()),
            ("it expires soon", &[], now + VALIDITY - RENEW + Duration::from_secs(1), |_| ()),
            ("the clock was wrong", &[], now - CLOCK_SKEW - Duration::from_secs(1), |_| ()),
            ("no key", &[], now, |made| {
                std::fs::remove_file(&made.key).unwrap();
            }),
            ("half a certificate", &[], now, |made| {
                std::fs::write(&made.certificate, "-----BEGIN CERT").unwrap();
            }),
            ("another key", &[], now, |made| {
                std::fs::write(&made.key, KeyPair::generate().unwrap().serialize_pem()).unwrap();
            }),
        ];
        for (case, wanted, at, spoil) in cases {
            let dir = tempfile::tempdir().unwrap();
            let first = ensure(dir.path(), &[], now).unwrap();
            let before = bytes(&first);
            spoil(&first);
            let second = ensure(dir.path(), &hosts(wanted), at).unwrap();
            assert!(second.fresh, "{case}");
            assert_ne!(bytes(&second), before, "{case}");
            assert!(!ensure(dir.path(), &hosts(wanted), at).unwrap().fresh, "{case}: replaced once");
            load(&second.certificate, &second.key).unwrap();
            let files = std::fs::read_dir(dir.path()).unwrap().count();
            assert_eq!(files, 2, "{case}: no other files");
        }
    }

    #[test]
    fn key_file_is_readable_by_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let made = ensure(dir.path(), &[], SystemTime::now()).unwrap();
        let bits = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(bits(&made.key), 0o600);
        assert_eq!(bits(&made.certificate), 0o644);
    }

    #[test]
    fn certificate_is_accepted_for_every_name() {
        let dir = tempfile::tempdir().unwrap();
        let made = ensure(dir.path(), &hosts(&[HOST, "10.0.0.1"]), SystemTime::now()).unwrap();
        let kept = load(&made.certificate, &made.key).unwrap();
        let own = kept.end_entity_cert().unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(own.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        let verify = |name: &str| {
            let name = ServerName::try_from(name.to_owned()).unwrap();
            verifier.verify_server_cert(own, &[], &name, &[], UnixTime::now())
        };
        let local = ["localhost", "mtls.localhost", "127.0.0.1", "::1"];
        for name in local.into_iter().chain([HOST, "mtls.provider.example.com", "10.0.0.1"]) {
            verify(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
        verify("other.example.com").unwrap_err();
    }

    #[test]
    fn certificate_has_the_documented_form() {
        let dir = tempfile::tempdir().unwrap();
        let made = ensure(dir.path(), &[], SystemTime::now()).unwrap();
        let kept = load(&made.certificate, &made.key).unwrap();
        let (_, parsed) = X509Certificate::from_der(kept.end_entity_cert().unwrap()).unwrap();
        assert_eq!(parsed.version(), x509_parser::x509::X509Version::V3);
        assert!(!parsed.is_ca());
        assert!(parsed.basic_constraints().unwrap().is_some(), "CA=false is explicit");
        assert_eq!(parsed.key_usage().unwrap().unwrap().value.flags, 1, "digitalSignature and nothing else");
        let extended = parsed.extended_key_usage().unwrap().unwrap().value;
        assert!(extended.server_auth && !extended.client_auth && !extended.any);
        let curve = parsed.public_key().algorithm.parameters.as_ref().unwrap().as_oid().unwrap();
        assert_eq!(curve.to_id_string(), "1.2.840.10045.3.1.7", "P-256");
    }

    #[test]
    fn invalid_host_is_named() {
        let dir = tempfile::tempdir().unwrap();
        for bad in [
            "",
            "a..",
            "127.0.0.1.",
            "https://provider.example.com",
            "provider.example.com:8443",
            "a b",
            "*.example.com",
        ] {
            let error = ensure(dir.path(), &hosts(&[bad]), SystemTime::now()).unwrap_err();
            assert!(matches!(&error, Error::Host(host) if host == bad), "{error}");
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn unwritable_directory_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("data");
        std::fs::write(&file, "").unwrap();
        let error = ensure(&file, &[], SystemTime::now()).unwrap_err();
        assert!(matches!(&error, Error::File { action: "write", path, .. } if *path == file), "{error}");
    }
}
