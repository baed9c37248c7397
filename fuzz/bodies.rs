//! What each fuzz target does with its input. The tests of the gateway replay the corpus through the same.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use bytes::Bytes;
use data_encoding::BASE64URL_NOPAD;
use leasemux::access::cert::TenantCertificate;
use leasemux::access::refusal::Refusal;
use leasemux::access::token::{Token, bearer};
use leasemux::edge::request;
use leasemux::model::limits::FILTERS_MAX;
use leasemux::model::proto::lease::{ServiceLogsRequest, ServiceRestartRequest, ServiceStatusRequest};
use leasemux::platform::cri;
use leasemux::platform::local::sdl::{COUNT_MAX, Sdl};
use rustls::pki_types::CertificateDer;

/// A token's header for ES256K.
const HEADER: &str = r#"{"alg":"ES256K","typ":"JWT"}"#;

/// A private key of P-256. It is one, so its public key is the curve's generator, which `seeds.py` knows without an elliptic curve.
const SCALAR: [u8; 32] = {
    let mut one = [0; 32];
    one[31] = 1;
    one
};

/// The content of a tenant's certificate up to its extensions, and within that, at its end, the public key.
const CERTIFICATE_HEAD: &[u8] = include_bytes!("certificate-head.der");

/// That public key.
const GENERATOR: &[u8] = CERTIFICATE_HEAD.split_at(CERTIFICATE_HEAD.len() - 65).1;

/// The algorithm of a certificate's signature, as DER.
const ECDSA_WITH_SHA256: &[u8] = &[0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];

/// An `authorization` header, a token, or the claims of one: behind Base64 chance would hardly find its way into them.
pub(crate) fn token(input: &[u8]) {
    let _ = bearer(input);
    signed(input);
    signed(&with_claims(input));
}

/// A token. What is taken is written and read again as the same.
fn signed(input: &[u8]) {
    if let Ok(token) = Token::parse(input) {
        let claims = token.claims();
        let again = Token::parse(&with_claims(claims.to_json().to_string().as_bytes()));
        assert_eq!(again.as_ref().map(Token::claims), Ok(claims));
    }
}

/// A token with these claims, and a signature of good form.
fn with_claims(claims: &[u8]) -> Vec<u8> {
    let mut signature = [0; 64];
    (signature[31], signature[63]) = (1, 1);
    let parts = [HEADER.as_bytes(), claims, &signature];
    parts.map(|part| BASE64URL_NOPAD.encode(part)).join(".").into_bytes()
}

/// A client's certificate in DER, the part of one that is signed, or the extensions of one. Chance does not sign what it changed: with a
/// signature made here it comes to the checks behind that.
pub(crate) fn certificate(input: &[u8]) {
    presented(input);
    presented(&self_signed(input));
    presented(&self_signed(&with_extensions(input)));
}

/// A certificate. What is taken is taken for what it is, and has not expired at its end.
fn presented(input: &[u8]) {
    if let Ok(presented) = TenantCertificate::from_der(&CertificateDer::from(input)) {
        assert_eq!(presented.der()[..], *input);
        assert!(!presented.serial().as_str().is_empty());
        assert_ne!(presented.check_time(presented.not_after()), Err(Refusal::CertificateExpired));
    }
}

/// The content of a tenant's certificate with these extensions.
pub(crate) fn with_extensions(extensions: &[u8]) -> Vec<u8> {
    let extensions = der(0xa3, &der(0x30, extensions));
    der(0x30, &[CERTIFICATE_HEAD, &extensions].concat())
}

/// A certificate of this content, signed with the key that [`CERTIFICATE_HEAD`] and the seeds carry.
pub(crate) fn self_signed(content: &[u8]) -> Vec<u8> {
    let signer =
        EcdsaKeyPair::from_private_key_and_public_key(&ECDSA_P256_SHA256_ASN1_SIGNING, &SCALAR, GENERATOR);
    let signature = signer.unwrap().sign(&SystemRandom::new(), content).unwrap();
    let bits = der(0x03, &[&[0], signature.as_ref()].concat());
    der(0x30, &[content, ECDSA_WITH_SHA256, &bits].concat())
}

/// A value in DER.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let zeros = length.iter().take_while(|byte| **byte == 0).count();
    let head = match &length[zeros..] {
        [] => vec![tag, 0],
        [short @ 0..0x80] => vec![tag, *short],
        long => [&[tag, 0x88 - u8::try_from(zeros).unwrap()], long].concat(),
    };
    [&head, content].concat()
}

/// The message of a call, as each of the three.
pub(crate) fn request(input: &[u8]) {
    let bytes = Bytes::copy_from_slice(input);
    if let Ok(message) = request::decode::<ServiceLogsRequest>(&bytes) {
        let _ = request::logs(&message, FILTERS_MAX);
    }
    if let Ok(message) = request::decode::<ServiceStatusRequest>(&bytes) {
        let _ = (
            request::lease(message.lease_id.as_ref()),
            request::filter(message.filter.as_ref(), &message.filters, FILTERS_MAX),
        );
    }
    if let Ok(message) = request::decode::<ServiceRestartRequest>(&bytes) {
        let _ = request::restart(&message, FILTERS_MAX);
    }
}

/// The records of a log file. What is taken and written again is read as the same, by whoever reads one or many.
pub(crate) fn cri(input: &[u8]) {
    let mut parser = cri::Parser::default();
    for line in input.split(|byte| *byte == b'\n') {
        let read = parser.parse(line);
        assert_eq!(read, cri::parse(line));
        if let Some(record) = read {
            let mut written = Vec::new();
            cri::write(&mut written, &record);
            let line = written.strip_suffix(b"\n").unwrap_or(&written);
            assert_eq!(cri::parse(line).as_ref(), Some(&record));
        }
    }
}

/// An SDL file. What is taken can be run.
pub(crate) fn sdl(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    match Sdl::parse(text) {
        Ok(sdl) => {
            assert!(!sdl.services.is_empty());
            for service in sdl.services.values() {
                assert!(service.command.first().is_some_and(|program| !program.is_empty()));
                assert!(service.command.iter().all(|word| !word.contains('\0')));
                assert!(service.env.iter().all(|(name, value)| !name.is_empty() && !value.contains('\0')));
                assert!((1..=COUNT_MAX).contains(&service.count));
            }
        }
        Err(error) => assert!(!error.faults.is_empty()),
    }
}
