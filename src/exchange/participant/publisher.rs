//! Publishing: frames from the ring's entries, members, announcements, and when to stop.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Output, Participant, ReplyId, RequestId, RingEvent, Role, Subject};
use crate::exchange::gateway_id::GatewayId;
use crate::exchange::messages::{Content, Frame, Head, Message, RingEnd};
use crate::exchange::rank::Rank;

/// A member that was not heard for this time is forgotten: it renews its membership three times as often.
const MEMBER_EXPIRY: Duration = Duration::from_secs(15);

/// Time for which a publisher that has followed another one, or has heard claims, sends frames although no
/// member has joined it yet: the others follow it from its first frame on. They join within milliseconds, or
/// with its second or third announcement.
const MEMBERS_WAIT: Duration = Duration::from_secs(1);

/// Time after the newest frame in which a [`Message::Sync`] follows, so that a loss of the last frames shows.
const SYNC_AFTER: Duration = Duration::from_millis(300);

/// Interval of announcements. Two publishers that do not know of each other hear of the other's gateway first
/// (`Appeared`); only if the bus has forgotten a subscription do they depend on this. With 10,000 replicas of
/// eight followers each, it makes 2,700 deliveries per second.
const ANNOUNCE_EVERY: Duration = Duration::from_secs(30);

/// Intervals of the first announcements of a new publisher: one may be lost.
const FIRST_ANNOUNCEMENTS: [Duration; 3] =
    [Duration::from_millis(250), Duration::from_millis(750), Duration::from_secs(2)];

/// Announcements are not sent more often: others ask for them.
const ANNOUNCE_PAUSE: Duration = Duration::from_millis(100);

/// Time over which the publishers of all replicas spread their announcements when a gateway appears. Also the
/// pause between such announcements: a fleet may start at once.
const APPEARED_SPREAD: Duration = Duration::from_millis(500);

/// A publisher with members whose source fails for this time stops: another gateway may reach the source. A
/// tail that was open for as long ends a row of failures.
pub(super) const SOURCE_FAILS_FOR: Duration = Duration::from_secs(5);

/// Time for which it then does not claim.
const NO_CLAIM_FOR: Duration = Duration::from_secs(60);

/// Interval at which a publisher asks the gateway on the replica's node to take over.
const ASK_NODE_EVERY: Duration = Duration::from_secs(30);

/// Interval of the first requests about a run in another pod, and after a refusal: the other gateway may learn of the
/// run later.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Requests at that interval.
const ASKS_AGAIN: u32 = 3;

/// The state of a publisher.
#[derive(Debug)]
pub(super) struct Publishing {
    rank: Rank,
    /// The end of the part of the ring that was published; `None` until the ring is read.
    end: Option<RingEnd>,
    /// Gaps there after the newest line, at least.
    trailing_gaps: u32,
    /// When each member was heard last.
    members: BTreeMap<GatewayId, Duration>,
    /// Until then members are expected, so that it counts as having some.
    expects_until: Option<Duration>,
    sync_at: Option<Duration>,
    announce_at: Duration,
    announced_at: Option<Duration>,
    /// Announcements so far.
    announced: usize,
    ask_node_at: Duration,
    /// Further requests that follow soon.
    asks_again: u32,
    asked_node: Option<RequestId>,
    was_complete: bool,
}

// === impl Publishing ===

impl Publishing {
    /// Creates the state of a new publisher. `expects_members`: others follow the replica. `asks_soon`: the
    /// gateway on the replica's node was not asked, or has refused.
    pub(super) fn new(rank: Rank, expects_members: bool, asks_soon: bool, now: Duration) -> Self {
        Self {
            rank,
            end: None,
            trailing_gaps: 0,
            members: BTreeMap::new(),
            expects_until: expects_members.then(|| now + MEMBERS_WAIT),
            sync_at: None,
            announce_at: Duration::ZERO,
            announced_at: None,
            announced: 0,
            ask_node_at: if asks_soon { now } else { now + ASK_NODE_EVERY },
            asks_again: if asks_soon { ASKS_AGAIN } else { 0 },
            asked_node: None,
            was_complete: false,
        }
    }

    pub(super) fn rank(&self) -> Rank {
        self.rank
    }

    /// Returns the number of the next frame, once the ring is read.
    pub(super) fn next_number(&self) -> Option<u64> {
        self.end.as_ref().map(|end| end.number)
    }

    pub(super) fn member_count(&self) -> u32 {
        u32::try_from(self.members.len()).unwrap_or(u32::MAX)
    }

    pub(super) fn deadline(&self, asks_node: bool) -> Option<Duration> {
        let expiry = self.members.values().min().map(|heard| *heard + MEMBER_EXPIRY);
        // Before the ring is read there is nothing to announce.
        let announce = self.end.is_some().then_some(self.announce_at);
        let ask = (asks_node && self.end.is_some()).then_some(self.ask_node_at);
        [expiry, announce, ask, self.sync_at, self.expects_until].into_iter().flatten().min()
    }

