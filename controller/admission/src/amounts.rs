//! Lists of resources with their amounts. In: `requests`, `hard`, … Out: sums, differences, JSON.

use crate::quantity::Quantity;
use crate::read::entries;
use serde_json::Value;
use std::collections::BTreeMap;

/// Amounts by name of the resource.
pub type Amounts = BTreeMap<String, Quantity>;

/// Reads a ResourceList; the error says which amount is malformed.
pub(crate) fn read(list: &Value) -> Result<Amounts, String> {
    let one = |(name, value): (&String, &Value)| match Quantity::of(value) {
        Some(amount) => Ok((name.clone(), amount)),
        None => Err(format!(
            "{name}: quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
        )),
    };
    entries(list, "").map(one).collect()
}

/// Writes a ResourceList.
pub(crate) fn write(amounts: &Amounts) -> Value {
    amounts.iter().map(|(name, amount)| (name.clone(), Value::String(amount.to_string()))).collect()
}

/// Adds to a list.
pub(crate) fn add(into: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        let sum = into.get(name).map_or(*amount, |before| before.plus(*amount));
        into.insert(name.clone(), sum);
    }
}

/// Raises each amount to the other list's where that is greater.
pub(crate) fn raise(into: &mut Amounts, to: &Amounts) {
    for (name, amount) in to {
        if into.get(name).is_none_or(|before| amount > before) {
            into.insert(name.clone(), *amount);
        }
    }
}

/// What is more in `new` than in `old`; nothing where it is less.
pub(crate) fn increase(new: &Amounts, old: &Amounts) -> Amounts {
    let names = new.keys().chain(old.keys());
    let amount = |list: &Amounts, name: &str| list.get(name).copied().unwrap_or(Quantity::ZERO);
    let more = |name: &String| (name.clone(), amount(new, name).minus(amount(old, name)).max(Quantity::ZERO));
    names.map(more).collect()
}

/// `cpu=1,memory=1Gi`
pub(crate) fn words<'a>(amounts: impl IntoIterator<Item = (&'a String, &'a Quantity)>) -> String {
    amounts.into_iter().map(|(name, amount)| format!("{name}={amount}")).collect::<Vec<_>>().join(",")
}
