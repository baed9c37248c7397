//! The query parameters of the log and event streams.
//!
//! A parameter that is not understood is refused: ignoring it could send more than the caller asked for.
//! Parameters with unknown names are ignored.

use std::collections::BTreeSet;

use crate::logs::notice::Notices;
use crate::logs::{BackfillFilter, LagPolicy, ReadRange};
use crate::model::id::ServiceName;
pub use crate::model::metrics::{FilterSpelling, StreamKind};
use crate::model::text::truncate;
use crate::model::view::Filter;

/// Maximum size, in bytes, of an unknown service name that is repeated to its caller.
const UNKNOWN_NAME_MAX_BYTES: usize = 64;

/// The parameters of a log or event stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamQuery {
    /// The selected services, from both spellings. Empty if all are selected, or none exists: see `unknown`.
    pub services: BTreeSet<ServiceName>,
    /// A selected name that no service can have, cut to a printable length. The request is then for a service
    /// that does not exist.
    pub unknown: Option<String>,
    /// How services were selected.
    pub spelling: FilterSpelling,
    /// Whether to wait for new lines.
    pub follow: bool,
    /// The number of existing lines of each replica; `None` = all. Only logs have it.
    pub tail: Option<u32>,
    /// What happens when the follower lags. Only with `follow`.
    pub on_lag: LagPolicy,
    /// The notices; `None` = as configured.
    pub notices: Option<Notices>,
}

// === impl StreamQuery ===

impl StreamQuery {
    /// Parses a query string, without its question mark. It may select this many services. Of a parameter
    /// that is repeated, other than the services, the first one counts.
    ///
    /// # Errors
    /// A text for the caller, which names the parameter and does not repeat its value.
    pub fn parse(query: &str, kind: StreamKind, services_max: usize) -> Result<Self, String> {
        let mut selection = Selection { services_max, ..Selection::default() };
        let (mut follow, mut tail, mut on_lag, mut notices) = (None, None, None, None);
        // Malformed escapes stay as they are, which no parameter accepts.
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "service" => selection.add(&value, false)?,
                "services" => selection.add(&value, true)?,
                "follow" if follow.is_none() => follow = Some(parse_bool(&value)?),
                "tail" if tail.is_none() && kind == StreamKind::Logs => tail = Some(parse_tail(&value)?),
                "on_lag" if on_lag.is_none() => on_lag = Some(parse_on_lag(&value, kind)?),
                "notices" if notices.is_none() => {
                    notices = Some(value.parse().map_err(|error| invalid("notices", error))?);
                }
                _ => {}
            }
        }
        let follow = follow.unwrap_or_default();
        if on_lag.is_some() && !follow {
            return Err(invalid("on_lag", "is only for follow=true"));
        }
        let spelling = selection.spelling();
        let (services, unknown) = selection.finish()?;
        Ok(Self {
            services,
            unknown,
            spelling,
            follow,
            tail: tail.flatten(),
            on_lag: on_lag.unwrap_or_default(),
            notices,
        })
    }

    /// Returns the filter of the selected services. Not for a query with an unknown name.
    pub fn filter(&self) -> Filter {
        let mut filter = Filter::everything();
        for service in &self.services {
            filter.add(service.clone(), &[]);
        }
        filter
    }

    /// Returns the part of the logs to read.
    pub fn range(&self) -> ReadRange {
        let existing = BackfillFilter { last: self.tail.map(u64::from), since: None };
        if self.follow { ReadRange::Follow(existing) } else { ReadRange::UntilNow(existing) }
    }
}

/// The values of `service` and `services`.
#[derive(Debug, Default)]
struct Selection {
    services_max: usize,
    services: BTreeSet<ServiceName>,
    unknown: Option<String>,
    /// Whether there was an empty name beside a comma.
    has_empty_name: bool,
    is_singular: bool,
    is_plural: bool,
}

// === impl Selection ===

impl Selection {
    fn add(&mut self, value: &str, is_plural: bool) -> Result<(), String> {
        if is_plural {
            self.is_plural = true;
        } else {
            self.is_singular = true;
        }
        if value.is_empty() {
            return Ok(());
        }
        for name in value.split(',') {
            match name.parse() {
                Ok(service) => _ = self.services.insert(service),
                Err(_) if name.is_empty() => self.has_empty_name = true,
                Err(_) => {
                    self.unknown.get_or_insert_with(|| printable(name));
                }
            }
        }
        if self.services.len() > self.services_max {
            return Err(invalid("service", &format!("must have at most {} names", self.services_max)));
        }
        Ok(())
    }

