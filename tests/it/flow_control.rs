//! Answers that their callers do not take, on connections that are alive.

use leasemux::edge::service::SERVICE;
use leasemux::model::limits::{Limits, QuotaLimits};
use leasemux::model::proto::lease::{ServiceRestartRequest, ServiceStatusRequest};
use tokio::time::Instant;
use tonic_health::pb::HealthCheckRequest;

use crate::quotas::{follow, quota_exceeded};
use crate::support::gateway::{Setup, proto_lease};
use crate::support::raw::{Raw, encoded};
use crate::support::replica;

const STALLED: &str = "leasemux_stalled_streams_total";

/// Windows that are too small for any answer: no bytes, or one.
const WINDOWS: [u32; 2] = [0, 1];

/// A lease with two running replicas that printed a line, and a limit of one stream.
fn setup() -> Setup {
    let quota = QuotaLimits { streams_per_owner: 1, ..QuotaLimits::default() };
    let setup = Setup::new(Limits { quota, ..Limits::default() }, &[("web", 2)]);
    for index in 0..2 {
        let run = setup.gateway.platform.start(&setup.lease, &replica("web", index));
        setup.gateway.platform.print(&run, ["a line\n"]);
    }
    setup
}

/// Connects a caller with this window.
async fn caller(setup: &Setup, window: u32) -> Raw {
    let address = "192.0.2.1:1".parse().ok();
    let pipe = setup.gateway.connect_from(Some(setup.certificate.clone()), address);
    Raw::with_window(pipe, window).await
}

#[tokio::test(start_paused = true)]
async fn untaken_restart_answer_is_reset_and_the_job_continues() {
    for window in WINDOWS {
        let setup = setup();
        let gateway = &setup.gateway;
        let request = ServiceRestartRequest {
            lease_id: Some(proto_lease(&setup.lease)),
            timeout: Some(prost_types::Duration::default()),
            ..ServiceRestartRequest::default()
        };
        let mut caller = caller(&setup, window).await;
        let began = Instant::now();
        let unread = caller.call_unread(&format!("/{SERVICE}/ServiceRestart"), encoded(&request)).await;
        let status = setup.open(follow(&setup)).await.err().expect("the only stream is taken");
        quota_exceeded(&status, "streams_per_owner", &format!("owner:{}", setup.lease.owner()), 1);
        gateway.eventually(|gateway| gateway.metric(STALLED) == 1).await;
        let stall = Limits::default().stall;
        assert!(began.elapsed() >= stall && began.elapsed() < stall + stall / 10, "{:?}", began.elapsed());
        assert_eq!(gateway.metric("leasemux_streams{method=\"ServiceRestart\"}"), 0);
        assert_eq!(gateway.metric("leasemux_connections"), 1, "the connection is still open");
        setup.open(follow(&setup)).await.expect("a free stream");
        let active = "leasemux_restarts_total{result=\"active\"}";
        gateway.eventually(|gateway| gateway.metric(active) == 2).await;
        assert_eq!(gateway.platform.restarted(), ["web/0", "web/1"]);
        drop(unread);
    }
}

#[tokio::test(start_paused = true)]
async fn untaken_answers_of_all_methods_are_reset() {
    let (logs, status) = ("ServiceLogs", "ServiceStatus");
    for window in WINDOWS {
        let setup = setup();
        let follow = follow(&setup);
        let asked = ServiceStatusRequest { lease_id: follow.lease_id.clone(), ..Default::default() };
        let health = HealthCheckRequest::default();
        let calls = [
            (format!("/{SERVICE}/{logs}"), encoded(&setup.request())),
            (format!("/{SERVICE}/{logs}"), encoded(&follow)),
            (format!("/{SERVICE}/{status}"), encoded(&asked)),
            (format!("/{SERVICE}/{status}"), encoded(&ServiceStatusRequest { follow: true, ..asked })),
            ("/grpc.health.v1.Health/Check".to_owned(), encoded(&health)),
            ("/grpc.health.v1.Health/Watch".to_owned(), encoded(&health)),
        ];
        for (before, (path, request)) in calls.into_iter().enumerate() {
            let mut caller = caller(&setup, window).await;
            let unread = caller.call_unread(&path, request).await;
            setup.gateway.eventually(|gateway| gateway.metric(STALLED) == before as u64 + 1).await;
            drop(unread);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn answer_in_a_small_window_is_complete() {
    let setup = setup();
    let request = ServiceRestartRequest {
        lease_id: Some(proto_lease(&setup.lease)),
        ..ServiceRestartRequest::default()
    };
    for window in [1, 2, 100] {
        let answer = caller(&setup, window).await.call("ServiceRestart", encoded(&request)).await;
        assert_eq!(answer.status.code(), tonic::Code::Ok);
    }
}
