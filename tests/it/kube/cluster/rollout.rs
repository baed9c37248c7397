//! Pods in a rollout: created, started, crashed, deleted, gone; and the responses of kubelets for a deleted
//! pod.

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::{Response, StatusCode};
use leasemux::model::id::LeaseId;
use serde_json::{Value, json};

use super::{Body, Cluster, FIRST_START, RunKey, at, node_of, refuse, running, terminated};

/// Response of a kubelet for the log of a pod whose container has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogAnswer {
    /// The log, to its end.
    Serve,
    /// The container was removed: a message in place of lines.
    Message,
    /// The container was removed: 400.
    Refuse,
    /// It no longer knows the pod: 404.
    Forgot,
    /// The response breaks off within its first line.
    CutOff,
}

impl LogAnswer {
    /// The response; `None` if it is the log.
    pub(super) fn response(self, pod: &str) -> Option<Response<Body>> {
        let text = |text: &str| {
            let body = http_body_util::Full::from(text.to_owned()).map_err(|never| match never {}).boxed();
            Response::new(body)
        };
        match self {
            Self::Serve => None,
            Self::Message => Some(text("unable to retrieve container logs for containerd://x")),
            Self::Refuse => {
                let why = format!("container in pod \"{pod}\" is not available");
                Some(refuse(StatusCode::BAD_REQUEST, &why))
            }
            Self::Forgot => {
                Some(refuse(StatusCode::NOT_FOUND, "the server could not find the requested resource"))
            }
            Self::CutOff => Some(cut_off()),
        }
    }
}

/// Seconds of the hour as the time when a pod was created.
fn created(second: u32) -> String {
    format!("2026-11-25T00:{:02}:{:02}Z", second / 60 % 60, second % 60)
}

