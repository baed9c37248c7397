//! The REST and websocket port: what clients of the Akash provider receive.

use leasemux::access::grants::{Access, Deployment, ProviderAccess, TokenScope};
use leasemux::access::wallet::Wallet;
use leasemux::edge::rest::RestSettings;
use leasemux::logs::notice::Notices;
use leasemux::model::id::{Instance, LeaseId};
use leasemux::model::limits::Limits;
use std::time::Duration;
use tokio::io::DuplexStream;

use crate::contract::tokens::signed_for;
use crate::support::fake_platform::FakePlatform;
use crate::support::gateway::{Gateway, Setup};
use crate::support::rest::{Answer, WsFollower, exchange};
use crate::support::{account, replica};

mod connections;
mod ends;
mod entries;
mod page;
mod program;
mod requests;
mod restarts;
mod streams;

const HOUR: Duration = Duration::from_secs(3_600);

/// A gateway with a REST port, and a tenant that has a lease, a certificate and an account.
struct Rest {
    gateway: Gateway,
    wallet: Wallet,
    /// Of the wallet.
    lease: LeaseId,
    settings: RestSettings,
}

impl Rest {
    fn new(limits: Limits, services: &[(&str, u32)]) -> Self {
        let gateway = Gateway::new(limits);
        let wallet = gateway.account();
        let owner = wallet.key().address();
        let lease = LeaseId::new(owner.as_str(), 7, 1, 1, account(200).as_str()).unwrap();
        gateway.platform.add_lease(&lease, services);
        Self { gateway, wallet, lease, settings: settings() }
    }

    /// Creates a gateway with one running replica, `web/0`.
    fn one_run(limits: Limits) -> (Self, Instance) {
        let rest = Self::new(limits, &[("web", 1)]);
        let run = rest.platform().start(&rest.lease, &replica("web", 0));
        (rest, run)
    }

    fn platform(&self) -> &FakePlatform {
        &self.gateway.platform
    }

    fn connect(&self) -> DuplexStream {
        self.gateway.connect_rest(self.settings.clone(), None, None)
    }

    /// Returns a token that is valid for an hour.
    fn token(&self, access: Access) -> String {
        signed_for(&self.wallet, access, HOUR)
    }

    /// Returns a token for these services of the lease.
    fn granular(&self, scopes: &[TokenScope], services: &[&str]) -> String {
        let deployment = Deployment {
            dseq: 7,
            gseq: None,
            oseq: None,
            scopes: scopes.iter().copied().collect(),
            services: services.iter().map(ToString::to_string).collect(),
        };
        let entry = ProviderAccess::Granular(vec![deployment]);
        self.token(Access::Granular([(self.lease.provider().clone(), entry)].into()))
    }

    /// Sends a request with these header lines.
    async fn send(&self, method: &str, path: &str, headers: &str) -> Answer {
        exchange(self.connect(), &format!("{method} {path} HTTP/1.1\r\nHost: any\r\n{headers}")).await
    }

    /// Sends a GET request with full access.
    async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &self.bearer(Access::Full)).await
    }

    fn bearer(&self, access: Access) -> String {
        format!("Authorization: Bearer {}\r\n", self.token(access))
    }

    /// Opens a websocket with full access.
    async fn open(&self, route_and_query: &str) -> WsFollower<DuplexStream> {
        self.open_with(route_and_query, &self.token(Access::Full)).await
    }

    async fn open_with(&self, route_and_query: &str, token: &str) -> WsFollower<DuplexStream> {
        let bearer = format!("Bearer {token}");
        let path = format!("/lease/7/1/1/{route_and_query}");
        WsFollower::open(self.connect(), &path, &[("authorization", &bearer)]).await
    }
}

/// Settings of a REST port.
pub(crate) fn settings() -> RestSettings {
    RestSettings {
        provider: account(200),
        public_host: "provider.test".to_owned(),
        notices: Notices::All,
        native_events: true,
        token_grace: 24 * HOUR,
        serves_page: false,
    }
}

/// Opens a websocket of a lease with the certificate of its owner.
pub(crate) async fn open_by_certificate(setup: &Setup, query: &str) -> WsFollower<DuplexStream> {
    let io = setup.gateway.connect_rest(settings(), Some(setup.certificate.clone()), None);
    WsFollower::open(io, &format!("/lease/7/1/1/logs?{query}"), &[]).await
}

/// Returns lines that are numbered and all differ.
fn numbered(range: std::ops::RangeInclusive<u32>) -> impl Iterator<Item = String> {
    range.map(|number| format!("{number} {number:0120}\n"))
}
