use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use tokio::io::{AsyncReadExt as _, duplex};

use super::*;

/// Returns the first message of a client that asks for `name` and offers `protocols`.
fn hello(name: Option<&str>, protocols: &[&[u8]]) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.enable_sni = name.is_some();
    config.alpn_protocols = protocols.iter().map(|one| one.to_vec()).collect();
    let name = ServerName::try_from(name.unwrap_or("unused.example").to_owned()).unwrap();
    let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

/// Reads what a client sends in parts of `part` bytes, and then closes.
async fn read_of(bytes: &[u8], part: usize) -> (Result<ClientHello, HelloError>, Vec<u8>) {
    let (mut client, mut server) = duplex(1 << 20);
    let send = async {
        for part in bytes.chunks(part) {
            if client.write_all(part).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        client.shutdown().await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        answer
    };
    let read = async move { read(&mut server).await };
    let (answer, read) = tokio::join!(send, read);
    (read, answer)
}

#[tokio::test]
async fn hello_in_parts_is_read_and_replayed() {
    let bytes = hello(Some("mtls.provider.example"), &[b"http/1.1"]);
    for part in [1, 100, 100_000] {
        let hello = read_of(&bytes, part).await.0.unwrap();
        assert_eq!(hello.server_name(), Some("mtls.provider.example"));
        assert_eq!(hello.bytes(), &bytes);
        let mut replayed = Vec::new();
        hello.replay(&b"more"[..]).read_to_end(&mut replayed).await.unwrap();
        assert_eq!(replayed, [&bytes[..], b"more"].concat());
    }
}

#[tokio::test]
async fn route_depends_on_name_mode_and_challenge() {
    use MtlsMode::{Passthrough, Terminate};
    type Case<'a> = (Option<&'a str>, &'a [&'a [u8]], MtlsMode, Route);
    let cases: &[Case<'_>] = &[
        (Some("gw.example"), &[], Passthrough, Route::Terminate),
        (Some("GW.example"), &[b"http/1.1"], Passthrough, Route::Terminate),
        (Some("mtls.gw.example"), &[], Passthrough, Route::Splice),
        (Some("localhost"), &[], Passthrough, Route::Splice),
        (None, &[], Passthrough, Route::Splice),
        (Some("127.0.0.1"), &[], Passthrough, Route::Splice),
        (Some("mtls.gw.example"), &[], Terminate, Route::Terminate),
        (None, &[], Terminate, Route::Terminate),
        (Some("gw.example"), &[b"acme-tls/1"], Terminate, Route::Splice),
        (Some("gw.example"), &[b"acme-tls/1"], Passthrough, Route::Splice),
        (Some("gw.example"), &[b"acme-tls/1", b"http/1.1"], Passthrough, Route::Terminate),
        (Some("gw.example"), &[b"http/1.1", b"acme-tls/1"], Passthrough, Route::Terminate),
    ];
    for (name, protocols, mode, route) in cases {
        let hello = read_of(&hello(*name, protocols), 512).await.0.unwrap();
        let is_public = |name: &str| name.eq_ignore_ascii_case("gw.example");
        assert_eq!(hello.route(*mode, is_public), *route, "{name:?} {mode:?}");
    }
}

#[tokio::test]
async fn malformed_server_name_counts_as_none() {
    let bytes = hello(Some("provider.example"), &[]);
    let at = memchr::memmem::find(&bytes, b"provider.example").unwrap();
    for name in [b"provider.exa:443", b"provider exa\0mpl", b"127.000.000.0001", b"................"] {
        let mut bytes = bytes.clone();
        bytes[at..at + name.len()].copy_from_slice(name);
        let hello = read_of(&bytes, 512).await.0.unwrap();
        assert_eq!(hello.server_name(), None, "{name:?}");
        assert_eq!(hello.route(MtlsMode::Passthrough, |_| true), Route::Splice);
    }
}

#[tokio::test]
async fn other_bytes_are_refused_with_an_alert() {
    let (error, answer) = read_of(b"GET / HTTP/1.1\r\nHost: gw.example\r\n\r\n", 512).await;
    assert!(matches!(error, Err(HelloError::NotTls(_))), "{error:?}");
    assert_eq!(answer.first(), Some(&21), "a TLS alert: {answer:?}");
    let mut cut = hello(None, &[]);
    cut.truncate(100);
    let (error, _) = read_of(&cut, 512).await;
    assert!(matches!(error, Err(HelloError::Io(_))), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn silent_client_is_given_up() {
    let (_client, mut server) = duplex(100);
    assert!(matches!(read(&mut server).await, Err(HelloError::Timeout)));
}

#[tokio::test]
async fn endless_hello_is_refused() {
    // Handshake records of one byte each, of a message of the greatest length.
    let mut bytes = vec![22, 3, 1, 0, 4, 1, 0, 0xff, 0xff];
    bytes.extend([22, 3, 1, 0, 1, 0].repeat(20_000));
    let (error, _) = read_of(&bytes, 100_000).await;
    assert!(matches!(error, Err(HelloError::TooLong | HelloError::NotTls(_))), "{error:?}");
}

#[test]
fn no_bytes_panic() {
    let bytes = hello(Some("provider.example"), &[b"http/1.1"]);
    for at in 0..bytes.len() {
        for value in [0, 1, 0x7f, 0xff] {
            let mut bytes = bytes.clone();
            bytes[at] = value;
            let _ = Parser::default().parse(&bytes);
        }
    }
}
