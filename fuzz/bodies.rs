//! The code of the fuzz targets. `tests/it/fuzz.rs` replays the corpus with it.

use std::collections::BTreeSet;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use bytes::Bytes;
use data_encoding::BASE64URL_NOPAD;
use leasemux::access::cert::TenantCertificate;
use leasemux::access::refusal::Refusal;
use leasemux::access::token::{Token, bearer};
use leasemux::edge::published::{self, RequestForm};
use leasemux::edge::request;
use leasemux::edge::rest::query::{StreamKind, StreamQuery};
use leasemux::edge::websocket::client_frames::{ClientFrame, ClientFrames};
use leasemux::exchange::codec;
use leasemux::exchange::lines::Part;
use leasemux::exchange::messages::{Content, Fetched, Message};
use leasemux::model::id::ServiceName;
use leasemux::model::limits::FILTERS_MAX;
use leasemux::model::proto::lease::{ServiceLogsRequest, ServiceRestartRequest, ServiceStatusRequest};
use leasemux::model::published::ServicesRequest;
use leasemux::platform::cri;
use leasemux::platform::local::sdl::{COUNT_MAX, Sdl};
use prost::Message as _;
use rustls::pki_types::CertificateDer;

/// A token's header for ES256K.
const HEADER: &str = r#"{"alg":"ES256K","typ":"JWT"}"#;

/// The private key 1 of P-256. Its public key is the curve's generator, so that `seeds.py` needs no elliptic
/// curve arithmetic.
const SCALAR: [u8; 32] = {
    let mut one = [0; 32];
    one[31] = 1;
    one
};

/// The signed content of a tenant's certificate up to its extensions; it ends with the public key.
const CERTIFICATE_HEAD: &[u8] = include_bytes!("certificate-head.der");

/// The public key.
const GENERATOR: &[u8] = CERTIFICATE_HEAD.split_at(CERTIFICATE_HEAD.len() - 65).1;

/// The signature algorithm of a certificate in DER.
const ECDSA_WITH_SHA256: &[u8] = &[0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];

/// Fuzzes an `authorization` header, a token, and the claims of a token: random changes rarely get through
/// Base64.
pub(crate) fn token(input: &[u8]) {
    let _ = bearer(input);
    parse_token(input);
    parse_token(&with_claims(input));
}

/// Parses a token. Checks that the claims of an accepted one survive a round trip.
fn parse_token(input: &[u8]) {
    if let Ok(token) = Token::parse(input) {
        let claims = token.claims();
        let again = Token::parse(&with_claims(claims.to_json().to_string().as_bytes()));
        assert_eq!(again.as_ref().map(Token::claims), Ok(claims));
    }
}

/// Returns a token with these claims and a well-formed signature.
fn with_claims(claims: &[u8]) -> Vec<u8> {
    let mut signature = [0; 64];
    (signature[31], signature[63]) = (1, 1);
    let parts = [HEADER.as_bytes(), claims, &signature];
    parts.map(|part| BASE64URL_NOPAD.encode(part)).join(".").into_bytes()
}

/// Fuzzes a client certificate in DER, its signed content, and its extensions. Content and extensions get a
/// valid signature here, so that they reach the checks after it.
pub(crate) fn certificate(input: &[u8]) {
    parse_certificate(input);
    parse_certificate(&self_signed(input));
    parse_certificate(&self_signed(&with_extensions(input)));
}

/// Parses a certificate. Checks that an accepted one keeps its bytes and is valid until its end.
fn parse_certificate(input: &[u8]) {
    if let Ok(certificate) = TenantCertificate::from_der(&CertificateDer::from(input)) {
        assert_eq!(certificate.der()[..], *input);
        assert!(!certificate.serial().as_str().is_empty());
        assert_ne!(certificate.check_time(certificate.not_after()), Err(Refusal::CertificateExpired));
    }
}

/// Returns the signed content of a tenant's certificate with these extensions.
pub(crate) fn with_extensions(extensions: &[u8]) -> Vec<u8> {
    let extensions = der(0xa3, &der(0x30, extensions));
    der(0x30, &[CERTIFICATE_HEAD, &extensions].concat())
}

/// Returns a certificate with this content, signed with the key of [`CERTIFICATE_HEAD`] and of the seeds.
pub(crate) fn self_signed(content: &[u8]) -> Vec<u8> {
    let signer =
        EcdsaKeyPair::from_private_key_and_public_key(&ECDSA_P256_SHA256_ASN1_SIGNING, &SCALAR, GENERATOR);
    let signature = signer.unwrap().sign(&SystemRandom::new(), content).unwrap();
    let bits = der(0x03, &[&[0], signature.as_ref()].concat());
    der(0x30, &[content, ECDSA_WITH_SHA256, &bits].concat())
}

/// Returns a value in DER.
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

/// Fuzzes the request message of each method.
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

