//! The audit log: refused and rejected calls, streams that end with their credentials, and restarts. One line
//! each, with the target `leasemux::audit`.
//!
//! A line names the account, the lease, the reason and the peer's network, and never holds a token, a
//! certificate or log content. `proved` is true for an authenticated account, and false for a claimed one.
//! Refusals of one peer over the rate limit are counted but not logged, so that they cannot fill a disk.
//! Restarts are always logged: quotas bound them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::call_trace::CallTrace;
use crate::model::id::{LeaseId, Owner};
use crate::model::peer::PeerNet;
use crate::model::rate::{Buckets, Rate};
use crate::model::view::Filter;

/// The method in lines about other calls than those of known methods. The caller chooses their path, so it is
/// not logged.
pub(super) const OTHER: &str = "other";

/// Target of all audit lines, for filters such as `warn,leasemux::audit=info`.
const TARGET: &str = "leasemux::audit";

/// Period of the rate limit.
const LINES_PER: Duration = Duration::from_secs(60);

/// Peers whose refusals are counted separately. A peer that the table forgets may log some more.
const PEERS_KEPT: usize = 4_096;

/// The audit log. Cloning is cheap.
#[derive(Clone, Debug)]
pub(super) struct AuditLog(Arc<RefusalLimiter>);

#[derive(Debug)]
struct RefusalLimiter {
    /// `None`: no limit.
    lines: Option<Buckets<PeerNet>>,
    /// Refusals dropped since the last logged one.
    left_out: AtomicU64,
}

/// One call, for the audit log. Cloning is cheap.
#[derive(Clone, Debug)]
pub(super) struct AuditRecord(Arc<CallDetails>);

#[derive(Debug)]
struct CallDetails {
    log: AuditLog,
    method: &'static str,
    from: Option<PeerNet>,
    /// The account, and whether it is proved.
    who: OnceLock<(Owner, bool)>,
    lease: OnceLock<LeaseId>,
    /// The trace of the call, which gets the hash of its lease.
    trace: CallTrace,
}

// === impl AuditLog ===

impl AuditLog {
    /// Creates a log with at most this many refusals of one peer per minute; 0 = no limit.
    pub(super) fn new(refusals_per_minute: u32) -> Self {
        let rate = Rate::new(refusals_per_minute.into(), LINES_PER);
        let lines = (refusals_per_minute > 0).then(|| Buckets::new(rate, PEERS_KEPT));
        Self(Arc::new(RefusalLimiter { lines, left_out: AtomicU64::new(0) }))
    }

    /// Creates the record of a call of a known method, or of [`OTHER`].
    pub(super) fn call(&self, method: &'static str, from: Option<PeerNet>) -> AuditRecord {
        self.traced_call(method, from, CallTrace::default())
    }

    /// Creates the record of a call with this trace.
    pub(super) fn traced_call(
        &self,
        method: &'static str,
        from: Option<PeerNet>,
        trace: CallTrace,
    ) -> AuditRecord {
        let (who, lease) = (OnceLock::new(), OnceLock::new());
        AuditRecord(Arc::new(CallDetails { log: self.clone(), method, from, who, lease, trace }))
    }
}

// === impl AuditRecord ===

// Setters: the first value counts.
impl AuditRecord {
    /// Sets the account that the caller claims.
    pub(super) fn set_claimed(&self, owner: Owner) {
        let _ = self.0.who.set((owner, false));
    }

    /// Sets the authenticated account.
    pub(super) fn set_authenticated(&self, owner: Owner) {
        let _ = self.0.who.set((owner, true));
    }

    /// Sets the lease of the call, also for its trace.
    pub(super) fn set_lease(&self, lease: &LeaseId) {
        if self.0.lease.set(lease.clone()).is_ok() {
            self.0.trace.set_lease(lease);
        }
    }

