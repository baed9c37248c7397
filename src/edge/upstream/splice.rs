//! Splicing: copies a TLS connection to the provider and back, without terminating it.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};

use super::client_hello::{ClientHello, MtlsMode};
use super::copy::{Copied, CopyLimits, copy_both};
use super::limits::TunnelLimiter;
use super::target::{Endpoint, FailureLog};
use crate::edge::drain::Drain;
use crate::model::peer::PeerNet;

/// Time without a byte after which a spliced connection is closed. A manifest may take 120 s; websockets are
/// pinged every 10 s.
const IDLE: Duration = Duration::from_secs(300);

/// Splices connections to one endpoint. Cloning is cheap.
#[derive(Clone, Debug)]
pub(crate) struct Splicer {
    endpoint: Endpoint,
    limiter: TunnelLimiter,
    drain: Drain,
    failure_log: FailureLog,
}

/// Splicing of a port's connections: which ones, and how. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Splicing {
    pub(crate) splicer: Splicer,
    pub(crate) mode: MtlsMode,
}

/// How a spliced connection ended. The texts are for the log.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpliceError {
    #[error("too many spliced connections and tunnels")]
    Limit,
    #[error("the provider cannot be reached: {0}")]
    Connect(std::io::Error),
    #[error("the drain deadline has passed")]
    Cut,
}

impl Splicer {
    pub(crate) fn new(endpoint: Endpoint, limiter: TunnelLimiter, drain: Drain) -> Self {
        Self { endpoint, limiter, drain, failure_log: FailureLog::new() }
    }

    /// Copies the connection of `client`, which sent `hello`, until it ends. It counts for the limits of
    /// `peer`. While the gateway drains, it may continue until the deadline. Dropping the future cuts it.
    pub(crate) async fn splice(
        &self,
        hello: ClientHello,
        client: impl AsyncRead + AsyncWrite + Unpin,
        peer: PeerNet,
    ) -> Result<Copied, SpliceError> {
        let _permit = self.limiter.try_acquire(Some(peer)).ok_or(SpliceError::Limit)?;
        let copy = async {
            let mut upstream = self.endpoint.connect().await.map_err(|error| {
                self.failure_log.report(&self.endpoint, &error);
                SpliceError::Connect(error)
            })?;
            let sent = hello.bytes().len() as u64;
            // Fits into the socket's empty buffer, or waits for an upstream that reads nothing: no longer
            // than an idle connection.
            let first = tokio::time::timeout(IDLE, upstream.write_all(hello.bytes())).await;
            first
                .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
                .map_err(SpliceError::Connect)?;
            drop(hello);
            let mut copied = copy_both(client, upstream, CopyLimits { idle: IDLE, half_closed: IDLE }).await;
            copied.from_client_bytes += sent;
            Ok(copied)
        };
        tokio::select! {
            biased;
            () = self.drain.deadline() => Err(SpliceError::Cut),
            copied = copy => copied,
        }
    }
}
