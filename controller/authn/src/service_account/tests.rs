//! Tokens that are issued and come back.

use super::*;

const NOW: i64 = 1_800_000_000;
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

fn pem() -> String {
    rcgen::KeyPair::generate().unwrap().serialize_pem()
}

fn tokens(keys: &[&str]) -> Tokens {
    Tokens::new(keys, ISSUER, &[]).unwrap()
}

fn reference(name: &str) -> Reference {
    Reference { name: name.to_owned(), uid: format!("uid-of-{name}") }
}

fn grant(bound: Option<Bound>) -> Grant {
    let account = Account { namespace: "shop".to_owned(), name: "web".to_owned(), uid: "u1".to_owned() };
    Grant { account, bound, audiences: Vec::new(), lifetime: Lifetime::of(600, false, true, None, true) }
}

fn payload(token: &str) -> Value {
    let part = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

fn extras(verified: &Verified) -> Vec<(&str, &str)> {
    let extra = &verified.user.extra;
    let short = |key: &'static str| (key, extra.get(&format!("authentication.kubernetes.io/{key}")));
    let keys = ["node-name", "node-uid", "pod-name", "pod-uid"].map(short);
    keys.into_iter().filter_map(|(key, values)| values.map(|values| (key, values[0].as_str()))).collect()
}

fn needed(verified: &Verified) -> Vec<String> {
    verified.existing.iter().map(|e| format!("{} {}/{} {}", e.resource, e.namespace, e.name, e.uid)).collect()
}

#[test]
fn what_a_token_is_bound_to_must_exist_and_is_noted() {
    let key = pem();
    let tokens = tokens(&[&key]);
    let node_gone = Reference { name: "n1".to_owned(), uid: String::new() };
    let (pod, node) = (reference("p1"), reference("n1"));
    type Case<'a> = (Option<Bound>, &'a [&'a str], &'a [(&'a str, &'a str)]);
    let on_node: &[(&str, &str)] = &[("node-name", "n1"), ("node-uid", "uid-of-n1")];
    let in_pod = [("pod-name", "p1"), ("pod-uid", "uid-of-p1")];
    let both = [on_node, &in_pod].concat();
    let table: &[Case<'_>] = &[
        (None, &[], &[]),
        (Some(Bound::Pod(pod.clone(), None)), &["pods shop/p1 uid-of-p1"], &in_pod),
        (Some(Bound::Pod(pod.clone(), Some(node.clone()))), &["pods shop/p1 uid-of-p1"], &both),
        (
            Some(Bound::Pod(pod, Some(node_gone))),
            &["pods shop/p1 uid-of-p1"],
            &[("node-name", "n1"), ("pod-name", "p1"), ("pod-uid", "uid-of-p1")],
        ),
        (Some(Bound::Node(node)), &["nodes /n1 uid-of-n1"], on_node),
        (Some(Bound::Secret(reference("s1"))), &["secrets shop/s1 uid-of-s1"], &[]),
    ];
    for (bound, want, noted) in table {
        let token = tokens.issue(&grant(bound.clone()), NOW).unwrap();
        assert!(tokens.is_for(&token));
        let verified = tokens.verify(&token, &[], NOW).unwrap();
        assert_eq!(verified.user.username, "system:serviceaccount:shop:web");
        assert_eq!(verified.user.groups, ["system:serviceaccounts", "system:serviceaccounts:shop"]);
        assert_eq!(needed(&verified)[0], "serviceaccounts shop/web u1");
        assert_eq!(needed(&verified)[1..], **want);
        assert_eq!(extras(&verified), *noted);
        let id = format!("JTI={}", payload(&token)["jti"].as_str().unwrap());
        assert_eq!(verified.user.extra["authentication.kubernetes.io/credential-id"], [id]);
    }
}

#[test]
fn times_and_audiences() {
    let key = pem();
    let tokens = tokens(&[&key]);
    let token = tokens.issue(&grant(None), NOW).unwrap();
    assert_eq!(payload(&token)["aud"], json!([ISSUER]));
    let words = |audiences: &[&str], now| {
        let audiences: Vec<String> = audiences.iter().map(|a| (*a).to_owned()).collect();
        tokens.verify(&token, &audiences, now).map(|v| v.audiences).map_err(|e| e.to_string())
    };
    assert_eq!(words(&[], NOW + 660), Ok(vec![ISSUER.to_owned()]));
    assert_eq!(words(&[], NOW + 661), Err("service account token has expired".to_owned()));
    assert_eq!(words(&[], NOW - 61), Err("service account token is not valid yet".to_owned()));
    assert_eq!(words(&["x", ISSUER], NOW), Ok(vec![ISSUER.to_owned()]));
    assert!(words(&["x"], NOW).unwrap_err().contains("is invalid for the target audiences [\"x\"]"));
    let other = Grant { audiences: vec!["vault".to_owned()], ..grant(None) };
    let token = tokens.issue(&other, NOW).unwrap();
    assert!(tokens.verify(&token, &[], NOW).is_err());
    assert!(tokens.verify(&token, &["vault".to_owned()], NOW).is_ok());
}

#[test]
fn lives() {
    let table = [
        ((600, true, true, None, true), (600, None, 600, false)),
        ((3607, true, true, None, true), (31_536_000, Some(3607), 3607, false)),
        ((3607, true, true, None, false), (3607, None, 3607, false)),
        ((3607, false, true, None, true), (3607, None, 3607, false)),
        ((3607, true, false, None, true), (3607, None, 3607, false)),
        ((86_400, true, true, Some(3600), true), (3600, None, 3600, true)),
        ((1 << 32, false, true, None, true), (1 << 32, None, 1 << 32, false)),
    ];
    for ((requested, pod, api, limit, extend), (seconds, warn_after, shown, shortened)) in table {
        let life = Lifetime::of(requested, pod, api, limit, extend);
        assert_eq!(life, Lifetime { seconds, warn_after, shown, shortened }, "{requested} {pod} {api}");
        assert_eq!(life.warning(requested).is_some(), shortened);
    }
    let key = pem();
    let tokens = tokens(&[&key]);
    let long = Grant {
        lifetime: Lifetime::of(3607, true, true, None, true),
        ..grant(Some(Bound::Pod(reference("p1"), None)))
    };
    let token = tokens.issue(&long, NOW).unwrap();
    assert_eq!(payload(&token)["kubernetes.io"]["warnafter"], json!(NOW + 3607));
    assert!(!tokens.verify(&token, &[], NOW + 3607).unwrap().stale);
    assert!(tokens.verify(&token, &[], NOW + 3608).unwrap().stale);
}

#[test]
fn keys_rotate() {
    let (old, new, strange) = (pem(), pem(), pem());
    let before = tokens(&[&old]).issue(&grant(None), NOW).unwrap();
    let between = tokens(&[&new, &old]);
    let after = between.issue(&grant(None), NOW).unwrap();
    assert!(between.verify(&before, &[], NOW).is_ok() && between.verify(&after, &[], NOW).is_ok());
    assert!(tokens(&[&new]).verify(&after, &[], NOW).is_ok());
    assert!(tokens(&[&new]).verify(&before, &[], NOW).is_err());
    assert!(tokens(&[&strange]).verify(&after, &[], NOW).is_err());
    let set = between.jwks();
    let keys = crate::jwks::parse(set.to_string().as_bytes()).unwrap();
    assert_eq!(keys.len(), 2);
    for token in [&before, &after] {
        let token = Token::parse(token).unwrap();
        assert_eq!(keys.iter().filter(|key| key.may_have_signed(&token) && token.signed_by(&key.key)).count(), 1);
    }
    assert!(Tokens::new(&[], ISSUER, &[]).is_err() && Tokens::new(&["no key"], ISSUER, &[]).is_err());
}

#[test]
fn tokens_of_secrets() {
    let key = pem();
    let tokens = tokens(&[&key]);
    let token = tokens.issue_legacy(&grant(None).account, "s1").unwrap();
    assert!(tokens.is_for(&token));
    let verified = tokens.verify(&token, &[], NOW).unwrap();
    assert_eq!((verified.secret.as_deref(), verified.audiences), (Some("s1"), vec![ISSUER.to_owned()]));
    assert_eq!(verified.existing[1].resource, "secrets");
    assert!(verified.existing[1].check(Some(&json!({ "metadata": { "uid": "any" } })), NOW).is_ok());
    assert!(tokens.verify(&token, &["vault".to_owned()], NOW).is_err());
}

#[test]
fn claims_that_do_not_fit_are_refused() {
    let key = pem();
    let tokens = tokens(&[&key]);
    let good = payload(&tokens.issue(&grant(Some(Bound::Pod(reference("p"), None))), NOW).unwrap());
    let with = |change: fn(&mut Value)| {
        let mut claims = good.clone();
        change(&mut claims);
        tokens.verify(&tokens.sign(&claims).unwrap(), &[], NOW).map(drop)
    };
    assert_eq!(with(|_| ()), Ok(()));
    let changes: [fn(&mut Value); 9] = [
        |c| c["iss"] = json!("https://other"),
        |c| c["exp"] = Value::Null,
        |c| c["aud"] = json!(ISSUER.replace("local", "other")),
        |c| c["sub"] = json!("system:serviceaccount:shop:admin"),
        |c| c["kubernetes.io"] = Value::Null,
        |c| c["kubernetes.io"]["serviceaccount"]["uid"] = json!(""),
        |c| c["kubernetes.io"]["namespace"] = json!(5),
        |c| c["kubernetes.io"]["pod"] = json!({ "name": "p" }),
        |c| c["kubernetes.io"]["pod"] = json!("p"),
    ];
    for (at, change) in changes.into_iter().enumerate() {
        assert!(with(change).is_err(), "{at}");
    }
}

#[test]
fn what_was_found_is_judged() {
    let wanted = Existing { resource: "pods", namespace: "shop".into(), name: "p".into(), uid: "u".into() };
    let at = |seconds: i64| jiff::Timestamp::from_second(seconds).unwrap().to_string();
    let object = |uid: &str, deleted: Value| json!({ "metadata": { "uid": uid, "deletionTimestamp": deleted } });
    assert!(wanted.check(Some(&object("u", Value::Null)), NOW).is_ok());
    assert!(wanted.check(Some(&object("u", json!(at(NOW - 60)))), NOW).is_ok());
    assert!(wanted.check(Some(&object("u", json!(at(NOW - 61)))), NOW).is_err());
    assert!(wanted.check(Some(&object("u", json!("soon"))), NOW).is_err());
    assert!(wanted.check(Some(&object("v", Value::Null)), NOW).is_err());
    assert!(wanted.check(None, NOW).is_err());
}

#[test]
fn identifiers_are_of_version_4() {
    assert_eq!(claims::uuid([0xff; 16]), "ffffffff-ffff-4fff-bfff-ffffffffffff");
    assert_eq!(claims::uuid([0; 16]), "00000000-0000-4000-8000-000000000000");
}

#[test]
fn a_public_key_checks_and_does_not_sign() {
    let (old, new) = (rcgen::KeyPair::generate().unwrap(), pem());
    let token = tokens(&[&old.serialize_pem()]).issue(&grant(None), NOW).unwrap();
    let public = old.public_key_pem();
    let next = tokens(&[&new, &public]);
    assert!(next.verify(&token, &[], NOW).is_ok());
    assert!(tokens(&[&new]).verify(&token, &[], NOW).is_err());
    let keys = next.jwks();
    assert_eq!(keys["keys"][1], tokens(&[&old.serialize_pem()]).jwks()["keys"][0]);
    for bad in [&[public.as_str()][..], &[&new, "no key"]] {
        assert!(Tokens::new(bad, ISSUER, &[]).is_err());
    }
    let other = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap().public_key_pem();
    assert_eq!(
        Tokens::new(&[&new, &other], ISSUER, &[]).err().unwrap(),
        "a public key of service accounts is no P-256 key"
    );
}
