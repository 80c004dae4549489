//! Brings the kernel to the plan, and back to it when somebody else has changed our tables.
//!
//! In: service models as they change. Out: committed transactions. What a former process left is adopted when it is
//! whole, and replaced at once when it is not; at no point is there a moment without rules.

use crate::{
    conntrack::{Conntrack, Stale},
    kernel::Kernel,
    model::ServiceModel,
    plan::{Plan, Planner, Timeouts},
    renderer::{Done, Ranges, Renderer},
    wire::WireError,
};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

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
    /// The generation, without our own commits, at our last commit; none when the elements must be read first.
    generation: Option<u32>,
    conntrack: Conntrack,
    /// Fronts whose datagram flows are still to be looked at.
    stale: Stale,
}

impl Program {
    /// Looks at what is there. Changes nothing yet.
    pub fn open(mut kernel: Kernel, conntrack: Conntrack, state_dir: &Path) -> Result<Self, WireError> {
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
            conntrack,
            stale: Stale::new(),
        })
    }

    fn program(&mut self, plan: &Plan) -> Result<Done, WireError> {
        let generation = self.kernel.generation()?;
        if self.generation == Some(generation)
            && let Some((_, timeouts)) = &self.structure
        {
            let known = timeouts.0.len();
            self.commit(plan, known, generation)?;
            return Ok(Done { elements: plan.delete.len() + plan.add.len(), ..Done::default() });
        }
        // Other programs change their own tables: only a difference in ours counts.
        let known = match (&self.structure, self.kernel.structure()?) {
            (Some((known, timeouts)), Some(found)) if *known == found => timeouts.0.len(),
            _ => return self.rebuild(),
        };
        let all = Plan::between(&self.kernel.read()?, &self.planner.elements());
        self.commit(&all, known, generation)?;
        Ok(Done { elements: all.delete.len() + all.add.len(), ..Done::default() })
    }

    /// With the first `known` time-outs in the kernel.
    fn commit(&mut self, plan: &Plan, known: usize, generation: u32) -> Result<(), WireError> {
        if known < self.planner.timeouts().0.len() {
            self.generation = None;
            self.structure = None;
            self.kernel.grow(self.planner.timeouts(), known, plan)?;
            self.remember()?;
        } else if !plan.is_empty() {
            self.generation = None;
            self.kernel.apply(plan)?;
        }
        // Read before: if another's change came in between, the next look finds more.
        self.generation = Some(generation);
        Ok(())
    }

    fn rebuild(&mut self) -> Result<Done, WireError> {
        self.generation = None;
        self.structure = None;
        let elements = self.planner.elements();
        self.kernel.rebuild(self.planner.timeouts(), &elements)?;
        self.remember()?;
        Ok(Done { elements: elements.len(), rebuilt: true, flows: 0 })
    }

    /// Notes what is in the kernel now, for us and for the next process.
    fn remember(&mut self) -> Result<(), WireError> {
        let generation = self.kernel.generation()?;
        let structure = self.kernel.structure()?.unwrap_or_default();
        self.structure = Some((structure, self.planner.timeouts().clone()));
        self.generation = Some(generation);
        let saved = Saved { structure, affinity_timeouts: self.planner.timeouts().0.clone() };
        // Without the file, the next process makes the tables anew: no harm beyond the work.
        if let Err(error) = save(&self.file, &saved) {
            tracing::warn!(%error, file = %self.file.display(), "the state of the service rules cannot be kept");
        }
        Ok(())
    }
}

impl Renderer for Program {
    fn adopted(&self) -> bool {
        self.structure.is_some()
    }

    fn sync(
        &mut self,
        changes: Vec<(String, Option<ServiceModel>)>,
        ranges: &Ranges,
        first: bool,
    ) -> anyhow::Result<Done> {
        let mut plan = self.planner.set_ranges(&ranges.pods, &ranges.services, &ranges.local);
        for (name, model) in changes {
            plan.extend(self.planner.set(&name, model));
        }
        self.stale.extend(self.planner.take_stale());
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
        done.flows = self.conntrack.forget(&self.stale)?;
        self.stale.clear();
        Ok(done)
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
