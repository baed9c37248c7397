//! What a token lets its holder do, and what it does not.

use std::time::Duration;

use leasemux::access::grants::{Access, Deployment, ProviderAccess, Scopes, TokenScope};
use leasemux::access::token::{Algorithm, Claims};
use leasemux::access::wallet::{Wallet, Words};
use leasemux::model::id::LeaseId;
use leasemux::model::limits::Limits;
use leasemux::model::proto::lease::{
    Cursor, ServiceFilter, ServiceLogsRequest, ServiceLogsResponse, ServiceRestartRequest,
    ServiceStatusRequest,
};
use leasemux::model::time::LogTime;
use tonic::{Code, Status, Streaming};

use super::check;
use crate::support::gateway::{Gateway, TokenClient, proto_lease};
use crate::support::world::Comeback;
use crate::support::{account, lease, replica};

const LIFETIME: Duration = Duration::from_secs(600);

/// A gateway, a tenant with an account, and their lease of two services.
struct Scene {
    gateway: Gateway,
    wallet: Wallet,
    lease: LeaseId,
}

impl Scene {
    fn new(services: &[(&str, u32)]) -> Self {
        let gateway = Gateway::new(Limits::default());
        let wallet = gateway.account();
        let owner = wallet.key().address();
        let lease = LeaseId::new(owner.as_str(), 7, 1, 1, account(200).as_str()).unwrap();
        gateway.world.add_lease(&lease, services);
        for (name, _) in services {
            let run = gateway.world.start(&lease, &replica(name, 0));
            gateway.world.print(&run, [format!("of {name}\n")]);
        }
        Self { gateway, wallet, lease }
    }

    fn token(&self, access: Access) -> String {
        signed(&self.wallet, access)
    }

    async fn client(&self, access: Access) -> TokenClient {
        self.gateway.client_with_token(&self.token(access)).await
    }

    fn request(&self, services: &[&str]) -> ServiceLogsRequest {
        let filters =
            services.iter().map(|name| ServiceFilter { name: (*name).into(), replicas: Vec::new() });
        let lease_id = Some(proto_lease(&self.lease));
        ServiceLogsRequest { lease_id, filters: filters.collect(), ..ServiceLogsRequest::default() }
    }

    /// For these services of the one lease.
    fn granted(&self, scopes: &[TokenScope], services: &[&str]) -> Access {
        let deployment = Deployment {
            dseq: 7,
            gseq: Some(1),
            oseq: None,
            scopes: scopes.iter().copied().collect(),
            services: services.iter().map(ToString::to_string).collect(),
        };
        let entry = ProviderAccess::Granular(vec![deployment]);
        Access::Granular([(self.lease.provider().clone(), entry)].into())
    }
}

fn signed(wallet: &Wallet, access: Access) -> String {
    signed_for(wallet, access, LIFETIME)
}

fn signed_for(wallet: &Wallet, access: Access, lifetime: Duration) -> String {
    let now = u64::try_from(LogTime::now().parts().0).unwrap();
    let issuer = wallet.key().address();
    let expires = now + lifetime.as_secs();
    let claims = Claims { issuer, issued: now, not_before: now, expires, id: None, access };
    wallet.sign(Algorithm::Es256kAdr36, &claims).unwrap()
}

/// All lines of a stream that ends by itself.
async fn lines(mut stream: Streaming<ServiceLogsResponse>) -> Vec<String> {
    let mut lines = Vec::new();
    while let Some(response) = stream.message().await.unwrap() {
        let logs = response.services.into_iter().map(|entry| String::from_utf8(entry.logs.to_vec()).unwrap());
        lines.extend(logs.filter(|text| !text.is_empty()));
    }
    lines.sort();
    lines
}

