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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Permission {
    group: &'static str,
    /// With a slash and the subresource, if any.
    resource: &'static str,
    verbs: &'static [&'static str],
    scope: Scope,
    /// Whether the gateway works without it.
    optional: bool,
}

/// The scope of a permission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    Cluster,
    Manifests,
    Own,
}

const READ: &[&str] = &["get", "list", "watch"];

/// All permissions that the gateway needs. `deploy/kubernetes/` grants exactly these.
const NEEDED: [Permission; 10] = [
    needed("", "namespaces", READ, Scope::Cluster),
    needed("", "pods", &["get", "list", "watch", "delete"], Scope::Cluster),
    Permission { optional: true, ..needed("", "pods", &["patch"], Scope::Cluster) },
    needed("", "pods/log", &["get"], Scope::Cluster),
    needed("", "services", READ, Scope::Cluster),
    needed("apps", "deployments", READ, Scope::Cluster),
    needed("apps", "statefulsets", READ, Scope::Cluster),
    needed(AKASH_GROUP, HOSTS.1, READ, Scope::Manifests),
    needed(AKASH_GROUP, LEASED.1, READ, Scope::Manifests),
    needed("coordination.k8s.io", "leases", &["get", "create", "update", "delete"], Scope::Own),
];

const fn needed(
    group: &'static str,
    resource: &'static str,
    verbs: &'static [&'static str],
    scope: Scope,
) -> Permission {
    Permission { group, resource, verbs, scope, optional: false }
}

/// Checks all permissions. `manifests` is the namespace of the provider's own resources, `own` that of the
/// restart locks.
///
/// # Errors
/// [`Error::Broken`] names all missing ones; [`Error::Unavailable`] if the API server does not respond.
pub(super) async fn check(client: &Client, manifests: &str, own: &str) -> Result<(), Error> {
    let all = NEEDED.iter().flat_map(|needed| needed.verbs.iter().map(move |verb| (needed, *verb)));
    let api: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let denied: Vec<(&Permission, String)> = stream::iter(all)
        .map(|(needed, verb)| {
            let namespace = match needed.scope {
                Scope::Cluster => None,
                Scope::Manifests => Some(manifests),
                Scope::Own => Some(own),
            };
            let review = review(needed, verb, namespace);
            let api = api.clone();
            async move {
                let params = PostParams::default();
                let reviewed = api.create(&params, &review);
                let reviewed = start::response("ask the API server for permissions", reviewed).await?;
                let allowed = reviewed.status.is_some_and(|status| status.allowed);
                Ok::<_, Error>((!allowed).then(|| (needed, describe(needed, verb, namespace))))
            }
        })
        .buffered(REVIEWS_AT_ONCE)
        .try_filter_map(|denied| std::future::ready(Ok(denied)))
        .try_collect()
        .await?;
    for (_, what) in denied.iter().filter(|(needed, _)| needed.optional) {
        tracing::warn!(
            missing = what,
            "replica indices are not stored, another gateway may number replicas differently"
        );
    }
    let missing: Vec<String> =
        denied.into_iter().filter(|(needed, _)| !needed.optional).map(|(_, what)| what).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::Broken(format!("missing permissions, grant them to the gateway: {}", missing.join(", "))))
}

fn review(needed: &Permission, verb: &str, namespace: Option<&str>) -> SelfSubjectAccessReview {
    let (resource, subresource) = needed.resource.split_once('/').unwrap_or((needed.resource, ""));
    let attributes = ResourceAttributes {
        group: Some(needed.group.to_owned()),
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
fn describe(needed: &Permission, verb: &str, namespace: Option<&str>) -> String {
    let group = if needed.group.is_empty() { String::new() } else { format!(".{}", needed.group) };
    let place =
        namespace.map_or_else(|| "in the whole cluster".to_owned(), |name| format!("in namespace {name}"));
    format!("{verb} {}{group} {place}", needed.resource)
}
