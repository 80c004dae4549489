//! Whom to trust: a machine that wants to join knows an address, a token, and maybe the hash of the authority's key. In:
//! those. Out: the authority's certificate, if the cluster at that address proves that it is the right one.
//!
//! The cluster's information is read from a server that is not trusted yet, and nothing secret is sent. It is believed if
//! it is signed with the token (somebody there knows the token), and, where a hash is given, if the authority in it has
//! that hash (a stolen token is then not enough to deceive a machine). Both as kubeadm does.

use crate::connect::client_with;
use anyhow::{Context, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use causeway_api::bootstrap_token::{self, CLUSTER_INFO, CLUSTER_INFO_KEY, CLUSTER_INFO_NAMESPACE, SIGNATURE_PREFIX};
use http::Uri;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::config::Kubeconfig;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// A new token's signature comes a moment after the token.
const SIGNED: Duration = Duration::from_secs(15);
/// A server may be starting just as well.
const REACHED: Duration = Duration::from_secs(30);

/// The authority's certificate of the cluster at `url`.
pub async fn authority(url: &Uri, token: &str, ca_hash: Option<&str>) -> Result<String> {
    let Some((id, secret)) = bootstrap_token::split(token) else {
        bail!(
            "the token does not look like one (abcdef.0123456789abcdef); make one on the server: causeway token create"
        );
    };
    if let Some(hash) = ca_hash {
        check_hash_form(hash)?;
    }
    let maps: Api<ConfigMap> = Api::namespaced(client_with(url, untrusting()?, None)?, CLUSTER_INFO_NAMESPACE);
    let begin = Instant::now();
    loop {
        let pause = match maps.get(CLUSTER_INFO).await {
            Ok(info) => match judge(&info, id, secret, ca_hash)? {
                Some(ca_pem) => return Ok(ca_pem),
                None if begin.elapsed() > SIGNED => bail!(
                    "the cluster at {url} does not know the token {id}: it is wrong or has expired; make a new one on \
                     the server: causeway token create"
                ),
                None => Duration::from_millis(250),
            },
            Err(kube::Error::Api(status)) => bail!("the server at {url} does not tell about its cluster: {status}"),
            Err(error) if begin.elapsed() > REACHED => {
                return Err(error).with_context(|| format!("reaching the server at {url}"));
            }
            Err(error) => {
                tracing::info!("reaching the server at {url}: {error}; trying again");
                Duration::from_secs(1)
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// The authority in a cluster's information, if it is to be believed; nothing when it is not signed with this token.
fn judge(info: &ConfigMap, id: &str, secret: &str, ca_hash: Option<&str>) -> Result<Option<String>> {
    let empty = Default::default();
    let data = info.data.as_ref().unwrap_or(&empty);
    let text = data.get(CLUSTER_INFO_KEY).context("the cluster's information is empty")?;
    let config = Kubeconfig::from_yaml(text).context("the cluster's information is no kubeconfig")?;
    let cluster = config.clusters.into_iter().next().and_then(|c| c.cluster);
    let encoded = cluster.and_then(|c| c.certificate_authority_data).context("the cluster names no authority")?;
    let ca_pem = String::from_utf8(STANDARD.decode(encoded)?).context("the cluster's authority is no PEM text")?;
    if let Some(wanted) = ca_hash {
        let found = hash(&ca_pem)?;
        if !found.eq_ignore_ascii_case(wanted) {
            bail!(
                "this is not the right cluster: its authority has the hash {found}, not {wanted} as --ca-hash wants; \
                 compare it with what the server says: causeway token create"
            );
        }
    }
    let Some(signed) = data.get(&format!("{SIGNATURE_PREFIX}{id}")) else { return Ok(None) };
    if *signed != bootstrap_token::signature(id, secret, text) {
        bail!("the token's secret part is not the one that the cluster knows for {id}; is it copied whole?");
    }
    Ok(Some(ca_pem))
}

fn check_hash_form(hash: &str) -> Result<()> {
    let hex = hash.strip_prefix("sha256:").unwrap_or("");
    if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        bail!("--ca-hash {hash:?} must look like sha256: and 64 hexadecimal digits");
    }
    Ok(())
}

/// The hash of an authority's public key, as kubeadm writes it: `sha256:` and hexadecimal digits.
pub fn hash(ca_pem: &str) -> Result<String> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(ca_pem.as_bytes()).context("reading the cluster's authority")?;
    let certificate = pem.parse_x509().context("reading the cluster's authority")?;
    let digest = Sha256::digest(certificate.tbs_certificate.subject_pki.raw);
    Ok(format!("sha256:{}", digest.iter().map(|b| format!("{b:02x}")).collect::<String>()))
}

/// TLS that takes any certificate: only for reading what proves itself.
fn untrusting() -> Result<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    Ok(ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        .with_no_client_auth())
}

#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(ca_pem: &str, signed_with: Option<(&str, &str)>) -> ConfigMap {
        let text = format!(
            "apiVersion: v1\nkind: Config\nclusters: [{{name: '', cluster: {{server: 'https://10.0.0.1:6443', \
             certificate-authority-data: {}}}}}]\n",
            STANDARD.encode(ca_pem)
        );
        let mut data = std::collections::BTreeMap::new();
        if let Some((id, secret)) = signed_with {
            data.insert(format!("{SIGNATURE_PREFIX}{id}"), bootstrap_token::signature(id, secret, &text));
        }
        data.insert(CLUSTER_INFO_KEY.to_owned(), text);
        ConfigMap { data: Some(data), ..ConfigMap::default() }
    }

    fn ca() -> String {
        let key = rcgen::KeyPair::generate().unwrap();
        rcgen::CertificateParams::default().self_signed(&key).unwrap().pem()
    }

    #[test]
    fn only_what_proves_itself_is_believed() {
        let (id, secret) = ("abcdef", "0123456789abcdef");
        let (right, other) = (ca(), ca());
        let pinned = hash(&right).unwrap();
        assert!(check_hash_form(&pinned).is_ok());
        for bad in ["", "sha256:", "md5:00", &pinned[7..], &format!("{pinned}0")] {
            assert!(check_hash_form(bad).is_err(), "{bad}");
        }
        let signed = Some((id, secret));
        assert_eq!(judge(&info(&right, signed), id, secret, None).unwrap(), Some(right.clone()));
        assert_eq!(judge(&info(&right, signed), id, secret, Some(&pinned)).unwrap(), Some(right.clone()));
        // Another cluster, even one that knows the token, is not the pinned one.
        let error = judge(&info(&other, signed), id, secret, Some(&pinned)).unwrap_err().to_string();
        assert!(error.contains("--ca-hash"), "{error}");
        // The pinned authority alone does not prove that it knows the token.
        assert_eq!(judge(&info(&right, None), id, secret, Some(&pinned)).unwrap(), None);
        let forged = info(&right, Some((id, "fedcba9876543210")));
        assert!(judge(&forged, id, secret, None).is_err());
    }
}
