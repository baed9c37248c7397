//! What a caller may do.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use super::refusal::Refusal;
use crate::model::id::{Address, LeaseId, Owner, ServiceName};
use crate::model::view::Filter;

/// What can be done with a lease, by the words of Akash's tokens (AEP-64). This gateway does three of them.
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
    /// See how services are doing.
    Status,
    /// Restart services.
    Restart,
    /// Take a host name along.
    HostnameMigrate,
    /// Take an address along.
    IpMigrate,
    /// Have the machine vouch for itself.
    Attestation,
}

/// A set of scopes.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Scopes(u16);

/// What a token grants of its issuer's leases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everything.
    Full,
    /// These scopes on every lease.
    Scoped(Scopes),
    /// By provider; nothing at others.
    Granular(BTreeMap<Address, ProviderAccess>),
}

/// What a token grants of its issuer's leases at one provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProviderAccess {
    /// Everything.
    Full,
    /// These scopes on every lease.
    Scoped(Scopes),
    /// By deployment; nothing of others. What several entries grant adds up.
    Granular(Vec<Deployment>),
}

/// What a token grants of some leases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deployment {
    /// The deployment.
    pub dseq: u64,
    /// The group; `None` = any.
    pub gseq: Option<u32>,
    /// The order; `None` = any.
    pub oseq: Option<u32>,
    /// These scopes.
    pub scopes: Scopes,
    /// On services of these names, as the token has them. A name that no service can have matches nothing. Never empty.
    pub services: BTreeSet<String>,
}

/// Who a caller was found to be, and with that, what they may do. Cloning is cheap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    owner: Owner,
    access: Arc<Access>,
    /// The one provider whose leases are served; `None` = any.
    provider: Option<Address>,
}

/// The services of one lease that a caller may do something with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Services {
    /// All that there are or will be.
    All,
    /// These, whether they exist or not.
    Only(BTreeSet<ServiceName>),
}

// === impl Scope ===

impl TokenScope {
    /// Each of them once.
    pub const ALL: [Self; 10] = [
        Self::SendManifest,
        Self::GetManifest,
        Self::Logs,
        Self::Shell,
        Self::Events,
        Self::Status,
        Self::Restart,
        Self::HostnameMigrate,
        Self::IpMigrate,
        Self::Attestation,
    ];

    /// The word for it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::SendManifest => "send-manifest",
            Self::GetManifest => "get-manifest",
            Self::Logs => "logs",
            Self::Shell => "shell",
            Self::Events => "events",
            Self::Status => "status",
            Self::Restart => "restart",
            Self::HostnameMigrate => "hostname-migrate",
            Self::IpMigrate => "ip-migrate",
            Self::Attestation => "attestation",
        }
    }

    /// The scope of this word.
    pub fn of_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.word() == word)
    }
}

// === impl Scopes ===

impl Scopes {
    /// Adds one; tells whether it is new.
    pub fn insert(&mut self, scope: TokenScope) -> bool {
        let before = *self;
        self.0 |= 1 << scope as u16;
        *self != before
    }

    /// Whether it is there.
    pub fn contains(self, scope: TokenScope) -> bool {
        self.0 & (1 << scope as u16) != 0
    }

    /// Those that are there.
    pub fn iter(self) -> impl Iterator<Item = TokenScope> {
        TokenScope::ALL.into_iter().filter(move |scope| self.contains(*scope))
    }

    /// Whether none is.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl FromIterator<TokenScope> for Scopes {
    fn from_iter<I: IntoIterator<Item = TokenScope>>(scopes: I) -> Self {
        let mut all = Self::default();
        for scope in scopes {
            all.insert(scope);
        }
        all
    }
}

impl fmt::Debug for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(TokenScope::word)).finish()
    }
}

// === impl Access ===

impl Access {
    /// The services of `lease` on which `scope` is granted.
    fn services(&self, lease: &LeaseId, scope: TokenScope) -> Result<Services, Refusal> {
        let here = match self {
            Self::Full => return Ok(Services::All),
            Self::Scoped(scopes) => return all_if(*scopes, scope),
            Self::Granular(providers) => providers.get(lease.provider()).ok_or(Refusal::LeaseNotGranted)?,
        };
        match here {
            ProviderAccess::Full => Ok(Services::All),
            ProviderAccess::Scoped(scopes) => all_if(*scopes, scope),
            ProviderAccess::Granular(deployments) => {
                let mut refusal = Refusal::LeaseNotGranted;
                let mut services = BTreeSet::new();
                for deployment in deployments.iter().filter(|deployment| deployment.is_of(lease)) {
                    if deployment.scopes.contains(scope) {
                        services.extend(deployment.services.iter().filter_map(|name| name.parse().ok()));
                        refusal = Refusal::ServiceNotGranted;
                    } else if refusal == Refusal::LeaseNotGranted {
                        refusal = Refusal::ScopeNotGranted;
                    }
                }
                // Rejection rather than narrowed to no service: an empty set of names must never be read as all of them.
                if services.is_empty() { Err(refusal) } else { Ok(Services::Only(services)) }
            }
        }
    }
}

