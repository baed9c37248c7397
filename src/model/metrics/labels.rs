//! The labels of metrics and their values.

use crate::model::label::{LabelSet, LabelValue as _, label};

label! {
    /// Why a log is opened.
    pub(crate) enum ReadKind as "read" {
        /// The live tail of an actor.
        Live = "live",
        /// A follower's own backfill.
        History = "history",
        /// The refill of a follower that lagged.
        Refill = "refill",
    }
}

label! {
    /// Why a canary's lines were lost, as the gateway reported it.
    pub(crate) enum CanaryLossCause as "cause" {
        Lag = "lag",
        Rotated = "rotated",
        Source = "source",
        Limit = "limit",
        /// None, or one that this version does not know.
        Other = "other",
    }
}

label! {
    /// Why a canary's stream ended or was not opened.
    pub(crate) enum CanaryDisconnect as "reason" {
        /// The gateway cannot be reached, shuts down, or the connection was lost.
        Unavailable = "unavailable",
        /// Not authenticated, not permitted, not trusted, or over a quota.
        Rejected = "rejected",
        /// The gateway has no such lease or service.
        NotFound = "not_found",
        /// The canary was too slow (`--on-lag close`).
        Lagged = "lagged",
        Other = "other",
    }
}

label! {
    /// A line that a canary does not count.
    pub(crate) enum UnknownLine as "kind" {
        /// It begins as a line of the counter, and the rest cannot be read.
        Malformed = "malformed",
        /// Other output of the service.
        Foreign = "foreign",
    }
}

label! {
    /// Whether the number of lost lines is exact, or a lower bound.
    pub(crate) enum Exactness as "exact" {
        Exact = "true",
        AtLeast = "false",
    }
}

label! {
    /// How a refill began.
    pub(crate) enum RefillStart as "lag" {
        /// The follower lagged.
        First = "first",
        /// It lagged soon after a refill.
        Again = "again",
    }
}

label! {
    /// A method of the lease service.
    pub(crate) enum Method as "method" {
        Logs = "ServiceLogs",
        Status = "ServiceStatus",
        Restart = "ServiceRestart",
    }
}

label! {
    /// A method of the published proto that the gateway serves.
    pub(crate) enum PublishedMethod as "method" {
        Logs = "ServiceLogs",
        StreamLogs = "StreamServiceLogs",
        Status = "ServiceStatus",
        StreamStatus = "StreamServiceStatus",
    }
}

impl PublishedMethod {
    /// Returns the method of the draft with the same purpose.
    pub(crate) fn draft(self) -> Method {
        match self {
            Self::Logs | Self::StreamLogs => Method::Logs,
            Self::Status | Self::StreamStatus => Method::Status,
        }
    }
}

label! {
    /// The result of a call: the codes of gRPC, in the order of their numbers.
    pub(crate) enum Code as "code" {
        Ok = "OK",
        Cancelled = "CANCELLED",
        Unknown = "UNKNOWN",
        InvalidArgument = "INVALID_ARGUMENT",
        DeadlineExceeded = "DEADLINE_EXCEEDED",
        NotFound = "NOT_FOUND",
        AlreadyExists = "ALREADY_EXISTS",
        PermissionDenied = "PERMISSION_DENIED",
        ResourceExhausted = "RESOURCE_EXHAUSTED",
        FailedPrecondition = "FAILED_PRECONDITION",
        Aborted = "ABORTED",
        OutOfRange = "OUT_OF_RANGE",
        Unimplemented = "UNIMPLEMENTED",
        Internal = "INTERNAL",
        Unavailable = "UNAVAILABLE",
        DataLoss = "DATA_LOSS",
        Unauthenticated = "UNAUTHENTICATED",
    }
}

label! {
    /// Why an actor ended.
    pub(crate) enum ActorEnd as "reason" {
        /// It had no follower for a while.
        Idle = "idle",
        /// Its replica is no longer part of the lease, and its log was read to the end.
        Gone = "gone",
        /// The gateway is shutting down.
        Stopped = "stopped",
        /// It was dropped while it worked: a bug of the gateway.
        Aborted = "aborted",
    }
}

