//! Every metric, declared: what it is, what it means, and when to worry.

use super::declare::{Declaration, Group, LabelSet, Labels, MetricKind, Unit};
use super::labels::{
    ActorEnd, BUILD, ChainAnswer, ChainQuery, ChainResult, Code, ConnectionEnd, ConnectionRefusal, Handshake,
    Method, PlatformName, REFUSAL_REASONS, ReadKind, Restarted, SourceError, Watched,
};
use crate::model::line::GapCause;
use crate::model::quota::Quota;

/// From the pace of a lone line to a follower that is close to being dropped.
const DELAY_BUCKETS_SECONDS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0];

/// From an answer out of memory to a trust source, or a history read that waits for its turn.
const ANSWER_BUCKETS_SECONDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// From a call that is answered at once to a follower that stays for a day.
const CALL_BUCKETS_SECONDS: &[f64] = &[0.01, 0.1, 1.0, 10.0, 60.0, 300.0, 900.0, 3_600.0, 14_400.0, 86_400.0];

/// From a peer in the same rack to the longest that a handshake may take by default.
const HANDSHAKE_BUCKETS_SECONDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// All metrics, as they are told: each in one group.
pub const GROUPS: &[Group] = &[
    Group {
        title: "Delivery and loss",
        about: "Every line that an actor reads is, for every follower, delivered or reported as missing. These are the sums.",
        metrics: &[
            &FOLLOWERS,
            &FOLLOWERS_LAGGING,
            &LINES_IN,
            &BYTES_IN,
            &FRAMES_ENCODED,
            &LINES_DELIVERED,
            &BYTES_DELIVERED,
            &MESSAGES_DELIVERED,
            &GAPS,
            &LINES_LOST,
            &BYTES_LOST,
            &DELIVERY_DELAY,
            &STALLED_STREAMS,
        ],
    },
    Group {
        title: "Actors and sources",
        about: "One actor per replica that is followed, each with one live tail at the platform.",
        metrics: &[
            &ACTORS,
            &ACTOR_STARTS,
            &ACTOR_ENDS,
            &RING_BYTES,
            &SOURCE_OPENS,
            &SOURCE_ERRORS,
            &RESTARTS,
            &WATCH_FAILURES,
            &WATCH_LISTS,
            &VIEWS_STALE,
        ],
    },
    Group {
        title: "Calls and connections",
        about: "What tenants ask for, and what they are told. Health and reflection are not counted as calls.",
        metrics: &[
            &REQUESTS,
            &FIRST_ANSWER,
            &CALL_DURATION,
            &STREAMS,
            &AUTH_REFUSALS,
            &QUOTA_REFUSALS,
            &CONNECTIONS,
            &CONNECTIONS_ACCEPTED,
            &CONNECTIONS_REFUSED,
            &CONNECTIONS_CLOSED,
            &HANDSHAKES,
            &HANDSHAKE_TIME,
            &CERTIFICATE_END,
            &CA_CERTIFICATE_END,
        ],
    },
    Group {
        title: "The chain",
        about: "What an Akash node is asked (`--chain-grpc`). Without one, all of them stay 0.",
        metrics: &[&CHAIN_QUERIES, &CHAIN_QUERY_TIME, &CHAIN_ANSWERS, &CHAIN_ON_GRACE],
    },
    Group {
        title: "The process",
        about: "Under the names that Prometheus' own client libraries use.",
        metrics: &[
            &BUILD_INFO,
            &PROCESS_CPU,
            &PROCESS_RESIDENT,
            &PROCESS_VIRTUAL,
            &PROCESS_OPEN_FILES,
            &PROCESS_MAX_FILES,
            &PROCESS_THREADS,
            &PROCESS_START,
        ],
    },
];

/// Each metric once, in the order of [`GROUPS`].
pub fn each() -> impl Iterator<Item = &'static Declaration> {
    GROUPS.iter().flat_map(|group| group.metrics.iter().copied())
}

const fn metric(
    name: &'static str,
    kind: MetricKind,
    unit: Unit,
    labels: &'static [LabelSet],
    help: &'static str,
    worry: &'static str,
) -> Declaration {
    Declaration { name, kind, unit, labels, help, alert_hint: worry }
}

