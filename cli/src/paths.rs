//! Where a cluster keeps its things. In: a cluster's name. Out: paths, all derived from two folders: data (survives
//! `down`) and run (does not survive a reboot; short, because unix socket names are limited to 107 bytes).

use anyhow::{Result, bail};
use std::path::{Path, PathBuf};

/// The folders of one cluster.
#[derive(Debug, Clone)]
pub struct Paths {
    /// The cluster's name.
    pub name: String,
    /// `/var/lib/causeway/NAME` unless told otherwise.
    pub data: PathBuf,
    /// `/run/causeway/NAME`.
    pub run: PathBuf,
}

impl Paths {
    /// The paths of a cluster; refuses names that cannot be part of a namespace's or interface's name.
    pub fn new(name: &str, data_dir: Option<&Path>) -> Result<Self> {
        let ok = (1..=20).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
            && name.as_bytes().first().is_some_and(u8::is_ascii_lowercase);
        if !ok {
            bail!("cluster name {name:?} is not valid: use 1 to 20 of a-z and 0-9, starting with a letter");
        }
        let data = match data_dir {
            Some(dir) => std::path::absolute(dir)?,
            None => Path::new("/var/lib/causeway").join(name),
        };
        Ok(Self { name: name.to_owned(), data, run: Path::new("/run/causeway").join(name) })
    }

    /// The store.
    pub fn store(&self) -> PathBuf {
        self.data.join("store")
    }

    /// The certificate authority and keys.
    pub fn pki(&self) -> PathBuf {
        self.data.join("pki")
    }

    /// The keys of what is encrypted in the store, where the user has no file of his own for them.
    pub fn encryption(&self) -> PathBuf {
        self.pki().join("encryption.yaml")
    }

    /// How the cluster was started.
    pub fn settings(&self) -> PathBuf {
        self.data.join("settings")
    }

    /// Backups on their way to a place that is not of this machine.
    pub fn staging(&self) -> PathBuf {
        self.data.join("staging")
    }

    /// What a restore has not put in its place yet.
    pub fn restoring(&self) -> PathBuf {
        self.data.join("restoring")
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.data.join("kubeconfig")
    }

    /// The log of a detached cluster.
    pub fn log(&self) -> PathBuf {
        self.data.join("causeway.log")
    }

    /// containerd's state and socket.
    pub fn containerd_run(&self) -> PathBuf {
        self.run.join("containerd")
    }

    /// A node's own folder: pods, volumes, addresses.
    pub fn node(&self, node: &str) -> PathBuf {
        self.data.join("nodes").join(node)
    }

    /// A joined node's identity.
    pub fn identity(&self) -> PathBuf {
        self.data.join("identity")
    }

    /// The running instance's record.
    pub fn record(&self) -> PathBuf {
        self.run.join("cluster.json")
    }

    /// The socket on which a running cluster takes requests.
    pub fn control(&self) -> PathBuf {
        self.run.join("control.sock")
    }

    /// The cgroup under which every container of the cluster lives.
    pub fn cgroup(&self) -> String {
        format!("/causeway-{}", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_collide_are_refused() {
        for bad in ["", "a-b", "A", "1a", "a/b", "..", "abcdefghijklmnopqrstu"] {
            assert!(Paths::new(bad, None).is_err(), "{bad:?}");
        }
        assert_eq!(Paths::new("default", None).unwrap().store(), Path::new("/var/lib/causeway/default/store"));
    }
}
