//! Open files: as many as the limits need, or as many connections as the system allows.

use crate::config::PlatformKind;
use crate::model::limits::Limits;
use crate::sys::files;

/// Live tails: a file for each replica that is followed, of which one machine runs some hundreds at most.
const TAIL_FILES: u64 = 4_096;

/// Likewise of a cluster: a connection to the API server for each, or a file on the node that this is. If all of them were loud, one
/// gateway had not the memory for so many rings.
const CLUSTER_TAILS: u64 = 16_384;

/// Files that one history read has open: the log, and the one that it was rotated to; or its connection to the API server, and the
/// one over which the pod is looked at.
const HISTORY_READ_FILES: u64 = 2;

/// Everything else: logs that are written, pipes of services, watches, listeners, the admin port, connections being turned away.
const FILES_BESIDE: u64 = 2_048;

/// Connections that must be possible, or starting makes no sense.
const CONNECTIONS_MIN: usize = 16;

/// What is needed, and what for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Need {
    connections: u64,
    history_reads: u64,
    live_tails: u64,
}

/// Lets the process have as many files open as `limits` and the platform need. If the system does not allow it, says so with the numbers, and
/// lets there be fewer connections: those beyond are refused in order, and logs can still be read.
pub(super) fn allow(limits: &mut Limits, platform: &PlatformKind) {
    let need = Need::of(limits, platform);
    if files::allow(need.in_all()).is_ok() {
        return;
    }
    let allowed = files::allow_most();
    let connections = need.connections_within(allowed);
    tracing::warn!(
        allowed,
        needed = need.in_all(),
        for_connections = need.connections,
        for_history_reads = need.history_reads,
        for_live_tails = need.live_tails,
        beside = FILES_BESIDE,
        "the system allows fewer open files than the limits need (ulimit -Hn): at most {connections} connections are taken"
    );
    limits.connection.max = connections;
}

// === impl Need ===

impl Need {
    fn of(limits: &Limits, platform: &PlatformKind) -> Self {
        Self {
            connections: limits.connection.max as u64,
            history_reads: limits.quota.history_reads as u64 * HISTORY_READ_FILES,
            live_tails: match platform {
                PlatformKind::Local => TAIL_FILES,
                PlatformKind::Kube(_) | PlatformKind::Node(..) => CLUSTER_TAILS,
            },
        }
    }

    fn beside_connections(self) -> u64 {
        self.history_reads + self.live_tails + FILES_BESIDE
    }

    fn in_all(self) -> u64 {
        self.connections + self.beside_connections()
    }

    /// What is left of `allowed` for connections; half of it, if that is more, since not everything is in use at once.
    fn connections_within(self, allowed: u64) -> usize {
        let left = allowed.saturating_sub(self.beside_connections()).max(allowed / 2).min(self.connections);
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
    fn all_limits_count_and_connections_give_way() {
        let need = Need::of(&Limits::default(), &PlatformKind::Local);
        assert_eq!(need.in_all(), 16_384 + 2 * 64 + 4_096 + 2_048);
        assert_eq!(need.connections_within(need.in_all() - 384), 16_000);
        assert_eq!(need.connections_within(4_096), 2_048);
        assert_eq!(need.connections_within(0), CONNECTIONS_MIN);
        assert_eq!(need.connections_within(u64::MAX), 16_384);
    }

    #[test]
    fn the_tails_of_a_cluster_are_connections_and_count() {
        let need = Need::of(&Limits::default(), &kube());
        assert_eq!(need.in_all(), 16_384 + 2 * 64 + 16_384 + 2_048);
        assert_eq!(need.connections_within(30_000), 15_000);
    }
}
