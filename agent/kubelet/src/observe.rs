//! The runtime's containers by pod. In: `Runtime::containers`. Out: [`Record`]s for the model. Callers that ask while
//! a list is under way share the next one, so a burst of exits costs two lists and not one a pod.

use crate::model::Record;
use crate::names;
use causeway_runtime::{ContainerInfo, Result, Runtime};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Mutex;

/// All containers of this node by pod uid.
pub type Snapshot = Arc<HashMap<String, Vec<ContainerInfo>>>;

/// Lists containers on behalf of many.
pub struct Observer {
    runtime: Arc<dyn Runtime>,
    asked: AtomicU64,
    latest: Mutex<(u64, Snapshot)>,
}

impl Observer {
    /// Over a runtime.
    pub fn new(runtime: Arc<dyn Runtime>) -> Self {
        Self { runtime, asked: AtomicU64::new(0), latest: Mutex::new((0, Snapshot::default())) }
    }

    /// The last list; events of the runtime bring a new one soon after any change.
    pub async fn latest(&self) -> Snapshot {
        self.latest.lock().await.1.clone()
    }

    /// A list that was begun after this call.
    pub async fn fresh(&self) -> Result<Snapshot> {
        let ticket = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
        let mut latest = self.latest.lock().await;
        if latest.0 >= ticket {
            return Ok(latest.1.clone());
        }
        let began = self.asked.load(Ordering::SeqCst);
        let mut by_pod: HashMap<String, Vec<ContainerInfo>> = HashMap::new();
        for info in self.runtime.containers().await? {
            let uid = names::label(&info, names::POD_UID).to_owned();
            if !uid.is_empty() {
                by_pod.entry(uid).or_default().push(info);
            }
        }
        *latest = (began, Arc::new(by_pod));
        Ok(latest.1.clone())
    }
}

/// A container as the model sees it; `None` when its labels are not ours.
pub fn record(info: &ContainerInfo) -> Option<Record> {
    let name = names::label(info, names::CONTAINER_NAME);
    (!name.is_empty()).then(|| Record {
        id: info.id.clone(),
        name: name.to_owned(),
        attempt: names::label(info, names::RESTART_COUNT).parse().unwrap_or(0),
        hash: names::label(info, names::SPEC_HASH).to_owned(),
        image: info.image.clone(),
        image_id: names::label(info, names::IMAGE_ID).to_owned(),
        state: info.state.clone(),
        message: String::new(),
        reason: None,
    })
}
