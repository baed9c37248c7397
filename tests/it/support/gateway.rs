//! A gateway inside the test: the real edge and multiplexer over in-memory pipes, with a real gRPC client.

use std::net::SocketAddr;
use std::sync::Arc;

use futures_core::future::BoxFuture;
use hyper_util::rt::TokioIo;
use leasemux::access::account::AccountKey;
use leasemux::access::authenticator::{Authenticator, ClientCertificate};
use leasemux::access::cert::Serial;
use leasemux::access::identity::IdentityFiles;
use leasemux::access::trust::{Trust, TrustAnswer, TrustedItem, Unavailable};
use leasemux::access::wallet::{Mnemonic, Wallet};
use leasemux::edge::admin::Exporter;
use leasemux::edge::connection::Connections;
use leasemux::edge::drain::Drain;
use leasemux::edge::published::DefaultProto;
use leasemux::edge::rest::{RestService, RestSettings};
use leasemux::edge::server::{self, Protocol, Server};
use leasemux::edge::service::LeaseService;
use leasemux::edge::tls::SniConfigs;
use leasemux::exchange::fleet::Fleet;
use leasemux::logs::actor::ActorContext;
use leasemux::logs::actors::ActorRegistry;
use leasemux::logs::entry_name::NameStyle;
use leasemux::logs::live::FleetView;
use leasemux::logs::memory_budget::MemoryBudget;
use leasemux::logs::ring::LagReport;
use leasemux::model::id::{LeaseId, Owner};
use leasemux::model::limits::Limits;
use leasemux::model::metrics::Metrics;
use leasemux::model::proto;
use leasemux::model::proto::lease::lease_rpc_client::LeaseRpcClient;
use leasemux::model::proto::lease::{ServiceLogsRequest, ServiceLogsResponse};
use leasemux::model::time::LogTime;
use leasemux::platform::Platform;
use leasemux::restart::RestartManager;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};
use tokio::sync::watch;
use tonic::metadata::MetadataValue;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status, Streaming};
use tonic_health::server::HealthReporter;

use super::fake_platform::FakePlatform;
use super::loss_check::Received;

/// Capacity of a pipe. Smaller than a stream's send buffer, so that a peer that does not read has an effect.
const PIPE_BYTES: usize = 16 * 1024;

/// Receive window of a client.
const WINDOW_BYTES: u32 = 65_535;

/// A gateway under test. Clones share it.
#[derive(Clone)]
pub(crate) struct Gateway {
    pub(crate) platform: FakePlatform,
    pub(crate) drain: Drain,
    pub(crate) restarts: RestartManager,
    pub(crate) health: HealthReporter,
    exporter: Exporter,
    connections: Connections,
    service: LeaseService,
    trust: Arc<Everyone>,
    fleet: Option<Fleet>,
    actors: ActorRegistry,
}

/// Trusts one certificate per tenant.
#[derive(Debug, Default)]
struct Everyone {
    certificates: dashmap::DashMap<Owner, TrustedItem>,
    keys: dashmap::DashMap<Owner, TrustedItem<AccountKey>>,
    behavior: watch::Sender<TrustBehavior>,
}

/// A client that sends a token.
pub(crate) type TokenClient = LeaseRpcClient<InterceptedService<Channel, Add>>;

type Add = Box<dyn FnMut(Request<()>) -> Result<Request<()>, Status> + Send>;

/// Behaviour of the trust source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum TrustBehavior {
    #[default]
    AtOnce,
    /// Does not answer until the behaviour changes.
    Later,
    /// Answers that it is unavailable.
    Never,
}

impl Trust for Everyone {
    fn certificate<'a>(
        &'a self,
        owner: &'a Owner,
        _serial: &'a Serial,
    ) -> BoxFuture<'a, Result<TrustAnswer, Unavailable>> {
        let trusted = self.certificates.get(owner).map(|trusted| trusted.clone());
        Box::pin(self.answer(trusted))
    }

    fn account_key<'a>(
        &'a self,
        owner: &'a Owner,
    ) -> BoxFuture<'a, Result<TrustAnswer<AccountKey>, Unavailable>> {
        let trusted = self.keys.get(owner).map(|trusted| trusted.clone());
        Box::pin(self.answer(trusted))
    }
}

