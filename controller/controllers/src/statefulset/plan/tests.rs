//! Ordering rules, then whole lives of a set simulated with random pods.

use super::*;
use crate::meta::name;
use crate::statefulset::pod::{build, claim_owners, claims};
use crate::testing::{meta, selector, template};
use k8s_openapi::api::apps::v1::{
    RollingUpdateStatefulSetStrategy, StatefulSetPersistentVolumeClaimRetentionPolicy, StatefulSetSpec,
    StatefulSetUpdateStrategy,
};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, PodCondition, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use proptest::prelude::*;

const REVISIONS: Revisions = Revisions { current: "old", update: "new" };

fn set(replicas: i32, policy: &str, partition: i32) -> StatefulSet {
    let claim = PersistentVolumeClaim {
        metadata: ObjectMeta { name: Some("data".to_owned()), ..ObjectMeta::default() },
        ..PersistentVolumeClaim::default()
    };
    StatefulSet {
        metadata: meta("db"),
        spec: Some(StatefulSetSpec {
            replicas: Some(replicas),
            selector: selector("web"),
            template: template("web", "i"),
            service_name: Some("db".to_owned()),
            pod_management_policy: Some(policy.to_owned()),
            volume_claim_templates: Some(vec![claim]),
            update_strategy: Some(StatefulSetUpdateStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: Some(RollingUpdateStatefulSetStrategy {
                    partition: Some(partition),
                    max_unavailable: None,
                }),
            }),
            ..StatefulSetSpec::default()
        }),
        status: None,
    }
}

fn pod(set: &StatefulSet, ordinal: i32, revision: &str, ready: bool) -> Pod {
    let mut pod = build(set, &set.spec.as_ref().unwrap().template, ordinal, revision);
    pod.metadata.uid = Some(format!("uid-{ordinal}-{revision}"));
    pod.status = Some(PodStatus {
        phase: Some(if ready { "Running" } else { "Pending" }.to_owned()),
        conditions: Some(vec![PodCondition {
            type_: "Ready".to_owned(),
            status: if ready { "True" } else { "False" }.to_owned(),
            last_transition_time: Some(Time(Timestamp::UNIX_EPOCH)),
            ..PodCondition::default()
        }]),
        ..PodStatus::default()
    });
    pod
}

fn show(plan: &Plan) -> Vec<String> {
    let text = |a: &Action| match a {
        Action::Create { ordinal, updated } => format!("+{ordinal}{}", if *updated { "" } else { " old" }),
        Action::Delete { pod, .. } => format!("-{}", name(&pod.metadata)),
        Action::Identify { pod } => format!("={}", name(&pod.metadata)),
    };
    plan.actions.iter().map(text).collect()
}

fn decide(set: &StatefulSet, pods: Vec<Pod>) -> Vec<String> {
    let pods: Vec<_> = pods.into_iter().map(Arc::new).collect();
    show(&plan(set, &pods, &REVISIONS, 100))
}

#[test]
fn ordered_creation_waits_for_the_one_before() {
    let s = set(3, "OrderedReady", 0);
    assert_eq!(decide(&s, vec![]), ["+0"]);
    assert!(decide(&s, vec![pod(&s, 0, "new", false)]).is_empty());
    assert_eq!(decide(&s, vec![pod(&s, 0, "new", true)]), ["+1"]);
    assert_eq!(decide(&s, vec![pod(&s, 0, "new", true), pod(&s, 2, "new", true)]), ["+1"]);
    assert_eq!(decide(&set(3, "Parallel", 0), vec![]), ["+0", "+1", "+2"]);
}

#[test]
fn scale_down_is_from_the_top_and_one_at_a_time() {
    let s = set(1, "OrderedReady", 0);
    let all = |ready2: bool| vec![pod(&s, 0, "new", true), pod(&s, 1, "new", true), pod(&s, 2, "new", ready2)];
    assert_eq!(decide(&s, all(true)), ["-db-2"]);
    assert_eq!(decide(&s, all(false)), ["-db-2"]);
    let mut leaving = all(true);
    leaving[2].metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
    assert!(decide(&s, leaving).is_empty());
    assert_eq!(decide(&set(1, "Parallel", 0), all(true)), ["-db-2", "-db-1"]);
}

#[test]
fn updates_go_from_the_top_down_to_the_partition() {
    let s = set(3, "OrderedReady", 1);
    let pods = |r: [&str; 3]| (0..3).map(|i| pod(&s, i, r[i as usize], true)).collect::<Vec<_>>();
    assert_eq!(decide(&s, pods(["old", "old", "old"])), ["-db-2"]);
    assert_eq!(decide(&s, pods(["old", "old", "new"])), ["-db-1"]);
    assert!(decide(&s, pods(["old", "new", "new"])).is_empty(), "below the partition");
    assert_eq!(decide(&s, vec![]), ["+0 old"], "and it is made again as it was");
    let mut waiting = pods(["old", "old", "new"]);
    waiting[2] = pod(&s, 2, "new", false);
    assert!(decide(&s, waiting).is_empty(), "waits for the new one");
}

#[test]
fn on_delete_leaves_old_pods_alone() {
    let mut s = set(1, "OrderedReady", 0);
    s.spec.as_mut().unwrap().update_strategy.as_mut().unwrap().type_ = Some("OnDelete".to_owned());
    assert!(decide(&s, vec![pod(&s, 0, "old", true)]).is_empty());
    assert_eq!(decide(&s, vec![]), ["+0"]);
}

