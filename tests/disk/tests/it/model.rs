//! What the store must hold, by what was sent, acknowledged and told: the judge of the power cuts.
//!
//! In: what a child says while it writes, and what the next one finds. Out: whether every promise was kept. Nothing
//! here knows the engine or the device.

use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The store may compact by itself what is older than the newest so many revisions.
const KEPT: u64 = 20_000;

/// A write that was sent: to which key, and the value's digest, or that it deletes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Write {
    key: String,
    digest: Option<String>,
}

/// What happened at a revision.
#[derive(Debug, Clone)]
struct Entry {
    write: Write,
    /// Which of the writes sent it is.
    number: u64,
}

/// A key as it is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub revision: u64,
    pub created: u64,
    pub digest: String,
}

/// A change as a resumed watch delivers it.
#[derive(Debug, Clone)]
pub struct Event {
    pub revision: u64,
    pub key: String,
    pub created: u64,
    pub digest: Option<String>,
    /// The revision of the value before; 0 for none.
    pub before: u64,
}

/// Everything a store was found to hold when it was opened.
#[derive(Debug, Clone, Default)]
pub struct Found {
    pub revision: u64,
    pub compacted: u64,
    /// Where the watch was resumed, and what was listed as of then.
    pub from: u64,
    pub old: BTreeMap<String, Listed>,
    pub events: Vec<Event>,
    pub new: BTreeMap<String, Listed>,
}

/// All that is known of one store.
#[derive(Debug, Clone, Default)]
pub struct Model {
    sent: HashMap<u64, Write>,
    /// Sent, and neither acknowledged nor refused nor found: may be there, once.
    open: BTreeSet<u64>,
    /// What is known to have happened, by revision. What compaction hid before anyone looked is missing.
    log: BTreeMap<u64, Entry>,
    /// The same by key: `None` for a deletion.
    keys: BTreeMap<String, BTreeMap<u64, Option<String>>>,
    /// The newest revision that anyone was told.
    told: u64,
    /// Everything up to here has been found once and cannot change any more.
    settled: u64,
    compacted: u64,
    /// The newest revision that a compaction was asked for.
    asked: u64,
    acknowledged: u64,
}

impl Model {
    /// The newest revision at which a restarted store was found.
    pub fn settled(&self) -> u64 {
        self.settled
    }

