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

/// Listens until the runtime is dropped, and again whenever containerd comes back.
pub(crate) async fn listen(inner: Weak<Inner>, cancel: CancellationToken) {
    let mut first = true;
    loop {
        let Some(strong) = inner.upgrade() else { return };
        let namespace = &strong.config.namespace;
        let filter = |topic: &str| format!("namespace==\"{namespace}\",topic==\"{topic}\"");
        let request = SubscribeRequest { filters: vec![filter("/tasks/exit"), filter("/tasks/oom")] };
        let subscribed = strong.api.events().subscribe(strong.api.stream(request)).await;
        if let Ok(stream) = subscribed {
            if !first {
                catch_up(strong.clone()).await;
            }
            first = false;
            drop(strong);
            let mut stream = stream.into_inner();
            loop {
                let message = tokio::select! {
                    () = cancel.cancelled() => return,
                    message = stream.message() => message,
                };
                match (message, inner.upgrade()) {
                    (_, None) => return,
                    (Ok(Some(envelope)), Some(strong)) => handle(strong, envelope),
                    _ => break,
                }
            }
            tracing::warn!("containerd's event stream ended; connecting again");
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(Duration::from_millis(500)) => {}
        }
    }
}

/// What ended while nobody listened is told now; telling twice does no harm.
async fn catch_up(inner: Arc<Inner>) {
    match inner.clone().adopt().await {
        Ok(ended) => {
            for id in ended {
                let _ = inner.events.send(ContainerEvent::Exited { id });
            }
        }
        Err(error) => tracing::warn!(%error, "looking at the containers after a lost connection"),
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
                let _ = inner.events.send(ContainerEvent::Exited { id: exit.container_id });
            });
        }
        _ => {}
    }
}
