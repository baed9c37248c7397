//! What comes behind a run that was read to its end: the ring, the next run, or nothing any more.

use super::{Backfill, Failures, Stage, moved};
use crate::logs::frame::Event;
use crate::logs::request::ReadRange;
use crate::logs::ring::JoinOutcome;
use crate::model::id::Instance;
use crate::model::line::GapCause;
use crate::model::position::Position;
use crate::model::view::ReplicaView;
use crate::platform::ReadFrom;

// === impl Reading ===

impl Backfill {
    /// What comes behind a run that was read to its end.
    pub(super) async fn go_on(&mut self, instance: Instance) -> Stage {
        self.failures = Failures::default();
        if let ReadRange::Previous(_) = self.scope.extent {
            return Stage::End;
        }
        loop {
            if let Some(live) = &mut self.live {
                let at = self.at.as_ref().filter(|(run, _)| *run == instance).map(|(_, position)| *position);
                match live.reader.join_end(&instance, at.unwrap_or(Position::START)) {
                    JoinOutcome::Joined(_) => return Stage::Join,
                    _ if !live.reader.is_closed() || self.scope.is_gone() => {}
                    // The slot is in use again: by pods that this read has nothing to do with.
                    _ if live.reader.is_gone() => return self.over(&self.slot(), &instance),
                    _ => return Stage::Orphaned,
                }
            }
            let slot = self.slot();
            // The newest run is for the ring to tell of; earlier ones it does not know.
            if let Some(next) = slot.run_behind(&instance) {
                if let Some(event) = slot.run(&instance).and_then(Event::ended) {
                    self.tell(&event);
                }
                self.tell(&Event::started(next));
                if instance.skips_to(&next.instance) {
                    self.at = Some((next.instance.clone(), Position::START));
                    self.unknown_gap(GapCause::Rotated);
                }
                return Stage::Open(next.instance.clone(), ReadFrom::Start);
            }
            let Some(live) = &mut self.live else {
                self.tell_waiting();
                return Stage::End;
            };
            if live.reader.is_closed() {
                return self.over(&slot, &instance);
            }
            // Nothing is read meanwhile, and that may be long.
            self.permit = None;
            tokio::select! {
                () = moved(live) => {}
                changed = self.scope.view.changed() => if changed.is_err() { return Stage::Orphaned },
            }
        }
    }

    /// The replica is gone, and `instance` was the last run of it that can be read. Says what the ring would have said.
    fn over(&mut self, slot: &ReplicaView, instance: &Instance) -> Stage {
        if let Some(event) = slot.run(instance).and_then(Event::ended) {
            self.tell(&event);
        }
        let newest = self.live.as_ref().and_then(|live| live.reader.ring().head_instance());
        if newest.is_some_and(|newest| newest != *instance) {
            self.unknown_gap(GapCause::Rotated);
        }
        self.tell(&Event::gone());
        Stage::End
    }
}
