//! Backups for real: of a running and of a stopped cluster, brought back where nothing was left; and what is refused.

use crate::Alone;
use crate::images::{self, BUSYBOX};
use anyhow::{Context, Result, bail, ensure};
use causeway_tests::cluster::{free_port, program};
use causeway_tests::{Cluster, eventually, run};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Each with a cluster of its own.
pub fn tests() -> Vec<(&'static str, Alone)> {
    vec![
        ("backup::a_cluster_comes_back_where_nothing_was_left", a_cluster_comes_back_where_nothing_was_left),
        ("backup::backups_make_themselves_and_the_old_ones_go", backups_make_themselves_and_the_old_ones_go),
        ("backup::a_server_is_backed_up_while_it_runs", a_server_is_backed_up_while_it_runs),
    ]
}

/// What is in the Secret, as it is stored.
const PASSWORD: &str = "Y29ycmVjdC1ob3JzZS1iYXR0ZXJ5LXN0YXBsZQ==";

/// The folder for backups, and the key.
struct Safe(tempfile::TempDir);

impl Safe {
    fn new() -> Result<Self> {
        let safe = Self(tempfile::tempdir()?);
        fs::create_dir(safe.folder())?;
        let said = run(Command::new(program()?).args(["store", "backup-key"]).arg(safe.0.path().join("key")))?.ok()?;
        ensure!(said.contains("away from this machine"), "{said}");
        Ok(safe)
    }

    fn folder(&self) -> PathBuf {
        self.0.path().join("backups")
    }

    fn key(&self) -> String {
        self.0.path().join("key").display().to_string()
    }

    /// The backups, the oldest first.
    fn backups(&self) -> Result<Vec<String>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(self.folder())? {
            all.push(entry?.path().display().to_string());
        }
        all.sort();
        Ok(all)
    }

    fn back_up(&self, cluster: &Cluster) -> Result<String> {
        let folder = self.folder().display().to_string();
        let said = cluster.command(&["store", "backup", "--to", &folder, "--key-file", &self.key()]).ok()?;
        let path = said.lines().next().context("it said nothing")?;
        ensure!(Path::new(path).exists() && said.contains("verified"), "{said}");
        Ok(path.to_owned())
    }
}

