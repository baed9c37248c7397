//! Shut-out peers: which failures count, and which connections close.

use std::time::Duration;

use leasemux::access::grants::Access;
use leasemux::model::id::LeaseId;
use leasemux::model::limits::{Limits, QuotaLimits};
use leasemux::model::proto::lease::ServiceLogsRequest;
use leasemux::model::proto::lease::lease_rpc_client::LeaseRpcClient;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tonic::Request;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;

use super::floods::{
    CONTINUATION, DATA, END_HEADERS, GOAWAY, HEADERS, RST_STREAM, SETTINGS, WINDOW_UPDATE, flood, frame,
    goaway_code, headers, preface,
};
use crate::auth::token;
use crate::quotas::{TwoTenants, follow, quota_exceeded, rejections};
use crate::support::gateway::{Gateway, proto_lease};
use crate::support::{account, reason};

const BAD: &str = "192.0.2.1:1";
const GOOD: &str = "192.0.2.2:1";

/// GOAWAY with this error code.
fn goaway(code: u8) -> Vec<u8> {
    frame(GOAWAY, 0, 0, &[0, 0, 0, 0, 0, 0, 0, code])
}

/// A gateway that shuts a peer out at its third failure.
fn gateway() -> Gateway {
    gateway_with(QuotaLimits::default().open_calls_per_second)
}

/// A gateway that shuts a peer out at its third failure, with this rate of calls without credentials.
fn gateway_with(open_calls_per_second: u32) -> Gateway {
    let quota = QuotaLimits { auth_failures_per_minute: 3, open_calls_per_second, ..QuotaLimits::default() };
    Gateway::new(Limits { quota, ..Limits::default() })
}

fn connect(gateway: &Gateway, from: &str) -> DuplexStream {
    gateway.connect_from(None, Some(from.parse().unwrap()))
}

async fn health(gateway: &Gateway, from: &str) -> HealthClient<Channel> {
    HealthClient::new(gateway.channel_over(connect(gateway, from)).await)
}

fn check() -> HealthCheckRequest {
    HealthCheckRequest { service: String::new() }
}

/// Returns whether a call from this address is answered.
async fn is_answered(gateway: &Gateway, from: &str) -> bool {
    match health(gateway, from).await.check(check()).await {
        Ok(_) => true,
        Err(status) => {
            quota_exceeded(&status, "auth_failures_per_peer", "peer", 3);
            false
        }
    }
}

/// Makes calls that fail, until the peer is shut out.
async fn be_shut_out(gateway: &Gateway, from: &str) {
    let mut client = LeaseRpcClient::new(gateway.channel_over(connect(gateway, from)).await);
    for _ in 0..3 {
        let status = client.service_logs(ServiceLogsRequest::default()).await.unwrap_err();
        assert_eq!(reason(&status), "CREDENTIALS_MISSING");
    }
}

/// Sends these bytes, and reads until the gateway closes the connection. Returns the code of its GOAWAY.
async fn send(mut pipe: DuplexStream, bytes: Vec<u8>) -> Option<u32> {
    // The connection may be closed before all is written.
    let _ = pipe.write_all(&[preface(), bytes].concat()).await;
    let mut received = Vec::new();
    let _ = pipe.read_to_end(&mut received).await;
    goaway_code(&received)
}

#[tokio::test(start_paused = true)]
async fn flood_counts_as_a_failure() {
    // Health calls, because other calls without credentials are failures themselves.
    let headers = health_headers;
    let reset = |stream| {
        [frame(HEADERS, END_HEADERS, stream, &headers()), frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])]
            .concat()
    };
    let breach = |stream| {
        let beyond = frame(WINDOW_UPDATE, 0, stream, &[0x7f, 0xff, 0xff, 0xff]);
        [frame(HEADERS, END_HEADERS, stream, &headers()), beyond].concat()
    };
    let start = || frame(HEADERS, END_HEADERS, 1, &headers());
    for (kind, start, more) in [
        ("resets", Vec::new(), &reset as &dyn Fn(u32) -> Vec<u8>),
        ("broken streams", Vec::new(), &breach),
        ("endless headers", frame(HEADERS, 0, 1, &headers()), &|_| frame(CONTINUATION, 0, 1, &[])),
        ("empty frames", start(), &|_| frame(DATA, 0, 1, &[])),
        // The library reports the code of the peer in place of its own.
        ("goaway first", [start(), goaway(8)].concat(), &|_| frame(DATA, 0, 1, &[])),
    ] {
        let gateway = gateway_with(0);
        for _ in 0..3 {
            assert!(is_answered(&gateway, BAD).await, "{kind}");
            flood(connect(&gateway, BAD), start.clone(), more).await;
        }
        gateway.eventually(|gateway| gateway.metric("leasemux_connections") == 0).await;
        assert!(!is_answered(&gateway, BAD).await, "{kind}");
        assert!(is_answered(&gateway, GOOD).await, "{kind}");
    }
}

