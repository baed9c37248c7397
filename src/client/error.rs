//! Errors of connections and calls, and their texts for people.

use std::error::Error as StdError;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use rustls::{CertificateError, Error as TlsError, InconsistentKeys};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::model::limits::{CURSORS_MAX, FILTER_REPLICAS_MAX, FILTERS_MAX};
use crate::sys::pem::PemError;

/// Reason, in the error details, of a stream that was closed because its follower lagged (`on_lag` = CLOSE).
const LAGGED_REASON: &str = "FOLLOWER_LAGGED";

/// Reasons of a `NOT_FOUND` that concerns a part of the lease.
const PART_GONE_REASONS: [&str; 2] = ["SERVICE_NOT_FOUND", "REPLICA_NOT_FOUND"];

/// Why no connection to a gateway was opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The gateway's address has no host.
    #[error("invalid gateway address {0}: use https://host:port")]
    Address(String),
    /// A PEM file is not usable.
    #[error("cannot use {path}: {1}", path = .0.display())]
    Pem(PathBuf, #[source] PemError),
    /// The token cannot be read.
    #[error("cannot use --token: {0}")]
    Token(#[source] io::Error),
    /// The certificate does not match the key.
    #[error("cannot use this identity: {}", key_problem(.0))]
    Setup(#[source] TlsError),
    /// No TCP connection to this gateway: the name is unknown, or the address is unreachable.
    #[error("cannot reach the gateway at {0}: {1}")]
    Unreachable(String, #[source] io::Error),
    /// The connection to this gateway took longer than this.
    #[error("the gateway at {0} did not answer within {1:?}")]
    Timeout(String, Duration),
    /// The certificate of this gateway is not trusted.
    #[error("the certificate of {0} is not trusted: {1}; {hint}", hint = trust_hint(.1))]
    Untrusted(String, #[source] TlsError),
    /// TLS with this gateway failed in another way, for this reason.
    #[error("TLS with {0} failed: {1}")]
    Tls(String, String),
    /// This server does not support HTTP/2.
    #[error("the server at {0} is not a gRPC server: it does not support HTTP/2")]
    NotGrpc(String),
    /// The HTTP/2 handshake with this gateway failed, for this reason.
    #[error("the gateway at {0} closed the connection: {1}")]
    Closed(String, String),
}

/// Error that ends a call.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// No connection to the gateway was opened.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The gateway rejected or ended the call, or the connection was lost.
    #[error("{}", status_text(.0))]
    Status(Box<Status>),
    /// Writing an entry to the output failed.
    #[error("cannot write: {0}")]
    Sink(#[from] io::Error),
    /// The connection was lost, and no request can resume the follow.
    #[error(
        "the connection was lost, and a follow of more than {CURSORS_MAX} replicas cannot be resumed: select services with --service"
    )]
    Unresumable,
    /// A pattern matches none of these services.
    #[error("--service {0:?} matches none of the lease's services: {names}", names = .1.join(", "))]
    NoService(String, Vec<String>),
    /// Patterns match this many services.
    #[error(
        "--service selects {0} services: at most {FILTERS_MAX}, and {FILTER_REPLICAS_MAX} with --replica"
    )]
    TooManyServices(usize),
    /// The services that this pattern may match could not be listed.
    #[error("--service {0:?} needs the status of the lease: {1}")]
    Services(String, #[source] Box<CallError>),
}

// === impl ConnectError ===

impl ConnectError {
    /// Returns whether another attempt may succeed.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unreachable(..) | Self::Timeout(..) | Self::Closed(..) | Self::Tls(..))
    }
}

fn key_problem(error: &TlsError) -> String {
    match error {
        TlsError::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            "the key in key.pem does not belong to the certificate in cert.pem".to_owned()
        }
        other => other.to_string(),
    }
}

