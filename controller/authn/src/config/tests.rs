//! Files that are good, and what is said of those that are not.

use super::*;

const GOOD: &str = r#"
apiVersion: apiserver.config.k8s.io/v1
kind: AuthenticationConfiguration
jwt:
- issuer:
    url: https://a.example
    audiences: [x]
  claimValidationRules:
  - claim: hd
    requiredValue: example.com
  - expression: 'claims.exp - claims.nbf <= 86400'
    message: total token lifetime must not exceed 24 hours
  claimMappings:
    username: { expression: 'claims.username + ":external-user"' }
    groups: { claim: groups, prefix: "oidc:" }
    uid: { claim: sub }
    extra:
    - { key: example.com/tenant, valueExpression: claims.tenant }
  userValidationRules:
  - expression: "!user.username.startsWith('system:')"
    message: username cannot use reserved system prefix
- issuer:
    url: https://b.example/realm
    discoveryURL: https://inside.example/.well-known/openid-configuration
    audiences: [x, y]
    audienceMatchPolicy: MatchAny
  claimMappings:
    username: { claim: sub, prefix: "" }
anonymous:
  enabled: true
  conditions: [{ path: /livez }, { path: /readyz }]
"#;

#[test]
fn a_good_file_is_read() {
    for version in VERSIONS {
        let text = GOOD.replace("k8s.io/v1\n", &format!("k8s.io/{version}\n"));
        let read = AuthenticationConfiguration::parse(&text, &["https://own".to_owned()]).unwrap();
        assert_eq!(read.issuer_urls(), ["https://a.example", "https://b.example/realm"]);
        assert!(read.issuers[0].evaluates() && !read.issuers[1].evaluates());
        let anonymous = read.anonymous.unwrap();
        assert!(anonymous.allows("/livez") && !anonymous.allows("/livez/") && !anonymous.allows("/api"));
    }
    let none = "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\njwt: null\n";
    assert!(AuthenticationConfiguration::parse(none, &[]).unwrap().issuers.is_empty());
    assert!(Anonymous { enabled: true, conditions: Vec::new() }.allows("/any"));
    assert!(!Anonymous { enabled: false, conditions: Vec::new() }.allows("/any"));
}

#[test]
fn what_is_not_such_a_file_is_refused() {
    let replaced = [
        ("apiserver.config.k8s.io/v1", "apiserver.config.k8s.io/v2"),
        ("apiserver.config.k8s.io/v1", "apps/v1"),
        ("kind: AuthenticationConfiguration", "kind: Deployment"),
        ("jwt:", "jwts:"),
        ("    audiences: [x]", "    audiences: [x]\n    audience: y"),
        ("requiredValue", "value"),
        ("prefix: \"oidc:\"", "prefix: \"oidc:\", suffix: x"),
        ("uid: { claim: sub }", "uid: { claim: sub, prefix: x }"),
        ("conditions: [{ path: /livez }", "conditions: [{ path: /livez, verb: get }"),
        ("    url: https://a.example", "    url: https://a.example\n    url: https://c.example"),
    ];
    for (from, to) in replaced {
        let text = GOOD.replacen(from, to, 1);
        assert_ne!(text, GOOD, "{from}");
        let error = AuthenticationConfiguration::parse(&text, &[]).unwrap_err();
        assert!(matches!(error, ConfigError::Decode(_)), "{to}: {error}");
    }
    let large = format!("{GOOD}# {}", "x".repeat(MAX_FILE));
    assert!(AuthenticationConfiguration::parse(&large, &[]).is_err());
}

