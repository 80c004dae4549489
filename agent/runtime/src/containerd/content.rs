//! containerd's content store: blobs by digest, written under a lease, labelled so that its garbage collector sees what
//! refers to what. In: byte streams with the digest they must have. Out: blobs in the store.

use super::rpc::{Api, SHORT, gone_is_fine};
use crate::types::{Result, RuntimeError};
use bytes::Bytes;
use containerd_client::services::v1::{
    AbortRequest, CreateRequest, DeleteRequest, Info, InfoRequest, ReadContentRequest, UpdateRequest, WriteAction,
    WriteContentRequest,
};
use futures::{StreamExt, stream::BoxStream};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, HashMap},
    io,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

/// gRPC messages of this size keep memory flat and calls few.
const CHUNK: usize = 1 << 20;

/// Which content: the descriptor of the OCI image specification (Docker's is the same).
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: String,
    pub size: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Platform {
    pub os: String,
    pub architecture: String,
}

impl Descriptor {
    pub(crate) fn to_proto(&self) -> containerd_client::types::Descriptor {
        containerd_client::types::Descriptor {
            media_type: self.media_type.clone(),
            digest: self.digest.clone(),
            size: self.size,
            annotations: HashMap::new(),
        }
    }
}

pub(crate) type Blob = BoxStream<'static, io::Result<Bytes>>;
pub(crate) type Labels = HashMap<String, String>;

/// Holds new content until it is referred to; expires by itself should we die.
pub(crate) struct Lease {
    api: Api,
    pub(crate) id: String,
}

impl Lease {
    pub(crate) async fn new(api: &Api) -> Result<Self> {
        let id = format!("causeway-{}", uuid::Uuid::new_v4());
        let end = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(2);
        let labels = HashMap::from([("containerd.io/gc.expire".to_string(), format!("{end:.0}"))]);
        let request = CreateRequest { id: id.clone(), labels };
        api.leases().create(api.ask(request, SHORT)).await.map_err(|s| api.fail("creating a lease", &s))?;
        Ok(Self { api: api.clone(), id })
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let (api, id) = (self.api.clone(), std::mem::take(&mut self.id));
        if let Ok(handle) = tokio::runtime::Handle::try_current() {
            handle.spawn(async move {
                // Should this fail, the lease expires.
                let _ = api.leases().delete(api.ask(DeleteRequest { id, sync: false }, SHORT)).await;
            });
        }
    }
}

/// Whether the blob is there; if so it gets the labels too.
pub(crate) async fn adopt(api: &Api, digest: &str, labels: &Labels) -> Result<bool> {
    let request = InfoRequest { digest: digest.into() };
    let found = gone_is_fine(api.content().info(api.ask(request, SHORT)).await)
        .map_err(|s| api.fail(format!("looking up content {digest}"), &s))?;
    if found.is_none() {
        return Ok(false);
    }
    label(api, digest, labels).await?;
    Ok(true)
}

/// Adds labels to a blob.
pub(crate) async fn label(api: &Api, digest: &str, labels: &Labels) -> Result<()> {
    if labels.is_empty() {
        return Ok(());
    }
    let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
    let request = UpdateRequest {
        info: Some(Info { digest: digest.into(), labels: labels.clone(), ..Default::default() }),
        update_mask: Some(prost_types::FieldMask { paths }),
    };
    api.content()
        .update(api.ask(request, SHORT))
        .await
        .map(drop)
        .map_err(|s| api.fail(format!("labelling content {digest}"), &s))
}

/// Writes a blob; containerd refuses it unless it has the digest and size of `what`.
pub(crate) async fn write(api: &Api, lease: &str, what: &Descriptor, labels: Labels, data: Blob) -> Result<()> {
    let reference = format!("causeway-{}-{}", what.digest, uuid::Uuid::new_v4());
    let (sender, receiver) = mpsc::channel(4);
    let mut request = api.stream(ReceiverStream::new(receiver));
    if let Ok(lease) = lease.parse() {
        request.metadata_mut().insert("containerd-lease", lease);
    }
    let mut client = api.content();
    let drain = async {
        let mut answers = client.write(request).await?.into_inner();
        while answers.message().await?.is_some() {}
        Ok::<(), Status>(())
    };
    let (fed, drained) = tokio::join!(feed(sender, &reference, what, labels.clone(), data), drain);
    let failure = match (fed, drained) {
        (_, Err(status)) if status.code() == Code::AlreadyExists => return label(api, &what.digest, &labels).await,
        (Err(error), _) => RuntimeError::Other { doing: format!("reading {}", what.digest), detail: chain(&error) },
        (Ok(()), Err(status)) => api.fail(format!("storing {}", what.digest), &status),
        (Ok(()), Ok(())) => return Ok(()),
    };
    let _ = api.content().abort(api.ask(AbortRequest { r#ref: reference }, SHORT)).await;
    Err(failure)
}

async fn feed(
    sender: mpsc::Sender<WriteContentRequest>,
    reference: &str,
    what: &Descriptor,
    labels: Labels,
    mut data: Blob,
) -> io::Result<()> {
    let message = |action: WriteAction, offset: i64, data: Vec<u8>, labels: Labels| WriteContentRequest {
        action: action as i32,
        r#ref: reference.into(),
        total: what.size,
        expected: what.digest.clone(),
        offset,
        data,
        labels,
    };
    // Opening the writer first lets containerd say that it has this blob before anything is read.
    if sender.send(message(WriteAction::Stat, 0, Vec::new(), Labels::new())).await.is_err() {
        return Ok(());
    }
    let mut offset = 0;
    while let Some(bytes) = data.next().await {
        for part in bytes?.chunks(CHUNK) {
            if sender.send(message(WriteAction::Write, offset, part.to_vec(), Labels::new())).await.is_err() {
                return Ok(());
            }
            offset += part.len() as i64;
        }
    }
    // A closed channel means that containerd has ended the call; its status tells why.
    let _ = sender.send(message(WriteAction::Commit, offset, Vec::new(), labels)).await;
    Ok(())
}

/// Reads a small blob (manifest, configuration) whole.
pub(crate) async fn read(api: &Api, digest: &str, limit: usize) -> Result<Option<Vec<u8>>> {
    let doing = || format!("reading content {digest}");
    let request = ReadContentRequest { digest: digest.into(), offset: 0, size: 0 };
    let stream = gone_is_fine(api.content().read(api.ask(request, SHORT)).await).map_err(|s| api.fail(doing(), &s))?;
    let Some(stream) = stream else { return Ok(None) };
    let (mut stream, mut out) = (stream.into_inner(), Vec::new());
    loop {
        match stream.message().await {
            Ok(Some(part)) => out.extend_from_slice(&part.data),
            Ok(None) => return Ok(Some(out)),
            Err(status) if status.code() == Code::NotFound => return Ok(None),
            Err(status) => return Err(api.fail(doing(), &status)),
        }
        if out.len() > limit {
            return Err(RuntimeError::Other { doing: doing(), detail: format!("it is larger than {limit} bytes") });
        }
    }
}

/// An error with all its causes: `connect` alone does not tell that the connection was refused.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        source = cause.source();
    }
    text
}
