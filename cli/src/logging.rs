//! Where the program's words go: standard error, which systemd keeps, or the log of a detached cluster, which we keep
//! small. In: `RUST_LOG`, or what the command thinks fit.

use anyhow::{Context, Result};
use causeway_audit::rotate::{Names, Options, RotatingFile};
use std::fs::File;
use std::io::IsTerminal;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

/// The log of a detached cluster begins anew after so many bytes; the one before stays.
const LOG_BYTES: u64 = 64 << 20;
/// How often its size is looked at.
const LOOK: Duration = Duration::from_secs(5);

/// Starts logging at `level` where `RUST_LOG` says nothing else; libraries warn only.
pub fn init(level: &str) {
    let default = format!("{level},sled=warn,pingora=warn,hyper=warn,kube=warn,h2=warn");
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| default.into());
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours).init();
}

/// Rotates the log of a detached cluster, to which its standard output and error go, those of panics and access logs as
/// well. Does nothing when they go elsewhere.
pub fn rotate(path: &Path) -> Result<()> {
    let ours = nix::sys::stat::fstat(std::io::stderr())?;
    let there = std::fs::metadata(path).ok();
    if there.is_none_or(|there| (there.dev(), there.ino()) != (ours.st_dev, ours.st_ino)) {
        return Ok(());
    }
    let options = Options { max_bytes: LOG_BYTES, max_backups: 1, max_age: None, names: Names::Numbered };
    let mut log = RotatingFile::open(path, options).with_context(|| format!("opening {}", path.display()))?;
    let keep_small = move || {
        loop {
            std::thread::sleep(LOOK);
            match log.rotate_if_grown().map(|rotated| if rotated { redirect(log.file()) } else { Ok(()) }) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!("the log is rotated, and written to where it was: {error}"),
                Err(error) => tracing::warn!("the log is not rotated: {error}"),
            }
        }
    };
    std::thread::Builder::new().name("log".to_owned()).spawn(keep_small).context("starting a thread")?;
    Ok(())
}

fn redirect(log: &File) -> nix::Result<()> {
    nix::unistd::dup2_stdout(log)?;
    nix::unistd::dup2_stderr(log)
}
