//! When to look again: after a change of what is looked at, after a while, and not after shutdown.

use crate::catalog::prefix;
use crate::engine::Engine;
use crate::feed::Subscription;
use crate::status::ApiResult;
use futures::future::select_all;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// After a round in which all was well: changes are told, this is for what nobody has thought of.
const WELL: Duration = Duration::from_secs(3600);
/// After one that failed.
const FAILED: Duration = Duration::from_secs(1);

/// Rounds over some kinds.
pub struct Rounds {
    changed: Vec<Subscription>,
    shutdown: CancellationToken,
}

impl Rounds {
    /// Over kinds of a group. The first round is due at once; what changes from now on makes the next one due.
    pub fn over(engine: &Engine, group: &str, kinds: &[&str], shutdown: CancellationToken) -> Self {
        let subscription = |kind: &&str| Subscription::new(engine.feed.cache(&prefix(group, kind)), None);
        let mut rounds = Self { changed: kinds.iter().map(subscription).collect(), shutdown };
        rounds.mark();
        rounds
    }

    fn mark(&mut self) {
        self.changed.iter_mut().for_each(Subscription::mark_unchanged);
    }

    /// Waits for the next round, `pause` at the longest. `false` after shutdown.
    pub async fn next(&mut self, pause: Duration) -> bool {
        let any = select_all(self.changed.iter_mut().map(|c| Box::pin(c.changed())));
        let goes_on = tokio::select! {
            _ = any => true,
            () = tokio::time::sleep(pause) => true,
            () = self.shutdown.cancelled() => false,
        };
        self.mark();
        goes_on
    }
}

/// How long to wait after a round, of which `what` says what a failure means.
pub fn pause(outcome: ApiResult<()>, what: &str) -> Duration {
    match outcome {
        Ok(()) => WELL,
        Err(error) => {
            tracing::warn!(%error, "{what}; trying again");
            FAILED
        }
    }
}
