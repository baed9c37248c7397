//! Quotas over real gRPC: a rejection names the quota and the time to retry, a retry then succeeds, and
//! others are not affected.

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

use crate::support::gateway::{Gateway, Setup, Stream, proto_lease};
use crate::support::{account, reason, replica};

mod backfill;

/// Two tenants of one gateway, each with one running replica.
pub(crate) struct TwoTenants {
    pub(crate) setup: Setup,
    pub(crate) other: Setup,
    runs: [Instance; 2],
}

impl TwoTenants {
    pub(crate) fn new(quota: QuotaLimits) -> Self {
        let setup = Setup::new(Limits { quota, ..Limits::default() }, &[("web", 1)]);
        let (owner, certificate) = setup.gateway.tenant();
        let lease = LeaseId::new(owner.as_str(), 7, 1, 1, account(200).as_str()).unwrap();
        setup.gateway.platform.add_lease(&lease, &[("web", 1)]);
        let other = Setup { gateway: setup.gateway.clone(), lease, certificate };
        let runs =
            [&setup, &other].map(|setup| setup.gateway.platform.start(&setup.lease, &replica("web", 0)));
        Self { setup, other, runs }
    }

    pub(crate) fn print(&self, lines: u32, text: &str) {
        for run in &self.runs {
            self.setup.gateway.platform.print(run, (0..lines).map(|number| format!("{number} {text}\n")));
        }
    }

    /// Checks that a stream is complete.
    fn ask(&self, which: usize, stream: &Stream) {
        stream.received.assert_complete(&self.setup.gateway.platform, "web", 0, &[(&self.runs[which], 0)]);
    }
}

pub(crate) fn follow(setup: &Setup) -> ServiceLogsRequest {
    ServiceLogsRequest { follow: true, ..setup.request() }
}

/// Checks a rejection by a quota, which names nothing but its subject. Returns the retry-after time.
#[track_caller]
pub(crate) fn quota_exceeded(status: &Status, quota: &str, subject: &str, limit: i64) -> Duration {
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
    status.get_details_retry_info().and_then(|info| info.retry_delay).expect("a time to retry")
}

pub(crate) fn rejections(gateway: &Gateway, quota: &str) -> u64 {
    gateway.metric(&format!("leasemux_quota_refusals_total{{quota=\"{quota}\"}}"))
}

#[tokio::test(start_paused = true)]
async fn streams_of_each_owner_are_limited() {
    let two = TwoTenants::new(QuotaLimits { streams_per_owner: 2, ..QuotaLimits::default() });
    let (setup, gateway) = (&two.setup, &two.setup.gateway);
    two.print(3, "before");
    let mut first = setup.open(follow(setup)).await.unwrap();
    let mut second = setup.open(follow(setup)).await.unwrap();
    let owner = format!("owner:{}", setup.lease.owner());
    for _ in 0..3 {
        let status = setup.open(follow(setup)).await.err().unwrap();
        assert_eq!(quota_exceeded(&status, "streams_per_owner", &owner, 2), Duration::from_secs(5));
    }
    // All methods count, and are rejected with the same text.
    let request = leasemux::model::proto::lease::ServiceStatusRequest {
        lease_id: Some(proto_lease(&setup.lease)),
        ..Default::default()
    };
    let status = gateway.client(&setup.certificate).await.service_status(request).await.unwrap_err();
    quota_exceeded(&status, "streams_per_owner", &owner, 2);
    assert_eq!(rejections(gateway, "streams_per_owner"), 4);
    let mut others = two.other.open(follow(&two.other)).await.unwrap();
    for stream in [&mut first, &mut second, &mut others] {
        stream.until(|seen| seen.lines("web", 0) == 3).await;
    }
    // A stream that ends frees a permit.
    drop(second);
    gateway.eventually(|gateway| gateway.metric("leasemux_followers") == 2).await;
    let mut third = setup.open(follow(setup)).await.unwrap();
    two.print(3, "after");
    for stream in [&mut first, &mut third, &mut others] {
        stream.until(|seen| seen.lines("web", 0) == 6).await;
    }
    two.ask(0, &first);
    two.ask(0, &third);
    two.ask(1, &others);
}

#[tokio::test(start_paused = true)]
async fn streams_of_all_owners_are_limited() {
    let two = TwoTenants::new(QuotaLimits { streams: 1, ..QuotaLimits::default() });
    two.print(2, "line");
    let mut first = two.setup.open(follow(&two.setup)).await.unwrap();
    first.until(|seen| seen.lines("web", 0) == 2).await;
    let status = two.other.open(follow(&two.other)).await.err().unwrap();
    let retry_after = quota_exceeded(&status, "streams", "gateway", 1);
    assert!(!status.message().contains(two.setup.lease.owner().as_str()));
    two.ask(0, &first);
    drop(first);
    tokio::time::sleep(retry_after).await;
    let mut others = two.other.open(follow(&two.other)).await.unwrap();
    others.until(|seen| seen.lines("web", 0) == 2).await;
    two.ask(1, &others);
}

