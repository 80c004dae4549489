//! `bench-store`: figures of the store, next to the engine before it, etcd, and other rooms for its values.
//!
//! In: this program alone (both engines are in it and run as processes of their own), the etcd that `peers.sh` brings.
//! Out: `target/bench/results.json`, and the tables of `docs/BENCHMARKS.md`. All servers listen on 127.0.0.1 only, and all
//! data is in folders that go with the run.
//!
//! `bench-store [--rounds N] [--seconds N] [--mib N] [--keys N] [--objects N] [--puts N] [--leases N] [--lease-seconds N]
//! [--no-docs] [PART…]` with the parts `writes`, `list`, `crash`, `memory`, `values`, `builds` and `leases`;
//! `bench-store docs` only writes the tables again.

mod bytes_of;
mod parts;
mod rooms;
mod serve;
mod session;
mod subject;
mod tables;
mod values;

// What all benches share, as sources: its crate would bring the half of Causeway along.
#[path = "../../bench-net/src/machine.rs"]
mod machine;
#[path = "../../bench-net/src/page.rs"]
mod page;
#[allow(dead_code, reason = "other benches need more of it")]
#[path = "../../bench-net/src/process.rs"]
mod process;
#[allow(dead_code, reason = "other benches need more of it")]
#[path = "../../bench-net/src/report.rs"]
mod report;
#[allow(dead_code, reason = "other benches need more of it")]
#[path = "../../bench-net/src/stats.rs"]
mod stats;

use anyhow::{Context, Result, bail};
use report::Report;
use session::Subjects;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// The allocator of the program itself, so that memory is measured as it is there.
#[global_allocator]
static ALLOCATOR: causeway_allocator::Allocator = causeway_allocator::Allocator;

/// All parts, in the order of the page.
const PARTS: [&str; 7] = ["writes", "list", "crash", "memory", "leases", "values", "builds"];

/// What was asked for.
pub struct Options {
    parts: Vec<String>,
    /// Turns of the subjects.
    pub rounds: usize,
    /// Length of one measurement of writes.
    pub seconds: f64,
    /// MiB written before the crash.
    pub mib: usize,
    /// Keys that are listed.
    pub keys: usize,
    /// Objects in memory.
    pub objects: usize,
    /// Values put into each room.
    pub puts: u64,
    /// Leases, and how long they are renewed.
    pub leases: usize,
    /// Seconds of that.
    pub lease_seconds: f64,
    /// Whether the page in the sources is written.
    docs: bool,
    /// Where peers, data and results are.
    pub out: PathBuf,
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match args.first().map(String::as_str) {
        Some("serve") => serve::run(&args[1..]),
        Some("room") => values::room(&args[1..]),
        _ => run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-store: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> Result<()> {
    let options = options(args)?;
    std::fs::create_dir_all(&options.out)?;
    let mut report = Report::open(&options.out.join("results.json"))?;
    if !options.parts.is_empty() {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers.sh");
        Command::new(&script).arg(&options.out).status().with_context(|| format!("running {}", script.display()))?;
    }
    let subjects = Subjects::find(&options.out);
    for part in &options.parts {
        println!("==> {part}");
        let result = machine::noting(|| match part.as_str() {
            "writes" => parts::writes(&options, &subjects),
            "list" => parts::list(&options, &subjects),
            "crash" => parts::crash(&options, &subjects),
            "memory" => parts::memory(&options, &subjects),
            "leases" => parts::leases(&options, &subjects),
            "values" => values::run(&options),
            _ => values::builds(&options),
        });
        let mut result = result.with_context(|| format!("measuring {part}"))?;
        result["rounds"] = options.rounds.into();
        result["versions"] = subjects.versions();
        println!("{result:#}");
        report.set(&format!("store-{part}"), result);
        report.save()?;
    }
    println!("{}", options.out.join("results.json").display());
    if options.docs {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/BENCHMARKS.md");
        page::replace(&page, "bench store", &tables::page(&report)?)?;
    }
    Ok(())
}

fn options(args: &[String]) -> Result<Options> {
    let own = std::env::current_exe()?;
    let target = own.ancestors().nth(2).context("the bench is not in a target directory")?;
    let mut options = Options {
        parts: Vec::new(),
        rounds: 9,
        seconds: 3.0,
        mib: 1024,
        keys: 150_000,
        objects: 100_000,
        puts: 300_000,
        leases: 5_000,
        lease_seconds: 120.0,
        docs: true,
        out: target.join("bench"),
    };
    let mut only_docs = false;
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--rounds" => options.rounds = value()?.parse()?,
            "--seconds" => options.seconds = value()?.parse()?,
            "--mib" => options.mib = value()?.parse()?,
            "--keys" => options.keys = value()?.parse()?,
            "--objects" => options.objects = value()?.parse()?,
            "--puts" => options.puts = value()?.parse()?,
            "--leases" => options.leases = value()?.parse()?,
            "--lease-seconds" => options.lease_seconds = value()?.parse()?,
            "--no-docs" => options.docs = false,
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
