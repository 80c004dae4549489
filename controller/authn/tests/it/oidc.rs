//! Tokens of an issuer over TLS: keys that change, tokens that are wrong, answers that are too large or too slow.

use crate::server::{Answer, Server};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use causeway_authn::config::AuthenticationConfiguration;
use causeway_authn::oidc::{Bounds, Oidc};
use causeway_authn::{AuthnError, User};
use http::StatusCode;
use parking_lot::Mutex;
use rcgen::{KeyPair, PublicKeyData};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

const DISCOVERY: &str = "/.well-known/openid-configuration";
const KEYS: &str = "/keys";

/// A key of the issuer.
struct Key {
    pair: EcdsaKeyPair,
    alg: &'static str,
    jwk: Value,
}

fn key(kid: &str, alg: &'static str) -> Key {
    let (made, curve, signing): (_, _, &'static EcdsaSigningAlgorithm) = match alg {
        "ES256" => (&rcgen::PKCS_ECDSA_P256_SHA256, "P-256", &ECDSA_P256_SHA256_FIXED_SIGNING),
        _ => (&rcgen::PKCS_ECDSA_P384_SHA384, "P-384", &ECDSA_P384_SHA384_FIXED_SIGNING),
    };
    let pair = KeyPair::generate_for(made).unwrap();
    let (x, y) = pair.der_bytes()[1..].split_at((pair.der_bytes().len() - 1) / 2);
    let jwk = json!({ "kty": "EC", "kid": kid, "crv": curve, "use": "sig",
        "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y) });
    let pair = EcdsaKeyPair::from_pkcs8(signing, &pair.serialize_der(), &SystemRandom::new()).unwrap();
    Key { pair, alg, jwk }
}

fn sign_as(key: &Key, header: &Value, claims: &Value) -> String {
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let message = format!("{}.{}", encode(header), encode(claims));
    let signature = key.pair.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
}

fn sign(key: &Key, claims: &Value) -> String {
    sign_as(key, &json!({ "alg": key.alg, "kid": key.jwk["kid"] }), claims)
}

/// An issuer whose answer about keys can be changed.
struct Issuer {
    server: Server,
    keys: Arc<Mutex<Answer>>,
}

impl Issuer {
    async fn start() -> Self {
        let keys = Arc::new(Mutex::new(Answer::json(&json!({ "keys": [] }))));
        let (answer, url) = (Arc::clone(&keys), Arc::new(Mutex::new(String::new())));
        let own = Arc::clone(&url);
        let server = Server::start(move |asked| match asked.path.as_str() {
            DISCOVERY => {
                let url = own.lock().clone();
                Answer::json(&json!({ "issuer": url, "jwks_uri": format!("{url}{KEYS}") }))
            }
            KEYS => answer.lock().clone(),
            _ => Answer::of(StatusCode::NOT_FOUND, ""),
        })
        .await;
        url.lock().clone_from(&server.url);
        Self { server, keys }
    }

    fn publish(&self, keys: &[&Key]) {
        let list: Vec<&Value> = keys.iter().map(|key| &key.jwk).collect();
        *self.keys.lock() = Answer::json(&json!({ "keys": list }));
    }

    fn configuration(&self, rest: &str) -> AuthenticationConfiguration {
        let pem = self.server.ca_pem.replace('\n', "\n      ");
        let text = format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\njwt:\n- issuer:\n    url: {}\n    audiences: [cluster]\n    certificateAuthority: |\n      {pem}\n{rest}",
            self.server.url
        );
        AuthenticationConfiguration::parse(&text, &[]).unwrap()
    }

    fn oidc(&self, bounds: Bounds) -> Oidc {
        Oidc::new(&self.configuration(PLAIN), bounds).unwrap()
    }

    fn claims(&self) -> Value {
        let now = jiff::Timestamp::now().as_second();
        json!({ "iss": self.server.url, "aud": "cluster", "sub": "ann", "exp": now + 300, "nbf": now, "groups": ["dev"] })
    }
}

const PLAIN: &str =
    "  claimMappings: { username: { claim: sub, prefix: 'oidc:' }, groups: { claim: groups, prefix: '' } }";

fn quick() -> Bounds {
    Bounds { min_interval: Duration::ZERO, timeout: Duration::from_secs(5), ..Bounds::default() }
}

async fn user(oidc: &Oidc, token: &str) -> Result<User, AuthnError> {
    oidc.authenticate(token, &[], &[]).await.map(|found| found.unwrap().user)
}

#[tokio::test]
async fn good_tokens_of_every_curve() {
    let issuer = Issuer::start().await;
    let (small, large) = (key("a", "ES256"), key("b", "ES384"));
    issuer.publish(&[&small, &large]);
    let oidc = issuer.oidc(Bounds::default());
    for key in [&small, &large] {
        let user = user(&oidc, &sign(key, &issuer.claims())).await.unwrap();
        assert_eq!((user.username.as_str(), user.groups), ("oidc:ann", vec!["dev".to_owned()]));
    }
    // Without a key id, all keys of the kind are tried.
    let token = sign_as(&large, &json!({ "alg": "ES384" }), &issuer.claims());
    assert!(user(&oidc, &token).await.is_ok());
    assert_eq!((issuer.server.count(DISCOVERY), issuer.server.count(KEYS)), (1, 1));
}

#[tokio::test]
async fn tokens_that_are_wrong() {
    let issuer = Issuer::start().await;
    let (own, stranger) = (key("a", "ES256"), key("a", "ES256"));
    issuer.publish(&[&own]);
    let oidc = issuer.oidc(Bounds::default());
    let with = |name: &str, value: Value| {
        let mut claims = issuer.claims();
        claims[name] = value;
        sign(&own, &claims)
    };
    let table = [
        (with("aud", json!(["other"])), "expected audience in [\"cluster\"] got [\"other\"]"),
        (with("exp", json!(1)), "token is expired"),
        (with("exp", Value::Null), "token is expired"),
        (with("nbf", json!(jiff::Timestamp::now().as_second() + 600)), "before the nbf"),
        (sign(&stranger, &issuer.claims()), "failed to verify id token signature"),
        (sign_as(&own, &json!({ "alg": "none" }), &issuer.claims()), "unsupported algorithm \"none\""),
        (sign_as(&own, &json!({ "alg": "HS256", "kid": "a" }), &issuer.claims()), "unsupported algorithm \"HS256\""),
        (
            sign_as(&own, &json!({ "alg": "RS256", "kid": "a" }), &issuer.claims()),
            "failed to verify id token signature",
        ),
        (
            sign_as(&own, &json!({ "alg": "ES384", "kid": "a" }), &issuer.claims()),
            "failed to verify id token signature",
        ),
        (with("sub", json!(5)), "parse username claims"),
    ];
    assert!(user(&oidc, &sign(&own, &issuer.claims())).await.is_ok());
    for (token, want) in table {
        let error = user(&oidc, &token).await.unwrap_err().to_string();
        assert!(error.contains(want), "{want}: {error}");
    }
    for token in [with("iss", json!("https://other")), "opaque".to_owned(), "abcdef.0123456789abcdef".to_owned()] {
        assert_eq!(oidc.authenticate(&token, &[], &[]).await, Ok(None));
    }
    // An HMAC under the public key, which a careless verifier would take for the secret.
    let message = format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(json!({ "alg": "HS256", "kid": "a" }).to_string()),
        URL_SAFE_NO_PAD.encode(issuer.claims().to_string())
    );
    let secret = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, own.jwk.to_string().as_bytes());
    let forged = format!("{message}.{}", URL_SAFE_NO_PAD.encode(ring::hmac::sign(&secret, message.as_bytes())));
    assert!(user(&oidc, &forged).await.is_err());
}

