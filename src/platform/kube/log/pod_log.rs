//! Requests for the log of one run: addresses the run, limits how many logs are opened at once, and
//! interprets errors.

use std::time::Duration;

use bytes::BytesMut;
use futures_util::StreamExt as _;
use http_body_util::BodyExt as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::api::LogParams;
use kube::client::Body;
use kube::{Api, Client, Resource as _};
use tokio::time::timeout;

use super::served_run::{PreviousLog, ServedRun, served_run};
use super::{LogQuery, OpenError, Response, read_start};
use crate::model::id::Instance;
use crate::platform::kube::api::error_chain;
use crate::platform::kube::objects::{PodFacts, container_status};
use crate::platform::kube::open_limiter::{OpenLimiter, Reached, Unreachable};
use crate::platform::kube::store::Store;

/// Longest time to open a log: kubelets respond before the first line. Bounds the time that a half-open
/// connection takes from others.
const OPEN_MAX: Duration = Duration::from_secs(30);

/// Most bytes that are read of an error response.
const ERROR_MAX_BYTES: usize = 16 * 1024;

/// Bytes requested from the log of a previous run: the time of its first line, or the text that names its
/// container.
const PREVIOUS_BYTES: u64 = 256;

/// Part of the API server's error text if it could not reach the kubelet: the path of its request.
const KUBELET_PATH: &str = "/containerLogs/";

/// The log of one run of a pod's container.
pub(in crate::platform::kube) struct PodLog {
    pub(in crate::platform::kube) client: Client,
    pub(in crate::platform::kube) store: Store,
    pub(in crate::platform::kube) limiter: OpenLimiter,
    pub(in crate::platform::kube) namespace: String,
    pub(in crate::platform::kube) instance: Instance,
}

// === impl PodLog ===

impl PodLog {
    /// Sends a request. The response is that of this very run.
    pub(super) async fn open(&self, query: LogQuery) -> Result<Response, OpenError> {
        let permit = self.limiter.acquire(self.node().as_deref()).await.map_err(|Unreachable| {
            OpenError::Unreachable(Reached::Unknown, "it was unreachable a moment ago".to_owned())
        })?;
        let opened = timeout(OPEN_MAX, self.open_run(query)).await.unwrap_or_else(|_| {
            Err(OpenError::Unreachable(Reached::Unknown, format!("no response within {OPEN_MAX:?}")))
        });
        permit.report(match &opened {
            Ok(_) | Err(OpenError::LaterRun { .. }) => Reached::Kubelet,
            Err(OpenError::Gone(_) | OpenError::Superseded(_) | OpenError::NotNow(_)) => {
                Reached::AtLeastServer
            }
            Err(OpenError::Unreachable(reached, _)) => *reached,
        });
        opened
    }

    async fn open_run(&self, query: LogQuery) -> Result<Response, OpenError> {
        let (uid, container, run_number) = self.instance.parts();
        let gone = || OpenError::Gone(format!("the log of run {} is gone", self.instance));
        let known = self.store.pod(&self.namespace, uid).ok_or_else(gone)?;
        let state = known.container.as_ref().ok_or_else(gone)?;
        let newest = state.run_number;
        let previous = match newest.checked_sub(run_number) {
            // Between two runs the kubelet serves the last one as both the present and the previous one.
            Some(0) => query.previous || state.is_waiting(),
            Some(1) => true,
            _ => return Err(OpenError::Superseded(format!("{newest} is the newest run, not {run_number}"))),
        };
        let response = self.request(&known.name, container, query, previous).await?;
        // The API addresses pods by name, and runs by "present" and "previous" only. If pod and run are the
        // same now, they were when the log was opened, as far as the API server knows: see
        // [`LogQuery::previous`].
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let seen = pods.get_opt(&known.name).await.map_err(|error| not_opened(&error))?;
        let now = seen.as_ref().and_then(PodFacts::read);
        let is_same = |pod: &PodFacts| {
            pod.uid == uid && pod.container.as_ref().is_some_and(|container| container.run_number == newest)
        };
        match now {
            Some(pod) if is_same(&pod) => {
                let unknown = || OpenError::NotNow("its kubelet does not know the pod".to_owned());
                let response = response.ok_or_else(unknown)?;
                if query.checks_run {
                    self.check_run(seen.as_ref(), &known.name, container).await?;
                }
                Ok(response)
            }
            Some(pod) if pod.uid == uid => {
                Err(OpenError::NotNow("its container was restarted meanwhile".to_owned()))
            }
            // The pod was deleted after its log was opened. The response has that log to its end: only pods
            // of a stateful set reuse names.
            None if known.ordinal.is_none() => response.ok_or_else(gone),
            _ => Err(gone()),
        }
    }

