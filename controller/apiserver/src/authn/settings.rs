//! What an operator may choose of authentication.

use anyhow::Context;
use causeway_authn::config::AuthenticationConfiguration;
use causeway_authn::{front_proxy, webhook};
use std::path::PathBuf;

/// Authentication beyond the cluster's own certificates and tokens. The default has none, and anonymous requests.
#[derive(Default)]
pub struct Authentication {
    /// OIDC issuers, and who may be anonymous (`--authentication-config`), read by
    /// [`AuthenticationConfiguration::parse`] with [`service_account_issuer`](crate::service_account_issuer) as
    /// disallowed.
    pub configuration: Option<AuthenticationConfiguration>,
    /// Requests without a credential are refused, unless the configuration says otherwise (`--anonymous-auth=false`).
    pub no_anonymous: bool,
    /// Who is asked about tokens that nobody here knows.
    pub webhook: Option<TokenWebhook>,
    /// Front proxies.
    pub request_header: Option<RequestHeader>,
    /// Tokens of service accounts.
    pub service_accounts: ServiceAccountTokens,
}

/// A webhook of tokens (`--authentication-token-webhook-*`).
#[derive(Debug, Clone)]
pub struct TokenWebhook {
    /// Its kubeconfig file (`--authentication-token-webhook-config-file`).
    pub kubeconfig: PathBuf,
    /// Times and bounds; the implicit audiences are set to the API server's. `success_ttl` is
    /// `--authentication-token-webhook-cache-ttl`.
    pub options: webhook::Options,
}

impl TokenWebhook {
    /// With upstream's times and bounds.
    pub fn new(kubeconfig: PathBuf) -> Self {
        Self { kubeconfig, options: webhook::Options::default() }
    }
}

/// Front proxies (`--requestheader-*`).
#[derive(Debug, Clone)]
pub struct RequestHeader {
    /// PEM certificates of their authority (`--requestheader-client-ca-file`). It should not be the cluster's.
    pub client_ca_file: PathBuf,
    /// Their common names (`--requestheader-allowed-names`); empty means all that the authority has certified.
    pub allowed_names: Vec<String>,
    /// `--requestheader-username-headers`.
    pub username_headers: Vec<String>,
    /// `--requestheader-uid-headers`.
    pub uid_headers: Vec<String>,
    /// `--requestheader-group-headers`.
    pub group_headers: Vec<String>,
    /// `--requestheader-extra-headers-prefix`.
    pub extra_prefixes: Vec<String>,
}

impl RequestHeader {
    /// With the usual headers, `X-Remote-User`, `-Uid`, `-Group` and `-Extra-`.
    pub fn new(client_ca_file: PathBuf, allowed_names: Vec<String>) -> Self {
        let one = |name: &str| vec![name.to_owned()];
        Self {
            client_ca_file,
            allowed_names,
            username_headers: one("X-Remote-User"),
            uid_headers: one("X-Remote-Uid"),
            group_headers: one("X-Remote-Group"),
            extra_prefixes: one("X-Remote-Extra-"),
        }
    }

    pub(super) fn options(&self) -> anyhow::Result<front_proxy::Options> {
        let pem = std::fs::read_to_string(&self.client_ca_file)
            .with_context(|| format!("reading the authority of front proxies in {}", self.client_ca_file.display()))?;
        Ok(front_proxy::Options {
            client_ca_pem: pem,
            allowed_names: self.allowed_names.clone(),
            username_headers: self.username_headers.clone(),
            uid_headers: self.uid_headers.clone(),
            group_headers: self.group_headers.clone(),
            extra_prefixes: self.extra_prefixes.clone(),
        })
    }
}

/// Tokens of service accounts (`--service-account-*`, `--api-audiences`).
#[derive(Debug, Clone, Default)]
pub struct ServiceAccountTokens {
    /// Audiences of the API server (`--api-audiences`); empty means the issuer.
    pub api_audiences: Vec<String>,
    /// Longest life that is issued, in seconds (`--service-account-max-token-expiration`); none without.
    pub max_expiration: Option<i64>,
    /// Pods' tokens of an hour live an hour (`--service-account-extend-token-expiration=false`). Without, they live a
    /// year, since old clients read them once.
    pub no_extension: bool,
}
