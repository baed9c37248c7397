//! The audit log: who was refused what and why, whose stream was ended for that, and who restarted what. One line each, under the
//! target `leasemux::audit`.
//!
//! A line names the account, the lease, the reason and the address, and never a token, a certificate or anything from a log. Of an
//! account it says whether it is proved, or only claimed. A peer that is refused again and again fills no disk: beyond so many
//! a minute its refusals are counted, not told. Restarts are all told; quotas bound them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::service::Method;
use crate::model::id::{LeaseId, Owner};
use crate::model::peer::PeerNet;
use crate::model::rate::{Buckets, Rate};
use crate::model::view::Filter;

/// What a call is told as that is none of the lease service.
const OTHER: &str = "other";

/// Where its lines go; for filters such as `warn,leasemux::audit=info`.
const TARGET: &str = "leasemux::audit";

/// In which the refusals of one peer that are told are counted.
const LINES_PER: Duration = Duration::from_secs(60);

/// Peers whose refusals are counted apart. Who is forgotten may have some more told.
const PEERS_KEPT: usize = 4_096;

/// The log. Cloning is cheap.
#[derive(Clone, Debug)]
pub(super) struct Audit(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// `None` = all are told.
    lines: Option<Buckets<PeerNet>>,
    /// Refusals that were not told since the last that was.
    left_out: AtomicU64,
}

/// One call, as far as is known of it. Cloning is cheap.
#[derive(Clone, Debug)]
pub(super) struct AuditRecord(Arc<Facts>);

#[derive(Debug)]
struct Facts {
    audit: Audit,
    method: &'static str,
    from: Option<PeerNet>,
    who: OnceLock<(Owner, bool)>,
    lease: OnceLock<LeaseId>,
}

// === impl Audit ===

impl Audit {
    /// A log that tells so many refusals of one peer in a minute; 0 = all.
    pub(super) fn new(refusals: u32) -> Self {
        let rate = Rate::new(refusals.into(), LINES_PER);
        let lines = (refusals > 0).then(|| Buckets::new(rate, PEERS_KEPT));
        Self(Arc::new(Shared { lines, left_out: AtomicU64::new(0) }))
    }

    /// A call begins.
    pub(super) fn case(&self, method: Method, from: Option<PeerNet>) -> AuditRecord {
        self.of(method.name(), from)
    }

    /// A call begins that is none of the lease service: of health or reflection. What it is called is the caller's to say, and
    /// not told.
    pub(super) fn other_case(&self, from: PeerNet) -> AuditRecord {
        self.of(OTHER, Some(from))
    }

    fn of(&self, method: &'static str, from: Option<PeerNet>) -> AuditRecord {
        let (who, lease) = (OnceLock::new(), OnceLock::new());
        AuditRecord(Arc::new(Facts { audit: self.clone(), method, from, who, lease }))
    }
}

// === impl Case ===

impl AuditRecord {
    /// This is who the caller says they are.
    pub(super) fn claimed(&self, who: Owner) {
        // The first word counts.
        let _ = self.0.who.set((who, false));
    }

    /// This is who the caller is.
    pub(super) fn proved(&self, who: Owner) {
        let _ = self.0.who.set((who, true));
    }

    /// This is the lease that it is about.
    pub(super) fn about(&self, lease: &LeaseId) {
        let _ = self.0.lease.set(lease.clone());
    }

    /// It was refused, for this reason.
    pub(super) fn refused(&self, reason: &str) {
        self.tell("call refused", reason);
    }

    /// Its stream ends midway, for this reason: whose it is may not go on.
    pub(super) fn ended(&self, reason: &str) {
        self.tell("stream ended", reason);
    }

    fn tell(&self, what: &str, reason: &str) {
        let shared = &self.0.audit.0;
        if let (Some(lines), Some(from)) = (&shared.lines, &self.0.from)
            && lines.try_take(from, 1, Instant::now()).is_err()
        {
            shared.left_out.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let left_out = shared.left_out.swap(0, Ordering::Relaxed);
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
            "{what}"
        );
    }

    /// Replicas make way because of it; or did already, if it was `repeated`.
    pub(super) fn restarts(&self, filter: &Filter, repeated: bool) {
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
    fn a_refusal_tells_who_what_why_and_from_where() {
        let [owner, provider] = [1, 2].map(|number| Owner::from_account([number; 20]));
        let lease = LeaseId::new(owner.as_str(), 7, 1, 1, provider.as_str()).unwrap();
        let audit = Audit::new(LINES);
        let told = lines(|| {
            let case = audit.case(Method::Logs, Some(from(1)));
            case.claimed(owner.clone());
            case.refused("TOKEN_EXPIRED");
            let case = audit.case(Method::Restart, Some(from(1)));
            case.proved(owner.clone());
            case.about(&lease);
            case.refused("LEASE_NOT_YOURS");
            audit.case(Method::Status, None).refused("CREDENTIALS_MISSING");
            audit.other_case(from(1)).refused("open_calls_per_peer");
        });
        assert_eq!(told.len(), 4, "{told:?}");
        let who = format!("who={owner}");
        contains_all(
            &told[0],
            &["leasemux::audit", "ServiceLogs", "TOKEN_EXPIRED", &who, "proved=false", "192.0.2.1"],
        );
        contains_all(
            &told[1],
            &["ServiceRestart", "LEASE_NOT_YOURS", &who, "proved=true", &format!("lease={lease}")],
        );
        assert!(told[2].contains("ServiceStatus") && !told[2].contains("who="), "{}", told[2]);
        contains_all(&told[3], &["method=\"other\"", "open_calls_per_peer", "192.0.2.1"]);
    }

    #[test]
    fn a_peer_that_is_refused_again_and_again_does_not_flood() {
        let audit = Audit::new(LINES);
        let told = lines(|| {
            for _ in 0..1_000 {
                audit.case(Method::Logs, Some(from(1))).refused("TOKEN_EXPIRED");
            }
            audit.case(Method::Logs, Some(from(2))).refused("ACCOUNT_UNKNOWN");
        });
        assert_eq!(told.len(), 20 + 1);
        contains_all(&told[told.len() - 1], &["ACCOUNT_UNKNOWN", &format!("left_out={}", 1_000 - LINES)]);
    }

    #[test]
    fn without_a_limit_every_refusal_is_told() {
        let audit = Audit::new(0);
        let told = lines(|| {
            for _ in 0..1_000 {
                audit.case(Method::Logs, Some(from(1))).refused("TOKEN_EXPIRED");
            }
        });
        assert_eq!(told.len(), 1_000);
    }

    #[test]
    fn a_stream_that_ends_midway_is_told_of_whose_it_was() {
        let owner = Owner::from_account([1; 20]);
        let audit = Audit::new(LINES);
        let told = lines(|| {
            let case = audit.case(Method::Logs, Some(from(1)));
            case.proved(owner.clone());
            case.clone().ended("TOKEN_EXPIRED");
        });
        assert_eq!(told.len(), 1, "{told:?}");
        contains_all(&told[0], &["stream ended", "TOKEN_EXPIRED", &format!("who={owner}"), "proved=true"]);
    }

    #[test]
    fn every_restart_is_told() {
        let audit = Audit::new(LINES);
        let mut filter = Filter::everything();
        filter.add("web".parse().unwrap(), &[3]);
        let told = lines(|| {
            for _ in 0..100 {
                audit.case(Method::Restart, Some(from(1))).restarts(&filter, false);
            }
        });
        assert_eq!(told.len(), 100);
        contains_all(&told[0], &["restart", "web", "3", "repeated=false"]);
    }
}
