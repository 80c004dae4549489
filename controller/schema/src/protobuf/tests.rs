//! Bodies are written here by hand, from the same table but with Go's rules: every scalar that is no pointer is written,
//! also when it is zero.

use super::*;
use proptest::prelude::*;
use serde_json::json;

fn varint(mut n: u64, out: &mut Vec<u8>) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn bytes(number: u32, body: &[u8], out: &mut Vec<u8>) {
    varint(u64::from(number << 3 | 2), out);
    varint(body.len() as u64, out);
    out.extend(body);
}

fn number(field: u32, value: i64, out: &mut Vec<u8>) {
    varint(u64::from(field << 3), out);
    varint(value as u64, out);
}

fn encode(object: &Value) -> Vec<u8> {
    let (api_version, kind) = (object["apiVersion"].as_str().unwrap(), object["kind"].as_str().unwrap());
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let mut raw = Vec::new();
    let index = builtin::message_index(group, version, kind).unwrap();
    encode_fields(object, &Table::get().messages[index], &mut raw);
    envelope(api_version, kind, &raw, "")
}

fn envelope(api_version: &str, kind: &str, raw: &[u8], content_type: &str) -> Vec<u8> {
    let (mut unknown, mut meta) = (MAGIC.to_vec(), Vec::new());
    bytes(1, api_version.as_bytes(), &mut meta);
    bytes(2, kind.as_bytes(), &mut meta);
    bytes(1, &meta, &mut unknown);
    bytes(2, raw, &mut unknown);
    bytes(3, b"", &mut unknown);
    bytes(4, content_type.as_bytes(), &mut unknown);
    unknown
}

fn encode_fields(object: &Value, message: &Message, out: &mut Vec<u8>) {
    for field in &message.fields {
        if let (true, Type::Message(inner)) = (field.inline, field.kind) {
            let mut body = Vec::new();
            encode_fields(object, &Table::get().messages[inner], &mut body);
            bytes(field.number, &body, out);
            continue;
        }
        match (field.label, object.get(field.name)) {
            (Label::Optional, Some(value)) => encode_value(value, field, field.number, out),
            (Label::Repeated, Some(Value::Array(items))) => {
                items.iter().for_each(|item| encode_value(item, field, field.number, out));
            }
            (Label::Map, Some(Value::Object(map))) => {
                for (key, value) in map {
                    let mut entry = Vec::new();
                    bytes(1, key.as_bytes(), &mut entry);
                    encode_value(value, field, 2, &mut entry);
                    bytes(field.number, &entry, out);
                }
            }
            // What Go writes for a plain, empty struct field.
            (Label::Optional, None) if !field.keep_zero => match field.kind {
                Type::String | Type::Bytes => bytes(field.number, b"", out),
                Type::Bool | Type::Int32 | Type::Int64 => number(field.number, 0, out),
                Type::Double | Type::Message(_) => {}
            },
            _ => {}
        }
    }
}

fn encode_value(value: &Value, field: &FieldDef, at: u32, out: &mut Vec<u8>) {
    match field.kind {
        Type::String => bytes(at, value.as_str().unwrap().as_bytes(), out),
        Type::Bytes => {
            let decoded = base64::engine::general_purpose::STANDARD.decode(value.as_str().unwrap()).unwrap();
            bytes(at, &decoded, out);
        }
        Type::Bool => number(at, i64::from(value.as_bool().unwrap()), out),
        Type::Int32 | Type::Int64 => number(at, value.as_i64().unwrap(), out),
        Type::Double => {
            varint(u64::from(at << 3 | 1), out);
            out.extend(value.as_f64().unwrap().to_le_bytes());
        }
        Type::Message(index) => {
            let mut body = Vec::new();
            encode_message(value, &Table::get().messages[index], &mut body);
            bytes(at, &body, out);
        }
    }
}

