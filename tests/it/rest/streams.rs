//! Websockets of logs and events: frames, parameters, notices and slow clients.

use leasemux::access::grants::TokenScope;
use leasemux::logs::notice::Notices;
use leasemux::model::limits::{Limits, QuotaLimits};
use leasemux::model::proto::lease::ServiceLogsRequest;
use leasemux::model::proto::lease::replica_event::Kind;
use serde_json::json;
use std::time::Duration;

use super::{Rest, numbered, open_by_certificate};
use crate::support::gateway::Setup;
use crate::support::loss_check::Seen;
use crate::support::replica;
use crate::support::rest::WsFollower;

/// Limits with a ring of a few entries.
fn small_ring() -> Limits {
    Limits { ring_max_bytes: 64 * 1024, ..Limits::default() }
}

#[tokio::test(start_paused = true)]
async fn each_line_is_one_frame() {
    let (rest, run) = Rest::one_run(Limits::default());
    rest.platform()
        .print(&run, ["1 <a href=\"x\">&\u{2028}\u{7f}\\\n", "2 \u{1b}[31mred\t\r\n", "3\n", "\n"]);
    rest.platform().print(&run, [&b"5 \xff\xfe and \xe2\x82\n"[..]]);
    let mut stream = rest.open("logs").await;
    assert_eq!(stream.end().await, (1000, String::new()));
    let lines = [
        "1 <a href=\"x\">&\u{2028}\u{7f}\\",
        "2 \u{1b}[31mred\t",
        "3",
        "",
        "5 \u{fffd}\u{fffd} and \u{fffd}",
    ];
    assert_eq!(stream.lines(), lines);
    assert_eq!(stream.frames[2], json!({"name": "web-0", "message": "3", "service": "web", "replica": 0}));
    assert!(stream.pings >= 1, "a ping comes at once");
}

#[tokio::test(start_paused = true)]
async fn long_line_is_cut_at_character_boundaries() {
    let (rest, run) = Rest::one_run(Limits::default());
    let long = "\u{20ac}".repeat(100_000);
    let fits = "\u{1}".repeat(64 * 1024);
    rest.platform().print(&run, [format!("{long}\n"), format!("{fits}\n"), "short\n".to_owned()]);
    let mut stream = rest.open("logs").await;
    assert_eq!(stream.end().await.0, 1000);
    let lines = stream.lines();
    assert!(lines.iter().all(|text| text.len() <= 64 * 1024));
    assert_eq!(lines.concat(), format!("{long}{fits}short"));
    let mut unfinished = 0;
    for frame in &stream.frames {
        assert!(frame.get("more").is_none_or(|more| *more == true));
        assert!(serde_json::to_string(frame).unwrap().len() < 1024 * 1024);
        unfinished += usize::from(frame["more"] == true);
    }
    assert_eq!(lines.len() - unfinished, 3);
    assert_eq!(stream.received.assert_complete(rest.platform(), "web", 0, &[(&run, 0)]), 0);
}

#[tokio::test(start_paused = true)]
async fn both_spellings_select_services() {
    let rest = Rest::new(Limits::default(), &[("api", 1), ("db", 1), ("web", 1)]);
    for name in ["api", "db", "web"] {
        let run = rest.platform().start(&rest.lease, &replica(name, 0));
        rest.platform().print(&run, [format!("of {name}\n")]);
    }
    let all = ["of api", "of db", "of web"];
    for (query, expected) in [
        ("", &all[..]),
        ("service=", &all),
        ("services=", &all),
        ("service=web", &all[2..]),
        ("services=web", &all[2..]),
        ("service=web,db", &all[1..]),
        ("services=db%2Cweb", &all[1..]),
        ("service=web&services=db,web,", &all[1..]),
        ("service=db&service=web", &all[1..]),
    ] {
        let mut stream = rest.open(&format!("logs?{query}&follow=false&x=y")).await;
        assert_eq!(stream.end().await.0, 1000);
        let mut lines = stream.lines();
        lines.sort_unstable();
        assert_eq!(lines, expected, "{query}");
    }
    let token = rest.granular(&[TokenScope::Logs], &["db", "No"]);
    let mut granted = rest.open_with("logs", &token).await;
    assert_eq!(granted.end().await.0, 1000);
    assert_eq!(granted.lines(), ["of db"]);
    let mut every = rest.open_with("logs", &rest.granular(&[TokenScope::Logs], &["*"])).await;
    assert_eq!((every.end().await.0, every.lines().len()), (1000, 3));
}

