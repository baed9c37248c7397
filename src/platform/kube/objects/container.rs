//! Containers and their runs: what is kept of them.

use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, ContainerStatus};

use super::{clip, time};
use crate::model::time::LogTime;
use crate::model::view::RunEnd;

/// The main container of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::platform::kube) struct ContainerFacts {
    /// Number of the newest run that there was.
    pub(in crate::platform::kube) restarts: u32,
    /// What it is doing.
    pub(in crate::platform::kube) state: State,
    /// The newest run, if there was one: when it began and how it ended.
    pub(in crate::platform::kube) newest: Option<RunFacts>,
    /// The run before, if the kubelet tells of it.
    pub(in crate::platform::kube) before: Option<RunFacts>,
}

/// What a container is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::platform::kube) enum State {
    /// It runs.
    Running,
    /// It does not, and why.
    Waiting(String, String),
    /// It has ended.
    Ended,
}

/// One run of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::platform::kube) struct RunFacts {
    /// When it began.
    pub(in crate::platform::kube) started: LogTime,
    /// How it ended; `None` while it runs.
    pub(in crate::platform::kube) end: Option<RunEnd>,
}

// === impl ContainerFacts ===

impl ContainerFacts {
    /// Whether the newest run has ended and the next one is expected.
    pub(in crate::platform::kube) fn is_waiting(&self) -> bool {
        matches!(self.state, State::Waiting(..))
    }

    pub(super) fn read(status: &ContainerStatus) -> Self {
        let restarts = u32::try_from(status.restart_count).unwrap_or_default();
        let last = status.last_state.as_ref().and_then(|state| state.terminated.as_ref());
        let none = ContainerState::default();
        let now = status.state.as_ref().unwrap_or(&none);
        if let Some(running) = &now.running {
            let started = running.started_at.as_ref().map_or(LogTime::MIN, time);
            let newest = Some(RunFacts { started, end: None });
            return Self { restarts, state: State::Running, newest, before: last.map(RunFacts::ended) };
        }
        if let Some(terminated) = now.terminated.as_ref().filter(|ended| ran(ended)) {
            let newest = Some(RunFacts::ended(terminated));
            return Self { restarts, state: State::Ended, newest, before: last.map(RunFacts::ended) };
        }
        let waiting = now.waiting.as_ref();
        let reason = waiting.and_then(|waiting| waiting.reason.clone());
        let message = waiting.and_then(|waiting| waiting.message.clone());
        let state =
            State::Waiting(reason.unwrap_or_else(|| "Waiting".to_owned()), clip(message.unwrap_or_default()));
        // The run that the kubelet calls the last one is the newest that there was. Its number is the count of restarts, unless the
        // next one has been made and is about to begin.
        let next_is_made = last.is_some_and(|last| {
            let made = status.container_id.as_deref().filter(|id| !id.is_empty());
            made.is_some() && made != last.container_id.as_deref()
        });
        let restarts = if next_is_made { restarts.saturating_sub(1) } else { restarts };
        Self { restarts, state, newest: last.map(RunFacts::ended), before: None }
    }
}

// === impl RunFacts ===

impl RunFacts {
    fn ended(state: &ContainerStateTerminated) -> Self {
        let code = state.exit_code;
        // A runtime gives 128 and the signal's number as the exit code.
        let signal =
            state.signal.filter(|signal| *signal != 0).or((129..=192).contains(&code).then(|| code - 128));
        let end = RunEnd {
            time: state.finished_at.as_ref().map_or(LogTime::MIN, time),
            exit_code: Some(code),
            signal,
            reason: state.reason.clone().unwrap_or_else(|| "Error".to_owned()),
        };
        Self { started: state.started_at.as_ref().map_or(LogTime::MIN, time), end: Some(end) }
    }
}

/// Whether a terminated container had begun: a kubelet also says so of one that it knows nothing of.
fn ran(state: &ContainerStateTerminated) -> bool {
    state.container_id.as_deref().is_some_and(|id| !id.is_empty())
}
