//! Times for which followers get no new lines while processes of a fleet fail.
//!
//! A gateway outside the fleet runs the service. Three gateways of the real program read its log (`--attach`)
//! and share a tail; each has a follower. The service prints the lines that this process writes to a pipe.

use std::fs::{self, File, OpenOptions};
use std::io::{BufReader, ErrorKind, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use leasemux::access::identity::IdentityFiles;
use leasemux::edge::tls::generate::CERTIFICATE_FILE;
use leasemux::model::id::LeaseId;
use leasemux::model::time::LogTime;
use mio::{Events, Interest, Poll, Token};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::Signal;
use serde_json::Value;

use super::{NatsServer, TIMEOUT, admin, median, next_line, print_goal, signal, spawn};
use crate::Result;
use crate::client::follower::{Buffers, Follower};
use crate::client::login::Login;
use crate::client::received::{self, Clock, Received};
use crate::contender::Kind;
use crate::plan::Security;
use crate::server::{SERVICE, TENANT_DIR, source};

/// Gateways that share the tail.
const GATEWAYS: usize = 3;

/// Repetitions of each fault.
const REPS: usize = 10;

/// Bytes of a line, and interval of lines: short compared with all goals.
const LINE_BYTES: u64 = 100;
const LINE_INTERVAL: Duration = Duration::from_millis(2);

/// Interval of looks at the roles of the gateways.
const ROLES_INTERVAL: Duration = Duration::from_millis(10);

/// Time without a fault before each one: heartbeats and renewals are in their usual rhythm.
const CALM: Duration = Duration::from_secs(2);

/// Time after a fault in which the longest silence is measured, beyond the moment when all is as expected.
const AFTER: Duration = Duration::from_millis(500);

/// Upper bounds in seconds on the longest silence after a kill, a shutdown, and the loss of NATS, and on the
/// time until there is one tail again.
const KILLED_GOAL: f64 = 2.0;
const SHUT_DOWN_GOAL: f64 = 0.2;
const AWAY_GOAL: f64 = 1.5;
const BACK_GOAL: f64 = 2.0;

/// A gateway of the real program. Killed on drop.
struct Gateway {
    child: Child,
    /// Open, so that the program can print.
    out: BufReader<ChildStdout>,
    address: SocketAddr,
    admin: SocketAddr,
}

/// A fleet whose followers read all lines.
struct Fleet {
    nats: NatsServer,
    dir: PathBuf,
    lease: LeaseId,
    lines: Lines,
    gateways: Vec<Gateway>,
    /// Runs the service.
    _local: Gateway,
}

/// The writer of lines and their followers, in one thread.
struct Lines {
    poll: Poll,
    events: Events,
    buffers: Buffers,
    login: Login,
    clock: Clock,
    begin: Instant,
    pipe: File,
    written: u64,
    /// By gateway; `None` while it has none.
    followers: Vec<Option<Progress>>,
}

struct Progress {
    follower: Follower,
    /// The last line, and when it came.
    last: u64,
    at: Instant,
    /// The longest time between two lines.
    silence: Duration,
}

/// What a role of the fleet's gateways must be.
#[derive(Clone, Copy)]
enum Wanted {
    /// One publisher; all others are members.
    OneTail,
    /// All tail the log.
    AllTail,
}

pub(super) fn run(program: &Path) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut fleet = Fleet::start(program, dir.path())?;
    println!(
        "takeovers of {GATEWAYS} gateways, {REPS} times each: longest time without a new line at any other gateway, s"
    );
    let killed: Vec<f64> = (0..REPS).map(|_| fleet.replace_publisher(Signal::KILL)).collect::<Result<_>>()?;
    print("publisher killed", &killed, KILLED_GOAL);
    let stopped: Vec<f64> =
        (0..REPS).map(|_| fleet.replace_publisher(Signal::TERM)).collect::<Result<_>>()?;
    print("publisher shut down", &stopped, SHUT_DOWN_GOAL);
    for (name, is_kill) in [("killed", true), ("halted", false)] {
        let (mut away, mut back, mut silent) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..REPS {
            let times = fleet.lose_nats(is_kill)?;
            away.push(times[0]);
            back.push(times[1]);
            silent.push(times[2]);
        }
        print(&format!("NATS {name}, until all tail directly"), &away, AWAY_GOAL);
        print(&format!("NATS back after it was {name}, until one tail"), &back, BACK_GOAL);
        println!(
            "  time without a new line meanwhile: median {:.2}, maximum {:.2}",
            median(&silent),
            maximum(&silent)
        );
    }
    fleet.finish()
}

