//! Annotations of Ingresses, as clients see them: curl asks, and what it prints is looked at.

use crate::harness::*;
use bytes::Bytes;
use causeway_proxy::Limits;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::SocketAddr;

const NGINX: &str = "nginx.ingress.kubernetes.io";

/// An Ingress for one host and path of service `a`, with these annotations.
fn annotated(name: &str, path: &str, service: &str, annotations: &[(&str, &str)]) -> Value {
    let mut object = ingress(name, &[("h.localhost", path, "ImplementationSpecific", service, 80)]);
    let all: BTreeMap<String, &str> = annotations.iter().map(|(k, v)| (format!("{NGINX}/{k}"), *v)).collect();
    object["metadata"]["annotations"] = json!(all);
    object
}

/// Everything curl prints of an answer, head included.
async fn ask(address: SocketAddr, path: &str, arguments: &[&str]) -> String {
    let (resolve, url) =
        (format!("h.localhost:{}:127.0.0.1", address.port()), format!("http://h.localhost:{}{path}", address.port()));
    let all = [&["-i", "--path-as-is", "--resolve", &resolve], arguments, &[&url]].concat();
    let (fine, text) = curl(&all).await;
    assert!(fine, "{text}");
    text
}

fn header<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    let head = answer.split("\r\n\r\n").next().unwrap();
    head.lines().filter_map(|l| l.split_once(": ")).find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.trim())
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").unwrap().1
}

