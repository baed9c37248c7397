//! The rules of claims: each violation is refused with its own reason and place.

use super::*;

#[test]
fn claims_must_be_an_object() {
    for text in ["", "null", "[]", "\"x\"", "{", "{} {}"] {
        assert_eq!(of_claims(text).unwrap_err().refusal, Refusal::TokenClaims, "{text}");
    }
}

#[test]
fn missing_member_is_refused_with_its_place() {
    let paths = [
        "/iss",
        "/iat",
        "/nbf",
        "/exp",
        "/version",
        "/leases",
        "/leases/access",
        "/leases/permissions",
        "/leases/permissions/0/provider",
        "/leases/permissions/0/access",
        "/leases/permissions/0/deployments",
        "/leases/permissions/0/deployments/0/dseq",
        "/leases/permissions/0/deployments/0/scope",
        "/leases/permissions/0/deployments/0/services",
        "/leases/permissions/1/scope",
    ];
    for path in paths {
        let at = path[1..].replace("/0", "[0]").replace("/1", "[1]").replace('/', ".");
        refused(&with(path, Value::Null), Refusal::TokenMemberMissing, &at);
    }
    for optional in ["/jti", "/leases/permissions/0/deployments/0/oseq"] {
        of_claims(&with(optional, Value::Null).to_string()).unwrap();
    }
    let mut scoped = claims();
    scoped["leases"] = json!({"access": "scoped"});
    refused(&scoped, Refusal::TokenMemberMissing, "leases.scope");
}

#[test]
fn unknown_or_duplicate_member_is_refused_at_each_level() {
    for (parent, at) in [
        ("", ""),
        ("/leases", "leases."),
        ("/leases/permissions/0", "leases.permissions[0]."),
        ("/leases/permissions/0/deployments/0", "leases.permissions[0].deployments[0]."),
    ] {
        for name in ["x", "aud", "Access", "services2", ""] {
            let mut claims = with_granular();
            claims.pointer_mut(parent).unwrap()[name] = json!(1);
            refused(&claims, Refusal::TokenMemberUnknown, &format!("{at}{name}"));
        }
        let mut claims = with_granular();
        claims.pointer_mut(parent).unwrap()["mark"] = json!(1);
        let twice = claims.to_string();
        let name = if parent.is_empty() {
            "version"
        } else if parent.ends_with("deployments/0") {
            "dseq"
        } else {
            "access"
        };
        let value = claims.pointer(&format!("{parent}/{name}")).unwrap();
        let twice = twice.replace("\"mark\":1", &format!("\"{name}\":{value}"));
        let error = of_claims(&twice).unwrap_err();
        assert_eq!(error, TokenError { refusal: Refusal::TokenMemberTwice, at: format!("{at}{name}") });
    }
}

#[test]
fn member_that_access_excludes_is_refused() {
    let (scope, permissions) = (json!(["logs"]), json!([]));
    for (leases, at) in [
        (json!({"access": "full", "scope": scope}), "leases.scope"),
        (json!({"access": "full", "permissions": permissions}), "leases.permissions"),
        (json!({"access": "scoped", "scope": scope, "permissions": permissions}), "leases.permissions"),
        (json!({"access": "granular", "scope": scope, "permissions": permissions}), "leases.scope"),
    ] {
        let mut claims = claims();
        claims["leases"] = leases;
        refused(&claims, Refusal::TokenMemberMisplaced, at);
    }
    let entry = "/leases/permissions/0";
    let provider = account(2).to_string();
    for (value, at) in [
        (json!({"provider": provider, "access": "full", "scope": scope}), "scope"),
        (json!({"provider": provider, "access": "full", "deployments": []}), "deployments"),
        (json!({"provider": provider, "access": "scoped", "scope": scope, "deployments": []}), "deployments"),
        (json!({"provider": provider, "access": "granular", "scope": scope, "deployments": []}), "scope"),
    ] {
        let mut claims = with_granular();
        *claims.pointer_mut(entry).unwrap() = value;
        refused(&claims, Refusal::TokenMemberMisplaced, &format!("leases.permissions[0].{at}"));
    }
}

/// Checks each `(member, value, reason, place)` below `at`. An empty place is that of the member.
fn each_refused(parent: &str, at: &str, cases: &[(&str, Value, Refusal, &str)]) {
    for (name, value, refusal, place) in cases {
        let place = if place.is_empty() { format!("{at}{name}") } else { format!("{at}{place}") };
        refused(&with(&format!("{parent}/{name}"), value.clone()), *refusal, &place);
    }
}

/// Texts that are no address of a key: upper case, another chain's, a contract's, none.
fn strange_addresses() -> [Value; 4] {
    let upper = account(1).as_str().to_uppercase();
    let foreign = account(1).as_str().replace("akash1", "cosmos1");
    let contract = bech32::encode::<bech32::Bech32>(bech32::Hrp::parse("akash").unwrap(), &[1; 32]).unwrap();
    [upper, foreign, contract, String::new()].map(Value::String)
}

#[test]
fn each_rule_of_the_claims_has_its_own_reason() {
    for strange in strange_addresses() {
        each_refused("", "", &[("iss", strange, Refusal::TokenIssuer, "")]);
    }
    each_refused(
        "",
        "",
        &[
            ("iss", json!(7), Refusal::TokenMemberType, ""),
            ("jti", json!(""), Refusal::TokenId, ""),
            ("jti", json!(7), Refusal::TokenMemberType, ""),
            ("version", json!("v2"), Refusal::TokenVersion, ""),
            ("version", json!("V1"), Refusal::TokenVersion, ""),
            ("version", json!(1), Refusal::TokenMemberType, ""),
            ("leases", json!("full"), Refusal::TokenMemberType, ""),
        ],
    );
    each_refused(
        "/leases",
        "leases.",
        &[
            ("access", json!("all"), Refusal::TokenAccess, ""),
            ("access", json!("Full"), Refusal::TokenAccess, ""),
            ("permissions", json!([]), Refusal::TokenPermissionsEmpty, ""),
            ("permissions", json!({}), Refusal::TokenMemberType, ""),
        ],
    );
}

