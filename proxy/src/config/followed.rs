//! Objects that are known by name only, as last read. In: what the API said of each. Out: the object, that there is none, or
//! why nobody can tell yet: what was not read is not missing.

use crate::route::ObjectKey;
use std::collections::HashMap;
use std::sync::Arc;

/// What a look at the API came to: the object, `None` when there is none, or why it could not be read.
pub type Found<K> = Result<Option<K>, String>;

/// Said of what nobody has answered yet.
const UNREAD: &str = "it has not been read yet";
/// The longest name that an object may have.
const LONGEST: usize = 253;

/// Objects of one kind.
#[derive(Debug)]
pub struct Followed<K> {
    all: HashMap<ObjectKey, Found<Arc<K>>>,
}

impl<K> Default for Followed<K> {
    fn default() -> Self {
        Self { all: HashMap::new() }
    }
}

/// Whether an object can have this name. What users write may be anything, and is put into a selector and a path.
pub fn is_possible(key: &ObjectKey) -> bool {
    let is_name = |text: &str| {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
        let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
        text.len() <= LONGEST && text.bytes().all(plain) && edge(text.bytes().next()) && edge(text.bytes().next_back())
    };
    is_name(&key.namespace) && is_name(&key.name)
}

impl<K> Followed<K> {
    /// The object, `None` when there is none.
    ///
    /// # Errors
    /// Why that is not known.
    pub fn get(&self, key: &ObjectKey) -> Result<Option<&Arc<K>>, &str> {
        match self.all.get(key) {
            Some(Ok(found)) => Ok(found.as_ref()),
            Some(Err(why)) => Err(why),
            None if is_possible(key) => Err(UNREAD),
            None => Ok(None),
        }
    }

    /// Takes over what was found; says whether that makes a difference.
    pub fn put(&mut self, key: ObjectKey, found: Found<K>, same: impl Fn(&K, &K) -> bool) -> bool {
        let found = found.map(|object| object.map(Arc::new));
        let differs = match (self.all.get(&key), &found) {
            // What is known serves on, and why something is not known is said in the same words until it is.
            (Some(_), Err(_)) => return false,
            (None, _) | (Some(Err(_)), Ok(_)) => true,
            (Some(Ok(Some(old))), Ok(Some(new))) => !same(old, new),
            (Some(Ok(old)), Ok(new)) => old.is_some() != new.is_some(),
        };
        self.all.insert(key, found);
        differs
    }

    /// Nobody needs it any more.
    pub fn forget(&mut self, key: &ObjectKey) {
        self.all.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unread_is_not_missing_and_the_last_that_is_known_serves_on() {
        let (mut all, key) = (Followed::<u8>::default(), ObjectKey::new("n", "s"));
        let same = |a: &u8, b: &u8| a == b;
        assert_eq!(all.get(&key), Err(UNREAD));
        assert!(all.put(key.clone(), Err("refused".to_owned()), same));
        assert!(!all.put(key.clone(), Err("refused once more".to_owned()), same));
        assert_eq!(all.get(&key), Err("refused"));
        assert!(all.put(key.clone(), Ok(None), same));
        assert_eq!(all.get(&key), Ok(None));
        assert!(all.put(key.clone(), Ok(Some(1)), same) && !all.put(key.clone(), Ok(Some(1)), same));
        assert!(!all.put(key.clone(), Err("away".to_owned()), same));
        assert_eq!(all.get(&key), Ok(Some(&Arc::new(1))));
        assert!(all.put(key.clone(), Ok(Some(2)), same) && all.put(key.clone(), Ok(None), same));
        all.forget(&key);
        assert_eq!(all.get(&key), Err(UNREAD));
    }

    #[test]
    fn what_cannot_be_a_name_is_not_asked_for() {
        let all = Followed::<u8>::default();
        for (name, possible) in
            [("a", true), ("a.b-c1", true), ("", false), ("a,metadata.name!=b", false), ("../x", false), ("-a", false)]
        {
            assert_eq!(is_possible(&ObjectKey::new("n", name)), possible, "{name}");
            assert_eq!(all.get(&ObjectKey::new("n", name)).is_ok(), !possible, "{name}");
        }
        assert!(!is_possible(&ObjectKey::new("", "a")) && !is_possible(&ObjectKey::new("n/x", "a")));
    }
}
