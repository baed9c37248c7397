//! Authorization of callers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::refusal::Refusal;
use crate::model::id::{Address, LeaseId, Owner, ServiceName};
use crate::model::view::Filter;

/// A scope of Akash's tokens (AEP-64). This gateway uses [`Logs`](Self::Logs), [`Status`](Self::Status) and
/// [`Restart`](Self::Restart).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TokenScope {
    /// Send the manifest.
    SendManifest,
    /// Read the manifest.
    GetManifest,
    /// Read the logs of services.
    Logs,
    /// Run a command in a service.
    Shell,
    /// Read events.
    Events,
    /// Read the status of services.
    Status,
    /// Restart services.
    Restart,
    /// Move a host name to this lease.
    HostnameMigrate,
    /// Move an IP address to this lease.
    IpMigrate,
    /// Get an attestation of the machine.
    Attestation,
}

/// The name in a token that stands for every service of a lease, in tokens of akt.
pub(crate) const EVERY_SERVICE: &str = "*";

/// The scopes of one grant.
pub type Scopes = BTreeSet<TokenScope>;

/// A grant at one level; `T` holds the entries of the next level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grant<T> {
    /// Every scope on every lease.
    Full,
    /// These scopes on every lease.
    Scoped(Scopes),
    /// Only the grants of the entries.
    Granular(T),
}

/// The grants of a token on its issuer's leases, by provider.
pub type Access = Grant<BTreeMap<Address, ProviderAccess>>;

/// The grants of a token on its issuer's leases at one provider. Several entries add up.
pub type ProviderAccess = Grant<Vec<Deployment>>;

/// The grants of a token on some leases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deployment {
    /// The deployment.
    pub dseq: u64,
    /// The group; `None` = any.
    pub gseq: Option<u32>,
    /// The order; `None` = any.
    pub oseq: Option<u32>,
    /// The granted scopes.
    pub scopes: Scopes,
    /// The services, as the token names them: `*` is all of them, and any other name that no service can have
    /// matches nothing. Never empty.
    pub services: BTreeSet<String>,
}

/// An authenticated caller and its grants. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    owner: Owner,
    access: Arc<Access>,
    /// The one provider whose leases are served; `None` = any.
    provider: Option<Address>,
}

/// The services of one lease on which a caller has a scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Services {
    /// All services, now and later.
    All,
    /// These services, whether they exist or not.
    Only(BTreeSet<ServiceName>),
}

// === impl TokenScope ===

impl TokenScope {
    /// Every scope once, with its name.
    pub(super) const NAMES: [(Self, &'static str); 10] = [
        (Self::SendManifest, "send-manifest"),
        (Self::GetManifest, "get-manifest"),
        (Self::Logs, "logs"),
        (Self::Shell, "shell"),
        (Self::Events, "events"),
        (Self::Status, "status"),
        (Self::Restart, "restart"),
        (Self::HostnameMigrate, "hostname-migrate"),
        (Self::IpMigrate, "ip-migrate"),
        (Self::Attestation, "attestation"),
    ];

    pub(super) fn name(self) -> &'static str {
        Self::NAMES[self as usize].1
    }

    pub(super) fn from_name(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(_, known)| *known == name).map(|(scope, _)| *scope)
    }
}

// === impl Grant ===

impl Access {
    /// Returns the services of `lease` on which `scope` is granted.
    fn services(&self, lease: &LeaseId, scope: TokenScope) -> Result<Services, Refusal> {
        let Some(providers) = self.granular(scope)? else {
            return Ok(Services::All);
        };
        let provider = providers.get(lease.provider()).ok_or(Refusal::LeaseNotGranted)?;
        let Some(deployments) = provider.granular(scope)? else {
            return Ok(Services::All);
        };
        let mut refusal = Refusal::LeaseNotGranted;
        let mut services = BTreeSet::new();
        for deployment in deployments.iter().filter(|deployment| deployment.matches(lease)) {
            if deployment.scopes.contains(&scope) {
                if deployment.services.contains(EVERY_SERVICE) {
                    return Ok(Services::All);
                }
                services.extend(deployment.services.iter().filter_map(|name| name.parse().ok()));
                refusal = Refusal::ServiceNotGranted;
            } else if refusal == Refusal::LeaseNotGranted {
                refusal = Refusal::ScopeNotGranted;
            }
        }
        // Refused rather than narrowed to no service: an empty set of names must never be read as all of
        // them.
        if services.is_empty() { Err(refusal) } else { Ok(Services::Only(services)) }
    }
}