    /// Checks that the kubelet serves the run that the API server calls the newest. If so, it did when the
    /// log was opened, too.
    async fn check_run(&self, pod: Option<&Pod>, name: &str, container: &str) -> Result<(), OpenError> {
        let Some(status) = pod.and_then(|pod| container_status(pod, container)) else { return Ok(()) };
        let first = LogQuery { limit_bytes: Some(PREVIOUS_BYTES), ..LogQuery::WHOLE };
        let previous = match self.request(name, container, first, true).await {
            Ok(Some(mut response)) => {
                let data = read_start(&mut response, ERROR_MAX_BYTES).await;
                PreviousLog::read(&data.map_err(OpenError::NotNow)?)
            }
            Ok(None) | Err(OpenError::Gone(_)) => PreviousLog::None,
            Err(error) => return Err(error),
        };
        let served = served_run(status, &previous);
        if served == ServedRun::Newest {
            return Ok(());
        }
        let why = format!("the kubelet serves a later run than {}", self.instance);
        Err(OpenError::LaterRun { why, unclear: served == ServedRun::Unclear })
    }

    /// Requests the log. Returns `None` if the API server or the kubelet does not know the pod; perhaps a
    /// kubelet that has just started.
    async fn request(
        &self,
        pod: &str,
        container: &str,
        query: LogQuery,
        previous: bool,
    ) -> Result<Option<Response>, OpenError> {
        let since_time = query.since_second.map(Timestamp::from_second).transpose();
        let params = LogParams {
            container: Some(container.to_owned()),
            follow: query.follow,
            limit_bytes: query.limit_bytes.map(u64::cast_signed),
            previous,
            since_time: since_time.map_err(|error| OpenError::NotNow(error.to_string()))?,
            tail_lines: query.tail_lines.map(u64::cast_signed),
            timestamps: true,
            ..LogParams::default()
        };
        let request = kube::core::Request::new(Pod::url_path(&(), Some(&self.namespace))).logs(pod, &params);
        let request = request.map_err(|error| OpenError::NotNow(error.to_string()))?;
        let response = self.client.send(request.map(Body::from)).await.map_err(|error| not_opened(&error))?;
        let status = response.status();
        let data = response.into_body().into_data_stream();
        let mut data: Response = data.map(|portion| portion.map_err(|error| error_chain(&error))).boxed();
        match status {
            http::StatusCode::NOT_FOUND => Ok(None),
            _ if status.is_success() => Ok(Some(data)),
            _ => {
                let text = error_text(&mut data).await;
                Err(error_response(status, &text))
            }
        }
    }

    /// Logs that the kubelet cannot follow the log.
    pub(super) fn follow_unavailable(&self) {
        self.limiter.follow_unavailable(&self.node().unwrap_or_default());
    }

    /// Returns the node of the pod, if it is known.
    fn node(&self) -> Option<String> {
        self.store.pod(&self.namespace, self.instance.parts().0)?.node
    }
}

/// Reads the text of an error response, which may break off: what has come still tells the cause.
async fn error_text(response: &mut Response) -> BytesMut {
    let mut text = BytesMut::new();
    while text.len() < ERROR_MAX_BYTES
        && let Some(Ok(portion)) = response.next().await
    {
        text.extend_from_slice(&portion);
    }
    text.truncate(ERROR_MAX_BYTES);
    text
}

/// Interprets an error response.
fn error_response(status: http::StatusCode, text: &[u8]) -> OpenError {
    let message = serde_json::from_slice::<serde_json::Value>(text)
        .ok()
        .and_then(|body| Some(body.get("message")?.as_str()?.to_owned()))
        .unwrap_or_else(|| String::from_utf8_lossy(text).chars().take(256).collect());
    let text = format!("{status}: {message}");
    if status == http::StatusCode::BAD_REQUEST && message.contains("previous terminated container") {
        OpenError::Gone(message)
    } else if message.contains(KUBELET_PATH) {
        OpenError::Unreachable(Reached::Server, text)
    } else if is_absent(status.as_u16()) {
        OpenError::Unreachable(Reached::Nothing, text)
    } else {
        OpenError::NotNow(text)
    }
}

/// Returns whether this code comes from a proxy whose API server is down or not serving yet.
fn is_absent(code: u16) -> bool {
    matches!(code, 502..=504)
}

/// Interprets the failure of a request.
fn not_opened(error: &kube::Error) -> OpenError {
    let is_unreached = match error {
        kube::Error::Api(status) => is_absent(status.code),
        kube::Error::HyperError(_) | kube::Error::Service(_) => true,
        _ => false,
    };
    let why = error_chain(error);
    if is_unreached { OpenError::Unreachable(Reached::Nothing, why) } else { OpenError::NotNow(why) }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::stream;

    use super::*;

    fn response(portions: Vec<Result<Bytes, String>>) -> Response {
        stream::iter(portions).boxed()
    }

    #[tokio::test]
    async fn error_that_breaks_off_is_still_interpreted() {
        let begun = Bytes::from_static(b"{\"message\":\"Get https://node:10250/containerLogs/a");
        let mut cut = response(vec![Ok(begun), Err("connection reset".to_owned())]);
        let error = error_response(http::StatusCode::INTERNAL_SERVER_ERROR, &error_text(&mut cut).await);
        assert!(matches!(error, OpenError::Unreachable(Reached::Server, _)), "{error:?}");
    }

    #[tokio::test]
    async fn long_error_text_is_cut() {
        let portion = Bytes::from(vec![b'x'; ERROR_MAX_BYTES - 1]);
        let mut long = response(vec![Ok(portion); 3]);
        assert_eq!(error_text(&mut long).await.len(), ERROR_MAX_BYTES);
        assert!(long.next().await.is_some(), "the rest is not read");
    }
}
