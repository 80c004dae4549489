//! Subresources that are more than a part of their object: scale, binding, eviction, tokens, logs and streams.

mod eviction;
mod scale;
mod token;

use crate::endpoints::Endpoints;
use crate::engine::{Call, Part, text};
use crate::exchange::{Incoming, Reply};
use crate::status::{ApiError, ApiResult};
use causeway_registry::{FieldErrors, Path};
use http::StatusCode;
use serde_json::{Value, json};
use std::sync::Arc;

/// Serves one of them.
pub async fn serve(
    server: &Arc<Endpoints>,
    mut call: Call,
    name: &str,
    subresource: &str,
    verb: &str,
    incoming: Incoming,
) -> ApiResult<Reply> {
    let pods = call.served.is("", "pods");
    match (subresource, verb) {
        ("scale", _) if call.served.resource.scale.is_some() => scale::serve(server, call, name, verb, incoming).await,
        ("binding", "create") if pods => {
            let (binding, _) = incoming.object().await?;
            bind(server, &mut call, name, &binding).await
        }
        ("eviction", "create") if pods => eviction::serve(server, call, name, incoming).await,
        ("token", "create") if call.served.is("", "serviceaccounts") => {
            token::serve(server, call, name, incoming).await
        }
        ("log", "get") if pods => log(server, &call, name, &incoming).await,
        ("portforward", "get" | "create") if pods => {
            server.engine.get(&call.served, &call.namespace, name, None).await?;
            // Whatever the protocol: clients show what their last attempt was told.
            Err(ApiError::not_implemented("port-forward is not implemented yet"))
        }
        // Nobody would start them.
        ("ephemeralcontainers", "get" | "update" | "patch") if pods => {
            Err(ApiError::not_implemented("ephemeral containers are not implemented yet"))
        }
        ("exec" | "attach", "get" | "create") if pods => stream(server, &mut call, name, subresource, &incoming).await,
        ("log" | "exec" | "attach" | "portforward" | "ephemeralcontainers" | "binding" | "eviction" | "token", _)
            if pods =>
        {
            Err(ApiError::method_not_allowed())
        }
        _ => Err(ApiError::no_such_path()),
    }
}

/// Assigns a pod to a node.
pub async fn bind(server: &Arc<Endpoints>, call: &mut Call, name: &str, binding: &Value) -> ApiResult<Reply> {
    let mut binding = binding.clone();
    server.engine.admission.subresource(&server.engine, call, name, "binding", &mut binding).await?;
    let node = text(&binding, "/target/name").to_owned();
    let kind = text(&binding, "/target/kind");
    if node.is_empty() || !(kind.is_empty() || kind == "Node") {
        let mut errors = FieldErrors::default();
        errors.required(&Path::new("target").child("name"), "");
        return Err(ApiError::invalid_kind("", "Binding", name, &errors));
    }
    let uid = text(&binding, "/metadata/uid").to_owned();
    let annotations = binding.pointer("/metadata/annotations").cloned();
    let resource = call.served.resource.clone();
    let conflict = |why: String| ApiError::conflict_because(&resource, name, &why);
    let no_text = || {
        ApiError::bad_request(
            "Binding in version \"v1\" cannot be handled as a Binding: values of metadata.annotations must be strings",
        )
    };
    // The whole object changes, but only here: /binding is the one way to a node's name.
    let bound = server.engine.patch(call, name, Part::Binding, |old| {
        let current = text(old, "/spec/nodeName");
        if !uid.is_empty() && uid != text(old, "/metadata/uid") {
            let actual = text(old, "/metadata/uid");
            return Err(conflict(format!(
                "Precondition failed: UID in precondition: {uid}, UID in object meta: {actual}"
            )));
        }
        if old.pointer("/metadata/deletionTimestamp").is_some_and(|t| !t.is_null()) {
            return Err(conflict(format!("pod {name} is being deleted, cannot be assigned to a host")));
        }
        if !current.is_empty() {
            return Err(conflict(format!("pod {name} is already assigned to node {current:?}")));
        }
        if old.pointer("/spec/schedulingGates").and_then(Value::as_array).is_some_and(|g| !g.is_empty()) {
            return Err(conflict(format!("pod {name} has non-empty .spec.schedulingGates")));
        }
        let mut new = old.clone();
        new["spec"]["nodeName"] = node.as_str().into();
        if let Some(annotations) = annotations.as_ref().and_then(Value::as_object) {
            for (key, value) in annotations {
                // A null is an empty string, as in Go.
                let value = if value.is_null() { "" } else { value.as_str().ok_or_else(no_text)? };
                new["metadata"]["annotations"][key] = value.into();
            }
        }
        set_scheduled(&mut new);
        Ok(new)
    });
    bound.await?;
    Ok(Reply::json(
        StatusCode::CREATED,
        &json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201 }),
    ))
}

/// The condition PodScheduled becomes true.
fn set_scheduled(pod: &mut Value) {
    let condition = json!({
        "type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": crate::engine::now_text(),
        "observedGeneration": pod.pointer("/metadata/generation").cloned().unwrap_or(Value::Null),
    });
    if pod["status"].get("conditions").and_then(Value::as_array).is_none() {
        pod["status"]["conditions"] = json!([]);
    }
    if let Some(all) = pod["status"]["conditions"].as_array_mut() {
        all.retain(|c| c["type"] != "PodScheduled");
        all.push(condition);
    }
}

