//! Brings the tables to the plan, and back to it when somebody else has changed our chains.
//!
//! In: service models as they change. Out: restore files that were taken. What a former process left is adopted: only
//! what differs is written.

use super::{
    names::{ChainId, Table},
    planner::{Changes, Planner, fingerprint},
    restore::{self, HookChanges},
    tool::{Flavour, Tool, ToolError},
};
use crate::{
    conntrack::{Conntrack, Stale},
    family::Family,
    kernel::Kernel,
    metrics::IptablesMetrics,
    model::ServiceModel,
    renderer::{Done, Ranges, Renderer},
};
use anyhow::Context;
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// With more chains than this, one that goes is emptied and taken away at the next comparison: the nft flavour reads all
/// rules there are to find out whether it may go.
const FEW_CHAINS: usize = 1000;
/// A comparison that takes no longer than this is made as often as asked for, unless told otherwise.
const CHEAP: Duration = Duration::from_millis(200);
/// One that takes longer may take at most this share of the time.
const SHARE: u32 = 20;

/// The tables of `iptables` and `ip6tables`, and what they should be.
#[derive(Debug)]
pub struct Iptables {
    tool: Tool,
    planner: Planner,
    /// Tells, of the nft flavour, whether anybody has changed anything.
    kernel: Option<Kernel>,
    conntrack: Conntrack,
    metrics: IptablesMetrics,
    adopted: bool,
    /// Chains in the kernel, each with its number of rules. None when they must be read first.
    programmed: Option<BTreeMap<ChainId, usize>>,
    /// Chains that the kernel, or its tool, writes otherwise than we do: fingerprints of ours and theirs.
    spelt: BTreeMap<ChainId, (u64, u64)>,
    /// When the kernel was last compared, what that cost, and the kernel's generation then.
    compared: Option<(Instant, Duration, Option<u32>)>,
    /// A comparison that takes no longer is made as often as asked for.
    cheap: Duration,
    /// Emptied chains that are still there.
    garbage: bool,
    /// Fronts whose datagram flows are still to be looked at.
    stale: Stale,
}

impl Iptables {
    /// Looks at what is there, in the calling thread's network namespace. Changes nothing yet.
    pub fn open(
        tool: Tool,
        families: Vec<Family>,
        conntrack: Conntrack,
        metrics: IptablesMetrics,
    ) -> anyhow::Result<Self> {
        let saved = tool.read(&families).context("reading the kernel's service rules")?;
        let whole = |family: &Family| {
            let hooks = saved.hooks.get(family).map(Vec::as_slice).unwrap_or_default();
            HookChanges::between(hooks).is_empty()
        };
        let adopted = !saved.is_empty() && families.iter().all(whole);
        let kernel = match tool.flavour() {
            Some(Flavour::Nft) => Some(Kernel::open(families.clone()).context("opening nftables")?),
            _ => None,
        };
        Ok(Self {
            tool,
            planner: Planner::new(families),
            kernel,
            conntrack,
            metrics,
            adopted,
            programmed: None,
            spelt: BTreeMap::new(),
            compared: None,
            cheap: CHEAP,
            garbage: false,
            stale: Stale::new(),
        })
    }

    /// Compares with the kernel whenever it is asked to look, whatever that costs.
    pub fn comparing_always(self) -> Self {
        Self { cheap: Duration::MAX, ..self }
    }

    /// Writes the chains that have changed since the last time.
    fn write_changes(&mut self) -> Result<Done, ToolError> {
        let mut changes = self.planner.take();
        let Some(programmed) = &self.programmed else { return self.compare() };
        changes.retain(|id, rules| rules.is_some() || programmed.contains_key(id));
        if changes.is_empty() {
            return Ok(Done::default());
        }
        let remove = programmed.len() < FEW_CHAINS;
        match self.restore(&changes, &BTreeMap::new(), remove) {
            Ok(done) => Ok(done),
            Err(error) => {
                tracing::warn!(%error, "a change of the service rules was refused; comparing all of them");
                self.metrics.partial_failures.inc();
                self.compare()
            }
        }
    }

    /// Compares everything with what is there, and writes what differs.
    fn compare(&mut self) -> Result<Done, ToolError> {
        self.programmed = None;
        let started = Instant::now();
        let generation = self.generation();
        let families = self.planner.families().to_vec();
        let saved = self.tool.read(&families)?;
        let wanted = self.planner.all();
        let mut changes = Changes::new();
        for (id, rules) in &wanted {
            let is_there = saved.chains.get(id).is_some_and(|there| there == rules || self.is_spelt(id, rules, there));
            if !is_there {
                changes.insert(id.clone(), Some(rules.clone()));
            }
        }
        for (id, there) in saved.chains.iter().filter(|(id, _)| !wanted.contains_key(*id)) {
            match saved.without(id) {
                Some(_) if there.is_empty() => {}
                empty => drop(changes.insert(id.clone(), empty)),
            }
        }
        let hooks = families.iter().map(|family| {
            let present = saved.hooks.get(family).map(Vec::as_slice).unwrap_or_default();
            (*family, HookChanges::between(present))
        });
        let hooks: BTreeMap<Family, HookChanges> = hooks.collect();
        let is_first = self.compared.is_none();
        self.programmed = Some(saved.chains.iter().map(|(id, rules)| (id.clone(), rules.len())).collect());
        let nothing = changes.is_empty() && hooks.values().all(HookChanges::is_empty);
        let mut done = Done::default();
        if !nothing {
            let restored = self.restore(&changes, &hooks, true);
            if restored.is_err() {
                self.programmed = None;
            }
            done = restored?;
            done.rebuilt = saved.is_empty();
        }
        let mut at = generation;
        if !nothing && !is_first {
            tracing::info!(chains = changes.len(), "service rules were not as they should be; mended");
            at = self.generation();
            self.learn_spelling(&changes)?;
        }
        self.garbage = false;
        // What we have just written changes the generation: the first look after it compares once more.
        self.compared = Some((Instant::now(), started.elapsed(), at.filter(|_| nothing || !is_first)));
        Ok(done)
    }

