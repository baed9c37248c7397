//! The process between the gateway and one run of a service (`leasemux shim`, for internal use).
//!
//! It guarantees that all processes of the service, including those in other sessions and orphans, are gone
//! soon after the gateway ends in any way, requests it, or the service's first process ends:
//!
//! - It is the subreaper of its descendants, so orphans become its children and can be found.
//! - Its standard input is a socket from the gateway. When that closes, the service is stopped (the
//!   lifeline).
//! - It starts the service through a second stage: it executes itself again, requests SIGKILL for the death
//!   of the shim, and becomes the service. So the service's first process does not outlive even a killed
//!   shim. Other processes of the service may, because no process is left to find them.
//!
//! It has one thread, because the death signal is tied to the thread that forks. It leaves the gateway's
//! session, so that no signal of a terminal reaches the service, and has its own name, so that
//! `pkill leasemux` misses it. A signal to the shim ends the service too.
//!
//! It locks the directory of its replica's logs until its end, so that the next run of the replica, which may
//! be another gateway's, starts after that.
//!
//! The gateway and the two stages exchange messages: lines of JSON over sockets. So a service's settings do
//! not appear in the shim's own arguments or environment.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{File, TryLockError};
use std::io::{self, BufRead as _, Read, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream as BlockingUnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::signal::unix::{self, SignalKind, signal};
use tokio::time::{Instant, sleep_until};

use crate::sys::process::{any_signal, parent};

/// Name of the process, at most the 15 bytes that the kernel keeps.
pub(super) const NAME: &str = "lease-shim";

/// The program of the second stage: this one, even if its file was replaced or removed.
const SELF_EXE: &str = "/proc/self/exe";

/// Argument that selects the first stage.
pub(super) const RUN_STAGE: &str = "run";

/// Argument that selects the second stage.
const EXEC_STAGE: &str = "exec";

/// Grace period of a service when the gateway is gone or the shim is signalled.
const ORPHAN_GRACE: Duration = Duration::from_secs(2);

/// Interval of attempts to lock a replica whose previous shim has not ended yet.
const LOCK_POLL: Duration = Duration::from_millis(20);

/// First wait for the death of killed processes before the next round of kills; doubled in each round. A
/// death ends the wait.
const KILL_ROUND: Duration = Duration::from_millis(10);

/// Longest of these waits. A process that survives SIGKILL for this long is blocked by a device, so there is
/// no hurry.
const KILL_ROUND_MAX: Duration = Duration::from_secs(1);

/// Longest message: the longest command and environment of an SDL, with every byte escaped.
const MESSAGE_MAX_BYTES: u64 = 8 * 1024 * 1024;

/// A program and its environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Spec {
    /// Program and arguments. The program is found by the PATH of `env`.
    pub(super) command: Vec<String>,
    pub(super) env: BTreeMap<String, String>,
    pub(super) dir: PathBuf,
    /// Directory that a shim locks until its service has ended, one for each replica.
    pub(super) lock: PathBuf,
}

/// An order from the gateway to a shim. The first is [`Order::Start`].
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Order {
    Start(Spec),
    /// Stop the service: SIGTERM now, SIGKILL after the grace period.
    Stop {
        grace_ms: u64,
    },
}

/// A report from a shim: first that the service was started or not, finally that it ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Report {
    /// The program is up.
    Started,
    /// The program could not be started.
    NotStarted(StartFailure),
    /// The program and all its descendants are gone.
    Ended { exit_code: Option<i32>, signal: Option<i32> },
}

/// Why a program could not be started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StartFailure {
    /// The exit code a shell would use: [`NOT_FOUND`] or [`NOT_EXECUTABLE`].
    pub(super) exit_code: i32,
    pub(super) message: String,
}

/// Exit code for a program that does not exist (POSIX, "Exit Status for Commands").
pub(super) const NOT_FOUND: i32 = 127;

/// Exit code for a program that cannot be executed.
pub(super) const NOT_EXECUTABLE: i32 = 126;

/// Sends and receives messages.
#[derive(Debug)]
pub(super) struct Channel {
    socket: BufReader<UnixStream>,
    /// Received bytes of an incomplete message.
    received: Vec<u8>,
}

