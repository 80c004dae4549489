//! The cryptography of service accounts' tokens: ES256 (RFC 7518, section 3.4) by ring, which the program has for TLS
//! anyway. In: a key. Out: the signer and the verifier that `jsonwebtoken` asks for; any other algorithm is refused.

use jsonwebtoken::crypto::{CryptoProvider, JwkUtils, JwtSigner, JwtVerifier};
use jsonwebtoken::errors::{ErrorKind, Result};
use jsonwebtoken::signature::{self, Signer, Verifier};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, DecodingKeyKind, EncodingKey};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, UnparsedPublicKey};
use std::sync::Once;

static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: signer,
    verifier_factory: verifier,
    // Key sets are written by hand (`Tokens::jwks`).
    jwk_utils: JwkUtils::new_unimplemented(),
};

/// Makes ring do it in this process; any number of calls.
pub fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if PROVIDER.install_default().is_err() {
            tracing::warn!("tokens are signed by another provider of cryptography than ring");
        }
    });
}

fn signer(algorithm: &Algorithm, key: &EncodingKey) -> Result<Box<dyn JwtSigner>> {
    if *algorithm != Algorithm::ES256 || key.family() != AlgorithmFamily::Ec {
        return Err(ErrorKind::InvalidAlgorithm.into());
    }
    let random = SystemRandom::new();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.inner(), &random);
    Ok(Box::new(Es256Signer { pair: pair.map_err(|_| ErrorKind::InvalidEcdsaKey)?, random }))
}

fn verifier(algorithm: &Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>> {
    match key.kind() {
        DecodingKeyKind::SecretOrDer(point)
            if *algorithm == Algorithm::ES256 && key.family() == AlgorithmFamily::Ec =>
        {
            Ok(Box::new(Es256Verifier(UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point.clone()))))
        }
        _ => Err(ErrorKind::InvalidAlgorithm.into()),
    }
}

struct Es256Signer {
    pair: EcdsaKeyPair,
    random: SystemRandom,
}

impl Signer<Vec<u8>> for Es256Signer {
    fn try_sign(&self, message: &[u8]) -> std::result::Result<Vec<u8>, signature::Error> {
        let signed = self.pair.sign(&self.random, message).map_err(|_| signature::Error::new())?;
        Ok(signed.as_ref().to_vec())
    }
}

impl JwtSigner for Es256Signer {
    fn algorithm(&self) -> Algorithm {
        Algorithm::ES256
    }
}

struct Es256Verifier(UnparsedPublicKey<Vec<u8>>);

impl Verifier<Vec<u8>> for Es256Verifier {
    fn verify(&self, message: &[u8], signed: &Vec<u8>) -> std::result::Result<(), signature::Error> {
        self.0.verify(message, signed).map_err(|_| signature::Error::new())
    }
}

impl JwtVerifier for Es256Verifier {
    fn algorithm(&self) -> Algorithm {
        Algorithm::ES256
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Appendix A.3 of RFC 7515: a token that somebody else has signed.
    const X: &str = "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU";
    const Y: &str = "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0";
    const MESSAGE: &str = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
    const SIGNED: &str = "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";

    #[test]
    fn a_known_signature_is_good_and_another_is_not() {
        install();
        let key = DecodingKey::from_ec_components(X, Y).unwrap();
        assert!(jsonwebtoken::crypto::verify(SIGNED, MESSAGE.as_bytes(), &key, Algorithm::ES256).unwrap());
        assert!(!jsonwebtoken::crypto::verify(SIGNED, b"something else", &key, Algorithm::ES256).unwrap());
    }

    #[test]
    fn what_is_signed_is_believed_by_its_own_key_only() {
        install();
        let (ours, theirs) = (rcgen::KeyPair::generate().unwrap(), rcgen::KeyPair::generate().unwrap());
        let public = |pair: &rcgen::KeyPair| DecodingKey::from_ec_der(rcgen::PublicKeyData::der_bytes(pair));
        let key = EncodingKey::from_ec_der(&ours.serialize_der());
        let signed = jsonwebtoken::crypto::sign(b"text", &key, Algorithm::ES256).unwrap();
        let good = |key: &DecodingKey| jsonwebtoken::crypto::verify(&signed, b"text", key, Algorithm::ES256).unwrap();
        assert!(good(&public(&ours)) && !good(&public(&theirs)));
    }

    #[test]
    fn other_algorithms_are_refused() {
        install();
        let secret = EncodingKey::from_secret(b"secret");
        assert!(jsonwebtoken::crypto::sign(b"x", &secret, Algorithm::HS256).is_err());
        let key = DecodingKey::from_secret(b"secret");
        assert!(jsonwebtoken::crypto::verify("AAAA", b"x", &key, Algorithm::HS256).is_err());
        assert!(jsonwebtoken::crypto::verify("AAAA", b"x", &key, Algorithm::ES256).is_err());
    }
}
