//! Certificates: from TLS Secrets to keys that rustls can sign with, found by server name.

use super::staple;
use crate::route::{HostPattern, ObjectKey};
use k8s_openapi::api::core::v1::Secret;
use rpds::HashTrieMapSync;
use rustls::crypto::ring;
use rustls::sign::CertifiedKey;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// The key of a Secret in which the certificate chain is.
pub const CERTIFICATE: &str = "tls.crt";
/// The key of a Secret in which the private key is.
pub const KEY: &str = "tls.key";

/// Why a Secret cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertError {
    /// `tls.crt` or `tls.key` is not there.
    #[error("it has no {0:?}; a kubernetes.io/tls Secret needs tls.crt and tls.key")]
    Missing(&'static str),
    /// `tls.crt` holds no certificate.
    #[error("tls.crt holds no PEM certificate")]
    NoCertificate,
    /// `tls.key` holds no key.
    #[error("tls.key holds no PEM private key (PKCS#8, PKCS#1 or SEC1)")]
    NoKey,
    /// The key is broken, of a kind we cannot sign with, or belongs to another certificate.
    #[error("certificate and key cannot be used together: {0}")]
    Unusable(String),
}

/// Certificates by host. A copy shares what is the same.
#[derive(Debug, Clone, Default)]
pub struct Certificates {
    exact: HashTrieMapSync<Box<str>, Arc<CertifiedKey>>,
    wildcard: HashTrieMapSync<Box<str>, Arc<CertifiedKey>>,
    default: Option<Arc<CertifiedKey>>,
}

/// A Secret as it was read, and what came of it.
type Known = (Arc<Secret>, Result<Arc<CertifiedKey>, CertError>);

/// Keys that have been read already: a Secret that has not changed is not parsed again.
#[derive(Debug, Default)]
pub struct CertCache {
    keys: HashMap<ObjectKey, Known>,
    used: HashSet<ObjectKey>,
}

impl Certificates {
    /// Sets a host's certificate; for [`HostPattern::Any`] that of all hosts without one.
    pub fn insert(&mut self, host: &HostPattern, key: Arc<CertifiedKey>) {
        match host {
            HostPattern::Exact(name) => self.exact.insert_mut(name.clone(), key),
            HostPattern::Wildcard(suffix) => self.wildcard.insert_mut(suffix.clone(), key),
            HostPattern::Any => self.default = Some(key),
        }
    }

    /// Adds a certificate for a host that has none yet.
    pub fn add(&mut self, host: &HostPattern, key: Arc<CertifiedKey>) {
        let taken = match host {
            HostPattern::Exact(name) => self.exact.contains_key(name),
            HostPattern::Wildcard(suffix) => self.wildcard.contains_key(suffix),
            HostPattern::Any => self.default.is_some(),
        };
        if !taken {
            self.insert(host, key);
        }
    }

    /// Takes a host's certificate away.
    pub fn remove(&mut self, host: &HostPattern) {
        match host {
            HostPattern::Exact(name) => drop(self.exact.remove_mut(name)),
            HostPattern::Wildcard(suffix) => drop(self.wildcard.remove_mut(suffix)),
            HostPattern::Any => self.default = None,
        }
    }

    /// The certificate for a server name (lower case).
    pub fn find(&self, name: Option<&str>) -> Option<&Arc<CertifiedKey>> {
        self.named(name).or(self.default.as_ref())
    }

    /// The same, but not that of names without one.
    pub fn named(&self, name: Option<&str>) -> Option<&Arc<CertifiedKey>> {
        name.and_then(|n| self.exact.get(n).or_else(|| self.wildcard.get(n.split_once('.')?.1)))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.exact.size() + self.wildcard.size() + usize::from(self.default.is_some())
    }

    /// None at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl CertCache {
    /// The key of a Secret.
    pub fn get(&mut self, key: &ObjectKey, secret: &Arc<Secret>) -> Result<Arc<CertifiedKey>, CertError> {
        self.used.insert(key.clone());
        if let Some((known, result)) = self.keys.get(key)
            && (Arc::ptr_eq(known, secret) || known.data == secret.data)
        {
            return result.clone();
        }
        let result = read(secret).map(Arc::new);
        self.keys.insert(key.clone(), (Arc::clone(secret), result.clone()));
        result
    }

    /// Forgets the key of a Secret.
    pub fn forget(&mut self, key: &ObjectKey) {
        self.keys.remove(key);
        self.used.remove(key);
    }

