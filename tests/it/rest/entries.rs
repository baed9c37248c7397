//! Websockets with `format=entries`: the entries of gRPC as objects.

use leasemux::access::grants::{Access, TokenScope};
use leasemux::model::id::Instance;
use leasemux::model::limits::{Limits, QuotaLimits};
use leasemux::model::line::OutputStream;
use leasemux::model::proto::lease::replica_event::Kind;
use leasemux::model::proto::lease::source_state::State;
use leasemux::model::proto::lease::{Cursor, ServiceLogs, ServiceLogsRequest, ServiceLogsResponse};
use serde_json::{Value, json};
use tokio::io::DuplexStream;
use tonic::Streaming;

use super::{Rest, numbered};
use crate::support::entries::entry;
use crate::support::loss_check::Received;
use crate::support::replica;
use crate::support::rest::WsFollower;

/// Lines of a flood that a small ring does not hold.
const FLOOD: u32 = 20_000;

/// Limits with a ring of a few entries.
fn small_ring() -> Limits {
    Limits { ring_max_bytes: 64 * 1024, ..Limits::default() }
}

/// A follower by gRPC.
async fn by_grpc(rest: &Rest, request: ServiceLogsRequest) -> Streaming<ServiceLogsResponse> {
    let mut client = rest.gateway.client_with_token(&rest.token(Access::Full)).await;
    let request = ServiceLogsRequest { lease_id: Some((&rest.lease).into()), ..request };
    client.service_logs(request).await.unwrap().into_inner()
}

/// Returns the entries without what differs between two followers: times at which events are made.
fn comparable(entries: impl IntoIterator<Item = ServiceLogs>) -> Vec<ServiceLogs> {
    let clear = |mut entry: ServiceLogs| {
        if let Some(event) = &mut entry.event {
            event.time = None;
        }
        if entry.gap.is_some() {
            entry.logs.clear();
        }
        entry
    };
    entries.into_iter().map(clear).collect()
}

/// Returns the parameters that resume a stream.
fn query_of(received: &Received) -> String {
    let cursor = |cursor: &Cursor| {
        let time = cursor.time.map(|time| format!("{}.{:09}", time.seconds, time.nanos)).unwrap_or_default();
        let Cursor { service, replica, instance, ordinal, offset, .. } = cursor;
        format!("&resume={service}:{replica}:{instance}:{time}:{ordinal}:{offset}")
    };
    received.cursors.values().map(cursor).collect()
}

/// Prints a flood, which only `quick` keeps up with.
async fn flood(rest: &Rest, run: &Instance, quick: &mut WsFollower<DuplexStream>) {
    let before = quick.received.lines("web", 0);
    for step in (0..FLOOD).step_by(100) {
        let printed = u32::try_from(before).unwrap() + step;
        rest.platform().print(run, numbered(printed + 1..=printed + 100));
        let wanted = printed as usize + 100;
        quick.until("all lines", |stream| stream.received.lines("web", 0) == wanted).await;
    }
}