#[tokio::test(start_paused = true)]
async fn calls_of_each_owner_are_rate_limited() {
    let two = TwoTenants::new(QuotaLimits {
        requests_per_second: 4,
        streams_per_owner: 4,
        ..QuotaLimits::default()
    });
    two.print(1, "line");
    let mut client = two.setup.gateway.client(&two.setup.certificate).await;
    let owner = format!("owner:{}", two.setup.lease.owner());
    for _ in 0..4 {
        drop(client.service_logs(two.setup.request()).await.unwrap());
    }
    for _ in 0..8 {
        let status = client.service_logs(two.setup.request()).await.unwrap_err();
        let retry_after = quota_exceeded(&status, "requests_per_owner", &owner, 4);
        assert!(retry_after <= Duration::from_millis(250), "{retry_after:?}");
        // The other owner is not affected.
        let mut others = two.other.open(two.other.request()).await.unwrap();
        assert_eq!(others.end().await.code(), Code::Ok);
        two.ask(1, &others);
        tokio::time::sleep(retry_after).await;
        drop(client.service_logs(two.setup.request()).await.expect("success after the retry time"));
    }
    assert_eq!(rejections(&two.setup.gateway, "requests_per_owner"), 8);
}

#[tokio::test(start_paused = true)]
async fn restarts_are_limited_per_lease_owner_and_gateway() {
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
        let two = TwoTenants::new(quota);
        let restart = |setup: &Setup, id: &str| {
            let request = ServiceRestartRequest {
                lease_id: Some(proto_lease(&setup.lease)),
                request_id: id.to_owned(),
                ..ServiceRestartRequest::default()
            };
            let (gateway, certificate) = (setup.gateway.clone(), setup.certificate.clone());
            async move { gateway.client(&certificate).await.service_restart(request).await }
        };
        restart(&two.setup, "one").await.unwrap();
        restart(&two.setup, "other").await.unwrap();
        // A repeated call takes nothing.
        restart(&two.setup, "one").await.unwrap();
        let status = restart(&two.setup, "third").await.unwrap_err();
        let subject = match name {
            "restarts_per_lease" => format!("lease:{}", two.setup.lease),
            "restarts_per_owner" => format!("owner:{}", two.setup.lease.owner()),
            _ => "gateway".to_owned(),
        };
        let retry_after = quota_exceeded(&status, name, &subject, 2);
        assert!(retry_after <= Duration::from_secs(1_800), "{retry_after:?}");
        assert_eq!(restart(&two.other, "one").await.is_err(), name == "restarts");
        tokio::time::sleep(retry_after).await;
        restart(&two.setup, "third").await.expect("success after the retry time");
    }
}

#[tokio::test(start_paused = true)]
async fn calls_of_all_owners_are_rate_limited() {
    let two =
        TwoTenants::new(QuotaLimits { requests_per_second_in_all: 2, streams: 2, ..QuotaLimits::default() });
    for setup in [&two.setup, &two.other] {
        assert_eq!(setup.open(setup.request()).await.unwrap().end().await.code(), Code::Ok);
    }
    let status = two.other.open(two.other.request()).await.err().unwrap();
    let retry_after = quota_exceeded(&status, "requests", "gateway", 2);
    assert!(retry_after <= Duration::from_millis(500), "{retry_after:?}");
    tokio::time::sleep(retry_after).await;
    two.other.open(two.other.request()).await.expect("success after the retry time");
}

