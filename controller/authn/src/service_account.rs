//! Tokens of service accounts (KEP-1205, KEP-4193): signed here, checked here.
//!
//! In: keys (the first is private and signs, all check), what a TokenRequest asks for. Out: ES256 JWTs with Kubernetes' claims,
//! key sets for others, and, for a token that comes back, the user with a list of the objects that must still exist:
//! looking those up is the caller's ([`Existing::check`] judges what it finds). Also Secret-based tokens without an end.

mod claims;

pub use claims::{Account, Bound, Existing, Grant, Lifetime, Reference};

use crate::jws::{self, Algorithm, PublicKey, Token};
use crate::user::{AuthnError, User};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer};
use serde_json::{Value, json};
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY};
use x509_parser::prelude::{FromDer, SubjectPublicKeyInfo};

/// The issuer of Secret-based tokens.
const LEGACY_ISSUER: &str = "kubernetes/serviceaccount";

struct Key {
    id: String,
    /// None for a key that only checks.
    pair: Option<EcdsaKeyPair>,
    /// A point on P-256, uncompressed.
    point: Vec<u8>,
}

/// Signs and checks tokens.
pub struct Tokens {
    issuer: String,
    /// Of the API server; a token for one of them is good for its API.
    api_audiences: Vec<String>,
    keys: Vec<Key>,
    random: SystemRandom,
}

/// A token that is well signed, of its time, and for one of the wanted audiences.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Who it speaks for (without `system:authenticated`).
    pub user: User,
    /// Which of the wanted audiences it is for.
    pub audiences: Vec<String>,
    /// What must still exist: the account first.
    pub existing: Vec<Existing>,
    /// For a Secret-based token: the Secret (in `existing` too) must hold this very token in `data.token`.
    pub secret: Option<String>,
    /// It is past the time at which its holder should have taken a new one: worth a metric and the audit annotation
    /// `authentication.k8s.io/stale-token`.
    pub stale: bool,
}

fn refused(why: &str) -> AuthnError {
    AuthnError::Refused(why.to_owned())
}

impl Tokens {
    /// From keys of P-256 in PEM: the first is a private one (PKCS#8) and signs; all check, those that are public
    /// (SubjectPublicKeyInfo) and those that have signed once. Without audiences of the API server, the issuer is the
    /// one.
    pub fn new(key_pems: &[&str], issuer: &str, api_audiences: &[String]) -> Result<Self, String> {
        let random = SystemRandom::new();
        let keys = key_pems.iter().map(|pem| Key::from_pem(pem, &random)).collect::<Result<Vec<_>, _>>()?;
        if keys.first().is_none_or(|key| key.pair.is_none()) {
            return Err("no key to sign the tokens of service accounts".to_owned());
        }
        let own = [issuer.to_owned()];
        let api_audiences = if api_audiences.is_empty() { own.as_slice() } else { api_audiences }.to_vec();
        Ok(Self { issuer: issuer.to_owned(), api_audiences, keys, random })
    }

    /// The issuer.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The audiences of the API server: those of a TokenRequest without any.
    pub fn api_audiences(&self) -> &[String] {
        &self.api_audiences
    }

    /// A new token. `now` in seconds since the epoch.
    pub fn issue(&self, grant: &Grant, now: i64) -> Result<String, AuthnError> {
        let mut random = [0u8; 16];
        self.random.fill(&mut random).map_err(|_| AuthnError::Unavailable("no randomness for a token".to_owned()))?;
        let audiences = if grant.audiences.is_empty() { &self.api_audiences } else { &grant.audiences };
        self.sign(&claims::of(grant, &self.issuer, audiences, &claims::uuid(random), now))
    }

    /// The token of a Secret of type `kubernetes.io/service-account-token`; it has no end.
    pub fn issue_legacy(&self, account: &Account, secret: &str) -> Result<String, AuthnError> {
        self.sign(&json!({
            "iss": LEGACY_ISSUER,
            "kubernetes.io/serviceaccount/namespace": account.namespace,
            "kubernetes.io/serviceaccount/secret.name": secret,
            "kubernetes.io/serviceaccount/service-account.name": account.name,
            "kubernetes.io/serviceaccount/service-account.uid": account.uid,
            "sub": account.username(),
        }))
    }

