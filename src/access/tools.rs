//! Tokens on the command line: signing one, and verifying one as a gateway would.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use super::account::AccountKey;
use super::grants::{Access, Deployment, Grant, Scopes, TokenScope};
use super::identity::{IdentityError, IdentityFiles};
use super::refusal::Refusal;
use super::token::{Algorithm, Claims, Token, TokenError};
use crate::model::id::{Address, LeaseId, Owner};
use crate::model::time::LogTime;

/// The content of a token to sign.
#[derive(Clone, Debug)]
pub struct TokenRequest<'a> {
    /// Names of scopes; empty = everything.
    pub scopes: &'a [String],
    /// Leases; empty = all.
    pub leases: &'a [LeaseId],
    /// Services of each lease, `*` for all: empty exactly if `leases` is.
    pub services: &'a [String],
    /// The lifetime, of which whole seconds count.
    pub ttl: Duration,
}

/// Why a token was not signed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SignError {
    /// There is no account to sign with.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The scope does not exist.
    #[error("`{0}` is not a scope; there are: {all}", all = TokenScope::NAMES.map(|(_, name)| name).join(", "))]
    Scope(String),
    /// The lease belongs to another account.
    #[error(
        "the lease {0} is not one of the identity's account, {1}: a token grants its issuer's leases only"
    )]
    NotYours(LeaseId, Owner),
    /// The clock is wrong.
    #[error("the clock is before 1970")]
    Clock,
    /// Every gateway would refuse the token.
    #[error("a token that grants this would be refused: {0}")]
    Refused(#[from] TokenError),
    /// The signature failed.
    #[error("signing failed")]
    Signing,
}

/// Signs a token with the account in the directory `identity`, valid from `now` on.
///
/// # Errors
/// [`SignError`].
pub fn sign_token(identity: &Path, request: &TokenRequest<'_>, now: LogTime) -> Result<String, SignError> {
    let wallet = IdentityFiles::load_wallet(identity)?;
    let issuer = wallet.key().address();
    let now = u64::try_from(now.parts().0).map_err(|_| SignError::Clock)?;
    let access = access(request, &issuer)?;
    let expires = now.saturating_add(request.ttl.as_secs());
    let claims = Claims { issuer, issued: now, not_before: now, expires, id: None, access };
    let token = wallet.sign(Algorithm::Es256k, &claims).map_err(|_| SignError::Signing)?;
    // It may be too long, for example.
    Token::parse(token.as_bytes())?;
    Ok(token)
}

fn access(request: &TokenRequest<'_>, issuer: &Owner) -> Result<Access, SignError> {
    let scope = |name: &String| TokenScope::from_name(name).ok_or_else(|| SignError::Scope(name.clone()));
    let scopes: Scopes = request.scopes.iter().map(scope).collect::<Result<_, _>>()?;
    if request.leases.is_empty() {
        return Ok(if scopes.is_empty() { Grant::Full } else { Grant::Scoped(scopes) });
    }
    let mut providers: BTreeMap<Address, Vec<Deployment>> = BTreeMap::new();
    for lease in request.leases {
        if lease.owner() != issuer {
            return Err(SignError::NotYours(lease.clone(), issuer.clone()));
        }
        providers.entry(lease.provider().clone()).or_default().push(Deployment {
            dseq: lease.dseq(),
            gseq: Some(lease.gseq()),
            oseq: Some(lease.oseq()),
            scopes: scopes.clone(),
            services: request.services.iter().cloned().collect(),
        });
    }
    let granular = |(provider, deployments)| (provider, Grant::Granular(deployments));
    Ok(Grant::Granular(providers.into_iter().map(granular).collect()))
}

/// The conditions under which a token is verified.
#[derive(Clone, Debug)]
pub struct VerifyOptions<'a> {
    /// The time.
    pub at: LogTime,
    /// Maximum lifetime, from `nbf` to `exp`.
    pub lifetime_max: Duration,
    /// The provider; `None` = any.
    pub provider: Option<&'a Address>,
}

