//! Rings within a memory budget, against a model that adds up what is in memory.

use std::collections::HashMap;

use futures_util::FutureExt as _;
use metrics::NoopRecorder;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::logs::chunk::LineEnd;
use crate::logs::memory_budget::{
    Charge, HELD_OVERHEAD_BYTES, READ_RESERVED_BYTES, ReadMemory, STREAM_RESERVED_BYTES,
};

const LIMIT: usize = 12 << 20;
const RING_MAX: usize = 2 << 20;

#[derive(Clone, Debug)]
enum Action {
    StartRing,
    EndRing(usize),
    /// Pushes chunks of this size.
    Push {
        ring: usize,
        chunks: usize,
        bytes: usize,
    },
    /// Puts the oldest message of a ring into the send buffer of a follower.
    Send(usize),
    /// A follower takes all that was sent.
    Take,
    OpenStream(usize),
    CloseStream,
    BeginRead,
    EndRead,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        2 => Just(Action::StartRing),
        1 => (0..9_usize).prop_map(Action::EndRing),
        12 => (0..9_usize, 1..40_usize, 1..16_000_usize)
            .prop_map(|(ring, chunks, bytes)| Action::Push { ring, chunks, bytes }),
        6 => (0..9_usize).prop_map(Action::Send),
        1 => Just(Action::Take),
        3 => (0..4_usize).prop_map(Action::OpenStream),
        1 => Just(Action::CloseStream),
        1 => Just(Action::BeginRead),
        1 => Just(Action::EndRead),
    ]
}

struct Model {
    memory: MemoryBudget,
    metrics: Metrics,
    rings: Vec<Arc<Ring>>,
    sent: Vec<Bytes>,
    streams: Vec<Charge>,
    reads: Vec<ReadMemory>,
    /// Memory of each message, by its address.
    costs: HashMap<*const u8, usize>,
}

impl Model {
    fn new() -> Self {
        let metrics = Metrics::register(&NoopRecorder);
        let memory = MemoryBudget::new(Some(LIMIT), &metrics);
        let (rings, sent, streams, reads) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { memory, metrics, rings, sent, streams, reads, costs: HashMap::new() }
    }

    fn start_ring(&mut self) {
        let replica = Replica { service: "web".parse().unwrap(), index: 0 };
        let ring = Ring::new(replica, NameStyle::Replica, RING_MAX, &self.metrics, &self.memory);
        ring.begin_log(&instance(), Position::START);
        self.rings.push(ring);
    }

    fn push(&mut self, ring: usize, bytes: usize) {
        let Some(ring) = self.rings.get(ring) else { return };
        let (start, time) = (ring.head().unwrap().1, LogTime::from_nanos(5));
        let end = u32::try_from(bytes).unwrap();
        let chunk = Chunk {
            data: vec![b'x'; bytes].into(),
            line_ends: Box::new([LineEnd { end, time, stream: None }]),
            continues: false,
            start,
            end: start.after_line(time),
        };
        ring.push_lines(&instance(), &mut vec![chunk], Instant::now());
        let state = ring.state.lock();
        let newest = state.entries.back().unwrap();
        let cost = usize::try_from(newest.cost()).unwrap() + HELD_OVERHEAD_BYTES;
        self.costs.insert(newest.message.as_ptr(), cost);
    }

    fn act(&mut self, action: &Action) {
        match *action {
            Action::StartRing if self.rings.len() < 9 => self.start_ring(),
            Action::StartRing => {}
            Action::EndRing(ring) => {
                if ring < self.rings.len() {
                    self.rings.swap_remove(ring);
                }
            }
            Action::Push { ring, chunks, bytes } => {
                for _ in 0..chunks {
                    self.push(ring, bytes);
                }
            }
            Action::Send(ring) => {
                let oldest = |ring: &Arc<Ring>| Some(ring.state.lock().entries.front()?.message.clone());
                self.sent.extend(self.rings.get(ring).and_then(oldest));
            }
            Action::Take => self.sent.clear(),
            Action::OpenStream(rings) => {
                if let Ok((stream, of_rings)) = self.memory.admit_stream(rings, RING_MAX) {
                    for _ in 0..rings {
                        self.start_ring();
                    }
                    drop(of_rings);
                    self.streams.push(stream);
                    assert!(self.memory.charged() <= LIMIT, "a stream was admitted over the limit");
                }
            }
            Action::CloseStream => drop(self.streams.pop()),
            Action::BeginRead => {
                let admitted = self.memory.admit_read(|| false).now_or_never();
                self.reads.extend(admitted.expect("no wait").ok());
            }
            Action::EndRead => drop(self.reads.pop()),
        }
    }

    /// Returns the bytes in memory, each message once, and the reservations.
    fn bytes(&self) -> usize {
        let mut messages = HashMap::new();
        let mut unused = 0;
        for ring in &self.rings {
            let state = ring.state.lock();
            messages.extend(state.entries.iter().map(|entry| {
                let message = &entry.message;
                (message.as_ptr(), self.costs[&message.as_ptr()])
            }));
            unused += RING_MIN_BYTES.saturating_sub(state.held_bytes());
        }
        messages.extend(self.sent.iter().map(|message| (message.as_ptr(), self.costs[&message.as_ptr()])));
        let reads = (self.reads.len() + 1) * READ_RESERVED_BYTES;
        messages.values().sum::<usize>() + unused + self.streams.len() * STREAM_RESERVED_BYTES + reads
    }
}

fn instance() -> Instance {
    Instance::new("uid", "web", 0).unwrap()
}

