//! The name of a replica in protocols that have one name per line and no replica number.

use std::borrow::Cow;

use crate::model::id::Replica;

/// How replicas are named (`--rest-names`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NameStyle {
    /// By pod, as the Akash provider does: `web-5cfc6c7b4b-4cl7z`, `db-0`. A restarted container keeps the
    /// name, a new pod has a new one.
    Pod,
    /// By service and index: `web-0`. Stable across restarts and pods.
    #[default]
    Replica,
}

/// Returns the name of `replica`, whose run is in this pod.
///
/// Every name begins with the service and a dash, because `akt` drops other lines if a service was selected.
/// A pod that is unknown, or named differently, is therefore replaced by the index.
pub(crate) fn entry_name<'a>(style: NameStyle, replica: &Replica, pod: Option<&'a str>) -> Cow<'a, str> {
    let service = replica.service.as_str();
    let of_service = |pod: &&str| {
        pod.strip_prefix(service).and_then(|rest| rest.strip_prefix('-')).is_some_and(|rest| !rest.is_empty())
    };
    match (style, pod.filter(of_service)) {
        (NameStyle::Pod, Some(pod)) => Cow::Borrowed(pod),
        _ => Cow::Owned(format!("{service}-{}", replica.index)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_begins_with_the_service_and_a_dash() {
        let replica = Replica { service: "web".parse().unwrap(), index: 3 };
        let name = |style, pod| entry_name(style, &replica, pod).into_owned();
        assert_eq!(name(NameStyle::Pod, Some("web-5cfc6c7b4b-4cl7z")), "web-5cfc6c7b4b-4cl7z");
        for pod in [None, Some("web"), Some("web-"), Some("webhook-abc-123"), Some("api-0"), Some("")] {
            assert_eq!(name(NameStyle::Pod, pod), "web-3", "{pod:?}");
        }
        assert_eq!(name(NameStyle::Replica, Some("web-5cfc6c7b4b-4cl7z")), "web-3");
    }
}
