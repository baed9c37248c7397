//! Single values. Each parser answers with the value or with what would be right.

use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use http::Uri;
use ipnet::IpNet;
use jiff::SignedDuration;
use rustls::pki_types::ServerName;

use crate::model::id::LeaseId;

/// Units of sizes, in bytes; longest name first where one ends in another.
const SIZE_UNITS: [(&str, u64); 8] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("B", 1),
];

/// Anything that parses from text and whose error says what would be right.
pub(super) fn parsed<T: FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error: T::Err| error.to_string())
}

/// A whole number within `range`.
pub(super) fn number<T>(range: RangeInclusive<T>) -> impl Fn(&str) -> Result<T, String>
where
    T: FromStr + PartialOrd + std::fmt::Display,
{
    move |text| {
        let value = text.parse().ok().filter(|value| range.contains(value));
        value.ok_or_else(|| format!("must be a whole number from {} to {}", range.start(), range.end()))
    }
}

/// How many of the last lines: a number, or all of them (`None`).
pub(super) fn tail(text: &str) -> Result<Option<u64>, String> {
    match text {
        // As of kubectl and docker.
        "all" | "-1" => Ok(None),
        text => text.parse().map(Some).map_err(|_| "must be a number of lines, or all (also -1)".to_owned()),
    }
}

/// A length of time within `range`: `250ms`, `10s`, `5m`, `1h30m`; a bare `0` too.
pub(super) fn duration(range: RangeInclusive<Duration>) -> impl Fn(&str) -> Result<Duration, String> {
    move |text| {
        let value = any_duration(text).filter(|value| range.contains(value));
        value.ok_or_else(|| {
            let (from, to) = (show_duration(*range.start()), show_duration(*range.end()));
            format!("must be a time with its unit, such as 250ms, 10s or 5m, from {from} to {to}")
        })
    }
}

/// A size in bytes within `range`: `4MiB`, `500kB`, plain bytes.
pub(super) fn size(range: RangeInclusive<u64>) -> impl Fn(&str) -> Result<u64, String> {
    move |text| {
        let value = any_size(text).filter(|value| range.contains(value));
        value.ok_or_else(|| {
            let (from, to) = (show_size(*range.start()), show_size(*range.end()));
            format!("must be a size, such as 65536, 512KiB or 4MiB, from {from} to {to}")
        })
    }
}

/// An address to listen on.
pub(super) fn listen_address(text: &str) -> Result<SocketAddr, String> {
    let found = match text.parse() {
        Ok(address) => Some(address),
        Err(_) => text.to_socket_addrs().ok().and_then(|mut all| all.next()),
    };
    found.ok_or_else(|| {
        "must be host:port, such as 127.0.0.1:8446 (0.0.0.0:8446 for every interface, port 0 for any free one)".to_owned()
    })
}

/// An address, or a network of them. IPv4 within IPv6 is plain IPv4.
pub(super) fn network(text: &str) -> Result<IpNet, String> {
    let single = || text.parse::<IpAddr>().ok().map(|address| IpNet::from(address.to_canonical()));
    let found = text.parse::<IpNet>().ok().or_else(single);
    // With bits beyond its prefix it is not clear what was meant.
    let found = found.filter(|network| network.addr() == network.network());
    found
        .ok_or_else(|| "must be an address or a network, such as 10.0.0.7, 10.0.0.0/8 or fd00::/8".to_owned())
}

/// Longest name, in bytes: those of Kubernetes are shorter.
const NAME_MAX_BYTES: usize = 253;

/// A host's name, for a certificate.
pub(super) fn hostname(text: &str) -> Result<String, String> {
    match ServerName::try_from(text) {
        Ok(ServerName::DnsName(_)) => Ok(text.to_ascii_lowercase()),
        _ => Err("must be a host name, such as gateway.example.com".to_owned()),
    }
}

/// A name of Kubernetes's or of a kubeconfig's: something short that can be printed.
pub(super) fn name(text: &str) -> Result<String, String> {
    let is_name =
        !text.is_empty() && text.len() <= NAME_MAX_BYTES && text.chars().all(|c| c.is_ascii_graphic());
    if is_name { Ok(text.to_owned()) } else { Err("must be a name, without spaces".to_owned()) }
}

/// The address of a gateway.
pub(super) fn gateway(text: &str) -> Result<Uri, String> {
    let right = || "must be https://host:port, such as https://127.0.0.1:8446".to_owned();
    server(text, &["https"]).ok_or_else(right)
}