    fn spelling(&self) -> FilterSpelling {
        match (self.is_singular, self.is_plural) {
            (false, false) => FilterSpelling::None,
            (true, false) => FilterSpelling::Service,
            (false, true) => FilterSpelling::Services,
            (true, true) => FilterSpelling::Both,
        }
    }

    fn finish(self) -> Result<(BTreeSet<ServiceName>, Option<String>), String> {
        // Commas alone select no service, and must not be read as all of them.
        if self.has_empty_name && self.services.is_empty() && self.unknown.is_none() {
            return Err(invalid("service", "must not contain trailing comma"));
        }
        Ok((self.services, self.unknown))
    }
}

/// Returns a beginning of `name` that is safe in a message to its sender.
fn printable(name: &str) -> String {
    let start = truncate(name, UNKNOWN_NAME_MAX_BYTES);
    start.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// Parses the values that Go's `strconv.ParseBool` accepts. Empty = absent.
fn parse_bool(value: &str) -> Result<bool, String> {
    match value {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "" | "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err(invalid("follow", "must be true or false")),
    }
}

/// Returns the number of lines; `None` = all. Empty = absent.
fn parse_tail(value: &str) -> Result<Option<u32>, String> {
    if value.is_empty() {
        return Ok(None);
    }
    match value.parse::<i32>() {
        Ok(-1) => Ok(None),
        Ok(lines) => lines.try_into().map(Some).map_err(|_| invalid("tail", "contains invalid value")),
        Err(_) => Err(invalid("tail", "must be a whole number from -1 to 2147483647")),
    }
}

fn parse_on_lag(value: &str, kind: StreamKind) -> Result<LagPolicy, String> {
    match (value, kind) {
        (_, StreamKind::Status) => Err(invalid("on_lag", "is not for a status")),
        ("drop", _) => Ok(LagPolicy::Drop),
        ("refill", StreamKind::Logs) => Ok(LagPolicy::Refill),
        ("close", _) => Ok(LagPolicy::Close),
        (_, StreamKind::Logs) => Err(invalid("on_lag", "must be drop, refill or close")),
        // Skipped events cannot be read again.
        (_, StreamKind::Events) => Err(invalid("on_lag", "must be drop or close")),
    }
}

pub(super) fn invalid(parameter: &str, problem: &str) -> String {
    format!("parameter \"{parameter}\" {problem}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::limits::FILTERS_MAX;

    fn parse(query: &str) -> StreamQuery {
        StreamQuery::parse(query, StreamKind::Logs, FILTERS_MAX).unwrap()
    }

    fn services(query: &str) -> Vec<String> {
        parse(query).services.iter().map(ToString::to_string).collect()
    }

    fn error(query: &str) -> String {
        StreamQuery::parse(query, StreamKind::Logs, FILTERS_MAX).unwrap_err()
    }

    #[test]
    fn both_spellings_select_their_union() {
        assert_eq!(services("service=web"), ["web"]);
        assert_eq!(services("follow=true&services=web,api"), ["api", "web"]);
        assert_eq!(services("services=web%2Capi&service=db"), ["api", "db", "web"]);
        assert_eq!(services("service=web&service=api&x=y&"), ["api", "web"]);
        let spelling = |query| parse(query).spelling;
        assert_eq!(spelling("follow=1"), FilterSpelling::None);
        assert_eq!(spelling("service="), FilterSpelling::Service);
        assert_eq!(spelling("services=web"), FilterSpelling::Services);
        assert_eq!(spelling("services=web&service=web"), FilterSpelling::Both);
    }

    #[test]
    fn empty_names_are_skipped_but_select_nothing_alone() {
        for all in ["", "service=", "services=", "services=&service=", "tail=10"] {
            assert_eq!((services(all).len(), parse(all).unknown), (0, None), "{all}");
        }
        for one in ["service=web,", "service=,web", "services=web,,", "service=,&services=web"] {
            assert_eq!(services(one), ["web"], "{one}");
        }
        for none in ["service=,", "services=,,", "service=&services=%2C"] {
            assert_eq!(error(none), "parameter \"service\" must not contain trailing comma", "{none}");
        }
    }

    #[test]
    fn name_that_no_service_can_have_is_kept() {
        for (query, name) in [
            ("service=Web", "Web"),
            ("service=web;tail=5", "web;tail=5"),
            ("service=%20", " "),
            ("service=*", "*"),
            ("service=w%zz", "w%zz"),
            ("service=a%00b", "a\u{fffd}b"),
            ("service=%ff", "\u{fffd}"),
        ] {
            let query = parse(query);
            assert_eq!((query.services.len(), query.unknown.as_deref()), (0, Some(name)), "{name}");
        }
        let long = parse(&format!("service={}", "A".repeat(9_000)));
        assert_eq!(long.unknown.unwrap().len(), UNKNOWN_NAME_MAX_BYTES);
        let mixed = parse("service=web,Web");
        assert_eq!((mixed.services.len(), mixed.unknown.as_deref()), (1, Some("Web")));
    }

    #[test]
    fn number_of_services_is_bounded() {
        let names = |count| {
            let names: Vec<String> = (0..count).map(|number| format!("s{number}")).collect();
            format!("services={}", names.join(","))
        };
        assert_eq!(services(&names(FILTERS_MAX)).len(), FILTERS_MAX);
        assert!(error(&names(FILTERS_MAX + 1)).contains("at most 64"));
    }

    #[test]
    fn follow_takes_the_values_of_go() {
        for yes in ["1", "t", "T", "TRUE", "true", "True"] {
            assert!(parse(&format!("follow={yes}")).follow, "{yes}");
        }
        for no in ["0", "f", "F", "FALSE", "false", "False", ""] {
            assert!(!parse(&format!("follow={no}")).follow, "{no}");
        }
        assert!(parse("follow=true&follow=x").follow);
        assert_eq!(error("follow=yes"), "parameter \"follow\" must be true or false");
    }

    #[test]
    fn tail_counts_lines() {
        for (query, lines) in [
            ("", None),
            ("tail=-1", None),
            ("tail=", None),
            ("tail=0", Some(0)),
            ("tail=10000000", Some(10_000_000)),
            ("tail=2147483647", Some(2_147_483_647)),
        ] {
            assert_eq!(parse(query).tail, lines, "{query}");
        }
        assert_eq!(error("tail=-2"), "parameter \"tail\" contains invalid value");
        for bad in ["tail=x", "tail=2147483648", "tail=1.5"] {
            assert!(error(bad).starts_with("parameter \"tail\" must be"), "{bad}");
        }
        assert_eq!(StreamQuery::parse("tail=x", StreamKind::Events, FILTERS_MAX).unwrap().tail, None);
    }

    #[test]
    fn query_becomes_a_filter_and_a_range() {
        let query = parse("follow=true&tail=100&service=web");
        let last = BackfillFilter { last: Some(100), since: None };
        assert_eq!(query.range(), ReadRange::Follow(last));
        assert_eq!(query.filter().services().map(ServiceName::as_str).collect::<Vec<_>>(), ["web"]);
        assert_eq!(parse("").range(), ReadRange::UntilNow(BackfillFilter::default()));
        assert_eq!(parse("").filter(), Filter::everything());
    }

    #[test]
    fn own_parameters_are_checked() {
        assert_eq!(parse("notices=none").notices, Some(Notices::None));
        assert_eq!(error("notices=some"), "parameter \"notices\" must be all, loss or none");
    }

    #[test]
    fn lag_policy_needs_follow() {
        let of = |query: &str, kind| StreamQuery::parse(query, kind, FILTERS_MAX).map(|query| query.on_lag);
        for kind in [StreamKind::Logs, StreamKind::Events] {
            assert_eq!(of("follow=true", kind), Ok(LagPolicy::Drop));
            assert_eq!(of("on_lag=drop&follow=1", kind), Ok(LagPolicy::Drop));
            assert_eq!(of("follow=true&on_lag=close&on_lag=x", kind), Ok(LagPolicy::Close));
            for query in ["on_lag=drop", "on_lag=close", "follow=false&on_lag=drop", "follow=&on_lag=close"] {
                let error = "parameter \"on_lag\" is only for follow=true";
                assert_eq!(of(query, kind), Err(error.to_owned()), "{query}");
            }
        }
        assert_eq!(of("follow=true&on_lag=refill", StreamKind::Logs), Ok(LagPolicy::Refill));
        for value in ["", "skip", "REFILL"] {
            let error = error(&format!("follow=true&on_lag={value}"));
            assert_eq!(error, "parameter \"on_lag\" must be drop, refill or close");
        }
        let error = of("follow=true&on_lag=refill", StreamKind::Events).unwrap_err();
        assert_eq!(error, "parameter \"on_lag\" must be drop or close");
    }

    proptest! {
        #[test]
        fn any_query_is_parsed_or_refused(query in "[a-z=&,%;+0-9\u{0}-\u{ff}]{0,60}") {
            let _ = StreamQuery::parse(&query, StreamKind::Logs, FILTERS_MAX);
        }

        #[test]
        fn selected_services_never_become_all(value in "[a-z,%2C*A ]{1,12}") {
            let query = format!("services={value}");
            if let Ok(query) = StreamQuery::parse(&query, StreamKind::Logs, FILTERS_MAX) {
                prop_assert!(!query.services.is_empty() || query.unknown.is_some(), "{value}");
            }
        }
    }
}
