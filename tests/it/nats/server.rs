//! A NATS server as a child process.

use std::ffi::OsString;
use std::fs;
use std::io::Read as _;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use leasemux::exchange::bus::{Bus as _, Connection};
use leasemux::exchange::gateway_id::GatewayId;
use leasemux::exchange::nats::{NatsBus, NatsOptions};
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::time::timeout;

use crate::interop::setting;
use crate::support::process::{LOOK, PATIENCE, Program, own_port};

/// The variable with the path of the server's program, and the script that prints it.
pub(crate) const PROGRAM: (&str, &str) = ("LEASEMUX_TEST_NATS_SERVER", ".ci/nats");

/// The same of Debian's server, which is older than the gateway recommends.
const OLD_PROGRAM: (&str, &str) =
    ("LEASEMUX_TEST_OLD_NATS_SERVER", "command -v nats-server, of Debian 12 or 13,");

/// The settings that docs/FLEET.md recommends.
const SETTINGS: &str = "
    no_fast_producer_stall: true
    max_pending: 32MB
    write_deadline: \"2s\"
    ping_interval: \"10s\"
    ping_max: 2
";

/// A NATS server. Killed on drop.
pub(crate) struct NatsServer {
    dir: TempDir,
    binary: OsString,
    port: u16,
    scheme: &'static str,
    program: Option<Program>,
}

// === impl NatsServer ===

impl NatsServer {
    /// Starts a server without authentication, if the variable names its program.
    pub(crate) fn start() -> Option<Self> {
        Self::with("nats", |_| String::new())
    }

    /// Starts a server with further settings, which may refer to files in a directory.
    pub(crate) fn with(scheme: &'static str, settings: impl FnOnce(&TempDir) -> String) -> Option<Self> {
        Some(Self::of(setting(PROGRAM)?, scheme, |dir| format!("{SETTINGS}{}", settings(dir))))
    }

    /// Starts an old server, which does not know all of these settings.
    pub(crate) fn old() -> Option<Self> {
        Some(Self::of(setting(OLD_PROGRAM)?, "nats", |_| String::new()))
    }

    fn of(binary: OsString, scheme: &'static str, settings: impl FnOnce(&TempDir) -> String) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut server = Self { dir, binary, port: own_port(), scheme, program: None };
        let text = format!("listen: \"127.0.0.1:{}\"\n{}", server.port, settings(&server.dir));
        fs::write(server.path("nats.conf"), text).unwrap();
        server.restart();
        server
    }

    /// Starts the server, and waits until it accepts connections.
    pub(crate) fn restart(&mut self) {
        let mut command = Command::new(&self.binary);
        command.arg("--config").arg(self.path("nats.conf"));
        self.program = Some(Program::start(command, "nats-server".to_owned()));
        let deadline = Instant::now() + PATIENCE;
        let mut greeting = [0; 4];
        while TcpStream::connect(("127.0.0.1", self.port))
            .and_then(|mut socket| socket.read_exact(&mut greeting))
            .is_err()
        {
            assert!(Instant::now() < deadline, "{}", self.log());
            std::thread::sleep(LOOK);
        }
        assert_eq!(&greeting, b"INFO");
    }

    pub(crate) fn kill(&mut self) {
        self.program.take().unwrap().kill();
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.program.as_ref().unwrap().signal(signal);
    }

    pub(crate) fn url(&self) -> String {
        format!("{}://localhost:{}", self.scheme, self.port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn options(&self) -> NatsOptions {
        NatsOptions {
            servers: vec![self.url()],
            credentials: None,
            authorities: None,
            certificate: None,
            source_node: None,
        }
    }

    /// Creates a bus, and waits until it is connected.
    pub(crate) async fn bus(&self) -> Arc<NatsBus> {
        let bus = Arc::new(NatsBus::start(&self.options(), GatewayId::random()).await.unwrap());
        until_up(&bus).await;
        bus
    }

    fn log(&self) -> String {
        self.program.as_ref().map(|program| program.err.get()).unwrap_or_default()
    }
}

pub(crate) async fn until_up(bus: &NatsBus) {
    in_time(bus.connection().wait_for(|connection| *connection == Connection::Up)).await.unwrap();
}

pub(crate) async fn until_away(bus: &NatsBus) {
    in_time(bus.connection().wait_for(|connection| *connection != Connection::Up)).await.unwrap();
}

/// Returns the output of a future that must end in time.
pub(crate) async fn in_time<F: Future>(future: F) -> F::Output {
    timeout(PATIENCE, future).await.unwrap()
}

/// Calls a function until it returns `true`.
pub(crate) async fn until(what: &str, mut is_reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_reached() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
