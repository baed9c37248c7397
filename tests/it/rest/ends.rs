//! How websockets end: close codes, reasons, and the notice before.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use leasemux::access::grants::Access;
use leasemux::model::limits::{Limits, QuotaLimits};
use leasemux::platform::Error;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use super::{HOUR, Rest, numbered, open_by_certificate};
use crate::contract::tokens::signed_for;
use crate::support::gateway::Setup;
use crate::support::replica;
use crate::support::rest::HANDSHAKE;

/// Returns the number of websockets that ended so.
fn ended(rest: &Rest, end: &str) -> u64 {
    rest.gateway.metric(&format!("leasemux_ws_streams_ended_total{{kind=\"logs\",end=\"{end}\"}}"))
}

#[tokio::test(start_paused = true)]
async fn failed_request_is_notice_and_close_code() {
    let rest = Rest::new(Limits::default(), &[("web", 1), ("idle", 1)]);
    rest.platform().start(&rest.lease, &replica("web", 0));
    for follow in ["false", "true"] {
        let mut none = crate::support::rest::WsFollower::open(
            rest.connect(),
            &format!("/lease/9/1/1/logs?follow={follow}"),
            &[("authorization", &format!("Bearer {}", rest.token(Access::Full)))],
        )
        .await;
        assert_eq!(none.end().await, (4001, "lease not found".to_owned()));
        assert_eq!(none.last()["notice"], json!({"kind": "error", "reason": "LEASE_NOT_FOUND"}));
        assert_eq!(none.last()["name"], "leasemux");
        let mut invalid = rest.open(&format!("logs?follow={follow}&service=Web")).await;
        assert_eq!(invalid.end().await, (4000, "service not found".to_owned()));
        assert_eq!(invalid.last()["message"], "[leasemux: the lease has no service Web]");
    }
    let mut missing = rest.open("logs?services=nope").await;
    assert_eq!(missing.end().await, (4000, "service not found".to_owned()));
    assert_eq!(missing.last()["name"], "nope", "akt drops other names");
    assert_eq!(missing.last()["notice"]["reason"], "SERVICE_NOT_FOUND");
    let mut silent = rest.open("logs?services=nope&notices=none").await;
    assert_eq!(silent.end().await, (4000, "service not found".to_owned()));
    assert!(silent.frames.is_empty());
    assert_eq!(ended(&rest, "error"), 6);
    assert_eq!(ended(&rest, "complete"), 0);
}

