//! Finding a publisher, or becoming one; and tailing directly while the bus does not help.

use std::time::Duration;

use super::notes::Note;
use super::publisher::Publishing;
use super::{Delivery, Output, Participant, RequestId, Role, Subject};
use crate::exchange::gateway_id::GatewayId;
use crate::exchange::messages::{Head, Message};
use crate::exchange::rank::{Claim, Rank};
use crate::model::metrics::FleetElection;

/// Time for an answer on a bus that works: a round trip takes less than a millisecond.
pub const ANSWER_MAX: Duration = Duration::from_millis(300);

/// Time in which other claims arrive.
const SETTLE: Duration = Duration::from_millis(100);

/// Time after a better claim in which its sender announces itself.
const HOLD_BACK: Duration = Duration::from_millis(200);

/// Failed attempts to find or become a publisher in a row, after which the bus is left alone for a while.
const ATTEMPTS_MAX: u32 = 5;

/// Time for which a gateway that could not find a publisher tails directly.
const DIRECT_FOR: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(2));

/// Delay of the return to a bus that can be used again: spread, so that a bus that has just started is not
/// flooded, and short, so that the source is relieved within two seconds.
const RETURN_AFTER: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(800));

/// Members of one replica that may tail it directly at once while the bus is away. The others wait: a source
/// must not get the tails of a whole fleet.
const DIRECT_MEMBERS: u32 = 16;

/// A claim of this gateway.
#[derive(Debug)]
pub(super) struct Claiming {
    claim: Claim,
    settle_at: Duration,
    silent_at: Duration,
    /// It was received back from the bus.
    echoed: bool,
    /// A better one was heard.
    beaten: bool,
}

/// Tailing for itself.
#[derive(Debug)]
pub(super) struct Direct {
    /// When it returns to the bus; `None`: when the bus can be used again.
    pub(super) retry_at: Option<Duration>,
    /// It does not tail: enough others do.
    pub(super) is_waiting: bool,
    /// Frames do not reach this gateway, or the publisher has refused it, so an announcement is no reason to
    /// return.
    pub(super) keeps_away: bool,
}

// === impl Claiming ===

impl Claiming {
    pub(super) fn rank(&self) -> Rank {
        self.claim.rank
    }

    pub(super) fn deadline(&self) -> Duration {
        if self.echoed { self.settle_at } else { self.silent_at }
    }
}

// === impl Participant: election ===

impl Participant {
    /// Starts with the first log that the actor opens.
    pub(super) fn start(&mut self, now: Duration) {
        self.out.push(Output::Subscribe(Subject::Claims, true));
        if self.usable {
            self.return_to_bus(now);
        } else {
            self.go_direct(None);
        }
    }

    /// Subscribes anew, which also repairs a subscription that the bus has forgotten, and looks for a
    /// publisher.
    pub(super) fn return_to_bus(&mut self, now: Duration) {
        self.out.push(Output::Subscribe(Subject::Claims, true));
        self.hears_frames = false;
        self.hear_frames(true);
        self.find(now);
    }

    /// Asks for a publisher.
    pub(super) fn find(&mut self, now: Duration) {
        if self.config.is_source {
            return self.rest();
        }
        let request = self.new_request();
        self.role = Role::Finding { request, deadline: now + ANSWER_MAX };
        self.out.push(Output::Request(request, Message::Join));
    }

    /// No publisher has answered: the one with rank `dead`, if this gateway followed it, no longer publishes.
    pub(super) fn no_publisher(&mut self, dead: Option<Rank>, now: Duration) {
        self.dead = self.dead.max(dead);
        if self.draining || now < self.no_claim_until {
            let delay = self.jitter.between(DIRECT_FOR.0, DIRECT_FOR.1);
            self.go_direct(Some(now + delay));
        } else if self.asks_node() && !matches!(self.role, Role::Asking { .. }) {
            let request = self.new_request();
            self.role = Role::Asking { request, deadline: now + ANSWER_MAX };
            self.ask_node(request);
        } else {
            self.claim(now);
        }
    }

