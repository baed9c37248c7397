//! Parsers of single values. Their errors describe a valid value.

use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::str::FromStr;

use http::Uri;
use ipnet::IpNet;
use rustls::pki_types::ServerName;

use crate::model::id::{Address, IdError, LeaseId, ServiceName};

/// Format of an output or a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Lines or a table, for people.
    Text,
    /// One JSON object per line.
    Json,
}

pub(super) const LOG_FORMATS: &[(&str, Format)] = &[("text", Format::Text), ("json", Format::Json)];

/// Parses a value by its own type.
pub(super) fn parsed<T: FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error: T::Err| error.to_string())
}

/// Returns the value of a valid text, or an error; `valid` describes a valid text.
pub(super) fn must_be<T>(value: Option<T>, valid: &str) -> Result<T, String> {
    value.ok_or_else(|| format!("must be {valid}"))
}

/// Returns a parser for one of several words; `valid` lists them for the error.
pub(super) fn choice<T: Copy + Send + Sync>(
    words: &'static [(&'static str, T)],
    valid: &'static str,
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static {
    move |text| must_be(words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value), valid)
}

/// Parses the value of a switch.
pub(super) fn switch(text: &str) -> Result<bool, String> {
    match text {
        "true" | "yes" | "on" | "1" => Ok(true),
        "false" | "no" | "off" | "0" => Ok(false),
        _ => Err("must be true or false".to_owned()),
    }
}

/// Parses a number of last lines; `None` = all. kubectl and docker accept `-1` and `all`.
pub(super) fn tail(text: &str) -> Result<Option<u64>, String> {
    let is_all = matches!(text, "all" | "-1");
    if is_all {
        Ok(None)
    } else {
        must_be(text.parse().ok().map(Some), "a number of lines, or all (also -1)")
    }
}

/// Parses an address to listen on.
pub(super) fn listen_address(text: &str) -> Result<SocketAddr, String> {
    let resolved = || text.to_socket_addrs().ok().and_then(|mut all| all.next());
    let valid =
        "host:port, such as 127.0.0.1:8446 (0.0.0.0:8446 for every interface, port 0 for any free one)";
    must_be(text.parse().ok().or_else(resolved), valid)
}

/// Parses an address or a network. An IPv4-mapped IPv6 address becomes IPv4.
pub(super) fn network(text: &str) -> Result<IpNet, String> {
    let single = || text.parse::<IpAddr>().ok().map(|address| IpNet::from(address.to_canonical()));
    let found = text.parse::<IpNet>().ok().or_else(single);
    // Bits after the prefix make the meaning ambiguous.
    let found = found.filter(|network| network.addr() == network.network());
    must_be(found, "an address or a network, such as 10.0.0.7, 10.0.0.0/8 or fd00::/8")
}

/// Maximum length of a name in bytes, as in Kubernetes.
const NAME_MAX_BYTES: usize = 253;

/// Parses a host name for a certificate. The library removes a trailing dot, which names in certificates do
/// not have.
pub(super) fn hostname(text: &str) -> Result<String, String> {
    let name = match ServerName::try_from(text) {
        Ok(ServerName::DnsName(name)) => Some(name.as_ref().to_ascii_lowercase()),
        _ => None,
    };
    must_be(name, "a host name, such as gateway.example.com")
}

/// Parses a name from Kubernetes or a kubeconfig.
pub(super) fn name(text: &str) -> Result<String, String> {
    let is_name =
        !text.is_empty() && text.len() <= NAME_MAX_BYTES && text.chars().all(|c| c.is_ascii_graphic());
    must_be(is_name.then(|| text.to_owned()), "a name, without spaces")
}

/// Parses an account address.
pub(super) fn address(text: &str) -> Result<Address, String> {
    must_be(text.parse().ok(), "an account address (lower-case bech32: akash1…)")
}

/// Parses the URL of a gateway.
pub(super) fn gateway(text: &str) -> Result<Uri, String> {
    must_be(server(text, &["https"]), "https://host:port, such as https://127.0.0.1:8446")
}

/// Parses the URL of an Akash provider.
pub(super) fn provider_url(text: &str) -> Result<Uri, String> {
    must_be(server(text, &["https"]), "https://host:port, such as https://akash-provider:8443")
}

/// Parses the URL of an Akash node.
pub(super) fn node(text: &str) -> Result<Uri, String> {
    let valid = "http://host:port or https://host:port, such as https://akash.example.com:9090";
    must_be(server(text, &["http", "https"]), valid)
}

/// Parses the URL of a collector of traces.
pub(super) fn collector(text: &str) -> Result<Uri, String> {
    let valid = "http://host:port or https://host:port, such as http://127.0.0.1:4317";
    must_be(server(text, &["http", "https"]), valid)
}

/// Parses a URL of one of `schemes` that has a host, optionally a port, and nothing else.
pub(super) fn server(text: &str, schemes: &[&str]) -> Option<Uri> {
    let uri: Uri = text.parse().ok()?;
    let host = uri.host()?.trim_start_matches('[').trim_end_matches(']');
    let plain = matches!(uri.path(), "" | "/") && uri.query().is_none();
    let named = uri.authority().is_some_and(|authority| !authority.as_str().contains('@'));
    let known = uri.scheme_str().is_some_and(|scheme| schemes.contains(&scheme));
    // The library ignores an invalid port, and would connect to the default one.
    let port = uri.port_u16().map_or_else(|| !has_port_text(&uri), |port| port > 0);
    (known && plain && named && port && ServerName::try_from(host).is_ok()).then_some(uri)
}

