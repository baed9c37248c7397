//! Valid and invalid headers.

use ppp::v2::{Builder, Type, Version};
use proptest::prelude::*;

use super::*;

/// The signature, from the specification.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// Builds a header: version and command, family and protocol, and the variable part.
fn header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
    [&SIGNATURE[..], &[command, family], &length, rest].concat()
}

/// From 192.0.2.7:4711 to 198.51.100.1:443.
const TCP4: [u8; 12] = [192, 0, 2, 7, 198, 51, 100, 1, 0x12, 0x67, 0x01, 0xbb];

/// Returns the result of reading these bytes, and the unread rest.
async fn outcome(bytes: &[u8]) -> (Result<Option<SocketAddr>, Error>, Vec<u8>) {
    let mut unread = bytes;
    let outcome = read(&mut unread).await;
    (outcome, unread.to_vec())
}

#[tokio::test]
async fn header_names_the_peer_and_nothing_after_it_is_read() {
    let tcp6 = {
        let (from, to): (std::net::Ipv6Addr, std::net::Ipv6Addr) =
            ("2001:db8::7".parse().unwrap(), "2001:db8::1".parse().unwrap());
        [&from.octets()[..], &to.octets(), &[0x12, 0x67, 0x01, 0xbb]].concat()
    };
    let mapped = {
        let from = "::ffff:192.0.2.7".parse::<std::net::Ipv6Addr>().unwrap().octets();
        [&from[..], &from, &[0x12, 0x67, 0x01, 0xbb]].concat()
    };
    // A checksum (type 3) and the bytes that pad a header (type 4).
    let tagged = [&TCP4[..], &[3, 0, 4, 1, 2, 3, 4, 4, 0, 2, 0, 0]].concat();
    let garbage_after = [&TCP4[..], &[0xff; 100]].concat();
    let unix = [0; 216];
    for (case, bytes, expected) in [
        ("IPv4", header(0x21, 0x11, &TCP4), Some("192.0.2.7:4711")),
        ("IPv6", header(0x21, 0x21, &tcp6), Some("[2001:db8::7]:4711")),
        ("IPv4 within IPv6", header(0x21, 0x21, &mapped), Some("192.0.2.7:4711")),
        ("fields after the addresses", header(0x21, 0x11, &tagged), Some("192.0.2.7:4711")),
        ("garbage after the addresses", header(0x21, 0x11, &garbage_after), Some("192.0.2.7:4711")),
        ("local", header(0x20, 0x00, &[]), None),
        ("local, with addresses", header(0x20, 0x11, &TCP4), None),
        ("local, of another family", header(0x20, 0x31, &unix), None),
        ("unknown", header(0x21, 0x00, &[]), None),
        ("unknown, with bytes", header(0x21, 0x00, &TCP4), None),
    ] {
        let (outcome, unread) = outcome(&[&bytes[..], b"\x16\x03\x01"].concat()).await;
        assert_eq!(outcome.unwrap(), expected.map(|text| text.parse().unwrap()), "{case}");
        assert_eq!(unread, b"\x16\x03\x01", "{case}");
    }
}

#[tokio::test]
async fn invalid_headers_have_distinct_errors() {
    let datagram = header(0x21, 0x12, &TCP4);
    for (case, bytes, expected) in [
        ("version 1", b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 443\r\n".to_vec(), "version 1"),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), "sends no PROXY"),
        ("HTTP", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), "not a PROXY"),
        ("nothing", vec![], "closed before"),
        ("a part", header(0x21, 0x11, &TCP4)[..20].to_vec(), "closed before"),
        ("a part of the signature", SIGNATURE[..5].to_vec(), "closed before"),
        ("version 3", header(0x31, 0x11, &TCP4), "malformed"),
        ("another command", header(0x22, 0x11, &TCP4), "malformed"),
        ("another family", header(0x21, 0x41, &TCP4), "malformed"),
        ("addresses cut short", header(0x21, 0x11, &TCP4[..11]), "malformed"),
        ("datagrams", datagram, "not for TCP"),
        ("a socket of the file system", header(0x21, 0x31, &[0; 216]), "not for TCP"),
        ("too long", header(0x21, 0x11, &[0; VARIABLE_MAX_BYTES + 1]), "longer than"),
    ] {
        let error = outcome(&bytes).await.0.unwrap_err().to_string();
        assert!(error.contains(expected), "{case}: {error}");
    }
    let whole = [&TCP4[..], &[0; VARIABLE_MAX_BYTES - 12]].concat();
    outcome(&header(0x21, 0x11, &whole)).await.0.unwrap();
}

