//! The question and the answer of authorisation.

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subject<'a> {
    /// User name, for example `system:node:n1`.
    pub user: &'a str,
    /// Groups, for example `system:authenticated`.
    pub groups: &'a [String],
}

/// What is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes {
    /// API verb, or the HTTP verb in lower case for paths that are no resource.
    pub verb: String,
    /// API group.
    pub group: String,
    /// Plural resource; empty for other paths.
    pub resource: String,
    /// Subresource.
    pub subresource: String,
    /// Namespace; empty for all.
    pub namespace: String,
    /// Object name; for a list, watch or deletecollection, the one that its field selector leaves.
    pub name: String,
    /// The path, for what is no resource.
    pub path: String,
    /// What the field selector of a list, watch or deletecollection demands (KEP-4601).
    pub fields: Vec<Requirement>,
    /// What its label selector demands.
    pub labels: Vec<Requirement>,
}

/// One demand of a selector: a value is, or is not, this one. Demands that cannot be said so are left out, which makes a
/// question wider, never narrower.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    /// Field (`spec.nodeName`) or label.
    pub key: String,
    /// `=` (or a set of one value), not `!=`.
    pub equal: bool,
    /// The value.
    pub value: String,
}

impl Attributes {
    /// Resource and subresource in one word, as in the rules of roles: `pods/log`.
    pub fn full_resource(&self) -> String {
        if self.subresource.is_empty() {
            self.resource.clone()
        } else {
            format!("{}/{}", self.resource, self.subresource)
        }
    }

    /// Changes nothing.
    pub fn is_read(&self) -> bool {
        matches!(self.verb.as_str(), "get" | "list" | "watch" | "head")
    }
}

/// The answer of one authoriser.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Yes, because.
    Allow(String),
    /// No, whatever others say, because.
    Deny(String),
    /// Nothing here allows it; why, as far as it can be said.
    NoOpinion(String),
}
