//! LeaseLocks by `coordination.k8s.io` leases, in the gateways' own namespace: one object for each lease that is being restarted.
//!
//! Every write names the version of the object that it goes over, so that of two gateways one is told. An object belongs to the
//! namespace of its lease: when that goes, Kubernetes deletes it. Before that, who left a note deletes it an hour later.

mod object;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_core::future::BoxFuture;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, Client};
use tokio::time::Instant;

use self::object::{as_is, holder_of, name, note_of};
use super::jittered;
use crate::model::id::LeaseId;
use crate::platform::Error;
use crate::platform::coordination::{LeaseLock, LeaseLocks, LockState};

/// A holder that has not renewed for so long is taken for dead: what client-go's leader election takes as well.
const TERM: Duration = Duration::from_secs(15);

/// A holder that could not renew for so long has lost its turn, by its own clock: well before anybody else takes it.
const OWN_TERM: Duration = Duration::from_secs(10);

/// How often a holder renews: three times within its own term.
const RENEW_EVERY: Duration = Duration::from_secs(3);

/// How often it is looked whose turn it is.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// A look must be over by then: a connection that is dead without a word would be waited on for longer.
const LOOK_MAX: Duration = Duration::from_secs(10);

/// A write that holds on to a turn must be over by then, so that there is time for another one.
const WRITE_MAX: Duration = Duration::from_secs(3);

/// Pause before a write that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Giving a turn back is tried for so long: a drain waits for it.
const LEAVE_MAX: Duration = Duration::from_secs(3);

/// A note that nobody has written over by then is deleted: a little later than the calls in it are forgotten.
const KEPT_FOR: Duration = Duration::from_secs(3_900);

/// Objects that wait for their deletion; what is more than that goes with its lease.
const KEPT_MAX: usize = 1_024;

/// See above. Cloning is cheap.
#[derive(Clone)]
pub struct KubeLeaseLocks(Arc<Shared>);

struct Shared {
    client: Client,
    /// The gateways' own.
    namespace: String,
    /// This gateway's name, which no other has.
    me: String,
    /// The oldest first.
    kept: Mutex<VecDeque<Kept>>,
}

/// An object that this gateway was the last to write, as far as it knows.
struct Kept {
    until: Instant,
    name: String,
    as_written: Preconditions,
}

struct KubeLeaseLock {
    turns: KubeLeaseLocks,
    /// The namespace of the lease.
    lease: String,
    name: String,
    /// Whether it was looked before.
    has_looked: bool,
    /// The version that another holder has written, and since when it has been the newest.
    seen: Option<(String, Instant)>,
    /// The object as this gateway has written it; `None`: it does not have the turn.
    mine: Option<Lease>,
    /// When it was written: a time before the API server did so.
    renewed: Instant,
}

// === impl KubeLeaseLocks ===

impl KubeLeaseLocks {
    /// LeaseLocks that are kept in `namespace`, where nothing else may have names that begin with `leasemux-`.
    pub fn new(client: Client, namespace: String) -> Self {
        // A pod has its own name there, which tells an operator more than a number does.
        let host = std::env::var("HOSTNAME").unwrap_or_default();
        let me = format!("{host}_{}", uuid::Uuid::new_v4());
        Self(Arc::new(Shared { client, namespace, me, kept: Mutex::default() }))
    }

    /// Deletes what nobody needs any more. To be called now and then.
    pub async fn sweep(&self) {
        let due = |kept: &Kept| kept.until <= Instant::now();
        loop {
            let next = {
                let mut kept = self.kept();
                if kept.front().is_some_and(due) { kept.pop_front() } else { None }
            };
            let Some(kept) = next else { return };
            // If another gateway has written it since, it is that one's to delete.
            if let Err(error) = self.delete(&kept.name, kept.as_written).await {
                tracing::debug!(error = &error as &dyn std::error::Error, name = kept.name, "not deleted");
            }
        }
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<Kept>> {
        self.0.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, written: &Lease) {
        let mut kept = self.kept();
        if kept.len() == KEPT_MAX {
            kept.pop_front();
        }
        let name = written.metadata.name.clone().unwrap_or_default();
        kept.push_back(Kept { until: Instant::now() + KEPT_FOR, name, as_written: as_is(written) });
    }

    fn api(&self) -> Api<Lease> {
        Api::namespaced(self.0.client.clone(), &self.0.namespace)
    }

    async fn delete(&self, name: &str, as_is: Preconditions) -> kube::Result<()> {
        let params = DeleteParams { preconditions: Some(as_is), ..DeleteParams::default() };
        self.api().delete(name, &params).await.map(drop)
    }
}

impl LeaseLocks for KubeLeaseLocks {
    fn payload(&self, lease: &LeaseId) -> BoxFuture<'static, Result<String, Error>> {
        let (api, name) = (self.api(), name(&lease.namespace()));
        Box::pin(async move {
            let found = api.get_opt(&name).await.map_err(|error| failed("reading a turn", &error))?;
            Ok(found.as_ref().map(note_of).unwrap_or_default().to_owned())
        })
    }