label! {
    /// The kind of an error of the platform.
    pub enum SourceError as "kind" {
        /// The requested item does not exist.
        NotFound = "not_found",
        /// It has changed since it was read.
        Conflict = "conflict",
        /// A temporary failure: a retry may succeed.
        Unavailable = "unavailable",
        /// The platform sent invalid data.
        Broken = "broken",
        /// Another gateway runs the services.
        ReadOnly = "read_only",
        /// An error of the operating system.
        Io = "io",
    }
}

label! {
    /// The platform that runs the services.
    pub(crate) enum PlatformName as "platform" {
        /// Processes on this machine.
        Local = "local",
        /// A Kubernetes cluster, whose API server also sends the logs.
        Kube = "kube",
        /// A Kubernetes cluster; this node's logs are read from its files.
        Node = "node",
        /// Another platform, as in tests.
        Other = "other",
    }
}

label! {
    /// A resource that is watched in a cluster.
    pub(crate) enum Watched as "resource" {
        Namespaces = "namespaces",
        Pods = "pods",
        Deployments = "deployments",
        StatefulSets = "statefulsets",
        Services = "services",
        /// Host names: a custom resource of the provider.
        Hosts = "providerhosts",
        /// Leased IP addresses: a custom resource of the provider.
        LeasedIps = "providerleasedips",
    }
}

label! {
    /// The result of the restart of one replica.
    pub(crate) enum RestartResult as "result" {
        /// A new instance runs, and is stable.
        Active = "active",
        /// The old instance could not be stopped, or the new one is not stable.
        Failure = "failure",
        /// The restart did not begin, because an earlier one failed or the gateway shut down.
        NotAttempted = "not_attempted",
        /// The restart began, and the gateway shut down before the result was known.
        Abandoned = "abandoned",
    }
}

label! {
    /// Why a connection was rejected before it could make a call.
    pub(crate) enum ConnectionRejection as "reason" {
        /// The gateway has too many connections.
        Limit = "limit",
        /// The peer has too many connections.
        PeerLimit = "peer_limit",
        /// The peer had too many failed authentications.
        AuthFailures = "auth_failures",
        /// A trusted proxy sent no valid PROXY protocol header in time.
        Proxy = "proxy",
    }
}

label! {
    /// Why an accepted connection ended.
    pub enum ConnectionEnd as "reason" {
        /// The peer closed it.
        Peer = "peer",
        /// Reading from or writing to it failed.
        Error = "error",
        /// The peer sent too many HTTP/2 control frames.
        Flood = "flood",
        /// The peer violated HTTP/2 or TLS, or sent a flood of frames. Counts as a failure of the peer.
        PeerFault = "peer_fault",
        /// The peer was shut out, and this connection had not authenticated.
        ShutOut = "shut_out",
        /// The TLS handshake failed.
        Handshake = "handshake",
        /// The first call did not come in time, or no call was open for too long.
        Idle = "idle",
        /// The gateway shut down and closed it gracefully.
        Drain = "drain",
        /// The gateway shut down and cut it.
        Cut = "cut",
    }
}

label! {
    /// The result of a TLS handshake.
    pub(crate) enum Handshake as "result" {
        Ok = "ok",
        /// The peer does not speak TLS 1.3, does not trust the gateway, does not have its key, or
        /// disconnected.
        Failed = "failed",
        Timeout = "timeout",
        /// The gateway shut down.
        Drain = "drain",
    }
}

label! {
    /// The subject of a query to a node.
    pub(crate) enum ChainQuery as "kind" {
        /// A certificate, by owner and serial number.
        Certificate = "certificate",
        /// The public key of an account.
        Account = "account",
    }
}

label! {
    /// The result of a query to a node.
    pub(crate) enum ChainResult as "result" {
        /// The chain has it.
        Found = "found",
        /// The chain does not have it.
        Unknown = "unknown",
        /// The chain has it, but it must not be trusted: revoked, a multi-signature key, and the like.
        Refused = "refused",
        /// No valid answer came in time.
        Failed = "failed",
    }
}

label! {
    /// The origin of an answer about a caller.
    pub(crate) enum ChainAnswerOrigin as "from" {
        /// A recent answer of the node.
        Cache = "cache",
        /// An older answer, while the node is unreachable.
        Grace = "grace",
        /// A query that the call waited for, whatever its result.
        Query = "query",
        /// None: too many queries are in progress.
        Busy = "busy",
    }
}

