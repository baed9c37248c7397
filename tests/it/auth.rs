//! Authorisation precedes lookup, so refusals reveal nothing; and the audit log.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_core::future::BoxFuture;
use leasemux::access::account::AccountKey;
use leasemux::access::cert::Serial;
use leasemux::access::grants::{Access, TokenScope};
use leasemux::access::refusal::Refusal;
use leasemux::access::token::{Algorithm, Claims};
use leasemux::access::trust::{Trust, TrustAnswer, Unavailable};
use leasemux::access::wallet::Wallet;
use leasemux::model::id::{LeaseId, Owner};
use leasemux::model::limits::{Limits, QuotaLimits};
use leasemux::model::proto::lease::lease_rpc_client::LeaseRpcClient;
use leasemux::model::proto::lease::{ServiceLogsRequest, ServiceRestartRequest, ServiceStatusRequest};
use leasemux::model::time::LogTime;
use tempfile::NamedTempFile;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::support::gateway::{Gateway, Setup, proto_lease};
use crate::support::{account, replica};

/// Validity of tokens.
const SECONDS: u64 = 600;

fn lease(owner: &Owner, dseq: u64) -> LeaseId {
    LeaseId::new(owner.as_str(), dseq, 1, 1, account(200).as_str()).unwrap()
}

/// Signs a token of the wallet with this access.
pub(crate) fn token(wallet: &Wallet, access: Access) -> String {
    let now = u64::try_from(LogTime::now().parts().0).unwrap();
    let issuer = wallet.key().address();
    let expires = now + SECONDS;
    let claims = Claims { issuer, issued: now, not_before: now, expires, id: None, access };
    wallet.sign(Algorithm::Es256k, &claims).unwrap()
}

/// Everything that a caller sees of a refusal.
type Seen = (Code, String, Vec<u8>, String);

fn seen(status: &Status) -> Seen {
    let mut metadata = status.metadata().clone();
    // Differs by the second.
    assert!(metadata.remove("date").is_some(), "{metadata:?}");
    let metadata = format!("{metadata:?}");
    (status.code(), status.message().to_owned(), status.details().to_vec(), metadata)
}

/// The refusals of the three calls about a lease.
macro_rules! refusals {
    ($client:expr, $lease:expr) => {{
        let lease_id = Some(proto_lease($lease));
        let logs = ServiceLogsRequest { lease_id: lease_id.clone(), follow: true, ..Default::default() };
        let status = ServiceStatusRequest { lease_id: lease_id.clone(), ..Default::default() };
        let restart = ServiceRestartRequest { lease_id, ..Default::default() };
        let answers = [
            $client.service_logs(logs).await.err(),
            $client.service_status(status).await.err(),
            $client.service_restart(restart).await.err(),
        ];
        answers.map(|refusal| seen(&refusal.expect("a refusal")))
    }};
}

