//! End-to-end tests: the real `causeway`, kubectl, containerd, nftables, dig and curl.
//!
//! One cluster serves most tests, each in a namespace of its own. Before it, tests with clusters of their own: first those
//! that compare what the machine has before and after, one by one, then the others, two at a time. Run one by name:
//! `cargo test -p causeway-tests --test e2e -- NAME`.

mod acme;
mod apply;
mod attacks;
mod backup;
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
mod quiet;
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
/// A test that brings its own cluster.
type Alone = fn() -> anyhow::Result<()>;

/// The shared cluster's name; also in the names of everything it makes.
const SHARED: &str = "e2e";

fn main() -> ExitCode {
    let args = Arguments::from_args();
    if args.list {
        let alone = lifecycle::exclusive().into_iter().chain(alone_tests()).map(|(name, _)| name);
        let names = alone.chain(shared_tests().into_iter().map(|(name, _)| name));
        return libtest_mimic::run(&args, names.map(|name| Trial::test(name, || Ok(()))).collect()).exit_code();
    }
    // Two cores, and clusters on them: more at once only makes time-outs.
    let with_threads =
        |most| Arguments { test_threads: Some(args.test_threads.unwrap_or(most).min(most)), ..args.clone() };
    let alone = |most, tests: Vec<(&'static str, Alone)>| {
        let trial = |(name, test): (&'static str, Alone)| {
            Trial::test(name, move || test().map_err(|e| Failed::from(format!("{e:#}"))))
        };
        libtest_mimic::run(&with_threads(most), tests.into_iter().map(trial).collect())
    };
    let exclusive = alone(1, lifecycle::exclusive());
    let own = alone(2, alone_tests());
    let failed = exclusive.has_failed() || own.has_failed();
    let code = |failed| if failed { ExitCode::from(101) } else { ExitCode::SUCCESS };
    let wanted = shared_tests().into_iter().filter(|(name, _)| selected(&args, name)).collect::<Vec<_>>();
    if wanted.is_empty() {
        return code(failed);
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
    let shared = libtest_mimic::run(&with_threads(3), trials.collect());
    if shared.has_failed() {
        show_log(&cluster);
    }
    drop(cluster);
    code(failed || shared.has_failed())
}

/// The longest first.
fn alone_tests() -> Vec<(&'static str, Alone)> {
    [
        vec![
            ("acme::certificates_come_by_themselves", acme::certificates_come_by_themselves as Alone),
            ("join::machines_join", join::machines_join),
            ("demo::the_shop_opens", demo::the_shop_opens),
            ("proxy_modes::iptables_and_a_switch", proxy_modes::iptables_serves_all_and_a_switch_goes_on),
        ],
        backup::tests(),
        nodes::tests(),
        quiet::tests(),
        policy::alone(),
        loadbalancer::alone(),
        vec![
            ("upgrade::nothing_is_refused", upgrade::nothing_is_refused_while_another_program_takes_over),
            ("dns::a_query_stays_on_its_node", dns::a_query_stays_on_its_node),
            ("join::one_machine_has_it_all", join::one_machine_has_it_all),
            ("join::units_are_well_formed", join::units_are_well_formed),
        ],
        lifecycle::tests(),
    ]
    .concat()
}

fn selected(args: &Arguments, name: &str) -> bool {
    let filter = args.filter.as_deref().unwrap_or("");
    let matches = if args.exact { name == filter } else { name.contains(filter) };
    (filter.is_empty() || matches) && !args.skip.iter().any(|s| name.contains(s.as_str()))
}

fn shared_tests() -> Vec<(&'static str, Test)> {
    [
        apply::tests(),
        attacks::tests(),
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
