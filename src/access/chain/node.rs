//! A client of a node: its connection (gRPC over HTTP/2, with TLS for `https`), the two queries, and the
//! meaning of the answers.
//!
//! A node is trusted to report the state of the chain, but not to be well-formed: a malformed answer counts
//! as a failed query.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_core::future::BoxFuture;
use http::Uri;
use http::uri::Scheme;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
use prost_types::Any;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tower::{BoxError, Service};
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::access::account::AccountKey;
use crate::access::cert::{CERTIFICATE_MAX_BYTES, Serial};
use crate::access::refusal::Refusal;
use crate::access::trust::{Answer, TrustId, TrustValue};
use crate::model::id::Owner;
use crate::model::proto::auth::query_client::QueryClient as Accounts;
use crate::model::proto::auth::{
    BaseAccount, BaseVestingAccount, QueryAccountRequest, QueryAccountResponse, Secp256k1PubKey,
    VestingAccount,
};
use crate::model::proto::cert::query_client::QueryClient as Certificates;
use crate::model::proto::cert::{
    CertificateFilter, CertificateResponse, QueryCertificatesRequest, QueryCertificatesResponse, State,
};
use crate::sys::pem::{self, PemError};
use crate::sys::read::PEM_MAX_BYTES;

/// Time limit for connecting, name resolution and TLS included. A query that waits for it has its own.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Silence after which the node is pinged. Go servers refuse more than one such ping in 30 s.
const PING_AFTER: Duration = Duration::from_secs(40);

/// Time limit for the answer to a ping.
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// Time limit of a query. Callers wait for it.
const QUERY_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum size of an answer, in bytes: a few certificates of an owner, or an account with a long vesting
/// schedule.
const ANSWER_MAX_BYTES: usize = 256 * 1024;

const PEM_CERTIFICATE: &str = "CERTIFICATE";
const PEM_KEY: &str = "EC PUBLIC KEY";

const SECP256K1: &str = "/cosmos.crypto.secp256k1.PubKey";
const MULTISIG: &str = "/cosmos.crypto.multisig.LegacyAminoPubKey";
const BASE_ACCOUNT: &str = "/cosmos.auth.v1beta1.BaseAccount";
/// Accounts of modules, which have no key.
const MODULE_ACCOUNT: &str = "/cosmos.auth.v1beta1.ModuleAccount";
const BASE_VESTING: &str = "/cosmos.vesting.v1beta1.BaseVestingAccount";
/// Accounts that contain a vesting account, which contains a base account.
const VESTING: [&str; 4] = [
    "/cosmos.vesting.v1beta1.ContinuousVestingAccount",
    "/cosmos.vesting.v1beta1.DelayedVestingAccount",
    "/cosmos.vesting.v1beta1.PeriodicVestingAccount",
    "/cosmos.vesting.v1beta1.PermanentLockedAccount",
];

/// Why a node cannot be used. The text names the address or file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// The address is malformed.
    #[error("{0} is not the address of a node: http://host:port or https://host:port")]
    Address(Uri),
    /// The file of authorities cannot be used.
    #[error("cannot use {}: {error}", path.display())]
    Authorities {
        /// The file.
        path: PathBuf,
        /// The cause.
        error: PemError,
    },
    /// The TLS library failed.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}

/// A client of the chain.
pub(super) trait ChainClient: Send + Sync + 'static {
    fn query<'a>(&'a self, key: &'a TrustId) -> BoxFuture<'a, Result<Answer<TrustValue>, QueryError>>;
}

/// Why a query failed, for the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum QueryError {
    #[error("no answer within {QUERY_TIMEOUT:?}")]
    Timeout,
    #[error("{0}")]
    Failed(String),
    #[error("malformed answer: {0}")]
    Malformed(&'static str),
}

/// A client of one node.
#[derive(Clone, Debug)]
pub(super) struct Node {
    certificates: Certificates<Channel>,
    accounts: Accounts<Channel>,
}

