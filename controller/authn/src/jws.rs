//! Signed tokens in compact form (RFC 7515, 7518): taken apart within bounds, and checked by ring.
//!
//! In: a token, and public keys. Out: header and claims, and whether a key has signed it. Only the asymmetric algorithms
//! that OIDC issuers use are known: `none` and HMAC are not, so a public key can never be taken for a shared secret.

use crate::user::AuthnError;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey};
use serde_json::{Map, Value};

/// Longest token, in bytes.
pub(crate) const MAX_TOKEN: usize = 64 * 1024;
/// Longest key id.
const MAX_KID: usize = 1024;

/// A public key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PublicKey {
    /// Modulus and exponent, big-endian.
    Rsa { n: Vec<u8>, e: Vec<u8> },
    /// A point on P-256, uncompressed.
    P256(Vec<u8>),
    /// A point on P-384, uncompressed.
    P384(Vec<u8>),
}

/// An algorithm of signatures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
}

impl Algorithm {
    pub(crate) fn of(name: &str) -> Option<Self> {
        Some(match name {
            "RS256" => Self::Rs256,
            "RS384" => Self::Rs384,
            "RS512" => Self::Rs512,
            "PS256" => Self::Ps256,
            "PS384" => Self::Ps384,
            "PS512" => Self::Ps512,
            "ES256" => Self::Es256,
            "ES384" => Self::Es384,
            _ => return None,
        })
    }

    /// Whether a key is of the kind that this algorithm needs.
    pub(crate) fn takes(self, key: &PublicKey) -> bool {
        match self {
            Self::Es256 => matches!(key, PublicKey::P256(_)),
            Self::Es384 => matches!(key, PublicKey::P384(_)),
            _ => matches!(key, PublicKey::Rsa { .. }),
        }
    }
}

/// A token taken apart. Nothing in it is to be believed before [`Token::signed_by`].
#[derive(Debug)]
pub(crate) struct Token<'a> {
    pub(crate) algorithm: Algorithm,
    pub(crate) kid: Option<String>,
    pub(crate) claims: Map<String, Value>,
    message: &'a str,
    signature: Vec<u8>,
}

fn malformed(why: &str) -> AuthnError {
    AuthnError::Refused(format!("oidc: malformed jwt: {why}"))
}

/// The three parts of a token, still encoded.
fn parts(token: &str) -> Option<[&str; 3]> {
    if token.len() > MAX_TOKEN {
        return None;
    }
    let mut parts = token.split('.');
    let found = [parts.next()?, parts.next()?, parts.next()?];
    parts.next().is_none().then_some(found)
}

fn object(part: &str) -> Option<Map<String, Value>> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()
}

/// The issuer that a token says it is of, without believing it; `None` for what is no JWT at all.
pub(crate) fn untrusted_issuer(token: &str) -> Option<String> {
    let [_, payload, _] = parts(token)?;
    let claims = object(payload)?;
    match claims.get("iss")?.as_str()? {
        // OpenID Connect Core, section 2: Google's tokens may leave the scheme out.
        "accounts.google.com" => Some("https://accounts.google.com".to_owned()),
        issuer => Some(issuer.to_owned()),
    }
}

impl<'a> Token<'a> {
    pub(crate) fn parse(token: &'a str) -> Result<Self, AuthnError> {
        let [head, payload, signature] = parts(token).ok_or_else(|| malformed("not three parts"))?;
        let header = object(head).ok_or_else(|| malformed("its header is no JSON object"))?;
        // RFC 7515, section 4.1.11: what is critical and not understood is to be refused.
        if header.contains_key("crit") {
            return Err(malformed("it has critical header parameters"));
        }
        let name = header.get("alg").and_then(Value::as_str).unwrap_or_default();
        let algorithm = Algorithm::of(name).ok_or_else(|| {
            let name: String = name.chars().filter(|c| c.is_ascii_alphanumeric()).take(16).collect();
            AuthnError::Refused(format!("oidc: id token signed with unsupported algorithm {name:?}"))
        })?;
        let kid = match header.get("kid") {
            None => None,
            Some(Value::String(kid)) if kid.len() <= MAX_KID => Some(kid.clone()).filter(|kid| !kid.is_empty()),
            Some(_) => return Err(malformed("its key id is no short string")),
        };
        let claims = object(payload).ok_or_else(|| malformed("its payload is no JSON object"))?;
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| malformed("its signature is not base64"))?;
        Ok(Self { algorithm, kid, claims, message: &token[..head.len() + 1 + payload.len()], signature })
    }

    /// Whether this key has signed it.
    pub(crate) fn signed_by(&self, key: &PublicKey) -> bool {
        let (message, signed) = (self.message.as_bytes(), self.signature.as_slice());
        match key {
            PublicKey::Rsa { n, e } => {
                let parameters = match self.algorithm {
                    Algorithm::Rs256 => &signature::RSA_PKCS1_2048_8192_SHA256,
                    Algorithm::Rs384 => &signature::RSA_PKCS1_2048_8192_SHA384,
                    Algorithm::Rs512 => &signature::RSA_PKCS1_2048_8192_SHA512,
                    Algorithm::Ps256 => &signature::RSA_PSS_2048_8192_SHA256,
                    Algorithm::Ps384 => &signature::RSA_PSS_2048_8192_SHA384,
                    Algorithm::Ps512 => &signature::RSA_PSS_2048_8192_SHA512,
                    Algorithm::Es256 | Algorithm::Es384 => return false,
                };
                RsaPublicKeyComponents { n, e }.verify(parameters, message, signed).is_ok()
            }
            PublicKey::P256(point) if self.algorithm == Algorithm::Es256 => {
                UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, point).verify(message, signed).is_ok()
            }
            PublicKey::P384(point) if self.algorithm == Algorithm::Es384 => {
                UnparsedPublicKey::new(&signature::ECDSA_P384_SHA384_FIXED, point).verify(message, signed).is_ok()
            }
            PublicKey::P256(_) | PublicKey::P384(_) => false,
        }
    }
}

