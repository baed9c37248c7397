//! Measures idle and stalled followers, many replicas, and handshakes.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};

use crate::Result;
use crate::client::Client;
use crate::client::login::Login;
use crate::contender::{Kind, Server};
use crate::goals::verdict;
use crate::measure::{Usage, usage};
use crate::plan::{Cell, Flow, Regime, Security};

/// A connection that is never read.
pub(super) type Silent = StreamOwned<ClientConnection, TcpStream>;

/// Length of a measurement.
const SPAN: Duration = Duration::from_secs(5);

/// Deliveries per second to all followers, when replicas are compared.
const DELIVERIES: u64 = 5_000;

/// Delay until the CPU and memory of a server are steady.
const SETTLE: Duration = Duration::from_millis(500);

/// Streams per connection, and upper bound on the KiB of an idle follower.
const IDLE_GOALS: [(u32, f64); 2] = [(1, 36.0), (100, 4.0)];

/// Upper bound on the KiB of a stalled follower.
const STALLED_GOAL: f64 = 64.0;

/// Upper bound on the CPU of a delivery with one replica per follower, divided by that with one replica for
/// all.
const REPLICAS_GOAL: f64 = 2.0;

const LINE_BYTES: u64 = 100;
const MEGABYTE: u64 = 1_000_000;
const KIB: f64 = 1024.0;

fn gateway(dir: &Path, replicas: usize) -> Result<(Server, Usage)> {
    let arguments = [format!("--replicas={replicas}"), "--pace=0".to_owned()];
    let server = Server::start_own(Kind::Gateway, &arguments, dir)?;
    std::thread::sleep(SETTLE);
    let before = usage(server.id())?;
    Ok((server, before))
}

/// Connects and opens `streams` streams, then neither reads nor writes.
pub(super) fn silent(to: SocketAddr, login: &Login, streams: u32) -> Result<Silent> {
    let mut socket = TcpStream::connect(to)?;
    let config = login.tls.clone().ok_or("followers connect over TLS")?;
    let mut tls = ClientConnection::new(config, ServerName::try_from("localhost")?)?;
    tls.set_buffer_limit(None);
    tls.writer().write_all(&login.request(streams, None))?;
    while tls.is_handshaking() || tls.wants_write() {
        tls.complete_io(&mut socket)?;
    }
    let mut silent = StreamOwned::new(tls, socket);
    // Waits for the server's first frame, its settings.
    silent.read_exact(&mut [0; 9])?;
    Ok(silent)
}

#[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
pub(super) fn idle(followers: usize) -> Result<()> {
    println!("{followers} idle followers over TLS");
    for (streams, goal) in IDLE_GOALS {
        let dir = tempfile::tempdir()?;
        let (server, before) = gateway(dir.path(), 1)?;
        let login = Login::load(Security::Tls, dir.path())?;
        let connections = followers.div_ceil(streams as usize);
        let mut silent_followers = Vec::new();
        for _ in 0..connections {
            silent_followers.push(silent(server.followers, &login, streams)?);
        }
        std::thread::sleep(SETTLE);
        let connected = usage(server.id())?;
        std::thread::sleep(SPAN);
        let after = usage(server.id())?;
        let each = (after.memory - before.memory) / (connections * streams as usize) as f64 / KIB;
        println!(
            "  {streams:3} on each connection: {each:7.1} KiB each (goal at most {goal}: {}), {:.3} % of a core for all",
            verdict(each, goal),
            (after.cpu - connected.cpu) / SPAN.as_secs_f64() * 100.0,
        );
    }
    Ok(())
}

