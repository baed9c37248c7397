//! Restart locks as Kubernetes Lease objects (`coordination.k8s.io`) in the gateways' own namespace: one
//! object per lease that is being restarted.
//!
//! Each write names the version that it replaces, so of two concurrent writes one fails. An object is owned
//! by the namespace of its lease, and Kubernetes deletes it with that. While the lease exists, the gateway
//! that wrote the payload last deletes the object when its content has expired.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_core::future::BoxFuture;
use k8s_openapi::api::coordination::v1::{Lease as LeaseObject, LeaseSpec as LeaseObjectSpec};
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, Client};
use parking_lot::Mutex;
use tokio::time::{Instant, timeout, timeout_at};

use super::api::has_changed;
use super::{jittered, names};
use crate::model::id::LeaseId;
use crate::platform::Error;
use crate::platform::coordination::{LockCandidate, LockState, RestartLocks};

/// Time without renewal after which other gateways take the lock over: the lease duration of client-go's
/// leader election.
const LOCK_DURATION: Duration = Duration::from_secs(15);

/// Time without renewal after which a holder has lost the lock by its own clock: well before another gateway
/// takes it over.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);

/// Interval of renewals: three before [`RENEW_DEADLINE`].
const RENEWAL_INTERVAL: Duration = Duration::from_secs(3);

/// Interval at which a candidate tries to acquire the lock, jittered.
const ACQUIRE_INTERVAL: Duration = Duration::from_secs(2);

/// Longest attempt to acquire the lock: a dead connection would take longer to fail.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest write that renews the lock, so that another attempt fits before [`RENEW_DEADLINE`].
const WRITE_TIMEOUT: Duration = Duration::from_secs(3);

/// Delay before a failed write is retried.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Longest time to release a lock: a drain waits for it.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(3);

/// Age at which a payload that was not overwritten is deleted: a little longer than the requests in it are
/// remembered.
const PAYLOAD_KEPT: Duration = Duration::from_secs(3_900);

/// Most objects that wait for their deletion. Further ones go with their lease.
const PENDING_DELETIONS_MAX: usize = 1_024;

/// The restart locks of a cluster. Cheap to clone.
#[derive(Clone)]
pub struct KubeRestartLocks(Arc<Shared>);

struct Shared {
    client: Client,
    /// The namespace of the locks.
    namespace: String,
    /// This gateway's unique name.
    me: String,
    /// Objects to delete later, oldest first.
    kept: Mutex<VecDeque<Kept>>,
}

/// An object that this gateway wrote last, as far as it knows.
struct Kept {
    until: Instant,
    name: String,
    as_written: Preconditions,
}

struct KubeLockCandidate {
    locks: KubeRestartLocks,
    /// The namespace of the Akash lease.
    lease_namespace: String,
    name: String,
    has_tried: bool,
    /// The version that another holder wrote, and when it was seen first.
    seen: Option<(String, Instant)>,
    /// The object as this gateway wrote it; `None`: this gateway does not hold the lock.
    mine: Option<LeaseObject>,
    /// When the write was sent; the API server stored it later.
    renewed: Instant,
}

// === impl KubeRestartLocks ===

impl KubeRestartLocks {
    /// Creates locks in `namespace`, where all names that begin with `leasemux-` are reserved for them.
    pub fn new(client: Client, namespace: String) -> Self {
        // The name of the pod tells an operator more than a number does.
        let host = std::env::var("HOSTNAME").unwrap_or_default();
        let me = format!("{host}_{}", uuid::Uuid::new_v4());
        Self(Arc::new(Shared { client, namespace, me, kept: Mutex::default() }))
    }

    /// Deletes expired payloads. To be called periodically.
    pub async fn sweep(&self) {
        let due: Vec<Kept> = {
            let (mut kept, now) = (self.0.kept.lock(), Instant::now());
            let due = kept.partition_point(|kept| kept.until <= now);
            kept.drain(..due).collect()
        };
        for kept in due {
            // If another gateway has written it since, that one deletes it.
            if let Err(error) = self.delete(&kept.name, kept.as_written).await {
                let error = &error as &dyn std::error::Error;
                tracing::debug!(error, name = kept.name, "failed to delete restart lock");
            }
        }
    }

