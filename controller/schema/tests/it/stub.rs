//! A loopback HTTP server that answers `kubectl` with discovery and our OpenAPI documents, and keeps what it is sent.

use causeway_schema::openapi::{ServedResource, v3_document};
use causeway_schema::protobuf;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// One request with a body.
#[derive(Debug, Clone)]
pub struct Sent {
    pub method: String,
    pub target: String,
    pub content_type: String,
    pub body: Vec<u8>,
}

/// The server; it lives as long as the test's process.
pub struct Stub {
    pub address: SocketAddr,
    pub sent: Arc<Mutex<Vec<Sent>>>,
}

const KINDS: &[(&str, &str, &str, &str, bool)] = &[
    ("", "v1", "Namespace", "namespaces", false),
    ("", "v1", "Pod", "pods", true),
    ("", "v1", "Service", "services", true),
    ("", "v1", "ConfigMap", "configmaps", true),
    ("", "v1", "Secret", "secrets", true),
    ("", "v1", "ServiceAccount", "serviceaccounts", true),
    ("apps", "v1", "Deployment", "deployments", true),
    ("batch", "v1", "Job", "jobs", true),
    ("batch", "v1", "CronJob", "cronjobs", true),
    ("networking.k8s.io", "v1", "Ingress", "ingresses", true),
    ("rbac.authorization.k8s.io", "v1", "Role", "roles", true),
    ("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets", true),
    ("autoscaling", "v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers", true),
];

fn resources() -> Vec<ServedResource> {
    let verbs = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"].map(str::to_owned);
    let resource = |(group, version, kind, plural, namespaced): &(&str, &str, &str, &str, bool)| ServedResource {
        group: (*group).to_owned(),
        version: (*version).to_owned(),
        kind: (*kind).to_owned(),
        plural: (*plural).to_owned(),
        singular: kind.to_lowercase(),
        namespaced: *namespaced,
        verbs: verbs.to_vec(),
        ..ServedResource::default()
    };
    KINDS.iter().map(resource).collect()
}

impl Stub {
    pub fn start() -> Stub {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let sent = Arc::new(Mutex::new(Vec::new()));
        let record = Arc::clone(&sent);
        let objects = Arc::new(Mutex::new(HashMap::new()));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (record, objects) = (Arc::clone(&record), Arc::clone(&objects));
                thread::spawn(move || serve(&stream, &record, &objects));
            }
        });
        Stub { address, sent }
    }

    /// What was sent to create an object, decoded.
    pub fn created(&self) -> Vec<Value> {
        let sent = self.sent.lock().unwrap();
        sent.iter().filter(|s| s.method == "POST").map(|s| decode(s).unwrap()).collect()
    }
}

fn decode(sent: &Sent) -> Result<Value, String> {
    if sent.content_type.contains("protobuf") {
        protobuf::decode(&sent.body).map_err(|e| e.to_string())
    } else {
        serde_json::from_slice(&sent.body).map_err(|e| e.to_string())
    }
}

fn serve(stream: &TcpStream, record: &Mutex<Vec<Sent>>, objects: &Mutex<HashMap<String, Value>>) {
    let mut reader = BufReader::new(stream);
    while let Some(request) = read_request(&mut reader) {
        let path = request.target.split('?').next().unwrap_or_default().to_owned();
        let (code, answer) = match request.method.as_str() {
            "GET" => get(&path, objects),
            "POST" => match decode(&request) {
                Ok(object) => {
                    let name = object["metadata"]["name"].as_str().unwrap_or_default();
                    objects.lock().unwrap().insert(format!("{path}/{name}"), object.clone());
                    (201, object)
                }
                Err(e) => (400, status(400, &e)),
            },
            _ => (200, objects.lock().unwrap().get(&path).cloned().unwrap_or(Value::Null)),
        };
        if request.method != "GET" {
            record.lock().unwrap().push(request);
        }
        let body = answer.to_string();
        let head = format!(
            "HTTP/1.1 {code} Answer\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let mut writer = stream;
        if writer.write_all(head.as_bytes()).and_then(|()| writer.write_all(body.as_bytes())).is_err() {
            return;
        }
    }
}

fn read_request(reader: &mut BufReader<&TcpStream>) -> Option<Sent> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, target) = (words.next()?, words.next()?);
    let (mut length, mut content_type) = (0, String::new());
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok().filter(|n| *n > 0)?;
        match header.trim().split_once(": ") {
            None => break,
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => length = value.parse().ok()?,
            Some((name, value)) if name.eq_ignore_ascii_case("content-type") => content_type = value.to_owned(),
            Some(_) => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Sent { method, target, content_type, body })
}

fn get(path: &str, objects: &Mutex<HashMap<String, Value>>) -> (u16, Value) {
    let resources = resources();
    let mut versions: Vec<(&str, &str)> = KINDS.iter().map(|k| (k.0, k.1)).collect();
    versions.dedup();
    let root = |group: &str, version: &str| match group {
        "" => format!("api/{version}"),
        group => format!("apis/{group}/{version}"),
    };
    if let Some(object) = objects.lock().unwrap().get(path) {
        return (200, object.clone());
    }
    let found = match path {
        "/version" => json!({"major": "1", "minor": "35", "gitVersion": "v1.35.0"}),
        "/api" => json!({"kind": "APIVersions", "versions": ["v1"]}),
        "/apis" => {
            let groups = versions.iter().filter(|(group, _)| !group.is_empty()).map(|(group, version)| {
                let version = json!({"groupVersion": format!("{group}/{version}"), "version": version});
                json!({"name": group, "versions": [version], "preferredVersion": version})
            });
            json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups.collect::<Vec<_>>()})
        }
        "/openapi/v3" => {
            let path = |(group, version): &(&str, &str)| {
                let root = root(group, version);
                (root.clone(), json!({"serverRelativeURL": format!("/openapi/v3/{root}")}))
            };
            json!({"paths": versions.iter().map(path).collect::<serde_json::Map<_, _>>()})
        }
        path => {
            let wanted = |prefix: &str| {
                let rest = path.strip_prefix(prefix)?;
                versions.iter().copied().find(|(group, version)| root(group, version) == rest)
            };
            if let Some((group, version)) = wanted("/openapi/v3/") {
                v3_document(group, version, &resources)
            } else if let Some((group, version)) = wanted("/") {
                resource_list(group, version, &resources)
            } else {
                return (404, status(404, "the server could not find the requested resource"));
            }
        }
    };
    (200, found)
}

fn resource_list(group: &str, version: &str, resources: &[ServedResource]) -> Value {
    let here = resources.iter().filter(|r| r.group == group && r.version == version);
    let list: Vec<_> = here
        .map(|r| {
            json!({"name": r.plural, "singularName": r.singular, "namespaced": r.namespaced, "kind": r.kind,
            "verbs": r.verbs})
        })
        .collect();
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": list})
}

fn status(code: u16, message: &str) -> Value {
    let reason = if code == 404 { "NotFound" } else { "BadRequest" };
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "reason": reason, "code": code})
}
