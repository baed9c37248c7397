//! Who is away, who is back, and what was there meanwhile.

use super::*;

#[test]
fn an_outage_is_not_held_against_a_log_that_is_rotated_meanwhile() {
    let mut play = Play::new(Server::default(), ReadFrom::Start, true);
    play.server.print(10, 1_000_000);
    play.settle(false);
    // The kubelet is stopped, and asked for in vain.
    play.on(Event::Complete { ended: false });
    for _ in 0..100 {
        play.on(Event::Woken { ended: false });
        assert!(matches!(play.next, Action::Ask(LogQuery { follow: true, .. })));
        play.on(Event::Away("nobody is there".into()));
        assert!(matches!(play.next, Action::Pause(PAUSE_AWAY)));
    }
    // It is back, and has another file: what is there is asked for without a pause.
    play.server.file = 10;
    play.server.print(10, 1_000_000);
    play.on(Event::Woken { ended: false });
    for _ in 0..10 {
        match play.next {
            Action::Ask(LogQuery { before: true, .. }) => play.on(Event::Gone("there was none".into())),
            Action::Ask(ask) => {
                play.server.open(ask);
                play.on(Event::Opened { ended: false });
            }
            Action::Read if play.server.open.unwrap().next < play.server.log.len() => play.send(false),
            Action::Read if play.server.open.unwrap().ask.follow => break,
            Action::Read => play.on(Event::Complete { ended: false }),
            ref other => panic!("{other:?}"),
        }
    }
    assert_eq!((play.heard.lines.len(), play.heard.gaps_before.as_slice()), (20, &[10][..]));
    assert!(matches!(play.next, Action::Read));
}

/// Lines of a log, so many of them from line `from` on, the first one at this second.
fn lines(from: usize, count: usize, second: i64) -> String {
    let line = |n: usize| {
        let time = LogTime::from_nanos(second * 1_000_000_000 + i64::try_from(n).unwrap() * 1_000_000);
        format!("{time} line {n}\n")
    };
    (from..from + count).map(line).collect()
}

#[test]
fn a_run_that_ended_unseen_is_told_from_the_next_one_and_from_a_rotation() {
    // What the kubelet has of the run before the present one; what is to come of it: lines, gaps, and whether it is over.
    let cases = [
        (Some(lines(5, 7, 1_000)), (12, vec![], true)),
        (Some(lines(0, 9, 500)), (13, vec![10], false)),
        (Some(String::new()), (13, vec![10], false)),
        (None, (13, vec![10], false)),
    ];
    for (before, expected) in cases {
        let (mut play, other) = lost_its_place();
        match &before {
            Some(before) => play.respond(LogQuery::BEFORE, before),
            None => play.on(Event::Broken("unable to retrieve container logs".into())),
        }
        let is_over = matches!(play.next, Action::Finish);
        if !is_over {
            play.respond(CHECKED, &other);
        }
        assert_eq!((play.heard.lines.len(), play.heard.gaps_before, is_over), expected, "{before:?}");
    }
}

