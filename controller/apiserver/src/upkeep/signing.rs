//! The signer: it alone, besides the server's own certificates, uses the authority's key, so it lives where the key is.
//! In: certificate signing requests that somebody approved. Out: their certificates, or a condition `Failed` that says
//! why not. Each signer name has its own rules, checked again here whoever approved.

use crate::pki::Pki;
use causeway_api::certificates::{
    self, NODE_USER_PREFIX, SIGNER_CLIENT, SIGNER_KUBELET_CLIENT, SIGNER_KUBELET_SERVING,
};
use futures::StreamExt;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::watcher;
use rcgen::ExtendedKeyUsagePurpose;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Who approves does it now and then in the same moment; the second try finds the first one's certificate.
const RETRY: Duration = Duration::from_secs(1);

/// Signs until shutdown.
pub async fn run(client: kube::Client, pki: Arc<Pki>, shutdown: CancellationToken) {
    let requests: Api<CertificateSigningRequest> = Api::all(client);
    let mut stream = causeway_api::watch::applied(requests.clone(), watcher::Config::default());
    loop {
        let next = tokio::select! {
            next = stream.next() => next,
            () = shutdown.cancelled() => return,
        };
        match next {
            Some(Ok(request)) if is_due(&request) => {
                while let Err(error) = answer(&requests, &pki, &request).await {
                    let name = request.metadata.name.as_deref().unwrap_or("");
                    // Gone or decided by now: a newer state of it comes by the watch.
                    if matches!(&error, kube::Error::Api(s) if (400..500).contains(&s.code)) {
                        tracing::debug!(%error, name, "certificate not handed over");
                        break;
                    }
                    tracing::warn!(%error, name, "certificate not handed over; trying again");
                    tokio::select! {
                        () = tokio::time::sleep(RETRY) => {}
                        () = shutdown.cancelled() => return,
                    }
                }
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => tracing::debug!(%error, "watching certificate signing requests"),
            None => return,
        }
    }
}

/// Approved, ours to sign, and neither signed nor failed.
fn is_due(request: &CertificateSigningRequest) -> bool {
    let status = request.status.clone().unwrap_or_default();
    let has = |type_: &str| status.conditions.iter().flatten().any(|c| c.type_ == type_ && c.status == "True");
    let ours = [SIGNER_CLIENT, SIGNER_KUBELET_CLIENT, SIGNER_KUBELET_SERVING];
    let signed = status.certificate.as_ref().is_some_and(|c| !c.0.is_empty());
    ours.contains(&request.spec.signer_name.as_str())
        && has("Approved")
        && !has("Denied")
        && !has("Failed")
        && !signed
        && request.metadata.deletion_timestamp.is_none()
}

async fn answer(
    requests: &Api<CertificateSigningRequest>,
    pki: &Pki,
    request: &CertificateSigningRequest,
) -> Result<(), kube::Error> {
    let name = request.metadata.name.as_deref().unwrap_or("");
    let status = match sign(pki, request) {
        Ok(pem) => {
            tracing::info!(name, signer = request.spec.signer_name, "certificate issued");
            json!({ "certificate": k8s_openapi::ByteString(pem.into_bytes()) })
        }
        Err(why) => {
            tracing::warn!(name, why, "certificate refused");
            let mut conditions = json!(request.status.as_ref().and_then(|s| s.conditions.clone()));
            let now = crate::engine::now_text();
            if let Some(all) = conditions.as_array_mut() {
                all.push(json!({
                    "type": "Failed", "status": "True", "reason": "SignerValidationFailure", "message": why,
                    "lastUpdateTime": now, "lastTransitionTime": now,
                }));
            }
            json!({ "conditions": conditions })
        }
    };
    let patch = json!({ "metadata": { "resourceVersion": request.metadata.resource_version }, "status": status });
    requests.patch_status(name, &PatchParams::default(), &Patch::Merge(&patch)).await.map(drop)
}

/// The certificate, if the request keeps to its signer's rules.
fn sign(pki: &Pki, request: &CertificateSigningRequest) -> Result<String, String> {
    let spec = &request.spec;
    let wish = certificates::parse(&spec.request.0)?;
    let usages = spec.usages.as_deref().unwrap_or_default();
    let usage = match spec.signer_name.as_str() {
        SIGNER_KUBELET_CLIENT => {
            wish.kubelet_client(usages)?;
            ExtendedKeyUsagePurpose::ClientAuth
        }
        SIGNER_KUBELET_SERVING => {
            let node = wish.kubelet_serving(usages)?;
            if spec.username.as_deref() != Some(&format!("{NODE_USER_PREFIX}{node}")) {
                return Err(format!("only node {node:?} itself may ask for its serving certificate"));
            }
            ExtendedKeyUsagePurpose::ServerAuth
        }
        _ => {
            certificates::usages_are(usages, "client auth")?;
            if wish.other {
                return Err("names of this kind, or an authority, are not signed".to_owned());
            }
            ExtendedKeyUsagePurpose::ClientAuth
        }
    };
    if wish.organizations.len() > 1 {
        // The library that signs would keep one of them, which is not what was approved.
        return Err("more than one organization in the subject is not supported".to_owned());
    }
    let seconds = spec.expiration_seconds.and_then(|s| u64::try_from(s).ok()).unwrap_or(u64::MAX);
    let pem = std::str::from_utf8(&spec.request.0).map_err(|_| "the request is no PEM text".to_owned())?;
    pki.sign_request(pem, usage, Duration::from_secs(seconds)).map_err(|e| e.to_string())
}