impl<T> Grant<T> {
    /// Returns the entries of the next level, or `None` if this level grants `scope` by itself.
    fn granular(&self, scope: TokenScope) -> Result<Option<&T>, Refusal> {
        match self {
            Self::Full => Ok(None),
            Self::Scoped(scopes) if scopes.contains(&scope) => Ok(None),
            Self::Scoped(_) => Err(Refusal::ScopeNotGranted),
            Self::Granular(entries) => Ok(Some(entries)),
        }
    }
}

// === impl Deployment ===

impl Deployment {
    fn matches(&self, lease: &LeaseId) -> bool {
        self.dseq == lease.dseq()
            && self.gseq.is_none_or(|gseq| gseq == lease.gseq())
            && self.oseq.is_none_or(|oseq| oseq == lease.oseq())
    }
}

// === impl Identity ===

impl Identity {
    pub(super) fn new(owner: Owner, access: Access, provider: Option<Address>) -> Self {
        Self { owner, access: Arc::new(access), provider }
    }

    /// Returns the owner of the leases.
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Checks that the caller has `scope` on `lease`, and returns the services on which it does. Call it
    /// before any lookup, so that the answer cannot depend on what exists; then narrow the request by
    /// `Services::narrow`.
    ///
    /// # Errors
    /// [`Refusal::NotYours`] for another owner's lease, existing or not; [`Refusal::OtherProvider`] for one
    /// that is not served here; [`Refusal::LeaseNotGranted`], [`Refusal::ScopeNotGranted`] or
    /// [`Refusal::ServiceNotGranted`] if the token does not grant it.
    pub(crate) fn authorize(&self, lease: &LeaseId, scope: TokenScope) -> Result<Services, Refusal> {
        if *lease.owner() != self.owner {
            return Err(Refusal::NotYours);
        }
        if self.provider.as_ref().is_some_and(|provider| provider != lease.provider()) {
            return Err(Refusal::OtherProvider);
        }
        self.access.services(lease, scope)
    }
}

// === impl Services ===

impl Services {
    /// Returns whether `service` is one of them.
    pub(crate) fn contains(&self, service: &ServiceName) -> bool {
        match self {
            Self::All => true,
            Self::Only(services) => services.contains(service),
        }
    }

