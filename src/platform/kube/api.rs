//! Requests about one pod: its log, its deletion, its replica index.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_core::future::BoxFuture;
use futures_util::StreamExt as _;
use http_body_util::BodyExt as _;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::client::Body;
use kube::{Api, Client};
use tokio::time::timeout;

use super::log::served_run::{PreviousLog, ServedRun, served_run};
use super::log::{LogApi, LogQuery, OpenError, Response};
use super::names;
use super::namespace::PendingIndexWrite;
use super::objects::{ContainerFacts, PodFacts};
use super::open_limiter::{OpenLimiter, Reached, Unreachable};
use super::store::Store;
use crate::model::id::Instance;

/// Longest time to open a log: kubelets respond before the first line. Bounds the time that a half-open
/// connection takes from others.
const OPEN_MAX: Duration = Duration::from_secs(30);

/// Most bytes of an error response.
const REFUSAL_MAX_BYTES: usize = 16 * 1024;

/// Bytes requested from the log of a previous run: the time of its first line, or the text that names its
/// container.
const PREVIOUS_BYTES: u64 = 256;

/// Part of the API server's error text if it could not reach the kubelet: the path of its request.
const KUBELET_PATH: &str = "/containerLogs/";

/// The error, and how far the request came.
type Failed = (Reached, OpenError);

/// The log of one run of a pod's container.
#[derive(Clone)]
pub(super) struct PodLog {
    pub(super) client: Client,
    pub(super) store: Store,
    pub(super) limiter: OpenLimiter,
    pub(super) namespace: String,
    pub(super) instance: Instance,
}

// === impl PodLog ===

impl LogApi for PodLog {
    fn open(&self, query: LogQuery) -> BoxFuture<'_, Result<Response, OpenError>> {
        Box::pin(self.open_limited(query))
    }

    fn follow_unavailable(&self) {
        let node = self.store.pod(&self.namespace, self.instance.parts().0).and_then(|pod| pod.node);
        self.limiter.follow_unavailable(node.as_deref().unwrap_or_default());
    }
}

impl PodLog {
    async fn open_limited(&self, query: LogQuery) -> Result<Response, OpenError> {
        let node = self.store.pod(&self.namespace, self.instance.parts().0).and_then(|pod| pod.node);
        let permit = self.limiter.acquire(node.as_deref()).await;
        let permit = permit
            .map_err(|Unreachable| OpenError::Unreachable("it was unreachable a moment ago".to_owned()))?;
        let opened = timeout(OPEN_MAX, self.open_run(query)).await;
        let opened = opened.unwrap_or_else(|_| {
            let why = format!("no response within {OPEN_MAX:?}");
            Err((Reached::Unknown, OpenError::Unreachable(why)))
        });
        permit.report(opened.as_ref().map_or_else(|(reached, _)| *reached, |_| Reached::Kubelet));
        opened.map_err(|(_, error)| error)
    }

    async fn open_run(&self, query: LogQuery) -> Result<Response, Failed> {
        let (uid, container, number) = self.instance.parts();
        let gone =
            || (Reached::AtLeastServer, OpenError::Gone(format!("the log of run {} is gone", self.instance)));
        let known = self.store.pod(&self.namespace, uid).ok_or_else(gone)?;
        let newest = known.container.as_ref().map(|container| container.restarts).ok_or_else(gone)?;
        let previous = match newest.checked_sub(number) {
            // Between two runs the kubelet serves the last one as both the present and the previous one.
            Some(0) => query.previous || known.container.as_ref().is_some_and(ContainerFacts::is_waiting),
            Some(1) => true,
            _ => return Err(gone()),
        };
        let response = self.request(&known.name, container, query, previous).await?;
        // The API addresses pods by name, and runs by "present" and "previous" only. If pod and run are the
        // same now, they were when the log was opened, as far as the API server knows: see
        // [`LogQuery::previous`].
        let seen = self.pod(&known.name).await?;
        let now = seen.as_ref().and_then(PodFacts::read);
        let is_same = |pod: &PodFacts| {
            pod.uid == uid && pod.container.as_ref().is_some_and(|container| container.restarts == newest)
        };
        let not_now = |why: &str| (Reached::AtLeastServer, OpenError::NotNow(why.to_owned()));
        match now {
            Some(pod) if is_same(&pod) => {
                let response = response.ok_or_else(|| not_now("its kubelet does not know the pod"))?;
                if query.checks_run {
                    self.check_run(seen.as_ref(), &known.name, container).await?;
                }
                Ok(response)
            }
            Some(pod) if pod.uid == uid => Err(not_now("its container was restarted meanwhile")),
            // The pod was deleted after its log was opened. The response has that log to its end: only pods
            // of a stateful set reuse names.
            None if known.ordinal.is_none() => response.ok_or_else(gone),
            _ => Err(gone()),
        }
    }

    /// Checks that the kubelet serves the run that the API server calls the newest. If so, it did when the
    /// log was opened, too.
    async fn check_run(&self, pod: Option<&Pod>, name: &str, container: &str) -> Result<(), Failed> {
        let Some(status) = pod.and_then(|pod| status(pod, container)) else { return Ok(()) };
        let first = LogQuery { limit_bytes: Some(PREVIOUS_BYTES), ..LogQuery::WHOLE };
        let previous = match self.request(name, container, first, true).await {
            Ok(Some(mut response)) => {
                let mut data = BytesMut::new();
                while data.len() < REFUSAL_MAX_BYTES
                    && let Some(portion) = response.next().await
                {
                    let not_read = |error| (Reached::AtLeastServer, OpenError::NotNow(error));
                    data.extend_from_slice(&portion.map_err(not_read)?);
                }
                PreviousLog::read(&data)
            }
            Ok(None) | Err((_, OpenError::Gone(_))) => PreviousLog::None,
            Err(failed) => return Err(failed),
        };
        let later = |unclear| {
            let why = format!("the kubelet serves a later run than {}", self.instance);
            Err((Reached::Kubelet, OpenError::LaterRun { why, unclear }))
        };
        match served_run(status, &previous) {
            ServedRun::Newest => Ok(()),
            ServedRun::Later => later(false),
            ServedRun::Unclear => later(true),
        }
    }

