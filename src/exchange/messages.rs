//! Messages between gateways, as values. [`codec`](super::codec) reads and writes them.

use super::gateway_id::GatewayId;
use super::lines::Lines;
use super::rank::{Claim, Rank};
use crate::model::id::{Instance, LeaseId, Replica};
use crate::model::line::SourceGap;
use crate::model::position::{Place, Position};
use crate::model::time::LogTime;

/// A message and its sender.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// The gateway that sent it.
    pub sender: GatewayId,
    /// Counts the sender's messages. An older [`Message::Alive`] than the newest one is ignored.
    pub counter: u64,
    /// Its content.
    pub message: Message,
}

/// The content of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// The sender is running. Sent at intervals, to all gateways.
    Alive(Alive),
    /// An entry of the publisher's ring.
    Frame(Frame),
    /// No frame followed the newest one, or the state of the log has changed.
    Sync(Head),
    /// The sender wants to publish.
    Claim(Claim),
    /// The sender publishes.
    Announcement {
        /// Its newest place.
        head: Head,
        /// Whether it is on the replica's node.
        home: bool,
    },
    /// The sender no longer publishes.
    Release {
        /// Its rank.
        rank: Rank,
        /// The better publisher that it has stopped for.
        successor: Option<Rank>,
    },
    /// The sender wants to be a member, or to stay one. The answer is [`Message::Joined`] or
    /// [`Message::Refused`].
    Join,
    /// The answer to [`Message::Join`]: the receiver is a member.
    Joined(Head),
    /// Asks for frames.
    Fetch(Fetch),
    /// The answer to [`Message::Fetch`].
    Fetched(Fetched),
    /// The sender is no member any more.
    Leave,
    /// Asks the gateway on the replica's node to publish. The answer is [`Message::Joined`] or
    /// [`Message::Refused`].
    PublishRequest(Box<PublishRequest>),
    /// The sender does not publish the replica, or has as many members as it may have.
    Refused,
}

/// The content of [`Message::Alive`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alive {
    /// Milliseconds until the next one.
    pub interval_ms: u32,
    /// Whether the gateway is shutting down, and publishes nothing any more.
    pub draining: bool,
    /// Whether it serves no followers, and publishes what other gateways ask for.
    pub is_source: bool,
}

/// An entry of the publisher's ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The publisher's rank.
    pub rank: Rank,
    /// The entry's sequence number in the publisher's ring.
    pub number: u64,
    /// Sums over all entries before it.
    pub totals: Totals,
    /// What the entry has.
    pub content: Content,
}

/// What a frame has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Whole lines, or one piece of a line.
    Lines {
        /// The run that wrote them.
        instance: Instance,
        /// The lines.
        lines: Lines,
    },
    /// The source has lost lines.
    Gap {
        /// The run that wrote them.
        instance: Instance,
        /// The position before the gap.
        start: Position,
        /// The gap.
        gap: SourceGap,
    },
    /// An event. Each gateway has its own view and its own events, so only the number counts.
    Event,
}

/// Sums over the entries of a ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Lines that have ended, delivered or lost by the source.
    pub lines: u64,
    /// Bytes of these lines.
    pub bytes: u64,
    /// Gaps whose size is a lower bound.
    pub inexact_gaps: u64,
}

/// The newest place of a publisher: after all frames that it has published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The publisher's rank.
    pub rank: Rank,
    /// Where its ring ends.
    pub end: RingEnd,
    /// State of its source.
    pub source: SourceState,
    /// Number of its members.
    pub members: u32,
}

/// Where a ring ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RingEnd {
    /// Sequence number of the next entry.
    pub number: u64,
    /// Sums over all entries.
    pub totals: Totals,
    /// The place after the newest line; `None` if no log was opened.
    pub place: Option<Place>,
    /// Whether the source has lost lines directly before it.
    pub after_gap: bool,
    /// Whether its position cannot be compared with that of another reader.
    pub ambiguous: bool,
    /// Whether it is within an unfinished line: of standard output or an unknown stream, and of standard
    /// error.
    pub unfinished: [bool; 2],
}

/// State of a publisher's source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SourceState {
    /// The log was read to its end, and all its lines were published.
    pub complete: bool,
    /// The log cannot be followed and is polled.
    pub polled: bool,
    /// Since this time the log cannot be read.
    pub interrupted_since: Option<LogTime>,
}

/// The content of [`Message::Fetch`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetch {
    /// The publisher that is asked. Another one does not answer.
    pub rank: Rank,
    /// The first frame that is needed.
    pub from: FetchFrom,
    /// Number of the first frame that is not needed any more, if one was received.
    pub until: Option<u64>,
}

/// The first frame that is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FetchFrom {
    /// The one with this number. Only a member that has all frames before it asks so.
    Number(u64),
    /// The one that contains or directly follows this place.
    After(Place),
}

/// The content of [`Message::Fetched`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// Frames with consecutive numbers; possibly not all that are needed.
    Frames {
        /// Their publisher.
        rank: Rank,
        /// At least one.
        frames: Vec<Frame>,
    },
    /// The ring does not hold the frames, or cannot compare the place with its own positions.
    NotHeld {
        /// The publisher.
        rank: Rank,
        /// Where a reader of the ring may start; `None` if it has no line.
        oldest: Option<Oldest>,
    },
}

/// The oldest place of a ring at which a line begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Oldest {
    /// Sequence number of the entry there.
    pub number: u64,
    /// Sums over all entries before it, evicted ones included.
    pub totals: Totals,
    /// The place before the entry.
    pub place: Place,
}

/// The content of [`Message::PublishRequest`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishRequest {
    /// The lease.
    pub lease: LeaseId,
    /// The replica.
    pub replica: Replica,
    /// Namespace of the replica's pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Where to start; `None` = at the end of the log.
    pub place: Option<Place>,
    /// The highest term that the sender knows.
    pub term: u64,
}

// === impl Frame ===

impl Frame {
    /// Returns the sums over all entries up to and including it.
    pub fn totals_after(&self) -> Totals {
        match &self.content {
            Content::Lines { lines, .. } => self.totals.with_lines(lines.count(), lines.bytes()),
            Content::Gap { gap, .. } => self.totals.with_gap(gap),
            Content::Event => self.totals,
        }
    }

    /// Returns the run that it belongs to.
    pub fn instance(&self) -> Option<&Instance> {
        match &self.content {
            Content::Lines { instance, .. } | Content::Gap { instance, .. } => Some(instance),
            Content::Event => None,
        }
    }

    /// Returns an estimate of its memory in bytes.
    pub fn cost(&self) -> usize {
        let lines = match &self.content {
            Content::Lines { lines, .. } => lines.cost(),
            Content::Gap { .. } | Content::Event => 0,
        };
        size_of::<Self>() + self.instance().map_or(0, |instance| instance.as_str().len()) + lines
    }
}

// === impl Totals ===

impl Totals {
    /// Returns the sums with these lines.
    #[must_use]
    pub fn with_lines(self, lines: u64, bytes: u64) -> Self {
        Self {
            lines: self.lines.saturating_add(lines),
            bytes: self.bytes.saturating_add(bytes),
            inexact_gaps: self.inexact_gaps,
        }
    }

    /// Returns the sums with this gap.
    #[must_use]
    pub fn with_gap(self, gap: &SourceGap) -> Self {
        let sums = self.with_lines(gap.lines, gap.bytes);
        Self { inexact_gaps: sums.inexact_gaps.saturating_add(u64::from(!gap.exact)), ..sums }
    }
}
