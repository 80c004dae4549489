//! Environment variables of a container: services, `envFrom`, `env`, and `$(NAME)` expansion as Kubernetes does it.
//! Pure; ConfigMaps and Secrets are looked up by the caller first ([`needs`]).

use crate::downward::{self, Facts};
use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVarSource, Pod, Secret, Service};
use std::collections::{BTreeMap, BTreeSet};

/// ConfigMaps and Secrets of the pod's namespace, by name; `None` for one that does not exist.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// By name.
    pub config_maps: BTreeMap<String, Option<ConfigMap>>,
    /// By name.
    pub secrets: BTreeMap<String, Option<Secret>>,
}

/// Names of the (ConfigMaps, Secrets) that a container's environment mentions.
pub fn needs(container: &Container) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut maps, mut secrets) = (BTreeSet::new(), BTreeSet::new());
    for from in container.env_from.iter().flatten() {
        maps.extend(from.config_map_ref.as_ref().map(|r| r.name.clone()));
        secrets.extend(from.secret_ref.as_ref().map(|r| r.name.clone()));
    }
    for source in container.env.iter().flatten().filter_map(|e| e.value_from.as_ref()) {
        maps.extend(source.config_map_key_ref.as_ref().map(|r| r.name.clone()));
        secrets.extend(source.secret_key_ref.as_ref().map(|r| r.name.clone()));
    }
    (maps, secrets)
}

/// The container's variables beyond the image's; the error's text is that of `CreateContainerConfigError`.
pub fn build(
    pod: &Pod,
    container: &Container,
    sources: &Sources,
    services: &BTreeMap<String, String>,
    facts: &Facts,
) -> Result<BTreeMap<String, String>, String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("");
    let mut vars = BTreeMap::new();
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or("");
        if let Some(r) = &from.config_map_ref {
            match sources.config_maps.get(&r.name).and_then(Option::as_ref) {
                Some(map) => {
                    vars.extend(map.data.iter().flatten().map(|(k, v)| (format!("{prefix}{k}"), v.clone())));
                }
                None if r.optional == Some(true) => {}
                None => return Err(format!("configmap \"{}\" not found", r.name)),
            }
        }
        if let Some(r) = &from.secret_ref {
            match sources.secrets.get(&r.name).and_then(Option::as_ref) {
                Some(secret) => vars.extend(
                    secret
                        .data
                        .iter()
                        .flatten()
                        .map(|(k, v)| (format!("{prefix}{k}"), String::from_utf8_lossy(&v.0).into_owned())),
                ),
                None if r.optional == Some(true) => {}
                None => return Err(format!("secret \"{}\" not found", r.name)),
            }
        }
    }
    for var in container.env.iter().flatten() {
        let value = match (&var.value_from, &var.value) {
            (Some(source), _) => from_source(pod, container, source, sources, facts, namespace)?,
            (None, Some(text)) => Some(expand(text, |name| vars.get(name).or_else(|| services.get(name)).cloned())),
            (None, None) => Some(String::new()),
        };
        if let Some(value) = value {
            vars.insert(var.name.clone(), value);
        }
    }
    for (name, value) in services {
        vars.entry(name.clone()).or_insert_with(|| value.clone());
    }
    Ok(vars)
}

fn from_source(
    pod: &Pod,
    container: &Container,
    source: &EnvVarSource,
    sources: &Sources,
    facts: &Facts,
    namespace: &str,
) -> Result<Option<String>, String> {
    if let Some(r) = &source.field_ref {
        return downward::field(pod, r, facts).map(Some);
    }
    if let Some(r) = &source.resource_field_ref {
        return downward::resource(pod, Some(container), r, facts).map(Some);
    }
    if let Some(r) = &source.config_map_key_ref {
        let optional = r.optional == Some(true);
        let Some(map) = sources.config_maps.get(&r.name).and_then(Option::as_ref) else {
            return if optional { Ok(None) } else { Err(format!("configmap \"{}\" not found", r.name)) };
        };
        return match map.data.as_ref().and_then(|d| d.get(&r.key)) {
            Some(value) => Ok(Some(value.clone())),
            None if optional => Ok(None),
            None => Err(format!("couldn't find key {} in ConfigMap {namespace}/{}", r.key, r.name)),
        };
    }
    if let Some(r) = &source.secret_key_ref {
        let optional = r.optional == Some(true);
        let Some(secret) = sources.secrets.get(&r.name).and_then(Option::as_ref) else {
            return if optional { Ok(None) } else { Err(format!("secret \"{}\" not found", r.name)) };
        };
        return match secret.data.as_ref().and_then(|d| d.get(&r.key)) {
            Some(value) => Ok(Some(String::from_utf8_lossy(&value.0).into_owned())),
            None if optional => Ok(None),
            None => Err(format!("couldn't find key {} in Secret {namespace}/{}", r.key, r.name)),
        };
    }
    Err("valueFrom names no source that this version knows".to_owned())
}

