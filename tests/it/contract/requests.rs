//! Invalid requests, as bytes.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;
use leasemux::model::limits::{CURSORS_MAX, FILTER_REPLICAS_MAX, FILTERS_MAX, Limits, STREAM_REPLICAS_MAX};
use leasemux::model::proto::lease::{
    Cursor, ServiceFilter, ServiceLogsRequest, ServiceLogsResponse, ServiceRestartRequest,
    ServiceStatusRequest,
};
use leasemux::model::proto::market::LeaseId;
use prost::Message as _;
use prost_types::Timestamp;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::Code;
use tonic_types::StatusExt as _;

use super::{check, check_invalid};
use crate::support::gateway::Setup;
use crate::support::raw::{Answer, Raw, encoded, framed};
use crate::support::replica;

/// Default limit of a request's size.
const REQUEST_MAX_BYTES: usize = 256 * 1024;

/// The output of the scenario's first replica.
const PRINTED: &str = "still here\n";

/// A caller of the scenario's lease, with one connection.
struct Caller {
    scenario: Setup,
    raw: Raw,
}

impl Caller {
    async fn new() -> Self {
        let scenario = Setup::new(Limits::default(), &[("api", 1), ("web", 2)]);
        let run = scenario.gateway.platform.start(&scenario.lease, &replica("api", 0));
        scenario.gateway.platform.print(&run, [PRINTED]);
        let raw = Raw::new(scenario.gateway.connect(Some(scenario.certificate.clone()))).await;
        Self { scenario, raw }
    }

    /// Sends a body that must be rejected, then checks that the gateway still serves the connection.
    async fn logs(&mut self, case: &str, body: Vec<u8>) -> tonic::Status {
        let Answer { status, body } = self.raw.call("ServiceLogs", body).await;
        assert!(status.code() != Code::Ok && body.is_empty(), "{case}: {status:?}");
        let valid = self.raw.call("ServiceLogs", encoded(&self.scenario.request())).await;
        assert_eq!(valid.status.code(), Code::Ok, "after {case}: {:?}", valid.status);
        assert_eq!(text(&valid.body), PRINTED, "after {case}");
        status
    }

    async fn rejects(&mut self, field: &str, change: impl FnOnce(&mut ServiceLogsRequest)) {
        let mut request = self.scenario.request();
        change(&mut request);
        let case = format!("{field} of {request:?}").chars().take(400).collect::<String>();
        let status = self.logs(&case, encoded(&request)).await;
        check_invalid(&case, &status, field);
    }

    async fn rejects_lease(&mut self, field: &str, change: impl FnOnce(&mut LeaseId)) {
        self.rejects(field, |request| change(request.lease_id.as_mut().unwrap())).await;
    }

    async fn rejects_cursor(&mut self, field: &str, change: impl FnOnce(&mut Cursor)) {
        let mut one = cursor(0);
        change(&mut one);
        self.rejects(field, |request| request.resume = vec![one]).await;
    }

    /// Returns a valid message with extra bytes at its end.
    fn with(&self, tail: &[u8]) -> Vec<u8> {
        let mut message = self.scenario.request().encode_to_vec();
        message.extend(tail);
        framed(&message)
    }
}

/// Returns the logs in the messages of a body.
fn text(mut body: &[u8]) -> String {
    let mut text = Vec::new();
    while let Some((prefix, rest)) = body.split_first_chunk::<5>() {
        let length = u32::from_be_bytes(prefix[1..].try_into().unwrap()) as usize;
        let (message, rest) = rest.split_at(length);
        for entry in ServiceLogsResponse::decode(message).unwrap().services {
            text.extend(entry.logs);
        }
        body = rest;
    }
    String::from_utf8(text).unwrap()
}

fn filter(name: &str, replicas: &[u32]) -> ServiceFilter {
    ServiceFilter { name: name.into(), replicas: replicas.into() }
}

fn cursor(replica: u32) -> Cursor {
    Cursor { service: "web".into(), replica, instance: "pod/web/0".into(), ..Cursor::default() }
}

fn address(prefix: &str, bytes: &[u8]) -> String {
    bech32::encode::<bech32::Bech32>(bech32::Hrp::parse(prefix).unwrap(), bytes).unwrap()
}

