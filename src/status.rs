//! `ServiceStatus`: converts lease views to responses and sends them: one, or with `follow` one for each
//! change.
//!
//! The body reads the view only when it is polled, and HTTP/2 polls it only while the peer accepts data. A
//! slow reader therefore costs at most one encoded message, and its next message is the newest: there is no
//! queue of older ones.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_core::stream::BoxStream;
use futures_util::StreamExt as _;
use http::HeaderMap;
use http_body::Frame;
use tokio::sync::watch;
use tokio::time::Sleep;

use crate::model::id::{Replica, ServiceName};
use crate::model::limits::STREAM_SEND_MAX_BYTES;
use crate::model::proto::framed;
use crate::model::proto::lease::replica_status::State;
use crate::model::proto::lease::{
    ForwarderPortStatus, LeaseIpStatus, LeaseServiceStatus, ReplicaStatus, ServiceStatus,
    ServiceStatusResponse,
};
use crate::model::text::truncate;
use crate::model::view::{
    Endpoints, Filter, LeaseView, ReplicaCounts, ReplicaState, ReplicaView, ServiceView,
};
use crate::platform;
use crate::stream::{Messages, Parts, StreamControl, StreamEnd};

/// Longest message of a replica, in bytes: a few lines of text. Kubernetes allows 32 KiB.
const MESSAGE_MAX_BYTES: usize = 1_024;

/// Shortest time between two messages. Changes in between are sent together: fast enough for a person, and a
/// bound on the cost of a lease that changes all the time.
const MIN_INTERVAL: Duration = Duration::from_millis(100);

/// The response body of `ServiceStatus`.
pub(crate) struct StatusBody {
    updates: Updates,
    /// The unsent part of the current message.
    unsent: Bytes,
    stage: Stage,
    control: Arc<StreamControl>,
    form: StatusForm,
    trailers: Trailers,
}

/// Returns the trailers for the end of a stream.
pub(crate) type Trailers = Box<dyn Fn(&StreamEnd) -> HeaderMap + Send>;

/// How responses are represented.
#[derive(Clone, Copy, Debug)]
pub(crate) enum StatusForm {
    /// As gRPC messages, which may be cut.
    Grpc,
    /// By this function, in one piece.
    Whole(fn(ServiceStatusResponse) -> Bytes),
}

enum Stage {
    Running,
    /// All messages are sent; the trailers follow.
    Trailers(StreamEnd),
    Done,
}

/// Responses, each different from the one before.
struct Updates {
    filter: Filter,
    /// The first view; `None` once it was read.
    first: Option<Arc<LeaseView>>,
    /// Later views; `None` without `follow`.
    changes: Option<BoxStream<'static, Arc<LeaseView>>>,
    last: ServiceStatusResponse,
    /// Completes when the next message may be sent.
    interval: Pin<Box<Sleep>>,
    lease_ended: bool,
}

// === impl StatusBody ===

impl StatusBody {
    /// Creates a body that sends the part of `view` that `filter` selects: once, or with `follow` until the
    /// stream ends. `trailers` gets the reason of the end.
    pub(crate) fn new(
        view: watch::Receiver<Arc<LeaseView>>,
        filter: Filter,
        follow: bool,
        control: Arc<StreamControl>,
        form: StatusForm,
        trailers: Trailers,
    ) -> Self {
        // Subscribe before reading the first view, so that no change is missed.
        let changes = follow.then(|| platform::changes(view.clone()));
        let updates = Updates {
            filter,
            first: Some(Arc::clone(&view.borrow())),
            changes,
            last: ServiceStatusResponse::default(),
            interval: Box::pin(tokio::time::sleep(Duration::ZERO)),
            lease_ended: false,
        };
        Self { updates, unsent: Bytes::new(), stage: Stage::Running, control, form, trailers }
    }

    /// Polls for the next piece of a message; `None` after the last message.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Messages>> {
        // The next message is encoded only after the peer has taken the previous one.
        ready!(self.control.poll_all_taken(cx));
        if self.unsent.is_empty() {
            let Some(update) = ready!(self.updates.poll_next(cx)) else {
                return Poll::Ready(None);
            };
            self.unsent = match self.form {
                StatusForm::Grpc => framed(&update),
                StatusForm::Whole(encode) => encode(update),
            };
        }
        let piece = match self.form {
            StatusForm::Grpc => self.unsent.split_to(self.unsent.len().min(STREAM_SEND_MAX_BYTES)),
            StatusForm::Whole(_) => std::mem::take(&mut self.unsent),
        };
        Poll::Ready(Some(Messages::new(Parts::from([piece]), Arc::clone(&self.control))))
    }
}

