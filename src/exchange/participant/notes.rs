//! What a participant reports for metrics.

use std::time::Duration;

use super::Participant;
use crate::exchange::rank::Rank;
use crate::model::metrics::{FleetElection, FleetNoticed};

/// The longest change of publishers that is measured. A longer one is a log without lines.
const TAKEOVER_MAX: Duration = Duration::from_secs(30);

/// An event that is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Note {
    /// It became the publisher.
    Elected(FleetElection),
    /// It asks for frames that are missing.
    Missed(FleetNoticed),
    /// It received a frame again.
    Duplicate,
    /// It received a frame of a publisher that was replaced.
    Stale,
    /// The first frame of a publisher came this long after the last one of the publisher before.
    TakenOver(Duration),
}

// === impl Participant: notes ===

impl Participant {
    /// Returns what the newest input has caused.
    pub(crate) fn notes(&self) -> &[Note] {
        &self.notes
    }

    pub(super) fn note(&mut self, note: Note) {
        self.notes.push(note);
    }

    /// A publisher, possibly this gateway, has published a frame with lines.
    pub(super) fn note_frame(&mut self, rank: Rank, now: Duration) {
        let before = self.newest_frame.replace((rank, now));
        if let Some((before, at)) = before
            && before < rank
            && now <= at + TAKEOVER_MAX
        {
            self.note(Note::TakenOver(now.saturating_sub(at)));
        }
    }
}