#[tokio::test(start_paused = true)]
async fn invalid_lease_id_is_rejected_by_field() {
    let mut caller = Caller::new().await;
    let owner = caller.scenario.lease.owner().to_string();
    caller.rejects("lease_id", |request| request.lease_id = None).await;
    let status = caller.logs("empty message", framed(&[])).await;
    check_invalid("empty message", &status, "lease_id");
    caller.rejects_lease("lease_id.owner", |lease| *lease = LeaseId::default()).await;

    let checksum = if owner.ends_with('q') { "p" } else { "q" };
    let bech32m = bech32::encode::<bech32::Bech32m>(bech32::Hrp::parse("akash").unwrap(), &[1; 20]).unwrap();
    let invalid = [
        String::new(),
        "marker".into(),
        "akash1marker".into(),
        owner.to_uppercase(),
        owner.replacen("akash", "Akash", 1),
        format!("{}{checksum}", &owner[..owner.len() - 1]),
        format!("{owner} "),
        format!("{owner}\n"),
        format!("{owner}\0"),
        address("cosmos", &[1; 20]),
        address("akash", &[1; 19]),
        address("akash", &[1; 21]),
        address("akash", &[]),
        bech32m,
        "akash1".repeat(10_000),
        "ākash1é".into(),
    ];
    for address in invalid {
        caller.rejects_lease("lease_id.owner", |lease| lease.owner = address.clone()).await;
        caller.rejects_lease("lease_id.provider", |lease| lease.provider = address).await;
    }
    caller.rejects_lease("lease_id.provider", |lease| lease.provider = lease.owner.clone()).await;
    caller.rejects_lease("lease_id.dseq", |lease| lease.dseq = 0).await;
    caller.rejects_lease("lease_id.gseq", |lease| lease.gseq = 0).await;
    caller.rejects_lease("lease_id.oseq", |lease| lease.oseq = 0).await;
    caller.rejects_lease("lease_id.bseq", |lease| lease.bseq = 1).await;
    caller.rejects_lease("lease_id.bseq", |lease| lease.bseq = u32::MAX).await;
}

#[tokio::test(start_paused = true)]
async fn invalid_filter_is_rejected_by_field() {
    let mut caller = Caller::new().await;
    for name in
        ["Web", "web ", "-web", "web-", "0web", "we_b", "../marker", "web/0", "wéb", "\0", &"a".repeat(64)]
    {
        caller.rejects("filter.name", |request| request.filter = Some(filter(name, &[]))).await;
        caller
            .rejects("filters[1].name", |request| {
                request.filters = vec![filter("web", &[0]), filter(name, &[])];
            })
            .await;
    }
    caller.rejects("filter.name", |request| request.filter = Some(filter("", &[0]))).await;
    caller.rejects("filters[0].name", |request| request.filters = vec![filter("", &[])]).await;
    let many: Vec<u32> = (0..).take(FILTER_REPLICAS_MAX + 1).collect();
    caller.rejects("filter", |request| request.filter = Some(filter("web", &many))).await;
    let huge = vec![u32::MAX; 40_000];
    caller.rejects("filter", |request| request.filter = Some(filter("web", &huge))).await;
    let halves: Vec<_> = many.chunks(FILTER_REPLICAS_MAX / 2).map(|half| filter("web", half)).collect();
    caller.rejects("filters", |request| request.filters = halves).await;
    caller.rejects("filters", |request| request.filters = vec![filter("web", &[]); FILTERS_MAX + 1]).await;
}

#[tokio::test(start_paused = true)]
async fn conflicting_options_are_rejected_by_field() {
    let mut caller = Caller::new().await;
    caller.rejects("previous", |request| (request.previous, request.follow) = (true, true)).await;
    for unknown in [3, 7, -1, i32::MIN, i32::MAX] {
        caller.rejects("on_lag", |request| request.on_lag = unknown).await;
    }
    for (seconds, nanos) in [(i64::MAX, 0), (i64::MIN, 0), (0, -1), (0, 1_000_000_000), (i64::MAX, i32::MAX)]
    {
        caller.rejects("since", |request| request.since = Some(Timestamp { seconds, nanos })).await;
    }
    caller
        .rejects("resume", |request| (request.resume, request.tail_lines) = (vec![cursor(0)], Some(0)))
        .await;
    let now = Some(Timestamp::default());
    caller.rejects("resume", |request| (request.resume, request.since) = (vec![cursor(0)], now)).await;
    caller.rejects("resume", |request| (request.resume, request.previous) = (vec![cursor(0)], true)).await;
}

