//! State that a response body, HTTP/2 and the stream's supervisor share: `Messages` go out, progress and
//! the request to end come back.

use std::io::IoSlice;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use smallvec::SmallVec;
use tokio::time::Instant;

use crate::access::refusal::Refusal;
use crate::model::id::Replica;
use crate::model::quota::Exceeded;
use crate::sys::sync;

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// Observes and ends a running stream.
#[derive(Debug)]
pub(crate) struct StreamControl {
    /// Why the stream must end, once it must.
    end: OnceLock<StreamEnd>,
    id: u64,
    peer: OnceLock<SocketAddr>,
    opened: Instant,
    /// When a frame was last handed to HTTP/2 or written by it, in milliseconds since `opened`.
    progress_ms: AtomicU64,
    /// Bytes handed to HTTP/2 that it has not written to the connection yet.
    unsent_bytes: sync::AtomicU64,
    /// Lines that the follower lost so far.
    lost_lines: AtomicU64,
    /// Woken when `unsent_bytes` becomes zero.
    all_taken: sync::AtomicWaker,
    started: AtomicBool,
}

/// Why a stream ends.
#[derive(Clone, Debug)]
pub(crate) enum StreamEnd {
    /// The request was fulfilled.
    Done,
    /// The lease has ended.
    LeaseEnded,
    /// The follower lagged behind this buffer (of a replica, or of events), and had asked to be disconnected
    /// then.
    Lagged(String),
    /// A quota was used up before the stream had started.
    Exceeded(Box<Exceeded>),
    /// The logs of these replicas cannot be read at the moment. All others were sent.
    Unreadable(Vec<Replica>),
    /// The gateway shuts down.
    Draining,
    /// The caller's credential is no longer valid.
    Refused(Refusal),
}

/// Shared bytes in order. A single part, which is the usual case, needs no allocation.
pub type Parts = SmallVec<[Bytes; 1]>;

/// Messages for HTTP/2, as one data frame of shared bytes.
#[derive(Debug)]
pub(crate) struct Messages {
    /// Parts before `first` were taken, and are empty.
    parts: Parts,
    first: usize,
    remaining: usize,
    control: Arc<StreamControl>,
}

// === impl StreamControl ===

impl StreamControl {
    /// Creates the control of a stream that opens now, with an id that is unique in this process.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            end: OnceLock::new(),
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            peer: OnceLock::new(),
            opened: Instant::now(),
            progress_ms: AtomicU64::new(0),
            unsent_bytes: sync::AtomicU64::new(0),
            lost_lines: AtomicU64::new(0),
            all_taken: sync::AtomicWaker::new(),
            started: AtomicBool::new(false),
        })
    }

    /// Asks the stream to end. Later calls have no effect. Does not wake the stream's task: the caller must.
    pub(crate) fn end(&self, end: StreamEnd) {
        let _ = self.end.set(end);
    }

    /// Returns why the stream must end, if it must.
    pub(crate) fn end_requested(&self) -> Option<StreamEnd> {
        self.end.get().cloned()
    }

    /// Returns the id that the log and the admin port show.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn peer(&self) -> Option<SocketAddr> {
        self.peer.get().copied()
    }

    /// Sets the peer address. Later calls have no effect.
    pub(crate) fn set_peer(&self, address: Option<SocketAddr>) {
        if let Some(address) = address {
            let _ = self.peer.set(address);
        }
    }

    /// Marks the stream as started: it was sent a message, or a log is read for it. No quota ends it from
    /// now on.
    pub(crate) fn mark_started(&self) {
        self.started.store(true, Ordering::Relaxed);
    }

    pub(crate) fn has_started(&self) -> bool {
        self.started.load(Ordering::Relaxed)
    }

    pub(crate) fn record_lost_lines(&self, lines: u64) {
        self.lost_lines.fetch_add(lines, Ordering::Relaxed);
    }

    /// Returns how many lines were lost so far, for protocols that report it at the end.
    pub(crate) fn lost_lines(&self) -> u64 {
        self.lost_lines.load(Ordering::Relaxed)
    }

    pub(crate) fn unsent_bytes(&self) -> u64 {
        self.unsent_bytes.load(Ordering::Relaxed)
    }

    /// Returns how long the peer has taken nothing; zero if nothing is unsent.
    pub(crate) fn stalled(&self) -> Duration {
        if self.unsent_bytes() == 0 {
            return Duration::ZERO;
        }
        let progress = Duration::from_millis(self.progress_ms.load(Ordering::Relaxed));
        self.opened.elapsed().saturating_sub(progress)
    }

    /// Waits until HTTP/2 has written all bytes that it was handed.
    pub(crate) fn poll_all_taken(&self, cx: &mut Context<'_>) -> Poll<()> {
        // Registered before the check, or a change in between would not wake the task.
        self.all_taken.register(cx.waker());
        if self.unsent_bytes.load(Ordering::Acquire) == 0 { Poll::Ready(()) } else { Poll::Pending }
    }

    fn subtract_unsent(&self, bytes: usize) {
        if self.unsent_bytes.fetch_sub(bytes as u64, Ordering::AcqRel) == bytes as u64 {
            self.all_taken.wake();
        }
    }

    fn record_progress(&self) {
        let elapsed_ms = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.progress_ms.store(elapsed_ms, Ordering::Relaxed);
    }
}

