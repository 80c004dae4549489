//! Restore files: written from changes, and read as `iptables-save` writes them. Pure.

use super::{
    names::{ChainId, Table, is_ours},
    planner::Changes,
    render::hooks,
};
use crate::family::Family;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

/// A rule in one of the kernel's own chains: (table, chain, rule).
pub type Hook = (Table, String, String);

/// What is there of ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Saved {
    /// Our chains.
    pub chains: BTreeMap<ChainId, Vec<String>>,
    /// Rules that lead to them from the kernel's own chains, in order.
    pub hooks: BTreeMap<Family, Vec<Hook>>,
    /// What is in `nat` and `filter` besides, which leads to chains of ours: these cannot go.
    pub foreign: BTreeMap<Family, Vec<Hook>>,
}

impl Saved {
    /// Reads what `iptables-save` wrote; others' chains and tables are passed over.
    pub fn read(&mut self, family: Family, text: &str) {
        let mut table = None;
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = Table::ALL.into_iter().find(|t| t.name() == name);
            }
            let Some(table) = table else { continue };
            if let Some(chain) = line.strip_prefix(':') {
                let name = chain.split(' ').next().unwrap_or_default();
                if is_ours(table, name) {
                    self.chains.entry(ChainId::new(family, table, name)).or_default();
                }
            } else if let Some((name, rule)) = line.strip_prefix("-A ").and_then(|r| r.split_once(' ')) {
                if is_ours(table, name) {
                    self.chains.entry(ChainId::new(family, table, name)).or_default().push(rule.to_owned());
                } else if target(rule).is_some_and(|to| is_ours(table, to)) {
                    let is_base = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"].contains(&name);
                    let place = if is_base { &mut self.hooks } else { &mut self.foreign };
                    place.entry(family).or_default().push((table, name.to_owned(), rule.to_owned()));
                }
            }
        }
    }

    /// What becomes of a chain that is not wanted: it goes, or is emptied where a rule of another leads to it.
    pub fn without(&self, id: &ChainId) -> Option<Vec<String>> {
        let others = self.foreign.get(&id.family).into_iter().flatten();
        let is_held = others.into_iter().any(|(table, _, rule)| *table == id.table && target(rule) == Some(&id.name));
        is_held.then(Vec::new)
    }

    /// Whether nothing of ours is there.
    pub fn is_empty(&self) -> bool {
        self.chains.is_empty() && self.hooks.values().all(Vec::is_empty)
    }
}

/// Where a rule jumps or goes to.
pub fn target(rule: &str) -> Option<&str> {
    let mut words = rule.split(' ').rev();
    let last = words.next()?;
    ["-j", "-g"].contains(&words.next()?).then_some(last)
}

/// What a family's kernel chains need: rules to delete, and rules to put before what is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HookChanges {
    delete: Vec<Hook>,
    /// In the order in which they are to stand.
    insert: Vec<Hook>,
}

impl HookChanges {
    /// Between what is there and what should be.
    pub fn between(present: &[Hook]) -> Self {
        let wanted: Vec<Hook> = hooks().into_iter().map(|(t, c, r)| (t, c.to_owned(), r)).collect();
        let mut seen = BTreeSet::new();
        let is_extra = |hook: &&Hook| !wanted.contains(hook) || !seen.insert((*hook).clone());
        let delete = present.iter().filter(is_extra).cloned().collect();
        let insert = wanted.into_iter().filter(|hook| !present.contains(hook)).collect();
        Self { delete, insert }
    }

    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        self.delete.is_empty() && self.insert.is_empty()
    }
}