/// Runs the shim. `args` are the arguments after `shim`. Must be called before the process has a second
/// thread.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut args = args.into_iter();
    let stage = args.next().unwrap_or_default();
    let result = match stage.to_str() {
        Some(RUN_STAGE) => run(),
        Some(EXEC_STAGE) => exec(args.next()),
        _ => Err(io::Error::other("this command is for the gateway's own use")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The first stage's standard error is the service's log or closed; the gateway sees the exit
            // code.
            let _ = writeln!(io::stderr(), "leasemux shim: {error}");
            ExitCode::FAILURE
        }
    }
}

// === the first stage ===

fn run() -> io::Result<()> {
    close_inherited()?;
    let control = take_stdin()?;
    rustix::process::setsid()?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    rustix::thread::set_name(c"lease-shim")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    runtime.block_on(async {
        let signals = Signals::new()?;
        let mut control = Channel::new(control)?;
        match control.next().await? {
            Some(Order::Start(spec)) => {
                // Open, and so locked, until this process ends. A directory that cannot be locked does not
                // prevent a service from running.
                let lock = File::open(&spec.lock).ok();
                if let Some(lock) = &lock
                    && !acquire(lock, &mut control).await
                {
                    return Ok(());
                }
                Shim::start(control, signals, &spec).await?.run().await
            }
            _ => Ok(()),
        }
    })
}

/// Waits until no other shim has the lock of this replica. Returns false if an order, or the end of the
/// gateway, comes first.
///
/// A killed gateway leaves shims that are still ending their services, for up to [`ORPHAN_GRACE`]. The next
/// gateway may start meanwhile. Two processes of one replica would use the same files and ports.
async fn acquire(lock: &File, control: &mut Channel) -> bool {
    while let Err(TryLockError::WouldBlock) = lock.try_lock() {
        if tokio::time::timeout(LOCK_POLL, control.next::<Order>()).await.is_ok() {
            return false;
        }
    }
    true
}

/// Signals that the shim handles.
///
/// Registered before it starts a process: signals that the gateway was started to ignore (`nohup`, a script's
/// `&`) would be ignored by all descendants as well, but handled signals have their default action after an
/// exec. Also, a process that ignores SIGCHLD receives none.
struct Signals {
    children: unix::Signal,
    /// SIGTERM, SIGINT, SIGHUP and SIGQUIT.
    ends: [unix::Signal; 4],
}

/// The first stage, which supervises the service.
struct Shim {
    control: Channel,
    signals: Signals,
    /// The service's first process. Reaped when `ended` is set.
    service: Pid,
    ended: Option<WaitStatus>,
    /// When a stopped service is killed.
    deadline: Option<Instant>,
}

impl Shim {
    /// Starts the second stage and sends it `spec`.
    async fn start(control: Channel, signals: Signals, spec: &Spec) -> io::Result<Self> {
        let (ours, theirs) = BlockingUnixStream::pair()?;
        let child = Command::new(SELF_EXE)
            .arg0(NAME)
            .args(["shim", EXEC_STAGE])
            .arg(rustix::process::getpid().as_raw_pid().to_string())
            .env_clear()
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
            .spawn()?;
        // From here on only the service holds its output pipes, so they end with it.
        let null = File::options().read(true).write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdout(&null)?;
        rustix::stdio::dup2_stderr(&null)?;
        let mut shim =
            Self { control, signals, service: Pid::from_child(&child), ended: None, deadline: None };
        let mut second_stage = Channel::new(ours)?;
        // The socket closes when the second stage becomes the service. If that fails, it first reports why.
        let failure = match second_stage.send(spec).await {
            Ok(()) => second_stage.next().await?,
            Err(_) => None,
        };
        let report = failure.map_or(Report::Started, Report::NotStarted);
        // If the gateway is gone, the lifeline shows it.
        let _ = shim.control.send(&report).await;
        Ok(shim)
    }

    /// Waits until all processes of the service are gone.
    async fn run(mut self) -> io::Result<()> {
        let mut is_lifeline_open = true;
        while self.ended.is_none() {
            let deadline = self.deadline;
            tokio::select! {
                biased;
                _ = self.signals.children.recv() => {
                    self.reap()?;
                }
                order = self.control.next(), if is_lifeline_open => if let Ok(Some(Order::Stop { grace_ms })) = order {
                    self.stop(Duration::from_millis(grace_ms));
                } else {
                    is_lifeline_open = false;
                    self.stop(ORPHAN_GRACE);
                },
                () = any_signal(&mut self.signals.ends) => self.stop(ORPHAN_GRACE),
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => break,
            }
        }
        let mut wait = KILL_ROUND;
        // Usually no process is left, and scanning all processes of the machine is avoided.
        while !self.reap()? {
            // If listing the children fails (no memory, no descriptor), the next round repeats it.
            let _ = kill_children();
            let _ = tokio::time::timeout(wait, self.signals.children.recv()).await;
            wait = (wait * 2).min(KILL_ROUND_MAX);
        }
        let report = Report::Ended {
            exit_code: self.ended.and_then(WaitStatus::exit_status),
            signal: self.ended.and_then(WaitStatus::terminating_signal),
        };
        let _ = self.control.send(&report).await;
        Ok(())
    }

