//! Requests: routes, the order of checks, error bodies, parameters, handshake and status bodies.

use leasemux::access::grants::{Access, TokenScope};
use leasemux::model::id::LeaseId;
use leasemux::model::limits::{ConnectionLimits, Limits, QuotaLimits};
use leasemux::model::time::LogTime;
use leasemux::platform::Error;
use serde_json::{Value, json};

use super::{HOUR, Rest, settings};
use crate::contract::tokens::signed_for;
use crate::support::gateway::TrustBehavior;
use crate::support::rest::{HANDSHAKE, WsFollower, exchange};
use crate::support::{account, replica};

/// The routes that a caller needs credentials for.
const LEASE_ROUTES: [&str; 4] = ["status", "service/web/status", "logs", "kubeevents"];

#[tokio::test(start_paused = true)]
async fn open_routes_need_no_credentials() {
    let rest = Rest::new(Limits::default(), &[("web", 1)]);
    let get = async |path: &str| rest.send("GET", path, "").await;
    let version = get("/version").await;
    assert_eq!(
        (version.status, version.header("content-type")),
        (200, Some("application/json; charset=utf-8"))
    );
    let version = version.json();
    assert_eq!((&version["akash"]["name"], &version["kube"]), (&json!("leasemux"), &json!({})));
    for key in ["server_name", "version", "commit"] {
        assert!(version["akash"][key].is_string(), "{key}");
    }
    let address = json!(account(200).as_str());
    assert_eq!(get("/address").await.json(), json!({"address": address}));
    let status = json!({"cluster_public_hostname": "provider.test", "address": address});
    assert_eq!(get("/status?x=%zz").await.json(), status);
}

#[tokio::test(start_paused = true)]
async fn unknown_routes_are_not_found() {
    let rest = Rest::new(Limits::default(), &[("web", 1)]);
    for path in [
        "/foobar",
        "/",
        "/validate",
        "//version",
        "/version/",
        "/lease/7/1/1/logs/",
        "/lease/7/1/1/manifest",
        "/lease/7/1/1/shell",
        "/lease/7/1/1/..%2Fstatus",
        "/lease/7/1/logs",
    ] {
        for method in ["GET", "POST"] {
            assert_eq!(rest.send(method, path, "").await.is_text(404), "404 page not found", "{path}");
        }
    }
    assert_eq!(rest.send("PUT", "/deployment/7/manifest", "").await.status, 404);
}

