//! Trust from an Akash node: certificates on the chain, and the keys of accounts.
//!
//! Queries, and the time for which an answer is used:
//! - A found item is used for `CONFIRMED_FOR`. Then it is queried again, before the next call with it, and
//!   for running calls that depend on it. **A revoked item therefore stops working within a minute plus one
//!   query**, running calls included.
//! - An item that was not found, or is refused, is queried again after `REFUSED_FOR` at the earliest.
//! - While the node does not answer, found items are used for a grace period that the operator sets, counted
//!   from their last confirmation; the node is queried again every `RETRY_AFTER`. Unknown items are
//!   unavailable: a failed query is never taken for an answer. At the end of the grace period running calls
//!   end, too.
//! - Found items are written to disk (`disk`) in the form of a trust directory, so that they work after a
//!   restart while the node is down.
//!
//! All callers share one query per item. The rate and the number of queries for unknown items are limited, so
//! that unknown callers cannot flood the node. Queries that confirm known items are not, and the two do not
//! delay each other.

mod cache;
mod disk;
mod node;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use http::Uri;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use self::cache::{Cache, DiskChange, Lookup, Outcome};
use self::disk::Disk;
use self::node::{ChainClient, Node};
pub use self::node::{NodeError, check_authorities};
use super::account::AccountKey;
use super::cert::Serial;
use super::refusal::Refusal;
use super::trust::{Answer, Trust, TrustAnswer, TrustFuture, TrustId, TrustValue, TrustedItem, Unavailable};
use crate::model::id::Owner;
use crate::model::metrics::{ChainAnswerOrigin, ChainQuery, ChainResult, Metrics};
use crate::model::rate::{Bucket, Rate};
use crate::model::time::LogTime;

/// For how long an answer is used without confirmation, so for how long a revoked certificate may work. A
/// thousand tenants then cause some 17 queries a second.
pub(crate) const CONFIRMED_FOR: Duration = Duration::from_secs(60);

/// For how long a negative answer is used: the longest wait after publishing a certificate.
pub(crate) const REFUSED_FOR: Duration = Duration::from_secs(5);

/// Delay before a failed query for an item is repeated.
pub(crate) const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Maximum of found items, in memory and on disk. Each takes a kilobyte, and a file of one.
const ENTRIES_MAX: usize = 8_192;

/// Maximum of items that are cached as not found or refused.
const NEGATIVE_ENTRIES_MAX: usize = 4_096;

/// Maximum of concurrent queries for unknown items.
const UNKNOWN_QUERIES_MAX: usize = 64;

/// Maximum of concurrent queries that confirm items of running calls. With this many, all of [`ENTRIES_MAX`]
/// are confirmed in time if the node takes at most half a second for each.
const CONFIRMATIONS_MAX: usize = 64;

/// How often items to confirm are looked for.
const TICK: Duration = Duration::from_secs(1);

/// A confirmation is written to disk when the grace period divided by this has passed since the last write:
/// files are written rarely, and a restart loses little of the grace period.
const GRACE_DIVISOR: u32 = 24;

/// The settings of a chain source.
#[derive(Clone, Debug)]
pub struct ChainConfig {
    /// The node: `http://host:port` or `https://host:port`.
    pub node: Uri,
    /// The authorities (PEM) that may sign the node's certificate; `None` = those of the system.
    pub authorities: Option<PathBuf>,
    /// The directory for answers.
    pub dir: PathBuf,
    /// For how long answers are used while the node is down.
    pub grace: Duration,
    /// Maximum of queries per second for unknown items.
    pub queries_per_second: u64,
}

/// Why a chain source cannot be opened. The text names the flag's value or the directory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChainError {
    /// The node's address or authorities cannot be used.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The directory for answers cannot be read or created.
    #[error("{}: {error}", dir.display())]
    Disk {
        /// The directory that the flag or its default names.
        dir: PathBuf,
        /// The error of the system.
        error: io::Error,
    },
}

/// Trust from an Akash node. Drop ends its queries. Drop does not end running streams.
pub struct ChainTrust {
    shared: Arc<Shared>,
    _refresher: AbortOnDropHandle<()>,
    _queries: DropGuard,
}

/// Lock order: `queries` before `rate`; no other two are held together.
struct Shared {
    client: Box<dyn ChainClient>,
    disk: Disk,
    clock: fn() -> LogTime,
    cache: Mutex<Cache>,
    queries: Mutex<HashMap<TrustId, Query>>,
    /// Limits the concurrent queries for unknown items.
    unknown_permits: Arc<Semaphore>,
    /// Limits the rate of queries for unknown items.
    rate: Mutex<Bucket>,
    metrics: Metrics,
    tasks: TaskTracker,
    ended: CancellationToken,
    /// The log says that the node does not answer.
    outage_logged: AtomicBool,
}