#[tokio::test(start_paused = true)]
async fn foreign_lease_is_refused_without_lookup() {
    let gateway = Gateway::new(Limits::default());
    let (owner, _) = gateway.tenant();
    let (there, not_there) = (lease(&owner, 7), lease(&owner, 8));
    gateway.platform.add_lease(&there, &[("web", 1)]);
    let (_, stranger) = gateway.tenant();
    let mut by_certificate = gateway.client(&stranger).await;
    let mut by_token = gateway.client_with_token(&token(&gateway.account(), Access::Full)).await;
    let mut by_nothing = LeaseRpcClient::new(gateway.channel_of(None).await);
    for (code, exists, does_not) in [
        (Code::PermissionDenied, refusals!(by_certificate, &there), refusals!(by_certificate, &not_there)),
        (Code::PermissionDenied, refusals!(by_token, &there), refusals!(by_token, &not_there)),
        (Code::Unauthenticated, refusals!(by_nothing, &there), refusals!(by_nothing, &not_there)),
    ] {
        assert!(exists.iter().all(|refusal| refusal.0 == code), "{exists:?}");
        assert_eq!(exists, does_not);
    }
    assert_eq!(gateway.platform.looks(), 0);
    assert_eq!(gateway.platform.restarted(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn call_outside_token_scope_is_refused_without_lookup() {
    let gateway = Gateway::new(Limits::default());
    let wallet = gateway.account();
    let (there, not_there) = (lease(&wallet.key().address(), 7), lease(&wallet.key().address(), 8));
    gateway.platform.add_lease(&there, &[("web", 1)]);
    let others = Access::Scoped([TokenScope::Shell].into_iter().collect());
    let mut client = gateway.client_with_token(&token(&wallet, others)).await;
    let (exists, does_not) = (refusals!(client, &there), refusals!(client, &not_there));
    assert!(exists.iter().all(|refusal| refusal.0 == Code::PermissionDenied), "{exists:?}");
    assert_eq!(exists, does_not);
    assert_eq!(gateway.platform.looks(), 0);
}

/// Returns the audit lines with `event` about a call of `owner`, from the log at `file`.
pub(crate) fn audit_lines(file: &Path, event: &str, owner: &Owner) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap();
    let event = format!("leasemux::audit: {event} ");
    let lines = text.lines().filter(|line| line.contains(&event) && line.contains(owner.as_str()));
    lines.map(ToOwned::to_owned).collect()
}

/// Writes the log to a file, until the second value is dropped.
pub(crate) fn log_to_file() -> (NamedTempFile, impl Sized) {
    let file = NamedTempFile::new().unwrap();
    let log = tracing_subscriber::fmt().with_ansi(false).with_writer(file.reopen().unwrap()).finish();
    // With a single subscriber, tracing caches the interest of the first thread at each call site. A second
    // one prevents that.
    let another = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::new());
    (file, (tracing::subscriber::set_default(log), another))
}

#[tokio::test(start_paused = true)]
async fn accepted_restarts_are_in_the_audit_log() {
    let (file, _log) = log_to_file();
    let setup = Setup::new(Limits::default(), &[("web", 1_000)]);
    let owner = setup.lease.owner();
    let mut client = setup.gateway.client(&setup.certificate).await;
    let restart = |id: &str| ServiceRestartRequest {
        lease_id: Some(proto_lease(&setup.lease)),
        request_id: id.to_owned(),
        ..Default::default()
    };
    for id in ["1", "2", "3", "4", "1"] {
        client.service_restart(restart(id)).await.unwrap();
    }
    client.service_restart(restart("5")).await.unwrap_err();
    let lines = audit_lines(file.path(), "restart", owner);
    let repeated = lines.iter().filter(|line| line.contains("repeated=true"));
    assert_eq!((lines.len(), repeated.count()), (5, 1), "{lines:?}");
    let lines = audit_lines(file.path(), "call refused", owner);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("ServiceRestart") && lines[0].contains("restarts_remembered"), "{lines:?}");
}

