//! Machines that join for real: three network namespaces that know nothing of each other but an address, a server in one
//! and agents in the others. Only the network is apart; the processes are started as on machines of their own.

use crate::gateway;
use crate::images::{BUSYBOX, busybox};
use anyhow::{Context, Result, bail, ensure};
use causeway_tests::cluster::program;
use causeway_tests::{Output, eventually, run, run_with_input};
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// A machine: a network namespace on the common bridge, without a default route, and a process of ours in it.
struct Machine {
    /// Of the instance, the folders and the namespace.
    name: String,
    ip: String,
    dir: PathBuf,
    process: Option<Child>,
}

/// The machines and what connects them.
struct Lab {
    bridge: String,
    server: Machine,
    agents: [Machine; 2],
}

fn ip(line: &str) -> Result<String> {
    run(Command::new("ip").args(line.split_whitespace()))?.ok()
}

impl Machine {
    fn new(lab: &str, letter: char, ip: &str) -> Self {
        let name = format!("{lab}{letter}");
        let dir = std::env::temp_dir().join(format!("causeway-e2e-{name}"));
        Self { name, ip: ip.to_owned(), dir, process: None }
    }

    fn connect(&self, bridge: &str) -> Result<()> {
        let (name, addr) = (&self.name, &self.ip);
        ip(&format!("netns add {name}"))?;
        ip(&format!("-n {bridge} link add {name} type veth peer name eth0 netns {name}"))?;
        ip(&format!("-n {bridge} link set {name} master br0 up"))?;
        ip(&format!("-n {name} addr add {addr}/24 dev eth0"))?;
        ip(&format!("-n {name} link set eth0 up"))?;
        ip(&format!("-n {name} link set lo up")).map(drop)
    }

    /// A program in this machine's network. (`ip netns exec` would also give it mounts of its own, which are gone with
    /// it: what a real machine keeps when a program ends.)
    fn inside(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name)).arg(program);
        command
    }

    /// A command of ours for this machine's instance.
    fn causeway(&self, args: &[&str]) -> Result<Command> {
        let mut command = self.inside(program()?);
        command.args(args).args(["--name", &self.name]).arg("--data-dir").arg(&self.dir);
        Ok(command)
    }

    fn log(&self) -> PathBuf {
        std::env::temp_dir().join(format!("causeway-e2e-{}.log", self.name))
    }

    fn start(&mut self, args: &[&str]) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.log())?;
        let mut command = self.causeway(args)?;
        self.process = Some(command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?);
        Ok(())
    }

    fn stop(&mut self, signal: &str) -> Result<()> {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        run(Command::new("kill").args([signal, &process.id().to_string()]))?.ok()?;
        eventually("the process ends", || match process.try_wait()? {
            Some(_) => Ok(()),
            None => bail!("process {} goes on", process.id()),
        })
    }

    fn take_down(&mut self) -> Result<()> {
        drop(self.stop("-TERM"));
        run(&mut self.causeway(&["down", "--delete-data"])?)?.ok().map(drop)
    }
}

impl Lab {
    fn new() -> Result<Self> {
        let name = format!("j{}", std::process::id());
        let lab = Self {
            bridge: format!("{name}br"),
            server: Machine::new(&name, 's', "192.0.2.1"),
            agents: [Machine::new(&name, 'a', "192.0.2.2"), Machine::new(&name, 'b', "192.0.2.3")],
        };
        ip(&format!("netns add {}", lab.bridge))?;
        ip(&format!("-n {} link add br0 type bridge", lab.bridge))?;
        ip(&format!("-n {} link set br0 up", lab.bridge))?;
        lab.server.connect(&lab.bridge)?;
        for agent in &lab.agents {
            agent.connect(&lab.bridge)?;
        }
        Ok(lab)
    }

    fn kubectl_args(&self, args: &[&str], input: &str) -> Output {
        let mut command = self.server.inside("kubectl");
        command.env("KUBECONFIG", self.server.dir.join("kubeconfig")).args(args);
        run_with_input(&mut command, input).unwrap_or_else(|e| Output {
            line: args.join(" "),
            code: -1,
            out: String::new(),
            err: format!("{e:#}"),
        })
    }

    fn kubectl(&self, line: &str) -> Output {
        self.kubectl_args(&line.split_whitespace().collect::<Vec<_>>(), "")
    }

    /// Pods by node: (node, pod, address, container).
    fn pods(&self) -> Result<Vec<[String; 4]>> {
        let path = "jsonpath={range .items[*]}{.spec.nodeName} {.metadata.name} {.status.podIP} \
                    {.status.containerStatuses[0].containerID}\n{end}";
        let out = self.kubectl_args(&["get", "pods", "-l", "app=web", "-o", path], "").ok()?;
        let mut pods = Vec::new();
        for line in out.lines() {
            let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            pods.push(words.try_into().map_err(|w| anyhow::anyhow!("a pod without all it should have: {w:?}"))?);
        }
        pods.sort();
        Ok(pods)
    }

