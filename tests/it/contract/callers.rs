//! Authentication and authorization: rejected callers learn nothing.

use std::error::Error as _;
use std::time::Duration;

use leasemux::access::identity::IdentityFiles;
use leasemux::model::id::LeaseId;
use leasemux::model::limits::Limits;
use leasemux::model::proto::lease::lease_rpc_client::LeaseRpcClient;
use leasemux::model::proto::lease::{
    ServiceFilter, ServiceLogsRequest, ServiceRestartRequest, ServiceStatusRequest,
};
use leasemux::model::time::LogTime;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use super::check;
use crate::support::gateway::{Gateway, Setup, TrustBehavior, proto_lease};
use crate::support::raw::{Raw, encoded};
use crate::support::{account, lease, replica};

/// Makes a call with these credentials. Returns its error.
async fn rejection(
    scenario: &Setup,
    certificate: Option<Vec<u8>>,
    authorization: Option<&'static str>,
) -> Status {
    let mut client = LeaseRpcClient::new(scenario.gateway.channel_of(certificate).await);
    let mut request = Request::new(scenario.request());
    if let Some(value) = authorization {
        request.metadata_mut().insert("authorization", MetadataValue::from_static(value));
    }
    client.service_logs(request).await.unwrap_err()
}

/// Returns a valid certificate that the gateway does not know.
fn stranger() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    IdentityFiles::create(&dir.path().join("stranger"), LogTime::now()).unwrap();
    let (chain, _) = IdentityFiles::load(&dir.path().join("stranger")).unwrap().into_parts();
    chain[0].to_vec()
}

/// Returns the error of each method for a lease.
async fn errors_of_methods(client: &mut LeaseRpcClient<Channel>, lease: &LeaseId) -> [Status; 3] {
    let lease_id = Some(proto_lease(lease));
    let logs = ServiceLogsRequest { lease_id: lease_id.clone(), ..ServiceLogsRequest::default() };
    let status = ServiceStatusRequest { lease_id: lease_id.clone(), ..ServiceStatusRequest::default() };
    let restart = ServiceRestartRequest { lease_id, ..ServiceRestartRequest::default() };
    [
        client.service_logs(logs).await.unwrap_err(),
        client.service_status(status).await.unwrap_err(),
        client.service_restart(restart).await.unwrap_err(),
    ]
}

#[tokio::test(start_paused = true)]
async fn error_does_not_reveal_if_foreign_lease_exists() {
    let scenario = Setup::new(Limits::default(), &[("web", 1)]);
    scenario.gateway.platform.add_lease(&lease(1), &[("web", 1)]);
    let mut errors = Vec::new();
    let mut client = scenario.gateway.client(&scenario.certificate).await;
    for foreign in [lease(1), lease(2)] {
        for status in errors_of_methods(&mut client, &foreign).await {
            check("foreign", &status, Code::PermissionDenied, "LEASE_NOT_YOURS");
            errors.push((status.message().to_owned(), status.details().to_vec()));
        }
        // The same holds for services of the lease.
        let filter = Some(ServiceFilter { name: "nope".into(), replicas: vec![9] });
        let lease_id = Some(proto_lease(&foreign));
        let request = ServiceLogsRequest { lease_id, filter, ..ServiceLogsRequest::default() };
        let status = client.service_logs(request).await.unwrap_err();
        errors.push((status.message().to_owned(), status.details().to_vec()));
    }
    errors.dedup();
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert_eq!(scenario.gateway.platform.open(), 0);
}

