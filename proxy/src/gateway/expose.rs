//! How clients reach a Gateway: by a Service of type LoadBalancer that is made for it, whose EndpointSlice leads to the
//! sockets its ports are served on. So a Gateway's address is given, announced and taken over as any other load
//! balancer's, and many Gateways can have the same port.
//!
//! In: the exposures of the model and the sockets that are open. Out: Services and EndpointSlices through the API.

use super::refs::Problem;
use super::types::Gateway;
use crate::config::view::View;
use crate::route::ObjectKey;
use crate::route::front::FrontKey;
use causeway_api::balancer::ADDRESSES_ANNOTATION;
use causeway_api::endpoints::SERVICE_NAME_LABEL;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::{Client, Resource as _};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The label by which what is made for a Gateway names it (GEP-1762).
pub const GATEWAY_LABEL: &str = "gateway.networking.k8s.io/gateway-name";
/// The label that says who made it.
const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// The value of that label, and our name as a field manager.
const MANAGER: &str = "causeway-gateway";
/// The longest name of a Service.
const LONGEST: usize = 63;
/// The pause after a write that failed.
const RETRY: Duration = Duration::from_secs(1);

/// What is wanted for one Gateway.
#[derive(Debug, Clone, PartialEq)]
pub struct Exposure {
    service: ObjectKey,
    ports: Vec<FrontKey>,
    metadata: Value,
}

/// Whether a Gateway can be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// At these addresses.
    Ready(Vec<String>),
    /// Not yet, for this reason.
    Pending(Problem),
}

/// An object to write, unless it is there just so already.
#[derive(Debug, Clone, PartialEq)]
pub enum Write {
    /// This is to be there; `true`: what the API has differs.
    Apply(Value, bool),
    /// This Service is to go.
    Delete(ObjectKey),
}

impl Exposure {
    /// Of a Gateway and its ports.
    pub fn new<'a>(gateway: &Gateway, ports: impl Iterator<Item = &'a FrontKey>) -> Self {
        let key = ObjectKey::of(gateway);
        let infrastructure = gateway.spec.infrastructure.clone().unwrap_or_default();
        let mut labels: Map<String, Value> = infrastructure.labels.into_iter().map(|(k, v)| (k, v.into())).collect();
        labels.insert(GATEWAY_LABEL.to_owned(), shortened(&key.name).into());
        labels.insert(MANAGED_BY.to_owned(), MANAGER.into());
        let mut annotations: Map<String, Value> =
            infrastructure.annotations.into_iter().map(|(k, v)| (k, v.into())).collect();
        let asked: Vec<&str> = gateway.spec.addresses.iter().filter_map(|a| a.value.as_deref()).collect();
        if !asked.is_empty() {
            annotations.insert(ADDRESSES_ANNOTATION.to_owned(), asked.join(",").into());
        }
        let owner = gateway.controller_owner_ref(&());
        let service = service_of(&key);
        let metadata = json!({
            "namespace": &*key.namespace,
            "name": &*service.name,
            "labels": labels,
            "annotations": annotations,
            "ownerReferences": owner.into_iter().collect::<Vec<_>>(),
        });
        Self { service, ports: ports.cloned().collect(), metadata }
    }

    fn service(&self) -> Value {
        let ports: Vec<Value> = self
            .ports
            .iter()
            .map(|p| json!({ "name": port_name(p), "port": p.port, "protocol": protocol(p), "targetPort": p.port }))
            .collect();
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": self.metadata,
            "spec": {
                "type": "LoadBalancer",
                // Clients keep their addresses, and only nodes that serve the Gateway announce it.
                "externalTrafficPolicy": "Local",
                "allocateLoadBalancerNodePorts": false,
                "ports": ports,
            },
        })
    }

    fn slice(&self, opened: &BTreeMap<FrontKey, SocketAddr>, address: IpAddr, node: &str) -> Value {
        let ports: Vec<Value> = self
            .ports
            .iter()
            .filter_map(|p| opened.get(p).map(|at| (p, at)))
            .map(|(p, at)| json!({ "name": port_name(p), "port": at.port(), "protocol": protocol(p) }))
            .collect();
        let mut metadata = self.metadata.clone();
        metadata["labels"] = json!({
            SERVICE_NAME_LABEL: &*self.service.name,
            "endpointslice.kubernetes.io/managed-by": MANAGER,
            GATEWAY_LABEL: metadata["labels"][GATEWAY_LABEL],
        });
        metadata["annotations"] = json!({});
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": metadata,
            "addressType": if address.is_ipv4() { "IPv4" } else { "IPv6" },
            "endpoints": [{
                "addresses": [address.to_string()],
                "conditions": { "ready": true, "serving": true, "terminating": false },
                "nodeName": node,
            }],
            "ports": ports,
        })
    }
}

