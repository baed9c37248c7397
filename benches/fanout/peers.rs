//! Servers of other projects, as installed by `apt-get install nats-server redis-server`. They are configured
//! to keep slow readers connected, as the gateway does. They do not set the kernel's send buffer, which
//! therefore grows on its own.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::Result;
use crate::client::login::Login;
use crate::client::protocol::{Nats, Protocol, Redis};
use crate::contender::{Contender, Server};
use crate::plan::Cell;

/// The subject or channel of all messages.
const SUBJECT: &str = "logs";

/// Upper bound on the time until a server listens.
const START_TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) struct NatsServer;
pub(crate) struct RedisServer;

impl Contender for NatsServer {
    fn start(&self, _: &Cell, dir: &Path) -> Result<Option<Server>> {
        let port = free_port()?;
        let config = format!(
            "listen: 127.0.0.1:{port}\nmax_pending: 1GB\nwrite_deadline: \"60s\"\nmax_connections: 65536\n"
        );
        let path = dir.join("nats.conf");
        std::fs::write(&path, config)?;
        start(Command::new("nats-server").arg("-c").arg(path), port)
    }

    fn greeting(&self, _: &Login) -> Vec<u8> {
        format!("CONNECT {{\"verbose\":false}}\r\nSUB {SUBJECT} 1\r\n").into()
    }

    fn protocol(&self) -> Box<dyn Protocol> {
        Box::new(Nats::default())
    }

    fn publisher_greeting(&self) -> Vec<u8> {
        b"CONNECT {\"verbose\":false}\r\n".to_vec()
    }

    fn envelope(&self, size: u64) -> (Vec<u8>, Vec<u8>) {
        (format!("PUB {SUBJECT} {size}\r\n").into(), b"\r\n".to_vec())
    }
}

impl Contender for RedisServer {
    fn start(&self, _: &Cell, dir: &Path) -> Result<Option<Server>> {
        let port = free_port()?;
        let port_text = port.to_string();
        let mut command = Command::new("redis-server");
        command.args(["--port", &port_text, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        command
            .args(["--maxclients", "60000", "--client-output-buffer-limit", "pubsub 0 0 0", "--dir"])
            .arg(dir);
        start(&mut command, port)
    }

    fn greeting(&self, _: &Login) -> Vec<u8> {
        format!("*2\r\n$9\r\nSUBSCRIBE\r\n${}\r\n{SUBJECT}\r\n", SUBJECT.len()).into()
    }

    fn protocol(&self) -> Box<dyn Protocol> {
        Box::new(Redis::default())
    }

    fn envelope(&self, size: u64) -> (Vec<u8>, Vec<u8>) {
        let length = SUBJECT.len();
        (format!("*3\r\n$7\r\nPUBLISH\r\n${length}\r\n{SUBJECT}\r\n${size}\r\n").into(), b"\r\n".to_vec())
    }
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// Starts the server and waits until it listens; `None` if it is not installed.
fn start(command: &mut Command, port: u16) -> Result<Option<Server>> {
    let spawned = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let child = match spawned {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        spawned => spawned?,
    };
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let server = Server { child, ingest: address, followers: address, admin: None };
    let begin = Instant::now();
    while TcpStream::connect(address).is_err() {
        if begin.elapsed() > START_TIMEOUT {
            return Err("the server does not listen".into());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(Some(server))
}