    /// The publisher with this rank no longer answers. Claims at once: if it was the gateway on the replica's
    /// node, to ask that one would only take time. The next publisher asks it soon.
    pub(super) fn publisher_died(&mut self, rank: Rank, now: Duration) {
        if self.draining || now < self.no_claim_until {
            return self.no_publisher(Some(rank), now);
        }
        self.dead = self.dead.max(Some(rank));
        self.ask_node_soon = true;
        self.claim(now);
    }

    /// Whether another gateway is on the replica's node, as far as is known.
    pub(super) fn asks_node(&self) -> bool {
        self.config.asks_node && !self.config.is_home
    }

    pub(super) fn ask_node(&mut self, request: RequestId) {
        let place = self.run.as_ref().and_then(Delivery::place);
        self.out.push(Output::AskNode { request, place, term: self.term });
    }

    pub(super) fn claim(&mut self, now: Duration) {
        let rank = Rank { term: self.term + 1, weight: self.config.weight };
        let place = self.run.as_ref().and_then(Delivery::place);
        let claim = Claim { rank, home: self.config.is_home, place };
        // Holding back counts, too: claims that come without end must not keep this gateway from its lines.
        self.attempts += 1;
        if self.attempts > ATTEMPTS_MAX {
            self.attempts = 0;
            let delay = self.jitter.between(DIRECT_FOR.0, DIRECT_FOR.1);
            self.go_direct(Some(now + delay));
            return;
        }
        // It may have won already, and its term is known now, so that this claim would always beat it.
        if let Some((_, at)) = &self.heard_claim
            && !self.config.is_source
            && now < *at + HOLD_BACK
        {
            self.role = Role::HoldingBack { until: *at + HOLD_BACK };
            return;
        }
        self.term = rank.term;
        self.out.push(Output::Publish(Subject::Claims, Message::Claim(claim.clone())));
        let settle_at = now + SETTLE;
        let silent_at = settle_at + ANSWER_MAX;
        self.role = Role::Claiming(Claiming { claim, settle_at, silent_at, echoed: false, beaten: false });
    }

    pub(super) fn claim_due(&mut self, now: Duration) {
        let Role::Claiming(claiming) = &self.role else { return };
        if now < claiming.settle_at {
            return;
        }
        if claiming.beaten && self.config.is_source {
            self.rest();
        } else if claiming.beaten {
            let heard_at = self.heard_claim.as_ref().map_or(now, |(_, at)| *at);
            self.role = Role::HoldingBack { until: heard_at + HOLD_BACK };
        } else if claiming.echoed {
            let rank = claiming.claim.rank;
            self.become_publisher(rank, now);
        } else if now >= claiming.silent_at {
            let delay = self.jitter.between(DIRECT_FOR.0, DIRECT_FOR.1);
            self.go_direct(Some(now + delay));
        }
    }

    pub(super) fn heard_claim(&mut self, sender: GatewayId, claim: Claim, now: Duration) {
        self.term = self.term.max(claim.rank.term);
        if sender == self.config.gateway {
            if let Role::Claiming(claiming) = &mut self.role
                && claiming.claim == claim
            {
                claiming.echoed = true;
            }
            return;
        }
        match &mut self.role {
            Role::Claiming(claiming) => claiming.beaten |= claim.beats(&claiming.claim),
            Role::Publisher(publishing) => publishing.announce_soon(now),
            _ => {}
        }
        let is_better =
            self.heard_claim.as_ref().is_none_or(|(heard, at)| now >= *at + HOLD_BACK || claim.beats(heard));
        if is_better {
            self.heard_claim = Some((claim, now));
        }
    }

    /// A gateway publishes.
    pub(super) fn announced(&mut self, sender: GatewayId, head: Head, now: Duration) {
        let rank = head.rank;
        self.term = self.term.max(rank.term);
        if self.config.is_source {
            return self.announced_to_source(rank, now);
        }
        match &mut self.role {
            Role::Finding { .. } | Role::Asking { .. } | Role::HoldingBack { .. } | Role::Claiming(_) => {
                if self.dead.is_none_or(|dead| rank > dead) {
                    self.follow(sender, head, now);
                    self.renew(false, now);
                }
            }
            Role::Member(following) if rank > following.rank => {
                self.follow(sender, head, now);
                self.renew(false, now);
            }
            Role::Publisher(publishing) if rank > publishing.rank() => self.yield_to(sender, head, now),
            Role::Publisher(publishing) if rank < publishing.rank() => publishing.announce_soon(now),
            Role::Direct(direct) => {
                if self.usable && !direct.keeps_away && self.dead.is_none_or(|dead| rank > dead) {
                    self.follow(sender, head, now);
                    self.renew(false, now);
                }
            }
            Role::Member(_) | Role::Publisher(_) | Role::Idle => {}
        }
    }