    /// Asks the gateway on the replica's node at once: that may be another node.
    pub(super) fn ask_node_now(&mut self, now: Duration) {
        (self.ask_node_at, self.asks_again) = (now, ASKS_AGAIN);
    }

    /// Announces itself: another gateway seems not to know of it.
    pub(super) fn announce_soon(&mut self, now: Duration) {
        let earliest = self.announced_at.map_or(now, |at| (at + ANNOUNCE_PAUSE).max(now));
        self.announce_twice(earliest);
    }

    /// Announces itself then, and once more later: one announcement may be lost.
    fn announce_twice(&mut self, at: Duration) {
        self.announce_at = self.announce_at.min(at);
        self.announced = self.announced.min(FIRST_ANNOUNCEMENTS.len() - 1);
    }

    /// Whether a log was opened.
    pub(super) fn has_place(&self) -> bool {
        self.end.as_ref().is_some_and(|end| end.place.is_some())
    }

    /// Whether it has members, or expects some.
    pub(super) fn has_members(&self) -> bool {
        !self.members.is_empty() || self.expects_until.is_some()
    }

    /// Adds a member, or notes that it was heard. Returns whether it had none before.
    pub(super) fn add_member(&mut self, member: GatewayId, now: Duration) -> bool {
        let is_first = !self.has_members();
        self.members.insert(member, now);
        is_first
    }
}

// === impl Participant: publishing ===

impl Participant {
    /// Returns the newest place, if this gateway publishes.
    pub(super) fn head(&self) -> Option<Head> {
        let Role::Publisher(publishing) = &self.role else { return None };
        let end = publishing.end.clone().unwrap_or_default();
        let mut source = self.source;
        // A gap does not move the place, and members that hear of the end no longer wait for it.
        source.complete = self.tail_end.as_ref().is_some_and(|(place, gaps)| {
            end.place.as_ref() == Some(place) && publishing.trailing_gaps >= *gaps
        });
        Some(Head { rank: publishing.rank, end, source, members: publishing.member_count() })
    }

    pub(super) fn ring_event(&mut self, event: RingEvent, now: Duration) {
        let Role::Publisher(publishing) = &mut self.role else { return };
        let rank = publishing.rank;
        match event {
            RingEvent::At(end) => {
                // Their number is not known.
                publishing.trailing_gaps = if end.after_gap { u32::MAX } else { 0 };
                if publishing.end.replace(end).is_none() {
                    publishing.announce_at = now;
                } else if publishing.has_members() {
                    // The reader has lagged. Members see that numbers are missing.
                    publishing.sync_at = Some(now + SYNC_AFTER);
                }
            }
            RingEvent::Entry { totals, content, end } => {
                let number = end.number.saturating_sub(1);
                publishing.trailing_gaps = match &content {
                    Content::Lines { .. } => 0,
                    Content::Gap { .. } => publishing.trailing_gaps.saturating_add(1),
                    Content::Event => publishing.trailing_gaps,
                };
                publishing.end = Some(end);
                if publishing.has_members() {
                    publishing.sync_at = Some(now + SYNC_AFTER);
                    let has_lines = !matches!(content, Content::Event);
                    let frame = Frame { rank, number, totals, content };
                    self.out.push(Output::Publish(Subject::Frames, Message::Frame(frame)));
                    if has_lines {
                        self.note_frame(rank, now);
                    }
                }
            }
        }
        self.answer_asks(now);
        self.check_complete(now);
    }

    /// Sends a sync at once when the log has ended and all its lines are published.
    pub(super) fn check_complete(&mut self, now: Duration) {
        let Some(head) = self.head() else { return };
        let Role::Publisher(publishing) = &mut self.role else { return };
        let was_complete = std::mem::replace(&mut publishing.was_complete, head.source.complete);
        if head.source.complete && !was_complete {
            self.source_changed(now);
        }
    }

    /// Sends members the new state of the source, and once more later, since it may be lost.
    pub(super) fn source_changed(&mut self, now: Duration) {
        let Some(head) = self.head() else { return };
        if let Role::Publisher(publishing) = &mut self.role
            && publishing.has_members()
        {
            publishing.sync_at = Some(now + SYNC_AFTER);
            self.out.push(Output::Publish(Subject::Frames, Message::Sync(head)));
        }
    }

    pub(super) fn asked(&mut self, sender: GatewayId, message: &Message, reply: ReplyId, now: Duration) {
        let Role::Publisher(publishing) = &mut self.role else { return };
        let fetch = match message {
            Message::Join => None,
            // Another publisher's members ask all that listen.
            Message::Fetch(fetch) if fetch.rank == publishing.rank => Some(fetch.clone()),
            _ => return,
        };
        if sender == self.config.gateway {
            return;
        }
        let is_full = publishing.members.len() >= self.config.members_max;
        if is_full && !publishing.members.contains_key(&sender) {
            return self.out.push(Output::Reply(reply, Message::Refused));
        }
        // A fetch may come from a member that has expired.
        if publishing.add_member(sender, now) {
            self.out.push(Output::KeepActor(true));
        }
        if let Some(fetch) = fetch {
            self.out.push(Output::ServeFetch(reply, fetch));
        } else if let Some(head) = self.head() {
            self.out.push(Output::Reply(reply, Message::Joined(head)));
        }
    }