impl Cluster {
    /// Creates a pod of a replica set. Its container is being created. `second` orders pods by age.
    pub(crate) fn create_pod(&self, lease: &LeaseId, service: &str, set: &str, pod: &str, second: u32) {
        let labels = json!({ "akash.network": "true", "akash.network/manifest-service": service });
        let owner = json!({ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": set, "uid": set, "controller": true });
        let waiting = json!({ "waiting": { "reason": "ContainerCreating" } });
        self.put(
            "pods",
            json!({
                "metadata": { "name": pod, "namespace": lease.namespace(), "uid": format!("uid-{pod}"), "labels": labels,
                    "creationTimestamp": created(second), "ownerReferences": [owner] },
                "spec": { "containers": [], "nodeName": node_of(pod) },
                "status": { "phase": "Pending", "containerStatuses": [{ "name": service, "image": "", "imageID": "", "ready": false,
                    "restartCount": 0, "state": waiting }] },
            }),
        );
    }

    /// Changes a pod and keeps the rest, such as its written index.
    pub(crate) fn edit_pod(&self, lease: &LeaseId, pod: &str, edit: impl FnOnce(&mut Value)) {
        let key = ("pods".to_owned(), format!("{}/{pod}", lease.namespace()));
        self.change(|state| {
            let mut object = state.objects[&key].clone();
            edit(&mut object);
            state.put("pods", object);
        });
    }

    /// Starts a run of a pod's container.
    pub(crate) fn start_pod(&self, lease: &LeaseId, service: &str, pod: &str, restarts: u32) -> RunKey {
        let key = (format!("uid-{pod}"), service.to_owned(), restarts);
        let start = self.first_start(&key.0);
        self.change(|state| {
            state.logs.entry(key.clone()).or_default();
        });
        self.edit_pod(lease, pod, |object| {
            let container = &mut object["status"]["containerStatuses"][0];
            container["lastState"] =
                if restarts == 0 { json!({}) } else { terminated(start, restarts - 1, 7) };
            container["state"] = running(start, restarts);
            container["restartCount"] = json!(restarts);
            container["containerID"] = json!(format!("containerd://{restarts}"));
            set_ready(object, true);
        });
        key
    }

    /// Marks a running pod as ready or not.
    pub(crate) fn set_ready(&self, lease: &LeaseId, pod: &str, is_ready: bool) {
        self.edit_pod(lease, pod, |object| set_ready(object, is_ready));
    }

    /// Ends a run with an exit code. The kubelet waits before the next one.
    pub(crate) fn exit_pod(&self, lease: &LeaseId, pod: &str, run: &RunKey, code: i32) {
        self.end(run);
        let start = self.first_start(&run.0);
        self.edit_pod(lease, pod, |object| {
            let container = &mut object["status"]["containerStatuses"][0];
            container["lastState"] = terminated(start, run.2, code);
            container["state"] =
                json!({ "waiting": { "reason": "CrashLoopBackOff", "message": "back-off" } });
            set_ready(object, false);
        });
    }

    /// Begins the deletion of a pod.
    pub(crate) fn mark_deleted(&self, lease: &LeaseId, pod: &str) {
        self.mark_deleted_at(lease, pod, 0);
    }

    /// The same, this many seconds after the hour.
    pub(crate) fn mark_deleted_at(&self, lease: &LeaseId, pod: &str, second: i64) {
        self.edit_pod(lease, pod, |object| {
            object["metadata"]["deletionTimestamp"] = json!(at(FIRST_START + 3_600 + second));
        });
    }

    /// Sets the response to requests for the log of a pod.
    pub(crate) fn answer_logs(&self, run: &RunKey, answer: LogAnswer) {
        self.change(|state| state.answers.insert(run.0.clone(), answer));
    }

    /// Ends the container of a pod that is being deleted. `is_reported` if the kubelet reports it before the
    /// pod is gone.
    pub(crate) fn end_deleted(
        &self,
        lease: &LeaseId,
        pod: &str,
        run: &RunKey,
        answer: LogAnswer,
        is_reported: bool,
    ) {
        self.answer_logs(run, answer);
        self.end(run);
        if is_reported {
            self.report_end(lease, pod, run, "");
        }
    }

    /// Reports that the container of a pod that is being deleted or was evicted has ended. `reason` is that
    /// of the pod, if it has one.
    pub(crate) fn report_end(&self, lease: &LeaseId, pod: &str, run: &RunKey, reason: &str) {
        let start = self.first_start(&run.0);
        self.edit_pod(lease, pod, |object| {
            let container = &mut object["status"]["containerStatuses"][0];
            container["state"] = terminated(start, run.2, 137);
            container["lastState"] =
                run.2.checked_sub(1).map_or(json!({}), |before| terminated(start, before, 7));
            set_ready(object, false);
            object["status"]["phase"] = json!("Failed");
            if !reason.is_empty() {
                object["status"]["reason"] = json!(reason);
            }
        });
    }

    /// Sets the second in which the first run of a pod begins.
    pub(crate) fn start_at(&self, pod: &str, second: i64) {
        self.change(|state| state.starts.insert(format!("uid-{pod}"), second));
    }

    /// Returns the second in which the first run of a pod begins.
    pub(super) fn first_start(&self, uid: &str) -> i64 {
        self.lock().starts.get(uid).copied().unwrap_or(FIRST_START)
    }

    /// Returns the second of the last line of a run.
    pub(crate) fn last_second(&self, run: &RunKey) -> i64 {
        self.lock().logs[run].lines.last().map_or(FIRST_START, |(time, _)| time / 1_000_000_000)
    }

    /// Whether a run has ended.
    pub(crate) fn ended(&self, run: &RunKey) -> bool {
        self.lock().logs[run].ended
    }

    /// Open follows of a pod's log.
    pub(crate) fn follows_of(&self, uid: &str) -> usize {
        self.lock().follows_by_pod.get(uid).copied().unwrap_or_default()
    }

    /// The pods of a lease.
    pub(crate) fn pods(&self, lease: &LeaseId) -> Vec<Value> {
        let within = format!("{}/", lease.namespace());
        let state = self.lock();
        let pods =
            state.objects.iter().filter(|((kind, name), _)| kind == "pods" && name.starts_with(&within));
        pods.map(|(_, object)| object.clone()).collect()
    }

    /// Sets the number of replicas of a deployment.
    pub(crate) fn scale(&self, lease: &LeaseId, service: &str, count: u32) {
        let key = ("deployments".to_owned(), format!("{}/{service}", lease.namespace()));
        self.change(|state| {
            let mut object = state.objects[&key].clone();
            object["spec"]["replicas"] = json!(count);
            state.put("deployments", object);
        });
    }
}

/// A response that breaks off in the time of its first line.
fn cut_off() -> Response<Body> {
    let portions = stream::unfold(0, |step| async move {
        // Earlier data is sent first.
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
        let portion = match step {
            0 => Ok(Frame::data(Bytes::from_static(b"2026-11-2"))),
            _ => Err(std::io::Error::other("the connection is reset")),
        };
        Some((portion, step + 1))
    });
    Response::new(BodyExt::boxed(StreamBody::new(portions)))
}

fn set_ready(object: &mut Value, is_ready: bool) {
    let status = &mut object["status"];
    status["phase"] = json!("Running");
    status["containerStatuses"][0]["ready"] = json!(is_ready);
    let text = if is_ready { "True" } else { "False" };
    status["conditions"] = json!([{ "type": "Ready", "status": text }]);
}