#[tokio::test(start_paused = true)]
async fn each_authentication_failure_has_its_reason() {
    let scenario = Setup::new(Limits::default(), &[("web", 1)]);
    let known = || Some(scenario.certificate.clone());
    let cases = [
        ("no credentials", None, None, "CREDENTIALS_MISSING"),
        ("another scheme", None, Some("Basic marker"), "AUTHORIZATION_MALFORMED"),
        ("invalid token", None, Some("Bearer marker"), "TOKEN_MALFORMED"),
        ("both", known(), Some("Bearer marker"), "CREDENTIALS_AMBIGUOUS"),
        ("both, one empty", known(), Some(""), "CREDENTIALS_AMBIGUOUS"),
        ("unknown certificate", Some(stranger()), None, "CERTIFICATE_UNKNOWN"),
        ("invalid certificate", Some(b"marker".to_vec()), None, "CERTIFICATE_MALFORMED"),
    ];
    for (case, certificate, authorization, reason) in cases {
        let status = rejection(&scenario, certificate, authorization).await;
        check(case, &status, Code::Unauthenticated, reason);
    }
    scenario.gateway.set_trust(TrustBehavior::Never);
    let status = rejection(&scenario, known(), None).await;
    check("no answer from the trust source", &status, Code::Unavailable, "TRUST_UNAVAILABLE");
    scenario.gateway.set_trust(TrustBehavior::AtOnce);
    scenario.open(scenario.request()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn invalid_request_without_credentials_reveals_nothing() {
    let scenario = Setup::new(Limits::default(), &[("web", 1)]);
    let mut raw = Raw::new(scenario.gateway.connect(None)).await;
    for body in [vec![], vec![0xff; 1_000], encoded(&ServiceLogsRequest::default())] {
        for method in ["ServiceLogs", "ServiceStatus", "ServiceRestart"] {
            let status = raw.call(method, body.clone()).await.status;
            check(method, &status, Code::Unauthenticated, "CREDENTIALS_MISSING");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn tenants_with_similar_leases_see_only_their_own() {
    let gateway = Gateway::new(Limits::default());
    let tenants = [gateway.tenant(), gateway.tenant()];
    let leases = tenants.each_ref().map(|(owner, _)| {
        let lease = LeaseId::new(owner.as_str(), 7, 1, 1, account(200).as_str()).unwrap();
        gateway.platform.add_lease(&lease, &[("web", 1)]);
        lease
    });
    let pairs = {
        let [(_, first), (_, second)] = tenants;
        let [one, other] = leases;
        [(one, first), (other, second)]
    };
    let mut streams = Vec::new();
    for (lease, certificate) in &pairs {
        let run = gateway.platform.start(lease, &replica("web", 0));
        gateway.platform.print(&run, [format!("history of {}\n", lease.owner())]);
        let lease_id = Some(proto_lease(lease));
        let request = ServiceLogsRequest { lease_id, follow: true, ..ServiceLogsRequest::default() };
        let mut client = gateway.client(certificate).await;
        let stream = client.service_logs(request).await.unwrap().into_inner();
        streams.push((stream, run, lease.owner(), client));
    }
    for (_, run, owner, _) in &streams {
        gateway.platform.print(run, [format!("live of {owner}\n")]);
    }
    for (stream, run, owner, client) in &mut streams {
        let expected = format!("history of {owner}\nlive of {owner}\n");
        let mut text = Vec::new();
        while text.len() < expected.len() {
            for entry in stream.message().await.unwrap().unwrap().services {
                assert!(entry.cursor.is_none_or(|cursor| cursor.instance == run.as_str()));
                text.extend(entry.logs);
            }
        }
        assert_eq!(String::from_utf8(text).unwrap(), expected);
        for (lease, _) in pairs.iter().filter(|(lease, _)| lease.owner() != *owner) {
            for status in errors_of_methods(client, lease).await {
                check("lease of the other tenant", &status, Code::PermissionDenied, "LEASE_NOT_YOURS");
            }
        }
    }
    // One actor for each lease, for all that service and replica are named alike.
    assert_eq!(gateway.metric("leasemux_actors"), 2);
    assert_eq!(gateway.metric("leasemux_streams{method=\"ServiceLogs\"}"), 2);
}

#[tokio::test(start_paused = true)]
async fn owner_learns_that_lease_does_not_exist() {
    let scenario = Setup::new(Limits::default(), &[("web", 1)]);
    let mut client = scenario.gateway.client(&scenario.certificate).await;
    let elsewhere =
        LeaseId::new(scenario.lease.owner().as_str(), 8, 1, 1, scenario.lease.provider().as_str()).unwrap();
    let [logs, status, restart] = errors_of_methods(&mut client, &elsewhere).await;
    check("ServiceLogs", &logs, Code::NotFound, "LEASE_NOT_FOUND");
    check("ServiceStatus", &status, Code::NotFound, "LEASE_NOT_FOUND");
    check("ServiceRestart", &restart, Code::NotFound, "LEASE_NOT_FOUND");
}

#[tokio::test(start_paused = true)]
async fn unknown_method_is_unimplemented() {
    let scenario = Setup::new(Limits::default(), &[("web", 1)]);
    let mut raw = Raw::new(scenario.gateway.connect(Some(scenario.certificate.clone()))).await;
    for method in ["ServiceShell", "serviceLogs", "ServiceLogs/", "ServiceLogs/x", ""] {
        let answer = raw.call(method, encoded(&scenario.request())).await;
        assert_eq!(answer.status.code(), Code::Unimplemented, "{method}: {:?}", answer.status);
    }
    assert_eq!(raw.call("ServiceLogs", encoded(&scenario.request())).await.status.code(), Code::Ok);
}

#[tokio::test(start_paused = true)]
async fn call_during_drain_is_rejected() {
    let scenario = Setup::new(Limits::default(), &[("web", 1)]);
    let gateway = &scenario.gateway;
    gateway.set_trust(TrustBehavior::Later);
    let call = scenario.open(ServiceLogsRequest { follow: true, ..scenario.request() });
    let drain = async {
        gateway.eventually(|gateway| gateway.calls_at_the_gate() == 1).await;
        gateway.drain.begin();
        gateway.set_trust(TrustBehavior::AtOnce);
    };
    let (call, ()) = tokio::join!(call, drain);
    check("draining", &call.err().unwrap(), Code::Unavailable, "DRAINING");
    assert!(gateway.drain.finish(Duration::from_secs(10)).await, "the drain timed out");
    assert_eq!(gateway.metric("leasemux_streams{method=\"ServiceLogs\"}"), 0);
}

#[tokio::test(start_paused = true)]
async fn draining_connection_rejects_every_call() {
    let scenario = Setup::new(Limits::default(), &[("web", 1)]);
    let mut client = scenario.gateway.client(&scenario.certificate).await;
    client.service_logs(scenario.request()).await.unwrap();
    scenario.gateway.drain.begin();
    let calls = (0..20).map(|_| {
        let mut client = client.clone();
        let request = scenario.request();
        async move { client.service_logs(request).await.unwrap_err() }
    });
    for status in futures_util::future::join_all(calls).await {
        // By the gateway, or by HTTP/2, which reports that the call was not processed.
        if status.get_details_error_info().is_some() {
            check("draining", &status, Code::Unavailable, "DRAINING");
        } else {
            assert!(status.source().is_some(), "neither from the gateway nor from HTTP/2: {status:?}");
        }
    }
}
