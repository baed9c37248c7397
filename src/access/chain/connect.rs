//! The connection to a node: gRPC over HTTP/2, by TLS for `https`.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use http::uri::Scheme;
use hyper_util::rt::TokioIo;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

/// How long a connection may take to be there, TLS included. A query that waits for it has a bound of its own.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Silence after which the node is asked whether it is there. Go servers refuse more than one such ping in 30 s.
const PING_AFTER: Duration = Duration::from_secs(40);

/// How long its answer may take.
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// Largest file of authorities that is read: all of a system's are some hundred KiB; anything beyond this is the wrong file.
const PEM_MAX_BYTES: u64 = 1024 * 1024;

/// Ports where none is named.
const HTTP_PORT: u16 = 80;
const HTTPS_PORT: u16 = 443;

/// Why there is no way to a node. The text names the address or file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// Not an address of a node.
    #[error("{0} is not the address of a node: http://host:port or https://host:port")]
    Address(Uri),
    /// A PEM file does not hold what it should.
    #[error("cannot use {}: {reason}", path.display())]
    Authorities {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The TLS library refuses.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

#[derive(Clone)]
struct Node {
    host: String,
    port: u16,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

/// A channel to the node at `address`, which connects when it is used, and again when the connection is lost. With `https` the
/// node's certificate must be signed by one in the file `authorities` (PEM), or without it by an authority of the system.
///
/// # Errors
/// [`NodeError`]. Whether the node can be reached is no matter.
pub(super) fn channel(address: &Uri, authorities: Option<&Path>) -> Result<Channel, NodeError> {
    let wrong = || NodeError::Address(address.clone());
    let host = address.host().ok_or_else(wrong)?;
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let secure = address.scheme() == Some(&Scheme::HTTPS);
    let tls = if secure {
        let name = ServerName::try_from(host.clone()).map_err(|_| wrong())?;
        Some((TlsConnector::from(Arc::new(tls(authorities)?)), name))
    } else {
        None
    };
    let port = address.port_u16().unwrap_or(if secure { HTTPS_PORT } else { HTTP_PORT });
    let node = Node { host, port, tls };
    let endpoint = Endpoint::from(address.clone())
        .http2_keep_alive_interval(PING_AFTER)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(false);
    Ok(endpoint.connect_with_connector_lazy(service_fn(move |_: Uri| {
        let node = node.clone();
        async move {
            let connected = tokio::time::timeout(CONNECT_TIMEOUT, node.connect()).await;
            connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map(TokioIo::new)
        }
    })))
}

/// Whether the file at `path` holds authorities (PEM) that can vouch for a node.
///
/// # Errors
/// [`NodeError::Authorities`].
pub fn check_authorities(path: &Path) -> Result<(), NodeError> {
    tls(Some(path)).map(drop)
}

fn tls(authorities: Option<&Path>) -> Result<ClientConfig, NodeError> {
    let mut roots = RootCertStore::empty();
    match authorities {
        // What could not be read is only missed if nothing else vouches for the node, and then the query says so.
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
        Some(path) => {
            let wrong = |reason: String| NodeError::Authorities { path: path.to_owned(), reason };
            let mut text = Vec::new();
            let read = File::open(path).and_then(|file| file.take(PEM_MAX_BYTES + 1).read_to_end(&mut text));
            read.map_err(|error| wrong(error.to_string()))?;
            if text.len() as u64 > PEM_MAX_BYTES {
                return Err(wrong(format!("it is larger than {PEM_MAX_BYTES} bytes")));
            }
            let found = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
            let found = found.map_err(|error| wrong(error.to_string()))?;
            if roots.add_parsable_certificates(found).0 == 0 {
                return Err(wrong("there is no certificate in it".to_owned()));
            }
        }
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

// === impl Node ===

impl Node {
    async fn connect(&self) -> io::Result<Box<dyn Io>> {
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await?;
        tcp.set_nodelay(true)?;
        Ok(match &self.tls {
            None => Box::new(tcp),
            Some((tls, name)) => Box::new(tls.connect(name.clone(), tcp).await?),
        })
    }
}
