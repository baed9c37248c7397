//! What an Akash provider and Kubernetes call things.

/// Label of everything that belongs to a lease; the selector of all watches.
pub(super) const AKASH: &str = "akash.network=true";

/// Label of a pod, workload or service: the service's name.
pub(super) const SERVICE: &str = "akash.network/manifest-service";

/// Labels of a lease's namespace: its parts, in the order of the text form.
pub(super) const LEASE_PARTS: [&str; 5] = [
    "akash.network/lease.id.owner",
    "akash.network/lease.id.dseq",
    "akash.network/lease.id.gseq",
    "akash.network/lease.id.oseq",
    "akash.network/lease.id.provider",
];

/// Label of the services that stand for leased addresses, with the value [`LEASED_IP_TARGET`].
pub(super) const TARGET: &str = "akash.network/service-target";

/// See [`TARGET`].
pub(super) const LEASED_IP_TARGET: &str = "metal-lb";

/// Annotation of a pod: the index of its replica. Outside the provider's prefix, which it cleans up after others.
pub(super) const INDEX: &str = "leasemux/replica";

/// Annotation of a turn: the note about restarts.
pub(super) const RESTARTS: &str = "leasemux/restarts";

/// Group and version of the provider's own resources.
pub(super) const AKASH_GROUP: &str = "akash.network";

/// See [`AKASH_GROUP`].
pub(super) const AKASH_VERSION: &str = "v2beta2";

/// Host names that lead to services: the provider's kind, and its plural.
pub(super) const HOSTS: (&str, &str) = ("ProviderHost", "providerhosts");

/// Ports of leased addresses: the provider's kind, and its plural.
pub(super) const LEASED: (&str, &str) = ("ProviderLeasedIP", "providerleasedips");
