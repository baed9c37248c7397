use proptest::prelude::*;

use super::*;
use crate::exchange::lines::{LOST_MAX, Lines};
use crate::exchange::messages::{
    Alive, Content, Fetch, FetchFrom, Fetched, Head, Message, Oldest, PublishRequest, RingEnd, SourceState,
    Totals,
};
use crate::exchange::rank::{Claim, Rank};
use crate::model::id::{Instance, Replica};
use crate::model::line::{GapCause, Line, LineBatch, OutputStream, SourceGap};
use crate::model::position::{Place, Position};
use crate::model::time::LogTime;

fn envelope(message: Message) -> Envelope {
    Envelope { sender: GatewayId([7; 16]), counter: 5, message }
}

fn position() -> impl Strategy<Value = Position> {
    let inner = (any::<i64>(), 1..1000_u64).prop_map(|(nanos, ordinal)| Position {
        time: LogTime::from_nanos(nanos.max(i64::MIN + 1)),
        ordinal,
        offset: 0,
    });
    prop_oneof![1 => Just(Position::START), 4 => inner]
}

fn place() -> impl Strategy<Value = Place> {
    (position(), 0..9_u32, 0..3_u64).prop_map(|(position, run, offset)| Place {
        instance: Instance::new("uid", "web", run).unwrap(),
        position: Position { offset, ..position },
    })
}

fn rank() -> impl Strategy<Value = Rank> {
    (0..1_u64 << 60, any::<u64>()).prop_map(|(term, weight)| Rank { term, weight })
}

fn totals() -> impl Strategy<Value = Totals> {
    any::<(u64, u64, u64)>().prop_map(|(lines, bytes, inexact_gaps)| Totals { lines, bytes, inexact_gaps })
}

fn stream() -> impl Strategy<Value = Option<OutputStream>> {
    prop_oneof![Just(None), Just(Some(OutputStream::Stdout)), Just(Some(OutputStream::Stderr))]
}

fn whole_lines() -> impl Strategy<Value = Lines> {
    let line = ("[a-z]{0,20}\n", -3..3_i64, stream());
    (position(), prop::collection::vec(line, 1..40), any::<(bool, bool)>()).prop_map(
        |(start, lines, (after_gap, ambiguous))| {
            let (mut data, mut batch, mut after) = (Vec::new(), LineBatch::default(), start);
            for (text, nanos, stream) in lines {
                data.extend_from_slice(text.as_bytes());
                after = after.after_line(LogTime::from_nanos(nanos));
                batch
                    .lines
                    .push(Line { stream, ..Line::whole(data.len(), LogTime::from_nanos(nanos), after) });
            }
            batch.data = data.into();
            let mut lines = Lines::new(start, batch).unwrap();
            (lines.after_gap, lines.ambiguous) = (after_gap, ambiguous);
            lines
        },
    )
}

fn piece() -> impl Strategy<Value = Lines> {
    (position(), 0..9_u64, "[a-z]{1,20}", any::<(bool, bool)>(), stream()).prop_map(
        |(start, offset, text, (ends, continues), stream)| {
            let start = Position { offset, ..start };
            let time = LogTime::from_nanos(4);
            let after = if ends { start.after_line(time) } else { start.after_bytes(text.len()) };
            let line = Line { ends, continues, stream, ..Line::whole(text.len(), time, after) };
            Lines::new(start, LineBatch { data: text.into(), lines: vec![line] }).unwrap()
        },
    )
}

fn gap() -> impl Strategy<Value = (Position, SourceGap)> {
    let causes =
        prop::sample::select(vec![GapCause::Lag, GapCause::Rotated, GapCause::Source, GapCause::Limit]);
    (position(), causes, (0..=LOST_MAX, 0..=LOST_MAX, any::<bool>())).prop_map(
        |(start, cause, (lines, bytes, exact))| {
            (start, SourceGap { cause, lines, bytes, exact, after: start.after_bytes(1) })
        },
    )
}

