//! `causeway up`: one cluster on this machine. In: the command line. Out: a running cluster, torn down again when the
//! process is asked to stop.
//!
//! [`start`] is the wiring diagram: it reads from top to bottom as the cluster comes up.

use crate::args::{UpArgs, require_root};
use crate::clients::Issued;
use crate::config::OfMachine;
use crate::control::Controlled;
use crate::instance::{self, Record};
use crate::node;
use crate::nodes::{Nodes, Parts};
use crate::paths::Paths;
use crate::progress::Progress;
use crate::store::{keys, schedule, started};
use crate::tasks::{self, Health, Tasks};
use crate::upgrade::{self, End, Program, Wish};
use crate::{control, control_plane, data, kubeconfig, logging, ports, ready, teardown};
use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use causeway_access::Endpoint;
use causeway_api::balancer::Pool;
use causeway_api::config::{ClusterConfig, PodNetworkMode, ipv6_defaults};
use causeway_api::identity::UserInfo;
use causeway_apiserver::{ApiServer, ApiServerConfig, NodeDialer};
use causeway_handover::Sockets;
use causeway_kubelet::NodeCapacity;
use causeway_network::NetNs;
use causeway_network::local::{Layout, LocalConfig, LocalSegment};
use causeway_network::node_routes::NodeRoutesConfig;
use causeway_proxy::route::front::FrontKey;
use causeway_runtime::daemon::ContainerdDaemon;
use causeway_store::Store;
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

/// The range of the nodes' segment. It exists only inside the cluster's own namespaces.
const NODE_CIDR: &str = "10.90.0.0/24";
/// Where the API is reached from inside the cluster.
const API_PORT: u16 = 6443;
/// What is asked to stop gets this long before its threads are taken away.
const STOP_GRACE: Duration = Duration::from_secs(15);

/// Listening sockets towards the user, bound before anything else happens.
struct Listeners {
    http: TcpListener,
    https: TcpListener,
    api: TcpListener,
}

/// Runs the command.
pub fn run(args: &UpArgs) -> Result<()> {
    require_root("causeway up")?;
    let paths = Paths::new(&args.cluster.name, args.cluster.data_dir.as_deref())?;
    if let Some(record) = instance::another(&paths)? {
        println!("cluster {:?} is running already (process {}); see: causeway status", paths.name, record.pid);
        let asked = (args.http_port, args.https_port, args.api_port, usize::from(args.nodes));
        if asked != (record.http_port, record.https_port, record.api_port, record.nodes.len()) {
            println!("its ports and nodes stay as they are; to change them: causeway down, then up again");
            print_hints(&paths, &record);
        }
        return Ok(());
    }
    // Before anything is made, and where a detached cluster's user still sees it.
    settings(args, &paths)?;
    if args.detach {
        return detach(&paths);
    }
    let program = Program::this()?;
    let sockets = &program.sockets;
    if args.detached && sockets.generation() == 0 {
        // A session of its own, so that closing the terminal does not reach it.
        nix::unistd::setsid().context("leaving the terminal's session")?;
    }
    logging::init(if args.detached { "info" } else { "warn" });
    if args.detached {
        logging::rotate(&paths.log())?;
    }
    let listeners = Listeners {
        http: sockets.tcp("http", || ports::bind(args.http_port, "the ingress", "--http-port"))?,
        https: sockets.tcp("https", || ports::bind(args.https_port, "the ingress with TLS", "--https-port"))?,
        api: sockets.tcp("api", || ports::bind(args.api_port, "the API", "--api-port"))?,
    };
    data::share_what_containers_see();
    let owned = data::claim(&paths)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().thread_name("control").enable_all().build()?;
    let outcome = runtime.block_on(serve(args, &paths, listeners, sockets));
    runtime.shutdown_timeout(STOP_GRACE);
    if matches!(outcome, Ok(End::HandOver)) {
        drop(owned);
        return program.end(&paths, End::HandOver);
    }
    if outcome.is_err() && sockets.generation() > 0 {
        // Of a cluster that ran a moment ago everything stays for the next try.
        return outcome.map(drop);
    }
    // Also when it did not come up: nothing half-made stays.
    let swept = teardown::sweep(&paths);
    drop(owned);
    outcome.map(drop).and(swept)
}

