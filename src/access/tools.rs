//! What the command line does with tokens: signing one, and telling what a gateway would say of one.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use super::account::AccountKey;
use super::dir;
use super::grants::{Access, Deployment, ProviderAccess, Scopes, TokenScope};
use super::identity::{IdentityError, IdentityFiles};
use super::refusal::Refusal;
use super::token::{Algorithm, Claims, Fault, Token};
use crate::model::id::{Address, LeaseId, Owner, ServiceName};
use crate::model::time::LogTime;

/// What a token is to grant.
#[derive(Clone, Debug)]
pub struct TokenRequest<'a> {
    /// Words of scopes; none = everything.
    pub scopes: &'a [String],
    /// Leases; none = all.
    pub leases: &'a [LeaseId],
    /// Services of each lease; not without leases, nor leases without services.
    pub services: &'a [ServiceName],
    /// For how long; whole seconds count.
    pub ttl: Duration,
}

/// Why no token was made. The text is for who asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MintError {
    /// There is no account to sign with.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Not a scope.
    #[error("`{0}` is not a scope; there are: {all}", all = TokenScope::ALL.map(TokenScope::word).join(", "))]
    Scope(String),
    /// A lease of somebody else.
    #[error(
        "the lease {0} is not one of the identity's account, {1}: a token grants its issuer's leases only"
    )]
    NotYours(LeaseId, Owner),
    /// The clock is wrong.
    #[error("the clock is before 1970")]
    Clock,
    /// What was made would not be taken.
    #[error("a token that grants this would be refused: {0}")]
    Refused(#[from] Fault),
    /// No signature.
    #[error("signing failed")]
    Signing,
}

/// Signs a token with the account in the directory `identity`, valid from `now` on.
///
/// # Errors
/// [`MintError`].
pub fn mint(identity: &Path, wish: &TokenRequest<'_>, now: LogTime) -> Result<String, MintError> {
    let wallet = IdentityFiles::load_wallet(identity)?;
    let issuer = wallet.key().address();
    let now = u64::try_from(now.parts().0).map_err(|_| MintError::Clock)?;
    let access = access(wish, &issuer)?;
    let expires = now.saturating_add(wish.ttl.as_secs());
    let claims = Claims { issuer, issued: now, not_before: now, expires, id: None, access };
    let token = wallet.sign(Algorithm::Es256k, &claims).map_err(|_| MintError::Signing)?;
    // Too long, if nothing else.
    Token::parse(token.as_bytes())?;
    Ok(token)
}

fn access(wish: &TokenRequest<'_>, issuer: &Owner) -> Result<Access, MintError> {
    let scope = |word: &String| TokenScope::of_word(word).ok_or_else(|| MintError::Scope(word.clone()));
    let scopes: Scopes = wish.scopes.iter().map(scope).collect::<Result<_, _>>()?;
    if wish.leases.is_empty() {
        return Ok(if scopes.is_empty() { Access::Full } else { Access::Scoped(scopes) });
    }
    let mut providers: BTreeMap<Address, Vec<Deployment>> = BTreeMap::new();
    for lease in wish.leases {
        if lease.owner() != issuer {
            return Err(MintError::NotYours(lease.clone(), issuer.clone()));
        }
        providers.entry(lease.provider().clone()).or_default().push(Deployment {
            dseq: lease.dseq(),
            gseq: Some(lease.gseq()),
            oseq: Some(lease.oseq()),
            scopes,
            services: wish.services.iter().map(ToString::to_string).collect(),
        });
    }
    let granular = |(provider, deployments)| (provider, ProviderAccess::Granular(deployments));
    Ok(Access::Granular(providers.into_iter().map(granular).collect()))
}

/// Whose signature counts, and under which circumstances.
#[derive(Clone, Debug)]
pub struct VerifyOptions<'a> {
    /// When.
    pub at: LogTime,
    /// For how long a token may be valid in all.
    pub longest: Duration,
    /// At which provider; `None` = anywhere.
    pub provider: Option<&'a Address>,
}

/// Judges a token as a gateway would, in the same order; `key` is asked for the key of its issuer.
///
/// # Errors
/// The first check that failed, and where.
pub fn judge(
    token: &[u8],
    circumstances: &VerifyOptions<'_>,
    key: impl FnOnce(&Owner) -> Option<AccountKey>,
) -> Result<Token, Fault> {
    let token = Token::parse(token)?;
    token.check_time(circumstances.at, circumstances.longest)?;
    let issuer = &token.claims().issuer;
    let key = key(issuer).filter(|key| key.address() == *issuer).ok_or(Refusal::AccountUnknown)?;
    token.check_signature(&key)?;
    match (&token.claims().access, circumstances.provider) {
        (Access::Granular(providers), Some(provider)) if !providers.contains_key(provider) => {
            Err(Refusal::LeaseNotGranted.into())
        }
        _ => Ok(token),
    }
}