fn print(what: &str, times: &[f64], at_most: f64) {
    println!("  {what}: median {:.2}", median(times));
    print_goal("  maximum", maximum(times), at_most, "s");
}

fn maximum(times: &[f64]) -> f64 {
    times.iter().copied().fold(0.0, f64::max)
}

// === impl Fleet ===

impl Fleet {
    fn start(program: &Path, dir: &Path) -> Result<Self> {
        let nats = NatsServer::start(program, dir)?;
        let owner = IdentityFiles::create(&dir.join(TENANT_DIR), LogTime::now())?;
        let lease = source::lease(&owner)?;
        fs::create_dir(dir.join("trusted"))?;
        fs::copy(dir.join(TENANT_DIR).join("cert.pem"), dir.join("trusted/tenant.pem"))?;
        let path = dir.join("lines");
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
        // For both, so that it does not wait for the service.
        let pipe = OpenOptions::new().read(true).write(true).open(&path)?;
        let sdl = serde_json::json!({
            "version": "2.0",
            "services": { SERVICE: { "command": ["cat", path.display().to_string()] } },
            "deployment": { SERVICE: { "here": { "count": 1 } } },
        });
        // JSON is valid YAML.
        fs::write(dir.join("sdl.yaml"), sdl.to_string())?;
        let services = format!("--lease={lease}={}", dir.join("sdl.yaml").display());
        let local = Gateway::start(dir, "data", &lease, &[services])?;
        fs::copy(dir.join("data").join(CERTIFICATE_FILE), dir.join(CERTIFICATE_FILE))?;
        let lines = Lines {
            poll: Poll::new()?,
            events: Events::with_capacity(64),
            buffers: Buffers::default(),
            login: Login::load(Security::Tls, dir)?,
            clock: Clock::new(),
            begin: Instant::now(),
            pipe,
            written: 0,
            followers: Vec::new(),
        };
        let dir = dir.to_owned();
        let mut fleet = Self { nats, dir, lease, lines, gateways: Vec::new(), _local: local };
        for index in 0..GATEWAYS {
            let gateway = fleet.start_gateway(index)?;
            fleet.lines.followers.push(None);
            fleet.lines.follow(index, gateway.address)?;
            fleet.gateways.push(gateway);
        }
        fleet.until(Wanted::OneTail)?;
        Ok(fleet)
    }

    fn start_gateway(&self, index: usize) -> Result<Gateway> {
        let data = self.dir.join("data");
        let path = |name: &str| data.join(name).display().to_string();
        let arguments = [
            format!("--attach={}", data.display()),
            format!("--tls-cert={}", path(CERTIFICATE_FILE)),
            format!("--tls-key={}", path("server.key.pem")),
            format!("--nats={}", self.nats.url()),
        ];
        Gateway::start(&self.dir, &format!("data-{index}"), &self.lease, &arguments)
    }