/// The address of a node.
pub(super) fn node(text: &str) -> Result<Uri, String> {
    let right = "must be http://host:port or https://host:port, such as https://akash.example.com:9090";
    server(text, &["http", "https"]).ok_or_else(|| right.to_owned())
}

/// A host, perhaps a port, and nothing else, by one of these schemes.
fn server(text: &str, schemes: &[&str]) -> Option<Uri> {
    let uri: Uri = text.parse().ok()?;
    let host = uri.host()?.trim_start_matches('[').trim_end_matches(']');
    let plain = matches!(uri.path(), "" | "/") && uri.query().is_none();
    let named = uri.authority().is_some_and(|authority| !authority.as_str().contains('@'));
    let known = uri.scheme_str().is_some_and(|scheme| schemes.contains(&scheme));
    // A port that is none is no port to the library, which is then another one than was meant.
    let port = uri.port_u16().map_or_else(|| !ends_in_port(&uri), |port| port > 0);
    (known && plain && named && port && ServerName::try_from(host).is_ok()).then_some(uri)
}

/// Whether something stands behind the host that is meant for a port.
fn ends_in_port(uri: &Uri) -> bool {
    uri.authority().zip(uri.host()).is_some_and(|(all, host)| all.as_str().len() > host.len())
}

/// A file that can be read.
pub(super) fn file(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    let opened = File::open(&path).and_then(|file| file.metadata());
    match opened {
        Ok(metadata) if metadata.is_dir() => Err("must be a file, and is a directory".to_owned()),
        Ok(_) => Ok(path),
        Err(error) => Err(format!("must be a readable file: {error}")),
    }
}

/// A directory that can be read.
pub(super) fn directory(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    match fs::read_dir(&path) {
        Ok(_) => Ok(path),
        Err(error) => Err(format!("must be a readable directory: {error}")),
    }
}

/// A directory that may yet have to be made.
pub(super) fn new_directory(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    match fs::metadata(&path) {
        Ok(metadata) if metadata.is_dir() => Ok(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !text.is_empty() => Ok(path),
        Err(error) if !text.is_empty() => {
            Err(format!("must be a directory, or a path where one can be made: {error}"))
        }
        _ => Err("must be a directory, or a path where one can be made".to_owned()),
    }
}

/// How a lease is written.
pub(super) const LEASE: &str = "owner/dseq/gseq/oseq/provider";

/// A lease by itself.
pub(super) fn lease(text: &str) -> Result<LeaseId, String> {
    // `serve` takes it together with a file, and reads a variable of the same name.
    if text.contains('=') {
        return Err(format!("must be a lease alone, {LEASE}; with an SDL file it is what 'serve' takes"));
    }
    parsed::<LeaseId>(text).map_err(|error| format!("{error}; a lease is {LEASE}"))
}

/// A lease and the SDL file that says what runs under it.
pub(super) fn lease_and_sdl(text: &str) -> Result<(LeaseId, PathBuf), String> {
    let Some((lease, sdl)) = text.split_once('=') else {
        return Err(format!("must be LEASE=SDLFILE, where LEASE is {LEASE}"));
    };
    // Both halves may be wrong, and then both are told.
    match (parsed(lease), file(sdl)) {
        (Ok(lease), Ok(sdl)) => Ok((lease, sdl)),
        (lease, sdl) => {
            let lease = lease.err().map(|error| format!("the lease {error}"));
            let sdl = sdl.err().map(|error| format!("the SDL {error}"));
            Err([lease, sdl].into_iter().flatten().collect::<Vec<_>>().join("; "))
        }
    }
}

fn any_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    // jiff also reads `-5m`, `5m ago` and ISO 8601; the first two are negative.
    text.parse::<SignedDuration>().ok()?.try_into().ok()
}

