//! Names of labels, annotations and resources of Kubernetes and of an Akash provider.

/// Label of all objects of leases: the selector of all watches.
pub(super) const AKASH: &str = "akash.network=true";

/// Label of a pod, workload or service: the name of the lease's service.
pub(super) const SERVICE: &str = "akash.network/manifest-service";

/// Labels of a lease's namespace: the parts of the lease ID in the order of its text form.
pub(super) const LEASE_PARTS: [&str; 5] = [
    "akash.network/lease.id.owner",
    "akash.network/lease.id.dseq",
    "akash.network/lease.id.gseq",
    "akash.network/lease.id.oseq",
    "akash.network/lease.id.provider",
];

/// Label of services for leased addresses. Its value is [`LEASED_IP_TARGET`].
pub(super) const TARGET: &str = "akash.network/service-target";

/// See [`TARGET`].
pub(super) const LEASED_IP_TARGET: &str = "metal-lb";

/// Annotation of a pod: its replica index. Not under the provider's prefix, where the provider removes
/// unknown annotations.
pub(super) const INDEX: &str = "leasemux/replica";

/// Annotation of a restart lock: its payload.
pub(super) const LOCK_PAYLOAD: &str = "leasemux/restarts";

/// Group and version of the provider's own resources.
pub(super) const AKASH_GROUP: &str = "akash.network";

/// See [`AKASH_GROUP`].
pub(super) const AKASH_VERSION: &str = "v2beta2";

/// Kind and plural of the provider's host names.
pub(super) const HOSTS: (&str, &str) = ("ProviderHost", "providerhosts");

/// Kind and plural of the provider's leased addresses.
pub(super) const LEASED: (&str, &str) = ("ProviderLeasedIP", "providerleasedips");