fn trust_hint(error: &TlsError) -> &'static str {
    use CertificateError as Wrong;
    match error {
        TlsError::InvalidCertificate(Wrong::NotValidForName | Wrong::NotValidForNameContext { .. }) => {
            "use a host name that the certificate contains (`serve --public-hostname` adds names to a generated one)"
        }
        TlsError::InvalidCertificate(
            Wrong::Expired
            | Wrong::ExpiredContext { .. }
            | Wrong::NotValidYet
            | Wrong::NotValidYetContext { .. },
        ) => "the gateway needs a new certificate, unless a clock is wrong",
        _ => {
            "pass the gateway's certificate with --ca FILE (a generated one is server.pem in the gateway's data directory)"
        }
    }
}

// === impl CallError ===

impl CallError {
    pub(crate) fn is_retryable(&self) -> bool {
        let may_be_retried = |status| is_lagged(status) || is_throttled(status);
        self.is_unavailable() || matches!(self, Self::Status(status) if may_be_retried(status))
    }

    /// Returns whether the gateway, or the requested log, is temporarily unavailable.
    pub(super) fn is_unavailable(&self) -> bool {
        match self {
            Self::Connect(error) => error.is_retryable(),
            Self::Status(status) => self.is_disconnect() || status.code() == Code::Unavailable,
            Self::Sink(_)
            | Self::Unresumable
            | Self::NoService(..)
            | Self::TooManyServices(_)
            | Self::Services(..) => false,
        }
    }

    /// Returns whether the same call will fail whatever changes at the gateway.
    pub(super) fn is_permanent(&self) -> bool {
        match self {
            Self::Connect(_) => false,
            Self::Status(status) => {
                matches!(status.code(), Code::InvalidArgument | Code::OutOfRange | Code::Unimplemented)
            }
            Self::Sink(_)
            | Self::Unresumable
            | Self::NoService(..)
            | Self::TooManyServices(_)
            | Self::Services(..) => true,
        }
    }

    /// Returns whether the gateway closed the stream because this side was too slow.
    pub(crate) fn is_lagged(&self) -> bool {
        matches!(self, Self::Status(status) if is_lagged(status))
    }

    /// Returns whether the connection was lost during the call.
    pub(super) fn is_disconnect(&self) -> bool {
        // Only a status made on this side has a source; one sent by the gateway has none.
        matches!(self, Self::Status(status) if status.source().is_some())
    }

    /// Returns whether the lease itself is gone, not only a service or replica of it.
    pub(crate) fn is_lease_gone(&self) -> bool {
        let Self::Status(status) = self else { return false };
        let is_part =
            status.get_details_error_info().is_some_and(|info| PART_GONE_REASONS.contains(&&*info.reason));
        status.code() == Code::NotFound && !is_part
    }

    /// Returns whether the gateway does not support the call or an option of it.
    pub(super) fn is_unimplemented(&self) -> bool {
        matches!(self, Self::Status(status) if status.code() == Code::Unimplemented)
    }

    /// Returns the gateway's reason code; `None` if it sent none.
    pub(crate) fn reason(&self) -> Option<String> {
        let Self::Status(status) = self else { return None };
        status.get_details_error_info().map(|info| info.reason)
    }

    /// Returns the code of the gateway's answer. Without one: the code that a gateway would answer.
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::Status(status) => status.code(),
            Self::Services(_, error) => error.code(),
            Self::NoService(..) => Code::NotFound,
            Self::TooManyServices(_) => Code::InvalidArgument,
            Self::Connect(_) | Self::Sink(_) | Self::Unresumable => Code::Unavailable,
        }
    }

    /// Returns the delay that the gateway asked for.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        let Self::Status(status) = self else { return None };
        status.get_details_retry_info()?.retry_delay
    }
}

impl From<Status> for CallError {
    fn from(status: Status) -> Self {
        Self::Status(Box::new(status))
    }
}

fn is_lagged(status: &Status) -> bool {
    let info = status.get_details_error_info();
    status.code() == Code::ResourceExhausted && info.is_some_and(|info| info.reason == LAGGED_REASON)
}

