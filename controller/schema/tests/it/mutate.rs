//! Changes inputs at random. In: inputs from a corpus, and a generator with a seed. Out: inputs that are nearly right.

use rand::Rng;
use rand::rngs::StdRng;
use serde_json::{Map, Value, json};

/// No input becomes larger than this, in bytes.
const MAX_INPUT: usize = 256 * 1024;

/// Changes bytes: single ones, and pieces that are cut, repeated or taken from another input.
pub fn bytes(rng: &mut StdRng, input: &[u8], other: &[u8]) -> Vec<u8> {
    let mut out = input.to_vec();
    for _ in 0..rng.random_range(1..6) {
        let at = rng.random_range(0..=out.len());
        let end = (at + rng.random_range(0..32)).min(out.len());
        match rng.random_range(0..8) {
            0 | 1 if at < out.len() => out[at] ^= 1 << rng.random_range(0..8),
            2 if at < out.len() => out[at] = *pick(rng, &[0, 1, 0x7f, 0x80, 0xff, b'"', b'{', b'[', b'\\', b'k']),
            3 => out.truncate(at),
            4 => drop(out.drain(at..end)),
            5 => {
                let piece = out[at..end].repeat(rng.random_range(1..300));
                drop(out.splice(at..at, piece));
            }
            6 => drop(out.splice(at..end, span(rng, other).to_vec())),
            // As a length in front of what follows: envelopes in envelopes.
            _ => {
                let tail = out.split_off(at);
                out.push(0x0a);
                out.extend(varint(tail.len() as u64));
                out.extend(tail);
            }
        }
        out.truncate(MAX_INPUT);
    }
    out
}

/// Changes a value: its parts are replaced, removed, repeated, nested, or exchanged for parts of another.
pub fn value(rng: &mut StdRng, input: &Value, other: &Value, words: &[&str]) -> Value {
    let mut out = input.clone();
    for _ in 0..rng.random_range(1..6) {
        let depth = rng.random_range(0..12);
        let part = descend(rng, &mut out, depth);
        change(rng, part, other, words);
    }
    // Repetitions of repetitions are cut at their limit.
    if out.to_string().len() > MAX_INPUT { input.clone() } else { out }
}

fn change(rng: &mut StdRng, part: &mut Value, other: &Value, words: &[&str]) {
    match rng.random_range(0..12) {
        0 | 1 => *part = scalar(rng, words),
        2 | 3 => *part = taken(rng, other),
        4 => {
            for _ in 0..*pick(rng, &[1, 2, 50, 130, 400]) {
                let inner = part.take();
                *part = match rng.random_bool(0.5) {
                    true => Value::Array(vec![inner]),
                    false => Value::Object(Map::from_iter([((*pick(rng, words)).to_owned(), inner)])),
                };
            }
        }
        _ => match part {
            Value::Array(items) => change_list(rng, items, other),
            Value::Object(map) => change_map(rng, map, other, words),
            Value::String(text) => change_text(rng, text, words),
            _ => *part = scalar(rng, words),
        },
    }
}

fn change_list(rng: &mut StdRng, items: &mut Vec<Value>, other: &Value) {
    let at = rng.random_range(0..=items.len());
    match rng.random_range(0..4) {
        0 if at < items.len() => drop(items.remove(at)),
        1 if !items.is_empty() => {
            let (from, to) = (rng.random_range(0..items.len()), rng.random_range(0..items.len()));
            items.swap(from, to);
        }
        2 if at < items.len() => {
            let item = items[at].clone();
            for n in 0..times(rng, &item) {
                let mut item = item.clone();
                // With another key each, else they would be one item.
                if let Some(Value::String(name)) = item.as_object_mut().and_then(|m| m.values_mut().next()) {
                    *name = format!("{name}{n}");
                }
                items.push(item);
            }
        }
        _ => items.insert(at, taken(rng, other)),
    }
}

