//! Names and numbers made of contents. Pure.
//!
//! Chains and groups are called by a hash of what they are. So two pods under the same rules share them without any
//! bookkeeping, and a new process knows those that the one before it left.

use causeway_api::selector::{Requirement, Selector};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use sha2::{Digest, Sha256};
use std::{
    cmp::Ordering,
    collections::BTreeMap,
    fmt::Debug,
    hash::{Hash, Hasher},
};

/// A number for a value. Two different ones share it by chance once in 2⁶⁴, and hardly on purpose: to be taken for
/// another's group, one would have to find a selector with exactly its number.
pub fn number(kind: &str, value: &impl Debug) -> u64 {
    let digest = Sha256::digest(format!("{kind} {value:?}"));
    digest.iter().take(8).fold(0, |all, byte| all << 8 | u64::from(*byte))
}

/// A label selector that can be compared: the same requirements in another order are the same.
#[derive(Clone, Default)]
pub struct Labels {
    selector: Selector,
    text: String,
}

impl Labels {
    /// Reads it.
    pub fn read(selector: &LabelSelector) -> Result<Self, String> {
        let mut selector = Selector::from_object(selector)?;
        // Values are sorted already.
        let text = |r: &Requirement| format!("{:?} {:?} {:?}", r.key, r.operator, r.values);
        selector.0.sort_by_cached_key(text);
        selector.0.dedup();
        let text = selector.0.iter().map(text).collect::<Vec<_>>().join(", ");
        Ok(Self { selector, text })
    }

    /// Whether it selects these labels.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.selector.matches(labels)
    }
}

impl Debug for Labels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "[{}]", self.text)
    }
}

impl PartialEq for Labels {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Labels {}

impl PartialOrd for Labels {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Labels {
    fn cmp(&self, other: &Self) -> Ordering {
        self.text.cmp(&other.text)
    }
}

impl Hash for Labels {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn order_does_not_make_another_selector() {
        let read = |v| Labels::read(&serde_json::from_value(v).unwrap()).unwrap();
        let expression = |key, values: &[&str]| json!({"key": key, "operator": "In", "values": values});
        let a = read(json!({"matchExpressions": [expression("a", &["x", "y"]), expression("b", &["z"])]}));
        let b = read(json!({"matchLabels": {"b": "z"}, "matchExpressions": [expression("a", &["y", "x"])]}));
        assert_eq!(a, b);
        assert_eq!(number("x", &a), number("x", &b));
        assert_ne!(number("x", &a), number("y", &a));
        assert_ne!(a, read(json!({})));
        // What is one value here and two there is not the same.
        let (one, two) = (expression("a", &["x\", \"y"]), expression("a", &["x", "y"]));
        assert_ne!(read(json!({"matchExpressions": [one]})), read(json!({"matchExpressions": [two]})));
    }
}
