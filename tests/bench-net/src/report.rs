//! `results.json`, and the same as a table.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Results of this run and, for parts that were not asked for, of former ones.
pub struct Report {
    path: PathBuf,
    results: Value,
}

impl Report {
    /// What is there already.
    pub fn open(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).unwrap_or_default();
        Ok(Self { path: path.to_owned(), results: serde_json::from_slice(&text).unwrap_or_else(|_| json!({})) })
    }

    /// Replaces a part.
    pub fn set(&mut self, part: &str, value: Value) {
        self.results[part] = value;
    }

    /// A part; null when it is not there.
    pub fn part(&self, part: &str) -> &Value {
        &self.results[part]
    }

    /// Writes the file.
    pub fn save(&self) -> Result<()> {
        std::fs::write(&self.path, serde_json::to_vec_pretty(&self.results)?)
            .with_context(|| format!("writing {}", self.path.display()))
    }

    /// Prints everything there is as Markdown.
    pub fn print(&self) {
        for (part, value) in self.results.as_object().into_iter().flatten() {
            println!("\n## {part}");
            let mut rows = Vec::new();
            flatten("", value, &mut rows);
            let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
            for (name, text) in rows {
                println!("{name:<width$}  {text}");
            }
        }
        println!("\n{}", self.path.display());
    }
}

/// One row a figure; percentiles and spreads stay together.
fn flatten(name: &str, value: &Value, rows: &mut Vec<(String, String)>) {
    let Some(object) = value.as_object() else {
        rows.push((name.to_owned(), value.as_str().map_or_else(|| value.to_string(), str::to_owned)));
        return;
    };
    if object.contains_key("median") || object.contains_key("p50") {
        let parts: Vec<String> = object.iter().map(|(k, v)| format!("{k} {v}")).collect();
        rows.push((name.to_owned(), parts.join(", ")));
        return;
    }
    for (key, value) in object {
        flatten(&if name.is_empty() { key.clone() } else { format!("{name}.{key}") }, value, rows);
    }
}
