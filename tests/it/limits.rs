//! Quotas over real gRPC: who has used one up is told which and when to come again, comes again then, and nobody else notices.

use std::time::Duration;

use leasemux::model::id::{Instance, LeaseId};
use leasemux::model::limits::{Limits, QuotaLimits};
use leasemux::model::proto::lease::lease_rpc_client::LeaseRpcClient;
use leasemux::model::proto::lease::{ServiceLogsRequest, ServiceRestartRequest};
use tokio::time::Instant;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt as _;

use crate::support::gateway::{Gateway, Scene, Stream, proto_lease};
use crate::support::{account, reason, replica};

mod control_frames;
mod floods;
mod history;
mod idle;
mod shut_out;
mod untaken;

/// Two tenants of one gateway, each with a replica that runs.
struct Two {
    scene: Scene,
    other: Scene,
    runs: [Instance; 2],
}

impl Two {
    fn new(quota: QuotaLimits) -> Self {
        let scene = Scene::new(Limits { quota, ..Limits::default() }, &[("web", 1)]);
        let (owner, certificate) = scene.gateway.tenant();
        let lease = LeaseId::new(owner.as_str(), 7, 1, 1, account(200).as_str()).unwrap();
        scene.gateway.world.add_lease(&lease, &[("web", 1)]);
        let other = Scene { gateway: scene.gateway.clone(), lease, certificate };
        let runs = [&scene, &other].map(|scene| scene.gateway.world.start(&scene.lease, &replica("web", 0)));
        Self { scene, other, runs }
    }

    fn print(&self, lines: u32, text: &str) {
        for run in &self.runs {
            self.scene.gateway.world.print(run, (0..lines).map(|number| format!("{number} {text}\n")));
        }
    }

    /// Asks the oracle of all that was received.
    fn ask(&self, which: usize, stream: &Stream) {
        stream.received.ask(&self.scene.gateway.world, "web", 0, &[(&self.runs[which], 0)]);
    }
}

fn follow(scene: &Scene) -> ServiceLogsRequest {
    ServiceLogsRequest { follow: true, ..scene.request() }
}

/// Checks a refusal, that it names whose the quota is and no more, and answers when to come again.
#[track_caller]
fn used_up(status: &Status, quota: &str, subject: &str, limit: i64) -> Duration {
    assert_eq!(
        (status.code(), reason(status).as_str()),
        (Code::ResourceExhausted, "QUOTA_USED_UP"),
        "{status:?}"
    );
    assert_eq!(status.get_details_error_info().unwrap().metadata["quota"], quota);
    let violations = status.get_details_quota_failure().unwrap().violations;
    let [violation] = &violations[..] else { panic!("{violations:?}") };
    assert_eq!((&*violation.quota_id, &*violation.subject, violation.quota_value), (quota, subject, limit));
    assert_eq!(violation.description, status.message());
    status.get_details_retry_info().and_then(|info| info.retry_delay).expect("a time to come again")
}

fn refusals(gateway: &Gateway, quota: &str) -> u64 {
    gateway.metric(&format!("leasemux_quota_refusals_total{{quota=\"{quota}\"}}"))
}

#[tokio::test(start_paused = true)]
async fn an_owner_has_so_many_streams_and_the_others_theirs() {
    let two = Two::new(QuotaLimits { streams_per_owner: 2, ..QuotaLimits::default() });
    let (scene, gateway) = (&two.scene, &two.scene.gateway);
    two.print(3, "before");
    let mut first = scene.open(follow(scene)).await.unwrap();
    let mut second = scene.open(follow(scene)).await.unwrap();
    let owner = format!("owner:{}", scene.lease.owner());
    for _ in 0..3 {
        let status = scene.open(follow(scene)).await.err().unwrap();
        assert_eq!(used_up(&status, "streams_per_owner", &owner, 2), Duration::from_secs(5));
    }
    // Any method counts, and is refused in the same words.
    let request = leasemux::model::proto::lease::ServiceStatusRequest {
        lease_id: Some(proto_lease(&scene.lease)),
        ..Default::default()
    };
    let status = gateway.client(&scene.certificate).await.service_status(request).await.unwrap_err();
    used_up(&status, "streams_per_owner", &owner, 2);
    assert_eq!(refusals(gateway, "streams_per_owner"), 4);
    let mut others = two.other.open(follow(&two.other)).await.unwrap();
    for stream in [&mut first, &mut second, &mut others] {
        stream.until(|seen| seen.lines("web", 0) == 3).await;
    }
    // One that ends makes room.
    drop(second);
    gateway.eventually(|gateway| gateway.metric("leasemux_followers") == 2).await;
    let mut third = scene.open(follow(scene)).await.unwrap();
    two.print(3, "after");
    for stream in [&mut first, &mut third, &mut others] {
        stream.until(|seen| seen.lines("web", 0) == 6).await;
    }
    two.ask(0, &first);
    two.ask(0, &third);
    two.ask(1, &others);
}

