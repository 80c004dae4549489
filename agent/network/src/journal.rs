//! What was given out, on disk: one small JSON file a pod, written before the kernel is touched and removed after.
//!
//! In: a pod that needs addresses, or gives them back. Out: its [`Record`], durable. A crash at any point leaves either
//! a record whose kernel state can be repaired, or nothing.

use crate::{NetworkError, PodRef, Result, pool::Pool};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    fs::File,
    io::{self, Write},
    net::IpAddr,
    path::{Path, PathBuf},
};

/// A pod's allocation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Whose it is.
    pub pod: PodRef,
    /// One address a family.
    pub ips: Vec<IpAddr>,
    /// The name of the network namespace.
    pub netns: String,
    /// The name of the veth end on the node.
    pub veth: String,
    /// Grows with every allocation: the youngest record tells where to go on after a restart.
    pub serial: u64,
}

/// All records of a node, in memory and on disk.
#[derive(Debug)]
pub struct Journal {
    dir: PathBuf,
    pools: Vec<Pool>,
    records: HashMap<String, Record>,
    serial: u64,
}

impl Journal {
    /// Reads what is there. Records whose addresses are not of these ranges any more are given new ones by
    /// [`Journal::allocate`]; unreadable files are moved aside.
    pub fn open(dir: &Path, cidrs: &[IpNet]) -> Result<Self> {
        std::fs::create_dir_all(dir).map_err(|e| state(dir, e))?;
        let mut found = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(|e| state(dir, e))?.flatten() {
            let path = entry.path();
            match path.extension().and_then(|e| e.to_str()) {
                Some("json") => found.extend(read(&path)?),
                // A write that was cut off: its pod was never set up.
                Some("new") => std::fs::remove_file(&path).map_err(|e| state(&path, e))?,
                _ => {}
            }
        }
        found.sort_by_key(|r: &Record| r.serial);
        let mut journal = Self {
            dir: dir.to_owned(),
            pools: cidrs.iter().copied().map(Pool::new).collect(),
            records: HashMap::new(),
            serial: 0,
        };
        for record in found {
            journal.serial = journal.serial.max(record.serial);
            for ip in &record.ips {
                journal.pools.iter_mut().for_each(|p| {
                    p.claim(*ip);
                });
            }
            journal.records.insert(record.pod.uid.clone(), record);
        }
        Ok(journal)
    }

    /// The gateways, one a range, with its prefix length.
    pub fn gateways(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.pools.iter().map(Pool::gateway)
    }

    /// The record of a pod.
    pub fn get(&self, uid: &str) -> Option<&Record> {
        self.records.get(uid)
    }

    /// All records.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.records.values()
    }

    /// Finds or makes a pod's record; durable when it returns. `names` gives namespace and veth.
    pub fn allocate(&mut self, pod: &PodRef, names: impl FnOnce() -> (String, String)) -> Result<Record> {
        if let Some(record) = self.records.get(&pod.uid) {
            if self.still_ours(record) {
                return Ok(record.clone());
            }
            self.release(&pod.uid)?;
        }
        let mut ips: Vec<IpAddr> = Vec::new();
        for i in 0..self.pools.len() {
            match self.pools[i].take() {
                Some(ip) => ips.push(ip),
                None => {
                    let e = NetworkError::NoFreeAddress {
                        cidr: self.pools[i].cidr().to_string(),
                        used: self.pools[i].used(),
                    };
                    self.give_back(&ips);
                    return Err(e);
                }
            }
        }
        let (netns, veth) = names();
        let record = Record { pod: pod.clone(), ips, netns, veth, serial: self.serial + 1 };
        if let Err(e) = self.write(&record) {
            self.give_back(&record.ips);
            return Err(e);
        }
        self.serial += 1;
        self.records.insert(pod.uid.clone(), record.clone());
        Ok(record)
    }

    /// Forgets a pod; durable when it returns.
    pub fn release(&mut self, uid: &str) -> Result<()> {
        let Some(record) = self.records.get(uid) else { return Ok(()) };
        let path = self.path(uid);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(state(&path, e)),
            _ => {}
        }
        let ips = record.ips.clone();
        self.records.remove(uid);
        self.give_back(&ips);
        Ok(())
    }

    fn still_ours(&self, record: &Record) -> bool {
        record.ips.len() == self.pools.len() && record.ips.iter().zip(&self.pools).all(|(ip, p)| p.cidr().contains(ip))
    }

    fn give_back(&mut self, ips: &[IpAddr]) {
        for ip in ips {
            self.pools.iter_mut().for_each(|p| p.give_back(*ip));
        }
    }

    fn path(&self, uid: &str) -> PathBuf {
        // A uid comes from the API and is usually a UUID; it must not become a path.
        let safe = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
        self.dir.join(format!("{}-{:08x}.json", uid.chars().take(64).map(safe).collect::<String>(), hash(uid) as u32))
    }

    fn write(&self, record: &Record) -> Result<()> {
        let path = self.path(&record.pod.uid);
        write_durably(&path, record).map_err(|e| state(&path, e))
    }
}