    /// Tails directly, if not enough others do so while the bus is away. Returns to the bus at `retry_at`, or
    /// when it can be used again.
    pub(super) fn go_direct(&mut self, retry_at: Option<Duration>) {
        if self.config.is_source {
            return self.rest();
        }
        let is_waiting = retry_at.is_none() && !self.tail.covering && !self.may_tail_directly();
        self.role = Role::Direct(Direct { retry_at, is_waiting, keeps_away: false });
        if !is_waiting {
            self.cover();
        }
    }

    /// Whether this gateway is one of the few that tail while the bus is away: as the weight is random, about
    /// [`DIRECT_MEMBERS`] of all members.
    fn may_tail_directly(&self) -> bool {
        let share = u64::MAX / u64::from(self.members.max(1));
        self.members <= DIRECT_MEMBERS || self.config.weight < share.saturating_mul(u64::from(DIRECT_MEMBERS))
    }

    pub(super) fn set_usable(&mut self, usable: bool, now: Duration) {
        if usable == std::mem::replace(&mut self.usable, usable) {
            return;
        }
        match &mut self.role {
            Role::Idle => {}
            // Its members expire. It announces itself when the bus is back, so that the others need no
            // election.
            Role::Publisher(_) if !usable => {}
            Role::Publisher(publishing) => publishing.announce_soon(now),
            Role::Direct(direct) if usable => {
                let delay = self.jitter.between(RETURN_AFTER.0, RETURN_AFTER.1);
                direct.retry_at.get_or_insert(now + delay);
            }
            Role::Direct(direct) => direct.retry_at = None,
            _ if !usable => self.go_direct(None),
            _ => {}
        }
    }

    pub(super) fn drain(&mut self, now: Duration) {
        self.draining = true;
        match &self.role {
            Role::Publisher(_) => {
                self.stop_publishing(None);
                self.find(now);
            }
            Role::Asking { .. } | Role::HoldingBack { .. } | Role::Claiming(_) => self.find(now),
            Role::Idle | Role::Finding { .. } | Role::Member(_) | Role::Direct(_) => {}
        }
    }

    pub(super) fn stop(&mut self) {
        self.refuse_asks();
        match &self.role {
            Role::Publisher(_) => self.stop_publishing(None),
            Role::Member(_) => self.out.push(Output::Publish(Subject::Requests, Message::Leave)),
            _ => {}
        }
        if !matches!(self.role, Role::Idle) || self.config.is_source {
            self.hear_frames(false);
            self.out.push(Output::Subscribe(Subject::Claims, false));
        }
        self.role = Role::Idle;
        (self.run, self.failing_since) = (None, None);
        self.finished.clear();
        self.tail.covering = false;
        self.close_tail();
    }

    /// Becomes the publisher: its claim was the best.
    pub(super) fn become_publisher(&mut self, rank: Rank, now: Duration) {
        self.attempts = 0;
        let cause = std::mem::replace(&mut self.cause, FleetElection::Start);
        self.note(Note::Elected(cause));
        let expects_members = self.dead.is_some() || self.heard_claim.is_some() || self.config.is_source;
        let asks_soon = std::mem::take(&mut self.ask_node_soon);
        self.hear_frames(false);
        self.out.push(Output::Subscribe(Subject::Requests, true));
        self.role = Role::Publisher(Box::new(Publishing::new(rank, expects_members, asks_soon, now)));
        self.out.push(Output::ReadRing(true));
        if expects_members {
            self.out.push(Output::KeepActor(true));
        }
        self.cover();
    }
}
