//! What a node keeps of its membership, in a folder only root can read: `ca.crt`, `client.pem` and `serving.pem`
//! (certificate and key in one file, so that they change together), `node` (its name), `cluster.json` (the settings).

use crate::certificate::Issued;
use anyhow::{Context, Result};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The folder.
#[derive(Debug, Clone)]
pub struct Disk(PathBuf);

impl Disk {
    pub fn open(dir: &Path) -> Result<Self> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .with_context(|| format!("making the folder of the node's identity {}", dir.display()))?;
        Ok(Self(dir.to_owned()))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn read(&self, name: &str) -> Result<Option<String>> {
        let path = self.0.join(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).with_context(|| format!("reading {}", path.display())),
        }
    }

    /// Writes a file so that it is either the old or the new one, also after a power failure.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.0.join(name);
        let next = self.0.join(format!("{name}.next"));
        let written = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&next)
            .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&next, &path))
            .and_then(|()| fs::File::open(&self.0)?.sync_all());
        written.with_context(|| format!("writing {}", path.display()))
    }

    pub fn write_pair(&self, name: &str, issued: &Issued) -> Result<()> {
        self.write(name, &format!("{}{}", issued.cert_pem, issued.key_pem))
    }
}
