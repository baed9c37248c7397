//! The lines of a member: frames by number, and the change to a publisher's frames where positions meet.
//!
//! A member is *attached* to its publisher's frames once it knows the number of the frame that follows its
//! position. From then on numbers tell what is missing. Before, only positions do.

use std::time::Duration;

use super::io::Output;
use super::{Delivery, Participant, Role};
use crate::exchange::lines::Part;
use crate::exchange::messages::{Content, Frame, Totals};
use crate::model::id::Instance;
use crate::model::line::{GapCause, LineBatch, SourceGap};
use crate::model::position::Position;
use crate::platform::ReadFrom;

/// The outcome of the next frame.
enum Applied {
    /// It was delivered, or has nothing to deliver.
    Done,
    /// The actor has to open its run first.
    Waits,
    /// It does not continue what was delivered.
    Mismatch,
}

// === impl Participant: the data path of a member ===

impl Participant {
    /// Delivers what can be delivered, and asks for what is missing.
    pub(super) fn advance(&mut self, now: Duration) {
        while let Role::Member(following) = &mut self.role {
            let progressed = match following.next {
                Some(next) => match following.kept.take(next) {
                    Some(frame) => self.apply_next(frame),
                    None => self.reach_head(),
                },
                None => self.try_attach(),
            };
            if !progressed {
                return self.request_missing(now);
            }
        }
    }

    /// Applies the next frame. Returns whether there may be more to do.
    pub(super) fn apply_next(&mut self, frame: Frame) -> bool {
        let number = frame.number;
        match self.apply(&frame) {
            Applied::Done => {
                if let Role::Member(following) = &mut self.role {
                    following.next = Some(number + 1);
                }
                true
            }
            Applied::Waits => {
                if let Role::Member(following) = &mut self.role {
                    following.kept.insert(frame);
                }
                false
            }
            Applied::Mismatch => {
                self.detach();
                if let Role::Member(following) = &mut self.role {
                    // The publisher contradicts itself. Neither the frame nor this place may be used again, or
                    // they would be for ever.
                    following.head = None;
                }
                true
            }
        }
    }

    /// Delivers a frame that follows all delivered ones by number.
    fn apply(&mut self, frame: &Frame) -> Applied {
        let Role::Member(following) = &self.role else { return Applied::Waits };
        let rank = following.rank;
        let Some(instance) = frame.instance() else { return Applied::Done };
        if self.is_earlier(instance) {
            return Applied::Done;
        }
        let Some(run) = &mut self.run else { return Applied::Waits };
        if run.instance != *instance {
            if run.seen_from == Some(rank) {
                // The publisher begins another run only after it has read this one to its end.
                self.end_run();
                return Applied::Waits;
            }
            return Applied::Mismatch;
        }
        let at = run.at.unwrap_or(Position::START);
        let item = match &frame.content {
            Content::Lines { lines, .. } => match lines.part_after(at) {
                Part::Rest(rest) => run.lines(rest),
                Part::Nothing => None,
                Part::Hole | Part::Unknown => return Applied::Mismatch,
            },
            Content::Gap { start, gap, .. } => {
                if *start > at {
                    return Applied::Mismatch;
                }
                if gap.after < at { None } else { run.gap(*gap) }
            }
            Content::Event => None,
        };
        (run.seen_from, run.account) = (Some(rank), Some((rank, frame.totals_after())));
        self.deliver(item);
        Applied::Done
    }

    /// Ends the actor's log if the publisher has read it to its end. Always returns `false`: there is no
    /// next frame.
    pub(super) fn reach_head(&mut self) -> bool {
        let Role::Member(following) = &self.role else { return false };
        let Some(head) = &following.head else { return false };
        let is_here = following.next == Some(head.end.number) && head.source.complete;
        let place = self.run.as_ref().and_then(Delivery::place);
        if is_here && place.is_some() && place == head.end.place {
            self.end_run();
        }
        false
    }

    /// Positions no longer agree with the publisher's frames.
    pub(super) fn detach(&mut self) {
        if let Role::Member(following) = &mut self.role
            && let Some(next) = following.next.take()
            && following.head.as_ref().is_some_and(|head| head.end.number <= next)
        {
            // The frames from there on cannot be had: attaching there again would only ask for them again.
            following.head = None;
        }
        self.cover();
    }

