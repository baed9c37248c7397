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

pub mod codec;
pub mod lines;
pub mod messages;
pub mod rank;
pub mod subjects;
