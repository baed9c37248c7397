//! What goes into a participant and what comes out.

use crate::exchange::gateway_id::GatewayId;
use crate::exchange::messages::{Content, Fetch, Message, RingEnd, Totals};
use crate::exchange::rank::Rank;
use crate::model::id::Instance;
use crate::model::position::{Place, Position};
use crate::platform::{ReadFrom, TailItem};

/// The constant properties of a participant.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// This gateway.
    pub gateway: GatewayId,
    /// Its weight for the replica.
    pub weight: u64,
    /// Whether the replica runs on this gateway's node.
    pub is_home: bool,
    /// Whether another gateway may be on the replica's node, which can be asked to publish.
    pub asks_node: bool,
    /// Maximum members while it publishes. Further gateways are refused.
    pub members_max: usize,
    /// Whether this gateway is on the replica's node and has no followers: it publishes only when another one
    /// asks, and only while it has members.
    pub is_source: bool,
    /// Seed of random delays.
    pub seed: u64,
}

/// Identifies a request of this participant.
pub type RequestId = u64;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// The actor opens the log of a run. It has dropped the one that it read before.
    Open {
        /// The run.
        instance: Instance,
        /// Where to start.
        from: ReadFrom,
    },
    /// News of the tail with this generation.
    Tail(u64, TailEvent),
    /// News of the actor's ring, after [`Output::ReadRing`].
    Ring(RingEvent),
    /// A message without an answer.
    Received(GatewayId, Message),
    /// A request, and the token for its answer.
    Asked(GatewayId, Message, ReplyId),
    /// Another gateway asks this one, which is on the replica's node, to publish.
    PublishRequested {
        /// The gateway that asks.
        sender: GatewayId,
        /// The token for the answer, which may come later.
        reply: ReplyId,
        /// Where to start.
        place: Option<Place>,
        /// The highest term that the other gateway knows.
        term: u64,
    },
    /// The answer to a request, possibly one of several.
    Answered(RequestId, GatewayId, Message),
    /// No gateway listens to the subject of a request.
    NoResponders(RequestId),
    /// A gateway sends no alive messages, or is shutting down.
    Silent(GatewayId),
    /// A gateway's alive messages come, and did not before: others may not know of this publisher.
    Appeared,
    /// Whether the bus can be used.
    Usable(bool),
    /// This gateway is shutting down: it publishes nothing any more.
    Drain,
    /// The actor has ended.
    Stop,
    /// The deadline has passed.
    Tick,
}

/// Token of a request of another gateway, for its answer.
pub type ReplyId = u64;

/// News of the tail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TailEvent {
    /// It is open.
    Opened {
        /// Position before its first item.
        start: Position,
        /// Whether `start` lies within an unfinished line, as in [`Tail`](crate::platform::Tail).
        unfinished: [bool; 2],
    },
    /// Its next item.
    Item(TailItem),
    /// Others have waited for the permit of this tail for long.
    TurnEnded,
    /// The log was read to its end.
    Ended,
    /// It failed. The driver keeps the error for [`Output::FailTail`].
    Failed {
        /// Whether another attempt may succeed.
        is_retryable: bool,
    },
}

/// News of the actor's ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RingEvent {
    /// The reader starts here, or has skipped to here because it lagged.
    At(RingEnd),
    /// The next entry.
    Entry {
        /// Sums over all entries before it.
        totals: Totals,
        /// What it has.
        content: Content,
        /// The ring's end after it. The entry has the number before the end's.
        end: RingEnd,
    },
}

/// A subject of the replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// From the publisher to its members.
    Frames,
    /// Among all that follow the replica.
    Claims,
    /// To the publisher.
    Requests,
}

/// What the driver does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Subscribes to a subject, again if it has a subscription already; or unsubscribes.
    Subscribe(Subject, bool),
    /// Sends a message.
    Publish(Subject, Message),
    /// Sends a request to the publisher. Times out here, not in the driver.
    Request(RequestId, Message),
    /// Asks the gateway on the replica's node to publish.
    AskNode {
        /// For the answer.
        request: RequestId,
        /// Where it should start.
        place: Option<Place>,
        /// The highest term that is known.
        term: u64,
    },
    /// Answers a request.
    Reply(ReplyId, Message),
    /// Answers a request with entries of the ring, by [`Fetch`].
    ServeFetch(ReplyId, Fetch),
    /// Starts or stops reading the ring.
    ReadRing(bool),
    /// Opens the tail. A tail that was open is closed.
    OpenTail {
        /// For its events.
        generation: u64,
        /// The run.
        instance: Instance,
        /// Where to start.
        from: ReadFrom,
        /// Why it is opened: tails of a gateway that cannot use the bus have a limit.
        is_publisher: bool,
    },
    /// Closes the tail.
    CloseTail,
    /// Reports to the actor where its log starts. Only the first one of a log has news.
    Opened {
        /// Position before the first item.
        start: Position,
        /// Whether it lies within an unfinished line.
        unfinished: [bool; 2],
    },
    /// The next item for the actor.
    Deliver(TailItem),
    /// The actor's log has ended.
    Ended,
    /// The actor's log has failed, with the tail's newest error. The actor opens it again.
    FailTail,
    /// Whether the actor must continue without local followers: it has members.
    KeepActor(bool),
}

/// How a participant gets its lines, for metrics and reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoleName {
    /// It follows nothing.
    Idle,
    /// It looks for a publisher, or tries to become one.
    Finding,
    /// It follows a publisher.
    Member,
    /// It publishes.
    Publisher,
    /// It tails for itself.
    Direct,
    /// It waits for the bus: enough other gateways tail the replica.
    Waiting,
}

/// What a participant does, for reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// How it gets its lines.
    pub role: RoleName,
    /// The publisher of the replica, if it is known; possibly this gateway.
    pub publisher: Option<GatewayId>,
    /// The publisher's rank.
    pub rank: Option<Rank>,
    /// Number of the next frame; `None` while positions have not met.
    pub number: Option<u64>,
    /// Members of the publisher, as far as they are known.
    pub members: u32,
}
