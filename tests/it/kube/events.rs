//! Events of Kubernetes on the REST port: one watch per lease, whatever the API server does.

use std::time::Duration;

use leasemux::edge::rest::{RestService, RestSettings};
use leasemux::model::id::LeaseId;
use leasemux::platform::Platform as _;
use serde_json::{Value, json};
use tokio::io::DuplexStream;

use super::{SERVICE, Scenario, eventually, pass};
use crate::rest::settings;
use crate::support::rest::WsFollower;
use crate::support::{account, replica};

/// The pod of the lease.
const POD: &str = "Pod/web-5cfc6c7b4b-4cl7z";

/// Longer than a feed continues without followers.
const GRACE: Duration = Duration::from_secs(11);

/// Longer than a denied permission is not tried again, after some minutes of denials.
const DENIED: Duration = Duration::from_secs(700);

/// Shorter than a client may be silent.
const STEP: Duration = Duration::from_secs(20);

type Follower = WsFollower<DuplexStream>;

/// A cluster with one running replica, and a gateway with a REST port on it.
struct Events {
    scenario: Scenario,
    rest: RestService,
    namespace: String,
}

impl Events {
    async fn new() -> Self {
        Self::with(settings()).await
    }

    async fn with(settings: RestSettings) -> Self {
        let scenario = Scenario::new(1).await;
        scenario.run(POD.strip_prefix("Pod/").unwrap());
        scenario.shows(&[1]).await;
        let rest = scenario.setup.gateway.rest_service(settings);
        let namespace = scenario.lease().namespace();
        Self { scenario, rest, namespace }
    }

    /// Creates or changes an event.
    fn put(&self, name: &str, object: &str, reason: &str, more: &Value) {
        self.scenario.cluster.event(&self.namespace, name, object, reason, more);
    }

    async fn open(&self, query: &str) -> Follower {
        self.open_of(7, query).await
    }

    async fn open_of(&self, dseq: u64, query: &str) -> Follower {
        let setup = &self.scenario.setup;
        let io = setup.gateway.connect_rest_to(&self.rest, Some(setup.certificate.clone()), None);
        WsFollower::open(io, &format!("/lease/{dseq}/1/1/kubeevents?{query}"), &[]).await
    }

    /// Returns the reasons of the events that exist.
    async fn existing(&self, query: &str) -> Vec<String> {
        let mut follower = self.open(query).await;
        assert_eq!(follower.end().await, (1000, String::new()));
        reasons(&follower)
    }

    fn feeds(&self, origin: &str) -> u64 {
        self.scenario.setup.gateway.metric(&format!("leasemux_event_feeds{{origin=\"{origin}\"}}"))
    }

    fn failures(&self, reason: &str) -> u64 {
        let series = format!("leasemux_event_watch_failures_total{{reason=\"{reason}\"}} ");
        let text = self.scenario.exporter.render();
        text.lines().find_map(|line| line.strip_prefix(&series)).unwrap().parse().unwrap()
    }
}

fn reasons(follower: &Follower) -> Vec<String> {
    follower.frames.iter().map(|frame| frame["reason"].as_str().unwrap().to_owned()).collect()
}

/// Receives until an event with this reason has come.
async fn until(follower: &mut Follower, reason: &str) {
    let has_it = |follower: &Follower| follower.frames.iter().any(|frame| frame["reason"] == reason);
    follower.until(reason, has_it).await;
}

/// Receives for a while, and asserts that nothing comes.
async fn is_quiet(follower: &mut Follower) {
    let frames = follower.frames.len();
    follower.linger(Duration::from_millis(300)).await;
    assert_eq!(reasons(follower)[frames..], [""; 0]);
}