/// The file with a family's changes, empty when there are none. Tables take force one after the other, each at once, in
/// the order given.
///
/// Chains that go are emptied, and removed with `remove`: for that the nft flavour reads all rules there are.
pub fn write(tables: [Table; 2], family: Family, changes: &Changes, hooks: &HookChanges, remove: bool) -> String {
    let mut file = String::new();
    for table in tables {
        let here = || changes.iter().filter(|(id, _)| id.family == family && id.table == table);
        let (mut head, mut body, mut tail) = (String::new(), String::new(), String::new());
        for (ChainId { name, .. }, rules) in here() {
            let _ = writeln!(head, ":{name} - [0:0]");
            for rule in rules.iter().flatten() {
                let _ = writeln!(body, "-A {name} {rule}");
            }
            if rules.is_none() && remove {
                let _ = writeln!(tail, "-X {name}");
            }
        }
        let mut position: BTreeMap<&str, usize> = BTreeMap::new();
        for (_, chain, rule) in hooks.insert.iter().filter(|(t, ..)| *t == table) {
            let position = position.entry(chain).or_default();
            *position += 1;
            let _ = writeln!(body, "-I {chain} {position} {rule}");
        }
        // The new ones stand before these, so it is the last of several alike that goes; all are alike anyway.
        for (_, chain, rule) in hooks.delete.iter().filter(|(t, ..)| *t == table) {
            let _ = writeln!(body, "-D {chain} {rule}");
        }
        if !(head.is_empty() && body.is_empty()) {
            let _ = write!(file, "*{}\n{head}{body}{tail}COMMIT\n", table.name());
        }
    }
    file
}

/// Takes all of it away, but for chains that others' rules lead to, which are emptied.
pub fn removal(family: Family, saved: &Saved) -> String {
    let delete = saved.hooks.get(&family).cloned().unwrap_or_default();
    let hooks = HookChanges { delete, insert: Vec::new() };
    let ours = saved.chains.keys().filter(|id| id.family == family);
    let changes: Changes = ours.map(|id| (id.clone(), saved.without(id))).collect();
    // First what refuses and drops.
    write([Table::Filter, Table::Nat], family, &changes, &hooks, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVE: &str = "\
# Generated by iptables-save v1.8.9 on Wed Nov 25 22:18:21 2026
*mangle
:KUBE-SERVICES - [0:0]
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:DOCKER - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-NPX46M4PTMTKRN6Y - [0:0]
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A PREROUTING -j DOCKER
-A PREROUTING -j KUBE-SERVICES
-A DOCKER -j KUBE-SERVICES
-A KUBE-SERVICES -d 10.96.0.1/32 -j KUBE-SVC-NPX46M4PTMTKRN6Y
COMMIT
";

    #[test]
    fn only_ours_is_read_and_changed() {
        let mut saved = Saved::default();
        saved.read(Family::V4, SAVE);
        assert_eq!(saved.chains.len(), 2);
        let hooks = HookChanges::between(&saved.hooks[&Family::V4]);
        let gone = BTreeMap::from([(ChainId::new(Family::V4, Table::Nat, "KUBE-SVC-NPX46M4PTMTKRN6Y"), None)]);
        let file = write(Table::ALL, Family::V4, &gone, &hooks, true);
        let (nat, filter) = file.split_once("*filter").unwrap();
        let nat: Vec<&str> = nat.lines().collect();
        assert_eq!(nat[..2], ["*nat", ":KUBE-SVC-NPX46M4PTMTKRN6Y - [0:0]"]);
        assert_eq!(nat[2], "-I OUTPUT 1 -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES");
        assert_eq!(nat[4..], ["-D PREROUTING -j KUBE-SERVICES", "-X KUBE-SVC-NPX46M4PTMTKRN6Y", "COMMIT"]);
        assert!(filter.contains("-I FORWARD 2 "), "{filter}");

        let removal = removal(Family::V4, &saved);
        for expected in ["-D PREROUTING -m comment", ":KUBE-SERVICES - [0:0]", "-X KUBE-SVC-NPX46M4PTMTKRN6Y"] {
            assert!(removal.contains(expected), "{}", removal);
        }
        assert!(!removal.contains("-X KUBE-SERVICES"), "a rule of another leads there");
    }
}
