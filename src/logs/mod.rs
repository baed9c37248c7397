//! The log multiplexer: line → chunk → frame → ring → body.
//!
//! One actor per replica ([`replica`]) tails its log once, joins lines to chunks ([`chunk`]), encodes each chunk once ([`frame`]) and
//! puts it into a ring that is bounded in bytes ([`ring`]). Every follower reads the ring at its own pace from within its
//! response ([`body`]); one that falls behind skips to the oldest entry held and is told exactly what it lost. What is older
//! than the ring is read separately, for one follower at a time ([`history`]), until it meets the ring.

pub mod actor;
pub mod actors;
pub mod ambiguity;
pub mod backfill;
pub mod backfill_limits;
pub mod body;
pub mod chunk;
pub mod frame;
pub mod lag;
pub mod message;
pub mod replica_stream;
pub mod request;
pub mod ring;
