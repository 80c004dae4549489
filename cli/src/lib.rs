//! The `causeway` program: reads the command line and hands over. No logic lives here.
//!
//! A library with a program of a few lines around it, so that cargo compiles it beside the last of the crates it needs.

mod agent;
mod api_settings;
mod apply;
mod args;
mod bench;
mod clients;
mod config;
mod control;
mod control_plane;
mod data;
mod image;
mod instance;
mod kubeconfig;
mod logging;
mod node;
mod nodes;
mod notify;
mod paths;
mod ports;
mod progress;
mod ready;
mod server;
mod status;
mod store;
mod tasks;
mod teardown;
mod token;
mod up;
mod upgrade;

use clap::Parser;
use std::process::ExitCode;

/// Runs what the command line asks for. Exit code 1 and one line on standard error when it fails, 2 when it makes no sense.
pub fn main() -> ExitCode {
    let args = args::Args::parse();
    // rustls wants one process-wide provider; the first to install it wins, and there is only this one.
    drop(rustls::crypto::ring::default_provider().install_default());
    match args::run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line: the chain from what was being done down to the cause.
            eprintln!("causeway: {error:#}");
            ExitCode::FAILURE
        }
    }
}
