//! Requests of the published `LeaseRPC` proto, which shares names and numbers with the draft.
//!
//! | field | published | draft |
//! |---|---|---|
//! | 1 | lease id | lease id |
//! | 2 | `repeated string services` | `ServiceFilter filter` |
//! | 3 | – | `bool follow` |
//! | from 100 | – | additions of this gateway |
//!
//! [`classify`] distinguishes the two by the wire form, before anything is decoded. A request that could
//! select more services when it is read in the other form is refused, so that no caller receives more than it
//! asked for.

use std::collections::HashMap;

use bytes::{Buf as _, Bytes};
use http::HeaderMap;
use prost::Message as _;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use super::errors::CallError;
use super::request;
use crate::logs::collector::CollectorLimits;
use crate::logs::notice::Notices;
use crate::logs::representation::Representation;
use crate::logs::{BackfillFilter, LagPolicy, LogsRequest, ReadRange};
use crate::model::id::{IdError, LeaseId, ServiceName};
use crate::model::published::ServicesRequest;
use crate::model::view::Filter;

/// The field with `services` in the published proto, and `filter` in the draft.
const SERVICES_OR_FILTER: u32 = 2;

/// The field `follow` of the draft.
const FOLLOW: u32 = 3;

/// The first field of the gateway's additions to the draft.
const FIRST_ADDITION: u32 = 100;

/// Metadata that selects the notices of a stream.
const NOTICES_METADATA: &str = "leasemux-notices";

/// The proto of a listener, which decides about requests that are the same in both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DefaultProto {
    /// The draft (`--listen`).
    #[default]
    Draft,
    /// The published proto (`--published-listen`).
    Published,
}

/// The proto to which a request belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestForm {
    /// The draft.
    Draft,
    /// The published proto, with at least one service.
    Published(Vec<ServiceName>),
    /// Either: the request has a lease id only, and selects all services.
    Ambiguous,
}

/// A request of the published proto.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PublishedRequest {
    pub(super) lease: LeaseId,
    pub(super) filter: Filter,
}

/// Determines the proto of a `ServiceLogs` or `ServiceStatus` request in one pass over its fields.
///
/// Fields that neither proto has do not count. The content of a draft filter is left to its decoder.
///
/// # Errors
/// `CallError::BadRequest` if the message is malformed, if field 2 has neither form, or if the request has
/// fields of both protos.
pub fn classify(mut message: &[u8]) -> Result<RequestForm, CallError> {
    let mut is_draft = false;
    let mut services = Vec::new();
    while message.has_remaining() {
        let (number, wire) = decode_key(&mut message).map_err(CallError::request)?;
        if number != SERVICES_OR_FILTER {
            is_draft |= number == FOLLOW || number >= FIRST_ADDITION;
            skip_field(wire, number, &mut message, DecodeContext::default()).map_err(CallError::request)?;
            continue;
        }
        let content = match wire {
            WireType::LengthDelimited => length_delimited(&mut message),
            _ => None,
        };
        match content.ok_or_else(|| CallError::request("filter (field 2) is malformed"))? {
            // An empty filter, or one that begins with its field `name`, or `replicas` in either encoding.
            // No service name begins so.
            [] | [0x0a | 0x10 | 0x12, ..] => is_draft = true,
            name => services.push(service(name)?),
        }
    }
    match (is_draft, services.is_empty()) {
        (true, true) => Ok(RequestForm::Draft),
        (false, true) => Ok(RequestForm::Ambiguous),
        (false, false) => Ok(RequestForm::Published(services)),
        (true, false) => Err(CallError::field(
            "services",
            "cannot be combined with fields of the draft proto (filter = 2, follow = 3, 100 and above)",
        )),
    }
}

/// Parses an element of `services`. Names the field as the caller knows it.
fn service(content: &[u8]) -> Result<ServiceName, CallError> {
    let text = std::str::from_utf8(content).ok().filter(|text| !text.contains(char::is_control));
    match text {
        Some("*") => {
            Err(CallError::field("services", "must not contain *; leave it empty to select all services"))
        }
        Some(text) => text.parse().map_err(|error: IdError| CallError::field("services", error)),
        None => Err(CallError::field("filter", "is not a ServiceFilter (name = 1, replicas = 2)")),
    }
}

