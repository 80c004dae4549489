//! Settings of the API server, which are of this machine alone. In: the configuration file, and the files that it names.
//! Out: what the API server is started with.

use anyhow::{Context, Result, bail};
use causeway_apiserver::Settings;
use causeway_apiserver::audit::{Config, LogConfig, Policy, Webhook, WebhookConfig};
use causeway_apiserver::pod_security::PodSecurity;
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
    /// A PodSecurityConfiguration (pod-security.admission.config.k8s.io/v1).
    pub pod_security: Option<PathBuf>,
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
        for path in files.into_iter().chain([self.pod_security.as_ref()]).flatten() {
            if !path.is_absolute() {
                bail!("apiServer: {} has to be an absolute path", path.display());
            }
        }
        Ok(())
    }

    /// Reads the files that they name.
    pub fn load(&self) -> Result<Settings> {
        let mut settings = Settings::default();
        if let Some(path) = &self.pod_security {
            let at = || format!("in the configuration of pod security {}", path.display());
            settings.pod_security = pod_security(path).with_context(at)?;
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
