//! The memory budget: one limit for rings, send buffers and reads of older lines together.
//!
//! An encoded message counts once, from its encoding until the last ring, stream or connection has dropped it
//! (`MemoryBudget::hold`). The rest are reservations of a fixed size: the minimum of each ring as far as
//! the ring does not use it, the buffers of each read, and one message for each stream. One atomic counter
//! has the sum. A message costs two additions to it, however many followers share the message.
//!
//! Over the limit, the largest rings are shrunk to a common size, but to no less than `RING_MIN_BYTES`. If
//! that is not enough, the budget is *tight*: new streams and reads are rejected, each ring keeps its
//! minimum only, and each stream sends one message at a time.

use std::cmp::Reverse;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use metrics::Counter;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::model::metrics::Metrics;
use crate::model::quota::{Exceeded, Quota, Subject};

/// A ring is not shrunk below this size: 16 full messages, half a second of a busy service (400 KB/s).
pub(crate) const RING_MIN_BYTES: usize = 256 * 1024;

/// Reserved for a stream: one message, which it may hold in its send buffer when the budget is tight. A chunk
/// with a timestamp for each line is shorter.
pub(crate) const STREAM_RESERVED_BYTES: usize = 32 * 1024;

/// Reserved for a read of older lines: the last lines of a log, which may be held until their positions are
/// known (4 MiB and 10,000 lines), and the batches on their way, up to 256 KiB each.
pub(crate) const READ_RESERVED_BYTES: usize = 6 << 20;

/// Reserved for a unary call for logs: its lines, and for a moment its response.
pub(crate) const UNARY_LOGS_RESERVED_BYTES: usize = 7 << 20;

/// Memory of a held message besides its bytes: its charge and its reference count.
pub(crate) const HELD_OVERHEAD_BYTES: usize = 80;

/// Rings are shrunk by this part of the limit more than needed, so that it is rarely necessary. A tight
/// budget stays so until as much is free.
const MARGIN_DIVISOR: usize = 64;

/// Retry-after hint. The wait is unknown; five seconds bounds the retry load.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Interval at which the read of a running stream asks for memory again.
const READ_RETRY: Duration = Duration::from_millis(100);

/// The memory budget of one gateway. Cloning is cheap. The default is unlimited.
#[derive(Clone, Debug)]
pub struct MemoryBudget(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limit_bytes: usize,
    /// Bytes that are held or reserved.
    charged: AtomicUsize,
    /// Sum of the minimums of all rings. New streams leave as much free, so that each replica of a running
    /// stream can be replaced by another one at the same time.
    spare: AtomicUsize,
    /// The limit was exceeded although all rings were shrunk to their minimum.
    is_tight: AtomicBool,
    /// Locked while something new is admitted, and while rings are shrunk. Lock order: before the state of a
    /// ring.
    rings: Mutex<Rings>,
    /// The permit of one read, whose memory is always reserved: running streams take turns.
    reserved_read: Arc<Semaphore>,
    shrunk_bytes: Counter,
}

type Rings = Vec<Weak<dyn Shrink>>;

/// A ring, as the budget sees it.
pub(crate) trait Shrink: Send + Sync {
    fn held_bytes(&self) -> usize;

    /// Evicts the oldest entries until the others fit into `max_bytes`. Returns how many bytes were evicted.
    fn shrink_to(&self, max_bytes: usize) -> usize;
}

/// Bytes that count in the budget until it is dropped.
#[derive(Debug)]
pub(crate) struct Charge {
    budget: MemoryBudget,
    bytes: usize,
}

/// The minimum of one or more rings: counts the part of it that they do not use.
#[derive(Debug)]
pub(crate) struct RingMinimum {
    bytes: usize,
    unused: Charge,
}

/// The memory of a read of older lines.
#[derive(Debug)]
pub(crate) enum ReadMemory {
    Charged { _charge: Charge },
    Reserved { _permit: OwnedSemaphorePermit },
}

/// The owner of a message that counts in the budget.
struct HeldMessage {
    message: Bytes,
    _charge: Charge,
}

// === impl MemoryBudget ===

