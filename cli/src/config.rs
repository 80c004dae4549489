//! The configuration file. In: a path, the cluster's name. Out: the cluster's settings, checked, with defaults for what
//! the file does not say, and those of its backups and keys, which are of this machine alone. `configs/cluster.yaml` shows
//! all of them.

use crate::api_settings::ApiSettings;
use anyhow::{Context, Result, bail};
use causeway_api::config::ClusterConfig;
use causeway_backup::Settings as BackupSettings;
use serde::Deserialize;
use serde_yaml_ng::{Mapping, Value};
use std::path::{Path, PathBuf};

/// The settings that are not the cluster's, and so are not sent to nodes that join.
const OF_MACHINE: [&str; 3] = ["apiServer", "backup", "encryptionConfiguration"];

/// What they say.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct OfMachine {
    /// The API server's.
    pub api_server: ApiSettings,
    /// Backups that make themselves.
    pub backup: Option<BackupSettings>,
    /// A file of the user's that says what is encrypted in the store, instead of the program's own.
    pub encryption_configuration: Option<PathBuf>,
}

impl OfMachine {
    /// Says what is wrong with them.
    pub fn check(&self) -> Result<()> {
        if let Some(path) = self.encryption_configuration.as_deref().filter(|path| !path.is_absolute()) {
            bail!("encryptionConfiguration: {} has to be an absolute path", path.display());
        }
        self.api_server.check()?;
        self.backup.as_ref().map_or(Ok(()), BackupSettings::check).map_err(anyhow::Error::msg)
    }
}

/// Reads a file, or gives the defaults. The name is the command line's: a file that names another cluster is refused.
pub fn read(file: Option<&Path>, name: &str) -> Result<(ClusterConfig, OfMachine)> {
    let Some(path) = file else {
        return Ok((ClusterConfig { name: name.to_owned(), ..ClusterConfig::default() }, OfMachine::default()));
    };
    let text =
        std::fs::read_to_string(path).with_context(|| format!("reading the configuration {}", path.display()))?;
    parse(&text, name).with_context(|| format!("in the configuration {}", path.display()))
}

/// Reads a file of another shape; one of nothing but comments is the default.
pub fn file<T: Default + serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("reading the configuration {}", path.display()))?;
    let file: Option<T> =
        serde_yaml_ng::from_str(&text).with_context(|| format!("in the configuration {}", path.display()))?;
    Ok(file.unwrap_or_default())
}

fn parse(text: &str, name: &str) -> Result<(ClusterConfig, OfMachine)> {
    // A file of nothing but comments is a null.
    let mut all: Value = serde_yaml_ng::from_str(text)?;
    let mut machine = Mapping::new();
    if let Some(settings) = all.as_mapping_mut() {
        for name in OF_MACHINE {
            machine.extend(settings.remove(name).map(|value| (name.into(), value)));
        }
    }
    let config = match machine.is_empty() {
        // From the text, so that mistakes are told with their line.
        true => serde_yaml_ng::from_str::<Option<ClusterConfig>>(text)?,
        false => serde_yaml_ng::from_value(all)?,
    };
    let machine: OfMachine = serde_yaml_ng::from_value(Value::Mapping(machine))
        .context("in apiServer, backup or encryptionConfiguration")?;
    machine.check()?;
    Ok((settle(config.unwrap_or_default(), name)?, machine))
}

/// Settings from anywhere, named and checked.
pub fn settle(mut config: ClusterConfig, name: &str) -> Result<ClusterConfig> {
    let default = ClusterConfig::default().name;
    if config.name != name && config.name != default {
        bail!("it is for the cluster {:?}, not for {name:?}; give --name, or leave the name out", config.name);
    }
    name.clone_into(&mut config.name);
    config.check().map_err(anyhow::Error::msg)?;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_file_is_the_defaults() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/cluster.yaml");
        let text = std::fs::read_to_string(path).unwrap();
        assert_eq!(parse(&text, "default").unwrap(), (ClusterConfig::default(), OfMachine::default()));
        // Every setting stands in it, so that nobody has to read the code to find one.
        let all = serde_json::to_value(ClusterConfig::default()).unwrap();
        for field in all.as_object().unwrap().keys() {
            assert!(text.contains(&format!("\n{field}:")) || text.contains(&format!("\n# {field}:")), "{field}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (text, word) in [
            ("podCidr: 10.0.0.0/8", "podCidr"),
            ("podCidrs: [10.0.0.0/40]", "podCidrs"),
            ("name: other", "other"),
            ("podCidrs: [10.96.0.0/16]", "overlap"),
            ("dnsIp: 10.244.0.10", "dnsIp"),
            ("nodePorts: [40000, 30000]", "nodePorts"),
            ("domain: 'not a domain'", "domain"),
            ("podCidrs: []", "podCidrs"),
            ("loadBalancerPools: [{name: a, addresses: [10.9.9]}]", "10.9.9"),
            ("loadBalancerPools: [{name: a, addresses: [10.96.0.5]}]", "overlaps"),
            ("backup: {schedule: 6h, to: /b}", "keyFile"),
            ("backup: {schedule: soon, to: /b, keyFile: /k}", "soon"),
            ("backup: {schedule: 6h, to: b, keyFile: /k}", "backup.to"),
            ("backup: {schedule: 6h, to: /b, keyFile: /k, kept: 1}", "kept"),
            ("apiServer: {audit: {policyFile: /p}}", "log or webhook"),
            ("apiServer: {audit: {log: {path: relative}}}", "absolute"),
            ("apiServer: {audits: {}}", "audits"),
            ("apiServer: {authentication: {requestHeader: {clientCa: /c, allowedNames: []}}}", "allowedNames"),
            ("{backup: null, podCidr: 10.0.0.0/8}", "podCidr"),
            ("encryptionConfiguration: keys.yaml", "encryptionConfiguration"),
            ("encryptionConfiguration: [/keys.yaml]", "encryptionConfiguration"),
        ] {
            let error = format!("{:#}", parse(text, "default").unwrap_err());
            assert!(error.contains(word), "{text}: {error}");
        }
        assert_eq!(parse("# nothing", "x").unwrap().0.name, "x");
        let (config, machine) = parse("{encryptionConfiguration: /keys.yaml, nodePorts: [30000, 31000]}", "x").unwrap();
        assert_eq!(
            (machine.encryption_configuration.as_deref(), machine.backup),
            (Some(Path::new("/keys.yaml")), None)
        );
        assert_ne!(config.node_ports, ClusterConfig::default().node_ports);
    }

    /// The lines of a documented file that begin with this, without their marks.
    fn commented(file: &str, begin: &str) -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs").join(file);
        let text = std::fs::read_to_string(path).unwrap();
        let lines = text.lines().skip_while(|line| *line != format!("#{begin}"));
        lines.map_while(|line| line.strip_prefix('#')).map(|line| format!("{line}\n")).collect()
    }

    #[test]
    fn the_documented_backups_are_what_they_say() {
        for file in ["cluster.yaml", "server.yaml"] {
            let backup = parse(&commented(file, "backup:"), "default").unwrap().1.backup.unwrap();
            assert_eq!((backup.schedule.as_hours(), backup.keep), (6, Some(7)), "{file}");
            assert_eq!(backup.keep_for.unwrap().as_hours(), 30 * 24, "{file}");
        }
    }
}