#[tokio::test(start_paused = true)]
async fn broken_http2_counts_as_a_failure() {
    for (kind, bytes) in [
        ("headers of no stream", frame(HEADERS, END_HEADERS, 0, &headers())),
        ("an even stream", frame(HEADERS, END_HEADERS, 2, &headers())),
        ("invalid HPACK", frame(HEADERS, END_HEADERS, 1, &[0xff; 40])),
        ("settings of a wrong size", frame(SETTINGS, 0, 0, &[0; 5])),
        ("data of a stream that is not open", frame(DATA, 0, 1, b"x")),
        ("a frame that is too long", frame(DATA, 0, 1, &vec![0; 20_000])),
        ("a window over its maximum", frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff])),
    ] {
        let gateway = gateway();
        for _ in 0..3 {
            assert!(is_answered(&gateway, BAD).await, "{kind}");
            send(connect(&gateway, BAD), bytes.clone()).await;
        }
        gateway.eventually(|gateway| gateway.metric("leasemux_connections") == 0).await;
        assert!(!is_answered(&gateway, BAD).await, "{kind}");
    }
}

#[tokio::test(start_paused = true)]
async fn ended_connections_are_not_failures() {
    let gateway = gateway();
    let half = preface()[..10].to_vec();
    let call = [preface(), frame(HEADERS, END_HEADERS | 1, 1, &health_headers())].concat();
    for start in [
        Vec::new(),
        half,
        preface(),
        [preface(), frame(HEADERS, 0, 1, &headers())[..12].to_vec()].concat(),
        call.clone(),
        [call, goaway(0)].concat(),
        [preface(), goaway(0)].concat(),
    ] {
        for _ in 0..10 {
            let mut pipe = connect(&gateway, BAD);
            pipe.write_all(&start).await.unwrap();
            // Time for the gateway to read it.
            tokio::time::sleep(Duration::from_millis(10)).await;
            drop(pipe);
        }
    }
    // A silent connection is closed, and is not a failure.
    let mut silent = connect(&gateway, BAD);
    silent.read_to_end(&mut Vec::new()).await.unwrap();
    gateway.eventually(|gateway| gateway.metric("leasemux_connections") == 0).await;
    be_answered_twice(&gateway).await;
}

async fn be_answered_twice(gateway: &Gateway) {
    for _ in 0..2 {
        assert!(is_answered(gateway, BAD).await);
    }
}

/// The headers of a health call.
fn health_headers() -> Vec<u8> {
    let path = b"/grpc.health.v1.Health/Check";
    let mut block = vec![0x83, 0x86, 0x04, u8::try_from(path.len()).unwrap()];
    block.extend(path);
    block.extend([0x01, 7]);
    block.extend(b"gateway");
    block
}

