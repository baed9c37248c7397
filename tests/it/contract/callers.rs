//! Who is let in, and what the others learn: nothing.

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
use crate::support::gateway::{Gateway, Mood, Scene, proto_lease};
use crate::support::raw::{Raw, encoded};
use crate::support::{account, lease, replica};

/// The refusal of a call with these credentials.
async fn refusal(scene: &Scene, certificate: Option<Vec<u8>>, authorization: Option<&'static str>) -> Status {
    let mut client = LeaseRpcClient::new(scene.gateway.channel_of(certificate).await);
    let mut request = Request::new(scene.request());
    if let Some(value) = authorization {
        request.metadata_mut().insert("authorization", MetadataValue::from_static(value));
    }
    client.service_logs(request).await.unwrap_err()
}

/// A certificate of good form that the gateway has never seen.
fn stranger() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    IdentityFiles::create(&dir.path().join("stranger"), LogTime::now()).unwrap();
    let (chain, _) = IdentityFiles::load(&dir.path().join("stranger")).unwrap().into_parts();
    chain[0].to_vec()
}

/// What each method answers for a lease.
async fn of_each_method(client: &mut LeaseRpcClient<Channel>, lease: &LeaseId) -> [Status; 3] {
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
async fn strangers_are_told_the_same_whether_a_lease_exists_or_not() {
    let scene = Scene::new(Limits::default(), &[("web", 1)]);
    scene.gateway.world.add_lease(&lease(1), &[("web", 1)]);
    let mut told = Vec::new();
    let mut client = scene.gateway.client(&scene.certificate).await;
    for foreign in [lease(1), lease(2)] {
        for status in of_each_method(&mut client, &foreign).await {
            check("foreign", &status, Code::PermissionDenied, "LEASE_NOT_YOURS");
            told.push((status.message().to_owned(), status.details().to_vec()));
        }
        // Not what is in it either.
        let filter = Some(ServiceFilter { name: "nope".into(), replicas: vec![9] });
        let lease_id = Some(proto_lease(&foreign));
        let request = ServiceLogsRequest { lease_id, filter, ..ServiceLogsRequest::default() };
        let status = client.service_logs(request).await.unwrap_err();
        told.push((status.message().to_owned(), status.details().to_vec()));
    }
    told.dedup();
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(scene.gateway.world.open(), 0);
}

#[tokio::test(start_paused = true)]
async fn each_way_of_not_being_known_has_its_reason() {
    let scene = Scene::new(Limits::default(), &[("web", 1)]);
    let known = || Some(scene.certificate.clone());
    let cases = [
        ("nothing", None, None, "CREDENTIALS_MISSING"),
        ("another scheme", None, Some("Basic marker"), "AUTHORIZATION_MALFORMED"),
        ("no token", None, Some("Bearer marker"), "TOKEN_MALFORMED"),
        ("both", known(), Some("Bearer marker"), "CREDENTIALS_AMBIGUOUS"),
        ("both, one empty", known(), Some(""), "CREDENTIALS_AMBIGUOUS"),
        ("unknown", Some(stranger()), None, "CERTIFICATE_UNKNOWN"),
        ("nonsense", Some(b"marker".to_vec()), None, "CERTIFICATE_MALFORMED"),
    ];
    for (case, certificate, authorization, reason) in cases {
        let status = refusal(&scene, certificate, authorization).await;
        check(case, &status, Code::Unauthenticated, reason);
    }
    scene.gateway.set_trust(Mood::Never);
    let status = refusal(&scene, known(), None).await;
    check("nobody to ask", &status, Code::Unavailable, "TRUST_UNAVAILABLE");
    scene.gateway.set_trust(Mood::AtOnce);
    scene.open(scene.request()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_is_not_known_learns_nothing_from_a_request_that_makes_no_sense() {
    let scene = Scene::new(Limits::default(), &[("web", 1)]);
    let mut raw = Raw::new(scene.gateway.connect(None)).await;
    for body in [vec![], vec![0xff; 1_000], encoded(&ServiceLogsRequest::default())] {
        for method in ["ServiceLogs", "ServiceStatus", "ServiceRestart"] {
            let status = raw.call(method, body.clone()).await.status;
            check(method, &status, Code::Unauthenticated, "CREDENTIALS_MISSING");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn two_tenants_with_leases_alike_see_their_own_only() {
    let gateway = Gateway::new(Limits::default());
    let tenants = [gateway.tenant(), gateway.tenant()];
    let leases = tenants.each_ref().map(|(owner, _)| {
        let lease = LeaseId::new(owner.as_str(), 7, 1, 1, account(200).as_str()).unwrap();
        gateway.world.add_lease(&lease, &[("web", 1)]);
        lease
    });
    let scenes = {
        let [(_, first), (_, second)] = tenants;
        let [one, other] = leases;
        [(one, first), (other, second)]
    };
    let mut streams = Vec::new();
    for (lease, certificate) in &scenes {
        let run = gateway.world.start(lease, &replica("web", 0));
        gateway.world.print(&run, [format!("history of {}\n", lease.owner())]);
        let lease_id = Some(proto_lease(lease));
        let request = ServiceLogsRequest { lease_id, follow: true, ..ServiceLogsRequest::default() };
        let mut client = gateway.client(certificate).await;
        let stream = client.service_logs(request).await.unwrap().into_inner();
        streams.push((stream, run, lease.owner(), client));
    }
    for (_, run, owner, _) in &streams {
        gateway.world.print(run, [format!("live of {owner}\n")]);
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
        for (lease, _) in scenes.iter().filter(|(lease, _)| lease.owner() != *owner) {
            for status in of_each_method(client, lease).await {
                check("the other's", &status, Code::PermissionDenied, "LEASE_NOT_YOURS");
            }
        }
    }
    // One actor for each lease, for all that service and replica are named alike.
    assert_eq!(gateway.metric("leasemux_actors"), 2);
    assert_eq!(gateway.metric("leasemux_streams{method=\"ServiceLogs\"}"), 2);
}

#[tokio::test(start_paused = true)]
async fn its_owner_is_told_that_a_lease_is_not_here() {
    let scene = Scene::new(Limits::default(), &[("web", 1)]);
    let mut client = scene.gateway.client(&scene.certificate).await;
    let elsewhere =
        LeaseId::new(scene.lease.owner().as_str(), 8, 1, 1, scene.lease.provider().as_str()).unwrap();
    let [logs, status, restart] = of_each_method(&mut client, &elsewhere).await;
    check("ServiceLogs", &logs, Code::NotFound, "LEASE_NOT_FOUND");
    check("ServiceStatus", &status, Code::NotFound, "LEASE_NOT_FOUND");
    check("ServiceRestart", &restart, Code::NotFound, "LEASE_NOT_FOUND");
}

#[tokio::test(start_paused = true)]
async fn a_method_or_service_that_does_not_exist_is_unimplemented() {
    let scene = Scene::new(Limits::default(), &[("web", 1)]);
    let mut raw = Raw::new(scene.gateway.connect(Some(scene.certificate.clone()))).await;
    for method in ["ServiceShell", "serviceLogs", "ServiceLogs/", "ServiceLogs/x", ""] {
        let answer = raw.call(method, encoded(&scene.request())).await;
        assert_eq!(answer.status.code(), Code::Unimplemented, "{method}: {:?}", answer.status);
    }
    assert_eq!(raw.call("ServiceLogs", encoded(&scene.request())).await.status.code(), Code::Ok);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_comes_while_the_gateway_ends_is_sent_away() {
    let scene = Scene::new(Limits::default(), &[("web", 1)]);
    let gateway = &scene.gateway;
    gateway.set_trust(Mood::Later);
    let call = scene.open(ServiceLogsRequest { follow: true, ..scene.request() });
    let end = async {
        gateway.eventually(|gateway| gateway.calls_at_the_gate() == 1).await;
        gateway.drain.begin();
        gateway.set_trust(Mood::AtOnce);
    };
    let (call, ()) = tokio::join!(call, end);
    check("draining", &call.err().unwrap(), Code::Unavailable, "DRAINING");
    assert!(gateway.drain.finish(Duration::from_secs(10)).await, "nothing is left to wait for");
    assert_eq!(gateway.metric("leasemux_streams{method=\"ServiceLogs\"}"), 0);
}

#[tokio::test(start_paused = true)]
async fn on_a_connection_that_drains_every_call_is_sent_away() {
    let scene = Scene::new(Limits::default(), &[("web", 1)]);
    let mut client = scene.gateway.client(&scene.certificate).await;
    client.service_logs(scene.request()).await.unwrap();
    scene.gateway.drain.begin();
    let calls = (0..20).map(|_| {
        let mut client = client.clone();
        let request = scene.request();
        async move { client.service_logs(request).await.unwrap_err() }
    });
    for status in futures_util::future::join_all(calls).await {
        // In the gateway's own words, or without any: HTTP/2 then says that the call was not begun.
        if status.get_details_error_info().is_some() {
            check("draining", &status, Code::Unavailable, "DRAINING");
        } else {
            assert!(status.source().is_some(), "not from the gateway: {status:?}");
        }
    }
}
