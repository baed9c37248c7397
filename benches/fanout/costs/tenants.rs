//! Measures a follower of one tenant while another tenant, within its quotas, has many followers of a busy
//! service, one of a loud service, or opens many connections.

use std::io::{ErrorKind, Read as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use leasemux::access::identity::IdentityFiles;
use leasemux::model::time::LogTime;

use super::followers::silent;
use crate::Result;
use crate::client::Client;
use crate::client::login::Login;
use crate::contender::{Kind, Server};
use crate::goals::verdict;
use crate::measure::usage;
use crate::plan::{Cell, Regime, Security};
use crate::server::NEIGHBOR_DIR;

/// Upper bound on the follower's p99 delay beside the other tenant, divided by that without.
const DELAY_GOAL: f64 = 5.0;

/// Load before each measurement.
const WARM_UP: Duration = Duration::from_secs(1);

/// Threads that open connections.
const OPENERS: usize = 8;

/// A lagging follower reads this much at a time.
const LAGGING_READ_BYTES: usize = 4 * 1_024;

/// Bytes per second that the loud service prints.
const LOUD_RATE: u64 = 40_000_000;

/// Interval between two reads of all lagging followers: 20 KiB per second each.
const LAGGING_READ_INTERVAL: Duration = Duration::from_millis(200);

/// Pause of a reader that has found nothing to read.
const READ_PAUSE: Duration = Duration::from_millis(1);

/// What the other tenant does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Neighbor {
    Absent,
    /// Its followers read everything.
    Reading,
    /// Its followers read slowly, and lag.
    Lagging,
    /// Its connections open during the measurement, and read nothing.
    Opening,
}

struct Measured {
    /// Median and 99th percentile of the follower's delays, in seconds.
    p50: f64,
    p99: f64,
    /// Cores that the gateway used.
    cores: f64,
    /// Bytes that the other tenant read, with TLS records and frames.
    read: u64,
    /// Connections that the other tenant opened.
    opened: u64,
}

#[derive(Default)]
struct Shared {
    is_over: AtomicBool,
    read: AtomicU64,
    opened: AtomicU64,
}

pub(super) fn run(followers: usize, connections: usize, kilobytes: u64, seconds: f64) -> Result<()> {
    let span = Duration::from_secs_f64(seconds);
    println!(
        "a follower of {}; another tenant, whose service prints {kilobytes} KB/s, has {followers} followers or opens \
         {connections} connections; {seconds} s each, {} cores",
        cell(),
        thread::available_parallelism()?,
    );
    println!(
        "{:28}{:>10}{:>10}{:>8}{:>8}{:>12}{:>13}",
        "", "p50 ms", "p99 ms", "x", "cores", "MB/s", "connections"
    );
    let mut alone = None;
    let rate = kilobytes * 1_000;
    for (name, neighbor, count, rate) in [
        ("alone (control)", Neighbor::Absent, 0, rate),
        ("followers that read", Neighbor::Reading, followers, rate),
        ("followers that lag", Neighbor::Lagging, followers, rate),
        ("a loud service", Neighbor::Reading, 1, LOUD_RATE),
        ("connections that open", Neighbor::Opening, connections, rate),
    ] {
        let Measured { p50, p99, cores, read, opened } = measure(neighbor, count, rate, span)?;
        let times = p99 / *alone.get_or_insert(p99);
        #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
        let rate = read as f64 / seconds / 1e6;
        println!(
            "{name:28}{:10.2}{:10.2}{times:8.2}{cores:8.2}{rate:12.1}{opened:13}  {}",
            p50 * 1e3,
            p99 * 1e3,
            verdict(times, DELAY_GOAL),
        );
    }
    Ok(())
}

fn cell() -> Cell {
    Cell { regime: Regime::Paced, size: 100, followers: 1, security: Security::Tls }
}

