//! Outages of kubelet and API server, and runs that end unseen.

use super::*;

#[test]
fn outage_delays_no_read_of_rotated_log() {
    let mut scenario = Scenario::new(Server::default(), ReadFrom::Start, true);
    scenario.server.print(10, 1_000_000);
    scenario.run_until_idle(false);
    // The kubelet is stopped, and requests fail.
    scenario.on(Event::Complete { ended: false });
    for _ in 0..100 {
        scenario.on(Event::Resumed { ended: false });
        assert!(matches!(scenario.next, Action::Open(LogQuery { follow: true, .. })));
        scenario.on(Event::Unreachable("connection refused".into()));
        assert!(matches!(scenario.next, Action::Pause(PAUSE_UNREACHABLE)));
    }
    // It is back, and has another file, which is requested without a pause.
    scenario.server.file = 10;
    scenario.server.print(10, 1_000_000);
    scenario.on(Event::Resumed { ended: false });
    for _ in 0..10 {
        match scenario.next {
            Action::Open(LogQuery { previous: true, .. }) => {
                scenario.on(Event::Gone("there was none".into()));
            }
            Action::Open(ask) => {
                scenario.server.open(ask);
                scenario.on(Event::Opened { ended: false });
            }
            Action::Read if scenario.server.open.unwrap().next < scenario.server.log.len() => {
                scenario.send(false);
            }
            Action::Read if scenario.server.open.unwrap().ask.follow => break,
            Action::Read => scenario.on(Event::Complete { ended: false }),
            ref other => panic!("{other:?}"),
        }
    }
    assert_eq!((scenario.received.lines.len(), scenario.received.gaps_before.as_slice()), (20, &[10][..]));
    assert!(matches!(scenario.next, Action::Read));
}

#[test]
fn removed_log_of_pod_that_stays_ends() {
    const REMOVED: &str = "the kubelet says: unable to retrieve container logs for containerd://x";
    // How the follow ended, the failures after the end of the run, and the gaps that are expected.
    let cases = [
        (true, REMOVED, REMOVED_FAILURES_MAX, vec![]),
        // The log may only be refused, and have grown since.
        (true, "500: not now", REST_FAILURES_MAX, vec![10]),
        (false, REMOVED, REST_FAILURES_MAX, vec![10]),
    ];
    for (is_complete, why, failures, gaps) in cases {
        let mut scenario = Scenario::new(Server::default(), ReadFrom::Start, true);
        scenario.server.print(10, 1_000_000);
        scenario.run_until_idle(false);
        scenario.on(if is_complete {
            Event::Complete { ended: false }
        } else {
            Event::Broken("the connection is reset".to_owned())
        });
        for count in 1..=failures {
            scenario.on(Event::Resumed { ended: true });
            assert!(matches!(scenario.next, Action::Open(LogQuery { follow: false, .. })), "{count}");
            scenario.on(Event::Broken(why.to_owned()));
        }
        assert!(matches!(scenario.next, Action::Finish), "{why}: {:?}", scenario.next);
        assert_eq!((scenario.received.lines.len(), scenario.received.gaps_before), (10, gaps));
    }
}

/// `count` lines from line `from` on; line 0 would be at this second.
fn lines(from: usize, count: usize, second: i64) -> String {
    let line = |n: usize| {
        let time = LogTime::from_nanos(second * 1_000_000_000 + i64::try_from(n).unwrap() * 1_000_000);
        format!("{time} line {n}\n")
    };
    (from..from + count).map(line).collect()
}

#[test]
fn run_ended_unseen_differs_from_rotation() {
    // The kubelet's previous log; the expected lines, gaps, and whether the read is over.
    let cases = [
        (Some(lines(5, 7, 1_000)), (12, vec![], true)),
        (Some(lines(0, 9, 500)), (13, vec![10], false)),
        (Some(String::new()), (13, vec![10], false)),
        (None, (13, vec![10], false)),
    ];
    for (previous, expected) in cases {
        let (mut scenario, other) = lost_resume_point();
        match &previous {
            Some(previous) => scenario.respond(LogQuery::PREVIOUS, previous),
            None => scenario.on(Event::Broken("unable to retrieve container logs".into())),
        }
        let is_over = matches!(scenario.next, Action::Finish);
        if !is_over {
            scenario.respond(CHECKED, &other);
        }
        assert_eq!(
            (scenario.received.lines.len(), scenario.received.gaps_before, is_over),
            expected,
            "{previous:?}"
        );
    }
}