#[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
pub(super) fn stalled(followers: usize, megabytes: u64) -> Result<()> {
    println!("{followers} followers over TLS that take nothing, while {megabytes} MB are published");
    let mut alone = 0.0;
    for count in [0, followers] {
        let dir = tempfile::tempdir()?;
        let (server, _) = gateway(dir.path(), 1)?;
        let login = Login::load(Security::Tls, dir.path())?;
        let stalled: Vec<_> =
            (0..count).map(|_| silent(server.followers, &login, 1)).collect::<Result<_>>()?;
        let cell = Cell { regime: Regime::Backlog, size: 4_096, followers: 1, security: Security::Tls };
        let mut client = Client::connect(&server, Kind::Gateway.contender().as_ref(), &cell, dir.path())?;
        while client.delivered() * cell.size < megabytes * MEGABYTE {
            client.run(cell.flow(), SETTLE)?;
        }
        let memory = usage(server.id())?.memory;
        client.finish()?;
        if stalled.is_empty() {
            alone = memory;
            println!("  the one that reads, alone: {:.1} MiB in all", memory / KIB / KIB);
        } else {
            let each = (memory - alone) / stalled.len() as f64 / KIB;
            let verdict = verdict(each, STALLED_GOAL);
            println!(
                "  each that takes nothing: {each:.1} KiB more (goal at most {STALLED_GOAL}: {verdict}); {}",
                socket_memory()?
            );
        }
    }
    Ok(())
}

/// Returns how much memory the kernel holds for all TCP sockets of this machine.
fn socket_memory() -> Result<String> {
    let stat = fs::read_to_string("/proc/net/sockstat")?;
    let tcp = stat.lines().find_map(|line| line.strip_prefix("TCP:")).unwrap_or_default();
    let pages = tcp.split_whitespace().skip_while(|word| *word != "mem").nth(1).unwrap_or("0");
    let mebibytes = pages.parse::<f64>()? * 4.0 / KIB;
    Ok(format!("the kernel holds {mebibytes:.0} MiB for TCP, both ends"))
}

#[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
pub(super) fn replicas(followers: usize) -> Result<()> {
    println!(
        "{followers} followers over TLS, {DELIVERIES} deliveries of {LINE_BYTES} B a second in all, unpaced"
    );
    let mut first = None;
    let fewer = [1, 10, 100, 1_000].into_iter().filter(|replicas| *replicas < followers);
    for replicas in fewer.chain([followers]) {
        let dir = tempfile::tempdir()?;
        let (server, before) = gateway(dir.path(), replicas)?;
        let size = LINE_BYTES;
        let cell = Cell { regime: Regime::Paced, size, followers, security: Security::Tls };
        let contender = Kind::Gateway.contender();
        let login = Login::load(Security::Tls, dir.path())?;
        let count = u32::try_from(replicas)?;
        let greeting = |replica| login.request(1, Some(replica));
        let mut client =
            Client::connect_distributed(&server, contender.as_ref(), &cell, dir.path(), count, greeting)?;
        let lines = DELIVERIES * replicas as u64 / followers as u64;
        let (cpu, delivered) = (usage(server.id())?.cpu, client.delivered());
        client.run(Flow::Rate(lines.max(1)), SPAN)?;
        let after = usage(server.id())?;
        let each = (after.cpu - cpu) / (client.delivered() - delivered).max(1) as f64;
        let times = each / *first.get_or_insert(each);
        println!(
            "  {replicas:5} replicas: {:6.2} us of server CPU per delivery ({times:.2}x; goal at most {REPLICAS_GOAL}x: {}), {:.1} MiB",
            each * 1e6,
            verdict(times, REPLICAS_GOAL),
            (after.memory - before.memory) / KIB / KIB,
        );
        client.finish()?;
    }
    Ok(())
}

#[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
pub(super) fn handshakes(count: usize) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (server, before) = gateway(dir.path(), 1)?;
    let login = Login::load(Security::Tls, dir.path())?;
    let own = usage(std::process::id())?;
    let begin = Instant::now();
    for _ in 0..count {
        let mut socket = TcpStream::connect(server.followers)?;
        let config = Arc::clone(login.tls.as_ref().ok_or("followers connect over TLS")?);
        let mut tls = ClientConnection::new(config, ServerName::try_from("localhost")?)?;
        while tls.is_handshaking() || tls.wants_write() {
            tls.complete_io(&mut socket)?;
        }
    }
    let wall = begin.elapsed().as_secs_f64();
    let per = |usage: Usage, before: Usage| (usage.cpu - before.cpu) / count as f64 * 1e6;
    let (server, client) = (per(usage(server.id())?, before), per(usage(std::process::id())?, own));
    println!("{count} handshakes with certificates on both sides, one after the other");
    println!(
        "  {:.0} a second; {server:.0} us of the server (so {:.0} a second on one core), {client:.0} us of the client",
        count as f64 / wall,
        1e6 / server,
    );
    Ok(())
}