fn port_name(key: &FrontKey) -> String {
    format!("{}-{}", if key.udp { "udp" } else { "tcp" }, key.port)
}

fn protocol(key: &FrontKey) -> &'static str {
    if key.udp { "UDP" } else { "TCP" }
}

/// A name that fits where at most 63 characters do; one that had to be cut says so by a hash of the whole.
fn shortened(name: &str) -> String {
    if name.len() <= LONGEST {
        return name.to_owned();
    }
    let hash: String = Sha256::digest(name).iter().take(4).map(|b| format!("{b:02x}")).collect();
    format!("{}-{hash}", name[..LONGEST - 9].trim_end_matches(['-', '.']))
}

/// The Service of a Gateway. Dots, which Gateways' names may have and Services' may not, become dashes.
pub fn service_of(gateway: &ObjectKey) -> ObjectKey {
    let name = format!("{}-causeway", gateway.name).replace('.', "-");
    // A Service's name begins with a letter.
    let name = if name.starts_with(|c: char| c.is_ascii_digit()) { format!("g-{name}") } else { name };
    ObjectKey { namespace: Arc::clone(&gateway.namespace), name: shortened(&name).into() }
}

/// Whether clients reach a Gateway already, and where.
pub fn address(view: &View, gateway: &ObjectKey) -> Address {
    let key = service_of(gateway);
    let status = view.services.get(&key).and_then(|s| s.status.as_ref()?.load_balancer.as_ref()?.ingress.as_ref());
    let all: Vec<String> = status.into_iter().flatten().filter_map(|i| i.ip.clone()).collect();
    if all.is_empty() {
        let message = format!("Service {key} has no address yet; see its events");
        return Address::Pending(Problem::new("AddressNotAssigned", message));
    }
    if view.slices_of(&key).all(|slice| slice.ports.as_ref().is_none_or(Vec::is_empty)) {
        return Address::Pending(Problem::new("Pending", "the listeners' sockets are being opened"));
    }
    Address::Ready(all)
}

/// What to write so that Gateways can be reached at the sockets that are open.
pub fn plan(
    view: &View,
    exposures: &[Exposure],
    opened: &BTreeMap<FrontKey, SocketAddr>,
    address: IpAddr,
    node: &str,
) -> Vec<Write> {
    let mut writes = Vec::new();
    for exposure in exposures {
        let wanted = exposure.service();
        let current = view.services.get(&exposure.service).and_then(|s| serde_json::to_value(&**s).ok());
        let differs = current.is_none_or(|c| !holds(&c, &wanted));
        writes.push(Write::Apply(wanted, differs));
        let wanted = exposure.slice(opened, address, node);
        let current = view
            .slices_of(&exposure.service)
            .find(|s| s.metadata.name.as_deref() == Some(&exposure.service.name))
            .and_then(|s| serde_json::to_value(s).ok());
        // A program that has just taken over has its sockets in a moment: until then clients are led where they were.
        if current.is_some() && exposure.ports.iter().any(|p| !opened.contains_key(p)) {
            continue;
        }
        let differs = current.is_none_or(|c| !holds(&c, &wanted));
        writes.push(Write::Apply(wanted, differs));
    }
    let made = view.services.values().filter(|s| {
        let labels = s.metadata.labels.as_ref();
        labels.and_then(|l| l.get(MANAGED_BY)).is_some_and(|v| v == MANAGER)
    });
    for service in made {
        let key = ObjectKey::of(&**service);
        if exposures.iter().all(|e| e.service != key) {
            writes.push(Write::Delete(key));
        }
    }
    writes
}

/// Whether all that is wanted is there; more may be.
fn holds(current: &Value, wanted: &Value) -> bool {
    match (current, wanted) {
        (_, Value::Object(w)) if w.is_empty() => true,
        (Value::Object(c), Value::Object(w)) => w.iter().all(|(k, v)| match (c.get(k), k.as_str()) {
            (Some(own), _) => holds(own, v),
            // Typed objects do not say what they are.
            (None, "apiVersion" | "kind") => true,
            (None, _) => v.as_array().is_some_and(Vec::is_empty),
        }),
        (Value::Array(c), Value::Array(w)) => c.len() == w.len() && c.iter().zip(w).all(|(c, w)| holds(c, w)),
        (c, w) => c == w,
    }
}

