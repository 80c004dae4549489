//! For build scripts: where the sources of a crate lie that is read and not compiled. In: the name of a dependency of
//! `read/Cargo.toml`. Out: its folder, fetched by cargo if it is not there yet.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The folder of the package `name`.
///
/// Asks cargo: first without the network, which is enough once it was fetched; then as cargo is configured (with
/// `CARGO_NET_OFFLINE` or `net.offline` it stays without). Tells cargo to run the build script again when the manifest
/// changes.
///
/// # Errors
/// With cargo's own words when it cannot say.
pub fn folder(name: &str) -> Result<PathBuf, String> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("read/Cargo.toml");
    // Another version is another input of the build script that asks.
    for file in [manifest.clone(), manifest.with_extension("lock")] {
        println!("cargo::rerun-if-changed={}", file.display());
    }
    let cargo = env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let target = env::var("TARGET").map_err(|_| "TARGET is not set: this is for build scripts")?;
    let mut problem = String::new();
    for extra in [&["--offline"][..], &[]] {
        let mut command = Command::new(&cargo);
        command.args(["metadata", "--locked", "--format-version", "1", "--filter-platform", &target]);
        command.arg("--manifest-path").arg(&manifest).args(extra);
        let output = command.output().map_err(|e| format!("running {cargo} metadata: {e}"))?;
        if !output.status.success() {
            problem = String::from_utf8_lossy(&output.stderr).into_owned();
            continue;
        }
        let metadata: serde_json::Value =
            serde_json::from_slice(&output.stdout).map_err(|e| format!("reading the output of cargo metadata: {e}"))?;
        let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
        let found = packages.iter().find(|p| p["name"] == name).and_then(|p| p["manifest_path"].as_str());
        let folder = found.and_then(|m| Path::new(m).parent()).map(Path::to_path_buf);
        return folder.ok_or_else(|| format!("{} does not depend on {name}", manifest.display()));
    }
    Err(format!(
        "cargo cannot say where the sources of {name} are (is there a way to crates.io? \
         cargo fetch --manifest-path {} gets them): {problem}",
        manifest.display()
    ))
}