fn length_delimited<'a>(from: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(decode_varint(from).ok()?).ok()?;
    let (content, rest) = from.split_at_checked(length)?;
    *from = rest;
    Some(content)
}

/// Returns a `ServiceLogs` or `ServiceStatus` request if it is of the published proto; `None` if it is of the
/// draft.
///
/// # Errors
/// Those of [`classify`], and an error for an invalid lease or more than `services_max` services.
pub(super) fn parse(
    message: &Bytes,
    default: DefaultProto,
    services_max: usize,
) -> Result<Option<PublishedRequest>, CallError> {
    match (classify(message)?, default) {
        (RequestForm::Published(services), _) => decode(message, services, services_max).map(Some),
        (RequestForm::Ambiguous, DefaultProto::Published) => {
            decode(message, Vec::new(), services_max).map(Some)
        }
        (RequestForm::Ambiguous | RequestForm::Draft, _) => Ok(None),
    }
}

/// Returns a `StreamServiceLogs` or `StreamServiceStatus` request, which only the published proto has.
///
/// # Errors
/// Those of [`parse`], and an error for fields of the draft: without them, the request would select more.
pub(super) fn parse_stream(message: &Bytes, services_max: usize) -> Result<PublishedRequest, CallError> {
    parse(message, DefaultProto::Published, services_max)?.ok_or_else(|| {
        CallError::request(
            "this method has only the fields lease_id = 1 and services = 2; to use fields of the draft \
             proto, call ServiceLogs or ServiceStatus",
        )
    })
}

fn decode(
    message: &Bytes,
    services: Vec<ServiceName>,
    services_max: usize,
) -> Result<PublishedRequest, CallError> {
    if services.len() > services_max {
        return Err(CallError::field("services", format!("must have at most {services_max} entries")));
    }
    let message = ServicesRequest::decode(message.clone()).map_err(CallError::request)?;
    let lease = request::lease(message.lease_id.as_ref())?;
    let mut filter = Filter::everything();
    for service in services {
        filter.add(service, &[]);
    }
    Ok(PublishedRequest { lease, filter })
}

/// Returns the notices that the metadata of a request selects.
///
/// # Errors
/// [`CallError::BadRequest`] for an unknown value.
pub(super) fn notices(headers: &HeaderMap) -> Result<Notices, CallError> {
    let Some(value) = headers.get(NOTICES_METADATA) else {
        return Ok(Notices::default());
    };
    value.to_str().unwrap_or_default().parse().map_err(|error| CallError::field(NOTICES_METADATA, error))
}

// === impl PublishedRequest ===

impl PublishedRequest {
    /// Returns the request for the lines of a `ServiceLogs` response.
    pub(super) fn unary_logs(self) -> LogsRequest {
        let last = Some(CollectorLimits::UNARY.lines_to_read());
        self.logs(ReadRange::UntilNow(BackfillFilter { last, since: None }), Representation::Plain)
    }

    /// Returns the request for a `StreamServiceLogs` call: new lines only.
    pub(super) fn stream_logs(self, notices: Notices) -> LogsRequest {
        let range = ReadRange::Follow(BackfillFilter { last: Some(0), since: None });
        self.logs(range, Representation::Published(notices))
    }