    /// How many writes were acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    pub fn send(&mut self, number: u64, key: &str, digest: Option<&str>) {
        self.sent.insert(number, Write { key: key.to_owned(), digest: digest.map(str::to_owned) });
        self.open.insert(number);
    }

    pub fn acknowledge(&mut self, number: u64, revision: u64) -> Result<(), String> {
        let write = self.sent.get(&number).cloned().ok_or_else(|| format!("write {number} was never sent"))?;
        self.acknowledged += 1;
        self.told = self.told.max(revision);
        if revision <= self.settled {
            return Err(format!("write {number} got revision {revision}, which was given away before a restart"));
        }
        match self.log.get_mut(&revision) {
            Some(entry) if entry.number == number => {}
            // A watcher was told first, and it could have been either of two equal writes.
            Some(entry) if entry.write == write => {
                self.open.insert(entry.number);
                self.open.remove(&number);
                entry.number = number;
            }
            Some(entry) => {
                return Err(format!("revision {revision} was {:?} and is acknowledged for {write:?}", entry.write));
            }
            None => {
                self.open.remove(&number);
                self.enter(revision, number, write);
            }
        }
        Ok(())
    }

    /// A write that was surely not done.
    pub fn refuse(&mut self, number: u64) -> Result<(), String> {
        if self.open.remove(&number) {
            return Ok(());
        }
        // A watcher was told of one that it could have been; then it was another one.
        let taken = self.log.iter().rev().find(|(_, e)| e.number == number).map(|(r, e)| (*r, e.write.clone()));
        let Some((revision, write)) = taken else { return Ok(()) };
        let other = self.open.iter().copied().find(|n| self.sent.get(n) == Some(&write));
        let other = other.ok_or_else(|| format!("write {number} was refused, and seen at {revision}: {write:?}"))?;
        self.open.remove(&other);
        if let Some(entry) = self.log.get_mut(&revision) {
            entry.number = other;
        }
        Ok(())
    }

    /// A reader was told this revision.
    pub fn tell(&mut self, revision: u64) {
        self.told = self.told.max(revision);
    }

    pub fn ask_compaction(&mut self, revision: u64) {
        self.asked = self.asked.max(revision);
    }

    pub fn compact(&mut self, revision: u64) {
        self.compacted = self.compacted.max(revision);
    }

    /// Someone saw a change.
    pub fn see(&mut self, revision: u64, key: &str, digest: Option<&str>) -> Result<(), String> {
        self.told = self.told.max(revision);
        let seen = Write { key: key.to_owned(), digest: digest.map(str::to_owned) };
        match self.log.get(&revision) {
            Some(entry) if entry.write == seen => Ok(()),
            Some(entry) => Err(format!("revision {revision} was {:?} and is now {seen:?}", entry.write)),
            None => {
                let number = self.open.iter().copied().find(|n| self.sent.get(n) == Some(&seen));
                let number = number.ok_or_else(|| match self.sent.values().any(|w| *w == seen) {
                    true => format!("revision {revision} is {seen:?}: refused, or sent for another revision"),
                    false => format!("revision {revision} is {seen:?}, which nobody sent"),
                })?;
                self.open.remove(&number);
                self.enter(revision, number, seen);
                Ok(())
            }
        }
    }

    fn enter(&mut self, revision: u64, number: u64, write: Write) {
        self.keys.entry(write.key.clone()).or_default().insert(revision, write.digest.clone());
        self.log.insert(revision, Entry { write, number });
    }

    /// Judges what a restarted store holds. Afterwards that is the truth: what was open and is not there never will be.
    pub fn check(&mut self, base: u64, found: &Found) -> Result<(), String> {
        let Found { revision, compacted, from, .. } = *found;
        if revision < self.told {
            return Err(format!("the revision went back: {} was told, {revision} is found", self.told));
        }
        if compacted < self.compacted {
            return Err(format!("the compacted revision went back: {} was told, {compacted} is found", self.compacted));
        }
        let asked = self.asked.max(revision.saturating_sub(KEPT));
        if compacted > asked {
            return Err(format!("compacted to {compacted}, and nobody asked for more than {asked}"));
        }
        if from != base.max(compacted) {
            return Err(format!("a watch from {base} of a store compacted to {compacted} began at {from}"));
        }
        self.check_old(found)?;
        let mut state = found.old.clone();
        for (event, expected) in found.events.iter().zip(from + 1..) {
            if event.revision != expected {
                return Err(format!("the watch delivered {} where {expected} comes next", event.revision));
            }
            self.see(event.revision, &event.key, event.digest.as_deref())?;
            replay(&mut state, event)?;
        }
        if from + found.events.len() as u64 != revision {
            return Err(format!("the watch from {from} ended before {revision}: {} events", found.events.len()));
        }
        if state != found.new {
            let odd = state.keys().chain(found.new.keys()).find(|k| state.get(*k) != found.new.get(*k));
            let sides = odd.map(|k| (k, state.get(k), found.new.get(k)));
            return Err(format!("the list and the watch disagree (key, watch, list): {sides:?}"));
        }
        self.settled = revision;
        self.told = self.told.max(revision);
        self.compacted = compacted;
        self.open.clear();
        Ok(())
    }

    /// The list as of where the watch begins, against what is known of each key.
    fn check_old(&mut self, found: &Found) -> Result<(), String> {
        let from = found.from;
        for (key, listed) in &found.old {
            if listed.revision > from {
                return Err(format!("{key} as of {from} has revision {}", listed.revision));
            }
            self.see(listed.revision, key, Some(&listed.digest)).map_err(|e| format!("list as of {from}: {e}"))?;
        }
        // Revisions that compaction hid before anyone saw what they were.
        let hidden = |after: u64, model: &Self| {
            (after.max(model.settled) + 1..=from).any(|revision| !model.log.contains_key(&revision))
        };
        let mut deleted = Vec::new();
        for (key, history) in &self.keys {
            let last = history.range(..=from).next_back();
            match (last, found.old.get(key)) {
                (None | Some((_, None)), None) => {}
                (Some((last, _)), Some(listed)) if *last == listed.revision => {}
                (Some((last, Some(digest))), None) => {
                    let deletion = Write { key: key.clone(), digest: None };
                    let may_be = self.open.iter().any(|n| self.sent.get(n) == Some(&deletion));
                    if !(may_be && hidden(*last, self)) {
                        return Err(format!("{key}, written at {last} ({digest}), is missing as of {from}"));
                    }
                    deleted.push(key.clone());
                }
                (last, listed) => {
                    return Err(format!("{key} as of {from} must be {last:?}, and is {listed:?}"));
                }
            }
        }
        for key in deleted {
            self.keys.entry(key).or_default().insert(from, None);
        }
        Ok(())
    }
}

