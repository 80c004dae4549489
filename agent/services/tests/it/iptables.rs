//! The iptables renderer against the real kernel: what stands there after any history, after a restart, beside others'
//! rules, and while one renderer takes over from the other.

use crate::{
    support::{FAMILIES, Lab, Mode, VIP, at, exchange, service, tcp, udp_socket},
    trace::cases::{History, Step, steps},
};
use causeway_api::config::{IptablesFlavour, ProxyMode};
use causeway_network::NetNs;
use causeway_services::{
    conntrack::Conntrack,
    iptables::{
        planner::Planner,
        program::Iptables,
        tool::{Flavour, Tool},
    },
    metrics::IptablesMetrics,
    renderer::{Done, Renderer},
    switch,
};
use proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::TestRunner,
};
use serde_json::json;
use std::{
    io::{Read, Write},
    process::Command,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
};

/// A namespace that goes with the test.
struct Throwaway(NetNs);

impl Throwaway {
    fn new(what: &str) -> Self {
        Self(NetNs::create(&format!("cw-ipt-{}-{what}", std::process::id())).unwrap())
    }

    fn open(&self, flavour: Flavour) -> Iptables {
        let open = || {
            let tool = Tool::open(Some(flavour)).unwrap();
            let metrics = IptablesMetrics::new(&prometheus::Registry::new()).unwrap();
            Iptables::open(tool, FAMILIES.to_vec(), Conntrack::open().unwrap(), metrics).unwrap().comparing_always()
        };
        self.0.run(open).unwrap()
    }

