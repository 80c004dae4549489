//! Which requests for certificates are approved.

use super::*;
use k8s_openapi::ByteString;

fn request(cn: &str, org: &str, sans: &[&str]) -> ByteString {
    let key = rcgen::KeyPair::generate().unwrap();
    let names: Vec<String> = sans.iter().map(|s| (*s).to_owned()).collect();
    let mut params = rcgen::CertificateParams::new(names).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::OrganizationName, org);
    params.distinguished_name.push(rcgen::DnType::CommonName, cn);
    ByteString(params.serialize_request(&key).unwrap().pem().unwrap().into_bytes())
}

fn asked(signer: &str, user: &str, group: &str, request: ByteString, peer: &str) -> CertificateSigningRequest {
    let usage = if signer == SIGNER_KUBELET_SERVING { "server auth" } else { "client auth" };
    let mut asked = CertificateSigningRequest::default();
    asked.spec.request = request;
    asked.spec.signer_name = signer.to_owned();
    asked.spec.usages = Some(vec!["digital signature".to_owned(), usage.to_owned()]);
    asked.spec.username = Some(user.to_owned());
    asked.spec.groups = Some(vec![group.to_owned()]);
    if !peer.is_empty() {
        asked.metadata.annotations = Some([(serving::PEER_ANNOTATION.to_owned(), peer.to_owned())].into());
    }
    asked
}

/// A node that says `said` of itself, and of which `written` is written down.
fn node(name: &str, said: &str, written: &str) -> Arc<Node> {
    let mut node = json!({"metadata": {"name": name}, "status": {"addresses": [
        {"type": "InternalIP", "address": said}, {"type": "Hostname", "address": name}]}});
    if !written.is_empty() {
        node["metadata"]["annotations"] = json!({ SERVING_ANNOTATION: written });
    }
    Arc::new(serde_json::from_value(node).unwrap())
}

fn known() -> Known {
    Known {
        services: vec!["10.96.0.0/12".parse().unwrap()],
        pods: vec!["10.244.0.0/16".parse().unwrap()],
        domain: "cluster.local".to_owned(),
        api: vec!["10.0.0.100".parse().unwrap()],
        names: vec!["api.example.com".to_owned()],
    }
}

#[test]
fn nodes_get_client_certificates_in_their_own_name() {
    let nodes = [node("n1", "10.0.0.1", "")];
    let ok = |user: &str, group: &str, cn: &str| {
        let asked = asked(SIGNER_KUBELET_CLIENT, user, group, request(cn, "system:nodes", &[]), "");
        matches!(verdict(&asked, &nodes, &known()), Verdict::Approve(_))
    };
    let bootstrap = "system:bootstrap:abcdef";
    assert!(ok(bootstrap, bootstrap_token::GROUP, "system:node:n3"), "a new node");
    assert!(ok("system:node:n1", "system:nodes", "system:node:n1"), "a renewal");
    assert!(!ok("system:node:n1", "system:nodes", "system:node:n2"), "another node's");
    assert!(!ok(bootstrap, bootstrap_token::GROUP, "system:node:n1"), "a node that is there");
    assert!(!ok("jane", "devs", "system:node:n3"));
    assert!(!ok(bootstrap, bootstrap_token::GROUP, "admin"));
    let admin = asked(certificates::SIGNER_CLIENT, "jane", "devs", request("jane", "devs", &[]), "");
    assert!(matches!(verdict(&admin, &nodes, &known()), Verdict::Leave(_)), "people are a person's to decide");
}

#[test]
fn a_kubelet_is_certified_for_what_the_cluster_knows_of_it() {
    // Both say whatever they like of themselves; n2's address is written down.
    let nodes = [node("n1", "10.96.0.1", ""), node("n2", "10.0.0.1", "10.0.0.2"), node("n4", "x", "10.0.0.4,fd00::4")];
    let of = |cn: &str, sans: &[&str], peer: &str| {
        let (user, request) =
            (format!("system:node:{cn}"), request(&format!("system:node:{cn}"), "system:nodes", sans));
        verdict(&asked(SIGNER_KUBELET_SERVING, &user, "system:nodes", request, peer), &nodes, &known())
    };
    let record = |node: &str, ip: &str| Verdict::Record(node.to_owned(), vec![ip.parse().unwrap()]);
    assert_eq!(of("n1", &["n1", "10.0.0.1"], "10.0.0.1"), record("n1", "10.0.0.1"), "where it spoke from");
    assert_eq!(of("n1", &["n1", "10.0.0.1"], "::ffff:10.0.0.1"), record("n1", "10.0.0.1"));
    assert!(matches!(of("n2", &["n2", "10.0.0.2"], "10.9.9.9"), Verdict::Approve(_)), "what is written down");
    assert_eq!(of("n2", &["n2", "10.0.0.3"], "10.0.0.3"), record("n2", "10.0.0.3"), "it has moved");
    assert!(matches!(of("n4", &["n4", "fd00::4", "10.0.0.4"], ""), Verdict::Approve(_)), "two, by an administrator");
    assert!(matches!(of("n4", &["n4", "10.0.0.4"], ""), Verdict::Approve(_)));
    for (cn, sans, peer, why) in [
        ("n1", &["n1", "10.96.0.1"][..], "10.0.0.1", "the API's service address, which its status has"),
        ("n1", &["n1", "10.96.0.1"], "10.96.0.1", "even from there"),
        ("n1", &["n1", "10.244.1.1"], "10.244.1.1", "a pod's"),
        ("n1", &["n1", "10.0.0.100"], "10.0.0.100", "the API's, or what stands before it"),
        ("n1", &["n1", "10.0.0.2"], "10.0.0.2", "written down for another node"),
        ("n1", &["n1", "10.0.0.1", "10.0.0.9"], "10.0.0.1", "one too many"),
        ("n1", &["n1", "127.0.0.1"], "127.0.0.1", "everybody's"),
        ("n1", &["n1", "10.0.0.1"], "", "from nowhere"),
        ("n1", &["kubernetes", "10.0.0.1"], "10.0.0.1", "another's name"),
        ("n1", &["n2", "10.0.0.1"], "10.0.0.1", "another node's name"),
        ("n1", &["n1", "api.example.com"], "10.0.0.1", "the API's name"),
    ] {
        let found = of(cn, sans, peer);
        assert!(matches!(found, Verdict::Leave(_)), "{why}: {found:?}");
    }
    assert!(matches!(of("n3", &["n3", "10.0.0.3"], "10.0.0.3"), Verdict::Wait(_)), "not registered yet");
    let other = request("system:node:n2", "system:nodes", &["n2"]);
    let asked = asked(SIGNER_KUBELET_SERVING, "system:node:n1", "system:nodes", other, "10.0.0.2");
    assert!(matches!(verdict(&asked, &nodes, &known()), Verdict::Leave(_)), "in another's name");
}
