//! A contender's process: how it is started, and what all of them share.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::SystemTime;

use clap::ValueEnum;
use leasemux::edge::tls;
use rustls::ServerConfig;
use socket2::{Domain, Socket, Type};

use crate::Result;

/// The same for all, as the kernel's buffers are part of what is measured.
const SEND_BUFFER_BYTES: usize = 256 * 1024;

/// Who competes. Adding one: a module with a `serve`, a line in [`serve`], and how its followers read it in [`Kind::grpc`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// TLS records on sockets and nothing else: the reference.
    Raw,
    /// tonic, one broadcast channel, each follower's message encoded anew.
    Naive,
}

impl Kind {
    /// Whether it speaks gRPC, or plain bytes.
    pub(crate) fn grpc(self) -> bool {
        self != Kind::Raw
    }
}

/// What a contender listens on.
pub(crate) struct Listeners {
    /// Messages come in here, over one plain connection; its end ends the process.
    pub(crate) ingest: TcpListener,
    /// Followers come in here.
    pub(crate) followers: TcpListener,
    pub(crate) tls: Arc<ServerConfig>,
}

/// A contender's process, killed when dropped.
pub(crate) struct Contender {
    child: Child,
    pub(crate) ingest: SocketAddr,
    pub(crate) followers: SocketAddr,
}

pub(crate) fn serve(kind: Kind, dir: &Path, size: usize) -> Result<()> {
    let certificate = tls::ensure(dir, &[], SystemTime::now())?;
    let listeners = Listeners {
        ingest: listen()?,
        followers: listen()?,
        tls: Arc::new(tls::server_config(tls::load(&certificate.certificate, &certificate.key)?)?),
    };
    println!("{} {}", listeners.ingest.local_addr()?, listeners.followers.local_addr()?);
    std::io::stdout().flush()?;
    match kind {
        Kind::Raw => crate::raw::serve(listeners),
        Kind::Naive => crate::naive::serve(listeners, size),
    }
}

fn listen() -> Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    // Inherited by what is accepted.
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    socket.set_tcp_nodelay(true)?;
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
    socket.listen(4_096)?;
    Ok(socket.into())
}

/// As many files as the system lets us have: each follower is one here and one in the contender.
pub(crate) fn raise_file_limit() -> Result<()> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit)?;
    Ok(())
}

// === impl Contender ===

impl Contender {
    pub(crate) fn start(kind: Kind, dir: &Path, size: usize) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--contender", &kind.to_string(), "--sizes", &size.to_string(), "--dir"])
            .arg(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let told = child.stdout.take().map(|out| BufReader::new(out.take(1_000)).read_line(&mut line));
        let addresses = (|| {
            told?.ok()?;
            let (ingest, followers) = line.trim().split_once(' ')?;
            Some((ingest.parse().ok()?, followers.parse().ok()?))
        })();
        let (ingest, followers) =
            addresses.unwrap_or((SocketAddr::from(([0; 4], 0)), SocketAddr::from(([0; 4], 0))));
        let contender = Self { child, ingest, followers };
        match addresses {
            Some(_) => Ok(contender),
            None => Err("it did not start".into()),
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Contender {
    fn drop(&mut self) {
        // It may have ended already; either way it is gone after this.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
