//! A machine that joins a real API server with real controllers, over TLS on loopback.

use causeway_access::{JoinConfig, Membership, client, discover, join};
use causeway_api::bootstrap_token::SECRET_TYPE;
use causeway_api::config::ClusterConfig;
use causeway_api::identity::{USER_CONTROLLER_MANAGER, USER_CONTROLLERS, UserInfo};
use causeway_apiserver::{ApiServer, ApiServerConfig, DirectDialer};
use causeway_controllers::ControllersConfig;
use causeway_informers::Informers;
use causeway_store::{SledOptions, SledStore};
use k8s_openapi::api::core::v1::{Node, Secret};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

const TOKEN: &str = "abcdef.0123456789abcdef";

struct Server {
    api: Arc<ApiServer>,
    url: String,
    dir: TempDir,
    stop: CancellationToken,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Server {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = SledStore::open(&dir.path().join("store"), SledOptions::default()).unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let config = ApiServerConfig {
            cluster: ClusterConfig { domain: "example.test".to_owned(), ..ClusterConfig::default() },
            pki_dir: dir.path().join("pki"),
            advertise: SocketAddr::from(([10, 90, 0, 1], 6443)),
            extra_sans: Vec::new(),
            kubelet_dialer: Arc::new(DirectDialer),
            settings: causeway_apiserver::Settings::default(),
        };
        let api = Arc::new(ApiServer::start(config, Arc::new(store)).await.unwrap());
        let stop = CancellationToken::new();
        let (serving, ended) = (api.clone(), stop.clone());
        tokio::spawn(async move { serving.serve(vec![listener], ended).await });
        let controllers =
            ControllersConfig::new(ClusterConfig::default(), api.pki().ca_pem().to_owned(), dir.path().join("volumes"));
        let client = api.client(UserInfo::component(USER_CONTROLLER_MANAGER, &[]));
        let informers = Informers::new(api.client(UserInfo::component(USER_CONTROLLERS, &[])));
        tokio::spawn(causeway_controllers::run(client, informers, controllers, stop.clone()));
        let this = Self { api, url, dir, stop };
        this.make_token().await;
        this
    }

    async fn make_token(&self) {
        let secret: Secret = serde_json::from_value(json!({
            "metadata": { "name": "bootstrap-token-abcdef" }, "type": SECRET_TYPE,
            "stringData": { "token-id": "abcdef", "token-secret": "0123456789abcdef",
                "usage-bootstrap-authentication": "true", "usage-bootstrap-signing": "true" },
        }))
        .unwrap();
        let secrets: Api<Secret> = Api::namespaced(self.api.client(UserInfo::admin()), "kube-system");
        secrets.create(&PostParams::default(), &secret).await.unwrap();
    }

    fn config(&self, node: &str) -> JoinConfig {
        JoinConfig {
            server: self.url.clone(),
            token: Some(TOKEN.to_owned()),
            ca_hash: Some(discover::hash(self.api.pki().ca_pem()).unwrap()),
            skip_ca_hash: false,
            node_name: node.to_owned(),
            dir: self.dir.path().join(node),
            life: None,
        }
    }
}

async fn refused(config: JoinConfig) -> String {
    match join(config).await {
        Ok(_) => panic!("it should not have joined"),
        Err(error) => format!("{error:#}"),
    }
}

