//! Membership: following a publisher, renewals, and what the publisher says about itself.

use std::time::Duration;

use super::election::{ANSWER_MAX, Direct};
use super::following::{Following, Pending, UNANSWERED_MAX};
use super::notes::Note;
use super::{Output, Participant, RequestId, Role, Subject};
use crate::exchange::gateway_id::GatewayId;
use crate::exchange::messages::{Content, Frame, Head, Message, RingEnd, SourceState};
use crate::exchange::rank::Rank;
use crate::model::metrics::{FleetElection, FleetNoticed};

/// Interval at which a member renews its membership. It also finds lost frames that nothing else shows.
const RENEW_EVERY: (Duration, Duration) = (Duration::from_millis(4_500), Duration::from_millis(5_500));

/// An answer may overtake frames, which come by another connection. They follow within this time.
const OVERTAKEN_MAX: Duration = Duration::from_millis(300);

/// Renewals in a row that were ahead of all frames received, after which frames do not reach this gateway.
const DEAF_RENEWALS: u32 = 3;

/// Time after which frames are tried again, doubled each time.
const DEAF_FOR: Duration = Duration::from_secs(30);

/// Maximum of that time.
const DEAF_MAX: Duration = Duration::from_secs(600);

/// Time after which a gateway that a publisher has refused asks again. Members come and go with their
/// followers, which takes minutes.
const REFUSED_FOR: (Duration, Duration) = (Duration::from_secs(25), Duration::from_secs(35));

/// How a publisher's place came.
#[derive(Clone, Copy, PartialEq, Eq)]
enum HeadFrom {
    /// In order with the frames.
    Frames,
    /// By another connection: it may have overtaken frames.
    Claims,
    /// Likewise, as the answer to a renewal.
    Answer,
}

// === impl Participant: membership ===

impl Participant {
    /// Becomes a member. The tail, if it is open, stays open until frames are attached.
    pub(super) fn follow(&mut self, publisher: GatewayId, head: Head, now: Duration) {
        self.attempts = 0;
        self.cause = FleetElection::Start;
        self.hear_frames(true);
        self.members = head.members;
        self.term = self.term.max(head.rank.term);
        let source = head.source;
        self.role = Role::Member(Box::new(Following::new(publisher, head, now)));
        if !self.tail.covering {
            self.show(source);
        }
    }

    /// Asks to be a member, or to stay one.
    pub(super) fn renew(&mut self, is_probe: bool, now: Duration) {
        let request = self.new_request();
        if let Role::Member(following) = &mut self.role {
            following.renewal = Some(Pending { request, deadline: now + ANSWER_MAX, is_probe, next: None });
            self.out.push(Output::Request(request, Message::Join));
        }
    }

    /// The publisher's gateway is silent or shutting down: asks whether it still publishes.
    pub(super) fn silent(&mut self, gateway: GatewayId, now: Duration) {
        if let Role::Member(following) = &mut self.role
            && following.publisher == gateway
            && following.renewal.is_none_or(|renewal| !renewal.is_probe)
        {
            self.renew(true, now);
        }
    }

    pub(super) fn member_due(&mut self, now: Duration) {
        let Role::Member(following) = &mut self.role else { return };
        if following.overtaken_until.is_some_and(|until| until <= now) {
            following.overtaken_until = None;
        }
        if following.fetch.is_some_and(|fetch| fetch.deadline <= now) {
            following.fetch = None;
            following.unanswered_fetches += 1;
        }
        let run_is_late = following.run_until.is_some_and(|until| until <= now);
        if run_is_late {
            following.run_until = None;
        }
        match following.renewal {
            Some(renewal) if renewal.deadline <= now => self.renewal_failed(renewal.is_probe, now),
            None if following.renew_at <= now => self.renew(false, now),
            _ => {}
        }
        if run_is_late {
            self.run_is_late();
        }
    }

