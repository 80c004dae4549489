//! What is in the kernel now: its generation, a table's structure, a set's elements.

use crate::{
    family::{Family, message},
    wire::{Attributes, Socket, WireError, attribute, attributes, number},
};
use nix::errno::Errno;

impl Socket {
    /// Counts the changes of anybody's tables by other programs. Each of our own components has a table of its own and
    /// sees to it; what another component of this process does is no reason to read a table again.
    pub fn generation(&mut self) -> Result<u32, WireError> {
        let commits = self.commits.clone();
        let commits = commits.lock();
        let request = Family::V4.request(message::GET_GENERATION, 0, Attributes::default(), "reading the generation");
        let answers = self.ask(&request, false)?;
        let all = answers.first().and_then(|a| attribute(a, 1)).and_then(number).unwrap_or_default();
        Ok(all.wrapping_sub(*commits))
    }

    /// Chains, rules and sets of a table without their elements, in no order but that of the rules; none when there is
    /// no such table. It is the same as long as nobody changes them, also for another process on the same kernel.
    pub fn structure(&mut self, family: Family, table: &str) -> Result<Option<Vec<Vec<u8>>>, WireError> {
        let mut parts: Vec<Vec<u8>> = Vec::new();
        let name = [table.as_bytes(), &[0]].concat();
        // (message, attributes that count; the rest are handles and counters)
        let kinds: [(u16, &[u16]); 3] = [
            (message::GET_CHAIN, &[3, 4, 5, 7]),
            (message::GET_RULE, &[2, 4]),
            (message::GET_SET, &[2, 3, 4, 5, 6, 7]),
        ];
        for (kind, counted) in kinds {
            let request = family.request(kind, 0, Attributes::default().text(1, table), "reading our table");
            let answers = match self.ask(&request, true) {
                Err(e) if e.errno() == Errno::ENOENT => return Ok(None),
                other => other?,
            };
            let ours = answers.iter().filter(|a| attribute(a, 1) == Some(&name[..]));
            for (position, answer) in ours.enumerate() {
                let mut part = vec![kind as u8];
                if kind == message::GET_RULE {
                    part.extend((position as u32).to_be_bytes());
                }
                for (_, value) in attributes(answer).filter(|(k, _)| counted.contains(k)) {
                    part.extend(value);
                }
                parts.push(part);
            }
        }
        Ok((!parts.is_empty()).then_some(parts))
    }

    /// The attributes of every element of a set.
    pub fn elements(&mut self, family: Family, table: &str, set: &str) -> Result<Vec<Vec<u8>>, WireError> {
        let list = Attributes::default().text(1, table).text(2, set);
        let what = format!("reading the set {set}");
        let answers = self.ask(&family.request(message::GET_ELEMENTS, 0, list, what), true)?;
        let lists = answers.iter().filter_map(|a| attribute(a, 3));
        Ok(lists.flat_map(attributes).map(|(_, element)| element.to_vec()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Table;
    use nix::sched::{CloneFlags, unshare};
    use std::process::Command;

    #[test]
    fn only_changes_of_others_count() {
        // In a namespace of the thread's own, which goes with it.
        let inside = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let (mut one, mut two) = (Socket::open().unwrap(), Socket::open().unwrap());
            let before = one.generation().unwrap();
            let mut table = Table::new(Family::V4, "a-test");
            table.anew();
            two.transaction(&table.requests).unwrap();
            assert_eq!(one.generation().unwrap(), before);
            assert!(two.structure(Family::V4, "another").unwrap().is_none());
            let done = Command::new("nft").args(["add", "table", "ip", "theirs"]).status().unwrap();
            assert!(done.success());
            assert_ne!(one.generation().unwrap(), before);
            assert_eq!(one.generation().unwrap(), two.generation().unwrap());
        });
        inside.join().unwrap();
    }
}