#[tokio::test(start_paused = true)]
async fn entries_are_those_of_grpc() {
    let (rest, first) = Rest::one_run(Limits::default());
    let (platform, web) = (rest.platform().clone(), replica("web", 0));
    platform.print(&first, ["one \u{1b}[31mred\u{1b}[0m \"<b>\" \u{2028}\r\n", "two\n", "\n"]);
    platform.print_piece(&first, OutputStream::Stdout, "50 % ");
    platform.print_piece(&first, OutputStream::Stderr, "a warning\n");
    platform.print_piece(&first, OutputStream::Stdout, "done\n");
    platform.lose(&first, 7);
    platform.print(&first, [format!("{}\n", "long ".repeat(9_000)), "last\n".to_owned()]);
    platform.end(&rest.lease, &web, 137);
    let second = platform.start(&rest.lease, &web);
    platform.print(&second, numbered(1..=5_000));

    let request = ServiceLogsRequest { timestamps: true, ..ServiceLogsRequest::default() };
    let mut grpc = by_grpc(&rest, request.clone()).await;
    let mut expected = Vec::new();
    while let Some(response) = grpc.message().await.unwrap() {
        expected.extend(response.services);
    }
    let mut stream = rest.open("logs?format=entries").await;
    assert_eq!(stream.end().await, (1000, String::new()));
    let entries = stream.frames.iter().map(|object| entry(object, true));
    assert_eq!(comparable(entries), comparable(expected.clone()));
    for kind in [
        (|entry| entry.gap.is_some()) as fn(&ServiceLogs) -> bool,
        |entry| entry.event.is_some(),
        |entry| entry.part.is_some_and(|part| part.continues && !part.more),
    ] {
        assert!(expected.iter().any(kind), "the test has every kind of entry");
    }

    // Live, with a crash. Both begin at the same position.
    let mut stream = rest.open("logs?format=entries&follow=true&tail=0").await;
    let mut grpc = by_grpc(&rest, ServiceLogsRequest { follow: true, tail_lines: Some(0), ..request }).await;
    let mut expected = grpc.message().await.unwrap().unwrap().services;
    stream.until("the position", |stream| !stream.frames.is_empty()).await;
    platform.print(&second, numbered(5_001..=5_100));
    platform.print_piece(&second, OutputStream::Stderr, "unfinished");
    stream.until("the piece", |stream| stream.last().get("part").is_some()).await;
    platform.end(&rest.lease, &web, 1);
    let third = platform.start(&rest.lease, &web);
    platform.print(&third, ["the end\n"]);
    stream.until("the end", |stream| stream.received.ends_with("web", 0, "the end\n")).await;
    while !expected.last().is_some_and(|entry| entry.logs.ends_with(b"the end\n")) {
        expected.extend(grpc.message().await.unwrap().unwrap().services);
    }
    let entries = stream.frames.iter().map(|object| entry(object, true));
    assert_eq!(comparable(entries), comparable(expected));
    assert_eq!(stream.received.events("web", 0), [Kind::Ended, Kind::Started]);
}

#[tokio::test(start_paused = true)]
async fn bytes_that_are_not_utf8_are_replaced() {
    let (rest, run) = Rest::one_run(Limits::default());
    rest.platform().print(&run, [&b"a \xff\xfe b \xe2\x82\n"[..]]);
    let mut stream = rest.open("logs?format=entries").await;
    assert_eq!(stream.end().await.0, 1000);
    assert_eq!(stream.frames[0]["lines"][0]["text"], "a \u{fffd}\u{fffd} b \u{fffd}");
}

#[tokio::test(start_paused = true)]
async fn followers_of_entries_share_their_frames() {
    let (rest, run) = Rest::one_run(Limits::default());
    let mut followers = Vec::new();
    for _ in 0..5 {
        let mut stream = rest.open("logs?format=entries&follow=true&tail=0").await;
        stream.until("its position", |stream| !stream.frames.is_empty()).await;
        followers.push(stream);
    }
    rest.platform().print(&run, numbered(1..=1_000));
    for stream in &mut followers {
        stream.until("all lines", |stream| stream.received.lines("web", 0) == 1_000).await;
        assert_eq!(stream.received.assert_complete(rest.platform(), "web", 0, &[(&run, 0)]), 0);
    }
    let chunks = followers[0].frames.len() as u64 - 1;
    // As gRPC and as an object.
    assert_eq!(rest.gateway.metric("leasemux_frames_encoded_total"), 2 * chunks);
    assert_eq!(rest.platform().follows(), 1);
}

#[tokio::test(start_paused = true)]
async fn slow_client_of_entries_gets_exact_gap_or_refill() {
    let (rest, run) = Rest::one_run(small_ring());
    let mut slow = rest.open("logs?format=entries&follow=true&tail=0&on_lag=drop").await;
    let mut refilled = rest.open("logs?format=entries&follow=true&tail=0&on_lag=refill").await;
    let mut quick = rest.open("logs?format=entries&follow=true&tail=0").await;
    let mut frames = rest.open("logs?follow=true&tail=0").await;
    for stream in [&mut slow, &mut refilled, &mut quick] {
        stream.until("its position", |stream| !stream.frames.is_empty()).await;
    }
    assert_eq!(frames.next_if_ready().await, None);
    flood(&rest, &run, &mut quick).await;
    rest.platform().print(&run, ["20001 the end\n"]);
    for stream in [&mut slow, &mut refilled, &mut frames] {
        stream.until("the end", |stream| stream.received.ends_with("web", 0, "the end\n")).await;
    }
    let lost = |stream: &WsFollower<_>| {
        stream.received.judge.0.verdict().unwrap();
        stream.received.assert_complete(rest.platform(), "web", 0, &[(&run, 0)])
    };
    assert_eq!((lost(&quick), lost(&refilled)), (0, 0));
    assert!(lost(&slow) > 0 && lost(&frames) > 0);
    let gap = slow.frames.iter().find(|object| object["gap"].is_object()).unwrap();
    assert_eq!(
        (&gap["gap"]["cause"], &gap["gap"]["exact"], gap.get("lines")),
        (&json!("lag"), &json!(true), None)
    );
    assert!(refilled.frames.iter().all(|object| object["gap"].is_null()));
    assert!(frames.frames.iter().all(|object| object["message"].is_string()), "other clients see no change");
    assert!(rest.gateway.metric("leasemux_ring_bytes") <= 64 * 1024);
}

