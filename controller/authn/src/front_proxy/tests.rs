//! Front proxies against certificates that are made here.

use super::*;
use http::HeaderValue;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

fn authority() -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    Authority { issuer: Issuer::new(params, key), pem }
}

fn client(authority: &Authority, name: &str, usage: ExtendedKeyUsagePurpose) -> CertificateDer<'static> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages = vec![usage];
    let key = KeyPair::generate().unwrap();
    params.signed_by(&key, &authority.issuer).unwrap().der().clone()
}

fn options(authority: &Authority) -> Options {
    let list = |text: &str| vec![text.to_owned()];
    Options {
        client_ca_pem: authority.pem.clone(),
        allowed_names: list("front"),
        username_headers: vec!["X-Remote-User".to_owned(), "X-Other-User".to_owned()],
        uid_headers: list("X-Remote-Uid"),
        group_headers: list("X-Remote-Group"),
        extra_prefixes: list("X-Remote-Extra-"),
    }
}

fn map() -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in [
        ("x-remote-user", "ann"),
        ("x-remote-group", "dev"),
        ("x-remote-group", ""),
        ("x-remote-group", "ops"),
        ("x-remote-uid", "42"),
        ("x-remote-extra-acme.com%2fproject", "one"),
        ("accept", "json"),
    ] {
        map.append(name, HeaderValue::from_static(value));
    }
    map
}

#[test]
fn only_a_certified_proxy_of_an_allowed_name_is_believed() {
    use ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
    let (ours, theirs) = (authority(), authority());
    let proxy = FrontProxy::new(&options(&ours)).unwrap();
    let ask = |chain: &[CertificateDer<'static>]| proxy.authenticate(chain, UnixTime::now(), &map());
    let user = ask(&[client(&ours, "front", ClientAuth)]).unwrap().unwrap();
    assert_eq!((user.username.as_str(), user.uid.as_str()), ("ann", "42"));
    assert_eq!(user.groups, ["dev", "ops"]);
    assert_eq!(user.extra["acme.com/project"], ["one"]);
    assert_eq!(ask(&[]), Ok(None));
    assert_eq!(ask(&[client(&theirs, "front", ClientAuth)]), Ok(None));
    assert_eq!(ask(&[client(&ours, "front", ServerAuth)]), Ok(None));
    let words = ask(&[client(&ours, "else", ClientAuth)]).unwrap_err().to_string();
    assert_eq!(words, "x509: subject with cn=else is not in the allowed list");
    let late = UnixTime::since_unix_epoch(std::time::Duration::from_secs(1 << 40));
    assert_eq!(proxy.authenticate(&[client(&ours, "front", ClientAuth)], late, &map()), Ok(None));
}

#[test]
fn any_name_when_none_is_listed_and_nobody_without_a_name_header() {
    let ours = authority();
    let proxy = FrontProxy::new(&Options { allowed_names: Vec::new(), ..options(&ours) }).unwrap();
    let chain = [client(&ours, "whoever", ExtendedKeyUsagePurpose::ClientAuth)];
    let mut headers = map();
    assert!(proxy.authenticate(&chain, UnixTime::now(), &headers).unwrap().is_some());
    headers.remove("x-remote-user");
    assert_eq!(proxy.authenticate(&chain, UnixTime::now(), &headers), Ok(None));
    headers.insert("x-other-user", HeaderValue::from_static("bob"));
    assert_eq!(proxy.authenticate(&chain, UnixTime::now(), &headers).unwrap().unwrap().username, "bob");
}

#[test]
fn headers_are_taken_off() {
    let ours = authority();
    let mut headers = map();
    headers.insert("x-other-user", HeaderValue::from_static("bob"));
    FrontProxy::new(&options(&ours)).unwrap().strip(&mut headers);
    assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["accept"]);
    let mut headers = map();
    strip(&mut headers);
    assert_eq!(headers.len(), 1);
}

#[test]
fn bad_options_are_refused() {
    let ours = authority();
    let with = |change: fn(&mut Options)| {
        let mut options = options(&ours);
        change(&mut options);
        FrontProxy::new(&options).err().unwrap()
    };
    assert_eq!(with(|o| o.client_ca_pem.clear()), "missing clientCA file");
    assert_eq!(with(|o| o.group_headers = vec![" ".to_owned()]), "empty header \" \"");
    assert!(with(|o| o.group_headers = vec!["a b".to_owned()]).contains("invalid header"));
    assert!(with(|o| o.username_headers.clear()).contains("username header"));
}
