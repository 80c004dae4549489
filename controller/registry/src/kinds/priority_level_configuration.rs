//! flowcontrol.apiserver.k8s.io/v1 PriorityLevelConfiguration: how many requests of a level run at once, and how the
//! others wait. Also what it shares with FlowSchema.

use crate::field::{FieldErrors, Path};
use crate::json::{at, entries, existing, existing_mut, fill, fill_zero, has, int, list, same, text};
use crate::rules::{Kind, Rules, Status};
use crate::{Resource, age, cell};
use serde_json::{Value, json};

pub(super) const GROUP: &str = "flowcontrol.apiserver.k8s.io";
const MOST_QUEUES: i64 = 10_000_000;
/// Bits of a flow's hash that dealing a hand of queues may use up.
const HASH_BITS: i64 = 60;
/// Means something only in v1beta3, which is not served.
const ZERO_SHARES: &str = "flowcontrol.k8s.io/v1beta3-preserve-zero-concurrency-shares";

pub(super) fn resource() -> Resource {
    Kind::new(GROUP, "v1", "PriorityLevelConfiguration", "prioritylevelconfigurations")
        .cluster()
        .columns(&[
            ("Name", "string", 0),
            ("Type", "string", 0),
            ("NominalConcurrencyShares", "string", 0),
            ("Queues", "string", 0),
            ("HandSize", "string", 0),
            ("QueueLengthLimit", "string", 0),
            ("Age", "string", 0),
        ])
        .rules(Rules {
            default,
            status: Status::Cleared(|_| json!({})),
            generation: true,
            validate,
            validate_status: |new, _, errors| conditions(new, errors),
            cells,
            ..Rules::default()
        })
}

fn default(o: &mut Value) {
    let Some(spec) = existing_mut(o, "spec") else { return };
    if let Some(exempt) = existing_mut(spec, "exempt") {
        fill(exempt, "nominalConcurrencyShares", 0);
        fill(exempt, "lendablePercent", 0);
    }
    let Some(limited) = existing_mut(spec, "limited") else { return };
    fill(limited, "nominalConcurrencyShares", 30);
    fill(limited, "lendablePercent", 0);
    if let Some(queuing) = existing_mut(limited, "limitResponse").and_then(|r| existing_mut(r, "queuing")) {
        fill_zero(queuing, "queues", 64);
        fill_zero(queuing, "handSize", 8);
        fill_zero(queuing, "queueLengthLimit", 50);
    }
}

fn validate(o: &Value, errors: &mut FieldErrors) {
    if entries(o, "metadata.annotations").any(|(key, _)| key == ZERO_SHARES) {
        let path = Path::new("metadata").child("annotations");
        errors.forbidden(&path, format!("annotation '{ZERO_SHARES}' is forbidden"));
    }
    let (name, type_, spec) = (text(o, "metadata.name"), text(o, "spec.type"), Path::new("spec"));
    let (exempt, limited) = (at(o, "spec.exempt"), at(o, "spec.limited"));
    if (name == "exempt") != (type_ == "Exempt") {
        errors.invalid(&spec.child("type"), type_, "must be 'Exempt' if and only if `name` is 'exempt'");
    }
    match type_ {
        "Exempt" => {
            if !limited.is_null() {
                errors.forbidden(&spec.child("limited"), "must be nil if the type is not Limited");
            }
            shares(exempt, &spec.child("exempt"), errors);
            lendable(exempt, &spec.child("exempt"), errors);
        }
        "Limited" => {
            if !exempt.is_null() {
                errors.forbidden(&spec.child("exempt"), "must be nil if the type is Limited");
            }
            if limited.is_null() {
                errors.required(&spec.child("limited"), "must not be empty when type is Limited");
            } else {
                limited_level(limited, &spec.child("limited"), errors);
            }
        }
        other => errors.not_supported(&spec.child("type"), other, &["Exempt", "Limited"]),
    }
    mandatory(o, name, errors);
}

fn shares(level: &Value, path: &Path, errors: &mut FieldErrors) {
    if let Some(n) = int(level, "nominalConcurrencyShares").filter(|n| *n < 0) {
        errors.invalid(&path.child("nominalConcurrencyShares"), n, "must be a non-negative integer");
    }
}

fn lendable(level: &Value, path: &Path, errors: &mut FieldErrors) {
    if let Some(n) = int(level, "lendablePercent").filter(|n| !(0..=100).contains(n)) {
        errors.invalid(&path.child("lendablePercent"), n, "must be between 0 and 100, inclusive");
    }
}