    /// Ends the publisher with a signal. Returns the longest time without a new line at any other gateway.
    /// Then starts it again.
    fn replace_publisher(&mut self, end: Signal) -> Result<f64> {
        self.lines.run(CALM)?;
        let roles = self.roles()?;
        let index = roles.iter().position(|role| role == "publisher").ok_or("there is no publisher")?;
        // Its end is not an error of its follower.
        self.lines.followers[index] = None;
        self.lines.begin_silence();
        signal(&self.gateways[index].child, end)?;
        let ended = Instant::now();
        let others: Vec<usize> = (0..GATEWAYS).filter(|other| *other != index).collect();
        loop {
            self.lines.run(ROLES_INTERVAL)?;
            let roles = self.roles_of(&others)?;
            if roles.iter().filter(|role| *role == "publisher").count() == 1 && ended.elapsed() > AFTER {
                break;
            }
            if ended.elapsed() > TIMEOUT {
                return Err("no other gateway publishes".into());
            }
        }
        self.lines.run(AFTER)?;
        let silence = self.lines.silence();
        // One that shuts down waits for its connections; there are none.
        while self.gateways[index].child.try_wait()?.is_none() {
            self.lines.run(ROLES_INTERVAL)?;
        }
        self.gateways[index] = self.start_gateway(index)?;
        let address = self.gateways[index].address;
        self.lines.follow(index, address)?;
        self.until(Wanted::OneTail)?;
        Ok(silence.as_secs_f64())
    }

    /// Kills or halts the server, and brings it back. Returns the times until all tail directly and until
    /// there is one tail again, and the longest time without a new line.
    fn lose_nats(&mut self, is_kill: bool) -> Result<[f64; 3]> {
        self.lines.run(CALM)?;
        self.lines.begin_silence();
        let lost = Instant::now();
        if is_kill {
            self.nats.kill()?;
        } else {
            self.nats.signal(Signal::STOP)?;
        }
        self.until(Wanted::AllTail)?;
        let away = lost.elapsed();
        self.lines.run(CALM)?;
        if is_kill {
            self.nats.restart()?;
        } else {
            self.nats.signal(Signal::CONT)?;
        }
        let back = Instant::now();
        self.until(Wanted::OneTail)?;
        let back = back.elapsed();
        self.lines.run(AFTER)?;
        Ok([away, back, self.lines.silence()].map(|time| time.as_secs_f64()))
    }

    /// Goes on until the gateways have these roles.
    fn until(&mut self, wanted: Wanted) -> Result<()> {
        let begin = Instant::now();
        let all: Vec<usize> = (0..self.gateways.len()).collect();
        loop {
            let roles = self.roles_of(&all)?;
            let count = |wanted: &str| roles.iter().filter(|role| *role == wanted).count();
            let is_reached = match wanted {
                Wanted::OneTail => count("publisher") == 1 && count("member") + 1 == all.len(),
                // The publisher keeps its role without members.
                Wanted::AllTail => {
                    count("publisher") <= 1 && count("publisher") + count("direct") == all.len()
                }
            };
            if is_reached {
                return Ok(());
            }
            if begin.elapsed() > TIMEOUT {
                return Err(format!("the roles are {roles:?}").into());
            }
            self.lines.run(ROLES_INTERVAL)?;
        }
    }

    fn roles(&self) -> Result<Vec<String>> {
        self.roles_of(&(0..self.gateways.len()).collect::<Vec<_>>())
    }

    fn roles_of(&self, gateways: &[usize]) -> Result<Vec<String>> {
        let role = |index: &usize| {
            let view: Value = serde_json::from_str(&admin(self.gateways[*index].admin, "/fleet")?)?;
            Ok(view["replicas"][0]["role"].as_str().unwrap_or_default().to_owned())
        };
        gateways.iter().map(role).collect()
    }

    /// Checks that each follower has all lines since its start, once.
    fn finish(mut self) -> Result<()> {
        let last = self.lines.written;
        let begin = Instant::now();
        while self.lines.followers.iter().flatten().any(|progress| progress.last < last) {
            if begin.elapsed() > TIMEOUT {
                return Err("a follower misses the last lines".into());
            }
            self.lines.poll_once(ROLES_INTERVAL)?;
        }
        for progress in self.lines.followers.iter().flatten() {
            progress.follower.received.verdict(last)?;
        }
        println!("  {last} lines; no follower lost or repeated one");
        Ok(())
    }
}

// === impl Lines ===

