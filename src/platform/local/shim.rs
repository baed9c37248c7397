//! The process between the gateway and one run of a service: `leasemux shim`, not for people.
//!
//! What it promises: when the gateway ends, however it ends, or asks for it, or the service's first process ends, every process
//! that came of the service is gone soon after, those included that made sessions of their own or left their parents. How:
//!
//! - it is the subreaper of everything below it, so that whoever loses its parent becomes its child and can be found;
//! - its standard input is a socket from the gateway, and the end of that is the end of all (the lifeline);
//! - it starts the service through a second stage, itself executed again, that asks for SIGKILL on the shim's death before it
//!   becomes the service: so the service's first process does not outlive even a shim that is killed. What else came of the
//!   service may: nobody is left to find it.
//!
//! It has one thread, since that death signal is tied to the thread that forks. It leaves the session of the gateway, so that
//! no terminal's signal reaches the service, and goes by another name, so that `pkill leasemux` does not hit it. Who signals it
//! nonetheless ends the service, and not the shim alone.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode, Stdio};
use std::task::Poll;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};
use tokio::signal::unix::{self, SignalKind, signal};
use tokio::time::Instant;

use super::children::kill_children;
use super::ipc::{self, Frames, NOT_EXECUTABLE, NOT_FOUND, Order, Report, Spec, StartFailure};

/// How the shim calls itself, in `ps` and elsewhere. A kernel keeps 15 bytes of it.
pub(super) const NAME: &str = "lease-shim";

/// The program that is executed as the second stage: this one, even if its file was replaced or removed meanwhile.
const SELF_EXE: &str = "/proc/self/exe";

/// Names the first stage, in the arguments.
pub(super) const RUN_STAGE: &str = "run";

/// Names the second stage, in the arguments.
const EXEC_STAGE: &str = "exec";

/// How long a service has to end by itself when the gateway is gone without a word, or somebody asks the shim to end.
const ORPHAN_GRACE: Duration = Duration::from_secs(2);

/// How long to wait at first for the death of what was killed before looking for more to kill, doubling from round to round.
/// A death ends the wait.
const KILL_ROUND: Duration = Duration::from_millis(10);

/// The longest of these waits: what does not die for so long waits for a device, and nothing can be done but wait with it.
const KILL_ROUND_MAX: Duration = Duration::from_secs(1);

/// Runs the shim. `args` are what stands behind `shim` on the command line. Must be called before the process has a second
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
            // The first stage's standard error is the service's log by now or nothing at all; the gateway sees the exit code.
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
        let mut control = Frames::new(control)?;
        match control.next().await? {
            Some(Order::Start(spec)) => Shim::start(control, signals, &spec).await?.run().await,
            _ => Ok(()),
        }
    })
}

/// What the shim listens to.
///
/// Before it starts anything: a signal that whoever started the gateway had it ignore (`nohup`, a script's `&`) is ignored by all
/// that comes of it, unless somebody listens; and then it is as usual again in what is executed. And who ignores the deaths of
/// children is not told of them.
struct Signals {
    deaths: unix::Signal,
    /// Those that ask a process to end.
    ends: [unix::Signal; 4],
}

/// The supervision of one service.
struct Shim {
    control: Frames,
    signals: Signals,
    /// The service's first process, not reaped as long as `ended` is `None`.
    service: Pid,
    ended: Option<WaitStatus>,
    /// When a service that was asked to end will be made to.
    deadline: Option<Instant>,
}