    fn renewal_failed(&mut self, is_dead: bool, now: Duration) {
        let Role::Member(following) = &mut self.role else { return };
        following.renewal = None;
        following.unanswered_renewals += 1;
        if is_dead || following.unanswered_renewals >= UNANSWERED_MAX {
            let rank = following.rank;
            self.cause = FleetElection::Dead;
            self.publisher_died(rank, now);
        } else {
            self.renew(false, now);
        }
    }

    /// No frame of the actor's run came in time: the publisher does not know the run yet, or reads another.
    fn run_is_late(&mut self) {
        let Role::Member(following) = &mut self.role else { return };
        let Some(run) = &self.run else { return };
        let place = following.head.as_ref().and_then(|head| head.end.place.as_ref());
        let is_there = place.is_some_and(|place| place.instance == run.instance);
        if run.seen_from != Some(following.rank) && !is_there && !self.tail.covering {
            self.detach();
        }
    }

    /// Handles a message without an answer.
    pub(super) fn received(&mut self, sender: GatewayId, message: Message, now: Duration) {
        if let Message::Claim(claim) = message {
            return self.heard_claim(sender, claim, now);
        }
        if sender == self.config.gateway {
            return;
        }
        match message {
            Message::Frame(frame) => self.received_frame(sender, frame, now),
            Message::Sync(head) => match &self.role {
                Role::Member(following) if following.rank == head.rank => {
                    self.heard_head(sender, head, HeadFrom::Frames, now);
                }
                _ => {}
            },
            Message::Announcement { head, .. } => {
                self.announced(sender, head.clone(), now);
                self.heard_head(sender, head, HeadFrom::Claims, now);
            }
            Message::Release { rank, successor } => self.released(rank, successor, now),
            Message::Leave => self.left(sender),
            _ => {}
        }
    }

    fn released(&mut self, rank: Rank, successor: Option<Rank>, now: Duration) {
        let Role::Member(following) = &self.role else { return };
        if following.rank != rank {
            return;
        }
        self.dead = self.dead.max(Some(rank));
        if successor.is_some() {
            self.cause = FleetElection::Conflict;
            self.find(now);
        } else {
            self.cause = FleetElection::Released;
            self.no_publisher(Some(rank), now);
        }
    }

    fn received_frame(&mut self, sender: GatewayId, frame: Frame, now: Duration) {
        let is_known = matches!(&self.role, Role::Member(following) if frame.rank <= following.rank);
        if !is_known {
            // Counts as an announcement.
            let source =
                SourceState { interrupted_since: self.shown.interrupted_since, ..SourceState::default() };
            let (rank, members) = (frame.rank, self.members);
            self.announced(sender, Head { rank, end: RingEnd::default(), source, members }, now);
        }
        let Role::Member(following) = &mut self.role else { return };
        if frame.rank != following.rank {
            return self.note(Note::Stale);
        }
        if following.next.is_some_and(|next| frame.number < next) {
            return self.note(Note::Duplicate);
        }
        following.received = following.received.max(Some(frame.number));
        if following.kept.contains(frame.number) {
            return self.note(Note::Duplicate);
        }
        let has_lines = !matches!(frame.content, Content::Event);
        following.kept.insert(frame);
        if has_lines {
            let rank = following.rank;
            self.note_frame(rank, now);
        }
    }

    /// Handles an answer. Several publishers may answer: the request stays open after that of a worse one.
    pub(super) fn answered(
        &mut self,
        request: RequestId,
        sender: GatewayId,
        message: Message,
        now: Duration,
    ) {
        match message {
            Message::Joined(head) => {
                self.term = self.term.max(head.rank.term);
                self.joined(request, sender, head, now);
            }
            Message::Refused => {
                // The gateway on the node may not know of the run yet.
                self.ask_node_soon |=
                    matches!(self.role, Role::Asking { request: own, .. } if own == request);
                self.refused(request, now);
            }
            Message::Fetched(fetched) => self.fetched(request, fetched),
            _ => {}
        }
    }

