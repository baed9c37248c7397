//! Measures a follower while unauthenticated connections flood the gateway with HTTP/2 control frames.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};
use socket2::{Domain, Socket, Type};

use crate::Result;
use crate::client::Client;
use crate::client::login::Login;
use crate::contender::{Kind, Server};
use crate::goals::verdict;
use crate::measure::usage;
use crate::plan::{Cell, Regime, Security};

/// Upper bound on the follower's p99 delay during a flood, divided by that without a flood.
const DELAY_GOAL: f64 = 5.0;

/// Upper bound on the slowest response of `/ready`, in seconds.
const READY_GOAL: f64 = 0.2;

/// Load before each measurement, without a flood.
const WARM_UP: Duration = Duration::from_millis(500);

/// Interval of requests for `/ready`.
const READY_INTERVAL: Duration = Duration::from_millis(20);

/// Timeout of `/ready` requests and of handshakes.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);

/// Delay before a closed or refused connection is opened again.
const RECONNECT_DELAY: Duration = Duration::from_millis(10);

/// Sleep of a connection that can neither write nor read.
const BLOCKED_DELAY: Duration = Duration::from_micros(500);

/// Frames that a connection encrypts at a time.
const BATCH_FRAMES: usize = 1_000;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Each flood: its name, and how many frames with which bytes it repeats.
const FLOODS: [(&str, usize, &[u8]); 6] = [
    ("PING", 1, b"\0\0\x08\x06\0\0\0\0\0\0\0\0\0\0\0\0\0"),
    ("SETTINGS", 1, b"\0\0\x06\x04\0\0\0\0\0\0\x04\0\0\xff\xff"),
    (
        "SETTINGS_HEADER_TABLE_SIZE",
        2,
        b"\0\0\x06\x04\0\0\0\0\0\0\x01\0\0\0\0\0\0\x06\x04\0\0\0\0\0\0\x01\0\0\x10\0",
    ),
    ("WINDOW_UPDATE", 1, b"\0\0\x04\x08\0\0\0\0\0\0\0\0\x01"),
    ("PRIORITY", 1, b"\0\0\x05\x02\0\0\0\0\x01\0\0\0\x03\x0f"),
    ("unknown type", 1, b"\0\0\0\xbe\0\0\0\0\0"),
];

/// State that all threads of a flood share.
#[derive(Default)]
struct Shared {
    is_over: AtomicBool,
    frames: AtomicU64,
    connections: AtomicU64,
}

/// The result of one flood.
struct Measured {
    /// Median and 99th percentile of the follower's delays, in seconds.
    p50: f64,
    p99: f64,
    /// Seconds of the slowest response of `/ready`.
    ready: f64,
    /// Cores that the gateway used.
    cores: f64,
    frames: u64,
    connections: u64,
}

/// Measures each flood on a new gateway, and a control without a flood.
pub(super) fn run(connections: u8, seconds: f64) -> Result<()> {
    let span = Duration::from_secs_f64(seconds);
    println!(
        "a follower of {} while {connections} connections of strangers flood, {seconds} s each, {} cores",
        cell(),
        thread::available_parallelism()?,
    );
    println!(
        "{:28}{:>10}{:>10}{:>8}{:>12}{:>8}{:>14}{:>13}",
        "", "p50 ms", "p99 ms", "x", "/ready ms", "cores", "frames", "connections"
    );
    let control = measure(None, 0, span)?;
    print("none (control)", &control, None);
    for (name, frames_each, frames) in FLOODS {
        let measured = measure(Some((frames, frames_each)), connections, span)?;
        print(name, &measured, Some(&control));
    }
    Ok(())
}

fn cell() -> Cell {
    Cell { regime: Regime::Paced, size: 100, followers: 1, security: Security::Tls }
}

fn print(name: &str, measured: &Measured, control: Option<&Measured>) {
    let Measured { p50, p99, ready, cores, frames, connections } = measured;
    let times = control.map_or(1.0, |control| p99 / control.p99);
    println!(
        "{name:28}{:10.2}{:10.2}{times:8.2}{:12.1}{cores:8.2}{frames:14}{connections:13}  delay {}, /ready {}",
        p50 * 1e3,
        p99 * 1e3,
        ready * 1e3,
        verdict(times, DELAY_GOAL),
        verdict(*ready, READY_GOAL),
    );
}

