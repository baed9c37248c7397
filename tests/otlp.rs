//! `serve --otlp-endpoint`: the real program, and a collector that decodes what it exports.
//!
//! ```sh
//! cargo test --features otlp --test otlp
//! ```
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

#[allow(dead_code, unused_imports, reason = "shared with the other tests")]
#[path = "it/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use leasemux::model::id::LeaseId;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use rustix::process::Signal;
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::task::block_in_place;
use tonic::service::Routes;

use self::support::grpc_server::GrpcServer;
use self::support::process::{Done, Gateway, Program, Workspace, own_port};
use self::support::rest::{Answer, WsFollower, connect_tls, exchange};

/// A line that no span may hold.
const LINE: &str = "line-of-the-tenant";

/// Prints the line, and runs until it is stopped.
const SERVICE: &str = "echo line-of-the-tenant; exec sleep 1000";

/// The name of the tenant's service.
const SERVICE_NAME: &str = "storefront";

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// A collector. Answers until it is dropped.
struct Collector {
    server: GrpcServer,
    received: Received,
}

/// What a collector has received. Cloning is cheap.
#[derive(Clone, Debug, Default)]
struct Received(Arc<Mutex<Exports>>);

#[derive(Debug, Default)]
struct Exports {
    requests: Vec<ExportTraceServiceRequest>,
    /// The value of `x-key` in the metadata of each request.
    keys: Vec<Option<String>>,
}

/// A gateway with alice's lease and a REST port.
struct Scenario {
    workspace: Workspace,
    lease: LeaseId,
    gateway: Gateway,
}

#[tonic::async_trait]
impl TraceService for Received {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        let key = request.metadata().get("x-key").map(|key| key.to_str().unwrap().to_owned());
        let mut exports = self.0.lock().unwrap();
        exports.keys.push(key);
        exports.requests.push(request.into_inner());
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Received {
    fn spans(&self) -> Vec<Span> {
        let exports = self.0.lock().unwrap();
        let resources = exports.requests.iter().flat_map(|request| &request.resource_spans);
        resources.flat_map(|resource| &resource.scope_spans).flat_map(|scope| scope.spans.clone()).collect()
    }

    /// Returns the only span with this name.
    fn span(&self, name: &str) -> Span {
        let spans: Vec<Span> = self.spans().into_iter().filter(|span| span.name == name).collect();
        let [span] = spans.as_slice() else { panic!("{name}: {:?}", self.spans()) };
        span.clone()
    }
}

impl Collector {
    async fn start(tls: Option<ServerConfig>) -> Self {
        let received = Received::default();
        let routes = Routes::new(TraceServiceServer::new(received.clone()));
        Self { server: GrpcServer::start(routes, tls).await, received }
    }
}

impl Scenario {
    /// Starts a gateway with this endpoint and these variables.
    fn start(endpoint: &str, variables: &[(&str, &str)]) -> Self {
        Self::start_in(Workspace::new(), endpoint, variables)
    }

    fn start_in(workspace: Workspace, endpoint: &str, variables: &[(&str, &str)]) -> Self {
        let lease = workspace.tenant("alice");
        let sdl = workspace.sdl("alice.yaml", &[(SERVICE_NAME, SERVICE, 1)]);
        let mut args = workspace.serve_args(&[(&lease, &sdl)]);
        args.push("--rest-listen=127.0.0.1:0".to_owned());
        args.push(format!("--provider={}", lease.provider()));
        args.push(format!("--otlp-endpoint={endpoint}"));
        let mut command = workspace.command(&args.iter().map(String::as_str).collect::<Vec<_>>());
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("OTEL_") {
                command.env_remove(name);
            }
        }
        command.envs(variables.iter().copied());
        let gateway = Gateway::ready(Program::start(command, "serve".to_owned()));
        Self { workspace, lease, gateway }
    }

    fn args(&self, command: &str, tenant: &str, more: &[&str]) -> Vec<String> {
        let mut args = self.workspace.call_args(command, self.gateway.address, tenant, &self.lease);
        args.extend(more.iter().map(|arg| (*arg).to_owned()));
        args
    }

    fn run(&self, command: &str, tenant: &str, more: &[&str]) -> Done {
        let args = self.args(command, tenant, more);
        block_in_place(|| self.workspace.run(&args.iter().map(String::as_str).collect::<Vec<_>>()))
    }

    fn identity(&self) -> PathBuf {
        self.workspace.path("alice")
    }

    /// Sends a request to the REST port with alice's certificate.
    async fn rest(&self, path: &str, headers: &str) -> Answer {
        let pem = self.workspace.path("data/server.pem");
        let io = connect_tls(self.gateway.rest(), &pem, Some(&self.identity())).await;
        exchange(io, &format!("GET {path} HTTP/1.1\r\nHost: provider.test\r\n{headers}")).await
    }

