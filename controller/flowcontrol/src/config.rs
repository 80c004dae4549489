//! FlowSchemas and PriorityLevelConfigurations as the dispatcher uses them.
//!
//! In: the API's objects. Out: schemas in the order in which they are tried, levels with their numbers, and what could
//! not be used. The mandatory objects are always there, whether or not the API has them.

use crate::defaults;
use crate::matching::{Distinguisher, Rule};
use crate::seat::Flow;
use crate::snapshot::FlowStats;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Schemas beyond these are not used: every request is compared with them, one by one.
const MOST_SCHEMAS: usize = 1000;
/// Levels beyond these are not used: every dispatch looks at all.
const MOST_LEVELS: usize = 200;
/// Upstream's bound on queues of a level.
const MOST_QUEUES: u64 = 10_000_000;
/// Bits of a flow's hash that dealing a hand may use up.
const HASH_BITS: f64 = 60.0;

/// A FlowSchema, compiled.
#[derive(Debug)]
pub(crate) struct Schema {
    pub flow: Arc<Flow>,
    /// Its level's place in [`Config::levels`].
    pub level: usize,
    pub distinguisher: Distinguisher,
    pub rules: Vec<Rule>,
    pub stats: Arc<FlowStats>,
}

/// What a level does with requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Response {
    /// Runs them all at once.
    Exempt,
    /// Rejects what finds no seat.
    Reject,
    /// Lets them wait.
    Queue { queues: u32, hand: u32, length: usize },
}

/// A PriorityLevelConfiguration, read.
#[derive(Debug, Clone)]
pub(crate) struct LevelSpec {
    pub name: Arc<str>,
    pub uid: Arc<str>,
    pub response: Response,
    pub shares: u64,
    pub lendable_percent: u64,
    /// None: as much as there is.
    pub borrowing_percent: Option<u64>,
}

/// An object that has no effect, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ignored {
    /// `FlowSchema` or `PriorityLevelConfiguration`.
    pub kind: &'static str,
    /// The object's name.
    pub name: String,
    /// What is wrong with it.
    pub why: String,
}

/// What became of a configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applied {
    /// Of every FlowSchema that was given, whether its level does not exist (the condition `Dangling`, see
    /// [`dangling_condition`]).
    pub dangling: BTreeMap<String, bool>,
    /// Objects without effect, the dangling ones aside.
    pub ignored: Vec<Ignored>,
}

/// Everything that is configured.
pub(crate) struct Config {
    pub schemas: Vec<Arc<Schema>>,
    pub levels: Vec<LevelSpec>,
    pub applied: Applied,
}

fn text<'a>(value: &'a Value, keys: &[&str]) -> &'a str {
    keys.iter().try_fold(value, |v, key| v.get(key)).and_then(Value::as_str).unwrap_or("")
}

fn name(object: &Value) -> &str {
    text(object, &["metadata", "name"])
}

impl Config {
    /// Reads the objects; `stats` finds the counters of a flow that was configured before.
    pub fn read(schemas: &[Value], levels: &[Value], stats: impl Fn(&str, &str) -> Option<Arc<FlowStats>>) -> Self {
        let mut applied = Applied::default();
        let levels = read_levels(levels, &mut applied);
        let mandatory = defaults::mandatory_schemas();
        let missing = mandatory.iter().filter(|m| schemas.iter().all(|s| name(s) != name(m)));
        let mut all: Vec<(i64, &Value)> = schemas
            .iter()
            .chain(missing)
            .map(|s| (s["spec"]["matchingPrecedence"].as_i64().unwrap_or(1000), s))
            .collect();
        // As upstream: of two with the same precedence the one whose name sorts first.
        all.sort_by(|(p, a), (q, b)| (p, name(a)).cmp(&(q, name(b))));
        let mut compiled: Vec<Arc<Schema>> = Vec::new();
        for (_, object) in all {
            let level_name = text(object, &["spec", "priorityLevelConfiguration", "name"]);
            let level = levels.iter().position(|l| &*l.name == level_name);
            applied.dangling.insert(name(object).to_owned(), level.is_none());
            let Some(level) = level else { continue };
            // Room is kept for the mandatory ones, of which one comes last.
            let fixed = mandatory.iter().find(|m| name(m) == name(object));
            if compiled.len() >= MOST_SCHEMAS && fixed.is_none() {
                applied.ignore("FlowSchema", object, format!("there are more than {MOST_SCHEMAS}"));
                continue;
            }
            // The mandatory ones are what they are, whatever the store says.
            match compile(object, &fixed.unwrap_or(object)["spec"], (level, &levels[level]), &stats) {
                Ok(schema) => compiled.push(Arc::new(schema)),
                Err(why) => applied.ignore("FlowSchema", object, why),
            }
        }
        Self { schemas: compiled, levels, applied }
    }
}

impl Applied {
    fn ignore(&mut self, kind: &'static str, object: &Value, why: impl Into<String>) {
        self.ignored.push(Ignored { kind, name: name(object).to_owned(), why: why.into() });
    }
}