/// Writes until shutdown: what differs from what the API has, and what we have not written ourselves in these words.
pub async fn run(client: Client, mut plans: watch::Receiver<Arc<Vec<Write>>>, shutdown: CancellationToken) {
    let mut written: HashMap<String, Value> = HashMap::new();
    loop {
        let plan = Arc::clone(&plans.borrow_and_update());
        let mut failed = false;
        for write in plan.iter() {
            if shutdown.is_cancelled() {
                return;
            }
            if let Err(error) = one(&client, write, &mut written).await {
                tracing::warn!(%error, "what makes a Gateway reachable cannot be written; trying again");
                failed = true;
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = plans.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(RETRY), if failed => {}
        }
    }
}

async fn one(client: &Client, write: &Write, written: &mut HashMap<String, Value>) -> Result<(), kube::Error> {
    let services = ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", "Service"));
    let slices = ApiResource::from_gvk(&GroupVersionKind::gvk("discovery.k8s.io", "v1", "EndpointSlice"));
    match write {
        Write::Apply(object, differs) => {
            let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
            let kind = object["kind"].as_str().unwrap_or_default();
            let id = format!("{kind} {}/{}", text("namespace"), text("name"));
            if !differs && written.get(&id) == Some(object) {
                return Ok(());
            }
            let resource = if kind == "Service" { &services } else { &slices };
            let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), text("namespace"), resource);
            api.patch(text("name"), &PatchParams::apply(MANAGER).force(), &Patch::Apply(object)).await?;
            written.insert(id, object.clone());
        }
        Write::Delete(key) => {
            let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &key.namespace, &services);
            written.retain(|id, _| !id.ends_with(&format!(" {key}")));
            match api.delete(&key.name, &DeleteParams::default()).await {
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                other => drop(other?),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_services() {
        let name = |gateway: &str| service_of(&ObjectKey::new("ns", gateway)).name.to_string();
        assert_eq!(name("web"), "web-causeway");
        assert_eq!(name("a.b"), "a-b-causeway");
        assert_eq!(name("1st"), "g-1st-causeway");
        let (long, other) = ("x".repeat(100), format!("{}y", "x".repeat(99)));
        assert_eq!(name(&long).len(), LONGEST);
        assert_ne!(name(&long), name(&other));
    }

    #[test]
    fn more_may_be_there_than_is_wanted() {
        let current = json!({ "a": { "b": 1, "c": 2 }, "list": [{ "x": 1, "y": 2 }] });
        assert!(holds(&current, &json!({ "a": { "b": 1 }, "list": [{ "x": 1 }], "kind": "K", "none": [] })));
        assert!(!holds(&current, &json!({ "a": { "b": 2 } })));
        assert!(!holds(&current, &json!({ "list": [] })));
        assert!(!holds(&current, &json!({ "d": 1 })));
    }

    #[test]
    fn a_slice_names_only_sockets_that_are_open() {
        let gateway: Gateway = serde_json::from_value(json!({
            "metadata": { "name": "web", "namespace": "ns", "uid": "u" },
            "spec": { "addresses": [{ "value": "10.0.0.9" }], "infrastructure": { "labels": { "team": "a" } } },
        }))
        .unwrap();
        let key = |port| FrontKey { gateway: ObjectKey::new("ns", "web"), port, udp: false };
        let exposure = Exposure::new(&gateway, [key(80), key(443)].iter());
        let opened = BTreeMap::from([(key(443), SocketAddr::from(([10, 0, 0, 1], 40_001)))]);
        let slice = exposure.slice(&opened, "10.0.0.1".parse().unwrap(), "n1");
        assert_eq!(slice["ports"], json!([{ "name": "tcp-443", "port": 40_001, "protocol": "TCP" }]));
        let service = exposure.service();
        assert_eq!(service["metadata"]["labels"]["team"], "a");
        assert_eq!(service["metadata"]["annotations"][ADDRESSES_ANNOTATION], "10.0.0.9");
        assert_eq!(service["metadata"]["ownerReferences"][0]["uid"], "u");
        let writes = plan(&View::default(), &[exposure], &opened, "10.0.0.1".parse().unwrap(), "n1");
        assert!(writes.iter().all(|w| matches!(w, Write::Apply(_, true))) && writes.len() == 2);
    }
}
