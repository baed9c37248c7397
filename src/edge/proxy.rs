//! For whom a proxy speaks: version 2 of the PROXY protocol, which a trusted proxy sends before anything else.
//!
//! It is read, and required, from trusted proxies only; the bytes of anybody else are never looked at in this way. Exactly the
//! header is read and not a byte more, since TLS follows it directly.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use ppp::v2::{Addresses, Command, Header, PROTOCOL_PREFIX, Protocol};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// A proxy sends its header right after it has connected; this is for packets to be lost once or twice on the way.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes before those whose number the header tells: signature, version and command, family and protocol, length.
const FIXED_BYTES: usize = 16;

/// Most bytes behind those: the addresses take 36, and the rest is what proxies add of themselves (some tens of bytes) and of TLS
/// that they ended (some hundreds). The protocol would allow 64 KiB, which nobody sends.
const VARIABLE_MAX_BYTES: usize = 2_048;

/// How a header of version 1 begins, which is a line of text.
const VERSION_1: &[u8] = b"PROXY ";

/// What a TLS connection without a header begins with: a handshake record.
const TLS_HANDSHAKE: u8 = 0x16;

/// Why there is no header. The text is for the operator, who has set up proxy and gateway.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// Nothing, or not all of it.
    #[error("no whole PROXY protocol header came within {TIMEOUT:?}")]
    Timeout,
    /// The connection broke off.
    #[error("the connection broke off before the PROXY protocol header was complete: {0}")]
    Io(#[from] std::io::Error),
    /// Version 1.
    #[error("the proxy speaks version 1 of the PROXY protocol; set it to version 2 (HAProxy: send-proxy-v2)")]
    Version1,
    /// TLS, directly.
    #[error(
        "the proxy sends no PROXY protocol header; set it to version 2 (HAProxy: send-proxy-v2), or do not trust it"
    )]
    Tls,
    /// Something else.
    #[error("what the proxy sends first is not a PROXY protocol header")]
    NotProxy,
    /// Larger than anybody needs.
    #[error("the PROXY protocol header is longer than {VARIABLE_MAX_BYTES} bytes")]
    TooLong,
    /// It begins as one, and then is none.
    #[error("the PROXY protocol header is malformed: {0}")]
    Malformed(ppp::v2::ParseError),
    /// A socket of the file system, or datagrams.
    #[error("the PROXY protocol header is not about TCP over IPv4 or IPv6")]
    NotTcp,
}

/// Whether `address` is that of a proxy in `trusted`.
pub(super) fn is_trusted(trusted: &[IpNet], address: IpAddr) -> bool {
    let address = address.to_canonical();
    trusted.iter().any(|network| network.contains(&address))
}

/// Reads the header from the beginning of `io`. Answers for whom the proxy speaks; `None` if for itself (as when it looks
/// whether the gateway is alive), or if it does not say. Some bytes may be lost if it is cancelled.
///
/// # Errors
/// [`Error`]; the connection is of no more use then.
pub(super) async fn read(io: &mut (impl AsyncRead + Unpin)) -> Result<Option<SocketAddr>, Error> {
    let read = tokio::time::timeout(TIMEOUT, read_bytes(io)).await;
    source(&read.map_err(|_| Error::Timeout)??)
}

async fn read_bytes(io: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>, Error> {
    let mut header = vec![0; FIXED_BYTES];
    let mut filled = 0;
    while filled < FIXED_BYTES {
        let more = io.read(&mut header[filled..]).await?;
        if more == 0 {
            return Err(Error::Io(std::io::ErrorKind::UnexpectedEof.into()));
        }
        filled += more;
        // Told at the first byte that differs: who sends something shorter would only wait.
        let signature = filled.min(PROTOCOL_PREFIX.len());
        if header[..signature] != PROTOCOL_PREFIX[..signature] {
            return Err(Error::of_beginning(&header[..filled]));
        }
    }
    let variable = usize::from(u16::from_be_bytes([header[FIXED_BYTES - 2], header[FIXED_BYTES - 1]]));
    if variable > VARIABLE_MAX_BYTES {
        return Err(Error::TooLong);
    }
    header.resize(FIXED_BYTES + variable, 0);
    io.read_exact(&mut header[FIXED_BYTES..]).await?;
    Ok(header)
}

/// What a whole header says. What stands behind the addresses is passed over.
fn source(header: &[u8]) -> Result<Option<SocketAddr>, Error> {
    let header = Header::try_from(header).map_err(Error::Malformed)?;
    if header.command == Command::Local {
        return Ok(None);
    }
    match (header.protocol, &header.addresses) {
        (_, Addresses::Unspecified) => Ok(None),
        (Protocol::Stream, Addresses::IPv4(from)) => {
            Ok(Some(SocketAddr::from((from.source_address, from.source_port))))
        }
        (Protocol::Stream, Addresses::IPv6(from)) => {
            let address = IpAddr::from(from.source_address).to_canonical();
            Ok(Some(SocketAddr::new(address, from.source_port)))
        }
        _ => Err(Error::NotTcp),
    }
}

// === impl Error ===

impl Error {
    fn of_beginning(bytes: &[u8]) -> Self {
        let alike = bytes.len().min(VERSION_1.len());
        match bytes.first() {
            Some(&TLS_HANDSHAKE) => Self::Tls,
            Some(_) if bytes[..alike] == VERSION_1[..alike] => Self::Version1,
            _ => Self::NotProxy,
        }
    }
}

#[cfg(test)]
mod tests;
