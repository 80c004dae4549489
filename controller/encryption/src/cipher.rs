//! The form of an encrypted value. In: a key, the path of a value, its bytes. Out: the same bytes under AES-256-GCM, or
//! why they cannot be had back.
//!
//! ```text
//! k8s:enc:aesgcm:v1:NAME:  salt 16  nonce 12  ciphertext  tag 16
//! ```
//!
//! Each value has a key of its own, HKDF-SHA256 of the configured key and the salt, so the bound on random nonces under one
//! key (2^32) is met by 2^32 values of one salt, and not by the writes of a cluster's life. The path is additional data: a
//! value that is moved to another key of the store does not open. Only the first part is Kubernetes' own; what follows
//! it is not its format.

use crate::EncryptionError;
use ring::rand::{SecureRandom, SystemRandom};
use ring::{aead, digest, hkdf};

/// What every encrypted value begins with, as in Kubernetes.
pub const ENCRYPTED: &[u8] = b"k8s:enc:";
/// What those of the provider `aesgcm` begin with.
const AESGCM: &str = "k8s:enc:aesgcm:v1:";
/// The longest name of a key.
pub const MAX_NAME: usize = 128;
const SALT: usize = 16;
const TAG: usize = 16;
/// A value grows by no more than this many bytes.
pub const MAX_OVERHEAD: usize = AESGCM.len() + MAX_NAME + 1 + SALT + aead::NONCE_LEN + TAG;

const _: () = assert!(MAX_OVERHEAD <= causeway_store::MAX_ADDED, "values of the largest size would not fit the store");

/// A key, ready to be used. Its `Debug` and errors show its name only.
pub struct Key {
    name: String,
    secret: hkdf::Prk,
    /// A hash of the secret, to tell keys of one name apart.
    id: [u8; 32],
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key({})", self.name)
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && self.id == other.id
    }
}

impl Eq for Key {}

fn random(into: &mut [u8]) -> Result<(), EncryptionError> {
    SystemRandom::new()
        .fill(into)
        .map_err(|_| EncryptionError::Cryptography("the system gave no random bytes; try again"))
}

/// Bytes of a new key.
pub fn new_secret() -> Result<[u8; 32], EncryptionError> {
    let mut secret = [0; 32];
    random(&mut secret)?;
    Ok(secret)
}

impl Key {
    /// A key of 16, 24 or 32 bytes. The cipher is AES-256 with each; none is stronger than its bytes.
    pub fn new(name: &str, secret: &[u8]) -> Self {
        let mut id = digest::Context::new(&digest::SHA256);
        id.update(b"causeway encryption key\0");
        id.update(secret);
        let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, b"causeway encryption at rest 1");
        let id = id.finish().as_ref().try_into().unwrap_or_default();
        Self { name: name.to_owned(), secret: salt.extract(secret), id }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn of_value(&self, salt: &[u8]) -> Result<aead::LessSafeKey, ring::error::Unspecified> {
        let info = [salt];
        let derived = self.secret.expand(&info, &aead::AES_256_GCM)?;
        Ok(aead::LessSafeKey::new(aead::UnboundKey::from(derived)))
    }

    /// Encrypts the value of a path.
    pub fn seal(&self, path: &str, plain: &[u8]) -> Result<Vec<u8>, EncryptionError> {
        let mut fresh = [0; SALT + aead::NONCE_LEN];
        random(&mut fresh)?;
        let (salt, nonce) = fresh.split_at(SALT);
        let failed = |_| EncryptionError::Cryptography("a value could not be encrypted");
        let key = self.of_value(salt).map_err(failed)?;
        let nonce = aead::Nonce::try_assume_unique_for_key(nonce).map_err(failed)?;
        let head = AESGCM.len() + self.name.len() + 1;
        let mut sealed = Vec::with_capacity(head + fresh.len() + plain.len() + TAG);
        sealed.extend_from_slice(AESGCM.as_bytes());
        sealed.extend_from_slice(self.name.as_bytes());
        sealed.push(b':');
        sealed.extend_from_slice(&fresh);
        sealed.extend_from_slice(plain);
        let body = sealed.get_mut(head + fresh.len()..).unwrap_or_default();
        let tag = key.seal_in_place_separate_tag(nonce, aead::Aad::from(path.as_bytes()), body).map_err(failed)?;
        sealed.extend_from_slice(tag.as_ref());
        Ok(sealed)
    }

