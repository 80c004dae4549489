//! Ranges of cluster IPs that come and go, two families, and what changes of a Service keep and release.

use crate::support::{Running, eventually, start, start_with};
use causeway_api::config::ClusterConfig;
use causeway_api::events::Recorder;
use causeway_apiserver::services::repair::repair;
use k8s_openapi::api::core::v1::{Event, Service};
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use std::time::Duration;

struct Lab {
    running: Running,
    services: Api<Service>,
    addresses: Api<IPAddress>,
    ranges: Api<ServiceCIDR>,
}

impl Lab {
    async fn with(cidrs: &[&str], dns: &str) -> Self {
        let cluster = ClusterConfig {
            service_cidrs: cidrs.iter().map(|c| c.parse().unwrap()).collect(),
            dns_ip: dns.parse().unwrap(),
            ..ClusterConfig::default()
        };
        Self::on(start_with(cluster).await)
    }

    fn on(running: Running) -> Self {
        let client = running.admin();
        Self {
            services: Api::namespaced(client.clone(), "default"),
            addresses: Api::all(client.clone()),
            ranges: Api::all(client),
            running,
        }
    }

    /// The spec of a new Service as it was stored, or the refusal's text.
    async fn create(&self, name: &str, spec: Value) -> Result<Value, String> {
        let service = serde_json::from_value(json!({ "metadata": { "name": name }, "spec": spec })).unwrap();
        said(self.services.create(&PostParams::default(), &service).await)
    }

    async fn patch(&self, name: &str, spec: Value) -> Result<Value, String> {
        said(self.services.patch(name, &PatchParams::default(), &Patch::Merge(json!({ "spec": spec }))).await)
    }

    async fn holder(&self, ip: &str) -> Option<String> {
        let address = self.addresses.get_opt(ip).await.unwrap()?;
        Some(address.spec.unwrap().parent_ref.name)
    }

    async fn range(&self, object: Value) {
        let range: ServiceCIDR = serde_json::from_value(object).unwrap();
        self.ranges.create(&PostParams::default(), &range).await.unwrap();
    }
}

fn said(outcome: Result<Service, kube::Error>) -> Result<Value, String> {
    match outcome {
        Ok(service) => Ok(serde_json::to_value(service.spec).unwrap()),
        Err(kube::Error::Api(status)) => Err(status.message.clone()),
        Err(other) => panic!("{other}"),
    }
}

