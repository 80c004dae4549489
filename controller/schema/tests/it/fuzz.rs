//! Inputs changed at random, against everything that reads what a client sends: no panic, no input that takes long, no
//! output that is out of proportion.
//!
//! In: `tests/corpus/<target>/`, and `FUZZ_SECONDS` (for each target, 3 where it is not set), `FUZZ_SEED` (1) and
//! `FUZZ_TRACE` (a folder: each input is written there before it is tried, for what ends the process). An input that
//! fails is written into the corpus, and is tried first from then on.

use crate::mutate;
use causeway_schema::apply::{FieldManager, apply, track};
use causeway_schema::bounds::{MAX_DEPTH, MAX_SIZE, is_deeper};
use causeway_schema::{Schema, anything, builtin, crd, patch, protobuf, strict};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// One input may take so long: without optimisation, and while other tests run. What is quadratic takes longer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Reads one input; returns the size of what came out of it, in bytes, and how large it may be.
type Target = fn(&[u8]) -> (usize, usize);

/// Changes an input; gets another one as well, to take parts of.
type Mutation = fn(&mut StdRng, &[u8], &[u8]) -> Vec<u8>;

fn fuzz(name: &str, target: Target, mutation: Mutation) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(name);
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    let mut corpus: Vec<Vec<u8>> = files.iter().map(|path| std::fs::read(path).unwrap()).collect();
    assert!(corpus.len() > 1, "{} holds nothing to begin with", folder.display());
    for (input, path) in corpus.iter().zip(&files) {
        if let Err(why) = attempt(name, target, input) {
            panic!("{}: {why}", path.display());
        }
    }
    let number = |key: &str, default| std::env::var(key).map_or(default, |text| text.parse().expect("a number"));
    let mut rng = StdRng::seed_from_u64(number("FUZZ_SEED", 1));
    let end = Instant::now() + Duration::from_secs(number("FUZZ_SECONDS", 3));
    let (seeds, mut tried) = (corpus.len(), 0u64);
    while Instant::now() < end {
        let (one, other) = (rng.random_range(0..corpus.len()), rng.random_range(0..corpus.len()));
        let input = mutation(&mut rng, &corpus[one], &corpus[other]);
        if let Err(why) = attempt(name, target, &input) {
            let path = folder.join(format!("found-{:016x}", hash(&input)));
            std::fs::write(&path, &input).unwrap();
            panic!("after {tried} inputs: {why}; it is in {}", path.display());
        }
        tried += 1;
        // Changes of changes: a few are kept to go on with.
        if rng.random_bool(0.1) && input.len() < 16 * 1024 {
            match corpus.len() {
                length if length < seeds + 200 => corpus.push(input),
                length => corpus[rng.random_range(seeds..length)] = input,
            }
        }
    }
    println!("{name}: {tried} inputs");
}

fn attempt(name: &str, target: Target, input: &[u8]) -> Result<(), String> {
    if let Some(folder) = std::env::var_os("FUZZ_TRACE") {
        std::fs::write(Path::new(&folder).join(name), input).unwrap();
    }
    let begin = Instant::now();
    let (size, most) = catch_unwind(|| target(input)).map_err(|_| "it panicked".to_owned())?;
    let took = begin.elapsed();
    if took > PATIENCE {
        return Err(format!("{} bytes took {took:?}", input.len()));
    }
    if size > most {
        return Err(format!("{} bytes became {size}, at most {most} are in proportion", input.len()));
    }
    Ok(())
}

fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Inputs that are JSON, with these words where a key or a text is to be made up.
fn json_mutation(rng: &mut StdRng, one: &[u8], other: &[u8], words: &[&str]) -> Vec<u8> {
    match (serde_json::from_slice(one), serde_json::from_slice(other)) {
        (Ok(one), Ok(other)) => mutate::value(rng, &one, &other, words).to_string().into_bytes(),
        _ => mutate::bytes(rng, one, other),
    }
}

/// As the server does: what is too deep is refused before anything else.
fn parsed(input: &[u8]) -> Option<Value> {
    let value = strict::parse_json(input).ok()?.0;
    (!is_deeper(&value, MAX_DEPTH + 2)).then_some(value)
}

fn size(value: &Value) -> usize {
    value.to_string().len()
}

fn schema_of(object: &Value) -> Arc<Schema> {
    let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default();
    let (group, version) = text("apiVersion").split_once('/').unwrap_or(("", text("apiVersion")));
    builtin(group, version, text("kind")).unwrap_or_else(anything)
}

const WORDS: &[&str] = &[
    "",
    "a",
    "name",
    "spec",
    "metadata",
    "containers",
    "$patch",
    "replace",
    "delete",
    "merge",
    "$retainKeys",
    "$setElementOrder/containers",
    "$setElementOrder/ports",
    "$deleteFromPrimitiveList/finalizers",
    "finalizers",
    "ports",
    "containerPort",
    "protocol",
    "managedFields",
    "fieldsV1",
    "f:spec",
    "k:{\"name\":\"a\"}",
    "v:1",
    "i:0",
    ".",
    "manager",
    "operation",
    "Apply",
    "Update",
    "k:{",
];

