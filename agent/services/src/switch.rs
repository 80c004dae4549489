//! Which renderer programs the kernel, and what the other one has left there.
//!
//! In: the mode, by configuration. Out: the renderer; and, when its rules are in force, no rules of the other one.
//! While both are there, both say the same: a connection is translated by whichever sees it first, and keeps its
//! endpoint after. So there is no moment without rules. What is lost by a switch is which endpoint clients with affinity
//! had.

use crate::{
    conntrack::Conntrack,
    family::Family,
    iptables::{
        self,
        program::Iptables,
        tool::{Flavour, Tool},
    },
    kernel::Kernel,
    metrics::IptablesMetrics,
    program::Program,
    renderer::Renderer,
};
use anyhow::Context;
use causeway_api::config::{IptablesFlavour, ProxyMode};
use std::path::Path;

/// The renderer of a mode, in the calling thread's network namespace. Changes nothing yet.
pub fn open(
    mode: ProxyMode,
    flavour: IptablesFlavour,
    families: Vec<Family>,
    state_dir: &Path,
    registry: &prometheus::Registry,
) -> anyhow::Result<Box<dyn Renderer>> {
    let conntrack = Conntrack::open().context("kube-proxy needs connection tracking")?;
    Ok(match mode {
        ProxyMode::Nftables => {
            let kernel = Kernel::open(families).context("kube-proxy needs nftables")?;
            let program = Program::open(kernel, conntrack, state_dir);
            Box::new(program.context("reading the kernel's service rules")?)
        }
        ProxyMode::Iptables => {
            let metrics = IptablesMetrics::new(registry).context("registering metrics of iptables")?;
            Box::new(Iptables::open(tool(flavour)?, families, conntrack, metrics)?)
        }
    })
}

fn tool(flavour: IptablesFlavour) -> anyhow::Result<Tool> {
    let tool = Tool::open(match flavour {
        IptablesFlavour::Auto => None,
        IptablesFlavour::Nft => Some(Flavour::Nft),
        IptablesFlavour::Legacy => Some(Flavour::Legacy),
    });
    tool.context("kube-proxy in the mode iptables")
}

/// Takes away what other renderers have left, in the calling thread's network namespace. To be called when the rules of
/// this one are in force. Returns whether there was anything.
pub fn remove_others(mode: ProxyMode, flavour: IptablesFlavour) -> anyhow::Result<bool> {
    let mut found = false;
    let own = match mode {
        ProxyMode::Nftables => None,
        ProxyMode::Iptables => {
            found |= Kernel::open(Vec::new())?.remove().context("removing the service rules of nftables")?;
            tool(flavour)?.flavour()
        }
    };
    for other in Flavour::ALL.into_iter().filter(|f| Some(*f) != own) {
        found |= iptables::program::remove(other).with_context(|| format!("removing the rules of {other}"))?;
    }
    Ok(found)
}