fn port() -> Value {
    json!([{ "port": 80 }])
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_are_extended_and_closed_at_run_time() {
    // Six addresses, two of which the cluster itself has.
    let lab = Lab::with(&["10.50.0.0/29"], "10.50.0.2").await;
    for i in 0..4 {
        lab.create(&format!("s{i}"), json!({ "ports": port() })).await.unwrap();
    }
    let full = lab.create("one-more", json!({ "ports": port() })).await.unwrap_err();
    assert!(full.contains("range is full"), "{full}");
    let far = lab.create("far", json!({ "ports": port(), "clusterIP": "10.60.0.9" })).await.unwrap_err();
    assert!(far.contains("failed to allocate IP 10.60.0.9: the provided network does not match"), "{far}");
    // A finalizer keeps it for the time after its deletion, as the controller's does.
    lab.range(json!({ "metadata": { "name": "more", "finalizers": ["test.dev/wait"] }, "spec": { "cidrs": ["10.60.0.0/28"] } }))
        .await;
    let far = lab.create("far", json!({ "ports": port(), "clusterIP": "10.60.0.9" })).await.unwrap();
    assert_eq!(far["clusterIP"], "10.60.0.9");
    let edge = lab.create("edge", json!({ "ports": port(), "clusterIP": "10.60.0.15" })).await.unwrap_err();
    assert!(edge.contains("reserved in range 10.60.0.0/28"), "{edge}");
    let more = lab.create("one-more", json!({ "ports": port() })).await.unwrap();
    assert!(more["clusterIP"].as_str().unwrap().starts_with("10.60.0."), "{more}");

    lab.ranges.delete("more", &DeleteParams::default()).await.unwrap();
    let full = lab.create("late", json!({ "ports": port() })).await.unwrap_err();
    assert!(full.contains("range is full"), "a range that goes away gives nothing out: {full}");
    // Addresses without a wish are picked at random: this one is not the one that was just picked.
    let free = if more["clusterIP"] == "10.60.0.10" { "10.60.0.11" } else { "10.60.0.10" };
    let late = lab.create("late", json!({ "ports": port(), "clusterIP": free })).await.unwrap_err();
    assert!(late.contains("does not match the current range"), "{late}");
    // The same range under another name opens it again; who is in it was never touched.
    lab.range(json!({ "metadata": { "name": "again" }, "spec": { "cidrs": ["10.60.0.0/28"] } })).await;
    lab.create("late", json!({ "ports": port(), "clusterIP": free })).await.unwrap();
    assert_eq!(lab.holder("10.60.0.9").await.as_deref(), Some("far"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_default_range_follows_the_configuration() {
    let two = ["10.50.0.0/24", "fd00:50::/112"];
    let lab = Lab::with(&two[..1], "10.50.0.10").await;
    lab.create("old", json!({ "ports": port(), "ipFamilyPolicy": "PreferDualStack" })).await.unwrap();
    let (store, dir) = (lab.running.store.clone(), tempfile::tempdir().unwrap());
    drop(lab);
    let cluster = ClusterConfig {
        service_cidrs: two.iter().map(|c| c.parse().unwrap()).collect(),
        dns_ip: "10.50.0.10".parse().unwrap(),
        ..ClusterConfig::default()
    };
    let lab = Lab::on(crate::support::start_as(dir, store, cluster).await);
    let range = lab.ranges.get("kubernetes").await.unwrap();
    assert_eq!(range.spec.unwrap().cidrs.unwrap(), two);
    // An unrelated change leaves it as it is; asking for the second family brings it.
    let kept = lab.patch("old", json!({ "selector": { "a": "b" } })).await.unwrap();
    assert_eq!(kept["clusterIPs"].as_array().unwrap().len(), 1);
    let both = lab.patch("old", json!({ "ipFamilies": ["IPv4", "IPv6"] })).await.unwrap();
    assert!(both["clusterIPs"][1].as_str().unwrap().starts_with("fd00:50::"), "{both}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_families_come_and_go() {
    let lab = Lab::with(&["10.50.0.0/24", "fd00:50::/112"], "10.50.0.10").await;
    let one = lab.create("a", json!({ "ports": port() })).await.unwrap();
    assert_eq!((&one["ipFamilies"], &one["ipFamilyPolicy"]), (&json!(["IPv4"]), &json!("SingleStack")));
    let two = lab.patch("a", json!({ "ipFamilyPolicy": "PreferDualStack" })).await.unwrap();
    assert_eq!(two["ipFamilies"], json!(["IPv4", "IPv6"]));
    assert_eq!(two["clusterIPs"][0], one["clusterIP"]);
    let second = two["clusterIPs"][1].as_str().unwrap().to_owned();
    assert_eq!(lab.holder(&second).await.as_deref(), Some("a"));
    // Releasing the second needs the policy to say so.
    let refused =
        lab.patch("a", json!({ "clusterIPs": [one["clusterIP"]], "ipFamilies": ["IPv4"] })).await.unwrap_err();
    assert!(
        refused.contains("`ipFamilyPolicy` must be set to 'SingleStack' when releasing the secondary clusterIP"),
        "{refused}"
    );
    let refused = lab.patch("a", json!({ "ipFamilies": ["IPv6", "IPv4"] })).await.unwrap_err();
    assert!(
        refused.contains("spec.ipFamilies[0]: Invalid value: [\"IPv6\",\"IPv4\"]: may not change once set"),
        "{refused}"
    );
    let back = lab.patch("a", json!({ "ipFamilyPolicy": "SingleStack" })).await.unwrap();
    assert_eq!((&back["clusterIPs"], &back["ipFamilies"]), (&json!([one["clusterIP"]]), &json!(["IPv4"])));
    assert_eq!(lab.holder(&second).await, None, "the released address is free");
    let taken = lab.create("b", json!({ "ports": port(), "clusterIP": second })).await.unwrap();
    assert_eq!(taken["ipFamilies"], json!(["IPv6"]));

    let both = json!({ "ports": port(), "ipFamilyPolicy": "RequireDualStack", "clusterIPs": ["10.50.0.77", "10.50.0.78"], "clusterIP": "10.50.0.77" });
    let refused = lab.create("c", both).await.unwrap_err();
    assert!(refused.contains("may specify no more than one IP for each IP family"), "{refused}");
    let cross = json!({ "ports": port(), "ipFamilies": ["IPv6"], "clusterIP": "10.50.0.77" });
    let refused = lab.create("c", cross).await.unwrap_err();
    assert!(
        refused.contains(
            "spec.clusterIPs[0]: Invalid value: \"10.50.0.77\": expected an IPv6 value as indicated by `ipFamilies[0]`"
        ),
        "{refused}"
    );
    let refused = lab.create("c", json!({ "ports": port(), "ipFamilies": ["IPv4", "IPv6"] })).await.unwrap_err();
    assert!(refused.contains("must be RequireDualStack or PreferDualStack when multiple IP families"), "{refused}");
    // A refusal half-way gives back what it took.
    let half = json!({ "ports": port(), "ipFamilyPolicy": "RequireDualStack", "clusterIP": "10.50.0.77", "clusterIPs": ["10.50.0.77", second] });
    let refused = lab.create("c", half).await.unwrap_err();
    assert!(refused.contains("provided IP is already allocated"), "{refused}");
    assert_eq!(lab.holder("10.50.0.77").await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn types_keep_and_release_what_kubernetes_does() {
    let lab = Lab::on(start().await);
    let both = json!([{ "name": "t", "port": 53, "protocol": "TCP" }, { "name": "u", "port": 53, "protocol": "UDP" }]);
    let made = lab
        .create("a", json!({ "type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": both }))
        .await
        .unwrap();
    assert_eq!(made["ports"][0]["nodePort"], made["ports"][1]["nodePort"], "one number for TCP and UDP");
    let health = made["healthCheckNodePort"].as_i64().unwrap();
    let refused = lab.patch("a", json!({ "healthCheckNodePort": health + 1 })).await.unwrap_err();
    assert!(refused.contains("cannot change healthCheckNodePort on loadBalancer service"), "{refused}");
    let refused = lab.patch("a", json!({ "loadBalancerClass": "x.dev/y" })).await.unwrap_err();
    assert!(
        refused.contains("spec.loadBalancerClass: Invalid value: \"x.dev/y\": may not change once set"),
        "{refused}"
    );
    // Status belongs to load balancers only.
    let status = json!({ "status": { "loadBalancer": { "ingress": [{ "ip": "192.0.2.7" }] } } });
    lab.services.patch_status("a", &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();
    let cluster = lab.patch("a", json!({ "externalTrafficPolicy": "Cluster" })).await.unwrap();
    assert!(cluster.get("healthCheckNodePort").is_none(), "{cluster}");
    let node = lab.patch("a", json!({ "type": "NodePort" })).await.unwrap();
    assert_eq!(node["ports"][0]["nodePort"], made["ports"][0]["nodePort"], "both types have node ports");
    assert!(node.get("allocateLoadBalancerNodePorts").is_none());
    let stored = lab.services.get("a").await.unwrap();
    assert_eq!(stored.status.unwrap().load_balancer.unwrap().ingress, None);
    let said = lab.services.patch_status("a", &PatchParams::default(), &Patch::Merge(&status)).await.unwrap_err();
    assert!(said.to_string().contains("may only be used when `spec.type` is LoadBalancer"), "{said}");

    // To a name: address and ports go, and others may have them.
    let (ip, number) = (made["clusterIP"].clone(), made["ports"][0]["nodePort"].clone());
    let name = lab.patch("a", json!({ "type": "ExternalName", "externalName": "db.example.com" })).await.unwrap();
    assert!(name.get("clusterIP").is_none() && name.get("ipFamilies").is_none(), "{name}");
    let heir = json!({ "type": "NodePort", "clusterIP": ip, "ports": [{ "port": 80, "nodePort": number }] });
    lab.create("heir", heir).await.unwrap();
    // And back: another address.
    let back = lab.patch("a", json!({ "type": "ClusterIP", "externalName": null })).await.unwrap();
    assert!(back["clusterIP"].is_string() && back["clusterIP"] != ip, "{back}");
    let refused = lab.patch("a", json!({ "clusterIP": "None", "clusterIPs": ["None"] })).await.unwrap_err();
    assert!(refused.contains("may not change once set"), "{refused}");

    let without = json!({ "type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "ports": port() });
    let without = lab.create("without", without).await.unwrap();
    assert!(without["ports"][0].get("nodePort").is_none(), "{without}");
    let with = lab.patch("without", json!({ "allocateLoadBalancerNodePorts": true })).await.unwrap();
    assert!(with["ports"][0]["nodePort"].is_number(), "{with}");
    for (spec, want) in [
        (
            json!({ "ports": port(), "allocateLoadBalancerNodePorts": true }),
            "spec.allocateLoadBalancerNodePorts: Forbidden: may only be used when `type` is 'LoadBalancer'",
        ),
        (
            json!({ "ports": port(), "externalIPs": ["224.0.0.9"] }),
            "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)",
        ),
        (
            json!({ "type": "LoadBalancer", "ports": [{ "port": 10250 }] }),
            "spec.ports[0]: Invalid value: 10250: may not expose port 10250 externally since it is used by kubelet",
        ),
        (
            json!({ "type": "ExternalName", "externalName": "a.b", "clusterIP": "10.96.9.9" }),
            "spec.clusterIPs: Forbidden: may not be set for ExternalName services",
        ),
    ] {
        let refused = lab.create("no", spec).await.unwrap_err();
        assert!(refused.contains(want), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_of_others_are_respected() {
    let lab = Lab::with(&["10.50.0.0/29"], "10.50.0.2").await;
    let own: IPAddress = serde_json::from_value(json!({ "metadata": { "name": "10.50.0.3" },
        "spec": { "parentRef": { "group": "gateway.networking.k8s.io", "resource": "gateways", "namespace": "default", "name": "g" } } }))
    .unwrap();
    lab.addresses.create(&PostParams::default(), &own).await.unwrap();
    for i in 0..3 {
        let made = lab.create(&format!("s{i}"), json!({ "ports": port() })).await.unwrap();
        assert_ne!(made["clusterIP"], "10.50.0.3");
    }
    assert!(lab.create("no", json!({ "ports": port() })).await.unwrap_err().contains("range is full"));
    let refused = lab.create("no", json!({ "ports": port(), "clusterIP": "10.50.0.3" })).await.unwrap_err();
    assert!(refused.contains("provided IP is already allocated"), "{refused}");
    repair(lab.running.api.engine(), None, Duration::ZERO).await.unwrap();
    assert_eq!(lab.holder("10.50.0.3").await.as_deref(), Some("g"), "repair leaves it to its owner");
}

#[tokio::test(flavor = "multi_thread")]
async fn repair_tells_what_it_does_and_what_only_people_can_do() {
    let lab = Lab::on(start().await);
    let made = lab.create("a", json!({ "type": "NodePort", "ports": port() })).await.unwrap();
    let (ip, number) = (made["clusterIP"].as_str().unwrap(), &made["ports"][0]["nodePort"]);
    let store = &lab.running.store;
    // What an import by hand could do: a second Service with the same address and port, one outside of all ranges.
    let (first, _) = store.get("/registry/core/services/default/a", None).await.unwrap();
    let twin: Value = serde_json::from_slice(&first.unwrap().value).unwrap();
    let put = async |name: &str, change: &dyn Fn(&mut Value)| {
        let mut twin = twin.clone();
        twin["metadata"]["name"] = name.into();
        twin["metadata"]["uid"] = format!("uid-{name}").into();
        change(&mut twin);
        let bytes = serde_json::to_vec(&twin).unwrap().into();
        store.create(&format!("/registry/core/services/default/{name}"), bytes).await.unwrap();
    };
    put("twin", &|_| {}).await;
    put("outside", &|o| {
        o["spec"]["clusterIP"] = "10.1.1.1".into();
        o["spec"]["clusterIPs"] = json!(["10.1.1.1"]);
        o["spec"]["ports"][0]["nodePort"] = 31999.into();
    })
    .await;
    // Somebody took the label and the reference away from another address.
    let other = lab.create("b", json!({ "ports": port() })).await.unwrap();
    let key = format!("/registry/networking.k8s.io/ipaddresses/{}", other["clusterIP"].as_str().unwrap());
    let (kv, _) = store.get(&key, None).await.unwrap();
    let kv = kv.unwrap();
    let mut wrong: Value = serde_json::from_slice(&kv.value).unwrap();
    wrong["spec"]["parentRef"]["name"] = "nobody".into();
    store.update(&key, serde_json::to_vec(&wrong).unwrap().into(), kv.mod_revision).await.unwrap();

    let events = Recorder::new(lab.running.admin(), "test", None);
    repair(lab.running.api.engine(), Some(&events), Duration::ZERO).await.unwrap();
    assert_eq!(lab.holder(other["clusterIP"].as_str().unwrap()).await.as_deref(), Some("b"));
    assert_eq!(lab.holder(ip).await.as_deref(), Some("a"), "the one who holds it keeps it");
    let api: Api<Event> = Api::namespaced(lab.running.admin(), "default");
    for (object, reason, words) in [
        (
            "twin",
            "ClusterIPAlreadyAllocated",
            format!("Cluster IP [IPv4]: {ip} was assigned to multiple services; please recreate service"),
        ),
        (
            "twin",
            "PortAlreadyAllocated",
            format!("Port {number} was assigned to multiple services; please recreate service"),
        ),
        (
            "outside",
            "ClusterIPOutOfRange",
            "Cluster IP [IPv4]: 10.1.1.1 is not within any configured range; please recreate service".to_owned(),
        ),
        ("outside", "PortNotAllocated", "Port 31999 is not allocated; repairing".to_owned()),
        (
            "b",
            "ClusterIPNotAllocated",
            format!("Cluster IP [IPv4]: {} has a wrong reference; repairing", other["clusterIP"].as_str().unwrap()),
        ),
    ] {
        eventually(&format!("{reason} about {object}"), || async {
            let all = api.list(&ListParams::default()).await.unwrap().items;
            all.into_iter().find(|e| {
                e.involved_object.name.as_deref() == Some(object)
                    && e.reason.as_deref() == Some(reason)
                    && e.message.as_deref() == Some(words.as_str())
            })
        })
        .await;
    }
    assert_eq!(lab.services.get("b").await.unwrap().name_any(), "b");
}