fn all_if(scopes: Scopes, scope: TokenScope) -> Result<Services, Refusal> {
    if scopes.contains(scope) { Ok(Services::All) } else { Err(Refusal::ScopeNotGranted) }
}

// === impl Deployment ===

impl Deployment {
    fn is_of(&self, lease: &LeaseId) -> bool {
        self.dseq == lease.dseq()
            && self.gseq.is_none_or(|gseq| gseq == lease.gseq())
            && self.oseq.is_none_or(|oseq| oseq == lease.oseq())
    }
}

// === impl Identity ===

impl Identity {
    /// The owner in person, proved by a certificate: every scope on every lease of theirs.
    pub(super) fn owner_in_person(owner: Owner) -> Self {
        Self::with_token(owner, Access::Full)
    }

    /// Somebody with a token of `owner`, who may what it grants.
    pub(super) fn with_token(owner: Owner, access: Access) -> Self {
        Self { owner, access: Arc::new(access), provider: None }
    }

    /// The same, at a gateway that serves leases of this provider only.
    pub(super) fn at(self, provider: Option<Address>) -> Self {
        Self { provider, ..self }
    }

    /// The account.
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Whether the caller may do this with `lease`, and with which services of it. To be asked before anything is looked up, so
    /// that the answer cannot depend on what exists; and then the request must be narrowed by [`Services::narrow`].
    ///
    /// # Errors
    /// [`Refusal::NotYours`] for a lease of another owner, existing or not; [`Refusal::OtherProvider`] for one that is not served
    /// here; [`Refusal::LeaseNotGranted`], [`Refusal::ScopeNotGranted`] or [`Refusal::ServiceNotGranted`] for what a token does
    /// not grant.
    pub fn may(&self, lease: &LeaseId, scope: TokenScope) -> Result<Services, Refusal> {
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
    /// Whether this one is among them.
    pub fn include(&self, service: &ServiceName) -> bool {
        match self {
            Self::All => true,
            Self::Only(services) => services.contains(service),
        }
    }

    /// Leaves of `filter` what is among them. A filter for everything becomes one for all of them that exist, now or later.
    ///
    /// # Errors
    /// [`Refusal::ServiceNotGranted`] if it names another one, whether that exists or not.
    pub fn narrow(&self, filter: &mut Filter) -> Result<(), Refusal> {
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

    const DONE_HERE: [TokenScope; 3] = [TokenScope::Status, TokenScope::Logs, TokenScope::Restart];

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
        Identity::with_token(address(1), access)
    }

    fn granular(deployments: Vec<Deployment>) -> Identity {
        token(Access::Granular([(address(9), ProviderAccess::Granular(deployments))].into()))
    }

    fn deployment(gseq: Option<u32>, oseq: Option<u32>, scopes: &[TokenScope], names: &[&str]) -> Deployment {
        let scopes = scopes.iter().copied().collect();
        Deployment { dseq: 7, gseq, oseq, scopes, services: names.iter().map(ToString::to_string).collect() }
    }

    #[test]
    fn an_owner_may_everything_with_their_own_leases_and_nothing_else() {
        let identity = Identity::owner_in_person(address(1));
        for scope in DONE_HERE {
            assert_eq!(identity.may(&lease(1, 7, 1, 1, 3), scope), Ok(Services::All));
            let refusal = identity.may(&lease(2, 7, 1, 1, 3), scope).unwrap_err();
            assert_eq!(refusal, Refusal::NotYours);
            assert_eq!(refusal.kind(), RefusalKind::PermissionDenied);
        }
    }

    #[test]
    fn no_token_reaches_beyond_its_issuer() {
        let everything: Scopes = TokenScope::ALL.into_iter().collect();
        let at_provider = |access| Access::Granular([(address(9), access)].into());
        let all = deployment(None, None, &TokenScope::ALL, &["web"]);
        for access in [
            Access::Full,
            Access::Scoped(everything),
            at_provider(ProviderAccess::Full),
            at_provider(ProviderAccess::Scoped(everything)),
            at_provider(ProviderAccess::Granular(vec![all])),
        ] {
            let identity = token(access);
            assert!(identity.may(&lease(1, 7, 1, 1, 9), TokenScope::Logs).is_ok());
            assert_eq!(identity.may(&lease(2, 7, 1, 1, 9), TokenScope::Logs), Err(Refusal::NotYours));
        }
    }

    #[test]
    fn leases_of_a_provider_that_is_not_served_are_refused_to_their_owner() {
        let identity = Identity::owner_in_person(address(1)).at(Some(address(9)));
        assert_eq!(identity.may(&lease(1, 7, 1, 1, 9), TokenScope::Logs), Ok(Services::All));
        assert_eq!(identity.may(&lease(1, 7, 1, 1, 8), TokenScope::Logs), Err(Refusal::OtherProvider));
        assert_eq!(identity.may(&lease(2, 7, 1, 1, 8), TokenScope::Logs), Err(Refusal::NotYours));
    }

    #[test]
    fn scopes_are_held_to() {
        for granted in DONE_HERE {
            let scopes: Scopes = [granted, TokenScope::Shell].into_iter().collect();
            let at_provider = Access::Granular([(address(9), ProviderAccess::Scoped(scopes))].into());
            let of_deployment = deployment(None, None, &[granted, TokenScope::Shell], &["web"]);
            let tokens = [
                (token(Access::Scoped(scopes)), Services::All),
                (token(at_provider), Services::All),
                (granular(vec![of_deployment]), Services::Only(services(&["web"]))),
            ];
            for (identity, on) in tokens {
                for scope in DONE_HERE {
                    let answer = identity.may(&lease(1, 7, 1, 1, 9), scope);
                    let expected =
                        if scope == granted { Ok(on.clone()) } else { Err(Refusal::ScopeNotGranted) };
                    assert_eq!(answer, expected, "{granted:?} {scope:?}");
                }
            }
        }
    }

    #[test]
    fn a_provider_that_is_not_named_grants_nothing() {
        let identity = token(Access::Granular([(address(9), ProviderAccess::Full)].into()));
        assert_eq!(identity.may(&lease(1, 7, 1, 1, 8), TokenScope::Logs), Err(Refusal::LeaseNotGranted));
    }

    #[test]
    fn deployment_group_and_order_are_held_to() {
        let any = granular(vec![deployment(None, None, &[TokenScope::Logs], &["web"])]);
        assert!(any.may(&lease(1, 7, 2, 3, 9), TokenScope::Logs).is_ok());
        assert_eq!(any.may(&lease(1, 8, 2, 3, 9), TokenScope::Logs), Err(Refusal::LeaseNotGranted));
        let group = granular(vec![deployment(Some(2), None, &[TokenScope::Logs], &["web"])]);
        assert!(group.may(&lease(1, 7, 2, 3, 9), TokenScope::Logs).is_ok());
        assert_eq!(group.may(&lease(1, 7, 1, 3, 9), TokenScope::Logs), Err(Refusal::LeaseNotGranted));
        let order = granular(vec![deployment(Some(2), Some(3), &[TokenScope::Logs], &["web"])]);
        assert!(order.may(&lease(1, 7, 2, 3, 9), TokenScope::Logs).is_ok());
        assert_eq!(order.may(&lease(1, 7, 2, 1, 9), TokenScope::Logs), Err(Refusal::LeaseNotGranted));
    }

    #[test]
    fn what_entries_grant_adds_up_by_scope() {
        let identity = granular(vec![
            deployment(None, None, &[TokenScope::Status], &["db"]),
            deployment(Some(1), None, &[TokenScope::Logs], &["web"]),
            deployment(Some(1), Some(1), &[TokenScope::Logs, TokenScope::Restart], &["api"]),
            deployment(Some(2), None, &[TokenScope::Logs], &["cache"]),
        ]);
        let may = |gseq, scope| identity.may(&lease(1, 7, gseq, 1, 9), scope);
        assert_eq!(may(1, TokenScope::Logs), Ok(Services::Only(services(&["api", "web"]))));
        assert_eq!(may(1, TokenScope::Restart), Ok(Services::Only(services(&["api"]))));
        assert_eq!(may(1, TokenScope::Status), Ok(Services::Only(services(&["db"]))));
        assert_eq!(may(2, TokenScope::Logs), Ok(Services::Only(services(&["cache"]))));
        assert_eq!(may(2, TokenScope::Restart), Err(Refusal::ScopeNotGranted));
    }

    #[test]
    fn name_that_no_service_can_have_matches_nothing() {
        let long = "a".repeat(64);
        for name in ["", " ", "*", "Web", "web ", "1web", "web.example", &long] {
            let alone = granular(vec![deployment(None, None, &[TokenScope::Logs], &[name])]);
            let may = |identity: &Identity, scope| identity.may(&lease(1, 7, 1, 1, 9), scope);
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
    fn a_filter_is_narrowed_to_what_is_granted() {
        let only = Services::Only(services(&["api", "web"]));
        let filter = |names: &[&str]| {
            let mut filter = Filter::everything();
            for name in names {
                filter.add(name.parse().unwrap(), &[]);
            }
            filter
        };
        let wants = |filter: &Filter, service: &str| {
            filter.wants(&crate::model::id::Replica { service: service.parse().unwrap(), index: 0 })
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
