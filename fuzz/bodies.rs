//! What each fuzz target does with its input. The tests of the gateway replay the corpus through the same.

use bytes::Bytes;
use data_encoding::BASE64URL_NOPAD;
use leasemux::access::cert::Presented;
use leasemux::access::token::{Token, bearer};
use leasemux::edge::request;
use leasemux::model::limits::FILTERS_MAX;
use leasemux::model::proto::lease::{ServiceLogsRequest, ServiceRestartRequest, ServiceStatusRequest};
use leasemux::platform::cri;
use leasemux::platform::local::sdl::{COUNT_MAX, Sdl};
use rustls::pki_types::CertificateDer;

/// A token's header for ES256K.
const HEADER: &str = r#"{"alg":"ES256K","typ":"JWT"}"#;

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

/// A client's certificate in DER. What is taken is taken for what it is.
pub(crate) fn certificate(input: &[u8]) {
    if let Ok(presented) = Presented::from_der(&CertificateDer::from(input)) {
        assert_eq!(presented.der()[..], *input);
        assert!(!presented.serial().as_str().is_empty());
    }
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