impl MemoryBudget {
    /// Creates a budget; `None`: unlimited.
    pub fn new(limit_bytes: Option<usize>, metrics: &Metrics) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52, or close to infinite")]
        metrics.memory_budget.set(limit_bytes.map_or(f64::INFINITY, |bytes| bytes as f64));
        Self::with(limit_bytes, metrics.ring_shrunk_bytes.clone())
    }

    fn with(limit_bytes: Option<usize>, shrunk_bytes: Counter) -> Self {
        Self(Arc::new(Shared {
            limit_bytes: limit_bytes.unwrap_or(usize::MAX),
            charged: AtomicUsize::new(READ_RESERVED_BYTES),
            spare: AtomicUsize::new(0),
            is_tight: AtomicBool::new(false),
            rings: Mutex::default(),
            reserved_read: Arc::new(Semaphore::new(1)),
            shrunk_bytes,
        }))
    }

    /// Returns the bytes that are held or reserved.
    pub(crate) fn charged(&self) -> usize {
        self.0.charged.load(Ordering::Relaxed)
    }

    /// Whether the limit was exceeded although all rings were shrunk to their minimum.
    pub(crate) fn is_tight(&self) -> bool {
        self.0.is_tight.load(Ordering::Relaxed)
    }

    /// Returns the same message, which counts in the budget until its last reference is dropped, with
    /// `overhead` bytes of memory beside it.
    pub(crate) fn hold(&self, message: Bytes, overhead: usize) -> Bytes {
        if message.is_empty() {
            return message;
        }
        let charge = self.charge(message.len() + overhead + HELD_OVERHEAD_BYTES);
        Bytes::from_owner(HeldMessage { message, _charge: charge })
    }

    /// Counts a new ring with its minimum. A ring is never rejected: a running stream needs it.
    pub(crate) fn ring_minimum(&self, ring_max_bytes: usize) -> RingMinimum {
        let bytes = ring_max_bytes.min(RING_MIN_BYTES);
        self.0.spare.fetch_add(bytes, Ordering::Relaxed);
        RingMinimum { bytes, unused: self.charge(bytes) }
    }

    pub(crate) fn register(&self, ring: Weak<dyn Shrink>) {
        let mut rings = self.0.rings.lock();
        if rings.len() == rings.capacity() {
            rings.retain(|ring| ring.strong_count() > 0);
        }
        rings.push(ring);
    }

    /// Admits a stream that starts `count` rings of up to `ring_max_bytes`. Returns its reservation and that
    /// of the rings, which is to be dropped once they exist.
    ///
    /// # Errors
    /// Another stream would not leave enough for the streams that run.
    pub(crate) fn admit_stream(
        &self,
        count: usize,
        ring_max_bytes: usize,
    ) -> Result<(Charge, RingMinimum), Exceeded> {
        let bytes = count * ring_max_bytes.min(RING_MIN_BYTES);
        let mut rings = self.0.rings.lock();
        let mut stream = self.try_reserve_new(&mut rings, STREAM_RESERVED_BYTES + bytes, bytes)?;
        // Still locked, so that the next stream finds these rings.
        self.0.spare.fetch_add(bytes, Ordering::Relaxed);
        let unused = stream.split_off(bytes);
        Ok((stream, RingMinimum { bytes, unused }))
    }

    /// Admits a unary call for logs.
    ///
    /// # Errors
    /// It would not leave enough for the streams that run.
    pub(crate) fn admit_unary_logs(&self) -> Result<Charge, Exceeded> {
        self.try_reserve_new(&mut self.0.rings.lock(), UNARY_LOGS_RESERVED_BYTES, 0)
    }

    /// Admits a read of older lines. `keep_waiting`: its stream has started, so it waits and is not
    /// rejected. Cancel safe.
    ///
    /// # Errors
    /// The read of a new stream would not leave enough for the streams that run.
    pub(crate) async fn admit_read(&self, keep_waiting: impl Fn() -> bool) -> Result<ReadMemory, Exceeded> {
        let permit = Arc::clone(&self.0.reserved_read).acquire_owned();
        // The same future each time, so that its place in the queue is kept.
        tokio::pin!(permit);
        loop {
            let charge = if keep_waiting() {
                self.try_reserve(&mut self.0.rings.lock(), READ_RESERVED_BYTES, 0)
            } else {
                Some(self.try_reserve_new(&mut self.0.rings.lock(), READ_RESERVED_BYTES, 0)?)
            };
            if let Some(charge) = charge {
                return Ok(ReadMemory::Charged { _charge: charge });
            }
            if let Ok(Ok(permit)) = tokio::time::timeout(READ_RETRY, permit.as_mut()).await {
                return Ok(ReadMemory::Reserved { _permit: permit });
            }
        }
    }

    /// Whether the next read of a running stream may have to wait: the one that is always possible has begun.
    pub(crate) fn is_exhausted(&self) -> bool {
        self.0.reserved_read.available_permits() == 0
    }

    /// Returns the error of a call that is rejected.
    fn exceeded(&self) -> Exceeded {
        let limit = self.0.limit_bytes as u64;
        Exceeded { quota: Quota::Memory, subject: Subject::Gateway, limit, retry_after: Some(RETRY_AFTER) }
    }

    /// Shrinks rings if the limit is exceeded. The caller has no ring locked.
    pub(crate) fn make_room(&self) {
        // While the budget is tight, each ring keeps to its minimum by itself.
        if self.charged() > self.0.limit_bytes && !self.is_tight() {
            self.shrink(&mut self.0.rings.lock());
        }
    }

    /// Counts bytes of a ring that were evicted to save memory.
    pub(crate) fn count_shrunk(&self, bytes: usize) {
        self.0.shrunk_bytes.increment(bytes as u64);
    }

    /// Reserves bytes for something new, and leaves `spare` and the spare memory of all rings free.
    fn try_reserve_new(&self, rings: &mut Rings, bytes: usize, spare: usize) -> Result<Charge, Exceeded> {
        let spare = spare + self.0.spare.load(Ordering::Relaxed);
        self.try_reserve(rings, bytes, spare).ok_or_else(|| self.exceeded())
    }

    /// Reserves bytes if these and `spare` fit, or would if all rings were shrunk to their minimum. `rings`
    /// is locked, so that two callers do not reserve the same bytes.
    fn try_reserve(&self, rings: &mut Rings, bytes: usize, spare: usize) -> Option<Charge> {
        let limit = self.0.limit_bytes;
        let excess = |more: usize| self.charged().saturating_add(more).saturating_sub(limit);
        if excess(bytes + spare) == 0 {
            return Some(self.charge(bytes));
        }
        if self.is_tight() {
            return None;
        }
        // First, so that a request that does not fit takes nothing from the rings.
        let above_minimum = |ring: &Weak<dyn Shrink>| {
            ring.upgrade().map_or(0, |ring| ring.held_bytes().saturating_sub(RING_MIN_BYTES))
        };
        if excess(bytes + spare) > rings.iter().map(above_minimum).sum() {
            return None;
        }
        let charge = self.charge(bytes);
        self.shrink(rings);
        // The evicted entries may still be in send buffers.
        (excess(0) == 0).then_some(charge)
    }

    /// If the limit is exceeded, shrinks the largest rings until the budget is below it by the margin, or all
    /// rings have their minimum.
    fn shrink(&self, rings: &mut Rings) {
        rings.retain(|ring| ring.strong_count() > 0);
        // Repeated, since evicted entries may still be in send buffers.
        while self.charged() > self.0.limit_bytes {
            if !self.shrink_largest(rings) {
                self.0.is_tight.store(self.charged() > self.0.limit_bytes, Ordering::Relaxed);
                return;
            }
        }
    }

    /// Shrinks the largest rings to a common size, by as much as the budget is above its limit less the
    /// margin. Returns `false` if nothing was evicted.
    fn shrink_largest(&self, rings: &Rings) -> bool {
        let excess = self.charged().saturating_sub(self.low_bytes());
        let held = rings.iter().filter_map(Weak::upgrade).map(|ring| (ring.held_bytes(), ring));
        let mut held: Vec<_> = held.collect();
        held.sort_unstable_by_key(|(bytes, _)| Reverse(*bytes));
        let sizes: Vec<_> = held.iter().map(|(bytes, _)| *bytes).collect();
        let common = common_size(&sizes, excess).max(RING_MIN_BYTES);
        let larger = held.iter().take_while(|(bytes, _)| *bytes > common);
        larger.map(|(_, ring)| ring.shrink_to(common)).sum::<usize>() > 0
    }

    /// The limit less the margin.
    fn low_bytes(&self) -> usize {
        self.0.limit_bytes - self.0.limit_bytes / MARGIN_DIVISOR
    }

    fn charge(&self, bytes: usize) -> Charge {
        self.0.charged.fetch_add(bytes, Ordering::Relaxed);
        Charge { budget: self.clone(), bytes }
    }

    fn release(&self, bytes: usize) {
        let left = self.0.charged.fetch_sub(bytes, Ordering::Relaxed) - bytes;
        if self.is_tight() && left <= self.low_bytes() {
            self.0.is_tight.store(false, Ordering::Relaxed);
        }
    }
}

