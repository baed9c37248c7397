//! Trust from an Akash node: certificates as the chain has them, and the keys of accounts.
//!
//! What is asked, and how long an answer counts:
//! - What was found counts for [`CONFIRMED_FOR`]; then it is asked for again, before the next call that stands on it, and on
//!   behalf of streams that run on it. So **what was revoked stops working within a minute and the time of a query**, running
//!   streams included.
//! - What was not found, or must not be believed, is asked for again after [`REFUSED_FOR`] at the earliest.
//! - While the node does not answer, what was found goes on for a grace that the operator sets, from when it was confirmed last;
//!   the node is asked again every [`RETRY_AFTER`]. What is not known is unavailable: silence is never taken for an answer.
//!   At the end of the grace streams are told so, too.
//! - What was found is written to disk (`disk`), in the form of a trust directory, so that a restart while the node is away
//!   locks nobody out.
//!
//! There is one query in flight for a name, whoever asks. Names that are not known yet are asked for at a limited rate, and so
//! many at once: a flood of strangers cannot make a flood of queries, nor keep those from being confirmed who are known. Nor do
//! these keep out those who are not.

mod cache;
mod connect;
mod disk;
mod node;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_core::future::BoxFuture;
use futures_util::StreamExt as _;
use futures_util::stream;
use http::Uri;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use self::cache::{Cache, Change, Lookup, Outcome};
pub use self::connect::{NodeError, check_authorities};
use self::disk::Disk;
use self::node::{ChainClient, Node};
use super::account::AccountKey;
use super::cert::Serial;
use super::dir::item::{TrustKey, TrustValue};
use super::refusal::Refusal;
use super::trust::{Certificate, Trust, TrustAnswer, TrustedItem, Unavailable};
use crate::model::id::Owner;
use crate::model::metrics::{ChainAnswer, ChainQuery, Metrics};
use crate::model::rate::{Bucket, Rate};
use crate::model::time::LogTime;

/// For how long an answer counts without being confirmed: how long a revoked certificate may work, at most. A thousand tenants
/// at once are then some 17 queries a second.
pub const CONFIRMED_FOR: Duration = Duration::from_secs(60);

/// For how long the chain is not asked again for what it does not have: who publishes a certificate waits so long at most.
pub const REFUSED_FOR: Duration = Duration::from_secs(5);

/// A node that does not answer is asked again about the same name after this.
pub const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Most certificates and keys that are remembered, in memory and on disk. Each is a kilobyte, and a file of one.
pub const ENTRIES_MAX: usize = 8_192;

/// Most names that are remembered as not found.
const REFUSALS_MAX: usize = 4_096;

/// Queries in flight at once about names that are not known yet.
const FLIGHTS_MAX: usize = 64;

/// Queries at once to confirm what streams run on: all that is remembered is confirmed in its time as long as the node takes no
/// longer than half a second for each.
const CONFIRMATIONS_AT_ONCE: usize = 64;

/// How often it is looked for what is to be confirmed.
const TICK: Duration = Duration::from_secs(1);

/// The disk is told of a confirmation when this part of the grace has passed since it was told last: so little is missing of
/// the grace after a restart, and so seldom is a file written.
const PERSIST_PART: u32 = 24;

/// How the chain is asked.
#[derive(Clone, Debug)]
pub struct ChainConfig {
    /// The node: `http://host:port` or `https://host:port`.
    pub node: Uri,
    /// Who signs the node's certificate (PEM); `None` = an authority of the system.
    pub authorities: Option<PathBuf>,
    /// Where answers are kept.
    pub dir: PathBuf,
    /// For how long answers count while the node is silent.
    pub grace: Duration,
    /// Queries a second about names that are not known yet.
    pub queries_per_second: u64,
}

