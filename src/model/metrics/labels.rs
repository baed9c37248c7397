//! The labels, and the values that each can have.

use super::declare::{LabelSet, LabelValue, label};

label! {
    /// Whether lines were read for all followers of a replica, or for one who asked for older ones.
    pub enum ReadKind as "read" {
        /// The one live tail of a replica.
        Live = "live",
        /// One follower's own read.
        History = "history",
    }
}

label! {
    /// A method of the lease service.
    pub enum Method as "method" {
        /// Logs.
        Logs = "ServiceLogs",
        /// What runs.
        Status = "ServiceStatus",
        /// Ending runs so that the next ones begin.
        Restart = "ServiceRestart",
    }
}

label! {
    /// What a call came to, in the words of gRPC and in the order of its numbers.
    pub enum Code as "code" {
        /// 0: it was answered in full.
        Ok = "OK",
        /// 1: the caller went, or was reset, before the answer was complete.
        Cancelled = "CANCELLED",
        /// 2.
        Unknown = "UNKNOWN",
        /// 3.
        InvalidArgument = "INVALID_ARGUMENT",
        /// 4.
        DeadlineExceeded = "DEADLINE_EXCEEDED",
        /// 5.
        NotFound = "NOT_FOUND",
        /// 6.
        AlreadyExists = "ALREADY_EXISTS",
        /// 7.
        PermissionDenied = "PERMISSION_DENIED",
        /// 8.
        ResourceExhausted = "RESOURCE_EXHAUSTED",
        /// 9.
        FailedPrecondition = "FAILED_PRECONDITION",
        /// 10.
        Aborted = "ABORTED",
        /// 11.
        OutOfRange = "OUT_OF_RANGE",
        /// 12.
        Unimplemented = "UNIMPLEMENTED",
        /// 13.
        Internal = "INTERNAL",
        /// 14.
        Unavailable = "UNAVAILABLE",
        /// 15.
        DataLoss = "DATA_LOSS",
        /// 16.
        Unauthenticated = "UNAUTHENTICATED",
    }
}

label! {
    /// Why an actor ended.
    pub enum ActorEnd as "reason" {
        /// Nobody followed it for a while.
        Idle = "idle",
        /// Its replica is no longer part of the lease, and its log was read to the end.
        Gone = "gone",
        /// The gateway is ending.
        Stopped = "stopped",
        /// It was dropped in the middle of something: a fault of the gateway.
        Aborted = "aborted",
    }
}

label! {
    /// What went wrong at the platform.
    pub enum SourceError as "kind" {
        /// What was asked for is not there.
        NotFound = "not_found",
        /// It has changed meanwhile.
        Conflict = "conflict",
        /// It did not work this time.
        Unavailable = "unavailable",
        /// What was read makes no sense.
        Broken = "broken",
        /// The operating system refused.
        Io = "io",
    }
}

label! {
    /// Where services run.
    pub enum PlatformName as "platform" {
        /// As processes of this machine.
        Local = "local",
        /// In a Kubernetes cluster.
        Kube = "kube",
        /// In a Kubernetes cluster, with the logs of this node read from its files.
        Node = "node",
        /// None of these: in tests, or a platform of another program.
        Other = "other",
    }
}

label! {
    /// A kind of objects that is watched in a cluster.
    pub enum Watched as "resource" {
        /// Those of leases.
        Namespaces = "namespaces",
        /// Replicas.
        Pods = "pods",
        /// Services without a disk of their own.
        Deployments = "deployments",
        /// Services with one.
        StatefulSets = "statefulsets",
        /// Ports and addresses.
        Services = "services",
        /// Host names, of the provider's own kind.
        Hosts = "providerhosts",
        /// Leased addresses, of the provider's own kind.
        LeasedIps = "providerleasedips",
    }
}

