//! A kubelet that cannot follow logs, since the node's inotify instances are used up.

use super::*;

#[test]
fn log_that_cannot_be_followed_is_read_again_and_again() {
    let mut play = Play::new(Server { exhausted: true, ..Server::default() }, ReadFrom::Start, true);
    play.server.print(5, 1_000_000);
    play.settle(false);
    assert_eq!((play.heard.lines.len(), play.heard.unfollowed), (5, 1));
    for _ in 0..20 {
        let follows = play.server.asked.iter().filter(|ask| ask.follow).count();
        play.server.print(5, 1_000_000);
        play.settle(false);
        // A trial now and then reports it again.
        let more = play.server.asked.iter().filter(|ask| ask.follow).count() - follows;
        assert!(more <= 1, "{more}");
    }
    assert_eq!((play.heard.lines.len(), play.heard.gaps_before.len()), (105, 0));
    assert!((2..=4).contains(&play.heard.unfollowed), "{}", play.heard.unfollowed);
    // There are instances again.
    play.server.exhausted = false;
    while !matches!(play.next, Action::Read) {
        play.settle(false);
    }
    assert!(play.machine.polls.is_none() && play.machine.silence() == IdleVerdict::Quiet);
    play.server.print(5, 1_000_000);
    play.end();
    play.heard.check(&play.server.log);
    assert_eq!((play.heard.lines.len(), play.heard.gaps_before.len()), (110, 0));
}

#[test]
fn quiet_log_that_cannot_be_followed_is_polled() {
    let mut play = Play::new(Server { exhausted: true, ..Server::default() }, ReadFrom::Last(0), true);
    play.server.print(50, 1_000_000);
    play.settle(false);
    assert_eq!((play.heard.lines.len(), play.heard.unfollowed), (0, 1));
    assert!(matches!(play.next, Action::Pause(POLL_EVERY)), "{:?}", play.next);
    play.server.print(1, 1_000_000);
    play.settle(false);
    assert_eq!((play.heard.lines.len(), play.heard.gaps_before.len()), (1, 0));
    // What could not be read before the log went may be missing.
    play.on(Event::Woken { ended: false });
    play.on(Event::Gone("pod not found".into()));
    assert_eq!(play.heard.gaps_before.len(), 1);
}

#[test]
fn rotation_between_two_polls_is_a_gap() {
    let mut play = Play::new(Server { exhausted: true, ..Server::default() }, ReadFrom::Start, true);
    play.server.print(50, 1_000_000);
    play.settle(false);
    play.server.print(5, 1_000_000);
    play.server.file = 53;
    play.settle(false);
    play.end();
    play.heard.check(&play.server.log);
    assert_eq!((play.heard.lines.len(), play.heard.gaps_before.len()), (52, 1));
}