#[test]
fn lost_resume_point_waits_for_report_of_later_run() {
    // The kubelet's previous log, which is that of a later run than the API server knows.
    for previous in [Some(lines(7, 9, 2_000)), Some(String::new()), None] {
        let lost = || {
            let (mut scenario, other) = lost_resume_point();
            match &previous {
                Some(previous) => scenario.respond(LogQuery::PREVIOUS, previous),
                None => scenario.on(Event::Broken("unable to retrieve container logs".into())),
            }
            for pause in 0..LATER_RUN_PAUSES {
                assert!(matches!(scenario.next, Action::Open(CHECKED)), "{:?}", scenario.next);
                scenario.on(Event::LaterRun { why: "a later run".into(), unclear: false });
                assert!(matches!(scenario.next, Action::Pause(PAUSE_MAX)), "{:?}", scenario.next);
                if pause + 1 < LATER_RUN_PAUSES {
                    scenario.on(Event::Resumed { ended: false });
                }
            }
            assert_eq!((scenario.received.lines.len(), scenario.received.gaps_before.len()), (10, 0));
            (scenario, other)
        };
        // The API server learns of it: the rest of the run comes, and no line of another.
        let (mut scenario, _) = lost();
        scenario.on(Event::Resumed { ended: true });
        for ask in [LogQuery { follow: false, ..LogQuery::FOLLOW }, LogQuery::WHOLE, LogQuery::WHOLE] {
            scenario.respond_ended(ask, &lines(17, 2, 1_500));
        }
        assert!(matches!(scenario.next, Action::Finish), "{:?}", scenario.next);
        assert_eq!((scenario.received.lines.len(), scenario.received.gaps_before), (12, vec![10]));
        // It does not: then it was a rotation, and the times were wrong.
        let (mut scenario, other) = lost();
        scenario.on(Event::Resumed { ended: false });
        scenario.respond(LogQuery::WHOLE, &other);
        assert_eq!((scenario.received.lines.len(), scenario.received.gaps_before), (13, vec![10]));
    }
}

#[test]
fn resume_point_is_searched_again_when_the_run_has_ended() {
    // The next run's lines are served for this one until the API server reports its end: while they are read,
    // or before the log of the run before is requested.
    let during_search = || {
        let (mut scenario, other) = lost_in_follow();
        scenario.begin(LogQuery::WHOLE, &other, false);
        scenario.on(Event::Complete { ended: true });
        scenario
    };
    let before_request = || {
        let (mut scenario, _) = lost_resume_point();
        assert!(matches!(scenario.next, Action::Open(LogQuery::PREVIOUS)), "{:?}", scenario.next);
        scenario.on(Event::Broken("its container was restarted meanwhile".into()));
        scenario
    };
    for reported in [during_search, before_request] {
        // The file has the resume point: nothing is missing.
        let mut scenario = reported();
        scenario.respond_ended(CHECKED, &lines(5, 7, 1_000));
        assert!(matches!(scenario.next, Action::Finish), "{:?}", scenario.next);
        assert_eq!((scenario.received.lines.len(), scenario.received.gaps_before), (12, vec![]));
        // It was rotated away.
        let mut scenario = reported();
        for _ in 0..2 {
            scenario.respond_ended(CHECKED, &lines(11, 3, 1_000));
        }
        assert!(matches!(scenario.next, Action::Finish), "{:?}", scenario.next);
        assert_eq!((scenario.received.lines.len(), scenario.received.gaps_before), (13, vec![10]));
    }
}