/// The cluster's settings: the file's, with what the command line says on top.
fn settings(args: &UpArgs, paths: &Paths) -> Result<(ClusterConfig, OfMachine)> {
    let (mut config, machine) = crate::config::read(args.config.as_deref(), &paths.name)?;
    config.proxy_mode = args.proxy_mode.unwrap_or(config.proxy_mode);
    match args.pod_network.as_deref() {
        Some("vxlan") => config.pod_network.mode = PodNetworkMode::Vxlan,
        Some(_) => config.pod_network.mode = PodNetworkMode::Routed,
        None => {}
    }
    match args.ip_family.as_deref() {
        Some("dual") => config.make_dual_stack(),
        Some(_) if config.has_ipv6() => bail!("--ip-family ipv4: the configuration has ranges of IPv6; leave one out"),
        _ => {}
    }
    // Nodes that are no neighbours cannot take an address over from one another.
    if config.pod_network.mode == PodNetworkMode::Routed {
        config.load_balancer_pools.get_or_insert(vec![Pool::of("default", &ClusterConfig::LOCAL_POOL)?]);
    }
    Ok((config, machine))
}

/// Starts ourselves again in the background and waits until that process says it is ready.
fn detach(paths: &Paths) -> Result<()> {
    data::make(paths)?;
    let log_path = paths.log();
    // The log before this one may be all that tells of a crash.
    drop(fs::rename(&log_path, log_path.with_extension("log.1")));
    // Appended to, since the child writes to it through more than one descriptor.
    let log = File::options().append(true).create(true).mode(0o600).open(&log_path);
    let log = log.with_context(|| format!("making {}", log_path.display()))?;
    let args = std::env::args_os().skip(1).filter(|a| a != "--detach");
    let mut child = Command::new(std::env::current_exe()?)
        .args(args)
        .arg("--detached")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("starting the background process")?;
    let mut progress = Progress::new();
    progress.step("starting");
    loop {
        if let Some(status) = child.try_wait()? {
            let log = fs::read_to_string(&log_path).unwrap_or_default();
            let why = log.lines().rev().find_map(|l| l.strip_prefix("causeway: ")).unwrap_or("it said nothing");
            let why = why.to_owned();
            if data::forget_empty(paths) {
                bail!("the cluster did not start ({status}): {why}");
            }
            bail!("the cluster did not start ({status}): {why}; the log is in {}", log_path.display());
        }
        if let Some(record) = instance::running(paths)? {
            if record.ready {
                progress.done(&format!("cluster {:?} is ready", paths.name));
                print_hints(paths, &record);
                return Ok(());
            }
            progress.step(&record.phase);
        }
        std::thread::sleep(Duration::from_millis(25));
    }
}

/// Tells what is being done, on the terminal and to whoever waits for a detached cluster.
struct Phase<'a> {
    paths: &'a Paths,
    record: Record,
    progress: Progress,
}

impl Phase<'_> {
    fn is(&mut self, text: &str) -> Result<()> {
        tracing::info!(phase = text, "cluster");
        self.progress.step(text);
        self.record.phase = text.to_owned();
        instance::write(self.paths, &self.record)
    }
}

async fn serve(args: &UpArgs, paths: &Paths, listeners: Listeners, sockets: &Arc<Sockets>) -> Result<End> {
    let record = Record {
        pid: i32::try_from(std::process::id())?,
        started: instance::own_start(),
        data_dir: paths.data.clone(),
        http_port: args.http_port,
        https_port: args.https_port,
        api_port: args.api_port,
        nodes: (1..=args.nodes).map(|i| format!("node-{i}")).collect(),
        phase: String::new(),
        ready: false,
        role: instance::Role::Local,
        components: BTreeMap::new(),
        generation: sockets.generation(),
    };
    let mut phase = Phase { paths, record, progress: Progress::new() };
    let (stop, health) = (CancellationToken::new(), Health::default());
    let signalled = tasks::stop_on_signal(stop.clone())?;
    let mut wish = Wish::new()?;
    let cluster = tokio::select! {
        cluster = start(args, paths, listeners, sockets, &mut phase, &stop, &health) => cluster?,
        () = stop.cancelled() => return failed(&health, signalled.is_finished()).map(|()| End::Stop),
    };
    // The ingress asks for those of Gateways later.
    sockets.close_unclaimed(|name| !FrontKey::names(name));
    phase.record.ready = true;
    phase.record.components = health.all();
    phase.is("ready")?;
    let mut record = phase.record.clone();
    phase.progress.done(&format!("cluster {:?} is ready", paths.name));
    if !args.detached {
        print_hints(paths, &record);
        println!("Ctrl-C stops the cluster.");
    }
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = health.changed() => {}
            () = wish.heard() => {
                upgrade::announce(paths, &mut record);
                cluster.hand_over().await;
                return Ok(End::HandOver);
            }
        }
        record.components = health.all();
        if let Err(error) = instance::write(paths, &record) {
            tracing::warn!("the state of the components is not told: {error:#}");
        }
    }
    tracing::info!("stopping");
    cluster.stop().await;
    failed(&health, signalled.is_finished()).map(|()| End::Stop)
}

