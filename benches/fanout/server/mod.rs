//! The contenders of this program. Each runs in its own process with one thread, so that its CPU time can be
//! measured.

use std::io::Write as _;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use clap::Args;
use leasemux::edge::tls;
use rustls::ServerConfig;
use rustls::sign::SingleCertAndKey;
use socket2::{Domain, Socket, Type};

use crate::Result;
use crate::contender::Kind;
use crate::plan::Security;

pub(crate) mod file_source;
mod gateway;
mod library;
mod naive;
mod plain;
mod raw;
pub(crate) mod source;

/// Send buffer of all contenders, since the kernel's buffers are part of the measurement: as set by the
/// gateway.
const SEND_BUFFER_BYTES: usize = 256 * 1024;

/// Directory, within a server's, of the tenant's identity, which all followers use.
pub(crate) const TENANT_DIR: &str = "tenant";

/// Directory, within a server's, of another tenant's identity.
pub(crate) const NEIGHBOR_DIR: &str = "neighbor";

/// Name of the only service.
pub(crate) const SERVICE: &str = "web";

/// Arguments of a server process.
#[derive(Debug, Args)]
pub(crate) struct Task {
    /// The contender to run.
    #[arg(long)]
    kind: Kind,
    /// Directory of the tenant's identity and the server's certificate.
    #[arg(long)]
    dir: PathBuf,
    #[arg(long, default_value = "tls")]
    security: Security,
    /// Bytes of a message.
    #[arg(long, default_value_t = 100)]
    size: usize,
    /// The gateway's pace interval in milliseconds.
    #[arg(long, default_value_t = 5)]
    pace: u64,
    /// Replicas of the service; lines are distributed among them.
    #[arg(long, default_value_t = 1)]
    replicas: u32,
    /// Bytes per second of the service of another tenant, whose identity is in the directory.
    #[arg(long)]
    neighbor_rate: Option<u64>,
    /// Run the gateway with its production runtimes and an admin port, instead of one thread.
    #[arg(long)]
    as_served: bool,
    /// Directory of the log that the gateway reads, instead of the lines of the publisher's connection.
    #[arg(long)]
    logs: Option<PathBuf>,
    /// Run the gateway in a fleet, over the NATS server with this URL, and with an admin port.
    #[arg(long)]
    nats: Option<String>,
}

/// Listening sockets of a server, and how they are secured.
struct Listeners {
    /// For the publisher's plain connection. When it closes, the process ends.
    ingest: TcpListener,
    followers: TcpListener,
    /// For followers; `None`: no TLS.
    tls: Option<Arc<ServerConfig>>,
    /// The gateway's admin port, if it has one.
    admin: Option<TcpListener>,
}

/// Runs a server until the publisher disconnects.
pub(crate) fn serve(task: &Task) -> Result<()> {
    // As in production. Without a subscriber, some libraries search for another logger at each span.
    tracing_subscriber::fmt().with_max_level(tracing::Level::INFO).with_writer(std::io::stderr).init();
    let certificate = tls::ensure(&task.dir, &[], SystemTime::now())?;
    let tls = match task.security {
        Security::Plain => None,
        Security::Tls => {
            let certified = tls::load(&certificate.certificate, &certificate.key)?;
            let resolver = Arc::new(SingleCertAndKey::from(certified));
            let config = if task.kind.is_websocket() { tls::http1_server_config } else { tls::server_config };
            Some(Arc::new(config(resolver)?))
        }
    };
    let admin = (task.as_served || task.nats.is_some()).then(listen).transpose()?;
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
        Kind::Gateway | Kind::Ws => {
            let pace = Duration::from_millis(task.pace);
            gateway::serve(listeners, task, pace)
        }
        Kind::Tungstenite => library::serve::<library::Tungstenite>(listeners),
        Kind::TokioWebsockets => library::serve::<library::TokioWebsockets>(listeners),
        Kind::Nats | Kind::Redis => Err("not a contender of this program".into()),
    }
}

fn listen() -> Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    // Accepted sockets inherit the options.
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
    socket.listen(4_096)?;
    Ok(socket.into())
}