#[tokio::test(start_paused = true)]
async fn tail_selects_the_last_lines() {
    let (rest, run) = Rest::one_run(Limits::default());
    rest.platform().print(&run, numbered(1..=10));
    for (query, count) in
        [("", 10), ("tail=-1", 10), ("tail=10000000", 10), ("tail=3", 3), ("tail=0", 0), ("tail=", 10)]
    {
        let mut stream = rest.open(&format!("logs?follow=0&{query}")).await;
        assert_eq!(stream.end().await, (1000, String::new()));
        assert_eq!(stream.received.lines("web", 0), count, "{query}");
        stream.received.assert_complete(rest.platform(), "web", 0, &[(&run, 10 - count)]);
    }
    let mut stream = rest.open("logs?follow=1&tail=0").await;
    // The position is taken when the stream is polled first: the ping comes before.
    assert_eq!(stream.next_if_ready().await, None);
    rest.platform().print(&run, numbered(11..=20));
    stream.until("lines", |stream| stream.received.lines("web", 0) == 10).await;
    assert_eq!(stream.received.assert_complete(rest.platform(), "web", 0, &[(&run, 10)]), 0);
}

#[tokio::test(start_paused = true)]
async fn follower_passes_crash_restart_and_scaling() {
    let (rest, first) = Rest::one_run(Limits::default());
    let (platform, web) = (rest.platform().clone(), replica("web", 0));
    platform.print(&first, numbered(1..=100));
    let mut all = rest.open("logs?follow=true&service=web").await;
    let mut quiet = rest.open("logs?follow=true&notices=none").await;
    let mut loss = rest.open("logs?follow=true&notices=loss").await;
    all.until("the first lines", |stream| stream.received.lines("web", 0) == 100).await;
    platform.print(&first, ["101 panic\n"]);
    platform.end(&rest.lease, &web, 137);
    all.until("the end", |stream| stream.received.events("web", 0).len() == 2).await;
    let second = platform.start(&rest.lease, &web);
    platform.print(&second, numbered(1..=50));
    all.until("the second run", |stream| stream.received.lines("web", 0) == 151).await;
    assert_eq!(all.received.events("web", 0), [Kind::Ended, Kind::Waiting, Kind::Started]);
    let ended = all.frames.iter().find(|frame| frame["notice"]["kind"] == "ended").unwrap();
    assert_eq!(ended["message"], "[leasemux: replica 0 ended with exit code 137 (Error)]");
    assert_eq!(ended["notice"]["exit_code"], 137);
    assert_eq!(ended["notice"]["instance"], first.as_str());
    for stream in [&mut quiet, &mut loss] {
        stream.until("the second run", |stream| stream.received.lines("web", 0) == 151).await;
        assert_eq!(stream.notices(), [""; 0]);
    }
    // A replica that appears is followed from its first line.
    let third = platform.start(&rest.lease, &replica("web", 1));
    platform.print(&third, numbered(1..=10));
    for stream in [&mut all, &mut quiet, &mut loss] {
        stream.until("the new replica", |stream| stream.received.lines("web", 1) == 10).await;
        let runs = [(&first, 0), (&second, 0)];
        assert_eq!(stream.received.assert_complete(&platform, "web", 0, &runs), 0);
        assert_eq!(stream.received.assert_complete(&platform, "web", 1, &[(&third, 0)]), 0);
    }
    // Notices of starts separate the runs.
    all.received.judge.0.verdict().unwrap();
}

