//! Finds the service of a Kubernetes event by the name of its object.

use crate::model::id::ServiceName;

/// Characters of the hashes and suffixes that Kubernetes generates: without vowels and similar digits.
const GENERATED: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// Length of the random suffix of a pod of a Deployment.
const POD_SUFFIX_CHARS: usize = 5;

/// Maximum length of a pod template hash.
const HASH_MAX_CHARS: usize = 10;

/// Returns the service of the object with this kind and name; `None` if it is unknown.
///
/// `services` are the services of the lease. A pod's name alone suffices, because events outlive their pods,
/// and pods outlive their services.
pub(super) fn service_of<'a>(
    kind: &str,
    name: &str,
    services: impl Iterator<Item = &'a ServiceName>,
) -> Option<ServiceName> {
    let own = match kind {
        "Pod" => without_ordinal(name).or_else(|| {
            let (rest, suffix) = name.rsplit_once('-')?;
            without_hash(rest).filter(|_| suffix.len() == POD_SUFFIX_CHARS && is_generated(suffix))
        }),
        "ReplicaSet" => without_hash(name),
        "Deployment" | "StatefulSet" => Some(name),
        // Services, Ingresses and volume claims begin with the name of their service.
        _ => {
            let of = |service: &&ServiceName| {
                let rest = name.strip_prefix(service.as_str());
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
            };
            // Of `web` and `web-admin`, the longer one.
            return services.filter(of).max_by_key(|service| service.as_str().len()).cloned();
        }
    };
    own?.parse().ok()
}

/// Removes the ordinal from the name of a pod of a `StatefulSet`.
fn without_ordinal(name: &str) -> Option<&str> {
    let (workload, ordinal) = name.rsplit_once('-')?;
    let is_ordinal = ordinal.parse::<u32>().is_ok_and(|number| number.to_string() == ordinal);
    // Five digits may be the suffix of a Deployment's pod as well.
    let may_be_suffix = ordinal.len() == POD_SUFFIX_CHARS && without_hash(workload).is_some();
    (is_ordinal && !may_be_suffix).then_some(workload)
}

/// Removes a pod template hash.
fn without_hash(name: &str) -> Option<&str> {
    let (workload, hash) = name.rsplit_once('-')?;
    // Shorter ones than six are possible and rare. A part of a service's name is more likely.
    ((6..=HASH_MAX_CHARS).contains(&hash.len()) && is_generated(hash)).then_some(workload)
}

fn is_generated(text: &str) -> bool {
    text.bytes().all(|byte| GENERATED.contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_is_found_by_kind_and_name() {
        let services: Vec<ServiceName> =
            ["web", "web-admin", "db"].into_iter().map(|name| name.parse().unwrap()).collect();
        for (kind, name, service) in [
            ("Pod", "web-5cfc6c7b4b-4cl7z", Some("web")),
            ("Pod", "web-admin-5cfc6c7b4b-4cl7z", Some("web-admin")),
            ("Pod", "removed-5cfc6c7b4b-4cl7z", Some("removed")),
            ("Pod", "web-5cfc6c7b4b-24567", Some("web")),
            ("Pod", "db-0", Some("db")),
            ("Pod", "db-12", Some("db")),
            ("Pod", "db-01", None),
            ("Pod", "something", None),
            ("Pod", "", None),
            ("ReplicaSet", "web-5cfc6c7b4b", Some("web")),
            ("ReplicaSet", "web", None),
            ("Deployment", "web", Some("web")),
            ("StatefulSet", "db", Some("db")),
            ("Service", "web", Some("web")),
            ("Service", "web-np", Some("web")),
            ("Service", "web-admin-np", Some("web-admin")),
            ("PersistentVolumeClaim", "db-data-db-0", Some("db")),
            ("Ingress", "abc.example", None),
            ("Service", "website", None),
        ] {
            let found = service_of(kind, name, services.iter());
            assert_eq!(found.as_ref().map(ServiceName::as_str), service, "{kind} {name}");
        }
    }
}
