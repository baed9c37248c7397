//! The catalogue: each metric is declared once, in the table at the end of this file.
//!
//! An entry has these parts: the help text (its doc comment), the name and type of its handle (a field of
//! [`Handles`]), its name, its unit unless it counts things, the buckets of a histogram, and when an operator
//! should look closer. The type of the handle determines the metric's type and its labels. A handle that
//! nothing uses is a compiler warning.

use metrics::{Counter, Gauge, Histogram, Recorder};

use super::declare::{Declaration, Group, MetricKind, Unit};
use super::handle::{BuildInfo, Family, RenderedCounter, declare, register};
use super::labels::{
    ActorEnd, ChainAnswerOrigin, ChainQuery, ChainResult, Code, ConnectionEnd, ConnectionRejection,
    EventOrigin, EventWatchFailure, FilterSpelling, FleetDirection, FleetElection, FleetNoticed,
    FleetRejection, FleetRepair, FleetRole, ForwardedMethod, Handshake, HttpClass, Method, PlatformName,
    PublishedMethod, ReadKind, RefillStart, RestartResult, RouteTemplate, SourceError, SpanLoss, StreamKind,
    UpstreamFailure, Watched, WebsocketEnd,
};
use crate::model::line::GapCause;
use crate::model::quota::Quota;
use crate::model::refusal::Refusal;

/// From the delay of a single line to a follower that loses lines soon.
const DELAY_BUCKETS_SECONDS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0];

/// From an answer out of memory to a query of a trust source, or a history read that waits for a permit.
const ANSWER_BUCKETS_SECONDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// From an immediate answer to a follower that stays for a day.
const CALL_BUCKETS_SECONDS: &[f64] = &[0.01, 0.1, 1.0, 10.0, 60.0, 300.0, 900.0, 3_600.0, 14_400.0, 86_400.0];

/// From a provider in the same cluster to the longest time for a manifest.
const UPSTREAM_BUCKETS_SECONDS: &[f64] =
    &[0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 130.0];

/// From a peer in the same rack to the default timeout of handshakes.
const HANDSHAKE_BUCKETS_SECONDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// From a publisher that hands over to the longest time that is measured.
const TAKEOVER_BUCKETS_SECONDS: &[f64] = &[0.05, 0.1, 0.2, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0];

/// Returns all metrics, in the order of [`GROUPS`].
pub fn each() -> impl Iterator<Item = &'static Declaration> {
    GROUPS.iter().flat_map(|group| group.metrics)
}

