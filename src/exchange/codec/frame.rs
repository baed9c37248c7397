//! Frames, places and sums in protobuf.

use bytes::Bytes;

use super::{DecodeError, countable, required};
use crate::exchange::lines::{LOST_MAX, Lines, is_countable};
use crate::exchange::messages::{Content, Frame, Totals};
use crate::exchange::rank::Rank;
use crate::model::id::Instance;
use crate::model::limits::CHUNK_MAX_LINES;
use crate::model::line::{GapCause, Line, LineBatch, OutputStream, SourceGap};
use crate::model::position::{Place, Position};
use crate::model::proto::exchange as proto;
use crate::model::time::LogTime;

pub(super) fn to_proto(frame: &Frame) -> proto::Frame {
    let (instance, start, end, content) = match &frame.content {
        Content::Lines { instance, lines } => {
            let content = proto::frame::Content::Lines(lines_to_proto(lines));
            (instance.to_string(), Some(lines.start()), Some(lines.end()), Some(content))
        }
        Content::Gap { instance, start, gap } => {
            let content = proto::frame::Content::Gap(gap_to_proto(gap));
            (instance.to_string(), Some(*start), Some(gap.after), Some(content))
        }
        Content::Event => (String::new(), None, None, None),
    };
    proto::Frame {
        rank: Some(rank_to_proto(frame.rank)),
        number: frame.number,
        totals: Some(totals_to_proto(frame.totals)),
        instance,
        start: start.map(position_to_proto),
        end: end.map(position_to_proto),
        content,
    }
}

pub(super) fn from_proto(frame: proto::Frame) -> Result<Frame, DecodeError> {
    let content = match frame.content {
        None => Content::Event,
        Some(content) => {
            let instance = instance(&frame.instance)?;
            let start = position(required(frame.start, "start")?)?;
            let end = position(required(frame.end, "end")?)?;
            match content {
                proto::frame::Content::Lines(lines) => {
                    Content::Lines { instance, lines: lines_from_proto(lines, start, end)? }
                }
                proto::frame::Content::Gap(gap) => {
                    if end < start {
                        return Err(DecodeError::Field("end"));
                    }
                    Content::Gap { instance, start, gap: gap_from_proto(&gap, end)? }
                }
            }
        }
    };
    Ok(Frame {
        rank: rank(frame.rank)?,
        number: countable(frame.number, "number")?,
        totals: totals(frame.totals),
        content,
    })
}

fn lines_to_proto(lines: &Lines) -> proto::Lines {
    let batch = lines.batch();
    let (mut before, mut end) = (lines.start().time.as_nanos(), 0);
    let (mut lengths, mut times) = (Vec::new(), Vec::new());
    for line in &batch.lines {
        // A chunk is far below 4 GiB.
        lengths.push(u32::try_from(line.end - end).unwrap_or(u32::MAX));
        // Wraps for the time before all others, as when it is read.
        times.push(line.time.as_nanos().wrapping_sub(before));
        (before, end) = (line.time.as_nanos(), line.end);
    }
    let mut streams: Vec<u32> = batch.lines.iter().map(|line| stream_number(line.stream)).collect();
    streams.dedup();
    if streams.len() > 1 {
        streams = batch.lines.iter().map(|line| stream_number(line.stream)).collect();
    }
    proto::Lines {
        data: batch.data.clone(),
        lengths,
        times,
        streams,
        continues: batch.lines.first().is_some_and(|line| line.continues),
        after_gap: lines.after_gap,
        ambiguous: lines.ambiguous,
    }
}

fn lines_from_proto(lines: proto::Lines, start: Position, end: Position) -> Result<Lines, DecodeError> {
    let invalid = DecodeError::Field("lines");
    let count = lines.lengths.len();
    if count == 0 || count > CHUNK_MAX_LINES || lines.times.len() != count {
        return Err(invalid);
    }
    if lines.streams.len() != count && lines.streams.len() != 1 {
        return Err(invalid);
    }
    let is_whole = start.at_line_start() && end.at_line_start() && !lines.continues;
    let (mut time, mut length, mut position) = (start.time.as_nanos(), 0_usize, start);
    let mut batch = LineBatch { data: lines.data, lines: Vec::with_capacity(count) };
    for (index, (bytes, delta)) in lines.lengths.iter().zip(&lines.times).enumerate() {
        time = time.wrapping_add(*delta);
        length = usize::try_from(*bytes).ok().and_then(|bytes| length.checked_add(bytes)).ok_or(invalid)?;
        let stream = lines.streams.get(index).or(lines.streams.first());
        let time = LogTime::from_nanos(time);
        // The numbers of a position are below 2^60, and there are few lines: this cannot overflow.
        position = if is_whole { position.after_line(time) } else { end };
        batch.lines.push(Line {
            end: length,
            time,
            after: position,
            ends: position.at_line_start(),
            continues: lines.continues && index == 0,
            stream: stream_of(stream.copied().unwrap_or_default()),
        });
    }
    let mut read = Lines::new(start, batch).filter(|read| read.end() == end).ok_or(invalid)?;
    (read.after_gap, read.ambiguous) = (lines.after_gap, lines.ambiguous);
    Ok(read)
}

