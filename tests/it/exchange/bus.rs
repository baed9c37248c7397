//! The bus: subjects of one replica, which lose, repeat, delay and reorder messages.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::RngExt as _;
use rand::rngs::StdRng;

/// A subject on the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Channel {
    Frames,
    Claims,
    Requests,
    Alive,
    /// Requests to the gateway on a node.
    Node(usize),
    /// Answers to a gateway.
    Inbox,
}

/// What goes wrong on the bus at present.
#[derive(Clone, Debug, Default)]
pub(crate) struct Faults {
    /// Messages lost and repeated, in thousandths.
    pub(crate) lost: u32,
    pub(crate) repeated: u32,
    /// Messages that are late, in thousandths.
    pub(crate) late: u32,
    /// The server does nothing.
    pub(crate) hung: bool,
    /// Connections are closed.
    pub(crate) down: bool,
    /// The side of each gateway; those of different sides do not reach each other.
    pub(crate) sides: BTreeMap<usize, u8>,
    /// Subscriptions that the bus has forgotten.
    pub(crate) forgotten: BTreeSet<(usize, Channel)>,
}

/// The bus.
#[derive(Default)]
pub(crate) struct Bus {
    pub(crate) faults: Faults,
    subscriptions: BTreeSet<(usize, Channel)>,
    /// When the newest message between two gateways arrives, for each connection: the next one is later.
    newest: BTreeMap<(usize, usize, bool), Duration>,
}

// === impl Bus ===

impl Bus {
    pub(crate) fn subscribe(&mut self, gateway: usize, channel: Channel, wanted: bool) {
        self.faults.forgotten.remove(&(gateway, channel));
        if wanted {
            self.subscriptions.insert((gateway, channel));
        } else {
            self.subscriptions.remove(&(gateway, channel));
        }
    }

    pub(crate) fn remove(&mut self, gateway: usize) {
        self.subscriptions.retain(|(of, _)| *of != gateway);
        self.faults.forgotten.retain(|(of, _)| *of != gateway);
        self.faults.sides.remove(&gateway);
    }

    pub(crate) fn is_up(&self) -> bool {
        !self.faults.hung && !self.faults.down
    }

    fn reaches(&self, from: usize, to: usize) -> bool {
        self.is_up() && self.faults.sides.get(&from) == self.faults.sides.get(&to)
    }

    /// Returns who listens, as far as the server knows. Another gateway on the other side listens to nothing
    /// here.
    pub(crate) fn listeners(&self, from: usize, channel: Channel) -> Vec<usize> {
        let all = self.subscriptions.iter().filter(|(to, of)| {
            *of == channel && self.reaches(from, *to) && !self.faults.forgotten.contains(&(*to, channel))
        });
        all.map(|(to, _)| *to).collect()
    }

    /// Returns the times at which a message arrives: none if it is lost, several if it is repeated.
    pub(crate) fn arrivals(
        &mut self,
        from: usize,
        to: usize,
        channel: Channel,
        now: Duration,
        random: &mut StdRng,
    ) -> Vec<Duration> {
        if !self.reaches(from, to) || random.random_ratio(self.faults.lost, 1000) {
            return Vec::new();
        }
        let mut at = now + Duration::from_micros(random.random_range(100..600));
        if random.random_ratio(self.faults.late, 1000) {
            at += Duration::from_millis(random.random_range(1..150));
        } else {
            // In order, as each connection is: frames have one of their own.
            let newest = self.newest.entry((from, to, channel == Channel::Frames)).or_default();
            at = at.max(*newest + Duration::from_micros(1));
            *newest = at;
        }
        let again = random.random_ratio(self.faults.repeated, 1000);
        let repeated = again.then(|| at + Duration::from_millis(random.random_range(0..50)));
        [Some(at), repeated].into_iter().flatten().collect()
    }
}
