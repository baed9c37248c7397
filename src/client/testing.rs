//! Scripted gateway for tests of calls, with real sockets, TLS and gRPC.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fs;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use futures_util::stream::{self, BoxStream, StreamExt as _};
use http::HeaderValue;
use http::header::DATE;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::{Request, Response, Status};
use tower::ServiceExt as _;

use crate::config::Target;
use crate::model::proto::lease::lease_rpc_server::{LeaseRpc, LeaseRpcServer};
use crate::model::proto::lease::replica_status::State as ReplicaState;
use crate::model::proto::lease::{
    Cursor, ReplicaStatus, ServiceLogs, ServiceLogsRequest, ServiceLogsResponse, ServiceRestartRequest,
    ServiceRestartResponse, ServiceStatus, ServiceStatusRequest, ServiceStatusResponse,
};
use crate::model::time::LogTime;

pub(crate) const LEASE: &str =
    "akash1angnwmnsv5vkp4jpgkdcunar8efpvennxwwcev/6194991/1/1/akash1nxq8gmsw2vlz3m68qvyvcf3kh6q269ajvqw6y0";

/// Output whose reader has closed it.
pub(super) struct ClosedOutput;

/// One step of a response.
#[derive(Debug)]
pub(crate) enum Step {
    /// Sends an entry as one message.
    Send(Box<ServiceLogs>),
    /// Ends the stream with this status.
    End(Status),
    /// Closes the connection without an HTTP/2 goodbye.
    Disconnect,
    /// Keeps the stream open and sends nothing more.
    Hang,
}

/// Response to a restart.
#[derive(Debug)]
pub(crate) enum RestartStep {
    Answer(ServiceRestartResponse),
    End(Status),
    /// Closes the connection without an HTTP/2 goodbye.
    Disconnect,
}

/// Server name and presence of a client certificate in a TLS handshake.
pub(crate) type Handshake = (Option<String>, bool);

pub(crate) struct FakeGateway {
    pub(crate) address: SocketAddr,
    dir: TempDir,
    state: Arc<State>,
    _tasks: JoinSet<()>,
}

#[derive(Default)]
struct State {
    answers: Mutex<VecDeque<Vec<Step>>>,
    requests: Mutex<Vec<ServiceLogsRequest>>,
    restart_answers: Mutex<VecDeque<RestartStep>>,
    restarts: Mutex<Vec<ServiceRestartRequest>>,
    handshakes: Mutex<Vec<Handshake>>,
    /// Overrides the `date` of responses.
    date: Mutex<Option<HeaderValue>>,
    /// Replicas of `web` in a status; if empty, status calls are rejected.
    replicas: Mutex<Vec<ReplicaStatus>>,
}

struct Service {
    state: Arc<State>,
    disconnect: CancellationToken,
}

impl Write for ClosedOutput {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

// === impl Step ===

impl Step {
    /// Sends log text of replica 0 of `web`.
    pub(crate) fn lines(text: &str) -> Self {
        let cursor = Cursor { service: "web".into(), instance: "p/web/0".into(), ..Default::default() };
        let logs = text.as_bytes().to_vec().into();
        let entry = ServiceLogs { name: "web".into(), logs, cursor: Some(cursor), ..ServiceLogs::default() };
        Self::Send(Box::new(entry))
    }
}

// === impl FakeGateway ===

impl FakeGateway {
    /// Starts a gateway that answers each call with the next of `answers`, and further calls with
    /// UNAVAILABLE.
    pub(crate) async fn start(answers: Vec<Vec<Step>>) -> Self {
        Self::start_with_alpn(answers, b"h2").await
    }

    pub(crate) async fn start_with_alpn(answers: Vec<Vec<Step>>, alpn: &[u8]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(tls(&dir, alpn)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State { answers: Mutex::new(answers.into()), ..State::default() });
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, acceptor, state.clone()));
        Self { address, dir, state, _tasks: tasks }
    }

    /// Returns a target without client identity that trusts this gateway.
    pub(crate) fn target(&self) -> Target {
        Target {
            gateway: format!("https://{}", self.address).parse().unwrap(),
            identity: None,
            token: None,
            ca: Some(self.dir.path().join("server.pem")),
            insecure: false,
        }
    }

    /// Returns the directory of a tenant's certificate and key.
    pub(crate) fn identity(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    pub(crate) fn requests(&self) -> Vec<ServiceLogsRequest> {
        self.state.requests.lock().unwrap().clone()
    }

    /// Starts a gateway that answers each restart with the next of `answers`.
    pub(crate) async fn with_restarts(answers: Vec<RestartStep>) -> Self {
        let gateway = Self::start(Vec::new()).await;
        gateway.state.restart_answers.lock().unwrap().extend(answers);
        gateway
    }

    pub(crate) fn restarts(&self) -> Vec<ServiceRestartRequest> {
        self.state.restarts.lock().unwrap().clone()
    }

    /// Sets the `date` of later responses.
    pub(crate) fn set_date(&mut self, date: LogTime) {
        let date = jiff::Timestamp::from_second(date.parts().0).unwrap();
        let date = jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&date).unwrap();
        *self.state.date.lock().unwrap() = Some(date.parse().unwrap());
    }

    /// Sets the replicas of `web` in status responses, all started at the epoch.
    pub(crate) fn set_replicas(&mut self, replicas: &[u32]) {
        let started_at = Some(prost_types::Timestamp::default());
        let replicas = replicas.iter().map(|replica| ReplicaStatus {
            replica: *replica,
            state: ReplicaState::Running.into(),
            started_at,
            ..Default::default()
        });
        *self.state.replicas.lock().unwrap() = replicas.collect();
    }

    pub(crate) fn handshakes(&self) -> Vec<Handshake> {
        self.state.handshakes.lock().unwrap().clone()
    }
}

