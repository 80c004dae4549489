//! `EncryptionConfiguration`, apiserver.config.k8s.io/v1. In: YAML. Out: the configuration, checked as Kubernetes checks it;
//! fields that are not known and providers that are not there are errors. Errors hold nothing of a key.

use crate::cipher::MAX_NAME;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

/// The version of the file.
pub const API_VERSION: &str = "apiserver.config.k8s.io/v1";
/// Its kind.
pub const KIND: &str = "EncryptionConfiguration";
/// The longest file, in bytes.
pub const MAX_FILE: usize = 1 << 20;
/// The most entries, patterns of an entry, providers of an entry and keys of a provider.
const MAX_LIST: usize = 256;
/// What Kubernetes keeps of its own accord, without an API.
const NOT_REST: [&str; 3] = ["apiserveripinfo", "serviceipallocations", "servicenodeportallocations"];

/// The file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Configuration {
    /// [`API_VERSION`].
    pub api_version: String,
    /// [`KIND`].
    pub kind: String,
    /// The first entry that names a resource counts.
    #[serde(default)]
    pub resources: Vec<Entry>,
}

/// Resources and their providers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// `secrets`, `deployments.apps`, `*.apps`, `*.` (the core group), `*.*`.
    #[serde(default)]
    pub resources: Vec<String>,
    /// The first one writes, all read.
    #[serde(default)]
    pub providers: Vec<Provider>,
}

/// One provider; exactly one field is there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provider {
    /// AES-256-GCM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aesgcm: Option<Keys>,
    /// Without encryption.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
    /// Not supported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    aescbc: Option<Ignored>,
    /// Not supported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    secretbox: Option<Ignored>,
    /// Not supported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kms: Option<Ignored>,
}

/// What is refused is not looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
struct Ignored {}

impl<'de> Deserialize<'de> for Ignored {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        serde::de::IgnoredAny::deserialize(from).map(|_| Self {})
    }
}

/// No settings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {}

/// Keys; the first one writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keys {
    /// The keys.
    #[serde(default)]
    pub keys: Vec<NamedKey>,
}

/// A key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedKey {
    /// Its name, which stands in each value that it encrypts.
    #[serde(default)]
    pub name: String,
    /// 16, 24 or 32 bytes in base64.
    #[serde(default)]
    pub secret: String,
}

impl std::fmt::Debug for NamedKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NamedKey({:?})", self.name)
    }
}

impl NamedKey {
    /// A key of these bytes.
    pub fn new(name: String, secret: &[u8]) -> Self {
        Self { name, secret: STANDARD.encode(secret) }
    }

    /// Its bytes, as far as it was checked.
    pub fn bytes(&self) -> Vec<u8> {
        STANDARD.decode(&self.secret).unwrap_or_default()
    }
}

impl Configuration {
    /// Secrets encrypted with one key; what is plain can be read, so that it can be brought over.
    pub fn of_secrets(key: NamedKey) -> Self {
        let aesgcm = Provider { aesgcm: Some(Keys { keys: vec![key] }), ..Provider::default() };
        let identity = Provider { identity: Some(Identity {}), ..Provider::default() };
        let entry = Entry { resources: vec!["secrets".to_owned()], providers: vec![aesgcm, identity] };
        Self { api_version: API_VERSION.to_owned(), kind: KIND.to_owned(), resources: vec![entry] }
    }

    /// As a file.
    pub fn to_yaml(&self) -> Result<String, String> {
        serde_yaml_ng::to_string(self).map_err(|_| "the configuration cannot be written as YAML".to_owned())
    }
}

/// Reads and checks a file.
pub fn parse(text: &str) -> Result<Configuration, String> {
    if text.len() > MAX_FILE {
        return Err(format!("{} bytes, where {MAX_FILE} can be", text.len()));
    }
    let configuration: Configuration = serde_yaml_ng::from_str(text).map_err(|error| without_values(&error))?;
    check(&configuration)?;
    Ok(configuration)
}

/// A parser's message without what it quotes, which may be a key.
fn without_values(error: &serde_yaml_ng::Error) -> String {
    let text = error.to_string();
    let said = ["invalid type", "invalid value", "invalid length"]
        .iter()
        .find_map(|quotes| text.find(quotes).zip(Some(quotes)));
    let place = error.location().map_or_else(String::new, |l| format!(" at line {} column {}", l.line(), l.column()));
    let text = match said {
        Some((at, what)) => format!("{}{what}{place}", text.get(..at).unwrap_or_default()),
        None => text,
    };
    text.chars().take(500).collect::<String>().escape_debug().to_string().replace("\\\"", "\"").replace("\\'", "'")
}

fn check(configuration: &Configuration) -> Result<(), String> {
    if configuration.api_version != API_VERSION || configuration.kind != KIND {
        return Err(format!(
            "it is {:.80?} {:.80?}, and should be {API_VERSION} {KIND}",
            configuration.api_version, configuration.kind
        ));
    }
    listed("resources", configuration.resources.len())?;
    for (i, entry) in configuration.resources.iter().enumerate() {
        let at = format!("resources[{i}]");
        listed(&format!("{at}.resources"), entry.resources.len())?;
        listed(&format!("{at}.providers"), entry.providers.len())?;
        check_resources(&format!("{at}.resources"), &entry.resources)?;
        for (j, provider) in entry.providers.iter().enumerate() {
            check_provider(&format!("{at}.providers[{j}]"), provider)?;
        }
    }
    Ok(())
}

