//! Why a controller could not do a step. In: client errors. Out: a text that says what was being done, and on what.

use kube::core::Status;

/// A step that failed; the controller tries it again later.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused, or could not be reached.
    #[error("cannot {doing}: {source}")]
    Api {
        /// For example `create pod default/web-x`.
        doing: String,
        /// The API server's answer.
        source: kube::Error,
    },
    /// An object asks for something that cannot be done as it stands; it is looked at again when it changes.
    #[error("{0}")]
    Object(String),
}

/// The result of a controller's step.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    fn status(&self) -> Option<&Status> {
        match self {
            Self::Api { source: kube::Error::Api(status), .. } => Some(status),
            _ => None,
        }
    }

    /// The object changed since it was read: reading again settles it.
    pub fn is_conflict(&self) -> bool {
        self.status().is_some_and(|s| s.code == 409 && s.reason != "AlreadyExists")
    }

    /// The name is taken.
    pub fn is_already_exists(&self) -> bool {
        self.status().is_some_and(|s| s.code == 409 && s.reason == "AlreadyExists")
    }

    /// The object, its namespace or its kind is not there.
    pub fn is_not_found(&self) -> bool {
        self.status().is_some_and(|s| s.code == 404)
    }

    /// The namespace takes no new objects, since it is being deleted.
    pub fn is_terminating_namespace(&self) -> bool {
        self.status().is_some_and(|s| {
            s.code == 403
                && (s.message.contains("being terminated")
                    || s.details.as_ref().is_some_and(|d| d.causes.iter().any(|c| c.reason == "NamespaceTerminating")))
        })
    }

    /// The API server's own words, for events and conditions.
    pub fn reply(&self) -> String {
        match self {
            Self::Api { source: kube::Error::Api(status), .. } => status.message.clone(),
            Self::Api { source, .. } => source.to_string(),
            Self::Object(text) => text.clone(),
        }
    }
}

/// Says what was being done when a request failed.
pub trait Doing<T> {
    /// Adds the words of `doing`, a verb phrase.
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Doing<T> for Result<T, kube::Error> {
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Api { doing: doing(), source })
    }
}

/// Takes "it is gone already" for success: what was to be deleted or released is not there any more.
pub fn ignore_not_found<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}