#[cfg(test)]
mod vectors;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jwks;

    // RFC 7515, appendix A.2 (RS256) and A.3 (ES256): tokens that somebody else has signed.
    const RSA_N: &str = "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ";
    const RS256: &str = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw";
    const ES256: &str = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";

    fn key(json: &Value) -> PublicKey {
        jwks::parse(&serde_json::to_vec(&serde_json::json!({ "keys": [json] })).unwrap()).unwrap().remove(0).key
    }

    fn rsa() -> PublicKey {
        key(&serde_json::json!({ "kty": "RSA", "n": RSA_N, "e": "AQAB" }))
    }

    fn ec() -> PublicKey {
        key(&serde_json::json!({ "kty": "EC", "crv": "P-256",
            "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0" }))
    }

    #[test]
    fn known_signatures_are_good_with_their_own_key_only() {
        let (rs, es) = (Token::parse(RS256).unwrap(), Token::parse(ES256).unwrap());
        assert!(rs.signed_by(&rsa()) && !rs.signed_by(&ec()));
        assert!(es.signed_by(&ec()) && !es.signed_by(&rsa()));
        assert!(rs.algorithm.takes(&rsa()) && !rs.algorithm.takes(&ec()));
        let [head, _, signature] = parts(ES256).unwrap();
        let forged = format!("{head}.{}.{signature}", URL_SAFE_NO_PAD.encode(r#"{"iss":"joe","exp":9999999999}"#));
        assert!(!Token::parse(&forged).unwrap().signed_by(&ec()));
    }

    #[test]
    fn all_algorithms_of_rsa() {
        let own = key(&serde_json::json!({ "kty": "RSA", "n": vectors::N, "e": "AQAB" }));
        for text in vectors::TOKENS {
            let token = Token::parse(text).unwrap();
            assert!(token.signed_by(&own) && !token.signed_by(&rsa()), "{:?}", token.algorithm);
            // Under the name of another algorithm the same signature is none.
            let (_, rest) = text.split_once('.').unwrap();
            let other = format!("{}.{rest}", URL_SAFE_NO_PAD.encode(r#"{"alg":"RS256"}"#));
            assert!(!Token::parse(&other).unwrap().signed_by(&own));
        }
    }

    fn with_header(header: &str) -> Result<(), String> {
        let token = format!("{}.{}.AAAA", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode("{}"));
        Token::parse(&token).map(drop).map_err(|e| e.to_string())
    }

    #[test]
    fn other_algorithms_and_odd_headers_are_refused() {
        assert_eq!(with_header(r#"{"alg":"RS256","kid":"x"}"#), Ok(()));
        for alg in ["none", "None", "HS256", "HS512", "EdDSA", "ES512", "rs256", ""] {
            let error = with_header(&format!(r#"{{"alg":"{alg}"}}"#)).unwrap_err();
            assert_eq!(error, format!("oidc: id token signed with unsupported algorithm {alg:?}"));
        }
        for header in [
            r#"{"kid":"x"}"#,
            r#"{"alg":5}"#,
            r#"{"alg":"RS256","kid":5}"#,
            r#"{"alg":"RS256","crit":["b64"]}"#,
            "[]",
            "",
        ] {
            assert!(with_header(header).is_err(), "{header}");
        }
        let long = format!(r#"{{"alg":"RS256","kid":"{}"}}"#, "x".repeat(MAX_KID + 1));
        assert!(with_header(&long).is_err());
    }

    #[test]
    fn the_form_is_checked() {
        for token in ["", "a", "a.b", "a.b.c", "a.b.c.d", "..", &format!("{RS256}."), &format!("{RS256}=")] {
            assert!(Token::parse(token).is_err(), "{token}");
        }
        let (head, tail) = RS256.split_once('.').unwrap();
        assert!(Token::parse(&format!("{head}.{}.{tail}", "A".repeat(MAX_TOKEN))).is_err());
        assert_eq!(untrusted_issuer(RS256).as_deref(), Some("joe"));
        assert_eq!(untrusted_issuer("abcdef.0123456789abcdef"), None);
        let google = format!("a.{}.c", URL_SAFE_NO_PAD.encode(r#"{"iss":"accounts.google.com"}"#));
        assert_eq!(untrusted_issuer(&google).as_deref(), Some("https://accounts.google.com"));
    }
}