    /// Attaches the publisher's frames if positions meet. Returns whether they are attached now.
    pub(super) fn try_attach(&mut self) -> bool {
        let Role::Member(following) = &mut self.role else { return false };
        let Some(run) = &self.run else { return false };
        let Some(at) = run.at else { return self.start_at_head() };
        if !run.is_comparable() {
            return false;
        }
        while following.kept.iter().next().is_some_and(|frame| is_before(frame, &run.instance, at)) {
            following.kept.pop_first();
        }
        let mut met = None;
        for frame in following.kept.iter() {
            let Content::Lines { instance, lines } = &frame.content else { continue };
            if *instance != run.instance || lines.ambiguous {
                continue;
            }
            match lines.part_after(at) {
                // A gap directly before it may have been reported, or not.
                Part::Rest(_) if at == lines.start() && lines.after_gap => {}
                Part::Rest(rest) => met = Some((frame.number, frame.totals_after(), Some(rest))),
                Part::Nothing if at == lines.end() => {
                    met = Some((frame.number, frame.totals_after(), None));
                }
                Part::Nothing | Part::Hole | Part::Unknown => {}
            }
            if met.is_some() {
                break;
            }
        }
        if let Some((number, totals, rest)) = met {
            self.attach(number + 1);
            self.deliver_attached(rest, totals);
            return true;
        }
        let Some(head) = following.head.as_ref() else { return false };
        let is_clear = !head.end.after_gap && !head.end.ambiguous;
        if is_clear && head.end.place == run.place() {
            let (number, totals) = (head.end.number, head.end.totals);
            self.attach(number);
            self.deliver_attached(None, totals);
            return true;
        }
        false
    }

    pub(super) fn deliver_attached(&mut self, rest: Option<LineBatch>, totals: Totals) {
        let Role::Member(following) = &self.role else { return };
        let rank = following.rank;
        if let Some(run) = &mut self.run {
            let item = rest.and_then(|rest| run.lines(rest));
            (run.seen_from, run.account) = (Some(rank), Some((rank, totals)));
            self.deliver(item);
        }
    }

    /// Frames from `next` on follow what was delivered. Closes the tail.
    pub(super) fn attach(&mut self, next: u64) {
        let Role::Member(following) = &mut self.role else { return };
        following.next = Some(next);
        following.kept.drop_before(next);
        (following.refused, following.unanswered_fetches) = (None, 0);
        let source = following.head.as_ref().map(|head| head.source);
        if let Some(run) = &mut self.run {
            run.switch_reader();
        }
        // A gap that is held is not one: the publisher has the lines.
        self.tail.covering = false;
        self.close_tail();
        if let Some(source) = source {
            self.show(source);
        }
    }

    /// Starts at the end of the publisher's ring, if it reads the actor's run.
    pub(super) fn start_at_head(&mut self) -> bool {
        let Role::Member(following) = &self.role else { return false };
        let Some(run) = &mut self.run else { return false };
        if self.tail.covering {
            return false;
        }
        if !matches!(run.from, ReadFrom::Last(0)) {
            // Only the source can find the position.
            self.cover();
            return false;
        }
        let Some(head) = following.head.clone() else { return false };
        let Some(place) = head.end.place else { return false };
        if place.instance != run.instance {
            self.cover();
            return false;
        }
        run.start_at(place.position, head.end.ambiguous);
        (run.seen_from, run.account) = (Some(head.rank), Some((head.rank, head.end.totals)));
        // A backfill must not join the actor's ring here without the gap.
        let after = place.position;
        let gap = SourceGap { cause: GapCause::Source, lines: 0, bytes: 0, exact: false, after };
        let gap = if head.end.after_gap { run.gap(gap) } else { None };
        self.out.push(Output::Opened { start: place.position, unfinished: head.end.unfinished });
        self.deliver(gap);
        self.attach(head.end.number);
        true
    }
}

/// Whether a frame has nothing after `at`, nor ends there.
fn is_before(frame: &Frame, run: &Instance, at: Position) -> bool {
    match &frame.content {
        Content::Lines { instance, lines } => instance == run && lines.end() < at,
        Content::Gap { instance, gap, .. } => instance == run && gap.after < at,
        Content::Event => true,
    }
}
