//! Unfinished lines of two output streams: sent at once, in pieces, without loss or repeat.

use leasemux::model::id::Instance;
use leasemux::model::limits::Limits;
use leasemux::model::line::OutputStream::{self, Stderr, Stdout};
use leasemux::model::proto::lease::{OnLag, ServiceLogsRequest};
use proptest::prelude::*;

use super::{follow, one_run};
use crate::support::gateway::{self, Setup};

#[tokio::test(start_paused = true)]
async fn unfinished_line_is_sent_at_once() {
    let (setup, run) = one_run(Limits::default());
    let platform = &setup.gateway.platform;
    let request = ServiceLogsRequest { timestamps: true, ..follow(&setup) };
    let mut stream = setup.open(request).await.unwrap();
    let mut expected = String::new();
    // Two lines per nanosecond from 1000 on.
    for (nanos, output, piece) in [
        (Some("1000"), Stderr, "\r 1 %"),
        (None, Stderr, "\r 2 %"),
        (Some("1001"), Stdout, "app line\n"),
        (None, Stderr, "\r 3 %"),
        (Some("1002"), Stdout, "Password: "),
        (None, Stderr, "\n"),
        (None, Stdout, "\n"),
    ] {
        platform.print_piece(&run, output, piece);
        if let Some(nanos) = nanos {
            expected += "1970-01-01T00:00:00.00000";
            expected += nanos;
            expected += "Z ";
        }
        expected += piece;
        // Each piece is sent as soon as it is read.
        stream.until(|seen| seen.text("web", 0) == expected).await;
    }
    let tally = stream.received.judge.0.tally();
    assert_eq!((tally.lines, tally.gaps), (3, 0));
}

#[tokio::test(start_paused = true)]
async fn since_omits_older_lines_anywhere_in_log() {
    let (setup, run) = one_run(Limits::default());
    let platform = &setup.gateway.platform;
    // The clock is set back in the middle.
    for (nanos, line) in [(1_000, "a\n"), (1_100, "b\n"), (1_050, "c\n"), (1_200, "d\n")] {
        platform.print_at(&run, nanos, line);
    }
    let since = Some(prost_types::Timestamp { seconds: 0, nanos: 1_075 });
    // Once with an empty ring, and once with all lines in the ring.
    let mut first = setup.open(follow(&setup)).await.unwrap();
    first.until(|seen| seen.lines("web", 0) == 4).await;
    for tail_lines in [None, Some(10)] {
        let request = ServiceLogsRequest { since, tail_lines, ..setup.request() };
        let mut stream = setup.open(request.clone()).await.unwrap();
        stream.end().await;
        assert_eq!(stream.received.text("web", 0), "b\nd\n");
        let mut stream = setup.open(ServiceLogsRequest { follow: true, ..request }).await.unwrap();
        stream.until(|seen| seen.lines("web", 0) == 2).await;
        assert!(stream.is_quiet().await);
        assert_eq!(stream.received.text("web", 0), "b\nd\n");
        // Live lines are never omitted.
        platform.print_at(&run, 1_060, "e\n");
        stream.until(|seen| seen.lines("web", 0) == 3).await;
        assert_eq!(stream.received.text("web", 0), "b\nd\ne\n");
    }
}

#[derive(Clone, Debug)]
enum Action {
    /// Prints a line or a piece: continues an unfinished line or starts one; ends it unless `more`.
    Print {
        stderr: bool,
        more: bool,
        length: usize,
    },
    Open {
        refill: bool,
    },
    /// Reads up to this many responses, without waiting.
    Read {
        follower: usize,
        responses: usize,
    },
    /// Disconnects, then resumes from the cursors.
    Reconnect {
        follower: usize,
    },
    Wait {
        millis: u64,
    },
}

fn action() -> impl Strategy<Value = Action> {
    let length = prop_oneof![8 => 1..300_usize, 1 => 300..40_000_usize];
    prop_oneof![
        16 => (any::<bool>(), any::<bool>(), length)
            .prop_map(|(stderr, more, length)| Action::Print { stderr, more, length }),
        2 => any::<bool>().prop_map(|refill| Action::Open { refill }),
        5 => (0..3_usize, 1..9_usize).prop_map(|(follower, responses)| Action::Read { follower, responses }),
        3 => (0..3_usize).prop_map(|follower| Action::Reconnect { follower }),
        2 => (0..40_u64).prop_map(|millis| Action::Wait { millis }),
    ]
}

/// A service that numbers its lines as they begin.
struct Printer {
    run: Instance,
    begun: [bool; 2],
    lines: u64,
}

impl Printer {
    fn print(&mut self, setup: &Setup, stream: OutputStream, more: bool, length: usize) {
        let begun = &mut self.begun[stream as usize];
        let mut text = "\r".repeat(length);
        if !std::mem::replace(begun, more) {
            self.lines += 1;
            text.insert_str(0, &format!("{} ", self.lines));
        }
        if !more {
            text.push('\n');
        }
        setup.gateway.platform.print_piece(&self.run, stream, &text);
    }
}

async fn run(actions: Vec<Action>) {
    let limits = Limits { ring_max_bytes: 48 * 1024, ..Limits::default() };
    let (setup, instance) = one_run(limits);
    let mut printer = Printer { run: instance, begun: [false; 2], lines: 0 };
    let request = follow(&setup);
    let mut followers: Vec<(gateway::Stream, ServiceLogsRequest)> = Vec::new();
    for action in actions {
        match action {
            Action::Print { stderr, more, length } => {
                printer.print(&setup, if stderr { Stderr } else { Stdout }, more, length);
            }
            Action::Open { refill } if followers.len() < 3 => {
                let on_lag = if refill { OnLag::Refill } else { OnLag::Drop };
                let request = ServiceLogsRequest { on_lag: on_lag.into(), ..request.clone() };
                followers.push((setup.open(request.clone()).await.unwrap(), request));
            }
            Action::Read { follower, responses } => {
                let Some((stream, _)) = followers.get_mut(follower) else { continue };
                for _ in 0..responses {
                    if !stream.next_if_ready().await.unwrap() {
                        break;
                    }
                }
            }
            Action::Reconnect { follower } if follower < followers.len() => {
                let (stream, request) = followers.swap_remove(follower);
                followers.push((setup.resume(stream, request.clone()).await, request));
            }
            Action::Open { .. } | Action::Reconnect { .. } => {}
            Action::Wait { millis } => tokio::time::sleep(std::time::Duration::from_millis(millis)).await,
        }
    }
    for stream in [Stdout, Stderr] {
        if printer.begun[stream as usize] {
            printer.print(&setup, stream, false, 1);
        }
    }
    printer.print(&setup, Stdout, false, 77);
    let end = format!("{} {}\n", printer.lines, "\r".repeat(77));
    for (mut follower, request) in followers {
        follower.until(|seen| seen.ends_with("web", 0, &end)).await;
        let loss_checker = &follower.received.judge.0;
        let tally = loss_checker.verdict().unwrap_or_else(|violation| panic!("{violation}"));
        assert_eq!(tally.lines + tally.lost_lines, printer.lines, "{tally:?}");
        if request.on_lag() == OnLag::Refill {
            assert_eq!(tally.gaps, 0, "the log has all lines");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(60) })]

    #[test]
    fn pieces_of_two_streams_are_sent_exactly_once(actions in prop::collection::vec(action(), 1..80)) {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(run(actions));
    }
}
