//! Restarts over REST: the outcomes, progress, and the errors of gRPC.

use std::time::Duration;

use leasemux::access::grants::{Access, TokenScope};
use leasemux::model::id::LeaseId;
use leasemux::model::limits::{Limits, QuotaLimits};
use leasemux::model::proto::lease::{ServiceFilter, ServiceRestartRequest};
use serde_json::{Value, json};
use tonic_types::StatusExt as _;

use super::{Rest, settings};
use crate::support::fake_platform::RestartBehavior;
use crate::support::rest::{Answer, exchange};
use crate::support::{account, replica};

const PATH: &str = "/lease/7/1/1/service/web/restart";

/// Returns a lease with three running replicas of `web`, and one of `db`.
fn scenario(limits: Limits) -> Rest {
    let rest = Rest::new(limits, &[("db", 1), ("web", 3)]);
    for (service, index) in [("db", 0), ("web", 0), ("web", 1), ("web", 2)] {
        rest.platform().start(&rest.lease, &replica(service, index));
    }
    rest
}

async fn post(rest: &Rest, path: &str) -> Answer {
    rest.send("POST", path, &rest.bearer(Access::Full)).await
}

/// Returns the states of a response, in order.
fn states(answer: &Answer) -> Vec<(u64, String)> {
    assert_eq!(answer.status, 200, "{answer:?}");
    let body = answer.json();
    let state = |one: &Value| {
        assert_eq!(one["service"], "web");
        let state = one["state"].as_str().unwrap().to_owned();
        (one["replica"].as_str().unwrap().parse().unwrap(), state)
    };
    body["status"].as_array().unwrap().iter().map(state).collect()
}

fn all(states: [&str; 3]) -> Vec<(u64, String)> {
    (0..).zip(states.map(str::to_owned)).collect()
}

