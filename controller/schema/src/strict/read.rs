//! Reading a body into a value: duplicate keys are reported, and what becomes of it is bounded.

use super::{MAX_FINDINGS, Path};
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::fmt;

/// The least that a value takes in a body: a digit and a comma.
const VALUE: usize = 2;
/// What go-yaml says.
const EXCESSIVE: &str = "document contains excessive aliasing";

/// Reads JSON, and reports every key that occurs twice in one object (`duplicate field "spec.x"`; the last one
/// counts, as in Go). The error is the parser's text.
pub fn parse_json(body: &[u8]) -> Result<(Value, Vec<String>), String> {
    let mut reader = serde_json::Deserializer::from_slice(body);
    // JSON is never smaller than what it stands for.
    let read = read(&mut reader, usize::MAX).and_then(|v| reader.end().map(|()| v));
    read.map_err(|e| e.to_string())
}

/// The same for any format. In one with aliases (YAML) a small body can stand for a very big value: what would take
/// more than `limit` bytes as JSON is an error.
pub fn read<'de, D: Deserializer<'de>>(reader: D, limit: usize) -> Result<(Value, Vec<String>), D::Error> {
    let (mut path, mut duplicates, mut left) = (Path::default(), Vec::new(), limit);
    let seed = Strict { path: &mut path, duplicates: &mut duplicates, left: &mut left };
    let value = seed.deserialize(reader)?;
    Ok((value, duplicates))
}

/// Builds a value and remembers where it is.
struct Strict<'a> {
    path: &'a mut Path,
    duplicates: &'a mut Vec<String>,
    left: &'a mut usize,
}

impl Strict<'_> {
    /// Takes what a value of so many bytes needs from what is left.
    fn take<E: Error>(&mut self, bytes: usize) -> Result<(), E> {
        let left = self.left.checked_sub(bytes.saturating_add(VALUE)).ok_or_else(|| E::custom(EXCESSIVE))?;
        *self.left = left;
        Ok(())
    }

    fn inner(&mut self) -> Strict<'_> {
        Strict { path: self.path, duplicates: self.duplicates, left: self.left }
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_bool<E: Error>(mut self, value: bool) -> Result<Value, E> {
        self.take(0)?;
        Ok(value.into())
    }

    fn visit_i64<E: Error>(mut self, value: i64) -> Result<Value, E> {
        self.take(0)?;
        Ok(value.into())
    }

    fn visit_u64<E: Error>(mut self, value: u64) -> Result<Value, E> {
        self.take(0)?;
        Ok(value.into())
    }

    fn visit_f64<E: Error>(mut self, value: f64) -> Result<Value, E> {
        self.take(0)?;
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E: Error>(mut self, value: &str) -> Result<Value, E> {
        self.take(value.len())?;
        Ok(value.into())
    }

    fn visit_string<E: Error>(mut self, value: String) -> Result<Value, E> {
        self.take(value.len())?;
        Ok(value.into())
    }

    fn visit_unit<E: Error>(mut self) -> Result<Value, E> {
        self.take(0)?;
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut access: A) -> Result<Value, A::Error> {
        self.take(0)?;
        let mut items = Vec::new();
        loop {
            let length = self.path.enter_index(items.len());
            let next = access.next_element_seed(self.inner())?;
            self.path.leave(length);
            match next {
                Some(item) => items.push(item),
                None => return Ok(Value::Array(items)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut access: A) -> Result<Value, A::Error> {
        self.take(0)?;
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            if key.contains('\0') {
                return Err(A::Error::custom("a key with a zero byte"));
            }
            self.take(key.len())?;
            let length = self.path.enter(&key);
            let value = access.next_value_seed(self.inner())?;
            if map.insert(key, value).is_some() && self.duplicates.len() < MAX_FINDINGS {
                self.duplicates.push(format!("duplicate field \"{}\"", self.path.shown()));
            }
            self.path.leave(length);
        }
        Ok(Value::Object(map))
    }
}
