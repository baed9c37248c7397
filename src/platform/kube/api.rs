//! Requests about one pod or object, and the errors of requests.

use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client};

use super::names;
use super::namespace::PendingIndexWrite;

/// Returns whether an object has changed, or is gone, since the version that a request named.
pub(super) fn has_changed(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 404 | 409))
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
        Err(error) if has_changed(&error) => Ok(()),
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
        Err(error) if has_changed(&error) => true,
        // The write is retried periodically.
        Err(error) => {
            tracing::debug!(error = error_chain(&error), "failed to write replica index");
            true
        }
    }
}
