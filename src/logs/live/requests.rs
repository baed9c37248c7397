//! Requests of a participant that may still be answered.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::StreamExt as _;

use crate::exchange::bus::{Answers, RequestError};
use crate::exchange::participant::RequestId;

/// Maximum open requests: more than a participant has before it gives up the oldest of them.
const REQUESTS_MAX: usize = 8;

/// The open requests of one participant.
#[derive(Debug, Default)]
pub(super) struct Requests(VecDeque<Request>);

#[derive(Debug)]
struct Request {
    id: RequestId,
    answers: Answers,
    /// Only the first answer counts.
    has_one_answer: bool,
}

// === impl Requests ===

impl Requests {
    /// Adds a request. Forgets the oldest one if there are too many.
    pub(super) fn add(&mut self, id: RequestId, answers: Answers, has_one_answer: bool) {
        if self.0.len() == REQUESTS_MAX {
            self.0.pop_front();
        }
        self.0.push_back(Request { id, answers, has_one_answer });
    }

    /// Waits for the next answer; for ever without a request. Of requests with one answer, which may have many
    /// lines, only if `takes_lines`. Cancel safe.
    pub(super) async fn next(&mut self, takes_lines: bool) -> (RequestId, Result<Bytes, RequestError>) {
        poll_fn(|cx| self.poll_next(takes_lines, cx)).await
    }

    fn poll_next(
        &mut self,
        takes_lines: bool,
        cx: &mut Context<'_>,
    ) -> Poll<(RequestId, Result<Bytes, RequestError>)> {
        let mut index = 0;
        while let Some(request) = self.0.get_mut(index) {
            if request.has_one_answer && !takes_lines {
                index += 1;
                continue;
            }
            match request.answers.poll_next_unpin(cx) {
                Poll::Pending => index += 1,
                Poll::Ready(None) => _ = self.0.remove(index),
                Poll::Ready(Some(answer)) => {
                    let id = request.id;
                    if request.has_one_answer || answer.is_err() {
                        self.0.remove(index);
                    }
                    return Poll::Ready((id, answer));
                }
            }
        }
        Poll::Pending
    }
}
