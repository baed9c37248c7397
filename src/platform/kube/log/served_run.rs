//! Finds out whether a kubelet serves a later run of a container than the API server knows. Pure.
//!
//! The log API has two runs, the present and the previous one as the kubelet sees them. The kubelet reports a
//! restart to the API server a second or two later, and up to a minute later on a busy node or after an
//! outage. Until then, a request for the run that the API server calls the present one returns another run's
//! lines.
//!
//! So the previous run of the kubelet is compared with that of the API server. If it is a later one, so is
//! the present run. Both times come from the clock of the node.

use k8s_openapi::api::core::v1::ContainerStatus;

use super::lines::{Found, Lines};
use crate::model::time::LogTime;
use crate::platform::kube::objects::time as time_of;

/// Nanoseconds in a second: the API server cuts times of containers to whole seconds.
const SECOND: i64 = 1_000_000_000;

/// The beginning of the log of the kubelet's previous run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PreviousLog {
    /// The kubelet has no previous run.
    None,
    /// The time of its first line.
    Line(LogTime),
    /// It has no lines.
    Empty,
    /// The kubelet has the run and cannot read its log. The text may name the container.
    Unreadable(String),
}

/// The run that a kubelet serves as the present one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ServedRun {
    /// The newest one that the API server knows.
    Newest,
    /// A later one.
    Later,
    /// Either.
    Unclear,
}

// === impl PreviousLog ===

impl PreviousLog {
    /// Reads the first tens of bytes of a response.
    pub(super) fn read(data: &[u8]) -> Self {
        let (mut lines, mut first) = (Lines::default(), None);
        // Ends a line that is cut off.
        let end: &[u8] = if data.is_empty() { b"" } else { b"\n" };
        for part in [data, end] {
            lines.push(part, &mut |found| {
                first.get_or_insert_with(|| match found {
                    Found::Piece { time, .. } => Self::Line(time),
                    Found::Foreign(text) => Self::Unreadable(String::from_utf8_lossy(text).into_owned()),
                });
            });
        }
        first.unwrap_or(Self::Empty)
    }
}

/// Compares the kubelet's previous run with the container's status, which the API server had before the
/// kubelet was asked.
pub(super) fn served_run(status: &ContainerStatus, previous: &PreviousLog) -> ServedRun {
    let last = status.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    let (last, time) = match (last, previous) {
        (_, PreviousLog::None) | (Some(_), PreviousLog::Empty) => return ServedRun::Newest,
        (None, _) => return ServedRun::Later,
        (Some(last), PreviousLog::Unreadable(text)) => {
            let id = last.container_id.as_deref().filter(|id| !id.is_empty());
            return if id.is_some_and(|id| text.contains(id)) { ServedRun::Newest } else { ServedRun::Later };
        }
        (Some(last), PreviousLog::Line(time)) => (last, *time),
    };
    let now = status.state.as_ref();
    let running = now.and_then(|state| state.running.as_ref()?.started_at.as_ref());
    let ended = || now.and_then(|state| state.terminated.as_ref()?.started_at.as_ref());
    let next = running.or_else(ended).map(time_of);
    let began = last.started_at.as_ref().map(time_of);
    let Some(over) = last.finished_at.as_ref().map(time_of) else {
        return ServedRun::Newest;
    };
    if began.is_some_and(|began| began > over) || next.is_some_and(|next| next < over) {
        // The clock was set back meanwhile: times prove nothing.
        return ServedRun::Newest;
    }
    let may_be_last = time < over.saturating_add_nanos(SECOND);
    let may_be_later = time >= next.unwrap_or(over);
    match (may_be_last, may_be_later) {
        (_, false) => ServedRun::Newest,
        (false, true) => ServedRun::Later,
        // In the second of the restart. A run that began and ended in that second printed in it, too.
        (true, true) if began == Some(over) => ServedRun::Newest,
        (true, true) => ServedRun::Unclear,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A container in its second run: the first one lasted from second 10 to 12, and this one began in second
    /// 12.
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

    fn line(millis: i64) -> PreviousLog {
        PreviousLog::Line(LogTime::from_nanos(millis * 1_000_000))
    }

    #[test]
    fn first_run_with_a_previous_log_is_over() {
        let status = ContainerStatus { last_state: None, ..restarted() };
        assert_eq!(served_run(&status, &PreviousLog::None), ServedRun::Newest);
        for previous in [line(1), PreviousLog::Empty, PreviousLog::Unreadable("gone".into())] {
            assert_eq!(served_run(&status, &previous), ServedRun::Later, "{previous:?}");
        }
    }

    #[test]
    fn first_line_identifies_previous_run() {
        let status = restarted();
        for (millis, expected) in [
            (10_100, ServedRun::Newest),
            (11_999, ServedRun::Newest),
            (12_500, ServedRun::Unclear),
            (13_000, ServedRun::Later),
        ] {
            assert_eq!(served_run(&status, &line(millis)), expected, "{millis}");
        }
        let mut brief = restarted();
        let last = brief.last_state.as_mut().and_then(|state| state.terminated.as_mut()).unwrap();
        last.started_at = last.finished_at.clone();
        assert_eq!(served_run(&brief, &line(12_500)), ServedRun::Newest);
    }

    #[test]
    fn clock_set_back_proves_nothing() {
        let mut status = restarted();
        let running = status.state.as_mut().and_then(|state| state.running.as_mut()).unwrap();
        running.started_at = serde_json::from_value(json!("1970-01-01T00:00:05Z")).unwrap();
        assert_eq!(served_run(&status, &line(10_100)), ServedRun::Newest);
    }

    #[test]
    fn container_id_identifies_unreadable_previous_run() {
        let status = restarted();
        let text = |id: u8| {
            PreviousLog::read(format!("unable to retrieve container logs for containerd://{id}").as_bytes())
        };
        assert_eq!(served_run(&status, &text(0)), ServedRun::Newest);
        assert_eq!(served_run(&status, &text(1)), ServedRun::Later);
    }

    #[test]
    fn first_line_is_read_with_and_without_newline() {
        assert_eq!(PreviousLog::read(b"1970-01-01T00:00:01Z one\n1970-01-01T00:00:02Z t"), line(1_000));
        assert_eq!(PreviousLog::read(b"1970-01-01T00:00:01Z o"), line(1_000));
        assert_eq!(PreviousLog::read(b""), PreviousLog::Empty);
    }
}
