//! Tokens: what they grant, and what not.

use std::time::Duration;

use leasemux::access::grants::{Access, Deployment, ProviderAccess, Scopes, TokenScope};
use leasemux::access::token::{Algorithm, Claims};
use leasemux::access::wallet::{Mnemonic, Wallet};
use leasemux::model::id::LeaseId;
use leasemux::model::limits::Limits;
use leasemux::model::proto::lease::{
    Cursor, ServiceFilter, ServiceLogsRequest, ServiceLogsResponse, ServiceRestartRequest,
    ServiceStatusRequest,
};
use leasemux::model::time::LogTime;
use tonic::{Code, Status, Streaming};

use super::check;
use crate::support::fake_platform::RestartBehavior;
use crate::support::gateway::{Gateway, TokenClient, proto_lease};
use crate::support::{account, lease, replica};

const LIFETIME: Duration = Duration::from_secs(600);

/// A gateway, a tenant with an account, and a lease of theirs.
struct Scenario {
    gateway: Gateway,
    wallet: Wallet,
    lease: LeaseId,
}

impl Scenario {
    fn new(services: &[(&str, u32)]) -> Self {
        let gateway = Gateway::new(Limits::default());
        let wallet = gateway.account();
        let owner = wallet.key().address();
        let lease = LeaseId::new(owner.as_str(), 7, 1, 1, account(200).as_str()).unwrap();
        gateway.platform.add_lease(&lease, services);
        for (name, _) in services {
            let run = gateway.platform.start(&lease, &replica(name, 0));
            gateway.platform.print(&run, [format!("of {name}\n")]);
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

    /// Calls each method for these services.
    async fn call_each_method(&self, client: &mut TokenClient, services: &[&str]) -> [Result<(), Status>; 3] {
        let ServiceLogsRequest { lease_id, filters, .. } = self.request(services);
        let status = ServiceStatusRequest {
            lease_id: lease_id.clone(),
            filters: filters.clone(),
            ..ServiceStatusRequest::default()
        };
        let restart = ServiceRestartRequest { lease_id, filters, ..ServiceRestartRequest::default() };
        [
            client.service_logs(self.request(services)).await.map(drop),
            client.service_status(status).await.map(drop),
            client.service_restart(restart).await.map(drop),
        ]
    }

    /// Returns access to these services of the lease.
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

pub(crate) fn signed_for(wallet: &Wallet, access: Access, lifetime: Duration) -> String {
    let now = u64::try_from(LogTime::now().parts().0).unwrap();
    let issuer = wallet.key().address();
    let expires = now + lifetime.as_secs();
    let claims = Claims { issuer, issued: now, not_before: now, expires, id: None, access };
    wallet.sign(Algorithm::Es256kAdr36, &claims).unwrap()
}

/// Returns all lines of a stream that ends by itself.
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
async fn token_scope_decides_access_to_logs() {
    let scenario = Scenario::new(&[("api", 1), ("web", 1)]);
    let logs: Scopes = [TokenScope::Logs].into_iter().collect();
    for access in [Access::Full, Access::Scoped(logs), scenario.granted(&[TokenScope::Logs], &["api", "web"])]
    {
        let stream = scenario.client(access).await.service_logs(scenario.request(&[])).await.unwrap();
        assert_eq!(lines(stream.into_inner()).await, ["of api\n", "of web\n"]);
    }
    let status: Scopes = [TokenScope::Status, TokenScope::Restart, TokenScope::Shell].into_iter().collect();
    for access in [Access::Scoped(status), scenario.granted(&[TokenScope::Status], &["web"])] {
        let error = scenario.client(access).await.service_logs(scenario.request(&[])).await.unwrap_err();
        check("scope", &error, Code::PermissionDenied, "SCOPE_NOT_GRANTED");
    }
    let elsewhere = Access::Granular([(account(201), ProviderAccess::Full)].into());
    let error = scenario.client(elsewhere).await.service_logs(scenario.request(&[])).await.unwrap_err();
    check("provider", &error, Code::PermissionDenied, "LEASE_NOT_GRANTED");
}

#[tokio::test(start_paused = true)]
async fn each_method_needs_its_scope_and_obeys_services() {
    let scenario = Scenario::new(&[("api", 1), ("web", 1)]);
    let ServiceLogsRequest { lease_id, .. } = scenario.request(&[]);
    for granted in [TokenScope::Logs, TokenScope::Status, TokenScope::Restart] {
        let mut client = scenario.client(scenario.granted(&[granted], &["web"])).await;
        for services in [&[][..], &["web"], &["api"]] {
            let filters = scenario.request(services).filters;
            let logs = client.service_logs(scenario.request(services)).await.map(drop);
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
            for (scope, error) in outcomes {
                let case = format!("{scope:?} of {services:?} by {granted:?}");
                if scope != granted {
                    check(&case, error.expect(&case), Code::PermissionDenied, "SCOPE_NOT_GRANTED");
                } else if services == ["api"] {
                    check(&case, error.expect(&case), Code::PermissionDenied, "SERVICE_NOT_GRANTED");
                } else {
                    assert!(error.is_none(), "{case}: {error:?}");
                }
            }
            if let Ok(status) = status {
                let answer = status.into_inner().message().await.unwrap().unwrap();
                let names: Vec<_> = answer.services.iter().map(|service| service.name.as_str()).collect();
                assert_eq!(names, ["web"]);
            }
            if let Ok(restart) = restart {
                let replicas = restart.into_inner().status;
                assert!(replicas.len() == 1 && replicas[0].service == "web", "{replicas:?}");
            }
        }
    }
    tokio::time::sleep(LIFETIME).await;
    let restarted = scenario.gateway.platform.restarted();
    assert!(!restarted.is_empty() && restarted.iter().all(|replica| replica == "web/0"), "{restarted:?}");
}

#[tokio::test(start_paused = true)]
async fn invalid_service_name_in_token_grants_nothing() {
    let scenario = Scenario::new(&[("api", 1), ("web", 1)]);
    let scopes = [TokenScope::Logs, TokenScope::Status, TokenScope::Restart];
    for name in ["", "**", "Web"] {
        let mut client = scenario.client(scenario.granted(&scopes, &[name])).await;
        for services in [&[][..], &["web"]] {
            for result in scenario.call_each_method(&mut client, services).await {
                let case = format!("{name:?} {services:?}");
                check(&case, &result.unwrap_err(), Code::PermissionDenied, "SERVICE_NOT_GRANTED");
            }
        }
        let mut mixed = scenario.client(scenario.granted(&scopes, &[name, "web"])).await;
        let stream = mixed.service_logs(scenario.request(&[])).await.unwrap();
        assert_eq!(lines(stream.into_inner()).await, ["of web\n"]);
    }
    assert!(scenario.gateway.platform.restarted().is_empty());
}

#[tokio::test(start_paused = true)]
async fn star_in_token_grants_every_service_of_the_lease() {
    let scenario = Scenario::new(&[("api", 1), ("web", 1)]);
    let scopes = [TokenScope::Logs, TokenScope::Status, TokenScope::Restart];
    let mut client = scenario.client(scenario.granted(&scopes, &["*"])).await;
    let stream = client.service_logs(scenario.request(&[])).await.unwrap();
    assert_eq!(lines(stream.into_inner()).await, ["of api\n", "of web\n"]);
    for result in scenario.call_each_method(&mut client, &["api"]).await {
        result.unwrap();
    }
    let mut logs_only = scenario.client(scenario.granted(&[TokenScope::Logs], &["*"])).await;
    let status = ServiceStatusRequest { lease_id: scenario.request(&[]).lease_id, ..Default::default() };
    let error = logs_only.service_status(status).await.unwrap_err();
    check("status", &error, Code::PermissionDenied, "SCOPE_NOT_GRANTED");
}

#[tokio::test(start_paused = true)]
async fn empty_service_name_in_filter_is_rejected_by_field() {
    let scenario = Scenario::new(&[("api", 1), ("web", 1)]);
    let mut client = scenario.client(Access::Full).await;
    for (services, field) in [(&[""][..], "filters[0].name"), (&["web", ""], "filters[1].name")] {
        for result in scenario.call_each_method(&mut client, services).await {
            let error = result.unwrap_err();
            check(field, &error, Code::InvalidArgument, "INVALID_REQUEST");
            assert!(error.message().contains(field), "{error:?}");
        }
    }
    assert!(scenario.gateway.platform.restarted().is_empty());
}

#[tokio::test(start_paused = true)]
async fn expired_token_ends_wait_for_restart() {
    let scenario = Scenario::new(&[("web", 1)]);
    scenario.gateway.platform.set_restart_behavior(&replica("web", 0), RestartBehavior::Never);
    // Expires long before the restart has an outcome.
    let minute = Duration::from_secs(60);
    let token = signed_for(&scenario.wallet, Access::Full, minute);
    let mut client = scenario.gateway.client_with_token(&token).await;
    let hour = prost_types::Duration { seconds: 3_600, nanos: 0 };
    let request = ServiceRestartRequest {
        lease_id: scenario.request(&[]).lease_id,
        timeout: Some(hour),
        ..ServiceRestartRequest::default()
    };
    let began = tokio::time::Instant::now();
    let error = client.service_restart(request).await.unwrap_err();
    check("waiting", &error, Code::Unauthenticated, "TOKEN_EXPIRED");
    assert!(began.elapsed() <= minute);
    assert_eq!(scenario.gateway.platform.restarted(), ["web/0"], "the restart did not continue");
}

#[tokio::test(start_paused = true)]
async fn missing_filter_selects_granted_services() {
    let scenario = Scenario::new(&[("api", 1), ("web", 1)]);
    // The grant may name a service that does not exist.
    let mut client = scenario.client(scenario.granted(&[TokenScope::Logs], &["web", "later"])).await;
    for services in [&[][..], &["web"]] {
        let stream = client.service_logs(scenario.request(services)).await.unwrap();
        assert_eq!(lines(stream.into_inner()).await, ["of web\n"]);
    }
    let missing = client.service_logs(scenario.request(&["later"])).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
    let time = Some(LogTime::from_nanos(1).into());
    let cursor =
        Cursor { service: "api".into(), instance: "uid/api/0".into(), time, ordinal: 1, ..Cursor::default() };
    let resume = ServiceLogsRequest { resume: vec![cursor], ..scenario.request(&[]) };
    let error = client.service_logs(resume).await.unwrap_err();
    check("cursor", &error, Code::PermissionDenied, "SERVICE_NOT_GRANTED");
}

#[tokio::test(start_paused = true)]
async fn error_does_not_reveal_if_ungranted_service_exists() {
    let scenario = Scenario::new(&[("api", 1), ("web", 1)]);
    let mut client = scenario.client(scenario.granted(&[TokenScope::Logs], &["web"])).await;
    let mut errors = Vec::new();
    for services in [&["api"][..], &["nope"], &["web", "api"], &["web", "nope"]] {
        let status = client.service_logs(scenario.request(services)).await.unwrap_err();
        check("service", &status, Code::PermissionDenied, "SERVICE_NOT_GRANTED");
        errors.push((status.message().to_owned(), status.details().to_vec()));
    }
    errors.dedup();
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert_eq!(scenario.gateway.platform.open(), 0);
}

#[tokio::test(start_paused = true)]
async fn token_error_does_not_reveal_if_lease_exists() {
    let scenario = Scenario::new(&[("web", 1)]);
    scenario.gateway.platform.add_lease(&lease(1), &[("web", 1)]);
    let tokens = [Access::Full, scenario.granted(&[TokenScope::Logs], &["web"])];
    let mut errors = Vec::new();
    for access in tokens {
        let mut client = scenario.client(access).await;
        for foreign in [lease(1), lease(2)] {
            let lease_id = Some(proto_lease(&foreign));
            let request = ServiceLogsRequest { lease_id, ..scenario.request(&[]) };
            let status = client.service_logs(request).await.unwrap_err();
            check("foreign", &status, Code::PermissionDenied, "LEASE_NOT_YOURS");
            errors.push((status.message().to_owned(), status.details().to_vec()));
        }
    }
    errors.dedup();
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert_eq!(scenario.gateway.platform.open(), 0);
}

#[tokio::test(start_paused = true)]
async fn token_of_unknown_or_wrong_account_is_rejected() {
    let scenario = Scenario::new(&[("web", 1)]);
    let stranger = Mnemonic::generate().unwrap().wallet().unwrap();
    let mut client = scenario.gateway.client_with_token(&signed(&stranger, Access::Full)).await;
    let status = client.service_logs(scenario.request(&[])).await.unwrap_err();
    check("stranger", &status, Code::Unauthenticated, "ACCOUNT_UNKNOWN");
    let now = u64::try_from(LogTime::now().parts().0).unwrap();
    let issuer = scenario.wallet.key().address();
    let expires = now + 60;
    let claims = Claims { issuer, issued: now, not_before: now, expires, id: None, access: Access::Full };
    let forged = stranger.sign(Algorithm::Es256k, &claims).unwrap();
    let mut client = scenario.gateway.client_with_token(&forged).await;
    let status = client.service_logs(scenario.request(&[])).await.unwrap_err();
    check("forged", &status, Code::Unauthenticated, "TOKEN_SIGNATURE");
}

#[tokio::test(start_paused = true)]
async fn stream_ends_when_token_expires_or_account_is_revoked() {
    let scenario = Scenario::new(&[("web", 1)]);
    let follow = ServiceLogsRequest { follow: true, ..scenario.request(&[]) };
    let mut client = scenario.client(Access::Full).await;
    let began = tokio::time::Instant::now();
    let stream = client.service_logs(follow.clone()).await.unwrap().into_inner();
    let status = end(stream).await;
    check("expired", &status, Code::Unauthenticated, "TOKEN_EXPIRED");
    // The token was signed before this clock was read, and its times are whole seconds.
    let second = Duration::from_secs(1);
    assert!(began.elapsed() + 30 * second > LIFETIME && began.elapsed() <= LIFETIME + second);
    let stream = client.service_logs(follow).await.unwrap().into_inner();
    scenario.gateway.withdraw_account(scenario.lease.owner());
    check("withdrawn", &end(stream).await, Code::Unauthenticated, "ACCOUNT_WITHDRAWN");
}