#[tokio::test]
async fn follower_gets_native_events_and_ends_of_runs() {
    let events = Events::new().await;
    let warning = json!({ "type": "Warning", "deprecatedCount": 2,
        "deprecatedFirstTimestamp": "2026-11-24T00:00:00Z" });
    events.put("a", POD, "BackOff", &warning);
    events.put("b", "Deployment/web", "ScalingReplicaSet", &json!({ "deprecatedLastTimestamp": null }));
    assert_eq!(events.existing("").await, ["ScalingReplicaSet", "BackOff"]);
    let mut follower = events.open("follow=true").await;
    until(&mut follower, "BackOff").await;
    assert_eq!(
        follower.last(),
        &json!({ "type": "Warning", "reason": "BackOff", "note": "BackOff of web-5cfc6c7b4b-4cl7z",
            "object": { "kind": "Pod", "namespace": events.namespace, "name": "web-5cfc6c7b4b-4cl7z" },
            "reportingController": "kubelet", "reportingInstance": "node1", "service": "web", "replica": 0,
            "count": 2, "firstTimestamp": "2026-11-24T00:00:00.000000000Z",
            "lastTimestamp": "2026-11-25T00:00:00.000000000Z", "uid": "uid-of-a" })
    );
    // Repeated, and new.
    events.put("a", POD, "BackOff", &json!({ "deprecatedCount": 3 }));
    events.put("c", POD, "Killing", &json!({}));
    until(&mut follower, "Killing").await;
    assert_eq!(reasons(&follower)[2..], ["BackOff", "Killing"]);
    assert_eq!(follower.frames[2]["count"], 3);
    // Kubernetes reports no ends, but starts: only the end comes from the gateway.
    let name = POD.strip_prefix("Pod/").unwrap();
    let run = (format!("uid-{name}"), SERVICE.to_owned(), 0);
    events.scenario.cluster.crash(events.scenario.lease(), name, &run);
    until(&mut follower, "Ended").await;
    assert_eq!(follower.last()["note"], "replica 0 ended with exit code 3");
    assert_eq!(follower.last()["reportingController"], "leasemux");
    assert_eq!(follower.last()["object"]["name"], name);
    is_quiet(&mut follower).await;
    assert_eq!(events.existing("").await, ["ScalingReplicaSet", "BackOff", "Killing", "Ended"]);
    assert_eq!(events.scenario.cluster.event_requests(), (1, 1, 1));
    // The lease ends.
    events.scenario.cluster.remove("namespaces", "", &events.namespace, false);
    assert_eq!(follower.end().await, (4001, "lease ended".to_owned()));
    eventually(async || events.scenario.cluster.event_requests().1 == 0).await;
    assert_eq!((events.feeds("native"), events.feeds("synthetic")), (0, 0));
}

#[tokio::test]
async fn many_followers_share_one_watch() {
    let events = Events::new().await;
    events.put("a", POD, "Pulled", &json!({}));
    let mut followers = Vec::new();
    for _ in 0..100 {
        followers.push(events.open("follow=true").await);
    }
    for follower in &mut followers {
        until(follower, "Pulled").await;
    }
    events.put("b", POD, "Created", &json!({}));
    for follower in &mut followers {
        until(follower, "Created").await;
        assert_eq!(reasons(follower), ["Pulled", "Created"]);
    }
    assert_eq!(events.scenario.cluster.event_requests(), (1, 1, 1));
    assert_eq!((events.feeds("native"), events.feeds("synthetic")), (1, 0));
    // Clients that poll need no new watch each time.
    drop(followers);
    let streams = "leasemux_ws_streams{kind=\"events\"}";
    eventually(async || events.scenario.setup.gateway.metric(streams) == 0).await;
    assert_eq!(events.existing("").await, ["Pulled", "Created"]);
    eventually(async || events.scenario.setup.gateway.metric(streams) == 0).await;
    assert_eq!(events.scenario.cluster.event_requests(), (1, 1, 1));
    // Lets the feed notice it.
    tokio::time::sleep(Duration::from_millis(100)).await;
    pass(GRACE).await;
    eventually(async || events.scenario.cluster.event_requests().1 == 0).await;
    assert_eq!(events.feeds("native"), 0);
    assert_eq!(events.existing("").await, ["Pulled", "Created"]);
    assert_eq!(events.scenario.cluster.event_requests(), (2, 1, 1));
}