/// The container a request is for: the named one, the default one, or the only one.
fn container_of(pod: &Value, asked: Option<&str>) -> ApiResult<String> {
    let name = text(pod, "/metadata/name");
    let names = |list: &str| -> Vec<String> {
        let containers = pod["spec"].get(list).and_then(Value::as_array);
        containers.into_iter().flatten().filter_map(|c| c["name"].as_str().map(str::to_owned)).collect()
    };
    let (main, init, ephemeral) = (names("containers"), names("initContainers"), names("ephemeralContainers"));
    match asked {
        Some(asked) if main.iter().chain(&init).chain(&ephemeral).any(|c| c == asked) => Ok(asked.to_owned()),
        Some(asked) => Err(ApiError::bad_request(format!("container {asked} is not valid for pod {name}"))),
        None if main.len() == 1 => Ok(main[0].clone()),
        None => {
            let marked = pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"].as_str();
            if let Some(marked) = marked.filter(|m| main.iter().any(|c| c == m)) {
                return Ok(marked.to_owned());
            }
            let mut text =
                format!("a container name must be specified for pod {name}, choose one of: [{}]", main.join(" "));
            if !init.is_empty() {
                text.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
            }
            Err(ApiError::bad_request(text))
        }
    }
}

fn encode(segment: &str) -> String {
    percent_encoding::utf8_percent_encode(segment, percent_encoding::NON_ALPHANUMERIC).to_string()
}

/// The log of a container.
async fn log(server: &Arc<Endpoints>, call: &Call, name: &str, incoming: &Incoming) -> ApiResult<Reply> {
    let pod = server.engine.get(&call.served, &call.namespace, name, None).await?.value();
    let container = container_of(&pod, incoming.info.query.get("container"))?;
    if text(&pod, "/spec/nodeName").is_empty() {
        return Ok(Reply::text(StatusCode::OK, ""));
    }
    let query = log_query(incoming)?;
    let path = format!("/containerLogs/{}/{name}/{}?{query}", call.namespace, encode(&container));
    server.relay.get(&server.engine, &pod, &path).await
}

/// exec and attach.
async fn stream(
    server: &Arc<Endpoints>,
    call: &mut Call,
    name: &str,
    kind: &str,
    incoming: &Incoming,
) -> ApiResult<Reply> {
    let mut options = stream_options(kind, incoming);
    server.engine.admission.subresource(&server.engine, call, name, kind, &mut options).await?;
    let pod = server.engine.get(&call.served, &call.namespace, name, None).await?.value();
    if matches!(text(&pod, "/status/phase"), "Succeeded" | "Failed") {
        let phase = text(&pod, "/status/phase");
        let why = format!("cannot exec or attach to a container in a completed pod; current phase is {phase}");
        return Err(ApiError::bad_request(why));
    }
    let path = stream_path(call, &pod, name, kind, incoming)?;
    server.relay.upgrade(&server.engine, &pod, &path, incoming).await
}

/// The request as admission sees it: PodExecOptions or PodAttachOptions.
fn stream_options(kind: &str, incoming: &Incoming) -> Value {
    let query = &incoming.info.query;
    let kind = if kind == "exec" { "PodExecOptions" } else { "PodAttachOptions" };
    let mut options = json!({ "kind": kind, "apiVersion": "v1" });
    for flag in ["stdin", "stdout", "stderr", "tty"] {
        if query.flag(flag) {
            options[flag] = true.into();
        }
    }
    if let Some(container) = query.get("container") {
        options["container"] = container.into();
    }
    if kind == "PodExecOptions" {
        options["command"] = json!(query.all("command"));
    }
    options
}

fn log_query(incoming: &Incoming) -> ApiResult<String> {
    let mut query = form_urlencoded::Serializer::new(String::new());
    for key in ["follow", "previous", "timestamps"] {
        if incoming.info.query.flag(key) {
            query.append_pair(key, "true");
        }
    }
    for key in ["tailLines", "sinceSeconds", "limitBytes"] {
        if let Some(number) = incoming.info.query.number(key)? {
            query.append_pair(key, &number.to_string());
        }
    }
    if let Some(time) = incoming.info.query.get("sinceTime") {
        query.append_pair("sinceTime", time);
    }
    Ok(query.finish())
}

fn stream_path(call: &Call, pod: &Value, name: &str, kind: &str, incoming: &Incoming) -> ApiResult<String> {
    let mut query = form_urlencoded::Serializer::new(String::new());
    for command in incoming.info.query.all("command") {
        query.append_pair("command", command);
    }
    for (ours, theirs) in [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")] {
        if incoming.info.query.flag(ours) {
            query.append_pair(theirs, "1");
        }
    }
    let container = container_of(pod, incoming.info.query.get("container"))?;
    Ok(format!("/{kind}/{}/{name}/{}?{}", call.namespace, encode(&container), query.finish()))
}
