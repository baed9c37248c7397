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

/// Raises the process's limit of open files. If the system does not allow it, logs the numbers and reduces
/// the number of connections, so that logs can still be read.
pub(super) fn apply(limits: &mut Limits, platform: PlatformKind) {
    let [backfills, live_tails] = files_of_logs(limits, platform);
    let others = backfills + live_tails + OTHER_FILES;
    let needed = limits.connection.max as u64 + others;
    let allowed = process::raise_fd_limit(needed);
    if allowed >= needed {
        return;
    }
    let connections = connections_within(allowed, others, limits.connection.max);
    tracing::warn!(
        allowed,
        needed,
        for_connections = limits.connection.max,
        for_backfills = backfills,
        for_live_tails = live_tails,
        other = OTHER_FILES,
        connections,
        "open file limit (ulimit -Hn) is lower than needed; reducing the number of connections"
    );
    limits.connection.max = connections;
}

/// Returns the descriptors that backfills and live tails need.
fn files_of_logs(limits: &Limits, platform: PlatformKind) -> [u64; 2] {
    let live_tails = match platform {
        PlatformKind::Local => LOCAL_TAILS,
        PlatformKind::Kube | PlatformKind::Node => CLUSTER_TAILS,
    };
    [limits.quota.history_reads as u64 * BACKFILL_FILES, live_tails]
}

/// Returns how many connections, at most `max`, `allowed` descriptors permit: those that `others` leave, or
/// half of all if that is more, because not everything is in use at once.
fn connections_within(allowed: u64, others: u64, max: usize) -> usize {
    let left = allowed.saturating_sub(others).max(allowed / 2);
    usize::try_from(left).unwrap_or(usize::MAX).min(max).max(CONNECTIONS_MIN)
}
#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn low_limit_reduces_connections() {
        assert_eq!(files_of_logs(&Limits::default(), PlatformKind::Local), [2 * 64, 4_096]);
        let others = 2 * 64 + 4_096 + 2_048;
        let max = Limits::default().connection.max;
        assert_eq!(connections_within(16_000 + others, others, max), 16_000);
        assert_eq!(connections_within(4_096, others, max), 2_048);
        assert_eq!(connections_within(0, others, max), CONNECTIONS_MIN);
        assert_eq!(connections_within(u64::MAX, others, max), 16_384);
    }

    #[test]
    fn tails_of_a_cluster_are_counted() {
        assert_eq!(files_of_logs(&Limits::default(), PlatformKind::Kube), [2 * 64, 16_384]);
        assert_eq!(connections_within(30_000, 2 * 64 + 16_384 + 2_048, 16_384), 15_000);
    }
}