/// A stop that nobody asked for has a reason.
pub fn failed(health: &Health, asked: bool) -> Result<()> {
    if asked {
        return Ok(());
    }
    let broken = health.all().into_iter().find(|(_, state)| state != tasks::RUNNING);
    match broken {
        Some((component, why)) => bail!("{component} {why}"),
        None => Ok(()),
    }
}

/// What is running, in the order in which it is stopped.
struct Cluster {
    nodes: Arc<Nodes>,
    control: Tasks,
    containerd: Arc<ContainerdDaemon>,
}

impl Cluster {
    /// Ends for another program to take over. containerd and the containers go on.
    async fn hand_over(self) {
        self.nodes.hand_over(STOP_GRACE).await;
        self.control.stop(STOP_GRACE).await;
    }

    async fn stop(self) {
        self.nodes.stop(STOP_GRACE).await;
        self.control.stop(STOP_GRACE).await;
        drop(self.nodes);
        // Whoever still holds it was not told in time; the sweep after us ends it then.
        let Some(containerd) = Arc::into_inner(self.containerd) else { return };
        if let Err(error) = containerd.stop().await {
            tracing::warn!(%error, "containerd did not stop cleanly");
        }
    }
}

async fn start(
    args: &UpArgs,
    paths: &Paths,
    listeners: Listeners,
    sockets: &Arc<Sockets>,
    phase: &mut Phase<'_>,
    stop: &CancellationToken,
    health: &Health,
) -> Result<Cluster> {
    let (config, machine) = settings(args, paths)?;
    started::keep(paths, args.config.as_deref())?;
    let (upstreams, capacity) = (node::upstreams(&args.dns_upstreams)?, share(args.nodes)?);

    phase.is("opening the store")?;
    let keys = keys::open(paths, machine.encryption_configuration.as_deref()).await?;
    let store: Arc<dyn Store> = Arc::new(keys.store());

    phase.is("making the nodes' network")?;
    let unreachable = config.pod_cidrs.iter().chain(&config.service_cidrs).copied().collect();
    let segment = LocalSegment::create(LocalConfig {
        cluster: paths.name.clone(),
        node_cidrs: node_cidrs(&config)?,
        // Tunnels are for nodes that are no neighbours.
        layout: match config.pod_network.mode {
            PodNetworkMode::Routed => Layout::Shared,
            PodNetworkMode::Vxlan => Layout::Separate,
        },
        unreachable,
        state_dir: paths.data.join("segment"),
    })
    .await?;

    phase.is("starting the API server")?;
    let inside = SocketAddr::new(segment.ip(), API_PORT);
    let api = ApiServer::start(
        ApiServerConfig {
            cluster: config.clone(),
            pki_dir: paths.pki(),
            advertise: inside,
            extra_sans: vec!["localhost".to_owned(), "127.0.0.1".to_owned()],
            kubelet_dialer: Arc::new(LanDialer(segment.lan().clone())),
            settings: machine.api_server.load(&config.domain)?,
        },
        store.clone(),
    )
    .await?;
    let api = Arc::new(api);
    let mut control = Tasks::new(stop.child_token(), health);
    let bind = || segment.lan().bind_tcp(inside).context("listening for the nodes");
    let inside_listener = sockets.tcp("api inside", bind)?;
    inside_listener.set_nonblocking(true)?;
    let serving = (api.clone(), control.token());
    let serve = async move { serving.0.serve(vec![listeners.api, inside_listener], serving.1).await };
    control.must_run("apiserver", stop.clone(), serve);
    let server = format!("https://127.0.0.1:{}", args.api_port);
    kubeconfig::write(paths, &api.kubeconfig(&server, &format!("causeway-{}", paths.name), &UserInfo::admin())?)?;

    phase.is("starting containerd")?;
    let containerd = Arc::new(ContainerdDaemon::start(&paths.data, &paths.name).await?);

    phase.is("starting controllers and scheduler")?;
    let informers = control_plane::informers(&api);
    control_plane::start(&api, &informers, &config, paths, &mut control);
    control.supervise("lan-routes", {
        let token = control.token();
        let lan = NodeRoutesConfig {
            netns: Some(segment.lan().clone()),
            cluster: config.clone(),
            ..NodeRoutesConfig::default()
        };
        move || causeway_network::node_routes::run(informers.clone(), lan.clone(), token.clone())
    });

    phase.is("starting the nodes")?;
    let endpoint = Endpoint::new(&format!("https://{inside}"), api.pki().ca_pem())?;
    let issued = Arc::new(Issued::default());
    let first = phase.record.nodes.first().cloned().unwrap_or_default();
    let nodes = Arc::new(Nodes::new(Parts {
        paths: paths.clone(),
        cluster: config,
        segment,
        api: api.clone(),
        endpoint,
        issued: issued.clone(),
        containerd: containerd.clone(),
        insecure_registries: args.insecure_registries.clone(),
        dns_upstreams: upstreams,
        capacity,
        ingress: (first, listeners.http, listeners.https),
        sockets: sockets.clone(),
        stop: stop.clone(),
        health: health.clone(),
    }));
    for name in &phase.record.nodes {
        nodes.start(name).await?;
    }
    control.supervise("control-socket", {
        let (paths, token) = (paths.clone(), control.token());
        let controlled = Controlled { nodes: Some(nodes.clone()), store: store.clone(), keys: keys.clone() };
        move || {
            let listener = control::listen(&paths);
            let (controlled, token) = (controlled.clone(), token.clone());
            async move { control::serve(listener?, controlled, token).await }
        }
    });
    keys::look_after(&keys, &mut control);
    schedule::start(machine.backup, paths, &store, api.client(UserInfo::admin()), &mut control, health);
    control.supervise("certificates", {
        let (api, token) = (api.clone(), control.token());
        move || {
            let (api, issued, token) = (api.clone(), issued.clone(), token.clone());
            async move { issued.renew(api.pki(), token).await }
        }
    });

    phase.is("waiting for the nodes to be ready")?;
    ready::wait(&api.client(UserInfo::admin()), &paths.name, &phase.record).await?;
    Ok(Cluster { nodes, control, containerd })
}

