//! Settings of the API server, which are of this machine alone. In: the configuration file, and the files that it names.
//! Out: what the API server is started with.

use anyhow::{Context, Result, bail};
use causeway_apiserver::audit::{Config, LogConfig, Policy, Webhook, WebhookConfig};
use causeway_apiserver::pod_security::PodSecurity;
use causeway_apiserver::{
    Authentication, AuthenticationConfiguration, RequestHeader, Settings, TokenWebhook, service_account_issuer,
};
use serde::Deserialize;
use serde_yaml_ng::Value;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// `apiServer` in the file: `configs/cluster.yaml` and `configs/server.yaml` show all of it.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct ApiSettings {
    /// What is recorded of requests.
    pub audit: Option<AuditSettings>,
    /// Who else is believed about who callers are.
    pub authentication: Option<AuthenticationSettings>,
    /// A PodSecurityConfiguration (pod-security.admission.config.k8s.io/v1).
    pub pod_security: Option<PathBuf>,
}

/// Authentication beyond the cluster's own certificates and tokens.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthenticationSettings {
    /// An AuthenticationConfiguration (apiserver.config.k8s.io/v1): issuers of tokens, and who may be anonymous.
    pub configuration: Option<PathBuf>,
    /// The kubeconfig of a webhook that knows tokens.
    pub webhook: Option<PathBuf>,
    /// Front proxies.
    pub request_header: Option<RequestHeaderSettings>,
}

/// Who may say, by headers, who a caller is.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RequestHeaderSettings {
    /// PEM certificates of their authority.
    pub client_ca: PathBuf,
    /// Their common names.
    pub allowed_names: Vec<String>,
}

/// What is recorded, and where.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct AuditSettings {
    /// A Policy (audit.k8s.io/v1); without it, who has written what and who has read Secrets, never what was in them.
    pub policy_file: Option<PathBuf>,
    /// A file of JSON lines.
    pub log: Option<AuditLog>,
    /// The kubeconfig of a webhook.
    pub webhook: Option<PathBuf>,
}

/// Where events are written.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuditLog {
    /// The file.
    pub path: PathBuf,
    /// In MiB, when a new one is begun: 100.
    pub max_size: Option<u64>,
    /// Files before it that stay: 10.
    pub max_backups: Option<usize>,
    /// Days that they stay: for ever.
    pub max_age: Option<u64>,
}

impl ApiSettings {
    /// Says what is wrong with them, as far as it shows without their files.
    pub fn check(&self) -> Result<()> {
        let audit = self.audit.as_ref();
        if audit.is_some_and(|a| a.log.is_none() && a.webhook.is_none()) {
            bail!("apiServer.audit: say where events go, with log or webhook");
        }
        let log = audit.and_then(|a| a.log.as_ref()).map(|log| &log.path);
        let files = [log, audit.and_then(|a| a.policy_file.as_ref()), audit.and_then(|a| a.webhook.as_ref())];
        let authentication = self.authentication.as_ref();
        let of_callers = [
            authentication.and_then(|a| a.configuration.as_ref()),
            authentication.and_then(|a| a.webhook.as_ref()),
            authentication.and_then(|a| a.request_header.as_ref()).map(|r| &r.client_ca),
        ];
        if authentication.and_then(|a| a.request_header.as_ref()).is_some_and(|r| r.allowed_names.is_empty()) {
            bail!("apiServer.authentication.requestHeader: name the front proxies in allowedNames");
        }
        for path in files.into_iter().chain(of_callers).chain([self.pod_security.as_ref()]).flatten() {
            if !path.is_absolute() {
                bail!("apiServer: {} has to be an absolute path", path.display());
            }
        }
        Ok(())
    }

    /// Reads the files that they name. `domain` is the cluster's.
    pub fn load(&self, domain: &str) -> Result<Settings> {
        let mut settings = Settings::default();
        if let Some(path) = &self.pod_security {
            let at = || format!("in the configuration of pod security {}", path.display());
            settings.pod_security = pod_security(path).with_context(at)?;
        }
        if let Some(authentication) = &self.authentication {
            settings.authentication = authentication.load(domain)?;
        }
        settings.audit = self.audit.as_ref().map(AuditSettings::load).transpose()?;
        Ok(settings)
    }
}

fn pod_security(path: &Path) -> Result<PodSecurity> {
    let text = std::fs::read_to_string(path)?;
    let yaml: Value = serde_yaml_ng::from_str(&text)?;
    let object = serde_json::to_value(yaml)?;
    PodSecurity::from_configuration(&object).map_err(|errors| {
        let all: Vec<String> = errors.iter().map(ToString::to_string).collect();
        anyhow::anyhow!("{}", all.join("; "))
    })
}

impl AuthenticationSettings {
    fn load(&self, domain: &str) -> Result<Authentication> {
        let read = |path: &PathBuf| -> Result<AuthenticationConfiguration> {
            let text = std::fs::read_to_string(path)?;
            Ok(AuthenticationConfiguration::parse(&text, &[service_account_issuer(domain)])?)
        };
        let configuration = self
            .configuration
            .as_ref()
            .map(|path| read(path).with_context(|| format!("in the authentication configuration {}", path.display())));
        let header = |h: &RequestHeaderSettings| RequestHeader::new(h.client_ca.clone(), h.allowed_names.clone());
        Ok(Authentication {
            configuration: configuration.transpose()?,
            webhook: self.webhook.clone().map(TokenWebhook::new),
            request_header: self.request_header.as_ref().map(header),
            ..Authentication::default()
        })
    }
}

impl AuditSettings {
    fn load(&self) -> Result<Config> {
        let policy = match &self.policy_file {
            None => Policy::standard(),
            Some(path) => Policy::from_file(path).with_context(|| format!("in the audit policy {}", path.display()))?,
        };
        let mut config = Config::new(policy);
        config.log = self.log.as_ref().map(|log| {
            let mut own = LogConfig::new(log.path.clone());
            own.rotation.max_bytes = log.max_size.map_or(own.rotation.max_bytes, |mib| mib.saturating_mul(1 << 20));
            own.rotation.max_backups = log.max_backups.unwrap_or(own.rotation.max_backups);
            own.rotation.max_age = log.max_age.map(|days| Duration::from_secs(days.saturating_mul(24 * 3600)));
            own
        });
        config.webhook = match &self.webhook {
            None => None,
            Some(path) => {
                let webhook = Webhook::from_kubeconfig(path);
                Some(WebhookConfig::new(webhook.with_context(|| format!("in {}", path.display()))?))
            }
        };
        Ok(config)
    }
}