/// The most common: a counter of things.
const fn counter(
    name: &'static str,
    labels: &'static [LabelSet],
    help: &'static str,
    worry: &'static str,
) -> Declaration {
    metric(name, MetricKind::Counter, Unit::Count, labels, help, worry)
}

/// What is there now.
const fn gauge(
    name: &'static str,
    labels: &'static [LabelSet],
    help: &'static str,
    worry: &'static str,
) -> Declaration {
    metric(name, MetricKind::Gauge, Unit::Count, labels, help, worry)
}

// === Delivery and loss ===

pub(super) const FOLLOWERS: Declaration = gauge(
    "leasemux_followers",
    &[],
    "Replicas being followed now, counted once for each stream that follows them",
    "It falls to zero while tenants are there: they cannot reach the gateway, or are refused.",
);

pub(super) const FOLLOWERS_LAGGING: Declaration = gauge(
    "leasemux_followers_lagging",
    &[],
    "Followers for whom lines have waited for more than a second, or were overwritten before they were taken, or whose peer took nothing for as long; looked up at each scrape",
    "More than a few for minutes. `/followers` on the admin port names them. One or two are slow tenants; many at once are the gateway's own network or processor.",
);

pub(super) const LINES_IN: Declaration = counter(
    "leasemux_lines_in_total",
    &[],
    "Lines read by live tails",
    "It stands still while `leasemux_followers` does not and services are known to print: look at `leasemux_source_errors_total`.",
);

pub(super) const BYTES_IN: Declaration = metric(
    "leasemux_bytes_in_total",
    MetricKind::Counter,
    Unit::Bytes,
    &[],
    "Log bytes read by live tails",
    "Its rate divided by `leasemux_actors` nears the size of a ring (4 MiB unless set) within seconds: any follower that pauses will lose lines.",
);

pub(super) const FRAMES_ENCODED: Declaration = counter(
    "leasemux_frames_encoded_total",
    &[],
    "Messages encoded by actors, each once per representation however many follow",
    "It grows with the number of followers: then something encodes for each, which is a fault.",
);

pub(super) const LINES_DELIVERED: Declaration = counter(
    "leasemux_lines_delivered_total",
    &[],
    "Lines handed to HTTP/2, counted for each stream",
    "Together with `leasemux_lines_lost_total` it is the delivery ratio; below 99.99 % over an hour, look for who lags.",
);

pub(super) const BYTES_DELIVERED: Declaration = metric(
    "leasemux_bytes_delivered_total",
    MetricKind::Counter,
    Unit::Bytes,
    &[],
    "Log bytes handed to HTTP/2, counted for each stream",
    "Its rate nears what the network takes.",
);

pub(super) const MESSAGES_DELIVERED: Declaration = counter(
    "leasemux_messages_delivered_total",
    &[],
    "Messages handed to HTTP/2, counted for each stream",
    "Far fewer than 10 lines to a message at a high rate: the pace is set too short.",
);

pub(super) const GAPS: Declaration = counter(
    "leasemux_gaps_total",
    <GapCause as Labels>::SETS,
    "Gap entries sent to followers, by cause",
    "By cause, as for `leasemux_lines_lost_total`.",
);

pub(super) const LINES_LOST: Declaration = counter(
    "leasemux_lines_lost_total",
    <GapCause as Labels>::SETS,
    "Lines reported to followers as missing, by cause",
    "`lag`: a follower is too slow (see `/followers`). `rotated`: logs are removed before they are read; keep more of them. `source`: the platform lost them; a full disk, most often. `limit`: a limit of the gateway cut them.",
);

pub(super) const BYTES_LOST: Declaration = metric(
    "leasemux_bytes_lost_total",
    MetricKind::Counter,
    Unit::Bytes,
    <GapCause as Labels>::SETS,
    "Log bytes reported to followers as missing, by cause",
    "As for `leasemux_lines_lost_total`.",
);

pub(super) const DELIVERY_DELAY: Declaration = metric(
    "leasemux_delivery_delay_seconds",
    MetricKind::Histogram(DELAY_BUCKETS_SECONDS),
    Unit::Seconds,
    &[],
    "Time from reading a line to handing it to HTTP/2, in seconds; the oldest line of each hand-over",
    "The median is above 50 ms while few lag: the gateway has too little processor.",
);