/// Why the chain cannot be a source of trust. The text names the flag's value or the directory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChainError {
    /// There is no way to the node.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The directory cannot be used.
    #[error("{}: {error}", dir.display())]
    Disk {
        /// The directory.
        dir: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

/// Trust from an Akash node. Dropping it ends its queries; trust that was given then stays.
pub struct ChainTrust {
    shared: Arc<Shared>,
    _keeper: AbortOnDropHandle<()>,
    _queries: DropGuard,
}

struct Shared {
    ledger: Box<dyn ChainClient>,
    disk: Disk,
    clock: fn() -> LogTime,
    cache: Mutex<Cache>,
    flights: Mutex<HashMap<TrustKey, Flight>>,
    /// Room for queries about names that are not known yet.
    strangers: Arc<Semaphore>,
    rate: Mutex<Bucket>,
    metrics: Metrics,
    tasks: TaskTracker,
    ended: CancellationToken,
    /// Whether the log has it that the node is silent.
    silent: AtomicBool,
}

/// A query under way, and its outcome once it has come.
type Flight = watch::Receiver<Option<Outcome>>;

// === impl ChainTrust ===

impl ChainTrust {
    /// Asks the node that `config` names, from now on. Reads what an earlier process was told; does not wait for the node.
    ///
    /// # Errors
    /// [`ChainError`] for an address, file or directory that cannot be used.
    pub fn open(config: &ChainConfig, metrics: Metrics) -> Result<Self, ChainError> {
        let channel = connect::channel(&config.node, config.authorities.as_deref())?;
        Self::asking(Box::new(Node::new(channel)), config, metrics, LogTime::now)
    }

    fn asking(
        ledger: Box<dyn ChainClient>,
        config: &ChainConfig,
        metrics: Metrics,
        clock: fn() -> LogTime,
    ) -> Result<Self, ChainError> {
        let disk = |error| ChainError::Disk { dir: config.dir.clone(), error };
        let (cache, disk) = restored(&config.dir, config.grace, clock()).map_err(disk)?;
        tracing::info!(node = %config.node, remembered = cache.len(), "trust is asked of the chain");
        let ended = CancellationToken::new();
        let rate = Rate::new(config.queries_per_second, Duration::from_secs(1));
        let shared = Arc::new(Shared {
            ledger,
            disk,
            clock,
            cache: Mutex::new(cache),
            flights: Mutex::default(),
            strangers: Arc::new(Semaphore::new(FLIGHTS_MAX)),
            rate: Mutex::new(Bucket::new(rate)),
            metrics,
            tasks: TaskTracker::new(),
            ended: ended.clone(),
            silent: AtomicBool::new(false),
        });
        #[expect(clippy::disallowed_methods, reason = "owned: the handle aborts it")]
        let keeper = tokio::spawn(Arc::clone(&shared).keep());
        Ok(Self { shared, _keeper: AbortOnDropHandle::new(keeper), _queries: ended.drop_guard() })
    }
}

fn restored(dir: &Path, grace: Duration, now: LogTime) -> io::Result<(Cache, Disk)> {
    let disk = Disk::open(dir)?;
    let mut cache = Cache::new(grace);
    for kept in disk.read(now, grace)? {
        cache.restore(kept.name, kept.content, kept.age, Instant::now());
    }
    Ok((cache, disk))
}

impl Trust for ChainTrust {
    fn certificate<'a>(
        &'a self,
        owner: &'a Owner,
        serial: &'a Serial,
    ) -> BoxFuture<'a, Result<TrustAnswer, Unavailable>> {
        Box::pin(async move {
            let outcome = self.shared.ask(TrustKey::Certificate(owner.clone(), serial.clone())).await;
            outcome.into_verdict(|content| match content {
                TrustValue::Certificate(der) => Some(Certificate::clone(&der)),
                TrustValue::Account(_) => None,
            })
        })
    }

    fn known_certificate(&self, owner: &Owner, serial: &Serial) -> Option<TrustedItem> {
        let name = TrustKey::Certificate(owner.clone(), serial.clone());
        match lock(&self.shared.cache).known(&name)? {
            (TrustValue::Certificate(der), hold) => Some(TrustedItem::held(Certificate::clone(&der), hold)),
            (TrustValue::Account(_), _) => None,
        }
    }

    fn account<'a>(
        &'a self,
        owner: &'a Owner,
    ) -> BoxFuture<'a, Result<TrustAnswer<AccountKey>, Unavailable>> {
        Box::pin(async move {
            let outcome = self.shared.ask(TrustKey::Account(owner.clone())).await;
            outcome.into_verdict(|content| match content {
                TrustValue::Account(key) => Some(key),
                TrustValue::Certificate(_) => None,
            })
        })
    }
}

impl fmt::Debug for ChainTrust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChainTrust")
            .field("remembered", &lock(&self.shared.cache).len())
            .finish_non_exhaustive()
    }
}

// === impl Outcome ===

impl Outcome {
    fn into_verdict<T>(
        self,
        what: impl FnOnce(TrustValue) -> Option<T>,
    ) -> Result<TrustAnswer<T>, Unavailable> {
        match self {
            Self::Trusted(content, hold) => Ok(what(content)
                .map_or(TrustAnswer::Unknown, |what| TrustAnswer::Trusted(TrustedItem::held(what, hold)))),
            Self::Unknown => Ok(TrustAnswer::Unknown),
            Self::Refused(refusal) => Ok(TrustAnswer::Refused(refusal)),
            Self::Unavailable => Err(Unavailable),
        }
    }
}

// === impl Shared ===

impl Shared {
    /// What is known of `name`, for a call that stands on it.
    async fn ask(self: &Arc<Self>, name: TrustKey) -> Outcome {
        let (outcome, from) = self.find(name).await;
        self.metrics.chain_answers.of(from).increment(1);
        outcome
    }

