//! Identifiers: accounts, leases, services, replicas, instances.
//!
//! They are parsed once, where they enter the program, and always valid after that.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

use data_encoding::BASE32HEX_NOPAD;
use sha2::{Digest, Sha224};

/// Human-readable part of Akash account addresses.
const ADDRESS_PREFIX: &str = "akash";

/// Lengths of account addresses in bytes: of a key (20), and of a module or contract (32).
const ADDRESS_BYTES: [usize; 2] = [20, 32];

/// Maximum length of a service name: Akash uses it as a Kubernetes DNS label.
pub(crate) const SERVICE_NAME_MAX_BYTES: usize = 63;

/// Maximum length of a pod's name: that of a DNS subdomain, which Kubernetes requires.
const POD_NAME_MAX_BYTES: usize = 253;

/// A canonical (lower-case) bech32 account address with the prefix `akash`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address(Arc<str>);

/// The address of a tenant: the owner of a lease.
pub type Owner = Address;

/// One agreement between a tenant and a provider: `owner/dseq/gseq/oseq/provider`.
///
/// Always valid: canonical addresses, no zero sequence, owner ≠ provider. It omits the bid sequence of the
/// wire form, which must be zero.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LeaseId {
    owner: Owner,
    dseq: u64,
    gseq: u32,
    oseq: u32,
    provider: Address,
}

/// The name of a service within a lease: `^[a-z]([-a-z0-9]*[a-z0-9])?$`, as in Akash's manifest.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName(Arc<str>);

/// A numbered copy of a service, whose instances run one after the other.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Replica {
    /// The service that it belongs to.
    pub service: ServiceName,
    /// Its index, from 0.
    pub index: u32,
}

/// The identifier of one run of a container: pod uid, container name and restart count
/// (`uid/container/restarts`). May carry the pod's name, which is not part of the identity.
#[derive(Clone)]
pub struct Instance {
    /// The text form, directly followed by the pod's name: one allocation, because instances are cloned for
    /// each entry of a ring.
    text: Arc<str>,
    /// Length of the text form.
    id_bytes: usize,
}

/// A caller's own identifier of a call, by which a gateway recognises repetitions of it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct RequestId(Arc<str>);

/// The error of an invalid identifier. It does not repeat the text, which may contain anything.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdError {
    /// Not bech32, wrong prefix, wrong length, or not lower case.
    #[error("is not an account address (lower-case bech32 starting with akash1)")]
    Address,
    /// A lease id without five parts.
    #[error("is not owner/dseq/gseq/oseq/provider")]
    LeaseForm,
    /// An invalid part of a lease id.
    #[error("{part} {reason}")]
    LeasePart {
        /// `owner`, `dseq`, `gseq`, `oseq`, `bseq` or `provider`.
        part: &'static str,
        /// What is wrong with the part.
        reason: &'static str,
    },
    /// Not a service name.
    #[error(
        "is not a service name (lower-case letters, digits and dashes, beginning with a letter, at most 63)"
    )]
    Service,
    /// Not `uid/container/restarts`, or too long.
    #[error("is not an instance (uid/container/restarts)")]
    Instance,
    /// Not a request id.
    #[error("must be 1 to {} visible ASCII characters", RequestId::MAX_BYTES)]
    RequestId,
}

/// Implements `as_str` and `Display` for identifiers that hold their text.
macro_rules! text_form {
    ($($name:ident),+) => {$(
        impl $name {
            /// Returns the text form.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )+};
}
text_form!(Address, ServiceName, RequestId);

/// Implements `Debug` as `Display`: logs and test failures show identifiers as users write them.
macro_rules! debug_as_display {
    ($($name:ident),+) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    )+};
}
debug_as_display!(Address, LeaseId, ServiceName, Replica, Instance, RequestId);

// === impl Address ===

impl Address {
    /// Returns the address of an account with this 20-byte hash.
    pub fn from_account(bytes: [u8; 20]) -> Self {
        let hrp = bech32::Hrp::parse_unchecked(ADDRESS_PREFIX);
        // The only possible error is bech32's length limit, which is far above a prefix and 20 bytes.
        let text = bech32::encode::<bech32::Bech32>(hrp, &bytes).unwrap_or_default();
        Self(text.into())
    }
}

impl FromStr for Address {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        // Upper case is valid bech32, but it would hash to another namespace: accept the canonical form only.
        if text.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(IdError::Address);
        }
        let checked = bech32::primitives::decode::CheckedHrpstring::new::<bech32::Bech32>(text)
            .map_err(|_| IdError::Address)?;
        let bytes = checked.byte_iter().count();
        if checked.hrp().as_str() != ADDRESS_PREFIX || !ADDRESS_BYTES.contains(&bytes) {
            return Err(IdError::Address);
        }
        Ok(Self(text.into()))
    }
}