/// The labels of the build.
pub(super) const BUILD: [LabelSet; 3] = [
    LabelSet { name: "version", values: &[] },
    LabelSet { name: "revision", values: &[] },
    LabelSet { name: "rustc", values: &[] },
];

/// The values of [`BUILD`].
pub(super) const BUILD_VALUES: [&str; 3] =
    [env!("CARGO_PKG_VERSION"), env!("LEASEMUX_COMMIT"), env!("LEASEMUX_RUSTC")];

impl Code {
    /// Returns the code with this number, or [`Code::Unknown`] for a number that gRPC does not define, as
    /// gRPC requires.
    pub(crate) fn of_number(number: i32) -> Self {
        let index = usize::try_from(number).unwrap_or(Self::Unknown as usize);
        Self::ALL.get(index).copied().unwrap_or(Self::Unknown)
    }
}

impl PlatformName {
    /// Returns the platform with this name.
    pub(crate) fn of(name: &str) -> Self {
        Self::ALL.iter().copied().find(|platform| platform.label() == name).unwrap_or(Self::Other)
    }
}

label! {
    /// The template of a route. The gateway serves some routes itself and forwards the others.
    pub(crate) enum RouteTemplate as "route" {
        Version = "/version",
        Address = "/address",
        Status = "/status",
        LeaseStatus = "/lease/{dseq}/{gseq}/{oseq}/status",
        ServiceStatus = "/lease/{dseq}/{gseq}/{oseq}/service/{service}/status",
        Restart = "/lease/{dseq}/{gseq}/{oseq}/service/{service}/restart",
        Logs = "/lease/{dseq}/{gseq}/{oseq}/logs",
        Events = "/lease/{dseq}/{gseq}/{oseq}/kubeevents",
        GetManifest = "/lease/{dseq}/{gseq}/{oseq}/manifest",
        Shell = "/lease/{dseq}/{gseq}/{oseq}/shell",
        Attestation = "/lease/{dseq}/{gseq}/{oseq}/attestation/quote",
        SendManifest = "/deployment/{dseq}/manifest",
        MigrateHostname = "/hostname/migrate",
        MigrateEndpoint = "/endpoint/migrate",
        PageFile = "/ui/{file}",
        PageLogs = "/ui/lease/{dseq}/{gseq}/{oseq}/logs",
        PageStatus = "/ui/lease/{dseq}/{gseq}/{oseq}/status",
        Other = "other",
    }
}

label! {
    /// A method of the calls that are forwarded to the provider behind the gateway.
    pub(crate) enum ForwardedMethod as "method" {
        SendManifest = "SendManifest",
        AttestationQuote = "AttestationQuote",
        /// Any of the provider's own service.
        ProviderRpc = "ProviderRPC",
        Other = "other",
    }
}

label! {
    /// Why the provider behind the gateway gave no response.
    pub(crate) enum UpstreamFailure as "reason" {
        /// The request is malformed or ambiguous.
        BadRequest = "bad_request",
        /// The request body is too large.
        TooLarge = "too_large",
        /// The request body did not arrive in time.
        SlowRequest = "slow_request",
        /// Too many requests, tunnels or spliced connections are in progress.
        Busy = "busy",
        /// The provider cannot be reached.
        Connect = "connect",
        /// The provider's certificate is not trusted.
        Certificate = "certificate",
        /// The provider closed the connection before it responded, or its response is malformed.
        Broken = "broken",
        /// The provider did not respond in time.
        Timeout = "timeout",
    }
}

label! {
    /// A stream of the REST port.
    pub enum StreamKind as "kind" {
        /// Log lines.
        Logs = "logs",
        /// Events, which have no `tail`.
        Events = "events",
        /// The status of a lease and each change of it.
        Status = "status",
    }
}

label! {
    /// Where the events of a lease come from.
    pub(crate) enum EventOrigin as "origin" {
        /// Kubernetes, with ends of replicas that it does not report.
        Native = "native",
        /// Changes of replicas that the gateway sees.
        Synthetic = "synthetic",
    }
}

label! {
    /// Why a watch of a lease's events failed.
    pub(crate) enum EventWatchFailure as "reason" {
        /// The gateway may not list and watch events.
        Denied = "denied",
        /// Too many leases are watched.
        Limit = "limit",
        /// The API server gave no response, or an error.
        Error = "error",
    }
}

