//! Kubelets that are away, or have just come back; and an API server that was away for long.

use std::time::Duration;

use leasemux::model::id::Instance;
use leasemux::model::proto::lease::replica_event::Kind;
use leasemux::platform::{Error, ReadFrom};

use super::cluster::{Kubelets, RunKey};
use super::{SERVICE, Stage, eventually, pass, read};
use crate::support::gateway::Stream;
use crate::support::oracle::{Received, Seen};

/// Within so long of an outage's end all go on: one try a second or so, and what comes of it.
const BACK_MAX: Duration = Duration::from_secs(6);

/// Has so long a time pass in small steps, each with real time for whatever is sent, until what was received is enough.
async fn elapse(
    follower: &mut Stream,
    longest: Duration,
    step: Duration,
    enough: impl Fn(&Received) -> bool,
) -> bool {
    for _ in 0..longest.as_millis() / step.as_millis() {
        for _ in 0..if step < Duration::from_secs(1) { 20 } else { 4 } {
            if enough(&follower.received) {
                return true;
            }
            _ = follower.next_if_ready().await.unwrap();
        }
        pass(step).await;
    }
    false
}

/// A follower of three replicas that have printed something.
async fn followed(stage: &Stage) -> ([RunKey; 3], Stream) {
    let runs = ["a", "b", "c"].map(|pod| stage.run(pod));
    stage.shows(&[1, 1, 1]).await;
    let mut follower = stage.follow().await;
    for run in &runs {
        stage.cluster.print(run, 5, 1_000);
    }
    follower.until(|received| (0..3).all(|index| received.lines(SERVICE, index) >= 5)).await;
    (runs, follower)
}

/// Whether the newest line of each is there.
fn newest(stage: &Stage, runs: &[RunKey]) -> impl Fn(&Received) -> bool + use<> {
    let newest: Vec<String> = runs.iter().map(|run| stage.cluster.printed(run).pop().unwrap()).collect();
    move |received| {
        (0..).zip(&newest).all(|(index, line)| received.ends_with(SERVICE, index, &format!("{line}\n")))
    }
}

#[tokio::test]
async fn a_kubelet_that_is_away_is_tried_now_and_then_and_all_go_on_when_it_is_back() {
    let stage = Stage::new(3).await;
    let (runs, mut follower) = followed(&stage).await;
    stage.cluster.kubelets(Kubelets::Away);
    stage.cluster.complete_logs();
    for run in &runs {
        stage.cluster.print(run, 5, 1_000);
    }
    let before = stage.cluster.logs_asked();
    let step = Duration::from_secs(1);
    assert!(
        !elapse(&mut follower, Duration::from_secs(300), step, |received| received.lines(SERVICE, 0) > 5)
            .await
    );
    let tries = stage.cluster.logs_asked() - before;
    assert!((30..=610).contains(&tries), "{tries} in five minutes");
    // Who only reads is told so, and does not wait for its end.
    let instance = Instance::new(&runs[0].0, SERVICE, 0).unwrap();
    let mut reading = std::pin::pin!(read(&stage.platform, stage.lease(), ReadFrom::Start, &instance));
    let told = async {
        loop {
            match tokio::time::timeout(Duration::from_millis(5), &mut reading).await {
                Ok(read) => break read,
                Err(_) => pass(Duration::from_millis(500)).await,
            }
        }
    };
    assert!(matches!(told.await, Err(Error::Unavailable(_))));
    // One of them has been rotated.
    stage.cluster.rotate(&runs[0]);
    stage.cluster.print(&runs[0], 10, 1_000);
    stage.cluster.kubelets(Kubelets::Serve);
    assert!(
        elapse(&mut follower, BACK_MAX, Duration::from_millis(100), newest(&stage, &runs)).await,
        "{:?}",
        follower.received
    );
    for (index, run) in (0..).zip(&runs) {
        let gaps = follower.received.ask_lines(SERVICE, index, &stage.cluster.printed(run));
        assert_eq!(gaps, usize::from(index == 0), "{index}");
    }
}

