//! Decoding and validation of requests. Errors name the field.
//!
//! The wire form is checked before it is decoded. A client of the other published `LeaseRPC` proto sends
//! service names where the draft has a filter. Some of them (`ha`, `p1`) decode as a filter with unknown
//! fields only, which is an empty filter, which selects everything. So unknown fields within a filter are
//! errors. Elsewhere they are skipped, as usual.

use std::collections::HashMap;
use std::time::Duration;

use bytes::{Buf, Bytes};
use prost::Message;
use prost::encoding::{DecodeContext, decode_key, skip_field};

use super::errors::CallError;
use crate::access::grants::Services;
use crate::access::refusal::Refusal;
use crate::logs::representation::Representation;
use crate::logs::{BackfillFilter, LagPolicy, LogsRequest, ReadRange};
use crate::model::id::{IdError, Instance, LeaseId, Replica, ServiceName};
use crate::model::limits::{CURSORS_MAX, FILTER_REPLICAS_MAX, HEARTBEAT, RESTART_TIMEOUT_MAX};
use crate::model::position::Position;
use crate::model::proto::lease::{Cursor, ServiceFilter, ServiceLogsRequest, ServiceRestartRequest};
use crate::model::proto::market;
use crate::model::time::LogTime;
use crate::model::view::Filter;
use crate::restart;

/// The filters of any request of the service, not decoded. `filter` is not repeated in the proto.
#[derive(Message)]
struct RawFilters {
    #[prost(bytes = "bytes", repeated, tag = "2")]
    filter: Vec<Bytes>,
    #[prost(bytes = "bytes", repeated, tag = "104")]
    filters: Vec<Bytes>,
}

/// Decodes a request message of the lease service.
pub fn decode<M: Message + Default>(bytes: &Bytes) -> Result<M, CallError> {
    check_filters(bytes.clone())?;
    M::decode(bytes.clone()).map_err(|error| {
        // The text of prost names message, field and kind of error, and repeats no input.
        CallError::request(error)
    })
}

/// Validates the lease of a request.
pub fn lease(id: Option<&market::LeaseId>) -> Result<LeaseId, CallError> {
    let id = id.ok_or_else(|| CallError::field("lease_id", "is missing"))?;
    if id.bseq != 0 {
        return Err(CallError::field("lease_id.bseq", "must be zero"));
    }
    LeaseId::new(&id.owner, id.dseq, id.gseq, id.oseq, &id.provider).map_err(|error| match error {
        IdError::LeasePart { part, reason } => CallError::field(format!("lease_id.{part}"), reason),
        other => CallError::field("lease_id", other),
    })
}

/// Combines the fields `filter` and `filters`, of which the second has at most `filters_max` entries.
pub fn filter(
    single: Option<&ServiceFilter>,
    filters: &[ServiceFilter],
    filters_max: usize,
) -> Result<Filter, CallError> {
    if filters.len() > filters_max {
        return Err(CallError::field("filters", format!("must have at most {filters_max} entries")));
    }
    let replicas: usize = single.iter().copied().chain(filters).map(|filter| filter.replicas.len()).sum();
    if replicas > FILTER_REPLICAS_MAX {
        let text = format!("must name at most {FILTER_REPLICAS_MAX} replicas");
        return Err(CallError::field(if filters.is_empty() { "filter" } else { "filters" }, text));
    }
    let mut filter = Filter::everything();
    // An empty one counts as absent: clients generated for Go always send one.
    if let Some(single) = single.filter(|single| !single.name.is_empty() || !single.replicas.is_empty()) {
        add(&mut filter, "filter", single)?;
    }
    for (index, entry) in filters.iter().enumerate() {
        add(&mut filter, &format!("filters[{index}]"), entry)?;
    }
    Ok(filter)
}

