//! Executes one run of a service: starts its shim, copies its output into its log, and waits for its end.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::output_copier::{blocking, copy_output};
use super::rotate::{RealFs, RotatingLog, Rotation};
use super::shim::{self, Channel, NOT_EXECUTABLE, Order, Report, Spec, StartFailure};
use super::status_publisher::StatusPublisher;
use super::store::{make_dir, mark_ended, mark_open, prune};
use super::supervisor::{RunOutcome, Runner, StopSignal};
use super::writer::{LogWriter, NO_LOSS};
use crate::model::time::LogTime;
use crate::model::view::RunEnd;
use crate::platform::cri::DroppedOutput;

/// Starts the runs of one replica.
#[derive(Debug)]
pub(super) struct Launcher {
    /// The program that is executed as the shim.
    pub(super) exe: PathBuf,
    pub(super) spec: Spec,
    /// Directory of the logs.
    pub(super) logs: PathBuf,
    pub(super) rotation: Rotation,
    /// Number of ended runs whose logs are kept.
    pub(super) kept_runs: usize,
    /// Lost output of earlier runs, to be reported in the log of the next one.
    pub(super) lost: DroppedOutput,
}

/// The shim of a run. Dropping it closes the lifeline: the shim then ends the service and itself.
#[derive(Debug)]
pub(super) struct Process {
    control: Channel,
    shim: Child,
}

/// How a process ended.
#[derive(Debug, Default)]
struct ProcessOutcome {
    failure: Option<StartFailure>,
    /// When it was up.
    up: Option<Instant>,
    /// Why it was stopped, if it was.
    stopped: Option<&'static str>,
    /// Exit code and signal. `None` if the shim died before it could report.
    status: Option<(Option<i32>, Option<i32>)>,
    /// How the shim ended.
    shim: Option<ExitStatus>,
}

// === impl Launcher ===

impl Runner for Launcher {
    async fn run(&mut self, run_number: u32, status: &StatusPublisher, stop: &mut StopSignal) -> RunOutcome {
        self.prepare(run_number, status).await;
        let (logs, rotation) = (self.logs.clone(), self.rotation);
        let lost = std::mem::replace(&mut self.lost, NO_LOSS);
        let open = move || {
            // Without the mark, a loss at a crash of the gateway is not reported; the run itself is not
            // affected.
            if let Err(error) = mark_open(&logs) {
                tracing::warn!(%error, logs = %logs.display(), "failed to mark log as open");
            }
            let mut writer = LogWriter::new(RotatingLog::new(RealFs, logs, run_number, rotation), lost);
            writer.flush(LogTime::now());
            writer
        };
        let writer = blocking(open).await;
        let started = LogTime::now();
        let outcome;
        (outcome, self.lost) = match Process::start(&self.exe, self.spec.clone()).await {
            Ok((process, outputs)) => {
                let ended = CancellationToken::new();
                let copy = copy_output(outputs, writer, ended.clone());
                let wait = async {
                    let _ended = ended.drop_guard();
                    process.wait(run_number, stop, || status.started(run_number, started)).await
                };
                tokio::join!(wait, copy)
            }
            Err(error) => {
                (ProcessOutcome::shim_failed(&error), blocking(move || writer.finish(started)).await)
            }
        };
        let logs = self.logs.clone();
        if let Err(error) = blocking(move || mark_ended(&logs)).await {
            tracing::warn!(%error, logs = %self.logs.display(), "failed to mark log as ended");
        }
        outcome.outcome(started)
    }
}

impl Launcher {
    /// Makes room and directories for run `run_number`. The run before it may have removed its own.
    async fn prepare(&self, run_number: u32, status: &StatusPublisher) {
        let (logs, home, keep) = (self.logs.clone(), self.spec.dir.clone(), self.kept_runs);
        let prepared = blocking(move || {
            make_dir(&home)?;
            make_dir(&logs)?;
            prune(&logs, run_number, keep)
        });
        match prepared.await {
            Ok(oldest) => status.forget_before(oldest),
            Err(error) => {
                tracing::warn!(%error, logs = %self.logs.display(), "failed to prepare directories for next run");
            }
        }
    }
}

// === impl Process ===

