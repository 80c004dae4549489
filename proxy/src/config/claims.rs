//! Who has which place in the table: of several Ingresses that claim one, the oldest. In: readings that come and go. Out:
//! for the places that they touch, who has them; and what those are told who do not. What is not touched is not looked at.

use super::model::{Problem, Row, Rule, Target};
use super::reading::{Reading, Slot, What};
use crate::route::policy::CanaryChoice;
use crate::route::{HostPattern, ObjectKey, PathPattern};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// All claims.
#[derive(Debug, Default)]
pub struct Claims {
    slots: HashMap<Arc<Slot>, Claimants>,
    /// What has been touched since it was last asked, and who had it before.
    touched: HashMap<Arc<Slot>, Option<Arc<Reading>>>,
}

/// Those who want one place, the oldest first; of one Ingress in the order of its spec.
#[derive(Debug, Default)]
struct Claimants {
    claims: Vec<Claimant>,
    /// Those who want a part of the requests of whoever has it.
    canaries: Vec<Claimant>,
}

/// A claim of a reading, or a path of a canary, by its number there.
#[derive(Debug, Clone)]
struct Claimant {
    by: Arc<Reading>,
    at: usize,
}

/// What has come of the claims that were touched.
#[derive(Debug, Default)]
pub struct Settled {
    /// What stands in these places now.
    pub rows: Vec<(Arc<Slot>, Option<Row>)>,
    /// Who must be told something else than before, perhaps.
    pub concerned: BTreeSet<ObjectKey>,
}

impl Claims {
    /// Takes a reading's claims in.
    pub fn add(&mut self, reading: &Arc<Reading>) {
        self.each(reading, |claimants, claimant| {
            let place = claimants.partition_point(|other| other.before(&claimant));
            claimants.insert(place, claimant);
        });
    }

    /// Takes them out.
    pub fn remove(&mut self, reading: &Arc<Reading>) {
        self.each(reading, |claimants, claimant| {
            let place = claimants.partition_point(|other| other.before(&claimant));
            if claimants.get(place).is_some_and(|c| c.at == claimant.at && Arc::ptr_eq(&c.by, &claimant.by)) {
                claimants.remove(place);
            }
        });
    }

    fn each(&mut self, reading: &Arc<Reading>, mut change: impl FnMut(&mut Vec<Claimant>, Claimant)) {
        for (at, claim) in reading.claims.iter().enumerate() {
            self.touch(&claim.slot);
            change(&mut self.claimants(&claim.slot).claims, Claimant { by: Arc::clone(reading), at });
        }
        for (at, follow) in reading.follows.iter().enumerate() {
            for slot in &follow.slots {
                self.touch(slot);
                change(&mut self.claimants(slot).canaries, Claimant { by: Arc::clone(reading), at });
            }
        }
    }

    fn claimants(&mut self, slot: &Arc<Slot>) -> &mut Claimants {
        self.slots.entry(Arc::clone(slot)).or_default()
    }

    fn touch(&mut self, slot: &Arc<Slot>) {
        if !self.touched.contains_key(slot) {
            let had = self.winner(slot).map(|c| Arc::clone(&c.by));
            self.touched.insert(Arc::clone(slot), had);
        }
    }

    fn winner(&self, slot: &Slot) -> Option<&Claimant> {
        self.slots.get(slot).and_then(|claimants| claimants.claims.first())
    }

    /// What stands where something was touched since the last time.
    pub fn settle(&mut self) -> Settled {
        let mut settled = Settled::default();
        let touched = std::mem::take(&mut self.touched);
        let mut slots: HashSet<Arc<Slot>> = touched.keys().map(Arc::clone).collect();
        for (slot, had) in &touched {
            let Some(claimants) = self.slots.get(slot) else { continue };
            let has = claimants.claims.first().map(|c| &c.by);
            if !same_for_others(had.as_ref(), has) {
                settled.concerned.extend(claimants.claims.iter().map(|c| c.by.owner().clone()));
            }
            // A canary may belong to another rule now.
            slots.extend(claimants.canaries.iter().flat_map(|c| &c.by.follows[c.at].slots).map(Arc::clone));
        }
        for slot in slots {
            if let Some(claimants) = self.slots.get(&slot) {
                settled.concerned.extend(claimants.canaries.iter().map(|c| c.by.owner().clone()));
                if claimants.claims.is_empty() && claimants.canaries.is_empty() {
                    self.slots.remove(&slot);
                }
            }
            let row = self.row(&slot);
            settled.rows.push((slot, row));
        }
        settled
    }

    fn row(&self, slot: &Slot) -> Option<Row> {
        let winner = self.winner(slot)?;
        let owner = winner.by.owner().clone();
        Some(match &winner.by.claims[winner.at].what {
            What::Default(target) => Row::Default(owner, target.clone()),
            What::Certificate(_, key) => Row::Certificate(Arc::clone(key)),
            What::Route(target, rewrite) => Row::Rule(Box::new(Rule {
                owner,
                target: target.clone(),
                policy: winner.by.known.asked.policy.clone(),
                rewrite: rewrite.clone(),
                canary: self.canary(slot).and_then(Claimant::canary),
            })),
        })
    }