#[tokio::test(start_paused = true)]
async fn wrong_method_is_refused_with_empty_body() {
    let rest = Rest::new(Limits::default(), &[("web", 1)]);
    let lease_routes = LEASE_ROUTES.map(|route| format!("/lease/7/1/1/{route}"));
    for path in ["/version", "/address", "/status"].into_iter().chain(lease_routes.iter().map(String::as_str))
    {
        for method in ["POST", "PUT", "DELETE", "OPTIONS", "HEAD"] {
            let answer = rest.send(method, path, "Content-Length: 0\r\n").await;
            assert_eq!((answer.status, answer.body.as_str()), (405, ""), "{method} {path}");
            assert_eq!(answer.header("allow"), Some("get"));
            assert_eq!(answer.header("access-control-allow-origin"), None);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn each_credential_fault_has_its_status_and_text() {
    let rest = Rest::new(Limits::default(), &[("web", 1)]);
    let now = signed_for(&rest.wallet, Access::Full, HOUR);
    let mut parts: Vec<&str> = now.split('.').collect();
    parts[1] = "e30";
    let no_claims = parts.join(".");
    let expired = signed_for(&rest.wallet, Access::Full, std::time::Duration::ZERO);
    let stranger = leasemux::access::wallet::Mnemonic::generate().unwrap().wallet().unwrap();
    let stranger = signed_for(&stranger, Access::Full, HOUR);
    let long_lived = signed_for(&rest.wallet, Access::Full, 1_000 * HOUR);
    let unauthorized = (401, "unauthorized access");
    let cases = [
        (String::new(), unauthorized),
        ("Authorization: Basic x\r\n".into(), (400, "invalid authorization header")),
        ("Authorization: Bearer\r\n".into(), (400, "invalid authorization header")),
        ("Authorization: Bearer x.y.z\r\n".into(), (401, "JWT is invalid")),
        (format!("Authorization: Bearer {now}x\r\n"), (401, "JWT is invalid")),
        (format!("Authorization: Bearer {no_claims}\r\n"), (400, "JWT has invalid claims")),
        (format!("Authorization: Bearer {long_lived}\r\n"), (400, "JWT has invalid claims")),
        (format!("Authorization: Bearer {expired}\r\n"), (401, "JWT is expired")),
        (format!("Authorization: Bearer {stranger}\r\n"), (401, "JWT is invalid")),
    ];
    for route in LEASE_ROUTES {
        for (headers, (status, text)) in &cases {
            // Credentials are checked before the lease id.
            for lease in ["7/1/1", "x/1/1"] {
                let answer = rest.send("GET", &format!("/lease/{lease}/{route}"), headers).await;
                answer.is_fault(*status, text);
            }
        }
        // The owner comes from the credentials, so a granular token that does not name the lease is refused.
        for (scopes, services) in [(&[TokenScope::Shell][..], &["web"][..]), (&[TokenScope::Logs], &["Web"])]
        {
            let token = rest.granular(scopes, services);
            let headers = format!("Authorization: Bearer {token}\r\n");
            let answer = rest.send("GET", &format!("/lease/7/1/1/{route}"), &headers).await;
            answer.is_fault(401, "unauthorized access");
        }
    }
    assert_eq!(rest.platform().looks(), 0, "authorisation precedes lookup");
}

#[tokio::test(start_paused = true)]
async fn each_route_needs_its_scope() {
    let rest = Rest::new(Limits::default(), &[("web", 1)]);
    // A websocket route that is permitted fails with the next check, which is the handshake.
    for (scope, statuses) in [
        (TokenScope::Status, [200, 200, 401, 401]),
        (TokenScope::Logs, [401, 401, 400, 401]),
        (TokenScope::Events, [401, 401, 401, 400]),
        (TokenScope::Shell, [401, 401, 401, 401]),
    ] {
        for access in [
            rest.token(Access::Scoped([scope].into())),
            rest.granular(&[scope], &["web"]),
            rest.granular(&[scope], &["*"]),
        ] {
            for (route, status) in LEASE_ROUTES.into_iter().zip(statuses) {
                let headers = format!("Authorization: Bearer {access}\r\n");
                let answer = rest.send("GET", &format!("/lease/7/1/1/{route}"), &headers).await;
                assert_eq!(answer.status, status, "{scope:?} {route} {answer:?}");
            }
        }
    }
    let refused = "leasemux_auth_refusals_total{reason=\"SCOPE_NOT_GRANTED\"}";
    assert_eq!(rest.gateway.metric(refused), 3 * (2 + 3 + 3 + 4));
}

#[tokio::test(start_paused = true)]
async fn certificate_and_token_together_are_ambiguous() {
    let rest = Rest::new(Limits::default(), &[("web", 1)]);
    let (owner, certificate) = rest.gateway.tenant();
    let lease = LeaseId::new(owner.as_str(), 7, 1, 1, account(200).as_str()).unwrap();
    rest.platform().add_lease(&lease, &[("web", 1)]);
    let connect = || rest.gateway.connect_rest(settings(), Some(certificate.clone()), None);
    let get = "GET /lease/7/1/1/status HTTP/1.1\r\nHost: any\r\n";
    assert_eq!(exchange(connect(), get).await.status, 200);
    let both = format!("{get}{}", rest.bearer(Access::Full));
    let text = "auth: ambiguous authentication. may not use mTLS and JWT at the same time";
    exchange(connect(), &both).await.is_fault(400, text);
    let (_, stranger) = crate::support::gateway::Gateway::new(Limits::default()).tenant();
    let unknown = rest.gateway.connect_rest(settings(), Some(stranger), None);
    exchange(unknown, get).await.is_fault(401, "unauthorized access");
}

#[tokio::test(start_paused = true)]
async fn unavailable_trust_is_retryable() {
    let rest = Rest::new(Limits::default(), &[("web", 1)]);
    rest.gateway.set_trust(TrustBehavior::Never);
    let answer = rest.get("/lease/7/1/1/status").await;
    assert_eq!(answer.status, 503);
    assert!(answer.header("retry-after").is_some() && answer.json()["message"].is_string(), "{answer:?}");
}

#[tokio::test(start_paused = true)]
async fn first_failing_check_decides() {
    let rest = Rest::new(Limits::default(), &[("web", 1)]);
    let no_scope =
        format!("Authorization: Bearer {}\r\n", rest.token(Access::Scoped([TokenScope::Shell].into())));
    let full = rest.bearer(Access::Full);
    // Each request has the fault of its check, and those of all later ones.
    let (bad_lease, bad_query) = ("/lease/x/1/1/logs?follow=x", "/lease/7/1/1/logs?follow=x");
    rest.send("GET", bad_lease, "Authorization: Basic x\r\n")
        .await
        .is_fault(400, "invalid authorization header");
    rest.send("GET", bad_lease, "").await.is_fault(401, "unauthorized access");
    assert!(rest.send("GET", bad_lease, &no_scope).await.is_text(400).contains("lease id"));
    assert!(rest.send("GET", bad_query, &no_scope).await.is_text(400).contains("\"follow\""));
    rest.send("GET", "/lease/7/1/1/logs", &no_scope).await.is_fault(401, "unauthorized access");
    let service = rest.granular(&[TokenScope::Logs], &["api"]);
    let service = format!("Authorization: Bearer {service}\r\n");
    rest.send("GET", "/lease/7/1/1/logs?service=web", &service).await.is_fault(401, "unauthorized access");
    let answer = rest.send("GET", "/lease/9/1/1/logs", &full).await;
    assert_eq!(answer.header("sec-websocket-version"), Some("13"), "{answer:?}");
    assert!(answer.is_text(400).contains("websocket"));
    assert_eq!(rest.platform().looks(), 0);
}

#[tokio::test(start_paused = true)]
async fn lease_id_must_have_positive_numbers() {
    let rest = Rest::new(Limits::default(), &[("web", 1)]);
    for id in ["0/1/1", "7/0/1", "7/1/0", "-7/1/1", "7/1/99999999999", "+7/1/1", "7%30/1/1", "7/1/x"] {
        assert!(rest.get(&format!("/lease/{id}/status")).await.is_text(400).contains("lease id"), "{id}");
    }
    assert_eq!(rest.get("/lease/007/1/1/status").await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn parameters_are_those_of_the_provider() {
    let rest = Rest::new(Limits::default(), &[("web", 1)]);
    let comma = "must not contain trailing comma";
    for route in ["logs", "kubeevents"] {
        let is_logs = route == "logs";
        for (query, error) in [
            ("", None),
            ("follow=1&follow=x", None),
            ("follow=t&unknown=x&flag", None),
            ("follow=True&service=web,api", None),
            ("follow=FALSE&services=web%2Capi", None),
            ("follow=f&service=web&services=api", None),
            ("service=", None),
            ("services=", None),
            ("service=web,", None),
            ("services=,web", None),
            ("tail=-1", None),
            ("tail=0", None),
            ("tail=10000000", None),
            ("notices=loss&on_lag=close&follow=true", None),
            ("follow=true&on_lag=drop", None),
            ("follow=true&on_lag=refill", Some("must be drop or close").filter(|_| !is_logs)),
            ("on_lag=drop", Some("parameter \"on_lag\" is only for follow=true")),
            ("follow=0&on_lag=close", Some("parameter \"on_lag\" is only for follow=true")),
            ("follow=yes", Some("parameter \"follow\"")),
            ("follow=tRuE", Some("parameter \"follow\"")),
            ("service=,", Some(comma)),
            ("services=%2C", Some(comma)),
            ("tail=-2", Some("parameter \"tail\" contains invalid value").filter(|_| is_logs)),
            ("tail=x", Some("parameter \"tail\"").filter(|_| is_logs)),
            ("tail=4294967296", Some("parameter \"tail\"").filter(|_| is_logs)),
            ("notices=some", Some("parameter \"notices\"")),
            ("on_lag=x", Some("parameter \"on_lag\"")),
        ] {
            let answer = rest.get(&format!("/lease/7/1/1/{route}?{query}")).await;
            let text = answer.is_text(400);
            match error {
                Some(error) => assert!(text.contains(error), "{query}: {text}"),
                // The next check, which fails because no upgrade is asked for.
                None => assert!(answer.header("sec-websocket-version").is_some(), "{query}: {text}"),
            }
        }
    }
    let spelling = |name: &str| format!("leasemux_rest_filter_total{{spelling=\"{name}\"}}");
    for name in ["none", "service", "services", "both"] {
        assert!(rest.gateway.metric(&spelling(name)) > 0, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn invalid_handshakes_are_refused() {
    let rest = Rest::new(Limits::default(), &[("web", 1)]);
    let with = |from: &str, to: &str| format!("{}{}", rest.bearer(Access::Full), HANDSHAKE.replace(from, to));
    for (headers, status) in [
        (with("Sec-WebSocket-Version: 13", "Sec-WebSocket-Version: 8"), 400),
        (with("Sec-WebSocket-Version: 13\r\n", ""), 400),
        (with("dGhlIHNhbXBsZSBub25jZQ==", "short"), 400),
        (with("Upgrade: websocket", "Upgrade: h2c"), 400),
        (with("Upgrade: websocket", "Upgrade: websocket\r\nContent-Length: 5"), 400),
        (with("Connection: keep-alive, Upgrade\r\n", ""), 400),
        (with("Upgrade: websocket", "Upgrade: websocket\r\nOrigin: https://evil.test"), 403),
        (with("Upgrade: websocket", "Upgrade: websocket\r\nOrigin: null"), 403),
        (with("Upgrade: websocket", "Upgrade: websocket\r\nOrigin: https://any:8443"), 403),
    ] {
        let answer = rest.send("GET", "/lease/7/1/1/logs", &headers).await;
        answer.is_text(status);
        assert_eq!(answer.header("sec-websocket-version"), (status == 400).then_some("13"), "{headers}");
    }
    assert_eq!(rest.platform().looks(), 0);
}

#[tokio::test(start_paused = true)]
async fn handshake_accepts_what_clients_send() {
    let rest = Rest::new(Limits::default(), &[("web", 1)]);
    rest.platform().start(&rest.lease, &replica("web", 0));
    let bearer = format!("Bearer {}", rest.token(Access::Full));
    for more in [
        &[("origin", "https://provider.test")][..],
        &[("origin", "wss://PROVIDER.test")],
        &[("connection", "keep-alive, UPGRADE"), ("upgrade", "WebSocket")],
        &[("sec-websocket-extensions", "permessage-deflate; client_max_window_bits")],
        &[("content-type", "application/json; charset=UTF-8")],
    ] {
        let headers = [more, &[("authorization", bearer.as_str())]].concat();
        let mut socket = WsFollower::open(rest.connect(), "/lease/7/1/1/logs", &headers).await;
        assert_eq!(socket.end().await, (1000, String::new()), "{more:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn status_has_the_body_of_the_provider() {
    let rest = Rest::new(Limits::default(), &[("web", 2), ("db", 1)]);
    let run = rest.platform().start(&rest.lease, &replica("web", 0));
    let answer = rest.get("/lease/7/1/1/status").await;
    assert_eq!(answer.header("content-type"), Some("application/json; charset=utf-8"));
    let body = answer.json();
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&body), ["forwarded_ports", "ips", "services"]);
    assert_eq!((&body["forwarded_ports"], &body["ips"]), (&Value::Null, &Value::Null));
    assert_eq!(keys(&body["services"]), ["db", "web"]);
    let web = &body["services"]["web"];
    let expected = json!({
        "name": "web", "available": 1, "total": 2, "uris": null, "observed_generation": 0,
        "replicas": 2, "updated_replicas": 2, "ready_replicas": 1, "available_replicas": 1,
    });
    for (key, value) in expected.as_object().unwrap() {
        assert!(web.get(key).is_some(), "{key} of {web}");
        if !["replicas", "updated_replicas", "observed_generation"].contains(&key.as_str()) {
            assert_eq!(&web[key], value, "{key} of {web}");
        }
    }
    assert_eq!(web["replica_status"][0]["instance"], run.as_str());
    assert_eq!(web["replica_status"][0]["state"], "running");
    assert_eq!(rest.get("/lease/7/1/1/service/web/status").await.json(), *web);
    // A granular token sees its services only.
    let headers =
        format!("Authorization: Bearer {}\r\n", rest.granular(&[TokenScope::Status], &["db", "Web"]));
    let narrowed = rest.send("GET", "/lease/7/1/1/status", &headers).await.json();
    assert_eq!(keys(&narrowed["services"]), ["db"]);
    let all = format!("Authorization: Bearer {}\r\n", rest.granular(&[TokenScope::Status], &["*"]));
    assert_eq!(rest.send("GET", "/lease/7/1/1/status", &all).await.json(), body);
}

#[tokio::test(start_paused = true)]
async fn status_faults_have_stable_texts() {
    let rest = Rest::new(Limits::default(), &[("web", 1)]);
    for route in ["status", "service/web/status"] {
        rest.get(&format!("/lease/9/1/1/{route}")).await.is_text(404);
    }
    for service in ["nope", "Web", "%2e%2e", "*"] {
        rest.get(&format!("/lease/7/1/1/service/{service}/status")).await.is_text(404);
    }
    for (error, status) in [
        ((|| Error::Unavailable("marker: apiserver not ready".into())) as fn() -> Error, 503),
        (|| Error::Broken("marker: generic test error".into()), 500),
        (|| Error::NotFound("marker: no deployments for lease".into()), 404),
    ] {
        rest.platform().set_watch_error(Some(error));
        for route in ["status", "service/web/status"] {
            let answer = rest.get(&format!("/lease/7/1/1/{route}")).await;
            assert!(!answer.is_text(status).contains("marker"), "{answer:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn service_missing_in_stale_view_is_unavailable() {
    let rest = Rest::new(Limits::default(), &[("web", 1)]);
    rest.platform().change(&rest.lease, |view| view.stale_since = Some(LogTime::now()));
    assert_eq!(rest.get("/lease/7/1/1/service/web/status").await.status, 200);
    // It may exist by now.
    let answer = rest.get("/lease/7/1/1/service/api/status").await;
    answer.is_text(503);
    assert!(answer.header("retry-after").is_some(), "{answer:?}");
    let mut logs = rest.open("logs?service=api").await;
    assert_eq!(logs.end().await, (4002, "cluster not reachable".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn request_limits_of_the_operator_apply() {
    let connection = ConnectionLimits { header_max_bytes: 4 * 1024, ..ConnectionLimits::default() };
    let quota = QuotaLimits { filters_per_request: 2, replicas_per_request: 1, ..QuotaLimits::default() };
    let rest = Rest::new(Limits { connection, quota, ..Limits::default() }, &[("web", 2)]);
    // The least limit is below what hyper accepts for its buffer.
    assert_eq!(rest.send("GET", "/address", "").await.status, 200);
    let long = format!("X: {}\r\n", "y".repeat(16 * 1024));
    assert_eq!(rest.send("GET", "/address", &long).await.status, 431);
    for spelling in ["service", "services"] {
        let answer = rest.get(&format!("/lease/7/1/1/logs?{spelling}=a,b,c")).await;
        assert_eq!(answer.is_text(400), "parameter \"service\" must have at most 2 names");
    }
    for query in ["service=web", "service=web&follow=true", "service=web,later&follow=true"] {
        let mut logs = rest.open(&format!("logs?{query}")).await;
        assert_eq!(logs.end().await, (4000, "replicas_per_stream".to_owned()), "{query}");
    }
}

#[tokio::test(start_paused = true)]
async fn request_quota_of_the_owner_names_the_time_to_retry() {
    let quota = QuotaLimits { requests_per_second: 1, streams_per_owner: 2, ..QuotaLimits::default() };
    let rest = Rest::new(Limits { quota, ..Limits::default() }, &[("web", 1)]);
    let mut answer = rest.get("/lease/7/1/1/status").await;
    for _ in 0..100 {
        if answer.status != 200 {
            break;
        }
        answer = rest.get("/lease/7/1/1/status").await;
    }
    answer.is_text(429);
    assert_eq!(answer.header("retry-after"), Some("1"));
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    assert_eq!(rest.get("/lease/7/1/1/status").await.status, 200);
    let answered = |code: &str| {
        let series = "leasemux_rest_requests_total{route=\"/lease/{dseq}/{gseq}/{oseq}/status\",code=";
        rest.gateway.metric(&format!("{series}\"{code}\"}}"))
    };
    assert_eq!((answered("2xx"), answered("4xx")), (3, 1));
}

#[tokio::test(start_paused = true)]
async fn requests_share_a_connection_and_extremes_end_it() {
    let rest = Rest::new(Limits::default(), &[("web", 1)]);
    // Two requests on one connection, the second one with `Connection: close`.
    let both = "GET /address HTTP/1.1\r\nHost: any\r\n\r\nGET /version HTTP/1.1\r\nHost: any\r\n";
    let answer = exchange(rest.connect(), both).await;
    assert!(answer.body.contains("\"address\"") && answer.body.contains("\"server_name\""), "{answer:?}");
    let many = "X: y\r\n".repeat(100);
    assert_eq!(rest.send("GET", "/address", &many).await.status, 431);
    let long = format!("X: {}\r\n", "y".repeat(64 * 1024));
    assert_eq!(rest.send("GET", "/address", &long).await.status, 431);
    for smuggling in
        ["Content-Length: 1\r\nTransfer-Encoding: chunked\r\n", "Content-Length: 1\r\nContent-Length: 2\r\n"]
    {
        let answer = rest.send("GET", "/address", smuggling).await;
        assert_eq!(answer.status, 400, "{smuggling}");
    }
}