#[tokio::test(start_paused = true)]
async fn shut_out_peer_keeps_its_open_streams() {
    let two = TwoTenants::new(QuotaLimits { auth_failures_per_minute: 3, ..QuotaLimits::default() });
    let gateway = &two.setup.gateway;
    let [bad, good] = ["192.0.2.1:1", "192.0.2.2:1"].map(|text| Some(text.parse().unwrap()));
    let calls = |certificate: Option<Vec<u8>>, address| async move {
        LeaseRpcClient::new(gateway.channel_over(gateway.connect_from(certificate, address)).await)
    };
    two.print(1, "before");
    let known = Some(two.setup.certificate.clone());
    let mut open =
        calls(known.clone(), bad).await.service_logs(follow(&two.setup)).await.unwrap().into_inner();
    let mut stranger = calls(None, bad).await;
    for _ in 0..3 {
        let status = stranger.service_logs(two.setup.request()).await.unwrap_err();
        assert_eq!(reason(&status), "CREDENTIALS_MISSING");
    }
    let status = stranger.service_logs(two.setup.request()).await.unwrap_err();
    let retry_after = quota_exceeded(&status, "auth_failures_per_peer", "peer", 3);
    assert!(
        retry_after > Duration::from_secs(60) && retry_after <= Duration::from_secs(90),
        "{retry_after:?}"
    );
    assert!(!status.message().contains("192.0.2"), "{status:?}");
    // New connections from that address are rejected too; another address is not affected.
    let status = calls(known.clone(), bad).await.service_logs(two.setup.request()).await.unwrap_err();
    quota_exceeded(&status, "auth_failures_per_peer", "peer", 3);
    calls(known.clone(), good).await.service_logs(two.setup.request()).await.unwrap();
    let mut text = Vec::new();
    two.print(1, "after");
    while text.len() < "0 before\n0 after\n".len() {
        text.extend(open.message().await.unwrap().unwrap().services.into_iter().flat_map(|entry| entry.logs));
    }
    assert_eq!(String::from_utf8(text).unwrap(), "0 before\n0 after\n");
    tokio::time::sleep(retry_after).await;
    calls(known, bad).await.service_logs(two.setup.request()).await.expect("success after the retry time");
    assert_eq!(rejections(gateway, "auth_failures_per_peer"), 2);
}

#[tokio::test(start_paused = true)]
async fn backfill_is_rate_limited_per_owner_without_loss() {
    const LINES: u32 = 4_000;
    let quota = QuotaLimits {
        history_bytes_per_second: 0,
        history_bytes_per_second_per_owner: 64 * 1024,
        ..QuotaLimits::default()
    };
    let two = TwoTenants::new(quota);
    let text = "x".repeat(500);
    two.print(LINES, &text);
    let read = |which: usize, setup| {
        let two = &two;
        async move {
            let setup: &Setup = setup;
            let began = Instant::now();
            let mut stream = setup.open(setup.request()).await.unwrap();
            assert_eq!(stream.end().await.code(), Code::Ok);
            two.ask(which, &stream);
            assert_eq!(stream.received.lines("web", 0), 4_000);
            began.elapsed()
        }
    };
    // About two million bytes. Both read at once, and each as fast as alone.
    let (one, other) = tokio::join!(read(0, &two.setup), read(1, &two.other));
    for took in [one, other] {
        assert!(took >= Duration::from_secs(29) && took < Duration::from_secs(33), "{took:?}");
    }
    // Live lines are not limited.
    let mut live =
        two.setup.open(ServiceLogsRequest { tail_lines: Some(0), ..follow(&two.setup) }).await.unwrap();
    live.until(|seen| !seen.cursors.is_empty()).await;
    let began = Instant::now();
    two.print(LINES, &text);
    live.until(|seen| seen.lines("web", 0) == 4_000).await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn open_calls_without_credentials_are_limited() {
    let two = TwoTenants::new(QuotaLimits::default());
    let gateway = &two.setup.gateway;
    let [peer, other] = ["[2001:db8::1]:1", "[2001:db8:0:1::1]:1"].map(|text| Some(text.parse().unwrap()));
    let mut client = HealthClient::new(gateway.channel_over(gateway.connect_from(None, peer)).await);
    let watch = || HealthCheckRequest { service: String::new() };
    let mut open = Vec::new();
    for _ in 0..128 {
        open.push(client.watch(watch()).await.unwrap());
    }
    // Another address of the same network counts as the same peer.
    let neighbor = Some("[2001:db8::ffff:2]:1".parse().unwrap());
    let mut neighbor_client =
        HealthClient::new(gateway.channel_over(gateway.connect_from(None, neighbor)).await);
    let status = neighbor_client.check(watch()).await.unwrap_err();
    quota_exceeded(&status, "open_calls_per_peer", "peer", 128);
    let mut elsewhere = HealthClient::new(gateway.channel_over(gateway.connect_from(None, other)).await);
    elsewhere.check(watch()).await.unwrap();
    // A tenant at that address is not affected.
    let known = gateway.connect_from(Some(two.setup.certificate.clone()), peer);
    let mut tenant = LeaseRpcClient::new(gateway.channel_over(known).await);
    tenant.service_logs(two.setup.request()).await.unwrap();
    drop(open);
    tokio::time::sleep(Duration::from_secs(5)).await;
    neighbor_client.check(watch()).await.unwrap();
}