impl Everyone {
    async fn answer<T>(&self, trusted: Option<TrustedItem<T>>) -> Result<TrustAnswer<T>, Unavailable> {
        let mut behavior = self.behavior.subscribe();
        if *behavior.wait_for(|behavior| *behavior != TrustBehavior::Later).await.unwrap()
            == TrustBehavior::Never
        {
            return Err(Unavailable);
        }
        Ok(trusted.map_or(TrustAnswer::Unknown, TrustAnswer::Trusted))
    }
}

impl Gateway {
    pub(crate) fn new(limits: Limits) -> Self {
        Self::over(FakePlatform::default(), Arc::default(), limits)
    }

    /// Creates a gateway with this trust source instead of the one that [`Gateway::tenant`] fills.
    pub(crate) fn believing(trust: Arc<dyn Trust>, limits: Limits) -> Self {
        Self::assemble(FakePlatform::default(), None, trust, Arc::default(), limits, |_| None)
    }

    /// Creates a gateway with another platform. The fake platform stays empty.
    pub(crate) fn on(platform: Arc<dyn Platform>) -> Self {
        Self::on_with(platform, Limits::default())
    }

    /// The same, with these limits.
    pub(crate) fn on_with(platform: Arc<dyn Platform>, limits: Limits) -> Self {
        let trust = Arc::<Everyone>::default();
        let believed = Arc::clone(&trust) as Arc<dyn Trust>;
        Self::assemble(FakePlatform::default(), Some(platform), believed, trust, limits, |_| None)
    }

    /// The same, in a fleet.
    pub(crate) fn on_in_fleet(
        platform: Arc<dyn Platform>,
        limits: Limits,
        fleet: impl FnOnce(Metrics) -> Fleet,
    ) -> Self {
        let trust = Arc::<Everyone>::default();
        let believed = Arc::clone(&trust) as Arc<dyn Trust>;
        let fleet = |metrics| Some(fleet(metrics));
        Self::assemble(FakePlatform::default(), Some(platform), believed, trust, limits, fleet)
    }

    fn over(platform: FakePlatform, trust: Arc<Everyone>, limits: Limits) -> Self {
        Self::assemble(platform, None, Arc::clone(&trust) as Arc<dyn Trust>, trust, limits, |_| None)
    }

    fn assemble(
        fake: FakePlatform,
        platform: Option<Arc<dyn Platform>>,
        believed: Arc<dyn Trust>,
        trust: Arc<Everyone>,
        limits: Limits,
        fleet: impl FnOnce(Metrics) -> Option<Fleet>,
    ) -> Self {
        let exporter = Exporter::new().unwrap();
        let context = ActorContext {
            memory: MemoryBudget::new(limits.memory_budget, &exporter.metrics),
            platform: platform.unwrap_or_else(|| Arc::new(fake.clone())),
            limits: Arc::new(limits),
            metrics: exporter.metrics.clone(),
            names: NameStyle::default(),
        };
        let restarts = RestartManager::new(Arc::clone(&context.platform), exporter.metrics.clone());
        let fleet = fleet(exporter.metrics.clone());
        let actors = match &fleet {
            Some(fleet) => ActorRegistry::in_fleet(context, fleet.clone()),
            None => ActorRegistry::new(context),
        };
        exporter.followers.set(actors.clone());
        let drain = Drain::default();
        let authenticator = Authenticator::new(believed);
        let service = LeaseService::new(authenticator, actors.clone(), restarts.clone(), drain.clone());
        let (routes, health) = server::routes().unwrap();
        let connections = Connections::new(service.clone(), routes);
        Self { platform: fake, drain, restarts, health, exporter, connections, service, trust, fleet, actors }
    }

    /// Returns its part of the fleet.
    pub(crate) fn fleet(&self) -> &Fleet {
        self.fleet.as_ref().expect("a gateway in a fleet")
    }

    /// Returns the fleet as it sees it.
    pub(crate) fn fleet_view(&self) -> Option<FleetView> {
        self.actors.fleet()
    }

    /// Returns the same gateway, with connections to a port of this proto.
    pub(crate) fn for_proto(&self, proto: DefaultProto) -> Self {
        Self { connections: self.connections.for_proto(proto), ..self.clone() }
    }

    /// Returns a server with real sockets and TLS.
    pub(crate) fn server(&self, tls: impl Into<SniConfigs>) -> Server {
        Server {
            protocol: Protocol::Grpc,
            connections: self.connections.clone(),
            tls: tls.into(),
            trusted_proxies: Arc::default(),
            splicing: None,
        }
    }

