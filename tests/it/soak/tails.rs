//! Records the number of log tails of a fleet over time.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::pause;
use crate::support::process::get;

/// Interval of looks at the gateways: several in each takeover.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Looks at the admin ports of gateways, until it is stopped.
pub(super) struct TailRecorder {
    shared: Arc<Shared>,
    thread: JoinHandle<Vec<TailCount>>,
}

/// The number of tails from a moment on.
#[derive(Clone, Copy, Debug)]
pub(super) struct TailCount {
    /// Time since the start.
    pub(super) at: Duration,
    pub(super) tails: usize,
}

struct Shared {
    admins: Vec<SocketAddr>,
    /// By gateway. A halted one answers nothing and reads nothing.
    halted: Vec<AtomicBool>,
    last: Mutex<Roles>,
    stop: CancellationToken,
}

/// What each gateway is for each replica. A gateway that does not run has no roles.
#[derive(Clone, Debug, Default)]
pub(super) struct Roles(Vec<BTreeMap<String, String>>);

// === impl TailRecorder ===

impl TailRecorder {
    /// Records the tails of the gateways with these admin ports.
    pub(super) fn start(admins: Vec<SocketAddr>, begin: Instant) -> Self {
        let halted = admins.iter().map(|_| AtomicBool::new(false)).collect();
        let shared =
            Arc::new(Shared { admins, halted, last: Mutex::default(), stop: CancellationToken::new() });
        let looking = Arc::clone(&shared);
        Self { shared, thread: std::thread::spawn(move || looking.record(begin)) }
    }

    /// Excludes a gateway that is halted, or includes it again.
    pub(super) fn set_halted(&self, gateway: usize, is_halted: bool) {
        self.shared.halted[gateway].store(is_halted, Ordering::Relaxed);
    }

    /// Returns the result of the last look.
    pub(super) fn roles(&self) -> Roles {
        self.shared.last.lock().unwrap().clone()
    }

    /// Returns the numbers of tails, each with the time of its first look.
    pub(super) fn stop(self) -> Vec<TailCount> {
        self.shared.stop.cancel();
        self.thread.join().unwrap()
    }
}

// === impl Shared ===

impl Shared {
    fn record(&self, begin: Instant) -> Vec<TailCount> {
        let mut counts: Vec<TailCount> = Vec::new();
        while !self.stop.is_cancelled() {
            let roles = self.look();
            let tails = roles.tails();
            if counts.last().is_none_or(|last| last.tails != tails) {
                counts.push(TailCount { at: begin.elapsed(), tails });
            }
            *self.last.lock().unwrap() = roles;
            pause(&self.stop, LOOK_EVERY);
        }
        counts
    }

    fn look(&self) -> Roles {
        let gateways = self.admins.iter().zip(&self.halted);
        let roles = gateways.map(|(admin, is_halted)| {
            let is_halted = is_halted.load(Ordering::Relaxed);
            (!is_halted).then(|| roles(*admin)).flatten().unwrap_or_default()
        });
        Roles(roles.collect())
    }
}

/// Returns the roles of one gateway by replica; `None` if it does not answer.
fn roles(admin: SocketAddr) -> Option<BTreeMap<String, String>> {
    let (_, body) = get(admin, "HTTP/1.1", "/fleet").ok()?;
    let view: Value = serde_json::from_str(&body).ok()?;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let replicas = view["replicas"].as_array()?.iter();
    Some(replicas.filter_map(|of| Some((text(&of["replica"])?, text(&of["role"])?))).collect())
}

// === impl Roles ===

impl Roles {
    /// Returns the number of tails of all gateways.
    pub(super) fn tails(&self) -> usize {
        let roles = self.0.iter().flat_map(BTreeMap::values);
        roles.filter(|role| matches!(role.as_str(), "publisher" | "direct")).count()
    }

    /// Returns the gateways that are this for a replica.
    pub(super) fn gateways(&self, role: &str, replica: &str) -> Vec<usize> {
        let is = |gateway: &usize| self.0[*gateway].get(replica).is_some_and(|found| found == role);
        (0..self.0.len()).filter(is).collect()
    }

    /// Whether each of `gateways` gateways is the publisher or a member of each of `replicas`, and each
    /// replica has one publisher.
    pub(super) fn is_settled(&self, gateways: usize, replicas: &[&str]) -> bool {
        let is_settled = |replica: &&str| {
            let [publishers, members] =
                ["publisher", "member"].map(|role| self.gateways(role, replica).len());
            publishers == 1 && publishers + members == gateways
        };
        replicas.iter().all(is_settled)
    }
}
