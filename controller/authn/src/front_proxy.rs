//! Front proxies (aggregation's request headers): a proxy with a certificate of its own authority says, in headers, who
//! the user is.
//!
//! In: the client certificates that a caller has shown in TLS (and proven to hold the key of), and request headers.
//! Out: a user. Nobody else may send these headers: [`FrontProxy::strip`] takes them from every other request, and from
//! what goes on to other servers.

use crate::headers;
use crate::user::{AuthnError, User};
use http::{HeaderMap, HeaderName};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use std::sync::Arc;
use x509_parser::prelude::{FromDer, X509Certificate};

const STANDARD: [&str; 3] = ["x-remote-user", "x-remote-group", "x-remote-uid"];
const STANDARD_PREFIX: &str = "x-remote-extra-";

/// What is configured (kube-apiserver's flags `--requestheader-*`).
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// PEM certificates of the authority of front proxies (`--requestheader-client-ca-file`).
    pub client_ca_pem: String,
    /// Common names of proxies; empty means any that the authority has certified.
    pub allowed_names: Vec<String>,
    /// The first of these with a value names the user; the usual one is `X-Remote-User`.
    pub username_headers: Vec<String>,
    /// `X-Remote-Uid`; may be empty.
    pub uid_headers: Vec<String>,
    /// `X-Remote-Group`.
    pub group_headers: Vec<String>,
    /// `X-Remote-Extra-`.
    pub extra_prefixes: Vec<String>,
}

/// Accepts what front proxies say.
pub struct FrontProxy {
    verifier: Arc<dyn ClientCertVerifier>,
    allowed_names: Vec<String>,
    username: Vec<HeaderName>,
    uid: Vec<HeaderName>,
    group: Vec<HeaderName>,
    prefixes: Vec<String>,
}

impl FrontProxy {
    /// From the options. The error names what is wrong with them.
    pub fn new(options: &Options) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(options.client_ca_pem.as_bytes()) {
            let certificate = certificate.map_err(|e| format!("error loading certs: {e}"))?;
            roots.add(certificate).map_err(|e| format!("error loading certs: {e}"))?;
        }
        if roots.is_empty() {
            return Err("missing clientCA file".to_owned());
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
        let username = names(&options.username_headers)?;
        if username.is_empty() {
            return Err("at least one username header is required".to_owned());
        }
        Ok(Self {
            verifier: verifier.map_err(|e| format!("error loading certs: {e}"))?,
            allowed_names: options.allowed_names.clone(),
            username,
            uid: names(&options.uid_headers)?,
            group: names(&options.group_headers)?,
            prefixes: names(&options.extra_prefixes)?.iter().map(|name| name.as_str().to_owned()).collect(),
        })
    }

    /// Who a request is from when it comes through a front proxy; `None` when it has no name header or no such
    /// certificate. `chain` is what the peer has shown in TLS, its own certificate first. An error when the
    /// certificate is one of the authority but its common name is not allowed.
    pub fn authenticate(
        &self,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
        map: &HeaderMap,
    ) -> Result<Option<User>, AuthnError> {
        if self.verify(chain, now)? { self.user(map) } else { Ok(None) }
    }

    /// Whether the peer of a connection is a front proxy: the same for all its requests until its certificate ends.
    pub fn verify(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<bool, AuthnError> {
        let Some((own, others)) = chain.split_first() else { return Ok(false) };
        if self.verifier.verify_client_cert(own, others, now).is_err() {
            return Ok(false);
        }
        let Some(common_name) = common_name(own) else { return Ok(false) };
        if !self.allowed_names.is_empty() && !self.allowed_names.contains(&common_name) {
            // The name is in a certificate of the authority, and still not ours.
            let shown: String = common_name.chars().filter(|c| !c.is_control()).take(256).collect();
            return Err(AuthnError::Refused(format!("x509: subject with cn={shown} is not in the allowed list")));
        }
        Ok(true)
    }

    /// The user that the headers name, without asking who sent them: only after [`FrontProxy::verify`].
    pub fn user(&self, map: &HeaderMap) -> Result<Option<User>, AuthnError> {
        let first = |names: &[HeaderName]| -> Result<String, AuthnError> {
            for name in names {
                if let Some(value) = map.get(name).filter(|value| !value.is_empty()) {
                    return headers::text(name, value);
                }
            }
            Ok(String::new())
        };
        let username = first(&self.username)?;
        if username.is_empty() {
            return Ok(None);
        }
        let mut user = User { username, uid: first(&self.uid)?, ..User::default() };
        for name in &self.group {
            user.groups.extend(headers::values(map, name)?.into_iter().filter(|group| !group.is_empty()));
        }
        for prefix in &self.prefixes {
            for (key, values) in headers::extra(map, prefix)? {
                user.extra.entry(key).or_default().extend(values);
            }
        }
        Ok(Some(user))
    }

    /// Removes the configured headers and the standard ones.
    pub fn strip(&self, map: &mut HeaderMap) {
        let own: Vec<HeaderName> = [&self.username, &self.uid, &self.group].into_iter().flatten().cloned().collect();
        headers::remove(map, &own, &self.prefixes);
        strip(map);
    }
}

/// Removes the standard headers (`X-Remote-*`): every request's, also where no front proxy is configured.
pub fn strip(map: &mut HeaderMap) {
    headers::remove(map, &STANDARD.map(HeaderName::from_static), &[STANDARD_PREFIX.to_owned()]);
}

fn names(list: &[String]) -> Result<Vec<HeaderName>, String> {
    let name = |text: &String| match text.trim() {
        "" => Err(format!("empty header {text:?}")),
        trimmed => HeaderName::try_from(trimmed).map_err(|_| format!("invalid header {text:?}")),
    };
    list.iter().map(name).collect()
}

/// The last common name of the subject, as Go's x509 has it.
fn common_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let name = parsed.subject().iter_common_name().last()?.as_str().ok()?.to_owned();
    Some(name)
}

#[cfg(test)]
mod tests;