    /// Requests the log. `None` if the API server or the kubelet does not know the pod; perhaps a kubelet
    /// that has just started.
    async fn request(
        &self,
        pod: &str,
        container: &str,
        query: LogQuery,
        previous: bool,
    ) -> Result<Option<Response>, Failed> {
        let mut parameters = format!("container={container}&timestamps=true");
        let mut add = |name: &str, value: String| {
            parameters.extend(["&", name, "=", &value]);
        };
        if query.follow {
            add("follow", "true".to_owned());
        }
        if previous {
            add("previous", "true".to_owned());
        }
        if let Some(lines) = query.tail_lines {
            add("tailLines", lines.to_string());
        }
        if let Some(bytes) = query.limit_bytes {
            add("limitBytes", bytes.to_string());
        }
        let not_sent = |error: String| (Reached::AtLeastServer, OpenError::NotNow(error));
        if let Some(second) = query.since_second {
            let stamp = jiff::Timestamp::from_second(second).map_err(|error| not_sent(error.to_string()))?;
            add("sinceTime", stamp.to_string());
        }
        let uri = format!("/api/v1/namespaces/{}/pods/{pod}/log?{parameters}", self.namespace);
        let request =
            http::Request::get(uri).body(Body::empty()).map_err(|error| not_sent(error.to_string()))?;
        let response = self.client.send(request).await.map_err(|error| failed(&error))?;
        let status = response.status();
        let mut data = response.into_body().into_data_stream();
        if status.is_success() {
            return Ok(Some(data.map(|portion| portion.map_err(|error| error_chain(&error))).boxed()));
        }
        if status == http::StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let mut text = BytesMut::new();
        while let Some(Ok(portion)) = data.next().await {
            text.extend_from_slice(&portion[..portion.len().min(REFUSAL_MAX_BYTES - text.len())]);
            if text.len() == REFUSAL_MAX_BYTES {
                break;
            }
        }
        Err(refusal(status, &text.freeze()))
    }

    async fn pod(&self, pod: &str) -> Result<Option<Pod>, Failed> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        api.get_opt(pod).await.map_err(|error| failed(&error))
    }
}

/// The status of a pod's container.
fn status<'a>(pod: &'a Pod, container: &str) -> Option<&'a ContainerStatus> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    statuses.iter().find(|status| status.name == container)
}

/// Interprets an error response.
fn refusal(status: http::StatusCode, text: &Bytes) -> Failed {
    let message = serde_json::from_slice::<serde_json::Value>(text)
        .ok()
        .and_then(|body| Some(body.get("message")?.as_str()?.to_owned()))
        .unwrap_or_else(|| String::from_utf8_lossy(text).chars().take(256).collect());
    let text = format!("{status}: {message}");
    if status == http::StatusCode::BAD_REQUEST && message.contains("previous terminated container") {
        (Reached::AtLeastServer, OpenError::Gone(message))
    } else if message.contains(KUBELET_PATH) {
        (Reached::Server, OpenError::Unreachable(text))
    } else if is_absent(status.as_u16()) {
        (Reached::Nothing, OpenError::Unreachable(text))
    } else {
        (Reached::AtLeastServer, OpenError::NotNow(text))
    }
}

/// Whether this code comes from a proxy whose API server is down or not serving yet.
fn is_absent(code: u16) -> bool {
    matches!(code, 502..=504)
}

/// Interprets the failure of a request.
fn failed(error: &kube::Error) -> Failed {
    let is_unreached = match error {
        kube::Error::Api(status) => is_absent(status.code),
        kube::Error::HyperError(_) | kube::Error::Service(_) => true,
        _ => false,
    };
    if is_unreached {
        (Reached::Nothing, OpenError::Unreachable(error_chain(error)))
    } else {
        (Reached::AtLeastServer, OpenError::NotNow(error_chain(error)))
    }
}

/// Formats an error with its sources.
pub(super) fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = error.source();
    }
    text
}

/// Deletes a pod, unless another one has its name by now.
pub(super) async fn delete(client: &Client, namespace: &str, pod: &str, uid: &str) -> Result<(), String> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let preconditions = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
    let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
    match api.delete(pod, &params).await {
        Ok(_) => Ok(()),
        // It is gone, or another pod has its name.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        Err(error) => Err(error_chain(&error)),
    }
}

/// Writes the replica index of a pod on it, unless it has changed since it was seen. Returns `false` if that
/// is not permitted.
pub(super) async fn write_index(client: &Client, pod: &PendingIndexWrite) -> bool {
    let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace);
    let patch = serde_json::json!({
        "metadata": {
            "uid": pod.uid,
            "resourceVersion": pod.version,
            "annotations": { names::INDEX: pod.index.to_string() },
        }
    });
    match api.patch_metadata(&pod.pod, &PatchParams::default(), &Patch::Merge(patch)).await {
        Ok(_) => true,
        Err(kube::Error::Api(status)) if status.code == 403 => false,
        // Another gateway was first, or the pod has changed or is gone: the watch will show it.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => true,
        // The write is retried periodically.
        Err(error) => {
            tracing::debug!(error = error_chain(&error), "failed to write replica index");
            true
        }
    }
}
