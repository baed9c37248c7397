//! The reference: one thread, one shared log, a TLS session and a place in the log per follower, and 48 KiB writes.

use std::io::{ErrorKind, Read as _, Write as _};
use std::sync::Arc;

use leasemux::edge::tls::stream::WRITE_MAX_BYTES;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use rustls::ServerConnection;

use crate::Result;
use crate::contender::Listeners;

/// Read from the publisher at a time.
const INGEST_BYTES: usize = 256 * 1024;

/// What all followers have got is dropped from the log when it is this long.
const LOG_BYTES: usize = 8 * 1024 * 1024;

const INGEST: Token = Token(usize::MAX - 1);
const FOLLOWERS: Token = Token(usize::MAX - 2);

struct Follower {
    socket: TcpStream,
    tls: ServerConnection,
    /// Its place in the log.
    at: usize,
}

pub(crate) fn serve(listeners: Listeners) -> Result<()> {
    let mut poll = Poll::new()?;
    let mut accepting = mio::net::TcpListener::from_std(listeners.followers);
    let mut ingesting = mio::net::TcpListener::from_std(listeners.ingest);
    poll.registry().register(&mut accepting, FOLLOWERS, Interest::READABLE)?;
    poll.registry().register(&mut ingesting, INGEST, Interest::READABLE)?;
    let mut publisher: Option<TcpStream> = None;
    let mut followers: Vec<Follower> = Vec::new();
    let (mut log, mut buffer) = (Vec::new(), vec![0; INGEST_BYTES]);
    let mut events = Events::with_capacity(1_024);
    loop {
        poll.poll(&mut events, None)?;
        for event in &events {
            match event.token() {
                FOLLOWERS => {
                    while let Ok((mut socket, _)) = accepting.accept() {
                        let interest = Interest::READABLE | Interest::WRITABLE;
                        poll.registry().register(&mut socket, Token(followers.len()), interest)?;
                        let mut tls = ServerConnection::new(Arc::clone(&listeners.tls))?;
                        tls.set_buffer_limit(Some(WRITE_MAX_BYTES));
                        let at = log.len();
                        followers.push(Follower { socket, tls, at });
                    }
                }
                INGEST => match &mut publisher {
                    None => {
                        let (mut socket, _) = ingesting.accept()?;
                        poll.registry().deregister(&mut ingesting)?;
                        poll.registry().register(&mut socket, INGEST, Interest::READABLE)?;
                        publisher = Some(socket);
                    }
                    Some(socket) => loop {
                        match socket.read(&mut buffer) {
                            Ok(0) => return Ok(()),
                            Ok(count) => log.extend_from_slice(buffer.get(..count).unwrap_or_default()),
                            Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                            Err(e) => return Err(e.into()),
                        }
                        followers.iter_mut().try_for_each(|follower| follower.push(&log))?;
                    },
                },
                Token(index) => {
                    if let Some(follower) = followers.get_mut(index) {
                        follower.pull()?;
                        follower.push(&log)?;
                    }
                }
            }
        }
        let done = followers.iter().map(|follower| follower.at).min().unwrap_or(0);
        if done > LOG_BYTES {
            log.drain(..done);
            for follower in &mut followers {
                follower.at -= done;
            }
        }
    }
}

impl Follower {
    /// The handshake; a follower says nothing afterwards.
    fn pull(&mut self) -> Result<()> {
        loop {
            match self.tls.read_tls(&mut self.socket) {
                Ok(0) => return Ok(()),
                Ok(_) => {
                    self.tls.process_new_packets()?;
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn push(&mut self, log: &[u8]) -> Result<()> {
        loop {
            while self.tls.wants_write() {
                match self.tls.write_tls(&mut self.socket) {
                    Ok(_) => {}
                    Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                    Err(e) => return Err(e.into()),
                }
            }
            let rest = log.get(self.at..).unwrap_or_default();
            if self.tls.is_handshaking() || rest.is_empty() {
                return Ok(());
            }
            self.at += self.tls.writer().write(rest)?;
        }
    }
}