#[tokio::test(start_paused = true)]
async fn slow_client_gets_exact_gap_and_delays_no_other() {
    let (rest, run) = Rest::one_run(small_ring());
    let platform = rest.platform().clone();
    let mut slow = rest.open("logs?follow=true&tail=0").await;
    let mut silent = rest.open("logs?follow=true&tail=0&notices=none").await;
    let mut quick = rest.open("logs?follow=true&tail=0").await;
    let mut grpc = {
        let token = rest.token(leasemux::access::grants::Access::Full);
        let mut client = rest.gateway.client_with_token(&token).await;
        let request = ServiceLogsRequest {
            lease_id: Some((&rest.lease).into()),
            follow: true,
            tail_lines: Some(0),
            ..ServiceLogsRequest::default()
        };
        client.service_logs(request).await.unwrap().into_inner()
    };
    for stream in [&mut slow, &mut silent, &mut quick] {
        assert_eq!(stream.next_if_ready().await, None);
    }
    let mut by_grpc = crate::support::loss_check::Received::default();
    for step in 0..200 {
        platform.print(&run, numbered(100 * step + 1..=100 * (step + 1)));
        let printed = 100 * (step as usize + 1);
        quick.until("all lines", |stream| stream.received.lines("web", 0) == printed).await;
        while by_grpc.lines("web", 0) < printed {
            by_grpc.take(grpc.message().await.unwrap().unwrap());
        }
    }
    platform.print(&run, ["20001 the end\n"]);
    slow.until("the end", |stream| stream.received.ends_with("web", 0, "the end\n")).await;
    assert_eq!(quick.received.assert_complete(&platform, "web", 0, &[(&run, 0)]), 0);
    assert_eq!(by_grpc.assert_complete(&platform, "web", 0, &[(&run, 0)]), 0);
    let lost = slow.received.assert_complete(&platform, "web", 0, &[(&run, 0)]);
    assert!(lost > 0);
    slow.received.judge.0.verdict().unwrap();
    let gap = slow.frames.iter().find(|frame| frame["notice"]["kind"] == "gap").unwrap();
    assert_eq!((&gap["notice"]["cause"], &gap["notice"]["exact"]), (&json!("lag"), &json!(true)));
    let text = gap["message"].as_str().unwrap();
    assert!(
        text.starts_with("[leasemux: ") && text.ends_with(" missing here: the follower fell behind]"),
        "{text}"
    );

    // Without notices, the reason of the close frame reports the loss.
    platform.print(&run, ["20002 last\n"]);
    silent.until("the last line", |stream| stream.received.ends_with("web", 0, "last\n")).await;
    assert_eq!(silent.notices(), [""; 0]);
    let missing = 20_002 - silent.received.lines("web", 0);
    rest.gateway.drain.begin();
    assert_eq!(silent.end().await, (1001, format!("{missing} lines were missing")));
    let counted = rest.gateway.metric("leasemux_lines_lost_total{cause=\"lag\"}");
    assert_eq!(counted, lost + missing as u64);
    // All three websockets share the encoded frames and the tail.
    assert_eq!(platform.follows(), 1);
    assert!(rest.gateway.metric("leasemux_ring_bytes") <= 64 * 1024);
}

