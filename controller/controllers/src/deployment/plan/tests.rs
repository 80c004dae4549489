//! Rules of the roll-out one by one, then whole roll-outs simulated with random pods and checked at every step.

use super::*;
use crate::deployment::status::get;
use crate::testing::{meta, selector, template};
use k8s_openapi::api::apps::v1::{DeploymentStrategy, ReplicaSetStatus, RollingUpdateDeployment};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use proptest::prelude::*;

fn deployment(replicas: i32, surge: i32, unavailable: i32, image: &str) -> Deployment {
    Deployment {
        metadata: meta("web"),
        spec: Some(DeploymentSpec {
            replicas: Some(replicas),
            selector: selector("web"),
            template: template("web", image),
            progress_deadline_seconds: Some(600),
            revision_history_limit: Some(2),
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: Some(RollingUpdateDeployment {
                    max_surge: Some(IntOrString::Int(surge)),
                    max_unavailable: Some(IntOrString::Int(unavailable)),
                }),
            }),
            ..DeploymentSpec::default()
        }),
        status: None,
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// The API and the ReplicaSet controller, as far as a Deployment sees them.
struct World {
    deployment: Deployment,
    sets: Vec<ReplicaSet>,
    clock: i64,
}

impl World {
    fn new(deployment: Deployment) -> Self {
        Self { deployment, sets: Vec::new(), clock: 0 }
    }

    fn step(&mut self, running: &HashSet<String>) -> Plan {
        self.clock += 1;
        let sets = self.sets.iter().cloned().map(Arc::new).collect();
        let plan = plan(&self.deployment, sets, running, at(self.clock));
        for op in &plan.ops {
            match op {
                Op::Create(set) => {
                    let mut set = (**set).clone();
                    set.metadata.uid = Some(format!("uid-{}", self.clock));
                    set.metadata.generation = Some(1);
                    set.metadata.creation_timestamp =
                        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(self.clock)));
                    self.sets.push(set);
                }
                Op::Update { set, replicas, annotations, .. } => {
                    let there = self.sets.iter_mut().find(|s| s.metadata.name == set.metadata.name).unwrap();
                    if let Some(n) = replicas {
                        there.spec.as_mut().unwrap().replicas = Some(*n);
                        *there.metadata.generation.as_mut().unwrap() += 1;
                    }
                    there.metadata.annotations.get_or_insert_default().extend(annotations.clone());
                }
                Op::Delete(set) => self.sets.retain(|s| s.metadata.name != set.metadata.name),
            }
        }
        self.deployment.status = Some(plan.status.clone());
        plan
    }

    /// The set controller obeys at once; `ready(new pods)` of a set's pods become available.
    fn obey(&mut self, ready: impl Fn(&ReplicaSet, i32) -> i32) {
        for set in &mut self.sets {
            let n = set.spec.as_ref().unwrap().replicas.unwrap();
            let was = set.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0);
            let available = ready(set, was.min(n)).clamp(0, n);
            set.status = Some(ReplicaSetStatus {
                replicas: n,
                ready_replicas: Some(available),
                available_replicas: Some(available),
                observed_generation: set.metadata.generation,
                ..ReplicaSetStatus::default()
            });
        }
    }

    fn settle(&mut self) {
        for _ in 0..200 {
            let plan = self.step(&HashSet::new());
            self.obey(|s, _| s.spec.as_ref().unwrap().replicas.unwrap());
            if plan.ops.is_empty() && super::status::complete(&self.deployment, &plan.status) {
                return;
            }
        }
        panic!("does not settle: {:?}", self.sizes());
    }

    fn sizes(&self) -> Vec<i32> {
        self.sets.iter().map(|s| s.spec.as_ref().unwrap().replicas.unwrap()).collect()
    }

    fn image(&mut self, image: &str) {
        self.deployment.spec.as_mut().unwrap().template = template("web", image);
        *self.deployment.metadata.generation.as_mut().unwrap() += 1;
    }

    fn revisions(&self) -> Vec<String> {
        self.sets.iter().map(|s| s.metadata.annotations.as_ref().unwrap()[REVISION].clone()).collect()
    }
}

fn reason(status: &DeploymentStatus, type_: &str) -> String {
    get(status, type_).and_then(|c| c.reason.clone()).unwrap_or_default()
}

#[test]
fn first_roll_out() {
    let mut w = World::new(deployment(3, 1, 1, "a"));
    let p = w.step(&HashSet::new());
    assert_eq!(p.revision.as_deref(), Some("1"));
    assert_eq!(w.sizes(), [3]);
    let set = &w.sets[0];
    let hash = set.metadata.labels.as_ref().unwrap()[HASH].clone();
    assert_eq!(set.metadata.name.as_deref(), Some(format!("web-{hash}").as_str()));
    assert_eq!(set.spec.as_ref().unwrap().selector.match_labels.as_ref().unwrap()[HASH], hash);
    assert_eq!(reason(&p.status, "Progressing"), "NewReplicaSetCreated");
    assert_eq!(reason(&p.status, "Available"), "MinimumReplicasUnavailable");
    w.settle();
    let status = w.deployment.status.clone().unwrap();
    assert_eq!(reason(&status, "Progressing"), "NewReplicaSetAvailable");
    assert_eq!((status.available_replicas, status.unavailable_replicas), (Some(3), None));
    assert!(w.step(&HashSet::new()).ops.is_empty(), "a settled one is left alone");
}