/// Replaces `$(NAME)` by its value; `$$` is a literal `$`; an unknown name stays as it is written.
pub fn expand(text: &str, value: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|t| t.split_once(')')) {
            match value(name) {
                Some(v) => out.push_str(&v),
                None => out.push_str(&rest[at..at + name.len() + 3]),
            }
            rest = tail;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

/// Variables that name services (`WEB_SERVICE_HOST`, …): those of the pod's namespace when `links`, and always those
/// of `default/kubernetes`.
pub fn services(all: &[std::sync::Arc<Service>], namespace: &str, links: bool) -> BTreeMap<String, String> {
    let mut vars = BTreeMap::new();
    let is = |s: &Service, ns: &str| s.metadata.namespace.as_deref() == Some(ns);
    let name = |s: &Service| s.metadata.name.clone().unwrap_or_default();
    for s in all.iter().filter(|s| is(s, "default") && name(s) == "kubernetes") {
        service(s, &mut vars);
    }
    if links {
        for s in all.iter().filter(|s| is(s, namespace)) {
            service(s, &mut vars);
        }
    }
    vars
}

fn service(service: &Service, vars: &mut BTreeMap<String, String>) {
    let Some(spec) = &service.spec else { return };
    let ip = match spec.cluster_ip.as_deref() {
        Some(ip) if !ip.is_empty() && ip != "None" => ip,
        _ => return,
    };
    let shout = |text: &str| text.to_uppercase().replace('-', "_");
    let prefix = shout(service.metadata.name.as_deref().unwrap_or(""));
    let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
    vars.insert(format!("{prefix}_SERVICE_HOST"), ip.to_owned());
    for (i, port) in spec.ports.iter().flatten().enumerate() {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let url = format!("{}://{host}:{}", protocol.to_lowercase(), port.port);
        if i == 0 {
            vars.insert(format!("{prefix}_SERVICE_PORT"), port.port.to_string());
            vars.insert(format!("{prefix}_PORT"), url.clone());
        }
        if let Some(name) = port.name.as_deref().filter(|n| !n.is_empty()) {
            vars.insert(format!("{prefix}_SERVICE_PORT_{}", shout(name)), port.port.to_string());
        }
        let base = format!("{prefix}_PORT_{}_{protocol}", port.port);
        vars.insert(base.clone(), url);
        vars.insert(format!("{base}_PROTO"), protocol.to_lowercase());
        vars.insert(format!("{base}_PORT"), port.port.to_string());
        vars.insert(format!("{base}_ADDR"), ip.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn expansion() {
        let value = |n: &str| (n == "A").then(|| "x".to_owned());
        for (text, want) in [
            ("$(A)-$(A)", "x-x"),
            ("$(B)", "$(B)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$x"),
            ("$A $", "$A $"),
            ("$(A", "$(A"),
        ] {
            assert_eq!(expand(text, value), want, "{text}");
        }
    }

    #[test]
    fn order_and_missing_sources() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"containers": [
            {"name": "c", "envFrom": [{"prefix": "P_", "configMapRef": {"name": "m"}}],
             "env": [{"name": "A", "value": "$(P_k)!"}, {"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
                     {"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                     {"name": "O", "valueFrom": {"configMapKeyRef": {"name": "no", "key": "k", "optional": true}}}]}]}}))
        .unwrap();
        let c = &pod.spec.as_ref().unwrap().containers[0];
        assert_eq!(needs(c).0.into_iter().collect::<Vec<_>>(), ["m", "no"]);
        let map: ConfigMap = serde_json::from_value(json!({"data": {"k": "v"}})).unwrap();
        let mut sources = Sources::default();
        sources.config_maps.insert("m".to_owned(), Some(map));
        let build = |s: &Sources| build(&pod, c, s, &BTreeMap::new(), &Facts::default());
        assert_eq!(build(&sources).unwrap_err(), "secret \"s\" not found");
        let secret: Secret = serde_json::from_value(json!({"data": {"other": ""}})).unwrap();
        sources.secrets.insert("s".to_owned(), Some(secret));
        assert_eq!(build(&sources).unwrap_err(), "couldn't find key k in Secret n/s");
        let secret: Secret = serde_json::from_value(json!({"data": {"k": "dw=="}})).unwrap();
        sources.secrets.insert("s".to_owned(), Some(secret));
        let vars = build(&sources).unwrap();
        assert_eq!((vars["A"].as_str(), vars["S"].as_str(), vars["N"].as_str()), ("v!", "w", "p"));
        assert!(!vars.contains_key("O"));
    }

    #[test]
    fn service_variables() {
        let svc: Service = serde_json::from_value(json!({"metadata": {"name": "my-db", "namespace": "n"},
            "spec": {"clusterIP": "10.96.0.5", "ports": [{"name": "sql", "port": 5432}]}}))
        .unwrap();
        let all = [std::sync::Arc::new(svc)];
        let vars = services(&all, "n", true);
        assert_eq!(vars["MY_DB_SERVICE_HOST"], "10.96.0.5");
        assert_eq!(vars["MY_DB_SERVICE_PORT_SQL"], "5432");
        assert_eq!(vars["MY_DB_PORT_5432_TCP_ADDR"], "10.96.0.5");
        assert!(services(&all, "n", false).is_empty());
    }
}