/// A running query, which yields its outcome to all callers.
type Query = watch::Receiver<Option<Outcome>>;

// === impl ChainTrust ===

impl ChainTrust {
    /// Opens a source with the node in `config`. Reads the answers that an earlier process stored; does not
    /// wait for the node.
    ///
    /// # Errors
    /// [`ChainError`] for an unusable address, file or directory.
    pub fn open(config: &ChainConfig, metrics: Metrics) -> Result<Self, ChainError> {
        let node = Node::new(&config.node, config.authorities.as_deref())?;
        Self::with_client(Box::new(node), config, metrics, LogTime::now)
    }

    fn with_client(
        client: Box<dyn ChainClient>,
        config: &ChainConfig,
        metrics: Metrics,
        clock: fn() -> LogTime,
    ) -> Result<Self, ChainError> {
        let failed = |error| ChainError::Disk { dir: config.dir.clone(), error };
        let (cache, disk) = restore(&config.dir, config.grace, clock()).map_err(failed)?;
        tracing::info!(node = %config.node, restored = cache.len(), "using chain as trust source");
        let ended = CancellationToken::new();
        let rate = Rate::new(config.queries_per_second, Duration::from_secs(1));
        let shared = Arc::new(Shared {
            client,
            disk,
            clock,
            cache: Mutex::new(cache),
            queries: Mutex::default(),
            unknown_permits: Arc::new(Semaphore::new(UNKNOWN_QUERIES_MAX)),
            rate: Mutex::new(Bucket::new(rate)),
            metrics,
            tasks: TaskTracker::new(),
            ended: ended.clone(),
            outage_logged: AtomicBool::new(false),
        });
        #[expect(clippy::disallowed_methods, reason = "owned: the handle aborts it")]
        let refresher = tokio::spawn(Arc::clone(&shared).refresh());
        Ok(Self { shared, _refresher: AbortOnDropHandle::new(refresher), _queries: ended.drop_guard() })
    }
}

fn restore(dir: &Path, grace: Duration, now: LogTime) -> io::Result<(Cache, Disk)> {
    let disk = Disk::open(dir)?;
    let mut cache = Cache::new(grace);
    for stored in disk.read(now, grace)? {
        cache.restore(stored.entry, stored.age, Instant::now());
    }
    Ok((cache, disk))
}

impl Trust for ChainTrust {
    fn certificate<'a>(&'a self, owner: &'a Owner, serial: &'a Serial) -> TrustFuture<'a> {
        let key = TrustId::Certificate(owner.clone(), serial.clone());
        Box::pin(async { convert(self.shared.ask(key).await, TrustedItem::into_certificate) })
    }

    fn known_certificate(&self, owner: &Owner, serial: &Serial) -> Option<TrustedItem> {
        let key = TrustId::Certificate(owner.clone(), serial.clone());
        self.shared.cache.lock().peek(&key)?.into_certificate()
    }

    fn account_key<'a>(&'a self, owner: &'a Owner) -> TrustFuture<'a, AccountKey> {
        let key = TrustId::Account(owner.clone());
        Box::pin(async { convert(self.shared.ask(key).await, TrustedItem::into_account) })
    }
}

impl fmt::Debug for ChainTrust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChainTrust").field("cached", &self.shared.cache.lock().len()).finish_non_exhaustive()
    }
}

fn convert<T>(
    outcome: Outcome,
    convert: impl FnOnce(TrustedItem<TrustValue>) -> Option<TrustedItem<T>>,
) -> Result<TrustAnswer<T>, Unavailable> {
    Ok(match outcome? {
        Answer::Trusted(item) => convert(item).into(),
        Answer::Unknown => Answer::Unknown,
        Answer::Refused(refusal) => Answer::Refused(refusal),
    })
}

// === impl Shared ===

impl Shared {
    /// Returns the outcome for a call, and counts it.
    async fn ask(self: &Arc<Self>, key: TrustId) -> Outcome {
        let (outcome, from) = self.find(key).await;
        self.metrics.chain_answers.of(from).increment(1);
        outcome
    }