fn a_cluster_comes_back_where_nothing_was_left() -> Result<()> {
    let safe = Safe::new()?;
    let mut cluster = Cluster::new("backup")?;
    // A setting that is not the default, and without which the cluster would not be the same.
    let config = safe.0.path().join("cluster.yaml");
    fs::write(&config, "serviceCidrs: [10.112.0.0/16]\ndnsIp: 10.112.0.10\n")?;
    cluster.args = vec!["--config".to_owned(), config.display().to_string()];
    cluster.up()?;
    images::load(&cluster)?;
    cluster.apply(&format!(
        "
apiVersion: v1
kind: ConfigMap
metadata: {{name: kept}}
data: {{key: value}}
---
apiVersion: v1
kind: Secret
metadata: {{name: hidden}}
stringData: {{password: correct-horse-battery-staple}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  replicas: 1
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{{name: web, image: {BUSYBOX}, imagePullPolicy: Never, command: [sleep, '3600']}}]
"
    ))?;
    cluster.kubectl("rollout status deployment/web --timeout=60s").ok()?;
    let token = cluster.kubectl("create token default --duration=24h").ok()?;
    let uid = cluster.kubectl("get configmap kept -o jsonpath={.metadata.uid}").ok()?;
    let version = revision(&cluster)?;
    let old_kubeconfig = safe.0.path().join("kubeconfig");
    fs::copy(cluster.dir.join("kubeconfig"), &old_kubeconfig)?;

    // A new key for Secrets, under the running cluster; the backups have to hold it.
    let rotated = cluster.command(&["store", "rotate-encryption-key"]).ok()?;
    ensure!(rotated.contains("new key key-") && !rotated.contains("CANNOT"), "{rotated}");
    ensure!(cluster.kubectl("get secret hidden -o jsonpath={.data.password}").ok()? == PASSWORD);

    // While it runs, only it knows what is in the store.
    let said = cluster.command(&["store", "check"]).fails()?;
    ensure!(said.contains("causeway down"), "{said}");
    let online = safe.back_up(&cluster)?;
    let bytes = fs::read(&online)?;
    for secret in ["correct-horse-battery-staple", PASSWORD, "PRIVATE KEY"] {
        ensure!(!bytes.windows(secret.len()).any(|w| w == secret.as_bytes()), "{secret} can be read in the backup");
    }
    ensure!(fs::read_dir(safe.folder())?.count() == 1, "nothing half-made is left beside it");
    cluster.kubectl("create configmap later --from-literal=a=b").ok()?;
    cluster.down()?;

    // And while it is stopped.
    let offline = safe.back_up(&cluster)?;
    let check = cluster.command(&["store", "check"]).ok()?;
    ensure!(check.contains("nothing is damaged") && check.contains("revision"), "{check}");
    ensure!(check.contains("with aesgcm:key-") && !check.contains("plain"), "{check}");
    for secret in ["correct-horse-battery-staple", PASSWORD] {
        let found = holding(&cluster.dir.join("store"), secret.as_bytes())?;
        ensure!(found.is_empty(), "{secret} can be read in {found:?}");
    }
    // The search finds what is there.
    ensure!(!holding(&cluster.dir.join("store"), b"k8s:enc:aesgcm:v1:key-")?.is_empty());
    // What keeps others out.
    for (path, mode) in [("", 0o700), ("store", 0o700), ("pki/encryption.yaml", 0o600), ("pki/ca.key", 0o600)] {
        let found = fs::metadata(cluster.dir.join(path))?.permissions().mode() & 0o777;
        ensure!(found == mode, "{path:?} has the mode {found:o}");
    }
    ensure!(cluster.command(&["store", "defrag"]).ok()?.contains("after"));
    for backup in [&online, &offline] {
        let check = cluster.command(&["store", "check", backup, "--key-file", &safe.key()]).ok()?;
        ensure!(check.contains("cluster    backup") && check.contains("nothing is damaged"), "{check}");
    }
    // A cluster that has data is left alone.
    let restore = |backup: &str, key: &str| cluster.command(&["store", "restore", backup, "--key-file", key]);
    let said = restore(&online, &safe.key()).fails()?;
    ensure!(said.contains("holds the data of a cluster"), "{said}");

    cluster.command(&["down", "--delete-data"]).ok()?;
    ensure!(!cluster.dir.exists());
    refused(&safe, &online, &restore)?;
    ensure!(!cluster.dir.exists(), "what was refused has left something");

    let said = restore(&online, &safe.key()).ok()?;
    let kept_config = cluster.dir.join("settings/config.yaml").display().to_string();
    ensure!(said.contains("causeway up") && said.contains(&kept_config), "{said}");
    // On the new machine there is only what came out of the backup.
    fs::remove_file(&config)?;
    cluster.args = vec!["--config".to_owned(), kept_config];
    cluster.up()?;
    images::load(&cluster)?;
    ensure!(cluster.kubectl("get configmap kept -o jsonpath={.metadata.uid}").ok()? == uid);
    cluster.kubectl("get configmap later").fails()?;
    let password = cluster.kubectl("get secret hidden -o jsonpath={.data.password}").ok()?;
    ensure!(password == PASSWORD, "{password}");
    ensure!(cluster.kubectl("get service kubernetes -o jsonpath={.spec.clusterIP}").ok()? == "10.112.0.1");
    eventually("the pods run again", || cluster.kubectl("rollout status deployment/web --timeout=10s").ok())?;
    // Who trusted the old cluster trusts this one, and the other way round.
    let mut kubectl = Command::new("kubectl");
    kubectl.env("KUBECONFIG", &old_kubeconfig).args(["get", "configmap", "kept"]);
    run(&mut kubectl)?.ok()?;
    cluster.kubectl(&format!("--token {} get configmap kept", token.trim())).ok()?;
    // Nobody's old resource version means anything in the new history.
    let now = revision(&cluster)?;
    ensure!(now > version + 1_000_000, "{now} after {version}");

    // In place of what is there now, which is set aside.
    cluster.down()?;
    cluster.command(&["store", "restore", &offline, "--key-file", &safe.key(), "--force"]).ok()?;
    ensure!(fs::read_dir(cluster.dir.join("before-restore"))?.count() == 1);
    cluster.up()?;
    cluster.kubectl("get configmap later").ok()?;
    ensure!(cluster.kubectl("get secret hidden -o jsonpath={.data.password}").ok()? == PASSWORD);
    Ok(())
}

