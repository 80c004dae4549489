//! `AuthenticationConfiguration` (apiserver.config.k8s.io): issuers of tokens, and who is anonymous.
//!
//! In: the text of the file, YAML or JSON. Out: a checked configuration with its expressions compiled, or all that is
//! wrong with it, in Kubernetes' words. Fields that are not known are refused (KEP-3331).

mod types;
mod validate;

pub use types::{
    Anonymous, AnonymousCondition, ClaimMappings, ClaimOrExpression, ClaimValidationRule, ExtraMapping, Issuer,
    JwtAuthenticator, PrefixedClaimOrExpression, UserValidationRule,
};
pub(crate) use validate::Compiled;

use crate::field::FieldError;
use types::File;

/// Largest file, in bytes.
pub const MAX_FILE: usize = 1024 * 1024;
/// Most issuers.
pub const MAX_ISSUERS: usize = 64;

const GROUP: &str = "apiserver.config.k8s.io";
const KIND: &str = "AuthenticationConfiguration";
const VERSIONS: [&str; 2] = ["v1", "v1beta1"];

/// Why a file is not a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read as one.
    #[error("failed to decode authentication configuration: {0}")]
    Decode(String),
    /// It can, and is not valid.
    #[error("{}", list(.0))]
    Invalid(Vec<FieldError>),
}

fn list(errors: &[FieldError]) -> String {
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    if let [one] = texts.as_slice() { one.clone() } else { format!("[{}]", texts.join(", ")) }
}

/// A checked configuration.
#[derive(Debug, Clone)]
pub struct AuthenticationConfiguration {
    /// The issuers, each with its expressions compiled.
    pub(crate) issuers: Vec<Compiled>,
    /// Who may be anonymous; `None` leaves it to the server's flag.
    pub anonymous: Option<Anonymous>,
}

impl AuthenticationConfiguration {
    /// Reads and checks a file. `disallowed` are issuers that the server has itself (of service accounts).
    pub fn parse(text: &str, disallowed: &[String]) -> Result<Self, ConfigError> {
        if text.len() > MAX_FILE {
            return Err(ConfigError::Decode(format!("the file has more than {MAX_FILE} bytes")));
        }
        let file: File = serde_yaml_ng::from_str(text).map_err(|e| ConfigError::Decode(e.to_string()))?;
        let version = file.api_version.strip_prefix(GROUP).and_then(|rest| rest.strip_prefix('/'));
        if file.kind != KIND || !version.is_some_and(|version| VERSIONS.contains(&version)) {
            return Err(ConfigError::Decode(format!(
                "no kind {:?} is registered for version {:?}",
                file.kind, file.api_version
            )));
        }
        let issuers = validate::configuration(file.jwt, file.anonymous.as_ref(), disallowed);
        Ok(Self { issuers: issuers.map_err(ConfigError::Invalid)?, anonymous: file.anonymous })
    }

    /// The issuers' URLs, in their order.
    pub fn issuer_urls(&self) -> Vec<&str> {
        self.issuers.iter().map(|issuer| issuer.config.issuer.url.as_str()).collect()
    }
}

#[cfg(test)]
mod tests;
