//! The ServiceAccount `default` and the ConfigMap `kube-root-ca.crt` in every namespace.
//!
//! In: namespaces, what is there. Out: both objects created where they are missing and repaired where they differ.

use crate::cache::key_of;
use crate::context::Context;
use crate::error::{Doing, Result, ignore_not_found};
use crate::meta::{Map, name};
use crate::queue::{Key, Queue};
use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

const ACCOUNT: &str = "default";
const ROOT_CA: &str = "kube-root-ca.crt";
const CA_KEY: &str = "ca.crt";

/// The controller.
pub struct Accounts {
    context: Arc<Context>,
}

/// Wires the handlers up; keys are namespaces' names.
pub fn queue(context: &Arc<Context>) -> Arc<Queue<Key>> {
    let queue = Queue::new();
    let sink = queue.clone();
    context.caches.namespaces.on_change(move |_, new| {
        if let Some(namespace) = new {
            sink.add(key_of(&**namespace));
        }
    });
    let sink = queue.clone();
    context.caches.accounts.on_change(move |old, new| {
        if let (Some(gone), None) = (old, new)
            && name(&gone.metadata) == ACCOUNT
        {
            sink.add(Key::new("", gone.metadata.namespace.as_deref().unwrap_or("")));
        }
    });
    let sink = queue.clone();
    context.caches.config_maps.on_change(move |old, new| {
        if let Some(map) = new.or(old).filter(|m| name(&m.metadata) == ROOT_CA) {
            sink.add(Key::new("", map.metadata.namespace.as_deref().unwrap_or("")));
        }
    });
    queue
}

impl Accounts {
    /// The controller over `context`.
    pub fn new(context: Arc<Context>) -> Arc<Self> {
        Arc::new(Self { context })
    }

    /// One level-triggered step for one namespace.
    pub async fn reconcile(self: Arc<Self>, key: Key) -> Result<Option<Duration>> {
        let there = self.context.caches.namespaces.get(&key);
        if there.is_none_or(|n| n.metadata.deletion_timestamp.is_some()) {
            return Ok(None);
        }
        match self.ensure(&key.name).await {
            Err(error) if error.is_terminating_namespace() => Ok(None),
            other => other.map(|()| None),
        }
    }

    async fn ensure(&self, namespace: &str) -> Result<()> {
        let caches = &self.context.caches;
        let metadata = |object: &str| ObjectMeta {
            name: Some(object.to_owned()),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        };
        if caches.accounts.get(&Key::new(namespace, ACCOUNT)).is_none() {
            let account = ServiceAccount { metadata: metadata(ACCOUNT), ..ServiceAccount::default() };
            let made = self.context.api::<ServiceAccount>(namespace).create(&PostParams::default(), &account).await;
            match made.doing(|| format!("create ServiceAccount {namespace}/{ACCOUNT}")) {
                Err(error) if error.is_already_exists() => {}
                other => drop(other?),
            }
        }
        let data: Map = [(CA_KEY.to_owned(), self.context.config.ca_pem.clone())].into();
        let maps = self.context.api::<ConfigMap>(namespace);
        match caches.config_maps.get(&Key::new(namespace, ROOT_CA)) {
            Some(map) if map.data.as_ref() == Some(&data) => {}
            Some(_) => {
                let patch = json!({ "data": data });
                let written = maps.patch(ROOT_CA, &PatchParams::default(), &Patch::Merge(&patch)).await;
                ignore_not_found(written.doing(|| format!("repair ConfigMap {namespace}/{ROOT_CA}")))?;
            }
            None => {
                let map = ConfigMap { metadata: metadata(ROOT_CA), data: Some(data), ..ConfigMap::default() };
                match maps
                    .create(&PostParams::default(), &map)
                    .await
                    .doing(|| format!("create ConfigMap {namespace}/{ROOT_CA}"))
                {
                    Err(error) if error.is_already_exists() => {}
                    other => drop(other?),
                }
            }
        }
        Ok(())
    }
}
