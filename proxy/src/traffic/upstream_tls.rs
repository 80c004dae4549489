//! TLS to backends that must prove themselves (BackendTLSPolicy): below Pingora's HTTP, since Pingora knows neither
//! alternative names nor one set of authorities a policy. In: the terms of a backend. Out: connections that have kept
//! them.
//!
//! Pingora keeps no such connection for another request: it knows kept ones by their socket, which these do not show.

use super::tls::provider;
use crate::route::upstream::{BackendTls, SubjectName};
use pingora::{Error, ErrorType, OrErr as _};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use std::sync::{Arc, LazyLock};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Makes a connection one that has kept a backend's terms; with HTTP/2 agreed on by ALPN, or HTTP/1.1.
pub async fn handshake<S>(tcp: S, terms: &BackendTls, h2: bool) -> pingora::Result<TlsStream<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let failed = |what: String| Error::explain(ErrorType::TLSHandshakeFailure, what);
    let config = config(terms, h2).map_err(|e| failed(format!("configuring TLS to the backend: {e}")))?;
    let name = ServerName::try_from(terms.sni.to_string())
        .map_err(|_| failed(format!("{:?} is no server name", terms.sni)))?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await;
    stream.or_err(ErrorType::TLSHandshakeFailure, "the backend did not prove itself")
}

fn config(terms: &BackendTls, h2: bool) -> Result<ClientConfig, String> {
    let verifier = Verifier { roots: roots(terms)?, names: terms.names.clone() };
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match &terms.client {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain.as_bytes()).collect();
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|e| e.to_string())?;
            builder.with_client_auth_cert(chain.map_err(|e| e.to_string())?, key).map_err(|e| e.to_string())?
        }
    };
    config.alpn_protocols = vec![if h2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
    Ok(config)
}

fn roots(terms: &BackendTls) -> Result<Arc<RootCertStore>, String> {
    /// The authorities of this machine, read once.
    static SYSTEM: LazyLock<Arc<RootCertStore>> = LazyLock::new(|| {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        Arc::new(store)
    });
    let Some(own) = &terms.roots else { return Ok(Arc::clone(&SYSTEM)) };
    let mut store = RootCertStore::empty();
    for root in own {
        store.add(CertificateDer::from(root.as_slice())).map_err(|e| e.to_string())?;
    }
    Ok(Arc::new(store))
}

/// Believes certificates that one of the authorities has signed for the server name, or for one of the names that are
/// asked for in its place.
#[derive(Debug)]
struct Verifier {
    roots: Arc<RootCertStore>,
    names: Vec<SubjectName>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let certificate = ParsedCertificate::try_from(leaf)?;
        let algorithms = provider().signature_verification_algorithms;
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &certificate,
            &self.roots,
            intermediates,
            now,
            algorithms.all,
        )?;
        if self.names.is_empty() {
            verify_server_name(&certificate, name)?;
        } else {
            let parsed = webpki::EndEntityCert::try_from(leaf).map_err(|_| CertificateError::BadEncoding)?;
            let fits = |wanted: &SubjectName| match wanted {
                SubjectName::Uri(uri) => parsed.valid_uri_names().any(|own| *own == **uri),
                SubjectName::Dns(host) => parsed.valid_dns_names().any(|own| same_host(own, host)),
            };
            if !self.names.iter().any(fits) {
                return Err(CertificateError::NotValidForName.into());
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Whether a name in a certificate is a host that is asked for; either may begin with a wildcard label.
fn same_host(own: &str, wanted: &str) -> bool {
    let (own, wanted) = (own.to_ascii_lowercase(), wanted.to_ascii_lowercase());
    let under = |name: &str, pattern: &str| {
        pattern.strip_prefix("*.").is_some_and(|suffix| {
            name.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && label != "*" && rest == suffix)
        })
    };
    own == wanted || under(&own, &wanted) || under(&wanted, &own)
}

#[cfg(test)]
mod tests {
    use super::same_host;

    #[test]
    fn wildcards_stand_for_one_label() {
        assert!(same_host("a.example", "A.example"));
        assert!(same_host("*.example", "a.example"));
        assert!(same_host("a.example", "*.example"));
        assert!(same_host("*.example", "*.example"));
        assert!(!same_host("*.example", "a.b.example"));
        assert!(!same_host("*.example", "example"));
        assert!(!same_host("b.example", "a.example"));
    }
}
