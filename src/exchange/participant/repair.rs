//! Repairs of a member: missing frames from the publisher's ring, else lines from the source, else a gap.

use std::time::Duration;

use super::election::ANSWER_MAX;
use super::following::{Pending, Refusal, UNANSWERED_MAX};
use super::io::{Output, RequestId};
use super::notes::Note;
use super::{Participant, Role};
use crate::exchange::lines::LOST_MAX;
use crate::exchange::messages::{Content, Fetch, FetchFrom, Fetched, Frame, Message, Oldest};
use crate::exchange::rank::Rank;
use crate::model::id::Instance;
use crate::model::line::{GapCause, LineBatch, SourceGap};
use crate::model::metrics::FleetNoticed;
use crate::model::position::Position;

// === impl Participant: repairs ===

impl Participant {
    /// Asks the publisher's ring for missing frames, or reads the source.
    pub(super) fn request_missing(&mut self, now: Duration) {
        let Role::Member(following) = &self.role else { return };
        let Some(run) = &self.run else { return };
        if following.fetch.is_some() {
            return;
        }
        let from = if let Some(next) = following.next {
            if following.known_after(next).is_none() {
                return;
            }
            FetchFrom::Number(next)
        } else {
            let Some(place) = run.place() else { return };
            // A tail that is not open yet may wait for a permit for long.
            if self.tail.opened_at.is_some()
                || self.tail.retry_at.is_some()
                || !self.is_behind(&run.instance, place.position)
            {
                return;
            }
            FetchFrom::After(place)
        };
        let is_comparable = following.next.is_some() || run.is_comparable();
        if following.refused.is_some() || following.unanswered_fetches >= UNANSWERED_MAX || !is_comparable {
            return self.detach();
        }
        let until = following.kept.first();
        let noticed = if until.is_some() { FleetNoticed::Number } else { following.head_from };
        let fetch = Fetch { rank: following.rank, from, until };
        let request = self.new_request();
        self.out.push(Output::Request(request, Message::Fetch(fetch)));
        self.note(Note::Missed(noticed));
        if let Role::Member(following) = &mut self.role {
            let (deadline, next) = (now + ANSWER_MAX, following.next);
            following.fetch = Some(Pending { request, deadline, is_probe: false, next });
        }
    }

    /// Whether the publisher has lines of the run after `at`, as far as is known.
    pub(super) fn is_behind(&self, instance: &Instance, at: Position) -> bool {
        let Role::Member(following) = &self.role else { return false };
        let is_later = |other: &Instance, position: Position| {
            if other == instance { position > at } else { !self.is_earlier(other) }
        };
        let place = following.head.as_ref().and_then(|head| head.end.place.as_ref());
        let frame = following.kept.iter().any(|frame| match &frame.content {
            Content::Lines { instance, lines } => is_later(instance, lines.end()),
            Content::Gap { instance, gap, .. } => is_later(instance, gap.after),
            Content::Event => false,
        });
        frame || place.is_some_and(|place| is_later(&place.instance, place.position))
    }

    pub(super) fn fetched(&mut self, request: RequestId, fetched: Fetched) {
        let Role::Member(following) = &mut self.role else { return };
        let Some(fetch) = following.fetch.filter(|fetch| fetch.request == request) else { return };
        following.fetch = None;
        match fetched {
            Fetched::Frames { rank, frames } if rank == following.rank => {
                following.unanswered_fetches = 0;
                self.fetched_frames(frames);
                self.check_progress(fetch.next);
            }
            Fetched::NotHeld { rank, oldest } if rank == following.rank => {
                following.unanswered_fetches = 0;
                following.refused = Some(Refusal { oldest });
                self.detach();
            }
            // Of another publisher.
            _ => following.unanswered_fetches += 1,
        }
    }

    /// Reads the source if the frames of an answer do not continue what was delivered: the same fetch would
    /// be sent again without end. `before` is the number that was missing when it was sent.
    fn check_progress(&mut self, before: Option<u64>) {
        let Role::Member(following) = &mut self.role else { return };
        let has_next = following.next.is_some() && following.kept.first() == following.next;
        if following.next == before && !has_next && self.run.is_some() {
            following.refused = Some(Refusal { oldest: None });
            self.detach();
        }
    }