    fn candidate(&self, lease: &LeaseId) -> Box<dyn LeaseLock> {
        let lease = lease.namespace();
        Box::new(KubeLeaseLock {
            turns: self.clone(),
            name: name(&lease),
            lease,
            has_looked: false,
            seen: None,
            mine: None,
            renewed: Instant::now(),
        })
    }
}

impl std::fmt::Debug for KubeLeaseLocks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Shared { namespace, me, .. } = &*self.0;
        f.debug_struct("KubeTurns").field("namespace", namespace).field("me", me).finish_non_exhaustive()
    }
}

// === impl KubeLeaseLock ===

impl KubeLeaseLock {
    async fn try_look(&mut self) -> Result<LockState, Error> {
        if std::mem::replace(&mut self.has_looked, true) {
            tokio::time::sleep(jittered(LOOK_EVERY)).await;
        }
        let found = self.turns.api().get_opt(&self.name).await;
        let Some(found) = found.map_err(|error| failed("reading a turn", &error))? else {
            let new = self.new_object().await?;
            let sent = Instant::now();
            return match self.turns.api().create(&PostParams::default(), &new).await {
                Ok(mine) => Ok(self.take(mine, sent)),
                // Another gateway was first.
                Err(kube::Error::Api(status)) if status.code == 409 => {
                    Ok(LockState::HeldByOther { holder: String::new(), payload: String::new() })
                }
                Err(error) => Err(failed("taking a turn", &error)),
            };
        };
        let holder = holder_of(&found).to_owned();
        if !holder.is_empty() && holder != self.turns.0.me && !self.is_dead(&found) {
            return Ok(LockState::HeldByOther { holder, payload: note_of(&found).to_owned() });
        }
        if !holder.is_empty() && holder != self.turns.0.me {
            tracing::warn!(holder, name = self.name, "a gateway has not renewed its turn; taking it over");
        }
        let wish = self.written(found.clone(), note_of(&found).to_owned());
        let sent = Instant::now();
        match self.turns.api().replace(&self.name, &PostParams::default(), &wish).await {
            Ok(mine) => Ok(self.take(mine, sent)),
            // Another gateway was first, or has deleted it.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
                self.seen = None;
                Ok(LockState::HeldByOther { holder, payload: note_of(&found).to_owned() })
            }
            Err(error) => Err(failed("taking a turn", &error)),
        }
    }

    fn take(&mut self, mine: Lease, sent: Instant) -> LockState {
        let note = note_of(&mine).to_owned();
        (self.mine, self.renewed, self.seen) = (Some(mine), sent, None);
        LockState::Held(note)
    }

    /// Whether the holder has written nothing for a whole term of its own since it was looked for the first time. Times that another
    /// machine wrote are not believed.
    fn is_dead(&mut self, found: &Lease) -> bool {
        let version = found.metadata.resource_version.clone().unwrap_or_default();
        let now = Instant::now();
        match &self.seen {
            Some((seen, since)) if *seen == version => {
                let seconds = found.spec.as_ref().and_then(|spec| spec.lease_duration_seconds);
                let term = seconds.and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs);
                now.duration_since(*since) >= term.unwrap_or(TERM).max(TERM)
            }
            _ => {
                self.seen = Some((version, now));
                false
            }
        }
    }

    /// A new object, which goes when the lease's namespace does.
    async fn new_object(&self) -> Result<Lease, Error> {
        let api: Api<Namespace> = Api::all(self.turns.0.client.clone());
        let found = api.get_opt(&self.lease).await.map_err(|error| failed("reading a namespace", &error))?;
        let uid = found.and_then(|namespace| namespace.metadata.uid);
        let uid = uid.ok_or_else(|| Error::NotFound(format!("namespace {}", self.lease)))?;
        let new = object::new(&self.name, &self.turns.0.namespace, (&self.lease, uid));
        Ok(self.written(new, String::new()))
    }

    /// The object as this gateway writes it, as its holder.
    fn written(&self, object: Lease, note: String) -> Lease {
        object::held(object, &self.turns.0.me, TERM, note)
    }

    /// Writes until it is written, or the turn is lost.
    async fn renew(&mut self, note: Option<String>) -> Result<(), Error> {
        let lost = || Error::Conflict("another gateway has the turn".to_owned());
        let mut failure = "no answer".to_owned();
        loop {
            let mine = self.mine.clone().ok_or_else(lost)?;
            let note = note.clone().unwrap_or_else(|| note_of(&mine).to_owned());
            let wish = self.written(mine, note);
            let (api, sent, end) = (self.turns.api(), Instant::now(), self.renewed + OWN_TERM);
            let late = end.min(sent + WRITE_MAX);
            match tokio::time::timeout_at(late, api.replace(&self.name, &PostParams::default(), &wish)).await
            {
                Ok(Ok(mine)) => {
                    (self.mine, self.renewed) = (Some(mine), sent);
                    return Ok(());
                }
                // A write of this gateway whose answer was lost, or another gateway's.
                Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => {
                    match tokio::time::timeout_at(
                        end.min(Instant::now() + WRITE_MAX),
                        api.get_opt(&self.name),
                    )
                    .await
                    {
                        Ok(Ok(Some(found))) if holder_of(&found) == self.turns.0.me => {
                            self.mine = Some(found);
                            continue;
                        }
                        Ok(Ok(_)) => {
                            self.mine = None;
                            return Err(lost());
                        }
                        Ok(Err(error)) => failure = error.to_string(),
                        Err(_) => {}
                    }
                }
                Ok(Err(error)) => failure = error.to_string(),
                Err(_) => {}
            }
            if Instant::now() + RETRY >= end {
                self.mine = None;
                return Err(Error::Unavailable(format!("renewing a turn: {failure}")));
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn keep_on(&mut self) -> Error {
        loop {
            tokio::time::sleep_until(self.renewed + RENEW_EVERY).await;
            if let Err(error) = self.renew(None).await {
                return error;
            }
        }
    }

    async fn try_leave(&mut self, note: String) -> Result<(), Error> {
        loop {
            let Some(mut mine) = self.mine.clone() else {
                return Ok(());
            };
            let left = if note.is_empty() {
                self.turns.delete(&self.name, as_is(&mine)).await
            } else {
                mine = self.written(mine, note.clone());
                if let Some(spec) = &mut mine.spec {
                    spec.holder_identity = None;
                }
                let left = self.turns.api().replace(&self.name, &PostParams::default(), &mine).await;
                left.map(|left| self.turns.keep(&left))
            };
            match left {
                Ok(()) => self.mine = None,
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
                    let found = self.turns.api().get_opt(&self.name).await;
                    let found = found.map_err(|error| failed("reading a turn", &error))?;
                    self.mine = found.filter(|found| holder_of(found) == self.turns.0.me);
                }
                Err(error) => return Err(failed("giving a turn back", &error)),
            }
        }
    }
}

impl LeaseLock for KubeLeaseLock {
    fn acquire_or_observe(&mut self) -> BoxFuture<'_, Result<LockState, Error>> {
        Box::pin(async {
            let looked = tokio::time::timeout(LOOK_MAX, self.try_look()).await;
            looked.unwrap_or_else(|_| Err(Error::Unavailable("reading a turn: no answer".to_owned())))
        })
    }

    fn write_payload(&mut self, note: String) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.renew(Some(note)))
    }

    fn renew_until_lost(&mut self) -> BoxFuture<'_, Error> {
        Box::pin(self.keep_on())
    }

    fn release(&mut self, note: String) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            let left = tokio::time::timeout(LEAVE_MAX, self.try_leave(note)).await;
            // Whatever came of it, there will be no further write of this turn.
            self.mine = None;
            left.unwrap_or_else(|_| Err(Error::Unavailable("giving a turn back: no answer".to_owned())))
        })
    }
}

fn failed(what: &str, error: &kube::Error) -> Error {
    let text = format!("{what}: {error}");
    match error {
        // An API server that has just been started knows nobody's rights yet (401, 403); and that they are there was asked at the start.
        kube::Error::Api(status) if matches!(status.code, 400 | 402 | 404..=428 | 430..=499) => {
            Error::Broken(text)
        }
        _ => Error::Unavailable(text),
    }
}