    /// Restricts `filter` to these services. A filter for everything becomes one for all of them, now and
    /// later.
    ///
    /// # Errors
    /// [`Refusal::ServiceNotGranted`] if it names another service, existing or not.
    pub(crate) fn narrow(&self, filter: &mut Filter) -> Result<(), Refusal> {
        let Self::Only(services) = self else {
            return Ok(());
        };
        if filter.services().all(|service| services.contains(service)) {
            filter.restrict(services.clone());
            Ok(())
        } else {
            Err(Refusal::ServiceNotGranted)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::refusal::RefusalKind;

    const SUPPORTED: [TokenScope; 3] = [TokenScope::Status, TokenScope::Logs, TokenScope::Restart];

    fn address(number: u8) -> Address {
        Address::from_account([number; 20])
    }

    fn lease(owner: u8, dseq: u64, gseq: u32, oseq: u32, provider: u8) -> LeaseId {
        LeaseId::new(address(owner).as_str(), dseq, gseq, oseq, address(provider).as_str()).unwrap()
    }

    fn services(names: &[&str]) -> BTreeSet<ServiceName> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    fn token(access: Access) -> Identity {
        Identity::new(address(1), access, None)
    }

    fn granular(deployments: Vec<Deployment>) -> Identity {
        token(Access::Granular([(address(9), ProviderAccess::Granular(deployments))].into()))
    }

    fn deployment(gseq: Option<u32>, oseq: Option<u32>, scopes: &[TokenScope], names: &[&str]) -> Deployment {
        let scopes = scopes.iter().copied().collect();
        Deployment { dseq: 7, gseq, oseq, scopes, services: names.iter().map(ToString::to_string).collect() }
    }

    #[test]
    fn scope_names_round_trip() {
        for (at, (scope, name)) in TokenScope::NAMES.into_iter().enumerate() {
            assert_eq!((scope as usize, scope.name(), TokenScope::from_name(name)), (at, name, Some(scope)));
        }
        assert_eq!(TokenScope::from_name("log"), None);
    }

    #[test]
    fn owner_has_every_scope_on_own_leases_only() {
        let identity = token(Access::Full);
        for scope in SUPPORTED {
            assert_eq!(identity.authorize(&lease(1, 7, 1, 1, 3), scope), Ok(Services::All));
            let refusal = identity.authorize(&lease(2, 7, 1, 1, 3), scope).unwrap_err();
            assert_eq!(refusal, Refusal::NotYours);
            assert_eq!(refusal.kind(), RefusalKind::PermissionDenied);
        }
    }

    #[test]
    fn token_grants_nothing_beyond_its_issuer() {
        let scopes = TokenScope::NAMES.map(|(scope, _)| scope);
        let everything = Scopes::from(scopes);
        let at_provider = |access| Access::Granular([(address(9), access)].into());
        let all = deployment(None, None, &scopes, &["web"]);
        for access in [
            Access::Full,
            Access::Scoped(everything.clone()),
            at_provider(ProviderAccess::Full),
            at_provider(ProviderAccess::Scoped(everything)),
            at_provider(ProviderAccess::Granular(vec![all])),
        ] {
            let identity = token(access);
            assert!(identity.authorize(&lease(1, 7, 1, 1, 9), TokenScope::Logs).is_ok());
            assert_eq!(identity.authorize(&lease(2, 7, 1, 1, 9), TokenScope::Logs), Err(Refusal::NotYours));
        }
    }

    #[test]
    fn lease_at_other_provider_is_refused_to_its_owner() {
        let identity = Identity::new(address(1), Access::Full, Some(address(9)));
        assert_eq!(identity.authorize(&lease(1, 7, 1, 1, 9), TokenScope::Logs), Ok(Services::All));
        assert_eq!(identity.authorize(&lease(1, 7, 1, 1, 8), TokenScope::Logs), Err(Refusal::OtherProvider));
        assert_eq!(identity.authorize(&lease(2, 7, 1, 1, 8), TokenScope::Logs), Err(Refusal::NotYours));
    }

    #[test]
    fn only_granted_scopes_are_allowed() {
        for granted in SUPPORTED {
            let scopes: Scopes = [granted, TokenScope::Shell].into_iter().collect();
            let at_provider = Access::Granular([(address(9), ProviderAccess::Scoped(scopes.clone()))].into());
            let of_deployment = deployment(None, None, &[granted, TokenScope::Shell], &["web"]);
            let tokens = [
                (token(Access::Scoped(scopes)), Services::All),
                (token(at_provider), Services::All),
                (granular(vec![of_deployment]), Services::Only(services(&["web"]))),
            ];
            for (identity, on) in tokens {
                for scope in SUPPORTED {
                    let answer = identity.authorize(&lease(1, 7, 1, 1, 9), scope);
                    let expected =
                        if scope == granted { Ok(on.clone()) } else { Err(Refusal::ScopeNotGranted) };
                    assert_eq!(answer, expected, "{granted:?} {scope:?}");
                }
            }
        }
    }

    #[test]
    fn provider_without_entry_grants_nothing() {
        let identity = token(Access::Granular([(address(9), ProviderAccess::Full)].into()));
        assert_eq!(
            identity.authorize(&lease(1, 7, 1, 1, 8), TokenScope::Logs),
            Err(Refusal::LeaseNotGranted)
        );
    }

    #[test]
    fn deployment_group_and_order_must_match() {
        let any = granular(vec![deployment(None, None, &[TokenScope::Logs], &["web"])]);
        assert!(any.authorize(&lease(1, 7, 2, 3, 9), TokenScope::Logs).is_ok());
        assert_eq!(any.authorize(&lease(1, 8, 2, 3, 9), TokenScope::Logs), Err(Refusal::LeaseNotGranted));
        let group = granular(vec![deployment(Some(2), None, &[TokenScope::Logs], &["web"])]);
        assert!(group.authorize(&lease(1, 7, 2, 3, 9), TokenScope::Logs).is_ok());
        assert_eq!(group.authorize(&lease(1, 7, 1, 3, 9), TokenScope::Logs), Err(Refusal::LeaseNotGranted));
        let order = granular(vec![deployment(Some(2), Some(3), &[TokenScope::Logs], &["web"])]);
        assert!(order.authorize(&lease(1, 7, 2, 3, 9), TokenScope::Logs).is_ok());
        assert_eq!(order.authorize(&lease(1, 7, 2, 1, 9), TokenScope::Logs), Err(Refusal::LeaseNotGranted));
    }

    #[test]
    fn grants_of_several_entries_add_up_by_scope() {
        let identity = granular(vec![
            deployment(None, None, &[TokenScope::Status], &["db"]),
            deployment(Some(1), None, &[TokenScope::Logs], &["web"]),
            deployment(Some(1), Some(1), &[TokenScope::Logs, TokenScope::Restart], &["api"]),
            deployment(Some(2), None, &[TokenScope::Logs], &["cache"]),
        ]);
        let may = |gseq, scope| identity.authorize(&lease(1, 7, gseq, 1, 9), scope);
        assert_eq!(may(1, TokenScope::Logs), Ok(Services::Only(services(&["api", "web"]))));
        assert_eq!(may(1, TokenScope::Restart), Ok(Services::Only(services(&["api"]))));
        assert_eq!(may(1, TokenScope::Status), Ok(Services::Only(services(&["db"]))));
        assert_eq!(may(2, TokenScope::Logs), Ok(Services::Only(services(&["cache"]))));
        assert_eq!(may(2, TokenScope::Restart), Err(Refusal::ScopeNotGranted));
    }

    #[test]
    fn name_that_no_service_can_have_matches_nothing() {
        let long = "a".repeat(64);
        for name in ["", " ", "**", "*web", "Web", "web ", "1web", "web.example", &long] {
            let alone = granular(vec![deployment(None, None, &[TokenScope::Logs], &[name])]);
            let may = |identity: &Identity, scope| identity.authorize(&lease(1, 7, 1, 1, 9), scope);
            assert_eq!(may(&alone, TokenScope::Logs), Err(Refusal::ServiceNotGranted), "{name:?}");
            assert_eq!(may(&alone, TokenScope::Status), Err(Refusal::ScopeNotGranted), "{name:?}");
            let beside = granular(vec![deployment(None, None, &[TokenScope::Logs], &[name, "web"])]);
            assert_eq!(may(&beside, TokenScope::Logs), Ok(Services::Only(services(&["web"]))), "{name:?}");
            let entries = granular(vec![
                deployment(None, None, &[TokenScope::Logs], &[name]),
                deployment(None, None, &[TokenScope::Status], &["web"]),
            ]);
            assert_eq!(may(&entries, TokenScope::Logs), Err(Refusal::ServiceNotGranted), "{name:?}");
            assert_eq!(may(&entries, TokenScope::Status), Ok(Services::Only(services(&["web"]))), "{name:?}");
        }
    }

    #[test]
    fn star_grants_every_service_of_its_lease_and_scope() {
        let identity = granular(vec![
            deployment(Some(1), None, &[TokenScope::Logs], &["web"]),
            deployment(Some(1), None, &[TokenScope::Logs, TokenScope::Status], &["*"]),
            deployment(Some(2), None, &[TokenScope::Logs], &["*", "web"]),
        ]);
        let may = |gseq, scope| identity.authorize(&lease(1, 7, gseq, 1, 9), scope);
        for (gseq, scope) in [(1, TokenScope::Logs), (1, TokenScope::Status), (2, TokenScope::Logs)] {
            assert_eq!(may(gseq, scope), Ok(Services::All));
        }
        assert_eq!(may(1, TokenScope::Restart), Err(Refusal::ScopeNotGranted));
        assert_eq!(may(2, TokenScope::Status), Err(Refusal::ScopeNotGranted));
        assert_eq!(may(3, TokenScope::Logs), Err(Refusal::LeaseNotGranted));
    }

    #[test]
    fn filter_is_narrowed_to_granted_services() {
        let only = Services::Only(services(&["api", "web"]));
        let filter = |names: &[&str]| {
            let mut filter = Filter::everything();
            for name in names {
                filter.add(name.parse().unwrap(), &[]);
            }
            filter
        };
        let wants = |filter: &Filter, service: &str| {
            filter.selects(&crate::model::id::Replica { service: service.parse().unwrap(), index: 0 })
        };
        let mut everything = filter(&[]);
        assert_eq!(only.narrow(&mut everything), Ok(()));
        assert_eq!(["api", "web", "db"].map(|name| wants(&everything, name)), [true, true, false]);
        let mut one = filter(&["web"]);
        assert_eq!(only.narrow(&mut one), Ok(()));
        assert_eq!(["api", "web", "db"].map(|name| wants(&one, name)), [false, true, false]);
        assert_eq!(only.narrow(&mut filter(&["web", "db"])), Err(Refusal::ServiceNotGranted));
        let mut all = filter(&["db"]);
        assert_eq!(Services::All.narrow(&mut all), Ok(()));
        assert_eq!(all, filter(&["db"]));
    }
}