/// Creates a channel to the node at `address`, which connects on first use and reconnects by itself. With
/// `https`, an authority in the file `authorities` (PEM), or of the system, must have signed the node's
/// certificate.
///
/// Fails for an unusable address or file. Does not check that the node is reachable.
fn channel<R>(address: &Uri, authorities: Option<&Path>, resolver: R) -> Result<Channel, NodeError>
where
    R: Service<Name, Response: Iterator<Item = SocketAddr>, Error: Into<BoxError>, Future: Send>,
    R: Clone + Send + Sync + 'static,
{
    let secure = address.scheme() == Some(&Scheme::HTTPS);
    let host = address.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() || (secure && ServerName::try_from(host).is_err()) {
        return Err(NodeError::Address(address.clone()));
    }
    let endpoint = Endpoint::from(address.clone())
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(PING_AFTER)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(false);
    let mut tcp = HttpConnector::new_with_resolver(resolver);
    tcp.set_nodelay(true);
    tcp.enforce_http(false);
    // The addresses of the host share the time, so that one that does not answer leaves time for the others.
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    if !secure {
        // Not `connect_lazy`, whose time limit excludes name resolution.
        return Ok(endpoint.connect_with_connector_lazy(tcp));
    }
    let mut tls = tls_config(authorities)?;
    tls.alpn_protocols = vec![b"h2".to_vec()];
    Ok(endpoint.connect_with_connector_lazy(HttpsConnector::from((tcp, tls))))
}

/// Checks that the file at `path` holds a certificate of an authority (PEM).
///
/// # Errors
/// [`NodeError::Authorities`].
pub fn check_authorities(path: &Path) -> Result<(), NodeError> {
    tls_config(Some(path)).map(drop)
}

