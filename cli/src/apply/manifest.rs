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
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    // JSON is not quite a part of YAML: surrogate pairs, documents that follow each other. What begins like it may be YAML.
    if text.trim_start().starts_with('{') {
        let values: serde_json::Result<Vec<Value>> = serde_json::Deserializer::from_str(text).into_iter().collect();
        if let Ok(values) = values {
            return take(name, values.into_iter().map(Ok), all);
        }
    }
    let values = serde_yaml_ng::Deserializer::from_str(text).map(|document| {
        let mut value = serde_yaml_ng::Value::deserialize(document)?;
        value.apply_merge()?;
        Ok(serde_json::to_value(value)?)
    });
    take(name, values, all)
}

fn take(name: &str, values: impl Iterator<Item = Result<Value>>, all: &mut Vec<Manifest>) -> Result<()> {
    for (at, value) in values.enumerate() {
        let origin = format!("{name}, document {}", at + 1);
        let mut value = value.with_context(|| format!("{origin} is neither YAML nor JSON"))?;
        if value.is_null() {
            continue;
        }
        let list = value["kind"].as_str().and_then(|kind| kind.strip_suffix("List")).map(str::to_owned);
        let (Some(kind), Some(items)) = (list, value.get_mut("items").and_then(Value::as_array_mut)) else {
            all.push(checked(origin, value)?);
            continue;
        };
        let items = std::mem::take(items);
        for (number, mut item) in items.into_iter().enumerate() {
            // Items of a list of one kind (`ConfigMapList`) need not repeat it.
            if let Some(fields) = item.as_object_mut().filter(|_| !kind.is_empty()) {
                fields.entry("apiVersion").or_insert_with(|| value["apiVersion"].clone());
                fields.entry("kind").or_insert_with(|| kind.clone().into());
            }
            all.push(checked(format!("{origin}, item {}", number + 1), item)?);
        }
    }
    Ok(())
}

fn checked(origin: String, mut value: Value) -> Result<Manifest> {
    for (at, field) in [("/apiVersion", "apiVersion"), ("/kind", "kind"), ("/metadata/name", "metadata.name")] {
        if text(&value, at).is_empty() {
            bail!("{origin} has no {field}, or it is not a string");
        }
    }
    let group = text(&value, "/apiVersion").split_once('/').map_or("", |(group, _)| group);
    if !group.contains('.') || group.ends_with(".k8s.io") {
        octal_modes(&mut value, false);
    }
    Ok(Manifest { origin, value })
}

/// File modes of volumes are written in octal (`defaultMode: 0400`), which is a number to kubectl's YAML 1.1, and a string to
/// YAML 1.2.
fn octal_modes(value: &mut Value, in_volumes: bool) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| octal_modes(item, in_volumes)),
        Value::Object(fields) => {
            for (key, value) in fields {
                let is_mode = in_volumes && (key == "defaultMode" || key == "mode");
                let octal = value.as_str().filter(|text| is_mode && text.starts_with('0'));
                match octal.and_then(|text| i32::from_str_radix(text, 8).ok()) {
                    Some(mode) => *value = mode.into(),
                    None => octal_modes(value, in_volumes || key == "volumes" && value.is_array()),
                }
            }
        }
        _ => {}
    }
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
    fn json_as_programs_write_it() {
        let pod = |name: &str| format!(r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"{name}"}}}}"#);
        let two = parse(&format!("\u{feff}\n{}{}", pod("x"), pod("y"))).unwrap();
        assert_eq!(two.iter().map(Manifest::name).collect::<Vec<_>>(), ["x", "y"]);
        let text = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x"},"data":{"k":"\ud83d\ude00"}}"#;
        assert_eq!(parse(text).unwrap()[0].value["data"]["k"], "😀");
    }

    #[test]
    fn yaml_as_people_write_it() {
        let all = parse(
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  x: &base {one: 1}\n  y: {<<: *base, two: 2}\n  volumes:\n  \
             - configMap: {name: c, defaultMode: 0400, items: [{key: k, path: p, mode: 0755}]}\n  data: {defaultMode: '0400', path: p, mode: '0755'}\n\
             ---\napiVersion: example.com/v1\nkind: Own\nmetadata: {name: b}\nspec: {defaultMode: '0400'}\n",
        )
        .unwrap();
        let spec = &all[0].value["spec"];
        assert_eq!(spec["y"], serde_json::json!({"one": 1, "two": 2}));
        let map = &spec["volumes"][0]["configMap"];
        assert_eq!((&map["defaultMode"], &map["items"][0]["mode"]), (&0o400.into(), &0o755.into()));
        assert_eq!(spec["data"]["mode"], "0755");
        assert_eq!(
            (&spec["data"]["defaultMode"], &all[1].value["spec"]["defaultMode"]),
            (&"0400".into(), &"0400".into())
        );
    }

    #[test]
    fn items_of_a_list_of_one_kind() {
        let all = parse("apiVersion: v1\nkind: ConfigMapList\nitems:\n- metadata: {name: a}\n").unwrap();
        assert_eq!((all[0].kind().kind.as_str(), all[0].name()), ("ConfigMap", "a"));
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
            ("{\"a\": [1", "neither YAML nor JSON"),
        ] {
            let said = format!("{:#}", parse(text).unwrap_err());
            assert!(said.contains(word) && said.contains("x.yaml, document 1"), "{text:?}: {said}");
        }
    }
}