    fn logs(self, range: ReadRange, representation: Representation) -> LogsRequest {
        let Self { lease, filter } = self;
        LogsRequest {
            lease,
            filter,
            range,
            representation,
            on_lag: LagPolicy::Drop,
            heartbeat: None,
            resume: HashMap::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::limits::FILTERS_MAX;
    use crate::model::proto::lease::{ServiceFilter, ServiceLogsRequest};
    use crate::model::proto::market;

    const OWNER: &str = "akash1angnwmnsv5vkp4jpgkdcunar8efpvennxwwcev";
    const PROVIDER: &str = "akash1nxq8gmsw2vlz3m68qvyvcf3kh6q269ajvqw6y0";

    fn lease_id() -> market::LeaseId {
        let lease: LeaseId = format!("{OWNER}/7/1/1/{PROVIDER}").parse().unwrap();
        (&lease).into()
    }

    /// Returns a request with a lease id and these bytes.
    fn with(rest: &[u8]) -> Bytes {
        let lease_id = Some(lease_id());
        let lease = ServicesRequest { lease_id, services: Vec::new() }.encode_to_vec();
        [&lease, rest].concat().into()
    }

    fn of(services: &[&str]) -> Bytes {
        let services = services.iter().map(ToString::to_string).collect();
        ServicesRequest { lease_id: Some(lease_id()), services }.encode_to_vec().into()
    }

    fn published(names: &[&str]) -> RequestForm {
        RequestForm::Published(names.iter().map(|name| name.parse().unwrap()).collect())
    }

    /// Returns the field that is wrong.
    fn invalid<T: std::fmt::Debug>(result: Result<T, CallError>) -> String {
        match result {
            Err(CallError::BadRequest { field, .. }) => field,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn wire_form_determines_the_proto() {
        let form = |rest: &[u8]| classify(&with(rest)).unwrap();
        assert_eq!(form(b"\x12\x03web"), published(&["web"]));
        assert_eq!(form(b"\x12\x02ha"), published(&["ha"]));
        assert_eq!(form(b"\x12\x03web\x12\x02ha"), published(&["web", "ha"]));
        assert_eq!(form(b"\x12\x00"), RequestForm::Draft);
        assert_eq!(form(b"\x12\x05\x0a\x03web"), RequestForm::Draft);
        assert_eq!(form(b"\x12\x05\x0a\x03web\x18\x01"), RequestForm::Draft);
        assert_eq!(form(b"\x12\x02\x10\x01"), RequestForm::Draft);
        assert_eq!(form(b"\x12\x03\x12\x01\x01"), RequestForm::Draft);
        assert_eq!(form(b"\x18\x01"), RequestForm::Draft);
        assert_eq!(form(b"\xa0\x06\x05"), RequestForm::Draft, "tail_lines");
        assert_eq!(form(b""), RequestForm::Ambiguous);
        assert_eq!(form(b"\x20\x01"), RequestForm::Ambiguous, "a field of neither");
        assert_eq!(classify(b"").unwrap(), RequestForm::Ambiguous);
    }

    #[test]
    fn request_with_fields_of_both_is_refused() {
        for rest in [
            &b"\x12\x03web\x18\x01"[..],
            b"\x18\x00\x12\x03web",
            b"\x12\x00\x12\x03web",
            b"\x12\x03web\x12\x05\x0a\x03web",
            b"\x12\x03web\xa0\x06\x05",
        ] {
            assert_eq!(invalid(classify(&with(rest))), "services", "{rest:?}");
        }
    }

    #[test]
    fn field_of_neither_form_is_refused() {
        for (rest, field) in [
            (&b"\x12\x01*"[..], "services"),
            (b"\x12\x03Web", "services"),
            (b"\x12\x04web-", "services"),
            (b"\x12\x03we\x01", "filter"),
            (b"\x12\x02\x18\x01", "filter"),
            (b"\x12\x02\xff\xfe", "filter"),
            (b"\x10\x01", ""),
            (b"\x12\x09web", ""),
            (b"\x12", ""),
            (b"\x00", ""),
            (b"\x1a\x09", ""),
        ] {
            assert_eq!(invalid(classify(&with(rest))), field, "{rest:?}");
        }
    }

    #[test]
    fn listener_decides_about_a_lease_id_alone() {
        let lease_only = with(b"");
        assert_eq!(parse(&lease_only, DefaultProto::Draft, FILTERS_MAX).unwrap(), None);
        let request = parse(&lease_only, DefaultProto::Published, FILTERS_MAX).unwrap().unwrap();
        assert_eq!(request.filter, Filter::everything());
        // An empty filter is a draft request on both listeners.
        assert_eq!(parse(&with(b"\x12\x00"), DefaultProto::Published, FILTERS_MAX).unwrap(), None);
        let request = parse(&of(&["web", "web"]), DefaultProto::Draft, FILTERS_MAX).unwrap().unwrap();
        assert_eq!(request.filter.services().map(ServiceName::as_str).collect::<Vec<_>>(), ["web"]);
    }

    #[test]
    fn published_request_is_validated() {
        let many = vec!["web"; FILTERS_MAX + 1];
        assert_eq!(invalid(parse(&of(&many), DefaultProto::Draft, FILTERS_MAX)), "services");
        assert_eq!(invalid(parse_stream(&Bytes::new(), FILTERS_MAX)), "lease_id");
        let zero = ServicesRequest {
            lease_id: Some(market::LeaseId { dseq: 0, ..lease_id() }),
            services: Vec::new(),
        };
        assert_eq!(invalid(parse_stream(&zero.encode_to_vec().into(), FILTERS_MAX)), "lease_id.dseq");
    }

    #[test]
    fn stream_refuses_fields_of_the_draft() {
        for rest in [&b"\x12\x00"[..], b"\x12\x05\x0a\x03web", b"\x18\x01", b"\xc2\x06\x05\x0a\x03web"] {
            assert_eq!(invalid(parse_stream(&with(rest), FILTERS_MAX)), "", "{rest:?}");
        }
        assert_eq!(parse_stream(&with(b""), FILTERS_MAX).unwrap().filter, Filter::everything());
    }

    #[test]
    fn logs_are_the_last_lines_or_the_new_ones() {
        let request = parse_stream(&of(&["web"]), FILTERS_MAX).unwrap();
        let unary = request.clone().unary_logs();
        assert!(!unary.range.follows());
        assert_eq!(unary.range.filter().last, Some(1_001));
        let stream = request.stream_logs(Notices::All);
        assert_eq!((stream.range.follows(), stream.range.filter().last), (true, Some(0)));
    }

    #[test]
    fn metadata_selects_notices() {
        let read = |value: &'static str| {
            notices(&HeaderMap::from_iter([(
                NOTICES_METADATA.parse().unwrap(),
                http::HeaderValue::from_static(value),
            )]))
        };
        assert_eq!(notices(&HeaderMap::new()).unwrap(), Notices::All);
        assert_eq!(read("none").unwrap(), Notices::None);
        assert_eq!(invalid(read("some")), NOTICES_METADATA);
    }

    fn service_name() -> impl Strategy<Value = String> {
        "[a-z]([-a-z0-9]{0,8}[a-z0-9])?"
    }

    proptest! {
        #[test]
        fn published_services_are_never_read_as_a_draft(
            names in prop::collection::vec(prop_oneof![service_name(), ".{0,6}"], 1..4),
        ) {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            match classify(&of(&names)) {
                Ok(RequestForm::Published(services)) => {
                    let services: Vec<_> = services.iter().map(ServiceName::as_str).collect();
                    prop_assert_eq!(services, names);
                }
                // Empty names select nothing in particular; others are refused.
                Ok(form) => prop_assert!(
                    form == RequestForm::Draft && names.iter().all(|name| !is_name(name)),
                    "{form:?}"
                ),
                Err(_) => prop_assert!(names.iter().any(|name| !is_name(name))),
            }
        }

        #[test]
        fn draft_filter_is_never_read_as_published(
            name in service_name(),
            replicas in prop::collection::vec(any::<u32>(), 0..3),
            follow: bool,
            has_name: bool,
        ) {
            let name = if has_name { name } else { String::new() };
            let filter = Some(ServiceFilter { name, replicas });
            let request = ServiceLogsRequest { lease_id: Some(lease_id()), filter, follow, ..Default::default() };
            prop_assert_eq!(classify(&request.encode_to_vec()).unwrap(), RequestForm::Draft);
        }

        #[test]
        fn any_bytes_are_classified_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = classify(&bytes);
            let _ = parse_stream(&bytes.into(), FILTERS_MAX);
        }
    }

    fn is_name(text: &str) -> bool {
        text.parse::<ServiceName>().is_ok()
    }
}
