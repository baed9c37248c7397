//! The first message of a TLS client: its server name (SNI) decides whether the gateway terminates TLS.
//!
//! A client certificate proves its key to the endpoint of the TLS session only. So a connection that may
//! present one is spliced to the provider, unless the operator decides otherwise. Clients with a certificate
//! ask for `mtls.HOST`, or for no name.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use rustls::PeerMisbehaved;
use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};

/// Maximum size of a `ClientHello` with its record headers. Common ones have 2 KiB with a post-quantum key
/// share; TLS allows more than a client needs.
const HELLO_MAX_BYTES: usize = 64 * 1024;

/// Time limit for the `ClientHello`, which a client sends as soon as it has connected.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// Buffer space for a read: most `ClientHello`s are shorter.
const READ_BYTES: usize = 4 * 1024;

/// The protocol of certificate challenges over TLS (RFC 8737).
const ACME_TLS: &[u8] = b"acme-tls/1";

/// A `ClientHello`, and all bytes received with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ClientHello {
    bytes: Bytes,
    server_name: Option<String>,
    is_acme: bool,
}

/// How connections for other names than the public ones are handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MtlsMode {
    /// They are spliced to the provider.
    Passthrough,
    /// The gateway terminates TLS.
    Terminate,
}

/// What happens to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// The gateway terminates TLS, on the stream of [`ClientHello::replay`].
    Terminate,
    /// The connection is spliced to the provider, beginning with [`ClientHello::bytes`].
    Splice,
}

/// Why there is no `ClientHello`. The connection must be closed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HelloError {
    #[error("no complete ClientHello within {HELLO_TIMEOUT:?}")]
    Timeout,
    #[error("the ClientHello is longer than {HELLO_MAX_BYTES} bytes")]
    TooLong,
    #[error("the connection closed before the ClientHello was complete: {0}")]
    Io(#[from] io::Error),
    #[error("the first bytes are not a ClientHello: {0}")]
    NotTls(rustls::Error),
}

/// A stream that yields bytes already received before those of `io`.
#[derive(Debug)]
pub(crate) struct Replayed<IO> {
    received: Bytes,
    io: IO,
}

/// Reads the `ClientHello` of a client on `io`, which gets an alert if it sends something else. Not cancel
/// safe: the bytes read so far are lost.
pub(crate) async fn read(io: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Result<ClientHello, HelloError> {
    tokio::time::timeout(HELLO_TIMEOUT, read_untimed(io)).await.map_err(|_| HelloError::Timeout)?
}

async fn read_untimed(io: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Result<ClientHello, HelloError> {
    let mut bytes = BytesMut::new();
    let mut parser = Parser::default();
    loop {
        let room = HELLO_MAX_BYTES - bytes.len();
        if room == 0 {
            return Err(HelloError::TooLong);
        }
        let before = bytes.len();
        bytes.reserve(READ_BYTES);
        if (&mut *io).take(room as u64).read_buf(&mut bytes).await? == 0 {
            return Err(HelloError::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        match parser.parse(&bytes[before..]) {
            Ok(None) => {}
            Ok(Some(Parsed { server_name, is_acme })) => {
                return Ok(ClientHello { bytes: bytes.freeze(), server_name, is_acme });
            }
            Err(NotHello { error, alert }) => {
                // The peer may have closed already.
                let _ = io.write_all(&alert).await;
                return Err(HelloError::NotTls(error));
            }
        }
    }
}

/// Parses a `ClientHello` that arrives in parts.
#[derive(Default)]
struct Parser(Acceptor);

/// The content of a `ClientHello`.
struct Parsed {
    /// `None` also if it is malformed.
    server_name: Option<String>,
    is_acme: bool,
}

/// The first bytes are something else.
struct NotHello {
    error: rustls::Error,
    /// The TLS record for the client.
    alert: Vec<u8>,
}

impl Parser {
    /// Takes the next bytes. Returns the content when the message is complete.
    fn parse(&mut self, mut new: &[u8]) -> Result<Option<Parsed>, NotHello> {
        while !new.is_empty() {
            // Takes a part only if its buffer is small.
            let taken = self.0.read_tls(&mut new);
            match self.0.accept() {
                Ok(None) => {}
                Ok(Some(accepted)) => {
                    let hello = accepted.client_hello();
                    // A client that offers another protocol, too, could use the provider in place of the
                    // gateway. Authorities offer this one only (RFC 8737 §3).
                    let is_acme = hello.alpn().is_some_and(|offered| offered.eq([ACME_TLS]));
                    return Ok(Some(Parsed { server_name: hello.server_name().map(str::to_owned), is_acme }));
                }
                // Old clients send `HOST:PORT`. Providers ignore it. rustls does not, so the gateway cannot
                // terminate such a connection.
                Err((rustls::Error::PeerMisbehaved(PeerMisbehaved::ServerNameMustContainOneHostName), _)) => {
                    return Ok(Some(Parsed { server_name: None, is_acme: false }));
                }
                Err((error, mut written)) => {
                    let mut alert = Vec::new();
                    let _ = written.write_all(&mut alert);
                    return Err(NotHello { error, alert });
                }
            }
            if let Err(error) = taken {
                let error = rustls::Error::General(error.to_string());
                return Err(NotHello { error, alert: Vec::new() });
            }
        }
        Ok(None)
    }
}

// === impl ClientHello ===

impl ClientHello {
    /// Returns the server name that the client asks for. Always a well-formed host name.
    pub(crate) fn server_name(&self) -> Option<&str> {
        self.server_name.as_deref()
    }

    /// Returns all bytes received, from the start of the connection.
    pub(crate) fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Decides what happens to the connection. `is_public` returns whether a server name is a public host
    /// name of the gateway. A challenge of a certificate authority is the provider's, whatever its name.
    pub(crate) fn route(&self, mode: MtlsMode, is_public: impl FnOnce(&str) -> bool) -> Route {
        if self.is_acme {
            Route::Splice
        } else if mode == MtlsMode::Terminate || self.server_name().is_some_and(is_public) {
            Route::Terminate
        } else {
            Route::Splice
        }
    }

    /// Returns a stream on which a TLS server reads the `ClientHello` again.
    pub(crate) fn replay<IO>(self, io: IO) -> Replayed<IO> {
        Replayed { received: self.bytes, io }
    }
}

// === impl Replayed ===

impl<IO> Replayed<IO> {
    /// Creates a stream of a socket from which nothing was read.
    pub(crate) fn untouched(io: IO) -> Self {
        Self { received: Bytes::new(), io }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Replayed<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.received.is_empty() {
            return Pin::new(&mut this.io).poll_read(cx, buf);
        }
        let taken = this.received.len().min(buf.remaining());
        buf.put_slice(&this.received[..taken]);
        this.received.advance(taken);
        if this.received.is_empty() {
            // Releases the buffer.
            this.received = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Replayed<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