#[tokio::test(start_paused = true)]
async fn invalid_cursor_is_rejected_by_field() {
    let mut caller = Caller::new().await;
    let too_long = format!("{}/web/0", "p".repeat(10_000));
    for instance in ["", "marker", "/", "//", "pod/web", "pod/web/x", "pod/web/-1", "pod/web/0/1", &too_long]
    {
        caller.rejects_cursor("resume[0].instance", |cursor| cursor.instance = instance.into()).await;
    }
    for service in ["", "Web", "../marker"] {
        caller.rejects_cursor("resume[0].service", |cursor| cursor.service = service.into()).await;
    }
    caller.rejects_cursor("resume[0].ordinal", |cursor| cursor.ordinal = 1).await;
    caller.rejects_cursor("resume[0].ordinal", |cursor| cursor.time = Some(Timestamp::default())).await;
    let below_range = Some(Timestamp { seconds: i64::MIN, nanos: 0 });
    caller.rejects_cursor("resume[0].time", |cursor| (cursor.time, cursor.ordinal) = (below_range, 1)).await;
    caller.rejects("resume[1].replica", |request| request.resume = vec![cursor(0), cursor(0)]).await;
    let outside = |request: &mut ServiceLogsRequest| {
        request.filters = vec![filter("web", &[0])];
        request.resume = vec![cursor(0), cursor(1)];
    };
    caller.rejects("resume[1].replica", outside).await;
    let many: Vec<_> = (0..).map(cursor).take(CURSORS_MAX + 1).collect();
    caller.rejects("resume", |request| request.resume = many).await;
}

#[tokio::test(start_paused = true)]
async fn bare_service_name_never_selects_everything() {
    let mut caller = Caller::new().await;
    // Clients of the published proto send `repeated string services = 2`. Some names are also well-formed
    // messages, which the decoder would accept as an empty filter, which selects everything.
    for name in ["ha", "h1", "p1", "xa", "pa", "a12345678", "e1234", "nginx", "a", &"w".repeat(63)] {
        let tail = |field: &[u8]| [field, &[u8::try_from(name.len()).unwrap()], name.as_bytes()].concat();
        for method in ["ServiceLogs", "ServiceStatus"] {
            let status = caller.raw.call(method, caller.with(&tail(&[0x12]))).await.status;
            check(name, &status, Code::NotFound, "SERVICE_NOT_FOUND");
        }
        // The published proto has neither a restart nor the field `filters`.
        for (method, field, named) in
            [("ServiceRestart", &[0x12][..], "filter"), ("ServiceLogs", &[0xc2, 0x06], "filters")]
        {
            let status = caller.raw.call(method, caller.with(&tail(field))).await.status;
            check_invalid(name, &status, named);
            assert!(status.message().contains("bare service name"), "{name}: {status:?}");
            assert!(status.message().contains("filter.name"), "{name}: {status:?}");
        }
    }
    let unknown: [(&str, &[u8]); 7] = [
        ("a third field", &[0x18, 1]),
        ("a field with a large number", &[0x80, 0x3f, 1]),
        ("after a valid name", &[0x0a, 3, b'w', b'e', b'b', 0x1a, 0]),
        ("half a field", &[0x0a, 9, b'w']),
        ("half a number", &[0x10, 0x80]),
        ("the number zero", &[0x02, 0]),
        ("an end without a start", &[0x0c]),
    ];
    for (case, inside) in unknown {
        let tail = [&[0x12, u8::try_from(inside.len()).unwrap()], inside].concat();
        // All methods have filters.
        for method in ["ServiceLogs", "ServiceStatus", "ServiceRestart"] {
            let status = caller.raw.call(method, caller.with(&tail)).await.status;
            check_invalid(case, &status, "filter");
            assert!(!status.message().contains("bare service name"), "{case}: {status:?}");
        }
    }
    // Elsewhere, unknown fields come from newer clients and are ignored.
    let newer = caller.raw.call("ServiceLogs", caller.with(&[0xf8, 0x3f, 1])).await;
    assert_eq!((newer.status.code(), text(&newer.body).as_str()), (Code::Ok, PRINTED));
}

