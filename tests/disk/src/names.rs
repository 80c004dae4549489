//! The directories of the device: which name means which file, as programs see it and as the device holds it.
//!
//! In: names made, removed and moved, in order; syncs of directories. Out: look-ups, and, after a power cut, the names
//! that are found.

use crate::dice::Dice;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};

/// The number of a file or directory.
pub(crate) type Ino = u64;
/// The folder that is mounted.
pub(crate) const ROOT: Ino = 1;

type Tree = BTreeMap<Ino, BTreeMap<OsString, Ino>>;

/// What a power cut may do to names that no sync covered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NameLoss {
    /// Of each directory the first few changes are found, or an arbitrary selection: what POSIX allows.
    #[default]
    Any,
    /// Of each directory the first few changes are found: what a file system with a journal does.
    Ordered,
    /// All changes are found. Weaker than any real disk; to look past one fault to the next.
    None,
}

/// A place in the tree.
pub(crate) type Place = (Ino, OsString);

#[derive(Debug, Clone)]
enum Change {
    Link(Place, Ino),
    Unlink(Place),
    /// In one directory atomic, as in every journal.
    Move(Place, Place, Ino),
}

impl Change {
    fn directories(&self) -> impl Iterator<Item = Ino> {
        let (first, second) = match self {
            Self::Link((dir, _), _) | Self::Unlink((dir, _)) => (*dir, None),
            Self::Move((from, _), (to, _), _) => (*from, Some(*to).filter(|to| to != from)),
        };
        std::iter::once(first).chain(second)
    }

    fn apply(&self, tree: &mut Tree) {
        match self {
            Self::Link((dir, name), ino) => drop(tree.entry(*dir).or_default().insert(name.clone(), *ino)),
            Self::Unlink((dir, name)) => drop(tree.entry(*dir).or_default().remove(name)),
            Self::Move((from, old), (to, new), ino) => {
                let source = tree.entry(*from).or_default();
                if source.get(old) == Some(ino) {
                    source.remove(old);
                }
                tree.entry(*to).or_default().insert(new.clone(), *ino);
            }
        }
    }
}

/// All names of the device.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    live: Tree,
    durable: Tree,
    pending: Vec<Change>,
}

impl Names {
    pub fn new() -> Self {
        let root = Tree::from([(ROOT, BTreeMap::new())]);
        Self { live: root.clone(), durable: root, pending: Vec::new() }
    }

    pub fn find(&self, dir: Ino, name: &OsStr) -> Option<Ino> {
        self.live.get(&dir)?.get(name).copied()
    }

    pub fn entries(&self, dir: Ino) -> impl Iterator<Item = (&OsString, Ino)> {
        self.live.get(&dir).into_iter().flatten().map(|(name, ino)| (name, *ino))
    }

    /// A new directory, which has no name yet.
    pub fn make_directory(&mut self, dir: Ino) {
        self.live.insert(dir, BTreeMap::new());
        self.durable.insert(dir, BTreeMap::new());
    }

    /// A directory that has been removed. Where the removal is lost, it is found again.
    pub fn remove_directory(&mut self, dir: Ino) {
        self.live.remove(&dir);
    }

    pub fn link(&mut self, place: Place, ino: Ino) {
        self.change(Change::Link(place, ino));
    }

    pub fn unlink(&mut self, place: Place) {
        self.change(Change::Unlink(place));
    }

    pub fn rename(&mut self, from: Place, to: Place, ino: Ino) {
        self.change(Change::Move(from, to, ino));
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.live);
        self.pending.push(change);
    }

    /// How many changes no sync has covered.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Makes all changes of a directory durable, and what they rest on: a file that was moved here has left its place.
    pub fn sync(&mut self, dir: Ino) {
        // From the newest to the oldest: what must be there once a later change is.
        let mut wanted = BTreeSet::from([dir]);
        let mut keep = vec![false; self.pending.len()];
        for (keep, change) in keep.iter_mut().zip(&self.pending).rev() {
            *keep = change.directories().any(|d| wanted.contains(&d));
            if *keep {
                wanted.extend(change.directories());
            }
        }
        let changes = std::mem::take(&mut self.pending);
        for (change, keep) in changes.into_iter().zip(keep) {
            match keep {
                true => change.apply(&mut self.durable),
                false => self.pending.push(change),
            }
        }
    }

    /// The power goes. Returns everything that can still be reached by a name.
    pub fn cut(&mut self, loss: NameLoss, dice: &mut Dice) -> BTreeSet<Ino> {
        let mut totals: BTreeMap<Ino, u64> = BTreeMap::new();
        for dir in self.pending.iter().flat_map(Change::directories) {
            *totals.entry(dir).or_default() += 1;
        }
        let kinds: BTreeMap<Ino, Kept> = totals.iter().map(|(d, n)| (*d, Kept::choose(loss, *n, dice))).collect();
        let mut seen: BTreeMap<Ino, u64> = BTreeMap::new();
        for change in std::mem::take(&mut self.pending) {
            let kept = change.directories().all(|dir| {
                let seen = seen.entry(dir).or_default();
                *seen += 1;
                kinds.get(&dir).is_none_or(|kept| kept.is_kept(*seen, dice))
            });
            if kept {
                change.apply(&mut self.durable);
            }
        }
        let reached = reachable(&self.durable);
        self.durable.retain(|dir, _| reached.contains(dir));
        self.live.clone_from(&self.durable);
        reached
    }

    /// Everything with a name, or that may have one again after a power cut.
    pub fn in_use(&self) -> BTreeSet<Ino> {
        let pending = self.pending.iter().filter_map(|c| match c {
            Change::Link(_, ino) | Change::Move(_, _, ino) => Some(*ino),
            Change::Unlink(_) => None,
        });
        let named = self.live.values().chain(self.durable.values()).flat_map(|entries| entries.values().copied());
        named.chain(pending).chain([ROOT]).collect()
    }

    /// Every file and folder by its path.
    pub fn walk(&self) -> Vec<(std::path::PathBuf, Ino)> {
        let mut found = Vec::new();
        let mut folders = vec![(std::path::PathBuf::new(), ROOT)];
        while let Some((path, dir)) = folders.pop() {
            for (name, ino) in self.entries(dir) {
                found.push((path.join(name), ino));
                if self.live.contains_key(&ino) {
                    folders.push((path.join(name), ino));
                }
            }
        }
        found.sort();
        found
    }
}

