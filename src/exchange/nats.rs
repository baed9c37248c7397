//! The bus on NATS: two connections to one of the servers.
//!
//! The client library connects again by itself, after a random delay, and repeats the subscriptions. Its
//! calls wait while its queue is full, so each is polled once: a message that does not fit is dropped, and a
//! subscription waits in its own stream.
//!
//! **Servers that hang.** A connection that takes no bytes for `UPKEEP_INTERVAL` counts as down. Three
//! unanswered pings end it. Messages that were queued before arrive late, or after the next connection: the
//! exchange treats them as late ones.
//!
//! **Only configured servers.** Servers that a server announces may be addresses without TLS, or not match a
//! certificate, so they are ignored. A host name with several addresses serves the same purpose.

use std::fmt;
use std::future::ready;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_nats::{ConnectError, ConnectErrorKind, ConnectOptions, ServerAddr};
use bytes::Bytes;
use futures_core::future::BoxFuture;
use futures_util::stream;
use rand::RngExt as _;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

pub use self::check::check;
use self::inbox::Inbox;
use self::link::Link;
use self::state::State;
use super::bus::{
    Answers, Bus, BusTotals, Channel, Connection, RequestError, SUBSCRIPTION_MESSAGES, Subscription,
    UNSENT_MESSAGES,
};
use super::gateway_id::GatewayId;
use crate::sys::read::read_bounded;

mod check;
mod inbox;
mod link;
mod server_log;
mod slow;
mod state;
mod version;

/// Interval between pings. The library gives up at the third unanswered one, so after six seconds.
const PING_INTERVAL: Duration = Duration::from_secs(2);

/// Maximum delay before a connection is tried again. Random, because all gateways lose a server at once.
const RECONNECT_DELAY_MAX: Duration = Duration::from_millis(500);

/// Time for one attempt to connect, with TLS and credentials. The kernel accepts connections for a server
/// that hangs, and another address should be tried soon.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How often a connection is examined: whether it takes bytes, and which version the server has.
const UPKEEP_INTERVAL: Duration = Duration::from_millis(500);

/// Beginning of the subjects of answers. Permissions of a gateway name it.
const INBOX_PREFIX: &str = "_INBOX.edge";

/// Maximum size of a file with credentials. A JWT with many permissions takes a few kB.
const CREDENTIALS_MAX_BYTES: u64 = 64 * 1024;

/// How to reach the servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatsOptions {
    /// URLs of the servers: `tls://host:port`, or `nats://host:port` without TLS.
    pub servers: Vec<String>,
    /// How the gateway proves its identity; `None` = not at all.
    pub credentials: Option<Credentials>,
    /// File with the authorities of the servers' certificates, read at each connection; `None` = the
    /// system's.
    pub authorities: Option<PathBuf>,
    /// Files of the gateway's certificate and its key, read at each connection.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// The node of a gateway without followers. It makes no requests, and needs fewer permissions.
    pub source_node: Option<String>,
}

/// How the gateway proves its identity. The files are read at the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credentials {
    /// A file with a user's JWT and seed, as the tools of NATS write it (`.creds`).
    Creds(PathBuf),
    /// A file with the seed of a user's nkey.
    Nkey(PathBuf),
}

/// Why NATS cannot be used. The text is for the operator.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NatsError {
    /// A URL is invalid.
    #[error("--nats: {0}")]
    Server(io::Error),
    /// The credentials cannot be read.
    #[error("{flag}: {}: {source}", path.display())]
    Credentials {
        /// The flag that names the file.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// No server can be reached, or none accepts the gateway.
    #[error("--nats: {}", connect_text(.0))]
    Connect(ConnectError),
    /// No server has answered within this time.
    #[error("--nats: no server has answered within {} s", .0.as_secs())]
    Slow(Duration),
    /// The server does not permit a message or a subscription, or does not deliver.
    #[error("--nats: {}", .0.join("; "))]
    Permissions(Vec<String>),
}

/// The bus on NATS.
pub struct NatsBus {
    frames: Link,
    control: Link,
    inbox: Inbox,
    state: Arc<State>,
    /// They end with the bus.
    _tasks: JoinSet<()>,
}

// === impl NatsOptions ===

impl NatsOptions {
    /// Returns the addresses of the servers.
    fn addresses(&self) -> Result<Vec<ServerAddr>, NatsError> {
        self.servers.iter().map(|url| url.parse().map_err(NatsError::Server)).collect()
    }

    /// Returns the options of a connection for the library. `name` is for the server's reports.
    fn to_library(&self, name: String) -> Result<ConnectOptions, NatsError> {
        let mut options = ConnectOptions::new()
            .name(name)
            .ping_interval(PING_INTERVAL)
            .connection_timeout(CONNECT_TIMEOUT)
            .reconnect_delay_callback(|_| rand::rng().random_range(Duration::ZERO..=RECONNECT_DELAY_MAX))
            .subscription_capacity(SUBSCRIPTION_MESSAGES)
            .client_capacity(UNSENT_MESSAGES)
            .ignore_discovered_servers();
        options = match &self.credentials {
            None => options,
            Some(Credentials::Creds(path)) => {
                let text = credentials_text("--nats-creds", path)?;
                options.credentials(&text).map_err(|source| unusable("--nats-creds", path, source))?
            }
            Some(Credentials::Nkey(path)) => {
                let text = credentials_text("--nats-nkey", path)?;
                // Tools write comments and empty lines around it.
                let seed = text.lines().map(str::trim).find(|line| line.starts_with("SU"));
                let none = || io::Error::new(io::ErrorKind::InvalidData, "has no seed of a user (SU…)");
                let seed = seed.ok_or_else(none).map_err(|source| unusable("--nats-nkey", path, source))?;
                options.nkey(seed.to_owned())
            }
        };
        if let Some(path) = &self.authorities {
            options = options.add_root_certificates(path.clone());
        }
        if let Some((certificate, key)) = &self.certificate {
            options = options.add_client_certificate(certificate.clone(), key.clone());
        }
        Ok(options)
    }
}

