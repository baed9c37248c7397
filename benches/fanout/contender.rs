//! The contenders, and how their processes are started.

use std::fmt;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use clap::ValueEnum;
use leasemux::access::identity::IdentityFiles;
use leasemux::model::time::LogTime;
use serde::Serialize;

use crate::Result;
use crate::client::login::Login;
use crate::client::protocol::{Http2, Lines, Protocol};
use crate::client::websocket::{self, Websocket};
use crate::peers;
use crate::plan::Cell;
use crate::server::TENANT_DIR;

/// A contender.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// Bare sockets, with TLS records if secured: the reference.
    Raw,
    /// tonic with one broadcast channel; encodes each message once per follower.
    Naive,
    /// The gateway, over gRPC.
    Gateway,
    /// The gateway, over websockets of its REST port.
    Ws,
    /// tokio-tungstenite with one broadcast channel; copies each line once per follower.
    Tungstenite,
    /// tokio-websockets with one broadcast channel; queues each line once per follower, without a copy.
    TokioWebsockets,
    /// A NATS server, one subject.
    Nats,
    /// A Redis server, one channel.
    Redis,
}

/// Starts a contender and speaks its protocol.
pub(crate) trait Contender {
    /// Starts its process for `cell`, with files in `dir`; `None` if it is not installed.
    fn start(&self, cell: &Cell, dir: &Path) -> Result<Option<Server>>;

    /// Returns the first bytes that a follower sends.
    fn greeting(&self, login: &Login) -> Vec<u8>;

    /// Creates a follower's parser of the server's bytes.
    fn protocol(&self) -> Box<dyn Protocol>;

    /// Returns the first bytes that the publisher sends.
    fn publisher_greeting(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Returns the bytes before and after a published message of `size` bytes.
    fn envelope(&self, _size: u64) -> (Vec<u8>, Vec<u8>) {
        (Vec::new(), Vec::new())
    }
}

/// A contender's process. Killed on drop.
pub(crate) struct Server {
    pub(crate) child: Child,
    /// Address for the publisher.
    pub(crate) ingest: SocketAddr,
    /// Address for followers.
    pub(crate) followers: SocketAddr,
    /// Address of the admin port, if it has one.
    pub(crate) admin: Option<SocketAddr>,
}

/// A contender within this program.
struct Own(Kind);

/// The request of a websocket follower. The libraries answer any path.
const WEBSOCKET_PATH: &str = "/lease/1/1/1/logs?follow=true&tail=0&notices=loss";

// === impl Kind ===

impl Kind {
    pub(crate) fn contender(self) -> Box<dyn Contender> {
        match self {
            Self::Nats => Box::new(peers::NatsServer),
            Self::Redis => Box::new(peers::RedisServer),
            own => Box::new(Own(own)),
        }
    }

    /// Whether its followers speak the websocket protocol.
    pub(crate) fn is_websocket(self) -> bool {
        matches!(self, Self::Ws | Self::Tungstenite | Self::TokioWebsockets)
    }

    /// Whether it is another project's server.
    pub(crate) fn is_peer(self) -> bool {
        matches!(self, Self::Nats | Self::Redis)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_possible_value().map_or(Ok(()), |value| f.pad(value.get_name()))
    }
}

// === impl Own ===

impl Contender for Own {
    fn start(&self, cell: &Cell, dir: &Path) -> Result<Option<Server>> {
        let arguments = [
            format!("--size={}", cell.size),
            format!("--pace={}", cell.pace().as_millis()),
            format!("--security={}", format!("{:?}", cell.security).to_lowercase()),
        ];
        Server::start_own(self.0, &arguments, dir).map(Some)
    }

    fn greeting(&self, login: &Login) -> Vec<u8> {
        match self.0 {
            Kind::Raw => Vec::new(),
            kind if kind.is_websocket() => websocket::handshake(WEBSOCKET_PATH),
            _ => login.request(1, None),
        }
    }

    fn protocol(&self) -> Box<dyn Protocol> {
        match self.0 {
            Kind::Raw => Box::new(Lines),
            kind if kind.is_websocket() => Box::<Websocket>::default(),
            _ => Box::<Http2>::default(),
        }
    }
}

// === impl Server ===

impl Server {
    /// Starts this program as a server, with a new tenant in `dir`. Waits until it listens.
    pub(crate) fn start_own(kind: Kind, arguments: &[String], dir: &Path) -> Result<Self> {
        IdentityFiles::create(&dir.join(TENANT_DIR), LogTime::now())?;
        Self::start_own_of_tenant(kind, arguments, dir)
    }

    /// The same, for the tenant that is in `dir` already.
    pub(crate) fn start_own_of_tenant(kind: Kind, arguments: &[String], dir: &Path) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["serve", "--kind", &kind.to_string(), "--dir"])
            .arg(dir)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        if let Some(out) = child.stdout.take() {
            BufReader::new(out.take(1_000)).read_line(&mut line)?;
        }
        let unknown = SocketAddr::from(([0; 4], 0));
        // From here on, the drop kills the process if a step fails.
        let mut server = Self { child, ingest: unknown, followers: unknown, admin: None };
        let mut addresses = line.split_whitespace();
        let (ingest, followers) = addresses.next().zip(addresses.next()).ok_or("the server did not start")?;
        (server.ingest, server.followers) = (ingest.parse()?, followers.parse()?);
        server.admin = addresses.next().map(str::parse).transpose()?;
        Ok(server)
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Fails if the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
