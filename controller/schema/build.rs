//! Turns the `.proto` files that crate `k8s-rs-pb` ships, and `facts/go.txt`, into one table of messages that
//! `src/table.rs` embeds.
//!
//! Kubernetes' `.proto` files are written by one generator in one regular shape (messages with one field a line, comments
//! in front); the reader below knows that shape and refuses anything else, so no protobuf compiler is needed.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

type Result<T> = std::result::Result<T, String>;

/// The packages of the API groups and versions that a Kubernetes 1.35 server knows and we may serve.
const PACKAGES: &[&str] = &[
    "api/admission/v1",
    "api/admissionregistration/v1",
    "api/admissionregistration/v1beta1",
    "api/apidiscovery/v2",
    "api/apps/v1",
    "api/authentication/v1",
    "api/authorization/v1",
    "api/autoscaling/v1",
    "api/autoscaling/v2",
    "api/batch/v1",
    "api/certificates/v1",
    "api/certificates/v1beta1",
    "api/coordination/v1",
    "api/coordination/v1beta1",
    "api/core/v1",
    "api/discovery/v1",
    "api/events/v1",
    "api/flowcontrol/v1",
    "api/networking/v1",
    "api/networking/v1beta1",
    "api/node/v1",
    "api/policy/v1",
    "api/rbac/v1",
    "api/resource/v1",
    "api/resource/v1beta1",
    "api/resource/v1beta2",
    "api/scheduling/v1",
    "api/storage/v1",
    "api/storage/v1beta1",
    "apiextensions_apiserver/pkg/apis/apiextensions/v1",
    "apimachinery/pkg/api/resource",
    "apimachinery/pkg/apis/meta/v1",
    "apimachinery/pkg/apis/meta/v1beta1",
    "apimachinery/pkg/runtime",
    "apimachinery/pkg/util/intstr",
    "kube_aggregator/pkg/apis/apiregistration/v1",
    "metrics/pkg/apis/metrics/v1beta1",
];

/// Marks in comments that the table keeps.
const MARKS: &[&str] = &[
    "listType",
    "listMapKey",
    "mapType",
    "structType",
    "patchStrategy",
    "patchMergeKey",
    "optional",
    "required",
    "default",
];

/// What `facts/go.txt` says of one message.
#[derive(Default)]
struct Facts {
    kind: bool,
    lists: HashMap<String, Vec<String>>,
}

impl Facts {
    fn has(&self, list: &str, field: &str) -> bool {
        self.lists.get(list).is_some_and(|l| l.iter().any(|f| f == field))
    }

    fn json_name<'a>(&'a self, field: &'a str) -> &'a str {
        let renamed = self.lists.get("json").and_then(|l| l.iter().find_map(|pair| pair.strip_prefix(field)));
        renamed.and_then(|rest| rest.strip_prefix(':')).unwrap_or(field)
    }
}

fn main() {
    if let Err(message) = run() {
        eprintln!("causeway-schema: {message}");
        std::process::exit(1);
    }
}

fn run() -> Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=facts/go.txt");
    let facts = read_facts(&read(Path::new("facts/go.txt"))?)?;
    let protos = causeway_sources::folder("k8s-rs-pb")?.join("src").join("v1_35");
    let mut table = String::with_capacity(2 << 20);
    for package in PACKAGES {
        let path = protos.join(package).join("generated.proto");
        let package = package.replace('/', ".");
        convert(&read(&path)?, &package, &facts, &mut table).map_err(|e| format!("reading {}: {e}", path.display()))?;
    }
    let out = PathBuf::from(env::var("OUT_DIR").map_err(|_| "OUT_DIR is not set: run this through cargo")?);
    fs::write(out.join("messages.txt"), table).map_err(|e| format!("writing the message table: {e}"))
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|e| format!("reading {}: {e}", path.display()))
}

fn read_facts(text: &str) -> Result<HashMap<String, Facts>> {
    let mut all = HashMap::new();
    for line in text.lines().filter(|l| !l.starts_with('#') && !l.is_empty()) {
        let mut words = line.split(' ');
        let message = words.next().unwrap_or_default();
        let mut facts = Facts::default();
        for word in words {
            match word.split_once('=') {
                Some((list, fields)) => {
                    facts.lists.insert(list.to_owned(), fields.split(',').map(str::to_owned).collect());
                }
                None if word == "kind" => facts.kind = true,
                None => return Err(format!("facts/go.txt: {message}: unknown word {word:?}")),
            }
        }
        all.insert(message.to_owned(), facts);
    }
    Ok(all)
}

