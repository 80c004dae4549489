//! TLS: certificates by server name, HTTP/2, broken Secrets.

use crate::harness::*;
use causeway_proxy::Limits;
use k8s_openapi::ByteString;
use serde_json::{Value, json};
use std::net::SocketAddr;

pub struct Pair {
    pub crt: String,
    pub key: String,
}

pub fn pair(host: &str) -> Pair {
    let made = rcgen::generate_simple_self_signed(vec![host.to_owned()]).unwrap();
    Pair { crt: made.cert.pem(), key: made.signing_key.serialize_pem() }
}

pub fn secret(name: &str, crt: &str, key: &str) -> Value {
    let bytes = |text: &str| serde_json::to_value(ByteString(text.as_bytes().to_vec())).unwrap();
    json!({"kind": "Secret", "type": "kubernetes.io/tls", "metadata": {"name": name, "namespace": "t"},
        "data": {"tls.crt": bytes(crt), "tls.key": bytes(key)}})
}

pub fn with_tls(mut ingress: Value, tls: Value) -> Value {
    ingress["spec"]["tls"] = tls;
    ingress
}

async fn ask(lab: &Lab, host: &str, trust: &str, more: &[&str]) -> (bool, String) {
    ask_at(lab.https, host, trust, more).await
}

/// Asks over TLS, trusting only `trust`.
pub async fn ask_at(at: SocketAddr, host: &str, trust: &str, more: &[&str]) -> (bool, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ca.pem");
    std::fs::write(&file, trust).unwrap();
    let resolve = format!("{host}:{}:127.0.0.1", at.port());
    let url = format!("https://{host}:{}/x", at.port());
    let mut arguments = vec!["--cacert", file.to_str().unwrap(), "--resolve", &resolve];
    arguments.extend_from_slice(more);
    arguments.extend_from_slice(&["-w", " %{http_version}", &url]);
    curl(&arguments).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_by_name_and_broken_ones_beside_them() {
    let a = Backend::start("a");
    let mut lab = Lab::start(Limits::default());
    let (shop, wild) = (pair("shop.localhost"), pair("*.wild.localhost"));
    let rules = |host| [(host, "/", "Prefix", "a", 80)];
    lab.apply([
        service("a"),
        slice("a", a.address),
        secret("shop", &shop.crt, &shop.key),
        secret("wild", &wild.crt, &wild.key),
        secret("broken", &shop.crt, &wild.key),
        with_tls(
            ingress("shop", &rules("shop.localhost")),
            json!([{"hosts": ["shop.localhost"], "secretName": "shop"}]),
        ),
        with_tls(
            ingress("wild", &rules("*.wild.localhost")),
            json!([{"hosts": ["*.wild.localhost"], "secretName": "wild"}]),
        ),
        with_tls(
            ingress("broken", &rules("broken.localhost")),
            json!([{"hosts": ["broken.localhost"], "secretName": "broken"}]),
        ),
    ]);
    for (host, trust) in [("shop.localhost", &shop), ("x.wild.localhost", &wild)] {
        for (flag, version) in [("--http2", "2"), ("--http1.1", "1.1")] {
            let (ok, out) = ask(&lab, host, &trust.crt, &[flag]).await;
            assert!(ok, "{host} {flag}: {out}");
            let (body, got) = out.rsplit_once(' ').unwrap();
            assert_eq!(got, version);
            let headers = &said(body)["headers"];
            assert_eq!(headers["x-forwarded-proto"], "https");
            assert!(headers["host"].as_str().unwrap().starts_with(host));
        }
    }
    // The wrong certificate would be refused: this is what tells the two apart.
    assert!(!ask(&lab, "shop.localhost", &wild.crt, &[]).await.0);
    // The broken one: its host has the default certificate and says so; nothing else suffers.
    assert!(!ask(&lab, "broken.localhost", &shop.crt, &[]).await.0);
    let (ok, out) = ask(&lab, "broken.localhost", &shop.crt, &["-k"]).await;
    assert!(ok && out.contains("\"backend\":\"a\""), "{out}");
    let problems = lab.problems("broken");
    assert_eq!(problems[0].reason, "InvalidCertificate");
    assert!(lab.problems("shop").is_empty());

    // Mended, and rotated: the next handshake has it.
    let mended = pair("broken.localhost");
    lab.apply([secret("broken", &mended.crt, &mended.key)]);
    assert!(lab.problems("broken").is_empty());
    let (ok, out) = ask(&lab, "broken.localhost", &mended.crt, &[]).await;
    assert!(ok, "{out}");
    let rotated = pair("shop.localhost");
    lab.apply([secret("shop", &rotated.crt, &rotated.key)]);
    assert!(ask(&lab, "shop.localhost", &rotated.crt, &[]).await.0);
    assert!(!ask(&lab, "shop.localhost", &shop.crt, &[]).await.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clear_text_on_the_tls_port_is_no_harm() {
    let lab = Lab::start(Limits::default());
    let mut client = Client::connect(lab.https).await;
    assert!(client.get("h.localhost", "/").await.is_err());
    let (ok, _) = curl(&["-k", &format!("https://{}/", lab.https)]).await;
    assert!(ok, "serves on after a failed handshake");
    assert_eq!(lab.shared.metrics.handshake_failures.get(), 1);
}

/// An answer about a certificate that has signed itself, good for an hour.
fn staple(pair: &Pair) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("crt"), &pair.crt).unwrap();
    std::fs::write(folder.path().join("key"), &pair.key).unwrap();
    let openssl = |arguments: &[&str]| {
        let mut openssl = std::process::Command::new("openssl");
        let out = openssl.current_dir(folder.path()).args(arguments).output().unwrap();
        assert!(out.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    };
    let serial = openssl(&["x509", "-in", "crt", "-noout", "-serial"]);
    let serial = serial.trim().trim_start_matches("serial=");
    std::fs::write(folder.path().join("index"), format!("V\t401231235959Z\t\t{serial}\tunknown\t/CN=x\n")).unwrap();
    openssl(&["ocsp", "-issuer", "crt", "-cert", "crt", "-no_nonce", "-reqout", "request"]);
    let signer = ["-index", "index", "-CA", "crt", "-rsigner", "crt", "-rkey", "key"];
    openssl(&[&["ocsp"], &signer[..], &["-reqin", "request", "-respout", "answer", "-nmin", "60"]].concat());
    std::fs::read(folder.path().join("answer")).unwrap()
}

/// What a client that asks for a staple is told.
async fn stapled(lab: &Lab, host: &str) -> String {
    let at = lab.https.to_string();
    let mut client = tokio::process::Command::new("openssl");
    client.args(["s_client", "-status", "-connect", &at, "-servername", host]).stdin(std::process::Stdio::null());
    String::from_utf8_lossy(&client.output().await.unwrap().stdout).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_about_certificates_are_stapled_while_they_hold() {
    let a = Backend::start("a");
    let mut lab = Lab::start(Limits::default());
    let shop = pair("shop.localhost");
    let given = |staple: Option<Vec<u8>>| {
        let mut secret = secret("shop", &shop.crt, &shop.key);
        if let Some(bytes) = staple {
            secret["data"]["tls.ocsp-staple"] = serde_json::to_value(ByteString(bytes)).unwrap();
        }
        secret
    };
    let rule = ingress("shop", &[("shop.localhost", "/", "Prefix", "a", 80)]);
    let rule = with_tls(rule, json!([{"hosts": ["shop.localhost"], "secretName": "shop"}]));
    lab.apply([service("a"), slice("a", a.address), rule, given(None)]);
    assert!(stapled(&lab, "shop.localhost").await.contains("OCSP response: no response sent"));
    lab.apply([given(Some(staple(&shop)))]);
    let told = stapled(&lab, "shop.localhost").await;
    assert!(told.contains("OCSP Response Status: successful") && told.contains("Cert Status: good"), "{told}");
    assert!(lab.problems("shop").is_empty());
    lab.apply([given(Some(b"nonsense".to_vec()))]);
    assert_eq!(lab.problems("shop")[0].reason, "InvalidStaple");
    assert!(ask(&lab, "shop.localhost", &shop.crt, &[]).await.0);
}