#[tokio::test]
async fn keys_change() {
    let issuer = Issuer::start().await;
    let (old, new) = (key("old", "ES256"), key("new", "ES256"));
    issuer.publish(&[&old]);
    let oidc = issuer.oidc(quick());
    assert!(user(&oidc, &sign(&old, &issuer.claims())).await.is_ok());
    issuer.publish(&[&new]);
    assert!(user(&oidc, &sign(&new, &issuer.claims())).await.is_ok());
    // What is no longer published is no longer believed.
    assert!(user(&oidc, &sign(&old, &issuer.claims())).await.is_err());
}

#[tokio::test]
async fn old_keys_are_fetched_again_and_stay_when_that_fails() {
    let issuer = Issuer::start().await;
    let own = key("a", "ES256");
    issuer.publish(&[&own]);
    let oidc = issuer.oidc(Bounds { max_age: Duration::ZERO, ..quick() });
    let token = sign(&own, &issuer.claims());
    assert!(user(&oidc, &token).await.is_ok());
    *issuer.keys.lock() = Answer::of(StatusCode::INTERNAL_SERVER_ERROR, "");
    assert!(user(&oidc, &token).await.is_ok());
    let before = issuer.server.count(KEYS);
    issuer.publish(&[]);
    for _ in 0..100 {
        let _ = user(&oidc, &token).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        if user(&oidc, &token).await.is_err() {
            assert!(issuer.server.count(KEYS) > before);
            return;
        }
    }
    panic!("keys that were withdrawn are still believed");
}

