//! The wire to containerd: one channel on its socket, requests that carry our namespace, a deadline and (where content
//! is made) a lease. In: messages of containerd's services. Out: the same, or a [`RuntimeError`] that says what failed.

use crate::types::{Result, RuntimeError};
use containerd_client::services::v1::{
    containers_client::ContainersClient, content_client::ContentClient, diff_client::DiffClient,
    events_client::EventsClient, images_client::ImagesClient, leases_client::LeasesClient,
    snapshots::snapshots_client::SnapshotsClient, tasks_client::TasksClient, version_client::VersionClient,
};
use jiff::Timestamp;
use std::time::Duration;
use tonic::{
    Code, Request, Status,
    metadata::{Ascii, MetadataValue},
    transport::Channel,
};

/// Calls that only read or change metadata.
pub(crate) const SHORT: Duration = Duration::from_secs(30);
/// Calls that make a container or unpack a layer.
pub(crate) const LONG: Duration = Duration::from_secs(180);
/// Lists of containers carry their specifications: more than gRPC's usual 4 MiB on a full node.
const MAX_MESSAGE: usize = 64 << 20;

/// containerd's services within one namespace.
#[derive(Clone)]
pub(crate) struct Api {
    channel: Channel,
    namespace: MetadataValue<Ascii>,
    address: String,
}

macro_rules! clients {
    ($($name:ident: $client:ident),* $(,)?) => {
        $(pub(crate) fn $name(&self) -> $client<Channel> {
            $client::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
        })*
    };
}

impl Api {
    pub(crate) fn new(channel: Channel, namespace: &str, address: String) -> Result<Self> {
        let namespace = namespace.parse().map_err(|_| RuntimeError::Other {
            doing: format!("choosing the containerd namespace {namespace:?}"),
            detail: "it may hold printable ASCII only".into(),
        })?;
        Ok(Self { channel, namespace, address })
    }

    clients! {
        containers: ContainersClient, content: ContentClient, diff: DiffClient, events: EventsClient,
        images: ImagesClient, leases: LeasesClient, snapshots: SnapshotsClient, tasks: TasksClient,
        versions: VersionClient,
    }

    /// A request in our namespace that is given up after `deadline`.
    pub(crate) fn ask<T>(&self, message: T, deadline: Duration) -> Request<T> {
        let mut request = self.stream(message);
        request.set_timeout(deadline);
        request
    }

    /// A request in our namespace without a deadline (event streams, waiting for an exit).
    pub(crate) fn stream<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("containerd-namespace", self.namespace.clone());
        request
    }

    /// As [`Api::ask`]; what the call makes is held by `lease` until something refers to it.
    pub(crate) fn leased<T>(&self, message: T, lease: &str, deadline: Duration) -> Request<T> {
        let mut request = self.ask(message, deadline);
        if let Ok(lease) = lease.parse() {
            request.metadata_mut().insert("containerd-lease", lease);
        }
        request
    }

    /// The error for a failed call.
    pub(crate) fn fail(&self, doing: impl Into<String>, status: &Status) -> RuntimeError {
        match status.code() {
            Code::Unavailable => {
                RuntimeError::Unavailable { address: self.address.clone(), detail: status.message().into() }
            }
            _ => RuntimeError::Other { doing: doing.into(), detail: words(status) },
        }
    }
}

/// containerd's words, without the `: unknown` that Go's error classes leave at the end.
pub(crate) fn words(status: &Status) -> String {
    let text = status.message().trim_end_matches(": unknown");
    if text.is_empty() { format!("{:?}", status.code()) } else { text.to_string() }
}

/// What is not there is what a caller who removes or stops wanted.
pub(crate) fn gone_is_fine<T>(result: Result<T, Status>) -> Result<Option<T>, Status> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(status) if status.code() == Code::NotFound => Ok(None),
        Err(status) => Err(status),
    }
}

pub(crate) fn time(stamp: Option<&prost_types::Timestamp>) -> Option<Timestamp> {
    stamp.and_then(|s| Timestamp::new(s.seconds, s.nanos).ok()).filter(|t| t.as_second() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_drop_go_class_and_are_never_empty() {
        assert_eq!(words(&Status::unknown("exec: \"/x\": no such file: unknown")), "exec: \"/x\": no such file");
        assert_eq!(words(&Status::not_found("")), "NotFound");
    }

    #[test]
    fn the_zero_time_is_no_time() {
        assert_eq!(time(None), None);
        assert_eq!(time(Some(&prost_types::Timestamp { seconds: -62_135_596_800, nanos: 0 })), None);
        assert!(time(Some(&prost_types::Timestamp { seconds: 5, nanos: 7 })).is_some());
    }
}
