//! Connections to a gateway.
//!
//! Name look-up, TCP and TLS are done here and fail with a sentence that says what to do; tonic gets an open stream.
//! One [`Connector`] makes any number of connections; each carries any number of calls.

use std::error::Error as StdError;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, CertificateError, Error as TlsError, InconsistentKeys};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use tower::service_fn;

use super::clock::ClockOffset;
use super::tls;
use crate::config::{Target, TokenSource};
use crate::model::proto::lease::lease_rpc_client::LeaseRpcClient;

/// How long a connection may take to be there, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How much a gateway may send ahead, on one stream and on one connection: a megabyte keeps a long way busy, and what waits
/// beyond it shows as lag where it can be reported.
const WINDOW_BYTES: u32 = 1024 * 1024;

/// Silence after which the gateway is asked whether it is there. Go servers refuse more than one such ping in 30 s.
const PING_AFTER: Duration = Duration::from_secs(40);

/// How long its answer may take.
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// The port of `https` where none is named.
const HTTPS_PORT: u16 = 443;

/// Makes connections to one gateway. Cloning is cheap.
#[derive(Clone)]
pub struct Connector(Arc<Shared>);

/// A client whose calls carry the token that there is, if there is one.
pub type Client = LeaseRpcClient<InterceptedService<Channel, Bearer>>;

/// Adds a token to calls. It does not show in any output.
#[derive(Clone, Default)]
pub struct Bearer(Option<MetadataValue<Ascii>>);

struct Shared {
    token: Option<TokenSource>,
    gateway: Uri,
    host: String,
    port: u16,
    name: ServerName<'static>,
    tls: TlsConnector,
}

/// Why there is no connection. Each text says what would help.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The address of the gateway names no host.
    #[error("{0} is not the address of a gateway: https://host:port")]
    Address(String),
    /// A PEM file does not hold what it should.
    #[error("cannot use {}: {reason}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no token where one should be.
    #[error("cannot use --token: {0}")]
    Token(#[source] io::Error),
    /// Certificate and key do not go together.
    #[error("cannot use this identity: {}", misfit(.0))]
    Setup(#[source] TlsError),
    /// No connection: name unknown, refused, unreachable.
    #[error("cannot reach the gateway at {gateway}: {source}")]
    Unreachable {
        /// Whom.
        gateway: String,
        /// What the system said.
        source: io::Error,
    },
    /// The connection took too long.
    #[error("the gateway at {0} did not answer within {CONNECT_TIMEOUT:?}")]
    Timeout(String),
    /// The gateway's certificate is not trusted.
    #[error("the certificate of {gateway} is not trusted: {source}; {}", advice(.source))]
    Untrusted {
        /// Whom.
        gateway: String,
        /// What is wrong with its certificate.
        source: TlsError,
    },
    /// TLS failed in another way.
    #[error("no TLS with {gateway}: {reason}")]
    Tls {
        /// Whom.
        gateway: String,
        /// How.
        reason: String,
    },
    /// What answers does not speak HTTP/2.
    #[error("what answers at {0} is not a gRPC server: it does not speak HTTP/2")]
    NotGrpc(String),
    /// HTTP/2 did not come about.
    #[error("the gateway at {gateway} ended the connection: {reason}")]
    Ended {
        /// Whom.
        gateway: String,
        /// How.
        reason: String,
    },
}

// === impl Connector ===

impl Connector {
    /// A connector for `target`; reads the identity and trusted certificates that it names, and connects to nothing.
    ///
    /// # Errors
    /// [`ConnectError::Address`], [`ConnectError::Pem`] or [`ConnectError::Setup`].
    pub fn new(target: &Target) -> Result<Self, ConnectError> {
        let gateway = target.gateway.clone();
        let host = gateway.host().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name =
            ServerName::try_from(host.clone()).map_err(|_| ConnectError::Address(gateway.to_string()))?;
        let (config, name) = tls::client(target, &name)?;
        Ok(Self(Arc::new(Shared {
            token: target.token.clone(),
            port: gateway.port_u16().unwrap_or(HTTPS_PORT),
            tls: TlsConnector::from(Arc::new(config)),
            gateway,
            host,
            name,
        })))
    }

    /// A new connection, open and ready for calls. Dropping the client and its streams closes it.
    ///
    /// # Errors
    /// Any [`ConnectError`] but the first three.
    pub async fn connect(&self) -> Result<Client, ConnectError> {
        self.open().await.map(|(client, _)| client)
    }

    /// As [`Connector::connect`], and asks for the gateway's time by the new connection.
    pub(super) async fn connect_with_clock(&self) -> Result<(Client, ClockOffset), ConnectError> {
        let (client, channel) = self.open().await?;
        Ok((client, ClockOffset::ask(channel).await))
    }

    /// A new connection, for the calls of a lease and for others.
    async fn open(&self) -> Result<(Client, Channel), ConnectError> {
        let shared = &self.0;
        // Each time: a file may hold a newer one by now.
        let bearer = Bearer::of(shared.token.as_ref()).map_err(ConnectError::Token)?;
        let gateway = || shared.shown();
        let open = async {
            let stream = shared.open().await?;
            let mut stream = Some(TokioIo::new(stream));
            // The channel may ask again once this connection is gone. Reconnecting is the follower's work, who knows
            // where it stood.
            let once = service_fn(move |_: Uri| {
                let stream = stream.take().ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected));
                std::future::ready(stream)
            });
            Endpoint::from(shared.gateway.clone())
                .initial_stream_window_size(WINDOW_BYTES)
                .initial_connection_window_size(WINDOW_BYTES)
                .http2_keep_alive_interval(PING_AFTER)
                .keep_alive_timeout(PING_TIMEOUT)
                .connect_with_connector(once)
                .await
                .map_err(|error| ConnectError::Ended { gateway: gateway(), reason: innermost(&error) })
        };
        match tokio::time::timeout(CONNECT_TIMEOUT, open).await {
            Ok(channel) => {
                let channel = channel?;
                Ok((LeaseRpcClient::with_interceptor(channel.clone(), bearer), channel))
            }
            Err(_) => Err(ConnectError::Timeout(gateway())),
        }
    }

    /// The gateway.
    pub fn gateway(&self) -> &Uri {
        &self.0.gateway
    }
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Connector").field(&self.0.gateway).finish()
    }
}

