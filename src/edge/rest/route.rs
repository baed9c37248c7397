//! Matches request paths.
//!
//! Paths are matched as they came, without decoding and normalising: `%2F` and `..` are ordinary characters
//! of a segment. A path that another program would read differently therefore matches no native route.

use http::Method;

use crate::access::grants::TokenScope;
use crate::model::id::{Address, IdError, LeaseId, ServiceName};
use crate::model::metrics::{RouteTemplate, StreamKind};

/// What a path asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Route<'a> {
    Version,
    Address,
    Status,
    /// A route of a lease. Its id may be invalid: credentials are checked first.
    Lease(LeasePath<'a>, LeaseRoute<'a>),
    /// A route of the page, if the port has it.
    Page(PageRoute<'a>),
    /// A route that only a provider serves, or an unknown one.
    Other(RouteTemplate),
}

/// A route of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PageRoute<'a> {
    /// `/ui`, which has no slash at its end.
    Root,
    /// A file, or the description of the server.
    File(&'a str),
    /// A websocket of a lease, whose first message has the token.
    Stream(LeasePath<'a>, StreamKind),
}

/// A native route below a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LeaseRoute<'a> {
    Status,
    /// With the name of the service as it came.
    ServiceStatus(&'a str),
    /// Restarts this service; with its name as it came.
    Restart(&'a str),
    Logs,
    Events,
}

/// The segments of a lease id in a path. The owner and the provider are not part of it: the owner comes from
/// the credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LeasePath<'a> {
    dseq: &'a str,
    gseq: &'a str,
    oseq: &'a str,
}

// === impl Route ===

impl<'a> Route<'a> {
    /// Matches a path, which begins with a slash and has no query.
    pub(crate) fn of(path: &'a str) -> Self {
        // One more than the longest template, so that longer paths match none.
        let mut segments = [""; 9];
        let mut count = 0;
        for (segment, slot) in path.split('/').zip(&mut segments) {
            *slot = segment;
            count += 1;
        }
        match &segments[..count] {
            ["", "version"] => Self::Version,
            ["", "address"] => Self::Address,
            ["", "status"] => Self::Status,
            ["", "ui"] => Self::Page(PageRoute::Root),
            ["", "ui", file] => Self::Page(PageRoute::File(file)),
            ["", "ui", "lease", dseq, gseq, oseq, stream @ ("logs" | "status")]
                if [dseq, gseq, oseq].iter().all(|segment| !segment.is_empty()) =>
            {
                let kind = if *stream == "logs" { StreamKind::Logs } else { StreamKind::Status };
                Self::Page(PageRoute::Stream(LeasePath { dseq, gseq, oseq }, kind))
            }
            ["", "lease", dseq, gseq, oseq, rest @ ..]
                if [dseq, gseq, oseq].iter().all(|segment| !segment.is_empty()) =>
            {
                let lease = LeasePath { dseq, gseq, oseq };
                match rest {
                    ["status"] => Self::Lease(lease, LeaseRoute::Status),
                    ["logs"] => Self::Lease(lease, LeaseRoute::Logs),
                    ["kubeevents"] => Self::Lease(lease, LeaseRoute::Events),
                    ["service", name, "status"] if !name.is_empty() => {
                        Self::Lease(lease, LeaseRoute::ServiceStatus(name))
                    }
                    ["service", name, "restart"] if !name.is_empty() => {
                        Self::Lease(lease, LeaseRoute::Restart(name))
                    }
                    ["manifest"] => Self::Other(RouteTemplate::GetManifest),
                    ["shell"] => Self::Other(RouteTemplate::Shell),
                    ["attestation", "quote"] => Self::Other(RouteTemplate::Attestation),
                    _ => Self::Other(RouteTemplate::Other),
                }
            }
            ["", "deployment", dseq, "manifest"] if !dseq.is_empty() => {
                Self::Other(RouteTemplate::SendManifest)
            }
            ["", "hostname", "migrate"] => Self::Other(RouteTemplate::MigrateHostname),
            ["", "endpoint", "migrate"] => Self::Other(RouteTemplate::MigrateEndpoint),
            _ => Self::Other(RouteTemplate::Other),
        }
    }

    /// Returns its template, for metrics.
    pub(crate) fn template(&self) -> RouteTemplate {
        match self {
            Self::Version => RouteTemplate::Version,
            Self::Address => RouteTemplate::Address,
            Self::Status => RouteTemplate::Status,
            Self::Lease(_, LeaseRoute::Status) => RouteTemplate::LeaseStatus,
            Self::Lease(_, LeaseRoute::ServiceStatus(_)) => RouteTemplate::ServiceStatus,
            Self::Lease(_, LeaseRoute::Restart(_)) => RouteTemplate::Restart,
            Self::Lease(_, LeaseRoute::Logs) => RouteTemplate::Logs,
            Self::Lease(_, LeaseRoute::Events) => RouteTemplate::Events,
            Self::Page(PageRoute::Root | PageRoute::File(_)) => RouteTemplate::PageFile,
            Self::Page(PageRoute::Stream(_, StreamKind::Status)) => RouteTemplate::PageStatus,
            Self::Page(PageRoute::Stream(..)) => RouteTemplate::PageLogs,
            Self::Other(template) => *template,
        }
    }

    /// Whether the route takes this method; only for native routes. As in the Akash provider, this does not
    /// include `HEAD` and `OPTIONS`.
    pub(crate) fn allows(&self, method: &Method) -> bool {
        matches!(self, Self::Other(_)) || *method == self.method()
    }

    /// Returns the method of a native route.
    pub(crate) fn method(&self) -> Method {
        if let Self::Lease(_, LeaseRoute::Restart(_)) = self { Method::POST } else { Method::GET }
    }

    /// Whether its errors are objects. The routes of the Akash provider have its forms.
    pub(crate) fn has_error_objects(&self) -> bool {
        matches!(self, Self::Lease(_, LeaseRoute::Restart(_)))
    }
}

// === impl LeaseRoute ===

impl LeaseRoute<'_> {
    /// Returns the scope that a caller needs.
    pub(crate) fn scope(self) -> TokenScope {
        match self {
            // The Akash provider checks no scope for the status of one service.
            Self::Status | Self::ServiceStatus(_) => TokenScope::Status,
            Self::Restart(_) => TokenScope::Restart,
            Self::Logs => TokenScope::Logs,
            Self::Events => TokenScope::Events,
        }
    }

    /// Returns the service that the path names; `None` if no service can have the name.
    pub(crate) fn service(self) -> Option<ServiceName> {
        match self {
            Self::ServiceStatus(name) | Self::Restart(name) => name.parse().ok(),
            Self::Status | Self::Logs | Self::Events => None,
        }
    }
}