impl http_body::Body for StatusBody {
    type Data = Messages;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Messages>, Infallible>>> {
        let this = self.get_mut();
        loop {
            match &this.stage {
                Stage::Running => {
                    // A message that was begun is sent to its end, unless the caller's access was revoked:
                    // nothing follows it then. (A log stream sends the rest, because cursors follow.)
                    let end = this
                        .control
                        .end_requested()
                        .filter(|end| this.unsent.is_empty() || matches!(end, StreamEnd::Refused(_)));
                    if let Some(end) = end {
                        this.stage = Stage::Trailers(end);
                        continue;
                    }
                    match ready!(this.poll_piece(cx)) {
                        Some(piece) => return Poll::Ready(Some(Ok(Frame::data(piece)))),
                        None => this.stage = Stage::Trailers(this.updates.end()),
                    }
                }
                Stage::Trailers(end) => {
                    // HTTP/2 stops watching the stream once it has the trailers, so all data must be taken
                    // first.
                    ready!(this.control.poll_all_taken(cx));
                    let trailers = (this.trailers)(end);
                    this.stage = Stage::Done;
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                }
                Stage::Done => return Poll::Ready(None),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.stage, Stage::Done)
    }
}

// === impl Updates ===

impl Updates {
    /// Polls for the next response that differs from the last one; `None` after the last.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<ServiceStatusResponse>> {
        let is_first = self.first.is_some();
        loop {
            let Some(view) = ready!(self.poll_view(cx)) else {
                return Poll::Ready(None);
            };
            self.lease_ended |= view.ended;
            let response = response(&view, &self.filter);
            if is_first || response != self.last {
                self.last = response.clone();
                self.interval.as_mut().reset(tokio::time::Instant::now() + MIN_INTERVAL);
                return Poll::Ready(Some(response));
            }
        }
    }

    fn poll_view(&mut self, cx: &mut Context<'_>) -> Poll<Option<Arc<LeaseView>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(first));
        }
        let Some(changes) = self.changes.as_mut().filter(|_| !self.lease_ended) else {
            return Poll::Ready(None);
        };
        ready!(self.interval.as_mut().poll(cx));
        let view = ready!(changes.poll_next_unpin(cx));
        // The view's sender is gone: the lease has ended.
        self.lease_ended |= view.is_none();
        Poll::Ready(view)
    }

    /// Returns why there are no more updates.
    fn end(&self) -> StreamEnd {
        if self.lease_ended && self.changes.is_some() { StreamEnd::LeaseEnded } else { StreamEnd::Done }
    }
}

/// Returns the services and replicas that `filter` selects from `view`, in order.
///
/// Counts and endpoints are those of the whole service, even if the filter selects only some replicas. Fields
/// that the platform does not know stay empty.
pub(crate) fn response(view: &LeaseView, filter: &Filter) -> ServiceStatusResponse {
    let services = view.services.iter().filter(|(name, _)| filter.selects_service(name));
    ServiceStatusResponse {
        services: services.map(|(name, service)| service_status(name, service, filter)).collect(),
        stale_since: view.stale_since.map(Into::into),
    }
}

fn service_status(name: &ServiceName, service: &ServiceView, filter: &Filter) -> ServiceStatus {
    let wanted = service
        .replicas
        .iter()
        .filter(|(index, _)| filter.selects(&Replica { service: name.clone(), index: **index }));
    let Endpoints { uris, ports, ips } = &service.endpoints;
    let ports = ports.iter().map(|port| ForwarderPortStatus {
        host: port.host.clone(),
        port: port.port.into(),
        external_port: port.external_port.into(),
        proto: port.protocol.clone(),
        name: port.name.clone(),
    });
    let ips = ips.iter().map(|ip| LeaseIpStatus {
        port: ip.port.into(),
        external_port: ip.external_port.into(),
        protocol: ip.protocol.clone(),
        ip: ip.ip.clone(),
    });
    ServiceStatus {
        name: name.to_string(),
        status: Some(service_counts(service.counts(), uris)),
        ports: ports.collect(),
        ips: ips.collect(),
        replica_status: wanted.map(|(index, slot)| replica_status(*index, slot)).collect(),
    }
}

