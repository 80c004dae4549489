//! A cluster of its own name and ports, started by the real `causeway up` and taken down when dropped.

use crate::command::{Output, run, run_with_input};
use anyhow::{Context, Result, bail};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// A running (or stopped, to be started again) cluster.
pub struct Cluster {
    /// Its name.
    pub name: String,
    /// Its data directory, removed with it.
    pub dir: PathBuf,
    /// Ports on 127.0.0.1.
    pub http: u16,
    /// Ports on 127.0.0.1.
    pub https: u16,
    /// Ports on 127.0.0.1.
    pub api: u16,
    /// More arguments of `up`.
    pub args: Vec<String>,
}

/// The program under test: `CAUSEWAY` in the environment, or what cargo built.
pub fn program() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("CAUSEWAY") {
        return Ok(path.into());
    }
    let own = std::env::current_exe()?;
    let dir = own.ancestors().nth(2).context("no target directory above the tests")?;
    let path = dir.join("causeway");
    if !path.exists() {
        bail!("{} is not built; run: cargo build -p causeway-cli", path.display());
    }
    Ok(path)
}

/// A port of 127.0.0.1 that nobody listens on, and that this process has not been given before. It is none of those that the
/// kernel gives to connections and to who asks for any, so that nobody gets it meanwhile.
pub fn free_port() -> Result<u16> {
    const FIRST: u32 = 15_000;
    const ALL: u32 = 15_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Processes begin apart from each other.
    let begin = std::process::id().wrapping_mul(97);
    for _ in 0..ALL {
        let port = FIRST + begin.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % ALL;
        let port = u16::try_from(port)?;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("all ports from {FIRST} on are taken")
}

impl Cluster {
    /// A cluster that does not run yet.
    pub fn new(name: &str) -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("causeway-e2e-{name}"));
        let this = Self {
            name: name.to_owned(),
            dir,
            http: free_port()?,
            https: free_port()?,
            api: free_port()?,
            args: Vec::new(),
        };
        // What an interrupted run may have left.
        this.command(&["down", "--delete-data"]).ok()?;
        Ok(this)
    }

    /// A cluster that runs.
    pub fn start(name: &str) -> Result<Self> {
        let this = Self::new(name)?;
        this.up()?;
        Ok(this)
    }

    /// `causeway up --detach`.
    pub fn up(&self) -> Result<String> {
        let (http, https, api) = (self.http.to_string(), self.https.to_string(), self.api.to_string());
        let mut args = vec!["up", "--detach", "--http-port", &http, "--https-port", &https, "--api-port", &api];
        args.extend(self.args.iter().map(String::as_str));
        self.command(&args).ok()
    }

    /// `causeway down`; data stays.
    pub fn down(&self) -> Result<String> {
        self.command(&["down"]).ok()
    }

    /// Any command of the program, for this cluster.
    pub fn command(&self, args: &[&str]) -> Output {
        let attempt = || -> Result<Output> {
            let mut command = Command::new(program()?);
            command.args(args).args(["--name", &self.name]).arg("--data-dir").arg(&self.dir);
            run(&mut command)
        };
        attempt().unwrap_or_else(|e| Output {
            line: args.join(" "),
            code: -1,
            out: String::new(),
            err: format!("{e:#}"),
        })
    }

    /// The process of the cluster.
    pub fn pid(&self) -> Result<i32> {
        let path = Path::new("/run/causeway").join(&self.name).join("cluster.json");
        let record: serde_json::Value = serde_json::from_slice(&std::fs::read(path)?)?;
        let pid = record["pid"].as_i64().context("the record names no process")?;
        Ok(i32::try_from(pid)?)
    }

    /// `kill -9` of the cluster's process, and of nothing else.
    pub fn kill(&self) -> Result<()> {
        let pid = self.pid()?.to_string();
        run(Command::new("kill").args(["-9", &pid]))?.ok()?;
        crate::eventually("the process is gone", || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            if stat.is_empty() || stat.contains(") Z ") { Ok(()) } else { bail!("{stat}") }
        })
    }

    /// The real kubectl, with this cluster's kubeconfig.
    pub fn kubectl_command(&self) -> Command {
        let mut command = Command::new("kubectl");
        command.env("KUBECONFIG", self.dir.join("kubeconfig"));
        command
    }

    /// `kubectl ARGS`, split at spaces.
    pub fn kubectl(&self, args: &str) -> Output {
        self.kubectl_args(&args.split_whitespace().collect::<Vec<_>>(), "")
    }

    /// `kubectl ARGS` with text on standard input.
    pub fn kubectl_in(&self, args: &str, input: &str) -> Output {
        self.kubectl_args(&args.split_whitespace().collect::<Vec<_>>(), input)
    }

    /// `kubectl` with arguments that contain spaces.
    pub fn kubectl_args(&self, args: &[&str], input: &str) -> Output {
        run_with_input(self.kubectl_command().args(args), input).unwrap_or_else(|e| Output {
            line: args.join(" "),
            code: -1,
            out: String::new(),
            err: format!("{e:#}"),
        })
    }

    /// `kubectl apply -f -`.
    pub fn apply(&self, manifest: &str) -> Result<String> {
        self.kubectl_in("apply -f -", manifest).ok()
    }

    /// An object as JSON.
    pub fn get(&self, what: &str) -> Result<serde_json::Value> {
        Ok(serde_json::from_str(&self.kubectl(&format!("get {what} -o json")).ok()?)?)
    }

    /// A command inside a node's network namespace.
    pub fn on_node(&self, node: &str, line: &str) -> Output {
        let namespace = format!("cw-{}-{node}", self.name);
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &namespace, "sh", "-c", line]);
        run(&mut command).unwrap_or_else(|e| Output {
            line: line.to_owned(),
            code: -1,
            out: String::new(),
            err: format!("{e:#}"),
        })
    }

    /// `curl` to the ingress: `url` is `http://HOST/…` or `https://HOST/…`; the domain leads to 127.0.0.1.
    pub fn curl(&self, url: &str, args: &[&str]) -> Output {
        let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
        let port = if scheme == "https" { self.https } else { self.http };
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let target = format!("{scheme}://{host}:{port}/{path}");
        let resolve = format!("{host}:{port}:127.0.0.1");
        let mut command = Command::new("curl");
        command.args(["-sS", "--max-time", "10", "--resolve", &resolve]).args(args).arg(&target);
        run(&mut command).unwrap_or_else(|e| Output {
            line: target,
            code: -1,
            out: String::new(),
            err: format!("{e:#}"),
        })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let output = self.command(&["down", "--delete-data"]);
        if output.code != 0 {
            eprintln!("cluster {} was not taken down: {}{}", self.name, output.out, output.err);
        }
    }
}