/// Returns whether a quota is used up only for now: many streams of one owner may have reconnected at once.
fn is_throttled(status: &Status) -> bool {
    let retry = status.get_details_retry_info().and_then(|info| info.retry_delay);
    status.code() == Code::ResourceExhausted && retry.is_some()
}

fn status_text(status: &Status) -> String {
    if is_lagged(status) {
        return "this client could not keep up".to_owned();
    }
    match status.source() {
        Some(source) if is_eof(source) => "the gateway closed the connection".to_owned(),
        Some(source) => format!("the connection was lost: {}", innermost(source)),
        None if status.message().is_empty() => format!("the gateway answered: {}", status.code()),
        None => format!("the gateway answered: {}", status.message()),
    }
}

/// Returns whether the connection was closed without a TLS or HTTP/2 goodbye.
fn is_eof(error: &(dyn StdError + 'static)) -> bool {
    let io_error = |error: &'_ (dyn StdError + 'static)| {
        // An error of HTTP/2 has one, and does not name it as its source.
        let of_http2 = error.downcast_ref::<h2::Error>().and_then(h2::Error::get_io);
        error.downcast_ref::<io::Error>().or(of_http2).map(io::Error::kind)
    };
    std::iter::successors(Some(error), |&error| error.source())
        .any(|error| io_error(error) == Some(io::ErrorKind::UnexpectedEof))
}

/// Returns the text of the innermost error; the outer layers only say that something failed.
pub(super) fn innermost(error: &dyn StdError) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    /// The layers of an end without a goodbye of TLS, as tonic and hyper wrap it.
    #[tokio::test]
    async fn lost_connection_is_named_without_the_text_of_libraries() {
        use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

        struct Cut;

        impl AsyncRead for Cut {
            fn poll_read(
                self: std::pin::Pin<&mut Self>,
                _: &mut std::task::Context<'_>,
                _: &mut ReadBuf<'_>,
            ) -> std::task::Poll<io::Result<()>> {
                std::task::Poll::Ready(Err(io::Error::new(io::ErrorKind::UnexpectedEof, "see https://docs")))
            }
        }

        impl AsyncWrite for Cut {
            fn poll_write(
                self: std::pin::Pin<&mut Self>,
                _: &mut std::task::Context<'_>,
                bytes: &[u8],
            ) -> std::task::Poll<io::Result<usize>> {
                std::task::Poll::Ready(Ok(bytes.len()))
            }

            fn poll_flush(
                self: std::pin::Pin<&mut Self>,
                _: &mut std::task::Context<'_>,
            ) -> std::task::Poll<io::Result<()>> {
                std::task::Poll::Ready(Ok(()))
            }

            fn poll_shutdown(
                self: std::pin::Pin<&mut Self>,
                _: &mut std::task::Context<'_>,
            ) -> std::task::Poll<io::Result<()>> {
                std::task::Poll::Ready(Ok(()))
            }
        }

        let (_sender, connection) = h2::client::handshake(Cut).await.unwrap();
        let error = connection.await.unwrap_err();
        assert!(error.source().is_none() && is_eof(&error), "{error:?}");
        let status = Status::from_error(Box::new(error));
        assert_eq!(CallError::from(status).to_string(), "the gateway closed the connection");
    }

    #[test]
    fn used_up_quota_is_retryable_if_it_names_a_delay() {
        let refused = |retry_after: Option<Duration>| {
            let mut details = ErrorDetails::new();
            details.set_error_info("QUOTA_USED_UP", "leasemux", std::collections::HashMap::new());
            if retry_after.is_some() {
                details.set_retry_info(retry_after);
            }
            CallError::from(Status::with_error_details(Code::ResourceExhausted, "no more", details))
        };
        let throttled = refused(Some(Duration::from_secs(3)));
        assert!(throttled.is_retryable());
        assert_eq!(throttled.retry_after(), Some(Duration::from_secs(3)));
        assert!(!refused(None).is_retryable());
    }
}
