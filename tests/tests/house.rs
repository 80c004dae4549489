//! The house rules that a compiler does not know: who may depend on whom, how long a file may be, what must not be left
//! in it, and the licence. In: `cargo metadata` and the sources. Nothing is built or started.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Lines a source file may have. What grows towards this is more than one thing.
const MAX_LINES: usize = 700;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// One crate of the workspace: its folder, and the crates of ours it depends on outside tests.
struct Crate {
    folder: String,
    needs: BTreeSet<String>,
    licence: String,
}

fn crates() -> BTreeMap<String, Crate> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let each = packages.iter().map(|package| {
        let manifest = Path::new(package["manifest_path"].as_str().unwrap()).parent().unwrap();
        let folder = manifest.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
        let needs = package["dependencies"].as_array().unwrap().iter();
        // `kind` is null for a normal dependency; a path means that it is ours.
        let needs = needs.filter(|d| d["kind"] != "dev" && d["path"].is_string());
        let needs = needs.map(|d| d["name"].as_str().unwrap().to_owned()).collect();
        let licence = package["license"].as_str().unwrap_or("none").to_owned();
        (package["name"].as_str().unwrap().to_owned(), Crate { folder, needs, licence })
    });
    each.collect()
}

/// What a crate may depend on. A new crate needs a line here, and so a thought.
fn allowed(name: &str) -> Option<&'static [&'static str]> {
    Some(match name {
        "causeway-api" | "causeway-store" | "causeway-nft" | "causeway-load" | "causeway-allocator"
        | "causeway-sources" | "causeway-handover" | "causeway-backup" | "shop-api" => &[],
        // What the API server asks of others: each knows nothing of it, nor of one another.
        "causeway-authn" | "causeway-authz" | "causeway-audit" | "causeway-flowcontrol" => &[],
        "causeway-admission" => &["causeway-schema"],
        "causeway-encryption" => &["causeway-store"],
        "causeway-informers" => &["causeway-api"],
        // Build scripts only.
        "causeway-schema" | "causeway-gateway-crds" => &["causeway-sources"],
        "causeway-registry" => &["causeway-api", "causeway-schema"],
        "causeway-apiserver" => &[
            "causeway-api",
            "causeway-registry",
            "causeway-schema",
            "causeway-store",
            "causeway-authn",
            "causeway-authz",
            "causeway-admission",
            "causeway-audit",
            "causeway-flowcontrol",
        ],
        "causeway-scheduler" | "causeway-dns" | "causeway-announce" => &["causeway-api", "causeway-informers"],
        // Whose address a certificate is for, and what quotas count, is said in one place each.
        "causeway-controllers" => &["causeway-api", "causeway-informers", "causeway-authz", "causeway-admission"],
        "causeway-proxy" => &["causeway-api", "causeway-informers", "causeway-gateway-crds", "causeway-handover"],
        "causeway-runtime" | "causeway-access" => &["causeway-api"],
        "causeway-network" => &["causeway-api", "causeway-informers", "causeway-nft"],
        "causeway-kubelet" => &["causeway-api", "causeway-informers", "causeway-runtime", "causeway-network"],
        "causeway-services" | "causeway-policy" => {
            &["causeway-api", "causeway-informers", "causeway-network", "causeway-nft"]
        }
        _ => return None,
    })
}

/// The program puts everything together, and the tests and benches look at everything.
const UNBOUND: &[&str] = &["causeway-cli", "causeway-tests", "causeway-bench-net", "causeway-test-disk"];

#[test]
fn rooms_know_the_api_and_not_each_other() {
    let crates = crates();
    assert!(crates.len() > 10, "cargo metadata told of {} crates", crates.len());
    for (name, found) in &crates {
        if UNBOUND.contains(&name.as_str()) {
            continue;
        }
        let allowed = allowed(name).unwrap_or_else(|| panic!("{name} ({}) has no line in `allowed`", found.folder));
        let beyond: Vec<_> = found.needs.iter().filter(|n| !allowed.contains(&n.as_str())).collect();
        assert!(beyond.is_empty(), "{name} ({}) must not depend on {beyond:?}", found.folder);
    }
}

