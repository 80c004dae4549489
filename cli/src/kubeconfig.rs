//! The administrator's kubeconfig: written by `up`, printed on request, and loaded by our own commands.

use crate::paths::Paths;
use anyhow::{Context, Result};
use kube::config::{KubeConfigOptions, Kubeconfig};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

/// Prints it.
pub fn print(paths: &Paths) -> Result<()> {
    print!("{}", read(paths)?);
    Ok(())
}

/// Writes it, readable by its owner only, whole or not at all.
pub fn write(paths: &Paths, text: &str) -> Result<()> {
    let next = paths.kubeconfig().with_extension("next");
    let written = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(&next)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .and_then(|()| fs::rename(&next, paths.kubeconfig()));
    written.with_context(|| format!("writing {}", paths.kubeconfig().display()))
}

/// A client of the cluster, as its administrator.
pub async fn client(paths: &Paths) -> Result<kube::Client> {
    let config = Kubeconfig::from_yaml(&read(paths)?).context("the cluster's kubeconfig is damaged")?;
    let config = kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
    Ok(kube::Client::try_from(config)?)
}

fn read(paths: &Paths) -> Result<String> {
    let path = paths.kubeconfig();
    fs::read_to_string(&path).with_context(|| {
        format!(
            "there is no cluster {:?} here ({}); start it with: causeway up --name {}",
            paths.name,
            path.display(),
            paths.name
        )
    })
}