fn stream_number(stream: Option<OutputStream>) -> u32 {
    match stream {
        None => 0,
        Some(OutputStream::Stdout) => 1,
        Some(OutputStream::Stderr) => 2,
    }
}

fn stream_of(number: u32) -> Option<OutputStream> {
    match number {
        1 => Some(OutputStream::Stdout),
        2 => Some(OutputStream::Stderr),
        _ => None,
    }
}

fn gap_to_proto(gap: &SourceGap) -> proto::Gap {
    let cause = match gap.cause {
        GapCause::Source => 0,
        GapCause::Lag => 1,
        GapCause::Rotated => 2,
        GapCause::Limit => 3,
    };
    proto::Gap { cause, lines: gap.lines, bytes: gap.bytes, exact: gap.exact }
}

fn gap_from_proto(gap: &proto::Gap, after: Position) -> Result<SourceGap, DecodeError> {
    if gap.lines > LOST_MAX || gap.bytes > LOST_MAX {
        return Err(DecodeError::Field("gap"));
    }
    let cause = match gap.cause {
        1 => GapCause::Lag,
        2 => GapCause::Rotated,
        3 => GapCause::Limit,
        // Also for a cause of a later version.
        _ => GapCause::Source,
    };
    Ok(SourceGap { cause, lines: gap.lines, bytes: gap.bytes, exact: gap.exact, after })
}

pub(super) fn rank_to_proto(rank: Rank) -> proto::Rank {
    proto::Rank { term: rank.term, weight: rank.weight }
}

pub(super) fn rank(rank: Option<proto::Rank>) -> Result<Rank, DecodeError> {
    let rank = required(rank, "rank")?;
    Ok(Rank { term: countable(rank.term, "term")?, weight: rank.weight })
}

pub(super) fn totals_to_proto(totals: Totals) -> proto::Totals {
    proto::Totals { lines: totals.lines, bytes: totals.bytes, inexact_gaps: totals.inexact_gaps }
}

/// Absent ones are zero, as protobuf has it.
pub(super) fn totals(totals: Option<proto::Totals>) -> Totals {
    let totals = totals.unwrap_or_default();
    Totals { lines: totals.lines, bytes: totals.bytes, inexact_gaps: totals.inexact_gaps }
}

fn position_to_proto(at: Position) -> proto::Position {
    proto::Position { time: at.time.as_nanos(), ordinal: at.ordinal, offset: at.offset }
}

fn position(at: proto::Position) -> Result<Position, DecodeError> {
    let at = Position { time: LogTime::from_nanos(at.time), ordinal: at.ordinal, offset: at.offset };
    if is_countable(at) { Ok(at) } else { Err(DecodeError::Field("position")) }
}

pub(super) fn place_to_proto(place: &Place) -> proto::Place {
    proto::Place { instance: place.instance.to_string(), position: Some(position_to_proto(place.position)) }
}

pub(super) fn place(place: &proto::Place) -> Result<Place, DecodeError> {
    let instance = instance(&place.instance)?;
    Ok(Place { instance, position: position(required(place.position, "position")?)? })
}

fn instance(text: &str) -> Result<Instance, DecodeError> {
    text.parse().map_err(|_| DecodeError::Field("instance"))
}

/// Writes frames, each with its length before it.
pub(super) fn list(frames: &[Frame]) -> Bytes {
    use prost::Message as _;
    let mut out = Vec::new();
    for frame in frames {
        let frame = to_proto(frame);
        out.reserve(frame.encoded_len() + prost::length_delimiter_len(frame.encoded_len()));
        prost::encode_length_delimiter(frame.encoded_len(), &mut out).unwrap_or_default();
        frame.encode_raw(&mut out);
    }
    out.into()
}