    /// Logs that the call was refused or rejected, or that its stream ended because its credentials did.
    pub(super) fn log(&self, event: &'static str, reason: &str) {
        let limiter = &self.0.log.0;
        if let (Some(lines), Some(from)) = (&limiter.lines, &self.0.from)
            && lines.try_take(from, 1, Instant::now()).is_err()
        {
            limiter.left_out.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let left_out = limiter.left_out.swap(0, Ordering::Relaxed);
        let (who, proved) = self.who();
        tracing::info!(
            target: TARGET,
            method = self.0.method,
            reason,
            who = who.map(tracing::field::display),
            proved,
            lease = self.0.lease.get().map(tracing::field::display),
            from = self.0.from.map(tracing::field::display),
            left_out,
            "{event}"
        );
    }

    /// Logs a restart. `repeated`: an earlier call with the same id started it.
    pub(super) fn restart(&self, filter: &Filter, repeated: bool) {
        tracing::info!(
            target: TARGET,
            method = self.0.method,
            who = self.who().0.map(tracing::field::display),
            lease = self.0.lease.get().map(tracing::field::display),
            from = self.0.from.map(tracing::field::display),
            ?filter,
            repeated,
            "restart"
        );
    }

    fn who(&self) -> (Option<&Owner>, bool) {
        self.0.who.get().map_or((None, false), |(who, proved)| (Some(who), *proved))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: u32 = 20;

    fn lines(act: impl FnOnce()) -> Vec<String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        let log = tracing_subscriber::fmt().with_ansi(false).with_writer(file.reopen().unwrap()).finish();
        tracing::subscriber::with_default(log, act);
        let text = std::fs::read_to_string(file.path()).unwrap();
        text.lines().map(ToOwned::to_owned).collect()
    }

    fn from(last: u8) -> PeerNet {
        PeerNet::from(std::net::IpAddr::from([192, 0, 2, last]))
    }

    fn contains_all(line: &str, parts: &[&str]) {
        for part in parts {
            assert!(line.contains(part), "{part}: {line}");
        }
    }

    #[test]
    fn refusal_names_account_method_reason_and_peer() {
        let [owner, provider] = [1, 2].map(|number| Owner::from_account([number; 20]));
        let lease = LeaseId::new(owner.as_str(), 7, 1, 1, provider.as_str()).unwrap();
        let audit = AuditLog::new(LINES);
        let logged = lines(|| {
            let record = audit.call("ServiceLogs", Some(from(1)));
            record.set_claimed(owner.clone());
            record.log("call refused", "TOKEN_EXPIRED");
            let record = audit.call("ServiceRestart", Some(from(1)));
            record.set_authenticated(owner.clone());
            record.set_lease(&lease);
            record.log("call refused", "LEASE_NOT_YOURS");
            audit.call("ServiceStatus", None).log("call refused", "CREDENTIALS_MISSING");
            audit.call(OTHER, Some(from(1))).log("call refused", "open_calls_per_peer");
        });
        assert_eq!(logged.len(), 4, "{logged:?}");
        let who = format!("who={owner}");
        contains_all(
            &logged[0],
            &["leasemux::audit", "ServiceLogs", "TOKEN_EXPIRED", &who, "proved=false", "192.0.2.1"],
        );
        contains_all(
            &logged[1],
            &["ServiceRestart", "LEASE_NOT_YOURS", &who, "proved=true", &format!("lease={lease}")],
        );
        assert!(logged[2].contains("ServiceStatus") && !logged[2].contains("who="), "{}", logged[2]);
        contains_all(&logged[3], &["method=\"other\"", "open_calls_per_peer", "192.0.2.1"]);
    }

    #[test]
    fn refusals_of_one_peer_are_rate_limited() {
        let audit = AuditLog::new(LINES);
        let logged = lines(|| {
            for _ in 0..1_000 {
                audit.call("ServiceLogs", Some(from(1))).log("call refused", "TOKEN_EXPIRED");
            }
            audit.call("ServiceLogs", Some(from(2))).log("call refused", "ACCOUNT_UNKNOWN");
        });
        assert_eq!(logged.len(), 20 + 1);
        contains_all(&logged[logged.len() - 1], &["ACCOUNT_UNKNOWN", &format!("left_out={}", 1_000 - LINES)]);
    }

    #[test]
    fn refusals_without_a_limit_are_all_logged() {
        let audit = AuditLog::new(0);
        let logged = lines(|| {
            for _ in 0..1_000 {
                audit.call("ServiceLogs", Some(from(1))).log("call refused", "TOKEN_EXPIRED");
            }
        });
        assert_eq!(logged.len(), 1_000);
    }

    #[test]
    fn ended_stream_names_its_account() {
        let owner = Owner::from_account([1; 20]);
        let audit = AuditLog::new(LINES);
        let logged = lines(|| {
            let record = audit.call("ServiceLogs", Some(from(1)));
            record.set_authenticated(owner.clone());
            record.clone().log("stream ended", "TOKEN_EXPIRED");
        });
        assert_eq!(logged.len(), 1, "{logged:?}");
        contains_all(&logged[0], &["stream ended", "TOKEN_EXPIRED", &format!("who={owner}"), "proved=true"]);
    }

    #[test]
    fn restarts_are_all_logged() {
        let audit = AuditLog::new(LINES);
        let mut filter = Filter::everything();
        filter.add("web".parse().unwrap(), &[3]);
        let logged = lines(|| {
            for _ in 0..100 {
                audit.call("ServiceRestart", Some(from(1))).restart(&filter, false);
            }
        });
        assert_eq!(logged.len(), 100);
        contains_all(&logged[0], &["restart", "web", "3", "repeated=false"]);
    }
}