label! {
    /// What came of the restart of one replica.
    pub enum Restarted as "result" {
        /// A new instance runs, and has stayed up.
        Active = "active",
        /// It could not be ended, or the new one did not stay up.
        Failure = "failure",
        /// It was not begun, since one before it failed or the gateway ended.
        NotAttempted = "not_attempted",
        /// It was begun, and the gateway ended before it could be said what came of it.
        Abandoned = "abandoned",
    }
}

label! {
    /// Why a connection was turned away before it could make a call.
    pub enum ConnectionRefusal as "reason" {
        /// There are as many connections as there may be.
        Limit = "limit",
        /// There are as many from its address as there may be.
        PeerLimit = "peer_limit",
        /// Too many authentications from its address have failed lately.
        AuthFailures = "auth_failures",
        /// A proxy that is trusted to say for whom it speaks did not say so in time, or not in a form that is understood.
        Proxy = "proxy",
    }
}

label! {
    /// Why a connection that was taken ended.
    pub enum ConnectionEnd as "reason" {
        /// Its peer ended it.
        Peer = "peer",
        /// It broke off.
        Error = "error",
        /// Its peer sent too many HTTP/2 control frames.
        Flood = "flood",
        /// Its peer broke HTTP/2 or TLS, or flooded it with frames. Counts as a failure of the peer.
        PeerFault = "peer_fault",
        /// Its peer was shut out, and it had not authenticated.
        ShutOut = "shut_out",
        /// Its TLS handshake did not succeed.
        Handshake = "handshake",
        /// Its peer made no call in time, or had none open for long.
        Idle = "idle",
        /// The gateway was ending, and it did so in order.
        Drain = "drain",
        /// The gateway was ending, and it was cut off.
        Cut = "cut",
    }
}

label! {
    /// What came of a TLS handshake.
    pub enum Handshake as "result" {
        /// It is complete.
        Ok = "ok",
        /// The peer does not speak TLS 1.3, does not trust the gateway, does not hold its key, or went away.
        Failed = "failed",
        /// It took too long.
        Timeout = "timeout",
        /// The gateway was ending.
        Drain = "drain",
    }
}

label! {
    /// What a node is asked about.
    pub enum ChainQuery as "kind" {
        /// A certificate, by owner and serial number.
        Certificate = "certificate",
        /// The key of an account.
        Account = "account",
    }
}

label! {
    /// What came of asking a node.
    pub enum ChainResult as "result" {
        /// It is on the chain.
        Found = "found",
        /// It is not.
        Unknown = "unknown",
        /// It must not be believed: revoked, of several keys, and the like.
        Refused = "refused",
        /// There was no answer in time, or none that makes sense.
        Failed = "failed",
    }
}

label! {
    /// Where an answer about a caller came from.
    pub enum ChainAnswer as "from" {
        /// The node said so not long ago.
        Cache = "cache",
        /// The node said so once, and is silent now.
        Grace = "grace",
        /// A question to the node was waited for, whatever came of it.
        Query = "query",
        /// There were too many questions to ask another.
        Busy = "busy",
    }
}