// === impl Messages ===

impl Messages {
    /// Creates the next frame of a stream. Its bytes count as unsent until they are taken or dropped.
    pub(crate) fn new(parts: Parts, control: Arc<StreamControl>) -> Self {
        let remaining = parts.iter().map(Bytes::len).sum();
        control.record_progress();
        control.unsent_bytes.fetch_add(remaining as u64, Ordering::Relaxed);
        Self { parts, first: 0, remaining, control }
    }
}

impl Buf for Messages {
    fn remaining(&self) -> usize {
        self.remaining
    }

    fn chunk(&self) -> &[u8] {
        self.parts.get(self.first).map_or(&[], |part| part)
    }

    // Returns all parts, so that many messages leave in one system call.
    fn chunks_vectored<'a>(&'a self, into: &mut [IoSlice<'a>]) -> usize {
        let parts = self.parts.iter().skip(self.first).filter(|part| !part.is_empty());
        into.iter_mut().zip(parts).map(|(slice, part)| *slice = IoSlice::new(part)).count()
    }

    fn advance(&mut self, count: usize) {
        assert!(count <= self.remaining, "cannot advance past the end");
        self.remaining -= count;
        self.control.subtract_unsent(count);
        self.control.record_progress();
        let mut left = count;
        while let Some(part) = self.parts.get_mut(self.first) {
            if left < part.len() {
                part.advance(left);
                return;
            }
            left -= part.len();
            // Frees the part: it may keep a ring entry's memory alive.
            *part = Bytes::new();
            self.first += 1;
        }
    }
}

impl Drop for Messages {
    fn drop(&mut self) {
        if self.remaining > 0 {
            self.control.subtract_unsent(self.remaining);
        }
    }
}

#[cfg(test)]
#[cfg(feature = "loom")]
mod models {
    use std::future::poll_fn;

    use loom::future::block_on;

    use super::*;
    use crate::sys::sync::{explore, spawn};

    #[test]
    fn last_bytes_taken_or_dropped_wake_stream() {
        explore(None, || {
            let control = StreamControl::new();
            let frame = || Messages::new([Bytes::from_static(b"line\n")].into(), Arc::clone(&control));
            let (mut taken, dropped) = (frame(), frame());
            let threads = [
                spawn(move || {
                    taken.advance(2);
                    taken.advance(3);
                }),
                spawn(move || drop(dropped)),
            ];
            block_on(poll_fn(|cx| control.poll_all_taken(cx)));
            assert_eq!(control.unsent_bytes(), 0);
            for thread in threads {
                thread.join().unwrap();
            }
        });
    }
}
