//! A certificate with its key that can be exchanged while it is in use: new handshakes take the new one, connections
//! that stand go on. In: PEM. Out: what rustls asks for, as a client and as a server.

use anyhow::{Context, Result};
use arc_swap::ArcSwapOption;
use rustls::client::ResolvesClientCert;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{SignatureScheme, sign};
use std::sync::Arc;

/// An exchangeable certificate; by default none yet.
#[derive(Debug, Default)]
pub struct Identity(ArcSwapOption<CertifiedKey>);

impl Identity {
    /// From a certificate (chain) and its key.
    pub fn new(cert_pem: &str, key_pem: &str) -> Result<Self> {
        Ok(Self(ArcSwapOption::from_pointee(certified(cert_pem, key_pem)?)))
    }

    /// From now on this one. A certificate that cannot be used leaves the old one in place.
    pub fn replace(&self, cert_pem: &str, key_pem: &str) -> Result<()> {
        self.0.store(Some(Arc::new(certified(cert_pem, key_pem)?)));
        Ok(())
    }
}

impl ResolvesClientCert for Identity {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }

    fn has_certs(&self) -> bool {
        self.0.load().is_some()
    }
}

impl ResolvesServerCert for Identity {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }
}

fn certified(cert_pem: &str, key_pem: &str) -> Result<CertifiedKey> {
    let chain = CertificateDer::pem_slice_iter(cert_pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .context("reading a certificate")?;
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).context("reading a certificate's key")?;
    let certified: sign::CertifiedKey =
        CertifiedKey::from_der(chain, key, &ring::default_provider()).context("a certificate and its key")?;
    Ok(certified)
}