#[tokio::test(start_paused = true)]
async fn stream_with_ended_credentials_is_logged_once() {
    let (file, _log) = log_to_file();
    let gateway = Gateway::new(Limits::default());
    let follow = |owner: &Owner| {
        gateway.platform.add_lease(&lease(owner, 7), &[("web", 1)]);
        ServiceLogsRequest {
            lease_id: Some(proto_lease(&lease(owner, 7))),
            follow: true,
            ..Default::default()
        }
    };
    let (withdrawn, certificate) = gateway.tenant();
    let mut client = gateway.client(&certificate).await;
    let mut first = client.service_logs(follow(&withdrawn)).await.unwrap().into_inner();
    let (keyless, expiring) = (gateway.account(), gateway.account());
    let mut client = gateway.client_with_token(&token(&keyless, Access::Full)).await;
    let mut second = client.service_logs(follow(&keyless.key().address())).await.unwrap().into_inner();
    let mut client = gateway.client_with_token(&token(&expiring, Access::Full)).await;
    let mut third = client.service_logs(follow(&expiring.key().address())).await.unwrap().into_inner();
    // With valid credentials nothing is logged.
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(audit_lines(file.path(), "stream ended", &withdrawn), Vec::<String>::new());

    gateway.withdraw(&withdrawn);
    gateway.withdraw_account(&keyless.key().address());
    for (stream, owner, reason) in [
        (&mut first, withdrawn, Refusal::CertificateWithdrawn),
        (&mut second, keyless.key().address(), Refusal::AccountWithdrawn),
        (&mut third, expiring.key().address(), Refusal::TokenExpired),
    ] {
        while stream.message().await.is_ok_and(|message| message.is_some()) {}
        tokio::time::sleep(Duration::from_secs(10)).await;
        let lines = audit_lines(file.path(), "stream ended", &owner);
        assert_eq!(lines.len(), 1, "{lines:?}");
        for part in [reason.reason(), "ServiceLogs", "proved=true", lease(&owner, 7).to_string().as_str()] {
            assert!(lines[0].contains(part), "{part}: {}", lines[0]);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn refused_backfill_is_in_the_audit_log() {
    let (file, _log) = log_to_file();
    let quota =
        QuotaLimits { history_reads: 1, history_wait: Duration::from_secs(3), ..QuotaLimits::default() };
    let setup = Setup::new(Limits { quota, ..Limits::default() }, &[("web", 1)]);
    let run = setup.gateway.platform.start(&setup.lease, &replica("web", 0));
    setup.gateway.platform.print(&run, (0..4_000).map(|number| format!("{number} {}\n", "x".repeat(500))));
    let mut held = setup.open(setup.request()).await.unwrap();
    held.until(|seen| seen.lines("web", 0) > 0).await;
    let status = setup.open(setup.request()).await.unwrap().end().await;
    assert_eq!(status.code(), Code::ResourceExhausted);
    let lines = audit_lines(file.path(), "call refused", setup.lease.owner());
    assert_eq!(lines.len(), 1, "{lines:?}");
    for part in ["ServiceLogs", "history_reads", "proved=true", setup.lease.to_string().as_str()] {
        assert!(lines[0].contains(part), "{part}: {}", lines[0]);
    }
}

/// A trust source over its query rate.
#[derive(Debug)]
struct BusyTrust;

impl Trust for BusyTrust {
    fn certificate<'a>(
        &'a self,
        _: &'a Owner,
        _: &'a Serial,
    ) -> BoxFuture<'a, Result<TrustAnswer, Unavailable>> {
        Box::pin(async { Ok(TrustAnswer::Refused(Refusal::TrustBusy)) })
    }

    fn account_key<'a>(
        &'a self,
        _: &'a Owner,
    ) -> BoxFuture<'a, Result<TrustAnswer<AccountKey>, Unavailable>> {
        Box::pin(async { Ok(TrustAnswer::Refused(Refusal::TrustBusy)) })
    }
}

#[tokio::test(start_paused = true)]
async fn busy_trust_source_is_an_exceeded_quota() {
    let quota = QuotaLimits { chain_queries_per_second: 7, ..QuotaLimits::default() };
    let gateway = Gateway::believing(Arc::new(BusyTrust), Limits { quota, ..Limits::default() });
    let (owner, certificate) = gateway.tenant();
    let request = ServiceLogsRequest { lease_id: Some(proto_lease(&lease(&owner, 7))), ..Default::default() };
    let refusal = gateway.client(&certificate).await.service_logs(request).await.unwrap_err();
    assert_eq!(refusal.code(), Code::ResourceExhausted);
    assert_eq!(refusal.get_details_error_info().unwrap().metadata["quota"], "chain_queries");
    let violations = refusal.get_details_quota_failure().unwrap().violations;
    assert_eq!((&*violations[0].quota_id, violations[0].quota_value), ("chain_queries", 7));
    let wait = refusal.get_details_retry_info().and_then(|info| info.retry_delay);
    assert_eq!(wait, Some(Duration::from_secs(1)));
    for series in [
        "leasemux_quota_refusals_total{quota=\"chain_queries\"}",
        "leasemux_auth_refusals_total{reason=\"TRUST_BUSY\"}",
    ] {
        assert_eq!(gateway.metric(series), 1, "{series}");
    }
}