fn listed(at: &str, count: usize) -> Result<(), String> {
    match count {
        0 => Err(format!("{at}: Required value: at least one {at} is required")),
        1..=MAX_LIST => Ok(()),
        _ => Err(format!("{at}: Too many: {count}: must have at most {MAX_LIST} items")),
    }
}

/// Resource and group of a pattern, as Kubernetes cuts it: at the first dot.
pub(crate) fn parts(pattern: &str) -> (&str, &str) {
    pattern.split_once('.').unwrap_or((pattern, ""))
}

fn check_resources(at: &str, resources: &[String]) -> Result<(), String> {
    let parsed: Vec<_> = resources.iter().map(|r| parts(r)).collect();
    for (i, (resource, group)) in parsed.iter().enumerate() {
        for (other, other_group) in parsed.iter().skip(i + 1) {
            if (resource, group) == (other, other_group) {
                return Err(format!("{at}: Invalid value: the same resource cannot be specified multiple times"));
            }
            let all = [(resource, group), (other, other_group)].contains(&(&"*", &"*"));
            if all || group == other_group && (*resource == "*" || *other == "*") {
                return Err(format!(
                    "{at}: Invalid value: using overlapping resources such as 'secrets' and '*.' in the same resource list \
                     is not allowed as they will be masked"
                ));
            }
        }
    }
    for (i, (text, (resource, group))) in resources.iter().zip(parsed).enumerate() {
        let plain =
            |part: &str| part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b));
        let why = if text.chars().any(char::is_uppercase) {
            "resource name should not contain capital letters"
        } else if text == "*" {
            "use '*.' to encrypt all the resources from core API group or *.* to encrypt all resources"
        } else if NOT_REST.contains(&text.as_str()) {
            "resources which do not have REST API/s cannot be encrypted"
        } else if group == "events.k8s.io" {
            "'*.events.k8s.io' objects are stored using the 'events' API group in etcd. Use 'events' instead in the config file"
        } else if group == "extensions" {
            "'extensions' group has been removed and cannot be used for encryption"
        } else if group == "*" && resource != "*" {
            "encrypting the same resource across groups is not supported"
        } else if text.len() > 512
            || resource.is_empty()
            || !(resource == "*" || plain(resource))
            || !(group == "*" || plain(group))
        {
            "it is not RESOURCE, RESOURCE.GROUP, *.GROUP, *. or *.*"
        } else {
            continue;
        };
        return Err(format!("{at}[{i}]: Invalid value: {why}"));
    }
    Ok(())
}

fn check_provider(at: &str, provider: &Provider) -> Result<(), String> {
    let Provider { aesgcm, identity, aescbc, secretbox, kms } = provider;
    let found = [aesgcm.is_some(), identity.is_some(), aescbc.is_some(), secretbox.is_some(), kms.is_some()];
    match found.iter().filter(|f| **f).count() {
        0 => {
            return Err(format!(
                "{at}: Invalid value: provider does not contain any of the expected providers: aesgcm, identity"
            ));
        }
        1 => {}
        _ => {
            return Err(format!(
                "{at}: Invalid value: more than one provider specified in a single element, should split into different \
                 list elements"
            ));
        }
    }
    let refused = [(aescbc, "aescbc"), (secretbox, "secretbox"), (kms, "kms")];
    if let Some((_, name)) = refused.iter().find(|(provider, _)| provider.is_some()) {
        return Err(format!("{at}.{name}: Unsupported value: {name:?}: supported values: \"aesgcm\", \"identity\""));
    }
    let Some(aesgcm) = aesgcm else { return Ok(()) };
    let at = format!("{at}.aesgcm.keys");
    listed(&at, aesgcm.keys.len())?;
    aesgcm.keys.iter().enumerate().try_for_each(|(i, key)| check_key(&format!("{at}[{i}]"), key))
}

fn check_key(at: &str, key: &NamedKey) -> Result<(), String> {
    if key.name.is_empty() {
        return Err(format!("{at}.name: Required value: name is a mandatory field for a key"));
    }
    // The name stands in values between colons, and in messages.
    if key.name.len() > MAX_NAME || !key.name.bytes().all(|b| b.is_ascii_graphic() && b != b':') {
        return Err(format!("{at}.name: Invalid value: at most {MAX_NAME} printable ASCII characters, without ':'"));
    }
    if key.secret.is_empty() {
        return Err(format!("{at}.secret: Required value: secret is a mandatory field for a key"));
    }
    let bytes = STANDARD.decode(&key.secret);
    let Ok(bytes) = bytes else {
        return Err(format!("{at}.secret: Invalid value: \"REDACTED\": secrets must be base64 encoded"));
    };
    if ![16, 24, 32].contains(&bytes.len()) {
        return Err(format!(
            "{at}.secret: Invalid value: \"REDACTED\": secret is not of the expected length, got {}, expected one of \
             [16 24 32]",
            bytes.len()
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
