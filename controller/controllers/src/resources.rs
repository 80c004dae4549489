//! Which kinds the API serves, custom ones included. In: discovery. Out: one preferred version a kind.

use crate::error::{Doing, Result};
use kube::Client;
use kube::discovery::{ApiResource, Discovery, Scope};

/// A served kind.
#[derive(Debug, Clone)]
pub struct Kind {
    /// Names and version.
    pub resource: ApiResource,
    /// Lives in namespaces.
    pub namespaced: bool,
    /// What can be done with it.
    pub verbs: Vec<String>,
}

impl Kind {
    /// Whether a verb is served.
    pub fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }

    /// Group and plural: what a kind is whatever its version.
    pub fn id(&self) -> (String, String) {
        (self.resource.group.clone(), self.resource.plural.clone())
    }
}

/// All kinds. Two requests where the server knows aggregated discovery, else one for each group version.
pub async fn discover(client: &Client) -> Result<Vec<Kind>> {
    let discovery = match Discovery::new(client.clone()).run_aggregated().await {
        Ok(discovery) => discovery,
        Err(_) => Discovery::new(client.clone()).run().await.doing(|| "discover the served kinds".to_owned())?,
    };
    let mut kinds = Vec::new();
    for group in discovery.groups() {
        for (resource, capabilities) in group.resources_by_stability() {
            kinds.push(Kind {
                resource,
                namespaced: capabilities.scope == Scope::Namespaced,
                verbs: capabilities.operations,
            });
        }
    }
    kinds.sort_by_key(Kind::id);
    Ok(kinds)
}
