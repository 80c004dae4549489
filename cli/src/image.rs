//! `causeway image`: images without a registry. In: archives or plain files. Out: images on every node of a running
//! cluster, or a new archive.

use crate::instance::{self, Record};
use crate::node::containerd_namespace;
use crate::paths::Paths;
use crate::progress::Progress;
use anyhow::{Context, Result, bail};
use causeway_runtime::oci_build::ImageBuilder;
use causeway_runtime::{Containerd, ContainerdConfig, Runtime};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// `causeway image pack`.
#[derive(Debug, Clone, clap::Args)]
pub struct PackArgs {
    /// Name of the image, for example `causeway.local/demo/web:1`.
    name: String,
    /// Copy a folder: HOST:IMAGE (repeatable).
    #[arg(long, value_name = "HOST:IMAGE")]
    tree: Vec<String>,
    /// Copy a file with its mode: HOST:IMAGE (repeatable).
    #[arg(long, value_name = "HOST:IMAGE")]
    file: Vec<String>,
    /// Copy a program and the shared libraries it loads, to the same paths (repeatable).
    #[arg(long, value_name = "HOST")]
    binary: Vec<PathBuf>,
    /// Environment variable KEY=VALUE (repeatable).
    #[arg(long, value_name = "KEY=VALUE")]
    env: Vec<String>,
    /// Entry point, one argument each (repeatable).
    #[arg(long, allow_hyphen_values = true)]
    entrypoint: Vec<String>,
    /// Default arguments, one each (repeatable).
    #[arg(long, allow_hyphen_values = true)]
    cmd: Vec<String>,
    /// User, `name` or `uid[:gid]`.
    #[arg(long)]
    user: Option<String>,
    /// Working directory.
    #[arg(long)]
    workdir: Option<String>,
    /// TCP port the program listens on (repeatable).
    #[arg(long, value_name = "PORT")]
    expose: Vec<u16>,
    /// Signal that ends the program, for example SIGQUIT.
    #[arg(long)]
    stop_signal: Option<String>,
    /// Where the archive goes.
    #[arg(long, short)]
    output: PathBuf,
}

/// Loads archives into every node.
pub fn load(paths: &Paths, archives: &[PathBuf]) -> Result<()> {
    let record = running(paths)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let mut progress = Progress::new();
        let mut loaded = Vec::new();
        for node in &record.nodes {
            let containers = connect(paths, node).await?;
            for archive in archives {
                progress.step(&format!("loading {} into {node}", archive.display()));
                let names = containers.load_image(archive).await;
                loaded.extend(names.with_context(|| format!("loading {} into {node}", archive.display()))?);
            }
        }
        loaded.sort();
        loaded.dedup();
        progress.done(&format!("loaded {} on {} node(s)", loaded.join(", "), record.nodes.len()));
        Ok(())
    })
}

/// Lists the images with the nodes that have them.
pub fn list(paths: &Paths) -> Result<()> {
    let record = running(paths)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut found: BTreeMap<(String, String), (u64, Vec<String>)> = BTreeMap::new();
    runtime.block_on(async {
        for node in &record.nodes {
            for image in connect(paths, node).await?.images().await? {
                for name in &image.names {
                    let entry = found.entry((name.clone(), image.id.clone())).or_default();
                    entry.0 = image.size;
                    entry.1.push(node.clone());
                }
            }
        }
        Ok::<(), anyhow::Error>(())
    })?;
    println!("{:<50} {:<14} {:>10}  NODES", "IMAGE", "ID", "SIZE");
    for ((name, id), (size, nodes)) in found {
        let id: String = id.trim_start_matches("sha256:").chars().take(12).collect();
        println!("{name:<50} {id:<14} {:>7.1} MB  {}", size as f64 / 1e6, nodes.join(","));
    }
    Ok(())
}

/// Packs files into an archive.
pub fn pack(args: &PackArgs) -> Result<()> {
    let mut image = ImageBuilder::new(&args.name);
    for pair in &args.tree {
        let (host, inside) = split(pair, "--tree")?;
        image = image.dir_tree(host, inside);
    }
    for pair in &args.file {
        let (host, inside) = split(pair, "--file")?;
        image = image.host_file(host, inside);
    }
    for binary in &args.binary {
        image = image.binary_with_libraries(binary);
    }
    for pair in &args.env {
        let Some((key, value)) = pair.split_once('=') else { bail!("--env {pair:?} is not KEY=VALUE") };
        image = image.env(key, value);
    }
    if !args.entrypoint.is_empty() {
        image = image.entrypoint(args.entrypoint.iter().cloned());
    }
    if !args.cmd.is_empty() {
        image = image.cmd(args.cmd.iter().cloned());
    }
    if let Some(user) = &args.user {
        image = image.user(user);
    }
    if let Some(dir) = &args.workdir {
        image = image.workdir(dir);
    }
    for port in &args.expose {
        image = image.expose(*port);
    }
    if let Some(signal) = &args.stop_signal {
        image = image.stop_signal(signal);
    }
    image.write(&args.output).with_context(|| format!("packing {} into {}", args.name, args.output.display()))
}

fn split<'a>(pair: &'a str, option: &str) -> Result<(&'a Path, &'a Path)> {
    match pair.rsplit_once(':') {
        Some((host, inside)) if inside.starts_with('/') => Ok((Path::new(host), Path::new(inside))),
        _ => bail!("{option} {pair:?} is not HOST:IMAGE with an absolute path in the image"),
    }
}

fn running(paths: &Paths) -> Result<Record> {
    match instance::running(paths)? {
        Some(record) => Ok(record),
        None => bail!("cluster {:?} is not running; start it with: causeway up --name {}", paths.name, paths.name),
    }
}

async fn connect(paths: &Paths, node: &str) -> Result<Containerd> {
    let socket = paths.containerd_run().join("containerd.sock");
    // A folder of our own: the node's pipes belong to the process that runs it.
    let state = paths.run.join("image-command");
    let config = ContainerdConfig::new(socket, containerd_namespace(node), state);
    Containerd::connect(config).await.context("reaching the cluster's containerd")
}
