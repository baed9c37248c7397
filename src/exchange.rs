//! One live tail per replica in a fleet of gateways: the part that needs no network and no task.
//!
//! Gateways that follow the same replica elect one *publisher* among them. It tails the log and publishes the
//! entries of its ring; the other gateways are *members* and receive them. A gateway that the bus cannot help
//! is *direct*: it tails for itself.
//!
//! **The bus decides only how many tails there are, never which lines a follower gets.** Positions follow from
//! the log's content, so the output of a gateway is a chain of intervals of one log, joined where positions
//! meet, whoever read them. A loss on the bus is noticed by the number of a frame or by a position, and the
//! lines are read again: from the publisher's ring, else from the source. Two publishers cost a second tail for
//! a while and nothing else, so no consensus is needed.
//!
//! - [`messages`], their [`codec`], and the [`subjects`] that carry them.
//! - [`participant`]: the state machine of one replica. [`rank`] has the order of claims.
//! - [`liveness`]: which gateways are alive, and whether the bus can be used; one per gateway.
//! - [`bus`]: what the driver needs of the engine between the gateways. `nats` implements it, with the feature of
//!   that name.
//!
//! **Boundary.** The state machines are pure. [`fleet`] runs the part that a gateway has once, and the driver in
//! `logs::live` the participant of each followed replica:
//! - `logs::actor` opens its live tails through it instead of `Platform::tail`: an open becomes
//!   [`Input::Open`](participant::Input::Open), and `Opened`, `Deliver`, `Ended` and `FailTail` of
//!   [`Output`](participant::Output) become the returned tail. The actor's end is `Input::Stop`.
//! - `OpenTail` is `Platform::tail`, with the driver's error kept for `FailTail`. Unless `is_publisher`, it
//!   first waits for one of the gateway's permits for direct tails.
//! - `ReadRing` makes a reader of the actor's ring: each entry is one `RingEvent::Entry` with the entry's
//!   sequence number, and an event of the ring is `Content::Event`. The reader that lags sends `RingEvent::At`.
//!   `KeepActor` keeps the actor as a follower does. `ServeFetch` finds an entry by its number, or joins the
//!   ring as a backfill does.
//! - `AskNode` goes to the gateway on the replica's node, if the platform knows the node. There it comes through
//!   `logs::publish_service`, which starts the actor, as [`Input::PublishRequested`](participant::Input).
//! - Requests, answers and messages go over the [`bus`]. Queues are bounded there: a message that does not fit
//!   is dropped, and its number shows that.
//!
//! The driver also does what the state machines cannot see:
//! - After `ReadRing(true)`, the first event is `RingEvent::At`: without it a publisher announces nothing. `At`
//!   also follows each `Output::Opened`, which moves the ring's end without an entry.
//! - Without members the ring is not read: `At` with its end comes before each input that may be answered or
//!   announced with it.
//! - Each participant has another weight. The sequence numbers of a new actor's ring begin at zero, so its
//!   participant must not use a rank of the one before.
//! - Times never decrease. `Input::Open` lacks fields of `TailRequest`: the actor's newest ones are used when
//!   the tail is opened, possibly much later.
//! - An actor reports some gaps of its own. Those of skipped runs are `Content::Event` for members, whose
//!   actors report them, too; those of a source that fails for long are gaps as others are.

pub mod bus;
pub mod codec;
mod delivery;
pub(crate) mod direct_tails;
pub mod fleet;
pub mod gateway_id;
mod jitter;
pub mod kept;
pub mod lines;
pub mod liveness;
pub mod messages;
#[cfg(feature = "nats")]
pub mod nats;
pub mod participant;
pub mod rank;
mod share;
pub mod subjects;