    /// Sends SIGTERM to the service's first process, and sets the deadline after which the rest is killed.
    ///
    /// As in a container, other processes receive no SIGTERM: the first process may wait for its workers, or
    /// end them in a certain order. Processes that are left when it exits are killed.
    fn stop(&mut self, grace: Duration) {
        let deadline = Instant::now() + grace;
        self.deadline = Some(self.deadline.map_or(deadline, |earlier| earlier.min(deadline)));
        // The pid cannot have been reused: only this task reaps it, and does not call this function
        // afterwards.
        let _ = rustix::process::kill_process(self.service, Signal::TERM);
    }

    /// Reaps dead children. Returns whether no child is left.
    fn reap(&mut self) -> io::Result<bool> {
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) if pid == self.service => self.ended = Some(status),
                Ok(Some(_)) | Err(rustix::io::Errno::INTR) => {}
                Ok(None) => return Ok(false),
                Err(rustix::io::Errno::CHILD) => return Ok(true),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Signals {
    fn new() -> io::Result<Self> {
        let ends =
            [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup(), SignalKind::quit()];
        let [terminate, interrupt, hangup, quit] = ends.map(signal);
        Ok(Self { children: signal(SignalKind::child())?, ends: [terminate?, interrupt?, hangup?, quit?] })
    }
}

/// Closes inherited descriptors beyond the standard streams. Our own close on exec, but the gateway may have
/// been started with others, which the service must not receive.
fn close_inherited() -> io::Result<()> {
    for fd in numbered_entries("/proc/self/fd")?.into_iter().filter(|fd| *fd > 2) {
        // The descriptor of the listing itself is closed already.
        let _ = nix::unistd::close(fd);
    }
    Ok(())
}

/// Lists the entries of a directory whose names are numbers.
fn numbered_entries(dir: &str) -> io::Result<Vec<i32>> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        numbers.extend(entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()));
    }
    Ok(numbers)
}

/// Kills all children of this process, found through `/proc`. Their children then become ours and are killed
/// in the next round. Killing parents first means that no process is left to restart killed ones. A child's
/// pid is not reused before it is reaped, so no other process is hit.
fn kill_children() -> io::Result<()> {
    let me = rustix::process::getpid();
    for pid in numbered_entries("/proc")?.into_iter().filter_map(Pid::from_raw) {
        if parent(pid) == Some(me) {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
    }
    Ok(())
}

// === both stages ===

/// Takes the socket passed as standard input, and replaces that with `/dev/null`.
fn take_stdin() -> io::Result<BlockingUnixStream> {
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    Ok(socket.into())
}

// === the second stage ===

/// Becomes the service. Returns only on failure.
fn exec(shim: Option<OsString>) -> io::Result<()> {
    let mut socket = take_stdin()?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // If the shim died before that line, the signal will not come.
    let shim = shim.as_ref().and_then(|pid| pid.to_str()?.parse().ok()).and_then(Pid::from_raw);
    if shim.is_none() || rustix::process::getppid() != shim {
        return Err(io::Error::other("not started by the first stage"));
    }
    rustix::process::setsid()?;
    let spec: Spec = read(&socket)?;
    let failure = become_service(&spec);
    socket.write_all(&encode(&failure)?)
}

/// Executes the service. Returns only on failure, with its reason.
fn become_service(spec: &Spec) -> StartFailure {
    let Some((program, args)) = spec.command.split_first() else {
        return StartFailure { exit_code: NOT_FOUND, message: "no command".to_owned() };
    };
    if let Err(error) = std::env::set_current_dir(&spec.dir) {
        let message = format!("cannot enter its working directory: {error}");
        return StartFailure { exit_code: NOT_EXECUTABLE, message };
    }
    let error = Command::new(program).args(args).env_clear().envs(&spec.env).stdin(Stdio::null()).exec();
    let exit_code = match error.kind() {
        io::ErrorKind::NotFound => NOT_FOUND,
        _ => NOT_EXECUTABLE,
    };
    StartFailure { exit_code, message: format!("cannot start {program:?}: {error}") }
}

// === messages ===

impl Channel {
    pub(super) fn new(socket: BlockingUnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self { socket: BufReader::new(UnixStream::from_std(socket)?), received: Vec::new() })
    }

    /// Sends a message. Not cancel safe: the socket is unusable if a message was sent in part.
    pub(super) async fn send(&mut self, message: &impl Serialize) -> io::Result<()> {
        self.socket.write_all(&encode(message)?).await
    }

    /// Receives the next message; `None` if the peer is gone. Cancel safe.
    pub(super) async fn next<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        let left = MESSAGE_MAX_BYTES.saturating_sub(self.received.len() as u64);
        match (&mut self.socket).take(left).read_until(b'\n', &mut self.received).await {
            // The peer died with unread data.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            read => read?,
        };
        match decode(&std::mem::take(&mut self.received)) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            message => message.map(Some),
        }
    }
}

