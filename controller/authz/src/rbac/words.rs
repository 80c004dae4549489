//! A list of words of a rule (verbs, resources, names): in one allocation, in its order, quick to search.

use serde_json::Value;
use std::hash::{Hash, Hasher};

/// From this length on a list is searched through an index, not word by word.
const INDEXED: usize = 16;

/// An immutable list of strings.
#[derive(Debug, Clone, Default)]
pub(super) struct Words {
    text: Box<str>,
    /// End of each word in `text`.
    ends: Box<[u32]>,
    /// Places of the words in alphabetical order; only for long lists.
    sorted: Box<[u32]>,
    /// `*` is among them.
    star: bool,
}

impl Words {
    /// A missing or null list is empty; `None` for what is no list of strings.
    pub fn parse(value: Option<&Value>) -> Option<Self> {
        match value {
            None | Some(Value::Null) => Some(Self::default()),
            Some(Value::Array(items)) => {
                let words: Option<Vec<&str>> = items.iter().map(Value::as_str).collect();
                Self::new(&words?)
            }
            Some(_) => None,
        }
    }

    /// `None` where the text is longer than 4 GiB.
    pub fn new(words: &[&str]) -> Option<Self> {
        let text = words.concat();
        u32::try_from(text.len()).ok()?;
        let mut end = 0u32;
        let ends = words.iter().map(|word| {
            end += word.len() as u32;
            end
        });
        let ends: Box<[u32]> = ends.collect();
        let sorted = if words.len() < INDEXED {
            Vec::new()
        } else {
            let mut places: Vec<u32> = (0..ends.len() as u32).collect();
            places.sort_unstable_by_key(|place| words[*place as usize]);
            places
        };
        Some(Self { text: text.into(), ends, sorted: sorted.into(), star: words.contains(&"*") })
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    fn get(&self, place: usize) -> &str {
        let start = if place == 0 { 0 } else { self.ends[place - 1] as usize };
        &self.text[start..self.ends[place] as usize]
    }

    pub fn iter(&self) -> impl Iterator<Item = &str> {
        (0..self.len()).map(|place| self.get(place))
    }

    /// Exactly this word is among them.
    pub fn contains(&self, word: &str) -> bool {
        if self.sorted.is_empty() {
            self.iter().any(|w| w == word)
        } else {
            self.sorted.binary_search_by_key(&word, |place| self.get(*place as usize)).is_ok()
        }
    }

    /// The word or `*`.
    pub fn allows(&self, word: &str) -> bool {
        self.star || self.contains(word)
    }

    pub fn to_value(&self) -> Value {
        self.iter().collect::<Vec<_>>().into()
    }
}

impl PartialEq for Words {
    fn eq(&self, other: &Self) -> bool {
        self.ends == other.ends && self.text == other.text
    }
}

impl Eq for Words {}

impl Hash for Words {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.text, &self.ends).hash(state);
    }
}
