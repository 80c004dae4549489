//! What the cluster adds to pods: service account with its token volume, tolerations, priority.

use crate::engine::{Call, Engine, name_suffix, text};
use crate::status::{ApiError, ApiResult};
use serde_json::{Value, json};

const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const MIRROR: &str = "kubernetes.io/config.mirror";

/// Admits a new pod.
pub async fn admit(engine: &Engine, call: &Call, pod: &mut Value) -> ApiResult<()> {
    if !pod["spec"].is_object() {
        return Ok(());
    }
    causeway_registry::admission_pod_defaults(pod);
    priority(engine, pod)?;
    // What mirrors a kubelet's own pod has no account; whoever else says so is not believed.
    let of_node = call.user.groups.iter().any(|g| g == causeway_api::identity::GROUP_NODES);
    if of_node && pod["metadata"]["annotations"].get(MIRROR).is_some() {
        return Ok(());
    }
    service_account(engine, call, pod).await
}

fn refuse(pod: &Value, why: &str) -> ApiError {
    ApiError::forbidden("", "pods", text(pod, "/metadata/name"), why)
}

async fn service_account(engine: &Engine, call: &Call, pod: &mut Value) -> ApiResult<()> {
    let name = match text(pod, "/spec/serviceAccountName") {
        "" => "default".to_owned(),
        name => name.to_owned(),
    };
    let account = find_account(engine, call, pod, &name).await?;
    pod["spec"]["serviceAccountName"] = name.as_str().into();
    pod["spec"]["serviceAccount"] = name.as_str().into();
    let without_secrets = pod["spec"].get("imagePullSecrets").and_then(Value::as_array).is_none_or(Vec::is_empty);
    if let Some(secrets) = account.get("imagePullSecrets").filter(|s| without_secrets && !s.is_null()) {
        pod["spec"]["imagePullSecrets"] = secrets.clone();
    }
    let automount = |object: &Value| object.get("automountServiceAccountToken").and_then(Value::as_bool);
    if automount(&pod["spec"]).or_else(|| automount(&account)).unwrap_or(true) {
        mount_token(pod);
    }
    Ok(())
}

/// The account of the pod. `default` is created where it is missing: its controller may not have come to it yet.
async fn find_account(engine: &Engine, call: &Call, pod: &Value, name: &str) -> ApiResult<Value> {
    let served = engine.served("", "v1", "serviceaccounts")?;
    for _ in 0..2 {
        let found = match engine.get(&served, &call.namespace, name, Some(0)).await {
            Err(e) if e.code() == 404 => engine.get(&served, &call.namespace, name, None).await,
            other => other,
        };
        match found {
            Ok(account) => return Ok(account.value()),
            Err(e) if e.code() == 404 && name == "default" => {
                let object = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "default" } });
                let mut create = Call::internal(served.clone(), &call.namespace);
                create.options.dry_run = call.options.dry_run;
                match Box::pin(engine.create(&mut create, object)).await {
                    Ok(account) => return Ok(account),
                    Err(e) if e.failure().reason == "AlreadyExists" => {}
                    Err(e) => return Err(e),
                }
            }
            Err(e) if e.code() == 404 => break,
            Err(e) => return Err(e),
        }
    }
    let account = format!("{}/{name}", call.namespace);
    Err(refuse(pod, &format!("error looking up service account {account}: serviceaccount {name:?} not found")))
}

/// Adds the projected token volume to every container that has nothing mounted there.
fn mount_token(pod: &mut Value) {
    let lists = ["initContainers", "containers"];
    let has_mount = |container: &Value| {
        let mounts = container["volumeMounts"].as_array();
        mounts.is_some_and(|mounts| mounts.iter().any(|m| m["mountPath"] == TOKEN_PATH))
    };
    let needed = lists
        .iter()
        .filter_map(|list| pod["spec"].get(*list).and_then(Value::as_array))
        .flatten()
        .any(|container| !has_mount(container));
    if !needed {
        return;
    }
    let existing = pod["spec"].get("volumes").and_then(Value::as_array).and_then(|volumes| {
        volumes.iter().filter_map(|v| v["name"].as_str()).find(|n| n.starts_with("kube-api-access-")).map(str::to_owned)
    });
    let volume = match existing {
        Some(name) => name,
        None => {
            let name = format!("kube-api-access-{}", name_suffix());
            let volume = token_volume(&name);
            match pod["spec"].get_mut("volumes").and_then(Value::as_array_mut) {
                Some(volumes) => volumes.push(volume),
                None => pod["spec"]["volumes"] = json!([volume]),
            }
            name
        }
    };
    for list in lists {
        for container in pod["spec"].get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            if has_mount(container) || !container.is_object() {
                continue;
            }
            let mount = json!({ "name": volume, "readOnly": true, "mountPath": TOKEN_PATH });
            match container.get_mut("volumeMounts").and_then(Value::as_array_mut) {
                Some(mounts) => mounts.push(mount),
                None => container["volumeMounts"] = json!([mount]),
            }
        }
    }
}

fn token_volume(name: &str) -> Value {
    json!({ "name": name, "projected": { "defaultMode": 420, "sources": [
        { "serviceAccountToken": { "expirationSeconds": 3607, "path": "token" } },
        { "configMap": { "name": "kube-root-ca.crt", "items": [{ "key": "ca.crt", "path": "ca.crt" }] } },
        { "downwardAPI": { "items": [
            { "path": "namespace", "fieldRef": { "apiVersion": "v1", "fieldPath": "metadata.namespace" } },
        ] } },
    ] } })
}

/// Resolves the priority class to a number.
fn priority(engine: &Engine, pod: &mut Value) -> ApiResult<()> {
    let served = engine.served("scheduling.k8s.io", "v1", "priorityclasses")?;
    let (classes, _) = engine.feed.cache(&served.prefix).list(&served.prefix);
    let name = text(pod, "/spec/priorityClassName").to_owned();
    let class = if name.is_empty() {
        classes.iter().map(|o| o.value()).filter(|c| c["globalDefault"] == true).max_by_key(|c| c["value"].as_i64())
    } else {
        let class = classes.iter().find(|o| o.names().1 == name).map(|o| o.value());
        if class.is_none() {
            return Err(refuse(pod, &format!("no PriorityClass with name {name} was found")));
        }
        class
    };
    let (value, policy) = match &class {
        Some(class) => (
            class["value"].as_i64().unwrap_or(0),
            class["preemptionPolicy"].as_str().unwrap_or("PreemptLowerPriority").to_owned(),
        ),
        None => (0, "PreemptLowerPriority".to_owned()),
    };
    let asked = pod.pointer("/spec/priority").and_then(Value::as_i64);
    if asked.is_some_and(|asked| asked != value) {
        let asked = asked.unwrap_or_default();
        return Err(refuse(
            pod,
            &format!(
                "the integer value of priority ({asked}) must not be provided in pod spec; priority admission controller \
                 computed {value} from the given PriorityClass name"
            ),
        ));
    }
    if let Some(class) = &class {
        pod["spec"]["priorityClassName"] = class["metadata"]["name"].clone();
    }
    pod["spec"]["priority"] = value.into();
    if pod["spec"].get("preemptionPolicy").is_none_or(Value::is_null) {
        pod["spec"]["preemptionPolicy"] = policy.into();
    }
    Ok(())
}