// === impl LeaseId ===

impl LeaseId {
    /// Creates a lease id from its parts.
    ///
    /// # Errors
    /// [`IdError::LeasePart`] for an invalid part.
    pub fn new(owner: &str, dseq: u64, gseq: u32, oseq: u32, provider: &str) -> Result<Self, IdError> {
        let part = |part, reason| IdError::LeasePart { part, reason };
        let address = "must be an account address (lower-case bech32 starting with akash1)";
        let owner: Owner = owner.parse().map_err(|_| part("owner", address))?;
        for (name, value) in [("dseq", dseq), ("gseq", gseq.into()), ("oseq", oseq.into())] {
            if value == 0 {
                return Err(part(name, "must not be zero"));
            }
        }
        let provider: Address = provider.parse().map_err(|_| part("provider", address))?;
        if owner == provider {
            return Err(part("provider", "must not be the owner"));
        }
        Ok(Self { owner, dseq, gseq, oseq, provider })
    }

    /// Returns the tenant's address.
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Returns the deployment sequence.
    pub fn dseq(&self) -> u64 {
        self.dseq
    }

    /// Returns the group sequence.
    pub fn gseq(&self) -> u32 {
        self.gseq
    }

    /// Returns the order sequence.
    pub fn oseq(&self) -> u32 {
        self.oseq
    }

    /// Returns the provider's address.
    pub fn provider(&self) -> &Address {
        &self.provider
    }

    /// Returns the Kubernetes namespace in which an Akash provider runs this lease: SHA-224 of the text form
    /// in lower-case base32hex without padding (`LidNS` in the provider's
    /// `cluster/util/lease_id_to_namespace.go`). 45 characters.
    pub fn namespace(&self) -> String {
        BASE32HEX_NOPAD.encode(&Sha224::digest(self.to_string())).to_ascii_lowercase()
    }
}

impl FromStr for LeaseId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let parts: Vec<&str> = text.split('/').collect();
        let [owner, dseq, gseq, oseq, provider] = parts[..] else {
            return Err(IdError::LeaseForm);
        };
        let number = |part| IdError::LeasePart {
            part,
            reason: "must be a positive decimal number, without a sign or leading zeros",
        };
        Self::new(
            owner,
            plain(dseq).ok_or_else(|| number("dseq"))?,
            plain(gseq).ok_or_else(|| number("gseq"))?,
            plain(oseq).ok_or_else(|| number("oseq"))?,
            provider,
        )
    }
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}/{}/{}", self.owner, self.dseq, self.gseq, self.oseq, self.provider)
    }
}

// === impl ServiceName ===

impl FromStr for ServiceName {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let bytes = text.as_bytes();
        let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
        let ok = bytes.len() <= SERVICE_NAME_MAX_BYTES
            && bytes.first().is_some_and(u8::is_ascii_lowercase)
            && bytes.iter().all(inner)
            && bytes.last().is_some_and(|b| *b != b'-');
        if ok { Ok(Self(text.into())) } else { Err(IdError::Service) }
    }
}

// === impl Replica ===

impl fmt::Display for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.service, self.index)
    }
}

// === impl Instance ===

impl Instance {
    /// Maximum length of the text form: a uid (36 bytes in Kubernetes), a container (63), a 32-bit count, and
    /// reserve.
    pub(crate) const MAX_BYTES: usize = 253;

    /// Creates the identifier of run `run_number` of `container` in the pod with this uid.
    ///
    /// # Errors
    /// [`IdError::Instance`] if a part is empty or has characters other than ASCII letters, digits, `-`, `.`
    /// and `_`, or if the whole is too long.
    pub fn new(pod_uid: &str, container: &str, run_number: u32) -> Result<Self, IdError> {
        let part = |text: &str| {
            !text.is_empty()
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
        };
        let text = format!("{pod_uid}/{container}/{run_number}");
        if part(pod_uid) && part(container) && text.len() <= Self::MAX_BYTES {
            Ok(Self { id_bytes: text.len(), text: text.into() })
        } else {
            Err(IdError::Instance)
        }
    }

