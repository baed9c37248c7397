//! Requests to publish, at a gateway that serves no followers: each starts the actor of a replica on this
//! node, or reaches it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;

use super::actors::ActorRegistry;
use super::live::PublishAsk;
use crate::exchange::bus::{BusMessage, Channel};
use crate::exchange::fleet::Fleet;
use crate::exchange::messages::{Envelope, Message, PublishRequest};
use crate::platform::node_source::NodeSource;

/// Requests that are handled at once. Each takes microseconds: an actor starts without waiting for its log.
const REQUESTS_AT_ONCE: usize = 64;

/// Pause after the bus has given the subscription up.
const RESUBSCRIBE_AFTER: Duration = Duration::from_secs(1);

/// Answers requests to publish the replicas of one node.
#[derive(Clone, Debug)]
pub struct PublishService {
    fleet: Fleet,
    actors: ActorRegistry,
    source: Arc<NodeSource>,
    /// The subject of requests to this node.
    subject: String,
}

// === impl PublishService ===

impl PublishService {
    /// Creates the service of the node with this name. `actors` are in `fleet`, and read from `source`.
    pub fn new(fleet: Fleet, actors: ActorRegistry, source: Arc<NodeSource>, node: &str) -> Self {
        let subject = fleet.subjects().node(node);
        Self { fleet, actors, source, subject }
    }

    /// Handles requests until it is dropped.
    pub async fn run(self) {
        loop {
            let messages = self.fleet.bus().subscribe(Channel::Control, &self.subject);
            messages.for_each_concurrent(REQUESTS_AT_ONCE, |message| self.handle(message)).await;
            tracing::warn!("bus has ended the subscription to requests");
            tokio::time::sleep(RESUBSCRIBE_AFTER).await;
        }
    }

    async fn handle(&self, message: BusMessage) {
        let Some(reply) = message.reply else { return };
        let Some(Envelope { sender, message: Message::PublishRequest(request), .. }) =
            self.fleet.decode(message.payload)
        else {
            return;
        };
        let PublishRequest { lease, replica, pod, place, term, .. } = *request;
        let view = self.source.watch_pod(&lease, &replica, &pod);
        let Some(view) = view.filter(|_| !self.fleet.state().borrow().draining) else {
            let refused = self.fleet.encode(Message::Refused);
            return self.fleet.bus().publish(Channel::Control, &reply, None, refused);
        };
        // Kept until the request is with the driver, so that the actor does not end before.
        let Some(_subscription) = self.actors.subscribe(&lease, &replica, &view).await else { return };
        self.actors.request_publish(&lease, &replica, PublishAsk { sender, place, term, reply });
    }
}