fn encode(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    if line.len() as u64 > MESSAGE_MAX_BYTES {
        let text = format!("a message of {} bytes is longer than {MESSAGE_MAX_BYTES}", line.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    Ok(line)
}

/// Decodes a line. [`UnexpectedEof`](io::ErrorKind::UnexpectedEof) means that its newline is missing.
fn decode<T: DeserializeOwned>(line: &[u8]) -> io::Result<T> {
    match line.last() {
        // serde_json would report incomplete JSON as an unexpected end, too.
        Some(b'\n') => {
            serde_json::from_slice(line).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
        }
        _ if line.len() as u64 >= MESSAGE_MAX_BYTES => Err(io::ErrorKind::FileTooLarge.into()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Reads one message, blocking.
fn read<T: DeserializeOwned>(source: impl Read) -> io::Result<T> {
    let mut line = Vec::new();
    io::BufReader::new(source.take(MESSAGE_MAX_BYTES)).read_until(b'\n', &mut line)?;
    decode(&line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> Spec {
        Spec {
            command: vec!["sh".into(), "-c".into(), "echo é\n".into()],
            env: [("A".into(), String::new())].into(),
            dir: "/tmp".into(),
            lock: "/tmp".into(),
        }
    }

    #[tokio::test]
    async fn messages_are_reassembled_from_pieces() {
        let (ours, theirs) = BlockingUnixStream::pair().unwrap();
        let mut frames = Channel::new(ours).unwrap();
        let mut theirs = Channel::new(theirs).unwrap();
        let orders = [Order::Start(spec()), Order::Stop { grace_ms: 7 }];
        let bytes: Vec<u8> = orders.iter().flat_map(|order| encode(order).unwrap()).collect();
        let send = async {
            for piece in bytes.chunks(3) {
                theirs.socket.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
            drop(theirs);
        };
        let receive = async {
            for order in &orders {
                assert_eq!(frames.next::<Order>().await.unwrap().as_ref(), Some(order));
            }
            assert_eq!(frames.next::<Order>().await.unwrap(), None);
        };
        tokio::join!(send, receive);
    }

    #[tokio::test]
    async fn incomplete_json_is_not_end_of_peer() {
        for (sent, expected) in [("{\"Start\":\n", Some(io::ErrorKind::InvalidData)), ("{\"Start\":", None)] {
            let (ours, mut theirs) = BlockingUnixStream::pair().unwrap();
            theirs.write_all(sent.as_bytes()).unwrap();
            drop(theirs);
            let received = Channel::new(ours).unwrap().next::<Order>().await;
            match expected {
                Some(kind) => assert_eq!(received.unwrap_err().kind(), kind),
                None => assert_eq!(received.unwrap(), None),
            }
        }
    }

    #[test]
    fn message_is_read_synchronously() {
        let bytes = encode(&spec()).unwrap();
        assert_eq!(read::<Spec>(bytes.as_slice()).unwrap(), spec());
        assert!(read::<Spec>(&bytes[..bytes.len() - 1]).is_err());
    }

    #[test]
    fn length_over_limit_is_rejected() {
        let error = read::<Spec>(io::repeat(b' ')).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        let longest = usize::try_from(MESSAGE_MAX_BYTES).unwrap() - "\"\"\n".len();
        assert!(encode(&"x".repeat(longest)).is_ok());
        assert_eq!(encode(&"x".repeat(longest + 1)).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
