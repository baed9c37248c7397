//! What gateways tell each other about the restarts of one lease: which replica is in hand, and what has come of calls that have a
//! name. It is the note that goes with the lease's turn. No clock, no input or output.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::job::{ReplicaOutcome, RestartJob};
use super::{REMEMBERED_FOR, Request};
use crate::model::id::{LeaseId, Replica};
use crate::model::request_id::RequestId;
use crate::platform::RestartRequest;
use crate::platform::coordination::NOTE_MAX_BYTES;

/// Calls of one lease that are remembered: as many as a lease may have restarts in an hour, unless the operator says otherwise.
const CALLS_MAX: usize = 64;

/// Most bytes of the words about one replica: a reason and the first of what Kubernetes says of it.
const WORDS_MAX_BYTES: usize = 256;

/// Bytes of a digest that tell filters apart.
const DIGEST_BYTES: usize = 16;

/// See above.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RestartRecord {
    /// What was, or was just about to be, taken down when this was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) hand: Option<InProgress>,
    /// The last written last.
    #[serde(default, skip_serializing_if = "VecDeque::is_empty")]
    calls: VecDeque<Call>,
}

/// A replica in hand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct InProgress {
    service: String,
    index: u32,
    /// The run that makes way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    run: Option<String>,
    /// The call that it is for, if that has a name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    call: Option<String>,
}

/// A call that has a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Call {
    id: String,
    /// Digest of its filter.
    of: String,
    /// When this was written, in seconds of the Unix epoch, by the writer's clock.
    at: i64,
    replicas: Vec<Entry>,
}

/// One replica of a call: service, index, what came of it, and in which words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry(String, u32, Came, #[serde(default, skip_serializing_if = "String::is_empty")] String);

/// What came of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Came {
    #[serde(rename = "-")]
    Open,
    #[serde(rename = "a")]
    Active,
    #[serde(rename = "f")]
    Failed,
    #[serde(rename = "n")]
    NotAttempted,
}

// === impl Ledger ===

impl RestartRecord {
    /// Reads a note. `None` if it is none of ours.
    pub(super) fn read(note: &str) -> Option<Self> {
        if note.is_empty() { Some(Self::default()) } else { serde_json::from_str(note).ok() }
    }

    /// The note, without what is older than an hour by `now`, in seconds of the Unix epoch. What is too much is dropped, the oldest
    /// first; empty if there is nothing to be said.
    pub(super) fn note(&mut self, now: i64) -> String {
        // Clocks differ. What was written in a future that far off has a wrong time, and would never be forgotten.
        self.calls.retain(|call| call.at.abs_diff(now) <= REMEMBERED_FOR.as_secs());
        while self.calls.len() > CALLS_MAX {
            self.calls.pop_front();
        }
        loop {
            if self.hand.is_none() && self.calls.is_empty() {
                return String::new();
            }
            let note = serde_json::to_string(self).unwrap_or_default();
            if note.len() <= NOTE_MAX_BYTES || self.calls.pop_front().is_none() {
                return note;
            }
        }
    }

    /// The call of this name.
    pub(super) fn call(&self, id: &RequestId) -> Option<&Call> {
        self.calls.iter().find(|call| call.id == id.to_string())
    }

    /// Puts down how far a round has come; nothing if it has no name. `now` as above.
    pub(super) fn put(&mut self, round: &RestartJob, now: i64) {
        let Some(id) = &round.request.id else {
            return;
        };
        let id = id.to_string();
        self.calls.retain(|call| call.id != id);
        // What was left alone behind no failure was so because this gateway could not go on: another one may.
        let is_given_up = round.is_given_up();
        let replicas = round.verdicts().map(|(replica, verdict)| {
            let (came, words) = match verdict {
                Some(ReplicaOutcome::Active) => (Came::Active, ""),
                Some(ReplicaOutcome::Failed(why)) => (Came::Failed, why.as_str()),
                Some(ReplicaOutcome::NotAttempted(why)) if !is_given_up => (Came::NotAttempted, why.as_str()),
                Some(ReplicaOutcome::NotAttempted(_) | ReplicaOutcome::Abandoned) | None => (Came::Open, ""),
            };
            Entry(replica.service.to_string(), replica.index, came, clipped(words).to_owned())
        });
        let replicas = replicas.collect();
        self.calls.push_back(Call { id, of: digest(&round.request), at: now, replicas });
    }

    /// Puts down what came of the replica in hand, for the call that it was for; nothing is in hand any more.
    pub(super) fn judge(&mut self, verdict: &ReplicaOutcome) {
        let Some(hand) = self.hand.take() else {
            return;
        };
        let (came, words) = match verdict {
            ReplicaOutcome::Active => (Came::Active, ""),
            ReplicaOutcome::Failed(why) => (Came::Failed, why.as_str()),
            ReplicaOutcome::NotAttempted(_) | ReplicaOutcome::Abandoned => return,
        };
        let call = self.calls.iter_mut().find(|call| Some(&call.id) == hand.call.as_ref());
        for entry in call.into_iter().flat_map(|call| &mut call.replicas) {
            if entry.0 == hand.service && entry.1 == hand.index && entry.2 == Came::Open {
                (entry.2, entry.3) = (came, clipped(words).to_owned());
            }
        }
    }
}