    pub(super) fn left(&mut self, member: GatewayId) {
        if let Role::Publisher(publishing) = &mut self.role
            && publishing.members.remove(&member).is_some()
            && !publishing.has_members()
        {
            publishing.sync_at = None;
            self.out.push(Output::KeepActor(false));
        }
    }

    pub(super) fn appeared(&mut self, now: Duration) {
        let delay = self.jitter.between(Duration::ZERO, APPEARED_SPREAD);
        if let Role::Publisher(publishing) = &mut self.role {
            let earliest = publishing.announced_at.map_or(now, |at| at + APPEARED_SPREAD);
            publishing.announce_twice(earliest.max(now + delay));
        }
    }

    pub(super) fn publisher_due(&mut self, now: Duration) {
        let Some(head) = self.head() else { return };
        let Role::Publisher(publishing) = &mut self.role else { return };
        let is_expired = |heard: &Duration| *heard + MEMBER_EXPIRY <= now;
        let had_members = publishing.has_members();
        publishing.members.retain(|_, heard| !is_expired(heard));
        publishing.expects_until.take_if(|until| *until <= now);
        if had_members && !publishing.has_members() {
            publishing.sync_at = None;
            self.out.push(Output::KeepActor(false));
        }
        if publishing.sync_at.is_some_and(|at| at <= now) {
            publishing.sync_at = None;
            self.out.push(Output::Publish(Subject::Frames, Message::Sync(head.clone())));
        }
        if publishing.end.is_some() && publishing.announce_at <= now {
            let next = FIRST_ANNOUNCEMENTS.get(publishing.announced).copied().unwrap_or(ANNOUNCE_EVERY);
            publishing.announced += 1;
            (publishing.announced_at, publishing.announce_at) = (Some(now), now + next);
            let message = Message::Announcement { head, home: self.config.is_home };
            self.out.push(Output::Publish(Subject::Claims, message));
        }
        self.ask_node_if_due(now);
    }

    /// Asks the gateway on the replica's node to take over.
    fn ask_node_if_due(&mut self, now: Duration) {
        let (asks_node, request) = (self.asks_node(), self.next_request + 1);
        if let Role::Publisher(publishing) = &mut self.role
            && asks_node
            && publishing.end.is_some()
            && publishing.ask_node_at <= now
        {
            let next = if publishing.asks_again > 0 { ASK_AGAIN_AFTER } else { ASK_NODE_EVERY };
            publishing.asks_again = publishing.asks_again.saturating_sub(1);
            (publishing.ask_node_at, publishing.asked_node) = (now + next, Some(request));
            self.next_request = request;
            self.ask_node(request);
        }
    }

    /// Handles the answer of the gateway on the node; `false` if it was not asked.
    pub(super) fn node_answered(
        &mut self,
        request: RequestId,
        sender: GatewayId,
        head: &Head,
        now: Duration,
    ) -> bool {
        let Role::Publisher(publishing) = &self.role else { return false };
        let is_answer = publishing.asked_node == Some(request);
        if is_answer && head.rank > publishing.rank {
            self.yield_to(sender, head.clone(), now);
        }
        is_answer
    }

    /// Becomes a member of a better publisher. The tail stays open until its frames are attached.
    pub(super) fn yield_to(&mut self, sender: GatewayId, head: Head, now: Duration) {
        self.stop_publishing(Some(head.rank));
        self.follow(sender, head, now);
        self.renew(false, now);
    }

    /// Stops publishing; the tail stays open. The caller sets the next role.
    pub(super) fn stop_publishing(&mut self, successor: Option<Rank>) {
        let Role::Publisher(publishing) = &self.role else { return };
        let rank = publishing.rank;
        let had_members = publishing.has_members();
        self.out.push(Output::Publish(Subject::Claims, Message::Release { rank, successor }));
        self.out.push(Output::Subscribe(Subject::Requests, false));
        self.out.push(Output::ReadRing(false));
        self.hear_frames(!self.config.is_source);
        if had_members {
            self.out.push(Output::KeepActor(false));
        }
        self.dead = self.dead.max(Some(rank));
        self.role = Role::Idle;
    }

    /// Stops publishing if the source fails for long and another gateway may reach it.
    pub(super) fn yield_failing_source(&mut self, now: Duration) {
        let Role::Publisher(publishing) = &self.role else { return };
        let is_failing = self.failing_since.is_some_and(|since| now >= since + SOURCE_FAILS_FOR);
        if is_failing && !publishing.members.is_empty() {
            self.no_claim_until = now + NO_CLAIM_FOR;
            self.stop_publishing(None);
            self.find(now);
        }
    }
}