fn encode_message(value: &Value, message: &Message, out: &mut Vec<u8>) {
    match message.form {
        Form::Plain => encode_fields(value, message, out),
        Form::Quantity => bytes(1, value.as_str().unwrap().as_bytes(), out),
        Form::Raw => bytes(1, value.to_string().as_bytes(), out),
        Form::Items => value.as_array().unwrap().iter().for_each(|v| bytes(1, v.as_str().unwrap().as_bytes(), out)),
        Form::IntOrString => match value {
            Value::String(text) => {
                number(1, 1, out);
                number(2, 0, out);
                bytes(3, text.as_bytes(), out);
            }
            other => {
                number(1, 0, out);
                number(2, other.as_i64().unwrap(), out);
                bytes(3, b"", out);
            }
        },
        Form::Time | Form::MicroTime => {
            if let Some(text) = value.as_str() {
                let time: jiff::Timestamp = text.parse().unwrap();
                number(1, time.as_second(), out);
                number(2, i64::from(time.subsec_nanosecond()), out);
            }
        }
        Form::Duration => unreachable!("no object of these tests has one"),
        Form::SchemaOrArray | Form::SchemaOrBool | Form::SchemaOrStrings => match value {
            Value::Bool(allows) => number(1, i64::from(*allows), out),
            schema => {
                let root = Table::get().index("apiextensions_apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps");
                let mut body = Vec::new();
                encode_fields(schema, &Table::get().messages[root.unwrap()], &mut body);
                bytes(if message.form == Form::SchemaOrBool { 2 } else { 1 }, &body, out);
            }
        },
    }
}

fn round_trip(object: Value) {
    let decoded = decode(&encode(&object)).unwrap();
    assert_eq!(decoded, object);
}

#[test]
fn deployments_come_back_as_they_were() {
    round_trip(json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "default", "labels": {"app": "web"},
            "creationTimestamp": "2026-01-02T03:04:05Z",
            "managedFields": [{"manager": "m", "operation": "Update", "fieldsV1": {"f:spec": {}}}]},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {
                "containers": [{"name": "c", "image": "nginx", "ports": [{"containerPort": 80}],
                    "resources": {"limits": {"cpu": "100m", "memory": "1Gi"}},
                    "env": [{"name": "E", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
                    "livenessProbe": {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 5},
                    "lifecycle": {"preStop": {"exec": {"command": ["sleep", "1"]}}},
                    "securityContext": {"runAsUser": 0, "privileged": false}}],
                "volumes": [{"name": "v", "emptyDir": {}},
                    {"name": "p", "projected": {"sources": [{"configMap": {"name": "cm", "optional": false}}]}}],
                "terminationGracePeriodSeconds": 0, "securityContext": {},
            }},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 0}},
        },
    }));
}

#[test]
fn other_kinds_come_back_as_they_were() {
    round_trip(
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {"k": "aGk=", "empty": ""}, "type": "Opaque"}),
    );
    round_trip(
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a": "", "b": "x"}}),
    );
    round_trip(json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "metadata": {},
        "spec": {"user": "u", "extra": {"scopes": ["a", "b"]}}, "status": {"allowed": false}}));
    round_trip(json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "l"},
        "spec": {"holderIdentity": "h", "leaseDurationSeconds": 40, "renewTime": "2026-01-02T03:04:05.123456Z"}}));
    round_trip(json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "p"},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "", "resources": {"requests": {"storage": "1Gi"}}}}));
    round_trip(
        json!({"apiVersion": "apps/v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0, "propagationPolicy": "Background"}),
    );
    round_trip(
        json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}, "deleteOptions": {"gracePeriodSeconds": 5}}),
    );
    round_trip(
        json!({"apiVersion": "v1", "kind": "List", "metadata": {}, "items": [{"apiVersion": "v1", "kind": "Pod"}]}),
    );
    round_trip(json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "x"},
        "spec": {"group": "g", "names": {"plural": "xs", "kind": "X"}, "scope": "Namespaced", "versions": [{
            "name": "v1", "served": true, "storage": false, "schema": {"openAPIV3Schema": {
                "type": "object", "minProperties": 0, "x-kubernetes-preserve-unknown-fields": true, "properties": {
                    "list": {"type": "array", "items": {"type": "string", "enum": ["a", {"b": 1}]}, "x-kubernetes-list-type": "set"},
                    "map": {"type": "object", "additionalProperties": true, "default": {"a": 1}},
                    "num": {"type": "number", "maximum": 1.5, "minimum": 2},
                    "typed": {"type": "object", "additionalProperties": {"type": "string"}}}}}}]},
        "status": {"conditions": [], "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": []}})
        .as_object().map(|o| { let mut o = o.clone(); o.shift_remove("status"); Value::Object(o) }).unwrap());
}

