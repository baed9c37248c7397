//! The kinds of messages in protobuf.

use bytes::Bytes;
use prost::Message as _;

use super::frame::{list, place, place_to_proto, rank, rank_to_proto, totals, totals_to_proto};
use super::{DecodeError, FETCHED_MAX_FRAMES, countable, frame, required, take_delimited};
use crate::exchange::messages::{
    Alive, Fetch, FetchFrom, Fetched, Frame, Head, Message, Oldest, PublishRequest, RingEnd, SourceState,
};
use crate::exchange::rank::{Claim, Rank};
use crate::model::id::Replica;
use crate::model::proto::exchange as proto;
use crate::model::proto::exchange::body::Kind;
use crate::model::time::LogTime;

/// Maximum length of the name of a namespace or pod: of a DNS subdomain, as Kubernetes requires.
const NAME_MAX_BYTES: usize = 253;

pub(super) fn to_proto(message: &Message) -> Kind {
    match message {
        Message::Alive(Alive { interval_ms, draining, is_source }) => {
            Kind::Alive(proto::Alive { interval_ms: *interval_ms, draining: *draining, source: *is_source })
        }
        Message::Frame(one) => Kind::Frame(frame::to_proto(one)),
        Message::Sync(head) => Kind::Sync(head_to_proto(head)),
        Message::Claim(claim) => Kind::Claim(proto::Claim {
            rank: Some(rank_to_proto(claim.rank)),
            home: claim.home,
            place: claim.place.as_ref().map(place_to_proto),
        }),
        Message::Announcement { head, home } => {
            Kind::Announcement(proto::Announcement { head: Some(head_to_proto(head)), home: *home })
        }
        Message::Release { rank, successor } => Kind::Release(proto::Release {
            rank: Some(rank_to_proto(*rank)),
            successor: successor.map(rank_to_proto),
        }),
        Message::Join => Kind::Join(proto::Join {}),
        Message::Joined(head) => Kind::Joined(head_to_proto(head)),
        Message::Fetch(fetch) => Kind::Fetch(fetch_to_proto(fetch)),
        Message::Fetched(fetched) => Kind::Fetched(fetched_to_proto(fetched)),
        Message::Leave => Kind::Leave(proto::Leave {}),
        Message::PublishRequest(request) => Kind::PublishRequest(proto::PublishRequest {
            lease: request.lease.to_string(),
            service: request.replica.service.to_string(),
            replica: request.replica.index,
            namespace: request.namespace.clone(),
            pod: request.pod.clone(),
            place: request.place.as_ref().map(place_to_proto),
            term: request.term,
        }),
        Message::Refused => Kind::Refused(proto::Refused {}),
    }
}

pub(super) fn from_proto(kind: Kind) -> Result<Message, DecodeError> {
    Ok(match kind {
        Kind::Alive(proto::Alive { interval_ms, draining, source }) => {
            Message::Alive(Alive { interval_ms, draining, is_source: source })
        }
        Kind::Frame(one) => Message::Frame(frame::from_proto(one)?),
        Kind::Sync(one) => Message::Sync(head(one)?),
        Kind::Claim(claim) => Message::Claim(Claim {
            rank: rank(claim.rank)?,
            home: claim.home,
            place: claim.place.as_ref().map(place).transpose()?,
        }),
        Kind::Announcement(announcement) => Message::Announcement {
            head: head(required(announcement.head, "head")?)?,
            home: announcement.home,
        },
        Kind::Release(release) => Message::Release {
            rank: rank(release.rank)?,
            successor: release.successor.map(|successor| rank(Some(successor))).transpose()?,
        },
        Kind::Join(proto::Join {}) => Message::Join,
        Kind::Joined(one) => Message::Joined(head(one)?),
        Kind::Fetch(fetch) => Message::Fetch(fetch_from_proto(&fetch)?),
        Kind::Fetched(fetched) => Message::Fetched(fetched_from_proto(fetched)?),
        Kind::Leave(proto::Leave {}) => Message::Leave,
        Kind::PublishRequest(request) => Message::PublishRequest(Box::new(publish_request(request)?)),
        Kind::Refused(proto::Refused {}) => Message::Refused,
    })
}

fn head_to_proto(head: &Head) -> proto::Head {
    let Head { end, source, .. } = head;
    proto::Head {
        rank: Some(rank_to_proto(head.rank)),
        number: end.number,
        totals: Some(totals_to_proto(end.totals)),
        place: end.place.as_ref().map(place_to_proto),
        after_gap: end.after_gap,
        ambiguous: end.ambiguous,
        complete: source.complete,
        unfinished_stdout: end.unfinished[0],
        unfinished_stderr: end.unfinished[1],
        polled: source.polled,
        interrupted_since: source.interrupted_since.map(LogTime::as_nanos),
        members: head.members,
    }
}