// === impl Hand ===

impl InProgress {
    /// What `request` is about to take down, for the call with this name.
    pub(super) fn new(request: &RestartRequest, call: Option<&RequestId>) -> Self {
        Self {
            service: request.replica.service.to_string(),
            index: request.replica.index,
            run: request.instance.as_ref().map(ToString::to_string),
            call: call.map(ToString::to_string),
        }
    }

    /// The request that takes it down; `None` if these are no names.
    pub(super) fn request(&self, lease: &LeaseId) -> Option<RestartRequest> {
        let replica = Replica { service: self.service.parse().ok()?, index: self.index };
        let instance = self.run.as_ref().map(|run| run.parse()).transpose().ok()?;
        Some(RestartRequest { lease: lease.clone(), replica, instance })
    }
}

// === impl Call ===

impl Call {
    /// Whether it is the call that `request`, of the same name, makes again.
    pub(super) fn is(&self, request: &Request) -> bool {
        self.of == digest(request)
    }

    /// Its replicas, each with what came of it, if anything has. What has no name of a replica is left out.
    pub(super) fn verdicts(&self) -> impl Iterator<Item = (Replica, Option<ReplicaOutcome>)> {
        self.replicas.iter().filter_map(|Entry(service, index, came, words)| {
            let verdict = match came {
                Came::Open => None,
                Came::Active => Some(ReplicaOutcome::Active),
                Came::Failed => Some(ReplicaOutcome::Failed(words.clone())),
                Came::NotAttempted => Some(ReplicaOutcome::NotAttempted(words.clone())),
            };
            Some((Replica { service: service.parse().ok()?, index: *index }, verdict))
        })
    }
}

/// Tells filters apart.
fn digest(request: &Request) -> String {
    let digest = Sha256::digest(request.filter.spelled());
    data_encoding::HEXLOWER.encode(&digest[..DIGEST_BYTES])
}

fn clipped(words: &str) -> &str {
    let end = (0..=WORDS_MAX_BYTES.min(words.len())).rev().find(|end| words.is_char_boundary(*end));
    &words[..end.unwrap_or_default()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(id: &str, at: i64, replicas: u32) -> Call {
        let entry = |index| Entry("web".to_owned(), index, Came::Failed, "w".repeat(WORDS_MAX_BYTES));
        Call { id: id.to_owned(), of: String::new(), at, replicas: (0..replicas).map(entry).collect() }
    }

    fn names(ledger: &RestartRecord) -> Vec<&str> {
        ledger.calls.iter().map(|call| call.id.as_str()).collect()
    }

    #[test]
    fn calls_are_forgotten_after_an_hour_and_so_are_those_of_a_wrong_clock() {
        let calls = [call("old", 6_399, 1), call("kept", 6_400, 1), call("ahead", 13_601, 1)];
        let mut ledger = RestartRecord { hand: None, calls: calls.into() };
        let note = ledger.note(10_000);
        assert_eq!(names(&ledger), ["kept"]);
        assert_eq!(RestartRecord::read(&note).unwrap(), ledger);
        assert_eq!(
            (ledger.note(14_000), RestartRecord::read("")),
            (String::new(), Some(RestartRecord::default()))
        );
        assert_eq!(RestartRecord::read("{\"calls\": 7}"), None);
        // Of a later version of this program.
        assert!(RestartRecord::read("{\"more\": 7}").is_some());
    }

    #[test]
    fn a_note_has_a_bound_and_what_is_in_hand_stays_in_it() {
        let hand = InProgress { service: "web".to_owned(), index: 1, run: None, call: None };
        let mut ledger = RestartRecord { hand: Some(hand.clone()), calls: VecDeque::new() };
        for number in 0..10 {
            ledger.calls.push_back(call(&number.to_string(), 0, 100));
        }
        assert!(ledger.note(0).len() <= NOTE_MAX_BYTES);
        assert_eq!(names(&ledger), ["6", "7", "8", "9"], "the oldest go first");
        ledger.calls.push_back(call("too large", 0, 1_000));
        assert!(ledger.note(0).len() <= NOTE_MAX_BYTES);
        assert!(names(&ledger).is_empty());
        assert_eq!(ledger.hand, Some(hand));
    }

    #[test]
    fn words_are_cut_between_characters() {
        let words = format!("{}é", "w".repeat(WORDS_MAX_BYTES - 1));
        assert_eq!(clipped(&words).len(), WORDS_MAX_BYTES - 1);
    }
}
