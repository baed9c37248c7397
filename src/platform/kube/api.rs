//! Requests about one pod: its log, its deletion, its index.

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
use super::objects::{ContainerFacts, PodFacts};
use super::open_limiter::{OpenLimiter, Reached, Unreachable};
use super::store::{PendingIndexWrite, Store};
use crate::model::id::Instance;

/// A log must be open within this: kubelets answer before the first line. A connection that is half open costs others no more.
const OPEN_MAX: Duration = Duration::from_secs(30);

/// Most bytes of an answer that says why not.
const REFUSAL_MAX_BYTES: usize = 16 * 1024;

/// Bytes asked for of the log of a previous run: the time of its first line, or the text that names its container.
const PREVIOUS_BYTES: u64 = 256;

/// Stands in an API server's answer if it could not ask the kubelet, as part of what it asked.
const KUBELET_PATH: &str = "/containerLogs/";

/// Why there is no log, and how far the request came.
type Failed = (Reached, OpenError);

/// Where the log of one run is asked for.
#[derive(Clone)]
pub(super) struct PodLog {
    pub(super) client: Client,
    pub(super) store: Store,
    pub(super) openings: OpenLimiter,
    pub(super) namespace: String,
    pub(super) instance: Instance,
}

/// What came of a request to delete a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deleted {
    /// It is going.
    Going,
    /// It has gone, and perhaps another one has its name.
    Gone,
}

// === impl PodLog ===

impl LogApi for PodLog {
    fn open(&self, ask: LogQuery) -> BoxFuture<'_, Result<Response, OpenError>> {
        Box::pin(self.open_in_turn(ask))
    }

    fn follow_unavailable(&self) {
        let node = self.store.pod(&self.namespace, self.instance.parts().0).and_then(|pod| pod.node);
        self.openings.follow_unavailable(node.as_deref().unwrap_or_default());
    }
}

impl PodLog {
    async fn open_in_turn(&self, ask: LogQuery) -> Result<Response, OpenError> {
        let node = self.store.pod(&self.namespace, self.instance.parts().0).and_then(|pod| pod.node);
        let opening = self.openings.acquire(node.as_deref()).await;
        let opening = opening
            .map_err(|Unreachable| OpenError::Unreachable("it was not reached a moment ago".to_owned()))?;
        let opened = timeout(OPEN_MAX, self.open_run(ask)).await;
        let opened = opened.unwrap_or_else(|_| {
            Err((Reached::Unknown, OpenError::Unreachable("it was not open in time".to_owned())))
        });
        opening.reached(opened.as_ref().map_or_else(|(reached, _)| *reached, |_| Reached::Kubelet));
        opened.map_err(|(_, error)| error)
    }

    async fn open_run(&self, ask: LogQuery) -> Result<Response, Failed> {
        let (uid, container, number) = self.instance.parts();
        let gone =
            || (Reached::SomeWay, OpenError::Gone(format!("the log of run {} is gone", self.instance)));
        let known = self.store.pod(&self.namespace, uid).ok_or_else(gone)?;
        let newest = known.container.as_ref().map(|container| container.restarts).ok_or_else(gone)?;
        let previous = match newest.checked_sub(number) {
            // Between two runs the kubelet serves the last one as both, and will serve the next one as the present one.
            Some(0) => ask.previous || known.container.as_ref().is_some_and(ContainerFacts::is_waiting),
            Some(1) => true,
            _ => return Err(gone()),
        };
        let response = self.request(&known.name, container, ask, previous).await?;
        // The API knows pods by name and containers by "this" and "previous" only. If it is still the same pod and the same run
        // now, it was when the log was opened, as far as the API server has been told: see [`LogQuery::previous`].
        let seen = self.look(&known.name).await?;
        let now = seen.as_ref().and_then(PodFacts::read);
        let is_same = |pod: &PodFacts| {
            pod.uid == uid && pod.container.as_ref().is_some_and(|container| container.restarts == newest)
        };
        let not_now = |why: &str| (Reached::SomeWay, OpenError::NotNow(why.to_owned()));
        match now {
            Some(pod) if is_same(&pod) => {
                let response = response.ok_or_else(|| not_now("its kubelet does not know of it"))?;
                if ask.checks_run {
                    self.check_run(seen.as_ref(), &known.name, container).await?;
                }
                Ok(response)
            }
            Some(pod) if pod.uid == uid => Err(not_now("its container was restarted meanwhile")),
            // It was deleted after its log was opened. The response still has that log to its end, and only pods of a stateful set get
            // a name that another pod had.
            None if known.ordinal.is_none() => response.ok_or_else(gone),
            _ => Err(gone()),
        }
    }

