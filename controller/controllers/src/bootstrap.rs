//! Bootstrap tokens: expired ones are deleted, and `kube-public/cluster-info` is signed with those that may sign.
//!
//! In: the Secrets of tokens, the ConfigMap. Out: deletes, and one signature a token in the ConfigMap.

use crate::context::Context;
use crate::error::{Doing, Result, ignore_not_found};
use crate::meta::{Map, name};
use causeway_api::bootstrap_token::{
    self, CLUSTER_INFO, CLUSTER_INFO_KEY, CLUSTER_INFO_NAMESPACE, NAMESPACE, SECRET_TYPE, SIGNATURE_PREFIX, Token,
};
use futures::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::runtime::{WatchStreamExt, reflector, watcher};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Tokens end by the clock, which no watch tells; and somebody may have changed the ConfigMap.
const PERIOD: Duration = Duration::from_secs(10);

/// Works until `shutdown`.
pub async fn run(context: Arc<Context>, shutdown: CancellationToken) {
    let (secrets, writer) = reflector::store::<Secret>();
    let config = watcher::Config::default().fields(&format!("type={SECRET_TYPE}"));
    let watched = causeway_api::watch::watch(context.api::<Secret>(NAMESPACE), config);
    let mut stream = watched.reflect(writer).boxed();
    let mut complete = false;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(PERIOD) => {}
            event = stream.next() => match event {
                Some(Ok(watcher::Event::InitDone)) => complete = true,
                Some(Ok(watcher::Event::Apply(_) | watcher::Event::Delete(_))) => {}
                Some(Ok(_)) => continue,
                Some(Err(error)) => {
                    tracing::debug!(%error, "watching bootstrap tokens");
                    continue;
                }
                None => return,
            },
        }
        if complete && let Err(error) = step(&context, &secrets.state()).await {
            tracing::warn!(%error, "bootstrap tokens; trying again");
        }
    }
}

async fn step(context: &Context, secrets: &[Arc<Secret>]) -> Result<()> {
    let now = Timestamp::now();
    let mut signing = Vec::new();
    for secret in secrets {
        match Token::of(secret) {
            Some(token) if token.expired(now) => delete(context, secret).await?,
            Some(token) if token.signing => signing.push(token),
            _ => {}
        }
    }
    let maps = context.api::<ConfigMap>(CLUSTER_INFO_NAMESPACE);
    let found = maps.get_opt(CLUSTER_INFO).await.doing(|| format!("read ConfigMap {CLUSTER_INFO}"))?;
    let Some(data) = found.and_then(|m| m.data) else { return Ok(()) };
    let change = signatures(&data, &signing);
    if change.is_empty() {
        return Ok(());
    }
    let patch = Patch::Merge(json!({ "data": change }));
    let written = maps.patch(CLUSTER_INFO, &PatchParams::default(), &patch).await;
    ignore_not_found(written.doing(|| format!("sign ConfigMap {CLUSTER_INFO}"))).map(drop)
}

async fn delete(context: &Context, secret: &Secret) -> Result<()> {
    let name = name(&secret.metadata);
    // Only as it was seen: it may have been given a longer life.
    let only =
        Preconditions { uid: secret.metadata.uid.clone(), resource_version: secret.metadata.resource_version.clone() };
    let options = DeleteParams { preconditions: Some(only), ..DeleteParams::default() };
    let deleted = context.api::<Secret>(NAMESPACE).delete(name, &options).await;
    ignore_not_found(deleted.doing(|| format!("delete the expired bootstrap token {name}"))).map(drop)
}

/// The signatures to write, and those to remove (`None`). Pure.
fn signatures(data: &Map, tokens: &[Token]) -> BTreeMap<String, Option<String>> {
    let content = data.get(CLUSTER_INFO_KEY).map(String::as_str).unwrap_or_default();
    let sign = |t: &Token| bootstrap_token::signature(&t.id, &t.secret, content);
    let wanted: Map = tokens.iter().map(|t| (format!("{SIGNATURE_PREFIX}{}", t.id), sign(t))).collect();
    let gone = data.keys().filter(|k| k.starts_with(SIGNATURE_PREFIX) && !wanted.contains_key(*k));
    let mut change: BTreeMap<String, Option<String>> = gone.map(|k| (k.clone(), None)).collect();
    change.extend(wanted.into_iter().filter(|(k, v)| data.get(k) != Some(v)).map(|(k, v)| (k, Some(v))));
    change
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_signature_a_token_and_none_that_is_old() {
        let token = |id: &str| Token {
            id: id.to_owned(),
            secret: "0123456789abcdef".to_owned(),
            expiration: None,
            authentication: true,
            signing: true,
            extra_groups: Vec::new(),
            description: String::new(),
        };
        let mut data = Map::from([(CLUSTER_INFO_KEY.to_owned(), "text".to_owned())]);
        data.insert(format!("{SIGNATURE_PREFIX}gone00"), "x..y".to_owned());
        let change = signatures(&data, &[token("abcdef")]);
        assert_eq!(change.len(), 2);
        assert_eq!(change[&format!("{SIGNATURE_PREFIX}gone00")], None);
        let signed = change[&format!("{SIGNATURE_PREFIX}abcdef")].clone().unwrap();
        assert!(signed.contains(".."), "the payload is left out");
        data.remove(&format!("{SIGNATURE_PREFIX}gone00"));
        data.insert(format!("{SIGNATURE_PREFIX}abcdef"), signed);
        assert!(signatures(&data, &[token("abcdef")]).is_empty());
        data.insert(CLUSTER_INFO_KEY.to_owned(), "other".to_owned());
        assert_eq!(signatures(&data, &[token("abcdef")]).len(), 1, "another text needs another signature");
    }
}