fn lab(limits: Limits, objects: impl IntoIterator<Item = Value>) -> Lab {
    let mut lab = Lab::start(limits);
    lab.apply(objects);
    lab
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paths_are_rewritten() {
    let (a, b) = (Backend::start("a"), Backend::start("b"));
    let lab = lab(
        Limits::default(),
        [
            service("a"),
            service("b"),
            slice("a", a.address),
            slice("b", b.address),
            annotated("rewrite", "/api(/|$)(.*)", "a", &[("rewrite-target", "/$2")]),
            annotated("plain", "/", "b", &[]),
        ],
    );
    for (path, backend, want, query) in [
        ("/api/v1/things?x=1", "a", "/v1/things", json!("x=1")),
        ("/API", "a", "/", json!(null)),
        ("/apiary", "b", "/apiary", json!(null)),
        ("/api/%2e%2e/secret", "b", "/api/%2e%2e/secret", json!(null)),
        ("/api/a%20b", "a", "/a%20b", json!(null)),
    ] {
        let answer = ask(lab.http, path, &[]).await;
        let said = said(body(&answer));
        assert_eq!(
            (&said["backend"], &said["path"], &said["query"]),
            (&json!(backend), &json!(want), &query),
            "{path}"
        );
    }
    // Also where the client speaks HTTP/2, and with a body that is sent on.
    let answer = ask(lab.http, "/api/mirror", &["--http2-prior-knowledge", "-d", "what was sent"]).await;
    assert_eq!(body(&answer), "what was sent");
    assert_eq!(lab.problems("rewrite"), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_are_sent_elsewhere() {
    let a = Backend::start("a");
    let mut tls = annotated("https", "/secure", "a", &[("ssl-redirect", "true")]);
    tls["spec"]["tls"] = json!([{"hosts": ["h.localhost"]}]);
    let mut limits = Limits::default();
    let placeholder = listener().local_addr().unwrap().port();
    limits.public_ports = Some((placeholder, 8443));
    let lab = lab(
        limits,
        [
            service("a"),
            slice("a", a.address),
            tls,
            annotated("forced", "/forced", "a", &[("force-ssl-redirect", "true")]),
            annotated("gone", "/gone", "a", &[("permanent-redirect", "https://new.example/x")]),
            annotated("away", "/away", "a", &[("temporal-redirect", "/there"), ("temporal-redirect-code", "307")]),
            annotated("root", "/", "a", &[("app-root", "/app")]),
            annotated("bad", "/bad", "a", &[("permanent-redirect", "gopher")]),
        ],
    );
    for (path, status, location) in [
        ("/secure?q=1", "308", Some("https://h.localhost/secure?q=1")),
        ("/forced/x", "308", Some("https://h.localhost/forced/x")),
        ("/gone/y", "301", Some("https://new.example/x")),
        ("/away", "307", Some("/there")),
        ("/", "302", Some("/app")),
        ("/app", "200", None),
        ("/bad", "200", None),
    ] {
        let answer = ask(lab.http, path, &[]).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{path}: {answer}");
        assert_eq!(header(&answer, "location"), location, "{path}");
    }
    // Who came by the port that stands for 80 is sent to the one that stands for 443.
    let answer = ask(lab.http, "/secure", &["-H", &format!("Host: h.localhost:{placeholder}")]).await;
    assert_eq!(header(&answer, "location"), Some("https://h.localhost:8443/secure"));
    assert_eq!(lab.problems("bad")[0].reason, "InvalidAnnotation");
    let served = format!("https://127.0.0.1:{}/secure", lab.https.port());
    let (_, answer) = curl(&["-k", "-H", "Host: h.localhost", &served]).await;
    assert_eq!(said(&answer)["backend"], "a", "over TLS it is served");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_come_in() {
    let a = Backend::start("a");
    let openssl = std::process::Command::new("openssl").args(["passwd", "-apr1", "open sesame"]).output().unwrap();
    let file = format!("ali:{}", String::from_utf8(openssl.stdout).unwrap());
    let secret = |file: &str| {
        use base64::Engine as _;
        let data = base64::engine::general_purpose::STANDARD.encode(file);
        json!({"kind": "Secret", "type": "Opaque", "metadata": {"name": "users", "namespace": "t"}, "data": {"auth": data}})
    };
    let auth = [("auth-type", "basic"), ("auth-secret", "users"), ("auth-realm", "Cave")];
    let mut lab = lab(
        Limits { trusted_proxies: vec!["127.0.0.0/8".parse().unwrap()], ..Limits::default() },
        [
            service("a"),
            slice("a", a.address),
            secret(&file),
            annotated("auth", "/auth", "a", &auth),
            annotated("allow", "/allow", "a", &[("whitelist-source-range", "10.1.0.0/16,192.168.0.1")]),
            annotated("deny", "/deny", "a", &[("denylist-source-range", "10.1.0.0/16")]),
        ],
    );
    for (path, from, status) in [
        ("/allow", "10.1.2.3", "200"),
        ("/allow", "10.2.2.3", "403"),
        ("/allow", "6.6.6.6, 10.1.2.3", "200"),
        ("/allow", "10.1.2.3, 6.6.6.6", "403"),
        ("/deny", "10.1.2.3", "403"),
        ("/deny", "10.2.2.3", "200"),
    ] {
        let answer = ask(lab.http, path, &["-H", &format!("X-Forwarded-For: {from}")]).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{path} from {from}: {answer}");
    }
    let answer = ask(lab.http, "/auth", &[]).await;
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    assert!(header(&answer, "www-authenticate").unwrap().contains("realm=\"Cave\""), "{answer}");
    for (user, status) in [("ali:open sesame", "200"), ("ali:open sesame", "200"), ("ali:guess", "401"), ("x:", "401")]
    {
        let answer = ask(lab.http, "/auth", &["-u", user]).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{user}: {answer}");
    }
    // Another password counts at once; a file that cannot be read lets nobody in.
    lab.apply([secret("ali:{SHA}qvTGHdzF6KLavt4PO0gs2a6pQ00=")]);
    assert!(ask(lab.http, "/auth", &["-u", "ali:hello"]).await.starts_with("HTTP/1.1 200"));
    assert!(ask(lab.http, "/auth", &["-u", "ali:open sesame"]).await.starts_with("HTTP/1.1 401"));
    lab.apply([secret("ali")]);
    assert!(ask(lab.http, "/auth", &["-u", "ali:hello"]).await.starts_with("HTTP/1.1 403"));
    assert!(lab.problems("auth")[0].message.contains("nobody is let in"), "{:?}", lab.problems("auth"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_rates_and_time_have_their_limits() {
    let a = Backend::start("a");
    let rate = [("limit-rpm", "1"), ("limit-burst-multiplier", "3")];
    let mut lab = lab(
        Limits::default(),
        [
            service("a"),
            slice("a", a.address),
            annotated("small", "/mirror", "a", &[("proxy-body-size", "1k")]),
            annotated("rate", "/rate", "a", &rate),
            annotated("time", "/never", "a", &[("proxy-read-timeout", "1")]),
        ],
    );
    let (fits, large) = ("x".repeat(1024), "x".repeat(1025));
    assert_eq!(body(&ask(lab.http, "/mirror", &["-d", &fits]).await).len(), 1024);
    assert!(ask(lab.http, "/mirror", &["-d", &large]).await.starts_with("HTTP/1.1 413"));
    let chunked = ["-H", "Transfer-Encoding: chunked", "-H", "Expect:", "-d", &large];
    assert!(ask(lab.http, "/mirror", &chunked).await.contains("HTTP/1.1 413"));
    for i in 0..6 {
        // A change of other rules does not give a client its share again.
        lab.apply([annotated("other", &format!("/other{i}"), "a", &[])]);
        let answer = ask(lab.http, "/rate", &[]).await;
        let status = if i < 3 { "200" } else { "429" };
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "request {i}: {answer}");
    }
    assert!(ask(lab.http, "/never", &[]).await.starts_with("HTTP/1.1 504"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_other_origins() {
    let a = Backend::start("a");
    let cors = [
        ("enable-cors", "true"),
        ("cors-allow-origin", "https://*.shop.example, https://one.example"),
        ("cors-allow-methods", "GET, PUT"),
        ("cors-expose-headers", "X-Total"),
        ("cors-max-age", "60"),
    ];
    let lab = lab(Limits::default(), [service("a"), slice("a", a.address), annotated("cors", "/", "a", &cors)]);
    let preflight = ["-X", "OPTIONS", "-H", "Access-Control-Request-Method: PUT", "-H"];
    let answer = ask(lab.http, "/", &[&preflight[..], &["Origin: https://a.shop.example"]].concat()).await;
    assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
    assert_eq!(header(&answer, "access-control-allow-origin"), Some("https://a.shop.example"));
    assert_eq!(header(&answer, "access-control-allow-methods"), Some("GET, PUT"));
    assert_eq!(header(&answer, "access-control-max-age"), Some("60"));
    assert_eq!(header(&answer, "access-control-allow-credentials"), Some("true"));
    let answer = ask(lab.http, "/", &[&preflight[..], &["Origin: https://evil.example"]].concat()).await;
    assert_eq!(header(&answer, "access-control-allow-origin"), None);
    let answer = ask(lab.http, "/", &["-H", "Origin: https://one.example"]).await;
    assert_eq!(header(&answer, "access-control-allow-origin"), Some("https://one.example"));
    assert_eq!(header(&answer, "access-control-expose-headers"), Some("X-Total"));
    assert_eq!(header(&answer, "vary"), Some("Origin"));
    assert_eq!(said(body(&answer))["backend"], "a");
    assert_eq!(header(&ask(lab.http, "/", &[]).await, "access-control-allow-origin"), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cookie_leads_back() {
    let (a, b, c) = (Backend::start("a"), Backend::start("b"), Backend::start("c"));
    let sticky = [("affinity", "cookie"), ("session-cookie-name", "route"), ("session-cookie-max-age", "60")];
    let three = [slice("a", a.address), slice("a", b.address), slice("a", c.address)];
    let mut lab = lab(Limits::default(), [service("a"), annotated("sticky", "/", "a", &sticky)]);
    lab.apply(three.clone());
    let first = ask(lab.http, "/", &[]).await;
    let cookie = header(&first, "set-cookie").unwrap().to_owned();
    assert!(cookie.starts_with("route=") && cookie.contains("; Path=/; HttpOnly; Max-Age=60"), "{cookie}");
    let cookie = format!("Cookie: x=1; {}", cookie.split(';').next().unwrap());
    let backend = said(body(&first))["backend"].clone();
    for _ in 0..20 {
        let again = ask(lab.http, "/", &["-H", &cookie]).await;
        assert_eq!(said(body(&again))["backend"], backend);
        assert_eq!(header(&again, "set-cookie"), None, "who knows the way is not told again");
    }
    // Its endpoint goes: the client gets another one, and is told.
    let at = ["a", "b", "c"].iter().position(|n| backend == *n).unwrap();
    lab.delete([three[at].clone()]);
    let moved = ask(lab.http, "/", &["-H", &cookie]).await;
    assert_ne!(said(body(&moved))["backend"], backend);
    assert!(header(&moved, "set-cookie").is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn canaries_get_their_part() {
    let (a, b) = (Backend::start("a"), Backend::start("b"));
    let canary = |more: &[(&str, &str)]| annotated("canary", "/", "b", &[&[("canary", "true")], more].concat());
    let mut lab = lab(
        Limits::default(),
        [
            service("a"),
            service("b"),
            slice("a", a.address),
            slice("b", b.address),
            annotated("main", "/", "a", &[]),
            canary(&[("canary-weight", "30"), ("canary-by-header", "X-Canary"), ("canary-by-cookie", "beta")]),
        ],
    );
    let mut client = Client::connect(lab.http).await;
    let mut count = async |headers: &[(&str, &str)]| {
        let mut at_b = 0;
        for _ in 0..200 {
            let (status, body, _) = client.send(Method::GET, "h.localhost", "/", headers, Bytes::new()).await.unwrap();
            assert_eq!(status, StatusCode::OK);
            at_b += usize::from(said(std::str::from_utf8(&body).unwrap())["backend"] == "b");
        }
        at_b
    };
    let some = count(&[]).await;
    // 60 are expected; less than 25 or more than 100 come once in many millions of runs.
    assert!((25..100).contains(&some), "{some} of 200");
    assert_eq!(count(&[("x-canary", "always")]).await, 200);
    assert_eq!(count(&[("x-canary", "never")]).await, 0);
    assert_eq!(count(&[("cookie", "beta=always")]).await, 200);
    // A canary without endpoints takes nobody with it.
    lab.delete([slice("b", b.address)]);
    assert_eq!(count(&[("x-canary", "always")]).await, 0);
    // One whose rule nobody has is told so, and serves nothing of its own.
    lab.delete([annotated("main", "/", "a", &[])]);
    assert_eq!(lab.problems("canary")[0].reason, "CanaryWithoutMain");
    assert!(ask(lab.http, "/", &[]).await.starts_with("HTTP/1.1 404"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backends_that_speak_tls() {
    let acceptor = acceptor(&["h2", "http/1.1"]);
    let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = socket.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = hyper::service::service_fn(|request: http::Request<hyper::body::Incoming>| async move {
                    let text = format!("{:?}", request.version());
                    Ok::<_, std::convert::Infallible>(http::Response::new(http_body_util::Full::new(Bytes::from(text))))
                });
                let executor = hyper_util::rt::TokioExecutor::new();
                let io = hyper_util::rt::TokioIo::new(stream);
                let _ = hyper_util::server::conn::auto::Builder::new(executor).serve_connection(io, service).await;
            });
        }
    });
    let lab = lab(
        Limits::default(),
        [
            service("a"),
            slice("a", address),
            annotated("https", "/", "a", &[("backend-protocol", "HTTPS")]),
            annotated("grpcs", "/grpc", "a", &[("backend-protocol", "GRPCS")]),
        ],
    );
    assert_eq!(body(&ask(lab.http, "/", &[]).await), "HTTP/1.1");
    assert_eq!(body(&ask(lab.http, "/grpc", &[]).await), "HTTP/2.0");
}