#[tokio::test(start_paused = true)]
async fn shut_out_peer_keeps_authenticated_connections_only() {
    let two = TwoTenants::new(QuotaLimits { auth_failures_per_minute: 3, ..QuotaLimits::default() });
    let gateway = &two.setup.gateway;
    let address = Some(BAD.parse().unwrap());
    let mut silent = connect(gateway, BAD);
    silent.write_all(&preface()).await.unwrap();
    let mut watching = health(gateway, BAD).await;
    let mut watch = watching.watch(check()).await.unwrap().into_inner();
    watch.message().await.unwrap();
    let known = gateway.connect_from(Some(two.setup.certificate.clone()), address);
    let mut known = LeaseRpcClient::new(gateway.channel_over(known).await);
    let mut follower = known.service_logs(follow(&two.setup)).await.unwrap().into_inner();
    let wallet = gateway.account();
    let lease = LeaseId::new(wallet.key().address().as_str(), 7, 1, 1, account(200).as_str()).unwrap();
    gateway.platform.add_lease(&lease, &[("web", 1)]);
    let mut by_token = LeaseRpcClient::new(gateway.channel_over(connect(gateway, BAD)).await);
    let with = |token: &str| {
        let lease_id = Some(proto_lease(&lease));
        let mut request = Request::new(ServiceLogsRequest { lease_id, ..ServiceLogsRequest::default() });
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        request
    };
    let good = token(&wallet, Access::Full);
    by_token.service_logs(with(&good)).await.unwrap();

    be_shut_out(gateway, BAD).await;
    // It gets GOAWAY, does not close, and is cut.
    let mut received = Vec::new();
    silent.read_to_end(&mut received).await.unwrap();
    assert_eq!(goaway_code(&received), Some(0));
    while let Ok(Some(_)) = watch.message().await {}
    gateway.eventually(|gateway| gateway.metric("leasemux_connections") == 2).await;
    assert!(!is_answered(gateway, BAD).await);
    // Authenticated connections continue.
    two.print(1, "after");
    let mut text = Vec::new();
    while text.len() < "0 after\n".len() {
        let response = follower.message().await.unwrap().unwrap();
        text.extend(response.services.into_iter().flat_map(|entry| entry.logs));
    }
    assert_eq!(String::from_utf8(text).unwrap(), "0 after\n");
    known.service_logs(two.setup.request()).await.unwrap();
    by_token.service_logs(with(&good)).await.unwrap();
    // After a failed call, calls of the connection are rejected like others.
    let status = by_token.service_logs(with("x")).await.unwrap_err();
    assert_eq!(reason(&status), "TOKEN_MALFORMED");
    let status = by_token.service_logs(with(&good)).await.unwrap_err();
    let wait = quota_exceeded(&status, "auth_failures_per_peer", "peer", 3);
    tokio::time::sleep(wait).await;
    by_token.service_logs(with(&good)).await.unwrap();
    assert!(is_answered(gateway, BAD).await);
}

#[tokio::test(start_paused = true)]
async fn calls_without_credentials_are_rate_limited() {
    let quota = QuotaLimits { open_calls_per_second: 2, ..QuotaLimits::default() };
    let gateway = Gateway::new(Limits { quota, ..Limits::default() });
    let mut client = health(&gateway, BAD).await;
    for _ in 0..128 {
        client.check(check()).await.unwrap();
    }
    let status = client.check(check()).await.unwrap_err();
    let wait = quota_exceeded(&status, "open_call_rate_per_peer", "peer", 2);
    assert!(wait <= Duration::from_millis(500), "{wait:?}");
    assert!(!status.message().contains("192.0.2"), "{status:?}");
    assert_eq!(rejections(&gateway, "open_call_rate_per_peer"), 1);
    health(&gateway, GOOD).await.check(check()).await.unwrap();
    tokio::time::sleep(wait).await;
    client.check(check()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn messages_in_a_reflection_call_are_rate_limited() {
    let quota = QuotaLimits { open_calls_per_second: 2, ..QuotaLimits::default() };
    let gateway = Gateway::new(Limits { quota, ..Limits::default() });
    let mut client = ServerReflectionClient::new(gateway.channel_over(connect(&gateway, BAD)).await);
    let message = || ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let messages = futures_util::stream::iter((0..1_000).map(move |_| message()));
    let mut answers = client.server_reflection_info(messages).await.unwrap().into_inner();
    let mut answered = 0;
    while let Ok(Some(_)) = answers.message().await {
        answered += 1;
    }
    assert!(answered <= 128, "{answered}");
    let status = health(&gateway, BAD).await.check(check()).await.unwrap_err();
    quota_exceeded(&status, "open_call_rate_per_peer", "peer", 2);
}

#[tokio::test(start_paused = true)]
async fn flood_of_calls_without_credentials_shuts_its_peer_out() {
    let gateway = gateway();
    let call = |stream| frame(HEADERS, END_HEADERS | 1, stream, &health_headers());
    for _ in 0..3 {
        assert!(gateway.metric("leasemux_connections") == 0);
        flood(connect(&gateway, BAD), Vec::new(), call).await;
        gateway.eventually(|gateway| gateway.metric("leasemux_connections") == 0).await;
    }
    assert!(!is_answered(&gateway, BAD).await);
    assert!(is_answered(&gateway, GOOD).await);
}