    fn words(&self) -> String {
        let logs = [&self.server, &self.agents[0], &self.agents[1]].map(|m| {
            let log = std::fs::read_to_string(m.log()).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            format!("--- {}\n{}", m.name, lines[lines.len().saturating_sub(40)..].join("\n"))
        });
        logs.join("\n")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for machine in self.agents.iter_mut().chain([&mut self.server]) {
            if let Err(error) = machine.take_down() {
                eprintln!("{} was not taken down: {error:#}", machine.name);
            }
            drop(ip(&format!("netns delete {}", machine.name)));
            drop(std::fs::remove_file(machine.log()));
        }
        drop(ip(&format!("netns delete {}", self.bridge)));
    }
}

/// Tells a story on machines of its own, and what they have to say when it goes wrong.
fn on_machines(story: fn(&mut Lab) -> Result<()>) -> Result<()> {
    let mut lab = Lab::new()?;
    let outcome = story(&mut lab);
    if outcome.is_err() {
        eprintln!("{}\n{}", lab.words(), lab.kubectl("get nodes,csr,pods,ingress -A -o wide").out);
    }
    outcome
}

pub fn machines_join() -> Result<()> {
    on_machines(joining)
}

fn joining(lab: &mut Lab) -> Result<()> {
    lab.server.start(&["server", "--advertise-address", "192.0.2.1"])?;
    eventually("the API serves", || lab.kubectl("get --raw /readyz").ok())?;
    let said = run(&mut lab.server.causeway(&["token", "create", "--ttl", "1h"])?)?.ok()?;
    let command: Vec<String> = said.split_whitespace().skip(1).map(str::to_owned).collect();
    ensure!(command.first().map(String::as_str) == Some("agent"), "{said}");
    let given = |flag: &str| command.iter().skip_while(|w| *w != flag).nth(1).cloned().context("a flag is missing");
    let (url, token, hash) = (given("--server")?, given("--token")?, given("--ca-hash")?);
    ensure!(url == "https://192.0.2.1:6443", "{url}");

    refused(lab, &url, &token, &hash)?;
    // In a file: a command line is everybody's to read.
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("token");
    std::fs::write(&file, format!("{token}\n"))?;
    let file = file.to_str().context("a path that is no text")?;
    for agent in &mut lab.agents {
        let node = agent.name.clone();
        agent.start(&["agent", "--server", &url, "--token-file", file, "--ca-hash", &hash, "--node-name", &node])?;
    }
    eventually("both nodes register", || {
        let nodes = lab.kubectl("get nodes -o name").ok()?;
        ensure!(nodes.lines().count() == 2, "{nodes}");
        Ok(())
    })?;
    lab.kubectl("wait nodes --all --for=condition=Ready --timeout=60s").ok()?;
    let requests = lab.kubectl("get csr").ok()?;
    ensure!(requests.matches("Approved,Issued").count() >= 2, "{requests}");
    tokens(lab, &token, &url)?;
    load(&lab.agents.each_ref())?;
    pods_meet(lab)?;
    restarts(lab, &url)?;
    down_leaves_the_machine_as_it_was(&mut lab.agents[1])
}

/// A server that is a node as well: pods, and the ingress at the machine's own address, for who is on another machine.
pub fn one_machine_has_it_all() -> Result<()> {
    on_machines(alone)
}

