//! Cluster DNS as it really runs: a client of a real API server. Objects in; answers and its own EndpointSlice out.

use super::support::{config, dig_at, sockets, squeezed};
use causeway_api::config::ClusterConfig;
use causeway_api::dns::DnsSettings;
use causeway_api::identity::{USER_DNS, USER_NODE, UserInfo};
use causeway_apiserver::{ApiServer, ApiServerConfig, DirectDialer};
use causeway_informers::Informers;
use causeway_store::{SledOptions, SledStore};
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::{Client, Error};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(20);

pub async fn api_server(folder: &Path) -> ApiServer {
    let store = Arc::new(SledStore::open(&folder.join("store"), SledOptions::default()).unwrap());
    let config = ApiServerConfig {
        cluster: ClusterConfig::default(),
        pki_dir: folder.join("pki"),
        advertise: "127.0.0.1:6443".parse().unwrap(),
        extra_sans: Vec::new(),
        kubelet_dialer: Arc::new(DirectDialer),
        settings: causeway_apiserver::Settings::default(),
    };
    ApiServer::start(config, store).await.unwrap()
}

/// A client of an API server that is not there.
pub fn nobody() -> (Client, Informers) {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let client = Client::try_from(kube::Config::new(format!("http://{free}").parse().unwrap())).unwrap();
    (client.clone(), Informers::new(client))
}

/// What DNS is on a node: itself, and who reads the node's copies.
pub fn clients(server: &ApiServer) -> (Client, Informers) {
    let of = |user| server.client(UserInfo::component(user, &[]));
    (of(USER_DNS), Informers::new(of(USER_NODE)))
}

