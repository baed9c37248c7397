//! The command-line client's JSON output and exit codes, against a gateway that answers as a test wants.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::process::Output;
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use leasemux::model::proto::lease as proto;
use prost_types::Timestamp;
use proto::lease_rpc_server::{LeaseRpc, LeaseRpcServer};
use rustls::ServerConfig;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tonic::service::Routes;
use tonic::{Code, Request, Response, Status};
use tower::ServiceExt as _;

use super::{compare, compare_set, run};
use crate::support::account;
use crate::support::process::Workspace;

/// The `dseq` of a lease for which every call succeeds.
const FULL: u64 = 1;

/// The same, without losses and failures.
const CLEAN: u64 = 2;

/// The same, with a restart that is not over.
const PENDING: u64 = 3;

/// For a lease with a greater `dseq`, calls fail with the gRPC code that it exceeds this by.
const FAILING: u64 = 1_000;

/// Bytes of a line that the client does not hold until its end.
const LONG: usize = 1_100_000;

/// A gateway that knows the leases above.
#[derive(Clone, Copy)]
struct Fake;

/// Its address, until it is dropped.
struct Running {
    address: SocketAddr,
    _tasks: JoinSet<()>,
}

fn at(seconds: i64) -> Timestamp {
    Timestamp { seconds, nanos: 120_000_000 }
}

fn entry(logs: &'static [u8]) -> proto::ServiceLogs {
    let instance = "3f0c5c2e-0000-4000-8000-000000000001/web/3".to_owned();
    let cursor = proto::Cursor {
        service: "web".into(),
        replica: 1,
        instance,
        time: Some(at(10)),
        ordinal: 1,
        offset: 0,
    };
    proto::ServiceLogs {
        name: "web".into(),
        replica: 1,
        logs: logs.into(),
        cursor: Some(cursor),
        ..Default::default()
    }
}

/// One entry of each form: lines, pieces, bytes that are not UTF-8, each cause of a gap, each kind of event.
fn entries(dseq: u64) -> Vec<proto::ServiceLogs> {
    use proto::gap::Cause;
    use proto::line_part::Stream;
    use proto::replica_event::Kind;
    let mut all = vec![entry(b"1970-01-01T00:00:10.120000000Z one\n1970-01-01T00:00:10.120000001Z \xff\n")];
    for (logs, continues, more) in
        [(&b"1970-01-01T00:00:11.000000000Z half"[..], false, true), (b" a line\n", true, false)]
    {
        let part = proto::LinePart { stream: Stream::Stderr.into(), continues, more };
        all.push(proto::ServiceLogs { part: Some(part), ..entry(logs) });
    }
    let causes = [Cause::Unspecified, Cause::Lag, Cause::Rotated, Cause::Source, Cause::Limit];
    for (number, cause) in (1..).zip(causes).filter(|_| dseq == FULL) {
        let exact = number % 2 == 0;
        let (from, to) = if exact { (Some(at(12)), Some(at(13))) } else { (None, None) };
        let gap = proto::Gap { lines: number, bytes: 10 * number, from, to, cause: cause.into(), exact };
        all.push(proto::ServiceLogs { gap: Some(gap), ..entry(b"[a notice]\n") });
    }
    for (number, kind) in
        (0..).zip([Kind::Unspecified, Kind::Started, Kind::Ended, Kind::Waiting, Kind::Gone])
    {
        let known = kind == Kind::Ended;
        let event = proto::ReplicaEvent {
            kind: kind.into(),
            instance: "3f0c5c2e-0000-4000-8000-000000000001/web/3".into(),
            time: Some(at(20 + number)),
            exit_code: known.then_some(137),
            signal: known.then_some(9),
            reason: if known { "OOMKilled".into() } else { String::new() },
            message: if known { "out of memory".into() } else { String::new() },
        };
        all.push(proto::ServiceLogs { event: Some(event), cursor: None, ..entry(b"") });
    }
    // A line that the client prints in parts because it is too long to hold.
    let long = [b"1970-01-01T00:00:30.000000000Z begun", &vec![b'.'; LONG][..]].concat();
    let part = |continues, more| proto::LinePart { stream: Stream::Stdout.into(), continues, more };
    for (logs, part) in [(long, part(false, true)), (b"ended\n".to_vec(), part(true, false))] {
        all.push(proto::ServiceLogs { part: Some(part), logs: logs.into(), ..entry(b"") });
    }
    all
}

