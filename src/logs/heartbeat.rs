//! Heartbeats: entries with a replica's position and the state of its log, for clients that ask for them.
//!
//! They are sent per replica, so that a busy one does not hide a stuck one. Actors and backfills store the
//! state of their log in a [`SourceCell`] when it changes, and only a heartbeat reads it: lines cost nothing
//! more, and a change wakes no follower. Each stream has one timer.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, Sleep};

use super::message::NOTHING_DEPLOYED;
use crate::model::id::Replica;
use crate::model::proto::lease::SourceState;
use crate::model::proto::lease::source_state::State;
use crate::model::time::LogTime;
use crate::model::view::{LeaseView, ReplicaState};

/// A replica gets its heartbeat together with others if it is due within this part of the interval. Bounds
/// the wakes of a stream with many replicas to eight per interval.
const COALESCE_DIVISOR: u32 = 8;

/// Reasons of RECONNECTING. They give no details of the platform to a tenant.
const LOG_UNAVAILABLE: &str = "LogUnavailable";
const PLATFORM_UNREACHABLE: &str = "PlatformUnreachable";

/// Reason of WAITING if nothing runs or will run.
const TERMINATED: &str = "Terminated";

/// The state of a log that an actor or backfill reads.
#[derive(Debug)]
pub(super) struct SourceCell(Mutex<SourceStatus>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SourceStatus {
    phase: Phase,
    /// Since when the log cannot be read, if it cannot.
    interrupted: Option<LogTime>,
}

/// What an actor or backfill does while its log can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Lines up to the ring's head are still to come, this many if it is known.
    Backfill { lines_left: Option<u64> },
    /// A backfill has read everything, and waits for the ring: the actor's state applies.
    AtHead,
    /// Reads lines as they come.
    Live,
    /// No log is open: all runs were read to their end.
    Idle,
}

/// The timer of a stream's heartbeats. It never fires later than the first of them is due.
pub(super) struct HeartbeatTimer {
    interval: Duration,
    timer: Pin<Box<Sleep>>,
    /// Index of the stream that is next: they take turns, also if a pass has to stop early.
    next: usize,
}

// === impl SourceCell ===

impl SourceCell {
    pub(super) fn new(phase: Phase) -> Self {
        Self(Mutex::new(phase.into()))
    }

    pub(super) fn get(&self) -> SourceStatus {
        *self.0.lock()
    }

    /// Sets what is done while the log can be read.
    pub(super) fn set_phase(&self, phase: Phase) {
        self.0.lock().phase = phase;
    }

    /// Records that the log cannot be read, unless it could not be read before.
    pub(super) fn interrupt(&self, since: LogTime) {
        self.0.lock().interrupted.get_or_insert(since);
    }

    /// Records that the log can be read.
    pub(super) fn resume(&self) {
        self.0.lock().interrupted = None;
    }
}

// === impl SourceStatus ===

impl SourceStatus {
    /// Whether the actor's state applies instead.
    pub(super) fn is_at_head(self) -> bool {
        self == Phase::AtHead.into()
    }

    /// Returns what a follower of `replica` is sent.
    pub(super) fn describe(self, view: &LeaseView, replica: &Replica) -> SourceState {
        if let Some(since) = self.interrupted {
            let is_stale = view.stale_since.is_some();
            return reconnecting(since, if is_stale { PLATFORM_UNREACHABLE } else { LOG_UNAVAILABLE });
        }
        match self.phase {
            Phase::Backfill { lines_left } => SourceState { lines_left, ..state(State::Backfilling) },
            Phase::Live => state(State::Live),
            Phase::Idle | Phase::AtHead => {
                // A new run would not be seen.
                if let Some(since) = view.stale_since {
                    return reconnecting(since, PLATFORM_UNREACHABLE);
                }
                let reason = match view.replica(replica).map(|replica| &replica.state) {
                    Some(ReplicaState::Waiting { reason, .. }) => reason.clone(),
                    Some(ReplicaState::Terminated) => TERMINATED.to_owned(),
                    Some(ReplicaState::Running | ReplicaState::Unknown) | None => String::new(),
                };
                SourceState { reason, ..state(State::Waiting) }
            }
        }
    }
}

impl From<Phase> for SourceStatus {
    fn from(phase: Phase) -> Self {
        Self { phase, interrupted: None }
    }
}

/// Returns the state of a lease without a selected replica.
pub(super) fn nothing_deployed(view: &LeaseView) -> SourceState {
    match view.stale_since {
        Some(since) => reconnecting(since, PLATFORM_UNREACHABLE),
        None => SourceState { reason: NOTHING_DEPLOYED.to_owned(), ..state(State::Waiting) },
    }
}

