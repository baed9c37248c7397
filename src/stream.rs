//! What passes between a stream's body, HTTP/2, and whoever watches over the stream: messages one way, progress and the word to
//! end the other.

use std::io::IoSlice;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::task::AtomicWaker;
use smallvec::SmallVec;
use tokio::time::Instant;

use crate::access::refusal::Refusal;
use crate::model::id::Replica;
use crate::model::quota::Exceeded;

pub mod gated_poll;

/// The number of the next stream.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// What others may know and say of a stream while it runs.
#[derive(Debug)]
pub struct StreamControl {
    /// Says that the stream is to end.
    end: OnceLock<StreamEnd>,
    /// Tells it from every other stream of this process.
    id: u64,
    peer: OnceLock<SocketAddr>,
    opened: Instant,
    /// When HTTP/2 last took something, in milliseconds since it was opened.
    progress_ms: AtomicU64,
    /// Bytes handed over that HTTP/2 has not taken yet, since the peer does not.
    held_bytes: AtomicU64,
    /// Woken when that has become zero.
    taken: AtomicWaker,
    /// Whether it was sent anything, or has what it takes to be.
    is_let_in: AtomicBool,
}

/// Why a stream ends.
#[derive(Clone, Debug)]
pub enum StreamEnd {
    /// Everything that was asked for was sent.
    Complete,
    /// The lease has ended.
    LeaseEnded,
    /// The follower fell behind, and asked to be told so.
    Lagged(Replica),
    /// It could not begin: a quota is used up.
    Exceeded(Box<Exceeded>),
    /// The logs of these replicas cannot be read at the moment, and all else was sent.
    Unreadable(Vec<Replica>),
    /// The gateway is ending.
    Draining,
    /// Who follows may not any more.
    Refused(Refusal),
}

/// Shared bytes, one behind the other. A line on its own is one part, and takes no memory for it.
pub type Parts = SmallVec<[Bytes; 1]>;

/// Messages on their way to HTTP/2: shared bytes, several at a time.
#[derive(Debug)]
pub struct Messages {
    /// Those before `first` have been taken, and are empty.
    parts: Parts,
    first: usize,
    remaining: usize,
    state: Arc<StreamControl>,
}

// === impl StreamControl ===

impl StreamControl {
    /// The state of a stream that opens now.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            end: OnceLock::new(),
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            peer: OnceLock::new(),
            opened: Instant::now(),
            progress_ms: AtomicU64::new(0),
            held_bytes: AtomicU64::new(0),
            taken: AtomicWaker::new(),
            is_let_in: AtomicBool::new(false),
        })
    }

    /// Asks the stream to end; the first reason counts. Whoever says so must also wake the stream's task.
    pub fn end(&self, end: StreamEnd) {
        let _ = self.end.set(end);
    }

    /// Why it is to end, if it is.
    pub fn ends(&self) -> Option<StreamEnd> {
        self.end.get().cloned()
    }

    /// Its number, by which the log and the operator's port name it. Others have others, until the process ends.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The address that it is sent to, if that is known.
    pub fn peer(&self) -> Option<SocketAddr> {
        self.peer.get().copied()
    }

    /// Says so; the first word counts.
    pub fn comes_from(&self, address: Option<SocketAddr>) {
        if let Some(address) = address {
            let _ = self.peer.set(address);
        }
    }

    /// From now on no quota refuses it: something is being read for it, or was sent.
    pub fn mark_admitted(&self) {
        self.is_let_in.store(true, Ordering::Relaxed);
    }

    /// Whether no quota refuses it any more.
    pub fn is_admitted(&self) -> bool {
        self.is_let_in.load(Ordering::Relaxed)
    }

    /// What was handed over and not taken yet, in bytes.
    pub fn held_bytes(&self) -> u64 {
        self.held_bytes.load(Ordering::Relaxed)
    }

    /// How long the peer has taken nothing of what it was sent; zero if it has taken everything.
    pub fn stalled(&self) -> Duration {
        if self.held_bytes() == 0 {
            return Duration::ZERO;
        }
        let progress = Duration::from_millis(self.progress_ms.load(Ordering::Relaxed));
        self.opened.elapsed().saturating_sub(progress)
    }

    /// Waits until HTTP/2 has taken everything that it was handed.
    pub fn poll_taken(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.taken.register(cx.waker());
        if self.held_bytes.load(Ordering::Acquire) == 0 { Poll::Ready(()) } else { Poll::Pending }
    }

    fn took(&self, bytes: usize) {
        if self.held_bytes.fetch_sub(bytes as u64, Ordering::AcqRel) == bytes as u64 {
            self.taken.wake();
        }
    }

    fn progressed(&self) {
        let since = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.progress_ms.store(since, Ordering::Relaxed);
    }
}

// === impl Messages ===

impl Messages {
    /// These bytes, one behind the other, as the next of a stream.
    pub fn new(parts: Parts, state: Arc<StreamControl>) -> Self {
        let remaining = parts.iter().map(Bytes::len).sum();
        state.progressed();
        state.held_bytes.fetch_add(remaining as u64, Ordering::Relaxed);
        Self { parts, first: 0, remaining, state }
    }
}

impl Buf for Messages {
    fn remaining(&self) -> usize {
        self.remaining
    }

    fn chunk(&self) -> &[u8] {
        self.parts.get(self.first).map_or(&[], |part| part)
    }

    // Forwarded, so that many messages leave in one system call.
    fn chunks_vectored<'a>(&'a self, into: &mut [IoSlice<'a>]) -> usize {
        let parts = self.parts.iter().skip(self.first).filter(|part| !part.is_empty());
        into.iter_mut().zip(parts).map(|(slice, part)| *slice = IoSlice::new(part)).count()
    }

    fn advance(&mut self, count: usize) {
        assert!(count <= self.remaining, "cannot advance past the end");
        self.remaining -= count;
        self.state.took(count);
        self.state.progressed();
        let mut left = count;
        while let Some(part) = self.parts.get_mut(self.first) {
            if left < part.len() {
                part.advance(left);
                return;
            }
            left -= part.len();
            // Let go of: nothing is kept alive longer than it must.
            *part = Bytes::new();
            self.first += 1;
        }
    }
}

impl Drop for Messages {
    fn drop(&mut self) {
        if self.remaining > 0 {
            self.state.took(self.remaining);
        }
    }
}