/// The key of this account in a trust directory.
///
/// # Errors
/// What the system says if the directory cannot be read.
pub fn key_in(dir: &Path, owner: &Owner) -> io::Result<Option<AccountKey>> {
    dir::key_in(dir, owner, Instant::now())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::refusal::Lifetime;
    use crate::access::testing::NOW;

    fn wish<'a>(
        scopes: &'a [String],
        leases: &'a [LeaseId],
        services: &'a [ServiceName],
    ) -> TokenRequest<'a> {
        TokenRequest { scopes, leases, services, ttl: Duration::from_secs(900) }
    }

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_wished_for_is_granted_and_nothing_else() {
        let outer = tempfile::tempdir().unwrap();
        let dir = outer.path().join("tenant");
        let owner = IdentityFiles::create(&dir, NOW).unwrap();
        let provider = Address::from_account([9; 20]);
        let lease = |dseq| LeaseId::new(owner.as_str(), dseq, 2, 3, provider.as_str()).unwrap();
        let leases = [lease(7), lease(8)];
        let services = ["web".parse().unwrap()];
        let granted = |wish: &TokenRequest<'_>| {
            let token = mint(&dir, wish, NOW).unwrap();
            let circumstances =
                VerifyOptions { at: NOW, longest: Duration::from_secs(900), provider: Some(&provider) };
            let key = |issuer: &Owner| key_in(&dir, issuer).unwrap();
            judge(token.as_bytes(), &circumstances, key).unwrap().claims().access.clone()
        };
        assert_eq!(granted(&wish(&[], &[], &[])), Access::Full);
        let logs: Scopes = [TokenScope::Logs, TokenScope::Status].into_iter().collect();
        let scopes = words(&["status", "logs"]);
        assert_eq!(granted(&wish(&scopes, &[], &[])), Access::Scoped(logs));
        let expected = [7, 8].map(|dseq| Deployment {
            dseq,
            gseq: Some(2),
            oseq: Some(3),
            scopes: logs,
            services: ["web".to_owned()].into(),
        });
        let Access::Granular(found) = granted(&wish(&scopes, &leases, &services)) else { panic!() };
        assert_eq!(found[&provider], ProviderAccess::Granular(expected.into()));
    }

    #[test]
    fn what_cannot_be_granted_is_not_signed() {
        let outer = tempfile::tempdir().unwrap();
        let dir = outer.path().join("tenant");
        IdentityFiles::create(&dir, NOW).unwrap();
        let [other, provider] = [1, 2].map(|number| Address::from_account([number; 20]));
        let foreign = [LeaseId::new(other.as_str(), 1, 1, 1, provider.as_str()).unwrap()];
        let (logs, web) = (words(&["logs"]), ["web".parse().unwrap()]);
        assert!(matches!(mint(&dir, &wish(&logs, &foreign, &web), NOW), Err(MintError::NotYours(..))));
        let error = mint(&dir, &wish(&words(&["log"]), &[], &[]), NOW).unwrap_err();
        assert!(error.to_string().contains("`log`") && error.to_string().contains("restart"), "{error}");
        assert!(matches!(mint(outer.path(), &wish(&[], &[], &[]), NOW), Err(MintError::Identity(_))));
        let owner = IdentityFiles::load(&dir).unwrap().address().clone();
        let many: Vec<_> = (1..200)
            .map(|dseq| LeaseId::new(owner.as_str(), dseq, 1, 1, provider.as_str()).unwrap())
            .collect();
        for (leases, services, reason) in
            [(&many[..], &web[..], Refusal::TokenTooLong), (&many[..1], &[], Refusal::TokenServicesEmpty)]
        {
            match mint(&dir, &wish(&logs, leases, services), NOW) {
                Err(MintError::Refused(fault)) => assert_eq!(fault.refusal, reason),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_token_is_judged_under_the_circumstances() {
        let outer = tempfile::tempdir().unwrap();
        let [dir, other] = ["tenant", "other"].map(|name| outer.path().join(name));
        let owner = IdentityFiles::create(&dir, NOW).unwrap();
        IdentityFiles::create(&other, NOW).unwrap();
        let provider = Address::from_account([9; 20]);
        let leases = [LeaseId::new(owner.as_str(), 1, 1, 1, provider.as_str()).unwrap()];
        let token = mint(&dir, &wish(&words(&["logs"]), &leases, &["web".parse().unwrap()]), NOW).unwrap();
        let longest = Duration::from_secs(900);
        let judged = |at, longest, provider, keys: &Path| {
            let circumstances = VerifyOptions { at, longest, provider };
            let key = |issuer: &Owner| key_in(keys, issuer).unwrap();
            judge(token.as_bytes(), &circumstances, key).map(drop).map_err(|fault| fault.refusal)
        };
        assert_eq!(judged(NOW, longest, Some(&provider), &dir), Ok(()));
        assert_eq!(judged(NOW, longest, Some(&owner), &dir), Err(Refusal::LeaseNotGranted));
        assert_eq!(judged(NOW, longest, None, &other), Err(Refusal::AccountUnknown));
        let late = NOW.saturating_add_nanos(900_000_000_000);
        assert_eq!(judged(late, longest, None, &dir), Err(Refusal::TokenExpired));
        let limit = Duration::from_secs(899);
        let too_long = Refusal::TokenLifetime { lifetime: Lifetime(900), limit: Lifetime(899) };
        assert_eq!(judged(NOW, limit, None, &dir), Err(too_long));
        assert_eq!(judged(late, limit, None, &dir), Err(Refusal::TokenExpired));
    }
}