#[tokio::test(start_paused = true)]
async fn repeated_request_shows_progress_of_one_restart() {
    let rest = scenario(Limits::default());
    let path = format!("{PATH}?request_id=a&timeout=2");
    let mut seen = Vec::new();
    loop {
        let answer = post(&rest, &path).await;
        assert_eq!((answer.json()["request_id"].as_str(), answer.status), (Some("a"), 200));
        let states = states(&answer);
        if seen.last() != Some(&states) {
            seen.push(states.clone());
        }
        if states.iter().all(|(_, state)| state == "active") {
            break;
        }
        // The client may wait for as long as it likes.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let expected = [
        all(["pending", "pending", "pending"]),
        all(["active", "pending", "pending"]),
        all(["active", "active", "pending"]),
        all(["active", "active", "active"]),
    ];
    assert_eq!(seen, expected);
    assert_eq!(rest.platform().restarted(), ["web/0", "web/1", "web/2"]);
    // Also by gRPC.
    let mut client = rest.gateway.client_with_token(&rest.token(Access::Full)).await;
    let request = ServiceRestartRequest {
        lease_id: Some((&rest.lease).into()),
        filter: Some(ServiceFilter { name: "web".into(), replicas: Vec::new() }),
        request_id: "a".into(),
        ..ServiceRestartRequest::default()
    };
    assert_eq!(client.service_restart(request).await.unwrap().into_inner().status.len(), 3);
    assert_eq!(rest.platform().restarted().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn chosen_replica_restarts_and_failure_has_its_reason() {
    let rest = scenario(Limits::default());
    rest.platform().set_restart_behavior(&replica("web", 1), RestartBehavior::Crash);
    let answer = post(&rest, &format!("{PATH}?replica=1&timeout=30")).await;
    let expected = json!([{"service": "web", "replica": "1", "state": "failure",
                           "message": "the new run exited with code 1 (Error)"}]);
    assert_eq!(answer.json()["status"], expected);
    assert_eq!(answer.header("content-type"), Some("application/json; charset=utf-8"));
    assert!(answer.json()["request_id"].as_str().unwrap().len() > 30);
    assert_eq!(rest.platform().restarted(), ["web/1"]);
}

#[tokio::test(start_paused = true)]
async fn failed_restart_has_the_reason_of_grpc() {
    let quota = QuotaLimits { restarts_per_hour: 1, ..QuotaLimits::default() };
    let rest = scenario(Limits { quota, ..Limits::default() });
    let is = |answer: &Answer, status: u16, reason: &str| {
        let body = answer.json();
        assert_eq!((answer.status, body["reason"].as_str()), (status, Some(reason)), "{answer:?}");
        assert!(body["message"].as_str().is_some_and(|message| !message.is_empty()), "{answer:?}");
        assert_eq!(answer.header("leasemux-reason"), Some(reason.to_lowercase().as_str()));
    };
    is(&rest.send("POST", PATH, "").await, 401, "CREDENTIALS_MISSING");
    is(&post(&rest, "/lease/x/1/1/service/web/restart").await, 400, "INVALID_REQUEST");
    is(&post(&rest, &format!("{PATH}?replica=x")).await, 400, "INVALID_REQUEST");
    for (scope, services, reason) in [
        (TokenScope::Logs, "web", "SCOPE_NOT_GRANTED"),
        (TokenScope::Status, "*", "SCOPE_NOT_GRANTED"),
        (TokenScope::Restart, "db", "SERVICE_NOT_GRANTED"),
    ] {
        let headers = format!("Authorization: Bearer {}\r\n", rest.granular(&[scope], &[services]));
        is(&rest.send("POST", PATH, &headers).await, 401, reason);
    }
    assert_eq!(rest.platform().looks(), 0, "authorisation precedes lookup");
    is(&post(&rest, "/lease/9/1/1/service/web/restart").await, 404, "LEASE_NOT_FOUND");
    is(&post(&rest, "/lease/7/1/1/service/none/restart").await, 404, "SERVICE_NOT_FOUND");
    is(&post(&rest, "/lease/7/1/1/service/No/restart").await, 404, "SERVICE_NOT_FOUND");
    is(&post(&rest, &format!("{PATH}?replica=9")).await, 404, "REPLICA_NOT_FOUND");

    let answer = post(&rest, &format!("{PATH}?replica=0&request_id=a")).await;
    assert_eq!(answer.json()["status"][0]["state"], "pending");
    is(&post(&rest, &format!("{PATH}?replica=1&request_id=a")).await, 400, "INVALID_REQUEST");
    let over = post(&rest, &format!("{PATH}?replica=2")).await;
    is(&over, 429, "QUOTA_USED_UP");
    assert!(over.header("retry-after").is_some(), "{over:?}");
    // The same reason as by gRPC.
    let mut client = rest.gateway.client_with_token(&rest.token(Access::Full)).await;
    let request = ServiceRestartRequest {
        lease_id: Some((&rest.lease).into()),
        filter: Some(ServiceFilter { name: "web".into(), replicas: vec![2] }),
        ..ServiceRestartRequest::default()
    };
    let status = client.service_restart(request).await.unwrap_err();
    assert_eq!(status.get_details_error_info().unwrap().reason, "QUOTA_USED_UP");
    assert_eq!(status.message(), over.json()["message"].as_str().unwrap());

    let counted = |code: &str| {
        let route = "/lease/{dseq}/{gseq}/{oseq}/service/{service}/restart";
        rest.gateway.metric(&format!("leasemux_rest_requests_total{{route=\"{route}\",code=\"{code}\"}}"))
    };
    assert_eq!((counted("2xx"), counted("4xx")), (1, 12));
}

#[tokio::test(start_paused = true)]
async fn only_post_of_own_origin_restarts() {
    let rest = scenario(Limits::default());
    for method in ["GET", "PUT", "DELETE", "OPTIONS", "HEAD"] {
        let answer = rest.send(method, PATH, &rest.bearer(Access::Full)).await;
        assert_eq!((answer.status, answer.header("allow")), (405, Some("post")), "{method}");
        assert_eq!(answer.header("access-control-allow-origin"), None);
    }
    // A browser presents the certificate for any page.
    let (owner, certificate) = rest.gateway.tenant();
    let lease = LeaseId::new(owner.as_str(), 7, 1, 1, account(200).as_str()).unwrap();
    rest.platform().add_lease(&lease, &[("web", 1)]);
    rest.platform().start(&lease, &replica("web", 0));
    let send = async |origin: &str| {
        let io = rest.gateway.connect_rest(settings(), Some(certificate.clone()), None);
        exchange(io, &format!("POST {PATH} HTTP/1.1\r\nHost: any:8443\r\n{origin}Content-Length: 0\r\n"))
            .await
    };
    for origin in ["https://evil.test", "https://any", "null"] {
        let answer = send(&format!("Origin: {origin}\r\n")).await;
        assert_eq!((answer.status, &answer.json()["reason"]), (403, &json!("OTHER_ORIGIN")), "{answer:?}");
    }
    assert_eq!(rest.platform().restarted(), [""; 0]);
    assert_eq!(send("Origin: https://any:8443\r\n").await.status, 200);
    assert_eq!(send("").await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn restart_continues_without_its_caller() {
    let rest = scenario(Limits::default());
    let path = format!("{PATH}?timeout=30");
    assert!(tokio::time::timeout(Duration::from_secs(1), post(&rest, &path)).await.is_err());
    rest.gateway.eventually(|gateway| gateway.platform.restarted().len() == 3).await;
    rest.gateway
        .eventually(|gateway| gateway.metric("leasemux_restarts_total{result=\"active\"}") == 3)
        .await;
    // Credentials that end while the caller waits.
    let (answer, ()) = tokio::join!(post(&rest, &path), async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        rest.gateway.withdraw_account(rest.lease.owner());
    });
    assert_eq!((answer.status, &answer.json()["reason"]), (401, &json!("ACCOUNT_WITHDRAWN")), "{answer:?}");
}
