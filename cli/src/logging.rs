//! Where the program's words go: standard error, which systemd keeps. In: `RUST_LOG`, or what the command thinks fit.

use std::io::IsTerminal;

/// Starts logging at `level` where `RUST_LOG` says nothing else; libraries warn only.
pub fn init(level: &str) {
    let default = format!("{level},sled=warn,pingora=warn,hyper=warn,kube=warn,h2=warn");
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| default.into());
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours).init();
}
