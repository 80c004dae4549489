//! Brings the kernel to the plan, and back to it when somebody else has changed our tables.
//!
//! In: a planner whose objects have changed. Out: committed transactions. What a former process left is adopted when it
//! is whole, and replaced at once when it is not; at no point is there a moment without rules.

use crate::{
    kernel::Kernel,
    plan::{Plan, Planner},
};
use causeway_nft::wire::WireError;

/// What one synchronisation did.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    /// Elements and chains deleted and added.
    pub changes: usize,
    /// Whether the tables were made anew.
    pub rebuilt: bool,
}

/// The kernel's tables.
#[derive(Debug)]
pub struct Program {
    kernel: Kernel,
    /// How often other programs had changed tables when ours were last known to be right; none when they must be read.
    generation: Option<u32>,
}

impl Program {
    /// Changes nothing yet.
    pub fn new(kernel: Kernel) -> Self {
        Self { kernel, generation: None }
    }

    /// Programs what has changed, and mends what others did. After an error the next call does all that is still to be
    /// done.
    pub fn sync(&mut self, planner: &mut Planner) -> Result<Done, WireError> {
        let plan = planner.take_plan();
        let first = match self.program(&plan, planner) {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        tracing::warn!(error = %first, "a change of the policy rules was refused; comparing all of them");
        self.generation = None;
        match self.program(&plan, planner) {
            Ok(done) => Ok(done),
            Err(error) => {
                tracing::warn!(%error, "the policy rules cannot be mended; making them anew");
                self.rebuild(planner)
            }
        }
    }

    fn program(&mut self, plan: &Plan, planner: &Planner) -> Result<Done, WireError> {
        let generation = self.kernel.generation()?;
        if self.generation == Some(generation) {
            return self.commit(plan, generation);
        }
        let wanted = planner.state();
        match self.kernel.read(&wanted)? {
            None => self.rebuild(planner),
            Some(found) => self.commit(&Plan::between(&found, &wanted), generation),
        }
    }

    fn commit(&mut self, plan: &Plan, generation: u32) -> Result<Done, WireError> {
        if !plan.is_empty() {
            self.generation = None;
            self.kernel.apply(plan)?;
        }
        // Read before: if another's change came in between, the next look finds more.
        self.generation = Some(generation);
        Ok(Done { changes: plan.len(), rebuilt: false })
    }

    fn rebuild(&mut self, planner: &Planner) -> Result<Done, WireError> {
        self.generation = None;
        let generation = self.kernel.generation()?;
        let wanted = planner.state();
        self.kernel.rebuild(&wanted)?;
        self.generation = Some(generation);
        Ok(Done { changes: wanted.elements.len() + wanted.chains.len(), rebuilt: true })
    }
}