fn state(state: State) -> SourceState {
    SourceState { state: state.into(), ..SourceState::default() }
}

fn reconnecting(since: LogTime, reason: &str) -> SourceState {
    SourceState { since: Some(since.into()), reason: reason.to_owned(), ..state(State::Reconnecting) }
}

// === impl HeartbeatTimer ===

impl HeartbeatTimer {
    pub(super) fn new(interval: Duration) -> Self {
        Self { interval, timer: Box::pin(tokio::time::sleep(interval)), next: 0 }
    }

    /// Returns the index of the next of `count` streams.
    pub(super) fn next_index(&mut self, count: usize) -> usize {
        let index = self.next % count;
        self.next = index + 1;
        index
    }

    /// Ready if a heartbeat may be due, until [`HeartbeatTimer::restart`].
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.timer.as_mut().poll(cx)
    }

    /// Whether a replica gets its heartbeat now of which nothing was sent since `silent_since`.
    pub(super) fn is_due(&self, silent_since: Instant) -> bool {
        silent_since + self.interval <= Instant::now() + self.interval / COALESCE_DIVISOR
    }

    /// Restarts it for replicas of which something was sent at `oldest` or later. None of them is due.
    pub(super) fn restart(&mut self, oldest: Instant) {
        self.timer.as_mut().reset(oldest + self.interval);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::view::{ReplicaView, ServiceView};

    const SINCE: LogTime = LogTime::from_nanos(5_000_000_000);

    fn replica() -> Replica {
        Replica { service: "web".parse().unwrap(), index: 0 }
    }

    fn view(state: ReplicaState, stale_since: Option<LogTime>) -> LeaseView {
        let replica = ReplicaView { state, ..ReplicaView::default() };
        let service = ServiceView { replicas: [(0, replica)].into(), ..ServiceView::default() };
        let services = [("web".parse().unwrap(), service)].into();
        LeaseView { services, stale_since, ..LeaseView::default() }
    }

    fn described(cell: &SourceCell, view: &LeaseView) -> (State, Option<i64>, String, Option<u64>) {
        let source = cell.get().describe(view, &replica());
        (source.state(), source.since.map(|since| since.seconds), source.reason, source.lines_left)
    }

    #[test]
    fn state_follows_phase_interruption_and_view() {
        let running = view(ReplicaState::Running, None);
        let cell = SourceCell::new(Phase::Idle);
        assert_eq!(described(&cell, &running), (State::Waiting, None, String::new(), None));
        cell.set_phase(Phase::Live);
        assert_eq!(described(&cell, &running), (State::Live, None, String::new(), None));
        cell.set_phase(Phase::Backfill { lines_left: Some(7) });
        assert_eq!(described(&cell, &running), (State::Backfilling, None, String::new(), Some(7)));
        cell.interrupt(SINCE);
        cell.interrupt(SINCE.saturating_add_nanos(1_000_000_000));
        cell.set_phase(Phase::Live);
        assert_eq!(described(&cell, &running), (State::Reconnecting, Some(5), LOG_UNAVAILABLE.into(), None));
        cell.resume();
        assert_eq!(described(&cell, &running), (State::Live, None, String::new(), None));
    }

    #[test]
    fn idle_source_waits_for_the_reason_of_the_view() {
        let cell = SourceCell::new(Phase::Idle);
        let backing_off =
            ReplicaState::Waiting { reason: "CrashLoopBackOff".into(), message: "back-off 5m".into() };
        let waiting = |reason: &str| (State::Waiting, None, reason.to_owned(), None);
        assert_eq!(described(&cell, &view(backing_off.clone(), None)), waiting("CrashLoopBackOff"));
        assert_eq!(described(&cell, &view(ReplicaState::Terminated, None)), waiting(TERMINATED));
        assert_eq!(described(&cell, &LeaseView::default()), waiting(""));
        let unreachable = (State::Reconnecting, Some(5), PLATFORM_UNREACHABLE.to_owned(), None);
        assert_eq!(described(&cell, &view(backing_off, Some(SINCE))), unreachable);
        // A log that is read needs no view.
        cell.set_phase(Phase::Live);
        let stale = view(ReplicaState::Running, Some(SINCE));
        assert_eq!(described(&cell, &stale), (State::Live, None, String::new(), None));
        cell.interrupt(SINCE);
        assert_eq!(described(&cell, &stale), unreachable);
    }
}