#[test]
fn each_rule_of_a_permission_has_its_own_reason() {
    let (parent, at) = ("/leases/permissions/0", "leases.permissions[0].");
    for strange in strange_addresses() {
        each_refused(parent, at, &[("provider", strange, Refusal::TokenProvider, "")]);
    }
    each_refused(
        parent,
        at,
        &[
            ("access", json!("none"), Refusal::TokenAccess, ""),
            ("deployments", json!([]), Refusal::TokenDeploymentsEmpty, ""),
            ("deployments", json!(["x"]), Refusal::TokenMemberType, "deployments[0]"),
        ],
    );
    let twice = with(&format!("{parent}/provider"), json!(account(3).as_str()));
    refused(&twice, Refusal::TokenProviderTwice, "leases.permissions[1].provider");
}

#[test]
fn each_rule_of_a_deployment_has_its_own_reason() {
    each_refused(
        "/leases/permissions/0/deployments/0",
        "leases.permissions[0].deployments[0].",
        &[
            ("dseq", json!(0), Refusal::TokenDseq, ""),
            ("dseq", json!(-7), Refusal::TokenDseq, ""),
            ("dseq", json!("7"), Refusal::TokenMemberType, ""),
            ("gseq", json!(1u64 << 32), Refusal::TokenSequence, ""),
            ("oseq", json!(-1), Refusal::TokenSequence, ""),
            ("oseq", json!("1"), Refusal::TokenMemberType, ""),
            ("gseq", Value::Null, Refusal::TokenOseq, "oseq"),
            ("gseq", json!(0), Refusal::TokenOseq, "oseq"),
            ("scope", json!([]), Refusal::TokenScopeEmpty, ""),
            ("scope", json!(["logs", "log"]), Refusal::TokenScopeUnknown, "scope[1]"),
            ("scope", json!(["logs", "logs"]), Refusal::TokenScopeTwice, "scope[1]"),
            ("scope", json!([1]), Refusal::TokenMemberType, "scope[0]"),
            ("scope", json!("logs"), Refusal::TokenMemberType, ""),
            ("services", json!([]), Refusal::TokenServicesEmpty, ""),
            ("services", json!(["web", "web"]), Refusal::TokenServiceTwice, "services[1]"),
            ("services", json!(["", ""]), Refusal::TokenServiceTwice, "services[1]"),
            ("services", json!([1]), Refusal::TokenMemberType, "services[0]"),
        ],
    );
}

#[test]
fn name_that_no_service_can_have_is_accepted() {
    for names in [json!([""]), json!(["Web", "web"]), json!(["*", "a".repeat(100)])] {
        let claims = with("/leases/permissions/0/deployments/0/services", names.clone());
        let token = of_claims(&claims.to_string()).unwrap();
        // Shown unchanged, so that the token's holder can find the mistake.
        let shown = token.claims().to_json();
        let services = shown.pointer("/leases/permissions/0/deployments/0/services").unwrap();
        let sorted = |value: &Value| {
            let mut names: Vec<_> =
                value.as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect();
            names.sort();
            names
        };
        assert_eq!(sorted(services), sorted(&names));
    }
}

/// For deployments, see the test above.
#[test]
fn each_rule_of_scopes_holds_at_each_level() {
    for (parent, at, rest) in [
        ("", "", json!({"access": "scoped"})),
        ("/permissions/1", ".permissions[1]", json!({"access": "scoped", "provider": account(3).as_str()})),
    ] {
        for (scope, refusal, item) in [
            (json!([]), Refusal::TokenScopeEmpty, ""),
            (json!(["logs", "Logs"]), Refusal::TokenScopeUnknown, "[1]"),
            (json!(["logs", "status", "logs"]), Refusal::TokenScopeTwice, "[2]"),
            (json!([null]), Refusal::TokenMemberType, "[0]"),
            (json!("logs"), Refusal::TokenMemberType, ""),
        ] {
            let mut claims = with_granular();
            let mut entry = rest.clone();
            entry["scope"] = scope;
            *claims.pointer_mut(&format!("/leases{parent}")).unwrap() = entry;
            refused(&claims, refusal, &format!("leases{at}.scope{item}"));
        }
    }
}

#[test]
fn zero_is_any_group_or_order_and_order_needs_group() {
    let of = |more: Value| {
        let mut entry = json!({"dseq": 7, "scope": ["logs"], "services": ["web"]});
        entry.as_object_mut().unwrap().append(&mut more.as_object().unwrap().clone());
        with("/leases/permissions/0/deployments", json!([entry]))
    };
    for any in [json!({}), json!({"gseq": 0}), json!({"gseq": 0, "oseq": 0})] {
        let token = of_claims(&of(any).to_string()).unwrap();
        let Access::Granular(permissions) = &token.claims().access else { panic!() };
        let ProviderAccess::Granular(deployments) = &permissions[&account(2)] else { panic!() };
        assert_eq!((deployments[0].gseq, deployments[0].oseq), (None, None));
    }
    of_claims(&of(json!({"gseq": 3, "oseq": 0})).to_string()).unwrap();
    let at = "leases.permissions[0].deployments[0].oseq";
    for alone in [json!({"oseq": 1}), json!({"oseq": 0}), json!({"gseq": 0, "oseq": 1})] {
        refused(&of(alone), Refusal::TokenOseq, at);
    }
}