/// The files below a folder that hold some bytes.
fn holding(dir: &Path, bytes: &[u8]) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            all.extend(holding(&path, bytes)?);
        } else if fs::read(&path)?.windows(bytes.len()).any(|w| w == bytes) {
            all.push(path);
        }
    }
    Ok(all)
}

fn revision(cluster: &Cluster) -> Result<u64> {
    // kubectl makes lists of its own, without a version.
    let list = cluster.kubectl("get --raw /api/v1/namespaces/default/configmaps?limit=1").ok()?;
    let list: serde_json::Value = serde_json::from_str(&list)?;
    Ok(list["metadata"]["resourceVersion"].as_str().context("a list without a version")?.parse()?)
}

fn refused(safe: &Safe, backup: &str, restore: &dyn Fn(&str, &str) -> causeway_tests::Output) -> Result<()> {
    let other = Safe::new()?;
    let said = restore(backup, &other.key()).fails()?;
    ensure!(said.contains("was made with the key"), "{said}");
    let said = restore(backup, "/nowhere/key").fails()?;
    ensure!(said.contains("causeway store backup-key"), "{said}");
    let good = fs::read(backup)?;
    let bad = safe.0.path().join("bad.causeway-backup");
    for (what, bytes) in [
        ("the last byte is missing", good[..good.len() - 1].to_vec()),
        ("the second half is missing", good[..good.len() / 2].to_vec()),
        ("a bit is flipped in the middle", {
            let mut bytes = good.clone();
            bytes[good.len() / 2] ^= 1;
            bytes
        }),
        ("nothing of it is a backup", vec![0; 100_000]),
        ("it is empty", Vec::new()),
    ] {
        fs::write(&bad, bytes)?;
        let said = restore(&bad.display().to_string(), &safe.key()).fails().with_context(|| what.to_owned())?;
        ensure!(said.contains("damaged") || said.contains("not a backup"), "{what}: {said}");
    }
    fs::remove_file(&bad)?;
    Ok(())
}

fn backups_make_themselves_and_the_old_ones_go() -> Result<()> {
    let safe = Safe::new()?;
    let mut cluster = Cluster::new("backups")?;
    let config = safe.0.path().join("cluster.yaml");
    let (folder, key) = (safe.folder().display().to_string(), safe.key());
    fs::write(&config, format!("backup: {{schedule: 1h, keep: 2, to: {folder}, keyFile: {key}}}\n"))?;
    // Old ones of this cluster, and what is none of its business.
    let name = |name: &str| safe.folder().join(name);
    for old in ["20200101T000000Z-r1", "20200102T000000Z-r2", "20200103T000000Z-r3"] {
        fs::write(name(&format!("backups-{old}.causeway-backup")), "old")?;
    }
    fs::write(name("other-20200101T000000Z-r1.causeway-backup"), "another cluster's")?;
    fs::write(name("backups-precious.causeway-backup"), "not called so")?;
    cluster.args = vec!["--config".to_owned(), config.display().to_string()];
    cluster.up()?;
    eventually("there is a backup, and two of this cluster in all", || {
        let all: Vec<String> = fs::read_dir(safe.folder())?
            .map(|e| Ok(e?.file_name().to_string_lossy().into_owned()))
            .collect::<Result<_>>()?;
        let ours: Vec<&String> = all.iter().filter(|n| n.starts_with("backups-20")).collect();
        ensure!(all.len() == 4 && ours.len() == 2 && ours.iter().any(|n| n.contains("-20200103T")), "{all:?}");
        Ok(())
    })?;
    ensure!(name("other-20200101T000000Z-r1.causeway-backup").exists());
    ensure!(name("backups-precious.causeway-backup").exists());
    let new = safe.backups()?.into_iter().find(|b| !b.contains("-2020010") && !b.contains("precious"));
    let new = new.context("there is no new backup")?;
    cluster.command(&["store", "check", &new, "--key-file", &key]).ok()?;
    let status = cluster.command(&["status"]).ok()?;
    ensure!(status.lines().any(|l| l.starts_with("backup ") && l.ends_with("running")), "{status}");
    eventually("an event tells of it", || {
        let events = cluster.kubectl("-n kube-system get events -o jsonpath={.items[*].reason}").ok()?;
        ensure!(events.contains("BackedUp"), "{events}");
        Ok(())
    })?;
    // The next is due in an hour, also after a restart; but without its key and a backup, it fails and says so.
    cluster.down()?;
    fs::remove_file(&key)?;
    fs::remove_file(&new)?;
    cluster.up()?;
    eventually("the status tells that there is no backup", || {
        let said = cluster.command(&["status"]).fails()?;
        ensure!(said.contains("backup failed") && said.contains("backup-key"), "{said}");
        Ok(())
    })?;
    ensure!(safe.backups()?.len() == 3, "nothing is deleted without a new one");
    Ok(())
}

