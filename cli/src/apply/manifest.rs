//! Manifests as people write them. In: files, folders or standard input with YAML or JSON, several documents each.
//! Out: one object after another, each with the place it came from.

use anyhow::{Context, Result, bail};
use kube::core::GroupVersionKind;
use serde::Deserialize as _;
use serde_json::Value;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// No manifest is larger: the API takes 3 MiB at once, and a file may hold a few of them.
const MOST: u64 = 64 << 20;

/// One object that names its kind and itself.
#[derive(Debug)]
pub struct Manifest {
    /// File and number of the document, for messages.
    pub origin: String,
    /// The object.
    pub value: Value,
}

impl Manifest {
    /// Its `metadata.name`; never empty.
    pub fn name(&self) -> &str {
        text(&self.value, "/metadata/name")
    }

    /// Its `metadata.namespace`, if it has one.
    pub fn namespace(&self) -> Option<&str> {
        Some(text(&self.value, "/metadata/namespace")).filter(|n| !n.is_empty())
    }

    /// Its group, version and kind.
    pub fn kind(&self) -> GroupVersionKind {
        let version = text(&self.value, "/apiVersion");
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        GroupVersionKind::gvk(group, version, text(&self.value, "/kind"))
    }
}

fn text<'a>(value: &'a Value, at: &str) -> &'a str {
    value.pointer(at).and_then(Value::as_str).unwrap_or_default()
}

/// Reads all of them, in the order given; a folder's files by name. Fails if any is not to be read, or there is none.
pub fn read(paths: &[PathBuf]) -> Result<Vec<Manifest>> {
    let mut all = Vec::new();
    for path in paths {
        if path.as_os_str() == "-" {
            documents("standard input", &limited(std::io::stdin(), "standard input")?, &mut all)?;
            continue;
        }
        for file in files(path)? {
            let name = file.display().to_string();
            let opened = fs::File::open(&file).with_context(|| format!("opening {name}"))?;
            documents(&name, &limited(opened, &name)?, &mut all)?;
        }
    }
    if all.is_empty() {
        bail!("there are no objects in what was given");
    }
    Ok(all)
}

fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = fs::read_dir(path).with_context(|| format!("reading the folder {}", path.display()))?;
    let mut files = entries.map(|e| Ok(e?.path())).collect::<Result<Vec<_>>>()?;
    files.retain(|f| f.is_file() && f.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json"));
    files.sort();
    Ok(files)
}

fn limited(from: impl std::io::Read, name: &str) -> Result<String> {
    let mut text = String::new();
    from.take(MOST + 1).read_to_string(&mut text).with_context(|| format!("reading {name}"))?;
    if text.len() as u64 > MOST {
        bail!("{name} has more than {} MiB", MOST >> 20);
    }
    Ok(text)
}

/// The documents of a text; those without content are passed over, lists are taken apart.
fn documents(name: &str, text: &str, all: &mut Vec<Manifest>) -> Result<()> {
    for (at, document) in serde_yaml_ng::Deserializer::from_str(text).enumerate() {
        let origin = format!("{name}, document {}", at + 1);
        let value = Value::deserialize(document).with_context(|| format!("{origin} is neither YAML nor JSON"))?;
        if value.is_null() {
            continue;
        }
        let is_list = value["kind"].as_str().is_some_and(|k| k.ends_with("List"));
        match value {
            Value::Object(mut fields) if is_list && fields.get("items").is_some_and(Value::is_array) => {
                let items = fields.remove("items").and_then(|i| if let Value::Array(i) = i { Some(i) } else { None });
                for (number, item) in items.unwrap_or_default().into_iter().enumerate() {
                    all.push(checked(format!("{origin}, item {}", number + 1), item)?);
                }
            }
            value => all.push(checked(origin, value)?),
        }
    }
    Ok(())
}

fn checked(origin: String, value: Value) -> Result<Manifest> {
    for (at, field) in [("/apiVersion", "apiVersion"), ("/kind", "kind"), ("/metadata/name", "metadata.name")] {
        if text(&value, at).is_empty() {
            bail!("{origin} has no {field}, or it is no text");
        }
    }
    Ok(Manifest { origin, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Vec<Manifest>> {
        let mut all = Vec::new();
        documents("x.yaml", text, &mut all)?;
        Ok(all)
    }

    #[test]
    fn documents_lists_and_nothing() {
        let all = parse(
            "---\n# only a comment\n---\napiVersion: v1\nkind: Secret\nmetadata: {name: a, namespace: n}\n---\n\
             apiVersion: v1\nkind: List\nitems:\n- {apiVersion: apps/v1, kind: Deployment, metadata: {name: b}}\n\
             - {apiVersion: v1, kind: Pod, metadata: {name: c}}\n",
        )
        .unwrap();
        let names: Vec<&str> = all.iter().map(Manifest::name).collect();
        assert_eq!(names, ["a", "b", "c"]);
        assert_eq!(all[0].namespace(), Some("n"));
        assert_eq!(all[1].namespace(), None);
        assert_eq!((all[1].kind().group.as_str(), all[1].kind().version.as_str()), ("apps", "v1"));
        assert_eq!(all[2].origin, "x.yaml, document 3, item 2");
    }

    #[test]
    fn json_is_yaml() {
        assert_eq!(parse(r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"x"}}"#).unwrap().len(), 1);
    }

    #[test]
    fn what_is_no_object_is_refused_with_its_place() {
        for (text, word) in [
            ("kind: Pod\nmetadata: {name: x}", "apiVersion"),
            ("apiVersion: v1\nmetadata: {name: x}", "kind"),
            ("apiVersion: v1\nkind: Pod\nmetadata: {}", "metadata.name"),
            ("apiVersion: v1\nkind: Pod\nmetadata: {name: 7}", "metadata.name"),
            ("just text", "apiVersion"),
            ("a: [1", "neither YAML nor JSON"),
        ] {
            let said = format!("{:#}", parse(text).unwrap_err());
            assert!(said.contains(word) && said.contains("x.yaml, document 1"), "{text:?}: {said}");
        }
    }
}
