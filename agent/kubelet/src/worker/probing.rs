//! The worker's dealings with probes: starting them for what runs, ending them, and taking their verdicts.

use super::Worker;
use crate::inbox::Verdicts;
use crate::model::{Kind, Op, Record};
use crate::probe;
use causeway_runtime::ContainerState;
use k8s_openapi::api::core::v1::Container;

impl Worker {
    pub(super) fn judge(&mut self, id: &str, verdicts: Verdicts) {
        let Some(life) = self.model.lives.values_mut().find(|l| l.probed == id) else { return };
        life.started |= verdicts.started;
        if let Some(ready) = verdicts.ready {
            life.ready = ready;
        }
        if verdicts.unhealthy.is_some() {
            life.unhealthy = verdicts.unhealthy;
            life.ready = false;
        }
        if verdicts.started && !self.has_readiness(id) {
            self.set_ready(id, true);
        }
    }

    pub(super) fn container_of(&self, id: &str) -> Option<&Container> {
        let name = &self.model.records.iter().find(|r| r.id == id)?.name;
        self.model.containers().find(|(_, c)| c.name == *name).map(|(_, c)| c)
    }

    pub(super) fn has_readiness(&self, id: &str) -> bool {
        self.container_of(id).is_some_and(|c| c.readiness_probe.is_some())
    }

    pub(super) fn set_ready(&mut self, id: &str, ready: bool) {
        if let Some(life) = self.model.lives.values_mut().find(|l| l.probed == id) {
            life.ready = ready;
        }
    }

    /// Starts probes of what runs now and ends those of what does not.
    pub(super) fn probe(&mut self) {
        let current: Vec<(Kind, Container, Record)> = self
            .model
            .containers()
            .filter_map(|(k, c)| Some((k, c.clone(), self.model.current(&c.name)?.clone())))
            .filter(|(_, _, r)| r.running())
            .collect();
        self.probes.retain(|id, task| {
            let keep = current.iter().any(|(_, _, r)| r.id == *id);
            if !keep {
                task.abort();
            }
            keep
        });
        for (kind, c, record) in current {
            let life = self.model.lives.entry(c.name.clone()).or_default();
            // A container that is still being started is probed after its postStart hook.
            if life.probed == record.id || life.op == Some(Op::Starting) {
                continue;
            }
            let ContainerState::Running { started_at, .. } = record.state else { continue };
            let told = format!("containerd://{}", record.id);
            let old = self.model.api_status(&c.name).filter(|s| s.container_id.as_deref() == Some(&told)).cloned();
            let started = c.startup_probe.is_none() || old.as_ref().is_some_and(|s| s.started == Some(true));
            let ready = match &c.readiness_probe {
                None => started,
                Some(_) => old.is_some_and(|s| s.ready),
            };
            let life = self.model.life_mut(&c.name);
            life.probed = record.id.clone();
            life.started = started;
            life.ready = ready;
            life.unhealthy = None;
            life.waiting = None;
            let any = c.startup_probe.is_some() || c.liveness_probe.is_some() || c.readiness_probe.is_some();
            if any && kind != Kind::Init {
                let target = probe::Target {
                    pod: self.model.pod.clone(),
                    container: c,
                    id: record.id.clone(),
                    ip: self.ready.as_ref().and_then(|r| r.ips.first().copied()),
                    started_at,
                    started,
                };
                // Adopted containers are probed once their sandbox is known again.
                if self.ready.is_none() {
                    self.model.life_mut(&record.name).probed.clear();
                    continue;
                }
                let task = tokio::spawn(probe::run(self.ctx.clone(), self.inbox.clone(), target));
                self.probes.insert(record.id, task);
            }
        }
    }
}