pub(super) const STALLED_STREAMS: Declaration = counter(
    "leasemux_stalled_streams_total",
    &[],
    "Streams reset because their peer took nothing for too long",
    "Several a minute: clients that open streams and do not read them.",
);

// === Actors and sources ===

pub(super) const ACTORS: Declaration = gauge(
    "leasemux_actors",
    &[],
    "Replica actors running now",
    "It is above `leasemux_followers` for long: actors outlive their last follower by 10 s only, unless set otherwise.",
);

pub(super) const ACTOR_STARTS: Declaration = counter(
    "leasemux_actor_starts_total",
    &[],
    "Replica actors started",
    "Its rate is high while `leasemux_followers` is steady: followers come and go faster than actors idle.",
);

pub(super) const ACTOR_ENDS: Declaration = counter(
    "leasemux_actor_ends_total",
    <ActorEnd as Labels>::SETS,
    "Replica actors ended, by reason: nobody followed (idle), the replica is gone, the gateway stopped, or a fault (aborted)",
    "Any `aborted`: a fault of the gateway; the log has it.",
);

pub(super) const RING_BYTES: Declaration = metric(
    "leasemux_ring_bytes",
    MetricKind::Gauge,
    Unit::Bytes,
    &[],
    "Bytes held in the rings of all actors",
    "It nears the memory that the gateway may have; it is at most `leasemux_actors` times the size of a ring.",
);

pub(super) const SOURCE_OPENS: Declaration = counter(
    "leasemux_source_opens_total",
    <ReadKind as Labels>::SETS,
    "Logs opened at the platform: a live tail for each run that an actor reads (and again after a failure), and history reads for who asks for older lines",
    "`live` grows much faster than `leasemux_actor_starts_total`: services crash in a loop, or the platform cuts tails off.",
);

pub(super) const SOURCE_ERRORS: Declaration = counter(
    "leasemux_source_errors_total",
    <(SourceError, PlatformName) as Labels>::SETS,
    "Errors while asking the platform what runs, or opening or reading logs there, by kind and platform",
    "`unavailable` or `io` for minutes: the platform does not answer, and followers wait. `not_found` is common where services end. `broken`: report it.",
);

pub(super) const RESTARTS: Declaration = counter(
    "leasemux_restarts_total",
    <Restarted as Labels>::SETS,
    "Restarts of single replicas asked for by tenants, by what came of them",
    "`failure` is most often the tenant's own service; for many owners at once it is the platform.",
);

pub(super) const WATCH_FAILURES: Declaration = counter(
    "leasemux_watch_failures_total",
    <Watched as Labels>::SETS,
    "Failures of the watches on a cluster, by what is watched. Each is tried again, after a pause that grows",
    "One now and then is an API server that was restarted. It goes on for minutes: what statuses and logs are told from is out of date; the log says why.",
);

pub(super) const WATCH_LISTS: Declaration = counter(
    "leasemux_watch_lists_total",
    <Watched as Labels>::SETS,
    "Complete lists that were read of what is watched on a cluster: the first, and one more whenever a watch cannot go on where it was",
    "It grows all the time: watches do not hold, and each list is a load on the API server.",
);

pub(super) const VIEWS_STALE: Declaration = gauge(
    "leasemux_views_stale",
    &[],
    "1 while a watch on the cluster has failed for more than 10 s, so that statuses may be out of date; else 0",
    "It is 1 for minutes: the API server is not reached. Statuses say so themselves (`stale_since`), `/ready` goes on saying yes, and logs that are open on the `node` platform are not affected.",
);

// === Calls and connections ===

pub(super) const REQUESTS: Declaration = counter(
    "leasemux_requests_total",
    <(Method, Code) as Labels>::SETS,
    "Calls that have ended, by method and gRPC code; a stream counts when it ends, and as CANCELLED if its caller goes or is reset",
    "`INTERNAL` at all: the log has each under the id that the caller was told. `UNAVAILABLE` while not draining: platform or trust source. `UNAUTHENTICATED`: see `leasemux_auth_refusals_total`.",
);

