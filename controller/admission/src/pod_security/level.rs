//! Levels, versions and the policy of a namespace. In: labels. Out: what to enforce, audit and warn of, and which
//! labels are wrong.

use crate::read::at;
use serde_json::Value;
use std::fmt;

const PREFIX: &str = "pod-security.kubernetes.io/";

/// How much a pod may do; the order is from lenient to strict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Anything.
    Privileged,
    /// No known ways out of the container.
    Baseline,
    /// Hardened.
    Restricted,
}

impl Level {
    /// Reads a level's name; the error is upstream's words.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "privileged" => Ok(Self::Privileged),
            "baseline" => Ok(Self::Baseline),
            "restricted" => Ok(Self::Restricted),
            _ => Err("must be one of privileged, baseline, restricted".to_owned()),
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Privileged => "privileged",
            Self::Baseline => "baseline",
            Self::Restricted => "restricted",
        })
    }
}

/// Of which release of Kubernetes the standards are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Version {
    /// The newest known here.
    Latest,
    /// Those of 1.x; releases that are not known yet count as the newest known.
    V1(u64),
}

impl Version {
    /// Reads `latest` or `v1.x`; the error is upstream's words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let error = || r#"must be "latest" or "v1.x""#.to_owned();
        if text == "latest" {
            return Ok(Self::Latest);
        }
        let minor = text.strip_prefix("v1.").ok_or_else(error)?;
        let written_plainly = minor == "0" || !minor.starts_with('0') && minor.bytes().all(|b| b.is_ascii_digit());
        let minor = minor.parse::<i64>().ok().filter(|_| written_plainly).ok_or_else(error)?;
        u64::try_from(minor).map(Self::V1).map_err(|_| error())
    }

    /// The minor release, as far as comparing goes.
    pub(super) fn minor(self) -> u64 {
        match self {
            Self::Latest => u64::MAX,
            Self::V1(minor) => minor,
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => f.write_str("latest"),
            Self::V1(minor) => write!(f, "v1.{minor}"),
        }
    }
}

/// A level as of a version, written `restricted:latest`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LevelVersion {
    /// The level.
    pub level: Level,
    /// The version.
    pub version: Version,
}

impl LevelVersion {
    /// `privileged:latest`, which refuses nothing.
    pub const PRIVILEGED: Self = Self { level: Level::Privileged, version: Version::Latest };

    fn equivalent(self, other: Self) -> bool {
        self == other || self.level == Level::Privileged && other.level == Level::Privileged
    }
}

impl fmt::Display for LevelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.level, self.version)
    }
}

/// What holds for the pods of a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Pods that violate it are refused.
    pub enforce: LevelVersion,
    /// Violations are written into the audit event.
    pub audit: LevelVersion,
    /// Violations are told to the client.
    pub warn: LevelVersion,
}

impl Default for Policy {
    /// Nothing is refused.
    fn default() -> Self {
        Self { enforce: LevelVersion::PRIVILEGED, audit: LevelVersion::PRIVILEGED, warn: LevelVersion::PRIVILEGED }
    }
}

/// A label of a namespace that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelError {
    /// `metadata.labels[pod-security.kubernetes.io/enforce]`
    pub field: String,
    /// What the label says.
    pub value: String,
    /// What it must be.
    pub detail: String,
}

impl fmt::Display for LabelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: Invalid value: {:?}: {}", self.field, self.value, self.detail)
    }
}

/// The labels of one namespace, read one by one, with what is wrong with them.
struct Labels<'a> {
    labels: &'a Value,
    errors: Vec<LabelError>,
}

impl Labels<'_> {
    /// `None` without the label, `Some(None)` when it makes no sense.
    fn read<T>(&mut self, name: &str, parse: fn(&str) -> Result<T, String>) -> Option<Option<T>> {
        let key = format!("{PREFIX}{name}");
        let value = self.labels.get(&key).filter(|v| !v.is_null())?;
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        match parse(&text) {
            Ok(parsed) => Some(Some(parsed)),
            Err(detail) => {
                let value = text.chars().take(253).collect();
                self.errors.push(LabelError { field: format!("metadata.labels[{key}]"), value, detail });
                Some(None)
            }
        }
    }
}

impl Policy {
    /// The policy that a namespace's labels ask for. What cannot be understood is strict where it enforces and lenient
    /// where it only talks.
    pub fn from_labels(labels: &Value, defaults: Self) -> (Self, Vec<LabelError>) {
        let mut policy = defaults;
        let mut read = Labels { labels, errors: Vec::new() };
        let enforce = read.read("enforce", Level::parse);
        if let Some(level) = enforce {
            policy.enforce.level = level.unwrap_or(Level::Restricted);
        }
        if let Some(version) = read.read("enforce-version", Version::parse) {
            policy.enforce.version = version.unwrap_or(Version::Latest);
        }
        if let Some(level) = read.read("audit", Level::parse) {
            policy.audit.level = level.unwrap_or(Level::Privileged);
        }
        if let Some(version) = read.read("audit-version", Version::parse) {
            policy.audit.version = version.unwrap_or(Version::Latest);
        }
        let warn = read.read("warn", Level::parse);
        if let Some(level) = warn {
            policy.warn.level = level.unwrap_or(Level::Privileged);
        }
        let warn_version = read.read("warn-version", Version::parse);
        if let Some(version) = warn_version {
            policy.warn.version = version.unwrap_or(Version::Latest);
        }
        // Who enforces strictly and says nothing of warnings also wants to hear of workloads whose pods will fail.
        if warn.is_none() && enforce.flatten().is_some() && policy.enforce.level > policy.warn.level {
            policy.warn.level = policy.enforce.level;
            if warn_version.is_none() {
                policy.warn.version = policy.enforce.version;
            }
        }
        (policy, read.errors)
    }

    /// Nothing is refused, audited or warned of.
    pub fn fully_privileged(&self) -> bool {
        [self.enforce, self.audit, self.warn].iter().all(|l| l.level == Level::Privileged)
    }

    pub(super) fn equivalent(&self, other: &Self) -> bool {
        self.enforce.equivalent(other.enforce) && self.audit.equivalent(other.audit) && self.warn.equivalent(other.warn)
    }

    /// The modes that are set by labels and not privileged: `enforce=baseline:latest, warn=restricted:v1.30`.
    pub(super) fn set_modes(&self, labels: &Value) -> String {
        let modes = [("enforce", self.enforce), ("audit", self.audit), ("warn", self.warn)];
        let set = |mode: &str| {
            let key = format!("{PREFIX}{mode}");
            !labels[key.as_str()].is_null() || !labels[format!("{key}-version").as_str()].is_null()
        };
        let shown = modes.iter().filter(|(mode, l)| l.level != Level::Privileged && set(mode));
        shown.map(|(mode, level)| format!("{mode}={level}")).collect::<Vec<_>>().join(", ")
    }
}

/// The key of an audit annotation.
pub(super) fn annotation(name: &str) -> String {
    format!("{PREFIX}{name}")
}

/// The labels of an object.
pub(super) fn labels_of(object: &Value) -> &Value {
    at(object, "metadata.labels")
}
