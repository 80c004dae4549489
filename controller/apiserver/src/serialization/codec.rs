//! Bodies in: JSON, YAML or Kubernetes' protobuf to JSON values, and what is wrong with them.

use crate::catalog::Served;
use crate::request::FieldValidation;
use crate::status::{ApiError, ApiResult};
use causeway_schema::bounds::{MAX_DEPTH, MAX_SIZE, is_deeper, too_deep};
use causeway_schema::{Schema, strict};
use serde_json::Value;

/// Media types of request bodies.
pub const JSON: &str = "application/json";
/// YAML.
pub const YAML: &str = "application/yaml";
/// Protobuf in Kubernetes' envelope.
pub const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// The most brackets times bytes of a YAML document. Its parser looks at every open bracket for every token: a
/// megabyte of them would keep it busy for minutes. Which of them are text cannot be told without parsing.
const YAML_WORK: usize = 1_000_000_000;

/// The media type without parameters, in lower case.
pub fn media_type(content_type: &str) -> String {
    content_type.split(';').next().unwrap_or("").trim().to_ascii_lowercase()
}

/// A body as a JSON value, and its duplicate fields. No content type means JSON.
pub fn decode(content_type: &str, body: &[u8]) -> ApiResult<(Value, Vec<String>)> {
    match media_type(content_type).as_str() {
        "" | JSON | "*/*" => {
            let (value, problems) = strict::parse_json(body)
                .map_err(|e| ApiError::bad_request(format!("couldn't get version/kind; json parse error: {e}")))?;
            Ok((bounded(value)?, problems))
        }
        YAML | "application/x-yaml" | "text/yaml" => Ok((decode_yaml(body)?, Vec::new())),
        PROTOBUF => causeway_schema::protobuf::decode(body)
            .map(|value| (value, Vec::new()))
            .map_err(|e| ApiError::bad_request(format!("couldn't decode the protobuf body: {e}"))),
        _ => Err(ApiError::unsupported_media_type(&[JSON, YAML, PROTOBUF])),
    }
}

/// YAML (of which JSON is a part) as a JSON value.
pub fn decode_yaml(body: &[u8]) -> ApiResult<Value> {
    // Clients send JSON as YAML, above all for server-side apply; its parser is the quicker one.
    if let Ok(value) = serde_json::from_slice(body) {
        return bounded(value);
    }
    let bad = |why: &dyn std::fmt::Display| ApiError::bad_request(format!("error decoding YAML: {why}"));
    let brackets = body.iter().filter(|b| matches!(b, b'[' | b'{')).count();
    if brackets.saturating_mul(body.len()) > YAML_WORK {
        return Err(bad(&"the document has too many brackets for its size: send it as JSON"));
    }
    let reader = serde_yaml_ng::Deserializer::from_slice(body);
    let (value, _) = strict::read(reader, MAX_SIZE).map_err(|e| bad(&e))?;
    bounded(value)
}

/// Refuses what is nested too deep.
pub fn bounded(value: Value) -> ApiResult<Value> {
    if is_deeper(&value, MAX_DEPTH) { Err(ApiError::bad_request(too_deep())) } else { Ok(value) }
}

/// Makes a whole object one of its kind: as [`conform_applied`], and with zero values for nulls in maps and lists.
pub fn conform(
    served: &Served,
    object: &mut Value,
    problems: Vec<String>,
    validation: FieldValidation,
) -> ApiResult<Vec<String>> {
    conform_with(served, object, problems, validation, strict::zero_nulls)
}

/// Drops or refuses fields the kind does not have, and refuses values of wrong types; nulls in lists become zero values.
/// Returns warnings. For server-side apply, to which a null in a map says nothing.
pub fn conform_applied(
    served: &Served,
    object: &mut Value,
    problems: Vec<String>,
    validation: FieldValidation,
) -> ApiResult<Vec<String>> {
    conform_with(served, object, problems, validation, strict::zero_null_items)
}

fn conform_with(
    served: &Served,
    object: &mut Value,
    mut problems: Vec<String>,
    validation: FieldValidation,
    zero_nulls: fn(&mut Value, &Schema),
) -> ApiResult<Vec<String>> {
    let r = &served.resource;
    let cannot = |why: String| {
        ApiError::bad_request(format!("{} in version {:?} cannot be handled as a {}: {why}", r.kind, r.version, r.kind))
    };
    if !object.is_object() {
        return Err(cannot("json: cannot unmarshal into Go value: the body is no JSON object".to_owned()));
    }
    if served.custom.is_none()
        && let Some((_, message)) = strict::type_errors(object, &served.schema).into_iter().next()
    {
        return Err(cannot(message));
    }
    let unknown = strict::unknown_fields(object, &served.schema);
    if !unknown.is_empty() {
        if served.custom.is_some() {
            causeway_schema::crd::prune(object, &served.schema);
        } else {
            strict::drop_unknown(object, &served.schema);
        }
        problems.extend(unknown);
    }
    if served.custom.is_none() {
        zero_nulls(object, &served.schema);
    } else if let (Some(meta), Some(schema)) = (object.get_mut("metadata"), served.schema.child("metadata")) {
        zero_nulls(meta, schema);
    }
    match validation {
        FieldValidation::Strict if !problems.is_empty() => {
            let list = problems.join(", ");
            Err(cannot(format!("strict decoding error: {list}")))
        }
        FieldValidation::Warn => Ok(problems),
        _ => Ok(Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_documents_that_stand_for_big_ones_are_refused() {
        // A hundred aliases of a hundred aliases of a thousand items.
        let items = |item: &str, times: usize| vec![item; times].join(", ");
        let laughs = format!("a: &a [{}]\nb: &b [{}]\nc: [{}]", items("x", 1_000), items("*a", 100), items("*b", 100));
        let long = format!("a: &a {}\nb: [{}]", "x".repeat(10_000), items("*a", 1_000));
        for document in [laughs, long] {
            let error = decode_yaml(document.as_bytes()).unwrap_err();
            assert_eq!(error.code(), 400);
            assert!(error.to_string().contains("document contains excessive aliasing"), "{error}");
        }
        let fine = decode_yaml(b"base: &b {x: 1}\nlist: [*b, *b]").unwrap();
        assert_eq!(fine, serde_json::json!({"base": {"x": 1}, "list": [{"x": 1}, {"x": 1}]}));
    }

    #[test]
    fn nested_documents_are_refused_soon() {
        let many = 100_000;
        for document in [
            "[".repeat(many),
            "{a: ".repeat(many),
            format!("a: {}", "[\"]\",".repeat(many)),
            "- ".repeat(many),
            "? ".repeat(many),
            (0..1_000).map(|n| format!("{}a:\n", " ".repeat(n))).collect(),
        ] {
            let started = std::time::Instant::now();
            let error = decode_yaml(document.as_bytes()).unwrap_err();
            assert_eq!(error.code(), 400);
            assert!(started.elapsed().as_secs() < 30, "{:?} for {}…", started.elapsed(), &document[..20]);
        }
        let json = format!("[{}1]", "[1],".repeat(200_000));
        assert!(decode_yaml(json.as_bytes()).is_ok(), "JSON has no such bound");
    }
}