#[tokio::test]
async fn keys_that_nobody_knows_do_not_flood_the_issuer() {
    let issuer = Issuer::start().await;
    let own = key("a", "ES256");
    issuer.publish(&[&own]);
    let oidc = Arc::new(issuer.oidc(Bounds { min_interval: Duration::from_secs(600), ..Bounds::default() }));
    let good = sign(&own, &issuer.claims());
    assert!(user(&oidc, &good).await.is_ok());
    let tasks: Vec<_> = (0..200)
        .map(|n| {
            let token = sign_as(&own, &json!({ "alg": "ES256", "kid": format!("unknown-{n}") }), &issuer.claims());
            let oidc = Arc::clone(&oidc);
            tokio::spawn(async move { oidc.authenticate(&token, &[], &[]).await.is_err() })
        })
        .collect();
    for task in tasks {
        assert!(task.await.unwrap());
    }
    assert_eq!(issuer.server.count(KEYS), 1);
    assert!(user(&oidc, &good).await.is_ok());
}

#[tokio::test]
async fn many_at_once_ask_once_and_failures_are_limited_too() {
    let issuer = Issuer::start().await;
    *issuer.keys.lock() = Answer::of(StatusCode::SERVICE_UNAVAILABLE, "");
    let own = key("a", "ES256");
    let oidc = Arc::new(issuer.oidc(Bounds { min_interval: Duration::from_secs(600), ..Bounds::default() }));
    let token = sign(&own, &issuer.claims());
    let tasks: Vec<_> = (0..50)
        .map(|_| {
            let (oidc, token) = (Arc::clone(&oidc), token.clone());
            tokio::spawn(async move { oidc.authenticate(&token, &[], &[]).await })
        })
        .collect();
    for task in tasks {
        assert!(matches!(task.await.unwrap(), Err(AuthnError::Unavailable(why)) if why.contains("503")));
    }
    assert_eq!(issuer.server.count(KEYS), 1);
}

#[tokio::test]
async fn answers_that_are_too_large_too_slow_or_of_somebody_else() {
    let issuer = Issuer::start().await;
    let own = key("a", "ES256");
    let token = sign(&own, &issuer.claims());
    let bounds = Bounds { timeout: Duration::from_millis(500), max_body: 64 * 1024, ..quick() };
    let oidc = issuer.oidc(bounds);
    let slow = Answer { delay: Duration::from_secs(30), ..Answer::json(&json!({ "keys": [own.jwk] })) };
    let table = [
        (Answer::json(&json!({ "keys": [own.jwk], "pad": "x".repeat(128 * 1024) })), "more than 65536 bytes"),
        (slow, "no answer within 500ms"),
        (Answer::of(StatusCode::OK, "<html>"), "failed to decode keys"),
        (Answer::of(StatusCode::FOUND, ""), "302"),
        (Answer::json(&json!({ "keys": vec![own.jwk.clone(); 100] })), "at most 64"),
    ];
    for (answer, want) in table {
        *issuer.keys.lock() = answer;
        let started = std::time::Instant::now();
        let error = user(&oidc, &token).await.unwrap_err();
        assert!(matches!(&error, AuthnError::Unavailable(why) if why.contains(want)), "{want}: {error}");
        assert!(started.elapsed() < Duration::from_secs(10));
    }
    issuer.publish(&[&own]);
    assert!(user(&oidc, &token).await.is_ok());
}

