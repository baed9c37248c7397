//! Checks that a request comes from the page of this server. Pure.

use std::net::SocketAddr;

use http::header::{HOST, ORIGIN};
use http::{HeaderMap, HeaderName};

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// The headers of prefetches and previews, also of older browsers.
const PURPOSES: [HeaderName; 4] = [
    HeaderName::from_static("sec-purpose"),
    HeaderName::from_static("purpose"),
    HeaderName::from_static("x-purpose"),
    HeaderName::from_static("x-moz"),
];

/// The names under which a browser may reach this server.
#[derive(Debug)]
pub(super) struct OwnHosts([String; 2]);

// === impl OwnHosts ===

impl OwnHosts {
    pub(super) fn new(address: SocketAddr) -> Self {
        Self([address.to_string(), format!("localhost:{}", address.port())])
    }

    /// Returns whether `Host` names this server. A page of another site that has rebound its DNS name to
    /// loopback sends that name.
    pub(super) fn is_own_host(&self, headers: &HeaderMap) -> bool {
        self.host(headers).is_some()
    }

    /// Returns whether the page of this server sent the request. `needs_origin`: browsers send `Origin` with
    /// such a request, so that one without it is not the page's.
    pub(super) fn is_own_page(&self, headers: &HeaderMap, needs_origin: bool) -> bool {
        let Some(host) = self.host(headers) else { return false };
        let mut origins = headers.get_all(ORIGIN).into_iter();
        match (origins.next(), origins.next()) {
            (None, _) if needs_origin => false,
            // Browsers send no `Origin` with a plain GET.
            (None, _) => headers.get_all(SEC_FETCH_SITE).into_iter().all(|site| site == "same-origin"),
            // Exact, so that `Sec-Fetch-Site` adds nothing. Browsers differ in it for websockets, which have
            // another scheme than the page.
            (Some(origin), None) => origin.as_bytes().strip_prefix(b"http://") == Some(host.as_bytes()),
            (Some(_), Some(_)) => false,
        }
    }

    fn host(&self, headers: &HeaderMap) -> Option<&str> {
        let mut hosts = headers.get_all(HOST).into_iter();
        let host = hosts.next().filter(|_| hosts.next().is_none())?;
        self.0.iter().map(String::as_str).find(|own| own.as_bytes().eq_ignore_ascii_case(host.as_bytes()))
    }
}

/// Returns whether a browser requests a page ahead of its user, who may never open it.
pub(super) fn is_speculative(headers: &HeaderMap) -> bool {
    let mut values = PURPOSES.into_iter().flat_map(|name| headers.get_all(name));
    values.any(|value| {
        let value = value.as_bytes();
        value.starts_with(b"prefetch") || value == b"preview"
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(all: &[(&'static str, &'static str)]) -> HeaderMap {
        all.iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    fn own() -> OwnHosts {
        OwnHosts::new("127.0.0.1:7000".parse().unwrap())
    }

    #[test]
    fn only_own_names_are_accepted_as_host() {
        for host in ["127.0.0.1:7000", "localhost:7000", "LOCALHOST:7000"] {
            assert!(own().is_own_host(&headers(&[("host", host)])), "{host}");
        }
        for host in [
            "evil.test:7000",
            "127.0.0.1",
            "127.0.0.1:7001",
            "localhost.evil.test:7000",
            "127.0.0.1:7000@evil.test",
            "",
        ] {
            assert!(!own().is_own_host(&headers(&[("host", host)])), "{host}");
        }
        assert!(!own().is_own_host(&headers(&[])));
        let mut twice = headers(&[("host", "127.0.0.1:7000")]);
        twice.append(HOST, HeaderValue::from_static("evil.test"));
        assert!(!own().is_own_host(&twice));
    }

    #[test]
    fn requests_of_other_pages_are_recognised() {
        let host = ("host", "127.0.0.1:7000");
        let is_own = |more: &[(&'static str, &'static str)], needs_origin| {
            own().is_own_page(&headers(&[&[host], more].concat()), needs_origin)
        };
        assert!(is_own(&[], false));
        assert!(!is_own(&[], true));
        assert!(is_own(&[("origin", "http://127.0.0.1:7000"), ("sec-fetch-site", "same-origin")], true));
        for origin in [
            "http://localhost:7000",
            "https://127.0.0.1:7000",
            "http://127.0.0.1:7001",
            "http://evil.test",
            "null",
            "127.0.0.1:7000",
        ] {
            assert!(!is_own(&[("origin", origin)], false), "{origin}");
        }
        for site in ["same-site", "cross-site", "none"] {
            assert!(!is_own(&[("sec-fetch-site", site)], false), "{site}");
            let foreign = [("origin", "http://evil.test"), ("sec-fetch-site", site)];
            assert!(!is_own(&foreign, false) && !is_own(&foreign, true), "{site}");
        }
        assert!(is_own(&[("origin", "http://127.0.0.1:7000"), ("sec-fetch-site", "cross-site")], true));
    }

    #[test]
    fn prefetches_and_previews_are_recognised() {
        for (name, value) in [
            ("sec-purpose", "prefetch"),
            ("sec-purpose", "prefetch;prerender"),
            ("purpose", "prefetch"),
            ("x-purpose", "preview"),
            ("x-moz", "prefetch"),
        ] {
            assert!(is_speculative(&headers(&[(name, value)])), "{name}: {value}");
        }
        assert!(!is_speculative(&headers(&[("accept", "prefetch"), ("sec-purpose", "x")])));
    }
}
