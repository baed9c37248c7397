//! Limits as an operator sets them and reads of them in the log.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use rustix::process::{Resource, getrlimit};

use super::*;

/// A header of the PROXY protocol, version 2, for a connection from 192.0.2.7.
const FROM_7: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\x7f\0\0\x01\x10\0\x01\xbb";

/// A quiet service.
const QUIET: &str = "exec sleep 1000";

/// Opens a connection that begins so, and answers whether it was closed without a word.
fn is_closed(gateway: &Gateway, begin: &[u8]) -> bool {
    let mut socket = TcpStream::connect(gateway.address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.write_all(begin).unwrap();
    !matches!(socket.read(&mut [0; 1]), Ok(1..))
}

#[test]
fn a_proxy_that_is_set_up_wrongly_is_told_of_in_the_log_and_peers_by_their_own_addresses() {
    let flags = ["--trusted-proxy=127.0.0.0/8", "--max-connections-per-peer=1"];
    let (_world, _, gateway) = serve(&[("web", QUIET, 1)], &flags);
    assert!(is_closed(&gateway, b"PROXY TCP4 192.0.2.7 127.0.0.1 4096 443\r\n"));
    gateway.program.until_said("version 1 of the PROXY protocol; set it to version 2");
    let mut first = TcpStream::connect(gateway.address).unwrap();
    first.write_all(FROM_7).unwrap();
    gateway.until_metric("leasemux_connections_accepted_total", 1);
    let second = || !is_closed(&gateway, FROM_7);
    assert!(!second());
    gateway.program.until_said("192.0.2.7:4096");
    gateway.program.until_said("it has as many open as one peer may");
    // A flood of them is not one of lines.
    for _ in 0..20 {
        assert!(!second());
    }
    let said = gateway.program.err.get();
    assert!(said.matches("as many open as one peer may").count() < 5, "{said}");
}

#[test]
fn too_few_files_are_told_of_with_the_numbers() {
    let flags = ["--max-connections=1048576"];
    let (_world, _, gateway) = serve(&[("web", QUIET, 1)], &flags);
    let needed = 1_048_576 + 2 * 64 + 4_096 + 2_048;
    match getrlimit(Resource::Nofile).maximum.filter(|maximum| *maximum < needed) {
        Some(allowed) => {
            gateway.program.until_said(&format!("allowed={allowed} needed={needed}"));
            gateway.program.until_said("connections are taken");
        }
        None => assert!(!gateway.program.err.get().contains("fewer open files")),
    }
}
