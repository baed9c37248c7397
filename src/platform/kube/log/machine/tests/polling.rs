//! A kubelet that cannot follow logs, because the node's inotify instances are used up.

use super::*;

#[test]
fn log_that_cannot_be_followed_is_polled() {
    let mut scenario = Scenario::new(Server { exhausted: true, ..Server::default() }, ReadFrom::Start, true);
    scenario.server.print(5, 1_000_000);
    scenario.run_until_idle(false);
    assert_eq!((scenario.received.lines.len(), scenario.received.unavailable), (5, 1));
    for _ in 0..20 {
        let follows = scenario.server.asked.iter().filter(|ask| ask.follow).count();
        scenario.server.print(5, 1_000_000);
        scenario.run_until_idle(false);
        // Each trial reports it again.
        let more = scenario.server.asked.iter().filter(|ask| ask.follow).count() - follows;
        assert!(more <= 1, "{more}");
    }
    assert_eq!((scenario.received.lines.len(), scenario.received.gaps_before.len()), (105, 0));
    assert!((2..=4).contains(&scenario.received.unavailable), "{}", scenario.received.unavailable);
    // Instances are available again.
    scenario.server.exhausted = false;
    while !matches!(scenario.next, Action::Read) {
        scenario.run_until_idle(false);
    }
    assert!(scenario.machine.polling.is_none() && scenario.machine.idle_verdict() == IdleVerdict::Quiet);
    scenario.server.print(5, 1_000_000);
    scenario.end();
    scenario.received.check(&scenario.server.log);
    assert_eq!((scenario.received.lines.len(), scenario.received.gaps_before.len()), (110, 0));
}

#[test]
fn log_removed_between_polls_is_a_gap() {
    let mut scenario =
        Scenario::new(Server { exhausted: true, ..Server::default() }, ReadFrom::Last(0), true);
    scenario.server.print(50, 1_000_000);
    scenario.run_until_idle(false);
    assert_eq!((scenario.received.lines.len(), scenario.received.unavailable), (0, 1));
    assert!(matches!(scenario.next, Action::AwaitPoll), "{:?}", scenario.next);
    scenario.server.print(1, 1_000_000);
    scenario.run_until_idle(false);
    assert_eq!((scenario.received.lines.len(), scenario.received.gaps_before.len()), (1, 0));
    // Lines that came after the last poll may be missing.
    scenario.on(Event::Resumed { ended: false });
    scenario.on(Event::Gone("pod not found".into()));
    assert_eq!(scenario.received.gaps_before.len(), 1);
}

#[test]
fn rotation_between_two_polls_is_a_gap() {
    let mut scenario = Scenario::new(Server { exhausted: true, ..Server::default() }, ReadFrom::Start, true);
    scenario.server.print(50, 1_000_000);
    scenario.run_until_idle(false);
    scenario.server.print(5, 1_000_000);
    scenario.server.file = 53;
    scenario.run_until_idle(false);
    scenario.end();
    scenario.received.check(&scenario.server.log);
    assert_eq!((scenario.received.lines.len(), scenario.received.gaps_before.len()), (52, 1));
}