    /// Whether the kubelet serves the run that the API server calls the newest one: then it did when the log was opened, too.
    async fn check_run(&self, pod: Option<&Pod>, name: &str, container: &str) -> Result<(), Failed> {
        let Some(status) = pod.and_then(|pod| status(pod, container)) else { return Ok(()) };
        let first = LogQuery { limit_bytes: Some(PREVIOUS_BYTES), ..LogQuery::WHOLE };
        let previous = match self.request(name, container, first, true).await {
            Ok(Some(mut response)) => {
                let mut data = BytesMut::new();
                while data.len() < REFUSAL_MAX_BYTES
                    && let Some(portion) = response.next().await
                {
                    let not_read = |error| (Reached::SomeWay, OpenError::NotNow(error));
                    data.extend_from_slice(&portion.map_err(not_read)?);
                }
                PreviousLog::read(&data)
            }
            Ok(None) | Err((_, OpenError::Gone(_))) => PreviousLog::None,
            Err(failed) => return Err(failed),
        };
        let behind = |unclear| {
            let why = format!("the kubelet serves a later run than {}", self.instance);
            Err((Reached::Kubelet, OpenError::LaterRun { why, unclear }))
        };
        match served_run(status, &previous) {
            ServedRun::Newest => Ok(()),
            ServedRun::Later => behind(false),
            ServedRun::Unclear => behind(true),
        }
    }

    /// The answer; `None` if somebody does not know of the pod. That may be a kubelet that has just been started.
    async fn request(
        &self,
        pod: &str,
        container: &str,
        ask: LogQuery,
        previous: bool,
    ) -> Result<Option<Response>, Failed> {
        let mut query = format!("container={container}&timestamps=true");
        let mut add = |name: &str, value: String| {
            query.extend(["&", name, "=", &value]);
        };
        if ask.follow {
            add("follow", "true".to_owned());
        }
        if previous {
            add("previous", "true".to_owned());
        }
        if let Some(lines) = ask.tail_lines {
            add("tailLines", lines.to_string());
        }
        if let Some(bytes) = ask.limit_bytes {
            add("limitBytes", bytes.to_string());
        }
        let not_asked = |error: String| (Reached::SomeWay, OpenError::NotNow(error));
        if let Some(second) = ask.since_second {
            let stamp = jiff::Timestamp::from_second(second).map_err(|error| not_asked(error.to_string()))?;
            add("sinceTime", stamp.to_string());
        }
        let uri = format!("/api/v1/namespaces/{}/pods/{pod}/log?{query}", self.namespace);
        let request =
            http::Request::get(uri).body(Body::empty()).map_err(|error| not_asked(error.to_string()))?;
        let response = self.client.send(request).await.map_err(|error| failed(&error))?;
        let status = response.status();
        let mut data = response.into_body().into_data_stream();
        if status.is_success() {
            return Ok(Some(data.map(|portion| portion.map_err(|error| told(&error))).boxed()));
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

    /// The pod as it is now.
    async fn look(&self, pod: &str) -> Result<Option<Pod>, Failed> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        api.get_opt(pod).await.map_err(|error| failed(&error))
    }
}

/// The status of a pod's container.
fn status<'a>(pod: &'a Pod, container: &str) -> Option<&'a ContainerStatus> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    statuses.iter().find(|status| status.name == container)
}

/// What an answer other than a log means.
fn refusal(status: http::StatusCode, text: &Bytes) -> Failed {
    let message = serde_json::from_slice::<serde_json::Value>(text)
        .ok()
        .and_then(|body| Some(body.get("message")?.as_str()?.to_owned()))
        .unwrap_or_else(|| String::from_utf8_lossy(text).chars().take(256).collect());
    let told = format!("{status}: {message}");
    if status == http::StatusCode::BAD_REQUEST && message.contains("previous terminated container") {
        (Reached::SomeWay, OpenError::Gone(message))
    } else if message.contains(KUBELET_PATH) {
        (Reached::Server, OpenError::Unreachable(told))
    } else if is_absent(status.as_u16()) {
        (Reached::Nobody, OpenError::Unreachable(told))
    } else {
        (Reached::SomeWay, OpenError::NotNow(told))
    }
}

/// Whether an answer with this code is of somebody who stands before an API server that is not there, or does not serve yet.
fn is_absent(code: u16) -> bool {
    matches!(code, 502..=504)
}

/// What it means that a request failed.
fn failed(error: &kube::Error) -> Failed {
    let is_unreached = match error {
        kube::Error::Api(status) => is_absent(status.code),
        kube::Error::HyperError(_) | kube::Error::Service(_) => true,
        _ => false,
    };
    if is_unreached {
        (Reached::Nobody, OpenError::Unreachable(told(error)))
    } else {
        (Reached::SomeWay, OpenError::NotNow(told(error)))
    }
}

/// An error with what is behind it.
pub(super) fn told(error: &dyn std::error::Error) -> String {
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

/// Deletes a pod, if it is still the one with this uid.
pub(super) async fn delete(
    client: &Client,
    namespace: &str,
    pod: &str,
    uid: &str,
) -> Result<Deleted, String> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let preconditions = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
    let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
    match api.delete(pod, &params).await {
        Ok(_) => Ok(Deleted::Going),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(Deleted::Gone),
        Err(error) => Err(told(&error)),
    }
}

/// Writes the index of a pod on it, if it is still as it was seen. `false` if that is not permitted.
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
        // Another gateway was first, the pod has changed, or it has gone: what is so now comes by the watch.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => true,
        // It is looked through what is not written now and then.
        Err(error) => {
            tracing::debug!(error = told(&error), "a replica's index was not written");
            true
        }
    }
}