/// Appends the messages of one file to the table.
fn convert(text: &str, package: &str, facts: &HashMap<String, Facts>, table: &mut String) -> Result<()> {
    let none = Facts::default();
    let mut comment: Vec<&str> = Vec::new();
    let mut message: Option<&Facts> = None;
    let mut in_header = false;
    for line in text.lines() {
        let trimmed = line.trim();
        if trimmed.starts_with("/*") || in_header {
            in_header = !trimmed.ends_with("*/");
        } else if let Some(text) = trimmed.strip_prefix("//") {
            comment.push(text.strip_prefix(' ').unwrap_or(text));
        } else if let Some(name) = trimmed.strip_prefix("message ").and_then(|r| r.strip_suffix(" {")) {
            let full = format!("{package}.{name}");
            let known = facts.get(&full).unwrap_or(&none);
            let mut flags = marks(&comment);
            if known.kind {
                flags.push("kind".to_owned());
            }
            let _ = writeln!(table, "M\t{full}\t{}\t{}", flags.join(";"), description(&comment));
            message = Some(known);
            comment.clear();
        } else if trimmed == "}" {
            message = None;
            comment.clear();
        } else if let Some(facts) = message.filter(|_| !trimmed.is_empty()) {
            field(trimmed, package, facts, &comment, table)?;
            comment.clear();
        } else if trimmed.is_empty()
            || ["syntax ", "package ", "import ", "option "].iter().any(|w| trimmed.starts_with(w))
        {
            comment.clear();
        } else {
            return Err(format!("a line that the generator never wrote before: {line:?}"));
        }
    }
    Ok(())
}

/// One line `optional .a.b.C name = 3;`, `repeated …` or `map<string, …> name = 3;`.
fn field(line: &str, package: &str, facts: &Facts, comment: &[&str], table: &mut String) -> Result<()> {
    let parsed = (|| {
        let (left, number) = line.strip_suffix(';')?.split_once(" = ")?;
        let number: u32 = number.parse().ok()?;
        let (declaration, name) = left.rsplit_once(' ')?;
        let (label, kind) = match declaration.strip_prefix("map<string, ") {
            Some(rest) => ("map", rest.strip_suffix('>')?),
            None => declaration.split_once(' ').filter(|(l, _)| ["optional", "repeated"].contains(l))?,
        };
        Some((number, name, label, kind))
    })();
    let (number, name, label, kind) = parsed.ok_or_else(|| format!("a field of a new shape: {line:?}"))?;
    let scalar = ["string", "bytes", "bool", "int32", "int64", "double"].contains(&kind);
    let kind = match kind.strip_prefix('.') {
        Some(full) => full.to_owned(),
        None if scalar => kind.to_owned(),
        None => format!("{package}.{kind}"),
    };
    let mut flags = marks(comment);
    for list in ["keep", "required", "inline"] {
        if facts.has(list, name) && !flags.iter().any(|flag| flag == list) {
            flags.push(list.to_owned());
        }
    }
    let json = facts.json_name(name);
    let _ = writeln!(table, "F\t{number}\t{json}\t{label}\t{kind}\t{}\t{}", flags.join(";"), description(comment));
    Ok(())
}

/// The `+mark=value` lines worth keeping; the `k8s:` flavour counts where the plain one is missing.
fn marks(comment: &[&str]) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for line in comment.iter().filter_map(|l| l.trim().strip_prefix('+')) {
        let mark = line.strip_prefix("k8s:").unwrap_or(line);
        let name = mark.split(['=', ' ']).next().unwrap_or_default();
        let text = mark.replace(['\t', ';'], " ");
        if MARKS.contains(&name) && !found.contains(&text) {
            found.push(text);
        }
    }
    found
}

/// The comment as OpenAPI shows it: lines of a paragraph joined, indented lines kept, marks and TODOs left out.
fn description(comment: &[&str]) -> String {
    let mut text = String::new();
    for line in comment {
        let line = line.trim_end();
        let start = line.trim_start();
        if line == "---" {
            break;
        } else if line.is_empty() {
            text.truncate(text.trim_end().len());
            text.push_str("\n\n");
        } else if start.starts_with('+') || start.starts_with("TODO") {
            continue;
        } else if line.starts_with([' ', '\t']) {
            text.truncate(text.trim_end_matches(' ').len());
            if !text.ends_with('\n') {
                text.push('\n');
            }
            text.push_str(line);
            text.push('\n');
        } else {
            text.push_str(line);
            text.push(' ');
        }
    }
    text.trim().replace('\\', "\\\\").replace('\n', "\\n").replace('\t', "  ")
}
