//! The publisher: sends numbered lines over one plain connection.

use std::io::{ErrorKind, Read as _, Write as _};

use mio::net::TcpStream;

use super::received::{self, Clock};
use crate::Result;
use crate::contender::{Contender, Server};

/// Bytes of lines that are generated at a time.
const BATCH_BYTES: usize = 64 * 1024;

pub(crate) struct Publisher {
    pub(crate) socket: TcpStream,
    clock: Clock,
    size: u64,
    /// Bytes before and after a line.
    envelope: (Vec<u8>, Vec<u8>),
    /// Bytes to send, and how many of them were sent.
    batch: Vec<u8>,
    sent: usize,
    /// Number of the last generated line.
    pub(crate) last: u64,
}

impl Publisher {
    pub(crate) fn connect(
        server: &Server,
        contender: &dyn Contender,
        size: u64,
        clock: Clock,
    ) -> Result<Self> {
        let mut socket = std::net::TcpStream::connect(server.ingest)?;
        socket.set_nodelay(true)?;
        socket.write_all(&contender.publisher_greeting())?;
        socket.set_nonblocking(true)?;
        let (socket, envelope) = (TcpStream::from_std(socket), contender.envelope(size));
        Ok(Self { socket, clock, size, envelope, batch: Vec::new(), sent: 0, last: 0 })
    }

    /// Publishes lines up to `due`, until the socket blocks.
    pub(crate) fn push(&mut self, due: u64) -> Result<()> {
        loop {
            if self.sent == self.batch.len() {
                self.batch.clear();
                self.sent = 0;
                while self.last < due && self.batch.len() < BATCH_BYTES {
                    self.last += 1;
                    self.batch.extend_from_slice(&self.envelope.0);
                    received::line(self.last, self.size, self.clock, &mut self.batch);
                    self.batch.extend_from_slice(&self.envelope.1);
                }
            }
            if self.batch.is_empty() {
                return Ok(());
            }
            match self.socket.write(self.batch.get(self.sent..).unwrap_or_default()) {
                Ok(count) => self.sent += count,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Reads and ignores the server's responses.
    pub(crate) fn pull(&mut self) -> Result<()> {
        let mut responses = [0; 4_096];
        loop {
            match self.socket.read(&mut responses) {
                Ok(0) => return Err("the server closed the publisher's connection".into()),
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e.into()),
            }
        }
    }
}