    /// Adds the pod's name, by which REST clients know the run. Names over [`POD_NAME_MAX_BYTES`] are
    /// ignored.
    #[must_use]
    pub(crate) fn with_pod_name(&self, name: &str) -> Self {
        let name = if name.len() <= POD_NAME_MAX_BYTES { name } else { "" };
        Self { text: [self.as_str(), name].concat().into(), id_bytes: self.id_bytes }
    }

    /// Returns the name of the pod, if it is known.
    pub(crate) fn pod_name(&self) -> Option<&str> {
        let (_, name) = self.text.split_at(self.id_bytes);
        (!name.is_empty()).then_some(name)
    }

    /// Returns the text form.
    pub fn as_str(&self) -> &str {
        self.text.split_at(self.id_bytes).0
    }

    /// Returns pod uid, container and run number.
    pub fn parts(&self) -> (&str, &str, u32) {
        let mut parts = self.as_str().splitn(3, '/');
        let uid = parts.next().unwrap_or_default();
        let container = parts.next().unwrap_or_default();
        let run_number = parts.next().and_then(|text| text.parse().ok()).unwrap_or_default();
        (uid, container, run_number)
    }

    /// Returns the number of the run, counted from 0 for each container.
    pub(crate) fn run_number(&self) -> u32 {
        self.parts().2
    }

    /// Returns whether it is a later run of the same container.
    pub(crate) fn is_later_than(&self, other: &Self) -> bool {
        let ((uid, container, number), (other_uid, other_container, other)) = (self.parts(), other.parts());
        (uid, container) == (other_uid, other_container) && number > other
    }

    /// Returns whether it is a run in the same pod.
    pub(crate) fn is_same_pod(&self, other: &Self) -> bool {
        self.parts().0 == other.parts().0
    }

    /// Returns whether the container of `later` had runs between this one and `later`.
    pub(crate) fn skips_to(&self, later: &Self) -> bool {
        let ((uid, container, before), (later_uid, later_container, after)) = (self.parts(), later.parts());
        let is_same = (uid, container) == (later_uid, later_container);
        let next = if is_same { before.saturating_add(1) } else { 0 };
        after > next
    }
}

impl PartialEq for Instance {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Instance {}

impl PartialOrd for Instance {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Instance {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_str().cmp(other.as_str())
    }
}

impl Hash for Instance {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Instance {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let parts: Vec<&str> = text.split('/').collect();
        let [uid, container, run_number] = parts[..] else {
            return Err(IdError::Instance);
        };
        Self::new(uid, container, plain(run_number).ok_or(IdError::Instance)?)
    }
}

// === impl RequestId ===

impl RequestId {
    /// Maximum length in bytes: room for a UUID and a prefix.
    pub const MAX_BYTES: usize = 128;

    /// Returns a new, globally unique id.
    pub(crate) fn unique() -> Self {
        Self(uuid::Uuid::new_v4().to_string().into())
    }
}

impl FromStr for RequestId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let fits = (1..=Self::MAX_BYTES).contains(&text.len());
        let is_valid = fits && text.bytes().all(|byte| byte.is_ascii_graphic());
        if is_valid { Ok(Self(text.into())) } else { Err(IdError::RequestId) }
    }
}

