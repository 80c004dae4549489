//! Key sets of issuers (RFC 7517). In: what an issuer answers. Out: the keys that can check signatures here.

use crate::jws::{Algorithm, PublicKey, Token};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

/// Most keys of a set: a token without a key id is checked against all of them.
const MAX_KEYS: usize = 64;
/// Longest modulus: 8192 bits, what ring takes, and a sign byte.
const MAX_MODULUS: usize = 1025;

/// A key of an issuer.
#[derive(Debug, Clone)]
pub(crate) struct Key {
    kid: Option<String>,
    algorithm: Option<String>,
    pub(crate) key: PublicKey,
}

impl Key {
    /// Whether a token may be signed by this key: key id, kind and algorithm.
    pub(crate) fn may_have_signed(&self, token: &Token<'_>) -> bool {
        let named = token.kid.is_none() || self.kid == token.kid;
        let meant = self.algorithm.as_deref().is_none_or(|name| Algorithm::of(name) == Some(token.algorithm));
        named && meant && token.algorithm.takes(&self.key)
    }
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<Jwk>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    #[serde(rename = "use")]
    usage: Option<String>,
    kid: Option<String>,
    alg: Option<String>,
    n: Option<String>,
    e: Option<String>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

/// The keys of a set. Those of other kinds, or not for signatures, are left out; a set that is not well-formed or too
/// large is an error.
pub(crate) fn parse(body: &[u8]) -> Result<Vec<Key>, String> {
    let set: Set = serde_json::from_slice(body).map_err(|e| format!("failed to decode keys: {e}"))?;
    if set.keys.len() > MAX_KEYS {
        return Err(format!("the key set has {} keys; at most {MAX_KEYS} are supported", set.keys.len()));
    }
    let mut keys = Vec::new();
    for jwk in set.keys.iter().filter(|jwk| jwk.usage.as_deref().is_none_or(|usage| usage == "sig")) {
        if let Some(key) = public_key(jwk)? {
            keys.push(Key { kid: jwk.kid.clone().filter(|kid| !kid.is_empty()), algorithm: jwk.alg.clone(), key });
        }
    }
    Ok(keys)
}

fn public_key(jwk: &Jwk) -> Result<Option<PublicKey>, String> {
    let field = |value: &Option<String>, name: &str| {
        let bytes = value.as_deref().and_then(|text| URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok());
        bytes.filter(|bytes| !bytes.is_empty()).ok_or_else(|| format!("a key of kind {} has no good {name:?}", jwk.kty))
    };
    let point = |size: usize| -> Result<Vec<u8>, String> {
        let (x, y) = (field(&jwk.x, "x")?, field(&jwk.y, "y")?);
        if x.len() != size || y.len() != size {
            return Err("the coordinates of a key are not as long as those of its curve".to_owned());
        }
        Ok([&[4], x.as_slice(), y.as_slice()].concat())
    };
    Ok(match (jwk.kty.as_str(), jwk.crv.as_deref()) {
        ("RSA", _) => {
            let (n, e) = (field(&jwk.n, "n")?, field(&jwk.e, "e")?);
            if n.len() > MAX_MODULUS {
                return Err("an RSA key has more than 8192 bits".to_owned());
            }
            Some(PublicKey::Rsa { n: strip_zeros(n), e: strip_zeros(e) })
        }
        ("EC", Some("P-256")) => Some(PublicKey::P256(point(32)?)),
        ("EC", Some("P-384")) => Some(PublicKey::P384(point(48)?)),
        _ => None,
    })
}

/// Some issuers write a sign byte, which ring refuses.
fn strip_zeros(mut bytes: Vec<u8>) -> Vec<u8> {
    let zeros = bytes.iter().take_while(|b| **b == 0).count();
    bytes.split_off(zeros)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn parsed(keys: &Value) -> Result<usize, String> {
        parse(&serde_json::to_vec(&json!({ "keys": keys })).unwrap()).map(|keys| keys.len())
    }

    #[test]
    fn what_is_not_for_signatures_here_is_left_out() {
        let rsa = json!({ "kty": "RSA", "n": "AQAB", "e": "AQAB", "use": "sig" });
        let table = [
            (json!([]), 0),
            (json!([rsa, rsa]), 2),
            (json!([{ "kty": "RSA", "n": "AQAB", "e": "AQAB", "use": "enc" }]), 0),
            (json!([{ "kty": "oct", "k": "c2VjcmV0" }, { "kty": "OKP", "crv": "Ed25519", "x": "AA" }, rsa]), 1),
            (json!([{ "kty": "EC", "crv": "P-521", "x": "AA", "y": "AA" }]), 0),
        ];
        for (keys, want) in table {
            assert_eq!(parsed(&keys), Ok(want), "{keys}");
        }
    }

    #[test]
    fn bad_sets_are_refused() {
        let one = json!({ "kty": "RSA", "n": "AQAB", "e": "AQAB" });
        assert_eq!(parsed(&Value::Array(vec![one.clone(); MAX_KEYS])), Ok(MAX_KEYS));
        assert!(parsed(&Value::Array(vec![one; MAX_KEYS + 1])).unwrap_err().contains("at most 64"));
        for keys in [
            json!([{ "kty": "RSA", "n": "AQAB" }]),
            json!([{ "kty": "RSA", "n": "!", "e": "AQAB" }]),
            json!([{ "kty": "RSA", "n": "A".repeat(8192), "e": "AQAB" }]),
            json!([{ "kty": "EC", "crv": "P-256", "x": "AAAA", "y": "AAAA" }]),
            json!([{ "use": "sig" }]),
            json!({}),
        ] {
            assert!(parsed(&keys).is_err(), "{keys}");
        }
        assert!(parse(b"<html>").is_err());
    }
}