#[tokio::test(start_paused = true)]
async fn stream_of_nothing_running_waits_or_fails() {
    let rest = Rest::new(Limits::default(), &[("web", 0)]);
    let mut past = rest.open("logs?service=web").await;
    assert_eq!(past.end().await, (4000, "no running pods".to_owned()));
    assert_eq!(past.last()["notice"]["kind"], "error");
    let mut live = rest.open("logs?service=web&follow=true").await;
    let mut later = rest.open("logs?service=api&follow=true").await;
    for (stream, name) in [(&mut live, "web"), (&mut later, "api")] {
        assert!(stream.next().await);
        assert_eq!(
            (&stream.last()["name"], &stream.last()["notice"]["kind"]),
            (&json!(name), &json!("waiting"))
        );
    }
    let mut runs = Vec::new();
    for name in ["web", "api"] {
        runs.push(rest.platform().start(&rest.lease, &replica(name, 0)));
        rest.platform().print(&runs[runs.len() - 1], numbered(1..=10));
    }
    for (stream, name, run) in [(&mut live, "web", &runs[0]), (&mut later, "api", &runs[1])] {
        stream.until("its lines", |stream| stream.received.lines(name, 0) == 10).await;
        assert_eq!(stream.received.assert_complete(rest.platform(), name, 0, &[(run, 0)]), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn unreachable_cluster_is_4002_and_other_faults_4000() {
    let (rest, _) = Rest::one_run(Limits::default());
    for (error, close) in [
        (
            (|| Error::Unavailable("marker: apiserver not ready".into())) as fn() -> Error,
            (4002, "cluster not reachable"),
        ),
        (|| Error::Broken("marker: generic".into()), (4000, "")),
        (|| Error::NotFound("marker: no deployment for lease".into()), (4001, "lease not found")),
    ] {
        rest.platform().set_watch_error(Some(error));
        let mut logs = rest.open("logs").await;
        assert_eq!(logs.end().await, (close.0, close.1.to_owned()));
        assert!(!format!("{:?}", logs.frames).contains("marker"));
        let mut events = rest.open("kubeevents").await;
        assert_eq!((events.end().await, events.frames.len()), ((close.0, close.1.to_owned()), 0));
    }
}

#[tokio::test(start_paused = true)]
async fn end_of_the_lease_is_reported() {
    let (rest, run) = Rest::one_run(Limits::default());
    rest.platform().print(&run, numbered(1..=10));
    let mut stream = rest.open("logs?follow=true").await;
    let mut events = rest.open("kubeevents?follow=true").await;
    stream.until("its lines", |stream| stream.received.lines("web", 0) == 10).await;
    rest.platform().print(&run, numbered(11..=12));
    rest.platform().end(&rest.lease, &replica("web", 0), 0);
    rest.platform().change(&rest.lease, |view| view.ended = true);
    assert_eq!(stream.end().await, (4001, "lease ended".to_owned()));
    assert_eq!(stream.last()["message"], "[leasemux: the lease has ended]");
    assert_eq!(stream.received.assert_complete(rest.platform(), "web", 0, &[(&run, 0)]), 0);
    assert_eq!(events.end().await, (4001, "lease ended".to_owned()));
    assert_eq!(ended(&rest, "lease_ended"), 1);
}

#[tokio::test(start_paused = true)]
async fn quota_is_notice_and_reason_and_shared_with_grpc() {
    let quota = QuotaLimits { streams_per_owner: 2, ..QuotaLimits::default() };
    let setup = Setup::new(Limits { quota, ..Limits::default() }, &[("web", 1)]);
    let run = setup.gateway.platform.start(&setup.lease, &replica("web", 0));
    setup.gateway.platform.print(&run, numbered(1..=10));
    let request = leasemux::model::proto::lease::ServiceLogsRequest { follow: true, ..setup.request() };
    let mut grpc = setup.open(request.clone()).await.unwrap();
    grpc.until(|received| received.lines("web", 0) == 10).await;
    let mut first = open_by_certificate(&setup, "follow=true").await;
    first.until("its lines", |stream| stream.received.lines("web", 0) == 10).await;
    let mut second = open_by_certificate(&setup, "follow=true").await;
    assert_eq!(second.end().await, (4000, "streams_per_owner".to_owned()));
    assert_eq!(second.last()["notice"], json!({"kind": "error", "reason": "QUOTA_USED_UP"}));
    assert!(setup.open(request).await.is_err());
    let rejections = "leasemux_quota_refusals_total{quota=\"streams_per_owner\"}";
    assert_eq!(setup.gateway.metric(rejections), 2);
    assert_eq!(setup.gateway.metric("leasemux_ws_streams{kind=\"logs\"}"), 1);
    // The permit is free once the first websocket has ended.
    drop(first);
    setup.gateway.eventually(|gateway| gateway.metric("leasemux_ws_streams{kind=\"logs\"}") == 0).await;
    let mut third = open_by_certificate(&setup, "follow=true").await;
    third.until("its lines", |stream| stream.received.lines("web", 0) == 10).await;
    assert_eq!(third.received.assert_complete(&setup.gateway.platform, "web", 0, &[(&run, 0)]), 0);
}

#[tokio::test(start_paused = true)]
async fn drain_sends_the_ring_then_1001() {
    let (rest, run) = Rest::one_run(Limits::default());
    rest.platform().print(&run, numbered(1..=10));
    let mut live = rest.open("logs?follow=true").await;
    let mut idle = rest.open("logs?follow=true&tail=0").await;
    let mut events = rest.open("kubeevents?follow=true").await;
    live.until("its lines", |stream| stream.received.lines("web", 0) == 10).await;
    let minutes = Duration::from_secs(600);
    tokio::join!(live.linger(minutes), idle.linger(minutes), events.linger(minutes));
    rest.platform().print(&run, numbered(11..=20));
    tokio::time::sleep(Duration::from_millis(100)).await;
    let drain = rest.gateway.drain.clone();
    let mut finishing = JoinSet::new();
    finishing.spawn(async move { drain.finish(Duration::from_secs(30)).await });
    for stream in [&mut live, &mut idle] {
        assert_eq!(stream.end().await, (1001, String::new()));
        let end = stream.last();
        assert!(
            end["message"].as_str().unwrap().starts_with("[leasemux: the gateway is shutting down"),
            "{end}"
        );
        assert_eq!(end["notice"], json!({"kind": "end", "reason": "DRAINING"}));
    }
    assert_eq!(live.received.assert_complete(rest.platform(), "web", 0, &[(&run, 0)]), 0);
    idle.received.assert_complete(rest.platform(), "web", 0, &[(&run, 10)]);
    assert_eq!(events.end().await, (1001, String::new()));
    let finished = finishing.join_next().await.unwrap().unwrap();
    assert!(finished, "the drain does not reach its deadline");
    assert_eq!(ended(&rest, "drain"), 2);
}

#[tokio::test(start_paused = true)]
async fn drain_deadline_cuts_a_client_that_does_not_close() {
    let (rest, _) = Rest::one_run(Limits::default());
    let stuck = rest.open("logs?follow=true").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let began = tokio::time::Instant::now();
    assert!(!rest.gateway.drain.finish(Duration::from_secs(2)).await);
    // Sooner than the closing handshake times out.
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert_eq!(ended(&rest, "drain"), 1);
    assert_eq!(rest.gateway.metric("leasemux_ws_streams{kind=\"logs\"}"), 0);
    drop(stuck);
}

#[tokio::test(start_paused = true)]
async fn draining_gateway_refuses_requests() {
    let (rest, _) = Rest::one_run(Limits::default());
    // Opened before the drain, used after.
    let (logs, status) = (rest.connect(), rest.connect());
    tokio::task::yield_now().await;
    rest.gateway.drain.begin();
    for mut io in [logs, status] {
        let head =
            format!("GET /lease/7/1/1/status HTTP/1.1\r\nHost: any\r\n{}\r\n", rest.bearer(Access::Full));
        let _ = io.write_all(head.as_bytes()).await;
        let mut answer = Vec::new();
        io.read_to_end(&mut answer).await.unwrap();
        assert!(answer.is_empty(), "{}", String::from_utf8_lossy(&answer));
    }
}

#[tokio::test(start_paused = true)]
async fn revoked_credentials_end_the_stream() {
    let (rest, run) = Rest::one_run(Limits::default());
    rest.platform().print(&run, numbered(1..=10));
    let mut by_token = rest.open("logs?follow=true").await;
    by_token.until("its lines", |stream| stream.received.lines("web", 0) == 10).await;
    let mut events = rest.open("kubeevents?follow=true").await;
    let mut silent = rest.open("logs?follow=true&tail=0&notices=none").await;
    while silent.next_if_ready().await.is_some() {}
    while events.next_if_ready().await.is_some() {}
    rest.gateway.withdraw_account(rest.lease.owner());
    for stream in [&mut by_token, &mut silent, &mut events] {
        assert_eq!(stream.end().await, (4000, "credentials no longer valid".to_owned()));
    }
    assert_eq!(by_token.last()["notice"]["kind"], "end");
    assert!(silent.frames.is_empty());
    rest.gateway.eventually(|_| ended(&rest, "revoked") == 2).await;
    assert_eq!(by_token.received.assert_complete(rest.platform(), "web", 0, &[(&run, 0)]), 0);

    let setup = Setup::new(Limits::default(), &[("web", 1)]);
    setup.gateway.platform.start(&setup.lease, &replica("web", 0));
    let mut by_certificate = open_by_certificate(&setup, "follow=true").await;
    while by_certificate.next_if_ready().await.is_some() {}
    setup.gateway.withdraw(setup.lease.owner());
    assert_eq!(by_certificate.end().await, (4000, "credentials no longer valid".to_owned()));
    assert_eq!(by_certificate.last()["notice"], json!({"kind": "end", "reason": "CERTIFICATE_WITHDRAWN"}));
}

#[tokio::test(start_paused = true)]
async fn revoked_client_that_does_not_read_is_cut() {
    let (rest, run) = Rest::one_run(Limits::default());
    let stuck = rest.open("logs?follow=true").await;
    rest.platform().print(&run, numbered(1..=1_000));
    tokio::time::sleep(Duration::from_secs(3)).await;
    rest.gateway.withdraw_account(rest.lease.owner());
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(ended(&rest, "revoked"), 1);
    drop(stuck);
}

#[tokio::test(start_paused = true)]
async fn expired_token_ends_the_stream_by_policy() {
    let (mut rest, run) = Rest::one_run(Limits::default());
    let half_hour = Duration::from_secs(30 * 60);
    let token = signed_for(&rest.wallet, Access::Full, half_hour);
    rest.settings.token_grace = Duration::ZERO;
    let mut closed = rest.open_with("logs?follow=true", &token).await;
    rest.settings.token_grace = 3 * HOUR;
    let mut continued = rest.open_with("logs?follow=true", &token).await;
    for minute in 1..=29 {
        rest.platform().print(&run, numbered(minute..=minute));
        tokio::join!(continued.linger(Duration::from_secs(60)), closed.linger(Duration::from_secs(60)));
    }
    let after = async { continued.linger(Duration::from_secs(120)).await };
    let ((), close) = tokio::join!(after, closed.end());
    assert_eq!(close, (4000, "credentials no longer valid".to_owned()));
    rest.platform().print(&run, numbered(30..=40));
    continued.until("lines after the expiry", |stream| stream.received.lines("web", 0) == 40).await;
    assert_eq!(closed.last()["notice"], json!({"kind": "end", "reason": "TOKEN_EXPIRED"}));
    // The greatest age ends it.
    let began = tokio::time::Instant::now();
    assert_eq!(continued.until_closed().await, (4000, "credentials no longer valid".to_owned()));
    assert!(began.elapsed() > 2 * HOUR && began.elapsed() < 3 * HOUR, "{:?}", began.elapsed());
    assert_eq!(continued.received.assert_complete(rest.platform(), "web", 0, &[(&run, 0)]), 0);
    rest.gateway.eventually(|_| ended(&rest, "expired") == 2).await;
}

#[tokio::test(start_paused = true)]
async fn client_frames_are_judged() {
    let (rest, _) = Rest::one_run(Limits::default());
    // Frames of the client, masked with zeros, and the answer's close code.
    let text = |length: u16| {
        let mut frame = vec![0x81, 0x80 | 0x7e];
        frame.extend(length.to_be_bytes());
        frame.extend(vec![0; 4 + usize::from(length)]);
        frame
    };
    let close = vec![0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe8];
    for (frame, code) in [
        (text(5_000), 1009),
        (vec![0x81, 0x01, b'x'], 1002),
        (vec![0xc1, 0x80, 0, 0, 0, 0], 1002),
        (vec![0x83, 0x80, 0, 0, 0, 0], 1002),
        ([text(4_000), close.clone()].concat(), 1000),
        (close, 1000),
    ] {
        let mut io = rest.connect();
        let request = format!(
            "GET /lease/7/1/1/logs?follow=true HTTP/1.1\r\nHost: any\r\n{}{HANDSHAKE}\r\n",
            rest.bearer(Access::Full)
        );
        // The frame comes together with the request.
        io.write_all(&[request.as_bytes(), &frame].concat()).await.unwrap();
        let mut answer = Vec::new();
        tokio::time::timeout(Duration::from_secs(60), io.read_to_end(&mut answer)).await.unwrap().unwrap();
        let [first, second] = u16::to_be_bytes(code);
        let is_close = |bytes: &[u8]| bytes[0] == 0x88 && bytes[2..] == [first, second];
        assert!(answer.windows(4).any(is_close), "{code} in {answer:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn client_may_close_ping_and_send_text() {
    let (rest, run) = Rest::one_run(Limits::default());
    rest.platform().print(&run, numbered(1..=10));
    let mut request = "ws://any/lease/7/1/1/logs?follow=true".into_client_request().unwrap();
    let bearer = format!("Bearer {}", rest.token(Access::Full));
    request.headers_mut().insert("authorization", bearer.parse().unwrap());
    let (mut socket, _) = tokio_tungstenite::client_async(request, rest.connect()).await.unwrap();
    socket.send(Message::text("ignored")).await.unwrap();
    socket.send(Message::binary(vec![0; 4_000])).await.unwrap();
    socket.send(Message::Ping(b"hello"[..].into())).await.unwrap();
    loop {
        match socket.next().await.unwrap().unwrap() {
            Message::Pong(payload) => {
                assert_eq!(&payload[..], b"hello");
                break;
            }
            Message::Text(_) | Message::Ping(_) => {}
            other => panic!("{other:?}"),
        }
    }
    socket.close(None).await.unwrap();
    while let Some(Ok(_)) = socket.next().await {}
    rest.gateway.eventually(|_| ended(&rest, "client") == 1).await;
    // A client that vanishes ends its stream too.
    let stream = rest.open("logs?follow=true").await;
    drop(stream);
    rest.gateway.eventually(|_| ended(&rest, "client") == 2).await;
    assert_eq!(rest.gateway.metric("leasemux_ws_streams{kind=\"logs\"}"), 0);
    rest.gateway.eventually(|gateway| gateway.metric("leasemux_connections") == 0).await;
}

#[tokio::test(start_paused = true)]
async fn shut_out_peer_is_refused_and_disconnected() {
    let quota = QuotaLimits { auth_failures_per_minute: 5, ..QuotaLimits::default() };
    let (rest, _) = Rest::one_run(Limits { quota, ..Limits::default() });
    let peer = Some("192.0.2.7:1234".parse().unwrap());
    let connect = || rest.gateway.connect_rest(rest.settings.clone(), None, peer);
    let head = "GET /lease/7/1/1/status HTTP/1.1\r\nHost: any\r\n";
    let began = tokio::time::Instant::now();
    let (mut idle, mut good) = (connect(), connect());
    let keep = format!("{head}{}\r\n", rest.bearer(Access::Full));
    good.write_all(keep.as_bytes()).await.unwrap();
    let mut byte = [0; 1];
    good.read_exact(&mut byte).await.unwrap();
    let mut bad = connect();
    for _ in 0..8 {
        // Keeps the connection open.
        if bad.write_all(format!("{head}\r\n").as_bytes()).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut answers = String::new();
    let all = bad.read_to_string(&mut answers);
    tokio::time::timeout(Duration::from_secs(20), all).await.expect("it is disconnected").unwrap();
    assert!(answers.contains("401 Unauthorized") && answers.contains("429 Too Many"), "{answers}");
    let mut rest_of = Vec::new();
    let all = idle.read_to_end(&mut rest_of);
    tokio::time::timeout(Duration::from_secs(20), all).await.expect("an idle connection is closed").unwrap();
    // Sooner than any connection without a request.
    assert!(began.elapsed() < Limits::default().connection.first_call, "{:?}", began.elapsed());
    // An authenticated connection of the same address continues.
    good.write_all(keep.as_bytes()).await.unwrap();
    let mut buffer = vec![0; 64 * 1024];
    let mut text = String::new();
    while text.matches("200 OK").count() < 1 {
        let read =
            tokio::time::timeout(Duration::from_secs(20), good.read(&mut buffer)).await.unwrap().unwrap();
        assert!(read > 0, "{text}");
        text.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
}
