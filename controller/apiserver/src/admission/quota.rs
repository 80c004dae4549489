//! ResourceQuotas: what a write takes is charged before it is done.
//!
//! In: new and changed objects of a namespace with quotas. Out: the quotas' `status.used`, written by compare-and-swap, or
//! a refusal. What was charged for a write that then failed is given back when the controller counts again.

use super::facts;
use crate::engine::{Call, Engine, Part};
use crate::status::{ApiError, ApiResult};
use causeway_admission::quota::{Charge, charge};
use serde_json::Value;

/// How often somebody else's charge may come between.
const TRIES: usize = 32;

fn quotas(engine: &Engine, call: &Call) -> ApiResult<Vec<Value>> {
    engine.all_cached("", "resourcequotas", &call.namespace)
}

/// Charges a write.
pub async fn admit(engine: &Engine, call: &Call, part: Part, new: &Value, old: Option<&Value>) -> ApiResult<()> {
    if call.namespace.is_empty() {
        return Ok(());
    }
    if quotas(engine, call)?.is_empty() {
        return Ok(());
    }
    let name = super::dynamic::name_of(new).to_owned();
    let facts = facts::plain(call, part.subresource(), facts::operation(old), &name);
    let resource = &call.served.resource;
    for _ in 0..TRIES {
        engine.feed.catch_up().await?;
        let all = quotas(engine, call)?;
        let all: Vec<&Value> = all.iter().collect();
        let now = jiff::Timestamp::now().as_second();
        let charges = charge(&all, &facts, new, old, now)
            .map_err(|why| ApiError::forbidden(&resource.group, &resource.plural, &name, &why))?;
        if call.options.dry_run || charges.is_empty() || write(engine, call, &charges).await? {
            return Ok(());
        }
    }
    Err(ApiError::conflict_because(resource, &name, "the quotas of its namespace change too often; try again"))
}

/// Writes charges; `false` when a quota is another by now.
async fn write(engine: &Engine, call: &Call, charges: &[Charge]) -> ApiResult<bool> {
    let quotas = engine.served("", "v1", "resourcequotas")?;
    for charge in charges {
        let mut own = Call::internal(quotas.clone(), &call.namespace);
        let charged = engine.patch(&mut own, &charge.name, Part::Status, |quota| {
            if quota["metadata"]["resourceVersion"] != charge.resource_version.as_str() {
                return Err(ApiError::conflict(&quotas.resource, &charge.name));
            }
            let mut new = quota.clone();
            charge.apply(&mut new);
            Ok(new)
        });
        match charged.await {
            Ok(_) => {}
            Err(error) if matches!(error.code(), 404 | 409) => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}