    /// Keeps the object for [`PAYLOAD_KEPT`], and has it deleted then.
    fn keep(&self, written: &LeaseObject) {
        let mut kept = self.0.kept.lock();
        if kept.len() == PENDING_DELETIONS_MAX {
            kept.pop_front();
        }
        let name = written.metadata.name.clone().unwrap_or_default();
        let until = Instant::now() + PAYLOAD_KEPT;
        kept.push_back(Kept { until, name, as_written: preconditions(written) });
    }

    fn api(&self) -> Api<LeaseObject> {
        Api::namespaced(self.0.client.clone(), &self.0.namespace)
    }

    async fn get(&self, name: &str) -> Result<Option<LeaseObject>, Error> {
        self.api().get_opt(name).await.map_err(|error| failed("read a restart lock", &error))
    }

    /// Replaces an object that was read, or creates a new one.
    async fn write(&self, object: &LeaseObject) -> kube::Result<LeaseObject> {
        let (api, params) = (self.api(), PostParams::default());
        match &object.metadata {
            ObjectMeta { resource_version: None, .. } => api.create(&params, object).await,
            ObjectMeta { name, .. } => {
                api.replace(name.as_deref().unwrap_or_default(), &params, object).await
            }
        }
    }

    async fn delete(&self, name: &str, preconditions: Preconditions) -> kube::Result<()> {
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        self.api().delete(name, &params).await.map(drop)
    }
}

impl RestartLocks for KubeRestartLocks {
    fn payload(&self, lease: &LeaseId) -> BoxFuture<'static, Result<String, Error>> {
        let (locks, name) = (self.clone(), object_name(&lease.namespace()));
        Box::pin(async move {
            let found = locks.get(&name).await?;
            Ok(found.as_ref().map(payload_of).unwrap_or_default().to_owned())
        })
    }

    fn candidate(&self, lease: &LeaseId) -> Box<dyn LockCandidate> {
        let lease_namespace = lease.namespace();
        Box::new(KubeLockCandidate {
            locks: self.clone(),
            name: object_name(&lease_namespace),
            lease_namespace,
            has_tried: false,
            seen: None,
            mine: None,
            renewed: Instant::now(),
        })
    }
}

impl std::fmt::Debug for KubeRestartLocks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KubeRestartLocks").field("me", &self.0.me).finish_non_exhaustive()
    }
}

// === impl KubeLockCandidate ===

impl KubeLockCandidate {
    fn me(&self) -> &str {
        &self.locks.0.me
    }

    async fn try_acquire(&mut self) -> Result<LockState, Error> {
        if std::mem::replace(&mut self.has_tried, true) {
            tokio::time::sleep(jittered(ACQUIRE_INTERVAL)).await;
        }
        let (mut holder, mut payload) = (String::new(), String::new());
        let found = self.locks.get(&self.name).await?;
        let is_new = found.is_none();
        let new = match found {
            None => self.new_object().await?,
            Some(found) => {
                (holder, payload) = (holder_of(&found).to_owned(), payload_of(&found).to_owned());
                if !holder.is_empty() && holder != self.me() {
                    if !self.is_dead(&found) {
                        return Ok(LockState::HeldByOther { holder, payload });
                    }
                    tracing::warn!(holder, name = self.name, "taking over restart lock that was not renewed");
                }
                held(found, self.me(), payload.clone())
            }
        };
        let sent = Instant::now();
        match self.locks.write(&new).await {
            Ok(mine) => {
                (self.mine, self.renewed, self.seen) = (Some(mine), sent, None);
                Ok(LockState::Held(payload))
            }
            // Another gateway was first, or has deleted it.
            Err(kube::Error::Api(status)) if status.code == 409 || status.code == 404 && !is_new => {
                self.seen = None;
                Ok(LockState::HeldByOther { holder, payload })
            }
            Err(error) => Err(failed("acquire a restart lock", &error)),
        }
    }

    /// Returns whether the holder has written nothing for [`LOCK_DURATION`] since this version was seen
    /// first. Times that another machine wrote are not trusted.
    fn is_dead(&mut self, found: &LeaseObject) -> bool {
        let version = found.metadata.resource_version.clone().unwrap_or_default();
        let now = Instant::now();
        match &self.seen {
            Some((seen, since)) if *seen == version => {
                let seconds = found.spec.as_ref().and_then(|spec| spec.lease_duration_seconds);
                let duration = seconds.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or_default();
                now.duration_since(*since) >= Duration::from_secs(duration).max(LOCK_DURATION)
            }
            _ => {
                self.seen = Some((version, now));
                false
            }
        }
    }