fn chunk_count(ring: &Arc<Ring>) -> usize {
    ring.state.lock().entries.len()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn budget_counts_what_is_in_memory_and_is_kept(actions in vec(action(), 1..120)) {
        let mut model = Model::new();
        for action in &actions {
            model.act(action);
            prop_assert_eq!(model.memory.charged(), model.bytes(), "after {:?}", action);
            if model.memory.charged() > LIMIT && matches!(action, Action::Push { .. }) {
                // All that can be freed is freed: send buffers and minimums are the rest.
                prop_assert!(model.memory.is_tight());
                let larger = model.rings.iter().filter(|ring| ring.held_bytes() > RING_MIN_BYTES);
                let pushed = larger.filter(|ring| chunk_count(ring) > 1).count();
                prop_assert_eq!(pushed, 0, "after {:?}", action);
            }
        }
        let Model { memory, rings, sent, streams, reads, .. } = model;
        drop((rings, sent, streams, reads));
        prop_assert_eq!(memory.charged(), READ_RESERVED_BYTES);
    }

    #[test]
    fn every_replica_of_admitted_streams_can_be_replaced_at_once(
        pushed in vec((1..3_usize, 1..200_usize), 1..20),
    ) {
        let mut model = Model::new();
        for (rings, chunks) in pushed {
            let before = model.rings.len();
            model.act(&Action::OpenStream(rings));
            for ring in before..model.rings.len() {
                model.act(&Action::Push { ring, chunks, bytes: 10_000 });
            }
        }
        // A rollout that starts all new replicas before it ends the old ones.
        let old = model.rings.len();
        for ring in old..2 * old {
            model.start_ring();
            model.act(&Action::Push { ring, chunks: 100, bytes: 10_000 });
            prop_assert!(model.memory.charged() <= LIMIT);
        }
        for ring in &model.rings[old..] {
            // Short of the minimum by less than an entry.
            prop_assert!(ring.held_bytes() + 11_000 > RING_MIN_BYTES, "{}", ring.held_bytes());
        }
    }
}

#[test]
fn largest_rings_are_shrunk_to_the_same_size() {
    let mut model = Model::new();
    for chunks in [200, 120, 120, 20] {
        model.start_ring();
        let ring = model.rings.len() - 1;
        model.act(&Action::Push { ring, chunks, bytes: 10_000 });
    }
    let sizes = |model: &Model| model.rings.iter().map(|ring| ring.held_bytes()).collect::<Vec<_>>();
    let before = sizes(&model);
    assert_eq!(model.memory.charged(), model.bytes());
    // Leave a megabyte less than the rings hold.
    for _ in 0..60 {
        model.act(&Action::OpenStream(0));
    }
    assert_eq!(model.streams.len(), 60);
    let after = sizes(&model);
    assert!(model.memory.charged() <= LIMIT);
    assert!(after[0] < before[0] && after[3] == before[3], "{before:?} {after:?}");
    assert!(after[0].abs_diff(after[1].min(before[1])) < 900_000, "{before:?} {after:?}");
    // A reader joins within the safe part of what the ring holds now.
    let state = model.rings[0].state.lock();
    assert!(state.capacity < RING_MAX && state.capacity >= after[0]);
}

#[test]
fn rings_are_shrunk_to_their_minimum_before_streams_are_rejected() {
    let mut model = Model::new();
    for ring in 0..3 {
        model.start_ring();
        model.act(&Action::Push { ring, chunks: 195, bytes: 10_000 });
    }
    // Evicting them frees nothing: they are in send buffers.
    for ring in &model.rings {
        let state = ring.state.lock();
        model.sent.extend(state.entries.iter().take(60).map(|entry| entry.message.clone()));
    }
    let before = model.rings[0].held_bytes();
    let mut opened = 0;
    while model.streams.len() == opened {
        model.act(&Action::OpenStream(0));
        opened += 1;
        assert!(!model.memory.is_tight(), "{opened}");
    }
    assert!(model.rings[0].held_bytes() < before / 2);
    // With as much again as the minimums, the rejected stream would not even fit beside the smallest rings.
    let above_minimum = |ring: &Arc<Ring>| ring.held_bytes() - RING_MIN_BYTES;
    let possible: usize = model.rings.iter().map(above_minimum).sum();
    assert!(model.memory.charged() - possible + STREAM_RESERVED_BYTES + 3 * RING_MIN_BYTES > LIMIT);
}

#[test]
fn ring_grows_again_once_send_buffers_are_empty() {
    let mut model = Model::new();
    model.start_ring();
    while !model.memory.is_tight() {
        model.act(&Action::Push { ring: 0, chunks: 1, bytes: 10_000 });
        let newest = model.rings[0].state.lock().entries.back().unwrap().message.clone();
        model.sent.push(newest);
    }
    model.act(&Action::Push { ring: 0, chunks: 100, bytes: 10_000 });
    assert!(model.rings[0].held_bytes() <= RING_MIN_BYTES);
    model.act(&Action::Take);
    model.act(&Action::Push { ring: 0, chunks: 100, bytes: 10_000 });
    assert!(model.rings[0].held_bytes() > 2 * RING_MIN_BYTES);
}

#[test]
fn ring_has_its_full_size_again_after_shortage() {
    let mut model = Model::new();
    for ring in 0..4 {
        model.start_ring();
        model.act(&Action::Push { ring, chunks: 300, bytes: 10_000 });
    }
    assert!(model.rings[0].held_bytes() < RING_MAX - 20_000, "{}", model.rings[0].held_bytes());
    model.rings.truncate(1);
    model.act(&Action::Push { ring: 0, chunks: 300, bytes: 10_000 });
    assert!(model.rings[0].held_bytes() > RING_MAX - 20_000);
    assert_eq!(model.rings[0].state.lock().capacity, RING_MAX);
}
