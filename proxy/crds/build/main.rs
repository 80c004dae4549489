//! Writes the definitions of the Gateway API's kinds, made of the types in the sources of the crate `gateway-api`, to one
//! JSON file. What types do not say and users expect is added here: short names, categories, columns, and the versions that
//! clients use.

mod read;
mod schema;

use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::{env, fs};

/// The version of the Gateway API that the crate is made from.
const BUNDLE: &str = "v1.5.1";

type Result<T> = std::result::Result<T, String>;

/// The definition of the kind that `file` of the crate's folder of types has.
fn definition(
    types: &Path,
    file: &str,
    spec: &str,
    short: &[&str],
    columns: &[(&str, &str)],
    aliases: &[&str],
) -> Result<Value> {
    let path = types.join(file).with_extension("rs");
    let text = fs::read_to_string(&path).map_err(|e| format!("reading {}: {e}", path.display()))?;
    let made = read::types(&text).and_then(|types| schema::definition(&types, spec));
    let mut crd = made.map_err(|e| format!("{}: {e}", path.display()))?;
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
    let versions = crd["spec"]["versions"].as_array_mut().ok_or("a definition without versions")?;
    versions[0]["additionalPrinterColumns"] = json!(columns);
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

fn main() {
    if let Err(message) = run() {
        eprintln!("causeway-gateway-crds: {message}");
        std::process::exit(1);
    }
}

fn run() -> Result<()> {
    println!("cargo::rerun-if-changed=build");
    let types = causeway_sources::folder("gateway-api")?.join("src/apis");
    let hostnames = ("Hostnames", ".spec.hostnames");
    let accepted = ("Accepted", r#".status.conditions[?(@.type=="Accepted")].status"#);
    let programmed = ("Programmed", r#".status.conditions[?(@.type=="Programmed")].status"#);
    let of = |file, spec, short, columns, aliases| definition(&types, file, spec, short, columns, aliases);
    let all = vec![
        of(
            "experimental/gatewayclasses",
            "GatewayClassSpec",
            &["gc"],
            &[("Controller", ".spec.controllerName"), accepted],
            &["v1beta1"],
        )?,
        of(
            "experimental/gateways",
            "GatewaySpec",
            &["gtw"],
            &[("Class", ".spec.gatewayClassName"), ("Address", ".status.addresses[*].value"), programmed],
            &["v1beta1"],
        )?,
        of("experimental/listenersets", "ListenerSetSpec", &["lset"], &[accepted, programmed], &[])?,
        of("experimental/httproutes", "HttpRouteSpec", &[], &[hostnames], &["v1beta1"])?,
        of("experimental/grpcroutes", "GrpcRouteSpec", &[], &[hostnames], &[])?,
        of("experimental/tlsroutes", "TlsRouteSpec", &[], &[hostnames], &["v1alpha2", "v1alpha3"])?,
        of("experimental/tcproutes", "TcpRouteSpec", &[], &[], &["v1"])?,
        of("experimental/udproutes", "UdpRouteSpec", &[], &[], &["v1"])?,
        of("experimental/referencegrants", "ReferenceGrantSpec", &["refgrant"], &[], &["v1beta1"])?,
        of("standard/backendtlspolicies", "BackendTlsPolicySpec", &["btlspolicy"], &[], &["v1alpha3"])?,
    ];
    let folder = env::var_os("OUT_DIR").ok_or("OUT_DIR is not set: run this through cargo")?;
    let text = serde_json::to_vec(&all).map_err(|e| format!("writing the definitions: {e}"))?;
    fs::write(PathBuf::from(folder).join("crds.json"), text).map_err(|e| format!("writing the definitions: {e}"))
}
