//! The subscriptions of a participant.

use std::future::poll_fn;
use std::task::{Context, Poll};

use futures_util::StreamExt as _;

use crate::exchange::bus::{Bus, BusMessage, Channel, Subscription};
use crate::exchange::participant::Subject;
use crate::exchange::subjects::ReplicaSubjects;

/// The subscriptions of one participant, at most one per subject.
#[derive(Debug)]
pub(super) struct Subscriptions {
    subjects: ReplicaSubjects,
    /// Frames last: they come in bulk, and must not hold back a request.
    slots: [Slot; 3],
}

#[derive(Debug)]
struct Slot {
    subject: Subject,
    subscription: Option<Subscription>,
    /// The bus has given it up.
    is_lost: bool,
}

// === impl Subscriptions ===

impl Subscriptions {
    pub(super) fn new(subjects: ReplicaSubjects) -> Self {
        let slots = [Subject::Claims, Subject::Requests, Subject::Frames];
        Self { subjects, slots: slots.map(|subject| Slot { subject, subscription: None, is_lost: false }) }
    }

    /// Subscribes, again if there is a subscription; or unsubscribes.
    pub(super) fn set(&mut self, bus: &dyn Bus, subject: Subject, wanted: bool) {
        let name = self.name(subject).to_owned();
        for slot in self.slots.iter_mut().filter(|slot| slot.subject == subject) {
            // The new one before the old one is dropped: no message falls between them.
            slot.subscription = wanted.then(|| bus.subscribe(channel(subject), &name));
            slot.is_lost = false;
        }
    }

    /// Subscribes again where the bus has given a subscription up.
    pub(super) fn restore(&mut self, bus: &dyn Bus) {
        let lost: Vec<Subject> =
            self.slots.iter().filter(|slot| slot.is_lost).map(|slot| slot.subject).collect();
        for subject in lost {
            self.set(bus, subject, true);
        }
    }

    /// Returns the name of a subject.
    pub(super) fn name(&self, subject: Subject) -> &str {
        match subject {
            Subject::Frames => &self.subjects.frames,
            Subject::Claims => &self.subjects.claims,
            Subject::Requests => &self.subjects.requests,
        }
    }

    /// Waits for the next message; of frames only if `takes_frames`. Cancel safe.
    pub(super) async fn next(&mut self, takes_frames: bool) -> (Subject, BusMessage) {
        poll_fn(|cx| self.poll_next(takes_frames, cx)).await
    }

    fn poll_next(&mut self, takes_frames: bool, cx: &mut Context<'_>) -> Poll<(Subject, BusMessage)> {
        for slot in &mut self.slots {
            let Some(subscription) = &mut slot.subscription else { continue };
            if slot.subject == Subject::Frames && !takes_frames {
                continue;
            }
            match subscription.poll_next_unpin(cx) {
                Poll::Ready(Some(message)) => return Poll::Ready((slot.subject, message)),
                Poll::Ready(None) => {
                    tracing::warn!(subject = ?slot.subject, "bus has ended subscription");
                    (slot.subscription, slot.is_lost) = (None, true);
                }
                Poll::Pending => {}
            }
        }
        Poll::Pending
    }
}

/// Returns the channel of a subject.
pub(super) fn channel(subject: Subject) -> Channel {
    match subject {
        Subject::Frames => Channel::Frames,
        Subject::Claims | Subject::Requests => Channel::Control,
    }
}