fn service_counts(counts: ReplicaCounts, uris: &[String]) -> LeaseServiceStatus {
    let number = |count: u32| i32::try_from(count).unwrap_or(i32::MAX);
    LeaseServiceStatus {
        available: number(counts.available),
        total: number(counts.total),
        uris: uris.to_vec(),
        observed_generation: counts.observed_generation,
        replicas: number(counts.total),
        updated_replicas: number(counts.updated),
        ready_replicas: number(counts.ready),
        available_replicas: number(counts.available),
    }
}

fn replica_status(index: u32, slot: &ReplicaView) -> ReplicaStatus {
    let last = slot.last_end();
    let (state, mut message) = match &slot.state {
        ReplicaState::Running => (State::Running, String::new()),
        ReplicaState::Waiting { reason, message } if message.is_empty() => (State::Waiting, reason.clone()),
        ReplicaState::Waiting { reason, message } => (State::Waiting, format!("{reason}: {message}")),
        ReplicaState::Terminated => (State::Terminated, String::new()),
        ReplicaState::Unknown => (State::Unknown, String::new()),
    };
    if message.len() > MESSAGE_MAX_BYTES {
        message = format!("{}…", truncate(&message, MESSAGE_MAX_BYTES));
    }
    ReplicaStatus {
        replica: index,
        instance: slot.newest().map(|run| run.instance.to_string()).unwrap_or_default(),
        state: state.into(),
        ready: slot.ready,
        restarts: slot.restarts,
        last_exit_code: last.and_then(|end| end.exit_code),
        last_signal: last.and_then(|end| end.signal),
        last_reason: last.map(|end| end.reason.clone()).unwrap_or_default(),
        started_at: slot.current_run().map(|run| run.started.into()),
        message,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Buf as _;
    use futures_util::FutureExt as _;
    use http_body_util::BodyExt as _;
    use prost::Message as _;

    use super::*;
    use crate::model::id::Instance;
    use crate::model::proto::PREFIX_BYTES;
    use crate::model::time::LogTime;
    use crate::model::view::{ForwardedPort, LeasedIp, Run, RunEnd};

    fn web() -> ServiceName {
        "web".parse().unwrap()
    }

    fn run(number: u32, end: Option<RunEnd>) -> Run {
        let instance = Instance::new("uid", "web", number).unwrap();
        Run {
            instance,
            started: LogTime::from_nanos(5_000_000_007),
            end,
            log_is_gone: false,
            later_unknown: false,
        }
    }

    fn killed() -> RunEnd {
        let time = LogTime::from_nanos(6);
        RunEnd { time, exit_code: None, signal: Some(9), reason: "OOMKilled".into() }
    }

    fn view(slots: Vec<ReplicaView>) -> LeaseView {
        let service =
            ServiceView { count: 2, replicas: (0..).zip(slots).collect(), ..ServiceView::default() };
        let other = ServiceView { count: 0, ..ServiceView::default() };
        let services = [("web", service), ("api", other)];
        LeaseView {
            services: services.into_iter().map(|(name, service)| (name.parse().unwrap(), service)).collect(),
            ..LeaseView::default()
        }
    }

    fn only(service: &str, replicas: &[u32]) -> Filter {
        let mut filter = Filter::everything();
        filter.add(service.parse().unwrap(), replicas);
        filter
    }

    #[test]
    fn response_has_the_state_of_each_replica() {
        let slot = ReplicaView {
            runs: vec![run(1, Some(killed())), run(2, None)],
            state: ReplicaState::Running,
            ready: true,
            restarts: 2,
            ..ReplicaView::default()
        };
        let mut sent = response(&view(vec![slot]), &only("web", &[])).services.remove(0);
        let expected = ReplicaStatus {
            replica: 0,
            instance: "uid/web/2".into(),
            state: State::Running.into(),
            ready: true,
            restarts: 2,
            last_exit_code: None,
            last_signal: Some(9),
            last_reason: "OOMKilled".into(),
            started_at: Some(prost_types::Timestamp { seconds: 5, nanos: 7 }),
            message: String::new(),
        };
        assert_eq!(sent.replica_status, [expected]);
        let counts = sent.status.take().unwrap();
        assert_eq!((counts.available, counts.total, counts.replicas, counts.updated_replicas), (1, 1, 1, 1));
        assert_eq!((counts.ready_replicas, counts.available_replicas, counts.observed_generation), (1, 1, 1));
    }

    #[test]
    fn waiting_replica_has_a_bounded_message() {
        let waits = |message: String| {
            let state = ReplicaState::Waiting { reason: "CrashLoopBackOff".into(), message };
            let slot = ReplicaView { runs: vec![run(0, Some(killed()))], state, ..ReplicaView::default() };
            let sent = response(&view(vec![slot]), &Filter::everything()).services.pop().unwrap();
            sent.replica_status.into_iter().next().unwrap()
        };
        let sent = waits("back-off 2s".into());
        assert_eq!(sent.message, "CrashLoopBackOff: back-off 2s");
        assert_eq!(
            (sent.state(), sent.instance.as_str(), sent.started_at),
            (State::Waiting, "uid/web/0", None)
        );
        assert_eq!(waits(String::new()).message, "CrashLoopBackOff");
        let long = waits("ß".repeat(5_000)).message;
        assert!(long.len() <= MESSAGE_MAX_BYTES + "…".len() && long.ends_with("ß…"), "{}", long.len());
    }

    #[test]
    fn filter_selects_replicas_but_not_counts() {
        let ready = ReplicaView { state: ReplicaState::Running, ready: true, ..ReplicaView::default() };
        let mut view = view(vec![ready.clone(), ready]);
        let sent = response(&view, &Filter::everything());
        let names: Vec<_> = sent.services.iter().map(|service| service.name.as_str()).collect();
        assert_eq!(names, ["api", "web"]);
        let sent = response(&view, &only("web", &[1])).services;
        assert_eq!(sent.len(), 1);
        assert_eq!(sent[0].status.as_ref().unwrap().available, 2);
        assert_eq!(sent[0].replica_status.iter().map(|one| one.replica).collect::<Vec<_>>(), [1]);
        // A removed service is left out.
        view.services.remove(&web());
        assert_eq!(response(&view, &only("web", &[1])).services, []);
    }

    #[test]
    fn response_has_endpoints() {
        let mut view = view(vec![]);
        let service = view.services.get_mut(&web()).unwrap();
        service.endpoints = Endpoints {
            uris: vec!["a.example".into()],
            ports: vec![ForwardedPort {
                host: "provider.example".into(),
                port: 80,
                external_port: 31_000,
                protocol: "TCP".into(),
                name: "web".into(),
            }],
            ips: vec![LeasedIp {
                ip: "192.0.2.7".into(),
                port: 53,
                external_port: 5_353,
                protocol: "UDP".into(),
            }],
        };
        let sent = response(&view, &only("web", &[])).services.remove(0);
        assert_eq!(sent.status.unwrap().uris, ["a.example"]);
        assert_eq!((sent.ports[0].host.as_str(), sent.ports[0].external_port), ("provider.example", 31_000));
        assert_eq!(
            (sent.ports[0].port, sent.ports[0].proto.as_str(), sent.ports[0].name.as_str()),
            (80, "TCP", "web")
        );
        assert_eq!(
            (sent.ips[0].ip.as_str(), sent.ips[0].port, sent.ips[0].external_port),
            ("192.0.2.7", 53, 5_353)
        );
    }

    fn restarted(times: u32) -> Arc<LeaseView> {
        let slot = ReplicaView { restarts: times, ..ReplicaView::default() };
        Arc::new(view(vec![slot]))
    }

    fn restarts(mut piece: Messages) -> u32 {
        let mut bytes = piece.copy_to_bytes(piece.remaining());
        bytes.advance(PREFIX_BYTES);
        ServiceStatusResponse::decode(bytes).unwrap().services[1].replica_status[0].restarts
    }

    #[tokio::test(start_paused = true)]
    async fn slow_reader_gets_the_newest_status() {
        let (sender, receiver) = watch::channel(restarted(0));
        let (everything, control) = (Filter::everything(), StreamControl::new());
        let trailers = Box::new(|_: &StreamEnd| HeaderMap::new());
        let mut body = StatusBody::new(receiver, everything, true, control, StatusForm::Grpc, trailers);
        let mut seen = Vec::new();
        for step in 1..=3 {
            let piece = body.frame().await.unwrap().unwrap().into_data().unwrap();
            for change in 0..10 {
                sender.send_replace(restarted(100 * step + change));
                tokio::time::sleep(2 * MIN_INTERVAL).await;
                assert!(body.frame().now_or_never().is_none(), "the peer has not taken the previous message");
            }
            seen.push(restarts(piece));
        }
        assert_eq!(seen, [0, 109, 209]);
    }
}