#[tokio::test]
async fn a_kubelet_that_does_not_know_of_its_pods_yet_ends_no_log() {
    let stage = Stage::new(3).await;
    let (runs, mut follower) = followed(&stage).await;
    stage.cluster.kubelets(Kubelets::Unaware);
    stage.cluster.complete_logs();
    for run in &runs {
        stage.cluster.print(run, 5, 1_000);
    }
    let asked = stage.cluster.logs_asked();
    let step = Duration::from_secs(1);
    assert!(
        !elapse(&mut follower, Duration::from_secs(10), step, |received| received.lines(SERVICE, 0) > 5)
            .await
    );
    assert!(stage.cluster.logs_asked() > asked + 3);
    let instance = Instance::new(&runs[0].0, SERVICE, 0).unwrap();
    let told = read(&stage.platform, stage.lease(), ReadFrom::Start, &instance).await;
    assert!(matches!(told, Err(Error::Unavailable(_))), "{told:?}");
    stage.cluster.kubelets(Kubelets::Serve);
    let step = Duration::from_millis(500);
    assert!(elapse(&mut follower, Duration::from_secs(60), step, newest(&stage, &runs)).await);
    for (index, run) in (0..).zip(&runs) {
        assert_eq!(follower.received.ask_lines(SERVICE, index, &stage.cluster.printed(run)), 0);
    }
}

#[tokio::test]
async fn an_api_server_that_was_away_for_long_is_made_use_of_as_soon_as_it_is_back() {
    let stage = Stage::new(3).await;
    let (runs, mut follower) = followed(&stage).await;
    stage.cluster.go_away().await;
    for run in &runs {
        stage.cluster.print(run, 5, 1_000);
    }
    let step = Duration::from_secs(1);
    assert!(
        !elapse(&mut follower, Duration::from_secs(300), step, |received| received.lines(SERVICE, 0) > 5)
            .await
    );
    // A pod has come to its end meanwhile, and the next run begins: the watches have to tell.
    let next = stage.cluster.crash(stage.lease(), "c", &runs[2]);
    stage.cluster.print(&next, 5, 1_000);
    stage.cluster.come_back().await;
    let step = Duration::from_millis(100);
    assert!(
        elapse(&mut follower, BACK_MAX, step, newest(&stage, &runs[..2])).await,
        "{:?}",
        follower.received
    );
    let last = stage.cluster.printed(&next).pop().unwrap();
    let last = move |received: &Received| received.ends_with(SERVICE, 2, &format!("{last}\n"));
    assert!(elapse(&mut follower, 2 * BACK_MAX, step, last).await, "{:?}", follower.received);
    let third = [stage.cluster.printed(&runs[2]), stage.cluster.printed(&next)].concat();
    for (index, printed) in
        [(0, stage.cluster.printed(&runs[0])), (1, stage.cluster.printed(&runs[1])), (2, third)]
    {
        assert_eq!(follower.received.ask_lines(SERVICE, index, &printed), 0);
    }
}

