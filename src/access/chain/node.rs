//! The two questions, and what an answer of a node comes to.
//!
//! A node is believed about what is on the chain, but not to make sense: an answer that does not is no answer.

use std::time::Duration;

use futures_core::future::BoxFuture;
use prost_types::Any;
use rustls::pki_types::CertificateDer;
use tonic::transport::Channel;
use tonic::{Code, Status};
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::access::account::AccountKey;
use crate::access::cert::{CERTIFICATE_MAX_BYTES, Serial};
use crate::access::dir::item::{TrustKey, TrustValue};
use crate::access::refusal::Refusal;
use crate::model::id::Owner;
use crate::model::metrics::ChainResult;
use crate::model::proto::auth::query_client::QueryClient as Accounts;
use crate::model::proto::auth::{
    BaseAccount, BaseVestingAccount, QueryAccountRequest, QueryAccountResponse, Secp256k1PubKey,
    VestingAccount,
};
use crate::model::proto::cert::query_client::QueryClient as Certificates;
use crate::model::proto::cert::{
    CertificateFilter, CertificateResponse, QueryCertificatesRequest, QueryCertificatesResponse, State,
};

/// How long a query may take. Callers wait for it.
const QUERY_TIMEOUT: Duration = Duration::from_secs(5);

/// Largest answer, in bytes: a few certificates of an owner, or an account with a long vesting schedule.
const ANSWER_MAX_BYTES: usize = 256 * 1024;

const PEM_CERTIFICATE: &str = "CERTIFICATE";
const PEM_KEY: &str = "EC PUBLIC KEY";

const SECP256K1: &str = "/cosmos.crypto.secp256k1.PubKey";
const MULTISIG: &str = "/cosmos.crypto.multisig.LegacyAminoPubKey";
const BASE_ACCOUNT: &str = "/cosmos.auth.v1beta1.BaseAccount";
/// Accounts of modules, of which nobody has a key.
const MODULE_ACCOUNT: &str = "/cosmos.auth.v1beta1.ModuleAccount";
const BASE_VESTING: &str = "/cosmos.vesting.v1beta1.BaseVestingAccount";
/// Accounts that hold a vesting account, which holds a base account.
const VESTING: [&str; 4] = [
    "/cosmos.vesting.v1beta1.ContinuousVestingAccount",
    "/cosmos.vesting.v1beta1.DelayedVestingAccount",
    "/cosmos.vesting.v1beta1.PeriodicVestingAccount",
    "/cosmos.vesting.v1beta1.PermanentLockedAccount",
];

/// Something that can be asked about what is on the chain.
pub(super) trait ChainClient: Send + Sync + 'static {
    fn ask<'a>(&'a self, name: &'a TrustKey) -> BoxFuture<'a, Result<Answer, QueryError>>;
}

/// What the chain says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// This stands there.
    Found(TrustValue),
    /// Nothing does.
    Unknown,
    /// Something that must not be believed.
    Refused(Refusal),
}

/// No answer, and why, for the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum QueryError {
    #[error("no answer within {QUERY_TIMEOUT:?}")]
    Late,
    #[error("{0}")]
    Failed(String),
    #[error("the answer makes no sense: {0}")]
    Senseless(&'static str),
}

/// A node.
#[derive(Clone, Debug)]
pub(super) struct Node {
    certificates: Certificates<Channel>,
    accounts: Accounts<Channel>,
}

/// As what an answer is counted.
pub(super) fn counted(answer: &Result<Answer, QueryError>) -> ChainResult {
    match answer {
        Ok(Answer::Found(_)) => ChainResult::Found,
        Ok(Answer::Unknown) => ChainResult::Unknown,
        Ok(Answer::Refused(_)) => ChainResult::Refused,
        Err(_) => ChainResult::Failed,
    }
}

// === impl Node ===