/// Fuzzes the distinction between the published proto and the draft. Checks that each request is read
/// as its sender meant it, or refused, and that none selects more services than that.
pub(crate) fn published(input: &[u8]) {
    let form = published::classify(input);
    let bytes = Bytes::copy_from_slice(input);
    // `None` if the gateway refuses the request, an empty filter for all services.
    let selected = match &form {
        Ok(RequestForm::Published(services)) => Some(services.iter().cloned().collect()),
        Ok(_) => request::decode(&bytes).ok().and_then(|message| services_of(&message)),
        Err(_) => None,
    };
    if let Ok(message) = ServicesRequest::decode(input) {
        let meant: BTreeSet<ServiceName> =
            message.services.iter().filter_map(|name| name.parse().ok()).collect();
        if !meant.is_empty() {
            assert!(
                !matches!(form, Ok(RequestForm::Draft | RequestForm::Ambiguous)),
                "{meant:?} is {form:?}"
            );
            assert!(
                selected.as_ref().is_none_or(|selected| *selected == meant),
                "{selected:?} for {meant:?}"
            );
        } else if selected.as_ref().is_some_and(BTreeSet::is_empty) {
            // Then field 2 is an empty filter. Its tags are control characters.
            let is_of_filter = |name: &String| name.is_empty() || name.starts_with(char::is_control);
            assert!(message.services.iter().all(is_of_filter), "all services for {:?}", message.services);
        }
    }
    // As clients of the draft encode it: without fields that they do not know.
    if let Ok(message) = ServiceLogsRequest::decode(input)
        && message.encode_to_vec() == input
    {
        let is_draft =
            message != ServiceLogsRequest { lease_id: message.lease_id.clone(), ..Default::default() };
        let expected = if is_draft { RequestForm::Draft } else { RequestForm::Ambiguous };
        assert!(matches!(&form, Ok(form) if *form == expected), "{message:?} is read as {form:?}");
        assert_eq!(selected, services_of(&message));
    }
}

/// Returns the services that a request of the draft selects, none for all; `None` if it is invalid.
fn services_of(message: &ServiceLogsRequest) -> Option<BTreeSet<ServiceName>> {
    let filter = request::filter(message.filter.as_ref(), &message.filters, FILTERS_MAX).ok()?;
    Some(filter.services().cloned().collect())
}

/// Fuzzes the query of a stream. Checks that a selection never becomes all services.
pub(crate) fn query(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    for kind in [StreamKind::Logs, StreamKind::Events] {
        let _ = StreamQuery::parse(text, kind, FILTERS_MAX);
    }
    let selection = format!("services={}", text.replace(['&', '#'], ""));
    if let Ok(query) = StreamQuery::parse(&selection, StreamKind::Logs, FILTERS_MAX) {
        let selects_all = query.services.is_empty() && query.unknown.is_none();
        assert_eq!(selects_all, selection == "services=", "{selection}");
    }
}

/// Fuzzes the records of a log file. Checks that accepted ones survive a round trip, in both parsers.
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

/// Fuzzes an SDL file. Checks that an accepted one can run.
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

/// Header of a message between gateways: version, key, sender and counter.
const EXCHANGE_HEADER: [u8; 26] =
    [1, 0, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 0, 0, 0, 0, 0, 0, 0, 1];

/// Fuzzes a message between gateways, and its body.
pub(crate) fn exchange(input: &[u8]) {
    read_exchange(Bytes::copy_from_slice(input));
    read_exchange([&EXCHANGE_HEADER, input].concat().into());
}

/// Reads a message. Checks that an accepted one survives a round trip, and that its lines can be cut at each
/// position.
fn read_exchange(input: Bytes) {
    let Ok(envelope) = codec::decode(input) else { return };
    let bytes = codec::encode(&envelope);
    assert!(bytes.len() <= codec::MESSAGE_MAX_BYTES);
    assert_eq!(codec::decode(bytes).as_ref(), Ok(&envelope));
    let frames = match &envelope.message {
        Message::Frame(frame) => std::slice::from_ref(frame),
        Message::Fetched(Fetched::Frames { frames, .. }) => frames,
        _ => &[],
    };
    for frame in frames {
        let Content::Lines { lines, .. } = &frame.content else { continue };
        let mut at = lines.start();
        for line in &lines.batch().lines {
            let Part::Rest(rest) = lines.part_after(at) else { panic!("nothing after {at:?} in {lines:?}") };
            assert!(lines.batch().data.ends_with(&rest.data));
            at = line.after;
        }
        assert_eq!((at, lines.part_after(at)), (lines.end(), Part::Nothing));
    }
}

/// Fuzzes the frames of a websocket client. Checks that they read the same in pieces, and that all input is
/// consumed.
pub(crate) fn websocket(input: &[u8]) {
    let whole = read_frames([input]);
    assert_eq!(read_frames(input.chunks(1)), whole);
    let middle = input.len() / 2;
    assert_eq!(read_frames([&input[..middle], &input[middle..]]), whole);
}

/// Reads frames in pieces. Returns the control frames and errors as text, and the number of bytes thrown
/// away.
fn read_frames<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<String>, u64) {
    let (mut reader, mut read) = (ClientFrames::default(), Vec::new());
    for mut piece in pieces {
        while !piece.is_empty() {
            match reader.read(&mut piece) {
                Ok(None) => assert!(piece.is_empty()),
                Ok(Some(frame)) => {
                    if let ClientFrame::Ping(payload) | ClientFrame::Pong(payload) = frame {
                        assert!(payload.len() <= 125);
                    }
                    read.push(format!("{frame:?}"));
                }
                Err(error) => {
                    assert!(matches!(error.close_code(), 1002 | 1009));
                    read.push(error.to_string());
                }
            }
        }
    }
    (read, reader.discarded_bytes())
}