#[tokio::test]
async fn an_index_that_could_not_be_written_is_written_later() {
    // It does not answer well, or it has just been started and knows nobody's rights.
    for refused in [hyper::StatusCode::INTERNAL_SERVER_ERROR, hyper::StatusCode::FORBIDDEN] {
        let stage = Stage::new(2).await;
        let namespace = stage.lease().namespace();
        stage.cluster.refuse_patches(Some(refused));
        stage.run("a");
        stage.run("b");
        stage.shows(&[1, 1]).await;
        eventually(async || stage.cluster.patches_refused() > 0).await;
        stage.cluster.refuse_patches(None);
        let written = || ["a", "b"].map(|pod| stage.cluster.annotation(&namespace, pod));
        let mut minutes = 0..5;
        while written() != ["0", "1"].map(|index| Some(index.to_owned())) {
            minutes.next().expect("it is written within some minutes");
            pass(Duration::from_secs(61)).await;
            for _ in 0..50 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
    }
}

#[tokio::test]
async fn a_log_that_its_kubelet_removes_before_the_pod_has_gone_is_no_loss() {
    let stage = Stage::new(1).await;
    let run = stage.run("a");
    stage.shows(&[1]).await;
    // A log that is not followed yet has an end that nobody saw.
    let _first = stage.followed_live(&run).await;
    let mut follower = stage.follow().await;
    stage.cluster.print(&run, 5, 1_000);
    let printed = stage.cluster.printed(&run).len();
    follower.until(|received| received.lines(SERVICE, 0) == printed).await;
    eventually(async || stage.cluster.follows().0 == 1).await;
    // Its container has ended and is removed, and the pod is still there for a while.
    stage.cluster.say("unable to retrieve container logs for containerd://0");
    stage.cluster.end(&run);
    eventually(async || !stage.cluster.has_to_say()).await;
    stage.cluster.remove("pods", &stage.lease().namespace(), "a", false);
    follower.until(|received| received.events(SERVICE, 0).contains(&Kind::Ended)).await;
    assert_eq!(follower.received.ask_lines(SERVICE, 0, &stage.cluster.printed(&run)), 0);
}

#[tokio::test]
async fn a_run_that_the_api_server_was_not_told_of_is_not_taken_for_the_one_before() {
    let stage = Stage::new(1).await;
    let run = stage.run("a");
    stage.shows(&[1]).await;
    let mut follower = stage.follow().await;
    stage.cluster.print(&run, 5, 1_000);
    follower.until(|received| received.lines(SERVICE, 0) >= 5).await;
    // While the kubelet cannot tell anybody, the run goes on a little, ends, and is followed by the next one.
    stage.cluster.kubelets(Kubelets::Away);
    stage.cluster.complete_logs();
    stage.cluster.print(&run, 3, 1_000);
    let next = stage.cluster.crash_untold(&run);
    stage.cluster.print(&next, 1, 1_000_000_000);
    stage.cluster.print(&next, 4, 1_000);
    stage.cluster.kubelets(Kubelets::Serve);
    let step = Duration::from_millis(100);
    assert!(elapse(&mut follower, BACK_MAX, step, |received| received.lines(SERVICE, 0) >= 8).await);
    assert!(!elapse(&mut follower, BACK_MAX, step, |received| received.lines(SERVICE, 0) > 8).await);
    assert_eq!(stage.cluster.crash(stage.lease(), "a", &run), next);
    assert!(elapse(&mut follower, BACK_MAX, step, |received| received.lines(SERVICE, 0) >= 13).await);
    let printed = [stage.cluster.printed(&run), stage.cluster.printed(&next)].concat();
    assert_eq!(follower.received.ask_lines(SERVICE, 0, &printed), 0);
    assert_eq!(follower.received.events(SERVICE, 0), [Kind::Ended, Kind::Started]);
}

#[tokio::test]
async fn a_run_that_ended_untold_and_is_found_nowhere_is_waited_for() {
    // How many runs come and go before the API server is told.
    for later in 1..=2 {
        let stage = Stage::new(1).await;
        let run = stage.run("a");
        stage.shows(&[1]).await;
        let mut follower = stage.follow().await;
        stage.cluster.print(&run, 5, 1_000);
        follower.until(|received| received.lines(SERVICE, 0) >= 5).await;
        // While the kubelet cannot tell anybody, the run is rotated and ends, and others follow it.
        stage.cluster.kubelets(Kubelets::Away);
        stage.cluster.break_logs();
        stage.cluster.print(&run, 3, 1_000);
        stage.cluster.rotate(&run);
        stage.cluster.print(&run, 2, 1_000);
        let mut runs = vec![run.clone()];
        for _ in 0..later {
            let next = stage.cluster.crash_untold(runs.last().unwrap());
            stage.cluster.print(&next, 4, 1_000);
            runs.push(next);
        }
        stage.cluster.kubelets(Kubelets::Serve);
        // It is never told what another run printed.
        let (silence, step) = (Duration::from_secs(50), Duration::from_secs(1));
        let early = elapse(&mut follower, silence, step, |received| received.lines(SERVICE, 0) > 5).await;
        assert!(!early, "{later}: {:?}", follower.received.of(SERVICE, 0));
        let (last, before) = (runs[later].2, &runs[later - 1]);
        assert_eq!(stage.cluster.crash(stage.lease(), "a", before), runs[later]);
        let (newest, step) = (format!("{last}/3\n"), Duration::from_millis(100));
        let ends = |received: &Received| received.ends_with(SERVICE, 0, &newest);
        assert!(elapse(&mut follower, BACK_MAX, step, ends).await);
        let printed: Vec<String> = runs.iter().flat_map(|run| stage.cluster.printed(run)).collect();
        follower.received.ask_lines(SERVICE, 0, &printed);
        for seen in follower.received.of(SERVICE, 0) {
            let Seen::Logs(of, bytes) = seen else { continue };
            let (number, text) = (of.rsplit('/').next(), std::str::from_utf8(bytes).unwrap());
            assert!(text.lines().all(|line| line.split('/').next() == number), "of {of}: {text}");
        }
    }
}