#[test]
fn unset_times_are_left_out() {
    let mut raw = Vec::new();
    let mut metadata = Vec::new();
    bytes(1, b"x", &mut metadata);
    bytes(8, b"", &mut metadata);
    bytes(1, &metadata, &mut raw);
    let decoded = decode(&envelope("v1", "Namespace", &raw, "")).unwrap();
    assert_eq!(decoded, json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x"}}));
}

#[test]
fn json_inside_the_envelope_is_read_as_json() {
    let body = envelope("example.com/v1", "Thing", br#"{"spec":{"a":1}}"#, "application/json");
    assert_eq!(decode(&body).unwrap(), json!({"spec": {"a": 1}, "apiVersion": "example.com/v1", "kind": "Thing"}));
}

#[test]
fn broken_bodies_are_errors() {
    assert_eq!(decode(b"{}"), Err(ProtobufError::NoMagic));
    assert_eq!(decode(b""), Err(ProtobufError::NoMagic));
    assert!(matches!(decode(&envelope("x/v1", "Y", b"", "")), Err(ProtobufError::UnknownKind { .. })));
    assert!(matches!(decode(&envelope("v1", "Pod", b"", "text/plain")), Err(ProtobufError::ContentType(_))));
    let whole = encode(
        &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": {"containers": [{"name": "c"}]}}),
    );
    for cut in 4..whole.len() {
        let _ = decode(&whole[..cut]); // an error or a shorter object, never a panic
    }
}

/// A body that is made from the inside out: reversed, so that every layer is only as much work as it is long.
struct Layers(Vec<u8>);

impl Layers {
    fn put(&mut self, bytes: &[u8]) {
        self.0.extend(bytes.iter().rev());
    }

    /// Makes all of it field `number` of what comes around it.
    fn wrap(&mut self, number: u32) {
        let (mut head, length) = (Vec::new(), self.0.len() as u64);
        varint(u64::from(number << 3 | 2), &mut head);
        varint(length, &mut head);
        self.put(&head);
    }

    fn envelope(&mut self, api_version: &str, kind: &str) {
        self.wrap(2);
        let (mut meta, mut field) = (Vec::new(), Vec::new());
        bytes(1, api_version.as_bytes(), &mut meta);
        bytes(2, kind.as_bytes(), &mut meta);
        bytes(1, &meta, &mut field);
        self.put(&field);
        self.put(MAGIC);
    }

    fn done(mut self) -> Vec<u8> {
        self.0.reverse();
        self.0
    }
}

fn number_of(message: &str, field: &str) -> u32 {
    let table = Table::get();
    let message = &table.messages[table.index(message).unwrap()];
    message.fields.iter().find(|f| f.name == field).unwrap().number
}

/// On half the stack of a worker. (Without optimisation a level takes some kilobytes.)
fn on_a_small_stack(body: Vec<u8>) -> Result<Value> {
    Table::get();
    let thread = std::thread::Builder::new().stack_size(1024 * 1024).spawn(move || decode(&body)).unwrap();
    thread.join().unwrap()
}

#[test]
fn nested_bodies_are_refused_before_the_stack_ends() {
    const META: &str = "apimachinery.pkg.apis.meta.v1";
    let (entries, fields) = (
        number_of(&format!("{META}.ObjectMeta"), "managedFields"),
        number_of(&format!("{META}.ManagedFieldsEntry"), "fieldsV1"),
    );
    let data = number_of("api.apps.v1.ControllerRevision", "data");
    let schema = "apiextensions_apiserver.pkg.apis.apiextensions.v1";
    let not = number_of(&format!("{schema}.JSONSchemaProps"), "not");
    let properties = number_of(&format!("{schema}.JSONSchemaProps"), "properties");
    for levels in [10, 100, 1_000, 100_000] {
        let mut lists = Layers(Vec::new());
        let mut revisions = Layers(Vec::new());
        let mut owners = Layers(b"{}".iter().rev().copied().collect());
        let (mut nots, mut maps) = (Layers(Vec::new()), Layers(Vec::new()));
        for _ in 0..levels {
            lists.wrap(1);
            lists.wrap(2);
            lists.envelope("v1", "List");
            revisions.wrap(1);
            revisions.wrap(data);
            revisions.envelope("apps/v1", "ControllerRevision");
            [1, fields, entries, 1].into_iter().for_each(|number| owners.wrap(number));
            owners.envelope("v1", "ConfigMap");
            nots.wrap(not);
            maps.wrap(2);
            maps.wrap(properties);
        }
        for schema in [&mut nots, &mut maps] {
            // openAPIV3Schema, schema, versions, spec.
            [1, 4, 7, 2].into_iter().for_each(|number| schema.wrap(number));
            schema.envelope("apiextensions.k8s.io/v1", "CustomResourceDefinition");
        }
        let most = [("lists", lists, 10), ("revisions", revisions, 10), ("not", nots, 100), ("properties", maps, 10)];
        for (what, body, most) in most {
            let decoded = on_a_small_stack(body.done());
            assert!(
                if levels <= most { decoded.is_ok() } else { decoded == Err(ProtobufError::TooDeep) },
                "{levels} {what}: {decoded:?}"
            );
        }
        // Not even one is what fieldsV1 may hold.
        let decoded = on_a_small_stack(owners.done());
        assert!(matches!(decoded, Err(ProtobufError::Json { field: "fieldsV1", .. })), "{levels}: {decoded:?}");
    }
}

#[test]
fn json_deep_in_messages_counts_too() {
    // 8 levels of the object around it, and 112 of JSON.
    for (levels, good) in [(112, true), (113, false), (127, false), (128, false), (1_000_000, false)] {
        let mut body = Layers(vec![b']'; levels]);
        body.put(&vec![b'['; levels]);
        let schema = "apiextensions_apiserver.pkg.apis.apiextensions.v1";
        [1, number_of(&format!("{schema}.JSONSchemaProps"), "default")].into_iter().for_each(|n| body.wrap(n));
        [2, number_of(&format!("{schema}.JSONSchemaProps"), "properties")].into_iter().for_each(|n| body.wrap(n));
        [1, 4, 7, 2].into_iter().for_each(|number| body.wrap(number));
        body.envelope("apiextensions.k8s.io/v1", "CustomResourceDefinition");
        let decoded = on_a_small_stack(body.done());
        assert_eq!(decoded.is_ok(), good, "{levels}: {decoded:?}");
    }
}

#[test]
fn durations_read_like_go() {
    for (nanos, text) in [
        (0, "0s"),
        (1, "1ns"),
        (1_500, "1.5µs"),
        (2_000_000, "2ms"),
        (1_500_000_000, "1.5s"),
        (90_000_000_000, "1m30s"),
        (3_600_000_000_000, "1h0m0s"),
        (-5_000_000_000, "-5s"),
    ] {
        assert_eq!(go_duration(nanos), text);
    }
}

proptest! {
    #[test]
    fn any_bytes_are_survived(body in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode(&envelope("apps/v1", "Deployment", &body, ""));
        let _ = decode(&[MAGIC, &body].concat());
    }
}