impl Node {
    pub(super) fn new(channel: Channel) -> Self {
        Self {
            certificates: Certificates::new(channel.clone()).max_decoding_message_size(ANSWER_MAX_BYTES),
            accounts: Accounts::new(channel).max_decoding_message_size(ANSWER_MAX_BYTES),
        }
    }

    async fn certificate(&self, owner: &Owner, serial: &Serial) -> Result<Answer, QueryError> {
        // Of any state: revoked is another thing than unknown.
        let filter =
            CertificateFilter { owner: owner.to_string(), serial: serial.to_string(), state: String::new() };
        let request = QueryCertificatesRequest { filter: Some(filter) };
        let answer = self.certificates.clone().certificates(request).await?;
        of_certificates(answer.into_inner(), serial)
    }

    async fn account(&self, owner: &Owner) -> Result<Answer, QueryError> {
        let request = QueryAccountRequest { address: owner.to_string() };
        match self.accounts.clone().account(request).await {
            Ok(answer) => of_account(answer.into_inner(), owner),
            Err(status) if status.code() == Code::NotFound => Ok(Answer::Unknown),
            Err(status) => Err(status.into()),
        }
    }
}

impl ChainClient for Node {
    fn ask<'a>(&'a self, name: &'a TrustKey) -> BoxFuture<'a, Result<Answer, QueryError>> {
        Box::pin(async move {
            let query = async {
                match name {
                    TrustKey::Certificate(owner, serial) => self.certificate(owner, serial).await,
                    TrustKey::Account(owner) => self.account(owner).await,
                }
            };
            tokio::time::timeout(QUERY_TIMEOUT, query).await.unwrap_or(Err(QueryError::Late))
        })
    }
}

fn of_certificates(answer: QueryCertificatesResponse, serial: &Serial) -> Result<Answer, QueryError> {
    // The node matches serial numbers by their beginning.
    let mut matching = answer.certificates.into_iter().filter(|one| one.serial == serial.as_str());
    match (matching.next(), matching.next()) {
        (None, _) => Ok(Answer::Unknown),
        (Some(one), None) => of_certificate(one),
        (Some(_), Some(_)) => Err(QueryError::Senseless("two certificates of one owner and serial number")),
    }
}

fn of_certificate(answer: CertificateResponse) -> Result<Answer, QueryError> {
    let certificate = answer.certificate.ok_or(QueryError::Senseless("a certificate without content"))?;
    match certificate.state() {
        State::Valid => {}
        State::Revoked => return Ok(Answer::Refused(Refusal::CertificateRevoked)),
        State::Invalid => return Ok(Answer::Unknown),
    }
    let der = unpem(&certificate.cert, PEM_CERTIFICATE)
        .filter(|der| der.len() <= CERTIFICATE_MAX_BYTES)
        .ok_or(QueryError::Senseless("a certificate that is not one in PEM"))?;
    let key = unpem(&certificate.pubkey, PEM_KEY)
        .ok_or(QueryError::Senseless("a certificate whose key is not one in PEM"))?;
    let der = CertificateDer::from(der);
    let (_, parsed) = X509Certificate::from_der(&der)
        .map_err(|_| QueryError::Senseless("a certificate that is not X.509"))?;
    if parsed.public_key().raw != key {
        return Ok(Answer::Refused(Refusal::CertificateKeyDiffers));
    }
    Ok(Answer::Found(TrustValue::Certificate(der.as_ref().into())))
}

/// The content of the one PEM block in `text`, if it has this name and nothing stands behind it.
fn unpem(text: &[u8], name: &str) -> Option<Vec<u8>> {
    let (rest, block) = parse_x509_pem(text).ok()?;
    (block.label == name && rest.trim_ascii().is_empty()).then_some(block.contents)
}