/// Verifies a token as a gateway would, in the same order. `find_key` returns the key of the issuer.
///
/// # Errors
/// The first check that failed, and its place.
pub fn verify_token(
    token: &[u8],
    options: &VerifyOptions<'_>,
    find_key: impl FnOnce(&Owner) -> Option<AccountKey>,
) -> Result<Token, TokenError> {
    let token = Token::parse(token)?;
    token.check_time(options.at, options.lifetime_max)?;
    let issuer = &token.claims().issuer;
    let key = find_key(issuer).filter(|key| key.address() == *issuer).ok_or(Refusal::AccountUnknown)?;
    token.check_signature(&key)?;
    match (&token.claims().access, options.provider) {
        (Grant::Granular(providers), Some(provider)) if !providers.contains_key(provider) => {
            Err(Refusal::LeaseNotGranted.into())
        }
        _ => Ok(token),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::dir::key_in_dir;
    use crate::access::grants::{Identity, ProviderAccess, Services};
    use crate::access::refusal::Lifetime;
    use crate::access::testing::NOW;

    fn request<'a>(scopes: &'a [String], leases: &'a [LeaseId], services: &'a [String]) -> TokenRequest<'a> {
        TokenRequest { scopes, leases, services, ttl: Duration::from_secs(900) }
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn signed_token_grants_exactly_the_request() {
        let outer = tempfile::tempdir().unwrap();
        let dir = outer.path().join("tenant");
        let owner = IdentityFiles::create(&dir, NOW).unwrap();
        let provider = Address::from_account([9; 20]);
        let lease = |dseq| LeaseId::new(owner.as_str(), dseq, 2, 3, provider.as_str()).unwrap();
        let leases = [lease(7), lease(8)];
        let services = names(&["web"]);
        let granted = |request: &TokenRequest<'_>| {
            let token = sign_token(&dir, request, NOW).unwrap();
            let options =
                VerifyOptions { at: NOW, lifetime_max: Duration::from_secs(900), provider: Some(&provider) };
            let key = |issuer: &Owner| key_in_dir(&dir, issuer).unwrap();
            verify_token(token.as_bytes(), &options, key).unwrap().claims().access.clone()
        };
        assert_eq!(granted(&request(&[], &[], &[])), Access::Full);
        let logs: Scopes = [TokenScope::Logs, TokenScope::Status].into_iter().collect();
        let scopes = names(&["status", "logs"]);
        assert_eq!(granted(&request(&scopes, &[], &[])), Access::Scoped(logs.clone()));
        let expected = [7, 8].map(|dseq| Deployment {
            dseq,
            gseq: Some(2),
            oseq: Some(3),
            scopes: logs.clone(),
            services: ["web".to_owned()].into(),
        });
        let Access::Granular(found) = granted(&request(&scopes, &leases, &services)) else { panic!() };
        assert_eq!(found[&provider], ProviderAccess::Granular(expected.into()));
        let every = granted(&request(&scopes, &leases, &names(&["*"])));
        let identity = Identity::new(owner.clone(), every, None);
        assert_eq!(identity.authorize(&leases[1], TokenScope::Logs), Ok(Services::All));
        assert_eq!(identity.authorize(&lease(9), TokenScope::Logs), Err(Refusal::LeaseNotGranted));
    }

    #[test]
    fn request_that_cannot_be_granted_is_not_signed() {
        let outer = tempfile::tempdir().unwrap();
        let dir = outer.path().join("tenant");
        IdentityFiles::create(&dir, NOW).unwrap();
        let [other, provider] = [1, 2].map(|number| Address::from_account([number; 20]));
        let foreign = [LeaseId::new(other.as_str(), 1, 1, 1, provider.as_str()).unwrap()];
        let (logs, web) = (names(&["logs"]), names(&["web"]));
        assert!(matches!(
            sign_token(&dir, &request(&logs, &foreign, &web), NOW),
            Err(SignError::NotYours(..))
        ));
        let error = sign_token(&dir, &request(&names(&["log"]), &[], &[]), NOW).unwrap_err();
        assert!(error.to_string().contains("`log`") && error.to_string().contains("restart"), "{error}");
        assert!(matches!(
            sign_token(outer.path(), &request(&[], &[], &[]), NOW),
            Err(SignError::Identity(_))
        ));
        let owner = IdentityFiles::load(&dir).unwrap().address().clone();
        let many: Vec<_> = (1..200)
            .map(|dseq| LeaseId::new(owner.as_str(), dseq, 1, 1, provider.as_str()).unwrap())
            .collect();
        for (leases, services, reason) in
            [(&many[..], &web[..], Refusal::TokenTooLong), (&many[..1], &[], Refusal::TokenServicesEmpty)]
        {
            match sign_token(&dir, &request(&logs, leases, services), NOW) {
                Err(SignError::Refused(error)) => assert_eq!(error.refusal, reason),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn token_is_verified_under_the_given_options() {
        let outer = tempfile::tempdir().unwrap();
        let [dir, other] = ["tenant", "other"].map(|name| outer.path().join(name));
        let owner = IdentityFiles::create(&dir, NOW).unwrap();
        IdentityFiles::create(&other, NOW).unwrap();
        let provider = Address::from_account([9; 20]);
        let leases = [LeaseId::new(owner.as_str(), 1, 1, 1, provider.as_str()).unwrap()];
        let token = sign_token(&dir, &request(&names(&["logs"]), &leases, &names(&["web"])), NOW).unwrap();
        let lifetime_max = Duration::from_secs(900);
        let verified = |at, lifetime_max, provider, keys: &Path| {
            let options = VerifyOptions { at, lifetime_max, provider };
            let key = |issuer: &Owner| key_in_dir(keys, issuer).unwrap();
            verify_token(token.as_bytes(), &options, key).map(drop).map_err(|error| error.refusal)
        };
        assert_eq!(verified(NOW, lifetime_max, Some(&provider), &dir), Ok(()));
        assert_eq!(verified(NOW, lifetime_max, Some(&owner), &dir), Err(Refusal::LeaseNotGranted));
        assert_eq!(verified(NOW, lifetime_max, None, &other), Err(Refusal::AccountUnknown));
        let late = NOW.saturating_add_nanos(900_000_000_000);
        assert_eq!(verified(late, lifetime_max, None, &dir), Err(Refusal::TokenExpired));
        let limit = Duration::from_secs(899);
        let too_long = Refusal::TokenLifetime { lifetime: Lifetime(900), limit: Lifetime(899) };
        assert_eq!(verified(NOW, limit, None, &dir), Err(too_long));
        assert_eq!(verified(late, limit, None, &dir), Err(Refusal::TokenExpired));
    }
}
