//! A server over TLS that is both an OIDC issuer and a webhook of tokens, and certificates of an authority of its own.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper_util::rt::TokioIo;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    PublicKeyData,
};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use rustls::pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::sync::Arc;

/// An authority that is not the cluster's.
pub struct Authority {
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// Certificate and key of a client, PEM.
    pub fn client(&self, name: &str, organisation: &str) -> (String, String) {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.distinguished_name.push(DnType::OrganizationName, organisation);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

/// The issuer.
pub struct Provider {
    pub url: String,
    pub ca_pem: String,
    pair: EcdsaKeyPair,
}

impl Provider {
    pub async fn start() -> Self {
        let authority = Authority::new("provider");
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let leaf = leaf.signed_by(&key, &authority.issuer).unwrap();
        let tls = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
            .unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
        let signing = KeyPair::generate().unwrap();
        let (x, y) = signing.der_bytes()[1..].split_at(32);
        let keys = json!({ "keys": [{ "kty": "EC", "kid": "k", "crv": "P-256", "use": "sig",
            "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y) }] });
        let discovery = json!({ "issuer": url, "jwks_uri": format!("{url}/keys") });
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, keys, discovery) = (acceptor.clone(), keys.clone(), discovery.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = hyper::service::service_fn(move |request| {
                        let (keys, discovery) = (keys.clone(), discovery.clone());
                        async move { Ok::<_, Infallible>(answer(request, keys, discovery).await) }
                    });
                    let http = hyper::server::conn::http1::Builder::new();
                    let _ = http.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &signing.serialize_der(), &SystemRandom::new());
        Self { url, ca_pem: authority.pem, pair: pair.unwrap() }
    }

    /// A token of `ann` for an audience, with groups.
    pub fn token(&self, audience: &str, groups: &[&str]) -> String {
        let now = jiff::Timestamp::now().as_second();
        let claims = json!({ "iss": self.url, "aud": audience, "sub": "ann", "exp": now + 300, "groups": groups });
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", encode(&json!({ "alg": "ES256", "kid": "k" })), encode(&claims));
        let signature = self.pair.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
    }
}

/// The webhook knows `of-the-webhook`, fails for `broken`, and knows nothing else.
async fn answer(
    request: http::Request<hyper::body::Incoming>,
    keys: Value,
    discovery: Value,
) -> http::Response<http_body_util::Full<bytes::Bytes>> {
    let path = request.uri().path().to_owned();
    let body = http_body_util::BodyExt::collect(request.into_body()).await.unwrap().to_bytes();
    let asked: Value = serde_json::from_slice(&body).unwrap_or_default();
    let token = asked["spec"]["token"].as_str().unwrap_or_default();
    let (code, reply) = match path.as_str() {
        "/.well-known/openid-configuration" => (200, discovery),
        "/keys" => (200, keys),
        "/review" if token == "broken" => (400, Value::Null),
        "/review" => {
            let status = if token == "of-the-webhook" {
                json!({ "authenticated": true,
                    "user": { "username": "bob", "uid": "7", "groups": ["hooked"], "extra": { "k": ["v"] } } })
            } else {
                json!({ "authenticated": false })
            };
            let kind = "TokenReview";
            (200, json!({ "apiVersion": "authentication.k8s.io/v1", "kind": kind, "status": status }))
        }
        _ => (404, Value::Null),
    };
    let body = http_body_util::Full::new(bytes::Bytes::from(reply.to_string()));
    http::Response::builder().status(code).body(body).unwrap()
}