    /// Creates an object that Kubernetes deletes with the lease's namespace.
    async fn new_object(&self) -> Result<LeaseObject, Error> {
        let api: Api<Namespace> = Api::all(self.locks.0.client.clone());
        let found =
            api.get_opt(&self.lease_namespace).await.map_err(|error| failed("read a namespace", &error))?;
        let uid = found.and_then(|namespace| namespace.metadata.uid);
        let uid = uid.ok_or_else(|| Error::NotFound(format!("namespace {}", self.lease_namespace)))?;
        let new = new_object(&self.name, &self.locks.0.namespace, (&self.lease_namespace, uid));
        Ok(held(new, self.me(), String::new()))
    }

    /// Writes the object, with the same payload if `payload` is `None`. Retries until it is written or the
    /// lock is lost.
    async fn renew(&mut self, payload: Option<String>) -> Result<(), Error> {
        let lost = || Error::Conflict("another gateway holds the restart lock".to_owned());
        let mut failure = None;
        loop {
            let mine = self.mine.clone().ok_or_else(lost)?;
            let payload = payload.clone().unwrap_or_else(|| payload_of(&mine).to_owned());
            let wish = held(mine, self.me(), payload);
            let (sent, end) = (Instant::now(), self.renewed + RENEW_DEADLINE);
            match timeout_at(end.min(sent + WRITE_TIMEOUT), self.locks.write(&wish)).await {
                Ok(Ok(mine)) => {
                    (self.mine, self.renewed) = (Some(mine), sent);
                    return Ok(());
                }
                // Another gateway wrote the object, or this one did and the response was lost.
                Ok(Err(error)) if has_changed(&error) => {
                    let until = end.min(Instant::now() + WRITE_TIMEOUT);
                    match timeout_at(until, self.locks.api().get_opt(&self.name)).await {
                        Ok(Ok(found)) => {
                            self.mine = found.filter(|found| holder_of(found) == self.me());
                            continue;
                        }
                        Ok(Err(error)) => failure = Some(error.to_string()),
                        Err(_) => {}
                    }
                }
                Ok(Err(error)) => failure = Some(error.to_string()),
                // An earlier failure tells more than a missing response.
                Err(_) => {}
            }
            if Instant::now() + RETRY_DELAY >= end {
                self.mine = None;
                let why = failure.unwrap_or_else(|| "no response".to_owned());
                return Err(Error::Unavailable(format!("failed to renew a restart lock: {why}")));
            }
            tokio::time::sleep(RETRY_DELAY).await;
        }
    }

    async fn try_release(&mut self, payload: String) -> Result<(), Error> {
        while let Some(mine) = self.mine.clone() {
            let released = if payload.is_empty() {
                self.locks.delete(&self.name, preconditions(&mine)).await
            } else {
                let mut wish = held(mine, self.me(), payload.clone());
                if let Some(spec) = &mut wish.spec {
                    spec.holder_identity = None;
                }
                self.locks.write(&wish).await.map(|written| self.locks.keep(&written))
            };
            match released {
                Ok(()) => self.mine = None,
                Err(error) if has_changed(&error) => {
                    let found = self.locks.get(&self.name).await?;
                    self.mine = found.filter(|found| holder_of(found) == self.me());
                }
                Err(error) => return Err(failed("release a restart lock", &error)),
            }
        }
        Ok(())
    }
}

impl LockCandidate for KubeLockCandidate {
    fn acquire_or_observe(&mut self) -> BoxFuture<'_, Result<LockState, Error>> {
        Box::pin(async {
            let acquired = timeout(ACQUIRE_TIMEOUT, self.try_acquire()).await;
            acquired.unwrap_or_else(|_| Err(no_response("read")))
        })
    }

    fn write_payload(&mut self, payload: String) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.renew(Some(payload)))
    }

    fn renew_until_lost(&mut self) -> BoxFuture<'_, Error> {
        Box::pin(async {
            loop {
                tokio::time::sleep_until(self.renewed + RENEWAL_INTERVAL).await;
                if let Err(error) = self.renew(None).await {
                    return error;
                }
            }
        })
    }

    fn release(&mut self, payload: String) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            let released = timeout(RELEASE_TIMEOUT, self.try_release(payload)).await;
            // This gateway does not write the lock again, whether it was released or not.
            self.mine = None;
            released.unwrap_or_else(|_| Err(no_response("release")))
        })
    }
}