fn credentials_text(flag: &'static str, path: &Path) -> Result<String, NatsError> {
    let text = read_bounded(path, CREDENTIALS_MAX_BYTES).and_then(|bytes| {
        String::from_utf8(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    });
    text.map_err(|source| unusable(flag, path, source))
}

fn unusable(flag: &'static str, path: &Path, source: io::Error) -> NatsError {
    NatsError::Credentials { flag, path: path.to_owned(), source }
}

/// Returns the operator's text of a failed connection: the library's, and the flags that may be wrong.
fn connect_text(error: &ConnectError) -> String {
    let remedy = match error.kind() {
        ConnectErrorKind::AuthorizationViolation => "check --nats-creds, --nats-nkey or --nats-cert",
        ConnectErrorKind::Authentication => "check the seed in --nats-creds or --nats-nkey",
        ConnectErrorKind::Tls => "check --nats-ca and --nats-cert",
        ConnectErrorKind::TimedOut => "no answer within 2 s; check the address",
        _ => "check the address and, for tls://, --nats-ca",
    };
    format!("cannot connect: {error}; {remedy}")
}

// === impl NatsBus ===

impl NatsBus {
    /// Creates the bus. Does not wait for a connection, which is tried until the bus is dropped. `gateway` is
    /// part of the connections' names and of the subjects of answers.
    pub async fn start(options: &NatsOptions, gateway: GatewayId) -> Result<Self, NatsError> {
        let state = Arc::new(State::new());
        let start = async |channel| Link::start(options, gateway, channel, &state).await;
        let frames = start(Channel::Frames).await?;
        let control = start(Channel::Control).await?;
        let mut tasks = JoinSet::new();
        let (inbox, answers) = Inbox::open(&control, gateway, options.source_node.is_none());
        tasks.spawn(answers);
        tasks.spawn(upkeep([frames.clone(), control.clone()]));
        Ok(Self { frames, control, inbox, state, _tasks: tasks })
    }

    fn link(&self, channel: Channel) -> &Link {
        match channel {
            Channel::Frames => &self.frames,
            Channel::Control => &self.control,
        }
    }
}

impl Bus for NatsBus {
    fn publish(&self, channel: Channel, subject: &str, reply: Option<&str>, payload: Bytes) {
        self.link(channel).publish(subject, reply.map(str::to_owned), payload);
    }

    fn subscribe(&self, channel: Channel, subject: &str) -> Subscription {
        self.link(channel).subscribe(subject)
    }

    fn request(&self, subject: &str, payload: Bytes, timeout: Duration) -> Answers {
        let Some(request) = self.inbox.register() else { return unavailable() };
        if !self.control.publish(subject, Some(request.reply()), payload) {
            return unavailable();
        }
        request.answers(timeout)
    }

    fn flush(&self) -> BoxFuture<'_, ()> {
        Box::pin(async { _ = tokio::join!(self.frames.flush(), self.control.flush()) })
    }

    fn connection(&self) -> watch::Receiver<Connection> {
        self.state.subscribe()
    }

    fn totals(&self) -> BusTotals {
        self.state.totals()
    }
}

impl fmt::Debug for NatsBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsBus")
            .field("connection", &*self.state.subscribe().borrow())
            .finish_non_exhaustive()
    }
}

/// Returns the answers to a request that was not sent.
fn unavailable() -> Answers {
    Answers::new(stream::once(ready(Err(RequestError::Unavailable))))
}

/// Examines the connections until it is aborted.
async fn upkeep(mut links: [Link; 2]) {
    let mut ticks = interval(UPKEEP_INTERVAL);
    // Two ticks at once would find no progress between them.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        for link in &mut links {
            link.examine();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn options(credentials: Credentials) -> Result<ConnectOptions, NatsError> {
        let servers = vec!["nats://127.0.0.1:4222".to_owned()];
        let options = NatsOptions {
            servers,
            credentials: Some(credentials),
            authorities: None,
            certificate: None,
            source_node: None,
        };
        options.to_library("test".to_owned())
    }

    #[test]
    fn files_without_credentials_are_reported_with_their_flag() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("user");
        let error = |credentials| options(credentials).err().unwrap().to_string();
        assert!(error(Credentials::Nkey(path.clone())).starts_with("--nats-nkey: "));
        fs::write(&path, "-----BEGIN USER NKEY SEED-----\n\n").unwrap();
        let nkey = error(Credentials::Nkey(path.clone()));
        assert!(nkey.ends_with("has no seed of a user (SU…)"), "{nkey}");
        let creds = error(Credentials::Creds(path.clone()));
        assert!(creds.starts_with("--nats-creds: ") && creds.contains("cannot parse user JWT"), "{creds}");
        fs::write(&path, "# gateway\n SUAIO3FHUX5PNV2LQIIP7TZ3N4L7TX3W53MQGEIVYFIGA635OZCKEYHFLM\n").unwrap();
        assert!(options(Credentials::Nkey(path)).is_ok());
    }
}