/// Returns the size to which all larger `sizes` must be reduced to save `excess` in total, or zero if they
/// are too small. `sizes` descend.
fn common_size(sizes: &[usize], excess: usize) -> usize {
    let mut sum = 0;
    for (count, size) in (1..).zip(sizes) {
        sum += size;
        let common = sum.saturating_sub(excess) / count;
        if common >= sizes.get(count).copied().unwrap_or(0) {
            return common;
        }
    }
    0
}

impl Default for MemoryBudget {
    fn default() -> Self {
        Self::with(None, Counter::noop())
    }
}

// === impl Charge ===

impl Charge {
    fn set(&mut self, bytes: usize) {
        let before = std::mem::replace(&mut self.bytes, bytes);
        if bytes > before {
            self.budget.0.charged.fetch_add(bytes - before, Ordering::Relaxed);
        } else {
            self.budget.release(before - bytes);
        }
    }

    /// Moves `bytes` of it, which it has, to another charge.
    fn split_off(&mut self, bytes: usize) -> Self {
        self.bytes -= bytes;
        Self { budget: self.budget.clone(), bytes }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.release(self.bytes);
    }
}

// === impl RingMinimum ===

impl RingMinimum {
    /// Sets how many bytes the ring holds.
    pub(crate) fn set_held(&mut self, held: usize) {
        let unused = self.bytes.saturating_sub(held);
        if unused != self.unused.bytes {
            self.unused.set(unused);
        }
    }
}

