//! What it means that a cluster is ready, asked of every component itself. In: a client, the record of a running
//! cluster. Out: what is missing, in words.

use crate::instance::Record;
use crate::node::{DNS_ADMIN_PORT, INGRESS_ADMIN_PORT, KUBELET_PORT, SERVICES_PORT};
use crate::nodes::Power;
use anyhow::{Result, bail};
use causeway_network::NetNs;
use causeway_network::local::lan_name;
use http_body_util::Empty;
use k8s_openapi::api::core::v1::Node;
use kube::api::Api;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;
use tokio::net::TcpStream;

/// The nodes' states as the running cluster tells them.
pub type States = BTreeMap<String, Power>;

/// How long a cluster may take to become ready before we say what is missing.
const READY_PATIENCE: Duration = Duration::from_secs(120);
/// How long a component may take to answer.
const ANSWER_PATIENCE: Duration = Duration::from_secs(2);

/// Waits until everything is ready; fails with what is not.
pub async fn wait(client: &kube::Client, cluster: &str, record: &Record) -> Result<()> {
    let all = async {
        while !missing(client, cluster, record, &States::new()).await.is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    if tokio::time::timeout(READY_PATIENCE, all).await.is_err() {
        let missing = missing(client, cluster, record, &States::new()).await.join("; ");
        bail!("the cluster is not ready after {} s: {missing}", READY_PATIENCE.as_secs());
    }
    Ok(())
}

/// What a node that is not in order is called, and how it comes back.
fn fault(node: &str, power: Power) -> Option<String> {
    match power {
        Power::Running => None,
        Power::Cut => Some(format!("node {node} is cut off; connect it with: causeway node heal {node}")),
        Power::Killed => Some(format!("node {node} is off; start it with: causeway node start {node}")),
    }
}

/// What is not ready: nodes by their condition, components by their own health endpoints, the ingress by an answer.
/// Nodes that were cut off or killed on purpose are said to be that, and nothing more is asked of them.
pub async fn missing(client: &kube::Client, cluster: &str, record: &Record, states: &States) -> Vec<String> {
    let mut missing = Vec::new();
    let nodes: Api<Node> = Api::all(client.clone());
    for name in &record.nodes {
        if let Some(fault) = states.get(name).and_then(|power| fault(name, *power)) {
            missing.push(fault);
            continue;
        }
        let node = match nodes.get_opt(name).await {
            Ok(node) => node.unwrap_or_default(),
            Err(error) => return vec![format!("the API does not answer: {error}")],
        };
        let status = node.status.unwrap_or_default();
        let conditions = status.conditions.unwrap_or_default();
        match conditions.iter().find(|c| c.type_ == "Ready") {
            Some(c) if c.status == "True" => {}
            Some(c) => missing.push(format!("node {name}: {}", c.message.as_deref().unwrap_or("not ready"))),
            None => missing.push(format!("node {name} has not registered")),
        }
        let address = status.addresses.iter().flatten().find(|a| a.type_ == "InternalIP");
        if let Some(ip) = address.and_then(|a| a.address.parse().ok()) {
            missing.extend(components(cluster, name, ip, record.nodes.first() == Some(name)).await);
        }
    }
    let served = record.nodes.first().and_then(|n| states.get(n)).is_none_or(|power| *power == Power::Running);
    if served && answers(connect_here(record.http_port), "/").await.is_none_or(|code| code >= 500) {
        missing.push(format!("the ingress does not answer at http://127.0.0.1:{}", record.http_port));
    }
    missing
}

/// Asks the components of a node from the nodes' segment.
async fn components(cluster: &str, node: &str, ip: IpAddr, ingress: bool) -> Vec<String> {
    let lan = match NetNs::open(lan_name(cluster)) {
        Ok(lan) => lan,
        Err(error) => return vec![format!("the nodes' segment cannot be entered: {error}")],
    };
    let mut asked = vec![("kube-proxy", SERVICES_PORT, "/healthz"), ("DNS", DNS_ADMIN_PORT, "/ready")];
    if ingress {
        asked.push(("the ingress", INGRESS_ADMIN_PORT, "/readyz"));
    }
    let mut missing = Vec::new();
    for (component, port, path) in asked {
        let code = answers(lan.connect_tcp(SocketAddr::new(ip, port)), path).await;
        if code != Some(200) {
            missing.push(format!("{component} on {node} is not ready"));
        }
    }
    if tokio::time::timeout(ANSWER_PATIENCE, lan.connect_tcp(SocketAddr::new(ip, KUBELET_PORT))).await.is_err() {
        missing.push(format!("the kubelet on {node} takes no connections"));
    }
    missing
}

async fn connect_here(port: u16) -> std::io::Result<TcpStream> {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await
}

/// The status code of an answer, if one comes in time.
async fn answers(connect: impl Future<Output = std::io::Result<TcpStream>>, path: &str) -> Option<u16> {
    let ask = async {
        let io = hyper_util::rt::TokioIo::new(connect.await.ok()?);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.ok()?;
        tokio::spawn(connection);
        let request = http::Request::get(path).header("host", "causeway.invalid").body(Empty::<bytes::Bytes>::new());
        Some(sender.send_request(request.ok()?).await.ok()?.status().as_u16())
    };
    tokio::time::timeout(ANSWER_PATIENCE, ask).await.ok()?
}
