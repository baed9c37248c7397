//! The stages of a read.

use std::collections::HashSet;

use crate::model::time::LogTime;
use crate::platform::batcher::StartFilter;
use crate::platform::kube::log::overlap::{Mark, OverlapFinder};
use crate::platform::kube::log::tail_buffer::TailBuffer;

/// The purpose of the current request, what it waits for, and the stages that follow.
///
/// A read starts in `FindStart`, `ReadLast` or `CountLines`. Once its start is found it delivers lines and
/// alternates between `Live` and the stages that search for the resume point after an interruption.
/// `ReadRest` is the last one before `Done`. An interrupted stage begins again, unless stated otherwise.
#[derive(Debug)]
pub(super) enum Stage {
    /// Finds the start of the read in the whole file, and delivers from there.
    ///
    /// Waits for the end of the response. Then: `Live`; `CountLines` if the counted lines were rotated away.
    /// If interrupted after a delivered line: `FindResumePoint`.
    FindStart { filter: StartFilter },
    /// Holds the last lines, for [`ReadFrom::Last`](crate::platform::ReadFrom::Last).
    ///
    /// Waits for the end of the response. Then: delivers the lines and goes to `Live` if they are the whole
    /// file; `ProbeNewer` if their positions are certain unless the clock was set back; otherwise
    /// `CountLines`, also if they are too large to be held.
    ReadLast(TailBuffer),
    /// Asks whether lines newer than the last ones exist. If so the clock was set back, and positions count
    /// from an earlier line.
    ///
    /// Waits for the end of the response. Then: `CountLines` if `newer`; otherwise delivers the last lines
    /// and goes to `Live`.
    ProbeNewer { last: TailBuffer, newer: bool },
    /// Counts the lines of the whole file, for [`ReadFrom::Last`](crate::platform::ReadFrom::Last).
    ///
    /// Waits for the end of the response. Then: `FindStart` at the first wanted line; `Live` if none is
    /// wanted.
    CountLines,
    /// Follows the last lines, or polls them while the kubelet cannot follow.
    ///
    /// Waits for new lines. After the end of the response, or an interruption: `Live` again after a pause.
    /// Resume point not found: `FindResumePoint`. Run ended: `ReadRest`.
    Live {
        /// The search for the resume point; `None` once it was found.
        finder: Option<OverlapFinder>,
        /// Whether the previous line had been read before.
        repeats: bool,
    },
    /// Reads the last lines of a run that has ended.
    ///
    /// Waits for the end of the response. Then: `Done`; `FindResumePoint` if the resume point was not found.
    ReadRest { finder: Option<OverlapFinder>, suspect: Option<Suspect> },
    /// Searches the whole file for the resume point, and delivers the lines after it.
    ///
    /// Waits for the end of the response. Then, if found: `Live`, `ReadRest` or `Done`. If not:
    /// `SearchPreviousRun` if the run may have ended unseen; otherwise `SkipKnown`.
    FindResumePoint { finder: Option<OverlapFinder>, suspect: Option<Suspect> },
    /// Searches the whole file of the previous run for the resume point.
    ///
    /// Waits for the resume point. Then: `ReadRest`, within this response. If it is not found, or the
    /// response is interrupted: `SkipKnown`.
    SearchPreviousRun { finder: OverlapFinder, suspect: Option<Suspect> },
    /// The kubelet serves a later run than the API server knows.
    ///
    /// Waits until the API server knows it. Run ended: `ReadRest`. After each pause: `SkipKnown`, whose
    /// request checks the run.
    AwaitStatus,
    /// Delivers all lines of the file but the `known` ones, because the resume point was rotated away.
    ///
    /// Waits for the end of the response. Then: `Live`, `ReadRest` or `Done`. A later run is served:
    /// `AwaitStatus`. If interrupted after a delivered line: `FindResumePoint`.
    SkipKnown { known: HashSet<Mark>, gap: RotationGap },
    /// The read has ended. Nothing follows.
    Done,
}

/// Reporting of the gap for a resume point that was rotated away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RotationGap {
    /// The file has not been opened. The gap is reported then, unless a line was delivered in part.
    Unopened,
    /// A line was delivered in part, and may be the first unknown line of the file. Then the gap precedes its
    /// rest; otherwise that line is ended, and the gap follows it.
    Due,
    /// It was reported.
    Reported,
}

/// A line that a stream sent after newer ones. The file tells whether lines are missing before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Suspect {
    pub(super) time: LogTime,
    /// Hash of its bytes; `None` if it had not ended.
    pub(super) hash: Option<u64>,
}

// === impl Stage ===

impl Stage {
    pub(super) const LIVE: Self = Self::Live { finder: None, repeats: false };

    pub(super) const READ_REST: Self = Self::ReadRest { finder: None, suspect: None };

    /// Returns the search for the resume point, if it is not over.
    pub(super) fn finder_mut(&mut self) -> Option<&mut OverlapFinder> {
        match self {
            Self::Live { finder, .. }
            | Self::ReadRest { finder, .. }
            | Self::FindResumePoint { finder, .. } => finder.as_mut(),
            Self::SearchPreviousRun { finder, .. } => Some(finder),
            _ => None,
        }
    }

    pub(super) fn searches_whole_file(&self) -> bool {
        matches!(self, Self::FindResumePoint { .. } | Self::SearchPreviousRun { .. })
    }

    /// Returns the line that made the machine search for the resume point.
    pub(super) fn suspect(&self) -> Option<Suspect> {
        match self {
            Self::ReadRest { suspect, .. }
            | Self::FindResumePoint { suspect, .. }
            | Self::SearchPreviousRun { suspect, .. } => *suspect,
            _ => None,
        }
    }

    /// Whether the stage follows or polls the log, and is past the resume point.
    pub(super) fn is_live(&self) -> bool {
        matches!(self, Self::Live { finder: None, .. })
    }
}

// === impl Suspect ===

impl Suspect {
    /// Whether it is this line. `mark` is `None` if the line has not ended.
    pub(super) fn is(self, time: LogTime, mark: Option<Mark>) -> bool {
        let same_bytes = self.hash.zip(mark).is_none_or(|(hash, mark)| hash == mark.hash);
        self.time == time && same_bytes
    }
}
