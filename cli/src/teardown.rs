//! Leaves nothing behind. In: a cluster's name. Out: no namespace, mount, interface, process or cgroup of it, whatever
//! state a stop or a crash left it in. Everything is found by name, so nobody else's things are touched.

use crate::paths::Paths;
use anyhow::{Context, Result};
use causeway_network::local::LocalSegment;
use causeway_nft::family::Family;
use causeway_nft::table::Table;
use causeway_nft::wire::Socket;
use causeway_runtime::daemon::ContainerdDaemon;
use nix::mount::{MntFlags, umount2};
use std::fs;
use std::path::{Path, PathBuf};

/// The tables that parts of a node make, of each family.
const TABLES: [&str; 3] = ["causeway", "causeway-pods", "causeway-policy"];

/// Removes everything but the data. Harmless when there is nothing.
pub fn sweep(paths: &Paths) -> Result<()> {
    crate::args::require_root("stopping a cluster")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        ContainerdDaemon::clean_up(&paths.data, &paths.name).await?;
        LocalSegment::delete(&paths.name).await.context("removing the cluster's network namespaces")
    })?;
    unmount_below(&paths.data)?;
    unmount_below(&paths.run)?;
    match fs::remove_dir_all(&paths.run) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("removing {}", paths.run.display()))
        }
        _ => Ok(()),
    }?;
    // The parent goes with the last cluster.
    if let Some(parent) = paths.run.parent() {
        drop(fs::remove_dir(parent));
    }
    Ok(())
}

/// Takes the node's traces out of the machine's own network: bridge, tunnels, routes and tables of rules. To be called
/// where the node ran: in the machine's network namespace.
pub fn release_machine() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(causeway_network::machine::release()).context("removing the node's links and routes")?;
    let mut socket = Socket::open().context("removing the node's rules")?;
    for (family, name) in [Family::V4, Family::V6].into_iter().flat_map(|f| TABLES.map(|name| (f, name))) {
        let mut table = Table::new(family, name);
        table.anew();
        // Emptied whether it was there or not; the last of the requests would make it again.
        table.requests.pop();
        socket.transaction(&table.requests).with_context(|| format!("removing the table {name}"))?;
    }
    Ok(())
}

/// Unmounts what is mounted below a folder, the deepest first.
fn unmount_below(dir: &Path) -> Result<()> {
    let mounts = procfs::process::Process::myself()?.mountinfo()?;
    let mut below: Vec<PathBuf> =
        mounts.into_iter().map(|m| m.mount_point).filter(|p| p.starts_with(dir) && p != dir).collect();
    below.sort_by_key(|p| std::cmp::Reverse(p.components().count()));
    for path in below {
        umount2(&path, MntFlags::MNT_DETACH).with_context(|| format!("unmounting {}", path.display()))?;
    }
    Ok(())
}
