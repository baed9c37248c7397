//! Connections that have nothing to do.

use std::time::Duration;

use leasemux::model::limits::{ConnectionLimits, Limits};
use leasemux::model::proto::lease::ServiceLogsRequest;
use tokio::io::AsyncReadExt as _;
use tokio::time::Instant;

use super::follow;
use crate::support::gateway::Scene;
use crate::support::raw::{Raw, encoded};
use crate::support::replica;

/// A scene whose connections may be idle for a minute, and silent at first for a second.
fn scene() -> Scene {
    let connection = ConnectionLimits {
        first_call: Duration::from_secs(1),
        idle: Duration::from_secs(60),
        ..ConnectionLimits::default()
    };
    Scene::new(Limits { connection, ..Limits::default() }, &[("web", 1)])
}

#[tokio::test(start_paused = true)]
async fn a_connection_without_an_open_call_is_closed_and_one_with_is_not() {
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
    // Quiet for long, and open: it stays.
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    scene.gateway.world.print(&run, ["still here\n"]);
    stream.until(|seen| seen.lines("web", 0) == 1).await;
    stream.received.ask(&scene.gateway.world, "web", 0, &[(&run, 0)]);
}

#[tokio::test(start_paused = true)]
async fn who_connects_and_says_nothing_is_not_waited_for() {
    let scene = scene();
    let began = Instant::now();
    let mut silent = scene.gateway.connect(Some(scene.certificate.clone()));
    let mut said = Vec::new();
    silent.read_to_end(&mut said).await.unwrap();
    assert_eq!(began.elapsed(), Duration::from_secs(1));
    // A client that comes after it is closed connects anew.
    let request = ServiceLogsRequest { tail_lines: Some(0), ..follow(&scene) };
    scene.open(request).await.unwrap();
}
