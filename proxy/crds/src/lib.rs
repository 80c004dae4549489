//! The kinds of the Gateway API as CustomResourceDefinitions, made from the crate `gateway-api` while this is built.
//! Goes in: nothing. Comes out: definitions as JSON, for whoever installs them.

use serde_json::Value;

static DEFINITIONS: &str = include_str!(concat!(env!("OUT_DIR"), "/crds.json"));

/// The definitions (apiextensions.k8s.io/v1): GatewayClass, Gateway, ListenerSet, HTTPRoute, GRPCRoute, TLSRoute,
/// TCPRoute, UDPRoute, ReferenceGrant and BackendTLSPolicy.
pub fn definitions() -> Vec<Value> {
    // Our own build wrote it, and a test reads it.
    serde_json::from_str(DEFINITIONS).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #[test]
    fn all_kinds_are_there_in_the_version_that_clients_use() {
        let all = super::definitions();
        assert_eq!(all.len(), 10);
        for definition in all {
            let versions = definition["spec"]["versions"].as_array().unwrap();
            let stored: Vec<_> = versions.iter().filter(|v| v["storage"] == true).map(|v| &v["name"]).collect();
            assert_eq!(stored, ["v1"], "{}", definition["metadata"]["name"]);
        }
    }
}
