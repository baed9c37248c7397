//! What passes between the machine that reads a log and the world: events in, one thing to do out.

use std::time::Duration;

use crate::platform::Error;

/// Lines asked for to see whether a silent stream has missed some: more than the pieces of any but the longest line.
const PROBE_LINES: u64 = 64;

/// Bytes asked for to see whether there is a line at all: its time, about.
const GLANCE_BYTES: u64 = 64;

/// What is to be asked of the API. The container is always named, and times are always asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct LogQuery {
    /// Whether the response goes on with what comes.
    pub(in super::super) follow: bool,
    /// Only the last so many lines.
    pub(in super::super) tail_lines: Option<u64>,
    /// Only lines that are not older than this whole second. To look, never to go on.
    pub(in super::super) since_second: Option<i64>,
    /// Only about so many bytes.
    pub(in super::super) limit_bytes: Option<u64>,
    /// The run that its kubelet has before the present one, should the one that is read be the present one as far as is known: then it
    /// may have ended, and the API server may not have been told.
    pub(in super::super) before: bool,
    /// Whether the kubelet must be asked if it serves the run that the API server calls the newest one: it may have started the next
    /// one and not have reported it. For responses in which no known line shows whose log it is.
    pub(in super::super) checks_run: bool,
}

/// What happened outside.
#[derive(Debug)]
pub(super) enum Event<'a> {
    /// The response begins. `ended` if it was known before it was asked for that the run had ended.
    Opened { ended: bool },
    /// Bytes of the response.
    Data(&'a [u8]),
    /// Nothing came for a moment, and [`Machine::holds_unfinished`](super::machine::Machine::holds_unfinished).
    Unfinished,
    /// The response is complete. `ended` if the run is known to have ended by now.
    Complete { ended: bool },
    /// The response broke off, or could not be had this time.
    Broken(String),
    /// The API server or the kubelet cannot be reached. Who asks for it again has to wait, so the machine need not.
    Away(String),
    /// There is no such log (any more), which will not change.
    Gone(String),
    /// Nothing came for as long as [`Silence::Unplaced`] or [`Silence::Probation`] says.
    Silent,
    /// The kubelet serves a later run than the API server knows of; if `unclear`, it may. Nothing was opened.
    Behind { why: String, unclear: bool },
    /// The last lines of the file, asked for beside a silent stream.
    Probed(&'a [u8]),
    /// The run has ended beside a silent response, which ought to have completed then.
    Left,
    /// A pause is over, or the run changed. `ended` as above.
    Woken { ended: bool },
}

/// What is to be done.
#[derive(Debug)]
pub(super) enum Action {
    /// Go on with the response.
    Read,
    /// Drop the response and ask.
    Ask(LogQuery),
    /// Drop the response and wait about so long, or until the run changes; then [`Event::Woken`].
    Pause(Duration),
    /// Nothing more will come.
    Finish,
    /// It does not work.
    Fail(Error),
}

/// What silence of the response at hand means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IdleVerdict {
    /// Nothing but that it is slow.
    Slow,
    /// Perhaps that nothing is written; perhaps that the stream is dead: [`LogQuery::PROBE`] tells.
    Quiet,
    /// That the place is not in it: [`Event::Silent`].
    Unplaced,
    /// That the kubelet, which could not follow logs before, follows this one: [`Event::Silent`].
    Trial,
}

// === impl Ask ===

impl LogQuery {
    /// The whole file as it is.
    pub(in super::super) const WHOLE: Self = Self {
        follow: false,
        tail_lines: None,
        since_second: None,
        limit_bytes: None,
        before: false,
        checks_run: false,
    };

    /// The whole file of the run before.
    pub(super) const BEFORE: Self = Self { before: true, ..Self::WHOLE };

    /// What is asked beside a stream that has been silent for long.
    pub(super) const PROBE: Self = Self { tail_lines: Some(PROBE_LINES), ..Self::WHOLE };

    /// The last lines, and what comes.
    #[cfg(test)]
    pub(super) const FOLLOW: Self = Self { follow: true, ..Self::last(super::overlap::WINDOW_LINES as u64) };

    /// The last so many lines.
    pub(super) const fn last(lines: u64) -> Self {
        Self { tail_lines: Some(lines), ..Self::WHOLE }
    }

    /// Whether there is a line of this second or a later one.
    pub(super) const fn glance(second: i64) -> Self {
        Self { since_second: Some(second), limit_bytes: Some(GLANCE_BYTES), ..Self::WHOLE }
    }
}
