//! Answers to an authority's questions whether a name is ours: a text over HTTP (HTTP-01, RFC 8555 section 8.3), or a
//! certificate for a protocol of its own (TLS-ALPN-01, RFC 8737). In: what an order says. Out: what the data plane sends.

use arc_swap::ArcSwap;
use rustls::sign::CertifiedKey;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Where authorities ask over HTTP.
pub const PATH: &str = "/.well-known/acme-challenge/";
/// The protocol by which they ask over TLS.
pub const ALPN: &[u8] = b"acme-tls/1";

/// Questions that may be asked at the moment.
#[derive(Debug, Default)]
pub struct Challenges {
    /// None at all: what every request looks at.
    some: AtomicBool,
    open: ArcSwap<Open>,
}

#[derive(Debug, Default, Clone)]
struct Open {
    /// Token → the whole answer.
    texts: HashMap<Box<str>, Arc<str>>,
    /// Server name → the certificate that is the answer.
    certificates: HashMap<Box<str>, Arc<CertifiedKey>>,
}

impl Challenges {
    fn change(&self, change: impl Fn(&mut Open)) {
        self.open.rcu(|open| {
            let mut open = Open::clone(open);
            change(&mut open);
            open
        });
        let open = self.open.load();
        self.some.store(!open.texts.is_empty() || !open.certificates.is_empty(), Ordering::Release);
    }

    /// From now on a token is answered so.
    pub fn answer(&self, token: &str, text: &str) {
        self.change(|open| drop(open.texts.insert(token.into(), text.into())));
    }

    /// From now on a name is answered by a certificate that holds this digest.
    ///
    /// # Errors
    /// When no such certificate can be made.
    pub fn show(&self, name: &str, digest: &[u8]) -> anyhow::Result<()> {
        let key = rcgen::KeyPair::generate()?;
        let mut params = rcgen::CertificateParams::new(vec![name.to_owned()])?;
        params.custom_extensions = vec![rcgen::CustomExtension::new_acme_identifier(digest)];
        let certificate = params.self_signed(&key)?;
        let private = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der());
        let private = crate::traffic::tls::provider().key_provider.load_private_key(private.into())?;
        // Not checked against each other: what reads certificates for that knows no such extension, and it is critical.
        let certified = Arc::new(CertifiedKey::new(vec![certificate.der().clone()], private));
        self.change(|open| drop(open.certificates.insert(name.into(), Arc::clone(&certified))));
        Ok(())
    }

    /// All questions have been asked.
    pub fn clear(&self) {
        self.change(|open| *open = Open::default());
    }

    /// The answer to a request for this path, if it is such a question.
    pub fn text(&self, path: &str) -> Option<Arc<str>> {
        if !self.some.load(Ordering::Acquire) {
            return None;
        }
        self.open.load().texts.get(path.strip_prefix(PATH)?).cloned()
    }

    /// The certificate for a name, if it is being asked for.
    pub fn certificate(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        self.open.load().certificates.get(name).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_open_is_answered() {
        let all = Challenges::default();
        assert_eq!(all.text("/.well-known/acme-challenge/t"), None);
        all.answer("t", "t.thumb");
        all.show("a.example", &[7; 32]).unwrap();
        assert_eq!(all.text("/.well-known/acme-challenge/t").as_deref(), Some("t.thumb"));
        assert_eq!(all.text("/.well-known/acme-challenge/u"), None);
        assert_eq!(all.text("/t"), None);
        let shown = all.certificate("a.example").unwrap();
        // id-pe-acmeIdentifier, critical, with the digest as an octet string in it.
        let holds = |part: &[u8]| shown.cert[0].windows(part.len()).any(|w| w == part);
        assert!(holds(&[0x2b, 6, 1, 5, 5, 7, 1, 31]) && holds(&[&[4, 32][..], &[7; 32]].concat()));
        all.clear();
        assert!(all.text("/.well-known/acme-challenge/t").is_none() && all.certificate("a.example").is_none());
    }
}
