//! Claims and what they become.

use super::*;
use crate::config::AuthenticationConfiguration;

fn map(authenticator: &str, claims: Value) -> Result<User, String> {
    let text = format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\njwt:\n- issuer: {{ url: 'https://a', audiences: [x] }}\n{authenticator}"
    );
    let configuration = AuthenticationConfiguration::parse(&text, &[]).unwrap();
    user(&configuration.issuers[0], claims.as_object().unwrap())
}

const PLAIN: &str = "  claimMappings: { username: { claim: sub, prefix: 'o:' }, groups: { claim: groups, prefix: 'g:' }, uid: { claim: id } }";
const RULES: &str = r#"
  claimValidationRules:
  - { claim: hd, requiredValue: acme }
  - { expression: "claims.level > 3", message: too low }
  claimMappings:
    username: { expression: "'x:' + claims.sub" }
    groups: { expression: "claims.?roles.orValue([])" }
    uid: { expression: claims.id }
    extra:
    - { key: acme.io/tenant, valueExpression: claims.tenant }
    - { key: acme.io/none, valueExpression: "''" }
  userValidationRules:
  - { expression: "!user.groups.exists(g, g.startsWith('system:'))", message: reserved group }
  - { expression: "user.username.size() < 20 && user.uid != '' && 'acme.io/tenant' in user.extra" }
"#;

#[test]
fn claims_with_prefixes() {
    let user = map(PLAIN, json!({ "sub": "ann", "groups": ["a", "b"], "id": "7" })).unwrap();
    assert_eq!((user.username.as_str(), user.uid.as_str()), ("o:ann", "7"));
    assert_eq!(user.groups, ["g:a", "g:b"]);
    assert_eq!(map(PLAIN, json!({ "sub": "ann", "groups": "one", "id": "7" })).unwrap().groups, ["g:one"]);
    assert!(map(PLAIN, json!({ "sub": "ann", "id": "7" })).unwrap().groups.is_empty());
    let table = [
        (json!({ "id": "7" }), r#"oidc: parse username claims "sub": claim not present"#),
        (json!({ "sub": 5, "id": "7" }), r#"oidc: parse username claims "sub": claim is no string"#),
        (json!({ "sub": "ann" }), r#"oidc: parse uid claim "id": claim not present"#),
        (
            json!({ "sub": "ann", "id": "7", "groups": ["a", 5] }),
            r#"oidc: parse groups claim "groups": it is neither a string nor a list of strings"#,
        ),
        (
            json!({ "sub": "ann", "id": "7", "_claim_names": { "groups": "src1" } }),
            "oidc: could not expand distributed claims: they are not supported",
        ),
    ];
    for (claims, want) in table {
        assert_eq!(map(PLAIN, claims).unwrap_err(), want);
    }
}

#[test]
fn an_email_that_is_not_verified_is_no_name() {
    let email = "  claimMappings: { username: { claim: email, prefix: '' } }";
    let name = |verified: Value| {
        let mut claims = json!({ "email": "a@b" });
        if !verified.is_null() {
            claims["email_verified"] = verified;
        }
        map(email, claims).map(|user| user.username)
    };
    assert_eq!(name(Value::Null), Ok("a@b".to_owned()));
    assert_eq!(name(json!(true)), Ok("a@b".to_owned()));
    assert_eq!(name(json!(false)), Err("oidc: email not verified".to_owned()));
    assert!(name(json!("true")).unwrap_err().starts_with("oidc: parse 'email_verified' claim: "));
}

#[test]
fn expressions_and_rules() {
    let claims = |change: fn(&mut Value)| {
        let mut claims =
            json!({ "sub": "ann", "hd": "acme", "level": 4, "id": "7", "roles": ["a", ""], "tenant": ["t"] });
        change(&mut claims);
        map(RULES, claims)
    };
    let user = claims(|_| ()).unwrap();
    assert_eq!((user.username.as_str(), user.uid.as_str()), ("x:ann", "7"));
    assert_eq!(user.groups, ["a"]);
    assert_eq!(user.extra, BTreeMap::from([("acme.io/tenant".to_owned(), vec!["t".to_owned()])]));
    let words = |change| claims(change).unwrap_err();
    assert_eq!(words(|c| c["hd"] = json!("x")), "oidc: required claim hd value does not match. Got = x, want = acme");
    assert_eq!(
        words(|c| drop(c.as_object_mut().unwrap().remove("hd"))),
        "oidc: required claim hd not present in ID token"
    );
    assert_eq!(words(|c| c["hd"] = json!(5)), "oidc: parse claim hd: claim is no string");
    assert_eq!(
        words(|c| c["level"] = json!(3)),
        "oidc: error evaluating claim validation expression: validation expression 'claims.level > 3' failed: too low"
    );
    assert!(words(|c| c["level"] = json!("high")).starts_with("oidc: error evaluating claim validation expression: "));
    assert_eq!(
        words(|c| c["roles"] = json!(["system:masters"])),
        "oidc: error evaluating user info validation rule: validation expression '!user.groups.exists(g, g.startsWith('system:'))' failed: reserved group"
    );
    assert!(words(|c| c["sub"] = json!("a".repeat(30))).contains("user.username.size() < 20"));
    assert!(words(|c| c["sub"] = json!(["ann"])).starts_with("oidc: error evaluating username claim expression: "));
    assert_eq!(
        words(|c| c["id"] = json!(5)),
        "oidc: error evaluating uid claim expression: uid claim expression must return a string"
    );
    assert_eq!(
        words(|c| c["tenant"] = json!({ "a": 1 })),
        "oidc: error evaluating extra claim expression: claims.tenant: expression must return a string or a list of strings"
    );
    assert_eq!(
        words(|c| c["roles"] = json!([5])),
        "oidc: error evaluating group claim expression: expression must return a string or a list of strings"
    );
}
