//! Runs `iptables-save` and `iptables-restore`, of one flavour.

use super::restore::Saved;
use crate::family::Family;
use causeway_network::NetNs;
use std::{
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Where programs of the system are looked for beyond `PATH`.
const SYSTEM: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin"];

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// It is not installed.
    #[error("{0} is not installed; install the package iptables, or choose the proxy mode nftables")]
    Missing(String),
    /// It could not be run.
    #[error("running {program}: {source}")]
    Run {
        /// Which.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// It found fault with its input, or the kernel did.
    #[error("{program} failed ({status}): {message}")]
    Failed {
        /// Which.
        program: String,
        /// Its exit status.
        status: std::process::ExitStatus,
        /// What it said.
        message: String,
    },
}

/// The two sets of tables that a kernel can have at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// `iptables-nft`: in the tables of nftables.
    Nft,
    /// `iptables-legacy`: in tables of its own.
    Legacy,
}

impl Flavour {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Nft, Self::Legacy];

    fn name(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Legacy => "legacy",
        }
    }
}

impl std::fmt::Display for Flavour {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "iptables-{}", self.name())
    }
}

/// The programs of a flavour, run in one network namespace.
#[derive(Debug, Clone)]
pub struct Tool {
    netns: NetNs,
    /// None where the machine has only one, under the plain name, of which nobody knows the flavour.
    flavour: Option<Flavour>,
}

impl Tool {
    /// For the calling thread's network namespace. Without a flavour, that which the machine's other programs use: the
    /// one with more rules in it, or that of the plain command's name.
    pub fn open(flavour: Option<Flavour>) -> Result<Self, ToolError> {
        let open = || NetNs::current().map_err(io::Error::other);
        let netns = open().map_err(|source| ToolError::Run { program: "iptables-save".into(), source })?;
        if let Some(flavour) = flavour {
            let this = Self { netns, flavour: Some(flavour) };
            this.program(Family::V4, "restore")?;
            return Ok(this);
        }
        let there = Flavour::ALL.map(|f| Self { netns: netns.clone(), flavour: Some(f) });
        let installed = there.each_ref().map(|tool| tool.program(Family::V4, "save").is_ok());
        let plain = Self { netns, flavour: None };
        if installed == [true, true] {
            let rules = there.each_ref().map(Tool::others_rules);
            if rules[0] != rules[1] {
                let [nft, legacy] = there;
                return Ok(if rules[0] > rules[1] { nft } else { legacy });
            }
        }
        match plain.version_flavour() {
            Some(flavour) if installed[usize::from(flavour == Flavour::Legacy)] => {
                Ok(Self { flavour: Some(flavour), ..plain })
            }
            _ => {
                plain.program(Family::V4, "restore")?;
                Ok(plain)
            }
        }
    }

    /// Which one it is, when known.
    pub fn flavour(&self) -> Option<Flavour> {
        self.flavour.or_else(|| self.version_flavour())
    }

    /// Rules and chains of others, which show what the machine uses.
    fn others_rules(&self) -> usize {
        let text = [Family::V4, Family::V6].map(|f| self.save(f).unwrap_or_default()).concat();
        let is_other = |line: &&str| line.starts_with("-A ") && !line.contains("KUBE-");
        let hints = |line: &&str| line.starts_with(":KUBE-IPTABLES-HINT") || line.starts_with(":KUBE-KUBELET-CANARY");
        text.lines().filter(|line| is_other(line) || hints(line)).count()
    }

    /// What `iptables --version` says of itself.
    fn version_flavour(&self) -> Option<Flavour> {
        let program = find("iptables")?;
        let out = Command::new(program).arg("--version").output().ok()?;
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        if text.contains("nf_tables") { Some(Flavour::Nft) } else { text.contains("legacy").then_some(Flavour::Legacy) }
    }

    /// Whether there can be any rules: a kernel without legacy tables has no list of them.
    pub fn has_tables(&self) -> bool {
        let lists = ["ip_tables_names", "ip6_tables_names"].map(|list| format!("/proc/thread-self/net/{list}"));
        let look = || lists.iter().any(|list| Path::new(list).exists());
        self.flavour != Some(Flavour::Legacy) || self.netns.run(look).unwrap_or(true)
    }

    /// What is there of ours.
    pub fn read(&self, families: &[Family]) -> Result<Saved, ToolError> {
        let mut saved = Saved::default();
        for family in families {
            saved.read(*family, &self.save(*family)?);
        }
        Ok(saved)
    }

    /// All rules of a family.
    pub fn save(&self, family: Family) -> Result<String, ToolError> {
        let program = self.program(family, "save")?;
        self.run(&program, &[], "")
    }

    /// Takes a restore file: all of it, or nothing.
    pub fn restore(&self, family: Family, file: &str) -> Result<(), ToolError> {
        let program = self.program(family, "restore")?;
        // The lock is the whole machine's, not the namespace's; others may hold it for a while.
        self.run(&program, &["-w", "10", "--noflush", "--counters"], file).map(drop)
    }

    fn program(&self, family: Family, verb: &str) -> Result<PathBuf, ToolError> {
        let six = if family == Family::V6 { "6" } else { "" };
        let flavour = self.flavour.map(|f| format!("-{}", f.name())).unwrap_or_default();
        let name = format!("ip{six}tables{flavour}-{verb}");
        find(&name).ok_or(ToolError::Missing(name))
    }

    fn run(&self, program: &Path, arguments: &[&str], input: &str) -> Result<String, ToolError> {
        let name = || program.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let run = || -> io::Result<std::process::Output> {
            let mut child = Command::new(program)
                .args(arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()?;
            let (mut stdin, mut stderr) = (child.stdin.take(), child.stderr.take());
            // What it says may fill its pipe before all is written: it is read on the side.
            std::thread::scope(|scope| {
                scope.spawn(move || {
                    // A program that has seen enough closes the pipe; its status says why.
                    drop(stdin.take().map(|mut pipe| pipe.write_all(input.as_bytes())));
                });
                let errors = scope.spawn(move || {
                    let mut text = Vec::new();
                    drop(stderr.as_mut().map(|pipe| pipe.read_to_end(&mut text)));
                    text
                });
                let mut output = child.wait_with_output()?;
                output.stderr = errors.join().unwrap_or_default();
                Ok(output)
            })
        };
        let output =
            self.netns.run(run).and_then(|r| r).map_err(|source| ToolError::Run { program: name(), source })?;
        if !output.status.success() {
            let message = String::from_utf8_lossy(&output.stderr);
            let message = message.lines().take(5).collect::<Vec<_>>().join("; ");
            return Err(ToolError::Failed { program: name(), status: output.status, message });
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(SYSTEM.iter().map(PathBuf::from));
    dirs.map(|dir| dir.join(name)).find(|file| file.is_file())
}