impl Shim {
    /// Starts the second stage and hands it what to run.
    async fn start(control: Frames, signals: Signals, spec: &Spec) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let child = Command::new(SELF_EXE)
            .arg0(NAME)
            .args(["shim", EXEC_STAGE])
            .arg(rustix::process::getpid().as_raw_pid().to_string())
            .env_clear()
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
            .spawn()?;
        // From here on the service alone holds its outputs, and their end is the service's end.
        let null = File::options().read(true).write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdout(&null)?;
        rustix::stdio::dup2_stderr(&null)?;
        let mut shim =
            Self { control, signals, service: Pid::from_child(&child), ended: None, deadline: None };
        let mut second_stage = Frames::new(ours)?;
        // It closes the socket by becoming the service; if it cannot, it says why before it ends.
        let failure = match second_stage.send(spec).await {
            Ok(()) => second_stage.next().await?,
            Err(_) => None,
        };
        let report = failure.map_or(Report::Started, Report::NotStarted);
        // A gateway that cannot be told is gone, which the lifeline tells as well.
        let _ = shim.control.send(&report).await;
        Ok(shim)
    }

    /// Stays until nothing of the service is left.
    async fn run(mut self) -> io::Result<()> {
        let mut lifeline = true;
        while self.ended.is_none() {
            let deadline = self.deadline;
            tokio::select! {
                biased;
                _ = self.signals.deaths.recv() => {
                    self.reap()?;
                }
                order = self.control.next(), if lifeline => if let Ok(Some(Order::Stop { grace_ms })) = order {
                    self.stop(Duration::from_millis(grace_ms));
                } else {
                    lifeline = false;
                    self.stop(ORPHAN_GRACE);
                },
                () = any(&mut self.signals.ends) => self.stop(ORPHAN_GRACE),
                () = at(deadline) => break,
            }
        }
        let mut round = KILL_ROUND;
        // Most often there is nothing left, and no need to go through all processes of the machine.
        while !self.reap()? {
            // If the children cannot be listed now (no memory, no descriptor), they can in the next round.
            let _ = kill_children();
            let _ = tokio::time::timeout(round, self.signals.deaths.recv()).await;
            round = (round * 2).min(KILL_ROUND_MAX);
        }
        let report = Report::Ended {
            exit_code: self.ended.and_then(WaitStatus::exit_status),
            signal: self.ended.and_then(WaitStatus::terminating_signal),
        };
        let _ = self.control.send(&report).await;
        Ok(())
    }

    /// Sends SIGTERM to the service's first process, and sets the deadline after which everything left is killed.
    ///
    /// The other processes get no SIGTERM, as in a container: the first process may want to wait for its workers, or end
    /// them in an order of its own. What it leaves when it exits is killed.
    fn stop(&mut self, grace: Duration) {
        let deadline = Instant::now() + grace;
        self.deadline = Some(self.deadline.map_or(deadline, |earlier| earlier.min(deadline)));
        // The id is still the service's: it is reaped in this task alone, which then no longer calls this function.
        let _ = rustix::process::kill_process(self.service, Signal::TERM);
    }

    /// Buries the dead; tells whether there is no child left.
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
        Ok(Self { deaths: signal(SignalKind::child())?, ends: [terminate?, interrupt?, hangup?, quit?] })
    }
}

/// Waits for any of these signals.
async fn any(signals: &mut [unix::Signal]) {
    std::future::poll_fn(|context| {
        if signals.iter_mut().any(|signal| signal.poll_recv(context).is_ready()) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
}

/// At `instant`; never if there is none.
async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

/// Closes what this process inherited beyond its standard streams. All that we open closes on execution; but whoever started
/// the gateway may have left it something, and that is not the service's.
fn close_inherited() -> io::Result<()> {
    let mut open = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        open.extend(name.to_str().and_then(|name| name.parse::<i32>().ok()));
    }
    for fd in open.into_iter().filter(|fd| *fd > 2) {
        // The one that listed them is closed already.
        let _ = nix::unistd::close(fd);
    }
    Ok(())
}

// === both stages ===

/// Takes the socket that was handed over as standard input, and leaves nothing in its place.
fn take_stdin() -> io::Result<UnixStream> {
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    Ok(socket.into())
}

// === the second stage ===

/// Becomes the service. Returns only if it cannot be told what that is.
fn exec(shim: Option<OsString>) -> io::Result<()> {
    let mut socket = take_stdin()?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // If the shim died before that line, there is no signal to come.
    let shim = shim.as_ref().and_then(|pid| pid.to_str()?.parse().ok()).and_then(Pid::from_raw);
    if shim.is_none() || rustix::process::getppid() != shim {
        return Err(io::Error::other("not started by the first stage"));
    }
    rustix::process::setsid()?;
    let spec: Spec = ipc::read(&mut socket)?;
    let failure = become_service(&spec);
    socket.write_all(&ipc::encode(&failure)?)
}

/// Returns why it could not.
fn become_service(spec: &Spec) -> StartFailure {
    let Some((program, args)) = spec.command.split_first() else {
        return StartFailure { exit_code: NOT_FOUND, message: "no command".to_owned() };
    };
    if let Err(error) = std::env::set_current_dir(&spec.dir) {
        return StartFailure {
            exit_code: NOT_EXECUTABLE,
            message: format!("cannot enter its working directory: {error}"),
        };
    }
    let error = Command::new(program)
        .args(args)
        .env_clear()
        .envs(spec.env.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .exec();
    let exit_code = match error.kind() {
        io::ErrorKind::NotFound => NOT_FOUND,
        _ => NOT_EXECUTABLE,
    };
    StartFailure { exit_code, message: format!("cannot start {program:?}: {error}") }
}
