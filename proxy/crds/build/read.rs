//! Reads the sources of the crate `gateway-api`. In: the text of one of its files. Out: its types, with their fields,
//! variants and comments.
//!
//! One generator wrote them all in one regular shape: an attribute or a field a line, comments in front. Anything else is
//! an error, so that nothing is left out in silence when the crate changes.

use std::collections::BTreeMap;

/// The types of a file by name.
pub type Types = BTreeMap<String, Type>;

/// A type of the API.
pub struct Type {
    /// Its comment.
    pub about: String,
    /// What `#[kube(…)]` says of it: only of those that are kinds.
    pub kube: BTreeMap<String, String>,
    /// Fields or variants.
    pub body: Body,
}

/// What a type consists of.
pub enum Body {
    /// Fields of an object.
    Fields(Vec<Field>),
    /// The strings that are allowed.
    Variants(Vec<String>),
}

/// A field of an object.
pub struct Field {
    /// Its name in the API.
    pub name: String,
    /// Its comment.
    pub about: String,
    /// Its type, as Rust has it.
    pub of: String,
}

/// What stands in front of an item.
#[derive(Default)]
struct Before {
    about: Vec<String>,
    attributes: String,
}

impl Before {
    fn about(&self) -> String {
        self.about.join("\n").trim().to_owned()
    }

    /// The value of `key = "…"` in the attributes.
    fn value(&self, key: &str) -> Option<String> {
        pairs(&self.attributes).into_iter().find_map(|(k, v)| (k == key).then_some(v))
    }
}

/// All `key = "value"` of a text.
fn pairs(text: &str) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    let mut rest = text;
    while let Some((left, right)) = rest.split_once(" = \"") {
        let key: String = left.chars().rev().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
        let Some((value, after)) = right.split_once('"') else { break };
        pairs.push((key.chars().rev().collect(), value.to_owned()));
        rest = after;
    }
    pairs
}

/// Reads a file.
pub fn types(text: &str) -> Result<Types, String> {
    let mut types = Types::new();
    let mut before = Before::default();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(name) = line.strip_prefix("pub struct ").and_then(|l| l.strip_suffix(" {")) {
            let body = Body::Fields(fields(&mut lines)?);
            types.insert(name.to_owned(), item(std::mem::take(&mut before), body));
        } else if let Some(name) = line.strip_prefix("pub enum ").and_then(|l| l.strip_suffix(" {")) {
            let body = Body::Variants(variants(&mut lines)?);
            types.insert(name.to_owned(), item(std::mem::take(&mut before), body));
        } else if line.starts_with("mod prelude") {
            skip_block(&mut lines);
            before = Before::default();
        } else if line.starts_with("// ") || line.starts_with("use ") || line.is_empty() {
            before = Before::default();
        } else {
            prefix(line, &mut lines, &mut before)?;
        }
    }
    Ok(types)
}

fn item(before: Before, body: Body) -> Type {
    let kube = pairs(&before.attributes).into_iter().filter(|(key, _)| key != "derive").collect();
    Type { about: before.about(), kube, body }
}

fn skip_block<'a>(lines: &mut impl Iterator<Item = &'a str>) {
    lines.by_ref().find(|line| *line == "}");
}

/// A comment or an attribute, which may go on over several lines.
fn prefix<'a>(line: &str, lines: &mut impl Iterator<Item = &'a str>, before: &mut Before) -> Result<(), String> {
    let trimmed = line.trim();
    if let Some(text) = trimmed.strip_prefix("///") {
        before.about.push(text.strip_prefix(' ').unwrap_or(text).to_owned());
        return Ok(());
    }
    if !trimmed.starts_with("#[") {
        return Err(format!("a line that the generator never wrote before: {line:?}"));
    }
    before.attributes += trimmed;
    let mut ended = trimmed.ends_with(")]");
    while !ended {
        let more = lines.next().ok_or("an attribute without an end")?.trim();
        before.attributes += more;
        ended = more == ")]";
    }
    Ok(())
}

fn fields<'a>(lines: &mut impl Iterator<Item = &'a str>) -> Result<Vec<Field>, String> {
    let mut fields = Vec::new();
    let mut before = Before::default();
    while let Some(line) = lines.next() {
        if line == "}" {
            return Ok(fields);
        }
        let Some(field) = line.trim().strip_prefix("pub ").and_then(|l| l.strip_suffix(',')) else {
            prefix(line, lines, &mut before)?;
            continue;
        };
        let (name, of) = field.split_once(": ").ok_or_else(|| format!("a field without a type: {line:?}"))?;
        let name = before.value("rename").unwrap_or_else(|| name.trim_start_matches("r#").to_owned());
        fields.push(Field { name, about: before.about(), of: of.to_owned() });
        before = Before::default();
    }
    Err("a struct without an end".to_owned())
}

fn variants<'a>(lines: &mut impl Iterator<Item = &'a str>) -> Result<Vec<String>, String> {
    let mut variants = Vec::new();
    let mut before = Before::default();
    while let Some(line) = lines.next() {
        if line == "}" {
            return Ok(variants);
        }
        let Some(name) =
            line.trim().strip_suffix(',').filter(|n| n.chars().all(|c| c.is_ascii_alphanumeric() || "r#_".contains(c)))
        else {
            prefix(line, lines, &mut before)?;
            continue;
        };
        variants.push(before.value("rename").unwrap_or_else(|| name.to_owned()));
        before = Before::default();
    }
    Err("an enum without an end".to_owned())
}