#[test]
fn an_ended_pod_is_made_again() {
    let s = set(1, "OrderedReady", 0);
    let mut failed = pod(&s, 0, "new", false);
    failed.status.as_mut().unwrap().phase = Some("Failed".to_owned());
    assert_eq!(decide(&s, vec![failed]), ["-db-0"]);
}

#[test]
fn start_ordinal_shifts_everything() {
    let mut s = set(2, "Parallel", 0);
    s.spec.as_mut().unwrap().ordinals = Some(k8s_openapi::api::apps::v1::StatefulSetOrdinals { start: Some(5) });
    assert_eq!(decide(&s, vec![pod(&s, 0, "new", true)]), ["+5", "+6", "-db-0"]);
}

#[test]
fn pods_and_claims_have_stable_names() {
    let s = set(1, "OrderedReady", 0);
    let p = pod(&s, 4, "new", true);
    assert_eq!(name(&p.metadata), "db-4");
    let spec = p.spec.as_ref().unwrap();
    assert_eq!((spec.hostname.as_deref(), spec.subdomain.as_deref()), (Some("db-4"), Some("db")));
    let labels = p.metadata.labels.as_ref().unwrap();
    assert_eq!(labels["apps.kubernetes.io/pod-index"], "4");
    assert_eq!(labels["statefulset.kubernetes.io/pod-name"], "db-4");
    assert_eq!(name(&claims(&s, 4)[0].metadata), "data-db-4");
    assert_eq!(spec.volumes.as_ref().unwrap()[0].persistent_volume_claim.as_ref().unwrap().claim_name, "data-db-4");
}

#[test]
fn claims_follow_the_retention_policy() {
    let mut s = set(1, "OrderedReady", 0);
    let claim = |o: i32| claims(&s, o).remove(0);
    let (kept, condemned) = (claim(0), claim(1));
    assert_eq!(claim_owners(&s, &kept, &[]), None);
    s.spec.as_mut().unwrap().persistent_volume_claim_retention_policy =
        Some(StatefulSetPersistentVolumeClaimRetentionPolicy {
            when_deleted: Some("Delete".to_owned()),
            when_scaled: Some("Delete".to_owned()),
        });
    let owners = claim_owners(&s, &kept, &[]).unwrap();
    assert_eq!((owners[0].kind.as_str(), owners[0].controller), ("StatefulSet", None));
    let pods = [Arc::new(pod(&s, 1, "new", true))];
    let owners = claim_owners(&s, &condemned, &pods).unwrap();
    assert_eq!((owners.len(), owners[0].kind.as_str()), (1, "Pod"));
}

#[test]
fn current_follows_when_all_are_updated() {
    let s = set(2, "OrderedReady", 0);
    let pods = |r: [&str; 2]| (0..2).map(|i| Arc::new(pod(&s, i, r[i as usize], true))).collect::<Vec<_>>();
    let status = plan(&s, &pods(["old", "new"]), &REVISIONS, 100).status;
    assert_eq!(
        (status.current_revision.as_deref(), status.updated_replicas, status.current_replicas),
        (Some("old"), Some(1), Some(1))
    );
    let status = plan(&s, &pods(["new", "new"]), &REVISIONS, 100).status;
    assert_eq!((status.current_revision.as_deref(), status.current_replicas), (Some("new"), Some(2)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Ordered sets change one pod at a time, never have two of one ordinal, and reach their size and revision.
    #[test]
    fn ordered_lives(sizes in prop::collection::vec(0i32..6, 1..4), partition in 0i32..4, luck in prop::collection::vec(any::<bool>(), 60)) {
        let mut pods: Vec<Pod> = Vec::new();
        let mut luck = luck.into_iter();
        let last = *sizes.last().unwrap();
        for (phase, size) in sizes.iter().enumerate() {
            let s = set(*size, "OrderedReady", if phase + 1 == sizes.len() { 0 } else { partition });
            let rounds = if phase + 1 == sizes.len() { 200 } else { 12 };
            for _ in 0..rounds {
                let shared: Vec<_> = pods.iter().cloned().map(Arc::new).collect();
                let p = plan(&s, &shared, &REVISIONS, 100);
                let moves = p.actions.iter().filter(|a| !matches!(a, Action::Identify { .. })).count();
                prop_assert!(moves <= 1, "{:?}", show(&p));
                for action in p.actions {
                    match action {
                        Action::Create { ordinal: o, updated } => {
                            prop_assert!(!pods.iter().any(|p| ordinal(&s, p) == Some(o)));
                            prop_assert!((0..o).all(|lower| pods.iter().any(|p| ordinal(&s, p) == Some(lower) && running_and_ready(p))));
                            pods.push(pod(&s, o, if updated { "new" } else { "old" }, false));
                        }
                        Action::Delete { pod: gone, .. } => pods.retain(|p| p.metadata.name != gone.metadata.name),
                        Action::Identify { .. } => {}
                    }
                }
                for p in &mut pods {
                    if luck.next().unwrap_or(true) {
                        let o = ordinal(&s, p).unwrap();
                        let revision = p.metadata.labels.as_ref().unwrap()[HASH_LABEL].clone();
                        *p = pod(&s, o, &revision, true);
                    }
                }
            }
        }
        prop_assert_eq!(pods.len() as i32, last);
        prop_assert!(pods.iter().all(|p| label(&p.metadata, HASH_LABEL) == Some("new")));
    }
}
