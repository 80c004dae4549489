//! The parameters of policies: which objects a binding means.

use super::text;
use crate::admission_request::{Facts, Selector};
use async_trait::async_trait;
use serde_json::Value;

/// Parameters that one binding may have for one request.
const MAX_PARAMETERS: usize = 256;

/// Looks up the objects that policies have as parameters.
#[async_trait]
pub trait Parameters: Send + Sync {
    /// Whether a kind is namespaced; `None` when it is not served.
    async fn namespaced(&self, api_version: &str, kind: &str) -> Option<bool>;

    /// One object; `namespace` is empty for cluster-wide kinds.
    async fn get(&self, api_version: &str, kind: &str, namespace: &str, name: &str) -> Result<Option<Value>, String>;

    /// All objects of a kind, of one namespace unless it is empty.
    async fn list(&self, api_version: &str, kind: &str, namespace: &str) -> Result<Vec<Value>, String>;
}

/// A binding's `paramRef`.
pub(crate) struct ParamRef {
    name: String,
    namespace: String,
    selector: Option<Selector>,
    denies_missing: bool,
}

impl ParamRef {
    pub(super) fn read(reference: &Value) -> Result<Self, String> {
        let selector = &reference["selector"];
        Ok(Self {
            name: text(reference, "name").to_owned(),
            namespace: text(reference, "namespace").to_owned(),
            selector: selector.is_object().then(|| Selector::read(selector)).transpose()?,
            denies_missing: text(reference, "parameterNotFoundAction") != "Allow",
        })
    }

    /// The parameters that are meant for a request.
    ///
    /// # Errors
    ///
    /// What is wrong with the binding: that is a failure of the policy.
    async fn find(
        &self,
        kind: &(String, String),
        facts: &Facts,
        source: &dyn Parameters,
    ) -> Result<Vec<Value>, String> {
        let (api_version, kind) = kind;
        let Some(namespaced) = source.namespaced(api_version, kind).await else {
            return Err(format!("paramKind kind `{api_version}, Kind={kind}` not known"));
        };
        let own = if facts.in_namespace() { facts.namespace.as_str() } else { "" };
        let namespace = match (namespaced, self.namespace.as_str()) {
            (false, "") => "",
            (false, _) => {
                return Err("paramRef.namespace must not be provided for a cluster-scoped `paramKind`".to_owned());
            }
            (true, "") if own.is_empty() => {
                return Err(
                    "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources".to_owned()
                );
            }
            (true, "") => own,
            (true, other) => other,
        };
        let found: Vec<Value> = match (&self.selector, self.name.as_str()) {
            (Some(_), name) if !name.is_empty() => {
                return Err("paramRef.name and paramRef.selector are mutually exclusive".to_owned());
            }
            (None, "") => return Err("one of name or selector must be provided".to_owned()),
            (None, name) => source.get(api_version, kind, namespace, name).await?.into_iter().collect(),
            (Some(selector), _) => {
                let all = source.list(api_version, kind, namespace).await?.into_iter();
                let labels = |o: &Value| o.pointer("/metadata/labels").cloned().unwrap_or_default();
                all.filter(|o| selector.selects(&labels(o))).take(MAX_PARAMETERS + 1).collect()
            }
        };
        if found.len() > MAX_PARAMETERS {
            return Err(format!("more than {MAX_PARAMETERS} params are selected by the policy binding"));
        }
        if found.is_empty() && self.denies_missing {
            return Err("no params found for policy binding with `Deny` parameterNotFoundAction".to_owned());
        }
        Ok(found)
    }
}

/// The parameters with which a policy is evaluated for a binding: `None` where it has none.
pub(super) async fn parameters(
    kind: Option<&(String, String)>,
    reference: Option<&ParamRef>,
    facts: &Facts,
    source: &dyn Parameters,
) -> Result<Vec<Option<Value>>, String> {
    match (kind, reference) {
        (Some(kind), Some(reference)) => Ok(reference.find(kind, facts, source).await?.into_iter().map(Some).collect()),
        _ => Ok(vec![None]),
    }
}