    /// The canary of whoever has a place.
    fn canary(&self, slot: &Slot) -> Option<&Claimant> {
        let claimants = self.slots.get(slot)?;
        let owner = claimants.claims.first()?.by.owner();
        let mut canaries = claimants.canaries.iter();
        canaries.find(|c| c.by.owner().namespace == owner.namespace && self.followed(c).is_some_and(|s| **s == *slot))
    }

    /// The rule that a path of a canary belongs to.
    fn followed<'a>(&self, canary: &'a Claimant) -> Option<&'a Arc<Slot>> {
        canary.by.follows[canary.at].slots.iter().find(|slot| self.winner(slot).is_some())
    }

    /// What an Ingress is told about what others have.
    pub fn conflicts(&self, reading: &Arc<Reading>) -> Vec<Problem> {
        let lost = reading.claims.iter().enumerate().filter_map(|(at, claim)| {
            let winner = self.winner(&claim.slot)?;
            let message = lost(reading, at, winner)?;
            Some(Problem { reason: "Conflict", message })
        });
        let canaries =
            (0..reading.follows.len()).filter_map(|at| self.astray(&Claimant { by: Arc::clone(reading), at }));
        lost.chain(canaries).collect()
    }

    /// What is wrong with where a path of a canary belongs.
    fn astray(&self, canary: &Claimant) -> Option<Problem> {
        let follow = &canary.by.follows[canary.at];
        let (host, path) = (&follow.host, &follow.path);
        let Some(slot) = self.followed(canary) else {
            return Some(Problem {
                reason: "CanaryWithoutMain",
                message: format!(
                    "host {host:?} path {path:?}: there is no other Ingress with it that this could be the canary of"
                ),
            });
        };
        let main = self.winner(slot)?.by.owner();
        if main.namespace != canary.by.owner().namespace {
            return Some(Problem {
                reason: "CanaryWithoutMain",
                message: format!("path {path:?} belongs to an Ingress of another namespace"),
            });
        }
        let taken = self.canary(slot).is_some_and(|c| c.at != canary.at || c.by.rank != canary.by.rank);
        taken.then(|| Problem { reason: "Conflict", message: format!("path {path:?} has an older canary already") })
    }
}

impl Claimant {
    fn before(&self, other: &Self) -> bool {
        (&self.by.rank, self.at) < (&other.by.rank, other.at)
    }

    fn canary(&self) -> Option<(CanaryChoice, Target)> {
        let choice = self.by.known.asked.canary.clone()?;
        Some((choice, self.by.follows[self.at].target.clone()))
    }
}

/// Whether those who do not have a place are told the same as before.
fn same_for_others(had: Option<&Arc<Reading>>, has: Option<&Arc<Reading>>) -> bool {
    had.map(|r| (r.owner(), &r.secrets)) == has.map(|r| (r.owner(), &r.secrets))
}

/// Why a claim of an Ingress counts for nothing; none when it does, or when nobody needs to know.
fn lost(reading: &Reading, at: usize, winner: &Claimant) -> Option<String> {
    let (own, claim) = (winner.by.owner() == reading.owner(), &reading.claims[at]);
    match (&*claim.slot, &claim.what, &winner.by.claims[winner.at].what) {
        (Slot::Path(..), ..) if own && winner.at == at => None,
        (Slot::Path(host, path), ..) if own => {
            Some(format!("host {host} path {} stands here twice; the first counts", spelled(path)))
        }
        (Slot::Path(host, path), ..) => Some(format!(
            "host {host} path {} is served by Ingress {}, which is older; change one of the two",
            spelled(path),
            winner.by.owner()
        )),
        (Slot::Default(HostPattern::Any), ..) if !own && reading.without_rules => Some(format!(
            "the default backend is that of Ingress {}, which is older; remove one of the two",
            winner.by.owner()
        )),
        (Slot::Default(_), ..) => None,
        (Slot::Certificate(host), What::Certificate(mine, _), What::Certificate(theirs, _)) if mine != theirs => {
            Some(format!(
                "the certificate for {host} is that of Ingress {} (Secret {theirs}), which is older",
                winner.by.owner()
            ))
        }
        (Slot::Certificate(_), ..) => None,
    }
}

/// A path as an Ingress has it.
fn spelled(path: &PathPattern) -> String {
    let (text, kind) = match path {
        PathPattern::Exact(path) => (String::from_utf8_lossy(path).into_owned(), "Exact"),
        PathPattern::Prefix(path) if path.is_empty() => ("/".to_owned(), "Prefix"),
        PathPattern::Prefix(path) => (String::from_utf8_lossy(path).into_owned(), "Prefix"),
        PathPattern::Regex(text) => (text.to_string(), "ImplementationSpecific"),
    };
    format!("{text} ({kind})")
}
