//! Settings while DNS runs: what the ConfigMap `kube-system/causeway-dns` says under `settings.yaml` goes before what the
//! program was started with, field by field. In: the ConfigMap, watched. Out: the handler configured anew; a bad one
//! changes nothing, and is told by an event and a counter.

use crate::server::Handler;
use causeway_api::dns::{DnsSettings, PodRecords};
use causeway_api::events::{EventType, Recorder};
use causeway_api::watch;
use futures::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::runtime::Handle;
use tokio::sync::watch::Sender;
use tokio_util::sync::CancellationToken;

/// The ConfigMap's name.
const NAME: &str = "causeway-dns";
/// The key in it.
const KEY: &str = "settings.yaml";

/// Which pods names depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PodsWanted {
    /// None.
    None,
    /// Those of this node: they are who asks.
    OfNode,
    /// All.
    All,
}

impl From<&DnsSettings> for PodsWanted {
    fn from(settings: &DnsSettings) -> Self {
        match (settings.pods, settings.autopath) {
            (PodRecords::Verified, _) => Self::All,
            (_, true) => Self::OfNode,
            (_, false) => Self::None,
        }
    }
}

/// The settings with what the text (YAML) says put over them; fields of `cache` one by one too.
pub(crate) fn overlay(base: &DnsSettings, text: &str) -> Result<DnsSettings, String> {
    let over: Option<serde_json::Map<String, Value>> =
        serde_yaml_ng::from_str(text).map_err(|e| format!("{KEY} is not a YAML mapping: {e}"))?;
    let mut all = serde_json::to_value(base).map_err(|e| format!("the settings in force: {e}"))?;
    for (name, value) in over.unwrap_or_default() {
        match (&name[..], value) {
            ("cache", Value::Object(fields)) => fields.into_iter().for_each(|(field, v)| all["cache"][field] = v),
            (_, value) => all[name] = value,
        }
    }
    serde_json::from_value(all).map_err(|e| format!("{KEY}: {e}"))
}

/// The settings that were last in force, for a start without the API.
pub(crate) fn last(state_dir: Option<&Path>, base: &DnsSettings) -> DnsSettings {
    let Some(text) = state_dir.and_then(|dir| std::fs::read_to_string(dir.join(KEY)).ok()) else { return base.clone() };
    match overlay(base, &text).and_then(|settings| crate::check(&settings).map(|()| settings)) {
        Ok(settings) => settings,
        Err(why) => {
            tracing::warn!(why, "the saved settings of DNS are passed over");
            base.clone()
        }
    }
}

/// Follows the ConfigMap.
pub(crate) struct Reload {
    pub handler: Arc<Handler>,
    /// What the program was started with.
    pub base: DnsSettings,
    pub inforce: DnsSettings,
    pub forward_on: Option<Handle>,
    pub pods: Sender<PodsWanted>,
    pub node: String,
    /// Where the last good text is kept.
    pub state_dir: Option<PathBuf>,
    /// Seconds.
    pub lameduck: Arc<AtomicU64>,
}

impl Reload {
    /// The seconds of answering on at the end, as settings say.
    pub fn lameduck(&self) -> Arc<AtomicU64> {
        self.lameduck.store(self.inforce.lameduck_seconds, Ordering::Release);
        self.lameduck.clone()
    }

    /// Until `shutdown`.
    pub async fn run(mut self, client: Client, shutdown: CancellationToken) {
        let recorder = Recorder::new(client.clone(), "causeway-dns", Some(&self.node));
        let mut states = watch::one::<ConfigMap>(client, crate::publish::NAMESPACE, NAME);
        let mut seen = None;
        loop {
            let state = tokio::select! {
                () = shutdown.cancelled() => return,
                state = states.next() => state,
            };
            let map = match state {
                None => return,
                Some(Ok(map)) => map,
                Some(Err(error)) => {
                    tracing::debug!(%error, "the settings of DNS are not watched at the time; they stay");
                    continue;
                }
            };
            let text = map.as_ref().and_then(|m| m.data.as_ref()?.get(KEY).cloned());
            if seen.as_ref() == Some(&text) {
                continue;
            }
            if let Err(why) = self.take(text.as_deref()) {
                self.handler.metrics.reload_failed.inc();
                tracing::warn!(why, "the ConfigMap kube-system/{NAME} is no good; the settings in force stay");
                if let Some(map) = &map {
                    let message = format!("{why}; the settings in force stay");
                    recorder.record(map, EventType::Warning, "InvalidSettings", message);
                }
            }
            seen = Some(text);
        }
    }

    /// Takes over what the ConfigMap says; all or nothing.
    fn take(&mut self, text: Option<&str>) -> Result<(), String> {
        let wanted = text.map_or(Ok(self.base.clone()), |text| overlay(&self.base, text))?;
        if wanted != self.inforce {
            self.handler.configure(&wanted, self.forward_on.clone())?;
            self.handler.metrics.reloaded.inc();
            tracing::info!("the settings of DNS have changed");
        }
        if let Some(dir) = &self.state_dir {
            let kept =
                std::fs::create_dir_all(dir).and_then(|()| std::fs::write(dir.join(KEY), text.unwrap_or_default()));
            if let Err(error) = kept {
                tracing::warn!(%error, dir = %dir.display(), "the settings of DNS were not saved");
            }
        }
        self.lameduck.store(wanted.lameduck_seconds, Ordering::Release);
        self.pods.send_replace(PodsWanted::from(&wanted));
        self.inforce = wanted;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_the_config_map_go_before_the_programs() {
        let mut base = DnsSettings { ttl: 7, upstreams: vec!["9.9.9.9".into()], ..DnsSettings::default() };
        base.cache.max_ttl = 100;
        assert_eq!(overlay(&base, "").as_ref(), Ok(&base));
        let text = "autopath: true\nstubDomains:\n  corp.example: [10.0.0.1, 'tls://10.0.0.2#dns.corp.example']\ncache: {minTtl: 1}";
        let got = overlay(&base, text).unwrap();
        assert!(got.autopath && got.ttl == 7 && got.upstreams == ["9.9.9.9"] && got.stub_domains.len() == 1);
        assert_eq!((got.cache.min_ttl, got.cache.max_ttl), (1, 100));
        assert_eq!(PodsWanted::from(&got), PodsWanted::OfNode);
        assert_eq!(PodsWanted::from(&overlay(&base, "pods: verified").unwrap()), PodsWanted::All);
        for bad in ["[1]", "ttl: soon", "tll: 5", "cache: {size: 1}", "pods: some", "{"] {
            let error = overlay(&base, bad).unwrap_err();
            assert!(error.contains(KEY), "{bad}: {error}");
        }
    }
}
