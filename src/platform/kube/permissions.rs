//! Checks the gateway's permissions at the start, and names all missing ones at once.

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::api::PostParams;
use kube::{Api, Client};

use super::names::{AKASH_GROUP, HOSTS, LEASED};
use super::start;
use crate::platform::Error;

/// Concurrent access reviews.
const REVIEWS_AT_ONCE: usize = 8;

/// Group, resource (with a slash and the subresource, if any), verbs and scope.
type Permission = (&'static str, &'static str, &'static [&'static str], Scope);

/// The scope of a permission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    Cluster,
    Manifests,
    Own,
}

const READ: &[&str] = &["get", "list", "watch"];

/// The only verb that the gateway works without: it then does not store replica indices.
const OPTIONAL_VERB: &str = "patch";

/// All permissions that the gateway needs. `deploy/kubernetes/` grants exactly these.
const NEEDED: [Permission; 9] = [
    ("", "namespaces", READ, Scope::Cluster),
    ("", "pods", &["get", "list", "watch", "delete", OPTIONAL_VERB], Scope::Cluster),
    ("", "pods/log", &["get"], Scope::Cluster),
    ("", "services", READ, Scope::Cluster),
    ("apps", "deployments", READ, Scope::Cluster),
    ("apps", "statefulsets", READ, Scope::Cluster),
    (AKASH_GROUP, HOSTS.1, READ, Scope::Manifests),
    (AKASH_GROUP, LEASED.1, READ, Scope::Manifests),
    ("coordination.k8s.io", "leases", &["get", "create", "update", "delete"], Scope::Own),
];

/// The permissions of a gateway that only watches the pods of its node.
const NEEDED_ON_NODE: [Permission; 1] = [("", "pods", &["list", "watch"], Scope::Cluster)];

/// Checks all permissions. `manifests` is the namespace of the provider's own resources, `own` that of the
/// restart locks.
///
/// # Errors
/// [`Error::Broken`] names all missing ones; [`Error::Unavailable`] if the API server does not respond.
pub(super) async fn check(client: &Client, manifests: &str, own: &str) -> Result<(), Error> {
    check_all(client, &NEEDED, manifests, own).await
}

/// Checks the permissions of a gateway that only watches the pods of its node.
///
/// # Errors
/// Those of [`check`].
pub(super) async fn check_node(client: &Client) -> Result<(), Error> {
    check_all(client, &NEEDED_ON_NODE, "", "").await
}

async fn check_all(client: &Client, needed: &[Permission], manifests: &str, own: &str) -> Result<(), Error> {
    let all = needed.iter().flat_map(|needed| needed.2.iter().map(move |verb| (needed, *verb)));
    let api: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let (optional, missing): (Vec<_>, Vec<_>) = stream::iter(all)
        .map(|(&(group, resource, _, scope), verb)| {
            let namespace = match scope {
                Scope::Cluster => None,
                Scope::Manifests => Some(manifests),
                Scope::Own => Some(own),
            };
            let review = review(group, resource, verb, namespace);
            let api = api.clone();
            async move {
                let params = PostParams::default();
                let reviewed = api.create(&params, &review);
                let reviewed = start::response("ask the API server for permissions", reviewed).await?;
                let allowed = reviewed.status.is_some_and(|status| status.allowed);
                let denied = || (verb, describe(group, resource, verb, namespace));
                Ok::<_, Error>((!allowed).then(denied))
            }
        })
        .buffered(REVIEWS_AT_ONCE)
        .try_filter_map(|denied| std::future::ready(Ok(denied)))
        .try_collect::<Vec<_>>()
        .await?
        .into_iter()
        .partition(|(verb, _)| *verb == OPTIONAL_VERB);
    for (_, what) in optional {
        tracing::warn!(
            missing = what,
            "replica indices are not stored, another gateway may number replicas differently"
        );
    }
    let missing: Vec<String> = missing.into_iter().map(|(_, what)| what).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::Broken(format!("missing permissions, grant them to the gateway: {}", missing.join(", "))))
}

fn review(group: &str, resource: &str, verb: &str, namespace: Option<&str>) -> SelfSubjectAccessReview {
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    let attributes = ResourceAttributes {
        group: Some(group.to_owned()),
        resource: Some(resource.to_owned()),
        subresource: (!subresource.is_empty()).then(|| subresource.to_owned()),
        verb: Some(verb.to_owned()),
        namespace: namespace.map(str::to_owned),
        ..ResourceAttributes::default()
    };
    let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() };
    SelfSubjectAccessReview { spec, ..Default::default() }
}

/// Formats a permission as it stands in a role.
fn describe(group: &str, resource: &str, verb: &str, namespace: Option<&str>) -> String {
    let group = if group.is_empty() { String::new() } else { format!(".{group}") };
    let place =
        namespace.map_or_else(|| "in the whole cluster".to_owned(), |name| format!("in namespace {name}"));
    format!("{verb} {resource}{group} {place}")
}
