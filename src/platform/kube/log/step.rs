//! Events that the log machine takes, and the actions that it returns.

use std::time::Duration;

use crate::platform::Error;

/// Lines requested to check whether a silent stream has missed some: more than the pieces of any but the
/// longest line.
const PROBE_LINES: u64 = 64;

/// Bytes requested to check whether any line exists: about the length of its time.
const EXISTS_BYTES: u64 = 64;

/// A request for log lines. It always names the container and always asks for times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct LogQuery {
    /// Whether the response continues with new lines.
    pub(in super::super) follow: bool,
    /// Return only the last lines of the file, this many.
    pub(in super::super) tail_lines: Option<u64>,
    /// Return only lines of this second or later. Used to look, never to resume.
    pub(in super::super) since_second: Option<i64>,
    /// Return about this many bytes at most.
    pub(in super::super) limit_bytes: Option<u64>,
    /// Read the run before the one that the kubelet serves as the present one. If the run that is read is the
    /// newest one that the API server knows, it may have ended without a report.
    pub(in super::super) previous: bool,
    /// Check that the kubelet serves the run that the API server calls the newest: it may have started the
    /// next one without a report. For responses in which no known line identifies the run.
    pub(in super::super) checks_run: bool,
}

/// Something that happened outside of the machine.
#[derive(Debug)]
pub(super) enum Event<'a> {
    /// The response begins. `ended` if the run had ended before the request was sent.
    Opened { ended: bool },
    /// Bytes of the response.
    Data(&'a [u8]),
    /// Nothing came for a moment while
    /// [`Machine::holds_unfinished`](super::machine::Machine::holds_unfinished) was true.
    Unfinished,
    /// The response is complete. `ended` if the run has ended by now.
    Complete { ended: bool },
    /// The response broke off, or the request failed.
    Broken(String),
    /// The API server or the kubelet cannot be reached. The open limiter delays the next request.
    Unreachable(String),
    /// The log does not exist, or no longer. This does not change.
    Gone(String),
    /// Nothing came for the time that [`IdleVerdict::Unplaced`] or [`IdleVerdict::Trial`] stands for.
    Idle,
    /// The kubelet serves a later run than the API server knows, or may do so if `unclear`. Nothing was
    /// opened.
    LaterRun { why: String, unclear: bool },
    /// The last lines of the file, which were requested beside a silent stream.
    Probed(&'a [u8]),
    /// The run has ended beside a silent response that did not complete.
    RunEnded,
    /// A pause is over, or the run changed. `ended` if the run has ended.
    Resumed { ended: bool },
}

/// The next thing to do.
#[derive(Debug)]
pub(super) enum Action {
    /// Continue with the response.
    Read,
    /// Drop the response and send this request.
    Open(LogQuery),
    /// Drop the response and wait about this long, or until the run changes. Then send [`Event::Resumed`].
    Pause(Duration),
    /// Stop: the log is complete.
    Finish,
    /// Stop: the log cannot be read.
    Fail(Error),
}

/// The meaning of a silent response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IdleVerdict {
    /// The response is slow.
    Slow,
    /// Nothing is written, or the stream is dead: [`LogQuery::PROBE`] tells which.
    Quiet,
    /// The response does not have the resume point: [`Event::Idle`].
    Unplaced,
    /// The kubelet, which could not follow logs before, follows this one: [`Event::Idle`].
    Trial,
}

// === impl LogQuery ===

impl LogQuery {
    /// The whole file as it is.
    pub(in super::super) const WHOLE: Self = Self {
        follow: false,
        tail_lines: None,
        since_second: None,
        limit_bytes: None,
        previous: false,
        checks_run: false,
    };

    /// The whole file of the previous run.
    pub(super) const PREVIOUS: Self = Self { previous: true, ..Self::WHOLE };

    /// The last lines, requested beside a stream that has been silent for long.
    pub(super) const PROBE: Self = Self { tail_lines: Some(PROBE_LINES), ..Self::WHOLE };

    /// The last lines and all that follow.
    #[cfg(test)]
    pub(super) const FOLLOW: Self = Self { follow: true, ..Self::last(super::overlap::WINDOW_LINES as u64) };

    /// The last `lines` lines.
    pub(super) const fn last(lines: u64) -> Self {
        Self { tail_lines: Some(lines), ..Self::WHOLE }
    }

    /// Whether a line of this second or a later one exists.
    pub(super) const fn exists_since(second: i64) -> Self {
        Self { since_second: Some(second), limit_bytes: Some(EXISTS_BYTES), ..Self::WHOLE }
    }
}