fn alone(lab: &mut Lab) -> Result<()> {
    let args = ["server", "--advertise-address", "192.0.2.1", "--with-node", "--node-name", "all"];
    lab.server.start(&args)?;
    eventually("the API serves", || lab.kubectl("get --raw /readyz").ok())?;
    eventually("the node registers", || lab.kubectl("get node all").ok())?;
    lab.kubectl("wait node/all --for=condition=Ready --timeout=60s").ok()?;
    load(&[&lab.server])?;
    lab.kubectl_args(&["apply", "-f", "-"], &web(1)).ok()?;
    lab.kubectl("create ingress web --rule=web.example/*=web:80").ok()?;
    lab.kubectl("rollout status deployment/web --timeout=90s").ok()?;
    let outside = &lab.agents[0];
    let ask = |port: &str| {
        let url = format!("http://192.0.2.1:{port}/");
        let args = ["-sS", "--fail", "--max-time", "15", "-H", "Host: web.example", &url];
        let said = run(outside.inside("curl").args(args))?.ok()?;
        ensure!(said.starts_with("web-"), "{said}");
        Ok(())
    };
    eventually("the ingress answers", || ask("80"))?;
    // A Gateway has a socket of its own, to which its address would lead where there is a pool of addresses.
    lab.kubectl_args(&["apply", "-f", "-"], &gateway::leading_to("default", "web", 80)).ok()?;
    let socket = || lab.kubectl("get endpointslice door-causeway -o jsonpath={.ports[0].port}").ok();
    let port = eventually("the Gateway has a socket", || {
        let port = socket()?;
        ask(&port)?;
        Ok(port)
    })?;
    eventually("the Ingress has the machine's address", || {
        let path = "get ingress web -o jsonpath={.status.loadBalancer.ingress[*].ip}";
        let said = lab.kubectl(path).ok()?;
        ensure!(said == "192.0.2.1", "{said}");
        Ok(())
    })?;
    // systemd's reload: the unit has it as ExecReload.
    let process = lab.server.process.as_ref().context("no server")?.id().to_string();
    run(Command::new("kill").args(["-USR2", &process]))?.ok()?;
    for _ in 0..60 {
        ask("80").and_then(|()| ask(&port)).context("while another program takes over")?;
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    ensure!(std::fs::read_to_string(lab.server.log())?.contains("handing over"));
    run(&mut lab.server.causeway(&["upgrade"])?)?.ok()?;
    ensure!(socket()? == port, "another socket than {port}");
    ask("80").and_then(|()| ask(&port))
}

/// A wrong token and a wrong authority: one line that says what is wrong, and a code.
fn refused(lab: &Lab, url: &str, token: &str, hash: &str) -> Result<()> {
    let (id, _) = token.split_once('.').context("a token without a dot")?;
    let wrong = format!("{id}.0000000000000000");
    let zeros = format!("sha256:{}", "0".repeat(64));
    for (token, hash, word) in [(wrong.as_str(), hash, "token"), (token, zeros.as_str(), "--ca-hash")] {
        let args = ["agent", "--server", url, "--token", token, "--ca-hash", hash, "--node-name", "nobody"];
        let output = run(&mut lab.agents[0].causeway(&args)?)?;
        ensure!(output.code == 1, "ended with {}: {}", output.code, output.err);
        let lines: Vec<&str> = output.err.lines().filter(|l| l.starts_with("causeway: ")).collect();
        ensure!(lines.len() == 1 && lines[0].contains(word), "{}", output.err);
    }
    let args = ["agent", "--server", url, "--token", token, "--node-name", "nobody"];
    let output = run(&mut lab.agents[0].causeway(&args)?)?;
    ensure!(output.code == 1 && output.err.contains("--ca-hash"), "{}: {}", output.code, output.err);
    ensure!(!lab.kubectl("get nodes").ok()?.contains("nobody"));
    Ok(())
}

/// A token that is deleted joins nobody; who has joined with it stays.
fn tokens(lab: &Lab, token: &str, url: &str) -> Result<()> {
    let causeway = |args: &[&str]| run(&mut lab.server.causeway(args)?)?.ok();
    ensure!(causeway(&["token", "list"])?.contains(token));
    let id = token.split('.').next().unwrap_or_default();
    causeway(&["token", "delete", id])?;
    ensure!(!causeway(&["token", "list"])?.contains(id));
    let args = ["agent", "--server", url, "--token", token, "--unsafe-skip-ca-hash", "--node-name", "late"];
    let mut late = lab.agents[0].inside(program()?);
    let dir = tempfile::tempdir()?;
    late.args(args).args(["--name", &format!("{}late", lab.bridge)]).arg("--data-dir").arg(dir.path());
    ensure!(run(&mut late)?.fails()?.contains("token"));
    let nodes = lab.kubectl("get nodes -o name").ok()?;
    ensure!(nodes.lines().count() == 2, "{nodes}");
    Ok(())
}

fn load(machines: &[&Machine]) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let archive = dir.path().join("busybox.tar");
    busybox(BUSYBOX).write(&archive)?;
    for machine in machines {
        run(&mut machine.causeway(&["image", "load", &archive.to_string_lossy()])?)?.ok()?;
    }
    Ok(())
}

/// A Deployment `web`, spread over nodes, and its Service.
fn web(replicas: u32) -> String {
    format!(
        "
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 1
      topologySpreadConstraints:
      - {{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule,
          labelSelector: {{matchLabels: {{app: web}}}}}}
      containers:
      - name: web
        image: {BUSYBOX}
        imagePullPolicy: Never
        command: [sh, -c, 'hostname | tee /tmp/index.html; exec httpd -f -p 8080 -h /tmp']
        ports: [{{name: http, containerPort: 8080}}]
---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec: {{selector: {{app: web}}, ports: [{{port: 80, targetPort: http}}]}}
"
    )
}