impl Drop for RingMinimum {
    fn drop(&mut self) {
        self.unused.budget.0.spare.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

// === impl HeldMessage ===

impl AsRef<[u8]> for HeldMessage {
    fn as_ref(&self) -> &[u8] {
        &self.message
    }
}

#[cfg(test)]
mod tests {
    use std::thread::{self, JoinHandle};

    use super::*;

    #[test]
    fn common_size_saves_the_excess() {
        for (sizes, excess, expected) in [
            (&[10, 4][..], 0, 10),
            (&[10, 4], 3, 7),
            (&[10, 4], 8, 3),
            (&[10, 10, 10], 6, 8),
            (&[10, 4], 14, 0),
            (&[10, 4], 99, 0),
            (&[], 1, 0),
        ] {
            assert_eq!(common_size(sizes, excess), expected, "{sizes:?} {excess}");
        }
    }

    #[test]
    fn overhead_covers_charge_and_reference_count() {
        assert!(size_of::<HeldMessage>() + 4 * size_of::<usize>() <= HELD_OVERHEAD_BYTES);
    }

    #[test]
    fn held_message_counts_until_last_reference_is_dropped() {
        let memory = MemoryBudget::default();
        let before = memory.charged();
        let message = memory.hold(Bytes::from_static(b"message"), 93);
        let part = message.slice(2..4);
        drop(message);
        assert_eq!((memory.charged(), &part[..]), (before + 100 + HELD_OVERHEAD_BYTES, &b"ss"[..]));
        drop(part);
        assert_eq!(memory.charged(), before);
    }

    /// A ring of which all bytes above the minimum can be evicted. While its size is asked for, another
    /// thread wants to open a stream.
    struct RingBesideStream {
        memory: MemoryBudget,
        evictable: Mutex<Option<Charge>>,
        is_first: AtomicBool,
        stream: Mutex<Option<JoinHandle<bool>>>,
    }

    impl Shrink for RingBesideStream {
        fn held_bytes(&self) -> usize {
            if self.is_first.swap(false, Ordering::Relaxed) {
                let memory = self.memory.clone();
                let opening = thread::spawn(move || memory.admit_stream(0, 0).is_ok());
                *self.stream.lock() = Some(opening);
                // Time for the other thread, which must wait.
                thread::sleep(Duration::from_millis(50));
            }
            RING_MIN_BYTES + self.evictable.lock().as_ref().map_or(0, |charge| charge.bytes)
        }

        fn shrink_to(&self, _: usize) -> usize {
            self.evictable.lock().take().map_or(0, |charge| charge.bytes)
        }
    }

    #[test]
    fn requests_at_once_do_not_get_the_same_bytes() {
        let evictable = UNARY_LOGS_RESERVED_BYTES - STREAM_RESERVED_BYTES;
        let limit = READ_RESERVED_BYTES + evictable + STREAM_RESERVED_BYTES;
        let memory = MemoryBudget::with(Some(limit), Counter::noop());
        let ring = Arc::new(RingBesideStream {
            evictable: Mutex::new(Some(memory.charge(evictable))),
            memory: memory.clone(),
            is_first: AtomicBool::new(true),
            stream: Mutex::default(),
        });
        let shrink: Weak<RingBesideStream> = Arc::downgrade(&ring);
        memory.register(shrink);
        // Needs all bytes that are free or evictable.
        let call = memory.admit_unary_logs();
        let stream = ring.stream.lock().take().unwrap();
        let stream = stream.join().unwrap();
        assert_eq!((call.is_ok(), stream, memory.charged()), (true, false, limit));
    }

    #[test]
    fn rings_that_do_not_exist_yet_are_kept_free_as_well() {
        let one = STREAM_RESERVED_BYTES + 2 * RING_MIN_BYTES;
        let memory = MemoryBudget::with(Some(READ_RESERVED_BYTES + 2 * one - 1), Counter::noop());
        let (stream, of_ring) = memory.admit_stream(1, RING_MIN_BYTES).unwrap();
        memory.admit_stream(1, RING_MIN_BYTES).unwrap_err();
        drop((stream, of_ring));
        assert_eq!(memory.charged(), READ_RESERVED_BYTES);
        memory.admit_stream(1, RING_MIN_BYTES).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_reads_get_memory_in_order() {
        let memory = MemoryBudget::with(Some(READ_RESERVED_BYTES), Counter::noop());
        let running = memory.admit_read(|| true).await.unwrap();
        let first = memory.admit_read(|| true);
        let second = async {
            tokio::time::sleep(READ_RETRY / 2).await;
            memory.admit_read(|| true).await
        };
        tokio::pin!(first, second);
        let until_first_has_asked_again = tokio::time::sleep(READ_RETRY + READ_RETRY / 4);
        tokio::select! {
            _ = &mut first => panic!("no memory is free"),
            _ = &mut second => panic!("no memory is free"),
            () = until_first_has_asked_again => drop(running),
        }
        tokio::select! {
            biased;
            _ = &mut second => panic!("the second one was first"),
            admitted = &mut first => assert!(admitted.is_ok()),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn reads_of_running_streams_take_turns_when_memory_is_short() {
        let memory = MemoryBudget::with(Some(2 * READ_RESERVED_BYTES), Counter::noop());
        let first = memory.admit_read(|| false).await.unwrap();
        let exceeded = memory.admit_read(|| false).await.unwrap_err();
        assert_eq!((exceeded.quota, exceeded.retry_after), (Quota::Memory, Some(RETRY_AFTER)));
        let second = memory.admit_read(|| true).await.unwrap();
        assert!(matches!(second, ReadMemory::Reserved { .. }));
        let third = memory.admit_read(|| true);
        tokio::pin!(third);
        tokio::time::timeout(10 * RETRY_AFTER, &mut third).await.unwrap_err();
        drop(first);
        let third = third.await.unwrap();
        assert!(matches!(third, ReadMemory::Charged { .. }));
        drop(second);
        assert!(matches!(memory.admit_read(|| true).await.unwrap(), ReadMemory::Reserved { .. }));
    }
}