impl Process {
    /// Starts a shim, `exe`, and orders it to start `spec`. Its first report says whether that worked. Also
    /// returns the pipes of standard output and standard error.
    ///
    /// # Errors
    /// If the shim itself cannot be started.
    pub(super) async fn start(exe: &Path, spec: Spec) -> io::Result<(Self, [pipe::Receiver; 2])> {
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
        let [stdout, stderr] = [stdout, stderr].map(|pipe| pipe::Receiver::from_owned_fd(pipe.into()));
        let outputs = [stdout?, stderr?];
        let mut process = Self { control: Channel::new(ours)?, shim };
        match process.control.send(&Order::Start(spec)).await {
            // A broken pipe means that the shim died. The missing report shows that, and its error is in the
            // outputs.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
            _ => Ok((process, outputs)),
        }
    }

    /// Orders the shim to stop the service. If the shim is dead, the missing report shows that.
    pub(super) async fn stop(&mut self, grace: Duration) {
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        let _ = self.control.send(&Order::Stop { grace_ms }).await;
    }

    /// Waits for the next report; `None` if the shim died or sends garbage. Cancel safe.
    pub(super) async fn report(&mut self) -> Option<Report> {
        self.control.next().await.ok().flatten()
    }

    /// Closes the lifeline, which ends the shim, and waits for that. Returns how it ended.
    pub(super) async fn end(self) -> Option<ExitStatus> {
        let Self { control, mut shim } = self;
        drop(control);
        // Fails only if the shim was waited for elsewhere.
        shim.wait().await.ok()
    }

    /// Waits until all processes of run `run_number` are gone, stopping them if `stop` requests it.
    async fn wait(mut self, run_number: u32, stop: &mut StopSignal, on_start: impl Fn()) -> ProcessOutcome {
        let mut outcome = ProcessOutcome::default();
        loop {
            tokio::select! {
                biased;
                request = stop.requested(run_number) => {
                    outcome.stopped = Some(request.reason);
                    self.stop(request.grace).await;
                }
                report = self.report() => match report {
                    Some(Report::Started) => {
                        outcome.up = Some(Instant::now());
                        on_start();
                    }
                    Some(Report::NotStarted(failure)) => outcome.failure = Some(failure),
                    Some(Report::Ended { exit_code, signal }) => {
                        outcome.status = Some((exit_code, signal));
                        break;
                    }
                    None => break,
                },
            }
        }
        outcome.shim = self.end().await;
        outcome
    }
}

// === impl ProcessOutcome ===

impl ProcessOutcome {
    fn shim_failed(error: &io::Error) -> Self {
        tracing::error!(%error, "failed to start process");
        let message = format!("cannot start a process: {error}");
        Self { failure: Some(StartFailure { exit_code: NOT_EXECUTABLE, message }), ..Self::default() }
    }

    fn outcome(self, started: LogTime) -> RunOutcome {
        let (exit_code, signal, reason) = match (&self.failure, self.status, self.stopped) {
            (Some(failure), ..) => (Some(failure.exit_code), None, "StartError"),
            (None, Some((exit_code, signal)), Some(reason)) => (exit_code, signal, reason),
            (None, Some((Some(0), _)), None) => (Some(0), None, "Completed"),
            (None, Some((exit_code, signal)), None) => (exit_code, signal, "Error"),
            (None, None, _) => (None, None, "Error"),
        };
        // The shim was killed, or it failed and the log says why.
        let lost_shim = self.shim.filter(|_| self.status.is_none());
        RunOutcome {
            started,
            end: RunEnd { time: LogTime::now(), exit_code, signal, reason: reason.to_owned() },
            up: self.up.map_or(Duration::ZERO, |up| up.elapsed()),
            message: self
                .failure
                .map(|failure| failure.message)
                .or_else(|| lost_shim.map(|status| format!("its supervising process ended ({status})"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn end_reason_follows_from_process_outcome() {
        let check = |process: ProcessOutcome, expected: (Option<i32>, Option<i32>, &str)| {
            let outcome = process.outcome(LogTime::MIN);
            let end = outcome.end;
            assert_eq!((end.exit_code, end.signal, end.reason.as_str()), expected);
        };
        let ended = |status| ProcessOutcome { status, ..ProcessOutcome::default() };
        check(ended(Some((Some(0), None))), (Some(0), None, "Completed"));
        check(ended(Some((Some(127), None))), (Some(127), None, "Error"));
        check(ended(Some((None, Some(9)))), (None, Some(9), "Error"));
        check(ended(None), (None, None, "Error"));
        let stopped = ProcessOutcome { stopped: Some("GatewayStopped"), ..ended(Some((None, Some(15)))) };
        check(stopped, (None, Some(15), "GatewayStopped"));
        let error = io::Error::other("no more processes");
        check(ProcessOutcome::shim_failed(&error), (Some(126), None, "StartError"));
    }
}
