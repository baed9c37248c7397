//! TLS of a tenant's connections: 1.3 only, HTTP/2 only, with the tenant's certificate if there is one.
//!
//! Providers' certificates are self-signed. So a gateway is trusted if its own certificate is among the
//! trusted ones or signed by one of them. Either way it must be currently valid and contain the host's name,
//! with or without the `mtls.` prefix that clients with a certificate add (gateways of `akash.network` select
//! their certificate by it).

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, RootCertStore, SignatureScheme,
};

use super::error::ConnectError;
use crate::config::Target;
use crate::sys::pem::{PemError, read_certificates, read_private_key};
use crate::sys::read::PEM_MAX_BYTES;

/// Application protocol of gRPC.
pub(super) const ALPN: &[u8] = b"h2";

/// Verifies the certificates of gateways, for one target.
#[derive(Debug)]
struct Verifier {
    /// `None` trusts any certificate.
    trust: Option<Trusted>,
    /// Acceptable names; the certificate must contain one of them.
    names: Vec<ServerName<'static>>,
    provider: Arc<CryptoProvider>,
}

#[derive(Debug)]
struct Trusted {
    /// Trusted as gateway certificates themselves.
    pinned: Vec<CertificateDer<'static>>,
    /// Trusted as issuers of gateway certificates.
    roots: RootCertStore,
}