    /// Delivers fetched frames at once: together they may be more than may be kept.
    pub(super) fn fetched_frames(&mut self, frames: Vec<Frame>) {
        let mut frames = frames.into_iter();
        while let Some(frame) = frames.next() {
            let Role::Member(following) = &mut self.role else { return };
            match following.next {
                Some(next) if frame.number < next => {}
                Some(next) if frame.number == next => {
                    let number = frame.number;
                    if !self.apply_next(frame) {
                        // The next run: its first frames are kept, the others are fetched when it is open.
                        return self.keep(frames);
                    }
                    if self.is_detached_at(number) {
                        return;
                    }
                }
                // The first frame after a position, or frames after a hole.
                Some(_) => return,
                None => {
                    following.kept.insert(frame);
                    self.try_attach();
                }
            }
        }
    }

    pub(super) fn is_detached_at(&self, number: u64) -> bool {
        matches!(&self.role, Role::Member(following) if following.next != Some(number + 1))
    }

    pub(super) fn keep(&mut self, frames: impl Iterator<Item = Frame>) {
        if let Role::Member(following) = &mut self.role {
            for frame in frames {
                following.kept.insert(frame);
            }
        }
    }

    /// Whether the publisher may know the size of this gap of the source: its ring no longer has the lines,
    /// but has counted them.
    pub(super) fn may_know_size(&self, gap: &SourceGap) -> bool {
        self.tail.held_gap.is_none() && !gap.exact && self.counted_place().is_some()
    }

    /// Returns the oldest place that the publisher's ring holds, if it is after the actor's position and the
    /// lines in between are counted.
    pub(super) fn counted_place(&self) -> Option<(Rank, Oldest, SourceGap)> {
        let Role::Member(following) = &self.role else { return None };
        let oldest = following.refused.as_ref()?.oldest.as_ref()?;
        let run = self.run.as_ref()?;
        let (rank, totals) = run.account?;
        let is_after =
            oldest.place.instance == run.instance && run.at.is_some_and(|at| oldest.place.position > at);
        let is_counted = rank == following.rank && totals.inexact_gaps == oldest.totals.inexact_gaps;
        let gap = SourceGap {
            cause: GapCause::Rotated,
            lines: oldest.totals.lines.checked_sub(totals.lines)?,
            bytes: oldest.totals.bytes.checked_sub(totals.bytes)?,
            exact: true,
            after: oldest.place.position,
        };
        let is_possible = gap.lines <= LOST_MAX && gap.bytes <= LOST_MAX;
        (is_after && is_counted && is_possible).then(|| (rank, oldest.clone(), gap))
    }

    /// The source has lost lines of unknown number and continues with `batch`. If the publisher's ring begins
    /// earlier, skips to it, since the publisher has counted the lines in between.
    pub(super) fn know_lost_lines(&mut self, batch: &LineBatch) -> bool {
        let Some((rank, oldest, gap)) = self.counted_place() else { return false };
        if batch.lines.first().is_none_or(|line| line.after <= oldest.place.position) {
            return false;
        }
        self.skip_to_oldest(rank, oldest, gap);
        true
    }

    /// The source has nothing of the log: only the publisher's ring has lines.
    pub(super) fn source_has_nothing(&mut self) {
        if let Some((rank, oldest, gap)) = self.counted_place() {
            self.skip_to_oldest(rank, oldest, gap);
        }
    }

    pub(super) fn skip_to_oldest(&mut self, rank: Rank, oldest: Oldest, gap: SourceGap) {
        let gap = SourceGap { cause: self.tail.held_gap.take().map_or(gap.cause, |held| held.cause), ..gap };
        let Some(run) = &mut self.run else { return };
        let item = run.gap(gap);
        run.skip_to(oldest.place.position, (rank, oldest.totals));
        run.seen_from = Some(rank);
        self.deliver(item);
        self.attach(oldest.number);
    }
}