/// DNS of node-1, as a component.
pub struct Running {
    pub addr: SocketAddr,
    admin: SocketAddr,
    shutdown: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Running {
    pub fn start(clients: (Client, Informers), state_dir: &Path) -> Self {
        Self::start_with(clients, state_dir, DnsSettings::default())
    }

    pub fn start_with((client, copies): (Client, Informers), state_dir: &Path, settings: DnsSettings) -> Self {
        let (udp, tcp) = sockets();
        let addr = tcp.local_addr().unwrap();
        let admin = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        admin.set_nonblocking(true).unwrap();
        let mut config = config();
        config.cluster.dns = settings;
        config.node_ips = vec!["10.90.0.11".parse().unwrap()];
        (config.udp, config.tcp) = (vec![udp], vec![tcp]);
        config.publish = true;
        config.state_dir = Some(state_dir.to_owned());
        let at = admin.local_addr().unwrap();
        config.admin = Some(admin);
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(causeway_dns::run(client, copies, config, shutdown.clone()));
        Self { addr, admin: at, shutdown, task }
    }

    /// What `curl` says about a path of the admin port: the status, then the body.
    pub async fn http(&self, path: &str) -> String {
        let url = format!("http://{}{path}", self.admin);
        let asking = tokio::task::spawn_blocking(move || {
            std::process::Command::new("curl").args(["-sS", "-w", "\n%{http_code}", &url]).output().unwrap()
        });
        String::from_utf8(asking.await.unwrap().stdout).unwrap()
    }

    pub async fn http_until(&self, path: &str, wanted: &str) {
        let begin = Instant::now();
        loop {
            let said = self.http(path).await;
            if said.contains(wanted) {
                return;
            }
            assert!(begin.elapsed() < PATIENCE, "{path} never said {wanted:?} but:\n{said}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The beginning of the end.
    pub fn end(&self) {
        self.shutdown.cancel();
    }

    pub async fn until(&self, question: &str, wanted: &[&str]) -> String {
        let begin = Instant::now();
        loop {
            let answer = dig_at(self.addr, question).await;
            let plain = squeezed(&answer);
            if wanted.iter().all(|w| answer.contains(w) || plain.contains(w)) {
                return answer;
            }
            assert!(begin.elapsed() < PATIENCE, "{question} never said {wanted:?} but:\n{answer}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(PATIENCE, self.task).await.unwrap().unwrap().unwrap();
    }
}

fn service(name: &str, spec: Value) -> Service {
    serde_json::from_value(json!({ "metadata": { "name": name }, "spec": spec })).unwrap()
}

fn slice(name: &str, service: &str, endpoints: Value) -> EndpointSlice {
    let value = json!({ "addressType": "IPv4", "ports": [{ "name": "peer", "port": 7000, "protocol": "TCP" }],
        "metadata": { "name": name, "labels": { "kubernetes.io/service-name": service } }, "endpoints": endpoints });
    serde_json::from_value(value).unwrap()
}

pub async fn namespace(admin: &Client, name: &str) {
    let object: Namespace = serde_json::from_value(json!({ "metadata": { "name": name } })).unwrap();
    match Api::<Namespace>::all(admin.clone()).create(&PostParams::default(), &object).await {
        Err(Error::Api(status)) if status.code == 409 => {}
        other => drop(other.unwrap()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_become_answers_and_the_endpoint_is_published() {
    let folder = tempfile::tempdir().unwrap();
    let server = api_server(folder.path()).await;
    let admin = server.client(UserInfo::admin());
    namespace(&admin, "shop").await;
    namespace(&admin, "kube-system").await;
    let dns = Running::start(clients(&server), &folder.path().join("dns"));
    dns.until("web.shop.svc.cluster.local A", &["status: NXDOMAIN"]).await;

    // A Service comes, is changed, and goes.
    let services = Api::<Service>::namespaced(admin.clone(), "shop");
    let slices = Api::<EndpointSlice>::namespaced(admin.clone(), "shop");
    let web = service("web", json!({ "ports": [{ "name": "http", "port": 80 }] }));
    let ip = services.create(&PostParams::default(), &web).await.unwrap().spec.unwrap().cluster_ip.unwrap();
    dns.until("web.shop.svc.cluster.local A", &["status: NOERROR", &ip]).await;
    dns.until(&format!("-x {ip}"), &["PTR\tweb.shop.svc.cluster.local."]).await;
    let ports = json!({ "spec": { "ports": [{ "name": "http", "port": 81 }] } });
    services.patch("web", &PatchParams::default(), &Patch::Merge(&ports)).await.unwrap();
    dns.until("_http._tcp.web.shop.svc.cluster.local SRV", &["0 100 81 web.shop.svc.cluster.local."]).await;

    // Endpoints of a headless one: created, made unready, moved, deleted.
    let db = service("db", json!({ "clusterIP": "None", "ports": [{ "name": "peer", "port": 7000 }] }));
    services.create(&PostParams::default(), &db).await.unwrap();
    let both = json!([{ "addresses": ["10.244.0.5"], "hostname": "db-0", "conditions": { "ready": true } },
        { "addresses": ["10.244.0.6"], "conditions": { "ready": true } }]);
    slices.create(&PostParams::default(), &slice("db-x", "db", both)).await.unwrap();
    dns.until("db.shop.svc.cluster.local A", &["ANSWER: 2"]).await;
    dns.until("db-0.db.shop.svc.cluster.local A", &["10.244.0.5"]).await;
    dns.until("_peer._tcp.db.shop.svc.cluster.local SRV", &["7000 db-0.db.", "7000 10-244-0-6.db."]).await;
    let one = json!({ "endpoints": [{ "addresses": ["10.244.0.5"], "hostname": "db-0", "conditions": { "ready": false } },
        { "addresses": ["10.244.0.7"], "conditions": { "ready": true } }] });
    slices.patch("db-x", &PatchParams::default(), &Patch::Merge(&one)).await.unwrap();
    dns.until("db.shop.svc.cluster.local A", &["ANSWER: 1", "10.244.0.7"]).await;
    dns.until("db-0.db.shop.svc.cluster.local A", &["status: NXDOMAIN"]).await;
    dns.until("-x 10.244.0.5", &["status: NXDOMAIN"]).await;
    slices.delete("db-x", &DeleteParams::default()).await.unwrap();
    dns.until("db.shop.svc.cluster.local A", &["status: NXDOMAIN"]).await;
    services.delete("web", &DeleteParams::default()).await.unwrap();
    dns.until("web.shop.svc.cluster.local A", &["status: NXDOMAIN"]).await;

    // Our own endpoint: ready while we serve, not after.
    let own = Api::<EndpointSlice>::namespaced(admin.clone(), "kube-system");
    let begin = Instant::now();
    let published = loop {
        match own.get_opt("kube-dns-node-1").await.unwrap() {
            Some(slice) => break slice,
            None => assert!(begin.elapsed() < PATIENCE, "the endpoint was never published"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(causeway_api::endpoints::service_name(&published), Some("kube-dns"));
    let endpoint = &published.endpoints[0];
    assert_eq!((endpoint.addresses[0].as_str(), endpoint.node_name.as_deref()), ("10.90.0.11", Some("node-1")));
    assert_eq!(endpoint.conditions.as_ref().unwrap().ready, Some(true));
    let ports: Vec<_> = published.ports.iter().flatten().map(|p| (p.port, p.protocol.as_deref())).collect();
    assert_eq!(ports, [(Some(53), Some("UDP")), (Some(53), Some("TCP"))]);
    dns.stop().await;
    let conditions = own.get("kube-dns-node-1").await.unwrap().endpoints[0].conditions.clone().unwrap();
    assert_eq!((conditions.ready, conditions.terminating), (Some(false), Some(true)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_without_the_api_still_answers() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("dns");
    let ip = {
        let server = api_server(folder.path()).await;
        let admin = server.client(UserInfo::admin());
        namespace(&admin, "shop").await;
        let services = Api::<Service>::namespaced(admin, "shop");
        let web = service("web", json!({ "ports": [{ "name": "http", "port": 80 }] }));
        let ip = services.create(&PostParams::default(), &web).await.unwrap().spec.unwrap().cluster_ip.unwrap();
        let dns = Running::start(clients(&server), &state);
        dns.until("web.shop.svc.cluster.local A", &[&ip]).await;
        dns.stop().await;
        ip
    };
    for _ in 0..2 {
        let dns = Running::start(nobody(), &state);
        dns.until("web.shop.svc.cluster.local A", &["status: NOERROR", &ip]).await;
        dns.until("none.shop.svc.cluster.local A", &["status: NXDOMAIN"]).await;
        dns.stop().await;
    }
}

/// "No such name" from a DNS that knows nothing would be believed.
#[tokio::test(flavor = "multi_thread")]
async fn without_api_and_without_a_saved_zone_names_fail_also_at_the_second_start() {
    let folder = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        let dns = Running::start(nobody(), folder.path());
        dns.until("web.shop.svc.cluster.local A", &["status: SERVFAIL"]).await;
        dns.stop().await;
    }
}
