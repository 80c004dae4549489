//! `make bench`: figures of the real things, next to those of peers where there are any.
//!
//! In: the built `causeway` (environment variable `CAUSEWAY`, or the one next to this program), peers unpacked by
//! `debian_peers.sh` and `wheels.sh`, wrk and h2load. Out: a table on the terminal, `target/bench/results.json`, and of some
//! parts tables and plots in `docs/`. Parts that are not asked for keep their former results in that file. Run as
//! `bench [--rounds N] [--seconds N] [PART…]` with the parts `startup`, `programming`, `scheduling`, `ingress`, `websockets` and
//! `routes`; `bench pages [PART…]` writes the tables anew from `results.json`.

mod ingress;
mod load;
mod pages;
mod peers;
mod programming;
mod routes;
mod scenario;
mod scheduling;
mod servers;
mod startup;
mod websockets;

use anyhow::{Context, Result, bail};
use causeway_bench_net::{machine, process, report::Report, stats};
use serde_json::json;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// The allocator of the program itself, so that the ingress is measured as it runs.
#[global_allocator]
static ALLOCATOR: causeway_allocator::Allocator = causeway_allocator::Allocator;

const PARTS: [&str; 6] = ["startup", "programming", "scheduling", "ingress", "websockets", "routes"];

/// What was asked for.
struct Options {
    parts: Vec<String>,
    /// Interleaved rounds of the comparison.
    rounds: usize,
    /// Length of one load in it.
    seconds: u64,
    /// Where downloads, configurations and results are.
    out: PathBuf,
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match args.first().map(String::as_str) {
        // Processes of the comparison, pinned to a core by whoever starts them.
        Some("serve") => servers::run(&args[1..]),
        Some("load") => load::run(&args[1..]),
        Some("pages") => again(&args[1..]),
        _ => run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> Result<()> {
    if std::env::var_os("CAUSEWAY").is_none() {
        let own = std::env::current_exe()?;
        let program = own.with_file_name("causeway");
        if !program.exists() {
            bail!("{} is not there; run: make bench", program.display());
        }
        return Err(Command::new(own).args(args).env("CAUSEWAY", program).exec().into());
    }
    let options = options(args)?;
    std::fs::create_dir_all(&options.out)?;
    drop(rustls::crypto::ring::default_provider().install_default());
    let mut report = Report::open(&options.out.join("results.json"))?;
    let program = causeway_tests::cluster::program()?;
    let versions = json!({
        "causeway": machine::said(Command::new(program).arg("--version")),
        "containerd": machine::said(Command::new("containerd").arg("--version")),
    });
    for part in &options.parts {
        println!("==> {part}");
        let result = machine::noting(|| match part.as_str() {
            "startup" => startup::run(&options),
            "programming" => programming::run(&options),
            "scheduling" => scheduling::run(&options),
            "ingress" => ingress::run(&options),
            "websockets" => websockets::run(&options),
            "routes" => routes::run(&options),
            _ => bail!("no such part: {part}"),
        });
        let mut result = result.with_context(|| format!("measuring {part}"))?;
        result["programs"] = versions.clone();
        report.set(part, result);
        report.save()?;
    }
    report.print();
    pages::write(&docs(), &report, &options.parts)
}

/// Writes the tables of these parts anew from the results that are there.
fn again(args: &[String]) -> Result<()> {
    let options = options(args)?;
    pages::write(&docs(), &Report::open(&options.out.join("results.json"))?, &options.parts)
}

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")
}

fn options(args: &[String]) -> Result<Options> {
    let own = std::env::current_exe()?;
    let target = own.ancestors().nth(2).context("the bench is not in a target directory")?;
    let mut options = Options { parts: Vec::new(), rounds: 5, seconds: 4, out: target.join("bench") };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--rounds" => options.rounds = args.next().context("--rounds needs a number")?.parse()?,
            "--seconds" => options.seconds = args.next().context("--seconds needs a number")?.parse()?,
            part if PARTS.contains(&part) => options.parts.push(part.to_owned()),
            other => bail!("no such part: {other}; there are {}", PARTS.join(", ")),
        }
    }
    if options.parts.is_empty() {
        options.parts = PARTS.map(str::to_owned).to_vec();
    }
    Ok(options)
}