async fn end(mut stream: Streaming<ServiceLogsResponse>) -> Status {
    loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            Ok(None) => return Status::ok(""),
            Err(status) => return status,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_reads_what_its_scope_says() {
    let scene = Scene::new(&[("api", 1), ("web", 1)]);
    let logs: Scopes = [TokenScope::Logs].into_iter().collect();
    for access in [Access::Full, Access::Scoped(logs), scene.granted(&[TokenScope::Logs], &["api", "web"])] {
        let stream = scene.client(access).await.service_logs(scene.request(&[])).await.unwrap();
        assert_eq!(lines(stream.into_inner()).await, ["of api\n", "of web\n"]);
    }
    let status: Scopes = [TokenScope::Status, TokenScope::Restart, TokenScope::Shell].into_iter().collect();
    for access in [Access::Scoped(status), scene.granted(&[TokenScope::Status], &["web"])] {
        let refused = scene.client(access).await.service_logs(scene.request(&[])).await.unwrap_err();
        check("scope", &refused, Code::PermissionDenied, "SCOPE_NOT_GRANTED");
    }
    let elsewhere = Access::Granular([(account(201), ProviderAccess::Full)].into());
    let refused = scene.client(elsewhere).await.service_logs(scene.request(&[])).await.unwrap_err();
    check("provider", &refused, Code::PermissionDenied, "LEASE_NOT_GRANTED");
}

#[tokio::test(start_paused = true)]
async fn each_method_wants_its_own_scope_and_holds_to_the_services() {
    let scene = Scene::new(&[("api", 1), ("web", 1)]);
    let ServiceLogsRequest { lease_id, .. } = scene.request(&[]);
    for granted in [TokenScope::Logs, TokenScope::Status, TokenScope::Restart] {
        let mut client = scene.client(scene.granted(&[granted], &["web"])).await;
        for services in [&[][..], &["web"], &["api"]] {
            let filters = scene.request(services).filters;
            let logs = client.service_logs(scene.request(services)).await.map(drop);
            let status = ServiceStatusRequest {
                lease_id: lease_id.clone(),
                filters: filters.clone(),
                ..ServiceStatusRequest::default()
            };
            let status = client.service_status(status).await;
            let restart = ServiceRestartRequest {
                lease_id: lease_id.clone(),
                filters,
                ..ServiceRestartRequest::default()
            };
            let restart = client.service_restart(restart).await;
            let outcomes = [
                (TokenScope::Logs, logs.as_ref().err()),
                (TokenScope::Status, status.as_ref().err()),
                (TokenScope::Restart, restart.as_ref().err()),
            ];
            for (scope, refused) in outcomes {
                let case = format!("{scope:?} of {services:?} by {granted:?}");
                if scope != granted {
                    check(&case, refused.expect(&case), Code::PermissionDenied, "SCOPE_NOT_GRANTED");
                } else if services == ["api"] {
                    check(&case, refused.expect(&case), Code::PermissionDenied, "SERVICE_NOT_GRANTED");
                } else {
                    assert!(refused.is_none(), "{case}: {refused:?}");
                }
            }
            if let Ok(status) = status {
                let answer = status.into_inner().message().await.unwrap().unwrap();
                let names: Vec<_> = answer.services.iter().map(|service| service.name.as_str()).collect();
                assert_eq!(names, ["web"]);
            }
            if let Ok(restart) = restart {
                let told = restart.into_inner().status;
                assert!(told.len() == 1 && told[0].service == "web", "{told:?}");
            }
        }
    }
    tokio::time::sleep(LIFETIME).await;
    let restarted = scene.gateway.world.restarted();
    assert!(!restarted.is_empty() && restarted.iter().all(|replica| replica == "web/0"), "{restarted:?}");
}

#[tokio::test(start_paused = true)]
async fn empty_service_name_in_a_token_grants_nothing() {
    let scene = Scene::new(&[("api", 1), ("web", 1)]);
    let scopes = [TokenScope::Logs, TokenScope::Status, TokenScope::Restart];
    for name in ["", "*", "Web"] {
        let mut client = scene.client(scene.granted(&scopes, &[name])).await;
        for services in [&[][..], &["web"]] {
            let ServiceLogsRequest { lease_id, filters, .. } = scene.request(services);
            let logs = client.service_logs(scene.request(services)).await.map(drop);
            let status = ServiceStatusRequest {
                lease_id: lease_id.clone(),
                filters: filters.clone(),
                ..ServiceStatusRequest::default()
            };
            let status = client.service_status(status).await.map(drop);
            let restart = ServiceRestartRequest { lease_id, filters, ..ServiceRestartRequest::default() };
            let restart = client.service_restart(restart).await.map(drop);
            for refused in [logs, status, restart] {
                let case = format!("{name:?} {services:?}");
                check(&case, &refused.unwrap_err(), Code::PermissionDenied, "SERVICE_NOT_GRANTED");
            }
        }
        let mut beside = scene.client(scene.granted(&scopes, &[name, "web"])).await;
        let stream = beside.service_logs(scene.request(&[])).await.unwrap();
        assert_eq!(lines(stream.into_inner()).await, ["of web\n"]);
    }
    assert!(scene.gateway.world.restarted().is_empty());
}

#[tokio::test(start_paused = true)]
async fn empty_service_name_in_a_filter_names_the_field() {
    let scene = Scene::new(&[("api", 1), ("web", 1)]);
    let mut client = scene.client(Access::Full).await;
    for (services, field) in [(&[""][..], "filters[0].name"), (&["web", ""], "filters[1].name")] {
        let ServiceLogsRequest { lease_id, filters, .. } = scene.request(services);
        let logs = client.service_logs(scene.request(services)).await.map(drop);
        let status = ServiceStatusRequest {
            lease_id: lease_id.clone(),
            filters: filters.clone(),
            ..ServiceStatusRequest::default()
        };
        let status = client.service_status(status).await.map(drop);
        let restart = ServiceRestartRequest { lease_id, filters, ..ServiceRestartRequest::default() };
        let restart = client.service_restart(restart).await.map(drop);
        for refused in [logs, status, restart] {
            let refused = refused.unwrap_err();
            check(field, &refused, Code::InvalidArgument, "INVALID_REQUEST");
            assert!(refused.message().contains(field), "{refused:?}");
        }
    }
    assert!(scene.gateway.world.restarted().is_empty());
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_restart_is_told_when_the_token_expires() {
    let scene = Scene::new(&[("web", 1)]);
    scene.gateway.world.set_comeback(&replica("web", 0), Comeback::Never);
    // It expires long before there is a verdict.
    let minute = Duration::from_secs(60);
    let token = signed_for(&scene.wallet, Access::Full, minute);
    let mut client = scene.gateway.client_with_token(&token).await;
    let hour = prost_types::Duration { seconds: 3_600, nanos: 0 };
    let request = ServiceRestartRequest {
        lease_id: scene.request(&[]).lease_id,
        timeout: Some(hour),
        ..ServiceRestartRequest::default()
    };
    let begun = tokio::time::Instant::now();
    let refused = client.service_restart(request).await.unwrap_err();
    check("waiting", &refused, Code::Unauthenticated, "TOKEN_EXPIRED");
    assert!(begun.elapsed() <= minute);
    assert_eq!(scene.gateway.world.restarted(), ["web/0"], "it goes on");
}

#[tokio::test(start_paused = true)]
async fn no_filter_means_the_services_that_are_granted() {
    let scene = Scene::new(&[("api", 1), ("web", 1)]);
    // One that does not exist is allowed, not asked for.
    let mut client = scene.client(scene.granted(&[TokenScope::Logs], &["web", "later"])).await;
    for services in [&[][..], &["web"]] {
        let stream = client.service_logs(scene.request(services)).await.unwrap();
        assert_eq!(lines(stream.into_inner()).await, ["of web\n"]);
    }
    let missing = client.service_logs(scene.request(&["later"])).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
    let time = Some(LogTime::from_nanos(1).into());
    let cursor =
        Cursor { service: "api".into(), instance: "uid/api/0".into(), time, ordinal: 1, ..Cursor::default() };
    let resume = ServiceLogsRequest { resume: vec![cursor], ..scene.request(&[]) };
    let refused = client.service_logs(resume).await.unwrap_err();
    check("cursor", &refused, Code::PermissionDenied, "SERVICE_NOT_GRANTED");
}

#[tokio::test(start_paused = true)]
async fn a_service_beyond_the_token_is_refused_alike_whether_it_exists_or_not() {
    let scene = Scene::new(&[("api", 1), ("web", 1)]);
    let mut client = scene.client(scene.granted(&[TokenScope::Logs], &["web"])).await;
    let mut told = Vec::new();
    for services in [&["api"][..], &["nope"], &["web", "api"], &["web", "nope"]] {
        let status = client.service_logs(scene.request(services)).await.unwrap_err();
        check("service", &status, Code::PermissionDenied, "SERVICE_NOT_GRANTED");
        told.push((status.message().to_owned(), status.details().to_vec()));
    }
    told.dedup();
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(scene.gateway.world.open(), 0);
}

#[tokio::test(start_paused = true)]
async fn holders_of_tokens_are_told_the_same_whether_a_foreign_lease_exists_or_not() {
    let scene = Scene::new(&[("web", 1)]);
    scene.gateway.world.add_lease(&lease(1), &[("web", 1)]);
    let tokens = [Access::Full, scene.granted(&[TokenScope::Logs], &["web"])];
    let mut told = Vec::new();
    for access in tokens {
        let mut client = scene.client(access).await;
        for foreign in [lease(1), lease(2)] {
            let lease_id = Some(proto_lease(&foreign));
            let request = ServiceLogsRequest { lease_id, ..scene.request(&[]) };
            let status = client.service_logs(request).await.unwrap_err();
            check("foreign", &status, Code::PermissionDenied, "LEASE_NOT_YOURS");
            told.push((status.message().to_owned(), status.details().to_vec()));
        }
    }
    told.dedup();
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(scene.gateway.world.open(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_token_of_nobody_or_signed_by_another_is_refused() {
    let scene = Scene::new(&[("web", 1)]);
    let stranger = Words::fresh().unwrap().wallet().unwrap();
    let mut client = scene.gateway.client_with_token(&signed(&stranger, Access::Full)).await;
    let status = client.service_logs(scene.request(&[])).await.unwrap_err();
    check("stranger", &status, Code::Unauthenticated, "ACCOUNT_UNKNOWN");
    let now = u64::try_from(LogTime::now().parts().0).unwrap();
    let issuer = scene.wallet.key().address();
    let expires = now + 60;
    let claims = Claims { issuer, issued: now, not_before: now, expires, id: None, access: Access::Full };
    let forged = stranger.sign(Algorithm::Es256k, &claims).unwrap();
    let mut client = scene.gateway.client_with_token(&forged).await;
    let status = client.service_logs(scene.request(&[])).await.unwrap_err();
    check("forged", &status, Code::Unauthenticated, "TOKEN_SIGNATURE");
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_with_its_token_or_its_account() {
    let scene = Scene::new(&[("web", 1)]);
    let follow = ServiceLogsRequest { follow: true, ..scene.request(&[]) };
    let mut client = scene.client(Access::Full).await;
    let begun = tokio::time::Instant::now();
    let stream = client.service_logs(follow.clone()).await.unwrap().into_inner();
    let status = end(stream).await;
    check("expired", &status, Code::Unauthenticated, "TOKEN_EXPIRED");
    // The token was made before this clock was read, and its times are whole seconds.
    let second = Duration::from_secs(1);
    assert!(begun.elapsed() + 30 * second > LIFETIME && begun.elapsed() <= LIFETIME + second);
    let stream = client.service_logs(follow).await.unwrap().into_inner();
    scene.gateway.withdraw_account(scene.lease.owner());
    check("withdrawn", &end(stream).await, Code::Unauthenticated, "ACCOUNT_WITHDRAWN");
}
