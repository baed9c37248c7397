//! One follower: its connection, protocol and received lines.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;

use mio::net::TcpStream;
use rustls::ClientConnection;
use rustls::pki_types::ServerName;

use super::login::Login;
use super::protocol::Protocol;
use super::received::Received;
use crate::Result;

/// Most bytes per read from a socket.
const READ_BYTES: usize = 256 * 1024;

pub(crate) struct Follower {
    pub(crate) socket: TcpStream,
    tls: Option<Box<ClientConnection>>,
    protocol: Box<dyn Protocol>,
    pub(crate) received: Received,
    /// Bytes read from the socket, with TLS records and frames.
    pub(crate) wire_bytes: u64,
}

/// Buffers that all followers share.
pub(crate) struct Buffers {
    socket: Vec<u8>,
    plaintext: Vec<u8>,
    reply: Vec<u8>,
}

impl Default for Buffers {
    fn default() -> Self {
        Self { socket: vec![0; READ_BYTES], plaintext: vec![0; READ_BYTES], reply: Vec::new() }
    }
}

impl Follower {
    /// Connects and sends `greeting`.
    pub(crate) fn connect(
        address: SocketAddr,
        login: &Login,
        greeting: &[u8],
        protocol: Box<dyn Protocol>,
        received: Received,
    ) -> Result<Self> {
        let mut socket = std::net::TcpStream::connect(address)?;
        socket.set_nodelay(true)?;
        let mut tls = None;
        if let Some(config) = &login.tls {
            let name = ServerName::try_from("localhost")?;
            let mut session = Box::new(ClientConnection::new(Arc::clone(config), name)?);
            session.set_buffer_limit(None);
            session.writer().write_all(greeting)?;
            while session.is_handshaking() || session.wants_write() {
                session.complete_io(&mut socket)?;
            }
            tls = Some(session);
        } else {
            socket.write_all(greeting)?;
        }
        socket.set_nonblocking(true)?;
        Ok(Self { socket: TcpStream::from_std(socket), tls, protocol, received, wire_bytes: 0 })
    }

    /// Reads until the socket has no more data.
    pub(crate) fn drain(&mut self, buffers: &mut Buffers) -> Result<()> {
        loop {
            let count = match self.socket.read(&mut buffers.socket) {
                Ok(0) => return Err("the server closed a connection".into()),
                Ok(count) => count,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e.into()),
            };
            self.wire_bytes += count as u64;
            let mut bytes = buffers.socket.get(..count).unwrap_or_default();
            let Some(tls) = &mut self.tls else {
                self.protocol.feed(bytes, &mut self.received, &mut buffers.reply)?;
                if !buffers.reply.is_empty() {
                    // A few bytes, for which the socket's buffer has room.
                    self.socket.write_all(&std::mem::take(&mut buffers.reply))?;
                }
                continue;
            };
            while !bytes.is_empty() {
                tls.read_tls(&mut bytes)?;
                let mut left = tls.process_new_packets()?.plaintext_bytes_to_read();
                while left > 0 {
                    let count = tls.reader().read(&mut buffers.plaintext)?;
                    let plaintext = buffers.plaintext.get(..count).unwrap_or_default();
                    self.protocol.feed(plaintext, &mut self.received, &mut buffers.reply)?;
                    left -= count;
                }
            }
            if !buffers.reply.is_empty() {
                tls.writer().write_all(&std::mem::take(&mut buffers.reply))?;
            }
            while tls.wants_write() {
                tls.write_tls(&mut self.socket)?;
            }
        }
    }
}