    /// Returns a channel of a caller with this certificate, or without one.
    pub(crate) async fn channel_of(&self, certificate: Option<Vec<u8>>) -> Channel {
        self.channel_over(self.connect(certificate)).await
    }

    /// Returns a channel over the client's end of a connection.
    pub(crate) async fn channel_over(&self, pipe: DuplexStream) -> Channel {
        let mut pipe = Some(pipe);
        let connector = tower::service_fn(move |_: Uri| {
            let pipe = pipe.take();
            async move { pipe.map(TokioIo::new).ok_or_else(|| std::io::Error::other("one connection only")) }
        });
        // The smallest windows of HTTP/2, so that an unread stream blocks soon.
        Endpoint::from_static("http://gateway")
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .connect_with_connector(connector)
            .await
            .unwrap()
    }

    /// Returns the client's end of a connection without an address.
    pub(crate) fn connect(&self, certificate: Option<Vec<u8>>) -> DuplexStream {
        self.connect_from(certificate, None)
    }

    /// Returns the client's end of a connection from an address.
    pub(crate) fn connect_from(
        &self,
        certificate: Option<Vec<u8>>,
        address: Option<SocketAddr>,
    ) -> DuplexStream {
        let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
        self.serve(ours, certificate, address);
        theirs
    }

    /// Serves a connection over any transport.
    pub(crate) fn serve(
        &self,
        io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        certificate: Option<Vec<u8>>,
        address: Option<SocketAddr>,
    ) {
        self.drain.spawn(self.connection(io, certificate, address));
    }