    fn sign(&self, claims: &Value) -> Result<String, AuthnError> {
        let (id, pair) = self.keys.first().and_then(Key::signs).ok_or_else(|| refused("no key"))?;
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let header = json!({ "alg": "ES256", "kid": id, "typ": "JWT" });
        let message = format!("{}.{}", encode(&header), encode(claims));
        let signature = pair.sign(&self.random, message.as_bytes());
        let signature = signature.map_err(|_| AuthnError::Unavailable("signing a token failed".to_owned()))?;
        Ok(format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref())))
    }

    /// Whether a token says that it is one of these; nothing is checked yet.
    pub fn is_for(&self, token: &str) -> bool {
        jws::untrusted_issuer(token).is_some_and(|issuer| issuer == self.issuer || issuer == LEGACY_ISSUER)
    }

    /// Checks a token for one of the wanted audiences (the API server's when there are none). `now` in seconds since
    /// the epoch. The objects in [`Verified::existing`] are still to be looked up.
    pub fn verify(&self, token: &str, wanted: &[String], now: i64) -> Result<Verified, AuthnError> {
        let parsed = Token::parse(token)?;
        if parsed.algorithm != Algorithm::Es256 {
            return Err(refused("the token is not signed with ES256"));
        }
        let mut candidates = self.keys.iter().filter(|key| parsed.kid.as_ref().is_none_or(|kid| *kid == key.id));
        if !candidates.any(|key| parsed.signed_by(&PublicKey::P256(key.point.clone()))) {
            return Err(refused("invalid signature of a service account token"));
        }
        let wanted = if wanted.is_empty() { &self.api_audiences } else { wanted };
        match parsed.claims.get("iss").and_then(Value::as_str) {
            Some(LEGACY_ISSUER) => claims::legacy(&parsed.claims, wanted, &self.api_audiences),
            Some(issuer) if issuer == self.issuer => claims::bound(&parsed.claims, wanted, now),
            _ => Err(refused("the token is of another issuer")),
        }
    }

    /// The public keys as a JSON Web Key Set: all, so that tokens of old keys are still believed elsewhere.
    pub fn jwks(&self) -> Value {
        let key = |key: &Key| {
            let point = &key.point;
            let (x, y) = (point.get(1..33).unwrap_or_default(), point.get(33..).unwrap_or_default());
            json!({ "use": "sig", "kty": "EC", "kid": key.id, "crv": "P-256", "alg": "ES256",
                "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y) })
        };
        json!({ "keys": self.keys.iter().map(key).collect::<Vec<_>>() })
    }

    /// The discovery document of OpenID; `jwks_uri` where others find the keys.
    pub fn openid_configuration(&self, jwks_uri: &str) -> Value {
        json!({
            "issuer": self.issuer, "jwks_uri": jwks_uri,
            "response_types_supported": ["id_token"], "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        })
    }
}

impl Key {
    fn from_pem(pem: &str, random: &SystemRandom) -> Result<Self, String> {
        let (pair, point) = match SubjectPublicKeyInfoDer::from_pem_slice(pem.as_bytes()) {
            Ok(public) => (None, point_of(&public)?),
            Err(_) => {
                let der = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes());
                let der = der.map_err(|e| format!("a key of service accounts: {e}"))?;
                let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.secret_pkcs8_der(), random);
                let pair = pair.map_err(|e| format!("a key of service accounts is no P-256 key: {e}"))?;
                let point = pair.public_key().as_ref().to_vec();
                (Some(pair), point)
            }
        };
        // As before there were several keys, so that tokens that are out stay good.
        let id = URL_SAFE_NO_PAD.encode(ring::digest::digest(&ring::digest::SHA256, &point));
        Ok(Self { id, pair, point })
    }

    fn signs(&self) -> Option<(&str, &EcdsaKeyPair)> {
        Some((&self.id, self.pair.as_ref()?))
    }
}

/// The point of a public key on P-256 (RFC 5480).
fn point_of(der: &SubjectPublicKeyInfoDer<'_>) -> Result<Vec<u8>, String> {
    let parsed = SubjectPublicKeyInfo::from_der(der);
    let (_, info) = parsed.map_err(|e| format!("a public key of service accounts: {e}"))?;
    let curve = info.algorithm.parameters.as_ref().and_then(|curve| curve.as_oid().ok());
    let point = info.subject_public_key.data.as_ref();
    let known = info.algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY && curve == Some(OID_EC_P256);
    match point.first() {
        Some(4) if known && point.len() == 65 => Ok(point.to_vec()),
        _ => Err("a public key of service accounts is no P-256 key".to_owned()),
    }
}

#[cfg(test)]
mod tests;
