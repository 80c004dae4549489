//! `kill -9` of a whole API server while many clients create, change and delete Services: afterwards no address and no
//! port is given twice, everything a Service has is held by its key, and nothing is held for nobody.

use crate::support::eventually;
use causeway_api::config::ClusterConfig;
use causeway_api::identity::UserInfo;
use causeway_apiserver::services::repair::repair;
use causeway_apiserver::{ApiServer, ApiServerConfig, DirectDialer};
use causeway_store::{ListRequest, SledOptions, SledStore, Store};
use k8s_openapi::api::core::v1::Service;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const DIR: &str = "CAUSEWAY_SERVICES_CRASH_DIR";
const ROUNDS: u64 = 8;
const CLIENTS: u64 = 6;
const NAMES: u32 = 24;

/// Few enough that everything is used again and again.
fn cluster() -> ClusterConfig {
    ClusterConfig {
        service_cidrs: vec!["10.70.0.0/25".parse().unwrap(), "fd00:70::/121".parse().unwrap()],
        dns_ip: "10.70.0.10".parse().unwrap(),
        node_ports: (30000, 30127),
        ..ClusterConfig::default()
    }
}

async fn server(dir: &Path, address: SocketAddr) -> (ApiServer, Arc<SledStore>) {
    let store = Arc::new(SledStore::open(&dir.join("store"), SledOptions::default()).unwrap());
    let config = ApiServerConfig {
        cluster: cluster(),
        pki_dir: dir.join("pki"),
        advertise: address,
        extra_sans: Vec::new(),
        kubelet_dialer: Arc::new(DirectDialer),
        settings: causeway_apiserver::Settings::default(),
    };
    (ApiServer::start(config, store.clone()).await.unwrap(), store)
}

/// Not a test by itself: the server that gets killed.
#[test]
fn services_crash_child() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let (api, _) = server(Path::new(&dir), address).await;
        let file = api.kubeconfig(&format!("https://{address}"), "crash", &UserInfo::admin()).unwrap();
        std::fs::write(Path::new(&dir).join("kubeconfig"), file).unwrap();
        println!("\nready");
        api.serve(vec![listener], CancellationToken::new()).await.unwrap();
    });
}

fn spawn(dir: &Path) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["service_crash::services_crash_child", "--exact", "--nocapture", "--test-threads=1"])
        .env(DIR, dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    while !lines.next().expect("the server ended by itself").unwrap().ends_with("ready") {}
    child
}

async fn client(dir: &Path) -> kube::Client {
    let text = std::fs::read_to_string(dir.join("kubeconfig")).unwrap();
    let file = kube::config::Kubeconfig::from_yaml(&text).unwrap();
    let config = kube::Config::from_custom_kubeconfig(file, &Default::default()).await.unwrap();
    kube::Client::try_from(config).unwrap()
}

/// Everything a Service must not share with another.
fn numbers(service: &Value) -> Vec<String> {
    let spec = &service["spec"];
    let list = |v: &Value| v.as_array().cloned().unwrap_or_default();
    let ips = list(&spec["clusterIPs"]);
    let mut all: Vec<String> =
        ips.iter().filter_map(Value::as_str).filter(|ip| *ip != "None").map(str::to_owned).collect();
    all.extend(list(&spec["ports"]).iter().filter_map(|p| p["nodePort"].as_u64()).map(|n| format!("port {n}")));
    all.extend(spec["healthCheckNodePort"].as_u64().map(|n| format!("port {n}")));
    all.sort();
    all.dedup();
    all
}

/// A random wish.
fn wish(rng: &mut StdRng) -> Value {
    let policy = ["SingleStack", "PreferDualStack", "RequireDualStack"][rng.random_range(0..3)];
    let mut spec = json!({ "ports": [{ "port": 80 }], "ipFamilyPolicy": policy });
    match rng.random_range(0..4) {
        0 => {}
        1 => spec["type"] = "NodePort".into(),
        2 => {
            spec["type"] = "LoadBalancer".into();
            spec["externalTrafficPolicy"] = "Local".into();
        }
        // The few explicit ones are fought for.
        _ => {
            spec["type"] = "NodePort".into();
            spec["clusterIP"] = format!("10.70.0.{}", rng.random_range(2..8)).into();
            spec["ports"][0]["nodePort"] = rng.random_range(30000..30004).into();
        }
    }
    spec
}

