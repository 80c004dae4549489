//! `causeway store check`, `defrag` and `salvage`. In: the store of a stopped cluster, or a backup. Out: what is there and
//! what is damaged, on standard output; an error when something is.

use super::{BUMP, files};
use crate::paths::Paths;
use anyhow::{Context, Result, bail};
use causeway_backup::Key;
use causeway_encryption::EncryptedStore;
use causeway_store::{StoreError, offline};
use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

/// What is not encrypted is called so.
const PLAIN: &str = "identity";

/// Where Secrets are.
const SECRETS: &str = "/registry/core/secrets/";

/// With which keys values are encrypted, as far as they are or should be.
#[derive(Default)]
struct Forms {
    /// Of each key that is encrypted or a Secret's, how its newest value is.
    newest: BTreeMap<String, String>,
    /// Secrets before the newest, in the clear.
    old_plain: u64,
}

impl Forms {
    fn note(&mut self, key: &str, value: Option<&[u8]>) {
        let label = value.map(EncryptedStore::label).filter(|label| label != PLAIN || key.starts_with(SECRETS));
        let before = match label {
            Some(label) => self.newest.insert(key.to_owned(), label),
            None => self.newest.remove(key),
        };
        self.old_plain += u64::from(before.is_some_and(|before| before == PLAIN));
    }

    fn print(&self) {
        let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
        for label in self.newest.values() {
            *counts.entry(label).or_default() += 1;
        }
        for (label, count) in counts {
            match label {
                PLAIN => println!("plain      {count} Secrets; the next start encrypts them, if it is to"),
                _ => println!("encrypted  {count} with {label}"),
            }
        }
        if self.old_plain > 0 {
            println!(
                "plain      {} versions of Secrets before the newest, until causeway store defrag",
                self.old_plain
            );
        }
    }
}

/// Says how to stop what holds the store.
fn stopped<T>(paths: &Paths, outcome: Result<T, StoreError>) -> Result<T> {
    if let Err(error) = fs::metadata(paths.store())
        && error.kind() != ErrorKind::NotFound
    {
        return Err(error).with_context(|| format!("looking at {}", paths.store().display()));
    }
    if !paths.store().is_dir() {
        bail!("there is no store of cluster {:?}: {} is not there", paths.name, paths.store().display());
    }
    let is_locked = matches!(outcome, Err(StoreError::Locked { .. }));
    let outcome = outcome.map_err(anyhow::Error::from);
    if is_locked {
        outcome.with_context(|| format!("stop it first: causeway down --name {}", paths.name))
    } else {
        outcome
    }
}

/// `causeway store check`.
pub fn check(paths: &Paths) -> Result<()> {
    let mut forms = Forms::default();
    let report = stopped(paths, offline::check_with(&paths.store(), &mut |key, value| forms.note(key, value)))?;
    println!("store      {}", paths.store().display());
    println!("revision   {}", report.revision);
    println!("compacted  {}", report.compacted);
    println!("keys       {}, {} bytes", report.keys, report.live_bytes);
    let total: u64 = report.files.iter().map(|file| file.bytes).sum();
    println!("files      {}, {total} bytes", report.files.len());
    for file in &report.files {
        let path = file.path.strip_prefix(paths.store()).unwrap_or(&file.path);
        println!("  {:>12}  {}", file.bytes, path.display());
    }
    forms.print();
    for damage in &report.damage {
        println!("DAMAGED    {damage}");
    }
    if report.damage.is_empty() {
        println!("nothing is damaged");
        return Ok(());
    }
    bail!(
        "the store is damaged; bring a backup back (causeway store restore), or go on with what is whole before the \
         damage (causeway store salvage)"
    )
}

/// `causeway store check BACKUP`.
pub fn check_backup(path: &Path, key_file: &Path) -> Result<()> {
    let key = Key::read(key_file)?;
    let contents = files::verify(&files::open(path)?, &key).with_context(|| format!("in {}", path.display()))?;
    println!("backup     {}", path.display());
    println!("cluster    {}", contents.about.cluster);
    println!("created    {} by version {}", contents.about.created, contents.about.program);
    println!("revision   {}", contents.revision);
    println!("files      {}", contents.files);
    println!("store      {} bytes", contents.store_bytes);
    println!("nothing is damaged");
    Ok(())
}

/// `causeway store defrag`.
pub fn defrag(paths: &Paths) -> Result<()> {
    let done = stopped(paths, offline::defrag(&paths.store()))?;
    println!("{} bytes before, {} bytes after", done.before, done.after);
    Ok(())
}

/// `causeway store salvage`.
pub fn salvage(paths: &Paths) -> Result<()> {
    let Some(done) = stopped(paths, offline::salvage(&paths.store(), BUMP))? else {
        println!("nothing is damaged, and nothing was changed");
        return Ok(());
    };
    println!("DAMAGED    {}", done.damage);
    println!("revision   {} is the last whole one; what came after it is lost", done.whole);
    println!("now        {}", done.revision);
    println!("the damaged files are in {}", done.set_aside.display());
    Ok(())
}
