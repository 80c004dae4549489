//! End-to-end tests: the real `causeway`, kubectl, containerd, nftables, dig and curl.
//!
//! One cluster serves most tests, each in a namespace of its own; tests of starting and stopping have clusters of
//! their own and run one after another before it. Run one by name: `cargo test -p causeway-tests --test e2e -- NAME`.

mod acme;
mod apply;
mod bad_input;
mod demo;
mod dns;
mod gateway;
mod images;
mod ingress;
mod join;
mod kubectl;
mod lifecycle;
mod loadbalancer;
mod nodes;
mod pods;
mod policy;
mod proxy_modes;
mod services;

mod storage;
mod upgrade;
mod workloads;

use causeway_tests::Cluster;
use libtest_mimic::{Arguments, Failed, Trial};
use std::process::ExitCode;
use std::sync::Arc;

/// A test of the shared cluster gets it and a namespace of its own.
type Test = fn(&Cluster, &str) -> anyhow::Result<()>;

/// The shared cluster's name; also in the names of everything it makes.
const SHARED: &str = "e2e";

fn main() -> ExitCode {
    let mut args = Arguments::from_args();
    // Two cores, and a cluster on them: more at once only makes time-outs.
    args.test_threads = Some(args.test_threads.unwrap_or(3));
    let alone: Vec<Trial> = lifecycle::tests().into_iter().chain(nodes::tests()).chain(loadbalancer::alone()).collect();
    if args.list {
        let shared = shared_tests().into_iter().map(|(name, _)| Trial::test(name, || Ok(())));
        return libtest_mimic::run(&args, alone.into_iter().chain(shared).collect()).exit_code();
    }
    // One after another: each counts what the machine has before and after.
    let mut one = args.clone();
    one.test_threads = Some(1);
    let first = libtest_mimic::run(&one, alone);
    let wanted = shared_tests().into_iter().filter(|(name, _)| selected(&args, name)).collect::<Vec<_>>();
    if wanted.is_empty() {
        return first.exit_code();
    }
    let cluster = match prepare() {
        Ok(cluster) => Arc::new(cluster),
        Err(error) => {
            eprintln!("the shared cluster did not start: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let trials = wanted.into_iter().map(|(name, test)| {
        let cluster = cluster.clone();
        Trial::test(name, move || in_namespace(&cluster, name, test).map_err(|e| Failed::from(format!("{e:#}"))))
    });
    let second = libtest_mimic::run(&args, trials.collect());
    if second.has_failed() {
        show_log(&cluster);
    }
    drop(cluster);
    if first.has_failed() || second.has_failed() { ExitCode::from(101) } else { ExitCode::SUCCESS }
}

fn selected(args: &Arguments, name: &str) -> bool {
    let filter = args.filter.as_deref().unwrap_or("");
    let matches = if args.exact { name == filter } else { name.contains(filter) };
    (filter.is_empty() || matches) && !args.skip.iter().any(|s| name.contains(s.as_str()))
}

fn shared_tests() -> Vec<(&'static str, Test)> {
    [
        apply::tests(),
        bad_input::tests(),
        dns::tests(),
        gateway::tests(),
        ingress::tests(),
        kubectl::tests(),
        loadbalancer::tests(),
        pods::tests(),
        policy::tests(),
        services::tests(),
        storage::tests(),
        workloads::tests(),
    ]
    .concat()
}

fn prepare() -> anyhow::Result<Cluster> {
    let cluster = Cluster::start(SHARED)?;
    images::load(&cluster)?;
    Ok(cluster)
}

fn in_namespace(cluster: &Cluster, name: &str, test: Test) -> anyhow::Result<()> {
    let namespace = name.replace("::", "-").replace('_', "-");
    cluster.kubectl(&format!("create namespace {namespace}")).ok()?;
    let outcome = test(cluster, &namespace);
    if outcome.is_err() {
        let state = cluster.kubectl(&format!("-n {namespace} get all,endpointslices,ingress,pvc -o wide"));
        let events = cluster.kubectl(&format!("-n {namespace} get events"));
        eprintln!("--- {name}\n{}\n{}", state.out, events.out);
    }
    let cleaned = cluster.kubectl(&format!("delete namespace {namespace} --wait=false")).ok();
    outcome.and(cleaned.map(drop))
}

fn show_log(cluster: &Cluster) {
    let log = std::fs::read_to_string(cluster.dir.join("causeway.log")).unwrap_or_default();
    let lines: Vec<&str> = log.lines().filter(|l| l.contains(" WARN ") || l.contains("ERROR")).collect();
    eprintln!("--- warnings of the cluster\n{}", lines[lines.len().saturating_sub(60)..].join("\n"));
}
