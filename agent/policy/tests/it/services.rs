//! Policies with kube-proxy's rules beside them: what counts is the pod behind the service address.

use crate::support::{By, CIDRS, Lab, Pod, Talk, expect};
use causeway_nft::family::Family;
use causeway_services::{
    conntrack::Conntrack,
    kernel::Kernel,
    model::{self, NodeView},
    program::Program,
    renderer::{Ranges, Renderer},
};
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use serde_json::json;
use std::net::IpAddr;

const VIP: &str = "10.96.0.5";

/// kube-proxy on node one, with a Service at [`VIP`], port 80, in front of port 8080 of a pod.
fn proxy(lab: &Lab, dir: &std::path::Path, backend: &Pod) -> Box<dyn Renderer> {
    let node = &lab.nodes[0];
    let mut program = node
        .netns
        .run(|| Program::open(Kernel::open(vec![Family::V4]).unwrap(), Conntrack::open().unwrap(), dir).unwrap())
        .unwrap();
    let service: Service = serde_json::from_value(json!({"metadata": {"name": "s", "namespace": "a"}, "spec": {
        "type": "NodePort", "clusterIP": VIP, "clusterIPs": [VIP],
        "ports": [{"name": "t", "port": 80, "protocol": "TCP", "nodePort": 30080}]}}))
    .unwrap();
    let slice: EndpointSlice = serde_json::from_value(json!({"metadata": {"name": "s-1", "namespace": "a"},
        "addressType": "IPv4", "endpoints": [{"addresses": [backend.of(Family::V4)]}],
        "ports": [{"name": "t", "port": 8080, "protocol": "TCP"}]}))
    .unwrap();
    let view = NodeView {
        name: "one".into(),
        ips: vec![node.ip],
        node_port_ips: vec![node.ip],
        zone: None,
        pod_cidrs: vec![CIDRS[0][0].parse().unwrap()],
    };
    let ranges = Ranges {
        pods: vec!["10.244.0.0/16".parse().unwrap()],
        services: vec!["10.96.0.0/12".parse().unwrap()],
        local: vec![CIDRS[0][0].parse().unwrap(), node.ip.into()],
    };
    let model = model::service(&service, [&slice], &view);
    program.sync(vec![("s".into(), Some(model))], &ranges, true).unwrap();
    Box::new(program)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pod_behind_a_service_address_counts_and_its_port() {
    let mut lab = Lab::new().await;
    let dir = tempfile::tempdir().unwrap();
    let near = lab.pod(0, "a", "near", json!({"app": "web"})).await;
    let far = lab.pod(1, "a", "far", json!({"app": "web"})).await;
    let client = lab.pod(0, "a", "client", json!({"role": "client"})).await;
    let stranger = lab.pod(0, "b", "stranger", json!({})).await;
    let vip: IpAddr = VIP.parse().unwrap();
    let is_client = json!({"matchLabels": {"role": "client"}});
    let is_web = json!({"matchLabels": {"app": "web"}});
    for backend in [&near, &far] {
        let _proxy = proxy(&lab, dir.path(), backend);
        let by = |from: &Pod, allowed: bool, why: &str| {
            Talk::new(&from.netns, vip, 80, By::Tcp, allowed, &format!("{why}, by {}", backend.uid))
        };
        let node_port =
            |allowed: bool, why: &str| Talk::new(lab.segment.lan(), lab.nodes[0].ip, 30080, By::Tcp, allowed, why);
        // What outside clients get by a node port of the pod's own node is theirs; by another it is that node's.
        let (before, out) =
            ([by(&client, true, "no policy"), by(&stranger, true, "no policy")], &[by(&client, false, "x")]);
        let node_ports = [node_port(true, "node port"), node_port(false, "node port, denied")];
        let denied = [by(&client, false, "denied"), by(&stranger, false, "denied")];
        let some = [by(&client, true, "a client"), by(&stranger, false, "no client")];
        let to_itself = [by(backend, true, "to itself by its service")];
        expect(&before);
        expect(&node_ports[..1]);
        lab.policy("a", "in", json!({"podSelector": is_web, "ingress": []}));
        expect(&denied);
        expect(&node_ports[1..]);
        if backend.uid == "near" {
            expect(&to_itself);
        }
        lab.policy("a", "in", json!({"podSelector": is_web, "ingress": [{"from": [{"podSelector": is_client}]}]}));
        expect(&some);
        let seen = if backend.uid == "near" { lab.segment.ip() } else { lab.nodes[0].ip };
        let block = json!([{"ipBlock": {"cidr": format!("{seen}/32")}}]);
        lab.policy("a", "in", json!({"podSelector": is_web, "ingress": [{"from": block}]}));
        expect(&node_ports[..1]);
        lab.no_policies();
        // Going out, the service's own address and port say nothing.
        let egress = |to: serde_json::Value, port: u16| json!({"podSelector": is_client, "policyTypes": ["Egress"], "egress": [{"to": to, "ports": [{"port": port}]}]});
        lab.policy("a", "out", egress(json!([{"podSelector": is_web}]), 8080));
        expect(&some[..1]);
        lab.policy("a", "out", egress(json!([{"podSelector": is_web}]), 80));
        expect(out);
        lab.policy("a", "out", egress(json!([{"ipBlock": {"cidr": "10.96.0.0/12"}}]), 8080));
        expect(out);
        lab.no_policies();
    }
}
