//! The table of everything that is served: the built-in kinds and, filled at run time, custom resources.
//!
//! In: registry [`Resource`]s. Out: [`Served`] by path, and snapshots for discovery. Readers never wait: a change
//! swaps the whole table.

use crate::status::ApiResult;
use arc_swap::ArcSwap;
use bytes::Bytes;
use causeway_registry::{Resource, Scope};
use causeway_schema::Schema;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::Arc;

/// One resource in one version.
pub struct Served {
    /// Names and rules.
    pub resource: Resource,
    /// `v1` or `apps/v1`.
    pub api_version: String,
    /// The version objects are stored in.
    pub storage_api_version: String,
    /// Where objects are stored; ends with `/`.
    pub prefix: String,
    /// The fields it may have.
    pub schema: Arc<Schema>,
    /// The raw OpenAPI schema of a custom resource.
    pub custom: Option<Custom>,
    /// How objects read differently in this version.
    pub conversion: Conversion,
}

/// What is known of a custom resource's definition.
pub struct Custom {
    /// Name of the definition.
    pub definition: String,
    /// `openAPIV3Schema` as the user wrote it.
    pub openapi: Value,
    /// Uid and generation of the definition it was made from.
    pub mark: String,
}

/// Translation between the stored form and this version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conversion {
    /// Only `apiVersion` may differ.
    None,
    /// events.k8s.io over core events.
    Events,
}

impl Served {
    /// A built-in resource.
    pub fn builtin(resource: Resource) -> Self {
        let api_version = api_version(&resource.group, &resource.version);
        let schema = causeway_schema::builtin(&resource.group, &resource.version, &resource.kind)
            .unwrap_or_else(causeway_schema::anything);
        let events = resource.group == "events.k8s.io" && resource.plural == "events";
        let (prefix, storage_api_version, conversion) = if events {
            (prefix("", "events"), "v1".to_owned(), Conversion::Events)
        } else {
            (prefix(&resource.group, &resource.plural), api_version.clone(), Conversion::None)
        };
        Self { resource, api_version, storage_api_version, prefix, schema, custom: None, conversion }
    }

    /// Lives in namespaces.
    pub fn namespaced(&self) -> bool {
        self.resource.scope == Scope::Namespaced
    }

    /// The storage key of an object.
    pub fn key(&self, namespace: &str, name: &str) -> String {
        if self.namespaced() { format!("{}{namespace}/{name}", self.prefix) } else { format!("{}{name}", self.prefix) }
    }

    /// Offers a verb.
    pub fn offers(&self, verb: &str) -> bool {
        self.resource.verbs.iter().any(|v| v == verb)
    }

    /// Is the given built-in kind.
    pub fn is(&self, group: &str, plural: &str) -> bool {
        self.resource.group == group && self.resource.plural == plural
    }

    /// The stored form of an object of this version.
    pub fn to_storage(&self, object: &mut Value) {
        if self.conversion == Conversion::Events {
            *object = causeway_registry::events_to_core(object);
        }
        object["apiVersion"] = self.storage_api_version.as_str().into();
    }

    /// An object as this version shows it.
    pub fn to_served(&self, object: &mut Value) {
        if self.conversion == Conversion::Events {
            *object = causeway_registry::core_to_events(object);
        }
        object["apiVersion"] = self.api_version.as_str().into();
        if self.custom.is_some() {
            self.resource.strategy.default(object);
        }
    }
}

/// `v1` for the core group, else `group/version`.
pub fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// The storage prefix of a resource; ends with `/`.
pub fn prefix(group: &str, plural: &str) -> String {
    let group = if group.is_empty() { "core" } else { group };
    format!("/registry/{group}/{plural}/")
}

/// A document that is made of a table.
pub struct Document {
    /// Changes whenever the document may change.
    pub hash: String,
    /// Its JSON.
    pub body: Bytes,
}

/// Group and plural of a storage prefix: what [`prefix`] was given.
pub fn group_and_plural(prefix: &str) -> (&str, &str) {
    let mut parts = prefix.trim_matches('/').split('/').skip(1);
    let (group, plural) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
    (if group == "core" { "" } else { group }, plural)
}

/// One state of the table.
#[derive(Default)]
pub struct Table {
    by_path: HashMap<(String, String, String), Arc<Served>>,
    documents: parking_lot::Mutex<HashMap<String, Arc<Document>>>,
    /// In order of registration, built-in first.
    pub all: Vec<Arc<Served>>,
}

impl Table {
    fn new(all: Vec<Arc<Served>>) -> Self {
        let by_path = all
            .iter()
            .map(|s| ((s.resource.group.clone(), s.resource.version.clone(), s.resource.plural.clone()), s.clone()))
            .collect();
        Self { by_path, documents: parking_lot::Mutex::default(), all }
    }