#[tokio::test(start_paused = true)]
async fn closed_stream_of_entries_resumes_without_loss() {
    let (rest, run) = Rest::one_run(small_ring());
    let mut slow = rest.open("logs?format=entries&follow=true&tail=0&on_lag=close").await;
    let mut quick = rest.open("logs?format=entries&follow=true&tail=0").await;
    for stream in [&mut slow, &mut quick] {
        stream.until("its position", |stream| !stream.frames.is_empty()).await;
    }
    flood(&rest, &run, &mut quick).await;
    assert_eq!(slow.end().await, (4000, "follower lagged".to_owned()));
    let end = &slow.last()["end"];
    assert_eq!((&end["reason"], end["retry_after_ms"].is_u64()), (&json!("FOLLOWER_LAGGED"), true), "{end}");
    let mut resumed =
        rest.open(&format!("logs?format=entries&follow=true{}", query_of(&slow.received))).await;
    resumed.received = slow.received;
    resumed.until("all lines", |stream| stream.received.lines("web", 0) == FLOOD as usize).await;
    assert_eq!(resumed.received.assert_complete(rest.platform(), "web", 0, &[(&run, 0)]), 0);

    // A gateway that shuts down sends cursors.
    rest.gateway.drain.begin();
    assert_eq!(resumed.end().await, (1001, String::new()));
    let end = &resumed.last()["end"];
    assert!(end["reason"] == "DRAINING" && end["retry_after_ms"].as_u64().unwrap() >= 1_000, "{end}");
    let cursors = &resumed.frames[resumed.frames.len() - 2];
    assert!(cursors["cursor"].is_string() && cursors.get("lines").is_none(), "{cursors}");
}

#[tokio::test(start_paused = true)]
async fn silent_replica_has_heartbeats() {
    let (rest, run) = Rest::one_run(Limits::default());
    rest.platform().print(&run, ["1 only\n"]);
    let mut stream = rest.open("logs?format=entries&follow=true&heartbeat=2").await;
    stream.until("heartbeats", |stream| stream.received.sources("web", 0).len() == 3).await;
    assert_eq!(stream.received.last_source("web", 0), Some((State::Live, "")));
    assert_eq!(stream.received.lines("web", 0), 1);
    let nothing = Rest::new(Limits::default(), &[("web", 0)]);
    let mut stream = nothing.open("logs?format=entries&follow=true&heartbeat=2&notices=none").await;
    stream.until("a heartbeat", |stream| stream.frames.len() == 2).await;
    assert_eq!(stream.frames[0]["event"]["reason"], "NothingDeployed");
    assert_eq!(
        (&stream.frames[1]["service"], &stream.frames[1]["source"]["state"]),
        (&json!(""), &json!("waiting"))
    );
}

