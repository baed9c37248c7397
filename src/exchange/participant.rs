//! A gateway's part in the exchange of one replica: whether it publishes, follows a publisher or tails for
//! itself, and which lines its actor gets next. Pure: inputs and the time go in, outputs come out.
//!
//! The driver (a task with the bus, the ring and the tail) passes all inputs, carries out the outputs in
//! order, and calls [`Participant::handle`] with [`Input::Tick`] at [`Participant::deadline`]. Times are
//! durations since any fixed moment.
//!
//! The *tail* is this gateway's own read of the log, by its platform. A publisher always has it; another
//! gateway has it while no publisher's frames can be *attached* to what its actor was given: `covering`.

use std::collections::VecDeque;
use std::time::Duration;

use super::delivery::Delivery;
use super::jitter::Jitter;
use super::messages::SourceState;
use super::rank::{Claim, Rank};
use crate::model::id::Instance;
use crate::model::metrics::FleetElection;
use crate::model::position::Place;
use crate::model::time::LogTime;

pub use self::election::ANSWER_MAX;
use self::election::Direct;
use self::following::Following;
pub use self::io::{
    Config, Input, Output, ReplyId, RequestId, RingEvent, RoleName, Status, Subject, TailEvent,
};
pub(crate) use self::notes::Note;
use self::publisher::Publishing;
use self::source::Asks;
use self::tail::Tail;

mod attach;
mod election;
mod following;
mod io;
mod member;
mod notes;
mod publisher;
mod repair;
mod run;
mod source;
mod tail;

/// The participant of one replica.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "independent conditions")]
pub struct Participant {
    config: Config,
    jitter: Jitter,
    role: Role,
    /// The run that the actor reads.
    run: Option<Delivery>,
    /// Runs that the actor has read to their end, the newest ones.
    finished: VecDeque<Instance>,
    tail: Tail,
    /// Whether it is subscribed to frames.
    hears_frames: bool,
    /// State of the own source.
    source: SourceState,
    /// Where the last log has ended: the place, and the number of gaps there.
    tail_end: Option<(Place, u32)>,
    /// Since when the own tail fails.
    failing_since: Option<Duration>,
    usable: bool,
    draining: bool,
    /// The highest term that any message had.
    term: u64,
    /// The highest rank of a publisher that no longer publishes.
    dead: Option<Rank>,
    /// The newest claim of another gateway.
    heard_claim: Option<(Claim, Duration)>,
    /// Until then it does not claim: its source has failed.
    no_claim_until: Duration,
    /// Members of the publisher that was followed last.
    members: u32,
    /// Claims in a row, made or held back, that were not followed by a publisher.
    attempts: u32,
    /// Times in a row that frames did not reach this gateway.
    deaf: u32,
    /// It claims without having asked the gateway on the replica's node, or was refused there.
    ask_node_soon: bool,
    /// Requests to publish, without their answers so far.
    asks: Asks,
    shown: Shown,
    /// Why the next publisher is elected.
    cause: FleetElection,
    /// The publisher of the newest frame with lines, and when it was received or sent.
    newest_frame: Option<(Rank, Duration)>,
    next_request: RequestId,
    out: Vec<Output>,
    notes: Vec<Note>,
}

/// What the actor knows of the source.
#[derive(Debug, Default)]
struct Shown {
    /// Since when it cannot be read.
    interrupted_since: Option<LogTime>,
    /// It cannot be followed and is polled.
    polled: bool,
}

/// What the participant does. Each variant waits for the messages and times that its methods name.
#[derive(Debug)]
enum Role {
    /// The actor has opened no log yet. On a replica's node: waits for a request to publish.
    Idle,
    /// Waits for the answer to a join; becomes `Member`, or `Asking` or `Claiming` without one.
    Finding {
        request: RequestId,
        deadline: Duration,
    },
    /// Waits for the answer of the gateway on the replica's node; becomes `Member` or `Claiming`.
    Asking {
        request: RequestId,
        deadline: Duration,
    },
    /// A better claim was heard. Waits for its announcement, then becomes `Finding`.
    HoldingBack {
        until: Duration,
    },
    /// Waits for other claims; becomes `Publisher`, `HoldingBack`, or `Direct` if the bus is silent.
    Claiming(election::Claiming),
    Member(Box<Following>),
    Publisher(Box<Publishing>),
    /// Becomes `Finding` at a time, or when the bus can be used again.
    Direct(Direct),
}

// === impl Participant ===