#[test]
fn undo_finds_the_old_set_and_raises_its_revision() {
    let mut w = World::new(deployment(2, 1, 0, "a"));
    w.settle();
    w.image("b");
    w.settle();
    assert_eq!((w.sizes(), w.revisions()), (vec![0, 2], vec!["1".to_owned(), "2".to_owned()]));
    w.image("a");
    w.settle();
    assert_eq!((w.sizes(), w.revisions()), (vec![2, 0], vec!["3".to_owned(), "2".to_owned()]));
    assert_eq!(w.sets[0].metadata.annotations.as_ref().unwrap()[REVISION_HISTORY], "1");
}

#[test]
fn history_is_limited() {
    let mut w = World::new(deployment(1, 1, 0, "a"));
    for image in ["a", "b", "c", "d", "e"] {
        w.image(image);
        w.settle();
    }
    w.step(&HashSet::new());
    assert_eq!(w.sets.len(), 3, "the new one and two old ones: {:?}", w.revisions());
}

#[test]
fn recreate_waits_for_the_last_old_pod() {
    let mut w = World::new(deployment(2, 0, 0, "a"));
    w.deployment.spec.as_mut().unwrap().strategy =
        Some(DeploymentStrategy { type_: Some("Recreate".to_owned()), rolling_update: None });
    w.settle();
    w.image("b");
    let running = HashSet::from([w.sets[0].metadata.uid.clone().unwrap()]);
    w.step(&running);
    w.obey(|_, _| 0);
    assert_eq!(w.sizes(), [0]);
    w.step(&running);
    assert_eq!(w.sizes(), [0], "a pod of the old set still runs");
    w.step(&HashSet::new());
    assert_eq!(w.sizes(), [0, 2]);
}

#[test]
fn paused_scales_but_does_not_roll() {
    let mut w = World::new(deployment(2, 1, 0, "a"));
    w.settle();
    w.deployment.spec.as_mut().unwrap().paused = Some(true);
    w.image("b");
    let p = w.step(&HashSet::new());
    assert_eq!((w.sets.len(), reason(&p.status, "Progressing")), (1, "DeploymentPaused".to_owned()));
    w.deployment.spec.as_mut().unwrap().replicas = Some(5);
    w.step(&HashSet::new());
    assert_eq!(w.sizes(), [5]);
    w.deployment.spec.as_mut().unwrap().paused = Some(false);
    let p = w.step(&HashSet::new());
    assert_eq!(w.sets.len(), 2);
    assert_eq!(reason(&p.status, "Progressing"), "NewReplicaSetCreated");
}

#[test]
fn scaling_in_mid_roll_is_proportional() {
    let mut w = World::new(deployment(10, 3, 2, "a"));
    w.settle();
    w.image("b");
    for _ in 0..3 {
        w.step(&HashSet::new());
        // New pods never come up.
        w.obey(|s, _| {
            if s.spec.as_ref().unwrap().template.as_ref().unwrap().spec.as_ref().unwrap().containers[0].image.as_deref()
                == Some("a")
            {
                i32::MAX
            } else {
                0
            }
        });
    }
    assert_eq!(w.sizes(), [8, 5]);
    w.deployment.spec.as_mut().unwrap().replicas = Some(15);
    w.step(&HashSet::new());
    // 18 allowed instead of 13: five more, three for the larger set and two for the other.
    assert_eq!(w.sizes(), [11, 7]);
}

#[test]
fn a_stuck_roll_out_times_out_and_recovers() {
    let mut w = World::new(deployment(2, 1, 0, "a"));
    w.settle();
    w.image("broken");
    for _ in 0..5 {
        w.step(&HashSet::new());
        w.obey(|_, was| was);
    }
    let p = w.step(&HashSet::new());
    assert!(p.recheck.is_some_and(|d| d <= Duration::from_secs(602)), "{:?}", p.recheck);
    w.clock += 700;
    let p = w.step(&HashSet::new());
    assert_eq!(reason(&p.status, "Progressing"), "ProgressDeadlineExceeded");
    assert_eq!(get(&p.status, "Available").unwrap().status, "True", "the old pods serve on");
    w.image("good");
    w.settle();
    assert_eq!(reason(w.deployment.status.as_ref().unwrap(), "Progressing"), "NewReplicaSetAvailable");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever the pods do, a roll-out keeps to its surge and never itself takes pods below the minimum, and when
    /// the pods behave in the end, it completes.
    #[test]
    fn roll_outs_keep_to_their_limits(
        replicas in 0i32..12,
        surge in 0i32..5,
        unavailable in 0i32..5,
        images in prop::collection::vec(0u8..3, 1..4),
        luck in prop::collection::vec(any::<u8>(), 40),
    ) {
        let mut w = World::new(deployment(replicas, surge, unavailable, "start"));
        w.settle();
        let limits = Limits::of(w.deployment.spec.as_ref().unwrap());
        let mut luck = luck.into_iter();
        for image in images {
            w.image(&format!("i{image}"));
            for _ in 0..10 {
                let available = |w: &World| -> i32 {
                    w.sets.iter().map(|s| s.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0)).sum()
                };
                let before = available(&w);
                w.step(&HashSet::new());
                let total: i32 = w.sizes().iter().sum();
                prop_assert!(total <= limits.max_total(), "{:?}", w.sizes());
                // Obey with no new luck first: what the plan itself took away.
                w.obey(|_, was| was);
                let after = available(&w);
                prop_assert!(after >= before.min(limits.min_available()), "{before} -> {after}, {:?}", w.sizes());
                let bits = luck.next().unwrap_or(0xff);
                w.obey(|_, was| was + i32::from(bits & 3) - i32::from(bits >> 7));
            }
        }
        w.settle();
        prop_assert_eq!(w.sizes().iter().sum::<i32>(), replicas);
    }
}
