//! `causeway status`: what runs, where it is reached, and what is wrong with it.

use crate::instance::{Record, Role};
use crate::paths::Paths;
use crate::ready::States;
use crate::tasks::RUNNING;
use crate::{control, instance, kubeconfig, ready};
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
    if record.role != Role::Local {
        return of_machine(paths, &record);
    }
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
        // A cluster of an older program has no socket; then its nodes run.
        let states = control::ask_states(paths).await.unwrap_or_default();
        print_nodes(&Api::<Node>::all(client.clone()).list(&ListParams::default()).await?.items, &pods, &states);
        println!("\n{:<28} STATE", "COMPONENT");
        for (component, state) in &record.components {
            println!("{component:<28} {state}");
        }
        let mut missing = ready::missing(&client, &paths.name, &record, &states).await;
        let broken = record.components.iter().filter(|(_, state)| *state != RUNNING);
        missing.extend(broken.map(|(component, state)| format!("{component} {state}")));
        if missing.is_empty() {
            println!("\nready");
            return Ok(());
        }
        bail!("not ready: {}", missing.join("; "))
    })
}

/// A server or an agent: what runs here. The cluster is what kubectl shows.
fn of_machine(paths: &Paths, record: &Record) -> Result<()> {
    let what = if record.role == Role::Server { "server" } else { "agent" };
    println!("{what:<10} {} (process {}, data in {})", paths.name, record.pid, paths.data.display());
    if record.api_port != 0 {
        println!("API        port {}; kubeconfig {}", record.api_port, paths.kubeconfig().display());
    }
    println!("node       {}", if record.nodes.is_empty() { "none".to_owned() } else { record.nodes.join(", ") });
    println!("\n{:<28} STATE", "COMPONENT");
    for (component, state) in &record.components {
        println!("{component:<28} {state}");
    }
    let broken = record.components.iter().filter(|(_, state)| *state != RUNNING);
    let mut missing: Vec<String> = broken.map(|(component, state)| format!("{component} {state}")).collect();
    if !record.ready {
        missing.push(record.phase.clone());
    }
    if missing.is_empty() {
        println!("\nready");
        return Ok(());
    }
    bail!("not ready: {}", missing.join("; "))
}

/// `causeway node ls`: the nodes alone; their states also while the API does not answer.
pub fn nodes(paths: &Paths) -> Result<()> {
    if instance::running(paths)?.is_none() {
        bail!("cluster {:?} is not running; start it with: causeway up --name {}", paths.name, paths.name);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let states = control::ask_states(paths).await?;
        let client = kubeconfig::client(paths).await?;
        let pods = Api::<Pod>::all(client.clone()).list(&ListParams::default()).await?.items;
        print_nodes(&Api::<Node>::all(client).list(&ListParams::default()).await?.items, &pods, &states);
        Ok(())
    })
}

/// A line for each node: what it is doing here, and what the cluster knows of it.
fn print_nodes(nodes: &[Node], pods: &[Pod], states: &States) {
    let rows = nodes.iter().map(|node| row(node, pods, states));
    let head = ["NODE", "STATE", "STATUS", "ADDRESSES", "POD CIDRS", "PODS"].map(str::to_owned);
    let rows: Vec<[String; 6]> = std::iter::once(head).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or_default();
    let widths: [usize; 6] = std::array::from_fn(width);
    for row in &rows {
        let line: Vec<String> = row.iter().zip(widths).map(|(text, width)| format!("{text:<width$}")).collect();
        println!("{}", line.join("  ").trim_end());
    }
}

fn row(node: &Node, pods: &[Pod], states: &States) -> [String; 6] {
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let status = node.status.as_ref();
    let ready = status.and_then(|s| s.conditions.iter().flatten().find(|c| c.type_ == "Ready"));
    let addresses = status.and_then(|s| s.addresses.as_deref()).unwrap_or_default();
    let addresses = addresses.iter().filter(|a| a.type_ == "InternalIP").map(|a| a.address.as_str());
    let ranges = node.spec.iter().flat_map(|s| s.pod_cidrs.iter().flatten()).map(String::as_str);
    let here = pods.iter().filter(|p| p.spec.as_ref().and_then(|s| s.node_name.as_deref()) == Some(name)).count();
    [
        name.to_owned(),
        states.get(name).map_or_else(|| "-".to_owned(), ToString::to_string),
        match ready.map(|c| c.status.as_str()) {
            Some("True") => "Ready",
            Some("Unknown") => "Unknown",
            _ => "NotReady",
        }
        .to_owned(),
        some(addresses),
        some(ranges),
        here.to_string(),
    ]
}

fn some<'a>(texts: impl Iterator<Item = &'a str>) -> String {
    let all: Vec<&str> = texts.collect();
    if all.is_empty() { "-".to_owned() } else { all.join(",") }
}
