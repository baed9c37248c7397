//! The PROXY protocol, version 2: a trusted proxy sends its client's address before anything else.
//!
//! The header is required of trusted proxies and never read from other peers. Not a byte after it is read,
//! because TLS follows directly.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use ppp::v2::{Addresses, Command, Header, PROTOCOL_PREFIX, Protocol};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Time limit for the header. A proxy sends it right after it connects; this allows one or two lost packets.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes of the fixed part: signature, version and command, family and protocol, length.
const FIXED_BYTES: usize = 16;

/// Most bytes of the variable part: at most 36 for the addresses, tens of bytes about the proxy, and hundreds
/// about TLS that it terminated. The protocol allows 64 KiB, which no proxy sends.
const VARIABLE_MAX_BYTES: usize = 2_048;

/// Start of a header of version 1, which is a line of text.
const VERSION_1: &[u8] = b"PROXY ";

/// First byte of TLS without a header: a handshake record.
const TLS_HANDSHAKE: u8 = 0x16;

/// Why there is no valid header. The text is for the operator of proxy and gateway.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("no complete PROXY protocol header within {TIMEOUT:?}")]
    Timeout,
    #[error("connection closed before the PROXY protocol header was complete: {0}")]
    Io(#[from] std::io::Error),
    #[error("the proxy uses version 1 of the PROXY protocol; set it to version 2 (HAProxy: send-proxy-v2)")]
    Version1,
    #[error(
        "the proxy sends no PROXY protocol header; set it to version 2 (HAProxy: send-proxy-v2), or do not trust it"
    )]
    Tls,
    #[error("the first bytes of the proxy are not a PROXY protocol header")]
    NotProxy,
    #[error("the PROXY protocol header is longer than {VARIABLE_MAX_BYTES} bytes")]
    TooLong,
    #[error("the PROXY protocol header is malformed: {0}")]
    Malformed(ppp::v2::ParseError),
    #[error("the PROXY protocol header is not for TCP over IPv4 or IPv6")]
    NotTcp,
}

/// Returns whether `address` is in a `trusted` network.
pub(super) fn is_trusted(trusted: &[IpNet], address: IpAddr) -> bool {
    let address = address.to_canonical();
    trusted.iter().any(|network| network.contains(&address))
}

/// Reads the header from the start of `io`. Returns the client's address; `None` if the connection is the
/// proxy's own (a health check), or if the header has no address. Not cancel safe: the bytes read so far are
/// lost.
///
/// # Errors
/// The connection must be closed.
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
        // Checked after each read: a peer that sends something shorter would wait for the rest.
        let signature = filled.min(PROTOCOL_PREFIX.len());
        if header[..signature] != PROTOCOL_PREFIX[..signature] {
            return Err(Error::of_start(&header[..filled]));
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

/// Returns the source address of a complete header. Ignores the bytes after the addresses.
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
    fn of_start(bytes: &[u8]) -> Self {
        let common = bytes.len().min(VERSION_1.len());
        match bytes.first() {
            Some(&TLS_HANDSHAKE) => Self::Tls,
            Some(_) if bytes[..common] == VERSION_1[..common] => Self::Version1,
            _ => Self::NotProxy,
        }
    }
}

#[cfg(test)]
mod tests;