#[tokio::test(start_paused = true)]
async fn incomplete_header_times_out() {
    for part in [0, 1, 12, 16, 20] {
        let (mut ours, mut theirs) = tokio::io::duplex(64);
        let bytes = header(0x21, 0x11, &TCP4);
        tokio::io::AsyncWriteExt::write_all(&mut theirs, &bytes[..part]).await.unwrap();
        assert!(matches!(read(&mut ours).await, Err(Error::Timeout)), "{part}");
    }
    // Bytes that cannot become a header are refused at once.
    let (mut ours, mut theirs) = tokio::io::duplex(64);
    tokio::io::AsyncWriteExt::write_all(&mut theirs, b"P").await.unwrap();
    assert!(matches!(read(&mut ours).await, Err(Error::Version1)));
}

#[test]
fn only_trusted_networks_are_trusted() {
    let trusted = ["10.0.0.0/8", "192.0.2.7/32", "fd00::/8"].map(|net| net.parse().unwrap());
    for (address, expected) in [
        ("10.255.0.1", true),
        ("::ffff:10.255.0.1", true),
        ("11.0.0.1", false),
        ("192.0.2.7", true),
        ("192.0.2.8", false),
        ("fd12::1", true),
        ("fe80::1", false),
        ("::a00:1", false),
    ] {
        assert_eq!(is_trusted(&trusted, address.parse().unwrap()), expected, "{address}");
    }
    assert!(!is_trusted(&[], "127.0.0.1".parse().unwrap()));
}

proptest! {
    /// Headers of another implementation are read, with any added field and in any parts.
    #[test]
    fn headers_round_trip(from: SocketAddr, to: SocketAddr, note in prop::collection::vec(any::<u8>(), 0..200), step in 1_usize..64) {
        prop_assume!(from.is_ipv4() == to.is_ipv4());
        let mut made = Builder::with_addresses(Version::Two | Command::Proxy, Protocol::Stream, (from, to));
        made = made.write_tlv(Type::NoOp, &note).unwrap();
        let bytes = [made.build().unwrap(), b"TLS".to_vec()].concat();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let (read, unread) = runtime.block_on(async {
            let (mut ours, mut theirs) = tokio::io::duplex(step);
            let write = async {
                for part in bytes.chunks(step) {
                    tokio::io::AsyncWriteExt::write_all(&mut theirs, part).await.unwrap();
                }
                drop(theirs);
            };
            let whole = async {
                let outcome = read(&mut ours).await;
                let mut unread = Vec::new();
                ours.read_to_end(&mut unread).await.unwrap();
                (outcome, unread)
            };
            tokio::join!(whole, write).0
        });
        let expected = SocketAddr::new(from.ip().to_canonical(), from.port());
        prop_assert_eq!(read.unwrap(), Some(expected));
        prop_assert_eq!(unread, b"TLS".to_vec());
    }

    /// Any bytes are read or refused, within the length limit.
    #[test]
    fn any_bytes_are_read_or_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..3_000), signed: bool) {
        if signed && bytes.len() >= SIGNATURE.len() {
            bytes[..SIGNATURE.len()].copy_from_slice(&SIGNATURE);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let (_, unread) = runtime.block_on(outcome(&bytes));
        prop_assert!(bytes.len() - unread.len() <= FIXED_BYTES + VARIABLE_MAX_BYTES);
    }
}