fn replay(state: &mut BTreeMap<String, Listed>, event: &Event) -> Result<(), String> {
    let before = state.get(&event.key);
    if before.map_or(0, |b| b.revision) != event.before {
        return Err(format!("{event:?} follows {before:?}"));
    }
    let created = before.map_or(event.revision, |b| b.created);
    if created != event.created {
        return Err(format!("{event:?} should say that the key was created at {created}"));
    }
    match &event.digest {
        Some(digest) => {
            let listed = Listed { revision: event.revision, created, digest: digest.clone() };
            state.insert(event.key.clone(), listed);
        }
        None if before.is_none() => return Err(format!("{event:?} deletes nothing")),
        None => drop(state.remove(&event.key)),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(revision: u64, digest: &str) -> Listed {
        Listed { revision, created: revision, digest: digest.to_owned() }
    }

    /// One key, written once at revision 2 and acknowledged.
    fn written() -> Model {
        let mut model = Model { told: 1, settled: 1, ..Model::default() };
        model.send(1, "a", Some("x"));
        model.acknowledge(1, 2).unwrap();
        model
    }

    fn found(events: &[(u64, &str, Option<&str>)], new: &[(&str, Listed)]) -> Found {
        let mut before: HashMap<&str, u64> = HashMap::new();
        let mut list = Vec::new();
        for (revision, key, digest) in events {
            let old = before.insert(key, *revision).unwrap_or(0);
            let created = if old > 0 { old } else { *revision };
            let digest = digest.map(str::to_owned);
            list.push(Event { revision: *revision, key: (*key).to_owned(), created, digest, before: old });
        }
        let new = new.iter().map(|(k, l)| ((*k).to_owned(), l.clone())).collect();
        let revision = events.last().map_or(1, |e| e.0);
        Found { revision, from: 1, events: list, new, ..Found::default() }
    }

    #[test]
    fn what_was_acknowledged_must_be_there() {
        assert!(written().check(1, &found(&[(2, "a", Some("x"))], &[("a", listed(2, "x"))])).is_ok());
        assert!(written().check(1, &found(&[], &[])).is_err(), "lost");
        assert!(written().check(1, &found(&[(2, "a", Some("y"))], &[("a", listed(2, "y"))])).is_err(), "changed");
        assert!(written().check(1, &found(&[(2, "a", Some("x"))], &[])).is_err(), "not in the list");
    }

    #[test]
    fn what_was_sent_may_be_there_once_and_not_later() {
        let open = || {
            let mut model = written();
            model.send(2, "a", None);
            model
        };
        let without = found(&[(2, "a", Some("x"))], &[("a", listed(2, "x"))]);
        let with = found(&[(2, "a", Some("x")), (3, "a", None)], &[]);
        assert!(open().check(1, &with).is_ok());
        let mut model = open();
        model.check(1, &without).unwrap();
        assert!(model.check(1, &with).is_err(), "it was not there after the restart");
        let mut model = open();
        model.refuse(2).unwrap();
        assert!(model.check(1, &with).is_err(), "it was refused");
        assert!(written().check(1, &with).is_err(), "nobody sent it");
    }

    #[test]
    fn compaction_hides_only_what_it_may() {
        // Found at 5, compacted to 4: what 3 and 4 were is not to be seen any more.
        let compacted = |old: &[(&str, Listed)]| {
            let old: BTreeMap<_, _> = old.iter().map(|(k, l)| ((*k).to_owned(), l.clone())).collect();
            let mut found = found(&[(5, "c", Some("z"))], &[]);
            (found.compacted, found.from, found.old) = (4, 4, old.clone());
            found.new = old;
            found.new.insert("c".to_owned(), listed(5, "z"));
            found
        };
        let model = || {
            let mut model = written();
            model.send(2, "b", Some("y"));
            model.send(3, "a", None);
            model.send(4, "c", Some("z"));
            model.ask_compaction(4);
            model
        };
        assert!(model().check(1, &compacted(&[("a", listed(2, "x")), ("b", listed(3, "y"))])).is_ok());
        assert!(model().check(1, &compacted(&[("b", listed(3, "y"))])).is_ok(), "deleted at 4, as was sent");
        let mut later = model();
        later.check(1, &compacted(&[("b", listed(3, "y"))])).unwrap();
        assert!(later.check(1, &compacted(&[("a", listed(2, "x")), ("b", listed(3, "y"))])).is_err(), "it came back");
        let mut refused = model();
        refused.refuse(3).unwrap();
        assert!(refused.check(1, &compacted(&[("b", listed(3, "y"))])).is_err(), "nobody deleted it");
        let mut unasked = model();
        unasked.asked = 3;
        assert!(unasked.check(1, &compacted(&[("a", listed(2, "x")), ("b", listed(3, "y"))])).is_err());
    }

    #[test]
    fn what_readers_were_told_binds() {
        let mut model = written();
        model.tell(3);
        assert!(model.check(1, &found(&[(2, "a", Some("x"))], &[("a", listed(2, "x"))])).is_err());
        let mut model = written();
        model.send(2, "b", Some("y"));
        model.see(3, "b", Some("y")).unwrap();
        assert!(model.check(1, &found(&[(2, "a", Some("x"))], &[("a", listed(2, "x"))])).is_err());
    }
}
