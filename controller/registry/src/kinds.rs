//! The list of built-in kinds: one small file each. In: nothing. Out: [`Resource`]s.

use crate::Resource;

mod admission_policy;
mod admission_webhook;
mod certificate_signing_request;
mod config_map;
mod controller_revision;
mod cron_job;
mod custom_resource_definition;
mod daemon_set;
mod deployment;
mod endpoint_slice;
mod endpoints;
pub(crate) mod event;
mod flow_schema;
mod ingress;
mod ingress_class;
mod ip_address;
mod job;
mod lease;
mod limit_range;
mod namespace;
mod network_policy;
mod node;
mod persistent_volume;
mod persistent_volume_claim;
mod pod;
mod pod_disruption_budget;
mod pod_status;
mod priority_class;
mod priority_level_configuration;
mod rbac;
mod replica_set;
mod resource_quota;
mod runtime_class;
mod secret;
mod service;
mod service_account;
mod service_cidr;
mod stateful_set;
mod storage_class;

/// All built-in resources.
pub fn builtin() -> Vec<Resource> {
    let mut all = vec![
        config_map::resource(),
        endpoints::resource(),
        event::core(),
        limit_range::resource(),
        namespace::resource(),
        node::resource(),
        persistent_volume::resource(),
        persistent_volume_claim::resource(),
        pod::resource(),
        resource_quota::resource(),
        secret::resource(),
        service::resource(),
        service_account::resource(),
        custom_resource_definition::resource(),
        controller_revision::resource(),
        daemon_set::resource(),
        certificate_signing_request::resource(),
        deployment::resource(),
        replica_set::resource(),
        stateful_set::resource(),
        cron_job::resource(),
        job::resource(),
        lease::resource(),
        endpoint_slice::resource(),
        event::events(),
        flow_schema::resource(),
        priority_level_configuration::resource(),
        ingress::resource(),
        ingress_class::resource(),
        ip_address::resource(),
        network_policy::resource(),
        service_cidr::resource(),
        runtime_class::resource(),
        pod_disruption_budget::resource(),
        priority_class::resource(),
        storage_class::resource(),
    ];
    all.extend(admission_webhook::resources());
    all.extend(admission_policy::resources());
    all.extend(rbac::resources());
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Scope;
    use serde_json::json;
    use std::collections::HashSet;

    #[test]
    fn every_kind_is_complete_and_named_once() {
        let mut seen = HashSet::new();
        for r in builtin() {
            let id = format!("{}.{}", r.plural, r.group);
            assert!(seen.insert(id.clone()), "{id} twice");
            assert!(!r.columns.is_empty(), "{id} has no columns");
            let schema = causeway_schema::builtin(&r.group, &r.version, &r.kind);
            assert!(schema.is_some_and(|s| s.field("metadata").is_some()), "{id} has no schema");
            let empty = json!({"apiVersion": "v1", "kind": r.kind, "metadata": {"name": "x"}});
            assert_eq!(r.strategy.cells(&empty, 0).len(), r.columns.len(), "{id}: cells for columns");
            assert!(r.verbs.contains(&"watch".to_owned()), "{id}");
        }
        let cluster: Vec<_> = builtin().into_iter().filter(|r| r.scope == Scope::Cluster).map(|r| r.plural).collect();
        assert!(cluster.contains(&"nodes".to_owned()) && !cluster.contains(&"pods".to_owned()));
    }

    #[test]
    fn nothing_panics_on_odd_objects() {
        let odd = [
            json!({}),
            json!({"metadata": null, "spec": null, "status": null}),
            json!({"metadata": [], "spec": "text", "status": 3, "data": [1], "subsets": {}, "ports": 1}),
            json!({"metadata": {"labels": 1}, "spec": {"template": [], "containers": {}, "ports": [1], "rules": [null]}}),
            json!({"spec": {"template": {"spec": {"containers": [null, 1, {"ports": 2, "env": [0]}], "volumes": [1]}}}}),
        ];
        for r in builtin() {
            for o in &odd {
                let mut object = o.clone();
                r.strategy.default(&mut object);
                r.strategy.prepare_create(&mut object);
                r.strategy.prepare_update(&mut object, o);
                r.strategy.validate_create(&object);
                r.strategy.validate_update(&object, o);
                r.strategy.validate_status(&object, o);
                r.strategy.warnings(&object);
                r.strategy.cells(&object, 5);
                r.strategy.prepare_status(&mut object, o);
            }
        }
    }
}