#[test]
fn later_run_is_not_read_before_its_report() {
    let behind = |unclear| Event::LaterRun { why: "a later run".into(), unclear };
    for (unclear, follow, pauses, pause) in [
        (false, true, LATER_RUN_PAUSES, PAUSE_MAX),
        (true, true, UNCLEAR_RUN_PAUSES, PAUSE_MAX),
        (false, false, BRIEF_PAUSES, PAUSE_BRIEF),
    ] {
        let mut scenario = Scenario::new(Server::default(), ReadFrom::Start, follow);
        for _ in 0..pauses {
            assert!(matches!(scenario.next, Action::Open(CHECKED)), "{:?}", scenario.next);
            scenario.on(behind(unclear));
            assert!(matches!(scenario.next, Action::Pause(is) if is == pause), "{:?}", scenario.next);
            scenario.on(Event::Resumed { ended: false });
        }
        // Then times are no longer trusted.
        assert!(matches!(scenario.next, Action::Open(LogQuery::WHOLE)), "{:?}", scenario.next);
    }
}

/// A request for a whole file that may be another run's.
const CHECKED: LogQuery = LogQuery { checks_run: true, ..LogQuery::WHOLE };

/// A read whose resume point is in no file: the log has another file, or another run. And its lines.
fn lost_resume_point() -> (Scenario, String) {
    let (mut scenario, other) = lost_in_follow();
    scenario.respond(LogQuery::WHOLE, &other);
    (scenario, other)
}

/// The same before the whole file is searched.
fn lost_in_follow() -> (Scenario, String) {
    let mut scenario = Scenario::new(Server::default(), ReadFrom::Start, true);
    scenario.respond(CHECKED, &lines(0, 10, 1_000));
    scenario.respond(LogQuery::FOLLOW, &lines(0, 10, 1_000));
    scenario.on(Event::Complete { ended: false });
    scenario.on(Event::Resumed { ended: false });
    let other = lines(12, 3, 3_000);
    scenario.respond(LogQuery::FOLLOW, &other);
    (scenario, other)
}

impl Scenario {
    /// Answers the request, which must be `expected`.
    fn respond(&mut self, expected: LogQuery, text: &str) {
        self.respond_as(expected, text, false);
    }

    /// The same for a run that is known to have ended.
    fn respond_ended(&mut self, expected: LogQuery, text: &str) {
        self.respond_as(expected, text, true);
    }

    /// The same, without the end of the response.
    fn begin(&mut self, expected: LogQuery, text: &str, ended: bool) {
        assert!(matches!(self.next, Action::Open(ask) if ask == expected), "{:?}", self.next);
        self.on(Event::Opened { ended });
        self.on(Event::Data(text.as_bytes()));
    }

    fn respond_as(&mut self, expected: LogQuery, text: &str, ended: bool) {
        self.begin(expected, text, ended);
        if matches!(self.next, Action::Read) && !expected.follow {
            self.on(Event::Complete { ended });
        }
    }
}

#[test]
fn repeated_search_pauses() {
    let mut scenario = Scenario::new(Server::default(), ReadFrom::Start, true);
    scenario.server.print(10, 1_000_000);
    scenario.run_until_idle(false);
    let mut pauses = Vec::new();
    for _ in 0..20 {
        // Nothing comes, although lines exist.
        scenario.on(Event::Idle);
        if let Action::Pause(pause) = scenario.next {
            pauses.push(pause);
            scenario.on(Event::Resumed { ended: false });
        }
        assert!(matches!(scenario.next, Action::Open(LogQuery::WHOLE)));
    }
    assert_eq!((pauses.len(), pauses[0], pauses[18]), (19, PAUSE_FIRST, PAUSE_MAX));
}

#[test]
fn matching_probe_resets_failures() {
    let mut scenario = Scenario::new(Server::default(), ReadFrom::Start, true);
    scenario.server.print(3, 1_000_000);
    scenario.run_until_idle(false);
    for _ in 0..10 {
        scenario.on(Event::Broken("cut off".into()));
    }
    assert!(matches!(scenario.next, Action::Pause(PAUSE_MAX)));
    scenario.run_until_idle(false);
    let same = probe(&scenario.server);
    scenario.on(Event::Probed(same.as_bytes()));
    scenario.on(Event::Complete { ended: false });
    assert!(matches!(scenario.next, Action::Pause(PAUSE_FIRST)));
}

