//! Checks servers and permissions by using them.

use std::collections::BTreeSet;
use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{Event, ServerError};
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::time::{Instant, timeout, timeout_at};

use super::{INBOX_PREFIX, NatsError, NatsOptions, version};
use crate::exchange::codec;
use crate::exchange::gateway_id::GatewayId;
use crate::exchange::messages::{Envelope, Message};
use crate::exchange::subjects::Subjects;

/// Time for attempts to connect to all servers. One attempt may take seconds, and there may be many servers.
const CONNECT_WITHIN: Duration = Duration::from_secs(20);

/// Time for all messages to return. On one connection that takes milliseconds.
const DEADLINE: Duration = Duration::from_secs(3);

/// Minimum of the server's `max_payload`: an answer to a fetch has up to 280 kB.
const PAYLOAD_MIN_BYTES: usize = 512 * 1024;

/// Time for the errors of messages and subscriptions that nothing returns for. The server sends them before
/// the messages that do return; the library passes them on in a task of its own.
const ERRORS_WITHIN: Duration = Duration::from_millis(200);

/// A subject that is used, and the pattern of the permission for it.
struct Probe {
    subject: String,
    pattern: String,
    publishes: bool,
    subscribes: bool,
}

/// Returns the subjects that a gateway uses. Those whose messages return to it come last: the errors of the
/// others have then arrived.
fn probes(options: &NatsOptions, subjects: &Subjects, gateway: GatewayId) -> Vec<Probe> {
    let inbox = (format!("{INBOX_PREFIX}.{gateway}.0"), format!("{INBOX_PREFIX}.>"));
    let probe = |(subject, pattern), publishes, subscribes| Probe { subject, pattern, publishes, subscribes };
    let [frames, claims, requests, alive, nodes] = subjects.probes(gateway);
    match &options.source_node {
        None => {
            let all = [frames, claims, requests, alive, nodes, inbox];
            all.into_iter().map(|one| probe(one, true, true)).collect()
        }
        Some(node) => {
            let own = subjects.node(node);
            vec![
                probe(frames, true, false),
                probe(inbox, true, false),
                probe(requests, false, true),
                probe((own.clone(), own), false, true),
                probe(claims, true, true),
                probe(alive, true, true),
            ]
        }
    }
}

/// Connects to a server, and uses a subject of each kind as the gateway does: mostly, it sends a message to
/// itself. Returns a note about settings of the server that should be changed.
///
/// # Errors
/// [`NatsError`]; it names each missing permission.
pub async fn check(
    options: &NatsOptions,
    subjects: &Subjects,
    gateway: GatewayId,
) -> Result<Option<String>, NatsError> {
    let errors = Arc::<Mutex<BTreeSet<String>>>::default();
    let seen = Arc::clone(&errors);
    let library = options.to_library("leasemux serve --check".to_owned())?.event_callback(move |event| {
        if let Event::ServerError(ServerError::Other(error)) = event {
            // There are two for each subject below, at most.
            seen.lock().insert(error);
        }
        ready(())
    });
    let connected = timeout(CONNECT_WITHIN, library.connect(options.addresses()?)).await;
    let client = connected.map_err(|_| NatsError::Slow(CONNECT_WITHIN))?.map_err(NatsError::Connect)?;
    let probes = probes(options, subjects, gateway);
    // Gateways that hear it ignore it.
    let payload = codec::encode(&Envelope { sender: gateway, counter: 1, message: Message::Leave });
    let deadline = Instant::now() + DEADLINE;
    let results = join_all(probes.into_iter().map(async |probe| {
        let mut messages = None;
        let returned = async {
            if probe.subscribes {
                messages = Some(client.subscribe(probe.subject.clone()).await.ok()?);
            }
            if probe.publishes {
                client.publish(probe.subject.clone(), payload.clone()).await.ok()?;
            }
            match &mut messages {
                Some(messages) if probe.publishes => messages.next().await.map(drop),
                _ => Some(()),
            }
        };
        let has_returned = timeout_at(deadline, returned).await.is_ok_and(|returned| returned.is_some());
        (probe, has_returned, messages)
    }))
    .await;
    if options.source_node.is_some() {
        // No message returns on some subjects, only errors.
        tokio::time::sleep(ERRORS_WITHIN).await;
    }
    let errors = errors.lock().clone();
    let mut missing = Vec::new();
    for (Probe { subject, pattern, .. }, has_returned, _) in &results {
        let denied = |what: &str| {
            let beginning = format!("permissions violation for {what} to \"{subject}\"");
            errors.iter().any(|error| error.to_lowercase().starts_with(&beginning.to_lowercase()))
        };
        let found = [("publish", "publish"), ("subscription", "subscribe")]
            .map(|(what, verb)| denied(what).then(|| format!("no permission to {verb} to {pattern}")));
        if found.iter().all(Option::is_none) && !has_returned {
            missing.push(format!("messages to {pattern} do not return"));
        }
        missing.extend(found.into_iter().flatten());
    }
    if !missing.is_empty() {
        return Err(NatsError::Permissions(missing));
    }
    let info = client.server_info();
    let mut notes = Vec::new();
    if version::is_old(&info.version) {
        notes.push(format!(
            "the NATS server has version {}; before 2.10.26, a gateway that halts can delay all others",
            info.version
        ));
    }
    if info.max_payload < PAYLOAD_MIN_BYTES {
        notes.push(format!(
            "max_payload of the NATS server is {}; gateways send up to {PAYLOAD_MIN_BYTES} bytes",
            info.max_payload
        ));
    }
    Ok((!notes.is_empty()).then(|| notes.join("; ")))
}