/// Returns whether the host is followed by anything.
fn has_port_text(uri: &Uri) -> bool {
    uri.authority().zip(uri.host()).is_some_and(|(all, host)| all.as_str().len() > host.len())
}

/// Parses the path of a readable file.
pub(super) fn file(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    let opened = File::open(&path).and_then(|file| file.metadata());
    match opened {
        Ok(metadata) if metadata.is_dir() => Err("must be a file, and is a directory".to_owned()),
        Ok(_) => Ok(path),
        Err(error) => Err(format!("must be a readable file: {error}")),
    }
}

/// Parses the path of a readable directory.
pub(super) fn directory(text: &str) -> Result<PathBuf, String> {
    let read = fs::read_dir(text).map_err(|error| format!("must be a readable directory: {error}"));
    read.map(|_| PathBuf::from(text))
}

/// Parses the path of a directory that exists or can be created.
pub(super) fn new_directory(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    match fs::metadata(&path) {
        Ok(metadata) if metadata.is_dir() => Ok(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !text.is_empty() => Ok(path),
        Err(error) if !text.is_empty() => {
            Err(format!("must be a directory, or a path where one can be created: {error}"))
        }
        _ => Err("must be a directory, or a path where one can be created".to_owned()),
    }
}

/// Parses the path of an identity's directory.
pub(super) fn identity(text: &str) -> Result<PathBuf, String> {
    let dir = directory(text)?;
    for name in ["cert.pem", "key.pem"] {
        file(&dir.join(name).to_string_lossy()).map_err(|reason| format!("its {name} {reason}"))?;
    }
    Ok(dir)
}

/// The format of a lease.
pub(super) const LEASE: &str = "owner/dseq/gseq/oseq/provider";

/// Parses a lease without an SDL file.
pub(super) fn lease(text: &str) -> Result<LeaseId, String> {
    // `serve` takes a lease with a file, from the variable of the same name.
    if text.contains('=') {
        return Err(format!("must be a lease alone, {LEASE}; with an SDL file it is what 'serve' takes"));
    }
    text.parse::<LeaseId>().map_err(|error| match error {
        // People who know kubectl name a service here.
        IdError::LeaseForm if text.parse::<ServiceName>().is_ok() => {
            format!("is not {LEASE}; a service is selected with --service {text}, a context with --context")
        }
        error => error.to_string(),
    })
}

/// Parses a lease and the SDL file with its services.
pub(super) fn lease_and_sdl(text: &str) -> Result<(LeaseId, PathBuf), String> {
    let Some((lease, sdl)) = text.split_once('=') else {
        return Err(format!("must be LEASE=SDLFILE, where LEASE is {LEASE}"));
    };
    // Reports both halves if both are invalid.
    match (parsed(lease), file(sdl)) {
        (Ok(lease), Ok(sdl)) => Ok((lease, sdl)),
        (lease, sdl) => {
            let lease = lease.err().map(|error| format!("the lease {error}"));
            let sdl = sdl.err().map(|error| format!("the SDL {error}"));
            Err([lease, sdl].into_iter().flatten().collect::<Vec<_>>().join("; "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::parse::check_parser;

    #[test]
    fn tails() {
        let lines = [("0", Some(0)), ("100", Some(100)), ("all", None), ("-1", None)];
        check_parser(tail, &lines, &["", "-2", "1.5", "ALL", "99999999999999999999"]);
    }

    #[test]
    fn networks() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        check_parser(
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
    fn addresses() {
        check_parser(
            listen_address,
            &[
                ("127.0.0.1:8446", SocketAddr::from(([127, 0, 0, 1], 8446))),
                ("[::1]:0", SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], 0))),
            ],
            &["", "127.0.0.1", ":8446", "8446", "127.0.0.1:99999", "127.0.0.1:http"],
        );
        let uri = |text: &str| text.parse::<Uri>().unwrap();
        check_parser(
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
        check_parser(
            node,
            &["http://127.0.0.1:9090", "https://[::1]:1", "https://node.example.com"].map(|t| (t, uri(t))),
            &["", "node:9090", "ftp://node", "http://", "https://h/path", "http://u@h"],
        );
        check_parser(
            hostname,
            &[
                ("Gateway.example.com", "gateway.example.com".to_owned()),
                ("gateway.example.com.", "gateway.example.com".to_owned()),
                ("localhost", "localhost".to_owned()),
            ],
            &["", ".", "a..", "127.0.0.1", "127.0.0.1.", "::1", "a b", "-a.example", "*.example.com", "a,b"],
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
        let error = lease_and_sdl(&format!("a/b={}", path("none"))).unwrap_err();
        assert!(
            error.contains("the lease is not owner/dseq") && error.contains("the SDL must be"),
            "{error}"
        );
        assert!(lease_and_sdl("a/b").unwrap_err().contains("LEASE=SDLFILE"));
    }
}
