//! Lagging followers: they get an exact gap, or are closed or reset, and delay no other follower.

use leasemux::model::proto::lease::{OnLag, ServiceLogsRequest};
use tonic::Code;
use tonic_types::StatusExt as _;

use super::{follow, follow_from_now, one_run, open_live, small_ring, wide_lines};

#[tokio::test(start_paused = true)]
async fn lagging_follower_gets_exact_gap_and_delays_no_other() {
    let (setup, run) = one_run(small_ring());
    let platform = &setup.gateway.platform;
    let mut slow = open_live(&setup).await;
    let mut quick = open_live(&setup).await;
    // Far more than ring, stream buffer, pipe and the client's window hold together.
    for step in 0..400 {
        platform.print(&run, wide_lines(100 * step..100 * (step + 1)));
        quick.until(|seen| seen.lines("web", 0) == 100 * (step + 1)).await;
    }
    assert_eq!(quick.received.assert_complete(platform, "web", 0, &[(&run, 0)]), 0);
    platform.print(&run, ["the end\n"]);
    slow.until(|seen| seen.ends_with("web", 0, "the end\n")).await;
    let lost = slow.received.assert_complete(platform, "web", 0, &[(&run, 0)]);
    assert!(lost > 0);
    let total = platform.printed(&run).len() as u64;
    assert_eq!(setup.gateway.metric("leasemux_lines_lost_total{cause=\"lag\"}"), lost);
    assert_eq!(setup.gateway.metric("leasemux_lines_delivered_total"), total + total - lost);
    assert_eq!(setup.gateway.metric("leasemux_lines_in_total"), total);
    assert!(setup.gateway.metric("leasemux_ring_bytes") <= 64 * 1024);
    // For both followers, each message is encoded once and the log is tailed once.
    let encoded = setup.gateway.metric("leasemux_frames_encoded_total");
    assert!(setup.gateway.metric("leasemux_messages_delivered_total") > encoded);
    assert_eq!(platform.follows(), 1);
}

#[tokio::test(start_paused = true)]
async fn close_on_lag_ends_with_cursors_and_resumes_without_loss() {
    let (setup, run) = one_run(small_ring());
    let platform = &setup.gateway.platform;
    let request = ServiceLogsRequest { on_lag: OnLag::Close.into(), ..follow_from_now(&setup) };
    let mut stream = setup.open(request).await.unwrap();
    stream.until(|seen| !seen.cursors.is_empty()).await;
    let mut other = setup.open(follow(&setup)).await.unwrap();
    for step in 0..400 {
        platform.print(&run, wide_lines(100 * step..100 * (step + 1)));
        other.until(|seen| seen.lines("web", 0) == 100 * (step + 1)).await;
    }
    let status = stream.end().await;
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(status.get_details_error_info().unwrap().reason, "FOLLOWER_LAGGED");
    assert_eq!(stream.received.missing("web", 0), 0);
    let mut resumed = setup.resume(stream, follow(&setup)).await;
    resumed.until(|seen| seen.lines("web", 0) == 40_000).await;
    assert_eq!(resumed.received.assert_complete(platform, "web", 0, &[(&run, 0)]), 0);
}

#[tokio::test(start_paused = true)]
async fn long_lines_are_delivered_or_lost_whole() {
    let (setup, run) = one_run(small_ring());
    let platform = &setup.gateway.platform;
    let mut slow = open_live(&setup).await;
    let mut quick = open_live(&setup).await;
    for step in 0..100 {
        let long = format!("{step:0length$}\n", length = 1_000 + 997 * (step % 37));
        platform.print(&run, [long, format!("short {step}\n")]);
        quick.until(|seen| seen.lines("web", 0) == 2 * (step + 1)).await;
    }
    platform.print(&run, ["the end\n"]);
    slow.until(|seen| seen.ends_with("web", 0, "the end\n")).await;
    assert_eq!(quick.received.assert_complete(platform, "web", 0, &[(&run, 0)]), 0);
    assert!(slow.received.assert_complete(platform, "web", 0, &[(&run, 0)]) > 0);
}

#[tokio::test(start_paused = true)]
async fn stalled_stream_is_reset_within_bounded_memory() {
    let (setup, run) = one_run(small_ring());
    let platform = &setup.gateway.platform;
    let _stalled = open_live(&setup).await;
    let mut quick = open_live(&setup).await;
    for step in 0..100 {
        platform.print(&run, wide_lines(100 * step..100 * (step + 1)));
        quick.until(|seen| seen.lines("web", 0) == 100 * (step + 1)).await;
    }
    // For the stalled follower, HTTP/2 has taken only its window and buffer.
    let delivered = setup.gateway.metric("leasemux_bytes_delivered_total");
    let printed = platform.printed(&run).iter().map(|line| line.len() as u64).sum::<u64>();
    assert!(delivered < printed + 512 * 1024, "{delivered} of {printed}");
    setup.gateway.eventually(|gateway| gateway.metric("leasemux_stalled_streams_total") == 1).await;
    assert_eq!(setup.gateway.metric("leasemux_streams{method=\"ServiceLogs\"}"), 1);
    assert_eq!(quick.received.assert_complete(platform, "web", 0, &[(&run, 0)]), 0);
}

#[tokio::test(start_paused = true)]
async fn timestamped_messages_count_in_ring_size() {
    let (setup, run) = one_run(small_ring());
    let platform = &setup.gateway.platform;
    let request = ServiceLogsRequest { timestamps: true, ..follow_from_now(&setup) };
    let mut stream = setup.open(request).await.unwrap();
    stream.until(|seen| !seen.cursors.is_empty()).await;
    for step in 0..200 {
        // Far shorter than their timestamps.
        platform.print(&run, std::iter::repeat_n("x\n", 400));
        stream.until(|seen| seen.lines("web", 0) == 400 * (step + 1)).await;
        let held = setup.gateway.metric("leasemux_ring_bytes");
        // A timestamp of 31 bytes and two bytes per line.
        assert!((400 * 33..=64 * 1024).contains(&held), "{held}");
    }
    drop(stream);
    setup.gateway.eventually(|gateway| gateway.metric("leasemux_ring_bytes") == 0).await;
}