#[test]
fn only_the_api_server_touches_the_store() {
    for (name, found) in crates() {
        // Encryption is a store itself, around another.
        let may =
            matches!(name.as_str(), "causeway-apiserver" | "causeway-encryption") || UNBOUND.contains(&name.as_str());
        assert!(may || !found.needs.contains("causeway-store"), "{name} depends on the store");
    }
}

/// Every file of ours below `folder` with this ending, without what is built.
fn files(folder: &Path, ending: &str, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let (path, name) = (entry.path(), entry.file_name());
        let kind = entry.file_type().unwrap();
        if kind.is_dir() && name != "target" && !name.to_string_lossy().starts_with('.') {
            files(&path, ending, into);
        } else if kind.is_file() && path.extension().is_some_and(|e| e == ending) {
            into.push(path);
        }
    }
}

fn sources() -> Vec<(PathBuf, String)> {
    let mut all = Vec::new();
    files(&root(), "rs", &mut all);
    assert!(all.len() > 100, "only {} source files were found", all.len());
    all.into_iter().map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
}

#[test]
fn no_source_file_is_too_long() {
    for (path, text) in sources() {
        let lines = text.lines().count();
        assert!(lines <= MAX_LINES, "{} has {lines} lines; split it by what it does", path.display());
    }
}

#[test]
fn nothing_is_left_to_be_done_in_the_sources() {
    // In two pieces, for this file is looked at too.
    let marks = [concat!("to", "do!("), concat!("unimple", "mented!(")];
    for (path, text) in sources() {
        for (number, line) in text.lines().enumerate() {
            let found = marks.iter().find(|m| line.contains(**m));
            assert!(found.is_none(), "{}:{}: {}", path.display(), number + 1, line.trim());
        }
    }
}

/// kube's own watchers are compiled for each kind in each crate, and never wait longer where they are refused.
#[test]
fn watches_go_through_one_module() {
    let calls = ["watcher(", "watcher::<", "watch_object(", "metadata_watcher("];
    for (path, text) in sources() {
        let at = path.strip_prefix(root()).unwrap();
        if at == Path::new("controller/api/src/watch.rs") || at.components().any(|c| c.as_os_str() == "tests") {
            continue;
        }
        let found = text.lines().find(|line| {
            let line = line.split("//").next().unwrap_or_default();
            let is_call = |call| {
                line.match_indices(call).any(|(i, _)| !line[..i].ends_with(['.', '_']) && !line[..i].ends_with("fn "))
            };
            calls.iter().any(|call| is_call(*call))
        });
        assert!(found.is_none(), "{}: {found:?}: use causeway_api::watch", at.display());
    }
}

/// Kinds that many components read are watched by the informers, once in a process, and by nobody else.
#[test]
fn shared_kinds_are_watched_once() {
    let kinds = ["EndpointSlice", "Namespace", "Node", "Service", "Deployment", "ReplicaSet"];
    for (path, text) in sources() {
        let at = path.strip_prefix(root()).unwrap();
        let is_test = at.components().any(|c| c.as_os_str() == "tests") || at.ends_with("tests.rs");
        if is_test || !text.contains("causeway_api::watch") {
            continue;
        }
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for kind in kinds {
            let call = format!("Api::<{kind}>::all(");
            assert!(!code.contains(&call), "{}: use causeway_informers for {kind}", at.display());
        }
    }
}

#[test]
fn every_source_file_says_what_it_is_about() {
    for (path, text) in sources() {
        assert!(text.starts_with("//!"), "{} does not open with `//!`", path.display());
    }
}

#[test]
fn everything_is_under_the_apache_licence() {
    let licence = fs::read_to_string(root().join("LICENSE")).unwrap();
    for words in ["Apache License", "Version 2.0, January 2004", "END OF TERMS AND CONDITIONS"] {
        assert!(licence.contains(words), "LICENSE lacks {words:?}");
    }
    for (name, found) in crates() {
        assert_eq!(found.licence, "Apache-2.0", "{name}");
        let manifest = fs::read_to_string(root().join(&found.folder).join("Cargo.toml")).unwrap();
        let inherits = manifest.lines().any(|l| l.trim() == "license.workspace = true");
        assert!(inherits, "{}/Cargo.toml does not inherit the licence", found.folder);
    }
}