/// Returns the configuration for `target` and the server name for TLS. An IP address is not sent as SNI.
pub(super) fn client(
    target: &Target,
    host: &ServerName<'static>,
) -> Result<(ClientConfig, ServerName<'static>), ConnectError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mtls = mtls_name(host);
    let names = [Some(host.clone()), mtls.clone()].into_iter().flatten().collect();
    let verifier = Verifier { trust: load_trust(target)?, names, provider: provider.clone() };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(ConnectError::Setup)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match &target.identity {
        None => builder.with_no_client_auth(),
        Some(dir) => {
            let chain = read_pem(&dir.join("cert.pem"), read_certificates)?;
            let key = read_pem(&dir.join("key.pem"), read_private_key)?;
            builder.with_client_auth_cert(chain, key).map_err(ConnectError::Setup)?
        }
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    let server_name = mtls.filter(|_| target.identity.is_some()).unwrap_or_else(|| host.clone());
    Ok((config, server_name))
}

fn mtls_name(host: &ServerName<'static>) -> Option<ServerName<'static>> {
    match host {
        ServerName::DnsName(name) => ServerName::try_from(format!("mtls.{}", name.as_ref())).ok(),
        _ => None,
    }
}

fn load_trust(target: &Target) -> Result<Option<Trusted>, ConnectError> {
    if target.insecure {
        return Ok(None);
    }
    let mut roots = RootCertStore::empty();
    let trusted = match &target.ca {
        Some(path) => read_pem(path, read_certificates)?,
        // Read errors are ignored: if a missing authority was needed, verification fails and reports it.
        None => rustls_native_certs::load_native_certs().certs,
    };
    roots.add_parsable_certificates(trusted.iter().cloned());
    let pinned = if target.ca.is_some() { trusted } else { Vec::new() };
    Ok(Some(Trusted { pinned, roots }))
}

/// Reads the PEM file at `path` with `read`.
fn read_pem<T>(path: &Path, read: fn(&Path, u64) -> Result<T, PemError>) -> Result<T, ConnectError> {
    read(path, PEM_MAX_BYTES).map_err(|reason| ConnectError::Pem(path.to_owned(), reason))
}

// === impl Verifier ===

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let Some(trusted) = &self.trust else {
            return Ok(ServerCertVerified::assertion());
        };
        let parsed = ParsedCertificate::try_from(end_entity)?;
        if trusted.pinned.iter().any(|pinned| pinned == end_entity) {
            check_validity(end_entity, now)?;
        } else {
            let algorithms = self.provider.signature_verification_algorithms.all;
            verify_server_cert_signed_by_trust_anchor(
                &parsed,
                &trusted.roots,
                intermediates,
                now,
                algorithms,
            )?;
        }
        let mut error = TlsError::InvalidCertificate(CertificateError::NotValidForName);
        for name in &self.names {
            match verify_server_name(&parsed, name) {
                Ok(()) => return Ok(ServerCertVerified::assertion()),
                Err(other) => error = other,
            }
        }
        Err(error)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Checks the dates of a pinned certificate, which skips path building.
fn check_validity(cert: &CertificateDer<'_>, now: UnixTime) -> Result<(), TlsError> {
    let wrong = |error| Err(TlsError::InvalidCertificate(error));
    let Ok((_, parsed)) = x509_parser::parse_x509_certificate(cert) else {
        return wrong(CertificateError::BadEncoding);
    };
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    if now < parsed.validity().not_before.timestamp() {
        return wrong(CertificateError::NotValidYet);
    }
    if now > parsed.validity().not_after.timestamp() {
        return wrong(CertificateError::Expired);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

    use super::*;

    const DAY: u64 = 24 * 3600;

    struct Case {
        cert: CertificateDer<'static>,
        file: PathBuf,
        _dir: tempfile::TempDir,
    }

    fn params(hosts: &[&str]) -> CertificateParams {
        let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
        CertificateParams::new(hosts).unwrap()
    }

    fn case(cert: CertificateDer<'static>, trusted_pem: &str) -> Case {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ca.pem");
        fs::write(&file, trusted_pem).unwrap();
        Case { cert, file, _dir: dir }
    }

    fn self_signed(params: CertificateParams) -> Case {
        let cert = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        case(cert.der().clone(), &cert.pem())
    }

    fn target(ca: Option<&Path>, insecure: bool) -> Target {
        let gateway = "https://gw.example".parse().unwrap();
        Target { gateway, identity: None, token: None, ca: ca.map(Path::to_owned), insecure }
    }

    fn verify(trust: &Target, cert: &CertificateDer<'_>, host: &str, now: u64) -> Result<(), TlsError> {
        let host = ServerName::try_from(host.to_owned()).unwrap();
        let names = [Some(host.clone()), mtls_name(&host)].into_iter().flatten().collect();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = Verifier { trust: load_trust(trust).unwrap(), names, provider };
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now));
        verifier.verify_server_cert(cert, &[], &host, &[], now).map(|_| ())
    }

    fn now() -> u64 {
        UnixTime::now().as_secs()
    }

    #[test]
    fn pinned_certificate_is_trusted_for_its_names() {
        for is_ca in [IsCa::NoCa, IsCa::Ca(BasicConstraints::Unconstrained)] {
            let mut params = params(&["gw.example", "mtls.only.example", "127.0.0.1"]);
            params.is_ca = is_ca;
            let case = self_signed(params);
            let trust = target(Some(&case.file), false);
            for host in ["gw.example", "only.example", "127.0.0.1"] {
                assert_eq!(verify(&trust, &case.cert, host, now()), Ok(()), "{host}");
            }
            for host in ["other.example", "127.0.0.2", "::1"] {
                assert!(verify(&trust, &case.cert, host, now()).is_err(), "{host}");
            }
        }
    }

    #[test]
    fn certificate_dates_are_checked() {
        let mut params = params(&["gw.example"]);
        params.not_before = time::OffsetDateTime::from_unix_timestamp(1_000_000_000).unwrap();
        params.not_after = time::OffsetDateTime::from_unix_timestamp(1_100_000_000).unwrap();
        let case = self_signed(params);
        let trust = target(Some(&case.file), false);
        assert_eq!(verify(&trust, &case.cert, "gw.example", 1_050_000_000), Ok(()));
        let at = |when| verify(&trust, &case.cert, "gw.example", when).unwrap_err();
        assert_eq!(at(1_000_000_000 - DAY), CertificateError::NotValidYet.into());
        assert_eq!(at(1_100_000_000 + DAY), CertificateError::Expired.into());
    }

    #[test]
    fn certificate_is_trusted_if_its_issuer_is() {
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().unwrap()).unwrap();
        let cert = params(&["gw.example"]).signed_by(&KeyPair::generate().unwrap(), &ca).unwrap();
        let case = case(cert.der().clone(), &ca.pem());
        let trust = target(Some(&case.file), false);
        assert_eq!(verify(&trust, &case.cert, "gw.example", now()), Ok(()));
        let unknown = self_signed(params(&["gw.example"]));
        assert!(verify(&trust, &unknown.cert, "gw.example", now()).is_err());
        assert!(verify(&target(None, false), &unknown.cert, "gw.example", now()).is_err());
        assert_eq!(verify(&target(None, true), &unknown.cert, "other", now()), Ok(()));
    }

    #[test]
    fn errors_suggest_a_remedy() {
        let untrusted = |source| ConnectError::Untrusted("https://gw.example".to_owned(), source).to_string();
        let mut params = params(&["gw.example"]);
        params.not_after = time::OffsetDateTime::now_utc() + time::Duration::DAY;
        let case = self_signed(params);
        let trust = target(Some(&case.file), false);
        let of = |trust, host, now| untrusted(verify(trust, &case.cert, host, now).unwrap_err());
        assert!(of(&trust, "other.example", now()).contains("a host name that the certificate contains"));
        assert!(of(&trust, "gw.example", now() + 2 * DAY).contains("unless a clock is wrong"));
        assert!(of(&target(None, false), "gw.example", now()).contains("--ca FILE"));

        let dir = tempfile::tempdir().unwrap();
        fs::copy(&case.file, dir.path().join("cert.pem")).unwrap();
        fs::write(dir.path().join("key.pem"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
        let target = Target { identity: Some(dir.path().to_owned()), ..trust };
        let host = ServerName::try_from("gw.example").unwrap();
        let mismatch = client(&target, &host).unwrap_err().to_string();
        assert!(mismatch.contains("does not belong to the certificate"), "{mismatch}");
    }

    #[test]
    fn files_without_certificates_or_keys_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("empty.pem");
        fs::write(&file, "nothing").unwrap();
        assert!(read_pem(&file, read_certificates).unwrap_err().to_string().contains("no certificate"));
        assert!(read_pem(&file, read_private_key).unwrap_err().to_string().contains("no private key"));
        fs::write(&file, vec![b'\n'; 1 + (1 << 20)]).unwrap();
        // `/dev/zero` has no end.
        for file in [Path::new("/dev/zero"), &file] {
            assert!(read_pem(file, read_certificates).unwrap_err().to_string().contains("larger than"));
            assert!(read_pem(file, read_private_key).unwrap_err().to_string().contains("larger than"));
        }
    }
}