// === impl Bearer ===

impl Bearer {
    fn of(token: Option<&TokenSource>) -> io::Result<Self> {
        let Some(token) = token else {
            return Ok(Self(None));
        };
        let value = format!("Bearer {}", token.read()?).parse();
        let mut value: MetadataValue<Ascii> = value.map_err(|_| io::Error::other("not a token"))?;
        value.set_sensitive(true);
        Ok(Self(Some(value)))
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

impl std::fmt::Debug for Bearer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Bearer(..)" } else { "Bearer(none)" })
    }
}

// === impl Shared ===

impl Shared {
    /// The gateway's address, as one types it.
    fn shown(&self) -> String {
        self.gateway.to_string().trim_end_matches('/').to_owned()
    }

    async fn open(&self) -> Result<TlsStream<TcpStream>, ConnectError> {
        let gateway = || self.shown();
        let unreachable = |source| ConnectError::Unreachable { gateway: gateway(), source };
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(unreachable)?;
        tcp.set_nodelay(true).map_err(unreachable)?;
        let stream = self.tls.connect(self.name.clone(), tcp).await;
        let stream = stream.map_err(|error| self.tls_error(error))?;
        if stream.get_ref().1.alpn_protocol() == Some(tls::ALPN) {
            Ok(stream)
        } else {
            Err(ConnectError::NotGrpc(gateway()))
        }
    }

    fn tls_error(&self, error: io::Error) -> ConnectError {
        let gateway = self.shown();
        match error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>()) {
            Some(source @ TlsError::InvalidCertificate(_)) => {
                ConnectError::Untrusted { gateway, source: source.clone() }
            }
            Some(TlsError::AlertReceived(AlertDescription::NoApplicationProtocol)) => {
                ConnectError::NotGrpc(gateway)
            }
            Some(TlsError::InvalidMessage(_)) => {
                let reason = "what answers there does not speak TLS".to_owned();
                ConnectError::Tls { gateway, reason }
            }
            _ => ConnectError::Tls { gateway, reason: error.to_string() },
        }
    }
}

// === impl ConnectError ===

impl ConnectError {
    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Timeout(_) | Self::Ended { .. } | Self::Tls { .. } => true,
            Self::Address(_)
            | Self::Token(_)
            | Self::Pem { .. }
            | Self::Setup(_)
            | Self::Untrusted { .. }
            | Self::NotGrpc(_) => false,
        }
    }
}

/// What is wrong with certificate and key.
fn misfit(error: &TlsError) -> String {
    match error {
        TlsError::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            "the key in key.pem does not belong to the certificate in cert.pem".to_owned()
        }
        other => other.to_string(),
    }
}

/// What helps against a certificate that is not trusted.
fn advice(error: &TlsError) -> &'static str {
    use CertificateError as Wrong;
    match error {
        TlsError::InvalidCertificate(Wrong::NotValidForName | Wrong::NotValidForNameContext { .. }) => {
            "call the gateway by a name that stands in it (a gateway that makes its own takes more by --public-hostname)"
        }
        TlsError::InvalidCertificate(
            Wrong::Expired
            | Wrong::ExpiredContext { .. }
            | Wrong::NotValidYet
            | Wrong::NotValidYetContext { .. },
        ) => "the gateway needs another one, unless a clock is wrong",
        _ => {
            "give the gateway's certificate with --ca FILE (a gateway makes its own as server.pem in its data directory)"
        }
    }
}

/// The text at the bottom of an error: the layers above it only say that something failed.
pub(super) fn innermost(error: &dyn StdError) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