#[tokio::test]
async fn denied_permission_gives_synthetic_events_until_granted() {
    let events = Events::new().await;
    let cluster = &events.scenario.cluster;
    cluster.deny_events(true);
    events.put("a", POD, "Pulled", &json!({}));
    assert_eq!(events.existing("").await, ["Started"]);
    let mut follower = events.open("follow=true").await;
    until(&mut follower, "Started").await;
    // Other leases do not ask again.
    let owner = events.scenario.lease().owner().as_str().to_owned();
    let other = LeaseId::new(&owner, 8, 1, 1, account(200).as_str()).unwrap();
    cluster.lease(&other, SERVICE, 1);
    cluster.run(&other, SERVICE, "web-other", 0);
    eventually(async || {
        let view = events.scenario.platform.watch(&other).await;
        view.is_ok_and(|view| {
            view.borrow().replica(&replica(SERVICE, 0)).is_some_and(|web| !web.runs.is_empty())
        })
    })
    .await;
    let mut of_other = events.open_of(8, "follow=true").await;
    until(&mut of_other, "Started").await;
    assert!(cluster.events_refused() > 0 && events.failures("denied") == 2);
    assert_eq!((events.feeds("native"), events.feeds("synthetic")), (0, 2));
    cluster.deny_events(false);
    // In steps in which the clients answer pings.
    let mut passed = Duration::ZERO;
    while passed < DENIED && events.feeds("native") < 2 {
        pass(STEP).await;
        passed += STEP;
        follower.linger(Duration::from_millis(50)).await;
        of_other.linger(Duration::from_millis(50)).await;
    }
    until(&mut follower, "Pulled").await;
    assert_eq!(reasons(&follower), ["Started", "Pulled"]);
    eventually(async || (events.feeds("native"), events.feeds("synthetic")) == (2, 0)).await;
    // Withdrawn again: noticed when the watch breaks.
    cluster.deny_events(true);
    cluster.compact();
    eventually(async || events.feeds("native") == 0).await;
    let name = POD.strip_prefix("Pod/").unwrap();
    let run = (format!("uid-{name}"), SERVICE.to_owned(), 0);
    cluster.crash(events.scenario.lease(), name, &run);
    until(&mut follower, "Ended").await;
    follower.until("the next run", |follower| follower.last()["reason"] == "Started").await;
}

#[tokio::test]
async fn broken_watch_misses_and_repeats_no_event() {
    let events = Events::new().await;
    let cluster = &events.scenario.cluster;
    events.put("0", POD, "Event0", &json!({}));
    let mut follower = events.open("follow=true").await;
    until(&mut follower, "Event0").await;
    let mut expected = vec!["Event0".to_owned()];
    for number in 1..=12 {
        match number % 3 {
            // Versions are too old, 410: a new list.
            0 => cluster.forget_history(),
            1 => cluster.compact(),
            _ => {
                cluster.stop().await;
                cluster.resume().await;
            }
        }
        let reason = format!("Event{number}");
        events.put(&number.to_string(), POD, &reason, &json!({}));
        // Back-off after failures.
        for _ in 0..20 {
            if reasons(&follower).contains(&reason) {
                break;
            }
            _ = tokio::time::timeout(Duration::from_millis(50), follower.next()).await;
            pass(Duration::from_secs(2)).await;
        }
        until(&mut follower, &reason).await;
        expected.push(reason);
        assert_eq!(reasons(&follower), expected);
    }
    assert!(cluster.event_requests().0 > 4);
    assert_eq!(events.existing("").await, expected);
}

#[tokio::test]
async fn only_events_of_the_tenants_objects_are_sent() {
    let events = Events::new().await;
    let owner = events.scenario.lease().owner().as_str().to_owned();
    let other = LeaseId::new(&owner, 8, 1, 1, account(200).as_str()).unwrap().namespace();
    events.scenario.cluster.event(&other, "x", POD, "OfOther", &json!({}));
    events.put("a", "NetworkPolicy/akash-deny", "Internal", &json!({}));
    let elsewhere = json!({ "regarding": { "kind": "Pod", "namespace": "kube-system", "name": "web-0" } });
    events.put("b", POD, "Elsewhere", &elsewhere);
    events.put("c", POD, "OfWeb", &json!({}));
    events.put("d", "Pod/api-5cfc6c7b4b-4cl7z", "OfApi", &json!({}));
    events.put("e", "Ingress/example.com", "OfNone", &json!({}));
    assert_eq!(events.existing("").await, ["OfWeb", "OfApi", "OfNone"]);
    assert_eq!(events.existing("service=web").await, ["OfWeb"]);
    assert_eq!(events.existing("services=web").await, ["OfWeb"]);
}

