//! Names of NATS subjects. Pure.
//!
//! | subject | who listens | messages |
//! |---|---|---|
//! | `lm.FLEET.f.R` | members | `Frame`, `Sync` |
//! | `lm.FLEET.c.R` | all that follow the replica | `Claim`, `Announcement`, `Release` |
//! | `lm.FLEET.o.R` | the publisher alone | `Join`, `Fetch`, `Leave` |
//! | `lm.FLEET.g.G` | all gateways | `Alive` |
//! | `lm.FLEET.n.NODE` | the gateway on that node | `PublishRequest` |
//!
//! `R` is a hash of lease, service and index, `NODE` one of a node's name, `G` a gateway's id. With a secret
//! the hashes have a key. Without one they hide names from casual monitoring only: lease ids are public.

use std::fmt;

use aws_lc_rs::hmac;
use data_encoding::BASE32_NOPAD;
use sha2::{Digest as _, Sha256};

use super::gateway_id::GatewayId;
use crate::model::id::{LeaseId, Replica};

/// Bytes of a hash that a name has: collisions of 2^64 replicas are unlikely.
const HASH_BYTES: usize = 16;

/// Maximum length of a fleet's name: more than a provider's address.
const FLEET_MAX_BYTES: usize = 64;

/// Minimum length of a secret: 128 random bits in hexadecimal digits.
const SECRET_MIN_BYTES: usize = 32;

/// Makes the subjects of one fleet.
#[derive(Clone)]
pub struct Subjects {
    prefix: String,
    key: Option<hmac::Key>,
}

/// The subjects of one replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaSubjects {
    /// Frames of the publisher.
    pub frames: String,
    /// Claims and announcements.
    pub claims: String,
    /// Requests to the publisher.
    pub requests: String,
}

/// Why no subjects can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubjectsError {
    /// The name of the fleet is no token of a subject.
    #[error("--fleet must be 1 to 64 letters, digits, dashes or underscores")]
    Fleet,
    /// The secret is too short.
    #[error("the last line of --fleet-secret must have at least 32 bytes")]
    Secret,
}

// === impl Subjects ===

impl Subjects {
    /// Creates the subjects of a fleet. The last line of `secret` is the key of the hashes: to change the
    /// secret without a change of the subjects, put the new one first.
    pub fn new(fleet: &str, secret: Option<&str>) -> Result<Self, SubjectsError> {
        let is_token = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if !(1..=FLEET_MAX_BYTES).contains(&fleet.len()) || !fleet.bytes().all(is_token) {
            return Err(SubjectsError::Fleet);
        }
        let key = secret.map(|secret| {
            let line = secret.trim_end().lines().next_back().unwrap_or_default().trim();
            let is_long = line.len() >= SECRET_MIN_BYTES;
            is_long.then(|| hmac::Key::new(hmac::HMAC_SHA256, line.as_bytes())).ok_or(SubjectsError::Secret)
        });
        Ok(Self { prefix: format!("lm.{fleet}"), key: key.transpose()? })
    }

    /// Returns the subjects of a replica.
    pub fn replica(&self, lease: &LeaseId, replica: &Replica) -> ReplicaSubjects {
        // Neither a lease nor a replica has a space.
        let hash = self.hash(&format!("replica {lease} {} {}", replica.service, replica.index));
        let of = |kind: &str| format!("{}.{kind}.{hash}", self.prefix);
        ReplicaSubjects { frames: of("f"), claims: of("c"), requests: of("o") }
    }

    /// Returns the subject of a gateway's [`Alive`](super::messages::Alive) messages.
    pub fn alive(&self, gateway: GatewayId) -> String {
        format!("{}.g.{gateway}", self.prefix)
    }

    /// Returns the subject of the `Alive` messages of all gateways.
    pub fn all_alive(&self) -> String {
        format!("{}.g.*", self.prefix)
    }