fn read_levels(objects: &[Value], applied: &mut Applied) -> Vec<LevelSpec> {
    let mandatory = defaults::mandatory_levels();
    let mut levels: Vec<LevelSpec> = Vec::new();
    // A mandatory level that is there but broken is replaced as one that is missing.
    for (i, object) in objects.iter().chain(&mandatory).enumerate() {
        let given = i < objects.len();
        if levels.iter().any(|l| &*l.name == name(object)) {
            if given {
                applied.ignore("PriorityLevelConfiguration", object, "another has the same name");
            }
            continue;
        }
        if given && levels.len() >= MOST_LEVELS {
            applied.ignore("PriorityLevelConfiguration", object, format!("there are more than {MOST_LEVELS}"));
            continue;
        }
        match read_level(object) {
            Ok(level) => levels.push(level),
            Err(why) => applied.ignore("PriorityLevelConfiguration", object, why),
        }
    }
    levels
}

fn number(value: &Value, default: u64) -> Result<u64, String> {
    match value {
        Value::Null => Ok(default),
        // As wide as the API's type, so that sums and products never overflow.
        v => v.as_u64().filter(|n| *n <= i32::MAX as u64).ok_or_else(|| format!("{v} is no non-negative int32")),
    }
}

fn read_level(object: &Value) -> Result<LevelSpec, String> {
    let (name, spec) = (name(object), &object["spec"]);
    let exempt = name == "exempt";
    let (response, numbers) = match (spec["type"].as_str(), exempt) {
        (Some("Exempt"), true) => (Response::Exempt, &spec["exempt"]),
        (Some("Limited"), false) => (read_response(&spec["limited"]["limitResponse"])?, &spec["limited"]),
        _ => return Err("type must be 'Exempt' if and only if name is 'exempt'".to_owned()),
    };
    let borrowing = &numbers["borrowingLimitPercent"];
    Ok(LevelSpec {
        name: name.into(),
        uid: text(object, &["metadata", "uid"]).into(),
        response,
        shares: number(&numbers["nominalConcurrencyShares"], if exempt { 0 } else { 30 })?,
        lendable_percent: number(&numbers["lendablePercent"], 0)?.min(100),
        borrowing_percent: if borrowing.is_null() { None } else { Some(number(borrowing, 0)?) },
    })
}

#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]
fn read_response(response: &Value) -> Result<Response, String> {
    match response["type"].as_str() {
        Some("Reject") => return Ok(Response::Reject),
        Some("Queue") => {}
        _ => return Err("limitResponse.type must be 'Queue' or 'Reject'".to_owned()),
    }
    let queuing = &response["queuing"];
    let (queues, hand) = (number(&queuing["queues"], 64)?, number(&queuing["handSize"], 8)?);
    let length = number(&queuing["queueLengthLimit"], 50)?;
    if queues == 0 || queues > MOST_QUEUES || hand == 0 || hand > queues || length == 0 {
        return Err(format!("cannot deal {hand} of {queues} queues of length {length}"));
    }
    if ((queues as f64).log2() * hand as f64).ceil() > HASH_BITS {
        return Err(format!("dealing {hand} of {queues} queues takes more than {HASH_BITS} bits"));
    }
    Ok(Response::Queue { queues: queues as u32, hand: hand as u32, length: length as usize })
}

fn compile(
    object: &Value,
    spec: &Value,
    (index, level): (usize, &LevelSpec),
    stats: impl Fn(&str, &str) -> Option<Arc<FlowStats>>,
) -> Result<Schema, String> {
    let distinguisher = match (&spec["distinguisherMethod"], spec["distinguisherMethod"]["type"].as_str()) {
        (Value::Null, _) => Distinguisher::None,
        (_, Some("ByUser")) => Distinguisher::User,
        (_, Some("ByNamespace")) => Distinguisher::Namespace,
        (_, other) => return Err(format!("unknown distinguisherMethod {other:?}")),
    };
    let flow = Flow {
        schema: name(object).into(),
        schema_uid: text(object, &["metadata", "uid"]).into(),
        level: Arc::clone(&level.name),
        level_uid: Arc::clone(&level.uid),
    };
    let rules = spec["rules"].as_array().into_iter().flatten().map(Rule::read).collect();
    let stats = stats(&flow.schema, &flow.level).unwrap_or_default();
    Ok(Schema { flow: Arc::new(flow), level: index, distinguisher, rules, stats })
}

/// The condition `Dangling` of a FlowSchema, if it has to be written: `None` when it already says so. `now` is RFC
/// 3339, for `lastTransitionTime`; it goes into `status.conditions` in place of the old one.
pub fn dangling_condition(schema: &Value, dangling: bool, now: &str) -> Option<Value> {
    let level = text(schema, &["spec", "priorityLevelConfiguration", "name"]);
    let quoted = format!("This FlowSchema references the PriorityLevelConfiguration object named {level:?}");
    let (status, reason, message) = if dangling {
        ("True", "NotFound", format!("{quoted} but there is no such object"))
    } else {
        ("False", "Found", format!("{quoted} and it exists"))
    };
    let old = schema["status"]["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == "Dangling");
    if old.is_some_and(|o| o["status"] == status && o["reason"] == reason && o["message"] == message.as_str()) {
        return None;
    }
    Some(json!({"type": "Dangling", "status": status, "lastTransitionTime": now, "reason": reason, "message": message}))
}