    fn stop(self) -> Done {
        block_in_place(|| self.gateway.stop(Signal::TERM))
    }
}

/// Returns the attributes as text.
fn attributes(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &AnyValue| match value.value.clone().unwrap() {
        Value::StringValue(text) => text,
        Value::IntValue(number) => number.to_string(),
        other => panic!("{other:?}"),
    };
    attributes.iter().map(|one| (one.key.clone(), text(one.value.as_ref().unwrap()))).collect()
}

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

/// Asserts that a span has exactly these attributes.
#[track_caller]
fn has(span: &Span, expected: &[(&str, &str)]) {
    let expected: BTreeMap<String, String> =
        expected.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    assert_eq!(attributes(&span.attributes), expected, "{}", span.name);
    assert_eq!(span.kind, SpanKind::Server as i32);
    assert!(span.events.is_empty() && span.links.is_empty() && span.trace_state.is_empty(), "{span:?}");
    assert!(span.end_time_unix_nano >= span.start_time_unix_nano && span.start_time_unix_nano > 0);
}

/// Makes seven calls of all kinds, and stops the gateway. Returns texts of the tenant that no span may hold.
async fn make_calls(scenario: Scenario) -> Vec<String> {
    block_in_place(|| scenario.workspace.stranger("mallory"));
    // The shutdown ends these two.
    let pem = scenario.workspace.path("data/server.pem");
    let io = connect_tls(scenario.gateway.rest(), &pem, Some(&scenario.identity())).await;
    let mut websocket = WsFollower::open(io, "/lease/7/1/1/logs?follow=true", &[]).await;
    websocket.until("the line", |follower| follower.lines() == [LINE]).await;
    let follower = scenario.args("logs", "alice", &["-f"]);
    let follower = scenario.workspace.start(&follower.iter().map(String::as_str).collect::<Vec<_>>());
    block_in_place(|| follower.until_out("the line", |out| out.contains(LINE).then_some(())));
    for (command, tenant, more, works) in [
        ("status", "alice", &[][..], true),
        ("restart", "alice", &["--all"], true),
        ("status", "mallory", &[], false),
    ] {
        let done = scenario.run(command, tenant, more);
        assert_eq!(done.status.success(), works, "{command}: {done:?}");
    }
    let headers = format!("traceparent: 00-{TRACE}-{PARENT}-01\r\ntracestate: tenant=data\r\n");
    let status = scenario.rest("/lease/7/1/1/status", &headers).await;
    assert_eq!(status.status, 200, "{status:?}");
    let unknown = scenario.rest(&format!("/{SERVICE_NAME}?query"), "").await;
    assert_eq!(unknown.status, 404, "{unknown:?}");
    let lease = &scenario.lease;
    let secrets = [lease.owner().as_str(), lease.provider().as_str(), "alice", SERVICE_NAME, LINE]
        .into_iter()
        .chain(["127.0.0.1", "tenant=data", "query"])
        .map(str::to_owned)
        .collect();
    let done = scenario.stop();
    assert!(done.status.success() && !done.err.contains("failed to export"), "{done:?}");
    assert_eq!(websocket.end().await.0, 1001);
    secrets
}

