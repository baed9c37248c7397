//! Whether a kubelet serves a later run of a container than the API server knows of. Pure.
//!
//! The log API knows two runs: the present one and the previous one, as the kubelet sees them. The kubelet reports a restart to the API
//! server later: after a second or two, and on a busy node or after an outage up to a minute later. Until then a request for the run that
//! the API server calls the present one answers with another run's lines.
//!
//! So the kubelet's previous run is compared with the one that the API server calls the previous one. If it is a later run, so is the
//! present one. Times of both come from the clock of the node.

use k8s_openapi::api::core::v1::ContainerStatus;

use super::lines::{Found, Lines, Rest};
use crate::model::time::LogTime;

/// Nanoseconds in a second: the API server cuts times of containers to whole seconds.
const SECOND: i64 = 1_000_000_000;

/// The beginning of the log that a kubelet calls the previous one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::platform::kube) enum Previous {
    /// The kubelet knows of no previous run.
    None,
    /// The time of its first line.
    Line(LogTime),
    /// It has no line.
    Empty,
    /// The kubelet knows of the run and cannot read its log. The text may name the container.
    Unreadable(String),
}

/// Which run a kubelet serves as the present one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::platform::kube) enum Serves {
    /// The one that the API server calls the newest.
    Newest,
    /// A later one.
    Later,
    /// One or the other.
    Unclear,
}

// === impl Previous ===

impl Previous {
    /// Reads the first bytes of a response, some tens of them.
    pub(in crate::platform::kube) fn read(data: &[u8]) -> Self {
        let (mut lines, mut first) = (Lines::default(), None);
        lines.push(data, &mut |found| {
            first.get_or_insert_with(|| match found {
                Found::Piece { time, .. } => Self::Line(time),
                Found::Foreign(text) => Self::Unreadable(String::from_utf8_lossy(text).into_owned()),
            });
        });
        first.unwrap_or_else(|| match lines.take_rest() {
            Rest::Line(time, _) => Self::Line(time),
            Rest::Foreign(text) => Self::Unreadable(String::from_utf8_lossy(&text).into_owned()),
            Rest::Nothing => Self::Empty,
        })
    }
}

/// Compares a kubelet's previous run with the container's status, which the API server had before the kubelet was asked.
pub(in crate::platform::kube) fn serves(status: &ContainerStatus, previous: &Previous) -> Serves {
    let last = status.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    let (last, time) = match (last, previous) {
        (_, Previous::None) | (Some(_), Previous::Empty) => return Serves::Newest,
        (None, _) => return Serves::Later,
        (Some(last), Previous::Unreadable(text)) => {
            let id = last.container_id.as_deref().filter(|id| !id.is_empty());
            return if id.is_some_and(|id| text.contains(id)) { Serves::Newest } else { Serves::Later };
        }
        (Some(last), Previous::Line(time)) => (last, *time),
    };
    let now = status.state.as_ref();
    let running = now.and_then(|state| state.running.as_ref()?.started_at.as_ref());
    let ended = || now.and_then(|state| state.terminated.as_ref()?.started_at.as_ref());
    let next = running.or_else(ended).map(crate::platform::kube::objects::time);
    let began = last.started_at.as_ref().map(crate::platform::kube::objects::time);
    let Some(over) = last.finished_at.as_ref().map(crate::platform::kube::objects::time) else {
        return Serves::Newest;
    };
    if began.is_some_and(|began| began > over) || next.is_some_and(|next| next < over) {
        // The clock was set back meanwhile: times say nothing.
        return Serves::Newest;
    }
    let may_be_last = time < over.saturating_add_nanos(SECOND);
    let may_be_later = time >= next.unwrap_or(over);
    match (may_be_last, may_be_later) {
        (_, false) => Serves::Newest,
        (false, true) => Serves::Later,
        // Within the second of a restart. A run that ended in the second in which it began printed in that second, too.
        (true, true) if began == Some(over) => Serves::Newest,
        (true, true) => Serves::Unclear,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A container that runs for the second time: its first run lasted from second 10 to 12, and this one began in second 12.
    fn restarted() -> ContainerStatus {
        let at = |second: u32| format!("1970-01-01T00:00:{second}Z");
        serde_json::from_value(json!({
            "name": "web", "image": "", "imageID": "", "ready": true, "restartCount": 1, "containerID": "containerd://1",
            "state": { "running": { "startedAt": at(12) } },
            "lastState": { "terminated": { "containerID": "containerd://0", "exitCode": 1,
                "startedAt": at(10), "finishedAt": at(12) } },
        }))
        .unwrap()
    }

    fn line(millis: i64) -> Previous {
        Previous::Line(LogTime::from_nanos(millis * 1_000_000))
    }

    #[test]
    fn first_run_with_a_previous_one_is_over() {
        let status = ContainerStatus { last_state: None, ..restarted() };
        assert_eq!(serves(&status, &Previous::None), Serves::Newest);
        for previous in [line(1), Previous::Empty, Previous::Unreadable("gone".into())] {
            assert_eq!(serves(&status, &previous), Serves::Later, "{previous:?}");
        }
    }

    #[test]
    fn previous_run_is_told_by_its_first_line() {
        let status = restarted();
        for (millis, expected) in [
            (10_100, Serves::Newest),
            (11_999, Serves::Newest),
            (12_500, Serves::Unclear),
            (13_000, Serves::Later),
        ] {
            assert_eq!(serves(&status, &line(millis)), expected, "{millis}");
        }
        let mut brief = restarted();
        let last = brief.last_state.as_mut().and_then(|state| state.terminated.as_mut()).unwrap();
        last.started_at = last.finished_at.clone();
        assert_eq!(serves(&brief, &line(12_500)), Serves::Newest);
    }

    #[test]
    fn clock_set_back_proves_nothing() {
        let mut status = restarted();
        let running = status.state.as_mut().and_then(|state| state.running.as_mut()).unwrap();
        running.started_at = serde_json::from_value(json!("1970-01-01T00:00:05Z")).unwrap();
        assert_eq!(serves(&status, &line(10_100)), Serves::Newest);
    }

    #[test]
    fn unreadable_previous_run_is_told_by_its_id() {
        let status = restarted();
        let text = |id: u8| {
            Previous::read(format!("unable to retrieve container logs for containerd://{id}").as_bytes())
        };
        assert_eq!(serves(&status, &text(0)), Serves::Newest);
        assert_eq!(serves(&status, &text(1)), Serves::Later);
    }

    #[test]
    fn beginning_of_a_log_is_read_with_and_without_a_newline() {
        assert_eq!(Previous::read(b"1970-01-01T00:00:01Z one\n1970-01-01T00:00:02Z t"), line(1_000));
        assert_eq!(Previous::read(b"1970-01-01T00:00:01Z o"), line(1_000));
        assert_eq!(Previous::read(b""), Previous::Empty);
    }
}
