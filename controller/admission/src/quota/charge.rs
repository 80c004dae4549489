//! The check of a request against the quotas of its namespace (upstream: `CheckRequest`). In: quotas, the request. Out:
//! what the quotas' `status.used` becomes, or why it does not fit.

use super::evaluator::Evaluator;
use super::scope::matches;
use crate::amounts::{self, Amounts, add, increase, words};
use crate::read::{at, entries, text};
use crate::request::{Facts, Operation};
use serde_json::Value;
use std::collections::BTreeSet;

/// A quota whose usage grows by a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Charge {
    /// The quota's name.
    pub name: String,
    /// Write only while the quota has this version.
    pub resource_version: String,
    /// The new `status.used`, complete.
    pub used: Value,
}

impl Charge {
    /// Puts the new usage into the quota that was charged.
    pub fn apply(&self, quota: &mut Value) {
        if let Some(status) = quota.get_mut("status").and_then(Value::as_object_mut) {
            status.insert("used".to_owned(), self.used.clone());
        }
    }
}

/// Checks a create or update against all quotas of its namespace; `now` is in seconds since the epoch. `Ok` holds a
/// charge for each quota that changes: write them all before (or with) the object, each on condition that the quota has
/// not changed since; on a conflict read the quotas and charge again. Not to be written for dry runs. The error is for
/// a 403; the engine writes `… is forbidden: ` before it.
pub fn charge(
    quotas: &[&Value],
    facts: &Facts<'_>,
    object: &Value,
    old: Option<&Value>,
    now: i64,
) -> Result<Vec<Charge>, String> {
    let Some(evaluator) = Evaluator::of(facts.group, facts.resource) else { return Ok(Vec::new()) };
    if facts.namespace.is_empty() || !evaluator.handles(facts, object, old) {
        return Ok(Vec::new());
    }
    let mut quotas = quotas.to_vec();
    quotas.sort_by_key(|quota| text(quota, "metadata.name"));
    let mut covering = Vec::new();
    for quota in quotas {
        if matches(quota, &evaluator, object)? {
            ready(quota, &evaluator, object)?;
            covering.push(quota);
        }
    }
    if covering.is_empty() {
        return Ok(Vec::new());
    }
    let usage = evaluator.usage(object, now)?;
    let negative: Vec<&str> = usage.iter().filter(|(_, a)| a.is_negative()).map(|(name, _)| name.as_str()).collect();
    if !negative.is_empty() {
        return Err(format!("quota usage is negative for resource(s): {}", negative.join(",")));
    }
    let mut charges = Vec::new();
    for quota in covering {
        let delta = delta(quota, &evaluator, facts, &usage, old, now)?;
        charges.extend(fit(quota, &delta, facts.subresource == "status")?);
    }
    Ok(charges)
}

/// The object says what the quota demands, and the quota's usage has been counted.
fn ready(quota: &Value, evaluator: &Evaluator, object: &Value) -> Result<(), String> {
    let name = text(quota, "metadata.name");
    let limited: BTreeSet<&str> =
        entries(quota, "status.hard").map(|(name, _)| name.as_str()).filter(|name| evaluator.covers(name)).collect();
    evaluator.constraints(&limited, object).map_err(|why| format!("failed quota: {name}: {why}"))?;
    let used = at(quota, "status.used");
    if limited.iter().any(|name| used.get(name).is_none_or(Value::is_null)) {
        let names = limited.iter().copied().collect::<Vec<_>>().join(",");
        return Err(format!("status unknown for quota: {name}, resources: {names}"));
    }
    Ok(())
}

/// What the request adds to the usage of a quota. A quota that did not cover the old object is charged in full.
fn delta(
    quota: &Value,
    evaluator: &Evaluator,
    facts: &Facts<'_>,
    usage: &Amounts,
    old: Option<&Value>,
    now: i64,
) -> Result<Amounts, String> {
    if facts.operation != Operation::Update {
        return Ok(usage.clone());
    }
    let Some(old) = old else {
        return Err("unable to get previous usage since prior version of object was not found".to_owned());
    };
    let stored = !text(old, "metadata.resourceVersion").is_empty();
    if stored && matches(quota, evaluator, old)? {
        Ok(increase(usage, &evaluator.usage(old, now)?))
    } else {
        Ok(usage.clone())
    }
}

/// Adds to a quota's usage what it limits. `anyway` is for what has already happened.
fn fit(quota: &Value, delta: &Amounts, anyway: bool) -> Result<Option<Charge>, String> {
    let name = text(quota, "metadata.name");
    let unreadable = |why| format!("failed quota: {name}: {why}");
    let hard = amounts::read(at(quota, "status.hard")).map_err(unreadable)?;
    let mut used = amounts::read(at(quota, "status.used")).map_err(unreadable)?;
    let requested: Amounts =
        delta.iter().filter(|(n, a)| !a.is_zero() && hard.contains_key(*n)).map(|(n, a)| (n.clone(), *a)).collect();
    if requested.is_empty() {
        return Ok(None);
    }
    let before = used.clone();
    add(&mut used, &requested);
    let over: BTreeSet<&String> = requested.keys().filter(|n| used.get(*n) > hard.get(*n)).collect();
    if !over.is_empty() && !anyway {
        let of = |list: &Amounts| words(list.iter().filter(|(n, _)| over.contains(n)));
        let (requested, used, limited) = (of(&requested), of(&before), of(&hard));
        return Err(format!("exceeded quota: {name}, requested: {requested}, used: {used}, limited: {limited}"));
    }
    Ok(Some(Charge {
        name: name.to_owned(),
        resource_version: text(quota, "metadata.resourceVersion").to_owned(),
        used: amounts::write(&used),
    }))
}

#[cfg(test)]
mod tests;
