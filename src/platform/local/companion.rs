//! A program that runs beside this one, and ends with it in any case.
//!
//! It runs under a [`shim`](super::shim), as the services do, and without the supervision, the log and the
//! restarts of a service.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::net::unix::pipe;

use super::launch::Process;
use super::shim::{Report, Spec};

/// A running program. Dropping it ends the program within some seconds; [`Companion::stop`] waits for that.
#[derive(Debug)]
pub(crate) struct Companion {
    process: Process,
    /// Whether the end was reported.
    has_ended: bool,
}

// === impl Companion ===

impl Companion {
    /// Starts a program in the directory `dir`, with this process's environment. `exe` is executed as its
    /// shim. Also returns its standard output and standard error.
    ///
    /// # Errors
    /// If the shim or the program cannot be started.
    pub(crate) async fn start(
        exe: &Path,
        command: Vec<String>,
        dir: &Path,
    ) -> io::Result<(Self, [pipe::Receiver; 2])> {
        let text = |value: std::ffi::OsString| value.into_string().ok();
        let env: BTreeMap<_, _> =
            std::env::vars_os().filter_map(|(name, value)| Some((text(name)?, text(value)?))).collect();
        let spec = Spec { command, env, dir: dir.to_owned(), lock: dir.to_owned() };
        let (mut process, outputs) = Process::start(exe, spec).await?;
        match process.report().await {
            Some(Report::Started) => Ok((Self { process, has_ended: false }, outputs)),
            Some(Report::NotStarted(failure)) => {
                process.end().await;
                Err(io::Error::other(failure.message))
            }
            Some(Report::Ended { .. }) | None => {
                process.end().await;
                Err(io::Error::other("its supervising process ended"))
            }
        }
    }

    /// Waits until the program ends by itself. Cancel safe.
    pub(crate) async fn ended(&mut self) {
        // Also if the shim is gone, which ends the program.
        let _ = self.process.report().await;
        self.has_ended = true;
    }

    /// Stops the program: SIGTERM, and SIGKILL after the grace period. Waits for the end.
    pub(crate) async fn stop(mut self, grace: Duration) {
        if !self.has_ended {
            self.process.stop(grace).await;
            self.ended().await;
        }
        self.process.end().await;
    }
}