/// A server in a network of its own.
struct Server {
    name: String,
    dir: PathBuf,
    process: Option<Child>,
}

impl Server {
    fn causeway(&self, args: &[&str]) -> Result<Command> {
        let mut command = Command::new(program()?);
        command.args(args).args(["--name", &self.name]).arg("--data-dir").arg(&self.dir);
        Ok(command)
    }

    fn start(&mut self, port: &str) -> Result<()> {
        let log = fs::File::create(std::env::temp_dir().join(format!("causeway-e2e-{}.log", self.name)))?;
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name)).arg(program()?);
        command.args(["server", "--bind-address", "192.0.2.1", "--api-port", port]);
        command.args(["--name", &self.name]).arg("--data-dir").arg(&self.dir);
        self.process = Some(command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?);
        eventually("the server is ready", || run(&mut self.causeway(&["status"])?)?.ok().map(drop))
    }

    fn stop(&mut self) -> Result<()> {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        run(Command::new("kill").arg(process.id().to_string()))?.ok()?;
        eventually("the server ends", || match process.try_wait()? {
            Some(_) => Ok(()),
            None => bail!("it goes on"),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop());
        drop(self.causeway(&["down", "--delete-data"]).and_then(|mut down| run(&mut down)));
        drop(run(Command::new("ip").args(["netns", "del", &self.name])));
    }
}

fn a_server_is_backed_up_while_it_runs() -> Result<()> {
    let safe = Safe::new()?;
    let name = "bksrv".to_owned();
    let dir = std::env::temp_dir().join(format!("causeway-e2e-{name}"));
    drop(run(Command::new("ip").args(["netns", "del", &name])));
    let ip = |line: &str| run(Command::new("ip").args(line.split_whitespace()))?.ok();
    ip(&format!("netns add {name}"))?;
    let mut server = Server { name: name.clone(), dir, process: None };
    run(&mut server.causeway(&["down", "--delete-data"])?)?.ok()?;
    ip(&format!("-n {name} link add br0 type bridge"))?;
    ip(&format!("-n {name} addr add 192.0.2.1/24 dev br0"))?;
    ip(&format!("-n {name} link set br0 up"))?;
    ip(&format!("-n {name} link set lo up"))?;
    let port = free_port()?.to_string();
    server.start(&port)?;
    let folder = safe.folder().display().to_string();
    let key = safe.key();
    run(&mut server.causeway(&["store", "backup", "--to", &folder, "--key-file", &key])?)?.ok()?;
    let backup = safe.backups()?.pop().context("there is no backup")?;
    let ca = fs::read(server.dir.join("pki/ca.crt"))?;
    server.stop()?;
    run(&mut server.causeway(&["down", "--delete-data"])?)?.ok()?;
    let said = run(&mut server.causeway(&["store", "restore", &backup, "--key-file", &key])?)?.ok()?;
    ensure!(said.contains("causeway server --bind-address 192.0.2.1"), "{said}");
    server.start(&port)?;
    ensure!(fs::read(server.dir.join("pki/ca.crt"))? == ca);
    Ok(())
}