fn status() -> proto::ServiceStatusResponse {
    use proto::replica_status::State;
    let states = [State::Unspecified, State::Waiting, State::Running, State::Terminated, State::Unknown];
    let replica_status = (0..).zip(states).map(|(replica, state)| proto::ReplicaStatus {
        replica,
        instance: "3f0c5c2e-0000-4000-8000-000000000001/web/3".into(),
        state: state.into(),
        ready: state == State::Running,
        restarts: 3,
        last_exit_code: Some(1),
        last_signal: Some(9),
        last_reason: "Error".into(),
        started_at: Some(at(30)),
        message: "CrashLoopBackOff: back-off".into(),
    });
    let port = proto::ForwarderPortStatus {
        host: "provider.example.com".into(),
        port: 80,
        external_port: 30_080,
        proto: "TCP".into(),
        name: "web".into(),
    };
    let ip = proto::LeaseIpStatus {
        port: 53,
        external_port: 5_353,
        protocol: "UDP".into(),
        ip: "192.0.2.1".into(),
    };
    let counts = proto::LeaseServiceStatus {
        available: 1,
        total: 2,
        uris: vec!["web.example.com".into()],
        observed_generation: 3,
        replicas: 4,
        updated_replicas: 5,
        ready_replicas: 6,
        available_replicas: 7,
    };
    let full = proto::ServiceStatus {
        name: "web".into(),
        status: Some(counts),
        ports: vec![port],
        ips: vec![ip],
        replica_status: replica_status.collect(),
    };
    // What is not known is absent.
    let bare = proto::ServiceStatus {
        name: "api".into(),
        replica_status: vec![proto::ReplicaStatus::default()],
        ..Default::default()
    };
    proto::ServiceStatusResponse { services: vec![full, bare], stale_since: Some(at(40)) }
}

fn restart(dseq: u64) -> proto::ServiceRestartResponse {
    use proto::service_restart_status::State;
    let states = match dseq {
        FULL => &[State::Active, State::Failure, State::Pending][..],
        PENDING => &[State::Active, State::Pending],
        _ => &[State::Active],
    };
    let each = (0..).zip(states).map(|(replica, state): (u32, _)| proto::ServiceRestartStatus {
        service: "web".into(),
        replica: replica.to_string(),
        state: (*state).into(),
        message: (*state == State::Failure).then(|| "not attempted: the gateway is shutting down".into()),
    });
    proto::ServiceRestartResponse { status: each.collect() }
}

/// The lease's `dseq`, unless its calls fail.
fn dseq(lease: Option<leasemux::model::proto::market::LeaseId>) -> Result<u64, Status> {
    let dseq = lease.unwrap().dseq;
    match dseq.checked_sub(FAILING) {
        Some(code) => Err(Status::new(Code::from_i32(i32::try_from(code).unwrap()), "as asked for")),
        None => Ok(dseq),
    }
}

#[tonic::async_trait]
impl LeaseRpc for Fake {
    type ServiceStatusStream = BoxStream<'static, Result<proto::ServiceStatusResponse, Status>>;
    type ServiceLogsStream = BoxStream<'static, Result<proto::ServiceLogsResponse, Status>>;

    async fn service_logs(
        &self,
        request: Request<proto::ServiceLogsRequest>,
    ) -> Result<Response<Self::ServiceLogsStream>, Status> {
        let entries = entries(dseq(request.into_inner().lease_id)?);
        let answers =
            entries.into_iter().map(|entry| Ok(proto::ServiceLogsResponse { services: vec![entry] }));
        Ok(Response::new(stream::iter(answers).boxed()))
    }

    async fn service_status(
        &self,
        request: Request<proto::ServiceStatusRequest>,
    ) -> Result<Response<Self::ServiceStatusStream>, Status> {
        dseq(request.into_inner().lease_id)?;
        Ok(Response::new(stream::iter([Ok(status())]).boxed()))
    }

    async fn service_restart(
        &self,
        request: Request<proto::ServiceRestartRequest>,
    ) -> Result<Response<proto::ServiceRestartResponse>, Status> {
        Ok(Response::new(restart(dseq(request.into_inner().lease_id)?)))
    }
}

async fn start() -> Running {
    let key = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = key.cert.der().clone();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key.signing_key.serialize_der().try_into().unwrap())
        .unwrap();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((tcp, _)) = listener.accept().await {
            connections.spawn(serve(tcp, acceptor.clone()));
        }
    });
    Running { address, _tasks: tasks }
}

async fn serve(tcp: TcpStream, acceptor: TlsAcceptor) {
    let Ok(stream) = acceptor.accept(tcp).await else { return };
    let routes = Routes::new(LeaseRpcServer::new(Fake));
    let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let routes = routes.clone();
        async move { Ok::<_, Infallible>(routes.oneshot(request).await.unwrap()) }
    });
    let _ = http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
}