    /// Forgets what was not asked for since the last time.
    pub fn sweep(&mut self) {
        let used = std::mem::take(&mut self.used);
        self.keys.retain(|k, _| used.contains(k));
    }
}

/// Reads a kubernetes.io/tls Secret and checks that its two halves belong together.
pub fn read(secret: &Secret) -> Result<CertifiedKey, CertError> {
    let part = |name: &'static str| {
        secret.data.as_ref().and_then(|d| d.get(name)).map(|b| b.0.as_slice()).ok_or(CertError::Missing(name))
    };
    let chain: Vec<_> = rustls_pemfile::certs(&mut part(CERTIFICATE)?)
        .collect::<Result<_, _>>()
        .map_err(|_| CertError::NoCertificate)?;
    if chain.is_empty() {
        return Err(CertError::NoCertificate);
    }
    let key = rustls_pemfile::private_key(&mut part(KEY)?).ok().flatten().ok_or(CertError::NoKey)?;
    let mut pair = CertifiedKey::from_der(chain, key, &ring::default_provider())
        .map_err(|e| CertError::Unusable(e.to_string()))?;
    pair.ocsp = part(staple::STAPLE).ok().filter(|bytes| staple::is_one(bytes)).map(<[u8]>::to_vec);
    Ok(pair)
}

/// A self-signed certificate for connections that no Secret has one for.
pub fn self_signed() -> Result<CertifiedKey, CertError> {
    let unusable = |e: String| CertError::Unusable(e);
    let made = rcgen::generate_simple_self_signed(vec!["causeway-default-certificate.invalid".to_owned()])
        .map_err(|e| unusable(e.to_string()))?;
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    CertifiedKey::from_der(vec![made.cert.der().clone()], key.into(), &ring::default_provider())
        .map_err(|e| unusable(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;

    fn secret(crt: &str, key: &str) -> Arc<Secret> {
        let data = [("tls.crt", crt), ("tls.key", key)];
        let data = data.into_iter().map(|(k, v)| (k.to_owned(), ByteString(v.as_bytes().to_vec()))).collect();
        Arc::new(Secret { data: Some(data), ..Secret::default() })
    }

    #[test]
    fn only_pairs_that_belong_together_are_taken() {
        let a = rcgen::generate_simple_self_signed(vec!["a.example".to_owned()]).unwrap();
        let b = rcgen::generate_simple_self_signed(vec!["b.example".to_owned()]).unwrap();
        let (a_crt, a_key) = (a.cert.pem(), a.signing_key.serialize_pem());
        assert!(read(&secret(&a_crt, &a_key)).is_ok());
        assert!(matches!(read(&secret(&a_crt, &b.signing_key.serialize_pem())), Err(CertError::Unusable(_))));
        assert_eq!(read(&secret("nonsense", &a_key)).unwrap_err(), CertError::NoCertificate);
        assert_eq!(read(&secret(&a_crt, "nonsense")).unwrap_err(), CertError::NoKey);
        assert_eq!(read(&Secret::default()).unwrap_err(), CertError::Missing("tls.crt"));
        let broken = a_key.replace('A', "B");
        assert!(read(&secret(&a_crt, &broken)).is_err());

        let mut cache = CertCache::default();
        let name = ObjectKey::new("ns", "s");
        let first = cache.get(&name, &secret(&a_crt, &a_key)).unwrap();
        assert!(Arc::ptr_eq(&first, &cache.get(&name, &secret(&a_crt, &a_key)).unwrap()));
        cache.sweep();
        cache.sweep();
        assert!(cache.keys.is_empty());
    }

    #[test]
    fn found_by_name() {
        let mut all = Certificates::default();
        assert!(all.find(Some("a.b")).is_none());
        let key = |_: &str| Arc::new(self_signed().unwrap());
        let (exact, wild, default) = (key("e"), key("w"), key("d"));
        all.insert(&HostPattern::parse(Some("a.b.c")).unwrap(), exact.clone());
        all.insert(&HostPattern::parse(Some("*.b.c")).unwrap(), wild.clone());
        all.insert(&HostPattern::Any, default.clone());
        for (name, want) in
            [(Some("a.b.c"), &exact), (Some("x.b.c"), &wild), (Some("x.y.b.c"), &default), (None, &default)]
        {
            assert!(Arc::ptr_eq(all.find(name).unwrap(), want), "{name:?}");
        }
    }
}