async fn eventually<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    for _ in 0..600 {
        if let Some(found) = check() {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("not within 30 s: {what}");
}

/// The node registers, and an administrator writes down which address is its own: it speaks over loopback.
async fn register(server: &Server, member: &Membership, node: &str, ip: &str) {
    let nodes: Api<Node> = Api::all(client(&member.endpoint, Some(member.identity.clone())).unwrap());
    let object: Node = serde_json::from_value(json!({ "metadata": { "name": node }, "status": { "addresses": [
        { "type": "InternalIP", "address": ip }, { "type": "Hostname", "address": node }] } }))
    .unwrap();
    nodes.create(&PostParams::default(), &object).await.unwrap();
    let written = json!({ "metadata": { "annotations": { "causeway.dev/serving-addresses": ip } } });
    let nodes: Api<Node> = Api::all(server.api.client(UserInfo::admin()));
    nodes.patch(node, &PatchParams::default(), &Patch::Merge(&written)).await.unwrap();
}

fn read(dir: &Path, file: &str) -> Option<String> {
    std::fs::read_to_string(dir.join(file)).ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_joins_once_and_needs_the_token_no_more() {
    let server = Server::start().await;
    let member = join(server.config("n1")).await.unwrap();
    assert_eq!(member.settings.domain, "example.test", "the cluster's settings come with it");
    register(&server, &member, "n1", "10.0.0.1").await;
    // The kubelet's certificate follows once the node's address is written down.
    let stop = CancellationToken::new();
    let _stopped = stop.clone().drop_guard();
    let dir = server.config("n1").dir;
    let keeping = member.clone();
    tokio::spawn(async move { keeping.keep(&["10.0.0.1".parse().unwrap()], stop).await });
    let serving = eventually("a serving certificate", || read(&dir, "serving.pem")).await;
    let (_, pem) = x509_parser::pem::parse_x509_pem(serving.as_bytes()).unwrap();
    let certificate = pem.parse_x509().unwrap();
    let names = format!("{:?}", certificate.subject_alternative_name().unwrap().unwrap().value.general_names);
    assert!(names.contains("n1") && names.contains("10, 0, 0, 1"), "{names}");

    let before = read(&dir, "client.pem").unwrap();
    let again = JoinConfig { token: None, ca_hash: None, ..server.config("n1") };
    join(again.clone()).await.unwrap();
    assert_eq!(read(&dir, "client.pem").unwrap(), before, "the same identity");
    let other = refused(JoinConfig { node_name: "n2".to_owned(), ..again }).await;
    assert!(other.contains("is node \"n1\" already"), "{other}");
    assert!(refused(JoinConfig { token: None, ..server.config("n3") }).await.contains("--token"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_know_the_token_or_is_not_the_cluster_is_refused() {
    let server = Server::start().await;
    let with = |token: &str| JoinConfig { token: Some(token.to_owned()), ..server.config("n1") };
    let unknown = refused(with("zzzzzz.0123456789abcdef")).await;
    assert!(unknown.contains("causeway token create"), "{unknown}");
    let wrong = refused(with("abcdef.fedcba9876543210")).await;
    assert!(wrong.contains("secret part"), "{wrong}");
    assert!(refused(with("abcdef")).await.contains("does not look like one"));
    let hash = format!("sha256:{}", "0".repeat(64));
    let other = refused(JoinConfig { ca_hash: Some(hash), ..server.config("n1") }).await;
    assert!(other.contains("not the right cluster"), "{other}");
    assert!(read(&server.config("n1").dir, "client.pem").is_none(), "nothing is kept of a join that failed");
    // The pinned authority makes a joining without pinning possible too: the token signs it.
    let alone = refused(JoinConfig { ca_hash: None, ..server.config("n1") }).await;
    assert!(alone.contains("--ca-hash"), "a token alone is not enough: {alone}");
    join(JoinConfig { ca_hash: None, skip_ca_hash: true, ..server.config("n1") }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_near_its_end_is_renewed() {
    let server = Server::start().await;
    // As short as certificates can be: in the last third of its life from the beginning.
    let config = JoinConfig { life: Some(Duration::from_secs(600)), ..server.config("n1") };
    let dir = config.dir.clone();
    let member = join(config).await.unwrap();
    register(&server, &member, "n1", "10.0.0.1").await;
    let first = read(&dir, "client.pem").unwrap();
    let stop = CancellationToken::new();
    let _stopped = stop.clone().drop_guard();
    let keeping = member.clone();
    tokio::spawn(async move { keeping.keep(&["10.0.0.1".parse().unwrap()], stop).await });
    eventually("another certificate", || read(&dir, "client.pem").filter(|now| *now != first)).await;
    let nodes: Api<Node> = Api::all(client(&member.endpoint, Some(member.identity.clone())).unwrap());
    nodes.get("n1").await.unwrap();
}
