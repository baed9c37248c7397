//! The page at `/ui`: its files, and its websockets with a token in their first message.

use std::time::Duration;

use leasemux::access::grants::{Access, TokenScope};
use leasemux::edge::rest::RestSettings;
use leasemux::model::id::Instance;
use leasemux::model::limits::Limits;
use serde_json::json;
use tokio::io::DuplexStream;
use tokio::time::Instant;

use super::{HOUR, Rest, numbered, settings};
use crate::contract::tokens::signed_for;
use crate::support::replica;
use crate::support::rest::{HANDSHAKE, WsFollower, exchange};

const ORIGIN: (&str, &str) = ("origin", "https://provider.test");

/// Returns a port with the page, and a running replica, `web/0`.
fn scenario() -> (Rest, Instance) {
    let (rest, run) = Rest::one_run(Limits::default());
    let settings = RestSettings { serves_page: true, ..settings() };
    (Rest { settings, ..rest }, run)
}

/// Opens a websocket of the page, without a token.
async fn open(rest: &Rest, route: &str) -> WsFollower<DuplexStream> {
    WsFollower::open(rest.connect(), &format!("/ui/lease/7/1/1/{route}"), &[ORIGIN]).await
}

/// Opens a websocket of the page with a token.
async fn open_with(rest: &Rest, route: &str, token: &str) -> WsFollower<DuplexStream> {
    let mut socket = open(rest, route).await;
    socket.send(&json!({ "token": token }).to_string()).await;
    socket
}

#[tokio::test(start_paused = true)]
async fn page_needs_its_setting() {
    let (rest, _) = Rest::one_run(Limits::default());
    let logs = "/ui/lease/7/1/1/logs?format=entries";
    for path in ["/ui", "/ui/", "/ui/main.js", "/ui/session", logs] {
        let handshake = format!("{HANDSHAKE}Origin: https://any\r\n");
        assert_eq!(rest.send("GET", path, &handshake).await.is_text(404), "404 page not found", "{path}");
    }
    let (rest, _) = scenario();
    let get = async |path: &str| rest.send("GET", path, "").await;
    let root = get("/ui").await;
    assert_eq!((root.status, root.header("location")), (303, Some("/ui/")));
    let page = get("/ui/").await;
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    assert!(page.body.contains("src=\"main.js\""), "its files are relative");
    let script = get("/ui/main.js").await;
    assert_eq!((script.status, script.header("content-type")), (200, Some("text/javascript; charset=utf-8")));
    let session = get("/ui/session").await.json();
    assert_eq!((&session["credentials"], &session["gateway"]), (&json!("token"), &json!("provider.test")));
    assert_eq!(get("/ui/nothing.js").await.status, 404);
    assert_eq!(rest.send("POST", "/ui/", "Content-Length: 0\r\n").await.status, 405);
    for path in ["/ui", "/ui/", "/ui/nothing.js", logs] {
        let policy = get(path).await;
        let policy = policy.header("content-security-policy").unwrap_or_else(|| panic!("{path}"));
        assert!(policy.starts_with("default-src 'none'; script-src 'self';"), "{policy}");
    }
    // Other routes are as without the page.
    assert_eq!(get("/version").await.header("content-security-policy"), None);
    assert_eq!(rest.platform().looks(), 0);
}

#[tokio::test(start_paused = true)]
async fn websocket_of_page_needs_its_exact_origin() {
    let (rest, _) = scenario();
    for origin in [
        "",
        "Origin: https://evil.test\r\n",
        "Origin: http://any:8443\r\n",
        "Origin: wss://any:8443\r\n",
        "Origin: https://any\r\n",
        "Origin: null\r\n",
        "Origin: https://any:8443\r\nOrigin: https://any:8443\r\n",
    ] {
        // Neither a token nor a certificate makes up for it.
        let headers = format!("{HANDSHAKE}{}{origin}", rest.bearer(Access::Full));
        let head = format!("GET /ui/lease/7/1/1/logs?format=entries HTTP/1.1\r\nHost: any:8443\r\n{headers}");
        assert_eq!(exchange(rest.connect(), &head).await.status, 403, "{origin}");
    }
    assert_eq!(rest.platform().looks(), 0);
}

#[tokio::test(start_paused = true)]
async fn first_message_opens_logs_and_status() {
    let (rest, run) = scenario();
    rest.platform().print(&run, numbered(1..=1_000));
    let token = rest.token(Access::Full);
    let mut logs = open_with(&rest, "logs?format=entries&follow=true&heartbeat=2", &token).await;
    logs.until("all lines", |stream| stream.received.lines("web", 0) == 1_000).await;
    assert_eq!(logs.received.assert_complete(rest.platform(), "web", 0, &[(&run, 0)]), 0);
    let mut status = open_with(&rest, "status?follow=true", &token).await;
    status.until("a status", |stream| stream.frames.len() == 1).await;
    let plain = rest.get("/lease/7/1/1/status").await.json();
    assert_eq!(status.frames[0], plain);
    rest.platform().end(&rest.lease, &replica("web", 0), 137);
    let of_replica = |stream: &WsFollower<_>| stream.last()["services"]["web"]["replica_status"][0].clone();
    status.until("the end", |stream| of_replica(stream)["last_exit_code"] == 137).await;
    let mut once = open_with(&rest, "status", &token).await;
    assert_eq!((once.end().await.0, once.frames.len()), (1000, 1));
    let open = "leasemux_ws_streams{kind=\"status\"}";
    rest.gateway.eventually(|gateway| gateway.metric(open) == 1).await;
    // Messages after the first one are ignored.
    logs.send("more").await;
    let second = rest.platform().start(&rest.lease, &replica("web", 0));
    rest.platform().print(&second, ["1 again\n"]);
    logs.until("the new run", |stream| stream.received.ends_with("web", 0, "again\n")).await;
    rest.gateway.drain.begin();
    for stream in [&mut logs, &mut status] {
        assert_eq!(stream.end().await, (1001, String::new()));
        assert_eq!(stream.last()["end"]["reason"], "DRAINING");
    }
}