/// Measures a follower while `connections` send `flood`: the bytes to repeat, and how many frames they are.
fn measure(flood: Option<(&'static [u8], usize)>, connections: u8, span: Duration) -> Result<Measured> {
    let dir = tempfile::tempdir()?;
    let server = Server::start_own(Kind::Gateway, &["--as-served".to_owned()], dir.path())?;
    let admin = server.admin.ok_or("the gateway has no admin port")?;
    let cell = cell();
    let mut client = Client::connect(&server, Kind::Gateway.contender().as_ref(), &cell, dir.path())?;
    client.run(cell.flow(), WARM_UP)?;
    let shared = Arc::<Shared>::default();
    let mut threads = Vec::new();
    if let Some((bytes, frames)) = flood {
        for index in 0..connections {
            threads.push(start_flooder(&server, dir.path(), index, bytes, frames, &shared)?);
        }
    }
    let prober = {
        let shared = Arc::clone(&shared);
        thread::spawn(move || slowest_response(admin, &shared))
    };
    let (cpu, begin) = (usage(server.id())?.cpu, Instant::now());
    client.run(cell.flow(), span)?;
    let (cpu, wall) = (usage(server.id())?.cpu - cpu, begin.elapsed().as_secs_f64());
    let delays = client.delays();
    shared.is_over.store(true, Ordering::Relaxed);
    let ready = prober.join().map_err(|_| "the prober panicked")??;
    for thread in threads {
        thread.join().map_err(|_| "a flooding thread panicked")?;
    }
    client.finish()?;
    let quantile = |per_cent: usize| {
        let index = delays.len().saturating_sub(1) * per_cent / 100;
        f64::from(delays.get(index).copied().unwrap_or_default()) / 1e6
    };
    Ok(Measured {
        p50: quantile(50),
        p99: quantile(99),
        ready: ready.as_secs_f64(),
        cores: cpu / wall,
        frames: shared.frames.load(Ordering::Relaxed),
        connections: shared.connections.load(Ordering::Relaxed),
    })
}

/// Requests `/ready` repeatedly until the flood is over. Returns the time of the slowest response.
fn slowest_response(admin: SocketAddr, shared: &Shared) -> Result<Duration> {
    let mut slowest = Duration::ZERO;
    while !shared.is_over.load(Ordering::Relaxed) {
        let begin = Instant::now();
        let mut socket = TcpStream::connect_timeout(&admin, RESPONSE_TIMEOUT)?;
        socket.set_read_timeout(Some(RESPONSE_TIMEOUT))?;
        socket.write_all(b"GET /ready HTTP/1.1\r\nhost: a\r\n\r\n")?;
        let mut response = String::new();
        socket.read_to_string(&mut response)?;
        if !response.starts_with("HTTP/1.1 200 ") {
            return Err(format!("/ready returned {response}").into());
        }
        slowest = slowest.max(begin.elapsed());
        thread::sleep(READY_INTERVAL);
    }
    Ok(slowest)
}

/// Starts a thread that sends `bytes`, which are this many `frames`, repeatedly. Reconnects when it is
/// disconnected.
fn start_flooder(
    server: &Server,
    dir: &Path,
    index: u8,
    bytes: &'static [u8],
    frames: usize,
    shared: &Arc<Shared>,
) -> Result<JoinHandle<()>> {
    let (to, tls, shared) = (server.followers, Login::unauthenticated(dir)?, Arc::clone(shared));
    let from = SocketAddr::from(([127, 0, 0, 2 + index], 0));
    Ok(thread::spawn(move || {
        let batch = bytes.repeat(BATCH_FRAMES / frames);
        while !shared.is_over.load(Ordering::Relaxed) {
            // The gateway is expected to close the connection.
            if let Ok((socket, session)) = connect(from, to, &tls) {
                shared.connections.fetch_add(1, Ordering::Relaxed);
                let _ = send(socket, session, &batch, &shared);
            }
            thread::sleep(RECONNECT_DELAY);
        }
    }))
}

fn connect(
    from: SocketAddr,
    to: SocketAddr,
    tls: &Arc<ClientConfig>,
) -> Result<(TcpStream, ClientConnection)> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&from.into())?;
    socket.connect(&to.into())?;
    let mut socket = TcpStream::from(socket);
    socket.set_read_timeout(Some(RESPONSE_TIMEOUT))?;
    let mut session = ClientConnection::new(Arc::clone(tls), ServerName::try_from("localhost")?)?;
    session.set_buffer_limit(None);
    while session.is_handshaking() {
        session.complete_io(&mut socket)?;
    }
    session.writer().write_all(PREFACE)?;
    socket.set_nonblocking(true)?;
    Ok((socket, session))
}

/// Sends `batch` repeatedly, as fast as the gateway takes it, and reads the responses, until an error or the
/// end.
fn send(mut socket: TcpStream, mut session: ClientConnection, batch: &[u8], shared: &Shared) -> Result<()> {
    let mut responses = vec![0; 64 * 1024];
    while !shared.is_over.load(Ordering::Relaxed) {
        let mut blocked = true;
        if !session.wants_write() {
            session.writer().write_all(batch)?;
            shared.frames.fetch_add(BATCH_FRAMES as u64, Ordering::Relaxed);
        }
        while session.wants_write() {
            match session.write_tls(&mut socket) {
                Ok(_) => blocked = false,
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) => return Err(e.into()),
            }
        }
        match session.read_tls(&mut socket) {
            Ok(0) => return Ok(()),
            Ok(_) => {
                blocked = false;
                let mut left = session.process_new_packets()?.plaintext_bytes_to_read();
                while left > 0 {
                    left -= session.reader().read(&mut responses)?;
                }
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(e) => return Err(e.into()),
        }
        if blocked {
            thread::sleep(BLOCKED_DELAY);
        }
    }
    Ok(())
}