/// Measures a follower while the other tenant has `count` followers or opens as many connections.
fn measure(neighbor: Neighbor, count: usize, rate: u64, span: Duration) -> Result<Measured> {
    let dir = tempfile::tempdir()?;
    IdentityFiles::create(&dir.path().join(NEIGHBOR_DIR), LogTime::now())?;
    let arguments = ["--as-served".to_owned(), format!("--neighbor-rate={rate}")];
    let server = Server::start_own(Kind::Gateway, &arguments, dir.path())?;
    let cell = cell();
    let mut client = Client::connect(&server, Kind::Gateway.contender().as_ref(), &cell, dir.path())?;
    let shared = Arc::<Shared>::default();
    let mut threads = Vec::new();
    if matches!(neighbor, Neighbor::Reading | Neighbor::Lagging) {
        let sockets = open(server.followers, dir.path(), count, &shared)?;
        let shared = Arc::clone(&shared);
        threads.push(thread::spawn(move || read(sockets, neighbor == Neighbor::Lagging, &shared)));
    }
    client.run(cell.flow(), WARM_UP)?;
    shared.read.store(0, Ordering::Relaxed);
    if neighbor == Neighbor::Opening {
        for _ in 0..OPENERS {
            threads.push(start_opener(server.followers, dir.path(), count / OPENERS, &shared)?);
        }
    }
    let (cpu, begin) = (usage(server.id())?.cpu, Instant::now());
    client.run(cell.flow(), span)?;
    let (cpu, wall) = (usage(server.id())?.cpu - cpu, begin.elapsed().as_secs_f64());
    let delays = client.delays();
    shared.is_over.store(true, Ordering::Relaxed);
    for thread in threads {
        thread.join().map_err(|_| "a thread of the other tenant panicked")??;
    }
    client.finish()?;
    let quantile = |per_cent: usize| {
        let index = delays.len().saturating_sub(1) * per_cent / 100;
        f64::from(delays.get(index).copied().unwrap_or_default()) / 1e6
    };
    Ok(Measured {
        p50: quantile(50),
        p99: quantile(99),
        cores: cpu / wall,
        read: shared.read.load(Ordering::Relaxed),
        opened: shared.opened.load(Ordering::Relaxed),
    })
}

/// Opens connections of the other tenant, each with a follower, until there are `count` or the measurement is
/// over. Returns their sockets, without TLS: what they receive is not decrypted, which would use CPU that the
/// server needs.
fn open(to: SocketAddr, dir: &Path, count: usize, shared: &Shared) -> Result<Vec<TcpStream>> {
    let login = Login::of_tenant(Security::Tls, dir, NEIGHBOR_DIR)?;
    let mut sockets = Vec::new();
    while sockets.len() < count && !shared.is_over.load(Ordering::Relaxed) {
        let socket = silent(to, &login, 1)?.sock;
        socket.set_nonblocking(true)?;
        sockets.push(socket);
        shared.opened.fetch_add(1, Ordering::Relaxed);
    }
    Ok(sockets)
}

fn start_opener(
    to: SocketAddr,
    dir: &Path,
    count: usize,
    shared: &Arc<Shared>,
) -> Result<JoinHandle<Result<()>>> {
    let (dir, shared) = (dir.to_owned(), Arc::clone(shared));
    Ok(thread::Builder::new().spawn(move || {
        let sockets = open(to, &dir, count, &shared)?;
        while !shared.is_over.load(Ordering::Relaxed) {
            thread::sleep(READ_PAUSE);
        }
        drop(sockets);
        Ok(())
    })?)
}

/// Reads from all sockets until the measurement is over: all that is there, or slowly.
fn read(mut sockets: Vec<TcpStream>, slowly: bool, shared: &Shared) -> Result<()> {
    let mut buffer = vec![0; if slowly { LAGGING_READ_BYTES } else { 256 * 1_024 }];
    while !shared.is_over.load(Ordering::Relaxed) {
        let begin = Instant::now();
        let mut round = 0;
        for socket in &mut sockets {
            match socket.read(&mut buffer) {
                Ok(0) => return Err("the server closed a connection of the other tenant".into()),
                Ok(count) => round += count as u64,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
        shared.read.fetch_add(round, Ordering::Relaxed);
        if slowly {
            thread::sleep(LAGGING_READ_INTERVAL.saturating_sub(begin.elapsed()));
        } else if round == 0 {
            thread::sleep(READ_PAUSE);
        }
    }
    Ok(())
}
