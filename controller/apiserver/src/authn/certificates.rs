//! Client certificates: two authorities may certify clients, the cluster's and that of front proxies, and which one did
//! says what a certificate is good for.
//!
//! In: the certificates that a peer shows in TLS. Out: connections that one of the authorities vouches for, and
//! [`Seen`], what requests are told of it.

use crate::pki::user_of_certificate;
use causeway_api::identity::UserInfo;
use http::Extensions;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};
use std::sync::Arc;

/// Who the transport says the caller is (in-process clients, client certificates of the cluster's authority).
#[derive(Debug, Clone)]
pub struct Identity {
    /// The caller.
    pub user: UserInfo,
    /// The end of its certificate, in seconds since the epoch.
    end: Option<i64>,
}

impl Identity {
    /// Of a client in this process.
    pub fn of(user: UserInfo) -> Self {
        Self { user, end: None }
    }

    /// Connections may live longer than the certificates they began with.
    pub fn holds(&self) -> bool {
        self.end.is_none_or(|end| jiff::Timestamp::now().as_second() <= end)
    }
}

/// The certificates that the other end has shown, its own first, and holds the key of.
#[derive(Debug, Clone)]
pub struct Presented(pub Arc<[CertificateDer<'static>]>);

/// What a connection says about its requests' caller.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    presented: Option<Presented>,
    identity: Option<Identity>,
}

impl Seen {
    /// Notes it for authentication.
    pub fn note(&self, extensions: &mut Extensions) {
        if let Some(presented) = &self.presented {
            extensions.insert(presented.clone());
        }
        if let Some(identity) = &self.identity {
            extensions.insert(identity.clone());
        }
    }
}

/// Accepts certificates of either authority, and connections without one.
#[derive(Debug)]
pub struct Authorities {
    cluster: Arc<dyn ClientCertVerifier>,
    proxies: Option<Arc<dyn ClientCertVerifier>>,
    subjects: Vec<DistinguishedName>,
}

impl Authorities {
    /// From the roots of the cluster, and of front proxies where there are any.
    pub fn new(cluster: RootCertStore, proxies: Option<RootCertStore>) -> anyhow::Result<Self> {
        let verifier = |roots: RootCertStore| {
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::new(ring::default_provider())).build()
        };
        let subjects = [Some(&cluster), proxies.as_ref()].into_iter().flatten().flat_map(RootCertStore::subjects);
        let subjects = subjects.collect();
        Ok(Self { subjects, cluster: verifier(cluster)?, proxies: proxies.map(verifier).transpose()? })
    }

    /// What a chain that TLS has accepted says.
    pub fn seen(&self, chain: &[CertificateDer<'_>]) -> Seen {
        let Some((own, others)) = chain.split_first() else { return Seen::default() };
        let of_cluster = self.cluster.verify_client_cert(own, others, UnixTime::now()).is_ok();
        let user = if of_cluster { user_of_certificate(own) } else { None };
        let presented = chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
        Seen { presented: Some(Presented(presented)), identity: user.map(|user| Identity { user, end: end_of(own) }) }
    }
}

/// What cannot be read has ended.
fn end_of(certificate: &CertificateDer<'_>) -> Option<i64> {
    let parsed = x509_parser::parse_x509_certificate(certificate);
    Some(parsed.map_or(0, |(_, parsed)| parsed.validity().not_after.timestamp()))
}

impl ClientCertVerifier for Authorities {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.subjects
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn verify_client_cert(
        &self,
        own: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let by_cluster = self.cluster.verify_client_cert(own, others, now);
        match &self.proxies {
            Some(proxies) if by_cluster.is_err() => proxies.verify_client_cert(own, others, now),
            _ => by_cluster,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        own: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.cluster.verify_tls12_signature(message, own, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        own: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.cluster.verify_tls13_signature(message, own, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.cluster.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_does_not_outlive_its_certificate() {
        let with = |end| Identity { user: UserInfo::admin(), end };
        assert!(Identity::of(UserInfo::admin()).holds() && with(Some(i64::MAX)).holds());
        assert!(!with(Some(1)).holds());
        assert_eq!(end_of(&CertificateDer::from_slice(b"no certificate")), Some(0));
    }
}
