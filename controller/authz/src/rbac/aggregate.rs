//! Aggregated ClusterRoles: their rules are those of the roles that they select.

use super::rule::Rule;
use serde_json::Value;
use std::collections::HashSet;

/// The rules that `role` should have, from all ClusterRoles of the cluster; `None` when it has them, or is no
/// aggregated role.
///
/// Selector by selector, within one by the roles' names, each rule once; the role itself is left out. Err: a
/// selector that means nothing.
pub fn aggregate<'a>(roles: impl IntoIterator<Item = &'a Value>, role: &Value) -> Result<Option<Vec<Value>>, String> {
    let selectors = match role.get("aggregationRule") {
        None | Some(Value::Null) => return Ok(None),
        Some(rule) => rule.get("clusterRoleSelectors").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default(),
    };
    let mut others: Vec<&Value> = roles.into_iter().filter(|other| name(other) != name(role)).collect();
    others.sort_by_key(|other| name(other));
    let mut found: Vec<Rule> = Vec::new();
    let mut known = HashSet::new();
    for selector in selectors {
        for other in &others {
            if !selects(selector, other)? {
                continue;
            }
            for rule in Rule::parse_all(other) {
                if known.insert(rule.clone()) {
                    found.push(rule);
                }
            }
        }
    }
    let changed = found != Rule::parse_all(role);
    Ok(changed.then(|| found.iter().map(Rule::to_value).collect()))
}

fn name(role: &Value) -> &str {
    role.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default()
}

/// A LabelSelector: all of its labels and expressions. One that is empty selects everything.
fn selects(selector: &Value, role: &Value) -> Result<bool, String> {
    let label = |key: &str| role.pointer("/metadata/labels").and_then(|labels| labels.get(key)).and_then(Value::as_str);
    let selector = selector.as_object().ok_or("a label selector must be an object")?;
    let mut all = true;
    for (key, value) in selector {
        match (key.as_str(), value) {
            (_, Value::Null) => {}
            ("matchLabels", Value::Object(wanted)) => {
                all &= wanted.iter().all(|(key, value)| label(key).is_some() && label(key) == value.as_str());
            }
            ("matchExpressions", Value::Array(expressions)) => {
                for expression in expressions {
                    all &= expression_holds(expression, label)?;
                }
            }
            _ => return Err(format!("{key:?} is not a valid part of a label selector")),
        }
    }
    Ok(all)
}

fn expression_holds<'a>(expression: &Value, label: impl Fn(&str) -> Option<&'a str>) -> Result<bool, String> {
    let text = |field: &str| expression.get(field).and_then(Value::as_str).unwrap_or_default();
    let found = label(text("key"));
    let values = expression.get("values").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let among = || found.is_some_and(|found| values.iter().any(|value| value == found));
    match (text("operator"), values.is_empty()) {
        ("In", false) => Ok(among()),
        ("NotIn", false) => Ok(!among()),
        ("Exists", true) => Ok(found.is_some()),
        ("DoesNotExist", true) => Ok(found.is_none()),
        (operator, _) => Err(format!("{operator:?} is not a valid label selector operator with these values")),
    }
}