#[tokio::test]
async fn an_issuer_must_be_certified_and_who_it_says_it_is() {
    let (issuer, other) = (Issuer::start().await, Issuer::start().await);
    let own = key("a", "ES256");
    issuer.publish(&[&own]);
    let parse = |url: &str, ca: &str, discovery: &str| {
        let text = format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\njwt:\n- issuer:\n    url: {url}\n    audiences: [cluster]{discovery}\n    certificateAuthority: |\n      {}\n{PLAIN}",
            ca.replace('\n', "\n      ")
        );
        Oidc::new(&AuthenticationConfiguration::parse(&text, &[]).unwrap(), quick()).unwrap()
    };
    let token = sign(&own, &issuer.claims());
    let strange = parse(&issuer.server.url, &other.server.ca_pem, "");
    assert!(user(&strange, &token).await.unwrap_err().to_string().contains("connecting: "));
    let elsewhere = format!("\n    discoveryURL: {}{DISCOVERY}", issuer.server.url);
    assert!(user(&parse(&issuer.server.url, &issuer.server.ca_pem, &elsewhere), &token).await.is_ok());
    let mut claims = issuer.claims();
    claims["iss"] = json!("https://claimed.example");
    let wrong = parse("https://claimed.example", &issuer.server.ca_pem, &elsewhere);
    let error = user(&wrong, &sign(&own, &claims)).await.unwrap_err().to_string();
    assert!(error.contains("issuer did not match the issuer returned by provider"), "{error}");
}

#[tokio::test]
async fn another_configuration_counts_at_once() {
    let issuer = Issuer::start().await;
    let own = key("a", "ES256");
    issuer.publish(&[&own]);
    let oidc = issuer.oidc(Bounds::default());
    let token = sign(&own, &issuer.claims());
    assert_eq!(user(&oidc, &token).await.unwrap().username, "oidc:ann");
    let expressions = "  claimMappings: { username: { expression: \"'cel:' + claims.sub\" }, groups: { expression: \"claims.groups.map(g, 'x:' + g)\" } }\n  userValidationRules: [{ expression: \"user.username != 'cel:bob'\", message: not bob }]";
    oidc.reconfigure(&issuer.configuration(expressions)).unwrap();
    let found = user(&oidc, &token).await.unwrap();
    assert_eq!((found.username.as_str(), found.groups), ("cel:ann", vec!["x:dev".to_owned()]));
    let mut claims = issuer.claims();
    claims["sub"] = json!("bob");
    assert!(user(&oidc, &sign(&own, &claims)).await.unwrap_err().to_string().contains("not bob"));
    // The keys of an issuer that has stayed the same were not fetched again.
    assert_eq!(issuer.server.count(KEYS), 1);
    let none = "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\n";
    oidc.reconfigure(&AuthenticationConfiguration::parse(none, &[]).unwrap()).unwrap();
    assert_eq!(oidc.authenticate(&token, &[], &[]).await, Ok(None));
}

#[tokio::test]
async fn only_for_audiences_of_the_api_server() {
    let issuer = Issuer::start().await;
    let own = key("a", "ES256");
    issuer.publish(&[&own]);
    let (oidc, token) = (issuer.oidc(Bounds::default()), sign(&own, &issuer.claims()));
    let list = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    let api = list(&["api", "api2"]);
    let ask =
        async |wanted: &[&str]| oidc.authenticate(&token, &list(wanted), &api).await.unwrap().map(|a| a.audiences);
    assert_eq!(ask(&[]).await, Some(Vec::new()));
    assert_eq!(ask(&["x", "api"]).await, Some(list(&["api"])));
    // The token's own audience is none of the API server's.
    assert_eq!(ask(&["cluster"]).await, None);
}

#[tokio::test]
async fn who_goes_away_does_not_keep_others_from_keys() {
    let issuer = Issuer::start().await;
    let own = key("a", "ES256");
    issuer.publish(&[&own]);
    issuer.keys.lock().delay = Duration::from_millis(300);
    let oidc = issuer.oidc(Bounds { min_interval: Duration::from_secs(600), ..Bounds::default() });
    let token = sign(&own, &issuer.claims());
    let first = tokio::time::timeout(Duration::from_millis(100), oidc.authenticate(&token, &[], &[])).await;
    assert!(first.is_err());
    assert!(user(&oidc, &token).await.is_ok());
    assert_eq!(issuer.server.count(KEYS), 1);
}

#[tokio::test]
async fn keys_can_be_fetched_before_the_first_token() {
    let issuer = Issuer::start().await;
    let own = key("a", "ES256");
    issuer.publish(&[&own]);
    let oidc = issuer.oidc(Bounds::default());
    oidc.warm().await;
    oidc.warm().await;
    assert_eq!(issuer.server.count(KEYS), 1);
    assert!(user(&oidc, &sign(&own, &issuer.claims())).await.is_ok());
    assert_eq!(issuer.server.count(KEYS), 1);
}
