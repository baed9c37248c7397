//! Following logs, over a fake world with paused time.

use leasemux::model::id::Replica;
use leasemux::model::limits::Limits;
use leasemux::model::proto::lease::replica_event::Kind;

use crate::support::gateway::Scene;

fn replica(service: &str, index: u32) -> Replica {
    Replica { service: service.parse().unwrap(), index }
}

fn lines(range: std::ops::Range<usize>) -> impl Iterator<Item = String> {
    range.map(|number| format!("line {number}\n"))
}

#[tokio::test(start_paused = true)]
async fn what_was_is_sent_and_then_the_stream_ends() {
    let scene = Scene::new(Limits::default(), &[("web", 2)]);
    let world = &scene.gateway.world;
    let first = world.start(&scene.lease, &replica("web", 0));
    let second = world.start(&scene.lease, &replica("web", 1));
    world.print(&first, lines(0..5_000));
    world.print(&second, ["only\n"]);
    let mut stream = scene.open(scene.request()).await.unwrap();
    assert_eq!(stream.end().await.code(), tonic::Code::Ok);
    assert_eq!(stream.received.ask(world, "web", 0, &[(&first, 0)]), 0);
    assert_eq!(stream.received.lines("web", 0), 5_000);
    assert_eq!(stream.received.text("web", 1), "only\n");
    assert_eq!(world.follows(), 0);
    assert_eq!(world.open(), 0);
}

#[tokio::test(start_paused = true)]
async fn history_joins_live_without_hole_or_repeat() {
    let scene = Scene::new(Limits::default(), &[("web", 1)]);
    let world = &scene.gateway.world;
    let run = world.start(&scene.lease, &replica("web", 0));
    world.print(&run, lines(0..3_000));
    let mut request = scene.request();
    request.follow = true;
    let mut stream = scene.open(request).await.unwrap();
    stream.until(|seen| seen.lines("web", 0) >= 1).await;
    for step in 0..50 {
        world.print(&run, lines(3_000 + 10 * step..3_010 + 10 * step));
        stream.until(|seen| seen.lines("web", 0) >= 3_000).await;
    }
    stream.until(|seen| seen.lines("web", 0) == 3_500).await;
    assert!(stream.is_quiet().await);
    assert_eq!(stream.received.ask(world, "web", 0, &[(&run, 0)]), 0);
    // The follower's own read has ended; only the one live tail is open.
    assert_eq!(world.open(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_crash_is_followed_and_told() {
    let scene = Scene::new(Limits::default(), &[("web", 1)]);
    let world = &scene.gateway.world;
    let web = replica("web", 0);
    let first = world.start(&scene.lease, &web);
    world.print(&first, lines(0..10));
    let mut request = scene.request();
    request.follow = true;
    let mut stream = scene.open(request).await.unwrap();
    stream.until(|seen| seen.lines("web", 0) == 10).await;
    world.print(&first, ["panic\n"]);
    world.end(&scene.lease, &web, 1);
    stream.until(|seen| seen.events("web", 0) == [Kind::Ended, Kind::Waiting]).await;
    let second = world.start(&scene.lease, &web);
    world.print(&second, lines(0..10));
    stream.until(|seen| seen.lines("web", 0) == 21).await;
    assert_eq!(stream.received.events("web", 0), [Kind::Ended, Kind::Waiting, Kind::Started]);
    assert_eq!(stream.received.ask(world, "web", 0, &[(&first, 0), (&second, 0)]), 0);
}
