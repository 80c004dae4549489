//! Errors about fields of configuration files, in Kubernetes' words.

use std::fmt;

/// What is wrong with a field, for example `jwt[0].issuer.url: Required value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// The field's place.
    pub path: String,
    /// What is wrong, for example `Duplicate value: "x"`.
    pub problem: String,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.problem)
    }
}

impl std::error::Error for FieldError {}

/// Collects what is wrong.
#[derive(Debug, Default)]
pub(crate) struct Problems(pub(crate) Vec<FieldError>);

impl Problems {
    pub(crate) fn add(&mut self, path: impl Into<String>, problem: impl Into<String>) {
        self.0.push(FieldError { path: path.into(), problem: problem.into() });
    }

    pub(crate) fn invalid(&mut self, path: impl Into<String>, value: &str, why: &str) {
        self.add(path, format!("Invalid value: {value:?}: {why}"));
    }

    pub(crate) fn duplicate(&mut self, path: impl Into<String>, value: &str) {
        self.add(path, format!("Duplicate value: {value:?}"));
    }

    pub(crate) fn required(&mut self, path: impl Into<String>, why: &str) {
        self.add(path, if why.is_empty() { "Required value".to_owned() } else { format!("Required value: {why}") });
    }
}