    /// Returns the task that serves a connection. Dropping it cuts the connection.
    pub(crate) fn connection<IO: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        &self,
        io: IO,
        certificate: Option<Vec<u8>>,
        address: Option<SocketAddr>,
    ) -> impl Future<Output = ()> + Send + use<IO> {
        let chain = certificate.map(|der| vec![CertificateDer::from(der)]);
        let certificate = ClientCertificate::new(chain.as_deref());
        let connections = self.connections.clone();
        async move { _ = connections.serve(io, certificate, address).await }
    }

    /// Returns the client's end of a connection to a REST port with these settings.
    pub(crate) fn connect_rest(
        &self,
        settings: RestSettings,
        certificate: Option<Vec<u8>>,
        address: Option<SocketAddr>,
    ) -> DuplexStream {
        self.connect_rest_to(&self.rest_service(settings), certificate, address)
    }

    /// Creates a REST port with these settings.
    pub(crate) fn rest_service(&self, settings: RestSettings) -> RestService {
        RestService::new(self.service.clone(), settings)
    }

    /// Returns the client's end of a connection to a REST port.
    pub(crate) fn connect_rest_to(
        &self,
        service: &RestService,
        certificate: Option<Vec<u8>>,
        address: Option<SocketAddr>,
    ) -> DuplexStream {
        let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
        self.serve_rest(service, ours, certificate, address);
        theirs
    }

    /// Serves a REST port on `io`.
    pub(crate) fn serve_rest(
        &self,
        service: &RestService,
        io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        certificate: Option<Vec<u8>>,
        address: Option<SocketAddr>,
    ) {
        let chain = certificate.map(|der| vec![CertificateDer::from(der)]);
        let certificate = ClientCertificate::new(chain.as_deref());
        let service = service.clone();
        self.drain.spawn(async move { _ = service.serve(io, certificate, address).await });
    }

    /// Creates a trusted tenant. Returns the owner and the certificate.
    pub(crate) fn tenant(&self) -> (Owner, Vec<u8>) {
        let dir = tempfile::tempdir().unwrap();
        let owner = IdentityFiles::create(&dir.path().join("tenant"), LogTime::now()).unwrap();
        let (chain, _) = IdentityFiles::load(&dir.path().join("tenant")).unwrap().into_parts();
        let der = chain[0].to_vec();
        self.believe(&owner, &der);
        (owner, der)
    }

    /// Creates a tenant with an account key, and trusts its tokens.
    pub(crate) fn account(&self) -> Wallet {
        let wallet = Mnemonic::generate().unwrap().wallet().unwrap();
        self.trust.keys.insert(wallet.key().address(), TrustedItem::new(wallet.key()));
        wallet
    }

    /// Withdraws the trust in a tenant's account key.
    pub(crate) fn withdraw_account(&self, owner: &Owner) {
        self.trust.keys.remove(owner).unwrap().1.end_trust();
    }

    /// Returns a client that sends this token.
    pub(crate) async fn client_with_token(&self, token: &str) -> TokenClient {
        let authorization: MetadataValue<_> = format!("Bearer {token}").parse().unwrap();
        let add: Add = Box::new(move |mut request| {
            request.metadata_mut().insert("authorization", authorization.clone());
            Ok(request)
        });
        LeaseRpcClient::with_interceptor(self.channel_of(None).await, add)
    }

    /// Trusts this certificate of the tenant from now on.
    pub(crate) fn believe(&self, owner: &Owner, der: &[u8]) {
        self.trust.certificates.insert(owner.clone(), TrustedItem::new(der.into()));
    }

    /// Withdraws the trust in a tenant.
    pub(crate) fn withdraw(&self, owner: &Owner) {
        self.trust.certificates.remove(owner).unwrap().1.end_trust();
    }

    /// Sets the behaviour of the trust source.
    pub(crate) fn set_trust(&self, behavior: TrustBehavior) {
        self.trust.behavior.send_replace(behavior);
    }

    /// Returns the number of calls that wait for the trust source.
    pub(crate) fn calls_at_the_gate(&self) -> usize {
        self.trust.behavior.receiver_count()
    }

    /// Returns a client of a caller with this certificate.
    pub(crate) async fn client(&self, certificate: &[u8]) -> LeaseRpcClient<Channel> {
        LeaseRpcClient::new(self.channel_of(Some(certificate.to_vec())).await)
    }

    /// Waits until a condition holds. Time advances.
    pub(crate) async fn eventually(&self, condition: impl Fn(&Self) -> bool) {
        let patience = std::time::Duration::from_secs(1_000);
        let wait = async {
            // The interval grows, because a check may render all metrics.
            let mut pause = std::time::Duration::from_millis(10);
            while !condition(self) {
                tokio::time::sleep(pause).await;
                pause = (2 * pause).min(std::time::Duration::from_millis(640));
            }
        };
        tokio::time::timeout(patience, wait).await.expect("the condition holds at last");
    }

    /// Returns the metrics page.
    pub(crate) fn metrics(&self) -> String {
        self.exporter.render()
    }

    /// Returns the lagging followers, at most `most` of them.
    pub(crate) fn lagging(&self, most: usize) -> LagReport {
        self.exporter.followers.lagging(most)
    }

    /// Returns the value of a metric, named with its labels in Prometheus form.
    pub(crate) fn metric(&self, series: &str) -> u64 {
        let text = self.metrics();
        let line =
            text.lines().find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')));
        let line = line.unwrap_or_else(|| panic!("no {series} in\n{text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }
}

/// A gateway with one tenant that has one lease.
pub(crate) struct Setup {
    pub(crate) gateway: Gateway,
    pub(crate) lease: LeaseId,
    pub(crate) certificate: Vec<u8>,
}

impl Setup {
    /// Creates a gateway and a lease with these services.
    pub(crate) fn new(limits: Limits, services: &[(&str, u32)]) -> Self {
        let gateway = Gateway::new(limits);
        let (owner, certificate) = gateway.tenant();
        let lease = LeaseId::new(owner.as_str(), 7, 1, 1, super::account(200).as_str()).unwrap();
        gateway.platform.add_lease(&lease, services);
        Self { gateway, lease, certificate }
    }

    /// Returns another gateway for the same platform.
    pub(crate) fn successor(&self) -> Self {
        let old = &self.gateway;
        let gateway = Gateway::over(old.platform.clone(), Arc::clone(&old.trust), Limits::default());
        Self { gateway, lease: self.lease.clone(), certificate: self.certificate.clone() }
    }

    /// Returns a gateway in a fleet, for the same platform.
    pub(crate) fn in_fleet(&self, limits: Limits, fleet: impl FnOnce(Metrics) -> Fleet) -> Self {
        let (platform, trust) = (self.gateway.platform.clone(), Arc::clone(&self.gateway.trust));
        let believed = Arc::clone(&trust) as Arc<dyn Trust>;
        let fleet = |metrics| Some(fleet(metrics));
        let gateway = Gateway::assemble(platform, None, believed, trust, limits, fleet);
        Self { gateway, lease: self.lease.clone(), certificate: self.certificate.clone() }
    }

    /// Opens a new stream from the cursors of an ended one. What was received is kept.
    pub(crate) async fn resume(&self, ended: Stream, request: ServiceLogsRequest) -> Stream {
        let received = ended.received;
        drop((ended.responses, ended.client));
        let resume = received.cursors.values().cloned().collect();
        let stream = self.open(ServiceLogsRequest { resume, ..request }).await.unwrap();
        Stream { received, ..stream }
    }

    /// Returns a request for all logs of the lease.
    pub(crate) fn request(&self) -> ServiceLogsRequest {
        ServiceLogsRequest { lease_id: Some(proto_lease(&self.lease)), ..ServiceLogsRequest::default() }
    }

    /// Returns each response of a call on its own connection, and its status.
    pub(crate) async fn responses(&self, request: ServiceLogsRequest) -> (Vec<ServiceLogsResponse>, Status) {
        let mut client = self.gateway.client(&self.certificate).await;
        let mut stream = client.service_logs(request).await.unwrap().into_inner();
        let mut responses = Vec::new();
        loop {
            match stream.message().await {
                Ok(Some(response)) => responses.push(response),
                Ok(None) => return (responses, Status::ok("")),
                Err(status) => return (responses, status),
            }
        }
    }

    /// Opens a stream on its own connection.
    pub(crate) async fn open(&self, request: ServiceLogsRequest) -> Result<Stream, Status> {
        let mut client = self.gateway.client(&self.certificate).await;
        let stream = client.service_logs(request).await?.into_inner();
        Ok(Stream { responses: stream, received: Received::default(), client })
    }
}

/// Converts a lease to the protocol's type.
pub(crate) fn proto_lease(lease: &LeaseId) -> proto::market::LeaseId {
    lease.into()
}

/// A follower, and what it has received.
pub(crate) struct Stream {
    responses: Streaming<ServiceLogsResponse>,
    pub(crate) received: Received,
    client: LeaseRpcClient<Channel>,
}

impl Stream {
    /// Receives responses until `enough` holds.
    pub(crate) async fn until(&mut self, enough: impl Fn(&Received) -> bool) {
        while !enough(&self.received) {
            let next = tokio::time::timeout(PATIENCE, self.responses.message()).await;
            match next.unwrap_or_else(|_| panic!("nothing more comes after {:?}", self.received)) {
                Ok(Some(response)) => self.received.take(response),
                other => panic!("ended with {other:?} after {:?}", self.received),
            }
        }
    }

    /// Receives one response.
    pub(crate) async fn next(&mut self) -> Result<(), Status> {
        let next = tokio::time::timeout(PATIENCE, self.responses.message()).await;
        match next.unwrap_or_else(|_| panic!("nothing more comes after {:?}", self.received.cursors))? {
            Some(response) => self.received.take(response),
            None => panic!("a follow does not end by itself"),
        }
        Ok(())
    }

    /// Receives one response, if one arrives without waiting.
    pub(crate) async fn next_if_ready(&mut self) -> Result<bool, Status> {
        match tokio::time::timeout(std::time::Duration::from_millis(1), self.responses.message()).await {
            Err(_) => Ok(false),
            Ok(next) => match next? {
                Some(response) => {
                    self.received.take(response);
                    Ok(true)
                }
                None => panic!("a follow does not end by itself"),
            },
        }
    }

    /// Receives responses until the stream ends. Returns its status.
    pub(crate) async fn end(&mut self) -> Status {
        loop {
            match tokio::time::timeout(PATIENCE, self.responses.message()).await.expect("an end") {
                Ok(Some(response)) => self.received.take(response),
                Ok(None) => return Status::ok(""),
                Err(status) => return status,
            }
        }
    }

    /// Returns whether no response arrives while everything else is idle.
    pub(crate) async fn is_quiet(&mut self) -> bool {
        // Time is paused: it advances only when no task can run.
        let quiet = std::time::Duration::from_millis(200);
        match tokio::time::timeout(quiet, self.responses.message()).await {
            Err(_) => true,
            Ok(Ok(Some(response))) => {
                self.received.take(response);
                false
            }
            Ok(other) => panic!("ended with {other:?}"),
        }
    }
}

/// Deadline for a response that must arrive.
pub(crate) const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);