fn head(head: proto::Head) -> Result<Head, DecodeError> {
    Ok(Head {
        rank: rank(head.rank)?,
        end: RingEnd {
            number: countable(head.number, "number")?,
            totals: totals(head.totals),
            place: head.place.as_ref().map(place).transpose()?,
            after_gap: head.after_gap,
            ambiguous: head.ambiguous,
            unfinished: [head.unfinished_stdout, head.unfinished_stderr],
        },
        source: SourceState {
            complete: head.complete,
            polled: head.polled,
            interrupted_since: head.interrupted_since.map(LogTime::from_nanos),
        },
        members: head.members,
    })
}

fn fetch_to_proto(fetch: &Fetch) -> proto::Fetch {
    let from = match &fetch.from {
        FetchFrom::Number(number) => proto::fetch::From::Number(*number),
        FetchFrom::After(place) => proto::fetch::From::After(place_to_proto(place)),
    };
    let until = fetch.until.unwrap_or_default();
    proto::Fetch { rank: Some(rank_to_proto(fetch.rank)), from: Some(from), until }
}

fn fetch_from_proto(fetch: &proto::Fetch) -> Result<Fetch, DecodeError> {
    let from = match fetch.from.as_ref().ok_or(DecodeError::Field("from"))? {
        proto::fetch::From::Number(number) => FetchFrom::Number(countable(*number, "number")?),
        proto::fetch::From::After(after) => FetchFrom::After(place(after)?),
    };
    // No frame is needed before frame 0.
    Ok(Fetch { rank: rank(fetch.rank)?, from, until: Some(fetch.until).filter(|until| *until > 0) })
}

fn fetched_to_proto(fetched: &Fetched) -> proto::Fetched {
    match fetched {
        Fetched::Frames { rank, frames } => proto::Fetched {
            rank: Some(rank_to_proto(*rank)),
            frames: list(frames),
            refused: false,
            oldest: None,
        },
        Fetched::NotHeld { rank, oldest } => proto::Fetched {
            rank: Some(rank_to_proto(*rank)),
            frames: Bytes::new(),
            refused: true,
            oldest: oldest.as_ref().map(|oldest| proto::Oldest {
                number: oldest.number,
                totals: Some(totals_to_proto(oldest.totals)),
                place: Some(place_to_proto(&oldest.place)),
            }),
        },
    }
}

fn fetched_from_proto(fetched: proto::Fetched) -> Result<Fetched, DecodeError> {
    let rank = rank(fetched.rank)?;
    if fetched.refused {
        let oldest = fetched.oldest.map(|oldest| {
            Ok(Oldest {
                number: countable(oldest.number, "number")?,
                totals: totals(oldest.totals),
                place: place(&required(oldest.place, "place")?)?,
            })
        });
        return Ok(Fetched::NotHeld { rank, oldest: oldest.transpose()? });
    }
    let frames = frames(fetched.frames, rank)?;
    Ok(Fetched::Frames { rank, frames })
}

/// Reads the frames of an answer: consecutive ones of one publisher.
fn frames(mut list: Bytes, rank: Rank) -> Result<Vec<Frame>, DecodeError> {
    let mut frames: Vec<Frame> = Vec::new();
    while !list.is_empty() {
        if frames.len() == FETCHED_MAX_FRAMES {
            return Err(DecodeError::Field("frames"));
        }
        let frame = proto::Frame::decode(take_delimited(&mut list)?).map_err(|_| DecodeError::Protobuf)?;
        let frame = frame::from_proto(frame)?;
        let follows = frames.last().is_none_or(|last| frame.number == last.number + 1);
        if !follows || frame.rank != rank {
            return Err(DecodeError::Field("frames"));
        }
        frames.push(frame);
    }
    if frames.is_empty() { Err(DecodeError::Field("frames")) } else { Ok(frames) }
}

fn publish_request(request: proto::PublishRequest) -> Result<PublishRequest, DecodeError> {
    if request.namespace.len() > NAME_MAX_BYTES || request.pod.len() > NAME_MAX_BYTES {
        return Err(DecodeError::Field("name"));
    }
    let service = request.service.parse().map_err(|_| DecodeError::Field("service"))?;
    Ok(PublishRequest {
        lease: request.lease.parse().map_err(|_| DecodeError::Field("lease"))?,
        replica: Replica { service, index: request.replica },
        namespace: request.namespace,
        pod: request.pod,
        place: request.place.as_ref().map(place).transpose()?,
        term: countable(request.term, "term")?,
    })
}