fn content() -> impl Strategy<Value = Content> {
    let instance = Instance::new("uid", "web", 1).unwrap();
    let (of_lines, of_gap) = (instance.clone(), instance);
    prop_oneof![
        4 => prop_oneof![whole_lines(), piece()]
            .prop_map(move |lines| Content::Lines { instance: of_lines.clone(), lines }),
        1 => gap().prop_map(move |(start, gap)| Content::Gap { instance: of_gap.clone(), start, gap }),
        1 => Just(Content::Event),
    ]
}

fn frame() -> impl Strategy<Value = Frame> {
    (rank(), 0..1_u64 << 50, totals(), content()).prop_map(|(rank, number, totals, content)| Frame {
        rank,
        number,
        totals,
        content,
    })
}

fn head() -> impl Strategy<Value = Head> {
    let end = (0..1_u64 << 50, totals(), prop::option::of(place()), any::<(bool, bool, [bool; 2])>())
        .prop_map(|(number, totals, place, (after_gap, ambiguous, unfinished))| RingEnd {
            number,
            totals,
            place,
            after_gap,
            ambiguous,
            unfinished,
        });
    let source = any::<(bool, bool, Option<i64>)>().prop_map(|(complete, polled, since)| SourceState {
        complete,
        polled,
        interrupted_since: since.map(LogTime::from_nanos),
    });
    (rank(), end, source, any::<u32>()).prop_map(|(rank, end, source, members)| Head {
        rank,
        end,
        source,
        members,
    })
}

fn message() -> impl Strategy<Value = Message> {
    let fetched = prop::collection::vec(content(), 1..9).prop_flat_map(|contents| {
        (rank(), 0..1_u64 << 50).prop_map(move |(rank, first)| {
            let frames = contents.iter().zip(first..).map(|(content, number)| Frame {
                rank,
                number,
                totals: Totals::default(),
                content: content.clone(),
            });
            Fetched::Frames { rank, frames: frames.collect() }
        })
    });
    let oldest = (0..1_u64 << 50, totals(), place()).prop_map(|(number, totals, place)| Oldest {
        number,
        totals,
        place,
    });
    let from = prop_oneof![(0..1_u64 << 50).prop_map(FetchFrom::Number), place().prop_map(FetchFrom::After)];
    let lease =
        "akash1angnwmnsv5vkp4jpgkdcunar8efpvennxwwcev/1/1/1/akash1nxq8gmsw2vlz3m68qvyvcf3kh6q269ajvqw6y0";
    let request = (prop::option::of(place()), 0..1_u64 << 50).prop_map(move |(place, term)| PublishRequest {
        lease: lease.parse().unwrap(),
        replica: Replica { service: "web".parse().unwrap(), index: 3 },
        namespace: "space".to_owned(),
        pod: "web-1".to_owned(),
        place,
        term,
    });
    prop_oneof![
        any::<(u32, bool, bool)>().prop_map(|(interval_ms, draining, is_source)| {
            Message::Alive(Alive { interval_ms, draining, is_source })
        }),
        frame().prop_map(Message::Frame),
        head().prop_map(Message::Sync),
        (rank(), any::<bool>(), prop::option::of(place()))
            .prop_map(|(rank, home, place)| Message::Claim(Claim { rank, home, place })),
        (head(), any::<bool>()).prop_map(|(head, home)| Message::Announcement { head, home }),
        (rank(), prop::option::of(rank())).prop_map(|(rank, successor)| Message::Release { rank, successor }),
        Just(Message::Join),
        head().prop_map(Message::Joined),
        (rank(), from, prop::option::of(1..1_u64 << 50))
            .prop_map(|(rank, from, until)| Message::Fetch(Fetch { rank, from, until })),
        fetched.prop_map(Message::Fetched),
        (rank(), prop::option::of(oldest))
            .prop_map(|(rank, oldest)| Message::Fetched(Fetched::NotHeld { rank, oldest })),
        Just(Message::Leave),
        request.prop_map(|request| Message::PublishRequest(Box::new(request))),
        Just(Message::Refused),
    ]
}