#[tokio::test(start_paused = true)]
async fn all_owners_together_have_so_many_streams() {
    let two = Two::new(QuotaLimits { streams: 1, ..QuotaLimits::default() });
    two.print(2, "line");
    let mut first = two.scene.open(follow(&two.scene)).await.unwrap();
    first.until(|seen| seen.lines("web", 0) == 2).await;
    let status = two.other.open(follow(&two.other)).await.err().unwrap();
    let retry_after = used_up(&status, "streams", "gateway", 1);
    assert!(!status.message().contains(two.scene.lease.owner().as_str()));
    two.ask(0, &first);
    drop(first);
    tokio::time::sleep(retry_after).await;
    let mut others = two.other.open(follow(&two.other)).await.unwrap();
    others.until(|seen| seen.lines("web", 0) == 2).await;
    two.ask(1, &others);
}

#[tokio::test(start_paused = true)]
async fn an_owner_makes_so_many_calls_a_second_and_is_told_when_the_next_may_come() {
    let two =
        Two::new(QuotaLimits { requests_per_second: 4, streams_per_owner: 4, ..QuotaLimits::default() });
    two.print(1, "line");
    let mut client = two.scene.gateway.client(&two.scene.certificate).await;
    let owner = format!("owner:{}", two.scene.lease.owner());
    for _ in 0..4 {
        drop(client.service_logs(two.scene.request()).await.unwrap());
    }
    for _ in 0..8 {
        let status = client.service_logs(two.scene.request()).await.unwrap_err();
        let retry_after = used_up(&status, "requests_per_owner", &owner, 4);
        assert!(retry_after <= Duration::from_millis(250), "{retry_after:?}");
        // Nobody else is kept.
        let mut others = two.other.open(two.other.request()).await.unwrap();
        assert_eq!(others.end().await.code(), Code::Ok);
        two.ask(1, &others);
        tokio::time::sleep(retry_after).await;
        drop(client.service_logs(two.scene.request()).await.expect("as was said"));
    }
    assert_eq!(refusals(&two.scene.gateway, "requests_per_owner"), 8);
}

#[tokio::test(start_paused = true)]
async fn a_lease_an_owner_and_all_are_restarted_so_often_an_hour() {
    let limits = |lease, owner, all| QuotaLimits {
        restarts_per_hour: lease,
        restarts_per_hour_of_owner: owner,
        restarts_per_hour_in_all: all,
        ..QuotaLimits::default()
    };
    for (quota, name) in [
        (limits(2, 9, 9), "restarts_per_lease"),
        (limits(9, 2, 9), "restarts_per_owner"),
        (limits(9, 9, 2), "restarts"),
    ] {
        let two = Two::new(quota);
        let restart = |scene: &Scene, id: &str| {
            let request = ServiceRestartRequest {
                lease_id: Some(proto_lease(&scene.lease)),
                request_id: id.to_owned(),
                ..ServiceRestartRequest::default()
            };
            let (gateway, certificate) = (scene.gateway.clone(), scene.certificate.clone());
            async move { gateway.client(&certificate).await.service_restart(request).await }
        };
        restart(&two.scene, "one").await.unwrap();
        restart(&two.scene, "other").await.unwrap();
        // The same call made again takes nothing.
        restart(&two.scene, "one").await.unwrap();
        let status = restart(&two.scene, "third").await.unwrap_err();
        let subject = match name {
            "restarts_per_lease" => format!("lease:{}", two.scene.lease),
            "restarts_per_owner" => format!("owner:{}", two.scene.lease.owner()),
            _ => "gateway".to_owned(),
        };
        let retry_after = used_up(&status, name, &subject, 2);
        assert!(retry_after <= Duration::from_secs(1_800), "{retry_after:?}");
        assert_eq!(restart(&two.other, "one").await.is_err(), name == "restarts");
        tokio::time::sleep(retry_after).await;
        restart(&two.scene, "third").await.expect("as was said");
    }
}

#[tokio::test(start_paused = true)]
async fn all_owners_together_make_so_many_calls_a_second() {
    let two = Two::new(QuotaLimits { requests_per_second_in_all: 2, streams: 2, ..QuotaLimits::default() });
    for scene in [&two.scene, &two.other] {
        assert_eq!(scene.open(scene.request()).await.unwrap().end().await.code(), Code::Ok);
    }
    let status = two.other.open(two.other.request()).await.err().unwrap();
    let retry_after = used_up(&status, "requests", "gateway", 2);
    assert!(retry_after <= Duration::from_millis(500), "{retry_after:?}");
    tokio::time::sleep(retry_after).await;
    two.other.open(two.other.request()).await.expect("as was said");
}