#[tokio::test(start_paused = true)]
async fn undecodable_message_is_rejected_by_field() {
    let mut caller = Caller::new().await;
    let deep = [0x7b].repeat(200_000);
    let cases: [(&str, &[u8], &str); 12] = [
        ("a lease that is a number", &[0x08, 1], "lease_id"),
        ("a lease cut off", &[0x0a, 0x05, 0x0a], ""),
        ("an owner cut off", &[0x0a, 0x02, 0x0a, 0x05], "lease_id"),
        ("an owner that is not UTF-8", &[0x0a, 0x03, 0x0a, 0x01, 0xff], "owner"),
        ("a filter that is a number", &[0x10, 1], "filter"),
        ("follow that is text", &[0x1a, 1, b'x'], "follow"),
        ("tail_lines that is text", &[0xa2, 0x06, 1, b'x'], "tail_lines"),
        ("a length beyond 64 bits", &[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1], ""),
        ("a number without end", &[0xff; 20], ""),
        ("the field number zero", &[0x00, 0x01], ""),
        ("the end of a group that never began", &[0x7c], ""),
        ("groups in groups in groups", &deep, ""),
    ];
    for (case, tail, named) in cases {
        let status = caller.logs(case, caller.with(tail)).await;
        check_invalid(case, &status, "");
        assert!(status.message().contains(named), "{case}: {status:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn body_without_exactly_one_message_is_rejected() {
    let mut caller = Caller::new().await;
    let valid = encoded(&caller.scenario.request());
    let mut beyond = valid.clone();
    beyond[4] += 1;
    let mut short = valid.clone();
    short[4] -= 1;
    let mut endless = valid.clone();
    endless[1..5].fill(0xff);
    let mut unknown_flag = valid.clone();
    unknown_flag[0] = 2;
    let cases = [
        ("no message", vec![]),
        ("only a flag", vec![0]),
        ("half a prefix", vec![0; 4]),
        ("a prefix without a message", valid[..5].to_vec()),
        ("half a message", valid[..valid.len() / 2].to_vec()),
        ("two messages", [valid.clone(), valid.clone()].concat()),
        ("a message and a byte", [&valid[..], &[0]].concat()),
        ("a length beyond the end", beyond),
        ("a length before the end", short),
        ("a length of 4 GiB", endless),
        ("an unknown flag", unknown_flag),
        ("garbage", vec![0xff; 1_000]),
        ("another protocol", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("too long by one byte", framed(&vec![0; REQUEST_MAX_BYTES + 1])),
        ("far too long", framed(&vec![0x7a; 40 * REQUEST_MAX_BYTES])),
    ];
    for (case, body) in cases {
        let long = body.len() > REQUEST_MAX_BYTES;
        let status = caller.logs(case, body).await;
        check_invalid(case, &status, "");
        assert_eq!(status.message().contains(&REQUEST_MAX_BYTES.to_string()), long, "{case}: {status:?}");
    }
    let mut compressed = valid.clone();
    compressed[0] = 1;
    let status = caller.logs("compressed", compressed).await;
    check("compressed", &status, Code::Unimplemented, "NOT_OFFERED");
    assert!(status.message().contains("compressed"));
    let status = caller.raw.call_without_end("ServiceLogs").await.status;
    check("endless body", &status, Code::DeadlineExceeded, "REQUEST_TIMEOUT");
    caller.logs("endless body", vec![]).await;
}

#[tokio::test(start_paused = true)]
async fn largest_requests_are_served() {
    let mut caller = Caller::new().await;
    let mut request = caller.scenario.request();
    request.filters = vec![filter("api", &[0]); FILTERS_MAX];
    request.filters[0].replicas = vec![0; FILTER_REPLICAS_MAX - FILTERS_MAX + 1];
    let mut bytes = request.encode_to_vec();
    // Padding: a field that does not exist yet.
    let padding = REQUEST_MAX_BYTES - bytes.len() - 5;
    bytes.extend([0xfa, 0x3f]);
    prost::encoding::encode_varint(padding as u64, &mut bytes);
    bytes.resize(REQUEST_MAX_BYTES, 0);
    let answer = caller.raw.call("ServiceLogs", framed(&bytes)).await;
    assert_eq!(answer.status.code(), Code::Ok, "{:?}", answer.status);
    assert_eq!(text(&answer.body), PRINTED);
}

#[tokio::test(start_paused = true)]
async fn absent_item_is_named() {
    let mut caller = Caller::new().await;
    let mut request = caller.scenario.request();
    request.filters = vec![filter("web", &[0]), filter("nope", &[])];
    let status = caller.logs("service", encoded(&request)).await;
    check("service", &status, Code::NotFound, "SERVICE_NOT_FOUND");
    assert!(status.message().contains("nope"), "{status:?}");

    let mut request = caller.scenario.request();
    request.filter = Some(filter("web", &[1, 2]));
    let status = caller.logs("replica", encoded(&request)).await;
    check("replica", &status, Code::NotFound, "REPLICA_NOT_FOUND");
    assert!(status.message().contains("service web has no replica 2"), "{status:?}");

    let mut request = caller.scenario.request();
    request.previous = true;
    let status = caller.logs("previous", encoded(&request)).await;
    check("previous", &status, Code::NotFound, "PREVIOUS_NOT_FOUND");

    let mut request = caller.scenario.request();
    request.lease_id.as_mut().unwrap().dseq += 1;
    let status = caller.logs("lease", encoded(&request)).await;
    check("lease", &status, Code::NotFound, "LEASE_NOT_FOUND");
}

#[tokio::test(start_paused = true)]
async fn replicas_over_stream_limit_exceed_quota() {
    let count = u32::try_from(STREAM_REPLICAS_MAX).unwrap() + 1;
    let scenario = Setup::new(Limits::default(), &[("web", count)]);
    let status = scenario.open(scenario.request()).await.err().unwrap();
    check("replicas", &status, Code::ResourceExhausted, "QUOTA_USED_UP");
    let quota = status.get_details_quota_failure().unwrap();
    let [violation] = &quota.violations[..] else { panic!("{quota:?}") };
    assert_eq!((&*violation.subject, &*violation.quota_id), ("stream", "replicas_per_stream"));
    assert_eq!(violation.description, status.message());
    assert!(status.message().contains(&STREAM_REPLICAS_MAX.to_string()));
    assert!(status.get_details_retry_info().is_none(), "waiting does not help");
}

#[tokio::test(start_paused = true)]
async fn operator_bounds_replicas_and_filters_of_request() {
    let mut limits = Limits::default();
    (limits.quota.replicas_per_request, limits.quota.filters_per_request) = (3, 2);
    let scenario = Setup::new(limits, &[("web", 4), ("api", 2)]);
    let filters = |several: &[&str]| several.iter().map(|name| filter(name, &[])).collect::<Vec<_>>();
    let mut client = scenario.gateway.client(&scenario.certificate).await;
    for (several, code) in [
        (filters(&["web"]), Code::ResourceExhausted),
        (filters(&["api", "api", "api"]), Code::InvalidArgument),
        (filters(&["api", "api"]), Code::Ok),
    ] {
        let lease_id = scenario.request().lease_id;
        let logs =
            ServiceLogsRequest { lease_id: lease_id.clone(), filters: several.clone(), ..Default::default() };
        let status = ServiceStatusRequest {
            lease_id: lease_id.clone(),
            filters: several.clone(),
            ..Default::default()
        };
        let restart = ServiceRestartRequest { lease_id, filters: several, ..Default::default() };
        let responses = [
            client.service_logs(logs).await.err(),
            client.service_status(status).await.err(),
            client.service_restart(restart).await.err(),
        ];
        assert_eq!(responses.map(|error| error.map_or(Code::Ok, |status| status.code())), [code; 3]);
    }
}

#[tokio::test(start_paused = true)]
async fn other_methods_validate_like_service_logs() {
    let mut caller = Caller::new().await;
    let lease_id = caller.scenario.request().lease_id;
    let wrong = Some(LeaseId { dseq: 0, ..lease_id.clone().unwrap() });
    let bodies = |lease_id: Option<LeaseId>| {
        let status = ServiceStatusRequest { lease_id: lease_id.clone(), ..ServiceStatusRequest::default() };
        let restart = ServiceRestartRequest { lease_id, ..ServiceRestartRequest::default() };
        [("ServiceStatus", encoded(&status)), ("ServiceRestart", encoded(&restart))]
    };
    for (lease_id, field) in [(None, "lease_id"), (wrong, "lease_id.dseq")] {
        for (method, body) in bodies(lease_id) {
            check_invalid(method, &caller.raw.call(method, body).await.status, field);
        }
    }
    for (method, body) in bodies(lease_id) {
        let status = caller.raw.call(method, body).await.status;
        assert_eq!(status.code(), Code::Ok, "{method}: {status:?}");
        let status = caller.raw.call(method, vec![1]).await.status;
        check_invalid(method, &status, "");
    }
}

#[tokio::test(start_paused = true)]
async fn invalid_http2_closes_only_its_connection() {
    let mut caller = Caller::new().await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let cases: [(&str, &[u8]); 5] = [
        ("HTTP/1.1", b"GET / HTTP/1.1\r\nhost: gateway\r\n\r\n"),
        ("garbage", &[0xff; 1_000]),
        ("no settings", &[&preface[..], &[0, 0, 0, 0, 0, 0, 0, 0, 0]].concat()),
        (
            "a frame of 16 MiB",
            &[&preface[..], &[0, 0, 0, 4, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]].concat(),
        ),
        (
            "invalid headers",
            &[&preface[..], &[0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 2, 1, 5, 0, 0, 0, 1, 0xff, 0xff]].concat(),
        ),
    ];
    for (case, bytes) in cases {
        let mut pipe = caller.scenario.gateway.connect(Some(caller.scenario.certificate.clone()));
        pipe.write_all(bytes).await.unwrap();
        let (mut response, sent) = (Vec::new(), tokio::time::Instant::now());
        pipe.read_to_end(&mut response).await.unwrap();
        assert!(sent.elapsed() < std::time::Duration::from_secs(1), "{case}: not at once");
        assert!(response.len() < 200, "{case}: {response:?}");
        caller.logs(case, vec![]).await;
    }
    // A connection that closes during a request leaves no state behind.
    let mut raw = Raw::new(caller.scenario.gateway.connect(Some(caller.scenario.certificate.clone()))).await;
    let incomplete =
        tokio::time::timeout(std::time::Duration::from_secs(1), raw.call_without_end("ServiceLogs"));
    assert!(incomplete.await.is_err());
    drop(raw);
    caller.scenario.gateway.eventually(|gateway| gateway.metric("leasemux_connections") == 1).await;
}

#[tokio::test(start_paused = true)]
async fn gzip_request_is_served_and_other_encoding_rejected() {
    let scenario = Setup::new(Limits::default(), &[("web", 1)]);
    let run = scenario.gateway.platform.start(&scenario.lease, &replica("web", 0));
    scenario.gateway.platform.print(&run, ["a line\n"]);
    let mut raw = Raw::new(scenario.gateway.connect(Some(scenario.certificate.clone()))).await;
    let compressed = |message: &[u8]| {
        let mut gz = GzEncoder::new(Vec::new(), Compression::default());
        gz.write_all(message).unwrap();
        let mut body = framed(&gz.finish().unwrap());
        body[0] = 1;
        body
    };
    let message = scenario.request().encode_to_vec();
    for method in ["ServiceLogs", "ServiceStatus", "ServiceRestart"] {
        let plain = raw.call(method, framed(&message)).await;
        assert_eq!(plain.status.code(), Code::Ok, "{method}: {:?}", plain.status);
        let (_, answer) = raw.call_encoded(method, "gzip", compressed(&message)).await;
        assert_eq!(answer.status.code(), Code::Ok, "{method}: {:?}", answer.status);
        assert_eq!(answer.body.len(), plain.body.len(), "{method}");
        let (_, bomb) = raw.call_encoded(method, "gzip", compressed(&vec![0; 100 * REQUEST_MAX_BYTES])).await;
        check_invalid(method, &bomb.status, "");
        let (headers, answer) = raw.call_encoded(method, "zstd", compressed(&message)).await;
        check(method, &answer.status, Code::Unimplemented, "NOT_OFFERED");
        assert_eq!(headers["grpc-accept-encoding"], "identity,gzip", "{method}");
    }
}
