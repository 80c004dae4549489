//! What a cluster could leave on a machine, to compare before and after.

use crate::command::run;
use anyhow::{Result, bail};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

/// Everything found that a cluster may have made, one line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traces(BTreeSet<String>);

impl Traces {
    /// Looks at namespaces, interfaces, routes, packet filters, mounts, control groups and processes. `marks` are
    /// words by which the cluster's own processes and mounts are known.
    pub fn now(marks: &[&str]) -> Result<Self> {
        let mut found = BTreeSet::new();
        let mut lines = |what: &str, text: &str| {
            found.extend(text.lines().filter(|l| !l.trim().is_empty()).map(|l| format!("{what}: {}", l.trim())));
        };
        let ours = |line: &str| marks.iter().any(|m| line.contains(m));
        lines("namespace", &said("ip", &["netns", "list"])?);
        lines("interface", &said("ip", &["-br", "link"])?.lines().map(first_word).collect::<Vec<_>>().join("\n"));
        lines("route", &said("ip", &["route"])?);
        lines("nftables", &said("nft", &["list", "tables"])?);
        lines("iptables", &rules(&said("iptables-save", &[])?));
        let mounts = std::fs::read_to_string("/proc/mounts")?;
        lines("mount", &mounts.lines().filter(|l| ours(l)).collect::<Vec<_>>().join("\n"));
        let mut groups = Vec::new();
        control_groups(Path::new("/sys/fs/cgroup"), 0, &ours, &mut groups);
        lines("control group", &groups.join("\n"));
        lines("process", &processes(&ours).join("\n"));
        lines("folder", &std::fs::read_dir("/run/causeway").map(|_| "/run/causeway".to_owned()).unwrap_or_default());
        Ok(Self(found))
    }

    /// Fails with what is there now and was not before.
    pub fn nothing_new(&self, after: &Self) -> Result<()> {
        let new: Vec<&String> = after.0.difference(&self.0).collect();
        if !new.is_empty() {
            bail!("left behind: {new:#?}");
        }
        Ok(())
    }
}

fn said(program: &str, args: &[&str]) -> Result<String> {
    run(Command::new(program).args(args))?.ok()
}

fn first_word(line: &str) -> &str {
    line.split_whitespace().next().unwrap_or_default()
}

/// Without comments and counters.
fn rules(saved: &str) -> String {
    let kept = saved.lines().filter(|l| !l.starts_with('#'));
    kept.map(|l| l.split(" [").next().unwrap_or(l)).collect::<Vec<_>>().join("\n")
}

fn control_groups(dir: &Path, depth: usize, ours: &dyn Fn(&str) -> bool, found: &mut Vec<String>) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for path in entries.flatten().map(|e| e.path()).filter(|p| p.is_dir() && !p.is_symlink()) {
        let text = path.display().to_string();
        if ours(&text) {
            found.push(text);
        }
        if depth < 6 {
            control_groups(&path, depth + 1, ours, found);
        }
    }
}

/// Command lines of living processes (zombies hold nothing; whoever is process 1 reaps them).
fn processes(ours: &dyn Fn(&str) -> bool) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let own = std::process::id().to_string();
    entries
        .flatten()
        .filter(|e| e.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit()) && *e.file_name() != *own)
        .filter_map(|e| std::fs::read_to_string(e.path().join("cmdline")).ok())
        .map(|line| line.replace('\0', " "))
        .filter(|line| ours(line))
        .collect()
}
