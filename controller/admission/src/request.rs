//! What a plugin must know of a request beside the objects. In: the front's RequestInfo and user. Out: plain words.

/// What a request does to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// A new object, or a subresource that is posted.
    Create,
    /// A changed object.
    Update,
    /// A removed object.
    Delete,
    /// A stream to an object: `exec`, `attach`, `port-forward`, `proxy`.
    Connect,
}

impl Operation {
    /// As upstream writes it: `CREATE`, …
    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
        }
    }
}

/// The request around an object.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The authenticated user's name.
    pub user: &'a str,
    /// The namespace; for Namespace objects their own name, for cluster-scoped ones empty.
    pub namespace: &'a str,
    /// The API group; empty for core.
    pub group: &'a str,
    /// The plural, for example `pods`.
    pub resource: &'a str,
    /// For example `status`; empty for the object itself.
    pub subresource: &'a str,
    /// What is done.
    pub operation: Operation,
}
