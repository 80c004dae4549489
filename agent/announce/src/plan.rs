//! What this node does about one address. Pure: time is passed in.
//!
//! In: the candidates, whose name is on the address' Lease, which nodes are alive, what this node has on its link.
//! Out: one [`Step`].

use crate::model::Wanted;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How often a node says that it is alive.
pub const RENEW: Duration = Duration::from_millis(1500);
/// A node that could not say so for this long announces nothing any more. Counted from before the last renewal was sent.
pub const DEADLINE: Duration = Duration::from_secs(5);
/// Others take over from a node of which they have seen nothing new for this long.
pub const LEASE: Duration = Duration::from_secs(6);

/// What has been seen of other nodes' Leases: the version, and when it was first seen.
#[derive(Debug, Default, Clone)]
pub struct Alive(HashMap<String, (Option<String>, Instant)>);

impl Alive {
    /// Takes over what is known now: node to version of its Lease.
    pub fn look(&mut self, leases: &HashMap<String, String>, now: Instant) {
        for (node, version) in leases {
            self.see(node, Some(version), now);
        }
        let gone: Vec<String> = self.0.keys().filter(|n| !leases.contains_key(*n)).cloned().collect();
        for node in gone {
            self.see(&node, None, now);
        }
        // Long gone and nobody asks: forgotten. Asked about again, it has its full time again.
        self.0.retain(|_, (version, since)| version.is_some() || now.duration_since(*since) < 10 * LEASE);
    }

    fn see(&mut self, node: &str, version: Option<&String>, now: Instant) {
        let known = self.0.entry(node.to_owned()).or_insert_with(|| (version.cloned(), now));
        if known.0.as_ref() != version {
            *known = (version.cloned(), now);
        }
    }

    /// Whether a node must be taken to be alive; the version of its Lease if not.
    pub fn is_alive(&mut self, node: &str, now: Instant) -> Result<(), Option<String>> {
        // Of a node never seen: it gets its time from now on.
        let (version, since) = self.0.entry(node.to_owned()).or_insert((None, now)).clone();
        if now.duration_since(since) < LEASE { Ok(()) } else { Err(version) }
    }

    /// Whether it has a Lease that is alive.
    fn takes_part(&mut self, node: &str, now: Instant) -> bool {
        self.is_alive(node, now).is_ok() && self.0.get(node).is_some_and(|(version, _)| version.is_some())
    }
}

/// What is to be done about an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Rest,
    /// Write our name on the Lease; then the address comes here.
    Take {
        /// From this node, which shows no life: its own Lease must still be at this version.
        from: Option<(String, Option<String>)>,
    },
    /// It is here and stays.
    Keep,
    /// Take it off the link; it is another's.
    Drop,
    /// Take it off the link, then our name off the Lease.
    Release,
}

/// What must be known of this node.
#[derive(Debug, Clone, Copy)]
pub struct Own<'a> {
    /// Its name.
    pub node: &'a str,
    /// Its Lease is alive and its uplink is up.
    pub fit: bool,
    /// The address is on its link, rightly so.
    pub has: bool,
}