fn no_response(action: &str) -> Error {
    Error::Unavailable(format!("failed to {action} a restart lock: no response"))
}

/// Returns the name of the lock of the lease in this namespace.
fn object_name(lease_namespace: &str) -> String {
    format!("leasemux-{lease_namespace}")
}

fn holder_of(object: &LeaseObject) -> &str {
    object.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default()
}

fn payload_of(object: &LeaseObject) -> &str {
    let annotations = object.metadata.annotations.as_ref();
    annotations.and_then(|all| all.get(names::LOCK_PAYLOAD)).map(String::as_str).unwrap_or_default()
}

/// Returns the preconditions of a write to this very object in this very version.
fn preconditions(object: &LeaseObject) -> Preconditions {
    let meta = &object.metadata;
    Preconditions { uid: meta.uid.clone(), resource_version: meta.resource_version.clone() }
}

/// Creates an object in `own` that the namespace `owner` with this UID owns.
fn new_object(name: &str, own: &str, (owner, uid): (&str, String)) -> LeaseObject {
    let owner = OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Namespace".to_owned(),
        name: owner.to_owned(),
        uid,
        ..OwnerReference::default()
    };
    let metadata = ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(own.to_owned()),
        owner_references: Some(vec![owner]),
        ..ObjectMeta::default()
    };
    LeaseObject { metadata, spec: None }
}

/// Returns the object as `holder` writes it to hold the lock for another [`LOCK_DURATION`].
fn held(mut object: LeaseObject, holder: &str, payload: String) -> LeaseObject {
    let now = MicroTime(k8s_openapi::jiff::Timestamp::now());
    let spec = object.spec.get_or_insert_with(LeaseObjectSpec::default);
    if spec.holder_identity.as_deref() != Some(holder) {
        spec.holder_identity = Some(holder.to_owned());
        spec.acquire_time = Some(now.clone());
        spec.lease_transitions = Some(spec.lease_transitions.unwrap_or_default().saturating_add(1));
    }
    spec.lease_duration_seconds = Some(i32::try_from(LOCK_DURATION.as_secs()).unwrap_or(i32::MAX));
    spec.renew_time = Some(now);
    object.metadata.annotations.get_or_insert_default().insert(names::LOCK_PAYLOAD.to_owned(), payload);
    object.metadata.managed_fields = None;
    object
}

fn failed(action: &str, error: &kube::Error) -> Error {
    let text = format!("failed to {action}: {error}");
    match error {
        // Retryable: 401 and 403, because an API server that has just started knows no permissions yet, and
        // those were checked at the start.
        kube::Error::Api(status) if matches!(status.code, 400 | 402 | 404..=428 | 430..=499) => {
            Error::Broken(text)
        }
        _ => Error::Unavailable(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gateways of other versions read and write this object.
    #[test]
    fn recorded_object_is_read_and_written_unchanged() {
        const RECORDED: &str = include_str!("../../../tests/surface/fixtures/kubernetes-lease.json");
        let found: LeaseObject = serde_json::from_str(RECORDED).unwrap();
        assert_eq!((holder_of(&found), payload_of(&found)), ("gateway-1_uuid", "{\"hand\":{}}"));
        assert_eq!(found.metadata.name, Some(object_name("namespace")));
        let fresh = new_object(&object_name("namespace"), "gateways", ("namespace", "uid".to_owned()));
        let mut written = held(fresh, "gateway-1_uuid", payload_of(&found).to_owned());
        let (spec, times) = (written.spec.as_mut().unwrap(), found.spec.as_ref().unwrap());
        (spec.acquire_time, spec.renew_time) = (times.acquire_time.clone(), times.renew_time.clone());
        assert_eq!(serde_json::to_string_pretty(&written).unwrap() + "\n", RECORDED);
    }
}