/// Replaces a file's content with a value as JSON, atomically, and waits until it is on the disk.
pub(crate) fn write_durably(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    file.write_all(&serde_json::to_vec_pretty(value)?)?;
    file.sync_data()?;
    std::fs::rename(&new, path)?;
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

/// FNV-1a: names must be the same in every build, which the standard library's hashes do not promise.
pub(crate) fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3))
}

pub(crate) fn state(path: &Path, detail: impl std::fmt::Display) -> NetworkError {
    NetworkError::State { path: path.display().to_string(), detail: detail.to_string() }
}

fn read(path: &Path) -> Result<Option<Record>> {
    let bytes = std::fs::read(path).map_err(|e| state(path, e))?;
    match serde_json::from_slice(&bytes) {
        Ok(record) => Ok(Some(record)),
        Err(error) => {
            let aside = path.with_extension("broken");
            tracing::warn!(file = %path.display(), %error, moved_to = %aside.display(), "a pod network record cannot be read");
            std::fs::rename(path, &aside).map_err(|e| state(path, e))?;
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str) -> PodRef {
        PodRef { uid: uid.into(), namespace: "default".into(), name: uid.into() }
    }

    fn open(dir: &Path) -> Journal {
        Journal::open(dir, &["10.1.0.0/29".parse().unwrap(), "fd12::/64".parse().unwrap()]).unwrap()
    }

    #[test]
    fn records_survive_and_addresses_rest_over_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let names = || ("n".to_owned(), "v".to_owned());
        let mut j = open(dir.path());
        let a = j.allocate(&pod("a"), names).unwrap();
        let b = j.allocate(&pod("b"), names).unwrap();
        j.release("a").unwrap();
        let mut j = open(dir.path());
        assert_eq!(j.get("a"), None);
        assert_eq!(j.allocate(&pod("b"), names).unwrap(), b);
        assert_ne!(j.allocate(&pod("c"), names).unwrap().ips, a.ips);
    }

    #[test]
    fn broken_and_cut_off_files_do_no_harm() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("x.json"), "{ nonsense").unwrap();
        std::fs::write(dir.path().join("y.new"), "{").unwrap();
        let j = open(dir.path());
        assert_eq!(j.records().count(), 0);
        assert!(dir.path().join("x.broken").exists() && !dir.path().join("y.new").exists());
    }

    #[test]
    fn a_full_range_says_so_and_leaks_nothing_of_the_other_family() {
        let dir = tempfile::tempdir().unwrap();
        let mut j = open(dir.path());
        for i in 0..5 {
            j.allocate(&pod(&format!("p{i}")), Default::default).unwrap();
        }
        let e = j.allocate(&pod("one-more"), Default::default).unwrap_err();
        assert_eq!(
            e.to_string(),
            "no free pod address in 10.1.0.0/29: 5 pods use it all; give the node a larger pod CIDR"
        );
        j.release("p3").unwrap();
        assert!(j.allocate(&pod("one-more"), Default::default).is_ok());
    }

    #[test]
    fn hostile_uids_stay_in_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let mut j = open(dir.path());
        j.allocate(&pod("../../etc/passwd"), Default::default).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(open(dir.path()).records().count(), 1);
    }
}