fn of_account(answer: QueryAccountResponse, owner: &Owner) -> Result<Answer, QueryError> {
    let account = answer.account.ok_or(QueryError::Senseless("an account without content"))?;
    let Some(base) = base_account(&account)? else {
        return Ok(Answer::Refused(Refusal::AccountKeyless));
    };
    if base.address != owner.as_str() {
        return Err(QueryError::Senseless("another account than was asked for"));
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
    let key = AccountKey::from_bytes(&key.key).map_err(|_| QueryError::Senseless("a key that is none"))?;
    // Nobody, not even a node, can find another key for an address.
    if key.address() != *owner {
        return Err(QueryError::Senseless("a key that is not the account's"));
    }
    Ok(Answer::Found(TrustValue::Account(key)))
}

/// The account in whatever kind of account it is; `None` if it is of a kind that has no key.
fn base_account(account: &Any) -> Result<Option<BaseAccount>, QueryError> {
    const NOTHING: QueryError = QueryError::Senseless("an account without an account in it");
    let base = match account.type_url.as_str() {
        BASE_ACCOUNT => decode(account)?,
        MODULE_ACCOUNT => return Ok(None),
        BASE_VESTING => decode::<BaseVestingAccount>(account)?.base_account.ok_or(NOTHING)?,
        url if VESTING.contains(&url) => {
            let vesting = decode::<VestingAccount>(account)?.base_vesting_account.ok_or(NOTHING)?;
            vesting.base_account.ok_or(NOTHING)?
        }
        _ => return Ok(None),
    };
    Ok(Some(base))
}

fn decode<M: prost::Message + Default>(any: &Any) -> Result<M, QueryError> {
    M::decode(any.value.as_slice()).map_err(|_| QueryError::Senseless("a message that cannot be decoded"))
}

// === impl Silence ===

impl From<Status> for QueryError {
    fn from(status: Status) -> Self {
        Self::Failed(format!("{:?}: {}", status.code(), status.message()))
    }
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::access::testing::Tenant;
    use crate::access::wallet::Words;
    use crate::model::proto::cert::Certificate as Wire;

    fn pem(name: &str, content: &[u8]) -> Vec<u8> {
        let base64 = data_encoding::BASE64.encode(content);
        format!("-----BEGIN {name}-----\n{base64}\n-----END {name}-----\n").into_bytes()
    }

    /// A tenant's certificate as a node tells it, and its bytes.
    fn entry(tenant: &Tenant) -> (CertificateResponse, Vec<u8>) {
        let der = tenant.certificate().to_vec();
        let (_, parsed) = X509Certificate::from_der(&der).unwrap();
        let key = pem(PEM_KEY, parsed.public_key().raw);
        let wire = Wire { state: State::Valid.into(), cert: pem(PEM_CERTIFICATE, &der), pubkey: key };
        (CertificateResponse { certificate: Some(wire), serial: "7".into() }, der)
    }

    fn judged(entries: Vec<CertificateResponse>) -> Result<Answer, QueryError> {
        let presented = Tenant::new(1, 7).issue().0;
        of_certificates(QueryCertificatesResponse { certificates: entries }, presented.serial())
    }

    #[test]
    fn a_certificate_counts_by_its_state_and_with_its_key() {
        let (good, der) = entry(&Tenant::new(1, 7));
        assert_eq!(judged(vec![good.clone()]), Ok(Answer::Found(TrustValue::Certificate(der.into()))));
        assert_eq!(judged(vec![]), Ok(Answer::Unknown));
        let longer = CertificateResponse { serial: "77".into(), ..good.clone() };
        assert_eq!(judged(vec![longer.clone()]), Ok(Answer::Unknown));
        assert!(matches!(judged(vec![longer, good.clone()]), Ok(Answer::Found(_))));
        let change = |change: fn(&mut Wire)| {
            let mut entry = good.clone();
            change(entry.certificate.as_mut().unwrap());
            judged(vec![entry])
        };
        let refused = |refusal| Ok(Answer::Refused(refusal));
        assert_eq!(change(|one| one.state = State::Revoked.into()), refused(Refusal::CertificateRevoked));
        assert_eq!(change(|one| one.state = State::Invalid.into()), Ok(Answer::Unknown));
        assert_eq!(change(|one| one.state = 9), Ok(Answer::Unknown));
        let other = |one: &mut Wire| one.pubkey = entry(&Tenant::new(1, 7)).0.certificate.unwrap().pubkey;
        assert_eq!(change(other), refused(Refusal::CertificateKeyDiffers));
    }

    #[test]
    fn certificates_that_make_no_sense_are_no_answer() {
        let (good, _) = entry(&Tenant::new(1, 7));
        let change = |change: fn(&mut Wire)| {
            let mut entry = good.clone();
            change(entry.certificate.as_mut().unwrap());
            judged(vec![entry])
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
            assert!(matches!(change(case), Err(QueryError::Senseless(_))));
        }
        let empty = CertificateResponse { certificate: None, ..good.clone() };
        assert!(matches!(judged(vec![empty]), Err(QueryError::Senseless(_))));
        assert!(matches!(judged(vec![good.clone(), good]), Err(QueryError::Senseless(_))));
    }

    fn any(url: &str, message: &impl prost::Message) -> Any {
        Any { type_url: url.into(), value: message.encode_to_vec() }
    }

    #[test]
    fn an_account_counts_by_its_key() {
        let key = Words::fresh().unwrap().wallet().unwrap().key();
        let owner = key.address();
        let account = |key: Option<Any>| BaseAccount { address: owner.to_string(), pub_key: key };
        let good = account(Some(any(SECP256K1, &Secp256k1PubKey { key: key.to_bytes() })));
        let judged = |account: Any| of_account(QueryAccountResponse { account: Some(account) }, &owner);
        let found = Ok(Answer::Found(TrustValue::Account(key.clone())));
        assert_eq!(judged(any(BASE_ACCOUNT, &good)), found);
        let vesting = BaseVestingAccount { base_account: Some(good.clone()) };
        assert_eq!(judged(any(BASE_VESTING, &vesting)), found);
        for url in VESTING {
            let vesting = VestingAccount { base_vesting_account: Some(vesting.clone()) };
            assert_eq!(judged(any(url, &vesting)), found);
        }
        let refused = |refusal| Ok(Answer::Refused(refusal));
        let of_key = |key| judged(any(BASE_ACCOUNT, &account(key)));
        assert_eq!(of_key(None), refused(Refusal::AccountKeyless));
        let multisig = Any { type_url: MULTISIG.into(), value: vec![1] };
        assert_eq!(of_key(Some(multisig)), refused(Refusal::AccountMultisig));
        let ed25519 = Any { type_url: "/cosmos.crypto.ed25519.PubKey".into(), value: vec![1] };
        assert_eq!(of_key(Some(ed25519)), refused(Refusal::AccountKeyKind));
        assert_eq!(judged(any(MODULE_ACCOUNT, &good)), refused(Refusal::AccountKeyless));
        // What makes no sense is no answer: least of all another one's key.
        let senseless = |answer: Result<Answer, QueryError>| {
            assert!(matches!(answer, Err(QueryError::Senseless(_))), "{answer:?}");
        };
        let other = Words::fresh().unwrap().wallet().unwrap().key();
        senseless(of_key(Some(any(SECP256K1, &Secp256k1PubKey { key: other.to_bytes() }))));
        senseless(of_key(Some(any(SECP256K1, &Secp256k1PubKey { key: vec![2; 33] }))));
        senseless(of_key(Some(Any { type_url: SECP256K1.into(), value: vec![0xff] })));
        senseless(judged(any(BASE_ACCOUNT, &BaseAccount { address: "akash1x".into(), ..good.clone() })));
        senseless(judged(any(VESTING[0], &VestingAccount::default())));
        senseless(of_account(QueryAccountResponse::default(), &owner));
    }
}
