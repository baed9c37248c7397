//! One gateway: the participant, its driver, and the actor with ring and followers.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use leasemux::exchange::gateway_id::GatewayId;
use leasemux::exchange::liveness::{GRACE, Liveness};
use leasemux::exchange::participant::{Config, Participant};
use leasemux::model::id::Instance;

use super::follower::Follower;
use super::ring::Ring;
use super::source::Reader;

/// A gateway. Dead ones stay in the list of gateways.
#[expect(clippy::struct_excessive_bools, reason = "independent conditions of a model")]
pub(crate) struct Gateway {
    pub(crate) id: GatewayId,
    pub(crate) alive: bool,
    pub(crate) halted: bool,
    pub(crate) draining: bool,
    /// The node of a gateway without followers, which publishes when it is asked.
    pub(crate) node: Option<usize>,
    /// What arrived while it was halted.
    pub(crate) waiting: VecDeque<super::world::Event>,
    pub(crate) counter: u64,
    pub(crate) liveness: Liveness,
    pub(crate) participant: Participant,
    pub(crate) actor: Option<Actor>,
    /// The tail and its generation; `None` while it is being opened.
    pub(crate) tail: Option<(u64, Option<Reader>)>,
    /// When tails were opened, in the last second.
    pub(crate) opened: VecDeque<Duration>,
    /// The ring is read for members.
    pub(crate) publishes: bool,
    /// The actor stays for members.
    pub(crate) kept: bool,
    /// Runs that its view has.
    pub(crate) known_runs: usize,
    /// The source fails here.
    pub(crate) source_fails: bool,
    /// Request tokens: the gateway that asked, and its number.
    pub(crate) replies: BTreeMap<u64, (usize, u64)>,
    pub(crate) next_reply: u64,
    /// The time of the next tick that is in the queue.
    pub(crate) tick_at: Option<Duration>,
}

/// The actor of the replica.
pub(crate) struct Actor {
    pub(crate) ring: Ring,
    pub(crate) followers: Vec<Follower>,
    /// The run that it reads, or has read last.
    pub(crate) run: usize,
    /// The log of the run is open, as far as the actor knows.
    pub(crate) reads: bool,
    /// The log was opened once.
    pub(crate) began: bool,
    /// Since when it has no followers.
    pub(crate) idle_since: Duration,
    /// When its newest line came.
    pub(crate) newest_at: Duration,
}

// === impl Gateway ===

impl Gateway {
    /// Creates a gateway. `node`: it has no followers. `asks_node`: there may be such gateways.
    pub(crate) fn new(
        index: usize,
        seed: u64,
        node: Option<usize>,
        asks_node: bool,
        known_runs: usize,
        now: Duration,
    ) -> Self {
        let mut id = GatewayId([0; 16]);
        id.0[..8].copy_from_slice(&(seed.wrapping_mul(31) ^ index as u64).to_be_bytes());
        id.0[8..].copy_from_slice(&(index as u64).to_be_bytes());
        let weight = seed.wrapping_add(index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17);
        let (is_source, asks_node) = (node.is_some(), asks_node && node.is_none());
        let config = Config {
            gateway: id,
            weight,
            is_home: is_source,
            asks_node,
            is_source,
            members_max: 64,
            seed: weight,
        };
        Self {
            id,
            alive: true,
            halted: false,
            draining: false,
            node,
            waiting: VecDeque::new(),
            counter: 0,
            liveness: Liveness::new(id, node.is_some(), GRACE, now),
            participant: Participant::new(config, false),
            actor: None,
            tail: None,
            opened: VecDeque::new(),
            publishes: false,
            kept: false,
            known_runs,
            source_fails: false,
            replies: BTreeMap::new(),
            next_reply: 0,
            tick_at: None,
        }
    }
}

// === impl Actor ===

impl Actor {
    pub(crate) fn new(run: usize, max_entries: usize, now: Duration) -> Self {
        let ring = Ring::new(max_entries);
        Self { ring, followers: Vec::new(), run, reads: true, began: false, idle_since: now, newest_at: now }
    }

    /// Returns the instance of its run.
    pub(crate) fn instance(&self, source: &super::source::Source) -> Instance {
        source.runs[self.run].instance.clone()
    }
}