#[tokio::test(start_paused = true)]
async fn slow_client_is_refilled() {
    const FLOOD: u32 = 20_000;
    let (rest, run) = Rest::one_run(small_ring());
    let platform = rest.platform().clone();
    let mut slow = rest.open("logs?follow=true&tail=0&on_lag=refill").await;
    let mut silent = rest.open("logs?follow=true&tail=0&on_lag=refill&notices=none").await;
    let mut quick = rest.open("logs?follow=true&tail=0").await;
    for stream in [&mut slow, &mut silent, &mut quick] {
        assert_eq!(stream.next_if_ready().await, None);
    }
    let flood = async |quick: &mut WsFollower<_>, first: u32| {
        let before = quick.received.lines("web", 0);
        for printed in (0..FLOOD).step_by(100) {
            platform.print(&run, numbered(first + printed..=first + printed + 99));
            let printed = before + printed as usize + 100;
            quick.until("all lines", |stream| stream.received.lines("web", 0) == printed).await;
        }
    };
    flood(&mut quick, 1).await;
    let count = |stream: &WsFollower<_>| stream.received.lines("web", 0);
    slow.until("all lines", |stream| count(stream) == FLOOD as usize).await;
    silent.until("all lines", |stream| count(stream) == FLOOD as usize).await;
    let refills = || rest.gateway.metric("leasemux_refills_total{lag=\"first\"}");
    assert_eq!(refills(), 2);
    for stream in [&slow, &silent, &quick] {
        assert_eq!(stream.received.assert_complete(&platform, "web", 0, &[(&run, 0)]), 0);
        assert_eq!(stream.notices(), [""; 0]);
    }
    // A loss of the source within the refilled lines is the only gap.
    tokio::time::sleep(Duration::from_secs(11)).await;
    platform.lose(&run, 7);
    quick.until("the loss", |stream| stream.received.missing("web", 0) == 7).await;
    flood(&mut quick, FLOOD + 8).await;
    platform.print(&run, [format!("{} the end\n", 2 * FLOOD + 8)]);
    for stream in [&mut slow, &mut silent] {
        stream.until("the end", |stream| stream.received.ends_with("web", 0, "the end\n")).await;
        assert_eq!(count(stream), 2 * FLOOD as usize + 1);
    }
    assert_eq!(slow.received.assert_complete(&platform, "web", 0, &[(&run, 0)]), 7);
    let tally = slow.received.judge.0.verdict().unwrap();
    assert_eq!((tally.lines, tally.lost_lines, tally.gaps), (2 * u64::from(FLOOD) + 1, 7, 1));
    assert_eq!((slow.notices(), silent.notices()), (vec!["gap"], vec![]));
    assert_eq!(refills(), 4);
    assert_eq!(rest.gateway.metric("leasemux_lines_lost_total{cause=\"lag\"}"), 0);
    rest.gateway.drain.begin();
    assert_eq!(silent.end().await, (1001, "7 lines were missing".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn close_on_lag_ends_with_its_reason() {
    let (rest, run) = Rest::one_run(small_ring());
    let mut slow = rest.open("logs?follow=true&tail=0&on_lag=close").await;
    assert_eq!(slow.next_if_ready().await, None);
    let mut quick = rest.open("logs?follow=true").await;
    for step in 0..100 {
        rest.platform().print(&run, numbered(100 * step + 1..=100 * (step + 1)));
        let printed = 100 * (step as usize + 1);
        quick.until("all lines", |stream| stream.received.lines("web", 0) == printed).await;
    }
    assert_eq!(slow.end().await, (4000, "follower lagged".to_owned()));
    assert_eq!(slow.last()["notice"], json!({"kind": "end", "reason": "FOLLOWER_LAGGED"}));
    assert_eq!(quick.received.assert_complete(rest.platform(), "web", 0, &[(&run, 0)]), 0);
}

#[tokio::test(start_paused = true)]
async fn stalled_client_is_cut_and_counted() {
    let (rest, run) = Rest::one_run(Limits { stall: Duration::from_secs(60), ..small_ring() });
    let slow = rest.open("logs?follow=true&tail=0").await;
    let mut quick = rest.open("logs?follow=true").await;
    for step in 0..40 {
        rest.platform().print(&run, numbered(100 * step + 1..=100 * (step + 1)));
        let printed = 100 * (step as usize + 1);
        quick.until("all lines", |stream| stream.received.lines("web", 0) == printed).await;
    }
    let ended = |end: &str| format!("leasemux_ws_streams_ended_total{{kind=\"logs\",end=\"{end}\"}}");
    // It answers no pings either, so it may count as silent first.
    let minutes = async {
        while rest.gateway.metric("leasemux_ws_streams{kind=\"logs\"}") > 1 {
            rest.platform().print(&run, ["more\n"]);
            let _ = quick.next().await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(200), minutes).await.expect("the stalled client is cut");
    assert_eq!(rest.gateway.metric(&ended("silent")) + rest.gateway.metric(&ended("stalled")), 1);
    assert_eq!(quick.received.assert_complete(rest.platform(), "web", 0, &[(&run, 0)]), 0);
    drop(slow);
}

#[tokio::test(start_paused = true)]
async fn pings_come_every_five_seconds_even_while_data_flows() {
    let (rest, run) = Rest::one_run(Limits::default());
    let mut busy = rest.open("logs?follow=true").await;
    let mut idle = rest.open("kubeevents?follow=true").await;
    for second in 1..=60 {
        rest.platform().print(&run, numbered(second..=second));
        busy.until("the line", |stream| stream.received.lines("web", 0) == second as usize).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        while idle.next_if_ready().await.is_some() {}
    }
    assert!(
        (12..=15).contains(&busy.pings) && (12..=15).contains(&idle.pings),
        "{} {}",
        busy.pings,
        idle.pings
    );
}

#[tokio::test(start_paused = true)]
async fn stream_that_waits_says_so() {
    let quota =
        QuotaLimits { history_reads: 1, history_wait: Duration::from_secs(30), ..QuotaLimits::default() };
    let setup = Setup::new(Limits { quota, ..Limits::default() }, &[("web", 1)]);
    let run = setup.gateway.platform.start(&setup.lease, &replica("web", 0));
    setup.gateway.platform.print(&run, numbered(1..=5_000));
    // A backfill that is not read keeps the only permit.
    let holder = setup.open(setup.request()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(10)).await;
    for (query, waits) in [("follow=false", 2..=3), ("follow=true&tail=10", 1..=1)] {
        let began = tokio::time::Instant::now();
        let mut stream = open_by_certificate(&setup, query).await;
        assert!(stream.next().await);
        assert_eq!(stream.last()["message"], "[leasemux: waiting for a backfill slot]");
        assert!(began.elapsed() <= Duration::from_secs(2), "{query}: {:?}", began.elapsed());
        let _ = tokio::time::timeout(Duration::from_secs(5), stream.until("never", |_| false)).await;
        assert!(waits.contains(&stream.notices().len()), "{query}: {:?}", stream.notices());
    }
    drop(holder);
    let mut stream = open_by_certificate(&setup, "follow=false").await;
    assert_eq!(stream.end().await.0, 1000);
    assert_eq!(stream.received.assert_complete(&setup.gateway.platform, "web", 0, &[(&run, 0)]), 0);
}

#[tokio::test(start_paused = true)]
async fn stream_that_waits_in_vain_is_rejected_and_counted() {
    let quota =
        QuotaLimits { history_reads: 1, history_wait: Duration::from_secs(5), ..QuotaLimits::default() };
    let setup = Setup::new(Limits { quota, ..Limits::default() }, &[("web", 1)]);
    let run = setup.gateway.platform.start(&setup.lease, &replica("web", 0));
    setup.gateway.platform.print(&run, numbered(1..=5_000));
    // A backfill that is not read keeps the only permit.
    let holder = setup.open(setup.request()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(10)).await;
    let mut stream = open_by_certificate(&setup, "follow=false").await;
    assert_eq!(stream.end().await, (4000, "history_reads_per_owner".to_owned()));
    assert_eq!(stream.last()["notice"], json!({"kind": "end", "reason": "QUOTA_USED_UP"}));
    let rejections = "leasemux_quota_refusals_total{quota=\"history_reads_per_owner\"}";
    assert_eq!(setup.gateway.metric(rejections), 1);
    drop(holder);
}

#[tokio::test(start_paused = true)]
async fn losses_of_the_source_are_notices() {
    let (rest, run) = Rest::one_run(Limits::default());
    rest.platform().print(&run, numbered(1..=10));
    rest.platform().lose(&run, 7);
    rest.platform().print(&run, numbered(18..=20));
    for query in ["logs", "logs?notices=loss"] {
        let mut stream = rest.open(query).await;
        assert_eq!(stream.end().await, (1000, String::new()));
        assert_eq!(stream.received.assert_complete(rest.platform(), "web", 0, &[(&run, 0)]), 7);
        assert!(stream.received.of("web", 0).contains(&Seen::Gap(7, 70, true)));
    }
    let mut none = rest.open("logs?notices=none").await;
    assert_eq!(none.end().await, (1000, "7 lines were missing".to_owned()));
    // A request without the parameter gets the notices of the server's setting.
    let mut rest = rest;
    rest.settings.notices = Notices::None;
    let mut none = rest.open("logs").await;
    assert_eq!(none.end().await, (1000, "7 lines were missing".to_owned()));
    assert_eq!(rest.open("logs?notices=all").await.end().await, (1000, String::new()));
}

#[tokio::test(start_paused = true)]
async fn events_have_the_shape_of_kubernetes() {
    let rest = Rest::new(Limits::default(), &[("api", 1), ("web", 1)]);
    let (platform, web) = (rest.platform(), replica("web", 0));
    platform.start(&rest.lease, &replica("api", 0));
    platform.start(&rest.lease, &web);
    platform.end(&rest.lease, &web, 137);
    let mut past = rest.open("kubeevents?follow=false").await;
    assert_eq!(past.end().await, (1000, String::new()));
    let mut live = rest.open("kubeevents?follow=true&service=web").await;
    live.until("the past", |stream| stream.frames.iter().any(|frame| frame["reason"] == "Ended")).await;
    platform.start(&rest.lease, &web);
    let before = live.frames.len();
    live.until("the new run", |stream| {
        stream.frames[before..].iter().any(|frame| frame["reason"] == "Started")
    })
    .await;
    for event in past.frames.iter().chain(&live.frames) {
        for key in ["type", "reason", "note", "service", "reportingController"] {
            assert!(event[key].is_string(), "{key} of {event}");
        }
        for key in ["kind", "namespace", "name"] {
            assert!(event["object"][key].is_string(), "{key} of {event}");
        }
        assert!(event["object"]["name"].as_str().unwrap().starts_with(event["service"].as_str().unwrap()));
    }
    assert!(past.frames.iter().any(|frame| frame["service"] == "api"));
    assert!(live.frames.iter().all(|frame| frame["service"] == "web"));
    let ended = past.frames.iter().find(|frame| frame["reason"] == "Ended").expect("an end");
    assert_eq!(
        (&ended["type"], &ended["note"]),
        (&json!("Warning"), &json!("replica 0 ended with exit code 137"))
    );
}