#[tokio::test(start_paused = true)]
async fn replica_time_and_previous_run_are_selected() {
    let rest = Rest::new(Limits::default(), &[("web", 2)]);
    let run = rest.platform().start(&rest.lease, &replica("web", 0));
    rest.platform().print_at(&run, 1_000_000_000, "old\n");
    rest.platform().print_at(&run, 5_000_000_000, "new\n");
    let other = rest.platform().start(&rest.lease, &replica("web", 1));
    rest.platform().print(&other, ["other\n"]);
    let texts = async |query: &str| {
        let mut stream = rest.open(&format!("logs?format=entries&{query}")).await;
        assert_eq!(stream.end().await.0, 1000, "{:?}", stream.frames.last());
        let lines =
            stream.frames.iter().flat_map(|object| object["lines"].as_array().cloned().unwrap_or_default());
        lines.map(|line| line["text"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(texts("service=web&replica=0").await, ["old", "new"]);
    assert_eq!(texts("service=web&replica=1&replica=1").await, ["other"]);
    assert_eq!(texts("service=web&replica=0&since=1970-01-01T00:00:02Z").await, ["new"]);
    assert_eq!(texts("service=web&replica=0&tail=1").await, ["new"]);
    rest.platform().end(&rest.lease, &replica("web", 0), 1);
    let second = rest.platform().start(&rest.lease, &replica("web", 0));
    rest.platform().print(&second, ["second\n"]);
    assert_eq!(texts("previous=true").await, ["old", "new"]);
}

#[tokio::test(start_paused = true)]
async fn failed_request_for_entries_has_the_reason_of_grpc() {
    let rest = Rest::new(Limits::default(), &[("web", 1), ("db", 1)]);
    let run = rest.platform().start(&rest.lease, &replica("web", 0));
    rest.platform().print(&run, ["1\n"]);
    let end = |stream: &WsFollower<_>| -> Value { stream.last()["end"].clone() };
    for (query, code, reason) in [
        ("service=none&follow=true", (4000, "service not found"), "SERVICE_NOT_FOUND"),
        ("service=web&replica=3", (4000, "service not found"), "REPLICA_NOT_FOUND"),
        ("previous=true", (4000, ""), "PREVIOUS_NOT_FOUND"),
    ] {
        let mut stream = rest.open(&format!("logs?format=entries&{query}")).await;
        assert_eq!(stream.end().await, (code.0, code.1.to_owned()), "{query}");
        let end = end(&stream);
        assert!(end["reason"] == reason && end.get("retry_after_ms").is_none(), "{query}: {end}");
    }
    let bearer = format!("Bearer {}", rest.token(Access::Full));
    let path = "/lease/9/1/1/logs?format=entries";
    let mut none = WsFollower::open(rest.connect(), path, &[("authorization", &bearer)]).await;
    assert_eq!(none.end().await, (4001, "lease not found".to_owned()));
    assert_eq!(end(&none)["reason"], "LEASE_NOT_FOUND");
    let failing = QuotaLimits { replicas_per_request: 1, ..QuotaLimits::default() };
    let limited = Rest::new(Limits { quota: failing, ..Limits::default() }, &[("web", 2)]);
    let mut stream = limited.open("logs?format=entries&service=web").await;
    assert_eq!(stream.end().await, (4000, "replicas_per_stream".to_owned()));
    assert_eq!(end(&stream)["reason"], "QUOTA_USED_UP");

    // Before the upgrade.
    for (query, text) in [
        ("heartbeat=0", "parameter \"heartbeat\""),
        ("resume=web", "parameter \"resume\" must be a cursor"),
        ("resume=web:0:u/web/0::0:0&tail=1", "parameter \"resume\" and tail"),
        ("resume=web:0:u/web/0::0:0&resume=web:0:u/web/0::0:0", "has more than one cursor"),
        ("resume=web:0:u/web/0::0:0&service=db", "is not selected by the filter"),
        ("previous=true&follow=true", "parameter \"previous\""),
        ("on_lag=drop", "parameter \"on_lag\""),
    ] {
        let answer = rest.get(&format!("/lease/7/1/1/logs?format=entries&{query}")).await;
        assert!(answer.is_text(400).contains(text), "{query}: {answer:?}");
    }
    let looks = rest.platform().looks();
    let db = format!("Authorization: Bearer {}\r\n", rest.granular(&[TokenScope::Logs], &["db"]));
    for query in ["service=web", "resume=web:0:u/web/0::0:0"] {
        let path = format!("/lease/7/1/1/logs?format=entries&{query}");
        rest.send("GET", &path, &db).await.is_fault(401, "unauthorized access");
    }
    assert_eq!(rest.platform().looks(), looks, "authorisation precedes lookup");
    // A granted service only.
    let own = rest.platform().start(&rest.lease, &replica("db", 0));
    rest.platform().print(&own, ["of db\n"]);
    let mut granted =
        rest.open_with("logs?format=entries", &rest.granular(&[TokenScope::Logs], &["db"])).await;
    assert_eq!(granted.end().await.0, 1000);
    assert_eq!((granted.received.lines("db", 0), granted.received.lines("web", 0)), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn other_formats_are_the_frames_of_the_provider() {
    let (rest, run) = Rest::one_run(Limits::default());
    rest.platform().print(&run, ["1\n"]);
    for query in ["format=lines", "format=", "format=lines&format=entries", "resume=x&heartbeat=x&since=x"] {
        let mut stream = rest.open(&format!("logs?{query}")).await;
        assert_eq!(stream.end().await, (1000, String::new()));
        let line = json!({"name": "web-0", "message": "1", "service": "web", "replica": 0});
        assert_eq!(stream.frames, [line], "{query}");
    }
}