fn any_size(text: &str) -> Option<u64> {
    let split = |(name, factor): &(&str, u64)| Some((text.strip_suffix(name)?.trim_end(), *factor));
    let (digits, factor) = SIZE_UNITS.iter().find_map(split).unwrap_or((text, 1));
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

fn show_duration(duration: Duration) -> String {
    SignedDuration::try_from(duration).map_or_else(|_| format!("{duration:?}"), |short| format!("{short:#}"))
}

fn show_size(bytes: u64) -> String {
    let unit =
        SIZE_UNITS[..4].iter().rev().find(|(_, factor)| bytes >= *factor && bytes.is_multiple_of(*factor));
    unit.map_or_else(|| bytes.to_string(), |(name, factor)| format!("{}{name}", bytes / factor))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<T: PartialEq + std::fmt::Debug>(
        parse: impl Fn(&str) -> Result<T, String>,
        good: &[(&str, T)],
        bad: &[&str],
    ) {
        for (text, value) in good {
            assert_eq!(parse(text).as_ref(), Ok(value), "{text}");
        }
        for text in bad {
            let right = parse(text).expect_err(text);
            assert!(right.contains("must be"), "{text}: {right}");
        }
    }

    #[test]
    fn durations() {
        let (ms, s) = (Duration::from_millis, Duration::from_secs);
        check(
            duration(Duration::ZERO..=s(3600)),
            &[("0", s(0)), ("5ms", ms(5)), ("10s", s(10)), ("5m", s(300)), ("1m30s", s(90)), ("1h", s(3600))],
            &["", "5", "-5s", "5 parsecs", "61m", "5s ago", "1e3s"],
        );
        assert!(duration(ms(100)..=s(300))("1ms").unwrap_err().contains("from 100ms to 5m"));
    }

    #[test]
    fn tails() {
        let lines = [("0", Some(0)), ("100", Some(100)), ("all", None), ("-1", None)];
        check(tail, &lines, &["", "-2", "1.5", "ALL", "99999999999999999999"]);
    }

    #[test]
    fn networks() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        check(
            network,
            &[
                ("10.0.0.0/8", net("10.0.0.0/8")),
                ("10.0.0.7", net("10.0.0.7/32")),
                ("::1", net("::1/128")),
                ("::ffff:10.0.0.7", net("10.0.0.7/32")),
                ("0.0.0.0/0", net("0.0.0.0/0")),
            ],
            &["", "10.0.0.7/8", "10.0.0.0/33", "10.0.0", "proxy.example.com", "10.0.0.0/8,::1"],
        );
    }

    #[test]
    fn sizes() {
        check(
            size(0..=1 << 30),
            &[
                ("0", 0),
                ("65536", 65536),
                ("4MiB", 4 << 20),
                ("4 MiB", 4 << 20),
                ("10kB", 10_000),
                ("7B", 7),
                ("1GiB", 1 << 30),
            ],
            &[
                "",
                "B",
                "MiB",
                "-1",
                "+1",
                "1.5MiB",
                "4mib",
                "2GiB",
                "99999999999999999999",
                "99999999999TiB",
                "4MiBMiB",
            ],
        );
        assert!(size(4096..=1 << 30)("1").unwrap_err().contains("from 4KiB to 1GiB"));
    }

    #[test]
    fn addresses() {
        check(
            listen_address,
            &[
                ("127.0.0.1:8446", SocketAddr::from(([127, 0, 0, 1], 8446))),
                ("[::1]:0", SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], 0))),
            ],
            &["", "127.0.0.1", ":8446", "8446", "127.0.0.1:99999", "127.0.0.1:http"],
        );
        let uri = |text: &str| text.parse::<Uri>().unwrap();
        check(
            gateway,
            &["https://127.0.0.1:8446", "https://[::1]:1", "https://gw.example.com", "https://gw:1/"]
                .map(|t| (t, uri(t))),
            &[
                "",
                "127.0.0.1:8446",
                "http://127.0.0.1:8446",
                "https://",
                "https://h/path",
                "https://h?q",
                "https://u@h",
                "https://a_b c",
                "https://h:",
                "https://h:0",
                "https://h:99999",
                "https://[::1]:99999",
                "https://h:http",
            ],
        );
        check(
            node,
            &["http://127.0.0.1:9090", "https://[::1]:1", "https://node.example.com"].map(|t| (t, uri(t))),
            &["", "node:9090", "ftp://node", "http://", "https://h/path", "http://u@h"],
        );
        check(
            hostname,
            &[
                ("Gateway.example.com", "gateway.example.com".to_owned()),
                ("localhost", "localhost".to_owned()),
            ],
            &["", "127.0.0.1", "::1", "a b", "-a.example", "*.example.com", "a,b"],
        );
    }

    #[test]
    fn paths() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        fs::write(path("file"), "").unwrap();
        assert!(file(&path("file")).is_ok() && file(&path("none")).is_err() && file(&path("")).is_err());
        assert!(
            directory(&path("")).is_ok()
                && directory(&path("file")).is_err()
                && directory(&path("none")).is_err()
        );
        assert!(new_directory(&path("none")).is_ok() && new_directory(&path("file")).is_err());
        let right = lease_and_sdl(&format!("a/b={}", path("none"))).unwrap_err();
        assert!(
            right.contains("the lease is not owner/dseq") && right.contains("the SDL must be"),
            "{right}"
        );
        assert!(lease_and_sdl("a/b").unwrap_err().contains("LEASE=SDLFILE"));
    }
}
