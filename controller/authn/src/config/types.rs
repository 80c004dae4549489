//! The fields of the file, as Kubernetes names them.

use serde::Deserialize;

/// The whole file.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct File {
    pub(super) api_version: String,
    pub(super) kind: String,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) jwt: Vec<JwtAuthenticator>,
    #[serde(default)]
    pub(super) anonymous: Option<Anonymous>,
}

/// `null` is as if the field was not there.
fn nullable<'de, D, T>(from: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Option::<T>::deserialize(from).map(Option::unwrap_or_default)
}

/// Who may be anonymous.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Anonymous {
    /// Whether requests without a credential are `system:anonymous`; else they are refused.
    pub enabled: bool,
    /// When there are any, only for requests that meet one of them.
    #[serde(default, deserialize_with = "nullable")]
    pub conditions: Vec<AnonymousCondition>,
}

impl Anonymous {
    /// Whether a request for this path (decoded, without query) may be anonymous.
    pub fn allows(&self, path: &str) -> bool {
        self.enabled && (self.conditions.is_empty() || self.conditions.iter().any(|condition| condition.path == path))
    }
}

/// A condition for being anonymous.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnonymousCondition {
    /// The exact path.
    pub path: String,
}

/// An issuer and how its tokens become users.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JwtAuthenticator {
    /// Who signs.
    pub issuer: Issuer,
    /// What claims must be.
    #[serde(default, deserialize_with = "nullable")]
    pub claim_validation_rules: Vec<ClaimValidationRule>,
    /// What users are made of.
    pub claim_mappings: ClaimMappings,
    /// What users must be.
    #[serde(default, deserialize_with = "nullable")]
    pub user_validation_rules: Vec<UserValidationRule>,
}

/// Who signs tokens, and for whom.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Issuer {
    /// The claim `iss`, and where discovery starts.
    #[serde(default)]
    pub url: String,
    /// Another place for the discovery document.
    #[serde(default, rename = "discoveryURL", deserialize_with = "nullable")]
    pub discovery_url: String,
    /// PEM certificates; empty means the system's.
    #[serde(default, deserialize_with = "nullable")]
    pub certificate_authority: String,
    /// For whom tokens must be: one of these.
    #[serde(default, deserialize_with = "nullable")]
    pub audiences: Vec<String>,
    /// `MatchAny` or empty.
    #[serde(default, deserialize_with = "nullable")]
    pub audience_match_policy: String,
    /// Egress selectors are not supported: anything but empty is refused.
    #[serde(default, deserialize_with = "nullable")]
    pub egress_selector_type: String,
}

/// What a claim must be.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ClaimValidationRule {
    /// The name of a claim that must be there, a string.
    pub claim: String,
    /// Its value.
    pub required_value: String,
    /// Or a condition (CEL, variable `claims`).
    pub expression: String,
    /// What is said when it is not met.
    pub message: String,
}

/// What users are made of.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClaimMappings {
    /// The name; required.
    #[serde(default)]
    pub username: PrefixedClaimOrExpression,
    /// The groups.
    #[serde(default, deserialize_with = "nullable")]
    pub groups: PrefixedClaimOrExpression,
    /// The uid.
    #[serde(default, deserialize_with = "nullable")]
    pub uid: ClaimOrExpression,
    /// More.
    #[serde(default, deserialize_with = "nullable")]
    pub extra: Vec<ExtraMapping>,
}

/// A claim with a prefix, or an expression.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PrefixedClaimOrExpression {
    /// The claim's name.
    #[serde(deserialize_with = "nullable")]
    pub claim: String,
    /// Put before its value; required with a claim, may be empty.
    pub prefix: Option<String>,
    /// CEL, variable `claims`.
    #[serde(deserialize_with = "nullable")]
    pub expression: String,
}

/// A claim or an expression.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ClaimOrExpression {
    /// The claim's name.
    #[serde(deserialize_with = "nullable")]
    pub claim: String,
    /// CEL, variable `claims`.
    #[serde(deserialize_with = "nullable")]
    pub expression: String,
}

/// A key of `extra`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ExtraMapping {
    /// A domain-prefixed path in lower case, such as `example.org/foo`.
    pub key: String,
    /// CEL, variable `claims`: a string or a list of strings.
    pub value_expression: String,
}

/// What a user must be.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct UserValidationRule {
    /// CEL, variable `user`.
    pub expression: String,
    /// What is said when it is not met.
    pub message: String,
}