    fn run(&self, command: &str) -> String {
        let out = Command::new("ip").args(["netns", "exec", self.0.name()]).args(command.split(' ')).output().unwrap();
        assert!(out.status.success(), "{command}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    fn tool(&self, flavour: Flavour) -> Tool {
        self.0.run(|| Tool::open(Some(flavour)).unwrap()).unwrap()
    }

    /// Rules without what changes by itself.
    fn rules(&self, flavour: &str) -> Vec<String> {
        let text = self.run(&format!("iptables-{flavour}-save")) + &self.run(&format!("ip6tables-{flavour}-save"));
        text.lines().filter(|l| !l.starts_with('#')).map(str::to_owned).collect()
    }
}

impl Drop for Throwaway {
    fn drop(&mut self) {
        let _ = NetNs::delete(self.0.name());
    }
}

fn change(history: &mut History, step: &Step) -> (String, Option<causeway_services::model::ServiceModel>) {
    history.take(step);
    let (Step::Set(n, _) | Step::Delete(n)) = step;
    let name = format!("d/s{n}");
    let model = history.models.get(&name).cloned();
    (name, model)
}

fn any_history_leaves_the_rules_of_a_fresh_start(flavour: Flavour) {
    let ns = Throwaway::new(&format!("history-{flavour}"));
    let mut runner = TestRunner::deterministic();
    for _ in 0..5 {
        let steps = steps().new_tree(&mut runner).unwrap().current();
        let (mut history, mut program) = (History::default(), ns.open(flavour));
        let ranges = history.node().ranges;
        program.sync(Vec::new(), &ranges, true).unwrap();
        for step in &steps {
            let change = change(&mut history, step);
            program.sync(vec![change], &ranges, false).unwrap();
        }
        let mut fresh = Planner::new(FAMILIES.to_vec());
        fresh.set_ranges(&ranges);
        for (name, model) in &history.models {
            fresh.set(name, Some(model.clone()));
        }
        let saved = ns.tool(flavour).read(&FAMILIES).unwrap();
        let wanted = fresh.all();
        for (id, rules) in &wanted {
            assert_eq!(saved.chains.get(id), Some(rules), "{flavour}: {id:?} after {steps:?}");
        }
        assert_eq!(saved.chains.len(), wanted.len(), "{flavour}");
        // A restart finds nothing to do.
        let mut again = ns.open(flavour);
        assert!(again.adopted());
        let all = history.models.iter().map(|(n, m)| (n.clone(), Some(m.clone()))).collect();
        assert_eq!(again.sync(all, &ranges, true).unwrap(), Done::default());
    }
}

#[test]
fn any_history_leaves_the_rules_of_a_fresh_start_in_the_kernel_nft() {
    any_history_leaves_the_rules_of_a_fresh_start(Flavour::Nft);
}

#[test]
fn any_history_leaves_the_rules_of_a_fresh_start_in_the_kernel_legacy() {
    any_history_leaves_the_rules_of_a_fresh_start(Flavour::Legacy);
}

#[test]
fn others_rules_stay_and_nothing_of_ours_does() {
    const OTHERS: &str = "*nat\n:OTHER - [0:0]\n-A PREROUTING -p tcp -m tcp --dport 7 -j OTHER\n\
        -A OTHER -j RETURN\nCOMMIT\n*filter\n:KUBE-FIREWALL - [0:0]\n-A INPUT -j KUBE-FIREWALL\nCOMMIT\n";
    for (flavour, name) in [(Flavour::Nft, "nft"), (Flavour::Legacy, "legacy")] {
        let ns = Throwaway::new(&format!("others-{name}"));
        ns.tool(flavour).restore(FAMILIES[0], OTHERS).unwrap();
        // Whoever asks for no flavour gets the one that the machine uses.
        let chosen = ns.0.run(|| Tool::open(None).unwrap().flavour()).unwrap();
        assert_eq!(chosen, Some(flavour));
        let before = ns.rules(name);
        let (mut history, mut program) = (History::default(), ns.open(flavour));
        let ranges = history.node().ranges;
        let steps = steps().new_tree(&mut TestRunner::deterministic()).unwrap().current();
        let changes = steps.iter().map(|step| change(&mut history, step)).collect();
        assert!(program.sync(changes, &ranges, true).unwrap().elements > 0);
        let during = ns.rules(name);
        let ours = during.iter().position(|l| l.starts_with("-A PREROUTING") && l.ends_with("-j KUBE-SERVICES"));
        let others = during.iter().position(|l| l.ends_with("-j OTHER")).unwrap();
        assert!(ours.unwrap() < others);
        assert!(during.iter().any(|l| l == "-A INPUT -j KUBE-FIREWALL"));

        let mode = (ProxyMode::Nftables, IptablesFlavour::Auto);
        assert!(ns.0.run(|| switch::remove_others(mode.0, mode.1).unwrap()).unwrap());
        let after = ns.rules(name);
        // Tables that were not there before are empty now.
        let left = |rules: &[String]| -> Vec<String> {
            rules
                .iter()
                .filter(|l| l.starts_with("-A") || l.starts_with(":KUBE") || l.starts_with(":OTHER"))
                .cloned()
                .collect()
        };
        assert_eq!(left(&after), left(&before), "{flavour}");
        assert!(!ns.0.run(|| switch::remove_others(mode.0, mode.1).unwrap()).unwrap(), "nothing more");
    }
}

#[test]
fn meddling_is_mended() {
    for (flavour, name) in [(Flavour::Nft, "nft"), (Flavour::Legacy, "legacy")] {
        let ns = Throwaway::new(&format!("mend-{name}"));
        let (mut history, mut program) = (History::default(), ns.open(flavour));
        let ranges = history.node().ranges;
        let steps = steps().new_tree(&mut TestRunner::deterministic()).unwrap().current();
        let changes = steps.iter().map(|step| change(&mut history, step)).collect();
        assert!(program.sync(changes, &ranges, true).unwrap().rebuilt);
        let check = |program: &mut Iptables| program.sync(Vec::new(), &ranges, false).unwrap();
        assert_eq!(check(&mut program), Done::default());
        let good = ns.rules(name);
        for meddling in [
            "-t nat -F KUBE-SERVICES",
            "-t nat -D POSTROUTING 1",
            "-t filter -I KUBE-FORWARD -j ACCEPT",
            "-t filter -F",
            "-t nat -A PREROUTING -j KUBE-SERVICES",
        ] {
            ns.run(&format!("iptables-{name} {meddling}"));
            assert_ne!(ns.rules(name), good);
            assert!(check(&mut program).elements > 0, "{flavour}: {meddling}");
            assert_eq!(ns.rules(name), good, "{flavour}: {meddling}");
            assert_eq!(check(&mut program), Done::default(), "{flavour}: {meddling}");
        }
        // A change that no longer fits what is there does not get stuck.
        ns.run(&format!("iptables-{name} -t nat -F"));
        ns.run(&format!("iptables-{name} -t nat -X"));
        let step = crate::trace::cases::wide(3);
        let change = change(&mut history, &step);
        program.sync(vec![change], &ranges, false).unwrap();
        check(&mut program);
        let all = history.models.iter().map(|(n, m)| (n.clone(), Some(m.clone()))).collect();
        assert_eq!(ns.open(flavour).sync(all, &ranges, true).unwrap(), Done::default(), "all is as it should be");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_renderer_takes_over_from_the_other_under_connections() {
    let mut lab = Lab::new(Mode::Nftables).await;
    let client = lab.pod("one", "client").await;
    let (a, b) = (lab.pod("one", "a").await, lab.pod("two", "b").await);
    // Says what it hears, as long as somebody speaks.
    let echo = b.netns.bind_tcp(at(b.ip, 9090)).unwrap();
    std::thread::spawn(move || {
        let Ok((mut stream, _)) = echo.accept() else { return };
        let mut buffer = [0; 16];
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            let _ = stream.write_all(&buffer[..n]);
        }
    });
    let s = service("s", json!({}));
    let long: k8s_openapi::api::core::v1::Service = serde_json::from_value(json!({
        "metadata": {"name": "long", "namespace": "d"},
        "spec": {"clusterIP": "10.96.0.6", "clusterIPs": ["10.96.0.6"], "ports": [{"port": 90, "protocol": "TCP"}]}}))
    .unwrap();
    let ends = serde_json::from_value(json!({"metadata": {"name": "long-1"}, "addressType": "IPv4",
        "endpoints": [{"addresses": [b.ip], "nodeName": "two"}], "ports": [{"port": 9090, "protocol": "TCP"}]}))
    .unwrap();
    let all = |lab: &Lab| {
        let of = |service, slices: &[_]| causeway_services::model::service(service, slices, &lab.node());
        let slices = crate::support::slices(&[(&a, json!({})), (&b, json!({}))]);
        vec![("s".to_owned(), Some(of(&s, &slices))), ("long".to_owned(), Some(of(&long, std::slice::from_ref(&ends))))]
    };
    let ranges = lab.ranges();
    let changes = all(&lab);
    lab.program.sync(changes, &ranges, true).unwrap();
    let mut stream = client.netns.run(|| std::net::TcpStream::connect("10.96.0.6:90")).unwrap().unwrap();
    stream.set_read_timeout(Some(crate::support::PATIENCE)).unwrap();
    let flow = udp_socket(&client.netns, at(VIP, 80));
    let served = exchange(&flow).unwrap().server;

    let (stop, connects) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for netns in [&client.netns, &lab.one.netns.clone()] {
            let (stop, connects) = (&stop, &connects);
            let netns = netns.clone();
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    if let Err(e) = tcp(&netns, at(VIP, 80)) {
                        stop.store(true, Ordering::Relaxed);
                        panic!("after {} connections: {e}", connects.load(Ordering::Relaxed));
                    }
                    connects.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let modes = [
            Mode::Iptables(Flavour::Nft),
            Mode::Nftables,
            Mode::Iptables(Flavour::Legacy),
            Mode::Iptables(Flavour::Nft),
        ];
        for mode in modes {
            lab.mode = mode;
            lab.restart();
            let changes = all(&lab);
            lab.program.sync(changes, &ranges, true).unwrap();
            let (proxy, flavour) = match mode {
                Mode::Nftables => (ProxyMode::Nftables, IptablesFlavour::Auto),
                Mode::Iptables(Flavour::Nft) => (ProxyMode::Iptables, IptablesFlavour::Nft),
                Mode::Iptables(Flavour::Legacy) => (ProxyMode::Iptables, IptablesFlavour::Legacy),
            };
            assert!(lab.one.netns.run(|| switch::remove_others(proxy, flavour).unwrap()).unwrap(), "{mode:?}");
            stream.write_all(b"still there?").unwrap();
            let mut answer = [0; 12];
            stream.read_exact(&mut answer).unwrap();
            assert_eq!(exchange(&flow).unwrap().server, served, "{mode:?}");
            let before = connects.load(Ordering::Relaxed);
            while connects.load(Ordering::Relaxed) < before + 10 && !stop.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            let ruleset = lab.nft("list tables");
            assert_eq!(ruleset.contains("causeway"), mode == Mode::Nftables, "{mode:?}: {ruleset}");
            for (flavour, name) in [(Flavour::Nft, "nft"), (Flavour::Legacy, "legacy")] {
                let rules = lab.run(&format!("iptables-{name}-save"));
                assert_eq!(rules.contains("KUBE-"), mode == Mode::Iptables(flavour), "{mode:?}: {rules}");
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
}
