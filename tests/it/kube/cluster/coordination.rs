//! Kubernetes Lease objects (`coordination.k8s.io`): each write names the version that it replaces.

use hyper::{Method, Response, StatusCode};
use serde_json::{Value, json};

use super::{Body, Cluster, refuse, respond};

/// The plural.
const KIND: &str = "leases";

impl Cluster {
    pub(super) fn coordination(
        &self,
        method: &Method,
        namespace: &str,
        name: Option<&str>,
        mut body: Value,
    ) -> Response<Body> {
        let name = name.or_else(|| body["metadata"]["name"].as_str()).unwrap_or_default().to_owned();
        let key = (KIND.to_owned(), format!("{namespace}/{name}"));
        self.change(|state| {
            let known = state.objects.get(&key).cloned();
            let (version, uid) = known.as_ref().map_or((&Value::Null, &Value::Null), |known| {
                (&known["metadata"]["resourceVersion"], &known["metadata"]["uid"])
            });
            match (method, &known) {
                (&Method::POST, Some(_)) => return refuse(StatusCode::CONFLICT, "it exists"),
                (&Method::POST, None) => body["metadata"]["uid"] = json!(format!("uid-{}", state.version)),
                (_, None) => return refuse(StatusCode::NOT_FOUND, "no such lease"),
                (&Method::GET, Some(known)) => return respond(known.clone()),
                (&Method::PUT, Some(_)) => {
                    let meta = &body["metadata"];
                    assert!(meta["resourceVersion"].is_string(), "a write over whatever there is");
                    if meta["resourceVersion"] != *version || meta["uid"] != *uid {
                        return refuse(StatusCode::CONFLICT, "another version");
                    }
                }
                (&Method::DELETE, Some(known)) => {
                    let wanted = &body["preconditions"];
                    assert!(wanted["resourceVersion"].is_string(), "whatever there is would be deleted");
                    if wanted["resourceVersion"] != *version || wanted["uid"] != *uid {
                        return refuse(StatusCode::CONFLICT, "another version");
                    }
                    let known = known.clone();
                    state.remove(KIND, namespace, &name, false);
                    return respond(known);
                }
                _ => return refuse(StatusCode::METHOD_NOT_ALLOWED, "no list, no watch"),
            }
            body["metadata"]["namespace"] = json!(namespace);
            state.put(KIND, body);
            respond(state.objects[&key].clone())
        })
    }

    pub(super) fn object(&self, kind: &str, namespace: &str, name: &str) -> Response<Body> {
        let found = self.lock().objects.get(&(kind.to_owned(), format!("{namespace}/{name}"))).cloned();
        found.map_or_else(|| refuse(StatusCode::NOT_FOUND, "no such object"), respond)
    }

    /// All Kubernetes Lease objects.
    pub(crate) fn lease_objects(&self) -> Vec<Value> {
        let state = self.lock();
        state.objects.iter().filter(|((of, _), _)| of == KIND).map(|(_, object)| object.clone()).collect()
    }
}