/// Validates a request for logs, which has at most `filters_max` filters.
pub fn logs(request: &ServiceLogsRequest, filters_max: usize) -> Result<LogsRequest, CallError> {
    let lease = lease(request.lease_id.as_ref())?;
    let filter = filter(request.filter.as_ref(), &request.filters, filters_max)?;
    let since = request.since.as_ref().map(|since| time("since", since)).transpose()?;
    let backfill = BackfillFilter { last: request.tail_lines, since };
    let range = match (request.previous, request.follow) {
        (true, true) => return Err(CallError::field("previous", "cannot be combined with follow")),
        (true, false) => ReadRange::Previous(backfill),
        (false, true) => ReadRange::Follow(backfill),
        (false, false) => ReadRange::UntilNow(backfill),
    };
    if !request.resume.is_empty() {
        let conflicts = [
            ("tail_lines", request.tail_lines.is_some()),
            ("since", request.since.is_some()),
            ("previous", request.previous),
        ];
        if let Some((field, _)) = conflicts.iter().find(|(_, set)| *set) {
            return Err(CallError::field("resume", format!("cannot be combined with {field}")));
        }
    }
    let representation = if request.timestamps { Representation::Timestamped } else { Representation::Plain };
    let on_lag = on_lag(request.on_lag)?;
    let heartbeat = request.heartbeat.as_ref().map(heartbeat).transpose()?;
    let resume = resume(&request.resume, &filter)?;
    Ok(LogsRequest { lease, filter, range, representation, on_lag, heartbeat, resume })
}

/// Restricts a request for logs to these services.
///
/// # Errors
/// A refusal, if it names another service, also in a cursor.
pub(super) fn narrow(request: &mut LogsRequest, services: &Services) -> Result<(), Refusal> {
    services.narrow(&mut request.filter)?;
    if request.resume.keys().all(|replica| services.contains(&replica.service)) {
        Ok(())
    } else {
        Err(Refusal::ServiceNotGranted)
    }
}

/// Validates a request for a restart, which has at most `filters_max` filters. Also returns how long the
/// caller waits for it.
pub fn restart(
    request: &ServiceRestartRequest,
    filters_max: usize,
) -> Result<(restart::JobRequest, Duration), CallError> {
    let lease = lease(request.lease_id.as_ref())?;
    let filter = filter(request.filter.as_ref(), &request.filters, filters_max)?;
    let timeout = request.timeout.as_ref().map(timeout).transpose()?.unwrap_or_default();
    let id = match request.request_id.as_str() {
        "" => None,
        id => Some(id.parse().map_err(|error| CallError::field("request_id", error))?),
    };
    Ok((restart::JobRequest { lease, filter, id }, timeout))
}

fn timeout(given: &prost_types::Duration) -> Result<Duration, CallError> {
    let timeout = duration("timeout", given)?;
    if timeout > RESTART_TIMEOUT_MAX {
        let text = format!("must be at most {} s", RESTART_TIMEOUT_MAX.as_secs());
        return Err(CallError::field("timeout", text));
    }
    Ok(timeout)
}

fn heartbeat(given: &prost_types::Duration) -> Result<Duration, CallError> {
    let interval = duration("heartbeat", given)?;
    if !HEARTBEAT.contains(&interval) {
        let (min, max) = (HEARTBEAT.start().as_secs(), HEARTBEAT.end().as_secs());
        return Err(CallError::field("heartbeat", format!("must be from {min} s to {max} s")));
    }
    Ok(interval)
}

fn duration(field: &str, given: &prost_types::Duration) -> Result<Duration, CallError> {
    if given.seconds < 0 || given.nanos < 0 {
        return Err(CallError::field(field, "must not be negative"));
    }
    let nanos = u32::try_from(given.nanos).unwrap_or(u32::MAX);
    if nanos >= 1_000_000_000 {
        return Err(CallError::field(field, "nanos must be less than 1000000000"));
    }
    Ok(Duration::new(given.seconds.unsigned_abs(), nanos))
}

fn add(filter: &mut Filter, field: &str, entry: &ServiceFilter) -> Result<(), CallError> {
    let path = format!("{field}.name");
    if entry.name.is_empty() {
        return Err(CallError::field(path, "must not be empty"));
    }
    let service: ServiceName = entry.name.parse().map_err(|error| CallError::field(path, error))?;
    filter.add(service, &entry.replicas);
    Ok(())
}

fn on_lag(value: i32) -> Result<LagPolicy, CallError> {
    use crate::model::proto::lease::OnLag as Wire;
    match Wire::try_from(value) {
        Ok(Wire::Drop) => Ok(LagPolicy::Drop),
        Ok(Wire::Close) => Ok(LagPolicy::Close),
        Ok(Wire::Refill) => Ok(LagPolicy::Refill),
        Err(_) => Err(CallError::field("on_lag", "must be DROP (0), REFILL (1) or CLOSE (2)")),
    }
}