    /// Decrypts the body of a value; `None` when it is not what this key made for this path.
    pub fn open(&self, path: &str, body: &[u8]) -> Option<Vec<u8>> {
        let (salt, rest) = body.split_at_checked(SALT)?;
        let (nonce, rest) = rest.split_at_checked(aead::NONCE_LEN)?;
        let key = self.of_value(salt).ok()?;
        let nonce = aead::Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut bytes = rest.to_vec();
        let length = key.open_in_place(nonce, aead::Aad::from(path.as_bytes()), &mut bytes).ok()?.len();
        bytes.truncate(length);
        Some(bytes)
    }
}

/// What a stored value says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form<'a> {
    /// It is not encrypted.
    Plain,
    /// By `aesgcm`.
    AesGcm {
        /// With the key of this name.
        key: &'a str,
        /// Salt, nonce, ciphertext and tag.
        body: &'a [u8],
    },
    /// By a provider that this program does not have, or cut off.
    Unknown,
}

impl<'a> Form<'a> {
    /// Of a stored value.
    pub fn of(value: &'a [u8]) -> Self {
        if !value.starts_with(ENCRYPTED) {
            return Self::Plain;
        }
        let named = || {
            let rest = value.strip_prefix(AESGCM.as_bytes())?;
            let end = rest.iter().take(MAX_NAME + 1).position(|b| *b == b':')?;
            let (name, body) = rest.split_at_checked(end)?;
            Some(Self::AesGcm { key: std::str::from_utf8(name).ok()?, body: body.get(1..)? })
        };
        named().unwrap_or(Self::Unknown)
    }

    /// Provider and key, for counts.
    pub fn label(&self) -> String {
        match self {
            Self::Plain => "identity".to_owned(),
            Self::AesGcm { key, .. } => format!("aesgcm:{}", key.escape_default()),
            Self::Unknown => "an unknown provider".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: &str = "/registry/core/secrets/default/a";

    fn body(sealed: &[u8]) -> Vec<u8> {
        match Form::of(sealed) {
            Form::AesGcm { body, .. } => body.to_vec(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_sealed_opens_with_its_key_and_path_and_nothing_else() {
        let key = Key::new("one", &[1; 32]);
        for plain in [&b""[..], b"x", &[7; 100_000]] {
            let sealed = key.seal(PATH, plain).unwrap();
            assert!(sealed.starts_with(b"k8s:enc:aesgcm:v1:one:"));
            assert!(sealed.len() <= plain.len() + MAX_OVERHEAD);
            assert_eq!(Form::of(&sealed).label(), "aesgcm:one");
            let body = body(&sealed);
            assert_eq!(key.open(PATH, &body).unwrap(), plain);
            assert!(key.open("/registry/core/secrets/default/b", &body).is_none(), "another path");
            assert!(Key::new("one", &[2; 32]).open(PATH, &body).is_none(), "another key of the same name");
            assert!(key.open(PATH, &body[..body.len() - 1]).is_none());
        }
        assert_ne!(key.seal(PATH, b"x").unwrap(), key.seal(PATH, b"x").unwrap());
    }

    #[test]
    fn any_flipped_bit_and_any_cut_is_noticed() {
        let key = Key::new("one", &[1; 16]);
        let good = body(&key.seal(PATH, b"password").unwrap());
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                assert!(key.open(PATH, &bad).is_none(), "bit {bit} of byte {at}");
            }
            assert!(key.open(PATH, &good[..at]).is_none(), "cut at {at}");
        }
    }

    #[test]
    fn forms_are_told_apart() {
        let long = format!("{AESGCM}{}:xxxx", "n".repeat(MAX_NAME + 1));
        for (value, label) in [
            (&b"{\"a\":1}"[..], "identity"),
            (b"", "identity"),
            (b"k8s:enc", "identity"),
            (b"k8s:enc:", "an unknown provider"),
            (b"k8s:enc:aescbc:v1:k:xxx", "an unknown provider"),
            (b"k8s:enc:aesgcm:v1:k", "an unknown provider"),
            (b"k8s:enc:aesgcm:v1:\xff:", "an unknown provider"),
            (b"k8s:enc:aesgcm:v1:k:", "aesgcm:k"),
            (b"k8s:enc:aesgcm:v1:k\x1b[2J:", "aesgcm:k\\u{1b}[2J"),
            (long.as_bytes(), "an unknown provider"),
        ] {
            assert_eq!(Form::of(value).label(), label, "{value:?}");
        }
    }

    #[test]
    fn nothing_shows_a_key() {
        assert_eq!(format!("{:?}", Key::new("one", b"0123456789abcdef")), "Key(one)");
        assert_ne!(Key::new("one", &[1; 32]), Key::new("one", &[2; 32]));
        assert_eq!(Key::new("one", &[1; 32]), Key::new("one", &[1; 32]));
    }
}
