//! One real run: log, shim and pump, from the first to the last byte.

use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::ipc::{NOT_EXECUTABLE, Report, Spec, StartFailure};
use super::output_copier::{blocking, pump};
use super::process::Process;
use super::rotate::{Files, LogFile, Rotation};
use super::status_publisher::StatusPublisher;
use super::stop_signal::StopSignal;
use super::store::{make_dir, mark_ended, mark_open, prune};
use super::supervisor::{Outcome, Runs};
use super::writer::{NOTHING, Writer};
use crate::model::time::LogTime;
use crate::model::view::RunEnd;
use crate::platform::cri::DroppedOutput;

/// Starts the runs of one replica.
#[derive(Debug)]
pub(super) struct Launcher {
    /// The program that is the shim.
    pub(super) exe: PathBuf,
    pub(super) spec: Spec,
    /// Directory of the logs.
    pub(super) logs: PathBuf,
    pub(super) rotation: Rotation,
    /// Ended runs whose logs are kept.
    pub(super) kept_runs: usize,
    /// Output of runs that have ended which was lost, and is to be told of in the log of the next one.
    pub(super) lost: DroppedOutput,
}

/// What became of a process.
#[derive(Debug, Default)]
struct ProcessOutcome {
    failure: Option<StartFailure>,
    /// When it was known to run.
    up: Option<Instant>,
    /// Why it was ended, if it was.
    stopped: Option<&'static str>,
    /// `None` if the shim died before it could tell.
    status: Option<(Option<i32>, Option<i32>)>,
    /// How the shim ended.
    shim: Option<ExitStatus>,
}

// === impl Launcher ===

impl Runs for Launcher {
    async fn run(&mut self, restarts: u32, board: &StatusPublisher, stop: &mut StopSignal) -> Outcome {
        self.prepare(restarts, board).await;
        let (logs, rotation) = (self.logs.clone(), self.rotation);
        let lost = std::mem::replace(&mut self.lost, NOTHING);
        let begin = move || {
            // Without it a loss at the gateway's sudden end could not be reported, and that is all.
            if let Err(error) = mark_open(&logs) {
                tracing::warn!(%error, logs = %logs.display(), "failed to mark the log as open");
            }
            let mut writer = Writer::new(LogFile::new(Files, logs, restarts, rotation), lost);
            writer.flush(LogTime::now());
            writer
        };
        let writer = blocking(begin).await;
        let started = LogTime::now();
        let (process, outputs) = match Process::start(&self.exe, self.spec.clone()).await {
            Ok(run) => run,
            Err(error) => {
                self.lost = blocking(move || writer.finish(started)).await;
                self.log_ended().await;
                return ProcessOutcome::shim_failed(&error).outcome(started);
            }
        };
        let silence = CancellationToken::new();
        let pump = pump(outputs, writer, silence.clone());
        let attend = async {
            let _silent = silence.drop_guard();
            attend(process, restarts, stop, || board.started(restarts, started)).await
        };
        let (fate, lost) = tokio::join!(attend, pump);
        self.lost = lost;
        self.log_ended().await;
        fate.outcome(started)
    }
}

/// Stays with the process of run `number` until nothing of it is left, ending it early if `stop` says so.
async fn attend(
    mut process: Process,
    number: u32,
    stop: &mut StopSignal,
    on_start: impl Fn(),
) -> ProcessOutcome {
    let mut fate = ProcessOutcome::default();
    loop {
        tokio::select! {
            biased;
            asked = stop.asked(number) => {
                fate.stopped = Some(asked.reason);
                process.stop(asked.grace).await;
            }
            report = process.report() => match report {
                Some(Report::Started) => {
                    fate.up = Some(Instant::now());
                    on_start();
                }
                Some(Report::NotStarted(failure)) => fate.failure = Some(failure),
                Some(Report::Ended { exit_code, signal }) => {
                    fate.status = Some((exit_code, signal));
                    break;
                }
                None => break,
            },
        }
    }
    fate.shim = process.gone().await;
    fate
}

impl Launcher {
    /// All output of the run is written.
    async fn log_ended(&self) {
        let logs = self.logs.clone();
        if let Err(error) = blocking(move || mark_ended(&logs)).await {
            tracing::warn!(%error, logs = %self.logs.display(), "failed to mark the log as ended");
        }
    }

    /// Makes room and directories for run `next`: the run before it may have removed its own.
    async fn prepare(&self, next: u32, board: &StatusPublisher) {
        let (logs, home, keep) = (self.logs.clone(), self.spec.dir.clone(), self.kept_runs);
        let prepared = blocking(move || {
            make_dir(&home)?;
            make_dir(&logs)?;
            prune(&logs, next, keep)
        });
        match prepared.await {
            Ok(oldest) => board.forget_before(oldest),
            Err(error) => {
                tracing::warn!(%error, logs = %self.logs.display(), "cannot prepare directories for the next run");
            }
        }
    }
}

// === impl ProcessOutcome ===

impl ProcessOutcome {
    fn shim_failed(error: &std::io::Error) -> Self {
        tracing::error!(%error, "cannot start a process");
        Self {
            failure: Some(StartFailure {
                exit_code: NOT_EXECUTABLE,
                message: format!("cannot start a process: {error}"),
            }),
            ..Self::default()
        }
    }

    fn outcome(self, started: LogTime) -> Outcome {
        let (exit_code, signal, reason) = match (&self.failure, self.status, self.stopped) {
            (Some(failure), ..) => (Some(failure.exit_code), None, "StartError"),
            (None, Some((exit_code, signal)), Some(reason)) => (exit_code, signal, reason),
            (None, Some((Some(0), _)), None) => (Some(0), None, "Completed"),
            (None, Some((exit_code, signal)), None) => (exit_code, signal, "Error"),
            (None, None, _) => (None, None, "Error"),
        };
        // Killed by somebody, or it could not do its work: then the log says why.
        let lost_shim = self.shim.filter(|_| self.status.is_none());
        Outcome {
            started,
            end: RunEnd { time: LogTime::now(), exit_code, signal, reason: reason.to_owned() },
            up: self.up.map_or(Duration::ZERO, |up| up.elapsed()),
            message: self
                .failure
                .map(|failure| failure.message)
                .or_else(|| lost_shim.map(|how| format!("the process that supervises it ended ({how})"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons() {
        let check = |fate: ProcessOutcome, expected: (Option<i32>, Option<i32>, &str)| {
            let outcome = fate.outcome(LogTime::MIN);
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
        let error = std::io::Error::other("no more processes");
        check(ProcessOutcome::shim_failed(&error), (Some(126), None, "StartError"));
    }
}
