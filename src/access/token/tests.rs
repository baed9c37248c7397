//! Each rule broken once, and signatures made by other software.

use proptest::prelude::*;
use serde::Deserialize;
use serde_json::{Value, json};

use super::*;
use crate::access::grants::{Access, Deployment, ProviderAccess, TokenScope};
use crate::model::id::Address;

mod claims;

/// Made by `tests/vectors/make.py`.
const VECTORS: &str = include_str!("../../../tests/vectors/tokens.json");

const LONGEST: Duration = Duration::from_secs(3600);

#[derive(Deserialize)]
struct Vector {
    name: String,
    token: String,
    key: String,
    at: i64,
    reason: Option<String>,
}

/// Returns a token with a signature of valid form that does not verify.
fn assemble(header: &str, claims: &str) -> String {
    let mut signature = [0; SIGNATURE_BYTES];
    (signature[31], signature[63]) = (1, 1);
    let part = |bytes: &[u8]| BASE64URL_NOPAD.encode(bytes);
    [part(header.as_bytes()), part(claims.as_bytes()), part(&signature)].join(".")
}

fn of_claims(claims: &str) -> Result<Token, TokenError> {
    Token::parse(assemble(r#"{"alg":"ES256K","typ":"JWT"}"#, claims).as_bytes())
}

fn of_header(header: &str) -> Refusal {
    Token::parse(assemble(header, &claims().to_string()).as_bytes()).unwrap_err().refusal
}

fn account(number: u8) -> Address {
    Address::from_account([number; 20])
}

fn claims() -> Value {
    json!({
        "iss": account(1).as_str(), "iat": 100, "nbf": 100, "exp": 200, "jti": "x", "version": "v1",
        "leases": {"access": "full"},
    })
}

/// Returns valid claims with one member changed, or removed if `value` is null.
fn with(path: &str, value: Value) -> Value {
    let mut claims = with_granular();
    let (parent, name) = path.rsplit_once('/').unwrap();
    let parent = claims.pointer_mut(parent).unwrap();
    if value == Value::Null {
        parent.as_object_mut().unwrap().remove(name).unwrap();
    } else {
        parent[name] = value;
    }
    claims
}

/// Returns claims with every possible member.
fn with_granular() -> Value {
    let mut claims = claims();
    claims["leases"] = json!({"access": "granular", "permissions": [
        {"provider": account(2).as_str(), "access": "granular", "deployments": [
            {"dseq": 7, "gseq": 1, "oseq": 2, "scope": ["logs", "status"], "services": ["web", "api"]},
            {"dseq": 8, "scope": ["restart"], "services": ["web"]},
        ]},
        {"provider": account(3).as_str(), "access": "scoped", "scope": ["attestation"]},
        {"provider": account(4).as_str(), "access": "full"},
    ]});
    claims
}

fn refused(claims: &Value, refusal: Refusal, at: &str) {
    let error = of_claims(&claims.to_string()).map(|token| format!("{token:?}")).unwrap_err();
    assert_eq!(error, TokenError { refusal, at: at.to_owned() }, "{claims}");
}

#[test]
fn signatures_of_other_software_verify_as_there() {
    let vectors: Vec<Vector> = serde_json::from_str(VECTORS).unwrap();
    assert!(vectors.len() > 15);
    for vector in vectors {
        let key: AccountKey = vector.key.parse().unwrap();
        let outcome = Token::parse(vector.token.as_bytes()).map_err(Refusal::from).and_then(|token| {
            token.check_time(LogTime::from_parts(vector.at, 0).unwrap(), LONGEST)?;
            token.check_signature(&key)
        });
        assert_eq!(
            outcome.map_err(|refusal| refusal.reason().to_owned()),
            vector.reason.map_or(Ok(()), Err),
            "{}",
            vector.name
        );
    }
}

#[test]
fn every_changed_byte_is_refused() {
    let vectors: Vec<Vector> = serde_json::from_str(VECTORS).unwrap();
    for vector in vectors.iter().filter(|vector| vector.reason.is_none()) {
        let key: AccountKey = vector.key.parse().unwrap();
        for at in 0..vector.token.len() {
            let mut token = vector.token.clone().into_bytes();
            token[at] = if token[at] == b'A' { b'B' } else { b'A' };
            let outcome = Token::parse(&token).map_err(Refusal::from);
            assert!(outcome.and_then(|token| token.check_signature(&key)).is_err(), "{} {at}", vector.name);
        }
    }
}

#[test]
fn adr_36_document_equals_the_one_that_wallets_sign() {
    let owner: Owner = account(1);
    assert_eq!(
        adr36(b"a.b", &owner),
        format!(
            "{{\"account_number\":\"0\",\"chain_id\":\"\",\"fee\":{{\"amount\":[],\"gas\":\"0\"}},\"memo\":\"\",\
             \"msgs\":[{{\"type\":\"sign/MsgSignData\",\"value\":{{\"data\":\"YS5i\",\"signer\":\"{owner}\"}}}}],\
             \"sequence\":\"0\"}}"
        )
    );
}

#[test]
fn bearer_is_scheme_space_and_token() {
    for good in ["Bearer x", "bearer x", "BEARER x"] {
        assert_eq!(bearer(good.as_bytes()), Ok(&b"x"[..]), "{good}");
    }
    for bad in [
        "",
        "Bearer",
        "Bearer ",
        "x",
        "Basic x",
        "Bearer  x",
        "Bearer x y",
        " Bearer x",
        "Bearer\tx",
        "Bearerx",
    ] {
        assert_eq!(bearer(bad.as_bytes()), Err(Refusal::AuthorizationMalformed), "{bad}");
    }
}

#[test]
fn token_has_three_parts_and_a_maximum_length() {
    let good = assemble(r#"{"alg":"ES256K","typ":"JWT"}"#, &claims().to_string());
    Token::parse(good.as_bytes()).unwrap();
    let parts: Vec<&str> = good.split('.').collect();
    let [header, payload, signature] = parts[..] else { panic!() };
    for bad in [
        String::new(),
        "..".to_owned(),
        format!("{header}.{payload}"),
        format!("{good}."),
        format!("{good}.{signature}"),
        format!("{good}="),
        format!("{good} "),
        format!("{header}.{payload}.{}!", &signature[1..]),
        // The bits after the last byte are not zero: a second text for the same token.
        format!("{header}.{payload}.{}R", &signature[..signature.len() - 1]),
        format!("{}.{payload}.{signature}", header.replace('-', "+") + "+"),
    ] {
        let refusal = Token::parse(bad.as_bytes()).unwrap_err().refusal;
        assert!(matches!(refusal, Refusal::TokenMalformed | Refusal::TokenHeader), "{bad}: {refusal}");
    }
    let long = "a".repeat(TOKEN_MAX_BYTES + 1);
    assert_eq!(Token::parse(long.as_bytes()).unwrap_err(), Refusal::TokenTooLong.into());
    assert_eq!(Token::parse(&long.as_bytes()[1..]).unwrap_err(), Refusal::TokenMalformed.into());
}

#[test]
fn header_names_the_algorithm_and_no_key() {
    for bad in [
        "",
        "[]",
        "{}",
        r#"{"alg":"ES256K"}"#,
        r#"{"typ":"JWT"}"#,
        r#"{"alg":"ES256K","typ":"jwt"}"#,
        r#"{"alg":"ES256K","typ":"JWT","typ":"JWT"}"#,
        r#"{"alg":"ES256K","alg":"ES256K","typ":"JWT"}"#,
        r#"{"alg":"ES256K","typ":"JWT","kid":"1"}"#,
        r#"{"alg":"ES256K","typ":"JWT","jwk":{}}"#,
        r#"{"alg":"ES256K","typ":"JWT","jku":"https://example.com"}"#,
        r#"{"alg":"ES256K","typ":"JWT","crit":[]}"#,
        r#"{"alg":"ES256K","typ":"JWT"} x"#,
    ] {
        assert_eq!(of_header(bad), Refusal::TokenHeader, "{bad}");
    }
    for algorithm in [
        "none",
        "None",
        "",
        "HS256",
        "HS512",
        "RS256",
        "ES256",
        "ES512",
        "EdDSA",
        "es256k",
        "ES256K ",
        "ES256KADR",
    ] {
        let header = json!({"alg": algorithm, "typ": "JWT"}).to_string();
        assert_eq!(of_header(&header), Refusal::TokenAlgorithm, "{algorithm}");
    }
    assert_eq!(of_header(r#"{"alg":7,"typ":"JWT"}"#), Refusal::TokenAlgorithm);
}

#[test]
fn signature_is_two_numbers_within_the_order() {
    let order = data_encoding::HEXUPPER
        .decode(b"FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141")
        .unwrap();
    let one = {
        let mut one = [0; 32];
        one[31] = 1;
        one.to_vec()
    };
    let zero = vec![0; 32];
    let check = |bytes: &[u8]| parse_signature(bytes).map(|_| ());
    assert_eq!(check(&[one.clone(), one.clone()].concat()), Ok(()));
    for bad in [[&zero, &one], [&one, &zero], [&order, &one], [&one, &order]] {
        assert_eq!(check(&[bad[0].clone(), bad[1].clone()].concat()), Err(Refusal::TokenSignatureForm));
    }
    for length in [0, 63, 65, 70] {
        assert_eq!(check(&vec![1; length]), Err(Refusal::TokenSignatureForm));
    }
    let mut highest = order.clone();
    *highest.last_mut().unwrap() -= 1;
    assert_eq!(check(&[one, highest].concat()), Err(Refusal::TokenSignatureHigh));
}

/// Repairs a token that fails every check, one check after the other.
#[test]
fn first_failed_check_is_reported() {
    let part = |bytes: &[u8]| BASE64URL_NOPAD.encode(bytes);
    let mut bad_claims = claims();
    bad_claims["version"] = json!("v2");
    let (bad_claims, good_claims) = (bad_claims.to_string(), claims().to_string());
    let mut low = [0; SIGNATURE_BYTES];
    (low[31], low[63]) = (1, 1);
    let mut high = low;
    // More than half of the order.
    high[32] = 0x80;
    let [kid, none, good] = [
        r#"{"alg":"none","typ":"JWT","kid":"1"}"#,
        r#"{"alg":"none","typ":"JWT"}"#,
        r#"{"alg":"ES256K","typ":"JWT"}"#,
    ];
    for (header, claims, signature, expected) in [
        (kid, &bad_claims, &b"short"[..], Refusal::TokenHeader),
        (none, &bad_claims, b"short", Refusal::TokenAlgorithm),
        (good, &bad_claims, b"short", Refusal::TokenSignatureForm),
        (good, &bad_claims, &high, Refusal::TokenSignatureHigh),
        (good, &bad_claims, &low, Refusal::TokenVersion),
    ] {
        let token = [part(header.as_bytes()), part(claims.as_bytes()), part(signature)].join(".");
        assert_eq!(Token::parse(token.as_bytes()).unwrap_err().refusal, expected);
        let malformed = Token::parse(format!("{token}!").as_bytes()).unwrap_err().refusal;
        assert_eq!(malformed, Refusal::TokenMalformed);
    }
    let long = "!".repeat(TOKEN_MAX_BYTES + 1);
    assert_eq!(Token::parse(long.as_bytes()).unwrap_err().refusal, Refusal::TokenTooLong);
    let last = [part(good.as_bytes()), part(good_claims.as_bytes()), part(&low)].join(".");
    Token::parse(last.as_bytes()).unwrap();
}

#[test]
fn claims_are_read_in_full() {
    let token = of_claims(&with_granular().to_string()).unwrap();
    let claims = token.claims();
    assert_eq!(
        (&claims.issuer, claims.issued, claims.not_before, claims.expires, claims.id.as_deref()),
        (&account(1), 100, 100, 200, Some("x"))
    );
    let Access::Granular(permissions) = &claims.access else { panic!("{claims:?}") };
    let first = Deployment {
        dseq: 7,
        gseq: Some(1),
        oseq: Some(2),
        scopes: [TokenScope::Logs, TokenScope::Status].into_iter().collect(),
        services: ["api", "web"].map(str::to_owned).into(),
    };
    let second = Deployment {
        dseq: 8,
        gseq: None,
        oseq: None,
        scopes: [TokenScope::Restart].into_iter().collect(),
        services: ["web".to_owned()].into(),
    };
    assert_eq!(permissions[&account(2)], ProviderAccess::Granular(vec![first, second]));
    assert_eq!(
        permissions[&account(3)],
        ProviderAccess::Scoped([TokenScope::Attestation].into_iter().collect())
    );
    assert_eq!(permissions[&account(4)], ProviderAccess::Full);
}

#[test]
fn written_claims_are_read_back() {
    let mut scoped = claims();
    scoped["leases"] = json!({"access": "scoped", "scope": ["logs", "shell"]});
    for claims in [claims(), scoped, with_granular()] {
        let read = of_claims(&claims.to_string()).unwrap().claims().clone();
        assert_eq!(of_claims(&read.to_json().to_string()).unwrap().claims(), &read);
    }
}

#[test]
fn each_scope_is_known_by_its_name() {
    for scope in TokenScope::NAMES.map(|(scope, _)| scope) {
        let mut claims = claims();
        claims["leases"] = json!({"access": "scoped", "scope": [scope.name()]});
        let token = of_claims(&claims.to_string()).unwrap();
        assert_eq!(token.claims().access, Access::Scoped([scope].into_iter().collect()));
    }
}

#[test]
fn times_are_whole_seconds_quoted_or_not() {
    for name in ["iat", "nbf", "exp"] {
        for good in [json!(0), json!("0"), json!("150"), json!(u64::MAX), json!(u64::MAX.to_string())] {
            of_claims(&with(&format!("/{name}"), good).to_string()).unwrap();
        }
        for bad in [
            json!(1.5),
            json!(150.0),
            json!(-1),
            json!("-1"),
            json!("1.5"),
            json!("+1"),
            json!("01"),
            json!(""),
            json!(" 1"),
            json!("x"),
            json!(true),
        ] {
            refused(&with(&format!("/{name}"), bad), Refusal::TokenTime, name);
        }
        refused(&with(&format!("/{name}"), json!([])), Refusal::TokenMemberType, name);
    }
    let exponent = claims().to_string().replace("\"exp\":200", "\"exp\":2e2");
    assert_eq!(of_claims(&exponent).unwrap_err().refusal, Refusal::TokenTime);
    let beyond = claims().to_string().replace("\"exp\":200", "\"exp\":18446744073709551616");
    assert_eq!(of_claims(&beyond).unwrap_err().refusal, Refusal::TokenTime);
}

#[test]
fn validity_period_has_no_leeway() {
    let token = of_claims(&claims().to_string()).unwrap();
    let at =
        |seconds: i64, nanos: i32| token.check_time(LogTime::from_parts(seconds, nanos).unwrap(), LONGEST);
    assert_eq!(at(99, 999_999_999), Err(Refusal::TokenNotYetValid));
    assert_eq!(at(100, 0), Ok(()));
    assert_eq!(at(199, 999_999_999), Ok(()));
    assert_eq!(at(200, 0), Err(Refusal::TokenExpired));
    assert_eq!(at(-5, 0), Err(Refusal::TokenNotYetValid));
}

#[test]
fn token_beyond_lifetime_limit_is_refused() {
    let token = of_claims(&claims().to_string()).unwrap();
    let now = LogTime::from_parts(150, 0).unwrap();
    assert_eq!(token.check_time(now, Duration::from_secs(100)), Ok(()));
    let too_long = |lifetime, limit: Duration| {
        Err(Refusal::TokenLifetime { lifetime: Lifetime(lifetime), limit: Lifetime(limit.as_secs()) })
    };
    let limit = Duration::from_secs(99);
    assert_eq!(token.check_time(now, limit), too_long(100, limit));
    // Before `nbf`, too: waiting does not help.
    let early = LogTime::from_parts(50, 0).unwrap();
    assert_eq!(token.check_time(early, limit), too_long(100, limit));
    // Even if it ends soon, or claims to be made just now.
    let old = of_claims(&with("/nbf", json!(0)).to_string()).unwrap();
    let limit = Duration::from_secs(199);
    assert_eq!(old.check_time(now, limit), too_long(200, limit));
    let forever = of_claims(&with("/exp", json!(u64::MAX)).to_string()).unwrap();
    assert_eq!(forever.check_time(now, LONGEST), too_long(u64::MAX - 100, LONGEST));
    // Never valid at all.
    let reversed = of_claims(&with("/exp", json!(50)).to_string()).unwrap();
    assert_eq!(reversed.check_time(now, LONGEST), Err(Refusal::TokenExpired));
}

#[test]
fn expired_token_is_expired_whatever_its_lifetime() {
    let token = of_claims(&claims().to_string()).unwrap();
    let after = LogTime::from_parts(200, 0).unwrap();
    assert_eq!(token.check_time(after, Duration::from_secs(99)), Err(Refusal::TokenExpired));
}

#[test]
fn debug_output_omits_the_signature() {
    let vectors: Vec<Vector> = serde_json::from_str(VECTORS).unwrap();
    let token = Token::parse(vectors[0].token.as_bytes()).unwrap();
    let shown = format!("{token:?}");
    assert!(!shown.contains("ignature"), "{shown}");
}

proptest! {
    #[test]
    fn arbitrary_input_does_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in "[A-Za-z0-9._-]{0,200}") {
        let _ = (Token::parse(&bytes), Token::parse(text.as_bytes()), bearer(&bytes));
    }

    #[test]
    fn arbitrary_claims_do_not_panic(claims in r#"(\{|\}|\[|\]|"iss"|"leases"|"access"|"full"|:|,|1|"v1"|"scope"| ){0,40}"#) {
        let _ = of_claims(&claims);
    }
}
