//! The newest events of one lease, encoded. Pure.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::model::event::{EVENTS_MAX, is_selected};
use crate::model::id::ServiceName;
use crate::model::view::Filter;
use crate::stream::Parts;

/// Maximum size of all events of a lease in bytes: [`EVENTS_MAX`] with long notes. Notes that consist of
/// characters to escape are longer, and leave room for fewer.
const RING_MAX_BYTES: usize = 512 * 1024;

/// A bounded buffer of encoded events, oldest first.
#[derive(Debug, Default)]
pub(super) struct Ring {
    entries: VecDeque<Entry>,
    /// Number of the newest event. The first one is 1.
    newest: u64,
    /// Number of the newest event that was evicted: all up to it are gone. 0 = none was.
    evicted: u64,
    bytes: usize,
    /// The events that existed at the start are in the ring.
    is_ready: bool,
    /// The lease has ended: no event follows.
    is_closed: bool,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    /// Of the Kubernetes object; empty if there is none.
    uid: String,
    service: Option<ServiceName>,
    frame: Bytes,
}

/// Events read from a ring.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    pub(crate) frames: Parts,
    /// Events, and repeats of events, that were evicted before the follower read them. Includes those of
    /// services that it did not select.
    pub(crate) skipped: u64,
    pub(crate) after: After,
}

/// What follows a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    /// More events, at once.
    More,
    /// The events that exist already, once they are known.
    Existing,
    /// Only new events. All existing ones were read.
    New,
    /// Nothing: the lease has ended.
    End,
}

// === impl Ring ===

impl Ring {
    /// Appends an event, and evicts the oldest ones over the limits. An event with the same uid is replaced:
    /// a repeated one must not displace all others.
    pub(super) fn push(&mut self, uid: &str, service: Option<ServiceName>, frame: Bytes) {
        if !uid.is_empty()
            && let Some(older) = self.entries.iter().position(|entry| entry.uid == uid)
            && let Some(older) = self.entries.remove(older)
        {
            self.bytes -= older.frame.len();
        }
        self.newest += 1;
        self.bytes += frame.len();
        self.entries.push_back(Entry { number: self.newest, uid: uid.to_owned(), service, frame });
        while self.entries.len() > EVENTS_MAX || self.bytes > RING_MAX_BYTES {
            let Some(oldest) = self.entries.pop_front() else { return };
            self.bytes -= oldest.frame.len();
            self.evicted = oldest.number;
        }
    }

    /// Marks that the events that existed at the start were pushed.
    pub(super) fn set_ready(&mut self) {
        self.is_ready = true;
    }

    /// Marks that no event follows.
    pub(super) fn close(&mut self) {
        (self.is_ready, self.is_closed) = (true, true);
    }