#[test]
fn a_run_that_has_ended_and_is_found_nowhere_is_waited_for() {
    // What the kubelet has of the run before the present one, which is a later run than the API server knows of.
    for before in [Some(lines(7, 9, 2_000)), Some(String::new()), None] {
        let lost = || {
            let (mut play, other) = lost_its_place();
            match &before {
                Some(before) => play.respond(LogQuery::BEFORE, before),
                None => play.on(Event::Broken("unable to retrieve container logs".into())),
            }
            for pause in 0..BEHIND_PAUSES {
                assert!(matches!(play.next, Action::Ask(CHECKED)), "{:?}", play.next);
                play.on(Event::Behind { why: "a later run".into(), unclear: false });
                assert!(matches!(play.next, Action::Pause(PAUSE_MAX)), "{:?}", play.next);
                if pause + 1 < BEHIND_PAUSES {
                    play.on(Event::Woken { ended: false });
                }
            }
            assert_eq!((play.heard.lines.len(), play.heard.gaps_before.len()), (10, 0));
            (play, other)
        };
        // The API server is told: what is left of that run, and nothing of another.
        let (mut play, _) = lost();
        play.on(Event::Woken { ended: true });
        for ask in [LogQuery { follow: false, ..LogQuery::FOLLOW }, LogQuery::WHOLE, LogQuery::WHOLE] {
            play.respond_ended(ask, &lines(17, 2, 1_500));
        }
        assert!(matches!(play.next, Action::Finish), "{:?}", play.next);
        assert_eq!((play.heard.lines.len(), play.heard.gaps_before), (12, vec![10]));
        // It is not: then it was a rotation after all, and the times were wrong.
        let (mut play, other) = lost();
        play.on(Event::Woken { ended: false });
        play.respond(LogQuery::WHOLE, &other);
        assert_eq!((play.heard.lines.len(), play.heard.gaps_before), (13, vec![10]));
    }
}

#[test]
fn later_run_is_waited_for_before_its_first_line_is_taken() {
    let behind = |unclear| Event::Behind { why: "a later run".into(), unclear };
    for (unclear, follow, pauses, pause) in [
        (false, true, BEHIND_PAUSES, PAUSE_MAX),
        (true, true, UNCLEAR_PAUSES, PAUSE_MAX),
        (false, false, BRIEF_PAUSES, PAUSE_BRIEF),
    ] {
        let mut play = Play::new(Server::default(), ReadFrom::Start, follow);
        for _ in 0..pauses {
            assert!(matches!(play.next, Action::Ask(CHECKED)), "{:?}", play.next);
            play.on(behind(unclear));
            assert!(matches!(play.next, Action::Pause(is) if is == pause), "{:?}", play.next);
            play.on(Event::Woken { ended: false });
        }
        // Then times are not believed any longer.
        assert!(matches!(play.next, Action::Ask(LogQuery::WHOLE)), "{:?}", play.next);
    }
}

/// A request for a whole file that may be another run's.
const CHECKED: LogQuery = LogQuery { checks_run: true, ..LogQuery::WHOLE };

/// A run whose place is not in its log as far as is known, which holds another file or another run; and what it holds.
fn lost_its_place() -> (Play, String) {
    let mut play = Play::new(Server::default(), ReadFrom::Start, true);
    play.respond(CHECKED, &lines(0, 10, 1_000));
    play.respond(LogQuery::FOLLOW, &lines(0, 10, 1_000));
    play.on(Event::Complete { ended: false });
    play.on(Event::Woken { ended: false });
    let other = lines(12, 3, 3_000);
    play.respond(LogQuery::FOLLOW, &other);
    play.respond(LogQuery::WHOLE, &other);
    (play, other)
}

impl Play {
    /// Answers what is asked, which is this.
    fn respond(&mut self, expected: LogQuery, text: &str) {
        self.respond_as(expected, text, false);
    }

    /// The same, of a run that is known to have ended.
    fn respond_ended(&mut self, expected: LogQuery, text: &str) {
        self.respond_as(expected, text, true);
    }

    fn respond_as(&mut self, expected: LogQuery, text: &str, ended: bool) {
        assert!(matches!(self.next, Action::Ask(ask) if ask == expected), "{:?}", self.next);
        self.on(Event::Opened { ended });
        self.on(Event::Data(text.as_bytes()));
        if matches!(self.next, Action::Read) && !expected.follow {
            self.on(Event::Complete { ended });
        }
    }
}