pub(super) const FIRST_ANSWER: Declaration = metric(
    "leasemux_first_answer_seconds",
    MetricKind::Histogram(ANSWER_BUCKETS_SECONDS),
    Unit::Seconds,
    <Method as Labels>::SETS,
    "Time from a call's headers to the first message of its answer, or to its status if there is none, in seconds",
    "The 99th percentile of `ServiceLogs` or `ServiceStatus` is above 2.5 s: the platform or trust source is slow, or history reads wait for their turn. `ServiceRestart` takes as long as its caller wants to wait.",
);

pub(super) const CALL_DURATION: Declaration = metric(
    "leasemux_call_duration_seconds",
    MetricKind::Histogram(CALL_BUCKETS_SECONDS),
    Unit::Seconds,
    <Method as Labels>::SETS,
    "Time from a call's headers to its end, in seconds: for streams, how long they lasted",
    "Streams of `ServiceLogs` become short: something between tenants and the gateway cuts them off. A round number points to a proxy's timeout.",
);

pub(super) const STREAMS: Declaration = gauge(
    "leasemux_streams",
    <Method as Labels>::SETS,
    "Calls being answered now, by method: for the most part streams that follow",
    "It nears the limits of streams.",
);

pub(super) const AUTH_REFUSALS: Declaration = counter(
    "leasemux_auth_refusals_total",
    &[REFUSAL_REASONS],
    "Calls refused, or streams ended, because of who is calling, by reason",
    "`TRUST_UNAVAILABLE`: nobody new gets in until the trust source answers. `LEASE_NOT_YOURS` or `CERTIFICATE_UNKNOWN` in numbers: somebody tries doors. `CERTIFICATE_EXPIRED` all at once: the gateway's clock.",
);

pub(super) const QUOTA_REFUSALS: Declaration = counter(
    "leasemux_quota_refusals_total",
    <Quota as Labels>::SETS,
    "Calls refused because a quota is used up, by quota",
    "`streams`: the gateway is full for everybody; raise the limit or add a gateway. The others concern single tenants.",
);

pub(super) const CONNECTIONS: Declaration = gauge(
    "leasemux_connections",
    &[],
    "Connections open now, whose TLS handshake is complete",
    "It nears `--max-connections`: further peers will be turned away.",
);

pub(super) const CONNECTIONS_ACCEPTED: Declaration = counter(
    "leasemux_connections_accepted_total",
    &[],
    "Connections taken, before their TLS handshake",
    "Its rate is many times that of `leasemux_requests_total`: a probe that speaks no gRPC, or a flood.",
);

pub(super) const CONNECTIONS_REFUSED: Declaration = counter(
    "leasemux_connections_refused_total",
    <ConnectionRefusal as Labels>::SETS,
    "Connections turned away before they could make a call, by reason",
    "`limit`: as for `leasemux_connections`. `peer_limit` or `auth_failures` from behind a proxy: tell the gateway to trust that proxy (`--trusted-proxy`). `proxy`: the proxy does not send PROXY protocol version 2.",
);

pub(super) const CONNECTIONS_CLOSED: Declaration = counter(
    "leasemux_connections_closed_total",
    <ConnectionEnd as Labels>::SETS,
    "Connections ended, by reason",
    "`error` is most of them: a proxy that does not speak HTTP/2, or a network that breaks. `flood`: a peer sends control frames without end; the log names one in 10 s, and each counts as a failed authentication of its address. `cut` at a shutdown: followers were given too little time.",
);

pub(super) const HANDSHAKES: Declaration = counter(
    "leasemux_tls_handshakes_total",
    <Handshake as Labels>::SETS,
    "TLS handshakes, by result",
    "`failed` is more than a tenth: clients that do not trust the gateway's certificate, or port scans. `timeout`: peers that connect and say nothing, or too little processor.",
);

pub(super) const HANDSHAKE_TIME: Declaration = metric(
    "leasemux_tls_handshake_seconds",
    MetricKind::Histogram(HANDSHAKE_BUCKETS_SECONDS),
    Unit::Seconds,
    &[],
    "Time that TLS handshakes took that were completed, in seconds; a round trip to the peer is part of it",
    "The median is far above the round trip: too little processor.",
);

pub(super) const CERTIFICATE_END: Declaration = metric(
    "leasemux_certificate_expiry_timestamp_seconds",
    MetricKind::Gauge,
    Unit::Seconds,
    &[],
    "When the certificate that is shown to clients ends, in Unix seconds",
    "It is less than two weeks ahead: whatever renews it does not. Once it is past, clients refuse the gateway.",
);