    async fn find(self: &Arc<Self>, key: TrustId) -> (Outcome, ChainAnswerOrigin) {
        let is_known = match self.cache.lock().lookup(&key, Instant::now()) {
            Lookup::Known(outcome, from) => return (outcome, from),
            Lookup::Query { is_known } => is_known,
        };
        let Some(mut query) = self.join_query(key, is_known) else {
            return (Ok(Answer::Refused(Refusal::TrustBusy)), ChainAnswerOrigin::Busy);
        };
        // A query ends without an outcome only when the gateway ends.
        let outcome = query.wait_for(Option::is_some).await.ok().and_then(|outcome| outcome.clone());
        (outcome.unwrap_or(Err(Unavailable)), ChainAnswerOrigin::Query)
    }

    /// Returns the running query for `key`, or starts one. Returns `None` if a limit is reached.
    fn join_query(self: &Arc<Self>, key: TrustId, is_known: bool) -> Option<Query> {
        let mut queries = self.queries.lock();
        if let Some(query) = queries.get(&key) {
            return Some(query.clone());
        }
        // Known items are bounded by the cache, and their confirmation must not compete with unknown ones.
        let permit = if is_known { None } else { Some(self.unknown_permit()?) };
        let (sender, query) = watch::channel(None);
        queries.insert(key.clone(), query.clone());
        drop(queries);
        let (shared, ended) = (Arc::clone(self), self.ended.clone());
        // Not on the caller's task: a caller that leaves must not cancel the query for others.
        self.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = ended.cancelled() => {}
                () = shared.query(&key, sender) => {}
            }
            drop(permit);
        });
        Some(query)
    }

    fn unknown_permit(&self) -> Option<OwnedSemaphorePermit> {
        let permit = Arc::clone(&self.unknown_permits).try_acquire_owned().ok()?;
        self.rate.lock().try_take(1, Instant::now().into_std()).ok()?;
        Some(permit)
    }

    async fn query(&self, key: &TrustId, sender: watch::Sender<Option<Outcome>>) {
        let started = Instant::now();
        let answer = self.client.query(key).await;
        self.metrics.chain_query_time.record(started.elapsed());
        let kind = match key {
            TrustId::Certificate(..) => ChainQuery::Certificate,
            TrustId::Account(_) => ChainQuery::Account,
        };
        let result = match &answer {
            Ok(Answer::Trusted(_)) => ChainResult::Found,
            Ok(Answer::Unknown) => ChainResult::Unknown,
            Ok(Answer::Refused(_)) => ChainResult::Refused,
            Err(_) => ChainResult::Failed,
        };
        self.metrics.chain_queries.of((kind, result)).increment(1);
        match &answer {
            Err(error) if !self.outage_logged.swap(true, Ordering::Relaxed) => {
                tracing::error!(%error, "chain query failed; using cached entries for the grace period, rejecting unknown callers");
            }
            Ok(_) if self.outage_logged.swap(false, Ordering::Relaxed) => {
                tracing::info!("chain queries succeed again");
            }
            _ => {}
        }
        let (outcome, change) = self.cache.lock().apply(key, answer, Instant::now());
        self.persist(key, change).await;
        // In this order: a caller that comes in between finds the item in the cache.
        self.queries.lock().remove(key);
        sender.send_replace(Some(outcome));
    }

    async fn persist(&self, key: &TrustId, change: DiskChange) {
        let (disk, key, now) = (self.disk.clone(), key.clone(), (self.clock)());
        let write = move || match change {
            DiskChange::None => Ok(()),
            DiskChange::Write { value, replaced } => {
                replaced.map_or(Ok(()), |replaced| disk.remove(&replaced))?;
                disk.write(&key, &value, now)
            }
            DiskChange::Remove => disk.remove(&key),
        };
        if let Err(error) = spawn_blocking(write).await.unwrap_or_else(|panicked| Err(panicked.into())) {
            tracing::warn!(%error, dir = ?self.disk, "failed to store answer of the chain; it is lost at a restart");
        }
    }

    /// Confirms the items that running calls depend on, and ends their grace periods. Never returns.
    async fn refresh(self: Arc<Self>) {
        tokio::join!(self.confirm_due(), self.watch_graces());
    }

    async fn confirm_due(self: &Arc<Self>) {
        loop {
            sleep(TICK).await;
            // The next tick waits for all answers. A query takes 5 s at most.
            let due = self.cache.lock().due(Instant::now());
            let confirm = stream::iter(due).for_each_concurrent(CONFIRMATIONS_MAX, async |key| {
                let _ = self.find(key).await;
            });
            confirm.await;
        }
    }

    async fn watch_graces(&self) {
        loop {
            sleep(TICK).await;
            let on_grace = {
                let (mut cache, now) = (self.cache.lock(), Instant::now());
                cache.end_graces(now);
                cache.on_grace(now)
            };
            self.metrics.chain_on_grace.set(u32::try_from(on_grace).unwrap_or(u32::MAX));
        }
    }
}