/// The ranges of the nodes: of IPv6 too where pods have it, the pods' first family first.
fn node_cidrs(config: &ClusterConfig) -> Result<Vec<IpNet>> {
    let v4: IpNet = NODE_CIDR.parse()?;
    Ok(config.pod_cidrs.iter().map(|pods| if pods.addr().is_ipv4() { v4 } else { ipv6_defaults::NODES }).collect())
}

/// Reaches the nodes from their own segment.
struct LanDialer(NetNs);

#[async_trait]
impl NodeDialer for LanDialer {
    async fn dial(&self, addr: SocketAddr) -> io::Result<TcpStream> {
        self.0.connect_tcp(addr).await
    }
}

/// A node's share of the machine; a single node has it all.
fn share(nodes: u8) -> Result<Option<NodeCapacity>> {
    if nodes == 1 {
        return Ok(None);
    }
    use procfs::Current;
    let nodes = u64::from(nodes);
    let cpus = std::thread::available_parallelism().context("counting CPUs")?.get() as u64;
    let memory = procfs::Meminfo::current().context("reading how much memory there is")?.mem_total;
    Ok(Some(NodeCapacity { cpu_milli: cpus * 1000 / nodes, memory_bytes: memory / nodes }))
}

fn print_hints(paths: &Paths, record: &Record) {
    println!("  API        https://127.0.0.1:{}", record.api_port);
    println!("  ingress    http://127.0.0.1:{}  https://127.0.0.1:{}", record.http_port, record.https_port);
    println!("  kubectl    export KUBECONFIG={}", paths.kubeconfig().display());
}