async fn work(services: Api<Service>, seed: u64, done: Arc<AtomicUsize>) {
    let mut rng = StdRng::seed_from_u64(seed);
    loop {
        let name = format!("s{}", rng.random_range(0..NAMES));
        let outcome = match rng.random_range(0..10) {
            0..5 => {
                let service = json!({ "metadata": { "name": name }, "spec": wish(&mut rng) });
                services.create(&PostParams::default(), &serde_json::from_value(service).unwrap()).await
            }
            5..8 => {
                let gone = services.delete(&name, &DeleteParams::default()).await;
                gone.map(|_| Service::default())
            }
            _ => {
                let kind = ["ClusterIP", "NodePort", "LoadBalancer"][rng.random_range(0..3)];
                let policy = ["SingleStack", "PreferDualStack"][rng.random_range(0..2)];
                let patch = json!({ "spec": { "type": kind, "ipFamilyPolicy": policy } });
                services.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await
            }
        };
        done.fetch_add(1, Ordering::SeqCst);
        // Refusals are part of the game; anything else is the end of the server.
        if !matches!(outcome, Ok(_) | Err(kube::Error::Api(_))) {
            return;
        }
    }
}

fn check(services: &[Value], keys: &HashMap<String, Value>, seed: u64) {
    let mut owners: HashMap<String, String> = HashMap::new();
    for service in services {
        let namespace = service["metadata"]["namespace"].as_str().unwrap();
        let name = service["metadata"]["name"].as_str().unwrap();
        for number in numbers(service) {
            if let Some(before) = owners.insert(number.clone(), format!("{namespace}/{name}")) {
                panic!("seed {seed}: {number} belongs to {before} and to {namespace}/{name}");
            }
            let key = match number.strip_prefix("port ") {
                Some(port) => format!("/registry/causeway/nodeports/{port}"),
                None => format!("/registry/networking.k8s.io/ipaddresses/{number}"),
            };
            let held =
                keys.get(&key).unwrap_or_else(|| panic!("seed {seed}: {namespace}/{name} has {number} without {key}"));
            let holder = held.pointer("/spec/parentRef").unwrap_or(held);
            assert_eq!(
                (&holder["namespace"], &holder["name"]),
                (&json!(namespace), &json!(name)),
                "seed {seed}: {key}"
            );
        }
    }
    let leaked: Vec<_> = keys.keys().filter(|k| !owners.contains_key(&named(k))).collect();
    assert!(leaked.is_empty(), "seed {seed}: held for nobody: {leaked:?}");
}

fn named(key: &str) -> String {
    let last = key.rsplit('/').next().unwrap_or_default();
    if key.contains("/nodeports/") { format!("port {last}") } else { last.to_owned() }
}

async fn values(store: &dyn Store, prefix: &str) -> HashMap<String, Value> {
    let page = store.list(ListRequest { prefix: prefix.to_owned(), ..ListRequest::default() }).await.unwrap();
    page.items.iter().map(|kv| (kv.key.clone(), serde_json::from_slice(&kv.value).unwrap())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_address_is_doubled_or_lost_over_kills() {
    let seed: u64 =
        std::env::var("CAUSEWAY_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| rand::rng().random());
    println!("CAUSEWAY_SEED={seed}");
    let dir = tempfile::tempdir().unwrap();
    let mut rng = StdRng::seed_from_u64(seed);
    let mut acknowledged = 0;
    for round in 0..ROUNDS {
        let mut child = spawn(dir.path());
        let services: Api<Service> = Api::namespaced(client(dir.path()).await, "default");
        let done = Arc::new(AtomicUsize::new(0));
        let mut tasks = tokio::task::JoinSet::new();
        for i in 0..CLIENTS {
            tasks.spawn(work(services.clone(), seed ^ (round * CLIENTS + i), done.clone()));
        }
        let quota = rng.random_range(20..120);
        eventually("enough answers", || async { (done.load(Ordering::SeqCst) >= quota).then_some(()) }).await;
        child.kill().unwrap();
        child.wait().unwrap();
        acknowledged += done.load(Ordering::SeqCst);
        let ended = tokio::time::timeout(Duration::from_secs(60), tasks.join_all()).await;
        assert!(ended.is_ok(), "seed {seed}: clients hang after the kill");
    }
    assert!(acknowledged > 100, "only {acknowledged} answers: the test says nothing");
    let (api, store) = server(dir.path(), SocketAddr::from((Ipv4Addr::LOCALHOST, 1))).await;
    // Before repair there may be leaks, but never a doubled number; after it there are none either.
    repair(api.engine(), None, Duration::ZERO).await.unwrap();
    let services: Vec<Value> = values(&*store, "/registry/core/services/").await.into_values().collect();
    let mut keys = values(&*store, "/registry/networking.k8s.io/ipaddresses/").await;
    keys.extend(values(&*store, "/registry/causeway/nodeports/").await);
    assert!(services.len() > 2, "seed {seed}");
    check(&services, &keys, seed);
}
