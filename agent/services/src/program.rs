//! Brings the kernel to the plan, and back to it when somebody else has changed our tables.
//!
//! In: service models as they change. Out: committed transactions. What a former process left is adopted when it is
//! whole, and replaced at once when it is not; at no point is there a moment without rules.

use crate::{
    kernel::Kernel,
    model::{Front, ServiceModel, Target},
    plan::{Plan, Planner, Timeouts},
    wire::WireError,
};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

/// Ranges as [`Planner::set_ranges`] wants them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranges {
    /// All pods.
    pub pods: Vec<IpNet>,
    /// All service addresses.
    pub services: Vec<IpNet>,
    /// The node's addresses and pods.
    pub local: Vec<IpNet>,
}

/// What one synchronisation did.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    /// Elements deleted and added.
    pub elements: usize,
    /// Whether the tables were made anew.
    pub rebuilt: bool,
    /// Datagram flows that were cut off from endpoints that are gone.
    pub flows: usize,
}

/// What must be known again after a restart.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Saved {
    structure: u64,
    affinity_timeouts: Vec<u32>,
}

/// The kernel's tables and what they should be.
#[derive(Debug)]
pub struct Program {
    kernel: Kernel,
    planner: Planner,
    file: PathBuf,
    /// The structure's fingerprint and time-outs; none when it must be made.
    structure: Option<(u64, Timeouts)>,
    /// The generation that our last commit made; none when the elements must be read first.
    generation: Option<u32>,
    /// Endpoints whose datagram flows are still to be deleted.
    gone: BTreeSet<(Front, Target)>,
}

impl Program {
    /// Looks at what is there. Changes nothing yet.
    pub fn open(mut kernel: Kernel, state_dir: &Path) -> Result<Self, WireError> {
        let file = state_dir.join("services.json");
        let saved: Saved =
            std::fs::read(&file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        let whole = kernel.structure()?.filter(|s| *s == saved.structure);
        let timeouts = Timeouts(if whole.is_some() { saved.affinity_timeouts } else { Vec::new() });
        let mut planner = Planner::new(timeouts.clone());
        if whole.is_some() {
            planner.adopt(&kernel.read()?);
        }
        Ok(Self {
            kernel,
            planner,
            file,
            structure: whole.map(|s| (s, timeouts)),
            generation: None,
            gone: BTreeSet::new(),
        })
    }

    /// Whether a former process' tables were found whole.
    pub fn adopted(&self) -> bool {
        self.structure.is_some()
    }

    /// Takes changes over and programs them. With `first`, the changes are all there is. After an error the next call
    /// does all that is still to be done.
    pub fn sync(
        &mut self,
        changes: Vec<(String, Option<ServiceModel>)>,
        ranges: &Ranges,
        first: bool,
    ) -> Result<Done, WireError> {
        let mut plan = self.planner.set_ranges(&ranges.pods, &ranges.services, &ranges.local);
        for (name, model) in changes {
            plan.extend(self.planner.set(&name, model));
        }
        if first {
            self.planner.forget_unclaimed();
        }
        let mut done = match self.program(&plan) {
            Ok(done) => done,
            Err(error) => {
                tracing::warn!(%error, "a change of the service rules was refused; comparing all of them");
                self.generation = None;
                match self.program(&plan) {
                    Ok(done) => done,
                    Err(error) => {
                        tracing::warn!(%error, "the service rules cannot be mended; making them anew");
                        self.rebuild()?
                    }
                }
            }
        };
        self.gone.extend(plan.gone());
        done.flows = self.kernel.forget_flows(&self.gone)?;
        self.gone.clear();
        Ok(done)
    }

    /// Looks whether somebody has changed our tables, and mends them.
    pub fn check(&mut self) -> Result<Done, WireError> {
        self.program(&Plan::default())
    }

    fn program(&mut self, plan: &Plan) -> Result<Done, WireError> {
        let generation = self.kernel.generation()?;
        if self.generation == Some(generation)
            && self.structure.as_ref().is_some_and(|(_, t)| t == self.planner.timeouts())
        {
            self.commit(plan, generation)?;
            return Ok(Done { elements: plan.delete.len() + plan.add.len(), ..Done::default() });
        }
        // Other programs change their own tables: only a difference in ours counts.
        let whole = match (&self.structure, self.kernel.structure()?) {
            (Some((known, timeouts)), Some(found)) => *known == found && timeouts == self.planner.timeouts(),
            _ => false,
        };
        if !whole {
            return self.rebuild();
        }
        let all = Plan::between(&self.kernel.read()?, &self.planner.elements());
        self.commit(&all, generation)?;
        Ok(Done { elements: all.delete.len() + all.add.len(), ..Done::default() })
    }

    fn commit(&mut self, plan: &Plan, generation: u32) -> Result<(), WireError> {
        if !plan.is_empty() {
            self.generation = None;
            self.kernel.apply(plan)?;
            // Every commit counts one. If another's came in between, the next look finds more.
            self.generation = Some(generation.wrapping_add(1));
        } else {
            self.generation = Some(generation);
        }
        Ok(())
    }

    fn rebuild(&mut self) -> Result<Done, WireError> {
        self.generation = None;
        self.structure = None;
        let elements = self.planner.elements();
        self.kernel.rebuild(self.planner.timeouts(), &elements)?;
        let generation = self.kernel.generation()?;
        let structure = self.kernel.structure()?.unwrap_or_default();
        self.structure = Some((structure, self.planner.timeouts().clone()));
        self.generation = Some(generation);
        let saved = Saved { structure, affinity_timeouts: self.planner.timeouts().0.clone() };
        // Without the file, the next process makes the tables anew: no harm beyond the work.
        if let Err(error) = save(&self.file, &saved) {
            tracing::warn!(%error, file = %self.file.display(), "the state of the service rules cannot be kept");
        }
        Ok(Done { elements: elements.len(), rebuilt: true, flows: 0 })
    }
}

fn save(file: &Path, saved: &Saved) -> std::io::Result<()> {
    if let Some(dir) = file.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let new = file.with_extension("new");
    std::fs::write(&new, serde_json::to_vec(saved)?)?;
    std::fs::rename(new, file)
}
