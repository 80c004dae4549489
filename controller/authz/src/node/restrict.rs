//! What a node may write, told with the object at hand: admission `NodeRestriction` of Kubernetes 1.35, and the same for
//! what this cluster's nodes write beyond (their DNS' EndpointSlice, the announcer's leases, local volumes).
//!
//! In: one write as it would be stored, what was there before, look-ups. Out: nothing, or why it is refused, in upstream's
//! words where upstream has some. Which kinds a node may write at all is authorisation's.

mod node;
mod own;
mod pods;

use super::references::text;
use serde_json::Value;

/// The annotation of a Node that says which addresses its kubelet's certificate is for: comma-separated. The approver of
/// certificates writes it, or an administrator; the node itself may not.
pub const SERVING_ANNOTATION: &str = "causeway.dev/serving-addresses";

/// What is done to an object. A patch is an update, or a create where it creates; a connect is none of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Into being. Evictions and tokens are created.
    Create,
    /// Changed, also in a part (`status`).
    Update,
    /// Taken away, also by deletecollection: asked for each.
    Delete,
}

impl Operation {
    fn word(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
        }
    }
}

/// One write.
#[derive(Debug, Clone, Copy)]
pub struct Write<'a> {
    /// What is done.
    pub operation: Operation,
    /// API group.
    pub group: &'a str,
    /// Plural resource.
    pub resource: &'a str,
    /// Subresource; empty for the object itself.
    pub subresource: &'a str,
    /// Namespace; empty for cluster-wide kinds.
    pub namespace: &'a str,
    /// The object's name; of a create, the new object's (`""` before a name is generated).
    pub name: &'a str,
    /// What is to be stored, or the body of a subresource (Eviction, TokenRequest); `None` for a delete.
    pub object: Option<&'a Value>,
    /// What is there: of an update or delete the object itself; of an eviction or a token `None`.
    pub old: Option<&'a Value>,
}

/// What has to be looked up. Objects come from the server's own copies, or its store.
pub trait Lookup {
    /// An object; `None` where there is none.
    fn get(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Value>;
    /// The common name of the subject of a certificate request: `spec.request`, as it stands in the object (base64 of PEM).
    fn common_name(&self, request: &str) -> Result<String, String>;
    /// Whether the authorisers allow the node verb `request-serviceaccounts-token-audience` on resource `audience` in the
    /// namespace, named `account`.
    fn may_request_audience(&self, namespace: &str, account: &str, audience: &str) -> bool;
    /// Seconds since the epoch.
    fn now(&self) -> i64;
}

/// Whether `node` (see [`super::node_of`]) may make this write; `Err` says why not. To be asked before anything is spent
/// for it: disruption budgets, addresses, tokens. Also for a dry run.
pub fn restrict(node: &str, write: &Write<'_>, lookup: &dyn Lookup) -> Result<(), String> {
    if node.is_empty() {
        return Err("could not determine node from its user name".to_owned());
    }
    match (write.group, write.resource, write.subresource) {
        ("", "pods", "") => pods::pod(node, write, lookup),
        ("", "pods", "status") => pods::status(node, write),
        ("", "pods", "eviction") => pods::eviction(node, write, lookup),
        ("", "pods", other) => {
            Err(format!("unexpected pod subresource {other:?}, only 'status' and 'eviction' are allowed"))
        }
        ("", "nodes", _) => node::node(node, write),
        ("", "persistentvolumeclaims", "status") => own::claim_status(node, write),
        ("", "persistentvolumeclaims", _) => Err("may only update PVC status".to_owned()),
        ("", "persistentvolumes", _) => own::volume(node, write),
        ("", "serviceaccounts", "token") => pods::token(node, write, lookup),
        ("coordination.k8s.io", "leases", _) => own::lease(node, write, lookup),
        ("storage.k8s.io", "csinodes", _) => own::csi_node(node, write),
        ("discovery.k8s.io", "endpointslices", _) => own::dns_slice(node, write, lookup),
        ("resource.k8s.io", "resourceslices", _) => own::resource_slice(node, write),
        ("certificates.k8s.io", "certificatesigningrequests", _) => own::certificate(node, write, lookup),
        _ => Ok(()),
    }
}

fn refuse<T>(why: impl Into<String>) -> Result<T, String> {
    Err(why.into())
}

impl<'a> Write<'a> {
    /// The new object, which must be there.
    fn object(&self) -> Result<&'a Value, String> {
        self.object.ok_or_else(|| "unexpected type <nil>".to_owned())
    }

    /// The old one, likewise.
    fn old(&self) -> Result<&'a Value, String> {
        self.old.ok_or_else(|| "unexpected type <nil>".to_owned())
    }

    /// The name: of a create, what the object says.
    fn target(&self) -> &'a str {
        match self.object {
            Some(object) if self.operation == Operation::Create => text(object, "/metadata/name"),
            _ => self.name,
        }
    }
}

/// A copy without some fields, and without what is empty there: absent, null and empty are the same to the API.
fn without(object: &Value, pointers: &[&str]) -> Value {
    let mut copy = object.clone();
    for pointer in pointers {
        let Some((parent, key)) = pointer.rsplit_once('/') else { continue };
        if let Some(map) = copy.pointer_mut(parent).and_then(Value::as_object_mut) {
            map.shift_remove(key);
        }
    }
    strip(&mut copy);
    copy
}

/// Removes what is null or an empty list or map, from the inside out.
fn strip(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.values_mut().for_each(strip);
            map.retain(|_, v| !is_empty(v));
        }
        Value::Array(all) => all.iter_mut().for_each(strip),
        _ => {}
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(all) => all.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

/// Whether two objects have the same at a place.
fn same(one: &Value, other: &Value, pointer: &str) -> bool {
    let at = |object: &Value| {
        let mut value = object.pointer(pointer).cloned().unwrap_or(Value::Null);
        strip(&mut value);
        if is_empty(&value) { Value::Null } else { value }
    };
    at(one) == at(other)
}

#[cfg(test)]
pub(super) mod tests;