label! {
    /// The spelling of the parameter that selects services. The Akash provider reads `service`; its command
    /// line sends `services`.
    pub enum FilterSpelling as "spelling" {
        /// No parameter.
        None = "none",
        /// `service`.
        Service = "service",
        /// `services`.
        Services = "services",
        /// Both.
        Both = "both",
    }
}

label! {
    /// Why a websocket stream ended.
    pub(crate) enum WebsocketEnd as "end" {
        Complete = "complete",
        /// The client closed the websocket, or its connection broke.
        Client = "client",
        LeaseEnded = "lease_ended",
        Drain = "drain",
        Quota = "quota",
        /// The client accepted no data.
        Stalled = "stalled",
        /// The client sent nothing, not even pongs.
        Silent = "silent",
        /// The request failed, or the client broke the protocol.
        Error = "error",
        Revoked = "revoked",
        Expired = "expired",
    }
}

label! {
    /// Why a span was dropped.
    pub(crate) enum SpanLoss as "reason" {
        /// Too many spans waited to be exported.
        QueueFull = "queue_full",
        /// The collector did not accept them.
        ExportFailed = "export_failed",
    }
}

label! {
    /// The class of an HTTP status.
    pub(crate) enum HttpClass as "code" {
        Informational = "1xx",
        Success = "2xx",
        Redirection = "3xx",
        ClientError = "4xx",
        ServerError = "5xx",
    }
}

impl From<http::StatusCode> for HttpClass {
    fn from(status: http::StatusCode) -> Self {
        match status.as_u16() {
            ..=199 => Self::Informational,
            200..=299 => Self::Success,
            300..=399 => Self::Redirection,
            400..=499 => Self::ClientError,
            500.. => Self::ServerError,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_has_number_and_name_of_grpc() {
        for (number, name) in (0..17).zip(Code::SET.values) {
            let spelled = format!("{:?}", tonic::Code::from(number)).to_uppercase();
            assert_eq!(spelled, name.replace('_', ""));
            assert_eq!(Code::of_number(number).index(), usize::try_from(number).unwrap());
        }
        assert_eq!(Code::ALL.len(), 17);
        assert_eq!([Code::of_number(-1), Code::of_number(17)], [Code::Unknown; 2]);
    }

    #[test]
    fn platform_name_is_found_or_other() {
        assert_eq!(PlatformName::of("kube"), PlatformName::Kube);
        assert_eq!(PlatformName::of("made up"), PlatformName::Other);
    }
}

label! {
    /// How a gateway of a fleet gets the lines of a replica.
    pub(crate) enum FleetRole as "role" {
        /// It tails the log, and publishes it.
        Publisher = "publisher",
        /// It follows a publisher.
        Member = "member",
        /// It tails the log for itself.
        Direct = "direct",
        /// It has no lines at present: the bus is away, and enough other gateways tail the log.
        Waiting = "waiting",
        /// It looks for a publisher, or is about to become one.
        Finding = "finding",
    }
}

label! {
    /// Why a gateway became the publisher of a replica.
    pub(crate) enum FleetElection as "cause" {
        /// No gateway published it.
        Start = "start",
        /// The publisher before no longer answered.
        Dead = "dead",
        /// The publisher before has stopped.
        Released = "released",
        /// The publisher before has stopped for a better one, which was not found.
        Conflict = "conflict",
    }
}

label! {
    /// What showed a member that frames are missing.
    pub(crate) enum FleetNoticed as "noticed" {
        /// A later frame.
        Number = "number",
        /// A message of the publisher after its newest frame.
        Sync = "sync",
        /// The publisher's answer to a request for membership.
        Renewal = "renewal",
    }
}

label! {
    /// Why a message of another gateway was not used.
    pub(crate) enum FleetRejection as "reason" {
        /// It cannot be read.
        Decode = "decode",
        /// It is older than another that was received.
        Stale = "stale",
    }
}

label! {
    /// Which way a frame went.
    pub(crate) enum FleetDirection as "direction" {
        Out = "out",
        In = "in",
    }
}

label! {
    /// Where a member got lines that it had missed.
    pub(crate) enum FleetRepair as "by" {
        /// The publisher's ring.
        Ring = "ring",
        /// Its own read of the log.
        Source = "source",
    }
}