    /// Should chains still not read as they were written, it is but a matter of spelling.
    fn learn_spelling(&mut self, written: &Changes) -> Result<(), ToolError> {
        let saved = self.tool.read(self.planner.families())?;
        for (id, rules) in written {
            let (Some(rules), Some(there)) = (rules, saved.chains.get(id)) else { continue };
            if rules != there && rules.len() == there.len() {
                tracing::info!(chain = id.name, "this version of iptables writes some rules in another way");
                self.spelt.insert(id.clone(), (fingerprint(rules), fingerprint(there)));
            }
        }
        Ok(())
    }

    fn is_spelt(&self, id: &ChainId, ours: &[String], theirs: &[String]) -> bool {
        self.spelt.get(id).is_some_and(|known| *known == (fingerprint(ours), fingerprint(theirs)))
    }

    fn restore(
        &mut self,
        changes: &Changes,
        hooks: &BTreeMap<Family, HookChanges>,
        remove: bool,
    ) -> Result<Done, ToolError> {
        let mut lines = 0;
        for family in self.planner.families() {
            let none = HookChanges::default();
            let hooks = hooks.get(family).unwrap_or(&none);
            let file = restore::write(Table::ALL, *family, changes, hooks, remove);
            if file.is_empty() {
                continue;
            }
            if let Err(error) = self.tool.restore(*family, &file) {
                self.programmed = None;
                self.metrics.failures.inc();
                return Err(error);
            }
            lines += file.lines().filter(|line| line.starts_with('-')).count();
        }
        let programmed = self.programmed.get_or_insert_default();
        for (id, rules) in changes {
            match rules {
                Some(rules) => drop(programmed.insert(id.clone(), rules.len())),
                None => drop(programmed.remove(id)),
            }
            self.garbage |= rules.is_none() && !remove;
        }
        for table in Table::ALL {
            let written = changes.iter().filter(|(id, _)| id.table == table);
            let written: usize = written.map(|(_, rules)| rules.iter().flatten().count()).sum();
            let total: usize = programmed.iter().filter(|(id, _)| id.table == table).map(|(_, n)| n).sum();
            self.metrics.wrote(table.name(), written, total);
        }
        Ok(Done { elements: lines, ..Done::default() })
    }

    /// Whether it is time, and needed, to compare.
    fn is_due(&mut self) -> bool {
        let Some((when, cost, generation)) = self.compared else { return true };
        if self.programmed.is_none() {
            return true;
        }
        if cost > self.cheap && when.elapsed() < cost * SHARE {
            return false;
        }
        let now = self.generation();
        self.garbage || now.is_none() || now != generation
    }

    fn generation(&mut self) -> Option<u32> {
        self.kernel.as_mut().and_then(|kernel| kernel.generation().ok())
    }
}

impl Renderer for Iptables {
    fn adopted(&self) -> bool {
        self.adopted
    }

    fn sync(
        &mut self,
        changes: Vec<(String, Option<ServiceModel>)>,
        ranges: &Ranges,
        first: bool,
    ) -> anyhow::Result<Done> {
        let is_check = changes.is_empty();
        self.planner.set_ranges(ranges);
        for (name, model) in changes {
            let stale = self.planner.set(&name, model);
            self.stale.extend(stale);
        }
        let mut done = if first || (is_check && self.is_due()) {
            self.compare().context("programming service rules with iptables")?
        } else {
            self.write_changes().context("programming service rules with iptables")?
        };
        done.flows = self.conntrack.forget(&self.stale)?;
        self.stale.clear();
        Ok(done)
    }
}

/// Takes away what this renderer, or kube-proxy, left in the tables of a flavour. To be called when other rules are in
/// force. Returns whether there was anything.
pub fn remove(flavour: Flavour) -> Result<bool, ToolError> {
    let tool = match Tool::open(Some(flavour)) {
        Ok(tool) => tool,
        // Nothing can have come from a program that is not there.
        Err(ToolError::Missing(_)) => return Ok(false),
        Err(error) => return Err(error),
    };
    let families = [Family::V4, Family::V6];
    if !tool.has_tables() {
        return Ok(false);
    }
    let saved = tool.read(&families)?;
    if saved.is_empty() {
        return Ok(false);
    }
    for family in families {
        let file = restore::removal(family, &saved);
        if !file.is_empty() {
            tool.restore(family, &file)?;
        }
    }
    Ok(true)
}
