//! The connection to a node: gRPC over HTTP/2, with TLS for `https`.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use http::uri::Scheme;
use hyper_util::rt::TokioIo;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use crate::sys::pem::{self, PemError};
use crate::sys::read::PEM_MAX_BYTES;

/// Time limit for connecting, TLS included. A query that waits for it has its own.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Silence after which the node is pinged. Go servers refuse more than one such ping in 30 s.
const PING_AFTER: Duration = Duration::from_secs(40);

/// Time limit for the answer to a ping.
const PING_TIMEOUT: Duration = Duration::from_secs(10);

const HTTP_PORT: u16 = 80;
const HTTPS_PORT: u16 = 443;

/// Why a node cannot be used. The text names the address or file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// The address is malformed.
    #[error("{0} is not the address of a node: http://host:port or https://host:port")]
    Address(Uri),
    /// The file of authorities cannot be used.
    #[error("cannot use {}: {error}", path.display())]
    Authorities {
        /// The file.
        path: PathBuf,
        /// The cause.
        error: PemError,
    },
    /// The TLS library failed.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

#[derive(Clone)]
struct Target {
    host: String,
    port: u16,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

/// Creates a channel to the node at `address`, which connects on first use and reconnects by itself. With
/// `https`, an authority in the file `authorities` (PEM), or of the system, must have signed the node's
/// certificate.
///
/// Fails for an unusable address or file. Does not check that the node is reachable.
pub(super) fn channel(address: &Uri, authorities: Option<&Path>) -> Result<Channel, NodeError> {
    let malformed = || NodeError::Address(address.clone());
    let host = address.host().ok_or_else(malformed)?;
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let secure = address.scheme() == Some(&Scheme::HTTPS);
    let tls = if secure {
        let name = ServerName::try_from(host.clone()).map_err(|_| malformed())?;
        Some((TlsConnector::from(Arc::new(tls_config(authorities)?)), name))
    } else {
        None
    };
    let port = address.port_u16().unwrap_or(if secure { HTTPS_PORT } else { HTTP_PORT });
    let target = Target { host, port, tls };
    let endpoint = Endpoint::from(address.clone())
        .http2_keep_alive_interval(PING_AFTER)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(false);
    Ok(endpoint.connect_with_connector_lazy(service_fn(move |_: Uri| {
        let target = target.clone();
        async move {
            let connected = tokio::time::timeout(CONNECT_TIMEOUT, target.connect()).await;
            connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map(TokioIo::new)
        }
    })))
}

/// Checks that the file at `path` holds a certificate of an authority (PEM).
///
/// # Errors
/// [`NodeError::Authorities`].
pub fn check_authorities(path: &Path) -> Result<(), NodeError> {
    tls_config(Some(path)).map(drop)
}

fn tls_config(authorities: Option<&Path>) -> Result<ClientConfig, NodeError> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = authorities {
        let failed = |error| NodeError::Authorities { path: path.to_owned(), error };
        let certificates = pem::read_certificates(path, PEM_MAX_BYTES).map_err(failed)?;
        if roots.add_parsable_certificates(certificates).0 == 0 {
            return Err(failed(PemError::NoCertificate));
        }
    } else {
        // An unreadable authority matters only if no other one has signed the certificate; then the query
        // reports it.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

// === impl Target ===

impl Target {
    async fn connect(&self) -> io::Result<Box<dyn Io>> {
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await?;
        tcp.set_nodelay(true)?;
        Ok(match &self.tls {
            None => Box::new(tcp),
            Some((tls, name)) => Box::new(tls.connect(name.clone(), tcp).await?),
        })
    }
}