    async fn find(self: &Arc<Self>, name: TrustKey) -> (Outcome, ChainAnswer) {
        let known = match lock(&self.cache).look(&name, Instant::now()) {
            Lookup::Known(outcome, from) => return (outcome, from),
            Lookup::Ask { known } => known,
        };
        let Some(mut flight) = self.join(name, known) else {
            return (Outcome::Refused(Refusal::TrustBusy), ChainAnswer::Busy);
        };
        // Ends without an outcome only with the gateway.
        let outcome = flight
            .wait_for(Option::is_some)
            .await
            .map_or(Outcome::Unavailable, |outcome| outcome.clone().unwrap_or(Outcome::Unavailable));
        (outcome, ChainAnswer::Query)
    }

    /// The query that is under way for `name`, begun if need be; `None` if there are too many.
    fn join(self: &Arc<Self>, name: TrustKey, known: bool) -> Option<Flight> {
        let mut flights = lock(&self.flights);
        if let Some(flight) = flights.get(&name) {
            return Some(flight.clone());
        }
        // What is known is bounded already, and must be confirmed whoever else comes.
        let room = if known { None } else { Some(self.room()?) };
        let (told, flight) = watch::channel(None);
        flights.insert(name.clone(), flight.clone());
        drop(flights);
        let (shared, ended) = (Arc::clone(self), self.ended.clone());
        // Not the caller's own task: whoever goes away takes no answer from others who wait for it.
        self.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = ended.cancelled() => {}
                () = shared.query(&name, told) => {}
            }
            drop(room);
        });
        Some(flight)
    }

    /// Room for a query about somebody who is not known yet.
    fn room(&self) -> Option<OwnedSemaphorePermit> {
        let room = Arc::clone(&self.strangers).try_acquire_owned().ok()?;
        lock(&self.rate).try_take(1, Instant::now().into_std()).ok()?;
        Some(room)
    }

    async fn query(&self, name: &TrustKey, told: watch::Sender<Option<Outcome>>) {
        let begun = Instant::now();
        let answer = self.ledger.ask(name).await;
        self.metrics.chain_query_time.record(begun.elapsed());
        let kind = match name {
            TrustKey::Certificate(..) => ChainQuery::Certificate,
            TrustKey::Account(_) => ChainQuery::Account,
        };
        self.metrics.chain_queries.of((kind, node::counted(&answer))).increment(1);
        match &answer {
            Err(silence) if !self.silent.swap(true, Ordering::Relaxed) => {
                tracing::error!(%silence, "the chain cannot be asked; who is known goes on for the grace, and nobody else comes in");
            }
            Ok(_) if self.silent.swap(false, Ordering::Relaxed) => tracing::info!("the chain answers again"),
            _ => {}
        }
        let (outcome, change) = lock(&self.cache).take(name, answer, Instant::now());
        self.write(name, change).await;
        // In this order: who comes in between finds it in the cache.
        lock(&self.flights).remove(name);
        told.send_replace(Some(outcome));
    }

    async fn write(&self, name: &TrustKey, change: Change) {
        let (disk, name, now) = (self.disk.clone(), name.clone(), (self.clock)());
        let write = move || match change {
            Change::Nothing => Ok(()),
            Change::Keep { content, instead_of } => {
                instead_of.map_or(Ok(()), |other| disk.forget(&other))?;
                disk.keep(&name, &content, now)
            }
            Change::Forget => disk.forget(&name),
        };
        if let Err(error) = spawn_blocking(write).await.unwrap_or_else(|lost| Err(lost.into())) {
            tracing::warn!(%error, dir = ?self.disk, "what the chain said cannot be written down; a restart forgets it");
        }
    }

    /// Sees to what running streams stand on, for ever.
    async fn keep(self: Arc<Self>) {
        tokio::join!(self.confirm(), self.watch_graces());
    }

    async fn confirm(self: &Arc<Self>) {
        loop {
            sleep(TICK).await;
            let due = lock(&self.cache).due(Instant::now());
            let confirm = stream::iter(due).for_each_concurrent(CONFIRMATIONS_AT_ONCE, async |name| {
                self.find(name).await;
            });
            confirm.await;
        }
    }

    async fn watch_graces(&self) {
        loop {
            sleep(TICK).await;
            let on_grace = {
                let (mut cache, now) = (lock(&self.cache), Instant::now());
                cache.end_graces(now);
                cache.on_grace(now)
            };
            self.metrics.chain_on_grace.set(u32::try_from(on_grace).unwrap_or(u32::MAX));
        }
    }
}

/// No thread panics while it holds one of these, and if one did, what is in it is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