/// The reasons for which callers are turned away: those of `access::refusal`, which this room may not know. A test holds them
/// together.
pub const REFUSAL_REASONS: LabelSet = LabelSet {
    name: "reason",
    values: &[
        "CREDENTIALS_MISSING",
        "CREDENTIALS_AMBIGUOUS",
        "CERTIFICATE_CHAIN",
        "CERTIFICATE_MALFORMED",
        "CERTIFICATE_SUBJECT",
        "CERTIFICATE_ISSUER",
        "CERTIFICATE_SERIAL",
        "CERTIFICATE_KEY",
        "CERTIFICATE_ALGORITHM",
        "CERTIFICATE_SIGNATURE",
        "CERTIFICATE_USAGE",
        "CERTIFICATE_EXTENSION",
        "CERTIFICATE_NOT_YET_VALID",
        "CERTIFICATE_EXPIRED",
        "CERTIFICATE_UNKNOWN",
        "CERTIFICATE_DIFFERS",
        "CERTIFICATE_WITHDRAWN",
        "CERTIFICATE_REVOKED",
        "CERTIFICATE_KEY_DIFFERS",
        "AUTHORIZATION_MALFORMED",
        "TOKEN_TOO_LONG",
        "TOKEN_MALFORMED",
        "TOKEN_HEADER",
        "TOKEN_ALGORITHM",
        "TOKEN_SIGNATURE_FORM",
        "TOKEN_SIGNATURE_HIGH_S",
        "TOKEN_CLAIMS_MALFORMED",
        "TOKEN_MEMBER_TWICE",
        "TOKEN_MEMBER_UNKNOWN",
        "TOKEN_MEMBER_MISSING",
        "TOKEN_MEMBER_MISPLACED",
        "TOKEN_MEMBER_TYPE",
        "TOKEN_ISSUER",
        "TOKEN_VERSION",
        "TOKEN_ID",
        "TOKEN_TIME",
        "TOKEN_ACCESS",
        "TOKEN_SCOPE_EMPTY",
        "TOKEN_SCOPE_UNKNOWN",
        "TOKEN_SCOPE_TWICE",
        "TOKEN_PERMISSIONS_EMPTY",
        "TOKEN_PROVIDER",
        "TOKEN_PROVIDER_TWICE",
        "TOKEN_DEPLOYMENTS_EMPTY",
        "TOKEN_DSEQ",
        "TOKEN_SEQUENCE",
        "TOKEN_OSEQ",
        "TOKEN_SERVICES_EMPTY",
        "TOKEN_SERVICE_TWICE",
        "TOKEN_NOT_YET_VALID",
        "TOKEN_EXPIRED",
        "TOKEN_LIFETIME",
        "ACCOUNT_UNKNOWN",
        "ACCOUNT_KEYLESS",
        "ACCOUNT_MULTISIG",
        "ACCOUNT_KEY_KIND",
        "TOKEN_SIGNATURE",
        "ACCOUNT_WITHDRAWN",
        "TRUST_UNAVAILABLE",
        "TRUST_BUSY",
        "LEASE_NOT_YOURS",
        "PROVIDER_NOT_SERVED",
        "LEASE_NOT_GRANTED",
        "SCOPE_NOT_GRANTED",
        "SERVICE_NOT_GRANTED",
    ],
};

/// What is running: fixed by the build.
pub const BUILD: [LabelSet; 3] = [
    LabelSet { name: "version", values: &[] },
    LabelSet { name: "revision", values: &[] },
    LabelSet { name: "rustc", values: &[] },
];

// === impl Code ===

impl Code {
    /// The code with this number; one that gRPC does not have counts as unknown, as gRPC says.
    pub fn of_number(number: i32) -> Self {
        let index = usize::try_from(number).unwrap_or(Self::Unknown as usize);
        Self::ALL.get(index).copied().unwrap_or(Self::Unknown)
    }
}

// === impl PlatformName ===

impl PlatformName {
    /// The platform that calls itself so.
    pub fn of(name: &str) -> Self {
        let named = Self::ALL.iter().zip(Self::SET.values).find(|(_, value)| **value == name);
        named.map_or(Self::Other, |(platform, _)| *platform)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_the_numbers_and_names_of_grpc() {
        for (number, name) in (0..17).zip(Code::SET.values) {
            let spelled = format!("{:?}", tonic::Code::from(number)).to_uppercase();
            assert_eq!(spelled, name.replace('_', ""));
            assert_eq!(Code::of_number(number).index(), usize::try_from(number).unwrap());
        }
        assert_eq!(Code::ALL.len(), 17);
        assert_eq!([Code::of_number(-1), Code::of_number(17)], [Code::Unknown; 2]);
    }

    #[test]
    fn platforms_are_known_by_their_names() {
        assert_eq!(PlatformName::of("kube"), PlatformName::Kube);
        assert_eq!(PlatformName::of("made up"), PlatformName::Other);
    }
}
