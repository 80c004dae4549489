//! containerd's events, translated. In: its stream of task exits and out-of-memory kills. Out: records on disk, then
//! [`ContainerEvent`]s, so that who hears of an exit finds its code and its whole log.

use super::{Inner, rpc};
use crate::types::ContainerEvent;
use containerd_client::{
    events::{TaskExit, TaskOom},
    services::v1::SubscribeRequest,
    types::Envelope,
};
use prost::Message;
use std::{
    sync::{Arc, Weak},
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// Between looks at all containers: containerd may lose events when it is killed, and a shim's with it.
const RELIST: Duration = Duration::from_secs(10);
/// The first look after the stream was opened (again).
const SETTLED: Duration = Duration::from_millis(300);

/// Listens until the runtime is dropped, and again whenever containerd comes back.
pub(crate) async fn listen(inner: Weak<Inner>, cancel: CancellationToken) {
    loop {
        let Some((api, namespace)) = inner.upgrade().map(|i| (i.api.clone(), i.config.namespace.clone())) else {
            return;
        };
        let filter = |topic: &str| format!("namespace==\"{namespace}\",topic==\"{topic}\"");
        let request = SubscribeRequest { filters: vec![filter("/tasks/exit"), filter("/tasks/oom")] };
        // containerd answers with the first event only, so the looks go on beside the call, not after it.
        let events = async {
            let mut stream = api.events().subscribe(api.stream(request)).await?.into_inner();
            while let Some(envelope) = stream.message().await? {
                match inner.upgrade() {
                    Some(inner) => handle(inner, envelope),
                    None => break,
                }
            }
            Ok::<(), tonic::Status>(())
        };
        let ended = tokio::select! {
            () = cancel.cancelled() => return,
            () = relist(&inner) => return,
            ended = events => ended,
        };
        if let Err(status) = ended {
            tracing::warn!(error = rpc::words(&status), "containerd's event stream ended; connecting again");
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(Duration::from_millis(200)) => {}
        }
    }
}

/// Tells what ended without an event. Returns when the runtime is dropped.
async fn relist(inner: &Weak<Inner>) {
    let mut pause = SETTLED;
    loop {
        tokio::time::sleep(pause).await;
        pause = RELIST;
        let Some(inner) = inner.upgrade() else { return };
        match inner.adopt().await {
            Ok(ended) => ended.iter().for_each(|id| inner.announce(id)),
            Err(error) => tracing::debug!(%error, "looking at the containers"),
        }
    }
}

impl Inner {
    /// Tells an exit once.
    pub(super) fn announce(&self, id: &str) {
        if self.announced.lock().insert(id.to_string()) {
            let _ = self.events.send(ContainerEvent::Exited { id: id.to_string() });
        }
    }
}

/// An exit is told only when its log is complete, which must not hold up the others.
fn handle(inner: Arc<Inner>, envelope: Envelope) {
    let Some(event) = envelope.event else { return };
    match envelope.topic.as_str() {
        "/tasks/oom" => {
            let Ok(oom) = TaskOom::decode(event.value.as_slice()) else { return };
            inner.note_oom(&oom.container_id);
            let _ = inner.events.send(ContainerEvent::Oom { id: oom.container_id });
        }
        "/tasks/exit" => {
            let Ok(exit) = TaskExit::decode(event.value.as_slice()) else { return };
            // The ends of execs are their sessions' business.
            if exit.id != exit.container_id {
                return;
            }
            tokio::spawn(async move {
                let code = i32::try_from(exit.exit_status).unwrap_or(255);
                inner.settle(&exit.container_id, code, rpc::time(exit.exited_at.as_ref())).await;
                inner.announce(&exit.container_id);
            });
        }
        _ => {}
    }
}