fn tls_config(authorities: Option<&Path>) -> Result<ClientConfig, NodeError> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = authorities {
        let failed = |error| NodeError::Authorities { path: path.to_owned(), error };
        let certificates = pem::read_certificates(path, PEM_MAX_BYTES).map_err(failed)?;
        if roots.add_parsable_certificates(certificates).0 == 0 {
            return Err(failed(PemError::NoCertificate));
        }
    } else {
        // An unreadable authority matters only if no other one has signed the certificate; then the query
        // reports it.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    Ok(ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

// === impl Node ===

impl Node {
    /// Creates a client of the node at `address`. `authorities`: as for [`ChainConfig`](super::ChainConfig).
    pub(super) fn new(address: &Uri, authorities: Option<&Path>) -> Result<Self, NodeError> {
        let channel = channel(address, authorities, GaiResolver::new())?;
        Ok(Self {
            certificates: Certificates::new(channel.clone()).max_decoding_message_size(ANSWER_MAX_BYTES),
            accounts: Accounts::new(channel).max_decoding_message_size(ANSWER_MAX_BYTES),
        })
    }

    async fn certificate(&self, owner: &Owner, serial: &Serial) -> Result<Answer<TrustValue>, QueryError> {
        // In any state, to distinguish revoked from unknown.
        let filter =
            CertificateFilter { owner: owner.to_string(), serial: serial.to_string(), state: String::new() };
        let request = QueryCertificatesRequest { filter: Some(filter) };
        let answer = self.certificates.clone().certificates(request).await?;
        read_certificates(answer.into_inner(), serial)
    }

    async fn account(&self, owner: &Owner) -> Result<Answer<TrustValue>, QueryError> {
        let request = QueryAccountRequest { address: owner.to_string() };
        match self.accounts.clone().account(request).await {
            Ok(answer) => read_account(answer.into_inner(), owner),
            Err(status) if status.code() == Code::NotFound => Ok(Answer::Unknown),
            Err(status) => Err(status.into()),
        }
    }
}

impl ChainClient for Node {
    fn query<'a>(&'a self, key: &'a TrustId) -> BoxFuture<'a, Result<Answer<TrustValue>, QueryError>> {
        Box::pin(async move {
            let query = async {
                match key {
                    TrustId::Certificate(owner, serial) => self.certificate(owner, serial).await,
                    TrustId::Account(owner) => self.account(owner).await,
                }
            };
            tokio::time::timeout(QUERY_TIMEOUT, query).await.unwrap_or(Err(QueryError::Timeout))
        })
    }
}

fn read_certificates(
    answer: QueryCertificatesResponse,
    serial: &Serial,
) -> Result<Answer<TrustValue>, QueryError> {
    // The node matches serial numbers by prefix.
    let mut matching = answer.certificates.into_iter().filter(|one| one.serial == serial.as_str());
    match (matching.next(), matching.next()) {
        (None, _) => Ok(Answer::Unknown),
        (Some(one), None) => read_certificate(one),
        (Some(_), Some(_)) => {
            Err(QueryError::Malformed("two certificates with the same owner and serial number"))
        }
    }
}

fn read_certificate(answer: CertificateResponse) -> Result<Answer<TrustValue>, QueryError> {
    let certificate = answer.certificate.ok_or(QueryError::Malformed("a certificate without content"))?;
    match certificate.state() {
        State::Valid => {}
        State::Revoked => return Ok(Answer::Refused(Refusal::CertificateRevoked)),
        State::Invalid => return Ok(Answer::Unknown),
    }
    let der = decode_pem(&certificate.cert, PEM_CERTIFICATE)
        .filter(|der| der.len() <= CERTIFICATE_MAX_BYTES)
        .ok_or(QueryError::Malformed("a certificate that is not one in PEM"))?;
    let key = decode_pem(&certificate.pubkey, PEM_KEY)
        .ok_or(QueryError::Malformed("a certificate whose key is not one in PEM"))?;
    let der = CertificateDer::from(der);
    let (_, parsed) = X509Certificate::from_der(&der)
        .map_err(|_| QueryError::Malformed("a certificate that is not X.509"))?;
    if parsed.public_key().raw != key {
        return Ok(Answer::Refused(Refusal::CertificateKeyDiffers));
    }
    Ok(Answer::Trusted(TrustValue::Certificate(der.as_ref().into())))
}

/// Returns the content of the only PEM section in `text`, if it has this label and nothing follows.
fn decode_pem(text: &[u8], label: &str) -> Option<Vec<u8>> {
    let (rest, section) = parse_x509_pem(text).ok()?;
    (section.label == label && rest.trim_ascii().is_empty()).then_some(section.contents)
}

fn read_account(answer: QueryAccountResponse, owner: &Owner) -> Result<Answer<TrustValue>, QueryError> {
    let account = answer.account.ok_or(QueryError::Malformed("an account without content"))?;
    let Some(base) = base_account(&account)? else {
        return Ok(Answer::Refused(Refusal::AccountKeyless));
    };
    if base.address != owner.as_str() {
        return Err(QueryError::Malformed("another account than the requested one"));
    }
    let Some(key) = base.pub_key else {
        return Ok(Answer::Refused(Refusal::AccountKeyless));
    };
    match key.type_url.as_str() {
        SECP256K1 => {}
        MULTISIG => return Ok(Answer::Refused(Refusal::AccountMultisig)),
        _ => return Ok(Answer::Refused(Refusal::AccountKeyKind)),
    }
    let key: Secp256k1PubKey = decode(&key)?;
    let key = AccountKey::from_bytes(&key.key)
        .map_err(|_| QueryError::Malformed("a key that is not a point on secp256k1"))?;
    // It is infeasible to find another key for an address, so this detects a substituted key.
    if key.address() != *owner {
        return Err(QueryError::Malformed("a key that is not the account's"));
    }
    Ok(Answer::Trusted(TrustValue::Account(key)))
}

/// Returns the base account in an account of any kind; `None` if the kind has no key.
fn base_account(account: &Any) -> Result<Option<BaseAccount>, QueryError> {
    const NO_BASE: QueryError = QueryError::Malformed("an account without a base account");
    let base = match account.type_url.as_str() {
        BASE_ACCOUNT => decode(account)?,
        MODULE_ACCOUNT => return Ok(None),
        BASE_VESTING => decode::<BaseVestingAccount>(account)?.base_account.ok_or(NO_BASE)?,
        url if VESTING.contains(&url) => {
            let vesting = decode::<VestingAccount>(account)?.base_vesting_account.ok_or(NO_BASE)?;
            vesting.base_account.ok_or(NO_BASE)?
        }
        _ => return Ok(None),
    };
    Ok(Some(base))
}

fn decode<M: prost::Message + Default>(any: &Any) -> Result<M, QueryError> {
    M::decode(any.value.as_slice()).map_err(|_| QueryError::Malformed("a message that cannot be decoded"))
}

// === impl QueryError ===

impl From<Status> for QueryError {
    fn from(status: Status) -> Self {
        Self::Failed(format!("{:?}: {}", status.code(), status.message()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::future;
    use std::io;

    use tokio::time::Instant;

    use crate::access::testing::Tenant;
    use crate::access::wallet::Mnemonic;
    use crate::model::proto::cert::Certificate as Wire;

    fn pem(label: &str, content: &[u8]) -> Vec<u8> {
        super::pem::encode(label, content).as_bytes().to_vec()
    }

    #[tokio::test(start_paused = true)]
    async fn name_resolution_counts_as_connecting() {
        for address in ["http://node.example.com:9090", "https://node.example.com:9090"] {
            let resolver =
                tower::service_fn(|_: Name| future::pending::<io::Result<std::vec::IntoIter<SocketAddr>>>());
            let channel = channel(&address.parse().unwrap(), None, resolver).unwrap();
            let start = Instant::now();
            let query = async { Accounts::new(channel).account(QueryAccountRequest::default()).await };
            let answer = tokio::time::timeout(2 * CONNECT_TIMEOUT, query).await;
            answer.expect(address).unwrap_err();
            assert!(start.elapsed() >= CONNECT_TIMEOUT, "{address}: the resolver was not used");
        }
    }

    /// Returns a tenant's certificate as a node reports it, and its bytes.
    fn entry(tenant: &Tenant) -> (CertificateResponse, Vec<u8>) {
        let der = tenant.certificate().to_vec();
        let (_, parsed) = X509Certificate::from_der(&der).unwrap();
        let key = pem(PEM_KEY, parsed.public_key().raw);
        let wire = Wire { state: State::Valid.into(), cert: pem(PEM_CERTIFICATE, &der), pubkey: key };
        (CertificateResponse { certificate: Some(wire), serial: "7".into() }, der)
    }

    fn answer_for(entries: Vec<CertificateResponse>) -> Result<Answer<TrustValue>, QueryError> {
        let certificate = Tenant::new(1, 7).issue().0;
        read_certificates(QueryCertificatesResponse { certificates: entries }, certificate.serial())
    }

    #[test]
    fn certificate_is_found_by_its_state_and_key() {
        let (good, der) = entry(&Tenant::new(1, 7));
        assert_eq!(answer_for(vec![good.clone()]), Ok(Answer::Trusted(TrustValue::Certificate(der.into()))));
        assert_eq!(answer_for(vec![]), Ok(Answer::Unknown));
        let longer = CertificateResponse { serial: "77".into(), ..good.clone() };
        assert_eq!(answer_for(vec![longer.clone()]), Ok(Answer::Unknown));
        assert!(matches!(answer_for(vec![longer, good.clone()]), Ok(Answer::Trusted(_))));
        let change = |change: fn(&mut Wire)| {
            let mut entry = good.clone();
            change(entry.certificate.as_mut().unwrap());
            answer_for(vec![entry])
        };
        let refused = |refusal| Ok(Answer::Refused(refusal));
        assert_eq!(change(|one| one.state = State::Revoked.into()), refused(Refusal::CertificateRevoked));
        assert_eq!(change(|one| one.state = State::Invalid.into()), Ok(Answer::Unknown));
        assert_eq!(change(|one| one.state = 9), Ok(Answer::Unknown));
        let other = |one: &mut Wire| one.pubkey = entry(&Tenant::new(1, 7)).0.certificate.unwrap().pubkey;
        assert_eq!(change(other), refused(Refusal::CertificateKeyDiffers));
    }

    #[test]
    fn malformed_certificate_is_a_failed_query() {
        let (good, _) = entry(&Tenant::new(1, 7));
        let change = |change: fn(&mut Wire)| {
            let mut entry = good.clone();
            change(entry.certificate.as_mut().unwrap());
            answer_for(vec![entry])
        };
        let cases: [fn(&mut Wire); 6] = [
            |one| one.cert.clear(),
            |one| one.cert.extend(b"x"),
            |one| one.cert = pem("PUBLIC KEY", b"x"),
            |one| one.cert = pem(PEM_CERTIFICATE, b"x"),
            |one| one.cert = pem(PEM_CERTIFICATE, &vec![0; CERTIFICATE_MAX_BYTES + 1]),
            |one| one.pubkey = pem("PUBLIC KEY", b"x"),
        ];
        for case in cases {
            assert!(matches!(change(case), Err(QueryError::Malformed(_))));
        }
        let empty = CertificateResponse { certificate: None, ..good.clone() };
        assert!(matches!(answer_for(vec![empty]), Err(QueryError::Malformed(_))));
        assert!(matches!(answer_for(vec![good.clone(), good]), Err(QueryError::Malformed(_))));
    }

    fn any(url: &str, message: &impl prost::Message) -> Any {
        Any { type_url: url.into(), value: message.encode_to_vec() }
    }

    #[test]
    fn account_is_found_by_its_key() {
        let key = Mnemonic::generate().unwrap().wallet().unwrap().key();
        let owner = key.address();
        let account = |key: Option<Any>| BaseAccount { address: owner.to_string(), pub_key: key };
        let good = account(Some(any(SECP256K1, &Secp256k1PubKey { key: key.to_bytes() })));
        let answer_for = |account: Any| read_account(QueryAccountResponse { account: Some(account) }, &owner);
        let found = Ok(Answer::Trusted(TrustValue::Account(key.clone())));
        assert_eq!(answer_for(any(BASE_ACCOUNT, &good)), found);
        let vesting = BaseVestingAccount { base_account: Some(good.clone()) };
        assert_eq!(answer_for(any(BASE_VESTING, &vesting)), found);
        for url in VESTING {
            let vesting = VestingAccount { base_vesting_account: Some(vesting.clone()) };
            assert_eq!(answer_for(any(url, &vesting)), found);
        }
        let refused = |refusal| Ok(Answer::Refused(refusal));
        let of_key = |key| answer_for(any(BASE_ACCOUNT, &account(key)));
        assert_eq!(of_key(None), refused(Refusal::AccountKeyless));
        let multisig = Any { type_url: MULTISIG.into(), value: vec![1] };
        assert_eq!(of_key(Some(multisig)), refused(Refusal::AccountMultisig));
        let ed25519 = Any { type_url: "/cosmos.crypto.ed25519.PubKey".into(), value: vec![1] };
        assert_eq!(of_key(Some(ed25519)), refused(Refusal::AccountKeyKind));
        assert_eq!(answer_for(any(MODULE_ACCOUNT, &good)), refused(Refusal::AccountKeyless));
        // A malformed answer is a failed query; above all, the key of another account.
        let malformed = |answer: Result<Answer<TrustValue>, QueryError>| {
            assert!(matches!(answer, Err(QueryError::Malformed(_))), "{answer:?}");
        };
        let other = Mnemonic::generate().unwrap().wallet().unwrap().key();
        malformed(of_key(Some(any(SECP256K1, &Secp256k1PubKey { key: other.to_bytes() }))));
        malformed(of_key(Some(any(SECP256K1, &Secp256k1PubKey { key: vec![2; 33] }))));
        malformed(of_key(Some(Any { type_url: SECP256K1.into(), value: vec![0xff] })));
        malformed(answer_for(any(BASE_ACCOUNT, &BaseAccount { address: "akash1x".into(), ..good.clone() })));
        malformed(answer_for(any(VESTING[0], &VestingAccount::default())));
        malformed(read_account(QueryAccountResponse::default(), &owner));
    }
}