proptest! {
    #[test]
    fn messages_round_trip(message in message()) {
        let one = envelope(message);
        prop_assert_eq!(decode(encode(&one)), Ok(one));
    }

    #[test]
    fn random_bodies_are_read_without_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
        let header = encode(&envelope(Message::Leave)).slice(..HEADER_BYTES);
        let _ = decode([&header[..], &body].concat().into());
    }
}

fn largest_frame(number: u64) -> Frame {
    let (mut batch, mut after) = (LineBatch::default(), Position::START);
    let mut length = 0;
    for line in 0..512 {
        length += 31;
        // Times that jump need the longest numbers.
        let time = LogTime::from_nanos(if line % 2 == 0 { i64::MAX } else { i64::MIN + 1 });
        after = after.after_line(time);
        let stream = Some(if line % 2 == 0 { OutputStream::Stdout } else { OutputStream::Stderr });
        batch.lines.push(Line { stream, ..Line::whole(length, time, after) });
    }
    batch.data = vec![b'x'; length].into();
    let lines = Lines::new(Position::START, batch).unwrap();
    let instance = Instance::new(&"u".repeat(180), &"c".repeat(63), 4_000_000).unwrap();
    let totals = Totals { lines: u64::MAX, bytes: u64::MAX, inexact_gaps: u64::MAX };
    Frame {
        rank: Rank { term: (1 << 60) - 1, weight: u64::MAX },
        number,
        totals,
        content: Content::Lines { instance, lines },
    }
}

#[test]
fn largest_messages_fit() {
    let frame = largest_frame(1);
    assert!(frame::to_proto(&frame).encoded_len() <= FRAME_MAX_BYTES);
    let one = envelope(Message::Frame(frame.clone()));
    assert_eq!(decode(encode(&one)), Ok(one));
    let frames = fitting((0..).map(largest_frame));
    assert!(frames.len() > 10);
    let one = envelope(Message::Fetched(Fetched::Frames { rank: frame.rank, frames }));
    let bytes = encode(&one);
    assert!(bytes.len() <= MESSAGE_MAX_BYTES);
    assert_eq!(decode(bytes), Ok(one));
    let events = fitting((0..).map(|number| Frame { number, content: Content::Event, ..largest_frame(0) }));
    assert_eq!(events.len(), FETCHED_MAX_FRAMES);
}

#[test]
fn long_input_is_rejected_before_it_is_read() {
    let mut input = encode(&envelope(Message::Frame(largest_frame(1)))).to_vec();
    input.resize(OTHER_MAX_BYTES + 1, 0);
    assert_eq!(decode(input.clone().into()), Err(DecodeError::TooLong));
    input[HEADER_BYTES] = FETCHED_TAG;
    assert_ne!(decode(input.clone().into()), Err(DecodeError::TooLong));
    input.resize(MESSAGE_MAX_BYTES + 1, 0);
    assert_eq!(decode(input.into()), Err(DecodeError::TooLong));
}

#[test]
fn other_versions_and_keys_are_rejected() {
    let good = encode(&envelope(Message::Leave));
    let with = |index: usize, byte| {
        let mut bytes = good.to_vec();
        bytes[index] = byte;
        decode(bytes.into())
    };
    assert_eq!(with(0, 2), Err(DecodeError::Version(2)));
    assert_eq!(with(1, 1), Err(DecodeError::Key(1)));
    assert_eq!(decode(good.slice(..HEADER_BYTES - 1)), Err(DecodeError::TooShort));
    assert_eq!(decode(good.slice(..HEADER_BYTES)), Err(DecodeError::Field("kind")));
}

