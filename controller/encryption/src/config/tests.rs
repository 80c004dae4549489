//! What a configuration may say, and how mistakes are told.

use super::*;

const SECRET: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

fn file(resources: &str, providers: &str) -> String {
    format!("apiVersion: {API_VERSION}\nkind: {KIND}\nresources:\n- resources: {resources}\n  providers: {providers}\n")
}

#[test]
fn what_is_documented_is_read() {
    let text = file(
        "[secrets, configmaps, '*.apps', pandas.awesome.bears.example]",
        &format!("[{{aesgcm: {{keys: [{{name: key1, secret: {SECRET}}}]}}}}, {{identity: {{}}}}]"),
    );
    let read = parse(&text).unwrap();
    assert_eq!(read.resources[0].resources.len(), 4);
    let keys = read.resources[0].providers[0].aesgcm.as_ref().unwrap();
    assert_eq!(keys.keys[0].bytes(), (0..32).collect::<Vec<u8>>());
    assert!(read.resources[0].providers[1].identity.is_some());
    assert_eq!(parse(&read.to_yaml().unwrap()).unwrap(), read);
    let own = Configuration::of_secrets(NamedKey::new("a".into(), &[1; 32]));
    assert_eq!(parse(&own.to_yaml().unwrap()).unwrap(), own);
    for good in ["['*.']", "['*.*']", "[secrets, deployments.apps, '*.batch']", "[events]"] {
        parse(&file(good, "[{identity: {}}]")).unwrap();
    }
}

#[test]
fn mistakes_are_told_by_field_and_never_by_key() {
    let identity = "[{identity: {}}]";
    let key = |name: &str, secret: &str| {
        file("[secrets]", &format!("[{{aesgcm: {{keys: [{{name: '{name}', secret: '{secret}'}}]}}}}]"))
    };
    for (text, words) in [
        (file("[]", identity), "resources[0].resources: Required value"),
        (file("[secrets]", "[]"), "resources[0].providers: Required value"),
        (file("[secrets, secrets]", identity), "specified multiple times"),
        (file("[secrets, '*.']", identity), "overlapping"),
        (file("['*.*', deployments.apps]", identity), "overlapping"),
        (file("[deployments.apps, '*.apps']", identity), "overlapping"),
        (
            file("[Secrets]", identity),
            "resources[0].resources[0]: Invalid value: resource name should not contain capital",
        ),
        (file("['*']", identity), "use '*.'"),
        (file("[secrets, apiserveripinfo]", identity), "resources[0].resources[1]"),
        (file("[events.events.k8s.io]", identity), "Use 'events'"),
        (file("[ingresses.extensions]", identity), "'extensions' group"),
        (file("['secrets.*']", identity), "across groups"),
        (file("['']", identity), "RESOURCE.GROUP"),
        (file("['a/b']", identity), "RESOURCE.GROUP"),
        (file("[secrets]", "[{}]"), "does not contain any"),
        (file("[secrets]", "[{identity: {}, aesgcm: {keys: []}}]"), "more than one provider"),
        (file("[secrets]", "[{aesgcm: {keys: []}}]"), "resources[0].providers[0].aesgcm.keys: Required value"),
        (file("[secrets]", "[{aescbc: {keys: [{name: a, secret: b}]}}]"), "providers[0].aescbc: Unsupported value"),
        (file("[secrets]", "[{secretbox: {keys: []}}]"), "secretbox: Unsupported value"),
        (
            file("[secrets]", "[{identity: {}}, {kms: {apiVersion: v2, name: a, endpoint: 'unix:///x'}}]"),
            "providers[1].kms: Unsupported value",
        ),
        (file("[secrets]", "[{identity: {a: b}}]"), "unknown field"),
        (file("[secrets]", "[{aes: {}}]"), "unknown field"),
        (key("", SECRET), "keys[0].name: Required value"),
        (key("a:b", SECRET), "keys[0].name: Invalid value"),
        (key(&"a".repeat(129), SECRET), "keys[0].name: Invalid value"),
        (key("a", ""), "keys[0].secret: Required value"),
        (key("a", "c2VjcmV0IQ*"), "secrets must be base64 encoded"),
        (key("a", "c2VjcmV0IQ=="), "got 7, expected one of [16 24 32]"),
        (file("[secrets]", "[{aesgcm: {keys: c2VjcmV0IQ}}]"), "invalid type at line 5"),
        ("apiVersion: v1\nkind: EncryptionConfig\n".to_owned(), "should be apiserver.config.k8s.io/v1"),
        (format!("apiVersion: {API_VERSION}\nkind: {KIND}\n"), "resources: Required value"),
        (format!("apiVersion: {API_VERSION}\nkind: {KIND}\nresource: []\n"), "unknown field `resource`"),
        (String::new(), "missing field"),
        ("{".to_owned(), "line"),
        (" ".repeat(MAX_FILE + 1), "bytes"),
    ] {
        let error = parse(&text).unwrap_err();
        assert!(error.contains(words), "{text}\n{error}");
        assert!(!error.contains("c2VjcmV0IQ"), "{error}");
    }
    let many = format!("[{}]", (0..257).map(|i| format!("r{i}")).collect::<Vec<_>>().join(","));
    assert!(parse(&file(&many, identity)).unwrap_err().contains("Too many"));
}