/// Pods on both nodes reach each other and a Service by name; their logs and shells are reached from the server.
fn pods_meet(lab: &Lab) -> Result<()> {
    lab.kubectl_args(&["apply", "-f", "-"], &web(2)).ok()?;
    lab.kubectl("rollout status deployment/web --timeout=90s").ok()?;
    let pods = lab.pods()?;
    ensure!(pods.len() == 2 && pods[0][0] != pods[1][0], "one on each node: {pods:?}");
    for (from, to) in [(0, 1), (1, 0)] {
        let (pod, other) = (&pods[from][1], &pods[to]);
        let direct = format!("exec {pod} -- wget -qO- http://{}:8080/", other[2]);
        eventually("pods reach each other", || {
            let said = lab.kubectl(&direct).ok()?;
            ensure!(said.trim() == other[1], "{said}");
            Ok(())
        })?;
        eventually("the service answers by name", || {
            let said = lab.kubectl(&format!("exec {pod} -- wget -qO- http://web/")).ok()?;
            ensure!(said.starts_with("web-"), "{said}");
            Ok(())
        })?;
        let log = lab.kubectl(&format!("logs {pod}")).ok()?;
        ensure!(log.trim() == *pod, "{log}");
    }
    Ok(())
}

/// An agent that comes back needs no token and finds its pods running, whether it was asked to stop or killed.
fn restarts(lab: &mut Lab, url: &str) -> Result<()> {
    let before = lab.pods()?;
    for (index, signal) in [(0, "-TERM"), (1, "-KILL")] {
        lab.agents[index].stop(signal)?;
        let node = lab.agents[index].name.clone();
        let pod = before.iter().find(|p| p[0] == node).context("no pod on the node")?[1].clone();
        lab.kubectl(&format!("logs {pod}")).fails()?;
        lab.agents[index].start(&["agent", "--server", url, "--node-name", &node])?;
        eventually("the node serves again", || lab.kubectl(&format!("logs {pod}")).ok())?;
        eventually("the node is ready", || {
            let path = "-o jsonpath={.status.conditions[?(@.type=='Ready')].status}";
            let ready = lab.kubectl(&format!("get node {node} {path}")).ok()?;
            ensure!(ready == "True", "{ready}");
            Ok(())
        })?;
        let said = lab.kubectl(&format!("exec {pod} -- wget -qO- http://web/")).ok()?;
        ensure!(said.starts_with("web-"), "{said}");
    }
    // Another program takes over in the same process.
    let agent = &lab.agents[0];
    run(&mut agent.causeway(&["upgrade"])?)?.ok()?;
    let pod = before.iter().find(|p| p[0] == agent.name).context("no pod on the node")?[1].clone();
    eventually("the node serves again", || lab.kubectl(&format!("exec {pod} -- wget -qO- http://web/")).ok())?;
    let after = lab.pods()?;
    ensure!(before == after, "the same containers: {before:?}, {after:?}");
    Ok(())
}

/// What a node makes in the machine's own network goes with it.
fn down_leaves_the_machine_as_it_was(agent: &mut Machine) -> Result<()> {
    agent.take_down()?;
    for (program, args) in [("ip", "-o link"), ("ip", "route"), ("nft", "list tables"), ("ip", "netns list")] {
        let said = run(agent.inside(program).args(args.split_whitespace()))?.ok()?;
        let traces = ["cw0", "cwp", "cwvx", "10.244.", "10.96.", "causeway", &format!("cw-{}-", agent.name)];
        let left = traces.iter().find(|t| said.contains(**t));
        ensure!(left.is_none(), "{program} {args} shows {left:?}: {said}");
    }
    Ok(())
}

/// The units that we ship are ones that systemd takes.
pub fn units_are_well_formed() -> Result<()> {
    let Ok(probe) = run(Command::new("systemd-analyze").arg("--version")) else {
        eprintln!("systemd-analyze is not there: the units are not checked");
        return Ok(());
    };
    probe.ok()?;
    // The program need not be installed where the units expect it.
    let dir = tempfile::tempdir()?;
    let units = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../configs/systemd");
    for entry in std::fs::read_dir(units)? {
        let path = entry?.path();
        let text = std::fs::read_to_string(&path)?.replace("/usr/local/bin/causeway", &program()?.to_string_lossy());
        let copy = dir.path().join(path.file_name().context("a unit without a name")?);
        std::fs::write(&copy, text)?;
        let said = run(Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&copy))?;
        let unit = copy.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let about: Vec<&str> = said.err.lines().filter(|l| l.contains(&unit)).collect();
        ensure!(about.is_empty(), "{}", said.err);
    }
    Ok(())
}
