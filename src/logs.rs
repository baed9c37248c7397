//! The log multiplexer: one actor per replica reads its log once, for all followers.
//!
//! The path of a line:
//! 1. [`actor`] tails the replica's log, and starts with the first follower. [`actors`] is the registry.
//! 2. [`chunk`] groups lines into chunks; full ones leave at once, others after the pace interval.
//! 3. [`frame`] encodes a chunk as a gRPC message, once per representation.
//! 4. [`ring`] holds recent messages, bounded in bytes, and counts exactly what a lagging follower misses.
//! 5. `replica_stream` is one replica's part of a response: a `backfill` reads lines older than the ring and
//!    joins it, then a ring reader follows live.
//! 6. `body` merges these parts into the response, as fast as HTTP/2 takes them.
//!
//! [`lag`] reports followers that lag, `backfill_limits` bounds backfills, `ambiguity` decides which
//! positions cannot be compared.

pub mod actor;
pub mod actors;
mod ambiguity;
pub(crate) mod backfill;
pub(crate) mod backfill_limits;
pub(crate) mod body;
pub mod chunk;
pub mod frame;
pub mod lag;
mod message;
mod replica_stream;
pub mod request;
pub mod ring;
