//! A link that is cut without a word, and healed: watches notice, and go on.

use causeway_access::{Endpoint, Identity, client};
use causeway_api::config::ClusterConfig;
use causeway_api::identity::{GROUP_MASTERS, UserInfo};
use causeway_apiserver::{ApiServer, ApiServerConfig, DirectDialer};
use causeway_network::local::{LocalConfig, LocalSegment, lan_name};
use causeway_store::{SledOptions, SledStore};
use futures::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use kube::runtime::watcher;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio_util::sync::CancellationToken;

/// Much more than pings, a refused connection and the pause after it take; much less than a watch lasts.
const PATIENCE: Duration = Duration::from_secs(60);

/// Takes the segment away when the test ends, however it ends.
struct Cluster(String);

impl Drop for Cluster {
    fn drop(&mut self) {
        let name = self.0.clone();
        let delete = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            drop(runtime.block_on(LocalSegment::delete(&name)));
        };
        drop(std::thread::spawn(delete).join());
    }
}

fn lan_bridge(cluster: &str, state: &str) {
    let status = Command::new("ip").args(["-n", &lan_name(cluster), "link", "set", "lan0", state]).status().unwrap();
    assert!(status.success());
}

fn map(name: &str) -> ConfigMap {
    ConfigMap { metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() }, ..ConfigMap::default() }
}

async fn next(
    events: &mut UnboundedReceiver<Result<String, String>>,
    wanted: impl Fn(&Result<String, String>) -> bool,
) {
    let found = async { while !wanted(&events.recv().await.expect("the watch goes on")) {} };
    tokio::time::timeout(PATIENCE, found).await.expect("an event in time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_cut_is_noticed_and_a_healed_link_used() {
    let cluster = Cluster(format!("acc{}", std::process::id()));
    let dir = tempfile::tempdir().unwrap();
    let segment = LocalSegment::create(LocalConfig {
        cluster: cluster.0.clone(),
        node_cidrs: vec!["10.90.0.0/24".parse().unwrap()],
        layout: causeway_network::local::Layout::Shared,
        unreachable: Vec::new(),
        state_dir: dir.path().join("segment"),
    })
    .await
    .unwrap();
    let inside = std::net::SocketAddr::new(segment.ip(), 6443);
    let config = ApiServerConfig {
        cluster: ClusterConfig::default(),
        pki_dir: dir.path().join("pki"),
        advertise: inside,
        extra_sans: Vec::new(),
        kubelet_dialer: Arc::new(DirectDialer),
        settings: causeway_apiserver::Settings::default(),
    };
    let store = SledStore::open(&dir.path().join("store"), SledOptions::default()).unwrap();
    let api = Arc::new(ApiServer::start(config, Arc::new(store)).await.unwrap());
    let listener = segment.lan().bind_tcp(inside).unwrap();
    let stop = CancellationToken::new();
    let _stopped = stop.clone().drop_guard();
    let serving = (api.clone(), stop.clone());
    tokio::spawn(async move { serving.0.serve(vec![listener], serving.1).await });

    let issued = api.pki().issue_client(&UserInfo::component("tester", &[GROUP_MASTERS])).unwrap();
    let identity = Arc::new(Identity::new(&issued.cert_pem, &issued.key_pem).unwrap());
    let endpoint = Endpoint::new(&format!("https://{inside}"), api.pki().ca_pem()).unwrap();
    let node = segment.add_node("n1").await.unwrap();
    let runtime = node.netns.runtime("n1", 2).unwrap();
    let (tell, mut events) = unbounded_channel();
    runtime.handle().spawn(async move {
        let maps: Api<ConfigMap> = Api::namespaced(client(&endpoint, Some(identity)).unwrap(), "default");
        let mut stream = causeway_api::watch::watch(maps, watcher::Config::default());
        while let Some(event) = stream.next().await {
            let told = match event {
                Ok(watcher::Event::Apply(map) | watcher::Event::InitApply(map)) => Ok(map.metadata.name.unwrap()),
                Ok(_) => continue,
                Err(error) => Err(error.to_string()),
            };
            if tell.send(told).is_err() {
                return;
            }
        }
    });
    let maps: Api<ConfigMap> = Api::namespaced(api.client(UserInfo::admin()), "default");
    maps.create(&PostParams::default(), &map("before")).await.unwrap();
    next(&mut events, |e| e.as_deref() == Ok("before")).await;

    lan_bridge(&cluster.0, "down");
    maps.create(&PostParams::default(), &map("meanwhile")).await.unwrap();
    next(&mut events, Result::is_err).await;

    lan_bridge(&cluster.0, "up");
    next(&mut events, |e| e.as_deref() == Ok("meanwhile")).await;
    maps.create(&PostParams::default(), &map("after")).await.unwrap();
    next(&mut events, |e| e.as_deref() == Ok("after")).await;
    tokio::task::spawn_blocking(move || runtime.shutdown(Duration::from_secs(2))).await.unwrap();
}