#[test]
fn log_refused_for_long_after_its_response_ended_is_a_loss_if_it_is_gone() {
    for (refusals, gaps) in [(CLEAN_END_FAILURES - 1, 0), (CLEAN_END_FAILURES, 1)] {
        let mut scenario = Scenario::new(Server::default(), ReadFrom::Start, true);
        scenario.server.print(3, 1_000_000);
        scenario.run_until_idle(false);
        // The container runs on, and may print.
        scenario.on(Event::Complete { ended: false });
        for _ in 0..refusals {
            scenario.on(Event::Resumed { ended: false });
            scenario.on(Event::Broken("logs are refused".into()));
        }
        scenario.on(Event::Resumed { ended: true });
        scenario.on(Event::Gone("no previous run".into()));
        assert_eq!((scenario.received.lines.len(), scenario.received.gaps_before.len()), (3, gaps));
    }
}

#[test]
fn refusals_after_end_of_deleted_log_are_no_loss() {
    let ended = || {
        let mut scenario = Scenario::new(Server::default(), ReadFrom::Start, true);
        scenario.server.print(3, 1_000_000);
        scenario.run_until_idle(false);
        scenario.on(Event::Complete { ended: false });
        scenario.on(Event::Resumed { ended: false });
        scenario
    };
    // Answers of the kubelet before the pod is gone: refusals, responses without a known line.
    let refused = |scenario: &mut Scenario| scenario.on(Event::Broken("container is not available".into()));
    let cut_off = |scenario: &mut Scenario| {
        scenario.on(Event::Opened { ended: false });
        scenario.on(Event::Broken("reset".into()));
    };
    let silent = |scenario: &mut Scenario| {
        scenario.on(Event::Opened { ended: false });
        scenario.on(Event::Complete { ended: false });
    };
    for answer in [refused, cut_off, silent] {
        let mut scenario = ended();
        for _ in 0..3 {
            answer(&mut scenario);
            scenario.on(Event::Resumed { ended: false });
        }
        scenario.on(Event::Gone("pod not found".into()));
        assert!(matches!(scenario.next, Action::Finish), "{:?}", scenario.next);
        assert_eq!((scenario.received.lines.len(), scenario.received.gaps_before.len()), (3, 0));
    }
    // The container is removed during a follow: the kubelet says so after the last line.
    let mut scenario = Scenario::new(Server::default(), ReadFrom::Start, true);
    scenario.server.print(3, 1_000_000);
    scenario.run_until_idle(false);
    scenario.on(Event::Data(b"rpc error: code = NotFound desc = no such container"));
    scenario.on(Event::Complete { ended: false });
    scenario.on(Event::Resumed { ended: true });
    scenario.on(Event::Gone("pod not found".into()));
    assert_eq!((scenario.received.lines.len(), scenario.received.gaps_before.len()), (3, 0));
    // The same for a log without a line.
    for answer in [refused, cut_off, silent] {
        let mut scenario = Scenario::new(Server::default(), ReadFrom::Start, true);
        scenario.run_until_idle(false);
        scenario.on(Event::Complete { ended: false });
        scenario.on(Event::Resumed { ended: false });
        answer(&mut scenario);
        scenario.on(Event::Resumed { ended: true });
        scenario.on(Event::Gone("pod not found".into()));
        assert_eq!((scenario.received.lines.len(), scenario.received.gaps_before.len()), (0, 0));
    }
    // A part of a new line came: that line is lost.
    let mut scenario = ended();
    scenario.on(Event::Opened { ended: false });
    scenario.server.open(LogQuery::FOLLOW);
    scenario.server.print(1, 1_000_000);
    let cut = scenario.server.bytes(true);
    scenario.on(Event::Data(&cut));
    scenario.on(Event::Broken("reset".into()));
    scenario.on(Event::Resumed { ended: true });
    scenario.on(Event::Gone("pod not found".into()));
    assert_eq!((scenario.received.lines.len(), scenario.received.gaps_before.len()), (3, 1));
}
