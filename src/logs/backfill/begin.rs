//! Where a history read begins: behind a cursor, at the last lines, at a time, at the oldest line; or in the ring at once.

use futures_util::StreamExt as _;

use super::log::Joined;
use super::{Backfill, Failures, Ready, Stage, moved};
use crate::logs::ambiguity::AmbiguousRange;
use crate::logs::frame::Event;
use crate::logs::request::{BackfillFilter, ReadRange};
use crate::model::id::Instance;
use crate::model::line::GapCause;
use crate::model::position::Position;
use crate::model::time::LogTime;
use crate::model::view::{ReplicaState, ReplicaView};
use crate::platform::{self, ReadFrom, TailItem};

impl Backfill {
    /// Where to begin: in the ring at once, if it holds all that was asked for.
    pub(super) async fn begin(&mut self) -> Stage {
        let slot = self.readable_slot();
        if let Some((instance, position)) = self.scope.resume.clone() {
            return self.resume(&slot, instance, position);
        }
        let history = self.scope.extent.history();
        self.since = history.since;
        if let ReadRange::Previous(_) = self.scope.extent {
            let before = slot.runs.len().checked_sub(2).and_then(|index| slot.runs.get(index));
            return match before {
                Some(run) => Stage::Open(run.instance.clone(), from(history.last, history.since)),
                None => Stage::End,
            };
        }
        if self.scope.extent.follows() && history.last == Some(0) {
            return self.join_now().await;
        }
        if let (Some(lines), None, Some(live)) = (history.last, history.since, &mut self.live)
            && let Some((instance, rests)) = live.reader.join_last(lines)
        {
            self.ready.extend(rests.into_iter().map(|chunk| Ready::Chunk(instance.clone(), chunk)));
            return Stage::Join;
        }
        if slot.runs.is_empty() {
            return self.join_now().await;
        }
        if let Err(stage) = self.permitted(None).await {
            return stage;
        }
        let Ok((first, last)) = self.first_run(&slot, history).await else {
            return Stage::Unreadable;
        };
        let Some(run) = slot.runs.get(first) else {
            return self.join_now().await;
        };
        if self.scope.newcomer {
            self.tell(&Event::started(run));
        }
        Stage::Open(run.instance.clone(), from(last, history.since))
    }

    fn resume(&mut self, slot: &ReplicaView, instance: Instance, position: Position) -> Stage {
        if let Joined::Stage(stage) = self.try_join(&instance, position, AmbiguousRange::default()) {
            return stage;
        }
        if slot.run(&instance).is_some() {
            return Stage::Open(instance, ReadFrom::After(position));
        }
        self.unknown_gap(GapCause::Rotated);
        match slot.runs.first() {
            Some(run) => {
                self.tell(&Event::started(run));
                Stage::Open(run.instance.clone(), ReadFrom::Start)
            }
            None if self.live.is_some() => Stage::Join,
            None => Stage::End,
        }
    }

    /// Goes on with what comes from now on; waits until it is known where the log stands, so that the follower can be told.
    async fn join_now(&mut self) -> Stage {
        let has_runs = !self.readable_slot().runs.is_empty();
        let Some(live) = &mut self.live else {
            self.tell_waiting();
            return Stage::End;
        };
        while has_runs && live.reader.position().is_none() && !live.reader.is_closed() {
            moved(live).await;
        }
        // Else the ring tells it.
        let is_told = has_runs && !live.reader.is_behind_news();
        if let ReplicaState::Waiting { reason, message } = self.slot().state
            && !is_told
        {
            self.tell(&Event::waiting(reason, message));
        }
        Stage::Join
    }

    /// Which run to begin with, and how many of its last lines to take.
    ///
    /// # Errors
    /// If that depends on a log that cannot be read at the moment, and the caller does not stay for it.
    async fn first_run(
        &mut self,
        slot: &ReplicaView,
        history: BackfillFilter,
    ) -> Result<(usize, Option<u64>), platform::Error> {
        let recent =
            |since| slot.runs.iter().position(|run| run.end.as_ref().is_none_or(|end| end.time >= since));
        let oldest = history.since.map_or(Some(0), recent).unwrap_or(slot.runs.len() - 1);
        let Some(mut wanted) = history.last else {
            return Ok((oldest, None));
        };
        for index in (oldest..slot.runs.len()).rev() {
            if index == oldest {
                return Ok((index, Some(wanted)));
            }
            let here = self.count(&slot.runs[index].instance, wanted).await?;
            if here >= wanted {
                return Ok((index, Some(wanted)));
            }
            wanted -= here;
        }
        Ok((oldest, Some(wanted)))
    }

    /// How many lines a run's log has, as far as `enough`. None, if it was removed, or cannot be read and is not the newest of one
    /// that is followed.
    async fn count(&mut self, instance: &Instance, enough: u64) -> Result<u64, platform::Error> {
        let lines = loop {
            match self.try_count(instance, enough).await {
                Ok(lines) => break lines,
                Err(error) if self.may_try_again(instance, &error).await => {}
                Err(error)
                    if self.live.is_none() && error.is_retryable() && !self.is_removed(instance).await =>
                {
                    return Err(error);
                }
                Err(_) => break 0,
            }
        };
        self.failures = Failures::default();
        Ok(lines)
    }

    async fn try_count(&mut self, instance: &Instance, enough: u64) -> Result<u64, platform::Error> {
        if self.permit.is_none() {
            // It was given back during a pause. The stream was let in by then, so that none is refused.
            let acquired = self.permits.acquire(self.scope.lease.owner(), || true).await;
            self.permit = acquired.ok();
        }
        let mut items = self.tail(instance.clone(), ReadFrom::Last(enough), false).await?.items;
        let mut lines = 0;
        while let Some(item) = items.next().await {
            if let TailItem::Lines(batch) = item? {
                self.permits.throttle(self.scope.lease.owner(), batch.data.len()).await;
                lines += batch.lines.iter().filter(|line| line.ends).count() as u64;
            }
        }
        Ok(lines)
    }
}

fn from(last: Option<u64>, since: Option<LogTime>) -> ReadFrom {
    match (last, since) {
        (Some(lines), _) => ReadFrom::Last(lines),
        (None, Some(since)) => ReadFrom::Since(since),
        (None, None) => ReadFrom::Start,
    }
}
