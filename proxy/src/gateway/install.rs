//! Sees to it that the kinds of the Gateway API and our GatewayClass are there. What is there already, of whatever
//! version, is left alone: it may be somebody else's to update.

use super::CONTROLLER;
use super::types::GROUP;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, ApiResource, DynamicObject, PostParams};
use kube::{Client, ResourceExt as _};
use serde_json::json;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// The first pause after a failure.
const RETRY: Duration = Duration::from_millis(500);
/// The longest pause.
const MAX_RETRY: Duration = Duration::from_secs(15);

/// Creates what is missing; keeps trying until all is there or shutdown.
pub async fn run(client: Client, class: String, shutdown: CancellationToken) {
    let mut pause = RETRY;
    loop {
        match attempt(&client, &class).await {
            Ok(()) => return,
            Err(error) => tracing::warn!(%error, "cannot install the kinds of the Gateway API; trying again"),
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(MAX_RETRY),
        }
    }
}

async fn attempt(client: &Client, class: &str) -> anyhow::Result<()> {
    let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
    for definition in causeway_gateway_crds::definitions() {
        let definition: CustomResourceDefinition = serde_json::from_value(definition)?;
        if crds.get_opt(&definition.name_any()).await?.is_none() {
            exists(crds.create(&PostParams::default(), &definition).await)?;
        }
    }
    let resource = ApiResource {
        group: GROUP.to_owned(),
        version: "v1".to_owned(),
        api_version: format!("{GROUP}/v1"),
        kind: "GatewayClass".to_owned(),
        plural: "gatewayclasses".to_owned(),
    };
    let classes: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    let spec = json!({ "spec": {
        "controllerName": CONTROLLER,
        "description": "Gateways of Causeway's ingress, each with an address of its own",
    } });
    let object = DynamicObject::new(class, &resource).data(spec);
    exists(classes.create(&PostParams::default(), &object).await)?;
    Ok(())
}

/// Somebody else may have been faster.
fn exists<T>(result: Result<T, kube::Error>) -> Result<(), kube::Error> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        other => other.map(drop),
    }
}