fn resume(cursors: &[Cursor], filter: &Filter) -> Result<HashMap<Replica, (Instance, Position)>, CallError> {
    if cursors.len() > CURSORS_MAX {
        return Err(CallError::field("resume", format!("must have at most {CURSORS_MAX} cursors")));
    }
    let mut resume = HashMap::with_capacity(cursors.len());
    for (index, cursor) in cursors.iter().enumerate() {
        let field = |name: &str| format!("resume[{index}].{name}");
        let service = cursor.service.parse().map_err(|error| CallError::field(field("service"), error))?;
        let replica = Replica { service, index: cursor.replica };
        if !filter.selects(&replica) {
            return Err(CallError::field(field("replica"), "is not selected by the filter"));
        }
        let instance = cursor.instance.parse().map_err(|error| CallError::field(field("instance"), error))?;
        let position = position(cursor, &field)?;
        if resume.insert(replica, (instance, position)).is_some() {
            return Err(CallError::field(field("replica"), "has more than one cursor"));
        }
    }
    Ok(resume)
}

fn position(cursor: &Cursor, field: &dyn Fn(&str) -> String) -> Result<Position, CallError> {
    let (ordinal, offset) = (cursor.ordinal, cursor.offset);
    match (&cursor.time, ordinal) {
        (None, 0) => Ok(Position { offset, ..Position::START }),
        (None, _) => Err(CallError::field(field("ordinal"), "must be zero without a time")),
        (Some(_), 0) => Err(CallError::field(field("ordinal"), "must not be zero with a time")),
        (Some(stamp), _) => Ok(Position { time: time(&field("time"), stamp)?, ordinal, offset }),
    }
}

fn time(field: &str, stamp: &prost_types::Timestamp) -> Result<LogTime, CallError> {
    LogTime::from_parts(stamp.seconds, stamp.nanos)
        .ok_or_else(|| CallError::field(field, "must be a time between the years 1677 and 2262"))
}

/// Finds unknown fields within filters, and a second `filter`: a client of the other published form that
/// names `""` twice sends two empty ones. Leaves everything else, including malformed fields, to the decoder.
fn check_filters(message: Bytes) -> Result<(), CallError> {
    let Ok(RawFilters { filter, filters }) = RawFilters::decode(message) else {
        return Ok(());
    };
    for filter in &filter {
        check_filter("filter", filter)?;
    }
    if filter.len() > 1 {
        return Err(CallError::field(
            "filter",
            "is set more than once; use filters to select several services",
        ));
    }
    filters.iter().try_for_each(|filter| check_filter("filters", filter))
}