/// Generates [`GROUPS`] and [`Handles`] from the table.
macro_rules! catalogue {
    // The declaration of one entry.
    (
        @declare [$($help:literal)+]
        $handle:ty, $name:literal, [$($unit:ident)?], [$($buckets:ident)?], $hint:literal
    ) => {
        Declaration {
            $(unit: Unit::$unit,)?
            $(kind: MetricKind::Histogram($buckets),)?
            // Each doc line begins with a space.
            ..declare::<$handle>($name, concat!($($help),+).trim_ascii_start(), $hint)
        }
    };
    ($(
        group $title:literal, $about:literal {
            $(
                $(#[doc = $help:literal])+
                $field:ident: $handle:ty =
                    $name:literal $(($unit:ident))? $(in $buckets:ident)?, $hint:literal;
            )+
        }
    )+) => {
        /// All metrics, each in one group.
        pub const GROUPS: &[Group] = &[$(
            Group {
                title: $title,
                about: $about,
                metrics: &[$(
                    catalogue!(@declare [$($help)+] $handle, $name, [$($unit)?], [$($buckets)?], $hint),
                )+],
            },
        )+];

        /// The handles to all metrics of one process.
        #[derive(Debug)]
        pub struct Handles {
            $($(
                $(#[doc = $help])+
                pub(crate) $field: $handle,
            )+)+
        }

        impl Handles {
            pub(crate) fn register(recorder: &dyn Recorder) -> Self {
                Self {
                    $($($field: register(
                        recorder,
                        &catalogue!(@declare [$($help)+] $handle, $name, [$($unit)?], [$($buckets)?], $hint),
                    ),)+)+
                }
            }
        }
    };
}
pub(super) use catalogue;

catalogue! {
    group "Delivery and loss",
        "Each line that an actor reads is, for each follower, either delivered or reported as missing. These are \
         the sums." {
        /// Followers of replicas: a stream counts once for each replica that it follows
        followers: Gauge = "leasemux_followers",
            "It falls to zero although tenants are active: they cannot reach the gateway, or it rejects \
             them.";

        /// Followers that lag: lines have waited for more than a second, or were evicted before the follower
        /// took them, or its peer took nothing for more than a second; measured at each scrape
        followers_lagging: Gauge = "leasemux_followers_lagging",
            "It exceeds a few for minutes. `/followers` on the admin port lists them. One or two are slow \
             tenants; many at once indicate that the gateway lacks network bandwidth or CPU.";

        /// Lines read by live tails
        lines_in: Counter = "leasemux_lines_in_total",
            "It stops growing while `leasemux_followers` is not zero and services print: see \
             `leasemux_source_errors_total`.";

        /// Log bytes read by live tails
        bytes_in: Counter = "leasemux_bytes_in_total" (Bytes),
            "Its rate divided by `leasemux_actors` would fill a ring (4 MiB by default) within seconds: \
             each follower that pauses will lose lines.";

        /// Messages encoded by actors, once per representation for all followers
        frames_encoded: Counter = "leasemux_frames_encoded_total",
            "Its rate grows with the number of followers: messages are encoded for each follower, which is \
             a bug.";

        /// Lines handed to HTTP/2, counted for each stream
        lines_delivered: Counter = "leasemux_lines_delivered_total",
            "Together with `leasemux_lines_lost_total` it gives the delivery ratio. Below 99.99 % over an \
             hour, look for lagging followers.";

        /// Log bytes handed to HTTP/2, counted for each stream
        bytes_delivered: Counter = "leasemux_bytes_delivered_total" (Bytes),
            "Its rate approaches the network's bandwidth.";

        /// Messages handed to HTTP/2, counted for each stream, without heartbeats
        messages_delivered: Counter = "leasemux_messages_delivered_total",
            "A message has far fewer than 10 lines at a high rate: `--pace` is too short.";

        /// Gap entries sent to followers, by cause
        gaps: Family<Counter, GapCause> = "leasemux_gaps_total",
            "As for `leasemux_lines_lost_total`, by cause.";

        /// Lines reported to followers as missing, by cause
        lines_lost: Family<Counter, GapCause> = "leasemux_lines_lost_total",
            "`lag`: a follower is too slow (see `/followers`). `rotated`: logs are removed before they are \
             read; keep more of them. `source`: the platform lost them, most often because a disk is full. \
             `limit`: a limit of the gateway cut them.";

        /// Log bytes reported to followers as missing, by cause
        bytes_lost: Family<Counter, GapCause> = "leasemux_bytes_lost_total" (Bytes),
            "As for `leasemux_lines_lost_total`.";

        /// Refills started: a follower with `on_lag = REFILL` lagged, and its lines are read from the log
        /// again; by whether it lagged for the first time, or again within 10 s after a refill
        refills: Family<Counter, RefillStart> = "leasemux_refills_total",
            "`again` grows: followers are slower than their services print. Each keeps a read of the log open \
             until it has caught up, under the quotas of history reads.";

        /// Lines read from logs by refills
        refilled_lines: Counter = "leasemux_refilled_lines_total",
            "As for `leasemux_refilled_bytes_total`.";

        /// Log bytes read from logs by refills
        refilled_bytes: Counter = "leasemux_refilled_bytes_total" (Bytes),
            "It exceeds `leasemux_bytes_in_total`: slow followers read the logs more often than the live tails \
             do.";

        /// Time from reading a line to handing it to HTTP/2, in seconds, of the oldest line in each portion
        delivery_delay: Histogram = "leasemux_delivery_delay_seconds" (Seconds) in DELAY_BUCKETS_SECONDS,
            "The median exceeds 50 ms while few followers lag: the gateway lacks CPU.";

        /// Streams reset because their peer took nothing for too long
        stalled_streams: Counter = "leasemux_stalled_streams_total",
            "It grows by several per minute: clients open streams and do not read them.";
    }

    group "Actors and sources", "Each followed replica has one actor, with one live tail at the platform." {
        /// Replica actors that run now
        actors: Gauge = "leasemux_actors",
            "It exceeds `leasemux_followers` for long: actors outlive their last follower by 10 s only \
             (`--actor-idle`).";

        /// Replica actors started
        actor_starts: Counter = "leasemux_actor_starts_total",
            "Its rate is high while `leasemux_followers` is steady: followers come and go faster than \
             `--actor-idle`.";

        /// Replica actors ended, by reason: no follower for a while (idle), replica gone, gateway stopped, or
        /// a fault of the gateway (aborted)
        actor_ends: Family<Counter, ActorEnd> = "leasemux_actor_ends_total",
            "Any `aborted` is a bug of the gateway; the log has details.";

        /// Bytes held in the rings of all actors
        ring_bytes: Gauge = "leasemux_ring_bytes" (Bytes),
            "It approaches the gateway's memory limit. It is at most `leasemux_actors` times the size of a \
             ring.";

        /// Memory for rings, send buffers and reads of older lines together (`--memory-budget`)
        memory_budget: Gauge = "leasemux_memory_budget_bytes" (Bytes),
            "Never on its own.";

        /// Part of the memory budget that is held or reserved, measured at each scrape
        memory_used: Gauge = "leasemux_memory_used_bytes" (Bytes),
            "It stays close to `leasemux_memory_budget_bytes`: rings are shrunk, and at worst calls are \
             rejected (quota `memory`). Raise `--memory-budget`, or add a gateway.";

        /// Bytes of rings that were evicted early because the memory budget was used up
        ring_shrunk_bytes: Counter = "leasemux_ring_shrunk_bytes_total" (Bytes),
            "It grows: followers that lag lose lines sooner than the size of a ring allows. See \
             `leasemux_memory_used_bytes`.";

        /// Logs opened at the platform: live tails (one per run that an actor reads, and again after a
        /// failure), history reads for followers that request older lines, and refills of followers that
        /// lagged
        source_opens: Family<Counter, ReadKind> = "leasemux_source_opens_total",
            "`live` grows much faster than `leasemux_actor_starts_total`: services crash in a loop, or the \
             platform closes tails.";

        /// Errors of the platform while it lists replicas, or opens or reads their logs, by kind and platform
        source_errors: Family<Counter, (SourceError, PlatformName)> = "leasemux_source_errors_total",
            "`unavailable` or `io` for minutes: the platform does not answer, and followers wait. \
             `not_found` is common where services end. `broken`: the platform sent invalid data; report \
             it.";

        /// Restarts of single replicas that tenants requested, by result
        restarts: Family<Counter, RestartResult> = "leasemux_restarts_total",
            "`failure` is most often caused by the tenant's own service; for many owners at once, by the \
             platform.";

        /// Failures of watches on the cluster, by resource; each watch is retried, with back-off
        watch_failures: Family<Counter, Watched> = "leasemux_watch_failures_total",
            "Single failures come from restarts of the API server. If it grows for minutes, statuses and \
             logs use outdated information; the log has the reason.";

        /// Complete lists read for watches on the cluster, by resource: the first one, and one each time that
        /// a watch cannot resume
        watch_lists: Family<Counter, Watched> = "leasemux_watch_lists_total",
            "It grows steadily: watches break, and each list loads the API server.";

        /// 1 if a watch on the cluster has failed for more than 10 s, so that statuses may be outdated;
        /// otherwise 0
        views_stale: Gauge = "leasemux_views_stale",
            "It is 1 for minutes: the API server is unreachable. Statuses have `stale_since` then, and \
             `/ready` still succeeds unless a provider behind the gateway is also unreachable. On the `node` platform, open logs are not affected.";
    }

    group "Calls and connections",
        "Calls of tenants, and their results. Health and reflection do not count as calls." {
        /// Completed calls, by method and gRPC code; a stream counts when it ends, as CANCELLED if the caller
        /// leaves or is reset
        requests: Family<Counter, (Method, Code)> = "leasemux_requests_total",
            "Any `INTERNAL` is in the log, under the id that the caller received. `UNAVAILABLE` outside of \
             shutdowns: the platform or the trust source fails. `UNAUTHENTICATED`: see \
             `leasemux_auth_refusals_total`.";

        /// Calls with a valid request of the published proto, by method; they count in all other metrics too,
        /// as the method of the draft with the same purpose
        published_calls: Family<Counter, PublishedMethod> = "leasemux_published_calls_total",
            "It is zero although clients of the published proto are in use: their calls are rejected, or they \
             call `--listen` where `--published-listen` is meant.";

        /// Time from the headers of a call to the first message of the response, or to the status if there is
        /// none, in seconds
        first_answer: Family<Histogram, Method> =
            "leasemux_first_answer_seconds" (Seconds) in ANSWER_BUCKETS_SECONDS,
            "The 99th percentile of `ServiceLogs` or `ServiceStatus` exceeds 2.5 s: the platform or the \
             trust source is slow, or history reads wait for a permit. `ServiceRestart` takes as long as its \
             caller chooses to wait.";

        /// Time from the headers of a call to its end, in seconds; for streams, how long they were open
        call_duration: Family<Histogram, Method> =
            "leasemux_call_duration_seconds" (Seconds) in CALL_BUCKETS_SECONDS,
            "Streams of `ServiceLogs` become short: a device between tenants and the gateway closes them. A \
             round number indicates the timeout of a proxy.";

        /// Calls in progress, by method; most are streams of followers
        streams: Family<Gauge, Method> = "leasemux_streams",
            "It approaches `--max-streams`.";

        /// Calls rejected and streams ended by authentication or authorization, by reason
        auth_refusals: Family<Counter, Refusal> = "leasemux_auth_refusals_total",
            "`TRUST_UNAVAILABLE`: unknown callers are rejected until the trust source answers. Many \
             `LEASE_NOT_YOURS` or `CERTIFICATE_UNKNOWN`: someone is probing. Many `CERTIFICATE_EXPIRED` at \
             once: check the gateway's clock.";

        /// Calls rejected because a quota is used up, by quota
        quota_rejections: Family<Counter, Quota> = "leasemux_quota_refusals_total",
            "`streams`: the gateway is full for all tenants; raise the limit or add a gateway. Most others \
             concern single tenants.";

        /// Open connections whose TLS handshake is complete
        connections: Gauge = "leasemux_connections",
            "It approaches `--max-connections`: further connections will be rejected.";

        /// Connections accepted, counted before their TLS handshake
        connections_accepted: Counter = "leasemux_connections_accepted_total",
            "Its rate is many times that of `leasemux_requests_total`: a probe that does not use gRPC, or a \
             flood.";

        /// Connections rejected before they could make a call, by reason
        connections_rejected: Family<Counter, ConnectionRejection> = "leasemux_connections_refused_total",
            "`limit`: as for `leasemux_connections`. `peer_limit` or `auth_failures` from a proxy: trust \
             the proxy (`--trusted-proxy`). `proxy`: the proxy does not send PROXY protocol version 2.";

        /// Connections closed, by reason
        connections_closed: Family<Counter, ConnectionEnd> = "leasemux_connections_closed_total",
            "Most are `error`: a proxy does not support HTTP/2, or the network is unreliable. `flood`: a \
             peer floods the gateway with control frames; the log names one such peer per 10 s, and each \
             flood counts as a failed authentication of its address. `cut` at a shutdown: `--drain-timeout` \
             is too short for followers.";

        /// TLS handshakes, by result
        handshakes: Family<Counter, Handshake> = "leasemux_tls_handshakes_total",
            "More than a tenth are `failed`: clients do not trust the gateway's certificate, or someone \
             scans ports. `timeout`: peers connect and send nothing, or the gateway lacks CPU.";

        /// Duration of successful TLS handshakes, in seconds, including round trips to the peer
        handshake_time: Histogram = "leasemux_tls_handshake_seconds" (Seconds) in HANDSHAKE_BUCKETS_SECONDS,
            "The median is far above the round-trip time: the gateway lacks CPU.";

        /// Expiry time of the server certificate, in Unix seconds
        certificate_end: Gauge = "leasemux_certificate_expiry_timestamp_seconds" (Seconds),
            "It is less than two weeks ahead: renewal does not work. Clients reject an expired certificate.";

        /// Expiry time of the certificate for the public host names (`--ca-tls-cert`), in Unix seconds; 0
        /// without one
        ca_certificate_end: Gauge = "leasemux_ca_certificate_expiry_timestamp_seconds" (Seconds),
            "It is less than two weeks ahead: renewal does not work. Clients with tokens reject an expired \
             certificate.";
    }

    group "The REST port", "Requests and websockets of `--rest-listen`. Without it all of them stay 0." {
        /// Answered requests, by the template of their route and the class of their status; a websocket
        /// counts as 1xx
        rest_requests: Family<Counter, (RouteTemplate, HttpClass)> = "leasemux_rest_requests_total",
            "`5xx`: the platform or the trust source fails, or the provider behind the gateway. Many `4xx` of \
             `other`: clients use routes that are not served.";

        /// Selections of services in log and event requests, by the parameter's spelling
        rest_filters: Family<Counter, FilterSpelling> = "leasemux_rest_filter_total",
            "Shows which clients are in use: the command line sends `services`, Console `service`.";

        /// Open websockets, by the kind of their stream
        websocket_streams: Family<Gauge, StreamKind> = "leasemux_ws_streams",
            "It approaches `--max-streams`, which websockets share with gRPC.";

        /// Ended websockets, by kind and cause
        websocket_streams_ended: Family<Counter, (StreamKind, WebsocketEnd)> =
            "leasemux_ws_streams_ended_total",
            "`silent` and `stalled`: clients or proxies hang. `error`: the log names the failed requests.";

        /// Leases whose events are followed now, by the origin of the events; followers of one lease share
        /// them
        event_feeds: Family<Gauge, EventOrigin> = "leasemux_event_feeds",
            "`synthetic` in a cluster, although `--rest-events` is `native`: see \
             `leasemux_event_watch_failures_total`.";

        /// Failed attempts to watch the events of a lease in a cluster, by reason; its followers get events
        /// that the gateway derives from the states of replicas
        event_watch_failures: Family<Counter, EventWatchFailure> = "leasemux_event_watch_failures_total",
            "`denied`: grant `list` and `watch` of events, or set `--rest-events synthetic`. `limit`: over 256 \
             leases are followed at once. `error`: see `leasemux_watch_failures_total`.";

        /// Events that were not sent because the follower fell behind
        events_skipped: Counter = "leasemux_events_skipped_total",
            "It grows: clients read their events too slowly.";

        /// Duration from a forwarded request to the head of the provider's response, in seconds, by the
        /// template of the route (`--upstream-provider`)
        rest_upstream_time: Family<Histogram, RouteTemplate> =
            "leasemux_rest_upstream_seconds" (Seconds) in UPSTREAM_BUCKETS_SECONDS,
            "It is high for all routes: the provider is slow. Manifests take long by themselves.";

        /// Forwarded requests and spliced connections without a response of the provider, by reason
        rest_upstream_failures: Family<Counter, UpstreamFailure> = "leasemux_rest_upstream_failures_total",
            "`connect`: the provider is down. `certificate`: check `--upstream-name` and `--upstream-ca`. \
             `busy`: see `leasemux_passthrough_connections`.";

        /// Open connections that are passed through to the provider: spliced TLS connections (mTLS, also of
        /// `--published-listen`) and tunnelled websockets (shells)
        passthrough_connections: Gauge = "leasemux_passthrough_connections",
            "It approaches 1,024, the limit: further ones are closed.";
    }

    group "Forwarded calls", "gRPC calls that are forwarded (`--upstream-grpc`). Without it all of them stay 0." {
        /// Completed calls that are forwarded or refused instead, by method and gRPC code; they are not in
        /// `leasemux_requests_total`
        forwarded_calls: Family<Counter, (ForwardedMethod, Code)> = "leasemux_forwarded_calls_total",
            "`UNIMPLEMENTED`: clients call methods that the provider does not have. `UNAVAILABLE`: see \
             `leasemux_grpc_upstream_failures_total`.";

        /// Duration from a forwarded call to the headers of the provider's response, in seconds, by method
        grpc_upstream_time: Family<Histogram, ForwardedMethod> =
            "leasemux_grpc_upstream_seconds" (Seconds) in UPSTREAM_BUCKETS_SECONDS,
            "It is high for all methods: the provider is slow. Manifests take long by themselves.";

        /// Forwarded calls and spliced connections of `--published-listen` that the provider did not answer
        /// or complete, by reason
        grpc_upstream_failures: Family<Counter, UpstreamFailure> = "leasemux_grpc_upstream_failures_total",
            "`connect`: the provider is down, or `--upstream-grpc` is another port. `certificate`: check \
             `--upstream-name` and `--upstream-ca`. `busy`: one address, or all, have too many calls in progress.";
    }

    group "The fleet", "One live tail per replica in a fleet of gateways. Without a fleet all of them stay 0." {
        /// Whether the bus between the gateways can be used: 1, or 0 while each gateway tails for itself
        fleet_bus_usable: Gauge = "leasemux_fleet_bus_usable",
            "It is 0 for a minute: the bus is down, or this gateway is cut off from it.";

        /// Gateways of the fleet that this one hears, itself and source gateways included
        fleet_gateways: Gauge = "leasemux_fleet_gateways",
            "Gateways differ for a minute: the bus is split.";

        /// Followed replicas, by the way in which this gateway gets their lines
        fleet_replicas: Family<Gauge, FleetRole> = "leasemux_fleet_replicas",
            "`direct` for minutes while the bus can be used: frames do not reach this gateway. `waiting`: \
             followers get no lines until the bus is back.";

        /// Gateways that follow the replicas that this one publishes
        fleet_members: Gauge = "leasemux_fleet_members",
            "Never on its own.";

        /// Messages with frames, or with the place of the newest one, by direction; `in` also counts frames that
        /// were fetched
        fleet_frames: Family<Counter, FleetDirection> = "leasemux_fleet_frames_total",
            "`in` stops while `leasemux_fleet_replicas{role=\"member\"}` is above 0 and services print.";

        /// Bytes of these messages, without frames that were fetched
        fleet_bytes: Family<Counter, FleetDirection> = "leasemux_fleet_bytes_total" (Bytes),
            "It approaches what the network or the bus can carry.";

        /// Fetches of missing frames, each after a loss on the bus or a change of the publisher, by what
        /// showed that they are missing
        fleet_missed: Family<Counter, FleetNoticed> = "leasemux_fleet_missed_total",
            "More than one per 1,000 frames: the bus loses frames, or this gateway is too slow. Many \
             `renewal`: frames do not reach this gateway, and answers do.";

        /// Frames that were received again
        fleet_duplicates: Counter = "leasemux_fleet_duplicates_total",
            "It keeps growing: frames arrive after they were fetched, so the bus is slow; or it repeats \
             messages.";

        /// Reads of a member beside the frames that it gets: answers from the publisher's ring, and tails of the
        /// log that it opened
        fleet_repairs: Family<Counter, FleetRepair> = "leasemux_fleet_repairs_total",
            "`source` grows steadily: rings are too small for the loss on the bus.";

        /// Times that this gateway became the publisher of a replica, by cause
        fleet_elections: Family<Counter, FleetElection> = "leasemux_fleet_elections_total",
            "`dead` grows although no gateway was killed: gateways halt, or are cut off. `start` grows much \
             faster than followers come and go: publishers are not found.";

        /// Time from the last frame of one publisher to the first one of the next, as each gateway that
        /// follows the replica sees it; up to 30 s, because a log without lines makes it longer
        fleet_takeover: Histogram =
            "leasemux_fleet_takeover_seconds" (Seconds) in TAKEOVER_BUCKETS_SECONDS,
            "Most of it is above 2 s although services print steadily: gateways notice late that a publisher \
             is gone.";

        /// Times that this gateway gave a replica that it published to a better publisher, such as the source
        /// gateway of its node
        fleet_conflicts: Counter = "leasemux_fleet_conflicts_total",
            "It keeps growing although no source gateway was started: the bus loses claims, or splits again and \
             again.";

        /// Messages that were not used, by reason
        fleet_rejected: Family<Counter, FleetRejection> = "leasemux_fleet_rejected_total",
            "Any `decode`: gateways have versions that do not fit, or something else sends on the bus. \
             `stale` keeps growing: the bus repeats messages, or an old publisher does not hear the new one.";

        /// Messages that were not sent, because the bus was away or too many waited
        fleet_unsent: Counter = "leasemux_fleet_unsent_total",
            "It grows while the bus can be used: the connection to the bus is too slow.";

        /// Received messages that were dropped, because too many waited
        fleet_overflowed: Counter = "leasemux_fleet_overflowed_total",
            "It keeps growing: this gateway is too slow. The lines are fetched again.";

        /// Times that a subscription of this gateway began to drop messages, because too many waited
        fleet_slow: Counter = "leasemux_fleet_slow_total",
            "It keeps growing: this gateway does not take the frames of its busiest replicas in time.";
    }

    group "The chain", "Queries to an Akash node (`--chain-grpc`). Without a node all of them stay 0." {
        /// Queries to the Akash node that ended, by kind and result
        chain_queries: Family<Counter, (ChainQuery, ChainResult)> = "leasemux_chain_queries_total",
            "`failed` for minutes: the node does not answer, and unknown callers are rejected; the log has \
             the reason. Many `unknown`: someone is probing.";

        /// Duration of queries to the Akash node, in seconds
        chain_query_time: Histogram = "leasemux_chain_query_seconds" (Seconds) in HANDSHAKE_BUCKETS_SECONDS,
            "The 99th percentile exceeds 1 s: callers that connect for the first time wait for so long. \
             Queries time out after 5 s.";

        /// Answers about a caller from the chain, by origin: cached, cached while the node is unreachable
        /// (grace), from a query, or none because too many queries are in progress (busy)
        chain_answers: Family<Counter, ChainAnswerOrigin> = "leasemux_chain_answers_total",
            "Any `grace`: the node is unreachable. `busy`: see the quota `chain_queries`.";

        /// Certificates and keys in use although the Akash node did not answer when it was last asked to
        /// confirm them
        chain_on_grace: Gauge = "leasemux_chain_on_grace",
            "It is above 0 for minutes: the node is unreachable. They are rejected after the grace period \
             (`--chain-grace`).";
    }

    group "Traces", "Spans of calls (`--otlp-endpoint`). Without a collector all of them stay 0." {
        /// Spans that the collector accepted
        spans_exported: Counter = "leasemux_spans_exported_total",
            "It stops growing while `leasemux_requests_total` grows: see `leasemux_spans_dropped_total`.";

        /// Spans that were not exported, by reason: too many waited (`queue_full`), or the collector did not
        /// accept them (`export_failed`)
        spans_dropped: Family<Counter, SpanLoss> = "leasemux_spans_dropped_total",
            "`export_failed`: the log has the reason, at most once a minute. `queue_full`: the collector is slow, \
             or there are more calls than it needs to see; sample them (`OTEL_TRACES_SAMPLER`).";
    }

    group "The process", "With the names that Prometheus' own client libraries use." {
        /// Version, commit (if the build knows it) and compiler of the gateway
        build_info: BuildInfo = "leasemux_build_info" (Info),
            "Gateways that should be equal differ.";

        /// Total user and system CPU time spent in seconds
        process_cpu: RenderedCounter = "process_cpu_seconds_total" (Seconds),
            "Its rate approaches the number of processors.";

        /// Resident memory size in bytes
        process_resident: Gauge = "process_resident_memory_bytes" (Bytes),
            "It grows for hours while `leasemux_ring_bytes` and `leasemux_streams` do not.";

        /// Virtual memory size in bytes
        process_virtual: Gauge = "process_virtual_memory_bytes" (Bytes),
            "Never on its own.";

        /// Number of open file descriptors
        process_open_files: Gauge = "process_open_fds",
            "It approaches `process_max_fds`: the gateway can no longer accept connections or open logs.";

        /// Maximum number of open file descriptors
        process_max_files: Gauge = "process_max_fds",
            "It is below the need of the configured limits; the log reports that at startup.";

        /// Number of threads in the process
        process_threads: Gauge = "process_threads",
            "It grows without end: file reads hang.";

        /// Tasks of the gateway's runtimes, measured at each scrape
        tasks: Gauge = "leasemux_tasks",
            "It grows for hours while `leasemux_connections` and `leasemux_streams` do not.";

        /// Start time of the process since unix epoch in seconds
        process_start: Gauge = "process_start_time_seconds" (Seconds),
            "It changes without a planned restart.";
    }
}
