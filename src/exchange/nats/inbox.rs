//! Requests: their answers share one subscription, and are told apart by the last token of its subject.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{Message, StatusCode};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::INBOX_PREFIX;
use super::link::Link;
use super::state::State;
use crate::exchange::bus::{ANSWERS_MAX, Answers, RequestError};
use crate::exchange::gateway_id::GatewayId;

/// Maximum of requests without their answers: a few of each replica of a gateway that follows thousands. Each
/// takes some hundred bytes.
const REQUESTS_MAX: usize = 16 * 1024;

type Answer = Result<Bytes, RequestError>;

/// The requests of a gateway that may still be answered.
#[derive(Clone, Debug)]
pub(super) struct Inbox {
    subject: Arc<str>,
    requests: Arc<Mutex<Requests>>,
}

#[derive(Debug, Default)]
struct Requests {
    next: u64,
    open: HashMap<u64, mpsc::Sender<Answer>>,
}

/// A request. Further answers are discarded once it is dropped.
pub(super) struct Request {
    id: u64,
    inbox: Inbox,
    answers: mpsc::Receiver<Answer>,
}

// === impl Inbox ===

impl Inbox {
    /// Creates an inbox. Returns it with the future that distributes the answers, which the caller runs. Only
    /// a gateway that `asks` others receives answers.
    pub(super) fn open(
        link: &Link,
        gateway: GatewayId,
        asks: bool,
    ) -> (Self, impl Future<Output = ()> + Send + use<>) {
        let subject = format!("{INBOX_PREFIX}.{gateway}");
        let messages = asks.then(|| Box::pin(link.messages(&format!("{subject}.*"))));
        let inbox = Self { subject: subject.into(), requests: Arc::default() };
        let (of_task, state) = (inbox.clone(), Arc::clone(link.state()));
        let distribute = async move {
            let Some(mut messages) = messages else { return };
            while let Some(message) = messages.next().await {
                of_task.distribute(message, &state);
            }
        };
        (inbox, distribute)
    }

    /// Registers a request, unless there are too many.
    pub(super) fn register(&self) -> Option<Request> {
        let mut requests = self.requests.lock();
        if requests.open.len() >= REQUESTS_MAX {
            return None;
        }
        let id = requests.next;
        requests.next += 1;
        let (sender, answers) = mpsc::channel(ANSWERS_MAX);
        requests.open.insert(id, sender);
        Some(Request { id, inbox: self.clone(), answers })
    }

    fn distribute(&self, message: Message, state: &State) {
        let id = message.subject.rsplit_once('.').and_then(|(_, id)| id.parse::<u64>().ok());
        // Without one, it comes after the request's end.
        let Some(sender) = id.and_then(|id| self.requests.lock().open.get(&id).cloned()) else { return };
        let answer = match message.status {
            None => {
                state.count_received(message.payload.len());
                Ok(message.payload)
            }
            Some(StatusCode::NO_RESPONDERS) => Err(RequestError::NoResponders),
            // The protocol has no other here.
            Some(_) => return,
        };
        if let Err(mpsc::error::TrySendError::Full(_)) = sender.try_send(answer) {
            state.count_overflowed();
        }
    }
}

// === impl Request ===

impl Request {
    /// Returns the subject for answers.
    pub(super) fn reply(&self) -> String {
        format!("{}.{}", self.inbox.subject, self.id)
    }

    /// Returns the answers that come in time.
    pub(super) fn answers(self, timeout: Duration) -> Answers {
        let deadline = Instant::now() + timeout;
        let state = (Some(self), false);
        Answers::new(stream::unfold(state, move |(request, is_answered)| async move {
            let mut request = request?;
            match timeout_at(deadline, request.answers.recv()).await {
                Ok(Some(Ok(payload))) => Some((Ok(payload), (Some(request), true))),
                Ok(Some(Err(error))) => Some((Err(error), (None, is_answered))),
                Err(_) if !is_answered => Some((Err(RequestError::Timeout), (None, false))),
                Ok(None) | Err(_) => None,
            }
        }))
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        self.inbox.requests.lock().open.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inbox() -> Inbox {
        Inbox { subject: "inbox".into(), requests: Arc::default() }
    }

    fn message(subject: String, status: Option<StatusCode>) -> Message {
        let (payload, reply, headers, description) = (Bytes::from_static(b"yes"), None, None, None);
        Message { subject: subject.into(), reply, payload, headers, status, description, length: 0 }
    }

    #[tokio::test(start_paused = true)]
    async fn answers_reach_their_request_until_its_timeout() {
        let (inbox, state) = (inbox(), State::new());
        let [one, other] = [inbox.register().unwrap(), inbox.register().unwrap()];
        for _ in 0..2 {
            inbox.distribute(message(one.reply(), None), &state);
        }
        inbox.distribute(message(other.reply(), Some(StatusCode::NO_RESPONDERS)), &state);
        inbox.distribute(message("inbox.7".to_owned(), None), &state);
        let one: Vec<Answer> = one.answers(Duration::from_secs(1)).collect().await;
        assert_eq!(one, [Ok(Bytes::from_static(b"yes")), Ok(Bytes::from_static(b"yes"))]);
        let other: Vec<Answer> = other.answers(Duration::from_secs(1)).collect().await;
        assert_eq!(other, [Err(RequestError::NoResponders)]);
        let third: Vec<Answer> = inbox.register().unwrap().answers(Duration::from_secs(1)).collect().await;
        assert_eq!(third, [Err(RequestError::Timeout)]);
        assert!(inbox.requests.lock().open.is_empty());
        assert_eq!((state.totals().received, state.totals().received_bytes), (2, 6));
    }

    #[tokio::test(start_paused = true)]
    async fn requests_and_answers_are_bounded() {
        let (inbox, state) = (inbox(), State::new());
        let requests: Vec<Request> = (0..REQUESTS_MAX).map(|_| inbox.register().unwrap()).collect();
        assert!(inbox.register().is_none());
        for _ in 0..=ANSWERS_MAX {
            inbox.distribute(message(requests[0].reply(), None), &state);
        }
        assert_eq!(state.totals().overflowed, 1);
        drop(requests);
        assert!(inbox.register().is_some());
    }
}
