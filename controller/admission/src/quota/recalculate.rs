//! Counting anew, for the controller. In: a quota and the objects of its namespace. Out: the quota's status.

use super::evaluator::Evaluator;
use super::scope::in_scopes;
use crate::amounts::{self, Amounts, add};
use crate::quantity::Quantity;
use crate::read::{at, entries};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Resources with names of their own in quotas; all others are `count/<resource>.<group>`.
const NAMED: [&str; 7] =
    ["pods", "services", "persistentvolumeclaims", "configmaps", "resourcequotas", "replicationcontrollers", "secrets"];

/// Group and plural of every resource a quota limits.
pub fn tracked(quota: &Value) -> BTreeSet<(String, String)> {
    let mut tracked = BTreeSet::new();
    for (name, _) in entries(quota, "spec.hard") {
        if let Some(counted) = name.strip_prefix("count/") {
            let (resource, group) = counted.split_once('.').unwrap_or((counted, ""));
            if Evaluator::of(group, resource).is_some() {
                tracked.insert((group.to_owned(), resource.to_owned()));
            }
        }
        let named = NAMED.iter().filter(|resource| Evaluator::of("", resource).is_some_and(|e| e.covers(name)));
        tracked.extend(named.map(|resource| (String::new(), (*resource).to_owned())));
    }
    tracked
}

/// The status a quota should have: `hard` as in the spec, `used` counted. `objects` gives all objects of a resource
/// (group, plural) in the quota's namespace, `None` when they are not known (yet): then what was counted before stays,
/// and what never was stays uncounted, so that nothing slips by. `now` is in seconds since the epoch.
pub fn recalculate<'a, I>(
    quota: &Value,
    mut objects: impl FnMut(&str, &str) -> Option<I>,
    now: i64,
) -> Result<Value, String>
where
    I: IntoIterator<Item = &'a Value>,
{
    let hard = amounts::read(at(quota, "spec.hard"))?;
    let mut used = amounts::read(at(quota, "status.used")).unwrap_or_default();
    used.retain(|name, _| hard.contains_key(name));
    for (group, resource) in tracked(quota) {
        let Some(evaluator) = Evaluator::of(&group, &resource) else { continue };
        let Some(objects) = objects(&group, &resource) else { continue };
        if let Ok(counted) = count(quota, &evaluator, &hard, objects, now) {
            used.extend(counted);
        }
    }
    Ok(json!({"hard": amounts::write(&hard), "used": amounts::write(&used)}))
}

/// Whether a quota's status says other amounts than another one; how they are written does not matter.
pub fn differs(status: &Value, other: &Value) -> bool {
    let read = |status, key| {
        let list = at(status, key);
        // No list at all is not the same as one of nothing.
        (!list.is_null()).then(|| amounts::read(list))
    };
    ["hard", "used"].iter().any(|key| read(status, key) != read(other, key))
}

fn count<'a>(
    quota: &Value,
    evaluator: &Evaluator,
    hard: &Amounts,
    objects: impl IntoIterator<Item = &'a Value>,
    now: i64,
) -> Result<Amounts, String> {
    let mut used: Amounts =
        hard.keys().filter(|name| evaluator.covers(name)).map(|name| (name.clone(), Quantity::ZERO)).collect();
    for object in objects {
        if in_scopes(quota, evaluator, object)? {
            let usage = evaluator.usage(object, now)?;
            add(&mut used, &usage.into_iter().filter(|(name, _)| hard.contains_key(name)).collect());
        }
    }
    Ok(used)
}

#[cfg(test)]
mod tests;
