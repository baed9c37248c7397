//! The end: what asks for it, and its order.
//!
//! Whatever else has to end takes its place in [`Running::stop`], where the whole order can be read; what waits there has a bound
//! of its own. Nothing of it is needed for anything to end: a second signal drops it all, and each owner's drop ends what it owns.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::task::AbortOnDropHandle;
use tonic_health::server::HealthReporter;

use super::platform_setup::RunningPlatform;
use super::runtimes::SideRuntime;
use crate::edge::admin::Readiness;
use crate::edge::drain::Drain;
use crate::edge::server;
use crate::logs::actors::ActorRegistry;
use crate::model::limits::{LAME_DUCK, Limits, POLLED_WITHIN};
use crate::restart::RestartManager;
use crate::sys::process;

/// How much of the drain restarts may take, so that whoever waits for them is still told.
const RESTARTS_SHARE: f32 = 0.8;

/// Everything that runs.
pub(super) struct Running {
    pub(super) drain: Drain,
    pub(super) readiness: Readiness,
    pub(super) health: HealthReporter,
    pub(super) fanout: ActorRegistry,
    pub(super) restarts: RestartManager,
    pub(super) place: RunningPlatform,
    pub(super) limits: Arc<Limits>,
    /// Time between SIGTERM and SIGKILL for services.
    pub(super) stop_grace: Duration,
    /// Ends with the gateway.
    pub(super) _upkeep: AbortOnDropHandle<()>,
    /// Last, because tasks of `drain` and `place` run on it.
    pub(super) _side: SideRuntime,
}

/// What asks the gateway to stop.
pub(super) struct Stops {
    terminate: Signal,
    interrupt: Signal,
    /// The end of the terminal. Once: a shell and the kernel may both tell of it.
    hangup: Option<Signal>,
    lifeline: bool,
}

// === impl Running ===

impl Running {
    /// The end, in order. Dropping the future ends everything at once.
    pub(super) async fn stop(self) {
        // 1. Not ready. Calls are served as before.
        self.readiness.set(false);
        server::report_health(&self.health, false).await;
        // 2. Lame duck: whoever polls readiness learns of it, and sends nobody here any more.
        self.serve_on().await;
        // 3. No new connections; GOAWAY; streams send what they hold, then their cursors, then UNAVAILABLE. At the deadline what is
        //    left is cut, and the log names it. Meanwhile restarts see the replica in hand to its verdict, and leave the others be.
        let restarts = self.restarts.finish(self.limits.drain.mul_f32(RESTARTS_SHARE));
        tokio::join!(self.drain.finish(self.limits.drain), restarts);
        // 4. Nobody follows any more: the actors.
        self.fanout.stop().await;
        // 5. What runs under the leases, last: until here its output was recorded.
        self.place.stop(self.stop_grace).await;
        // 6. The operator's port, which answered through all of it.
        self.drain.close();
    }

    async fn serve_on(&self) {
        let polled = self.drain.was_asked_within(POLLED_WITHIN);
        let lame_duck = self.limits.lame_duck.unwrap_or(if polled { LAME_DUCK } else { Duration::ZERO });
        if lame_duck.is_zero() {
            return;
        }
        tracing::info!(
            ?lame_duck,
            "no longer ready, serving on so that those who poll /ready find out; a second signal stops at once"
        );
        tokio::time::sleep(lame_duck).await;
        tracing::info!("ending connections and streams");
    }
}

// === impl Stops ===

impl Stops {
    pub(super) fn new(lifeline: bool) -> std::io::Result<Self> {
        let terminate = signal(SignalKind::terminate())?;
        let interrupt = signal(SignalKind::interrupt())?;
        // Who started it with `nohup` has it outlive the terminal; likewise if that cannot be found out.
        let hangup = SignalKind::hangup();
        let outlives =
            u32::try_from(hangup.as_raw_value()).is_ok_and(|number| process::ignores(number).unwrap_or(true));
        let hangup = if outlives { None } else { Some(signal(hangup)?) };
        Ok(Self { terminate, interrupt, hangup, lifeline })
    }

    /// Waits for the next reason to stop, and tells it.
    pub(super) async fn wait(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            () = hung_up(self.hangup.as_mut()) => {
                self.hangup = None;
                "SIGHUP"
            }
            () = end_of_input(), if self.lifeline => {
                // It has only one end.
                self.lifeline = false;
                "end of standard input"
            }
        }
    }
}

async fn hung_up(signal: Option<&mut Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}

async fn end_of_input() {
    let mut input = tokio::io::stdin();
    let mut ignored = [0; 64];
    while input.read(&mut ignored).await.is_ok_and(|bytes| bytes > 0) {}
}
