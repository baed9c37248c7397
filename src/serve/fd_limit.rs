//! Raises the limit of open files to what the gateway's limits need, or reduces the number of connections.

use crate::config::PlatformKind;
use crate::model::limits::Limits;
use crate::sys::process;

/// Live tails on the local platform: one file for each followed replica. One machine runs a few hundred
/// replicas.
const LOCAL_TAILS: u64 = 4_096;

/// Live tails in a cluster: one connection to the API server or one file for each followed replica. The
/// memory of rings limits a gateway to fewer.
const CLUSTER_TAILS: u64 = 16_384;

/// Descriptors of one backfill: the log and its rotated file, or two connections to the API server (log and
/// pod).
const BACKFILL_FILES: u64 = 2;

/// Everything else: written logs, pipes of services, watches, listeners, the admin port, rejected
/// connections.
const OTHER_FILES: u64 = 2_048;

/// Smallest useful number of connections.
const CONNECTIONS_MIN: usize = 16;

/// Descriptors that the limits need, by purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Need {
    connections: u64,
    backfills: u64,
    live_tails: u64,
}

/// Raises the process's limit of open files. If the system does not allow it, logs the numbers and reduces
/// the number of connections, so that logs can still be read.
pub(super) fn apply(limits: &mut Limits, platform: &PlatformKind) {
    let need = Need::of(limits, platform);
    let allowed = process::raise_fd_limit(need.total());
    if allowed >= need.total() {
        return;
    }
    let connections = need.connections_within(allowed);
    tracing::warn!(
        allowed,
        needed = need.total(),
        for_connections = need.connections,
        for_backfills = need.backfills,
        for_live_tails = need.live_tails,
        other = OTHER_FILES,
        connections,
        "open file limit (ulimit -Hn) is lower than needed; reducing the number of connections"
    );
    limits.connection.max = connections;
}

// === impl Need ===

impl Need {
    fn of(limits: &Limits, platform: &PlatformKind) -> Self {
        Self {
            connections: limits.connection.max as u64,
            backfills: limits.quota.history_reads as u64 * BACKFILL_FILES,
            live_tails: match platform {
                PlatformKind::Local => LOCAL_TAILS,
                PlatformKind::Kube(_) | PlatformKind::Node(..) => CLUSTER_TAILS,
            },
        }
    }

    fn without_connections(self) -> u64 {
        self.backfills + self.live_tails + OTHER_FILES
    }

    fn total(self) -> u64 {
        self.connections + self.without_connections()
    }

    /// Returns how many connections `allowed` descriptors permit: the remainder, or half of them if that is
    /// more, because not everything is in use at once.
    fn connections_within(self, allowed: u64) -> usize {
        let left = allowed.saturating_sub(self.without_connections()).max(allowed / 2).min(self.connections);
        usize::try_from(left).unwrap_or(usize::MAX).max(CONNECTIONS_MIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::KubeOptions;
    use crate::model::id::Address;

    fn kube() -> PlatformKind {
        PlatformKind::Kube(KubeOptions {
            kubeconfig: None,
            context: None,
            provider: Address::from_account([2; 20]),
            hostname: "provider.example.com".to_owned(),
            manifest_namespace: "lease".to_owned(),
            coordination_namespace: None,
        })
    }

    #[test]
    fn low_limit_reduces_connections() {
        let need = Need::of(&Limits::default(), &PlatformKind::Local);
        assert_eq!(need.total(), 16_384 + 2 * 64 + 4_096 + 2_048);
        assert_eq!(need.connections_within(need.total() - 384), 16_000);
        assert_eq!(need.connections_within(4_096), 2_048);
        assert_eq!(need.connections_within(0), CONNECTIONS_MIN);
        assert_eq!(need.connections_within(u64::MAX), 16_384);
    }

    #[test]
    fn tails_of_a_cluster_are_counted() {
        let need = Need::of(&Limits::default(), &kube());
        assert_eq!(need.total(), 16_384 + 2 * 64 + 16_384 + 2_048);
        assert_eq!(need.connections_within(30_000), 15_000);
    }
}