/// What is kept of one directory's changes.
enum Kept {
    First(u64),
    Some(u64),
}

impl Kept {
    fn choose(loss: NameLoss, total: u64, dice: &mut Dice) -> Self {
        match (loss, dice.below(5)) {
            (NameLoss::None, _) | (_, 0) => Self::First(total),
            (_, 1) => Self::First(0),
            (NameLoss::Ordered, _) | (_, 2) => Self::First(dice.below(total + 1)),
            (NameLoss::Any, 3) => Self::Some(500),
            (NameLoss::Any, _) => Self::Some(900),
        }
    }

    /// Whether the directory's change at this place (from 1) is found.
    fn is_kept(&self, place: u64, dice: &mut Dice) -> bool {
        match self {
            Self::First(count) => place <= *count,
            Self::Some(permille) => dice.chance(*permille),
        }
    }
}

fn reachable(tree: &Tree) -> BTreeSet<Ino> {
    let mut found = BTreeSet::from([ROOT]);
    let mut folders = vec![ROOT];
    while let Some(dir) = folders.pop() {
        for ino in tree.get(&dir).into_iter().flat_map(BTreeMap::values) {
            if found.insert(*ino) && tree.contains_key(ino) {
                folders.push(*ino);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(name: &str) -> Place {
        (ROOT, name.into())
    }

    fn found(names: &Names) -> Vec<(String, Ino)> {
        names.entries(ROOT).map(|(n, i)| (n.to_string_lossy().into_owned(), i)).collect()
    }

    #[test]
    fn a_rename_is_found_whole_or_not_at_all() {
        let mut outcomes = BTreeSet::new();
        for seed in 0..100 {
            let mut names = Names::new();
            names.link(place("old"), 2);
            names.sync(ROOT);
            names.link(place("new"), 3);
            names.rename(place("new"), place("old"), 3);
            names.cut(NameLoss::Any, &mut Dice::new(seed));
            outcomes.insert(found(&names));
        }
        let is = |list: &[(&str, Ino)]| list.iter().map(|(n, i)| ((*n).to_owned(), *i)).collect::<Vec<_>>();
        assert_eq!(outcomes, BTreeSet::from([is(&[("old", 2)]), is(&[("new", 3), ("old", 2)]), is(&[("old", 3)])]));
    }

    #[test]
    fn only_a_journal_keeps_the_order() {
        let gap = |loss| {
            (0..200).any(|seed| {
                let mut names = Names::new();
                names.link(place("a"), 2);
                names.link(place("b"), 3);
                names.cut(loss, &mut Dice::new(seed));
                found(&names) == [("b".to_owned(), 3)]
            })
        };
        assert!(gap(NameLoss::Any) && !gap(NameLoss::Ordered) && !gap(NameLoss::None));
    }

    #[test]
    fn syncing_where_a_file_went_to_syncs_where_it_came_from() {
        let mut names = Names::new();
        names.make_directory(2);
        names.link(place("dir"), 2);
        names.link(place("file"), 3);
        names.sync(ROOT);
        names.rename(place("file"), (2, "file".into()), 3);
        names.sync(2);
        names.cut(NameLoss::Any, &mut Dice::new(1));
        assert_eq!(found(&names), [("dir".to_owned(), 2)]);
        assert_eq!(names.find(2, OsStr::new("file")), Some(3));
    }

    #[test]
    fn what_lies_in_a_lost_folder_is_lost() {
        let mut names = Names::new();
        names.make_directory(2);
        names.link(place("dir"), 2);
        names.link((2, "file".into()), 3);
        names.sync(2);
        let lost = (0..50).any(|seed| !names.clone().cut(NameLoss::Any, &mut Dice::new(seed)).contains(&3));
        assert!(lost);
    }
}
