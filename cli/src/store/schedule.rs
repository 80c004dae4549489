//! Backups that make themselves. In: the settings, the running store. Out: a backup whenever one is due, and none that has
//! had its time; an event and a line in the log for each, and the state of the component `backup` in `causeway status`.

use super::backup::{self, Made};
use crate::paths::Paths;
use crate::tasks::{Health, RUNNING, Tasks};
use anyhow::{Context, Result};
use causeway_api::events::{EventType, Recorder};
use causeway_backup::retention::superseded;
use causeway_backup::{Destination, Key, Settings};
use causeway_store::Store;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ObjectReference;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// The component's name.
const NAME: &str = "backup";
/// The clock is looked at this often, so that one that was set is noticed.
const LOOK: Duration = Duration::from_secs(60);

/// What makes backups.
#[derive(Clone)]
struct Schedule {
    settings: Settings,
    paths: Paths,
    store: Arc<dyn Store>,
    health: Health,
    recorder: Recorder,
}

/// Starts it, where the settings ask for it.
pub fn start(
    settings: Option<Settings>,
    paths: &Paths,
    store: &Arc<dyn Store>,
    client: kube::Client,
    control: &mut Tasks,
    health: &Health,
) {
    let Some(settings) = settings else { return };
    let recorder = Recorder::new(client, "causeway-backup", None);
    let schedule = Schedule { settings, paths: paths.clone(), store: store.clone(), health: health.clone(), recorder };
    let token = control.token();
    control.supervise(NAME, move || schedule.clone().run(token.clone()));
}

impl Schedule {
    async fn run(self, token: CancellationToken) -> Result<()> {
        let mut failures = 0;
        loop {
            let next = match self.due().await {
                Ok(next) if next > Timestamp::now() => {
                    if std::mem::take(&mut failures) > 0 {
                        self.health.set(NAME, RUNNING);
                    }
                    next
                }
                Ok(_) => {
                    let outcome = tokio::select! {
                        outcome = self.once() => outcome,
                        () = token.cancelled() => return Ok(()),
                    };
                    self.tell(outcome, &mut failures)
                }
                Err(error) => self.tell(Err(error), &mut failures),
            };
            while Timestamp::now() < next {
                let rest = Duration::try_from(next.duration_since(Timestamp::now())).unwrap_or_default();
                tokio::select! {
                    () = token.cancelled() => return Ok(()),
                    () = tokio::time::sleep(rest.min(LOOK)) => {}
                }
            }
        }
    }

    fn to(&self) -> Result<Destination> {
        Ok(Destination::parse(&self.settings.to)?)
    }

    /// When the next one is due, by those that are there.
    async fn due(&self) -> Result<Timestamp> {
        let names = self.to()?.list().await.context("looking for the last backup")?;
        let last = names.into_iter().filter(|name| name.cluster == self.paths.name).map(|name| name.at).max();
        Ok(self.settings.next(last, Timestamp::now()))
    }

    async fn once(&self) -> Result<Made> {
        let to = self.to()?;
        let key = Key::read(&self.settings.key_file)?;
        let snapshot = self.store.snapshot().await.context("taking a snapshot of the store")?;
        let made = backup::make(&self.paths, &key, &to, Some(snapshot)).await?;
        self.health.set(NAME, RUNNING);
        // Only now, when there is a new one. Those that stay too long are no reason to make another.
        if let Err(error) = self.prune(&to, &made).await {
            tracing::error!("old backups are not deleted: {error:#}");
            self.health.set(NAME, &format!("made a backup, and failed to delete old ones: {error:#}"));
        }
        Ok(made)
    }

    async fn prune(&self, to: &Destination, made: &Made) -> Result<()> {
        let names = to.list().await.context("looking for old backups")?;
        for name in superseded(names, &self.paths.name, self.settings.keep(), made.name.at) {
            to.delete(&name).await?;
            tracing::info!(backup = %name, "an old backup is deleted");
        }
        Ok(())
    }

    /// Says how it went; returns when to look again.
    fn tell(&self, outcome: Result<Made>, failures: &mut u32) -> Timestamp {
        let after = |pause: SignedDuration| Timestamp::now().checked_add(pause).unwrap_or(Timestamp::MAX);
        match outcome {
            Ok(made) => {
                *failures = 0;
                tracing::info!(
                    backup = made.address,
                    revision = made.contents.revision,
                    bytes = made.bytes,
                    "backed up"
                );
                // The same words each time, so that it is one event that counts.
                self.event(EventType::Normal, "BackedUp", format!("the cluster was backed up to {}", self.settings.to));
                after(self.settings.schedule)
            }
            Err(error) => {
                *failures = failures.saturating_add(1);
                let pause = self.settings.retry(*failures);
                tracing::error!("no backup was made: {error:#}; next try in {pause:#}");
                self.health.set(NAME, &format!("failed: {error:#}; next try in {pause:#}"));
                self.event(EventType::Warning, "BackupFailed", format!("{error:#}"));
                after(pause)
            }
        }
    }

    fn event(&self, type_: EventType, reason: &str, message: String) {
        let about = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Namespace".to_owned()),
            name: Some("kube-system".to_owned()),
            namespace: Some("kube-system".to_owned()),
            ..ObjectReference::default()
        };
        self.recorder.record_ref(about, type_, reason, message);
    }
}