impl Participant {
    /// Creates a participant that follows nothing yet.
    pub fn new(config: Config, usable: bool) -> Self {
        Self {
            config,
            jitter: Jitter::new(config.seed),
            role: Role::Idle,
            run: None,
            finished: VecDeque::new(),
            tail: Tail::default(),
            hears_frames: false,
            source: SourceState::default(),
            tail_end: None,
            failing_since: None,
            usable,
            draining: false,
            term: 0,
            dead: None,
            heard_claim: None,
            no_claim_until: Duration::ZERO,
            members: 0,
            attempts: 0,
            deaf: 0,
            ask_node_soon: false,
            asks: Asks::default(),
            shown: Shown::default(),
            cause: FleetElection::Start,
            newest_frame: None,
            next_request: 0,
            out: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Handles an input. Returns what to do, in this order.
    pub fn handle(&mut self, input: Input, now: Duration) -> Vec<Output> {
        self.notes.clear();
        match input {
            Input::Open { instance, from } => self.open(instance, from, now),
            Input::Tail(generation, event) => {
                if generation == self.tail.generation && self.tail.is_open {
                    self.tail_event(event, now);
                }
            }
            Input::Ring(event) => self.ring_event(event, now),
            Input::Received(sender, message) => self.received(sender, message, now),
            Input::Asked(sender, message, reply) => self.asked(sender, &message, reply, now),
            Input::PublishRequested { sender, reply, place, term } => {
                self.publish_requested(sender, reply, place, term, now);
            }
            Input::Answered(request, sender, message) => self.answered(request, sender, message, now),
            Input::NoResponders(request) => self.unanswered(Some(request), now),
            Input::Silent(gateway) => self.silent(gateway, now),
            Input::Appeared => self.appeared(now),
            Input::Usable(usable) => self.set_usable(usable, now),
            Input::Drain => self.drain(now),
            Input::Stop => self.stop(),
            Input::Tick => {}
        }
        self.due(now);
        self.advance(now);
        std::mem::take(&mut self.out)
    }

    /// Returns when the next [`Input::Tick`] is due.
    pub fn deadline(&self) -> Option<Duration> {
        let role = match &self.role {
            Role::Idle => None,
            Role::Finding { deadline, .. } | Role::Asking { deadline, .. } => Some(*deadline),
            Role::HoldingBack { until } => Some(*until),
            Role::Claiming(claiming) => Some(claiming.deadline()),
            Role::Member(following) => following.deadline(),
            Role::Publisher(publishing) => publishing.deadline(self.asks_node()),
            Role::Direct(direct) => direct.retry_at,
        };
        [role, self.tail.retry_at, self.asks.deadline()].into_iter().flatten().min()
    }

    /// Returns how it gets its lines.
    pub fn role(&self) -> RoleName {
        match &self.role {
            Role::Idle => RoleName::Idle,
            Role::Finding { .. } | Role::Asking { .. } | Role::HoldingBack { .. } | Role::Claiming(_) => {
                RoleName::Finding
            }
            Role::Member(_) => RoleName::Member,
            Role::Publisher(_) => RoleName::Publisher,
            Role::Direct(Direct { is_waiting: true, .. }) => RoleName::Waiting,
            Role::Direct(_) => RoleName::Direct,
        }
    }

    /// Returns what it does, for reports.
    pub fn status(&self) -> Status {
        let status = Status { role: self.role(), publisher: None, rank: None, number: None, members: 0 };
        match &self.role {
            Role::Member(following) => Status {
                publisher: Some(following.publisher),
                rank: Some(following.rank),
                number: following.next,
                members: self.members,
                ..status
            },
            Role::Publisher(publishing) => Status {
                publisher: Some(self.config.gateway),
                rank: Some(publishing.rank()),
                number: publishing.next_number(),
                members: publishing.member_count(),
                ..status
            },
            _ => status,
        }
    }

    /// Returns the memory of kept frames in bytes.
    pub fn kept_bytes(&self) -> usize {
        if let Role::Member(following) = &self.role { following.kept.bytes() } else { 0 }
    }

    /// Sets whether the run that the actor opens next is on this gateway's node.
    pub fn set_home(&mut self, is_home: bool) {
        self.config.is_home = is_home;
    }

    fn due(&mut self, now: Duration) {
        self.expire_asks(now);
        if self.tail.retry_at.is_some_and(|at| at <= now) {
            self.tail.retry_at = None;
            if self.tail.covering {
                self.open_tail();
            }
        }
        self.role_due(now);
    }

    fn role_due(&mut self, now: Duration) {
        match &mut self.role {
            Role::Idle => {}
            Role::Finding { deadline, .. } | Role::Asking { deadline, .. } => {
                if *deadline <= now {
                    self.unanswered(None, now);
                }
            }
            Role::HoldingBack { until } => {
                if *until <= now {
                    self.find(now);
                }
            }
            Role::Claiming(_) => self.claim_due(now),
            Role::Member(_) => self.member_due(now),
            Role::Publisher(_) => self.publisher_due(now),
            Role::Direct(direct) => {
                if direct.retry_at.is_some_and(|at| at <= now) {
                    self.return_to_bus(now);
                }
            }
        }
    }

    /// Subscribes to frames, or unsubscribes.
    fn hear_frames(&mut self, wanted: bool) {
        if wanted != std::mem::replace(&mut self.hears_frames, wanted) {
            self.out.push(Output::Subscribe(Subject::Frames, wanted));
        }
    }

    fn new_request(&mut self) -> RequestId {
        self.next_request += 1;
        self.next_request
    }
}

#[cfg(test)]
mod tests;
