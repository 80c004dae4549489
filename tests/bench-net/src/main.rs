//! `bench-net`: figures of kube-proxy and cluster DNS, next to their peers, by one command.
//!
//! In: this program alone (it has our components in it and runs them as processes of their own), the peers that
//! `go_peers.sh` and `debian_peers.sh` bring, dnsperf, strace. Out: `target/bench/results.json`, and in the sources the
//! tables of `docs/BENCHMARKS.md` and `docs/SERVICES.md` with the plots they show. Everything happens in network
//! namespaces without a way out, which go away with it. Needs root.
//!
//! `bench-net [services] [dns] [--sizes 100,1000,10000,30000] [--bound SECONDS] [--rounds N] [--seconds N]
//! [--only WORD] [--no-docs] [--no-build]`; `bench-net docs` only writes the pages again.

mod cluster;
mod dns;
mod docs;
mod kubeproxy;
mod lab;
mod nameservers;
mod packets;
mod plots;
mod roles;
mod services;
mod trace;
mod zonefile;

use anyhow::{Context, Result, bail};
use causeway_bench_net::machine;
use causeway_bench_net::report::Report;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

/// The allocator of the program itself, so that our components are measured as they run.
#[global_allocator]
static ALLOCATOR: causeway_allocator::Allocator = causeway_allocator::Allocator;

const PARTS: [&str; 2] = ["services", "dns"];
/// Set in the process that has its priority.
const RAISED: &str = "BENCH_NET_RAISED";

/// What was asked for.
pub struct Options {
    parts: Vec<String>,
    /// Numbers of Services.
    pub sizes: Vec<u32>,
    /// A full synchronisation that takes longer is given up.
    pub bound: Duration,
    /// Turns of the DNS servers.
    pub rounds: usize,
    /// Length of one DNS load.
    pub seconds: u64,
    /// Only cases and servers with this in their name.
    only: Option<String>,
    /// Whether the pages in the sources are written.
    docs: bool,
    /// Whether peers that are missing are built.
    build: bool,
    /// Where peers, logs and results are.
    pub out: PathBuf,
}

impl Options {
    /// Whether a case or server is to be measured.
    pub fn wants(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|word| name.contains(word))
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    drop(rustls::crypto::ring::default_provider().install_default());
    let outcome = match args.first().map(String::as_str) {
        Some("role") => roles::run(&args[1..]),
        _ => run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-net: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> Result<()> {
    if std::env::var_os(RAISED).is_none() {
        // Before other work of the machine, with all that is started here: peers and ours alike.
        let own = std::env::current_exe()?;
        return Err(Command::new("nice").args(["-n", "-10"]).arg(own).args(args).env(RAISED, "1").exec().into());
    }
    let options = options(args)?;
    let words = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into());
    tracing_subscriber::fmt().with_env_filter(words).with_writer(std::io::stderr).init();
    std::fs::create_dir_all(options.out.join("logs"))?;
    let mut report = Report::open(&options.out.join("results.json"))?;
    if options.build && !options.parts.is_empty() {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("go_peers.sh");
        Command::new(&script).arg(&options.out).status().with_context(|| format!("running {}", script.display()))?;
    }
    for part in &options.parts {
        println!("==> {part}");
        let result = machine::noting(|| match part.as_str() {
            "services" => services::run(&options),
            _ => dns::run(&options),
        });
        let result = result.with_context(|| format!("measuring {part}"))?;
        report.set(part, result);
        report.save()?;
    }
    println!("{}", options.out.join("results.json").display());
    if options.docs {
        docs::write(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs"), &report)?;
    }
    Ok(())
}

fn options(args: &[String]) -> Result<Options> {
    let own = std::env::current_exe()?;
    let target = own.ancestors().nth(2).context("the bench is not in a target directory")?;
    let mut options = Options {
        parts: Vec::new(),
        sizes: vec![100, 1000, 10_000, 30_000],
        bound: Duration::from_secs(30),
        rounds: 2,
        seconds: 3,
        only: None,
        docs: true,
        build: true,
        out: target.join("bench"),
    };
    let mut only_docs = false;
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--sizes" => options.sizes = value()?.split(',').map(str::parse).collect::<Result<_, _>>()?,
            "--bound" => options.bound = Duration::from_secs(value()?.parse()?),
            "--rounds" => options.rounds = value()?.parse()?,
            "--seconds" => options.seconds = value()?.parse()?,
            "--only" => options.only = Some(value()?.clone()),
            "--no-docs" => options.docs = false,
            "--no-build" => options.build = false,
            "docs" => only_docs = true,
            part if PARTS.contains(&part) => options.parts.push(part.to_owned()),
            other => bail!("no such part: {other}; there are {}", PARTS.join(", ")),
        }
    }
    if options.parts.is_empty() && !only_docs {
        options.parts = PARTS.map(str::to_owned).to_vec();
    }
    Ok(options)
}
