//! Sets of field paths, and their wire form `fieldsV1` (`f:` fields, `k:` list items by key, `v:` by value, `.` itself).

use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// So long may the paths of one set be together, in bytes.
const MAX_PATHS: usize = 256 * 1024;

/// A set of paths as a tree. Element names are those of the wire form.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Set {
    /// The path that ends here is in the set.
    pub member: bool,
    pub children: BTreeMap<String, Set>,
}

impl Set {
    pub fn is_empty(&self) -> bool {
        !self.member && self.children.is_empty()
    }

    /// Puts a subtree below an element, unless it is empty.
    pub fn insert(&mut self, element: String, sub: Set) {
        if !sub.is_empty() {
            self.children.entry(element).or_default().union(sub);
        }
    }

    pub fn union(&mut self, other: Set) {
        self.member |= other.member;
        for (element, sub) in other.children {
            self.children.entry(element).or_default().union(sub);
        }
    }

    pub fn subtract(&mut self, other: &Set) {
        self.member &= !other.member;
        for (element, gone) in &other.children {
            if let Some(sub) = self.children.get_mut(element) {
                sub.subtract(gone);
                if sub.is_empty() {
                    self.children.remove(element);
                }
            }
        }
    }

    pub fn intersection(&self, other: &Set) -> Set {
        let mut both = Set { member: self.member && other.member, ..Set::default() };
        for (element, sub) in &self.children {
            if let Some(theirs) = other.children.get(element) {
                both.insert(element.clone(), sub.intersection(theirs));
            }
        }
        both
    }

    /// Forgets everything at and below a path of elements.
    pub fn forget(&mut self, path: &[&str]) {
        match path {
            [] => *self = Set::default(),
            [first, rest @ ..] => {
                if let Some(sub) = self.children.get_mut(*first) {
                    sub.forget(rest);
                    if sub.is_empty() {
                        self.children.remove(*first);
                    }
                }
            }
        }
    }

    /// The paths, as Kubernetes prints them: `.spec.containers[name="a"].image`. The first is always there; as soon as
    /// they are longer together than [`MAX_PATHS`], the others are left out: a long key above many fields is in all of
    /// their paths.
    pub fn paths(&self) -> Vec<String> {
        let (mut found, mut left) = (Vec::new(), MAX_PATHS);
        self.collect_paths(&mut String::new(), &mut found, &mut left);
        found
    }

    fn collect_paths(&self, prefix: &mut String, found: &mut Vec<String>, left: &mut usize) {
        if *left == 0 {
            return;
        }
        if self.member {
            *left = left.saturating_sub(prefix.len() + 1);
            found.push(prefix.clone());
        }
        for (element, sub) in &self.children {
            let length = prefix.len();
            prefix.push_str(&readable(element));
            sub.collect_paths(prefix, found, left);
            prefix.truncate(length);
        }
    }

    pub fn to_fields_v1(&self) -> Value {
        let mut map = Map::new();
        if self.member && !self.children.is_empty() {
            map.insert(".".to_owned(), Value::Object(Map::new()));
        }
        map.extend(self.children.iter().map(|(element, sub)| (element.clone(), sub.to_fields_v1())));
        Value::Object(map)
    }

    pub fn from_fields_v1(fields: &Value) -> Set {
        let mut set = Set::read(fields);
        // The root is an object with fields, never a member.
        set.member = false;
        set
    }

    fn read(fields: &Value) -> Set {
        let Some(map) = fields.as_object() else {
            return Set::default();
        };
        let member = map.is_empty() || map.contains_key(".");
        let below = map.iter().filter(|(element, _)| *element != ".");
        Set { member, children: below.map(|(element, sub)| (element.clone(), Set::read(sub))).collect() }
    }
}

fn readable(element: &str) -> String {
    let (kind, rest) = element.split_once(':').unwrap_or(("f", element));
    match kind {
        "k" => {
            let keys: Map<String, Value> = serde_json::from_str(rest).unwrap_or_default();
            let keys: Vec<_> = keys.iter().map(|(key, value)| format!("{key}={value}")).collect();
            format!("[{}]", keys.join(","))
        }
        "v" => format!("[={rest}]"),
        "i" => format!("[{rest}]"),
        _ => format!(".{rest}"),
    }
}