#[test]
fn a_place_that_is_found_nowhere_is_not_looked_for_without_a_pause() {
    let mut play = Play::new(Server::default(), ReadFrom::Start, true);
    play.server.print(10, 1_000_000);
    play.settle(false);
    let mut pauses = Vec::new();
    for _ in 0..20 {
        // Nothing comes, though there are lines.
        play.on(Event::Silent);
        if let Action::Pause(pause) = play.next {
            pauses.push(pause);
            play.on(Event::Woken { ended: false });
        }
        assert!(matches!(play.next, Action::Ask(LogQuery::WHOLE)));
    }
    assert_eq!((pauses.len(), pauses[0], pauses[18]), (19, PAUSE_FIRST, PAUSE_MAX));
}

#[test]
fn what_failed_before_a_long_silence_is_over() {
    let mut play = Play::new(Server::default(), ReadFrom::Start, true);
    play.server.print(3, 1_000_000);
    play.settle(false);
    for _ in 0..10 {
        play.on(Event::Broken("cut off".into()));
    }
    assert!(matches!(play.next, Action::Pause(PAUSE_MAX)));
    play.settle(false);
    let same = probe(&play.server);
    play.on(Event::Probed(same.as_bytes()));
    play.on(Event::Complete { ended: false });
    assert!(matches!(play.next, Action::Pause(PAUSE_FIRST)));
}

#[test]
fn refusals_after_the_end_of_a_deleted_log_are_no_loss() {
    let ended = || {
        let mut play = Play::new(Server::default(), ReadFrom::Start, true);
        play.server.print(3, 1_000_000);
        play.settle(false);
        play.on(Event::Complete { ended: false });
        play.on(Event::Woken { ended: false });
        play
    };
    // What the kubelet answers before the pod is gone: refusals, a response that breaks off before a line of it is known.
    let refused = |play: &mut Play| play.on(Event::Broken("container is not available".into()));
    let cut_off = |play: &mut Play| {
        play.on(Event::Opened { ended: false });
        play.on(Event::Broken("reset".into()));
    };
    let silent = |play: &mut Play| {
        play.on(Event::Opened { ended: false });
        play.on(Event::Complete { ended: false });
    };
    for answer in [refused, cut_off, silent] {
        let mut play = ended();
        for _ in 0..3 {
            answer(&mut play);
            play.on(Event::Woken { ended: false });
        }
        play.on(Event::Gone("pod not found".into()));
        assert!(matches!(play.next, Action::Finish), "{:?}", play.next);
        assert_eq!((play.heard.lines.len(), play.heard.gaps_before.len()), (3, 0));
    }
    // The container is removed while its log is followed: the kubelet says so behind the last line.
    let mut play = Play::new(Server::default(), ReadFrom::Start, true);
    play.server.print(3, 1_000_000);
    play.settle(false);
    play.on(Event::Data(b"rpc error: code = NotFound desc = no such container"));
    play.on(Event::Complete { ended: false });
    play.on(Event::Woken { ended: true });
    play.on(Event::Gone("pod not found".into()));
    assert_eq!((play.heard.lines.len(), play.heard.gaps_before.len()), (3, 0));
    // The same of a log without a line.
    for answer in [refused, cut_off, silent] {
        let mut play = Play::new(Server::default(), ReadFrom::Start, true);
        play.settle(false);
        play.on(Event::Complete { ended: false });
        play.on(Event::Woken { ended: false });
        answer(&mut play);
        play.on(Event::Woken { ended: true });
        play.on(Event::Gone("pod not found".into()));
        assert_eq!((play.heard.lines.len(), play.heard.gaps_before.len()), (0, 0));
    }
    // A part of a new line came: that line is lost.
    let mut play = ended();
    play.on(Event::Opened { ended: false });
    play.server.open(LogQuery::FOLLOW);
    play.server.print(1, 1_000_000);
    let cut = play.server.bytes(true);
    play.on(Event::Data(&cut));
    play.on(Event::Broken("reset".into()));
    play.on(Event::Woken { ended: true });
    play.on(Event::Gone("pod not found".into()));
    assert_eq!((play.heard.lines.len(), play.heard.gaps_before.len()), (3, 1));
}
