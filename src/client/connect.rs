//! Connections to a gateway.
//!
//! Name lookup, TCP and TLS happen here, so that their errors can say what to do; tonic gets an open stream.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, Error as TlsError};
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
use super::error::{ConnectError, innermost};
use super::tls;
use crate::config::{Target, TokenSource};
use crate::model::proto::lease::lease_rpc_client::LeaseRpcClient;

/// Limit on opening a connection, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Flow-control window of a stream and of a connection. A megabyte fills a long path; data beyond it waits in
/// the gateway, which reports it as lag.
const WINDOW_BYTES: u32 = 1024 * 1024;

/// Silence after which the connection is checked by a ping. Go servers reject more than one ping in 30 s.
const PING_AFTER: Duration = Duration::from_secs(40);

const PING_TIMEOUT: Duration = Duration::from_secs(20);

const HTTPS_PORT: u16 = 443;

/// Opens connections to one gateway.
#[derive(Clone)]
pub struct Connector {
    target: Target,
    host: String,
    port: u16,
    name: ServerName<'static>,
    tls: TlsConnector,
}

/// A client whose calls carry the token, if there is one.
pub type Client = LeaseRpcClient<InterceptedService<Channel, Bearer>>;

/// Interceptor that adds a token to calls. The value is marked as sensitive, which hides it from `Debug`.
#[derive(Clone, Debug, Default)]
pub struct Bearer(Option<MetadataValue<Ascii>>);

// === impl Connector ===

impl Connector {
    /// Creates a connector for `target` and reads the identity and the trusted certificates.
    ///
    /// # Errors
    /// [`ConnectError::Address`], [`ConnectError::Pem`] or [`ConnectError::Setup`].
    pub fn new(target: &Target) -> Result<Self, ConnectError> {
        let gateway = &target.gateway;
        let host = gateway.host().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name =
            ServerName::try_from(host.clone()).map_err(|_| ConnectError::Address(gateway.to_string()))?;
        let (config, name) = tls::client(target, &name)?;
        Ok(Self {
            port: gateway.port_u16().unwrap_or(HTTPS_PORT),
            tls: TlsConnector::from(Arc::new(config)),
            target: target.clone(),
            host,
            name,
        })
    }

    /// Reads the identity and the trusted certificates again. Keeps the current ones if that fails, as while
    /// a file is being replaced.
    pub(super) fn reload(&mut self) {
        if let Ok(reloaded) = Self::new(&self.target) {
            *self = reloaded;
        }
    }

    /// Opens a connection. Dropping the client and its streams closes it.
    ///
    /// # Errors
    /// Any [`ConnectError`] but those of [`Connector::new`].
    pub async fn connect(&self) -> Result<Client, ConnectError> {
        self.open().await.map(|(client, _)| client)
    }

    /// Opens a connection and asks for the gateway's time.
    pub(super) async fn connect_with_clock(&self) -> Result<(Client, ClockOffset), ConnectError> {
        let (client, channel) = self.open().await?;
        Ok((client, ClockOffset::query(channel).await))
    }

    async fn open(&self) -> Result<(Client, Channel), ConnectError> {
        // Read for each connection: a file may hold a newer token by now.
        let bearer = Bearer::read(self.target.token.as_ref()).map_err(ConnectError::Token)?;
        let gateway = || self.gateway_text();
        let open = async {
            let stream = self.open_tls().await?;
            let mut stream = Some(TokioIo::new(stream));
            // The channel asks again when this connection is gone. Reconnecting is left to the follower,
            // which knows its position.
            let once = service_fn(move |_: Uri| {
                let stream = stream.take().ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected));
                std::future::ready(stream)
            });
            Endpoint::from(self.target.gateway.clone())
                .initial_stream_window_size(WINDOW_BYTES)
                .initial_connection_window_size(WINDOW_BYTES)
                .http2_keep_alive_interval(PING_AFTER)
                .keep_alive_timeout(PING_TIMEOUT)
                .connect_with_connector(once)
                .await
                .map_err(|error| ConnectError::Closed(gateway(), innermost(&error)))
        };
        let timed_out = |_| ConnectError::Timeout(gateway(), CONNECT_TIMEOUT);
        let channel = tokio::time::timeout(CONNECT_TIMEOUT, open).await.map_err(timed_out)??;
        Ok((LeaseRpcClient::with_interceptor(channel.clone(), bearer), channel))
    }

    /// Returns the gateway's address as a person types it.
    fn gateway_text(&self) -> String {
        self.target.gateway.to_string().trim_end_matches('/').to_owned()
    }

    async fn open_tls(&self) -> Result<TlsStream<TcpStream>, ConnectError> {
        let gateway = || self.gateway_text();
        let unreachable = |source| ConnectError::Unreachable(gateway(), source);
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
        let gateway = self.gateway_text();
        match error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>()) {
            Some(source @ TlsError::InvalidCertificate(_)) => {
                ConnectError::Untrusted(gateway, source.clone())
            }
            Some(TlsError::AlertReceived(AlertDescription::NoApplicationProtocol)) => {
                ConnectError::NotGrpc(gateway)
            }
            Some(TlsError::InvalidMessage(_)) => {
                ConnectError::Tls(gateway, "the server does not speak TLS".to_owned())
            }
            _ => ConnectError::Tls(gateway, error.to_string()),
        }
    }
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Connector").field(&self.target.gateway).finish()
    }
}

// === impl Bearer ===

impl Bearer {
    fn read(token: Option<&TokenSource>) -> io::Result<Self> {
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