#[tokio::test(start_paused = true)]
async fn token_that_does_not_permit_it_ends_with_its_reason() {
    let (rest, _) = scenario();
    let expired = signed_for(&rest.wallet, Access::Full, Duration::ZERO);
    let stranger = leasemux::access::wallet::Mnemonic::generate().unwrap().wallet().unwrap();
    let stranger = signed_for(&stranger, Access::Full, HOUR);
    let message = |token: &str| json!({ "token": token }).to_string();
    for (message, reason) in [
        ("{}".to_owned(), "AUTHORIZATION_MALFORMED"),
        (rest.token(Access::Full), "AUTHORIZATION_MALFORMED"),
        (message(""), "AUTHORIZATION_MALFORMED"),
        (message("a b"), "AUTHORIZATION_MALFORMED"),
        (message("x.y.z"), "TOKEN_MALFORMED"),
        (message(&expired), "TOKEN_EXPIRED"),
        (message(&stranger), "ACCOUNT_UNKNOWN"),
        (message(&rest.token(Access::Scoped([TokenScope::Events].into()))), "SCOPE_NOT_GRANTED"),
        (message(&rest.granular(&[TokenScope::Status, TokenScope::Logs], &["Web"])), "SERVICE_NOT_GRANTED"),
    ] {
        for route in ["logs?format=entries&follow=true", "status?follow=true"] {
            let mut socket = open(&rest, route).await;
            socket.send(&message).await;
            assert_eq!(socket.end().await, (4000, "credentials refused".to_owned()), "{message}");
            let end = &socket.last()["end"];
            assert_eq!((socket.frames.len(), &end["reason"]), (1, &json!(reason)), "{end}");
            assert!(
                end["message"].as_str().unwrap().len() > 10 && end.get("retry_after_ms").is_none(),
                "{end}"
            );
        }
    }
    assert_eq!(rest.platform().looks(), 0, "nothing is looked up before");
    assert_eq!(rest.gateway.metric("leasemux_auth_refusals_total{reason=\"TOKEN_EXPIRED\"}"), 2);
    // A lease of another deployment, and what the path and the query get wrong.
    let full = rest.token(Access::Full);
    for (path, code, reason) in [
        ("/ui/lease/8/1/1/logs?format=entries", 4001, "LEASE_NOT_FOUND"),
        ("/ui/lease/8/1/1/status", 4001, "LEASE_NOT_FOUND"),
        ("/ui/lease/x/1/1/logs?format=entries", 4000, "INVALID_REQUEST"),
        ("/ui/lease/7/1/1/logs?format=entries&heartbeat=0", 4000, "INVALID_REQUEST"),
        ("/ui/lease/7/1/1/logs", 4000, "INVALID_REQUEST"),
        ("/ui/lease/7/1/1/logs?format=lines&follow=true", 4000, "INVALID_REQUEST"),
        ("/ui/lease/7/1/1/status?service=none", 4000, "SERVICE_NOT_FOUND"),
    ] {
        let mut socket = WsFollower::open(rest.connect(), path, &[ORIGIN]).await;
        socket.send(&message(&full)).await;
        assert_eq!(socket.end().await.0, code, "{path}");
        assert_eq!(socket.last()["end"]["reason"], reason, "{path}");
        assert_eq!(socket.frames.len(), 1, "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn page_without_token_ends_after_five_seconds() {
    let (rest, _) = scenario();
    let begin = Instant::now();
    let mut socket = open(&rest, "logs?format=entries").await;
    assert_eq!(socket.end().await, (4000, "credentials refused".to_owned()));
    assert_eq!(socket.last()["end"]["reason"], "CREDENTIALS_MISSING");
    assert_eq!(begin.elapsed().as_secs(), 5);
    // A header is no first message, and a certificate does not count.
    let bearer = format!("Bearer {}", rest.token(Access::Full));
    let (_, certificate) = rest.gateway.tenant();
    let io = rest.gateway.connect_rest(rest.settings.clone(), Some(certificate), None);
    let headers = [ORIGIN, ("authorization", bearer.as_str())];
    let mut socket = WsFollower::open(io, "/ui/lease/7/1/1/logs?format=entries", &headers).await;
    assert_eq!(socket.end().await.0, 4000);
    assert_eq!(socket.last()["end"]["reason"], "CREDENTIALS_MISSING");
    // A message over the limit: the connection ends.
    let mut socket = open(&rest, "logs?format=entries").await;
    socket.send(&"x".repeat(10_000)).await;
    socket.until_lost().await;
    assert_eq!(rest.gateway.metric("leasemux_auth_refusals_total{reason=\"CREDENTIALS_MISSING\"}"), 3);
    assert_eq!(rest.platform().looks(), 0);
}

#[tokio::test(start_paused = true)]
async fn stream_of_page_ends_with_the_account() {
    let (rest, _) = scenario();
    let mut socket = open_with(&rest, "status?follow=true", &rest.token(Access::Full)).await;
    socket.until("a status", |stream| stream.frames.len() == 1).await;
    rest.gateway.withdraw_account(rest.lease.owner());
    assert_eq!(socket.end().await, (4000, "credentials no longer valid".to_owned()));
    assert_eq!(socket.last()["end"]["reason"], "ACCOUNT_WITHDRAWN");
}