fn tls(dir: &TempDir, alpn: &[u8]) -> ServerConfig {
    let names = ["127.0.0.1", "localhost", "mtls.localhost"].map(str::to_owned);
    let key = KeyPair::generate().unwrap();
    let server = CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
    fs::write(dir.path().join("server.pem"), server.pem()).unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let tenant_key = KeyPair::generate().unwrap();
    let tenant = CertificateParams::new(["tenant".to_owned()]).unwrap().signed_by(&tenant_key, &ca).unwrap();
    fs::write(dir.path().join("cert.pem"), tenant.pem()).unwrap();
    fs::write(dir.path().join("key.pem"), tenant_key.serialize_pem()).unwrap();

    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(ca.der().clone()).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![server.der().clone()], key)
        .unwrap();
    config.alpn_protocols = vec![alpn.to_vec()];
    config
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, state: Arc<State>) {
    let mut connections = JoinSet::new();
    while let Ok((tcp, _)) = listener.accept().await {
        connections.spawn(serve(tcp, acceptor.clone(), state.clone()));
    }
}

async fn serve(tcp: TcpStream, acceptor: TlsAcceptor, state: Arc<State>) {
    let Ok(stream) = acceptor.accept(tcp).await else {
        return;
    };
    let tls = stream.get_ref().1;
    let handshake = (tls.server_name().map(str::to_owned), tls.peer_certificates().is_some());
    state.handshakes.lock().unwrap().push(handshake);
    let disconnect = CancellationToken::new();
    let routes =
        Routes::new(LeaseRpcServer::new(Service { state: state.clone(), disconnect: disconnect.clone() }));
    let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let (routes, date) = (routes.clone(), state.date.lock().unwrap().clone());
        async move {
            let mut response = routes.oneshot(request).await.unwrap();
            response.headers_mut().extend(date.map(|date| (DATE, date)));
            Ok::<_, Infallible>(response)
        }
    });
    let connection =
        http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service);
    let _ = disconnect.run_until_cancelled(connection).await;
}

// === impl Service ===

#[tonic::async_trait]
impl LeaseRpc for Service {
    type ServiceStatusStream = BoxStream<'static, Result<ServiceStatusResponse, Status>>;
    type ServiceLogsStream = BoxStream<'static, Result<ServiceLogsResponse, Status>>;

    async fn service_logs(
        &self,
        request: Request<ServiceLogsRequest>,
    ) -> Result<Response<Self::ServiceLogsStream>, Status> {
        self.state.requests.lock().unwrap().push(request.into_inner());
        let next = self.state.answers.lock().unwrap().pop_front();
        let steps = next.ok_or_else(|| Status::unavailable("nothing more in the script"))?;
        if let [Step::End(status)] = steps.as_slice() {
            return Err(status.clone());
        }
        let disconnect = self.disconnect.clone();
        let answer = stream::iter(steps).filter_map(move |step| {
            let disconnect = disconnect.clone();
            async move {
                match step {
                    Step::Send(entry) => Some(Ok(ServiceLogsResponse { services: vec![*entry] })),
                    Step::End(status) => Some(Err(status)),
                    Step::Disconnect => {
                        // Lets the earlier entries leave first.
                        tokio::task::yield_now().await;
                        disconnect.cancel();
                        std::future::pending().await
                    }
                    Step::Hang => std::future::pending().await,
                }
            }
        });
        Ok(Response::new(answer.boxed()))
    }

    async fn service_status(
        &self,
        _: Request<ServiceStatusRequest>,
    ) -> Result<Response<Self::ServiceStatusStream>, Status> {
        let replica_status = self.state.replicas.lock().unwrap().clone();
        if replica_status.is_empty() {
            return Err(Status::unimplemented("not in the script"));
        }
        let service = ServiceStatus { name: "web".into(), replica_status, ..Default::default() };
        let answer = ServiceStatusResponse { services: vec![service], stale_since: None };
        Ok(Response::new(stream::iter([Ok(answer)]).boxed()))
    }

    async fn service_restart(
        &self,
        request: Request<ServiceRestartRequest>,
    ) -> Result<Response<ServiceRestartResponse>, Status> {
        self.state.restarts.lock().unwrap().push(request.into_inner());
        let next = self.state.restart_answers.lock().unwrap().pop_front();
        match next {
            Some(RestartStep::Answer(answer)) => Ok(Response::new(answer)),
            Some(RestartStep::End(status)) => Err(status),
            Some(RestartStep::Disconnect) => {
                self.disconnect.cancel();
                std::future::pending().await
            }
            None => Err(Status::unimplemented("not in the script")),
        }
    }
}
