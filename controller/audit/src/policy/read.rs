//! Reading a policy file. In: YAML or JSON. Out: a [`Policy`], or why it is none, in upstream's words where it has
//! some.

use super::{GroupResources, Level, Policy, Rule};
use crate::event::{Stage, Stages};
use serde::Deserialize;
use serde_json::json;
use std::path::Path;

/// A policy file may be as large as this, in bytes.
const MAX_SIZE: usize = 1 << 20;
/// Rules of a policy; every request is held against them.
const MAX_RULES: usize = 1000;
/// Names, groups, verbs, resources, … of all rules together.
const MAX_ENTRIES: usize = 20_000;

/// Why a policy is refused.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The file is not readable.
    #[error("failed to read file path {path:?}: {source}")]
    Read {
        /// Which file.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not YAML, not a policy's fields, or twice the same field.
    #[error("failed decoding: {0}")]
    Decoding(String),
    /// Larger than we read.
    #[error("too large: {what} is {size}, at most {max} are read")]
    TooLarge {
        /// Of what there is too much.
        what: &'static str,
        /// How much there is.
        size: usize,
        /// How much there may be.
        max: usize,
    },
    /// Not `audit.k8s.io/v1`.
    #[error("unknown group version field {0} in policy")]
    UnknownVersion(String),
    /// Without rules.
    #[error("loaded illegal policy with 0 rules")]
    NoRules,
    /// Fields with values they cannot have.
    #[error("{}", aggregate(.0))]
    Invalid(Vec<String>),
    /// Any of these, of a file.
    #[error("{error}: from file {}", path.display())]
    InFile {
        /// What is wrong.
        error: Box<PolicyError>,
        /// With which file.
        path: std::path::PathBuf,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct PolicyText {
    api_version: Option<String>,
    kind: Option<String>,
    #[serde(default)]
    #[allow(dead_code, reason = "accepted for interoperability, of no meaning")]
    metadata: Option<serde_json::Map<String, serde_json::Value>>,
    rules: Option<Vec<RuleText>>,
    #[serde(default)]
    omit_stages: Option<Vec<String>>,
    #[serde(default)]
    omit_managed_fields: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RuleText {
    #[serde(default)]
    level: Option<String>,
    #[serde(default)]
    users: Option<Vec<String>>,
    #[serde(default)]
    user_groups: Option<Vec<String>>,
    #[serde(default)]
    verbs: Option<Vec<String>>,
    #[serde(default)]
    resources: Option<Vec<GroupResources>>,
    #[serde(default)]
    namespaces: Option<Vec<String>>,
    #[serde(default, rename = "nonResourceURLs")]
    non_resource_urls: Option<Vec<String>>,
    #[serde(default)]
    omit_stages: Option<Vec<String>>,
    #[serde(default)]
    omit_managed_fields: Option<bool>,
}

impl Policy {
    /// Reads a policy file: YAML or JSON, at most 1 MiB.
    ///
    /// # Errors
    /// When the file is not readable or not a policy; see [`Policy::parse`].
    pub fn from_file(path: &Path) -> Result<Self, PolicyError> {
        let read = |source| PolicyError::Read { path: path.to_owned(), source };
        let in_file = |error| PolicyError::InFile { error: Box::new(error), path: path.to_owned() };
        let bytes = crate::text::read_bounded(path, MAX_SIZE).map_err(read)?;
        Self::parse(&bytes).map_err(in_file)
    }

    /// Reads a policy: `audit.k8s.io/v1`, YAML or JSON, at most 1 MiB and 1000 rules.
    ///
    /// # Errors
    /// Unknown or repeated fields, another version or kind, no rules, values that fields cannot have, too large.
    pub fn parse(bytes: &[u8]) -> Result<Self, PolicyError> {
        bound("the size in bytes", bytes.len(), MAX_SIZE)?;
        // By way of a Value: a number must not pass for a text.
        let text = serde_yaml_ng::from_slice::<serde_yaml_ng::Value>(bytes).and_then(PolicyText::deserialize);
        let text = text.map_err(|e| PolicyError::Decoding(crate::text::cut(&e.to_string(), 1024).into_owned()))?;
        let (version, kind) = (text.api_version.unwrap_or_default(), text.kind.unwrap_or_default());
        if version != "audit.k8s.io/v1" || kind != "Policy" {
            let named = format!("{}, Kind={}", crate::text::cut(&version, 256), crate::text::cut(&kind, 256));
            return Err(PolicyError::UnknownVersion(named));
        }
        let rules = text.rules.unwrap_or_default();
        bound("the number of rules", rules.len(), MAX_RULES)?;
        bound("the number of rules' entries", rules.iter().map(entries).sum(), MAX_ENTRIES)?;
        let mut errors = Vec::new();
        let omit_stages = stages(text.omit_stages.as_deref().unwrap_or_default(), "omitStages", &mut errors);
        let omit_managed_fields = text.omit_managed_fields.unwrap_or_default();
        let policy = Self {
            rules: (rules.into_iter().enumerate())
                .map(|(i, r)| rule(r, &format!("rules[{i}]"), omit_stages, omit_managed_fields, &mut errors))
                .collect(),
            omit_stages,
            omit_managed_fields,
        };
        if !errors.is_empty() {
            return Err(PolicyError::Invalid(errors));
        }
        if policy.rules.is_empty() {
            return Err(PolicyError::NoRules);
        }
        Ok(policy)
    }
}

fn bound(what: &'static str, size: usize, max: usize) -> Result<(), PolicyError> {
    if size > max { Err(PolicyError::TooLarge { what, size, max }) } else { Ok(()) }
}

fn entries(rule: &RuleText) -> usize {
    let lists = [&rule.users, &rule.user_groups, &rule.verbs, &rule.namespaces, &rule.non_resource_urls];
    let groups = rule.resources.iter().flatten().map(|g| 1 + g.resources.len() + g.resource_names.len());
    lists.iter().map(|list| list.as_ref().map_or(0, Vec::len)).sum::<usize>() + groups.sum::<usize>()
}

fn rule(text: RuleText, path: &str, omit: Stages, omit_managed_fields: bool, errors: &mut Vec<String>) -> Rule {
    let level = level(text.level.as_deref().unwrap_or_default(), path, errors);
    let non_resource_urls = text.non_resource_urls.unwrap_or_default();
    for (i, url) in non_resource_urls.iter().enumerate() {
        check_url(url, &format!("{path}.nonResourceURLs[{i}]"), errors);
    }
    let (resources, namespaces) = (text.resources.unwrap_or_default(), text.namespaces.unwrap_or_default());
    for group in &resources {
        check_group(group, &format!("{path}.resources"), errors);
    }
    let omit_stages =
        omit.union(stages(text.omit_stages.as_deref().unwrap_or_default(), &format!("{path}.omitStages"), errors));
    if !non_resource_urls.is_empty() && (!resources.is_empty() || !namespaces.is_empty()) {
        errors.push(format!(
            "{path}.nonResourceURLs: Invalid value: {}: rules cannot apply to both regular resources and non-resource \
             URLs",
            shown(&json!(non_resource_urls))
        ));
    }
    Rule {
        level,
        users: text.users.unwrap_or_default(),
        user_groups: text.user_groups.unwrap_or_default(),
        verbs: text.verbs.unwrap_or_default(),
        resources,
        namespaces,
        non_resource_urls,
        omit_stages,
        omit_managed_fields: text.omit_managed_fields.unwrap_or(omit_managed_fields),
    }
}

fn level(name: &str, path: &str, errors: &mut Vec<String>) -> Level {
    if let Some(level) = Level::ALL.into_iter().find(|l| l.name() == name) {
        return level;
    }
    errors.push(match name {
        "" => format!("{path}.level: Required value"),
        _ => {
            let supported = Level::ALL.map(|l| format!("{:?}", l.name())).join(", ");
            format!("{path}.level: Unsupported value: {}: supported values: {supported}", shown(&json!(name)))
        }
    });
    Level::None
}

fn check_url(url: &str, path: &str, errors: &mut Vec<String>) {
    if url == "*" {
        return;
    }
    if !url.starts_with('/') {
        let why = "non-resource URL rules must begin with a '/' character";
        errors.push(format!("{path}: Invalid value: {}: {why}", shown(&json!(url))));
    }
    if url.find('*').is_some_and(|at| at + 1 < url.len()) {
        let why = "non-resource URL wildcards '*' must be the final character of the rule";
        errors.push(format!("{path}: Invalid value: {}: {why}", shown(&json!(url))));
    }
}

fn check_group(group: &GroupResources, path: &str, errors: &mut Vec<String>) {
    if let Some(why) = (!group.group.is_empty()).then(|| not_a_subdomain(&group.group)).flatten() {
        errors.push(format!("{path}.group: Invalid value: {}: {why}", shown(&json!(group.group))));
    }
    if !group.resource_names.is_empty() && group.resources.is_empty() {
        let names = shown(&json!(group.resource_names));
        let why = "using resourceNames requires at least one resource";
        errors.push(format!("{path}.resourceNames: Invalid value: {names}: {why}"));
    }
}

fn not_a_subdomain(name: &str) -> Option<&'static str> {
    let label = |label: &str| {
        let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let within = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
        edge(label.as_bytes().first()) && edge(label.as_bytes().last()) && label.as_bytes().iter().all(within)
    };
    if name.len() > 253 {
        return Some("must be no more than 253 characters");
    }
    (!name.split('.').all(label)).then_some(
        "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start \
         and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
         '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
    )
}

fn stages(names: &[String], path: &str, errors: &mut Vec<String>) -> Stages {
    let mut stages = Stages::default();
    for (i, name) in names.iter().enumerate() {
        match Stage::ALL.into_iter().find(|s| s.name() == name) {
            Some(stage) => stages = stages.with(stage),
            None => {
                let allowed = Stage::ALL.map(Stage::name).join(",");
                let name = shown(&json!(name));
                errors.push(format!("{path}[{i}]: Invalid value: {name}: allowed stages are {allowed}"));
            }
        }
    }
    stages
}

/// As a value stands in a message, cut where it is long.
fn shown(value: &serde_json::Value) -> String {
    crate::text::cut(&value.to_string(), 512).into_owned()
}

/// As upstream words several errors at once; at most ten are told.
fn aggregate(errors: &[String]) -> String {
    match errors {
        [one] => one.clone(),
        many => {
            let more = if many.len() > 10 { format!(", and {} more", many.len() - 10) } else { String::new() };
            format!("[{}{more}]", many[..many.len().min(10)].join(", "))
        }
    }
}
