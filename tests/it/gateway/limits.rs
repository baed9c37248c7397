//! Limits that an operator sets, and their log messages.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use rustix::process::{Resource, Signal, getrlimit};

use super::*;

/// A header of the PROXY protocol, version 2, for a connection from 192.0.2.7.
const FROM_7: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\x7f\0\0\x01\x10\0\x01\xbb";

/// A quiet service.
const QUIET: &str = "exec sleep 1000";

/// Opens a connection, sends these bytes, and returns whether it was closed without an answer.
fn is_closed(gateway: &Gateway, start: &[u8]) -> bool {
    let mut socket = TcpStream::connect(gateway.address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.write_all(start).unwrap();
    !matches!(socket.read(&mut [0; 1]), Ok(1..))
}

#[test]
fn wrong_proxy_and_peers_over_limits_are_logged() {
    let flags = ["--trusted-proxy=127.0.0.0/8", "--max-connections-per-peer=1"];
    let (_workspace, _, gateway) = serve(&[("web", QUIET, 1)], &flags);
    assert!(is_closed(&gateway, b"PROXY TCP4 192.0.2.7 127.0.0.1 4096 443\r\n"));
    gateway.program.until_said("version 1 of the PROXY protocol; set it to version 2");
    let mut first = TcpStream::connect(gateway.address).unwrap();
    first.write_all(FROM_7).unwrap();
    gateway.until_metric("leasemux_connections_accepted_total", 1);
    let second = || !is_closed(&gateway, FROM_7);
    assert!(!second());
    gateway.program.until_said("192.0.2.7:4096");
    gateway.program.until_said("limit of connections per peer reached");
    // A flood of connections does not flood the log.
    for _ in 0..20 {
        assert!(!second());
    }
    let log = gateway.program.err.get();
    assert!(log.matches("limit of connections per peer reached").count() < 5, "{log}");
}

/// Returns a `ClientHello` that offers nothing acceptable, with an IP address as server name.
fn hello_to_an_address() -> Vec<u8> {
    let name = b"127.0.0.1";
    let length = u8::try_from(name.len()).unwrap();
    let mut extensions = vec![0, 0, 0, length + 5, 0, length + 3, 0, 0, length];
    extensions.extend(name);
    extensions.extend([0, 13, 0, 4, 0, 2, 4, 3]);
    let mut hello = vec![3, 3];
    hello.extend([7; 32]);
    hello.extend([0, 0, 2, 0xc0, 0x2b, 1, 0, 0, u8::try_from(extensions.len()).unwrap()]);
    hello.extend(extensions);
    let length = u8::try_from(hello.len()).unwrap();
    let mut record = vec![22, 3, 1, 0, length + 4, 1, 0, 0, length];
    record.extend(hello);
    record
}

#[test]
fn server_name_that_is_an_address_is_not_logged() {
    let flags = ["--log-filter=info"];
    let (_workspace, _, gateway) = serve(&[("web", QUIET, 1)], &flags);
    for _ in 0..5 {
        let mut socket = TcpStream::connect(gateway.address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.write_all(&hello_to_an_address()).unwrap();
        let _ = socket.read_to_end(&mut Vec::new());
    }
    gateway.until_metric("leasemux_tls_handshakes_total{result=\"failed\"}", 5);
    // The log is complete when the program has ended.
    let done = gateway.stop(Signal::TERM);
    assert!(!done.err.contains("rustls"), "{}", done.err);
}

#[test]
fn low_file_limit_is_logged_with_numbers() {
    let flags = ["--max-connections=1048576"];
    let (_workspace, _, gateway) = serve(&[("web", QUIET, 1)], &flags);
    let needed = 1_048_576 + 2 * 64 + 4_096 + 2_048;
    match getrlimit(Resource::Nofile).maximum.filter(|maximum| *maximum < needed) {
        Some(allowed) => {
            gateway.program.until_said(&format!("allowed={allowed} needed={needed}"));
            gateway.program.until_said("reducing the number of connections");
        }
        None => assert!(!gateway.program.err.get().contains("open file limit")),
    }
}
