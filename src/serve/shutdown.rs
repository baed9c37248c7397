//! Shutdown: the signals that start it, and its order.
//!
//! [`Running::stop`] lists all steps in order, each with a time limit. A second signal drops everything
//! instead: each owner's drop ends what it owns.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::OptionFuture;
use tokio::io::AsyncReadExt as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::task::AbortOnDropHandle;
use tonic_health::server::HealthReporter;

use super::otlp::Traces;
use super::runtimes::SideRuntime;
use crate::edge::admin::Readiness;
use crate::edge::drain::Drain;
use crate::edge::server;
use crate::exchange::fleet::Fleet;
use crate::logs::actors::ActorRegistry;
use crate::model::limits::{LAME_DUCK, Limits, POLLED_WITHIN};
use crate::platform::Platform;
use crate::restart::RestartManager;
use crate::sys::process;

/// Share of the drain time that restarts may use, so that their callers still receive the outcome.
const RESTARTS_SHARE: f32 = 0.8;

/// The parts of a running gateway.
pub(super) struct Running {
    pub(super) drain: Drain,
    pub(super) readiness: Readiness,
    pub(super) health: HealthReporter,
    pub(super) fleet: Option<Fleet>,
    pub(super) actors: ActorRegistry,
    pub(super) restarts: RestartManager,
    pub(super) platform: Arc<dyn Platform>,
    pub(super) traces: Traces,
    pub(super) limits: Arc<Limits>,
    /// Time between SIGTERM and SIGKILL for services.
    pub(super) stop_grace: Duration,
    pub(super) _upkeep: AbortOnDropHandle<()>,
    /// Dropped last, because tasks of `drain` and `platform` run on it.
    pub(super) _side: SideRuntime,
}

/// Signals that stop the gateway.
pub(super) struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
    /// Accepted once: a shell and the kernel may both send it when a terminal closes.
    hangup: Option<Signal>,
    lifeline: bool,
}

// === impl Running ===

impl Running {
    /// Shuts down in order. Dropping the future ends everything at once.
    pub(super) async fn stop(self) {
        // 1. Readiness ends. Calls are still served.
        self.readiness.set(false);
        server::report_health(&self.health, false).await;
        // Other gateways take over the live tails that they share with this one, while it still has them.
        if let Some(fleet) = &self.fleet {
            fleet.drain();
        }
        // 2. Lame duck: load balancers poll readiness and stop sending new connections.
        self.lame_duck().await;
        // 3. Drain: no new connections; GOAWAY; streams send buffered lines, cursors and UNAVAILABLE. The
        //    deadline cuts remaining streams and logs them. Meanwhile each restart job finishes its current
        //    replica.
        let restarts = self.restarts.finish(self.limits.drain.mul_f32(RESTARTS_SHARE));
        tokio::join!(self.drain.finish(self.limits.drain), restarts);
        // 4. Actors: they have no followers now.
        self.actors.stop().await;
        // They have left the fleet's replicas. Other gateways need not find out by themselves.
        if let Some(fleet) = &self.fleet {
            fleet.flush().await;
        }
        // 5. Local services, after everything that reads their output. Traces of calls, which have ended.
        tokio::join!(self.platform.stop(self.stop_grace), self.traces.flush());
        // 6. The admin port, which answered until here.
        self.drain.close();
    }

    async fn lame_duck(&self) {
        let polled = self.drain.was_polled_within(POLLED_WITHIN);
        let duration = self.limits.lame_duck.unwrap_or(if polled { LAME_DUCK } else { Duration::ZERO });
        if duration.is_zero() {
            return;
        }
        tracing::info!(
            lame_duck = ?duration,
            "not ready; serving until load balancers have noticed; a second signal stops at once"
        );
        tokio::time::sleep(duration).await;
        tracing::info!("draining connections and streams");
    }
}

// === impl StopSignals ===

impl StopSignals {
    pub(super) fn new(lifeline: bool) -> std::io::Result<Self> {
        let terminate = signal(SignalKind::terminate())?;
        let interrupt = signal(SignalKind::interrupt())?;
        // Under `nohup` the process outlives its terminal. Also assumed if the signal mask cannot be read.
        let hangup = SignalKind::hangup();
        let outlives =
            u32::try_from(hangup.as_raw_value()).is_ok_and(|number| process::ignores(number).unwrap_or(true));
        let hangup = if outlives { None } else { Some(signal(hangup)?) };
        Ok(Self { terminate, interrupt, hangup, lifeline })
    }

    /// Waits for the next reason to stop and returns its name. Cancel safe.
    pub(super) async fn wait(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            Some(_) = OptionFuture::from(self.hangup.as_mut().map(Signal::recv)) => {
                self.hangup = None;
                "SIGHUP"
            }
            () = end_of_input(), if self.lifeline => {
                // Standard input ends only once.
                self.lifeline = false;
                "end of standard input"
            }
        }
    }
}

async fn end_of_input() {
    let mut input = tokio::io::stdin();
    let mut ignored = [0; 64];
    while input.read(&mut ignored).await.is_ok_and(|bytes| bytes > 0) {}
}