/// What is wrong after a replacement.
fn problems(from: &str, to: &str) -> String {
    let text = GOOD.replacen(from, to, 1);
    assert_ne!(text, GOOD, "{from}");
    match AuthenticationConfiguration::parse(&text, &["https://own".to_owned()]) {
        Ok(_) => panic!("{to} is accepted"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn issuers_are_checked() {
    let url = "url: https://a.example";
    let table = [
        (url, "url: ''", "jwt[0].issuer.url: Required value"),
        (
            url,
            "url: http://a.example",
            r#"jwt[0].issuer.url: Invalid value: "http://a.example": URL scheme must be https"#,
        ),
        (
            url,
            "url: https://u:p@a.example",
            r#"jwt[0].issuer.url: Invalid value: "https://u:p@a.example": URL must not contain a username or password"#,
        ),
        (
            url,
            "url: https://a.example?q=1",
            r#"jwt[0].issuer.url: Invalid value: "https://a.example?q=1": URL must not contain a query"#,
        ),
        (
            url,
            "url: 'https://a.example#f'",
            r#"jwt[0].issuer.url: Invalid value: "https://a.example#f": URL must not contain a fragment"#,
        ),
        (
            url,
            "url: https://own",
            r#"jwt[0].issuer.url: Invalid value: "https://own": URL must not overlap with disallowed issuers: [https://own]"#,
        ),
        (url, "url: https://b.example/realm", r#"jwt[1].issuer.url: Duplicate value: "https://b.example/realm""#),
        (
            "discoveryURL: https://inside.example/.well-known/openid-configuration",
            "discoveryURL: https://b.example/realm/",
            r#"jwt[1].issuer.discoveryURL: Invalid value: "https://b.example/realm/": discoveryURL must be different from URL"#,
        ),
        (
            "audiences: [x]",
            "audiences: []",
            "jwt[0].issuer.audiences: Required value: at least one jwt[0].issuer.audiences is required",
        ),
        ("audiences: [x]", "audiences: ['']", "jwt[0].issuer.audiences[0]: Required value"),
        ("audiences: [x, y]", "audiences: [x, x]", r#"jwt[1].issuer.audiences[1]: Duplicate value: "x""#),
        (
            "    audienceMatchPolicy: MatchAny\n",
            "",
            r#"jwt[1].issuer.audienceMatchPolicy: Invalid value: "": audienceMatchPolicy must be MatchAny for multiple audiences"#,
        ),
        (
            "audiences: [x]",
            "audiences: [x]\n    audienceMatchPolicy: All",
            r#"jwt[0].issuer.audienceMatchPolicy: Invalid value: "All": audienceMatchPolicy must be empty or MatchAny for single audience"#,
        ),
        (
            "audiences: [x]",
            "audiences: [x]\n    certificateAuthority: abc",
            r#"jwt[0].issuer.certificateAuthority: Invalid value: "<omitted>": data does not contain any valid RSA or ECDSA certificates"#,
        ),
        (
            "audiences: [x]",
            "audiences: [x]\n    egressSelectorType: cluster",
            r#"jwt[0].issuer.egressSelectorType: Invalid value: "cluster": egress selector is not supported"#,
        ),
        (
            "enabled: true",
            "enabled: false",
            r#"anonymous.conditions: Invalid value: "/livez,/readyz": enabled should be set to true when conditions are defined"#,
        ),
    ];
    for (from, to, want) in table {
        assert_eq!(problems(from, to), want);
    }
}

#[test]
fn rules_and_mappings_are_checked() {
    let user = "username: { claim: sub, prefix: \"\" }";
    let table = [
        (
            "- claim: hd",
            "- claim: hd\n    expression: 'true'",
            r#"jwt[0].claimValidationRules[0]: Invalid value: "hd": claim and expression can't both be set"#,
        ),
        (
            "- claim: hd",
            "- claim: hd\n    message: m",
            r#"jwt[0].claimValidationRules[0].message: Invalid value: "m": may not be specified when claim is set"#,
        ),
        (
            "- claim: hd\n    requiredValue: example.com",
            "- message: m",
            "jwt[0].claimValidationRules[0]: Required value: claim or expression is required",
        ),
        (
            "- expression: 'claims.exp - claims.nbf <= 86400'\n    message: total token lifetime must not exceed 24 hours",
            "- claim: hd",
            r#"jwt[0].claimValidationRules[1].claim: Duplicate value: "hd""#,
        ),
        (
            "    message: total token",
            "    requiredValue: v\n    message: total token",
            r#"jwt[0].claimValidationRules[1].requiredValue: Invalid value: "v": may not be specified when expression is set"#,
        ),
        (
            "claims.exp - claims.nbf <= 86400",
            "claims.exp",
            r#"jwt[0].claimValidationRules[1].expression: Invalid value: "claims.exp": must evaluate to bool"#,
        ),
        (user, "username: {}", "jwt[1].claimMappings.username: Required value: claim or expression is required"),
        (
            user,
            "username: { claim: sub }",
            "jwt[1].claimMappings.username.prefix: Required value: prefix is required when claim is set. It can be set to an empty string to disable prefixing",
        ),
        (
            user,
            "username: { claim: sub, expression: claims.sub }",
            r#"jwt[1].claimMappings.username: Invalid value: "": claim and expression can't both be set"#,
        ),
        (
            user,
            "username: { prefix: p, expression: claims.sub }",
            r#"jwt[1].claimMappings.username.prefix: Invalid value: "p": may not be specified when expression is set"#,
        ),
        (
            user,
            "username: { expression: user.sub }",
            r#"jwt[1].claimMappings.username.expression: Invalid value: "user.sub": compilation failed: undeclared reference to 'user' (in container '')"#,
        ),
        (
            "uid: { claim: sub }",
            "uid: { claim: sub, expression: claims.sub }",
            r#"jwt[0].claimMappings.uid: Invalid value: "": claim and expression can't both be set"#,
        ),
        (
            "key: example.com/tenant",
            "key: tenant",
            r#"jwt[0].claimMappings.extra[0].key: Invalid value: "tenant": must be a domain-prefixed path (such as "acme.io/foo")"#,
        ),
        (
            "key: example.com/tenant",
            "key: example.com/Tenant",
            r#"jwt[0].claimMappings.extra[0].key: Invalid value: "example.com/Tenant": must be lowercase"#,
        ),
        (
            "key: example.com/tenant",
            "key: a.k8s.io/t",
            r#"jwt[0].claimMappings.extra[0].key: Invalid value: "a.k8s.io/t": k8s.io, kubernetes.io and their subdomains are reserved for Kubernetes use"#,
        ),
        (
            "valueExpression: claims.tenant",
            "valueExpression: ''",
            "jwt[0].claimMappings.extra[0].valueExpression: Required value",
        ),
        ("!user.username.startsWith('system:')", "", "jwt[0].userValidationRules[0].expression: Required value"),
        (
            "!user.username.startsWith('system:')",
            "user.name == ''",
            r#"jwt[0].userValidationRules[0].expression: Invalid value: "user.name == ''": compilation failed: undefined field 'name'"#,
        ),
    ];
    for (from, to, want) in table {
        assert_eq!(problems(from, to), want);
    }
}

#[test]
fn an_email_must_be_verified() {
    let user = "username: { claim: sub, prefix: \"\" }";
    let email = "username: { expression: claims.email }";
    assert!(problems(user, email).contains("claims.email_verified must be used in"));
    let verified = format!(
        "{email}\n  claimValidationRules: [{{ expression: \"claims.?email_verified.orValue(true) == true\" }}]"
    );
    assert!(AuthenticationConfiguration::parse(&GOOD.replacen(user, &verified, 1), &[]).is_ok());
}

#[test]
fn there_is_a_bound_on_issuers() {
    let issuer = "- issuer: { url: https://a.example, audiences: [x] }\n  claimMappings: { username: { claim: sub, prefix: '' } }\n";
    let text = format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\njwt:\n{}",
        issuer.repeat(MAX_ISSUERS + 1)
    );
    let error = AuthenticationConfiguration::parse(&text, &[]).unwrap_err().to_string();
    assert_eq!(error, "jwt: Too many: 65: must have at most 64 items");
}
