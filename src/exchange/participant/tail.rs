//! The tail of a participant: this gateway's own read of the log.

use std::time::Duration;

use super::io::{Output, TailEvent};
use super::publisher::SOURCE_FAILS_FOR;
use super::{Participant, Role};
use crate::exchange::messages::SourceState;
use crate::model::line::SourceGap;
use crate::platform::TailItem;

/// A tail that was opened for a member and failed is opened again after this time, doubled for each failure.
const TAIL_RETRY: Duration = Duration::from_millis(100);

/// Maximum of that time.
const TAIL_RETRY_MAX: Duration = Duration::from_secs(5);

/// The own read of the log.
#[derive(Debug, Default)]
pub(super) struct Tail {
    pub(super) generation: u64,
    pub(super) is_open: bool,
    /// Since when the source delivers it; `None` while it is being opened.
    pub(super) opened_at: Option<Duration>,
    /// Whether it is needed for the run: this gateway publishes, or no publisher's frames are attached.
    pub(super) covering: bool,
    /// When it is opened again, after a failure; only of a member.
    pub(super) retry_at: Option<Duration>,
    pub(super) failures: u32,
    /// A gap of unknown size that is not delivered yet: the publisher may know its size.
    pub(super) held_gap: Option<SourceGap>,
}

// === impl Participant: the tail ===

impl Participant {
    /// Tails the log from here on, until a publisher's frames can be attached.
    pub(super) fn cover(&mut self) {
        self.tail.covering = true;
        if !self.tail.is_open && self.tail.retry_at.is_none() {
            self.open_tail();
        }
    }

    pub(super) fn open_tail(&mut self) {
        let Some(run) = &mut self.run else { return };
        run.switch_reader();
        let (instance, from) = (run.instance.clone(), run.next_from());
        self.tail.generation += 1;
        (self.tail.is_open, self.tail.opened_at) = (true, None);
        (self.tail.retry_at, self.tail.held_gap) = (None, None);
        let is_publisher = matches!(self.role, Role::Publisher(_));
        let generation = self.tail.generation;
        self.out.push(Output::OpenTail { generation, instance, from, is_publisher });
    }

    pub(super) fn close_tail(&mut self) {
        if std::mem::take(&mut self.tail.is_open) {
            self.out.push(Output::CloseTail);
        }
        let Tail { generation, covering, .. } = self.tail;
        self.tail = Tail { generation, covering, ..Tail::default() };
        self.source = SourceState::default();
    }

    pub(super) fn tail_event(&mut self, event: TailEvent, now: Duration) {
        match event {
            TailEvent::Opened { start, unfinished } => {
                self.tail.opened_at = Some(now);
                if let Some(run) = &mut self.run
                    && run.at.is_none()
                {
                    run.at = Some(start);
                    self.out.push(Output::Opened { start, unfinished });
                }
                self.source_opened(now);
            }
            TailEvent::Item(item) => self.tail_item(item, now),
            TailEvent::TurnEnded => self.end_turn(),
            TailEvent::Ended => {
                self.release_gap();
                self.tail.is_open = false;
                self.end_run();
                self.check_complete(now);
            }
            TailEvent::Failed { is_retryable } => self.tail_failed(is_retryable, now),
        }
    }

    /// Whether the publisher reads a later run, and none of its frames are attached.
    fn is_left_behind(&self) -> bool {
        let Role::Member(following) = &self.role else { return false };
        let place = following.head.as_ref().and_then(|head| head.end.place.as_ref());
        following.next.is_none()
            && self.run.as_ref().zip(place).is_some_and(|(run, place)| {
                place.instance != run.instance && !self.is_earlier(&place.instance)
            })
    }

    /// Lets others have the permit of this tail, and waits for another one.
    ///
    /// Only a member: its tail may stay open without end, if the log is quiet and its last position cannot be
    /// compared. Without the bus, all that wait get their lines when it is back.
    fn end_turn(&mut self) {
        if let Role::Member(_) = self.role
            && self.tail.covering
            && self.tail.is_open
        {
            self.release_gap();
            self.close_tail();
            self.open_tail();
        }
    }

    pub(super) fn tail_item(&mut self, item: TailItem, now: Duration) {
        match item {
            TailItem::Lines(batch) => {
                if self.tail.held_gap.is_some() && self.know_lost_lines(&batch) {
                    return;
                }
                self.release_gap();
                (self.failing_since, self.tail.failures) = (None, 0);
                let item = self.run.as_mut().and_then(|run| run.lines(batch));
                self.deliver(item);
            }
            TailItem::Gap(gap) if self.may_know_size(&gap) => self.tail.held_gap = Some(gap),
            TailItem::Gap(gap) => {
                self.release_gap();
                let item = self.run.as_mut().and_then(|run| run.gap(gap));
                self.deliver(item);
            }
            TailItem::FollowUnavailable => {
                self.source.polled = true;
                self.show(self.source);
                self.source_changed(now);
            }
            TailItem::Interrupted(since) => {
                self.source.interrupted_since = Some(since);
                self.show(self.source);
                self.source_changed(now);
            }
            TailItem::Resumed => {
                self.source.interrupted_since = None;
                self.show(self.source);
                self.source_changed(now);
            }
        }
    }

    /// Reports the state of the source of the actor's lines.
    pub(super) fn show(&mut self, source: SourceState) {
        if source.polled && !std::mem::replace(&mut self.shown.polled, true) {
            self.deliver(Some(TailItem::FollowUnavailable));
        }
        let shown = std::mem::replace(&mut self.shown.interrupted_since, source.interrupted_since);
        match (shown, source.interrupted_since) {
            (before, Some(since)) if before != Some(since) => {
                self.deliver(Some(TailItem::Interrupted(since)));
            }
            (Some(_), None) => self.deliver(Some(TailItem::Resumed)),
            _ => {}
        }
    }

    /// Delivers a gap that was held, as the source has reported it.
    pub(super) fn release_gap(&mut self) {
        if let Some(gap) = self.tail.held_gap.take() {
            let item = self.run.as_mut().and_then(|run| run.gap(gap));
            self.deliver(item);
        }
    }

    pub(super) fn tail_failed(&mut self, is_retryable: bool, now: Duration) {
        self.tail.is_open = false;
        // A quiet log has no lines that would show that the source was read meanwhile.
        if self.tail.opened_at.take().is_some_and(|at| now >= at + SOURCE_FAILS_FOR) {
            (self.failing_since, self.tail.failures) = (None, 0);
        }
        self.failing_since.get_or_insert(now);
        if let Role::Member(_) = self.role {
            // The actor need not know: frames may come meanwhile.
            self.tail.failures += 1;
            let doubled = TAIL_RETRY * 2_u32.pow(self.tail.failures.min(7) - 1);
            self.tail.retry_at = Some(now + doubled.min(TAIL_RETRY_MAX));
            if is_retryable {
                return;
            }
            self.source_has_nothing();
            if !self.is_left_behind() {
                return;
            }
            // The log is gone, and no frame of its run will come. The actor goes on with the next run; until
            // then there is none to open again.
            self.release_gap();
            self.out.push(Output::FailTail);
            (self.tail.retry_at, self.tail.covering, self.run) = (None, false, None);
            return;
        }
        self.release_gap();
        self.out.push(Output::FailTail);
        self.source_unopened();
        self.yield_failing_source(now);
    }
}