    /// The gateway on the node does not publish, or the publisher has as many members as it may have.
    fn refused(&mut self, request: RequestId, now: Duration) {
        let is_full = match &self.role {
            Role::Finding { request: own, .. } => *own == request,
            Role::Member(following) => following.has_asked(request),
            _ => false,
        };
        if !is_full {
            return self.unanswered(Some(request), now);
        }
        let wait = self.jitter.between(REFUSED_FOR.0, REFUSED_FOR.1);
        self.hear_frames(false);
        self.role = Role::Direct(Direct { retry_at: Some(now + wait), is_waiting: false, keeps_away: true });
        self.cover();
    }

    fn joined(&mut self, request: RequestId, sender: GatewayId, head: Head, now: Duration) {
        match &mut self.role {
            Role::Finding { request: own, .. } | Role::Asking { request: own, .. } if *own == request => {
                self.follow(sender, head, now);
                let delay = self.jitter.between(RENEW_EVERY.0, RENEW_EVERY.1);
                if let Role::Member(following) = &mut self.role {
                    following.renew_at = now + delay;
                }
            }
            Role::Member(following)
                if following.renewal.is_some_and(|renewal| renewal.request == request) =>
            {
                if head.rank < following.rank {
                    return;
                }
                if head.rank > following.rank {
                    self.follow(sender, head.clone(), now);
                }
                let delay = self.jitter.between(RENEW_EVERY.0, RENEW_EVERY.1);
                if let Role::Member(following) = &mut self.role {
                    (following.renewal, following.unanswered_renewals) = (None, 0);
                    following.renew_at = now + delay;
                }
                self.heard_head(sender, head, HeadFrom::Answer, now);
            }
            _ => {
                self.node_answered(request, sender, &head, now);
            }
        }
    }

    /// No gateway has answered a request, or the deadline has passed.
    pub(super) fn unanswered(&mut self, request: Option<RequestId>, now: Duration) {
        match &mut self.role {
            Role::Finding { request: own, .. } | Role::Asking { request: own, .. }
                if request.is_none_or(|request| request == *own) =>
            {
                self.no_publisher(None, now);
            }
            Role::Member(following) if request.is_some_and(|request| following.has_asked(request)) => {
                self.renewal_failed(true, now);
            }
            _ => {}
        }
    }

    /// Learns the publisher's newest place.
    fn heard_head(&mut self, sender: GatewayId, head: Head, from: HeadFrom, now: Duration) {
        let Role::Member(following) = &mut self.role else { return };
        let number = head.end.number;
        let is_older = following.head.as_ref().is_some_and(|known| known.end.number > number);
        if head.rank != following.rank || is_older {
            return;
        }
        following.publisher = sender;
        self.members = head.members;
        let is_ahead = following.next.is_some_and(|next| number > next);
        if from == HeadFrom::Frames {
            following.overtaken_until = None;
        } else if is_ahead {
            following.overtaken_until.get_or_insert(now + OVERTAKEN_MAX);
        }
        if from == HeadFrom::Answer {
            let is_deaf = is_ahead && following.received == following.received_before;
            following.deaf_renewals = if is_deaf { following.deaf_renewals + 1 } else { 0 };
            if following.received != following.received_before {
                self.deaf = 0;
            }
            following.received_before = following.received;
        }
        let (source, is_deaf) = (head.source, following.deaf_renewals >= DEAF_RENEWALS);
        following.head = Some(head);
        following.head_from = match from {
            HeadFrom::Frames | HeadFrom::Claims => FleetNoticed::Sync,
            HeadFrom::Answer => FleetNoticed::Renewal,
        };
        if is_deaf {
            return self.become_deaf(now);
        }
        if !self.tail.covering {
            self.show(source);
        }
    }

    /// Frames do not reach this gateway although the bus works.
    fn become_deaf(&mut self, now: Duration) {
        let wait = (DEAF_FOR * 2_u32.pow(self.deaf.min(5))).min(DEAF_MAX);
        self.deaf += 1;
        self.out.push(Output::Publish(Subject::Requests, Message::Leave));
        self.role = Role::Direct(Direct { retry_at: Some(now + wait), is_waiting: false, keeps_away: true });
        self.cover();
    }
}