    /// Reads selected events after `position`, the number of the event that was read last, and advances it.
    /// `None` = the oldest event in the ring is the first one. Stops after `max_bytes`.
    pub(super) fn read(&self, position: &mut Option<u64>, filter: &Filter, max_bytes: usize) -> Batch {
        let mut batch = Batch { frames: Parts::new(), skipped: 0, after: After::Existing };
        if !self.is_ready {
            return batch;
        }
        let position = position.get_or_insert(self.evicted);
        batch.skipped = self.evicted.saturating_sub(*position);
        *position = self.evicted.max(*position);
        let first = self.entries.partition_point(|entry| entry.number <= *position);
        let mut bytes = 0;
        for entry in self.entries.range(first..) {
            if bytes >= max_bytes {
                batch.after = After::More;
                return batch;
            }
            *position = entry.number;
            if is_selected(entry.service.as_ref(), filter) {
                bytes += entry.frame.len();
                batch.frames.push(entry.frame.clone());
            }
        }
        batch.after = if self.is_closed { After::End } else { After::New };
        batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(events: u64) -> Ring {
        let mut ring = Ring { is_ready: true, ..Ring::default() };
        push(&mut ring, 1..=events);
        ring
    }

    /// Pushes events without uid whose text is their number.
    fn push(ring: &mut Ring, numbers: impl IntoIterator<Item = u64>) {
        for number in numbers {
            ring.push("", None, number.to_string().into());
        }
    }

    fn read(ring: &Ring, position: &mut Option<u64>, filter: &Filter) -> (Vec<String>, u64, After) {
        let Batch { frames, skipped, after } = ring.read(position, filter, usize::MAX);
        let texts = frames.iter().map(|frame| String::from_utf8(frame.to_vec()).unwrap());
        (texts.collect(), skipped, after)
    }

    fn all(ring: &Ring, position: &mut Option<u64>) -> (Vec<String>, u64) {
        let (texts, skipped, after) = read(ring, position, &Filter::everything());
        assert_eq!(after, After::New);
        (texts, skipped)
    }

    #[test]
    fn followers_read_from_their_own_positions() {
        let mut ring = ring(2);
        let (mut early, mut late) = (None, None);
        assert_eq!(all(&ring, &mut early), (vec!["1".to_owned(), "2".to_owned()], 0));
        push(&mut ring, [3]);
        assert_eq!(all(&ring, &mut early), (vec!["3".to_owned()], 0));
        assert_eq!(all(&ring, &mut early), (vec![], 0));
        assert_eq!(all(&ring, &mut late).0.len(), 3);
    }

    #[test]
    fn lagging_follower_gets_exact_count() {
        let max = EVENTS_MAX as u64;
        let mut ring = ring(max + 5);
        let mut position = None;
        let (texts, skipped) = all(&ring, &mut position);
        // The first five were evicted before it began.
        assert_eq!((texts.len(), texts[0].as_str(), skipped), (EVENTS_MAX, "6", 0));
        push(&mut ring, (max + 6)..=(2 * max + 5));
        let mut quick = position;
        assert_eq!(all(&ring, &mut quick).1, 0);
        push(&mut ring, (2 * max + 6)..=(2 * max + 12));
        let (texts, skipped) = all(&ring, &mut position);
        assert_eq!((texts.len(), texts[0].clone(), skipped), (EVENTS_MAX, (max + 13).to_string(), 7));
        assert_eq!(
            all(&ring, &mut quick),
            ((2 * max + 6..=2 * max + 12).map(|n| n.to_string()).collect(), 0)
        );
    }

    #[test]
    fn repeated_event_replaces_the_older_one() {
        let mut ring = ring(1);
        let mut position = None;
        for count in 1..=1_000 {
            ring.push("back-off", None, format!("x{count}").into());
        }
        push(&mut ring, [2]);
        assert_eq!(all(&ring, &mut position).0, ["1", "x1000", "2"]);
        ring.push("back-off", None, "x1001".into());
        assert_eq!(all(&ring, &mut position), (vec!["x1001".to_owned()], 0));
    }

    #[test]
    fn size_of_all_events_is_bounded() {
        let mut ring = Ring { is_ready: true, ..Ring::default() };
        let long = Bytes::from(vec![b'x'; RING_MAX_BYTES / 4]);
        for _ in 0..6 {
            ring.push("", None, long.clone());
        }
        assert_eq!((ring.entries.len(), ring.bytes), (4, RING_MAX_BYTES));
        ring.push("", None, vec![b'x'; RING_MAX_BYTES + 1].into());
        assert_eq!((ring.entries.len(), ring.bytes), (0, 0));
    }

    #[test]
    fn batch_states_what_follows() {
        let mut ring = Ring::default();
        ring.push("", None, "one".into());
        let (mut position, everything) = (None, Filter::everything());
        assert_eq!(read(&ring, &mut position, &everything), (vec![], 0, After::Existing));
        ring.set_ready();
        push(&mut ring, [2]);
        let batch = ring.read(&mut position, &everything, 3);
        assert_eq!((batch.frames.len(), batch.after), (1, After::More));
        assert_eq!(read(&ring, &mut position, &everything), (vec!["2".to_owned()], 0, After::New));
        push(&mut ring, [3]);
        ring.close();
        assert_eq!(read(&ring, &mut position, &everything), (vec!["3".to_owned()], 0, After::End));
        assert_eq!(read(&ring, &mut position, &everything), (vec![], 0, After::End));
    }

    #[test]
    fn filter_selects_events_of_services() {
        let mut ring = ring(1);
        for name in ["web", "api"] {
            ring.push("", Some(name.parse().unwrap()), name.into());
        }
        let mut filter = Filter::everything();
        filter.add("web".parse().unwrap(), &[]);
        assert_eq!(read(&ring, &mut None, &filter).0, ["web"]);
        assert_eq!(all(&ring, &mut None).0, ["1", "web", "api"]);
    }
}