#[test]
fn protobuf_bodies() {
    fn target(input: &[u8]) -> (usize, usize) {
        let Ok(value) = protobuf::decode(input) else { return (0, 0) };
        assert!(!is_deeper(&value, MAX_DEPTH));
        // Two bytes are an empty message, of which fields that Go writes also when they are empty are left.
        (size(&value), 200 * input.len() + 4096)
    }
    fuzz("protobuf", target, mutate::bytes);
}

#[test]
fn json_and_merge_patches() {
    const WORDS: &[&str] = &[
        "add", "remove", "replace", "move", "copy", "test", "op", "path", "from", "value", "/a", "/a/0", "/a/-", "/",
        "", "~0", "~1",
    ];
    fn target(input: &[u8]) -> (usize, usize) {
        let Some(input_value) = parsed(input) else { return (0, 0) };
        let (doc, change) = (&input_value["doc"], &input_value["patch"]);
        let merged = size(&patch::merge(doc, change));
        let patched = patch::json(doc, change).map_or(0, |v| size(&v));
        (merged.max(patched), 2 * input.len() + MAX_SIZE)
    }
    fuzz("json-patch", target, |rng, one, other| json_mutation(rng, one, other, WORDS));
}

#[test]
fn strategic_merge_patches() {
    fn target(input: &[u8]) -> (usize, usize) {
        let Some(input_value) = parsed(input) else { return (0, 0) };
        let (doc, change) = (&input_value["doc"], &input_value["patch"]);
        let patched = patch::strategic(doc, change, &schema_of(doc));
        (patched.map_or(0, |v| size(&v)), 2 * input.len() + 4096)
    }
    fuzz("strategic", target, |rng, one, other| json_mutation(rng, one, other, WORDS));
}

#[test]
fn applied_configurations() {
    fn target(input: &[u8]) -> (usize, usize) {
        let Some(input_value) = parsed(input) else { return (0, 0) };
        let (live, applied) = (&input_value["live"], &input_value["applied"]);
        let schema = schema_of(live);
        let manager =
            FieldManager { name: "a", api_version: "v1", subresource: "", now: "2026-01-01T00:00:00Z", force: false };
        let applied_size = match apply(Some(live), applied, &schema, &manager) {
            Ok(value) => size(&value),
            Err(error) => error.to_string().len(),
        };
        let forced = apply(Some(live), applied, &schema, &FieldManager { force: true, ..manager });
        let mut new = applied.clone();
        track(Some(live), &mut new, &schema, &manager);
        let most = [applied_size, forced.map_or(0, |v| size(&v)), size(&new)].into_iter().max();
        // A default of a key is written for each item, and each conflict names a manager and a path.
        (most.unwrap_or_default(), 16 * input.len() + 1024 * 1024)
    }
    fuzz("apply", target, |rng, one, other| json_mutation(rng, one, other, WORDS));
}

#[test]
fn strict_reading() {
    fn target(input: &[u8]) -> (usize, usize) {
        let Ok((mut object, duplicates)) = strict::parse_json(input) else { return (0, 0) };
        let schema = schema_of(&object);
        let unknown = strict::unknown_fields(&object, &schema);
        let wrong = strict::type_errors(&object, &schema);
        let told = duplicates.iter().chain(&unknown).chain(wrong.iter().map(|(_, text)| text)).map(String::len).sum();
        strict::zero_null_items(&mut object, &schema);
        strict::zero_nulls(&mut object, &schema);
        strict::drop_unknown(&mut object, &schema);
        assert!(strict::unknown_fields(&object, &schema).is_empty());
        (told, 3 * 1024 * 1024)
    }
    fuzz("strict", target, |rng, one, other| match rng.random_bool(0.5) {
        true => mutate::bytes(rng, one, other),
        false => json_mutation(rng, one, other, WORDS),
    });
}

#[test]
fn custom_resources_with_rules() {
    const WORDS: &[&str] = &[
        "type",
        "object",
        "array",
        "string",
        "integer",
        "properties",
        "items",
        "additionalProperties",
        "x-kubernetes-validations",
        "rule",
        "self",
        "self.",
        "oldSelf",
        ".all(x, ",
        ".exists(y, ",
        ".map(z, z)",
        "has(self.a)",
        " == ",
        " && ",
        "(",
        ")",
        "[0]",
        "size(",
        "x-kubernetes-list-type",
        "map",
        "x-kubernetes-list-map-keys",
        "default",
        "pattern",
        "enum",
        "maximum",
        "allOf",
        "oneOf",
        "not",
        "nullable",
        "required",
    ];
    fn target(input: &[u8]) -> (usize, usize) {
        let Some(mut input_value) = parsed(input) else { return (0, 0) };
        let Ok(schema) = crd::structural(&input_value["schema"]) else { return (0, 0) };
        let mut object = input_value["object"].take();
        crd::prune(&mut object, &schema);
        crd::default(&mut object, &schema);
        let old = input_value.get("old").filter(|old| old.is_object());
        let errors = crd::validate(&object, old, &schema);
        let told: usize = errors.iter().map(|e| e.path.len() + e.detail.len() + size(&e.value)).sum();
        // A message of a rule can be as long as the object.
        (told, 32 * input.len() + 4 * 1024 * 1024)
    }
    fuzz("custom", target, |rng, one, other| json_mutation(rng, one, other, WORDS));
}