    /// A document about what is served, made when it is asked for the first time. Failures are not kept: there is no
    /// bound on what may be asked for that is not there.
    pub fn document(&self, name: &str, make: impl FnOnce() -> ApiResult<Document>) -> ApiResult<Arc<Document>> {
        // Held while one is made: many who ask at once wait for it instead of making many.
        let mut documents = self.documents.lock();
        if let Some(made) = documents.get(name) {
            return Ok(made.clone());
        }
        let made = Arc::new(make()?);
        documents.insert(name.to_owned(), made.clone());
        Ok(made)
    }

    /// The resource at group, version and plural.
    pub fn get(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Served>> {
        self.by_path.get(&(group.to_owned(), version.to_owned(), plural.to_owned())).cloned()
    }

    /// The resource of a kind.
    pub fn by_kind(&self, group: &str, version: &str, kind: &str) -> Option<&Arc<Served>> {
        self.all.iter().find(|s| s.resource.group == group && s.resource.version == version && s.resource.kind == kind)
    }

    /// Groups in order, each with its versions in order of preference.
    pub fn groups(&self) -> Vec<(String, Vec<String>)> {
        let mut groups: Vec<(String, Vec<String>)> = Vec::new();
        for served in &self.all {
            let r = &served.resource;
            match groups.iter_mut().find(|(g, _)| *g == r.group) {
                Some((_, versions)) if versions.contains(&r.version) => {}
                Some((_, versions)) => versions.push(r.version.clone()),
                None => groups.push((r.group.clone(), vec![r.version.clone()])),
            }
        }
        for (_, versions) in &mut groups {
            versions.sort_by_key(|v| version_rank(v));
        }
        groups
    }

    /// What is served in one group and version.
    pub fn in_version<'a>(&'a self, group: &'a str, version: &'a str) -> impl Iterator<Item = &'a Arc<Served>> {
        self.all.iter().filter(move |s| s.resource.group == group && s.resource.version == version)
    }
}

/// Kubernetes' order of versions: GA before beta before alpha, higher numbers first, all else after by name.
fn version_rank(version: &str) -> (u8, std::cmp::Reverse<u32>, std::cmp::Reverse<u32>, String) {
    use std::cmp::Reverse;
    let unknown = || (3, Reverse(0), Reverse(0), version.to_owned());
    let Some(rest) = version.strip_prefix('v') else { return unknown() };
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let Ok(major) = rest[..digits].parse::<u32>() else { return unknown() };
    let tail = &rest[digits..];
    if tail.is_empty() {
        return (0, Reverse(major), Reverse(0), String::new());
    }
    for (rank, word) in [(1, "beta"), (2, "alpha")] {
        if let Some(Ok(minor)) = tail.strip_prefix(word).map(str::parse::<u32>) {
            return (rank, Reverse(major), Reverse(minor), String::new());
        }
    }
    unknown()
}

/// The live table.
pub struct Catalog {
    builtin: Vec<Arc<Served>>,
    custom: parking_lot::Mutex<HashMap<String, Vec<Arc<Served>>>>,
    table: ArcSwap<Table>,
}

impl Catalog {
    /// A table of the given built-in resources.
    pub fn new(resources: Vec<Resource>) -> Self {
        let builtin: Vec<_> = resources.into_iter().map(|r| Arc::new(Served::builtin(r))).collect();
        let table = ArcSwap::from_pointee(Table::new(builtin.clone()));
        Self { builtin, custom: parking_lot::Mutex::default(), table }
    }

    /// The state now.
    pub fn table(&self) -> Arc<Table> {
        self.table.load_full()
    }

    /// Serves the versions of a definition instead of those it had; none takes it out.
    pub fn set_custom(&self, definition: &str, versions: Vec<Arc<Served>>) {
        let mut custom = self.custom.lock();
        if versions.is_empty() {
            custom.remove(definition);
        } else {
            custom.insert(definition.to_owned(), versions);
        }
        let mut names: Vec<_> = custom.keys().cloned().collect();
        names.sort();
        let mut all = self.builtin.clone();
        for name in names {
            all.extend(custom.get(&name).into_iter().flatten().cloned());
        }
        self.table.store(Arc::new(Table::new(all)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_sort_as_in_kubernetes() {
        let mut versions = vec!["v1alpha1", "foo1", "v1", "v2beta1", "v10", "v1beta2"];
        versions.sort_by_key(|v| version_rank(v));
        assert_eq!(versions, ["v10", "v1", "v2beta1", "v1beta2", "v1alpha1", "foo1"]);
    }
}