fn change_map(rng: &mut StdRng, map: &mut Map<String, Value>, other: &Value, words: &[&str]) {
    let keys: Vec<String> = map.keys().cloned().collect();
    let some = keys.get(rng.random_range(0..keys.len().max(1))).cloned();
    match (rng.random_range(0..6), some) {
        (0, Some(key)) => drop(map.shift_remove(&key)),
        (1, Some(key)) => drop(map.insert(key, Value::Null)),
        (2, Some(key)) => {
            let value = map.shift_remove(&key).unwrap_or_default();
            map.insert(format!("{}{key}", pick(rng, words)), value);
        }
        (3, Some(key)) => {
            let value = map[&key].clone();
            let times = times(rng, &value);
            map.extend((0..times).map(|n| (format!("{key}{n}"), value.clone())));
        }
        (4, Some(key)) => {
            let value = map.shift_remove(&key).unwrap_or_default();
            map.insert(key.repeat(rng.random_range(1..2 + 32 * 1024 / (1 + key.len()))), value);
        }
        _ => drop(map.insert((*pick(rng, words)).to_owned(), taken(rng, other))),
    }
}

fn change_text(rng: &mut StdRng, text: &mut String, words: &[&str]) {
    let at = (0..=text.len()).rev().find(|at| text.is_char_boundary(*at) && rng.random_bool(0.3)).unwrap_or_default();
    match rng.random_range(0..5) {
        0 => text.truncate(at),
        1 => text.insert_str(at, pick::<&str>(rng, words)),
        2 => *text = text[at..].repeat(rng.random_range(1..200.min(2 + 64 * 1024 / (1 + text.len())).max(2))),
        3 => text.insert(at, *pick(rng, &['\0', '"', '\\', '/', '~', '(', ')', '[', '\'', 'é', '\u{10ffff}', ' '])),
        _ => *text = format!("{}{text}", pick(rng, words)),
    }
    text.truncate((0..=text.len().min(16 * 1024)).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default());
}

/// How often a value is repeated: what comes out is hardly ever too large to be used.
fn times(rng: &mut StdRng, value: &Value) -> usize {
    let most = MAX_INPUT / 2 / (value.to_string().len() + 8);
    rng.random_range(0..=most.min(2000))
}

fn scalar(rng: &mut StdRng, words: &[&str]) -> Value {
    match rng.random_range(0..10) {
        0 => Value::Null,
        1 => rng.random_bool(0.5).into(),
        2 => rng.random::<i64>().into(),
        3 => rng.random_range(-2..3).into(),
        4 => u64::MAX.into(),
        5 => json!(rng.random::<f64>() * 1e300),
        6 => json!([]),
        7 => json!({}),
        _ => (*pick(rng, words)).into(),
    }
}

/// A part of a value.
fn taken(rng: &mut StdRng, from: &Value) -> Value {
    let mut part = from.clone();
    let depth = rng.random_range(0..10);
    descend(rng, &mut part, depth).take()
}

/// A part that is at most so deep.
fn descend<'a>(rng: &mut StdRng, value: &'a mut Value, depth: usize) -> &'a mut Value {
    let length = match &*value {
        Value::Array(items) => items.len(),
        Value::Object(map) => map.len(),
        _ => 0,
    };
    if depth == 0 || length == 0 {
        return value;
    }
    let at = rng.random_range(0..length);
    let inner = match value {
        Value::Array(items) => items.get_mut(at),
        Value::Object(map) => map.values_mut().nth(at),
        _ => None,
    };
    descend(rng, inner.expect("it is that long"), depth - 1)
}

fn span<'a>(rng: &mut StdRng, bytes: &'a [u8]) -> &'a [u8] {
    let at = rng.random_range(0..=bytes.len());
    &bytes[at..(at + rng.random_range(0..64)).min(bytes.len())]
}

fn pick<'a, T>(rng: &mut StdRng, list: &'a [T]) -> &'a T {
    &list[rng.random_range(0..list.len())]
}

fn varint(mut n: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while n >= 0x80 {
        out.push((n & 0x7f) as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
    out
}