fn limited_level(level: &Value, path: &Path, errors: &mut FieldErrors) {
    shares(level, path, errors);
    let response = path.child("limitResponse");
    let (queuing, at_queuing) = (at(level, "limitResponse.queuing"), response.child("queuing"));
    match text(level, "limitResponse.type") {
        "Reject" if !queuing.is_null() => {
            errors.forbidden(&at_queuing, "must be nil if limited.limitResponse.type is not Limited");
        }
        "Reject" => {}
        "Queue" if queuing.is_null() => {
            errors.required(&at_queuing, "must not be empty if limited.limitResponse.type is Limited");
        }
        "Queue" => queues(queuing, &at_queuing, errors),
        other => errors.not_supported(&response.child("type"), other, &["Queue", "Reject"]),
    }
    lendable(level, path, errors);
    if let Some(n) = int(level, "borrowingLimitPercent").filter(|n| *n < 0) {
        errors.invalid(&path.child("borrowingLimitPercent"), n, "if specified, must be a non-negative integer");
    }
}

fn queues(queuing: &Value, path: &Path, errors: &mut FieldErrors) {
    let number = |key| int(queuing, key).unwrap_or(0);
    let (length, queues, hand) = (number("queueLengthLimit"), number("queues"), number("handSize"));
    if length <= 0 {
        errors.invalid(&path.child("queueLengthLimit"), length, "must be positive");
    }
    let at_queues = path.child("queues");
    if queues <= 0 {
        errors.invalid(&at_queues, queues, "must be positive");
    } else if queues > MOST_QUEUES {
        errors.invalid(&at_queues, queues, format!("must not be greater than {MOST_QUEUES}"));
    }
    let at_hand = path.child("handSize");
    if hand <= 0 {
        errors.invalid(&at_hand, hand, "must be positive");
    } else if hand > queues {
        errors.invalid(&at_hand, hand, format!("should not be greater than queues ({queues})"));
    } else if entropy(queues, hand) > HASH_BITS {
        let detail = format!(
            "required entropy bits of deckSize {queues} and handSize {hand} should not be greater than {HASH_BITS}"
        );
        errors.invalid(&at_hand, hand, detail);
    }
}

/// Bits of a hash that dealing `hand` out of `queues` takes.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]
fn entropy(queues: i64, hand: i64) -> i64 {
    ((queues as f64).log2() * hand as f64).ceil() as i64
}

/// Of `exempt` only `spec.exempt` may be changed, of `catch-all` nothing.
fn mandatory(o: &Value, name: &str, errors: &mut FieldErrors) {
    match name {
        "exempt" => {
            let ours = entries(o, "spec").all(|(key, value)| match key.as_str() {
                "type" => value == "Exempt",
                "exempt" => true,
                _ => same(value, &Value::Null),
            });
            if !ours || text(o, "spec.type") != "Exempt" {
                let detail = "spec of 'exempt' except the 'spec.exempt' field must equal the fixed value";
                errors.invalid(&Path::new("spec"), o["spec"].clone(), detail);
            }
        }
        "catch-all" => {
            let limited =
                json!({"nominalConcurrencyShares": 5, "lendablePercent": 0, "limitResponse": {"type": "Reject"}});
            equals_fixed(o, name, &json!({"type": "Limited", "limited": limited}), errors);
        }
        _ => {}
    }
}

/// The specs of upstream's mandatory objects stay as upstream has them.
pub(super) fn equals_fixed(o: &Value, name: &str, fixed: &Value, errors: &mut FieldErrors) {
    if !same(at(o, "spec"), fixed) {
        let detail = format!("spec of '{name}' must equal the fixed value");
        errors.invalid(&Path::new("spec"), o["spec"].clone(), detail);
    }
}

/// `status.conditions` of both kinds: each type once.
pub(super) fn conditions(o: &Value, errors: &mut FieldErrors) {
    let path = Path::new("status").child("conditions");
    let all = list(o, "status.conditions");
    for (i, condition) in all.iter().enumerate() {
        let (type_, path) = (text(condition, "type"), path.index(i).child("type"));
        if all[..i].iter().any(|c| text(c, "type") == type_) {
            errors.duplicate(&path, type_);
        }
        if type_.is_empty() {
            errors.required(&path, "");
        }
    }
}

