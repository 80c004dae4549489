//! Which providers a key of the store has. In: a configuration; a key such as `/registry/core/secrets/default/a` and a
//! value. Out: the value as it is stored, or as it is read. Pure.

use crate::EncryptionError;
use crate::cipher::{ENCRYPTED, Form, Key};
use crate::config::{Configuration, Entry, parts};
use std::sync::Arc;

/// Where all objects are.
pub const ROOT: &str = "/registry/";
/// Where the API server keeps what is no object.
const INTERNAL: &str = "causeway";

/// A pattern of resources.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern {
    resource: String,
    group: String,
}

impl Pattern {
    fn matches(&self, group: &str, resource: &str) -> bool {
        (self.resource == "*" || self.resource == resource) && (self.group == "*" || self.group == group)
    }

    /// Where the objects are that it matches.
    fn prefix(&self) -> String {
        let group = if self.group.is_empty() { "core" } else { &self.group };
        match (self.group.as_str(), self.resource.as_str()) {
            ("*", _) => ROOT.to_owned(),
            (_, "*") => format!("{ROOT}{group}/"),
            (_, resource) => format!("{ROOT}{group}/{resource}/"),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Provider {
    AesGcm(Vec<Arc<Key>>),
    Identity,
}

impl Provider {
    fn keys(&self) -> &[Arc<Key>] {
        match self {
            Self::AesGcm(keys) => keys,
            Self::Identity => &[],
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    patterns: Vec<Pattern>,
    providers: Vec<Provider>,
}

impl Rule {
    fn of(entry: &Entry) -> Self {
        let pattern = |text: &String| {
            let (resource, group) = parts(text);
            Pattern { resource: resource.to_owned(), group: group.to_owned() }
        };
        let provider = |provider: &crate::config::Provider| match &provider.aesgcm {
            Some(aesgcm) => {
                Provider::AesGcm(aesgcm.keys.iter().map(|k| Arc::new(Key::new(&k.name, &k.bytes()))).collect())
            }
            None => Provider::Identity,
        };
        Self {
            patterns: entry.resources.iter().map(pattern).collect(),
            providers: entry.providers.iter().map(provider).collect(),
        }
    }

    fn writer(&self) -> Option<&Key> {
        self.providers.first()?.keys().first().map(AsRef::as_ref)
    }

    fn reads_plain(&self) -> bool {
        self.providers.contains(&Provider::Identity)
    }

    fn keys(&self) -> impl Iterator<Item = &Key> {
        self.providers.iter().flat_map(Provider::keys).map(AsRef::as_ref)
    }
}

/// What a stored value is.
#[derive(Debug, PartialEq, Eq)]
pub struct Opened {
    /// The value; `None` when it is stored as it is.
    pub plain: Option<Vec<u8>>,
    /// It is not as it would be written now.
    pub stale: bool,
}

/// A configuration, ready to be used.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rules(Vec<Rule>);

/// Group and resource of a key of the store.
fn resource(key: &str) -> Option<(&str, &str)> {
    let (group, rest) = key.strip_prefix(ROOT)?.split_once('/')?;
    let (resource, _) = rest.split_once('/')?;
    match group {
        INTERNAL => None,
        "core" => Some(("", resource)),
        _ => Some((group, resource)),
    }
}

impl From<&Configuration> for Rules {
    fn from(configuration: &Configuration) -> Self {
        Self(configuration.resources.iter().map(Rule::of).collect())
    }
}

impl Rules {
    fn of(&self, key: &str) -> Option<&Rule> {
        let (group, resource) = resource(key)?;
        self.0.iter().find(|rule| rule.patterns.iter().any(|p| p.matches(group, resource)))
    }

    /// Whether values of this key may be stored otherwise than they are read.
    pub fn applies(&self, key: &str) -> bool {
        self.of(key).is_some()
    }

    /// Where values are that rules apply to; none lies below another.
    pub fn prefixes(&self) -> Vec<String> {
        outermost(self.0.iter().flat_map(|rule| rule.patterns.iter().map(Pattern::prefix)).collect())
    }

    /// The value as it is to be stored.
    ///
    /// # Errors
    /// A plain value that could not be told from an encrypted one; no random numbers.
    pub fn seal(&self, key: &str, plain: &[u8]) -> Result<Option<Vec<u8>>, EncryptionError> {
        match self.of(key).and_then(Rule::writer) {
            Some(writer) => writer.seal(key, plain).map(Some),
            None if plain.starts_with(ENCRYPTED) => Err(EncryptionError::Cryptography(
                "a value that begins as an encrypted one does cannot be stored plain",
            )),
            None => Ok(None),
        }
    }

    /// The value as it is read.
    ///
    /// # Errors
    /// Why it cannot be, and what to do.
    pub fn open(&self, key: &str, stored: &[u8]) -> Result<Opened, String> {
        let rule = self.of(key);
        let writer = rule.and_then(Rule::writer);
        match Form::of(stored) {
            Form::Plain if rule.is_none_or(Rule::reads_plain) => Ok(Opened { plain: None, stale: writer.is_some() }),
            Form::Plain => Err("it is not encrypted, and identity is not among the providers of its resource; add \
                                `identity: {}` as the last one until everything is encrypted"
                .to_owned()),
            Form::Unknown => {
                Err("it is encrypted by a provider that this program does not have, or cut off".to_owned())
            }
            Form::AesGcm { key: name, body } => {
                let keys = || rule.iter().flat_map(|rule| rule.keys()).filter(|k| k.name() == name);
                for candidate in keys() {
                    if let Some(plain) = candidate.open(key, body) {
                        return Ok(Opened { plain: Some(plain), stale: writer != Some(candidate) });
                    }
                }
                Err(match keys().next() {
                    Some(_) => format!(
                        "it is damaged, was moved here from another key of the store, or the key {name:?} of the encryption \
                         configuration is not the one that it was written with"
                    ),
                    None => format!(
                        "it was encrypted with the key {name:?}, which the encryption configuration does not have for its \
                         resource; add it again behind the first one"
                    ),
                })
            }
        }
    }
}

/// Of nested prefixes the outermost.
pub(crate) fn outermost(mut prefixes: Vec<String>) -> Vec<String> {
    prefixes.sort_unstable();
    let mut all: Vec<String> = Vec::new();
    for prefix in prefixes {
        if all.last().is_none_or(|last| !prefix.starts_with(last.as_str())) {
            all.push(prefix);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    const A: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    const B: &str = "AQECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    fn rules(entries: &str) -> Rules {
        let entries = entries.replace("KEY_A", &format!("{{name: a, secret: {A}}}"));
        let entries = entries.replace("KEY_B", &format!("{{name: b, secret: {B}}}"));
        let text =
            format!("apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources: [{entries}]\n");
        Rules::from(&parse(&text).unwrap())
    }

    #[test]
    fn the_first_entry_that_names_a_resource_counts() {
        let all = rules(
            "{resources: [secrets, deployments.apps], providers: [{aesgcm: {keys: [KEY_A]}}]},\
             {resources: ['*.apps', '*.'], providers: [{identity: {}}]},\
             {resources: ['*.*'], providers: [{aesgcm: {keys: [KEY_B]}}]}",
        );
        for (key, label) in [
            ("/registry/core/secrets/default/x", "aesgcm:a"),
            ("/registry/apps/deployments/default/x", "aesgcm:a"),
            ("/registry/apps/replicasets/default/x", "identity"),
            ("/registry/core/configmaps/default/x", "identity"),
            ("/registry/example.org/secrets/default/x", "aesgcm:b"),
            ("/registry/core/nodes/x", "identity"),
            ("/registry/causeway/nodeports/30000", "identity"),
            ("/registry/core/secrets", "identity"),
            ("/other", "identity"),
        ] {
            let sealed = all.seal(key, b"{}").unwrap();
            assert_eq!(Form::of(sealed.as_deref().unwrap_or(b"{}")).label(), label, "{key}");
        }
        assert_eq!(all.prefixes(), ["/registry/"]);
        let some = rules("{resources: [secrets, '*.apps', deployments.apps.example], providers: [{identity: {}}]}");
        assert_eq!(
            some.prefixes(),
            ["/registry/apps.example/deployments/", "/registry/apps/", "/registry/core/secrets/"]
        );
    }

    #[test]
    fn the_first_provider_writes_and_all_read() {
        let key = "/registry/core/secrets/default/x";
        let old = rules("{resources: [secrets], providers: [{aesgcm: {keys: [KEY_A]}}]}");
        let both = rules("{resources: [secrets], providers: [{aesgcm: {keys: [KEY_B, KEY_A]}}, {identity: {}}]}");
        let new = rules("{resources: [secrets], providers: [{aesgcm: {keys: [KEY_B]}}]}");
        let back = rules("{resources: [secrets], providers: [{identity: {}}, {aesgcm: {keys: [KEY_B]}}]}");
        let none = Rules::default();
        let by_old = old.seal(key, b"x").unwrap().unwrap();
        let by_new = both.seal(key, b"x").unwrap().unwrap();
        let plain = |stale| Ok(Opened { plain: Some(b"x".to_vec()), stale });
        assert_eq!(old.open(key, &by_old), plain(false));
        assert_eq!(both.open(key, &by_old), plain(true));
        assert_eq!(both.open(key, &by_new), plain(false));
        assert_eq!(back.open(key, &by_new), plain(true));
        assert_eq!(both.open(key, b"x"), Ok(Opened { plain: None, stale: true }));
        assert_eq!(back.open(key, b"x"), Ok(Opened { plain: None, stale: false }));
        assert_eq!(none.open(key, b"x"), Ok(Opened { plain: None, stale: false }));
        for (rules, stored, words) in [
            (&new, &by_old[..], "the key \"a\""),
            (&none, &by_old, "the key \"a\""),
            (&new, b"x", "identity"),
            (&both, b"k8s:enc:kms:v2:x:", "does not have"),
            (&new, &by_new[..by_new.len() - 1], "damaged"),
        ] {
            let error = rules.open(key, stored).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
        assert!(both.open("/registry/core/secrets/default/y", &by_new).unwrap_err().contains("moved"));
        assert!(none.seal(key, b"k8s:enc:x").is_err(), "it could not be read again");
        assert!(both.seal(key, b"k8s:enc:x").is_ok());
    }
}
