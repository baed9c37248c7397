//! Runs that end, fail and rotate.

use leasemux::model::line::OutputStream;

use super::*;
use crate::support::loss_check::Seen;

fn runs(all: &[Instance]) -> Vec<(&Instance, usize)> {
    all.iter().map(|run| (run, 0)).collect()
}

#[tokio::test(start_paused = true)]
async fn every_run_of_a_crash_loop_reaches_all() {
    let mut fleet = TestFleet::new(3).await;
    let mut streams = fleet.follow_each().await;
    let lease = fleet.gateways[0].lease.clone();
    let mut all = vec![fleet.run.clone()];
    for round in 0..6 {
        fleet.print(20);
        tokio::time::sleep(Duration::from_millis(200 * round)).await;
        fleet.platform().end(&lease, &web(), 1);
        tokio::time::sleep(Duration::from_millis(40 * round)).await;
        fleet.run = fleet.platform().start(&lease, &web());
        all.push(fleet.run.clone());
    }
    fleet.print(20);
    let last = format!("line {}\n", fleet.printed - 1);
    for stream in &mut streams {
        stream.until(|seen| seen.ends_with("web", 0, &last)).await;
        assert_eq!(stream.received.assert_complete(fleet.platform(), "web", 0, &runs(&all)), 0);
    }
    fleet.wait_until_shared().await;
}

#[tokio::test(start_paused = true)]
async fn runs_that_no_view_named_are_one_gap_for_each() {
    let mut fleet = TestFleet::new(3).await;
    let mut streams = fleet.follow_each().await;
    let lease = fleet.gateways[0].lease.clone();
    fleet.print(5);
    fleet.platform().end(&lease, &web(), 1);
    // The gateways' tasks do not run meanwhile, so no view names the runs in between.
    for _ in 0..3 {
        fleet.run = fleet.platform().start(&lease, &web());
    }
    fleet.platform().change(&lease, |view| {
        let slot = view.services.values_mut().next().unwrap().replicas.get_mut(&0).unwrap();
        slot.runs.drain(..slot.runs.len() - 1);
    });
    fleet.print(5);
    let last = format!("line {}\n", fleet.printed - 1);
    let mut gaps = Vec::new();
    for stream in &mut streams {
        stream.until(|seen| seen.ends_with("web", 0, &last)).await;
        let seen = stream.received.of("web", 0).iter();
        gaps.push(seen.filter(|one| matches!(one, Seen::Gap(..))).count());
    }
    assert!(gaps.iter().all(|count| *count == gaps[0]), "{gaps:?}");
}

#[tokio::test(start_paused = true)]
async fn lost_lines_are_one_gap_for_each() {
    let mut fleet = TestFleet::new(3).await;
    let mut streams = fleet.follow_each().await;
    for _ in 0..10 {
        fleet.print(4);
        fleet.platform().lose(&fleet.run, 3);
        tokio::time::sleep(Duration::from_millis(15)).await;
    }
    fleet.print(1);
    let last = format!("line {}\n", fleet.printed - 1);
    for stream in &mut streams {
        stream.until(|seen| seen.ends_with("web", 0, &last)).await;
        let reported = stream.received.assert_complete(fleet.platform(), "web", 0, &[(&fleet.run, 0)]);
        assert_eq!(reported, 30);
    }
}

#[tokio::test(start_paused = true)]
async fn failing_source_delays_lines_and_loses_none() {
    let mut fleet = TestFleet::new(3).await;
    let mut streams = fleet.follow_each().await;
    fleet.print_and_read(&mut streams, Duration::from_millis(100)).await;
    fleet.platform().fail(&fleet.run, true);
    fleet.print(10);
    tokio::time::sleep(Duration::from_secs(20)).await;
    fleet.print(10);
    fleet.platform().fail(&fleet.run, false);
    fleet.assert_complete(&mut streams, 0).await;
    tokio::time::sleep(Duration::from_secs(90)).await;
    fleet.wait_until_shared().await;
    fleet.print(10);
    fleet.assert_complete(&mut streams, 0).await;
}

#[tokio::test(start_paused = true)]
async fn lease_that_ends_ends_all_streams() {
    let mut fleet = TestFleet::new(3).await;
    let mut streams = fleet.follow_each().await;
    let lease = fleet.gateways[0].lease.clone();
    fleet.print(20);
    fleet.platform().end(&lease, &web(), 0);
    fleet.platform().change(&lease, |view| view.ended = true);
    for stream in &mut streams {
        assert_eq!(stream.end().await.code(), tonic::Code::NotFound);
    }
    fleet.assert_complete(&mut streams, 0).await;
    fleet.wait_until_idle().await;
    // The members got all lines from the publisher before it ended.
    assert_eq!((fleet.platform().follows(), fleet.platform().open()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn lines_in_pieces_reach_all() {
    let fleet = TestFleet::new(3).await;
    let mut streams = fleet.follow_each().await;
    let (platform, run) = (fleet.platform().clone(), fleet.run.clone());
    for round in 0..40 {
        let (out, other) = (OutputStream::Stdout, OutputStream::Stderr);
        platform.print_piece(&run, out, &format!("out {round} begins"));
        tokio::time::sleep(Duration::from_millis(11)).await;
        if round % 3 == 0 {
            platform.print_piece(&run, other, &format!("err {round}\n"));
        }
        if round % 10 == 5 {
            let old = fleet.publisher();
            fleet.hub.set_faults(Faults { cut_off: vec![old], ..Faults::default() });
        }
        platform.print_piece(&run, out, " and ends\n");
        tokio::time::sleep(Duration::from_millis(200)).await;
        fleet.hub.set_faults(Faults::default());
    }
    platform.print_piece(&run, OutputStream::Stdout, "the end\n");
    let mut texts = Vec::new();
    for stream in &mut streams {
        stream.until(|seen| seen.ends_with("web", 0, "the end\n")).await;
        let text = stream.received.text("web", 0);
        for round in 0..40 {
            assert_eq!(text.matches(&format!("out {round} begins")).count(), 1, "{text}");
            let expected = usize::from(round % 3 == 0);
            assert_eq!(text.matches(&format!("err {round}\n")).count(), expected, "{text}");
        }
        assert_eq!(text.matches(" and ends\n").count(), 40);
        texts.push(text);
    }
    assert!(texts.iter().all(|text| *text == texts[0]), "the same bytes in the same order");
}
