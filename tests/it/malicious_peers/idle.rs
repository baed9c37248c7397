//! Idle connections.

use std::time::Duration;

use leasemux::model::limits::{ConnectionLimits, Limits};
use leasemux::model::proto::lease::ServiceLogsRequest;
use tokio::io::AsyncReadExt as _;
use tokio::time::Instant;

use crate::quotas::follow;
use crate::support::gateway::Scene;
use crate::support::raw::{Raw, encoded};
use crate::support::replica;

/// A gateway whose connections may be idle for a minute, and for a second before the first call.
fn scene() -> Scene {
    let connection = ConnectionLimits {
        first_call: Duration::from_secs(1),
        idle: Duration::from_secs(60),
        ..ConnectionLimits::default()
    };
    Scene::new(Limits { connection, ..Limits::default() }, &[("web", 1)])
}

#[tokio::test(start_paused = true)]
async fn idle_connection_is_closed_unless_a_call_is_open() {
    let scene = scene();
    let run = scene.gateway.world.start(&scene.lease, &replica("web", 0));
    let mut stream = scene.open(follow(&scene)).await.unwrap();
    let mut raw = Raw::new(scene.gateway.connect(Some(scene.certificate.clone()))).await;
    for _ in 0..3 {
        raw.call("ServiceLogs", encoded(&scene.request())).await;
        tokio::time::sleep(Duration::from_secs(50)).await;
    }
    assert_eq!(scene.gateway.metric("leasemux_connections"), 2);
    let began = Instant::now();
    scene.gateway.eventually(|gateway| gateway.metric("leasemux_connections") == 1).await;
    // A minute after the last call.
    assert!(began.elapsed() >= Duration::from_secs(9) && began.elapsed() < Duration::from_secs(15));
    assert_eq!(
        scene.gateway.metric("leasemux_connections_closed_total{reason=\"idle\"}"),
        0,
        "not from a socket"
    );
    // A quiet stream keeps its connection open.
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    scene.gateway.world.print(&run, ["still here\n"]);
    stream.until(|seen| seen.lines("web", 0) == 1).await;
    stream.received.ask(&scene.gateway.world, "web", 0, &[(&run, 0)]);
}

#[tokio::test(start_paused = true)]
async fn connection_without_a_call_is_closed() {
    let scene = scene();
    let began = Instant::now();
    let mut silent = scene.gateway.connect(Some(scene.certificate.clone()));
    silent.read_to_end(&mut Vec::new()).await.unwrap();
    assert_eq!(began.elapsed(), Duration::from_secs(1));
    // A client can connect again.
    let request = ServiceLogsRequest { tail_lines: Some(0), ..follow(&scene) };
    scene.open(request).await.unwrap();
}