/// Parses a number without sign and leading zeros, so that each identifier has exactly one text.
fn plain<N: FromStr>(text: &str) -> Option<N> {
    let other = text.starts_with('+') || (text.starts_with('0') && text != "0");
    if other { None } else { text.parse().ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: &str = "akash1angnwmnsv5vkp4jpgkdcunar8efpvennxwwcev";
    const PROVIDER: &str = "akash1nxq8gmsw2vlz3m68qvyvcf3kh6q269ajvqw6y0";

    #[test]
    fn namespace_matches_real_clusters() {
        for (lease, namespace) in [
            (format!("{OWNER}/6194991/1/1/{PROVIDER}"), "i8srn0jevt07jq3ittrgrg1q3ja3srij6t7efeftq3fi4"),
            (
                "akash1h24fljt7p0nh82cq0za0uhsct3sfwsfu9w3c9h/5673203/1/1/akash18ga02jzaq8cw52anyhzkwta5wygufgu6zsz6xc"
                    .to_owned(),
                "vpjq3g0uoce5ffa9j85h74t9skosfj92dp4ce7eamhsdg",
            ),
        ] {
            let parsed: LeaseId = lease.parse().unwrap();
            assert_eq!(parsed.to_string(), lease);
            assert_eq!(parsed.namespace(), namespace);
        }
    }

    #[test]
    fn pod_name_is_not_part_of_the_identity() {
        let bare = Instance::new("uid", "web", 3).unwrap();
        let named = bare.with_pod_name("web-5cfc6c7b4b-4cl7z");
        assert_eq!(named, bare);
        assert_eq!(named.cmp(&bare), Ordering::Equal);
        let hash = |instance: &Instance| {
            let mut hasher = std::hash::DefaultHasher::new();
            instance.hash(&mut hasher);
            hasher.finish()
        };
        assert_eq!(hash(&named), hash(&bare));
        assert_eq!((named.to_string().as_str(), named.parts()), ("uid/web/3", ("uid", "web", 3)));
        assert_eq!((named.pod_name(), bare.pod_name()), (Some("web-5cfc6c7b4b-4cl7z"), None));
        assert_eq!(named.with_pod_name("other").pod_name(), Some("other"));
        assert_eq!(named.with_pod_name(&"x".repeat(POD_NAME_MAX_BYTES + 1)).pod_name(), None);
    }

    #[test]
    fn malformed_lease_error_names_part() {
        let check = |text: String, part: &str| {
            let error = text.parse::<LeaseId>().unwrap_err().to_string();
            assert!(error.starts_with(part), "{text}: {error}");
        };
        check("a/b".into(), "is not owner/dseq");
        check(format!("{OWNER}/0/1/1/{PROVIDER}"), "dseq");
        check(format!("{OWNER}/1/0/1/{PROVIDER}"), "gseq");
        check(format!("{OWNER}/1/1/0/{PROVIDER}"), "oseq");
        check(format!("{OWNER}/1/1/x/{PROVIDER}"), "oseq");
        // Other texts for the same lease.
        check(format!("{OWNER}/+1/1/1/{PROVIDER}"), "dseq must be a positive decimal number, without");
        check(format!("{OWNER}/007/1/1/{PROVIDER}"), "dseq");
        check(format!("{OWNER}/1/01/1/{PROVIDER}"), "gseq");
        check(format!("{OWNER}/1/1/+1/{PROVIDER}"), "oseq");
        check(format!("{OWNER}/00/1/1/{PROVIDER}"), "dseq");
        check(format!("{OWNER}/1/1/1/{OWNER}"), "provider");
        check(format!("{}/1/1/1/{PROVIDER}", OWNER.to_uppercase()), "owner");
        check(format!("{}x/1/1/1/{PROVIDER}", &OWNER[..OWNER.len() - 1]), "owner");
        check(format!("cosmos1abc/1/1/1/{PROVIDER}"), "owner");
    }

    #[test]
    fn address_from_account_parses() {
        let address = Address::from_account([7; 20]);
        assert_eq!(address.as_str().parse::<Address>().unwrap(), address);
    }

    #[test]
    fn service_name_follows_dns_label_rules() {
        for good in ["web", "a", "w-1", "w1"] {
            assert!(good.parse::<ServiceName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "1a", "A", "a_b", "a.b", &"a".repeat(64)] {
            assert!(bad.parse::<ServiceName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn instance_round_trips() {
        let instance = Instance::new("0a-1", "web", 3).unwrap();
        assert_eq!(instance.as_str(), "0a-1/web/3");
        assert_eq!(instance.parts(), ("0a-1", "web", 3));
        assert_eq!(instance.as_str().parse::<Instance>().unwrap(), instance);
        let later = |uid, number| Instance::new(uid, "web", number).unwrap();
        assert!(instance.skips_to(&later("0a-1", 5)) && !instance.skips_to(&later("0a-1", 4)));
        // The first run of another pod is skipped.
        assert!(instance.skips_to(&later("0a-2", 1)) && !instance.skips_to(&later("0a-2", 0)));
        for bad in [
            "", "a/b", "a/b/c", "a/b/1/2", "a//1", "a/b/-1", "a/b/01", "a/b/+1", "a/b/00", "../x/1\n",
            "é/b/1",
        ] {
            assert!(bad.parse::<Instance>().is_err(), "{bad}");
        }
    }
}