fn check_filter(field: &str, filter: &Bytes) -> Result<(), CallError> {
    let mut inside = filter.clone();
    while inside.has_remaining() {
        let known = match decode_key(&mut inside) {
            Ok((known @ (1 | 2), wire)) => {
                skip_field(wire, known, &mut inside, DecodeContext::default()).is_ok()
            }
            _ => false,
        };
        if !known {
            let hint = if std::str::from_utf8(filter).is_ok_and(|text| text.parse::<ServiceName>().is_ok()) {
                "; it looks like a bare service name, which another published form of this service has here: \
                 set filter.name instead"
            } else {
                ""
            };
            let text = format!("is not a ServiceFilter (name = 1, replicas = 2){hint}");
            return Err(CallError::field(field, text));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::limits::FILTERS_MAX;

    const OWNER: &str = "akash1angnwmnsv5vkp4jpgkdcunar8efpvennxwwcev";
    const PROVIDER: &str = "akash1nxq8gmsw2vlz3m68qvyvcf3kh6q269ajvqw6y0";

    fn good() -> ServiceLogsRequest {
        let lease_id = market::LeaseId {
            owner: OWNER.into(),
            dseq: 1,
            gseq: 1,
            oseq: 1,
            provider: PROVIDER.into(),
            bseq: 0,
        };
        ServiceLogsRequest { lease_id: Some(lease_id), ..ServiceLogsRequest::default() }
    }

    fn cursor() -> Cursor {
        Cursor { service: "web".into(), instance: "u/web/0".into(), ..Cursor::default() }
    }

    fn one(name: &str, replicas: &[u32]) -> ServiceFilter {
        ServiceFilter { name: name.into(), replicas: replicas.into() }
    }

    /// Returns the field that is wrong in a good request after `change`.
    fn invalid(change: impl FnOnce(&mut ServiceLogsRequest)) -> String {
        let mut request = good();
        change(&mut request);
        match logs(&request, FILTERS_MAX) {
            Err(CallError::BadRequest { field, description }) => {
                assert!(!description.is_empty());
                field
            }
            other => panic!("{other:?}"),
        }
    }

    fn invalid_lease(change: impl FnOnce(&mut market::LeaseId)) -> String {
        invalid(|request| change(request.lease_id.as_mut().unwrap()))
    }

    #[test]
    fn errors_name_their_field() {
        assert_eq!(invalid(|r| r.lease_id = None), "lease_id");
        assert_eq!(invalid_lease(|l| l.owner = String::new()), "lease_id.owner");
        assert_eq!(invalid_lease(|l| l.owner = OWNER.to_uppercase()), "lease_id.owner");
        assert_eq!(invalid_lease(|l| l.provider = OWNER.into()), "lease_id.provider");
        assert_eq!(invalid_lease(|l| l.dseq = 0), "lease_id.dseq");
        assert_eq!(invalid_lease(|l| l.gseq = 0), "lease_id.gseq");
        assert_eq!(invalid_lease(|l| l.oseq = 0), "lease_id.oseq");
        assert_eq!(invalid_lease(|l| l.bseq = 1), "lease_id.bseq");
        assert_eq!(invalid(|r| r.filter = Some(one("", &[1]))), "filter.name");
        assert_eq!(invalid(|r| r.filter = Some(one("No", &[]))), "filter.name");
        assert_eq!(invalid(|r| r.filter = Some(one("web", &vec![1; FILTER_REPLICAS_MAX + 1]))), "filter");
        assert_eq!(invalid(|r| r.filters = vec![one("web", &[]), one("", &[])]), "filters[1].name");
        assert_eq!(invalid(|r| r.filters = vec![one("", &[])]), "filters[0].name");
        let second_is_empty = |r: &mut ServiceLogsRequest| {
            r.filter = Some(one("web", &[]));
            r.filters = vec![one("", &[0])];
        };
        assert_eq!(invalid(second_is_empty), "filters[0].name");
        assert_eq!(invalid(|r| r.filters = vec![one("web", &[]); FILTERS_MAX + 1]), "filters");
        assert_eq!(invalid(|r| r.on_lag = 7), "on_lag");
        let year_1 = prost_types::Timestamp { seconds: i64::MIN, nanos: 0 };
        assert_eq!(invalid(|r| r.since = Some(year_1)), "since");
        let both = |r: &mut ServiceLogsRequest| (r.previous, r.follow) = (true, true);
        assert_eq!(invalid(both), "previous");
    }

    #[test]
    fn errors_in_cursors_name_their_field() {
        let bad = |change: fn(&mut Cursor)| {
            invalid(|request| {
                let mut cursor = cursor();
                change(&mut cursor);
                request.resume = vec![cursor];
            })
        };
        assert_eq!(bad(|c| c.service = "No".into()), "resume[0].service");
        assert_eq!(bad(|c| c.instance = "x".into()), "resume[0].instance");
        assert_eq!(bad(|c| c.ordinal = 1), "resume[0].ordinal");
        assert_eq!(bad(|c| c.time = Some(prost_types::Timestamp::default())), "resume[0].ordinal");
        let bad_time = |c: &mut Cursor| {
            c.time = Some(prost_types::Timestamp { seconds: 0, nanos: -1 });
            c.ordinal = 1;
        };
        assert_eq!(bad(bad_time), "resume[0].time");
        assert_eq!(invalid(|r| r.resume = vec![cursor(), cursor()]), "resume[1].replica");
        assert_eq!(invalid(|r| r.resume = vec![cursor(); CURSORS_MAX + 1]), "resume");
        let outside = |r: &mut ServiceLogsRequest| {
            r.filter = Some(one("api", &[]));
            r.resume = vec![cursor()];
        };
        assert_eq!(invalid(outside), "resume[0].replica");
        for combine in [
            |r: &mut ServiceLogsRequest| r.tail_lines = Some(0),
            |r: &mut ServiceLogsRequest| r.since = Some(prost_types::Timestamp::default()),
            |r: &mut ServiceLogsRequest| r.previous = true,
        ] {
            let both = |r: &mut ServiceLogsRequest| {
                r.resume = vec![cursor()];
                combine(r);
            };
            assert_eq!(invalid(both), "resume");
        }
    }

    #[test]
    fn filters_are_combined_and_an_empty_one_is_absent() {
        let wants = |change: fn(&mut ServiceLogsRequest), replica: &str, index| {
            let mut request = good();
            change(&mut request);
            let replica = Replica { service: replica.parse().unwrap(), index };
            logs(&request, FILTERS_MAX).unwrap().filter.selects(&replica)
        };
        assert!(wants(|_| {}, "web", 3));
        assert!(wants(|r| r.filter = Some(one("", &[])), "web", 3));
        let joined = |r: &mut ServiceLogsRequest| {
            r.filter = Some(one("web", &[1]));
            r.filters = vec![one("api", &[])];
        };
        assert!(wants(joined, "web", 1) && wants(joined, "api", 9) && !wants(joined, "web", 0));
        let go_client = |r: &mut ServiceLogsRequest| {
            r.filter = Some(one("", &[]));
            r.filters = vec![one("api", &[])];
        };
        assert!(wants(go_client, "api", 0) && !wants(go_client, "web", 0));
    }

    #[test]
    fn service_name_in_place_of_a_filter_is_invalid() {
        // The published form of the service has `repeated string services = 2`.
        for name in ["web", "nginx", "postgres", "ha", "h1", "p1", "xa", "pa", "a12345678", "e1234"] {
            let mut bytes = good().encode_to_vec();
            bytes.extend([0x12, u8::try_from(name.len()).unwrap()]);
            bytes.extend(name.as_bytes());
            match decode::<ServiceLogsRequest>(&bytes.into()) {
                Err(CallError::BadRequest { field, description }) => {
                    assert_eq!(field, "filter", "{name}");
                    assert!(description.contains("bare service name"), "{name}: {description}");
                }
                other => panic!("{name}: {other:?}"),
            }
        }
    }

    #[test]
    fn second_filter_is_invalid() {
        // What `services: ["", ""]` and `services: ["", "web"]` of the published form are on the wire.
        for rest in [&[0x12, 0][..], &[0x12, 3, b'w', b'e', b'b']] {
            let bytes = [&good().encode_to_vec(), &[0x12, 0][..], rest].concat();
            let error = decode::<ServiceLogsRequest>(&bytes.into()).unwrap_err();
            assert!(matches!(&error, CallError::BadRequest { field, .. } if field == "filter"), "{error:?}");
        }
    }

    #[test]
    fn unknown_fields_outside_filters_are_skipped() {
        let mut bytes = good().encode_to_vec();
        bytes.extend([0xf8, 0x3f, 0x01]);
        assert_eq!(decode::<ServiceLogsRequest>(&bytes.into()).unwrap(), good());
    }

    #[test]
    fn undecodable_request_names_the_field() {
        let error = decode::<ServiceLogsRequest>(&Bytes::from_static(&[0x0a, 0x02, 0x0a, 0x05])).unwrap_err();
        let CallError::BadRequest { description, .. } = error else { panic!("{error:?}") };
        assert!(description.contains("lease_id"), "{description}");
    }

    #[test]
    fn restart_timeout_is_at_most_an_hour() {
        let parse = |seconds, nanos| {
            let timeout = Some(prost_types::Duration { seconds, nanos });
            let request = ServiceRestartRequest { lease_id: good().lease_id, timeout, ..Default::default() };
            restart(&request, FILTERS_MAX).map(|(_, timeout)| timeout).map_err(|error| match error {
                CallError::BadRequest { field, .. } => field,
                other => panic!("{other:?}"),
            })
        };
        assert_eq!(parse(0, 0), Ok(Duration::ZERO));
        assert_eq!(parse(1, 500_000_000), Ok(Duration::from_millis(1_500)));
        assert_eq!(parse(3_600, 0), Ok(RESTART_TIMEOUT_MAX));
        for (seconds, nanos) in
            [(3_600, 1), (i64::MAX, 0), (-1, 0), (0, -1), (i64::MIN, i32::MIN), (0, i32::MAX)]
        {
            assert_eq!(parse(seconds, nanos), Err("timeout".to_owned()), "{seconds} {nanos}");
        }
        let none = ServiceRestartRequest { lease_id: good().lease_id, ..Default::default() };
        assert_eq!(restart(&none, FILTERS_MAX).unwrap().1, Duration::ZERO);
    }

    #[test]
    fn heartbeat_is_from_a_second_to_ten_minutes() {
        let with = |seconds, nanos| {
            let heartbeat = Some(prost_types::Duration { seconds, nanos });
            ServiceLogsRequest { heartbeat, ..good() }
        };
        let parse = |seconds, nanos| logs(&with(seconds, nanos), FILTERS_MAX).unwrap().heartbeat;
        assert_eq!(logs(&good(), FILTERS_MAX).unwrap().heartbeat, None);
        assert_eq!(parse(1, 0), Some(Duration::from_secs(1)));
        assert_eq!(parse(1, 500_000_000), Some(Duration::from_millis(1_500)));
        assert_eq!(parse(600, 0), Some(Duration::from_secs(600)));
        for (seconds, nanos) in [
            (0, 0),
            (0, 999_999_999),
            (600, 1),
            (i64::MAX, 0),
            (-1, 0),
            (5, -1),
            (i64::MIN, i32::MIN),
            (5, i32::MAX),
        ] {
            let field = invalid(|request| request.heartbeat = with(seconds, nanos).heartbeat);
            assert_eq!(field, "heartbeat", "{seconds} {nanos}");
        }
    }

    #[test]
    fn heartbeat_of_another_form_is_invalid() {
        // Field 107 as a number, and as a message that ends within a field.
        for wrong in [&[0xd8, 0x06, 0x05][..], &[0xda, 0x06, 0x01, 0x08]] {
            let bytes = [&good().encode_to_vec(), wrong].concat();
            let error = decode::<ServiceLogsRequest>(&bytes.into()).unwrap_err();
            let CallError::BadRequest { description, .. } = error else { panic!("{error:?}") };
            assert!(description.contains("heartbeat"), "{description}");
        }
        // Unknown fields within it are skipped, as everywhere but in filters.
        let bytes = [&good().encode_to_vec(), &[0xda, 0x06, 0x04, 0x08, 0x05, 0x18, 0x01][..]].concat();
        let request = decode::<ServiceLogsRequest>(&bytes.into()).unwrap();
        assert_eq!(logs(&request, FILTERS_MAX).unwrap().heartbeat, Some(Duration::from_secs(5)));
    }

    #[test]
    fn request_id_is_validated() {
        let named = |id: &str| {
            let (lease_id, request_id) = (good().lease_id, id.to_owned());
            restart(&ServiceRestartRequest { lease_id, request_id, ..Default::default() }, FILTERS_MAX)
        };
        assert_eq!(named("").unwrap().0.id, None);
        assert_eq!(named("deploy-7:~!").unwrap().0.id.unwrap().to_string(), "deploy-7:~!");
        assert!(named(&"x".repeat(128)).is_ok());
        for id in ["two words", "ü", "a\n", &"x".repeat(129)] {
            let Err(CallError::BadRequest { field, .. }) = named(id) else { panic!("{id}") };
            assert_eq!(field, "request_id");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_invalid(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(request) = decode::<ServiceLogsRequest>(&bytes.into()) {
                let _ = logs(&request, FILTERS_MAX);
            }
        }

        #[test]
        fn damaged_requests_are_decoded_or_invalid(at in any::<prop::sample::Index>(), to in any::<u8>()) {
            let mut request = good();
            request.filters = vec![one("web", &[1, 2])];
            request.resume = vec![cursor()];
            let mut bytes = request.encode_to_vec();
            let at = at.index(bytes.len());
            bytes[at] = to;
            if let Ok(request) = decode::<ServiceLogsRequest>(&bytes.into()) {
                let _ = logs(&request, FILTERS_MAX);
            }
        }
    }
}