pub(super) const CA_CERTIFICATE_END: Declaration = metric(
    "leasemux_ca_certificate_expiry_timestamp_seconds",
    MetricKind::Gauge,
    Unit::Seconds,
    &[],
    "When the certificate for the public host names (`--ca-tls-cert`) ends, in Unix seconds; 0 without one",
    "It is less than two weeks ahead: whatever renews it does not. Once it is past, clients with tokens refuse the gateway.",
);

// === The chain ===

pub(super) const CHAIN_QUERIES: Declaration = counter(
    "leasemux_chain_queries_total",
    <(ChainQuery, ChainResult) as Labels>::SETS,
    "Questions to the Akash node that were answered, or given up, by what was asked for and what came of it",
    "`failed` for minutes: the node does not answer, and nobody new gets in; the log says why. `unknown` in numbers: somebody tries doors.",
);

pub(super) const CHAIN_QUERY_TIME: Declaration = metric(
    "leasemux_chain_query_seconds",
    MetricKind::Histogram(HANDSHAKE_BUCKETS_SECONDS),
    Unit::Seconds,
    &[],
    "Time that questions to the Akash node took, in seconds",
    "The 99th percentile is above 1 s: who comes for the first time waits so long; at 5 s questions are given up.",
);

pub(super) const CHAIN_ANSWERS: Declaration = counter(
    "leasemux_chain_answers_total",
    <ChainAnswer as Labels>::SETS,
    "Times that a call stood on what the chain says of its caller, by where that came from: the memory of an answer, an older answer while the node is silent, a question, or none since too much is asked",
    "`grace` at all: the node is silent. `busy`: see the quota `chain_queries`.",
);

pub(super) const CHAIN_ON_GRACE: Declaration = gauge(
    "leasemux_chain_on_grace",
    &[],
    "Certificates and keys that go on though the Akash node did not answer when it was last asked to confirm them",
    "It is above 0 for minutes: the node is silent. When the grace (`--chain-grace`) is over, they are refused.",
);

// === The process ===

pub(super) const BUILD_INFO: Declaration = metric(
    "leasemux_build_info",
    MetricKind::Gauge,
    Unit::Info,
    &BUILD,
    "What is running: version, commit if the build was told, and compiler",
    "Gateways that should be alike differ.",
);

/// Told beside the recorder, whose counters are whole numbers.
pub const PROCESS_CPU: Declaration = metric(
    "process_cpu_seconds_total",
    MetricKind::Counter,
    Unit::Seconds,
    &[],
    "Total user and system CPU time spent in seconds",
    "Its rate nears the number of processors.",
);

pub(super) const PROCESS_RESIDENT: Declaration = metric(
    "process_resident_memory_bytes",
    MetricKind::Gauge,
    Unit::Bytes,
    &[],
    "Resident memory size in bytes",
    "It grows for hours while `leasemux_ring_bytes` and `leasemux_streams` do not.",
);

pub(super) const PROCESS_VIRTUAL: Declaration = metric(
    "process_virtual_memory_bytes",
    MetricKind::Gauge,
    Unit::Bytes,
    &[],
    "Virtual memory size in bytes",
    "Not by itself.",
);

pub(super) const PROCESS_OPEN_FILES: Declaration = gauge(
    "process_open_fds",
    &[],
    "Number of open file descriptors",
    "It nears `process_max_fds`: connections cannot be taken, and logs not be opened.",
);

pub(super) const PROCESS_MAX_FILES: Declaration = gauge(
    "process_max_fds",
    &[],
    "Maximum number of open file descriptors",
    "It is below what the limits need, which the log says at the start.",
);

pub(super) const PROCESS_THREADS: Declaration = gauge(
    "process_threads",
    &[],
    "Number of threads in the process",
    "It grows without end: file reads that hang.",
);

pub(super) const PROCESS_START: Declaration = metric(
    "process_start_time_seconds",
    MetricKind::Gauge,
    Unit::Seconds,
    &[],
    "Start time of the process since unix epoch in seconds",
    "It changes though nobody restarted the gateway.",
);
