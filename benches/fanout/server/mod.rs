//! The contenders of this program's own, each in a process of its own with one thread, so that its CPU time is its own.

use std::io::Write as _;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use clap::Args;
use leasemux::edge::tls;
use rustls::ServerConfig;
use socket2::{Domain, Socket, Type};

use crate::Result;
use crate::contender::Kind;
use crate::plan::Security;

mod gateway;
mod naive;
mod plain;
mod raw;
pub(crate) mod source;

/// The same for all, as the kernel's buffers are part of what is measured: what the gateway sets by itself.
const SEND_BUFFER_BYTES: usize = 256 * 1024;

/// Where in a server's directory its tenant's identity lies, which all followers present.
pub(crate) const TENANT_DIR: &str = "tenant";

/// The one service there is.
pub(crate) const SERVICE: &str = "web";

/// What a server is told.
#[derive(Debug, Args)]
pub(crate) struct Task {
    /// Who to be.
    #[arg(long)]
    kind: Kind,
    /// Where the tenant is found, and the server's certificate put.
    #[arg(long)]
    dir: PathBuf,
    #[arg(long, default_value = "tls")]
    security: Security,
    /// Bytes of a message.
    #[arg(long, default_value_t = 100)]
    size: usize,
    /// How long the gateway lets lines wait for more, in milliseconds.
    #[arg(long, default_value_t = 5)]
    pace: u64,
    /// Replicas of the service, among which the lines are dealt out.
    #[arg(long, default_value_t = 1)]
    replicas: u32,
    /// The gateway with the runtimes of the product and an admin port, instead of one thread.
    #[arg(long)]
    as_served: bool,
}

/// What a server listens on.
struct Listeners {
    /// Messages come in here, over one plain connection; its end ends the process.
    ingest: TcpListener,
    /// Followers come in here.
    followers: TcpListener,
    /// How they are secured; `None`: not at all.
    tls: Option<Arc<ServerConfig>>,
    /// The gateway's admin port; `None`: there is none, and it has one thread.
    admin: Option<TcpListener>,
}

/// Is a server, until the publisher goes.
pub(crate) fn serve(task: &Task) -> Result<()> {
    // As the gateway is served. Without a log, some libraries look for another one at each of their spans.
    tracing_subscriber::fmt().with_max_level(tracing::Level::INFO).with_writer(std::io::stderr).init();
    let certificate = tls::ensure(&task.dir, &[], SystemTime::now())?;
    let tls = match task.security {
        Security::Plain => None,
        Security::Tls => {
            let certified = tls::load(&certificate.certificate, &certificate.key)?;
            Some(Arc::new(tls::server_config(certified)?))
        }
    };
    let admin = task.as_served.then(listen).transpose()?;
    let listeners = Listeners { ingest: listen()?, followers: listen()?, tls, admin };
    print!("{} {}", listeners.ingest.local_addr()?, listeners.followers.local_addr()?);
    if let Some(admin) = &listeners.admin {
        print!(" {}", admin.local_addr()?);
    }
    println!();
    std::io::stdout().flush()?;
    match task.kind {
        Kind::Raw => raw::serve(listeners),
        Kind::Naive => naive::serve(listeners, task.size),
        Kind::Gateway => {
            gateway::serve(listeners, &task.dir, Duration::from_millis(task.pace), task.replicas)
        }
        Kind::Nats | Kind::Redis => Err("this is another project's".into()),
    }
}

fn listen() -> Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    // Inherited by what is accepted.
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
    socket.listen(4_096)?;
    Ok(socket.into())
}
