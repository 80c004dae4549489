//! `causeway status`: what runs, where it is reached, and what is wrong with it.

use crate::paths::Paths;
use crate::tasks::RUNNING;
use crate::{instance, kubeconfig, ready};
use anyhow::{Result, bail};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use kube::api::{Api, ListParams};
use std::time::Duration;

/// Prints it; fails when the cluster does not run or is not ready.
pub fn run(paths: &Paths) -> Result<()> {
    let Some(record) = instance::running(paths)? else {
        let data = if paths.store().exists() { "its data is kept" } else { "there is no data of it" };
        bail!("cluster {:?} is not running ({data}); start it with: causeway up --name {}", paths.name, paths.name);
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = kubeconfig::client(paths).await?;
        println!("cluster    {} (process {}, data in {})", paths.name, record.pid, paths.data.display());
        println!("API        https://127.0.0.1:{}", record.api_port);
        println!("ingress    http://127.0.0.1:{}  https://127.0.0.1:{}", record.http_port, record.https_port);
        let within = Duration::from_secs(10);
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let list = tokio::time::timeout(within, namespaces.list(&ListParams::default().limit(1))).await;
        let Ok(list) = list else { bail!("the API does not answer within {} s", within.as_secs()) };
        println!("store      revision {}", list?.metadata.resource_version.unwrap_or_default());
        let pods = Api::<Pod>::all(client.clone()).list(&ListParams::default()).await?.items;
        let services = Api::<Service>::all(client.clone()).list(&ListParams::default()).await?.items;
        let running = pods.iter().filter(|p| causeway_api::pod::phase(p) == "Running").count();
        println!("pods       {running} of {} running", pods.len());
        println!("services   {}", services.len());
        println!();
        println!("{:<12} {:<10} {:<16} {:<18} PODS", "NODE", "STATUS", "ADDRESS", "POD CIDR");
        for node in Api::<Node>::all(client.clone()).list(&ListParams::default()).await?.items {
            print_node(&node, &pods);
        }
        println!("\n{:<28} STATE", "COMPONENT");
        for (component, state) in &record.components {
            println!("{component:<28} {state}");
        }
        let mut missing = ready::missing(&client, &paths.name, &record).await;
        let broken = record.components.iter().filter(|(_, state)| *state != RUNNING);
        missing.extend(broken.map(|(component, state)| format!("{component} {state}")));
        if missing.is_empty() {
            println!("\nready");
            return Ok(());
        }
        bail!("not ready: {}", missing.join("; "))
    })
}

fn print_node(node: &Node, pods: &[Pod]) {
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let status = node.status.as_ref();
    let conditions = status.and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let ready = conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True");
    let addresses = status.and_then(|s| s.addresses.as_deref()).unwrap_or_default();
    let address = addresses.iter().find(|a| a.type_ == "InternalIP").map_or("-", |a| a.address.as_str());
    let cidr = node.spec.as_ref().and_then(|s| s.pod_cidr.as_deref()).unwrap_or("-");
    let here = pods.iter().filter(|p| p.spec.as_ref().and_then(|s| s.node_name.as_deref()) == Some(name)).count();
    println!("{name:<12} {:<10} {address:<16} {cidr:<18} {here}", if ready { "Ready" } else { "NotReady" });
}