// === impl LeasePath ===

impl LeasePath<'_> {
    /// Returns the lease of this owner at this provider.
    ///
    /// # Errors
    /// [`IdError::LeasePart`] if a segment is not a positive decimal number.
    pub(crate) fn lease(&self, owner: &Address, provider: &Address) -> Result<LeaseId, IdError> {
        let dseq = number("dseq", self.dseq)?;
        let (gseq, oseq) = (number("gseq", self.gseq)?, number("oseq", self.oseq)?);
        LeaseId::new(owner.as_str(), dseq, gseq, oseq, provider.as_str())
    }
}

/// Parses digits. Leading zeros are valid, as in the Akash provider.
fn number<N: std::str::FromStr>(part: &'static str, text: &str) -> Result<N, IdError> {
    let digits = Some(text).filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    let invalid = IdError::LeasePart { part, reason: "must be a positive decimal number" };
    digits.and_then(|text| text.parse().ok()).ok_or(invalid)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::label::LabelValue as _;

    const OWNER: &str = "akash1angnwmnsv5vkp4jpgkdcunar8efpvennxwwcev";
    const PROVIDER: &str = "akash1nxq8gmsw2vlz3m68qvyvcf3kh6q269ajvqw6y0";

    fn template(path: &str) -> RouteTemplate {
        Route::of(path).template()
    }

    /// Returns a path of a template.
    fn sample(template: RouteTemplate) -> String {
        let path = template.label().replace("{dseq}", "7").replace("{gseq}", "1").replace("{oseq}", "1");
        path.replace("{service}", "web")
    }

    #[test]
    fn every_template_matches_its_paths() {
        for expected in RouteTemplate::ALL.iter().copied().filter(|one| *one != RouteTemplate::Other) {
            let path = sample(expected);
            assert_eq!(template(&path), expected, "{path}");
            for other in [format!("{path}/"), format!("/{path}"), format!("{path}/x"), format!("/x{path}")] {
                assert_eq!(template(&other), RouteTemplate::Other, "{other}");
            }
        }
    }

    #[test]
    fn unknown_and_encoded_paths_match_no_route() {
        for path in [
            "",
            "/",
            "*",
            "/foobar",
            "/validate",
            "version",
            "/Version",
            "/%76ersion",
            "/lease/7/1/1",
            "/lease/7/1/status",
            "/lease//1/1/status",
            "/lease/7/1/1/service//status",
            "/lease/7/1/1/../status",
            "/lease/7/1/1/./status",
            "/lease/7%2F1/1/status",
            "/lease/7/1/1/service/a%2Fb/c/status",
            "/lease/7/1/1/service/web/status/more/and/more/and/more",
            "/deployment//manifest",
        ] {
            assert_eq!(template(path), RouteTemplate::Other, "{path}");
        }
        // An encoded character stays in its segment, which no id matches.
        let Route::Lease(_, route) = Route::of("/lease/7/1/1/service/a%2Fb/status") else { panic!() };
        assert_eq!((route, route.service()), (LeaseRoute::ServiceStatus("a%2Fb"), None));
        assert_eq!(route.scope(), TokenScope::Status);
    }

    #[test]
    fn native_routes_have_one_method() {
        for method in [Method::HEAD, Method::OPTIONS, Method::POST, Method::PUT] {
            assert!(!Route::of("/lease/7/1/1/logs").allows(&method) && !Route::of("/status").allows(&method));
            assert!(Route::of("/lease/7/1/1/shell").allows(&method));
        }
        assert!(Route::of("/lease/7/1/1/logs").allows(&Method::GET));
        let restart = Route::of("/lease/7/1/1/service/web/restart");
        assert!(restart.allows(&Method::POST) && !restart.allows(&Method::GET));
    }

    #[test]
    fn lease_id_has_positive_decimal_numbers() {
        let (owner, provider) = (OWNER.parse().unwrap(), PROVIDER.parse().unwrap());
        let lease = |path| {
            let Route::Lease(lease, _) = Route::of(path) else { panic!("{path}") };
            lease.lease(&owner, &provider).map(|lease| lease.to_string())
        };
        assert_eq!(lease("/lease/7/1/02/logs"), Ok(format!("{OWNER}/7/1/2/{PROVIDER}")));
        for (path, wrong) in [
            ("/lease/x/1/1/logs", "dseq"),
            ("/lease/-1/1/1/logs", "dseq"),
            ("/lease/+1/1/1/logs", "dseq"),
            ("/lease/%31/1/1/logs", "dseq"),
            ("/lease/0/1/1/logs", "dseq"),
            ("/lease/18446744073709551616/1/1/logs", "dseq"),
            ("/lease/1/4294967296/1/logs", "gseq"),
            ("/lease/1/1/ 1/logs", "oseq"),
        ] {
            let Err(IdError::LeasePart { part, .. }) = lease(path) else { panic!("{path}") };
            assert_eq!(part, wrong, "{path}");
        }
    }

    proptest! {
        #[test]
        fn any_path_has_a_template(path in "(/?[a-z0-9./%{}]{0,12}){0,10}") {
            let _ = template(&path);
        }
    }
}
