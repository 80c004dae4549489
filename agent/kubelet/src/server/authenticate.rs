//! TLS of the kubelet's API, and who is at the other end.

use anyhow::Context;
use causeway_api::identity::{GROUP_MASTERS, USER_APISERVER};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::{ResolvesServerCert, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use std::sync::Arc;
use x509_parser::prelude::{FromDer, X509Certificate};

/// A server configuration that asks for certificates of the authority and takes callers without one for unknown.
pub fn tls(certificate: Arc<dyn ResolvesServerCert>, client_ca_pem: &str) -> anyhow::Result<ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(client_ca_pem.as_bytes()) {
        roots.add(cert.context("reading the kubelet's client authority")?)?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .context("making the verifier of client certificates of the kubelet's API")?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(certificate);
    // Upgrades (exec, attach) exist in HTTP/1.1 only.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// Whether a (verified) certificate names the API server or an administrator.
pub fn trusted(chain: Option<&[CertificateDer<'_>]>) -> bool {
    let Some(first) = chain.and_then(<[_]>::first) else { return false };
    let Ok((_, certificate)) = X509Certificate::from_der(first) else { return false };
    let subject = certificate.subject();
    let name = subject.iter_common_name().any(|a| a.as_str() == Ok(USER_APISERVER));
    name || subject.iter_organization().any(|a| a.as_str() == Ok(GROUP_MASTERS))
}
