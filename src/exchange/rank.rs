//! Which gateway publishes, if several want to: ranks of publishers and the order of claims.

use std::cmp::Ordering;

use sha2::{Digest as _, Sha256};

use super::gateway_id::GatewayId;
use crate::model::id::{LeaseId, Replica};
use crate::model::position::Place;

/// The rank of a publisher. A later term is better, and within a term the greater weight.
///
/// A gateway never uses a rank twice: each of its claims has a term that is greater than all it knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Rank {
    /// One more than the highest term that the publisher knew when it claimed.
    pub term: u64,
    /// See [`weight`].
    pub weight: u64,
}

/// The claim of a gateway to publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The rank that it would have.
    pub rank: Rank,
    /// Whether it is on the replica's node.
    pub home: bool,
    /// How far it has read; `None` if it has not read yet.
    pub place: Option<Place>,
}

/// Returns the weight of a gateway for a replica: the first 8 bytes of SHA-256(gateway ‖ lease ‖ replica).
/// Rendezvous hashing: it spreads the replicas over the gateways, and breaks ties.
pub fn weight(gateway: GatewayId, lease: &LeaseId, replica: &Replica) -> u64 {
    let mut hash = Sha256::new();
    hash.update(gateway.0);
    hash.update(format!("{lease}/{replica}"));
    let hash = hash.finalize();
    let first = hash.iter().take(8);
    first.fold(0, |weight, byte| weight << 8 | u64::from(*byte))
}

// === impl Claim ===

impl Claim {
    /// Whether this claim wins against `other`: by term, home, place and weight. A claimant that has read
    /// farther wins, so that no member is ahead of the new publisher.
    ///
    /// Places of different runs can be incomparable, so this is no total order, and a cycle of claims may
    /// leave no winner. The claimants then try again.
    pub fn beats(&self, other: &Self) -> bool {
        let order = self.rank.term.cmp(&other.rank.term).then(self.home.cmp(&other.home));
        let order = order.then_with(|| compare(self.place.as_ref(), other.place.as_ref()));
        order.then(self.rank.weight.cmp(&other.rank.weight)) == Ordering::Greater
    }
}

/// Compares places; equal if they cannot be compared.
fn compare(one: Option<&Place>, other: Option<&Place>) -> Ordering {
    match (one, other) {
        (Some(one), Some(other)) if one.instance == other.instance => one.position.cmp(&other.position),
        (Some(one), Some(other)) if one.instance.is_later_than(&other.instance) => Ordering::Greater,
        (Some(one), Some(other)) if other.instance.is_later_than(&one.instance) => Ordering::Less,
        (Some(_), Some(_)) => Ordering::Equal,
        (one, other) => one.is_some().cmp(&other.is_some()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::Instance;
    use crate::model::position::Position;
    use crate::model::time::LogTime;

    fn claim(term: u64, home: bool, place: Option<(u32, i64)>, weight: u64) -> Claim {
        let place = place.map(|(run, nanos)| Place {
            instance: Instance::new("uid", "web", run).unwrap(),
            position: Position::START.after_line(LogTime::from_nanos(nanos)),
        });
        Claim { rank: Rank { term, weight }, home, place }
    }

    #[test]
    fn claims_are_compared_by_term_home_place_and_weight() {
        let ascending = [
            claim(1, false, None, 9),
            claim(1, false, Some((0, 5)), 1),
            claim(1, false, Some((0, 6)), 0),
            claim(1, false, Some((0, 6)), 1),
            claim(1, false, Some((1, 2)), 0),
            claim(1, true, None, 0),
            claim(2, false, None, 0),
        ];
        for (index, one) in ascending.iter().enumerate() {
            for (other_index, other) in ascending.iter().enumerate() {
                assert_eq!(one.beats(other), index > other_index, "{one:?} {other:?}");
            }
        }
    }

    #[test]
    fn weights_differ_by_gateway_and_replica() {
        let lease =
            "akash1angnwmnsv5vkp4jpgkdcunar8efpvennxwwcev/1/1/1/akash1nxq8gmsw2vlz3m68qvyvcf3kh6q269ajvqw6y0";
        let lease: LeaseId = lease.parse().unwrap();
        let replica = |index| Replica { service: "web".parse().unwrap(), index };
        let (one, other) = (GatewayId([1; 16]), GatewayId([2; 16]));
        let weights = [
            weight(one, &lease, &replica(0)),
            weight(other, &lease, &replica(0)),
            weight(one, &lease, &replica(1)),
        ];
        assert!(weights[0] != weights[1] && weights[0] != weights[2]);
        assert_eq!(weights[0], weight(one, &lease, &replica(0)));
    }
}