/// Decides. `holder` is the name on the address' Lease; empty for none.
pub fn step(own: Own<'_>, wanted: Option<&Wanted>, holder: &str, alive: &mut Alive, now: Instant) -> Step {
    let mine = holder == own.node;
    let candidates = wanted.map_or(&[][..], |w| w.candidates.as_slice());
    let candidate = candidates.iter().any(|c| c == own.node);
    if mine && !(candidate && own.fit) {
        return Step::Release;
    }
    if own.has {
        return if mine { Step::Keep } else { Step::Drop };
    }
    if mine {
        // Our name from before a restart, or from before our Lease lapsed: written anew before anything is announced.
        return Step::Take { from: None };
    }
    if !own.fit || !candidate {
        return Step::Rest;
    }
    let from = match holder {
        "" => None,
        other => match alive.is_alive(other, now) {
            Ok(()) => return Step::Rest,
            Err(version) => Some((other.to_owned(), version)),
        },
    };
    // The best of those that take part goes first; the others see its name before they would try.
    let best = candidates.iter().find(|c| *c == own.node || alive.takes_part(c, now));
    if best.is_some_and(|b| b == own.node) { Step::Take { from } } else { Step::Rest }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn wanted(candidates: &[&str]) -> Wanted {
        Wanted {
            service: ("d".into(), "s".into()),
            uid: None,
            candidates: candidates.iter().map(|c| (*c).to_owned()).collect(),
        }
    }

    fn leases(list: &[(&str, &str)]) -> HashMap<String, String> {
        list.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
    }

    const FIT: Own<'_> = Own { node: "a", fit: true, has: false };

    #[test]
    fn the_best_that_takes_part_takes_a_free_one() {
        let (t, mut alive) = (Instant::now(), Alive::default());
        alive.look(&leases(&[("a", "1"), ("b", "1")]), t);
        let take = Step::Take { from: None };
        assert_eq!(step(FIT, Some(&wanted(&["a", "b"])), "", &mut alive, t), take);
        assert_eq!(step(FIT, Some(&wanted(&["b", "a"])), "", &mut alive, t), Step::Rest);
        assert_eq!(step(FIT, Some(&wanted(&["c", "a"])), "", &mut alive, t), take, "c runs no announcer");
        assert_eq!(step(FIT, Some(&wanted(&["b"])), "", &mut alive, t), Step::Rest);
        assert_eq!(step(Own { fit: false, ..FIT }, Some(&wanted(&["a"])), "", &mut alive, t), Step::Rest);
    }

    #[test]
    fn a_silent_holder_is_taken_over_from_and_a_living_one_is_not() {
        let (t, mut alive, want) = (Instant::now(), Alive::default(), wanted(&["b", "a"]));
        alive.look(&leases(&[("b", "1")]), t);
        assert_eq!(step(FIT, Some(&want), "b", &mut alive, t + LEASE / 2), Step::Rest);
        alive.look(&leases(&[("b", "2")]), t + LEASE / 2);
        assert_eq!(step(FIT, Some(&want), "b", &mut alive, t + LEASE), Step::Rest, "it gave a sign of life");
        let late = t + LEASE / 2 + LEASE;
        let from = Some(("b".to_owned(), Some("2".to_owned())));
        assert_eq!(step(FIT, Some(&want), "b", &mut alive, late), Step::Take { from });
        // A holder that was never seen has its time too, for it may be our view that is young.
        assert_eq!(step(FIT, Some(&want), "z", &mut alive, late), Step::Rest);
        let from = Some(("z".to_owned(), None));
        alive.look(&leases(&[]), late + LEASE);
        assert_eq!(step(FIT, Some(&want), "z", &mut alive, late + LEASE), Step::Take { from });
    }

    #[test]
    fn what_is_ours_is_kept_given_up_or_written_anew() {
        let (t, mut alive, want) = (Instant::now(), Alive::default(), wanted(&["b", "a"]));
        alive.look(&leases(&[("b", "1")]), t);
        let has = Own { has: true, ..FIT };
        assert_eq!(step(has, Some(&want), "a", &mut alive, t), Step::Keep, "a better one does not take it away");
        assert_eq!(step(has, Some(&want), "b", &mut alive, t), Step::Drop);
        assert_eq!(step(has, Some(&wanted(&["b"])), "a", &mut alive, t), Step::Release);
        assert_eq!(step(has, None, "a", &mut alive, t), Step::Release);
        assert_eq!(step(Own { fit: false, ..has }, Some(&want), "a", &mut alive, t), Step::Release);
        assert_eq!(step(FIT, Some(&want), "a", &mut alive, t), Step::Take { from: None });
        assert_eq!(step(has, None, "", &mut alive, t), Step::Drop);
    }

    /// A small world in which writes are compare-and-swap, views are late, and nodes stop and come back: at no moment
    /// may two of them have the address.
    #[derive(Default)]
    struct Simulated {
        view: (u64, String),
        alive: Alive,
        sees: HashMap<String, String>,
        has: bool,
        /// Start of the last renewal that succeeded.
        renewed: Option<Duration>,
    }

    fn simulate(events: &[(u8, u8)]) -> Result<usize, TestCaseError> {
        let (start, names, want) = (Instant::now(), ["a", "b", "c"], wanted(&["b", "c", "a"]));
        let mut nodes: Vec<Simulated> = names.iter().map(|_| Simulated::default()).collect();
        let mut address: (u64, String) = (0, String::new());
        let mut heart: HashMap<String, u64> = HashMap::new();
        let mut cut = [false; 3];
        let mut moves = 0;
        let mut time = Duration::ZERO;
        for (i, (what, wait)) in events.iter().enumerate() {
            time += Duration::from_millis(50 * u64::from(*wait % 12));
            let now = start + time;
            let n = usize::from(what % 3);
            if what / 3 % 16 == 0 {
                cut[n] = !cut[n];
            }
            for node in &mut nodes {
                // The kernel does this by itself.
                if node.renewed.is_none_or(|r| time >= r + DEADLINE) {
                    node.has = false;
                }
            }
            let me = names[n];
            if !cut[n] {
                let due = nodes[n].renewed.is_none_or(|r| time >= r + RENEW);
                if due {
                    *heart.entry(me.to_owned()).or_default() += 1;
                    nodes[n].renewed = Some(time);
                }
                // Every other look is at an old view.
                if i % 2 == 0 {
                    nodes[n].view = address.clone();
                    nodes[n].sees = heart.iter().map(|(k, v)| (k.clone(), v.to_string())).collect();
                }
            }
            let sees = nodes[n].sees.clone();
            nodes[n].alive.look(&sees, now);
            let fit = nodes[n].renewed.is_some_and(|r| time < r + DEADLINE);
            let own = Own { node: me, fit, has: nodes[n].has };
            let (version, holder) = nodes[n].view.clone();
            match step(own, Some(&want), &holder, &mut nodes[n].alive, now) {
                Step::Take { from } if !cut[n] && version == address.0 => {
                    // The live look at the silent one's Lease.
                    let silent = from.is_none_or(|(node, seen)| heart.get(&node).map(u64::to_string) == seen);
                    if silent && fit {
                        address = (address.0 + 1, me.to_owned());
                        nodes[n].view = address.clone();
                        nodes[n].has = true;
                        moves += 1;
                    }
                }
                Step::Release | Step::Drop => {
                    nodes[n].has = false;
                    if !cut[n] && holder == me && version == address.0 {
                        address = (address.0 + 1, String::new());
                        nodes[n].view = address.clone();
                    }
                }
                _ => {}
            }
            let having: Vec<&str> = names.iter().zip(&nodes).filter(|(_, s)| s.has).map(|(n, _)| *n).collect();
            prop_assert!(having.len() < 2, "{having:?} at {time:?}, event {i}");
        }
        Ok(moves)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
        #[test]
        fn never_on_two_nodes(events in proptest::collection::vec((any::<u8>(), any::<u8>()), 50..600)) {
            simulate(&events)?;
        }
    }

    #[test]
    fn the_simulation_moves_the_address() {
        let events: Vec<(u8, u8)> =
            (0..4000_u32).map(|i| ((i.wrapping_mul(2_654_435_761) >> 24) as u8, (i % 11) as u8)).collect();
        assert!(simulate(&events).unwrap() > 2, "a world in which nothing happens proves nothing");
    }
}
