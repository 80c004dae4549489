//! Service-account tokens: issued for TokenRequests, checked on every use.
//!
//! ES256 JWTs with Kubernetes' claims. A token is good while its signature, times and audience are, and while the
//! service account (and the pod it is bound to) still exists with the same uid.

use crate::authn::jwt;
use crate::engine::{Engine, text};
use crate::status::{ApiError, ApiResult};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use causeway_api::identity::{GROUP_SERVICE_ACCOUNTS, UserInfo};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rcgen::{KeyPair, PublicKeyData};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Shortest life of a token, in seconds.
pub const MIN_SECONDS: i64 = 600;
/// Longest life of a token, in seconds.
pub const MAX_SECONDS: i64 = 24 * 3600 * 365;

/// Signs and checks tokens.
pub struct Tokens {
    issuer: String,
    key_id: String,
    x: String,
    y: String,
    signing: EncodingKey,
    checking: DecodingKey,
}

/// What a token is issued for.
pub struct Grant<'a> {
    /// The service account.
    pub account: &'a Value,
    /// The object it is bound to: kind, name, uid.
    pub bound: Option<(&'a str, &'a str, &'a str)>,
    /// Who shall accept it; empty means the API server.
    pub audiences: Vec<String>,
    /// Its life.
    pub seconds: i64,
}

/// A token that was checked.
pub struct Authenticated {
    /// Who it speaks for (without `system:authenticated`).
    pub user: UserInfo,
    /// Which of the wanted audiences it is for.
    pub audiences: Vec<String>,
}

impl Tokens {
    /// From the signing key.
    pub fn new(key_pem: &str, domain: &str) -> anyhow::Result<Self> {
        jwt::install();
        let pair = KeyPair::from_pem(key_pem)?;
        let raw = pair.der_bytes();
        anyhow::ensure!(raw.len() == 65, "the service-account key is no P-256 key");
        let (x, y) = (URL_SAFE_NO_PAD.encode(&raw[1..33]), URL_SAFE_NO_PAD.encode(&raw[33..]));
        Ok(Self {
            issuer: format!("https://kubernetes.default.svc.{domain}"),
            key_id: URL_SAFE_NO_PAD.encode(Sha256::digest(raw)),
            checking: DecodingKey::from_ec_components(&x, &y)?,
            signing: EncodingKey::from_ec_der(&pair.serialize_der()),
            x,
            y,
        })
    }

    /// The issuer, which is also the API server's audience.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// A new token and when it ends (seconds since the epoch).
    pub fn issue(&self, grant: &Grant<'_>) -> ApiResult<(String, i64)> {
        let now = jiff::Timestamp::now().as_second();
        let end = now + grant.seconds;
        let (namespace, name) = (text(grant.account, "/metadata/namespace"), text(grant.account, "/metadata/name"));
        let mut about = json!({
            "namespace": namespace,
            "serviceaccount": { "name": name, "uid": text(grant.account, "/metadata/uid") },
        });
        if let Some((kind, name, uid)) = grant.bound {
            about[kind.to_ascii_lowercase()] = json!({ "name": name, "uid": uid });
        }
        let audiences = if grant.audiences.is_empty() { vec![self.issuer.clone()] } else { grant.audiences.clone() };
        let claims = json!({
            "aud": audiences, "exp": end, "iat": now, "nbf": now, "iss": self.issuer,
            "jti": uuid::Uuid::new_v4().to_string(), "sub": format!("system:serviceaccount:{namespace}:{name}"),
            "kubernetes.io": about,
        });
        let header = Header { kid: Some(self.key_id.clone()), ..Header::new(Algorithm::ES256) };
        let token = jsonwebtoken::encode(&header, &claims, &self.signing).map_err(ApiError::internal)?;
        Ok((token, end))
    }

    /// Checks a token for one of the audiences (the API server's when none is named).
    pub async fn authenticate(&self, engine: &Engine, token: &str, audiences: &[String]) -> ApiResult<Authenticated> {
        let own = [self.issuer.clone()];
        let wanted = if audiences.is_empty() { own.as_slice() } else { audiences };
        let mut rules = Validation::new(Algorithm::ES256);
        rules.set_issuer(&[&self.issuer]);
        rules.set_audience(wanted);
        rules.validate_nbf = true;
        rules.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        let decoded = jsonwebtoken::decode::<Value>(token, &self.checking, &rules).map_err(|error| {
            tracing::debug!(%error, "bearer token refused");
            ApiError::unauthorized()
        })?;
        let claims = decoded.claims;
        let about = &claims["kubernetes.io"];
        let namespace = about["namespace"].as_str().unwrap_or("");
        let (name, uid) = (text(about, "/serviceaccount/name"), text(about, "/serviceaccount/uid"));
        self.still_there(engine, "serviceaccounts", namespace, name, uid).await?;
        let mut extra = BTreeMap::new();
        let mut note = |key: &str, value: &str| {
            if !value.is_empty() {
                extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]);
            }
        };
        note("credential-id", &claims["jti"].as_str().map(|j| format!("JTI={j}")).unwrap_or_default());
        for (kind, plural) in [("pod", "pods"), ("secret", "secrets")] {
            if let Some(bound) = about.get(kind) {
                let (name, uid) = (text(bound, "/name"), text(bound, "/uid"));
                self.still_there(engine, plural, namespace, name, uid).await?;
                if kind == "pod" {
                    note("pod-name", name);
                    note("pod-uid", uid);
                }
            }
        }
        let held: Vec<&str> = claims["aud"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        Ok(Authenticated {
            user: UserInfo {
                username: format!("system:serviceaccount:{namespace}:{name}"),
                uid: uid.to_owned(),
                groups: vec![GROUP_SERVICE_ACCOUNTS.to_owned(), format!("{GROUP_SERVICE_ACCOUNTS}:{namespace}")],
                extra,
            },
            audiences: wanted.iter().filter(|a| held.contains(&a.as_str())).cloned().collect(),
        })
    }

    async fn still_there(
        &self,
        engine: &Engine,
        plural: &str,
        namespace: &str,
        name: &str,
        uid: &str,
    ) -> ApiResult<()> {
        let served = engine.served("", "v1", plural)?;
        let object = match engine.get(&served, namespace, name, Some(0)).await {
            Err(e) if e.code() == 404 => engine.get(&served, namespace, name, None).await,
            other => other,
        };
        match object {
            Ok(object) if text(&object.value(), "/metadata/uid") == uid => Ok(()),
            Ok(_) => Err(ApiError::unauthorized()),
            Err(e) if e.code() == 404 => Err(ApiError::unauthorized()),
            Err(e) => Err(e),
        }
    }

    /// The public key as a JSON Web Key Set.
    pub fn jwks(&self) -> Value {
        json!({ "keys": [{
            "use": "sig", "kty": "EC", "kid": self.key_id, "crv": "P-256", "alg": "ES256", "x": self.x, "y": self.y,
        }] })
    }

    /// OpenID discovery.
    pub fn openid_configuration(&self) -> Value {
        json!({
            "issuer": self.issuer, "jwks_uri": format!("{}/openid/v1/jwks", self.issuer),
            "response_types_supported": ["id_token"], "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        })
    }
}
