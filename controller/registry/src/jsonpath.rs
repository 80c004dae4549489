//! The part of JSONPath that definitions of custom resources use in printer columns, scale paths and selectable
//! fields: `.spec.replicas`, `.metadata.labels.a\.b`, `.a['b.c']`, `.list[0].x`, `.list[*].x`,
//! `.status.conditions[?(@.type=="Ready")].status`.
//!
//! In: a path's text and a value. Out: what stands there.

use serde_json::Value;

/// A parsed path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct JsonPath(Vec<Step>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Field(String),
    Index(i64),
    All,
    /// The items whose field (a chain of names) equals the text.
    Where(Vec<String>, String),
}

impl JsonPath {
    /// Parses a path; the leading dot, `$` and braces are optional.
    pub fn parse(text: &str) -> Result<Self, String> {
        let bad = || format!("unrecognized JSON path {text:?}");
        let mut rest = text.trim();
        rest = rest.strip_prefix('{').and_then(|r| r.strip_suffix('}')).unwrap_or(rest);
        rest = rest.strip_prefix('$').unwrap_or(rest);
        let mut steps = Vec::new();
        while !rest.is_empty() {
            if let Some(inner) = rest.strip_prefix('[') {
                let end = closing(inner).ok_or_else(bad)?;
                steps.push(bracket(&inner[..end]).ok_or_else(bad)?);
                rest = &inner[end + 1..];
                continue;
            }
            let (name, tail) = field(rest.strip_prefix('.').unwrap_or(rest));
            if name.is_empty() {
                // A lone `.` names the whole object; `..` is not ours.
                if tail.is_empty() && steps.is_empty() {
                    break;
                }
                return Err(bad());
            }
            steps.push(if name == "*" { Step::All } else { Step::Field(name) });
            rest = tail;
        }
        Ok(Self(steps))
    }

    /// Everything the path leads to.
    pub fn find<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        let mut found = vec![value];
        for step in &self.0 {
            found = found.into_iter().flat_map(|v| step.take(v)).collect();
        }
        found.retain(|v| !v.is_null());
        found
    }

    /// The first thing the path leads to.
    pub fn first<'a>(&self, value: &'a Value) -> Option<&'a Value> {
        self.find(value).into_iter().next()
    }
}

impl Step {
    fn take<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        let one = |v: Option<&'a Value>| v.into_iter().collect();
        match self {
            Self::Field(name) => one(value.get(name)),
            Self::Index(i) => {
                let items = value.as_array().map_or(&[][..], Vec::as_slice);
                let index =
                    if *i < 0 { items.len().checked_sub(i.unsigned_abs() as usize) } else { usize::try_from(*i).ok() };
                one(index.and_then(|i| items.get(i)))
            }
            Self::All => match value {
                Value::Array(items) => items.iter().collect(),
                Value::Object(map) => map.values().collect(),
                _ => Vec::new(),
            },
            Self::Where(path, wanted) => {
                let equals = |v: &&Value| {
                    let found = path.iter().try_fold(*v, |v, key| v.get(key));
                    found.is_some_and(|f| match f {
                        Value::String(s) => s == wanted,
                        Value::Bool(b) => wanted == if *b { "true" } else { "false" },
                        Value::Number(n) => n.as_f64() == wanted.parse().ok(),
                        _ => false,
                    })
                };
                value.as_array().into_iter().flatten().filter(equals).collect()
            }
        }
    }
}

/// Where the bracket that was opened closes, quotes respected.
fn closing(text: &str) -> Option<usize> {
    let mut quote = None;
    for (i, c) in text.char_indices() {
        match (quote, c) {
            (None, '\'' | '"') => quote = Some(c),
            (Some(q), _) if q == c => quote = None,
            (None, ']') => return Some(i),
            _ => {}
        }
    }
    None
}

fn bracket(text: &str) -> Option<Step> {
    let text = text.trim();
    if text == "*" {
        return Some(Step::All);
    }
    if let Some(filter) = text.strip_prefix("?(").and_then(|t| t.strip_suffix(')')) {
        let (left, right) = filter.split_once("==")?;
        let path = left.trim().strip_prefix("@.")?.split('.').map(str::to_owned).collect();
        let right = right.trim();
        return Some(Step::Where(path, unquote(right).unwrap_or(right).to_owned()));
    }
    match unquote(text) {
        Some(name) => Some(Step::Field(name.to_owned())),
        None => text.parse().ok().map(Step::Index),
    }
}

fn unquote(text: &str) -> Option<&str> {
    ['\'', '"'].into_iter().find_map(|q| text.strip_prefix(q)?.strip_suffix(q))
}

/// A field name up to the next unescaped dot or bracket.
fn field(text: &str) -> (String, &str) {
    let mut name = String::new();
    let mut chars = text.char_indices();
    while let Some((i, c)) = chars.next() {
        match c {
            '\\' => name.extend(chars.next().map(|(_, c)| c)),
            '.' | '[' => return (name, &text[i..]),
            _ => name.push(c),
        }
    }
    (name, "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn finds_what_definitions_ask_for() {
        let v = json!({
            "metadata": {"labels": {"a.b/c": "dot"}},
            "spec": {"n": 3, "list": [{"x": 1}, {"x": 2}]},
            "status": {"conditions": [{"type": "Old", "status": "False"}, {"type": "Ready", "status": "True"}]}
        });
        for (path, want) in [
            (".spec.n", json!([3])),
            ("spec.n", json!([3])),
            ("{.spec.n}", json!([3])),
            (".spec.list[1].x", json!([2])),
            (".spec.list[-1].x", json!([2])),
            (".spec.list[*].x", json!([1, 2])),
            (".metadata.labels.a\\.b/c", json!(["dot"])),
            (".metadata.labels['a.b/c']", json!(["dot"])),
            (".status.conditions[?(@.type==\"Ready\")].status", json!(["True"])),
            (".status.conditions[?(@.type=='None')].status", json!([])),
            (".missing.x", json!([])),
        ] {
            assert_eq!(json!(JsonPath::parse(path).unwrap().find(&v)), want, "{path}");
        }
        for bad in [".a..b", ".a[", ".a[x]", ".a[?(@.b>1)]"] {
            assert!(JsonPath::parse(bad).is_err(), "{bad}");
        }
    }
}
