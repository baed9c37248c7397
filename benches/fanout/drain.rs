//! The client: one thread that publishes and follows, the same for every contender.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use leasemux::edge::tls::generate::CERTIFICATE_FILE;
use leasemux::model::proto::lease::ServiceLogsRequest;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use prost::Message as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use crate::Result;
use crate::contender::{Contender, Kind};
use crate::measure::Load;
use crate::wire::{self, Frames};

/// Read from a socket at a time.
const READ_BYTES: usize = 256 * 1024;

/// Published in one write at most.
const BATCH_BYTES: usize = 64 * 1024;

/// Nothing delivered for this long is a fault.
const STALL: Duration = Duration::from_secs(20);

/// How often a first message is published until every follower gets them.
const GREETING: Duration = Duration::from_millis(20);

const PATH: &str = "/akash.provider.lease.v1.LeaseRPC/ServiceLogs";

pub(crate) struct Drain {
    poll: Poll,
    followers: Vec<Follower>,
    publisher: Publisher,
    /// How many followers have got so many messages beyond `floor`, which all have got.
    ahead: VecDeque<usize>,
    floor: u64,
    size: u64,
    window: u64,
    /// Messages delivered, over all followers.
    pub(crate) delivered: u64,
    buffer: Vec<u8>,
    plaintext: Vec<u8>,
}

struct Follower {
    socket: TcpStream,
    tls: ClientConnection,
    frames: Option<Frames>,
    /// Log bytes received.
    bytes: u64,
    /// Messages of them that count.
    messages: u64,
    /// Messages that came before counting began.
    before: u64,
}

struct Publisher {
    socket: TcpStream,
    /// Some messages, one after the other, to be written together.
    batch: Vec<u8>,
    size: u64,
    /// Bytes handed to the socket.
    sent: u64,
    /// Bytes it may be handed.
    due: u64,
}

impl Drain {
    /// Follows `contender` with all followers, and returns when each of them gets messages.
    pub(crate) fn connect(contender: &Contender, kind: Kind, load: &Load, dir: &Path) -> Result<Self> {
        let poll = Poll::new()?;
        let config = client_config(dir)?;
        let mut followers = Vec::new();
        for index in 0..load.followers {
            let mut follower = Follower::connect(contender.followers, kind, &config)?;
            poll.registry().register(&mut follower.socket, Token(index), Interest::READABLE)?;
            followers.push(follower);
        }
        let ingest = std::net::TcpStream::connect(contender.ingest)?;
        ingest.set_nodelay(true)?;
        ingest.set_nonblocking(true)?;
        let mut socket = TcpStream::from_std(ingest);
        poll.registry().register(&mut socket, Token(load.followers), Interest::WRITABLE)?;
        let mut message = vec![b'x'; load.size];
        message.pop();
        message.push(b'\n');
        let mut drain = Self {
            poll,
            ahead: VecDeque::from([followers.len()]),
            followers,
            publisher: Publisher {
                socket,
                batch: message.repeat(BATCH_BYTES.div_ceil(load.size)),
                size: load.size as u64,
                sent: 0,
                due: 0,
            },
            floor: 0,
            size: load.size as u64,
            window: load.window as u64,
            delivered: 0,
            buffer: vec![0; READ_BYTES],
            plaintext: vec![0; READ_BYTES],
        };
        drain.greet()?;
        Ok(drain)
    }

    /// Publishes and follows for as long as `span`.
    pub(crate) fn run(&mut self, span: Duration) -> Result<()> {
        let end = Instant::now() + span;
        let (mut seen, mut progress) = (self.delivered, Instant::now());
        while Instant::now() < end {
            self.publisher.due = (self.floor + self.window) * self.size;
            self.publisher.push()?;
            self.turn(end.saturating_duration_since(Instant::now()))?;
            if self.delivered > seen {
                (seen, progress) = (self.delivered, Instant::now());
            } else if progress.elapsed() > STALL {
                return Err(
                    format!("nothing was delivered for {STALL:?}; {} messages were", self.delivered).into()
                );
            }
        }
        Ok(())
    }

    /// A follower counts from the first message after its subscription. When that is in place only the server knows, so
    /// messages are published until all have got one, and then none until all have got the rest.
    fn greet(&mut self) -> Result<()> {
        let begin = Instant::now();
        while self.followers.iter().any(|follower| follower.bytes < self.size) {
            if begin.elapsed() > STALL {
                return Err("not every follower is served".into());
            }
            self.publisher.due += self.size;
            self.publisher.push()?;
            self.settle()?;
        }
        self.settle()?;
        for follower in &mut self.followers {
            follower.before = follower.bytes / self.size;
            follower.messages = 0;
        }
        (self.floor, self.delivered) = (0, 0);
        self.ahead = VecDeque::from([self.followers.len()]);
        (self.publisher.sent, self.publisher.due) = (0, 0);
        Ok(())
    }

