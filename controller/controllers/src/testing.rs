//! Objects for tests.

use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::{Container, Node, Pod, PodCondition, PodSpec, PodStatus, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;

pub fn meta(name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some("default".to_owned()),
        uid: Some(format!("uid-{name}")),
        resource_version: Some("1".to_owned()),
        generation: Some(1),
        creation_timestamp: Some(Time(Timestamp::UNIX_EPOCH)),
        ..ObjectMeta::default()
    }
}

pub fn template(app: &str, image: &str) -> PodTemplateSpec {
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some([("app".to_owned(), app.to_owned())].into()),
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec {
            containers: vec![Container { name: "c".to_owned(), image: Some(image.to_owned()), ..Container::default() }],
            ..PodSpec::default()
        }),
    }
}

pub fn selector(app: &str) -> LabelSelector {
    LabelSelector { match_labels: Some([("app".to_owned(), app.to_owned())].into()), ..LabelSelector::default() }
}

/// A pod of app `web`, running since the epoch.
pub fn pod(name: &str, node: &str, ready: bool) -> Pod {
    let mut metadata = meta(name);
    metadata.labels = Some([("app".to_owned(), "web".to_owned())].into());
    Pod {
        metadata,
        spec: Some(PodSpec { node_name: Some(node.to_owned()), ..template("web", "i").spec.unwrap() }),
        status: Some(PodStatus {
            phase: Some(if node.is_empty() { "Pending" } else { "Running" }.to_owned()),
            conditions: Some(vec![PodCondition {
                type_: "Ready".to_owned(),
                status: if ready { "True" } else { "False" }.to_owned(),
                last_transition_time: Some(Time(Timestamp::UNIX_EPOCH)),
                ..PodCondition::default()
            }]),
            ..PodStatus::default()
        }),
    }
}

pub fn replica_set(name: &str, replicas: i32) -> ReplicaSet {
    ReplicaSet {
        metadata: meta(name),
        spec: Some(ReplicaSetSpec {
            replicas: Some(replicas),
            selector: selector("web"),
            template: Some(template("web", "i")),
            ..ReplicaSetSpec::default()
        }),
        status: None,
    }
}

pub fn node(name: &str) -> Node {
    let mut node = Node { metadata: ObjectMeta { namespace: None, ..meta(name) }, ..Node::default() };
    node.metadata.labels = Some([("kubernetes.io/hostname".to_owned(), name.to_owned())].into());
    node
}
