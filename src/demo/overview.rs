//! Which gateway of a fleet publishes which replica, as the gateways' admin ports say.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::Uri;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;
use tokio::time::Instant;

/// Limit on one answer, on a busy machine.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Largest answer: each replica of a lease needs some 300 bytes.
const ANSWER_MAX_BYTES: usize = 1024 * 1024;

/// Interval of looks at the gateways.
const POLL: Duration = Duration::from_millis(50);

/// Limit on the time until each replica has one publisher. An election takes less than a second, and a lost one
/// is repeated within seconds. Services of an SDL that do not run never get a publisher.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(15);

/// Reads `/fleet` of gateways. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct OverviewReader {
    client: Client<HttpConnector, Empty<Bytes>>,
    /// Addresses of the admin ports, by the gateway's number.
    admins: BTreeMap<usize, Uri>,
}

/// What the gateways of a fleet do, by their numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Overview(BTreeMap<usize, Vec<FleetReplica>>);

/// Log tails of a fleet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tails {
    /// Tails of all gateways.
    pub(super) open: usize,
    pub(super) replicas: usize,
}

/// The answer of a gateway.
#[derive(Debug, Deserialize)]
struct FleetView {
    replicas: Vec<FleetReplica>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct FleetReplica {
    replica: String,
    role: String,
}

// === impl OverviewReader ===

impl OverviewReader {
    pub(super) fn new(admins: BTreeMap<usize, Uri>) -> Self {
        Self { client: Client::builder(TokioExecutor::new()).build_http(), admins }
    }

    /// Waits until `replicas` replicas have one publisher each, and all other gateways are members, or a limit.
    pub(super) async fn settled(&self, replicas: usize) -> Overview {
        let deadline = Instant::now() + SETTLE_TIMEOUT;
        loop {
            let overview = self.read().await;
            if overview.is_settled(replicas) || Instant::now() >= deadline {
                return overview;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    pub(super) async fn read(&self) -> Overview {
        let views = self.admins.iter().map(async |(number, admin)| {
            let view = tokio::time::timeout(ANSWER_TIMEOUT, self.view(admin)).await;
            (*number, view.ok().flatten().map(|view| view.replicas).unwrap_or_default())
        });
        Overview(join_all(views).await.into_iter().collect())
    }

    /// Returns `None` if the gateway does not answer.
    async fn view(&self, admin: &Uri) -> Option<FleetView> {
        let url = format!("{admin}fleet").parse().ok()?;
        let body = self.client.get(url).await.ok()?.into_body();
        let body = Limited::new(body, ANSWER_MAX_BYTES).collect().await.ok()?;
        serde_json::from_slice(&body.to_bytes()).ok()
    }
}

// === impl Overview ===

impl Overview {
    /// Returns the gateway among `candidates` that publishes most replicas, and these.
    pub(super) fn publisher(&self, candidates: impl Fn(usize) -> bool) -> Option<(usize, BTreeSet<String>)> {
        let published = |role: &FleetReplica| (role.role == "publisher").then(|| role.replica.clone());
        let gateways = self.0.iter().filter(|(number, _)| candidates(**number));
        gateways
            .map(|(number, replicas)| (*number, replicas.iter().filter_map(published).collect()))
            .filter(|(_, replicas): &(usize, BTreeSet<String>)| !replicas.is_empty())
            .max_by_key(|(_, replicas)| replicas.len())
    }

    pub(super) fn tails(&self) -> Tails {
        let all = || self.0.values().flatten();
        let replicas: BTreeSet<&str> = all().map(|replica| replica.replica.as_str()).collect();
        let open = all().filter(|replica| matches!(replica.role.as_str(), "publisher" | "direct")).count();
        Tails { open, replicas: replicas.len() }
    }

    fn is_settled(&self, replicas: usize) -> bool {
        let is_followed = |found: &Vec<FleetReplica>| {
            found.len() == replicas
                && found.iter().all(|replica| matches!(replica.role.as_str(), "publisher" | "member"))
        };
        self.0.values().all(is_followed) && self.tails() == Tails { open: replicas, replicas }
    }
}

/// A line per publisher, and one about tails.
impl fmt::Display for Overview {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for number in self.0.keys() {
            if let Some((_, replicas)) = self.publisher(|candidate| candidate == *number) {
                let replicas: Vec<String> = replicas.into_iter().collect();
                writeln!(f, "gateway {number} publishes {}", replicas.join(", "))?;
            }
        }
        write!(f, "{} in {} gateways", self.tails(), self.0.len())
    }
}

// === impl Tails ===

impl fmt::Display for Tails {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { open, replicas } = self;
        write!(f, "{open} log tails for {replicas} replicas")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Creates an overview of gateways from `replica:role …`.
    fn overview(gateways: &[&str]) -> Overview {
        let replica = |text: &str| {
            let (replica, role) = text.split_once(':').unwrap();
            FleetReplica { replica: replica.to_owned(), role: role.to_owned() }
        };
        let replicas = |text: &&str| text.split_whitespace().map(replica).collect();
        Overview(gateways.iter().enumerate().map(|(at, text)| (at + 1, replicas(text))).collect())
    }

    #[test]
    fn publishers_and_tails_are_described() {
        let seen =
            overview(&["a/0:member b/0:publisher", "a/0:publisher b/0:member", "a/0:member b/0:direct"]);
        assert_eq!(
            seen.to_string(),
            "gateway 1 publishes b/0\ngateway 2 publishes a/0\n3 log tails for 2 replicas in 3 gateways"
        );
        assert_eq!(seen.publisher(|number| number > 1), Some((2, BTreeSet::from(["a/0".to_owned()]))));
        assert_eq!(seen.publisher(|number| number > 2), None);
    }

    #[test]
    fn fleet_is_settled_with_one_publisher_for_each_replica() {
        for (gateways, settled) in [
            (["a/0:publisher b/0:member", "a/0:member b/0:publisher"], true),
            (["a/0:publisher b/0:publisher", "a/0:member b/0:member"], true),
            (["a/0:publisher b/0:publisher", "a/0:member b/0:direct"], false),
            (["a/0:publisher b/0:publisher", "a/0:publisher b/0:member"], false),
            (["a/0:publisher b/0:publisher", "a/0:member"], false),
            (["a/0:publisher b/0:publisher", ""], false),
            (["a/0:publisher b/0:member", "a/0:member b/0:finding"], false),
        ] {
            assert_eq!(overview(&gateways).is_settled(2), settled, "{gateways:?}");
        }
    }
}
