//! The reference: one thread, one shared log, an offset per follower, and large writes; with TLS if secured.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::sync::Arc;

use leasemux::edge::tls::stream::WRITE_MAX_BYTES;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Registry, Token};
use rustls::ServerConnection;

use super::Listeners;
use crate::Result;

/// Most bytes per read from the publisher.
const INGEST_BYTES: usize = 256 * 1024;

/// Most bytes per write to a plain socket. Over TLS it is the gateway's size, which is the best one.
const PLAIN_WRITE_BYTES: usize = 256 * 1024;

/// When all followers have received this many bytes, they are removed from the log.
const LOG_BYTES: usize = 8 * 1024 * 1024;

const INGEST: Token = Token(usize::MAX - 1);
const FOLLOWERS: Token = Token(usize::MAX - 2);

struct Follower {
    socket: TcpStream,
    tls: Option<Box<ServerConnection>>,
    /// Its offset in the log.
    offset: usize,
}

#[derive(Default)]
struct Raw {
    publisher: Option<TcpStream>,
    followers: Vec<Follower>,
    log: Vec<u8>,
}

pub(super) fn serve(listeners: Listeners) -> Result<()> {
    let mut poll = Poll::new()?;
    let mut accepting = mio::net::TcpListener::from_std(listeners.followers);
    let mut ingesting = mio::net::TcpListener::from_std(listeners.ingest);
    poll.registry().register(&mut accepting, FOLLOWERS, Interest::READABLE)?;
    poll.registry().register(&mut ingesting, INGEST, Interest::READABLE)?;
    let mut raw = Raw::default();
    let mut buffer = vec![0; INGEST_BYTES];
    let mut events = Events::with_capacity(1_024);
    loop {
        poll.poll(&mut events, None)?;
        for event in &events {
            match event.token() {
                FOLLOWERS => {
                    while let Ok((socket, _)) = accepting.accept() {
                        let tls = listeners.tls.as_ref().map(|tls| ServerConnection::new(Arc::clone(tls)));
                        raw.admit(poll.registry(), socket, tls.transpose()?)?;
                    }
                }
                INGEST if raw.publisher.is_none() => {
                    let (mut socket, _) = ingesting.accept()?;
                    poll.registry().deregister(&mut ingesting)?;
                    poll.registry().register(&mut socket, INGEST, Interest::READABLE)?;
                    raw.publisher = Some(socket);
                }
                INGEST => {
                    if raw.ingest(&mut buffer)? {
                        return Ok(());
                    }
                }
                Token(index) => {
                    if let Some(follower) = raw.followers.get_mut(index) {
                        follower.pull()?;
                        follower.push(&raw.log)?;
                    }
                }
            }
        }
        raw.trim();
    }
}

impl Raw {
    fn admit(
        &mut self,
        registry: &Registry,
        mut socket: TcpStream,
        tls: Option<ServerConnection>,
    ) -> Result<()> {
        let interest = Interest::READABLE | Interest::WRITABLE;
        registry.register(&mut socket, Token(self.followers.len()), interest)?;
        let tls = tls.map(|mut tls| {
            tls.set_buffer_limit(Some(WRITE_MAX_BYTES));
            Box::new(tls)
        });
        self.followers.push(Follower { socket, tls, offset: self.log.len() });
        Ok(())
    }

    /// Reads from the publisher and writes to all followers. Returns whether the publisher has disconnected.
    fn ingest(&mut self, buffer: &mut [u8]) -> Result<bool> {
        while let Some(socket) = &mut self.publisher {
            match socket.read(buffer) {
                Ok(0) => return Ok(true),
                Ok(count) => self.log.extend_from_slice(buffer.get(..count).unwrap_or_default()),
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) => return Err(e.into()),
            }
            let log = &self.log;
            self.followers.iter_mut().try_for_each(|follower| follower.push(log))?;
        }
        Ok(false)
    }

    fn trim(&mut self) {
        let received = self.followers.iter().map(|follower| follower.offset).min().unwrap_or(0);
        if received > LOG_BYTES {
            self.log.drain(..received);
            for follower in &mut self.followers {
                follower.offset -= received;
            }
        }
    }
}

impl Follower {
    /// Reads the handshake. A follower sends nothing after it.
    fn pull(&mut self) -> Result<()> {
        let Some(tls) = &mut self.tls else { return Ok(()) };
        while let Some(read) = unless_blocked(tls.read_tls(&mut self.socket))? {
            if read == 0 {
                break;
            }
            tls.process_new_packets()?;
        }
        Ok(())
    }

    fn push(&mut self, log: &[u8]) -> Result<()> {
        loop {
            let unsent = log.get(self.offset..).unwrap_or_default();
            let Some(tls) = &mut self.tls else {
                let unsent = unsent.get(..PLAIN_WRITE_BYTES).unwrap_or(unsent);
                if unsent.is_empty() {
                    return Ok(());
                }
                match unless_blocked(self.socket.write(unsent))? {
                    Some(count) => self.offset += count,
                    None => return Ok(()),
                }
                continue;
            };
            while tls.wants_write() {
                if unless_blocked(tls.write_tls(&mut self.socket))?.is_none() {
                    return Ok(());
                }
            }
            if tls.is_handshaking() || unsent.is_empty() {
                return Ok(());
            }
            self.offset += tls.writer().write(unsent)?;
        }
    }
}

fn unless_blocked(done: io::Result<usize>) -> io::Result<Option<usize>> {
    match done {
        Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(None),
        done => done.map(Some),
    }
}
