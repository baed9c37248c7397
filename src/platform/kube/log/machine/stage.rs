//! The stages of a read.

use std::collections::HashSet;

use crate::model::time::LogTime;
use crate::platform::batcher::StartFilter;
use crate::platform::kube::log::overlap::{Mark, OverlapFinder};
use crate::platform::kube::log::tail_buffer::TailBuffer;

/// The purpose of the current request, and the stages that follow it.
///
/// A read starts in `Seek`, `Last` or `Count`. Once its start is found it delivers lines and alternates
/// between `Live` and the stages that search for the resume point after an interruption; `Drain` is the last
/// one before `Done`.
#[derive(Debug)]
pub(super) enum Stage {
    /// Reads the whole file to find the start of the read, and delivers from there.
    ///
    /// Complete: `Live`; or `Count` if the counted lines were rotated away meanwhile.
    Seek { filter: StartFilter },
    /// Reads the last lines, for [`ReadFrom::Last`](crate::platform::ReadFrom::Last).
    ///
    /// Complete: delivers them and goes to `Live` if they are the whole file; `ProbeNewer` if their positions
    /// are certain unless the clock was set back; otherwise `Count`. Too large to be held: `Count`.
    Last(TailBuffer),
    /// Asks whether lines newer than the last ones exist. If so the clock was set back, and positions count
    /// from an earlier line.
    ///
    /// Complete: `Count` if `newer`; otherwise delivers the last lines and goes to `Live`.
    ProbeNewer { last: TailBuffer, newer: bool },
    /// Reads the whole file and counts its lines, for [`ReadFrom::Last`](crate::platform::ReadFrom::Last).
    ///
    /// Complete: `Seek` to the first wanted line; or `Live` if none is wanted.
    Count,
    /// Follows the last lines, or polls them while the kubelet cannot follow.
    ///
    /// Resume point not found: `Recover`. Run ended: `Drain`. Complete or broken: `Live` again, after a
    /// pause.
    Live {
        /// The search for the resume point; `None` once it was found.
        finder: Option<OverlapFinder>,
        /// Whether the previous line had been read before.
        repeats: bool,
    },
    /// Reads the last lines of a run that has ended.
    ///
    /// Resume point not found: `Recover`. Complete: `Done`.
    Drain { finder: Option<OverlapFinder>, suspect: Option<Suspect> },
    /// Reads the whole file and searches for the resume point.
    ///
    /// Found and complete: `Live`, `Drain` or `Done`. Not found: `PreviousRun` if the run may have ended
    /// unseen; otherwise `SkipKnown`.
    Recover { finder: Option<OverlapFinder>, suspect: Option<Suspect> },
    /// Reads the whole file of the previous run and searches for the resume point.
    ///
    /// Found: `Drain`, within this response. Not found: `SkipKnown`.
    PreviousRun { finder: OverlapFinder, suspect: Option<Suspect> },
    /// The kubelet serves a later run that the API server does not know. Waits until the API server does.
    ///
    /// Run ended: `Drain`. Pause over: `SkipKnown` again, whose request checks the run.
    AwaitingStatus,
    /// Reads the whole file, because the resume point was rotated away, and delivers all lines but the
    /// `known` ones.
    ///
    /// A later run is served: `AwaitingStatus`. Complete: `Live`, `Drain` or `Done`. Broken after a delivered
    /// line: `Recover`.
    SkipKnown { known: HashSet<Mark>, gap: RotationGap },
    /// The read has ended.
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

    pub(super) const DRAIN: Self = Self::Drain { finder: None, suspect: None };

    /// The search for the resume point, if it is not over.
    pub(super) fn finder_mut(&mut self) -> Option<&mut OverlapFinder> {
        match self {
            Self::Live { finder, .. } | Self::Drain { finder, .. } | Self::Recover { finder, .. } => {
                finder.as_mut()
            }
            Self::PreviousRun { finder, .. } => Some(finder),
            _ => None,
        }
    }

    pub(super) fn searches_whole_file(&self) -> bool {
        matches!(self, Self::Recover { .. } | Self::PreviousRun { .. })
    }

    /// The line that made the machine search for the resume point.
    pub(super) fn suspect(&self) -> Option<Suspect> {
        match self {
            Self::Drain { suspect, .. }
            | Self::Recover { suspect, .. }
            | Self::PreviousRun { suspect, .. } => *suspect,
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