/// Runs a command for the lease with this `dseq`.
async fn call(gateway: SocketAddr, command: &str, dseq: u64, more: &[&str]) -> Output {
    let lease = format!("{}/{dseq}/1/1/{}", account(1), account(200));
    let gateway = format!("--gateway=https://{gateway}");
    let args = [&[command, &lease, &gateway, "--insecure", "--token=a.b.c"], more].concat();
    let args: Vec<String> = args.into_iter().map(str::to_owned).collect();
    let run = move || run(&args.iter().map(String::as_str).collect::<Vec<_>>());
    tokio::task::spawn_blocking(run).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn surface_json_output_of_the_client() {
    let fake = start().await;
    for (command, more) in
        [("logs", &["--timestamps"][..]), ("status", &[]), ("restart", &["--all", "--request-id=nightly"])]
    {
        let output = call(fake.address, command, FULL, &[&["--output=json"], more].concat()).await;
        let out = String::from_utf8(output.stdout).unwrap();
        assert!(!out.is_empty(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        compare(&format!("{command}.json"), &out.replace(&".".repeat(LONG / 10), "."));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn surface_exit_codes() {
    let fake = start().await;
    let mut found = BTreeSet::new();
    let mut add = |what: &str, output: &Output| {
        found.insert(format!("{what}: {}", output.status.code().unwrap()));
    };
    for code in 0..=16 {
        let output = call(fake.address, "status", FAILING + code, &[]).await;
        add(&format!("gRPC {:?}", Code::from_i32(i32::try_from(code).unwrap())), &output);
    }
    for (what, command, dseq) in [
        ("logs: a gap", "logs", FULL),
        ("logs: complete", "logs", CLEAN),
        ("status: complete", "status", FULL),
        ("restart: one failed", "restart --all", FULL),
        ("restart: all active", "restart --all", CLEAN),
        ("restart: one pending", "restart --all", PENDING),
    ] {
        let (command, more) =
            command.split_once(' ').map_or((command, vec![]), |(name, more)| (name, vec![more]));
        add(what, &call(fake.address, command, dseq, &more).await);
    }
    let closed = TcpListener::bind(("127.0.0.1", 0)).await.unwrap().local_addr().unwrap();
    add("gateway not reached", &call(closed, "status", FULL, &[]).await);
    add("wrong usage", &run(&["status", "--nonsense"]));
    add("no command", &run(&[]));
    add("help", &run(&["--help"]));
    let help = super::help(&[]);
    let (_, list) = help.split_once("Exit codes:").unwrap();
    let number = |line: &str| line.split_whitespace().next()?.parse::<u8>().ok();
    found.extend(list.lines().filter_map(number).map(|code| format!("listed in the help: {code}")));
    compare_set("exit-codes.txt", &found);
}

/// Adds the path of each member of `value`.
fn members(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(all) => {
            all.iter().for_each(|(name, value)| members(value, &format!("{path}.{name}"), found));
        }
        Value::Array(all) => all.iter().for_each(|value| members(value, &format!("{path}[]"), found)),
        Value::String(_) | Value::Number(_) | Value::Bool(_) | Value::Null => {
            found.insert(path.to_owned());
        }
    }
}

#[test]
fn surface_tokens_and_identity_files() {
    let workspace = Workspace::new();
    let lease = workspace.stranger("alice").to_string();
    let text = |name: &str| workspace.path(name).to_str().unwrap().to_owned();
    let mut found = BTreeSet::new();
    for (name, more) in [
        ("full", &[][..]),
        ("scoped", &["--scope=logs,status"]),
        ("granular", &["--scope=restart", "--lease", &lease, "--service=web"]),
    ] {
        let token = workspace.run(&[&["token", "new", "--identity", &text("alice")], more].concat());
        let key = std::fs::read_to_string(workspace.path("alice/account.pub")).unwrap();
        let key = key.split_whitespace().nth(1).unwrap().to_owned();
        let claims = workspace.run(&["token", "check", token.out.trim(), "--key", &key]);
        members(&serde_json::from_str(&claims.out).unwrap(), &format!("token {name} claims"), &mut found);
        let header = token.out.split('.').next().unwrap();
        let header = data_encoding::BASE64URL_NOPAD.decode(header.as_bytes()).unwrap();
        found.insert(format!("token {name} header {}", String::from_utf8(header).unwrap()));
    }
    for entry in std::fs::read_dir(workspace.path("alice")).unwrap() {
        let entry = entry.unwrap();
        let mode = std::os::unix::fs::PermissionsExt::mode(&entry.metadata().unwrap().permissions());
        found.insert(format!("identity {} {mode:o}", entry.file_name().to_str().unwrap()));
    }
    compare_set("tokens.txt", &found);
}