    /// Returns the subject of requests to the gateway on a node.
    pub fn node(&self, name: &str) -> String {
        format!("{}.n.{}", self.prefix, self.hash(&format!("node {name}")))
    }

    /// Returns a subject of each kind that no gateway uses, with the pattern of all of its kind. For tests of
    /// permissions.
    pub fn probes(&self, gateway: GatewayId) -> [(String, String); 5] {
        ["f", "c", "o", "g", "n"].map(|kind| {
            let of_kind = format!("{}.{kind}", self.prefix);
            (format!("{of_kind}.{gateway}"), format!("{of_kind}.*"))
        })
    }

    fn hash(&self, name: &str) -> String {
        // The prefix separates fleets without a secret. It ends at the zero byte.
        let input = format!("{}\0{name}", self.prefix);
        let hash = match &self.key {
            Some(key) => hmac::sign(key, input.as_bytes()).as_ref().to_vec(),
            None => Sha256::digest(input.as_bytes()).to_vec(),
        };
        BASE32_NOPAD.encode(hash.get(..HASH_BYTES).unwrap_or(&hash)).to_ascii_lowercase()
    }
}

/// Without the key.
impl fmt::Debug for Subjects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subjects").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const LEASE: &str =
        "akash1angnwmnsv5vkp4jpgkdcunar8efpvennxwwcev/1/1/1/akash1nxq8gmsw2vlz3m68qvyvcf3kh6q269ajvqw6y0";
    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    fn frames(subjects: &Subjects, service: &str, index: u32) -> String {
        let replica = Replica { service: service.parse().unwrap(), index };
        subjects.replica(&LEASE.parse().unwrap(), &replica).frames
    }

    #[test]
    fn names_are_the_same_on_every_gateway() {
        let subjects = Subjects::new("east", None).unwrap();
        // A change separates gateways of two versions.
        assert_eq!(frames(&subjects, "web", 0), "lm.east.f.jdg7hif5rbcgiu2yj5ynu366fa");
        assert_eq!(subjects.node("node-1"), "lm.east.n.bp3kr7xx4q63z3wuclfvfrkbk4");
        assert_eq!(subjects.alive(GatewayId([171; 16])), format!("lm.east.g.{}", "ab".repeat(16)));
    }

    #[test]
    fn names_differ_by_fleet_secret_and_replica() {
        let plain = Subjects::new("east", None).unwrap();
        let keyed = Subjects::new("east", Some(SECRET)).unwrap();
        let other_key = Subjects::new("east", Some(&SECRET.to_ascii_uppercase())).unwrap();
        let hash = |subject: String| subject.rsplit_once('.').unwrap().1.to_owned();
        let all = [
            frames(&plain, "web", 0),
            frames(&plain, "web", 1),
            frames(&plain, "api", 0),
            frames(&Subjects::new("west", None).unwrap(), "web", 0),
            frames(&keyed, "web", 0),
            frames(&other_key, "web", 0),
            plain.node("web"),
        ];
        let distinct: BTreeSet<String> = all.into_iter().map(hash).collect();
        assert_eq!(distinct.len(), 7);
    }

    #[test]
    fn last_line_of_secret_is_the_key() {
        let one = Subjects::new("east", Some(SECRET)).unwrap();
        let two = Subjects::new("east", Some(&format!("a new secret\n{SECRET}\r\n\n"))).unwrap();
        assert_eq!(frames(&one, "web", 0), frames(&two, "web", 0));
    }

    #[test]
    fn invalid_settings_name_their_flag() {
        for fleet in ["", "a.b", "a*", "é", &"x".repeat(65)] {
            assert_eq!(Subjects::new(fleet, None).unwrap_err(), SubjectsError::Fleet, "{fleet}");
        }
        for secret in ["", "short", &format!("{SECRET}\nshort")] {
            assert_eq!(Subjects::new("east", Some(secret)).unwrap_err(), SubjectsError::Secret);
        }
    }
}