#[test]
fn contradicting_fields_are_rejected() {
    let check = |change: fn(&mut proto::Frame)| {
        let mut frame = frame::to_proto(&largest_frame(1));
        change(&mut frame);
        frame::from_proto(frame).unwrap_err()
    };
    assert_eq!(check(|frame| frame.number = u64::MAX), DecodeError::Field("number"));
    assert_eq!(check(|frame| frame.rank = None), DecodeError::Field("rank"));
    assert_eq!(check(|frame| frame.instance = "a/b".to_owned()), DecodeError::Field("instance"));
    assert_eq!(check(|frame| frame.start = None), DecodeError::Field("start"));
    assert_eq!(
        check(|frame| frame.start.as_mut().unwrap().ordinal = u64::MAX),
        DecodeError::Field("position")
    );
    assert_eq!(check(|frame| frame.end.as_mut().unwrap().ordinal = 9), DecodeError::Field("lines"));
    let with_lines = |change: fn(&mut proto::Lines)| {
        let mut frame = frame::to_proto(&largest_frame(1));
        let Some(proto::frame::Content::Lines(lines)) = &mut frame.content else { panic!() };
        change(lines);
        frame::from_proto(frame).unwrap_err()
    };
    let invalid = DecodeError::Field("lines");
    assert_eq!(with_lines(|lines| lines.lengths[0] = u32::MAX), invalid);
    assert_eq!(with_lines(|lines| lines.lengths[0] += 1), invalid);
    assert_eq!(with_lines(|lines| lines.lengths[0] = 0), invalid);
    assert_eq!(with_lines(|lines| lines.lengths.clear()), invalid);
    assert_eq!(with_lines(|lines| lines.lengths.push(1)), invalid);
    assert_eq!(with_lines(|lines| lines.times.truncate(3)), invalid);
    assert_eq!(with_lines(|lines| lines.streams.truncate(3)), invalid);
    assert_eq!(with_lines(|lines| lines.data.truncate(10)), invalid);
}

#[test]
fn frames_of_an_answer_are_consecutive() {
    let rank = largest_frame(0).rank;
    let read = |numbers: &[u64]| {
        let frames = numbers.iter().map(|number| Frame { content: Content::Event, ..largest_frame(*number) });
        let one = envelope(Message::Fetched(Fetched::Frames { rank, frames: frames.collect() }));
        decode(encode(&one)).map(|_| ())
    };
    assert_eq!(read(&[4, 5, 6]), Ok(()));
    for numbers in [&[][..], &[4, 6], &[4, 4], &[5, 4]] {
        assert_eq!(read(numbers), Err(DecodeError::Field("frames")));
    }
    let many: Vec<u64> = (0..=FETCHED_MAX_FRAMES as u64).collect();
    assert_eq!(read(&many), Err(DecodeError::Field("frames")));
    let list = Bytes::from_static(&[0xff, 0xff, 0x7f, 0]);
    assert_eq!(take_delimited(&mut list.clone()), Err(DecodeError::Field("frames")));
}

#[test]
fn corpus_of_the_fuzz_target_is_accepted() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/exchange");
    let header = encode(&envelope(Message::Leave)).slice(..HEADER_BYTES);
    for entry in std::fs::read_dir(corpus).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_str().unwrap().starts_with("seed-") {
            let input = [&header[..], &std::fs::read(&path).unwrap()].concat();
            assert_eq!(decode(input.into()).map(drop), Ok(()), "{}", path.display());
        }
    }
}

#[test]
fn impossible_gaps_are_rejected() {
    let instance = Instance::new("uid", "web", 0).unwrap();
    let gap = |lines, bytes| {
        let gap = SourceGap { cause: GapCause::Rotated, lines, bytes, exact: true, after: Position::START };
        let content = Content::Gap { instance: instance.clone(), start: Position::START, gap };
        let frame = Frame { content, ..largest_frame(1) };
        frame::from_proto(frame::to_proto(&frame)).map(|read| read == frame)
    };
    assert_eq!(gap(LOST_MAX, LOST_MAX), Ok(true));
    assert_eq!(gap(LOST_MAX + 1, 0), Err(DecodeError::Field("gap")));
    assert_eq!(gap(0, u64::MAX), Err(DecodeError::Field("gap")));
}
