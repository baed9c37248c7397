//! A contender's process: how it is started, and what all of them share.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use clap::ValueEnum;
use leasemux::access::identity::IdentityFiles;
use leasemux::edge::tls;
use leasemux::model::time::LogTime;
use rustls::ServerConfig;
use socket2::{Domain, Socket, Type};

use crate::measure::Load;
use crate::{Args, Result};

/// The same for all, as the kernel's buffers are part of what is measured: what the gateway sets by itself.
const SEND_BUFFER_BYTES: usize = 256 * 1024;

/// Where in the contender's directory its tenant's identity lies, which all followers present.
pub(crate) const TENANT_DIR: &str = "tenant";

/// Who competes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// TLS records on sockets and nothing else: the reference.
    Raw,
    /// tonic, one broadcast channel, each follower's message encoded anew.
    Naive,
    /// The gateway.
    Gateway,
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

/// Is a contender, until the publisher goes.
pub(crate) fn serve(kind: Kind, args: &Args) -> Result<()> {
    let certificate = tls::ensure(&args.dir, &[], SystemTime::now())?;
    let listeners = Listeners {
        ingest: listen()?,
        followers: listen()?,
        tls: Arc::new(tls::server_config(tls::load(&certificate.certificate, &certificate.key)?)?),
    };
    println!("{} {}", listeners.ingest.local_addr()?, listeners.followers.local_addr()?);
    std::io::stdout().flush()?;
    match kind {
        Kind::Raw => crate::raw::serve(listeners),
        Kind::Naive => crate::naive::serve(listeners, args.sizes.first().copied().unwrap_or(1)),
        Kind::Gateway => {
            let pace = Duration::from_millis(args.pace.unwrap_or_default());
            crate::gateway::serve(listeners, &args.dir, pace)
        }
    }
}

fn listen() -> Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    // Inherited by what is accepted.
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
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
    /// Starts one with a fresh tenant in `dir`.
    pub(crate) fn start(kind: Kind, dir: &Path, load: &Load) -> Result<Self> {
        IdentityFiles::create(&dir.join(TENANT_DIR), LogTime::now())?;
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--contender", &kind.to_string(), "--sizes", &load.size.to_string()])
            .args(["--pace", &load.pace.as_millis().to_string(), "--dir"])
            .arg(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        if let Some(out) = child.stdout.take() {
            BufReader::new(out.take(1_000)).read_line(&mut line)?;
        }
        let nowhere = SocketAddr::from(([0; 4], 0));
        let mut contender = Self { child, ingest: nowhere, followers: nowhere };
        let (ingest, followers) = line.trim().split_once(' ').ok_or("it did not start")?;
        (contender.ingest, contender.followers) = (ingest.parse()?, followers.parse()?);
        Ok(contender)
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