/// Asserts that a gRPC call has one span, and returns it.
fn grpc_span(received: &Received, method: &str, code: &str, hash: Option<&str>) -> Span {
    let service = "akash.provider.lease.v1.LeaseRPC";
    let mut expected = vec![
        ("rpc.system", "grpc"),
        ("rpc.service", service),
        ("rpc.method", method),
        ("leasemux.transport", "grpc"),
        ("rpc.grpc.status_code", code),
    ];
    expected.extend(hash.map(|hash| ("leasemux.lease.hash", hash)));
    let name = format!("{service}/{method}");
    let mut spans = received.spans();
    spans.retain(|span| span.name == name && attributes(&span.attributes)["rpc.grpc.status_code"] == code);
    assert_eq!(spans.len(), 1, "{method} {code}: {spans:?}");
    has(&spans[0], &expected);
    spans.remove(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_call_is_one_span_without_tenant_data() {
    let collector = Collector::start(None).await;
    let received = &collector.received;
    let variables =
        [("OTEL_EXPORTER_OTLP_HEADERS", "x-key=value"), ("OTEL_RESOURCE_ATTRIBUTES", "site=here")];
    let scenario = Scenario::start(&format!("http://{}", collector.server.address), &variables);
    let hash = scenario.lease.namespace();
    let secrets = make_calls(scenario).await;

    // The gateway ended the follower: it is unavailable.
    let logs = grpc_span(received, "ServiceLogs", "14", Some(&hash));
    assert_eq!(logs.status.unwrap().code, StatusCode::Error as i32);
    let status = grpc_span(received, "ServiceStatus", "0", Some(&hash));
    assert_eq!(status.status.unwrap().code, StatusCode::Unset as i32);
    grpc_span(received, "ServiceRestart", "0", Some(&hash));
    // The refused one.
    grpc_span(received, "ServiceStatus", "16", None);
    let rest = |route: &str, code: &str, transport: &str, more: &[(&str, &str)]| {
        let span = received.span(&format!("GET {route}"));
        let common = [
            ("http.request.method", "GET"),
            ("http.route", route),
            ("http.response.status_code", code),
            ("leasemux.transport", transport),
        ];
        has(&span, &[&common, more].concat());
        span
    };
    let lease = ("leasemux.lease.hash", hash.as_str());
    let logs_route = "/lease/{dseq}/{gseq}/{oseq}/logs";
    let websocket = rest(logs_route, "101", "websocket", &[lease, ("leasemux.websocket.end", "drain")]);
    let status = rest("/lease/{dseq}/{gseq}/{oseq}/status", "200", "rest", &[lease]);
    rest("other", "404", "rest", &[]);
    assert_eq!((hex(&status.trace_id), hex(&status.parent_span_id)), (TRACE.to_owned(), PARENT.to_owned()));
    assert!(websocket.parent_span_id.is_empty() && hex(&websocket.trace_id) != TRACE);
    assert_eq!(received.spans().len(), 7, "{:?}", received.spans());

    let exports = received.0.lock().unwrap();
    assert!(exports.keys.iter().all(|key| key.as_deref() == Some("value")), "{:?}", exports.keys);
    let resource = exports.requests[0].resource_spans[0].resource.clone().unwrap();
    let resource = attributes(&resource.attributes);
    assert_eq!((resource["service.name"].as_str(), resource["site"].as_str()), ("leasemux", "here"));
    assert_eq!(resource["service.version"], env!("CARGO_PKG_VERSION"));
    let bytes: Vec<u8> = exports.requests.iter().flat_map(prost::Message::encode_to_vec).collect();
    for secret in secrets {
        assert!(memchr::memmem::find(&bytes, secret.as_bytes()).is_none(), "{secret}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn absent_collector_affects_no_call_and_is_counted() {
    let scenario = Scenario::start(&format!("http://127.0.0.1:{}", own_port()), &[]);
    assert!(scenario.run("status", "alice", &[]).status.success());
    let dropped = "leasemux_spans_dropped_total{reason=\"export_failed\"}";
    block_in_place(|| scenario.gateway.until_metric(dropped, 1));
    let answer = scenario.rest("/lease/7/1/1/status", "").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(scenario.gateway.metric("leasemux_spans_exported_total"), 0);
    let done = scenario.stop();
    assert!(done.status.success(), "{done:?}");
    assert_eq!(done.err.matches("failed to export traces").count(), 1, "{done:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn collector_with_tls_gets_spans_by_an_authority_of_the_system() {
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder =
        ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut tls =
        builder.with_no_client_auth().with_single_cert(vec![certified.cert.der().clone()], key).unwrap();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let collector = Collector::start(Some(tls)).await;
    let workspace = Workspace::new();
    let authorities = workspace.path("authorities.pem");
    fs::write(&authorities, certified.cert.pem()).unwrap();
    let endpoint = format!("https://localhost:{}", collector.server.address.port());
    let variables = [("SSL_CERT_FILE", authorities.to_str().unwrap()), ("OTEL_SERVICE_NAME", "edge")];
    let scenario = Scenario::start_in(workspace, &endpoint, &variables);
    assert!(scenario.run("status", "alice", &[]).status.success());
    let done = scenario.stop();
    assert!(done.status.success(), "{done:?}");
    assert_eq!(collector.received.spans().len(), 1, "{done:?}");
    let exports = collector.received.0.lock().unwrap();
    let resource = exports.requests[0].resource_spans[0].resource.clone().unwrap();
    assert_eq!(attributes(&resource.attributes)["service.name"], "edge");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_are_sampled_by_the_standard_variable() {
    let collector = Collector::start(None).await;
    let variables = [("OTEL_TRACES_SAMPLER", "always_off")];
    let scenario = Scenario::start(&format!("http://{}", collector.server.address), &variables);
    assert!(scenario.run("status", "alice", &[]).status.success());
    assert!(scenario.stop().status.success());
    assert!(collector.received.spans().is_empty());
}