#[tokio::test(start_paused = true)]
async fn an_address_that_fails_too_often_is_not_listened_to_and_its_streams_go_on() {
    let two = Two::new(QuotaLimits { auth_failures_per_minute: 3, ..QuotaLimits::default() });
    let gateway = &two.scene.gateway;
    let [bad, good] = ["192.0.2.1:1", "192.0.2.2:1"].map(|text| Some(text.parse().unwrap()));
    let calls = |certificate: Option<Vec<u8>>, address| async move {
        LeaseRpcClient::new(gateway.channel_over(gateway.connect_from(certificate, address)).await)
    };
    two.print(1, "before");
    let known = Some(two.scene.certificate.clone());
    let mut open =
        calls(known.clone(), bad).await.service_logs(follow(&two.scene)).await.unwrap().into_inner();
    let mut stranger = calls(None, bad).await;
    for _ in 0..3 {
        let status = stranger.service_logs(two.scene.request()).await.unwrap_err();
        assert_eq!(reason(&status), "CREDENTIALS_MISSING");
    }
    let status = stranger.service_logs(two.scene.request()).await.unwrap_err();
    let retry_after = used_up(&status, "auth_failures_per_peer", "peer", 3);
    assert!(
        retry_after > Duration::from_secs(60) && retry_after <= Duration::from_secs(90),
        "{retry_after:?}"
    );
    assert!(!status.message().contains("192.0.2"), "{status:?}");
    // Nor is anybody else at that address, on a connection that has not shown who they are; but at another.
    let status = calls(known.clone(), bad).await.service_logs(two.scene.request()).await.unwrap_err();
    used_up(&status, "auth_failures_per_peer", "peer", 3);
    calls(known.clone(), good).await.service_logs(two.scene.request()).await.unwrap();
    let mut text = Vec::new();
    two.print(1, "after");
    while text.len() < "0 before\n0 after\n".len() {
        text.extend(open.message().await.unwrap().unwrap().services.into_iter().flat_map(|entry| entry.logs));
    }
    assert_eq!(String::from_utf8(text).unwrap(), "0 before\n0 after\n");
    tokio::time::sleep(retry_after).await;
    calls(known, bad).await.service_logs(two.scene.request()).await.expect("as was said");
    assert_eq!(refusals(gateway, "auth_failures_per_peer"), 2);
}

#[tokio::test(start_paused = true)]
async fn history_is_paced_for_each_owner_and_loses_nothing() {
    const LINES: u32 = 4_000;
    let quota = QuotaLimits {
        history_bytes_per_second: 0,
        history_bytes_per_second_per_owner: 64 * 1024,
        ..QuotaLimits::default()
    };
    let two = Two::new(quota);
    let text = "x".repeat(500);
    two.print(LINES, &text);
    let read = |which: usize, scene| {
        let two = &two;
        async move {
            let scene: &Scene = scene;
            let began = Instant::now();
            let mut stream = scene.open(scene.request()).await.unwrap();
            assert_eq!(stream.end().await.code(), Code::Ok);
            two.ask(which, &stream);
            assert_eq!(stream.received.lines("web", 0), 4_000);
            began.elapsed()
        }
    };
    // Some two million bytes; both at once, and each as fast as if there were no other.
    let (one, other) = tokio::join!(read(0, &two.scene), read(1, &two.other));
    for took in [one, other] {
        assert!(took >= Duration::from_secs(29) && took < Duration::from_secs(33), "{took:?}");
    }
    // Who follows what is there already reads no history.
    let mut live =
        two.scene.open(ServiceLogsRequest { tail_lines: Some(0), ..follow(&two.scene) }).await.unwrap();
    live.until(|seen| !seen.cursors.is_empty()).await;
    let began = Instant::now();
    two.print(LINES, &text);
    live.until(|seen| seen.lines("web", 0) == 4_000).await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn who_shows_no_credentials_has_few_calls_open() {
    let two = Two::new(QuotaLimits::default());
    let gateway = &two.scene.gateway;
    let [crowd, other] = ["[2001:db8::1]:1", "[2001:db8:0:1::1]:1"].map(|text| Some(text.parse().unwrap()));
    let mut client = HealthClient::new(gateway.channel_over(gateway.connect_from(None, crowd)).await);
    let watch = || HealthCheckRequest { service: String::new() };
    let mut open = Vec::new();
    for _ in 0..128 {
        open.push(client.watch(watch()).await.unwrap());
    }
    // From another address of the same network, too.
    let neighbour = Some("[2001:db8::ffff:2]:1".parse().unwrap());
    let mut next_door = HealthClient::new(gateway.channel_over(gateway.connect_from(None, neighbour)).await);
    let status = next_door.check(watch()).await.unwrap_err();
    used_up(&status, "open_calls_per_peer", "peer", 128);
    let mut elsewhere = HealthClient::new(gateway.channel_over(gateway.connect_from(None, other)).await);
    elsewhere.check(watch()).await.unwrap();
    // A tenant at that address is not concerned.
    let known = gateway.connect_from(Some(two.scene.certificate.clone()), crowd);
    let mut tenant = LeaseRpcClient::new(gateway.channel_over(known).await);
    tenant.service_logs(two.scene.request()).await.unwrap();
    drop(open);
    tokio::time::sleep(Duration::from_secs(5)).await;
    next_door.check(watch()).await.unwrap();
}
