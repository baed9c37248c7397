//! The gateway on a replica's node, which has no followers: it publishes when another gateway asks, while it
//! has members.
//!
//! It opens the log first and claims then, so that it takes over only what it can read. Its claim has a
//! higher term than all that the other gateway knows, so it needs no search for a publisher.

use std::time::Duration;

use super::election::ANSWER_MAX;
use super::{Output, Participant, ReplyId, Role, Subject};
use crate::exchange::gateway_id::GatewayId;
use crate::exchange::messages::Message;
use crate::exchange::rank::Rank;
use crate::model::id::Instance;
use crate::model::position::{Place, Position};
use crate::platform::ReadFrom;

/// Maximum requests without an answer: one of each gateway of a large fleet. Further gateways follow the
/// announcement, or claim, and yield to it.
const ASKS_MAX: usize = 256;

/// Requests to publish, without their answers so far.
#[derive(Debug, Default)]
pub(super) struct Asks {
    open: Vec<Ask>,
    /// Where the first one wants the log to start.
    place: Option<Place>,
}

#[derive(Debug)]
struct Ask {
    sender: GatewayId,
    reply: ReplyId,
    /// The other gateway waits no longer.
    until: Duration,
}

// === impl Asks ===

impl Asks {
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.open.iter().map(|ask| ask.until).min()
    }

    /// Removes the requests of gateways that wait no longer. Returns whether the last one was removed.
    fn expire(&mut self, now: Duration) -> bool {
        let before = self.open.len();
        self.open.retain(|ask| now < ask.until);
        self.open.is_empty() && before > 0
    }

    /// Returns where to read a run that the actor opens `from` there: if at its end, then after the lines
    /// that the other gateway has.
    pub(super) fn start_of(&self, instance: &Instance, from: ReadFrom) -> ReadFrom {
        let Some(place) = self.place.as_ref().filter(|_| from == ReadFrom::Last(0)) else { return from };
        if place.instance == *instance && place.position != Position::START {
            ReadFrom::After(place.position)
        } else if place.instance == *instance || instance.is_later_than(&place.instance) {
            ReadFrom::Start
        } else {
            from
        }
    }
}

// === impl Participant: requests to publish ===

impl Participant {
    /// Another gateway asks this one to publish.
    pub(super) fn publish_requested(
        &mut self,
        sender: GatewayId,
        reply: ReplyId,
        place: Option<Place>,
        term: u64,
        now: Duration,
    ) {
        self.term = self.term.max(term);
        let may_publish =
            self.config.is_source && self.usable && !self.draining && now >= self.no_claim_until;
        if !may_publish || self.asks.open.len() >= ASKS_MAX {
            return self.out.push(Output::Reply(reply, Message::Refused));
        }
        self.asks.open.push(Ask { sender, reply, until: now + ANSWER_MAX });
        match &self.role {
            Role::Publisher(_) => self.answer_asks(now),
            Role::Idle if !self.tail.covering => {
                self.asks.place = place;
                self.out.push(Output::KeepActor(true));
                self.out.push(Output::Subscribe(Subject::Claims, true));
                self.serve_asks();
            }
            // The log is being opened, or the claim is under way.
            _ => {}
        }
    }

    /// Opens the log for requests, if the actor has named one.
    pub(super) fn serve_asks(&mut self) {
        if self.asks.open.is_empty() || self.tail.covering {
            return;
        }
        if let Some(run) = self.run.as_mut().filter(|run| run.at.is_none()) {
            run.from = self.asks.start_of(&run.instance, run.from);
        }
        if self.run.is_some() {
            self.cover();
        }
    }

    /// The log was opened: claims, if that was done for a request.
    pub(super) fn source_opened(&mut self, now: Duration) {
        if !self.config.is_source || !matches!(self.role, Role::Idle) {
            return;
        }
        if self.draining {
            self.rest();
        } else {
            self.claim(now);
        }
    }

    /// The log cannot be opened, so that other gateways do better without this one.
    pub(super) fn source_unopened(&mut self) {
        if self.config.is_source && matches!(self.role, Role::Idle | Role::Claiming(_)) {
            self.rest();
        }
    }

    /// Forgets requests of gateways that wait no longer.
    pub(super) fn expire_asks(&mut self, now: Duration) {
        if self.asks.expire(now) && matches!(self.role, Role::Idle) && !self.tail.covering {
            self.rest();
        }
    }

    /// Accepts the gateways that have asked as members, once it publishes the log.
    pub(super) fn answer_asks(&mut self, now: Duration) {
        let Role::Publisher(publishing) = &mut self.role else { return };
        if !publishing.has_place() {
            return;
        }
        let asks = std::mem::take(&mut self.asks.open);
        for ask in &asks {
            if publishing.add_member(ask.sender, now) {
                self.out.push(Output::KeepActor(true));
            }
        }
        if let Some(head) = self.head() {
            let joined = asks.iter().map(|ask| Output::Reply(ask.reply, Message::Joined(head.clone())));
            self.out.extend(joined);
        }
    }

    pub(super) fn refuse_asks(&mut self) {
        let asks = std::mem::take(&mut self.asks.open);
        self.out.extend(asks.iter().map(|ask| Output::Reply(ask.reply, Message::Refused)));
    }

    /// Another gateway publishes the replica.
    pub(super) fn announced_to_source(&mut self, rank: Rank, now: Duration) {
        match &mut self.role {
            Role::Publisher(publishing) if rank > publishing.rank() => {
                self.stop_publishing(Some(rank));
                self.rest();
            }
            Role::Publisher(publishing) if rank < publishing.rank() => publishing.announce_soon(now),
            Role::Claiming(claiming) if rank > claiming.rank() => self.rest(),
            _ => {}
        }
    }

    /// Does nothing until another gateway asks again. Without a request, the actor ends.
    pub(super) fn rest(&mut self) {
        self.refuse_asks();
        self.role = Role::Idle;
        self.tail.covering = false;
        self.close_tail();
        self.out.push(Output::KeepActor(false));
    }
}
