//! One run of a service, as the gateway holds it: a shim, the socket to it, and the service's outputs.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::net::unix::pipe;
use tokio::process::{Child, Command};

use super::ipc::{Frames, Order, Report, Spec};
use super::shim;

/// A run of a service. Dropping it cuts the lifeline: the shim then ends the service, and itself.
#[derive(Debug)]
pub(super) struct Process {
    control: Frames,
    shim: Child,
}

/// The reading ends of a service's outputs.
#[derive(Debug)]
pub(super) struct Outputs {
    pub(super) stdout: pipe::Receiver,
    pub(super) stderr: pipe::Receiver,
}

// === impl Process ===

impl Process {
    /// Starts a shim, `exe`, and has it start what `spec` says. Whether that worked is its first report.
    ///
    /// # Errors
    /// If the shim itself cannot be started.
    pub(super) async fn start(exe: &Path, spec: Spec) -> io::Result<(Self, Outputs)> {
        let (ours, theirs) = UnixStream::pair()?;
        let (stdout, service_stdout) = io::pipe()?;
        let (stderr, service_stderr) = io::pipe()?;
        let shim = Command::new(exe)
            .arg0(shim::NAME)
            .args(["shim", shim::RUN_STAGE])
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::from(service_stdout))
            .stderr(Stdio::from(service_stderr))
            .spawn()?;
        let outputs = Outputs {
            stdout: pipe::Receiver::from_owned_fd(stdout.into())?,
            stderr: pipe::Receiver::from_owned_fd(stderr.into())?,
        };
        let mut process = Self { control: Frames::new(ours)?, shim };
        match process.control.send(&Order::Start(spec)).await {
            // A shim that cannot be told is dead, and the next report says so. What it had to say stands in the outputs.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
            _ => Ok((process, outputs)),
        }
    }

    /// What the shim has to say; `None` if it died. Nothing is lost if it is cancelled.
    pub(super) async fn report(&mut self) -> Option<Report> {
        self.control.next().await.ok().flatten()
    }

    /// Ends the service: SIGTERM to its first process, and SIGKILL to everything left when that exits or after `grace`. The last
    /// report still comes.
    pub(super) async fn stop(&mut self, grace: Duration) {
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        // A shim that cannot be told is dead, and the next report says so.
        let _ = self.control.send(&Order::Stop { grace_ms }).await;
    }

    /// Waits for the end of the shim, after its last report, and tells how it ended. Should it be alive and speak nonsense, that
    /// comes of the end of the lifeline.
    pub(super) async fn gone(self) -> Option<ExitStatus> {
        let Self { control, mut shim } = self;
        drop(control);
        // Fails only if somebody else has waited for it.
        shim.wait().await.ok()
    }
}