#[tokio::test]
async fn list_without_answer_is_replaced_by_synthetic_events() {
    let events = Events::new().await;
    events.put("a", POD, "Pulled", &json!({}));
    events.scenario.cluster.hold_lists(true);
    let mut follower = events.open("follow=true").await;
    is_quiet(&mut follower).await;
    pass(Duration::from_secs(3)).await;
    until(&mut follower, "Started").await;
    assert_eq!(events.existing("").await, ["Started"]);
    events.scenario.cluster.hold_lists(false);
    until(&mut follower, "Pulled").await;
    assert_eq!(reasons(&follower), ["Started", "Pulled"]);
    // The watch opens after the list.
    eventually(async || events.scenario.cluster.event_requests() == (1, 1, 1)).await;
}

#[tokio::test]
async fn synthetic_setting_asks_for_no_events() {
    let events = Events::with(RestSettings { native_events: false, ..settings() }).await;
    events.put("a", POD, "Pulled", &json!({}));
    assert_eq!(events.existing("").await, ["Started"]);
    assert_eq!(events.scenario.cluster.event_requests(), (0, 0, 0));
}

#[tokio::test]
async fn slow_follower_skips_events_and_learns_how_many() {
    let events = Events::new().await;
    events.put("0", POD, "First", &json!({}));
    let mut slow = Vec::new();
    for query in ["", "&service=web", "&notices=none", "&on_lag=close"] {
        let mut follower = events.open(&format!("follow=true{query}")).await;
        until(&mut follower, "First").await;
        slow.push(follower);
    }
    let mut quick = events.open("follow=true").await;
    let note = json!({ "note": "x".repeat(1_000) });
    for number in 0..1_000 {
        events.put(&format!("more{number}"), POD, &format!("More{number}"), &note);
        until(&mut quick, &format!("More{number}")).await;
    }
    assert_eq!(quick.frames.len(), 1_001);
    let [all, of_web, silent, closed] = &mut slow[..] else { unreachable!() };
    let mut skipped = 0;
    for (follower, prefix) in [(all, ""), (of_web, "at most ")] {
        until(follower, "More999").await;
        let gap = follower.frames.iter().find(|frame| frame["reason"] == "EventsSkipped").expect("a gap");
        let lost = 1_002 - follower.frames.len();
        skipped += lost;
        assert_eq!(gap["note"], format!("{prefix}{lost} events missing here: the follower fell behind"));
        assert_eq!((&gap["type"], &gap["object"]["name"]), (&json!("Warning"), &json!("leasemux")));
    }
    assert_eq!(closed.end().await, (4000, "follower lagged".to_owned()));
    until(silent, "More999").await;
    let lost = 1_001 - silent.frames.len();
    assert!(reasons(silent).iter().all(|reason| reason != "EventsSkipped"));
    events.scenario.cluster.remove("namespaces", "", &events.namespace, false);
    let (code, reason) = silent.end().await;
    assert_eq!((code, reason), (4001, format!("lease ended; {lost} events were missing")));
    let counted = events.scenario.setup.gateway.metric("leasemux_events_skipped_total");
    assert!(counted >= (skipped + lost) as u64, "{counted}");
}

#[tokio::test]
async fn drain_sends_the_remaining_events_first() {
    let events = Events::new().await;
    for number in 0..200 {
        let note = json!({ "note": "x".repeat(1_000) });
        events.put(&number.to_string(), POD, &format!("Event{number}"), &note);
    }
    let mut follower = events.open("follow=true").await;
    until(&mut follower, "Event0").await;
    events.scenario.setup.gateway.drain.begin();
    assert_eq!(follower.end().await, (1001, String::new()));
    assert_eq!(follower.frames.len(), 200);
}
