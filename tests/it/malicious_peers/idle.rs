//! Idle connections.

use std::time::Duration;

use leasemux::model::limits::{ConnectionLimits, Limits};
use leasemux::model::proto::lease::ServiceLogsRequest;
use tokio::io::AsyncReadExt as _;
use tokio::time::Instant;

use crate::quotas::follow;
use crate::support::gateway::Setup;
use crate::support::raw::{Raw, encoded};
use crate::support::replica;

/// A gateway whose connections may be idle for a minute, and for a second before the first call.
fn setup() -> Setup {
    let connection = ConnectionLimits {
        first_call: Duration::from_secs(1),
        idle: Duration::from_secs(60),
        ..ConnectionLimits::default()
    };
    Setup::new(Limits { connection, ..Limits::default() }, &[("web", 1)])
}

#[tokio::test(start_paused = true)]
async fn idle_connection_is_closed_unless_a_call_is_open() {
    let setup = setup();
    let run = setup.gateway.platform.start(&setup.lease, &replica("web", 0));
    let mut stream = setup.open(follow(&setup)).await.unwrap();
    let mut raw = Raw::new(setup.gateway.connect(Some(setup.certificate.clone()))).await;
    for _ in 0..3 {
        raw.call("ServiceLogs", encoded(&setup.request())).await;
        tokio::time::sleep(Duration::from_secs(50)).await;
    }
    assert_eq!(setup.gateway.metric("leasemux_connections"), 2);
    let began = Instant::now();
    setup.gateway.eventually(|gateway| gateway.metric("leasemux_connections") == 1).await;
    // A minute after the last call.
    assert!(began.elapsed() >= Duration::from_secs(9) && began.elapsed() < Duration::from_secs(15));
    assert_eq!(
        setup.gateway.metric("leasemux_connections_closed_total{reason=\"idle\"}"),
        0,
        "not from a socket"
    );
    // A quiet stream keeps its connection open.
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    setup.gateway.platform.print(&run, ["still here\n"]);
    stream.until(|seen| seen.lines("web", 0) == 1).await;
    stream.received.assert_complete(&setup.gateway.platform, "web", 0, &[(&run, 0)]);
}

#[tokio::test(start_paused = true)]
async fn connection_without_a_call_is_closed() {
    let setup = setup();
    let began = Instant::now();
    let mut silent = setup.gateway.connect(Some(setup.certificate.clone()));
    silent.read_to_end(&mut Vec::new()).await.unwrap();
    assert_eq!(began.elapsed(), Duration::from_secs(1));
    // A client can connect again.
    let request = ServiceLogsRequest { tail_lines: Some(0), ..follow(&setup) };
    setup.open(request).await.unwrap();
}
