//! Writes the definitions of the Gateway API's kinds, as the crate `gateway-api` derives them, to one JSON file. What a
//! derived definition lacks and users expect is added here: short names, categories, columns, the versions that
//! clients use, and the API's defaults where the crate's own do not come through.

use gateway_api::apis::{experimental, standard};
use kube_of_gateway_api::CustomResourceExt;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::{env, fs, io};

/// The version of the Gateway API that the crate is made from.
const BUNDLE: &str = "v1.5.1";

fn definition<K: CustomResourceExt>(short: &[&str], columns: &[(&str, &str)], aliases: &[&str]) -> io::Result<Value> {
    let mut crd = serde_json::to_value(K::crd())?;
    crd["metadata"]["annotations"] = json!({
        "gateway.networking.k8s.io/bundle-version": BUNDLE,
        "gateway.networking.k8s.io/channel": "experimental",
        // The group is protected: definitions of it name their approval.
        "api-approved.kubernetes.io": "https://github.com/kubernetes-sigs/gateway-api/pull/3328",
    });
    crd["metadata"]["labels"] = json!({ "app.kubernetes.io/managed-by": "causeway" });
    crd["spec"]["names"]["categories"] = json!(["gateway-api"]);
    crd["spec"]["names"]["shortNames"] = json!(short);
    let age = ("Age", ".metadata.creationTimestamp");
    let columns: Vec<Value> = columns
        .iter()
        .chain([&age])
        .map(|(name, path)| {
            let kind = if *name == "Age" { "date" } else { "string" };
            json!({ "name": name, "type": kind, "jsonPath": path })
        })
        .collect();
    let versions =
        crd["spec"]["versions"].as_array_mut().ok_or_else(|| io::Error::other("a definition without versions"))?;
    versions[0]["additionalPrinterColumns"] = json!(columns);
    if let Some(schema) = versions[0].get_mut("schema") {
        tidy(schema);
    }
    for alias in aliases {
        let mut version = versions[0].clone();
        version["name"] = json!(alias);
        version["storage"] = json!(false);
        versions.push(version);
    }
    // What clients of today ask for is what is stored.
    if let Some(at) = versions.iter().position(|v| v["name"] == "v1") {
        for version in versions.iter_mut() {
            version["storage"] = json!(false);
        }
        versions[at]["storage"] = json!(true);
        versions.swap(0, at);
    }
    Ok(crd)
}

/// Takes out of a schema what a structural schema may not have.
fn tidy(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            fields.remove("title");
            fields.values_mut().for_each(tidy);
        }
        Value::Array(all) => all.iter_mut().for_each(tidy),
        _ => {}
    }
}

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-changed=build.rs");
    let hostnames = ("Hostnames", ".spec.hostnames");
    let accepted = ("Accepted", r#".status.conditions[?(@.type=="Accepted")].status"#);
    let programmed = ("Programmed", r#".status.conditions[?(@.type=="Programmed")].status"#);
    let all = vec![
        definition::<experimental::gatewayclasses::GatewayClass>(
            &["gc"],
            &[("Controller", ".spec.controllerName"), accepted],
            &["v1beta1"],
        )?,
        definition::<experimental::gateways::Gateway>(
            &["gtw"],
            &[("Class", ".spec.gatewayClassName"), ("Address", ".status.addresses[*].value"), programmed],
            &["v1beta1"],
        )?,
        definition::<experimental::listenersets::ListenerSet>(&["lset"], &[accepted, programmed], &[])?,
        definition::<experimental::httproutes::HttpRoute>(&[], &[hostnames], &["v1beta1"])?,
        definition::<experimental::grpcroutes::GrpcRoute>(&[], &[hostnames], &[])?,
        definition::<experimental::tlsroutes::TlsRoute>(&[], &[hostnames], &["v1alpha2", "v1alpha3"])?,
        definition::<experimental::tcproutes::TcpRoute>(&[], &[], &["v1"])?,
        definition::<experimental::udproutes::UdpRoute>(&[], &[], &["v1"])?,
        definition::<experimental::referencegrants::ReferenceGrant>(&["refgrant"], &[], &["v1beta1"])?,
        definition::<standard::backendtlspolicies::BackendTlsPolicy>(&["btlspolicy"], &[], &["v1alpha3"])?,
    ];
    let folder = env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("cargo says no OUT_DIR"))?;
    fs::write(PathBuf::from(folder).join("crds.json"), serde_json::to_vec(&all)?)
}