fn cells(o: &Value, now: i64) -> Vec<Value> {
    let limited = at(o, "spec.limited");
    let or_none = |there: bool, path: &str| if there { cell::number(limited, path) } else { json!("<none>") };
    let queuing = existing(at(limited, "limitResponse"), "queuing");
    vec![
        cell::name(o),
        json!(text(o, "spec.type")),
        or_none(has(o, "spec.limited"), "nominalConcurrencyShares"),
        or_none(queuing, "limitResponse.queuing.queues"),
        or_none(queuing, "limitResponse.queuing.handSize"),
        or_none(queuing, "limitResponse.queuing.queueLengthLimit"),
        age::age(o, now),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(name: &str, spec: &Value) -> Vec<String> {
        let mut errors = FieldErrors::default();
        validate(&json!({"metadata": {"name": name}, "spec": spec}), &mut errors);
        errors.0.iter().map(ToString::to_string).collect()
    }

    fn queuing(queues: i64, hand: i64, length: i64) -> Value {
        let queuing = json!({"queues": queues, "handSize": hand, "queueLengthLimit": length});
        json!({"type": "Limited", "limited": {"limitResponse": {"type": "Queue", "queuing": queuing}}})
    }

    #[test]
    fn every_wrong_field_is_named_in_upstreams_words() {
        let at = "spec.limited.limitResponse.queuing";
        let table: Vec<(&str, Value, Vec<String>)> = vec![
            ("a", queuing(64, 8, 50), vec![]),
            ("a", queuing(128, 6, 50), vec![]),
            (
                "a",
                json!({"type": "Exempt"}),
                vec!["spec.type: Invalid value: \"Exempt\": must be 'Exempt' if and only if `name` is 'exempt'".into()],
            ),
            ("a", json!({"type": "Limited"}), vec!["spec.limited: Required value: must not be empty when type is Limited".into()]),
            (
                "a",
                json!({"type": "Loose"}),
                vec!["spec.type: Unsupported value: \"Loose\": supported values: \"Exempt\", \"Limited\"".into()],
            ),
            (
                "a",
                queuing(0, -1, 0),
                vec![
                    format!("{at}.queueLengthLimit: Invalid value: 0: must be positive"),
                    format!("{at}.queues: Invalid value: 0: must be positive"),
                    format!("{at}.handSize: Invalid value: -1: must be positive"),
                ],
            ),
            ("a", queuing(4, 5, 1), vec![format!("{at}.handSize: Invalid value: 5: should not be greater than queues (4)")]),
            (
                "a",
                queuing(10_000_001, 1, 1),
                vec![format!("{at}.queues: Invalid value: 10000001: must not be greater than 10000000")],
            ),
            (
                "a",
                queuing(512, 8, 1),
                vec![format!(
                    "{at}.handSize: Invalid value: 8: required entropy bits of deckSize 512 and handSize 8 should not be greater than 60"
                )],
            ),
            (
                "a",
                json!({"type": "Limited", "exempt": {}, "limited": {"nominalConcurrencyShares": -1, "lendablePercent": 101,
                    "borrowingLimitPercent": -1, "limitResponse": {"type": "Reject", "queuing": {}}}}),
                vec![
                    "spec.exempt: Forbidden: must be nil if the type is Limited".into(),
                    "spec.limited.nominalConcurrencyShares: Invalid value: -1: must be a non-negative integer".into(),
                    format!("{at}: Forbidden: must be nil if limited.limitResponse.type is not Limited"),
                    "spec.limited.lendablePercent: Invalid value: 101: must be between 0 and 100, inclusive".into(),
                    "spec.limited.borrowingLimitPercent: Invalid value: -1: if specified, must be a non-negative integer"
                        .into(),
                ],
            ),
        ];
        for (name, spec, expected) in table {
            assert_eq!(errors(name, &spec), expected, "{spec}");
        }
    }

    #[test]
    fn of_the_mandatory_levels_only_the_exempt_numbers_change() {
        let none: Vec<String> = Vec::new();
        let exempt = json!({"type": "Exempt", "exempt": {"nominalConcurrencyShares": 10, "lendablePercent": 50}});
        assert_eq!(errors("exempt", &exempt), none);
        assert_eq!(errors("exempt", &json!({"type": "Exempt", "limited": {}})).len(), 1);
        let mut catch_all = json!({"type": "Limited", "limited": {"nominalConcurrencyShares": 5, "lendablePercent": 0,
            "limitResponse": {"type": "Reject"}}});
        assert_eq!(errors("catch-all", &catch_all), none);
        catch_all["limited"]["nominalConcurrencyShares"] = json!(500);
        let all = errors("catch-all", &catch_all);
        assert!(
            matches!(&all[..], [one] if one.ends_with("spec of 'catch-all' must equal the fixed value")),
            "{all:?}"
        );
    }

    #[test]
    fn defaults_status_and_columns() {
        let rules = resource();
        let mut o = json!({"metadata": {"name": "a"}, "spec": {"type": "Limited",
            "limited": {"limitResponse": {"type": "Queue", "queuing": {"queues": 0}}}}});
        rules.strategy.default(&mut o);
        assert_eq!(rules.strategy.cells(&o, 0)[1..6], [json!("Limited"), json!(30), json!(64), json!(8), json!(50)]);
        assert_eq!(o["spec"]["limited"]["lendablePercent"], 0);
        let mut zero = json!({"spec": {"limited": {"nominalConcurrencyShares": 0}}});
        rules.strategy.default(&mut zero);
        assert_eq!(zero["spec"]["limited"]["nominalConcurrencyShares"], 0, "zero is a value, not a gap");
        let twice = json!({"status": {"conditions": [{"type": "A"}, {"type": "A"}, {}]}});
        assert_eq!(rules.strategy.validate_status(&twice, &o).0.len(), 2);
        assert!(rules.status && !rules.verbs.is_empty());
    }
}