    /// Follows until nothing has come for a while.
    fn settle(&mut self) -> Result<()> {
        loop {
            let before: u64 = self.followers.iter().map(|follower| follower.bytes).sum();
            let begin = Instant::now();
            while let Some(left) = GREETING.checked_sub(begin.elapsed()) {
                self.turn(left)?;
            }
            if self.followers.iter().map(|follower| follower.bytes).sum::<u64>() == before {
                return Ok(());
            }
        }
    }

    fn turn(&mut self, timeout: Duration) -> Result<()> {
        let mut events = Events::with_capacity(1_024);
        match self.poll.poll(&mut events, Some(timeout)) {
            Err(e) if e.kind() == ErrorKind::Interrupted => return Ok(()),
            polled => polled?,
        }
        for event in &events {
            match self.followers.get_mut(event.token().0) {
                None => self.publisher.push()?,
                Some(follower) => {
                    follower.drain(&mut self.buffer, &mut self.plaintext)?;
                    let messages = (follower.bytes / self.size).saturating_sub(follower.before);
                    let before = std::mem::replace(&mut follower.messages, messages);
                    self.moved(before, messages);
                }
            }
        }
        Ok(())
    }

    /// Keeps `floor` while a follower goes `from` so many messages `to` so many.
    fn moved(&mut self, from: u64, to: u64) {
        self.delivered += to - from;
        let (from, to) = (index(from, self.floor), index(to, self.floor));
        if self.ahead.len() <= to {
            self.ahead.resize(to + 1, 0);
        }
        self.ahead[from] -= 1;
        self.ahead[to] += 1;
        while self.ahead.len() > 1 && self.ahead.front() == Some(&0) {
            self.ahead.pop_front();
            self.floor += 1;
        }
    }
}

fn index(messages: u64, floor: u64) -> usize {
    usize::try_from(messages.saturating_sub(floor)).unwrap_or(usize::MAX)
}

fn client_config(dir: &Path) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(dir.join(CERTIFICATE_FILE))?)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

// === impl Follower ===

impl Follower {
    fn connect(address: SocketAddr, kind: Kind, config: &Arc<ClientConfig>) -> Result<Self> {
        let mut socket = std::net::TcpStream::connect(address)?;
        socket.set_nodelay(true)?;
        let mut tls = ClientConnection::new(Arc::clone(config), ServerName::try_from("localhost")?)?;
        if kind.grpc() {
            let request = ServiceLogsRequest { follow: true, ..Default::default() };
            tls.writer().write_all(&wire::request(PATH, &request.encode_to_vec()))?;
        }
        while tls.is_handshaking() || tls.wants_write() {
            tls.complete_io(&mut socket)?;
        }
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket: TcpStream::from_std(socket),
            tls,
            frames: kind.grpc().then(Frames::default),
            bytes: 0,
            messages: 0,
            before: 0,
        })
    }

    fn drain(&mut self, buffer: &mut [u8], plaintext: &mut [u8]) -> Result<()> {
        loop {
            let count = match self.socket.read(buffer) {
                Ok(0) => return Err("the server closed a connection".into()),
                Ok(count) => count,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e.into()),
            };
            let mut rest = buffer.get(..count).unwrap_or_default();
            while !rest.is_empty() {
                self.tls.read_tls(&mut rest)?;
                let mut left = self.tls.process_new_packets()?.plaintext_bytes_to_read();
                while left > 0 {
                    let count = self.tls.reader().read(plaintext)?;
                    self.count(plaintext.get(..count).unwrap_or_default())?;
                    left -= count;
                }
            }
            while self.tls.wants_write() {
                // A few bytes now and then, for which a socket has room.
                self.tls.write_tls(&mut self.socket)?;
            }
        }
    }

    fn count(&mut self, bytes: &[u8]) -> Result<()> {
        match &mut self.frames {
            None => self.bytes += bytes.len() as u64,
            Some(frames) => {
                frames.feed(bytes)?;
                self.bytes = frames.logs;
                if !frames.reply.is_empty() {
                    self.tls.writer().write_all(&std::mem::take(&mut frames.reply))?;
                }
            }
        }
        Ok(())
    }
}

// === impl Publisher ===

impl Publisher {
    /// Hands the socket what is due, as far as it takes it.
    fn push(&mut self) -> Result<()> {
        while self.sent < self.due {
            let offset = usize::try_from(self.sent % self.size)?;
            let due = usize::try_from(self.due - self.sent)?;
            let bytes = self.batch.get(offset..).unwrap_or_default();
            match self.socket.write(bytes.get(..due).unwrap_or(bytes)) {
                Ok(count) => self.sent += count as u64,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}
