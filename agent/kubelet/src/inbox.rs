//! A pod worker's mailbox. What comes in is merged, so it never grows beyond one entry a fact: a thousand updates of a
//! pod while its worker is busy are one.

use crate::model::Unhealthy;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::Notify;

/// A probe's verdict about a container.
#[derive(Debug, Clone)]
pub enum Report {
    /// The startup probe succeeded.
    Started {
        /// The runtime's id.
        id: String,
    },
    /// The readiness probe changed its mind.
    Ready {
        /// The runtime's id.
        id: String,
        /// What it says now.
        ready: bool,
    },
    /// It must be restarted.
    Unhealthy {
        /// The runtime's id.
        id: String,
        /// Why.
        unhealthy: Unhealthy,
    },
}

/// Verdicts about one container, the newest of each kind.
#[derive(Debug, Clone, Default)]
pub struct Verdicts {
    /// See [`Report::Started`].
    pub started: bool,
    /// See [`Report::Ready`].
    pub ready: Option<bool>,
    /// See [`Report::Unhealthy`].
    pub unhealthy: Option<Unhealthy>,
}

/// What has come in since the worker looked last.
#[derive(Debug, Default)]
pub struct Mail {
    /// The newest object.
    pub pod: Option<Arc<Pod>>,
    /// The pod is gone from the API.
    pub vanished: bool,
    /// The runtime has news of its containers.
    pub look: bool,
    /// An object that the pod mentions has changed.
    pub objects: bool,
    /// By the runtime's id.
    pub verdicts: HashMap<String, Verdicts>,
}

/// The mailbox.
#[derive(Debug, Default)]
pub struct Inbox {
    mail: Mutex<Mail>,
    bell: Notify,
}

impl Inbox {
    /// The pod's object was seen.
    pub fn pod(&self, pod: Arc<Pod>) {
        self.mail.lock().pod = Some(pod);
        self.bell.notify_one();
    }

    /// The pod is gone from the API.
    pub fn vanish(&self) {
        self.mail.lock().vanished = true;
        self.bell.notify_one();
    }

    /// The runtime should be looked at again.
    pub fn look(&self) {
        self.mail.lock().look = true;
        self.bell.notify_one();
    }

    /// An object that the pod mentions has changed.
    pub fn objects(&self) {
        self.mail.lock().objects = true;
        self.bell.notify_one();
    }

    /// A probe has spoken.
    pub fn report(&self, report: Report) {
        {
            let mut mail = self.mail.lock();
            match report {
                Report::Started { id } => mail.verdicts.entry(id).or_default().started = true,
                Report::Ready { id, ready } => mail.verdicts.entry(id).or_default().ready = Some(ready),
                Report::Unhealthy { id, unhealthy } => {
                    mail.verdicts.entry(id).or_default().unhealthy = Some(unhealthy);
                }
            }
        }
        self.bell.notify_one();
    }

    /// Takes everything out.
    pub fn take(&self) -> Mail {
        std::mem::take(&mut *self.mail.lock())
    }

    /// Waits until something has come in.
    pub async fn rung(&self) {
        self.bell.notified().await;
    }
}
