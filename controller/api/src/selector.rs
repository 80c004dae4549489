//! Label selectors: the object form of specs and the string form of query parameters.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use std::collections::BTreeMap;
use std::fmt;

/// An operator of a requirement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    /// The value is one of a set.
    In,
    /// The value is none of a set, or the label is absent.
    NotIn,
    /// The label is there.
    Exists,
    /// The label is absent.
    DoesNotExist,
    /// The value is an integer greater than the one given (node selectors).
    Gt,
    /// The value is an integer less than the one given (node selectors).
    Lt,
}

/// One requirement; a selector is their conjunction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    /// Label key.
    pub key: String,
    /// How the values are compared.
    pub operator: Operator,
    /// Values, sorted.
    pub values: Vec<String>,
}

/// A parsed selector. The empty one selects everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selector(pub Vec<Requirement>);

impl Requirement {
    /// Whether labels satisfy it.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = labels.get(&self.key);
        let number = |text: Option<&String>| text.and_then(|t| t.parse::<i64>().ok());
        match self.operator {
            Operator::In => value.is_some_and(|v| self.values.contains(v)),
            Operator::NotIn => value.is_none_or(|v| !self.values.contains(v)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::Gt => number(value).zip(number(self.values.first())).is_some_and(|(a, b)| a > b),
            Operator::Lt => number(value).zip(number(self.values.first())).is_some_and(|(a, b)| a < b),
        }
    }

    /// From the words of an API object (`In`, `NotIn`, `Exists`, `DoesNotExist`, `Gt`, `Lt`).
    pub fn new(key: &str, operator: &str, values: &[String]) -> Result<Self, String> {
        let operator = match operator {
            "In" => Operator::In,
            "NotIn" => Operator::NotIn,
            "Exists" => Operator::Exists,
            "DoesNotExist" => Operator::DoesNotExist,
            "Gt" => Operator::Gt,
            "Lt" => Operator::Lt,
            other => return Err(format!("{other:?} is not a valid label selector operator")),
        };
        let mut values = values.to_vec();
        values.sort();
        Ok(Self { key: key.to_owned(), operator, values })
    }
}

impl Selector {
    /// Whether labels satisfy every requirement.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|r| r.matches(labels))
    }

    /// As [`Self::matches`], for the optional labels of an object.
    pub fn matches_option(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        self.matches(labels.unwrap_or(&NONE))
    }

    /// Selects everything.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// From an exact map, as in `Service.spec.selector` and `nodeSelector`.
    pub fn from_map(map: &BTreeMap<String, String>) -> Self {
        Self(
            map.iter()
                .map(|(k, v)| Requirement { key: k.clone(), operator: Operator::In, values: vec![v.clone()] })
                .collect(),
        )
    }

    /// From a `LabelSelector` object.
    pub fn from_object(selector: &LabelSelector) -> Result<Self, String> {
        let mut all = selector.match_labels.as_ref().map(Self::from_map).unwrap_or_default();
        for e in selector.match_expressions.iter().flatten() {
            all.0.push(Requirement::new(&e.key, &e.operator, e.values.as_deref().unwrap_or_default())?);
        }
        Ok(all)
    }

    /// From the query string form: `a=b,c!=d,e in (f,g),h notin (i),j,!k`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut all = Vec::new();
        for term in split_terms(text) {
            let term = term.trim();
            if term.is_empty() {
                continue;
            }
            all.push(parse_term(term)?);
        }
        Ok(Self(all))
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, r) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            let key = &r.key;
            let list = r.values.join(",");
            match (r.operator, r.values.len()) {
                (Operator::In, 1) => write!(f, "{key}={list}")?,
                (Operator::In, _) => write!(f, "{key} in ({list})")?,
                (Operator::NotIn, 1) => write!(f, "{key}!={list}")?,
                (Operator::NotIn, _) => write!(f, "{key} notin ({list})")?,
                (Operator::Exists, _) => write!(f, "{key}")?,
                (Operator::DoesNotExist, _) => write!(f, "!{key}")?,
                (Operator::Gt, _) => write!(f, "{key}>{list}")?,
                (Operator::Lt, _) => write!(f, "{key}<{list}")?,
            }
        }
        Ok(())
    }
}

/// Splits at commas outside parentheses.
fn split_terms(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut terms) = (0usize, 0usize, Vec::new());
    for (i, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                terms.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms
}

fn parse_term(term: &str) -> Result<Requirement, String> {
    let requirement = |key: &str, operator, values: Vec<String>| {
        let key = key.trim();
        let ok = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./".contains(&b));
        let mut values = values;
        values.sort();
        ok.then(|| Requirement { key: key.to_owned(), operator, values })
            .ok_or_else(|| format!("unable to parse requirement: {term:?} has no valid label key"))
    };
    if let Some(key) = term.strip_prefix('!') {
        return requirement(key, Operator::DoesNotExist, Vec::new());
    }
    if let Some(open) = term.find('(') {
        let inner = term[open + 1..]
            .strip_suffix(')')
            .ok_or_else(|| format!("unable to parse requirement: {term:?} lacks a closing parenthesis"))?;
        let values = inner.split(',').map(|v| v.trim().to_owned()).collect();
        let head = term[..open].trim_end();
        let (key, word) = head
            .rsplit_once(char::is_whitespace)
            .ok_or_else(|| format!("unable to parse requirement: {term:?} needs 'in' or 'notin'"))?;
        return match word {
            "in" => requirement(key, Operator::In, values),
            "notin" => requirement(key, Operator::NotIn, values),
            _ => Err(format!("unable to parse requirement: found {word:?}, expected: in, notin")),
        };
    }
    for (sign, operator) in [("!=", Operator::NotIn), ("==", Operator::In), ("=", Operator::In)] {
        if let Some((key, value)) = term.split_once(sign) {
            return requirement(key, operator, vec![value.trim().to_owned()]);
        }
    }
    for (sign, operator) in [(">", Operator::Gt), ("<", Operator::Lt)] {
        if let Some((key, value)) = term.split_once(sign) {
            return requirement(key, operator, vec![value.trim().to_owned()]);
        }
    }
    requirement(term, Operator::Exists, Vec::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn string_form() {
        let l = labels(&[("app", "web"), ("tier", "front")]);
        for (text, want) in [
            ("", true),
            ("app=web", true),
            ("app==web,tier", true),
            ("app!=web", false),
            ("missing!=x", true),
            ("app in (api, web)", true),
            ("app notin (api,web)", false),
            ("!app", false),
            ("!other", true),
        ] {
            assert_eq!(Selector::parse(text).unwrap().matches(&l), want, "{text}");
        }
        for text in ["app in web", "a b (c)", "=x", "app in (web"] {
            assert!(Selector::parse(text).is_err(), "{text}");
        }
        assert_eq!(Selector::parse("b in (y,x),a=1").unwrap().to_string(), "b in (x,y),a=1");
    }
}
