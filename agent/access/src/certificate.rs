//! Asking the cluster for a certificate: a key is made here and stays here, a request goes to the API, somebody there
//! approves and signs it. In: a client, what the certificate is for. Out: certificate and key.

use anyhow::{Context, Result, bail};
use causeway_api::certificates::{NODE_USER_PREFIX, SIGNER_KUBELET_CLIENT, SIGNER_KUBELET_SERVING};
use causeway_api::identity::GROUP_NODES;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use kube::api::{Api, ObjectMeta, PostParams};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use std::time::Duration;
use tokio::time::Instant;

/// How often it is asked whether the certificate is there.
const ASK: Duration = Duration::from_millis(250);
/// After this long without one, it is said that somebody has to approve.
const REMIND: Duration = Duration::from_secs(30);

/// A certificate and its key, as PEM.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The certificate.
    pub cert_pem: String,
    /// Its key.
    pub key_pem: String,
}

/// What a certificate is for.
#[derive(Debug, Clone)]
pub enum Purpose {
    /// The node towards the API.
    Client,
    /// The kubelet as a server, at these names and addresses.
    Serving(Vec<String>),
}

/// Asks for a certificate of a node and waits until it is issued, or refused.
pub async fn request(client: &kube::Client, node: &str, purpose: &Purpose, life: Option<Duration>) -> Result<Issued> {
    let (signer, usage, prefix, names) = match purpose {
        Purpose::Client => (SIGNER_KUBELET_CLIENT, "client auth", "node-csr-", &[][..]),
        Purpose::Serving(names) => (SIGNER_KUBELET_SERVING, "server auth", "csr-", names.as_slice()),
    };
    let key = KeyPair::generate().context("making a key")?;
    let mut params = CertificateParams::new(names).context("the names of a certificate")?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, GROUP_NODES);
    params.distinguished_name.push(DnType::CommonName, format!("{NODE_USER_PREFIX}{node}"));
    let pem = params.serialize_request(&key).and_then(|r| r.pem()).context("making a signing request")?;
    let wanted = CertificateSigningRequest {
        metadata: ObjectMeta { generate_name: Some(prefix.to_owned()), ..ObjectMeta::default() },
        spec: CertificateSigningRequestSpec {
            request: ByteString(pem.into_bytes()),
            signer_name: signer.to_owned(),
            usages: Some(vec!["digital signature".to_owned(), usage.to_owned()]),
            expiration_seconds: life.and_then(|l| i32::try_from(l.as_secs()).ok()),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    };
    let requests: Api<CertificateSigningRequest> = Api::all(client.clone());
    let made = requests.create(&PostParams::default(), &wanted).await.context("asking for a certificate")?;
    let name = made.metadata.name.unwrap_or_default();
    let cert_pem = wait(&requests, &name).await?;
    Ok(Issued { cert_pem, key_pem: key.serialize_pem() })
}

async fn wait(requests: &Api<CertificateSigningRequest>, name: &str) -> Result<String> {
    let mut remind = Instant::now() + REMIND;
    loop {
        match requests.get(name).await {
            Ok(request) => {
                let status = request.status.unwrap_or_default();
                if let Some(certificate) = status.certificate.filter(|c| !c.0.is_empty()) {
                    return String::from_utf8(certificate.0).context("the certificate that was issued is no PEM text");
                }
                let bad = status.conditions.into_iter().flatten().find(|c| c.type_ == "Denied" || c.type_ == "Failed");
                if let Some(bad) = bad {
                    let why = bad.message.unwrap_or_default();
                    bail!("certificate signing request {name} was refused ({}): {why}", bad.type_);
                }
            }
            Err(kube::Error::Api(status)) if status.code == 404 => {
                bail!("certificate signing request {name} was deleted before it was decided")
            }
            // The API may be away for a moment; the request is kept there.
            Err(error) => tracing::debug!(%error, name, "asking for the certificate"),
        }
        if Instant::now() >= remind {
            tracing::warn!("waiting for somebody to approve the request: kubectl certificate approve {name}");
            remind += REMIND;
        }
        tokio::time::sleep(ASK).await;
    }
}

/// First and last second in which a certificate (PEM) is good.
pub fn validity(cert_pem: &str) -> Option<(i64, i64)> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(cert_pem.as_bytes()).ok()?;
    let certificate = pem.parse_x509().ok()?;
    let validity = certificate.validity();
    Some((validity.not_before.timestamp(), validity.not_after.timestamp()))
}

/// When a certificate is to be renewed: in the last third of its life. Pure.
pub fn renew_at((from, to): (i64, i64)) -> i64 {
    to - (to - from) / 3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_third_is_for_renewal() {
        assert_eq!(renew_at((0, 300)), 200);
        assert!(renew_at((1000, 1600)) > 1000);
    }
}
