//! One follower: a connection by mutual TLS, and what came over it.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use leasemux::access::identity::IdentityFiles;
use leasemux::edge::tls::generate::CERTIFICATE_FILE;
use leasemux::model::proto::lease::ServiceLogsRequest;
use leasemux::model::proto::market;
use mio::net::TcpStream;
use prost::Message as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use crate::Result;
use crate::contender::{Kind, TENANT_DIR};
use crate::gateway;
use crate::wire::{self, Frames};

/// Read from a socket at a time.
const READ_BYTES: usize = 256 * 1024;

const PATH: &str = "/akash.provider.lease.v1.LeaseRPC/ServiceLogs";

/// What every follower says first, and with what identity.
pub(crate) struct Login {
    tls: Arc<ClientConfig>,
    /// `None`: the server speaks no gRPC.
    request: Option<Vec<u8>>,
}

pub(crate) struct Follower {
    pub(crate) socket: TcpStream,
    tls: ClientConnection,
    frames: Option<Frames>,
    received: Received,
}

/// Log bytes that came.
pub(crate) struct Received {
    bytes: u64,
    /// What comes, over and over; nothing if it is only counted.
    expected: Vec<u8>,
    size: usize,
    /// Where in it this follower is; `None` before its first line.
    at: Option<usize>,
}

/// Shared by all followers.
pub(crate) struct Buffers {
    socket: Vec<u8>,
    plaintext: Vec<u8>,
}

impl Default for Buffers {
    fn default() -> Self {
        Self { socket: vec![0; READ_BYTES], plaintext: vec![0; READ_BYTES] }
    }
}

// === impl Login ===

impl Login {
    /// As the tenant of a contender, whose files lie in `dir`.
    pub(crate) fn new(kind: Kind, dir: &Path) -> Result<Self> {
        let tenant = IdentityFiles::load(&dir.join(TENANT_DIR))?;
        let lease = gateway::lease(tenant.address())?;
        let request = ServiceLogsRequest {
            lease_id: Some(market::LeaseId::from(&lease)),
            follow: true,
            tail_lines: Some(0),
            ..ServiceLogsRequest::default()
        };
        let request = wire::request(PATH, &request.encode_to_vec());
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(dir.join(CERTIFICATE_FILE))?)?;
        let (chain, key) = tenant.into_parts();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)?;
        tls.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self { tls: Arc::new(tls), request: (kind != Kind::Raw).then_some(request) })
    }
}

// === impl Follower ===

impl Follower {
    /// Gets `expected` over and over, from the beginning of one of its lines of `size` bytes; if it is empty, anything.
    pub(crate) fn connect(
        address: SocketAddr,
        login: &Login,
        expected: Vec<u8>,
        size: usize,
    ) -> Result<Self> {
        let mut socket = std::net::TcpStream::connect(address)?;
        socket.set_nodelay(true)?;
        let mut tls = ClientConnection::new(Arc::clone(&login.tls), ServerName::try_from("localhost")?)?;
        if let Some(request) = &login.request {
            tls.writer().write_all(request)?;
        }
        while tls.is_handshaking() || tls.wants_write() {
            tls.complete_io(&mut socket)?;
        }
        socket.set_nonblocking(true)?;
        let frames = login.request.as_ref().map(|_| Frames::default());
        let received = Received { bytes: 0, expected, size, at: None };
        Ok(Self { socket: TcpStream::from_std(socket), tls, frames, received })
    }

    /// Log bytes received since counting began.
    pub(crate) fn bytes(&self) -> u64 {
        self.received.bytes
    }

    /// Counting begins.
    pub(crate) fn begin(&mut self) {
        self.received.bytes = 0;
    }

    /// Reads until there is nothing more to read.
    pub(crate) fn drain(&mut self, buffers: &mut Buffers) -> Result<()> {
        loop {
            let count = match self.socket.read(&mut buffers.socket) {
                Ok(0) => return Err("the server closed a connection".into()),
                Ok(count) => count,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e.into()),
            };
            let mut rest = buffers.socket.get(..count).unwrap_or_default();
            while !rest.is_empty() {
                self.tls.read_tls(&mut rest)?;
                let mut left = self.tls.process_new_packets()?.plaintext_bytes_to_read();
                while left > 0 {
                    let count = self.tls.reader().read(&mut buffers.plaintext)?;
                    self.take(buffers.plaintext.get(..count).unwrap_or_default())?;
                    left -= count;
                }
            }
            while self.tls.wants_write() {
                // A few bytes now and then, for which a socket has room.
                self.tls.write_tls(&mut self.socket)?;
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        let Some(frames) = &mut self.frames else {
            return Ok(self.received.take(bytes)?);
        };
        frames.feed(bytes, &mut self.received)?;
        if !frames.reply.is_empty() {
            self.tls.writer().write_all(&std::mem::take(&mut frames.reply))?;
        }
        Ok(())
    }
}

// === impl Received ===

impl Received {
    pub(crate) fn take(&mut self, mut logs: &[u8]) -> std::result::Result<(), String> {
        self.bytes += logs.len() as u64;
        while !self.expected.is_empty() && !logs.is_empty() {
            let at = match self.at {
                Some(at) => at,
                None => first_line(logs).ok_or("the first line has no number")? * self.size,
            };
            let rest = self.expected.get(at..).unwrap_or_default();
            let count = rest.len().min(logs.len());
            let (now, later) = logs.split_at(count);
            if count == 0 || !rest.starts_with(now) {
                return Err("lines were lost, repeated or changed".to_owned());
            }
            self.at = Some((at + count) % self.expected.len());
            logs = later;
        }
        Ok(())
    }
}

fn first_line(logs: &[u8]) -> Option<usize> {
    std::str::from_utf8(logs.split(|byte| *byte == b' ').next()?).ok()?.parse().ok()
}
