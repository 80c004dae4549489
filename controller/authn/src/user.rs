//! What authentication results in: a user, or why there is none.

use std::collections::BTreeMap;

/// The user of a request without a credential.
pub const ANONYMOUS: &str = "system:anonymous";
/// Everybody with a valid credential.
pub const GROUP_AUTHENTICATED: &str = "system:authenticated";
/// Everybody without one.
pub const GROUP_UNAUTHENTICATED: &str = "system:unauthenticated";
/// All service accounts; with `:<namespace>`, those of a namespace.
pub const GROUP_SERVICE_ACCOUNTS: &str = "system:serviceaccounts";

/// A caller: the fields of authentication.k8s.io/v1 `UserInfo`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    /// The name that role bindings use.
    pub username: String,
    /// An id that is never used again, or empty.
    pub uid: String,
    /// The groups, in the order in which the credential has them.
    pub groups: Vec<String>,
    /// More about the caller; keys are lower case.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// The user of a request without a credential.
    pub fn anonymous() -> Self {
        Self { username: ANONYMOUS.to_owned(), groups: vec![GROUP_UNAUTHENTICATED.to_owned()], ..Self::default() }
    }

    /// Adds `system:authenticated`, as every successful authentication does: not for `system:anonymous`, and not to
    /// who is in that group or in `system:unauthenticated` already.
    pub fn add_authenticated_group(&mut self) {
        let has = self.groups.iter().any(|group| group == GROUP_AUTHENTICATED || group == GROUP_UNAUTHENTICATED);
        if !has && self.username != ANONYMOUS {
            self.groups.push(GROUP_AUTHENTICATED.to_owned());
        }
    }
}

/// A token that was accepted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Authenticated {
    /// Who it speaks for (without `system:authenticated`).
    pub user: User,
    /// Which of the wanted audiences it is for; empty when none was asked for.
    pub audiences: Vec<String>,
}

/// Why a credential was not accepted. Callers learn only `Unauthorized`; the text is for logs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthnError {
    /// The credential is bad.
    #[error("{0}")]
    Refused(String),
    /// It could not be checked now: an issuer or webhook does not answer, or too much is asked at once.
    #[error("{0}")]
    Unavailable(String),
}