impl Lines {
    /// Connects a follower to a gateway. Returns when it has lines.
    fn follow(&mut self, index: usize, address: SocketAddr) -> Result<()> {
        let received = Received::new(LINE_BYTES, self.clock, 1, true);
        let greeting = self.login.request(1, None);
        let protocol = Kind::Gateway.contender().protocol();
        let mut follower = Follower::connect(address, &self.login, &greeting, protocol, received)?;
        self.poll.registry().register(&mut follower.socket, Token(index), Interest::READABLE)?;
        let (begin, silence) = (Instant::now(), Duration::ZERO);
        self.followers[index] = Some(Progress { follower, last: 0, at: begin, silence });
        while self.followers[index].as_ref().is_some_and(|progress| progress.last == 0) {
            if begin.elapsed() > TIMEOUT {
                return Err("a follower gets no lines".into());
            }
            self.run(ROLES_INTERVAL)?;
        }
        Ok(())
    }

    /// Writes and follows lines for a time.
    fn run(&mut self, time: Duration) -> Result<()> {
        let begin = Instant::now();
        while begin.elapsed() < time {
            self.write()?;
            self.poll_once(LINE_INTERVAL)?;
        }
        Ok(())
    }

    /// Writes a line per interval. Those of a time in which this process was busy are not made up for.
    fn write(&mut self) -> Result<()> {
        if self.begin.elapsed() >= LINE_INTERVAL {
            self.begin = Instant::now();
            self.written += 1;
            let mut line = Vec::new();
            received::line(self.written, LINE_BYTES, self.clock, &mut line);
            self.pipe.write_all(&line)?;
        }
        Ok(())
    }

    fn poll_once(&mut self, timeout: Duration) -> Result<()> {
        match self.poll.poll(&mut self.events, Some(timeout)) {
            Err(e) if e.kind() == ErrorKind::Interrupted => return Ok(()),
            polled => polled?,
        }
        for event in &self.events {
            if let Some(Some(progress)) = self.followers.get_mut(event.token().0) {
                progress.follower.drain(&mut self.buffers)?;
                progress.note(Instant::now());
            }
        }
        Ok(())
    }

    /// Starts to measure the longest time without a line.
    fn begin_silence(&mut self) {
        for progress in self.followers.iter_mut().flatten() {
            progress.silence = Duration::ZERO;
        }
    }

    /// Returns the longest time without a line of any follower.
    fn silence(&self) -> Duration {
        let now = Instant::now();
        let longest = |progress: &Progress| progress.silence.max(now - progress.at);
        self.followers.iter().flatten().map(longest).max().unwrap_or_default()
    }
}

// === impl Progress ===

impl Progress {
    fn note(&mut self, now: Instant) {
        let last = self.follower.received.last().unwrap_or_default();
        if last > self.last {
            self.silence = self.silence.max(now - self.at);
            (self.last, self.at) = (last, now);
        }
    }
}

// === impl Gateway ===

impl Gateway {
    /// Starts a gateway with its data in `dir/data`. Waits until it is ready.
    fn start(dir: &Path, data: &str, lease: &LeaseId, arguments: &[String]) -> Result<Self> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_leasemux"));
        command
            .args(["serve", "--platform=local", "--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0"])
            .arg(format!("--trust-dir={}", dir.join("trusted").display()))
            .arg(format!("--data-dir={}", dir.join(data).display()))
            .arg(format!("--provider={}", lease.provider()))
            .args(arguments)
            .stderr(Stdio::null());
        let (child, out) = spawn(&mut command)?;
        let unknown = SocketAddr::from(([0; 4], 0));
        // From here on, the drop kills the process if a step fails.
        let mut gateway = Self { child, out, address: unknown, admin: unknown };
        let line = next_line(&mut gateway.out)?;
        let mut words = line.split(' ').filter_map(|word| word.split_once("://").map(|(_, address)| address));
        let (address, admin) =
            words.next().zip(words.next()).ok_or(format!("a gateway did not start: {line}"))?;
        (gateway.address, gateway.admin) = (address.parse()?, admin.parse()?);
        Ok(gateway)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // Fails if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
