//! Backups in a bucket, by the protocol S3. In: a bucket, a prefix, the usual variables of the environment (`AWS_REGION`,
//! `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_ENDPOINT_URL`; plain HTTP only with `AWS_ALLOW_HTTP=true`). Out: objects
//! that are there whole or not at all, because an upload in parts counts when it is completed.

use crate::error::{BackupError, Result, at, foreign};
use crate::retention::Name;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path as Key;
use object_store::{ClientOptions, MultipartUpload, ObjectStore, ObjectStoreExt, RetryConfig};
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

/// Bytes of a part; S3 wants at least 5 MiB, and takes 10,000 of them.
const PART: usize = 16 * 1024 * 1024;
/// A request that takes longer is given up: a part, or the next bytes of a download.
const TIMEOUT: Duration = Duration::from_secs(120);
/// A connection that is not there within this is given up.
const CONNECT: Duration = Duration::from_secs(10);
/// For how long one request is tried again; the schedule tries again after that.
const RETRY: Duration = Duration::from_secs(60);
/// A listing ends here, whatever the server says.
const MAX_LISTED: usize = 1_000_000;

/// A bucket and where in it.
pub(super) struct Bucket {
    store: AmazonS3,
    bucket: String,
    prefix: String,
}

impl Bucket {
    /// Reads the environment; nothing is asked for yet.
    pub(super) fn open(bucket: &str, prefix: &str) -> Result<Self> {
        // The variables say whether plain HTTP is allowed, and the options of the client replace what they said.
        let plain = std::env::var("AWS_ALLOW_HTTP").is_ok_and(|v| v.eq_ignore_ascii_case("true") || v == "1");
        let options = ClientOptions::new().with_timeout(TIMEOUT).with_connect_timeout(CONNECT).with_allow_http(plain);
        let retry = RetryConfig { retry_timeout: RETRY, max_retries: 5, ..RetryConfig::default() };
        let builder = AmazonS3Builder::from_env().with_bucket_name(bucket).with_client_options(options);
        let store = builder.with_retry(retry).build();
        let place = if prefix.is_empty() { bucket.to_owned() } else { format!("{bucket}/{prefix}") };
        Ok(Self {
            store: store.map_err(|e| remote("opening", &format!("s3://{place}"), &e))?,
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
        })
    }

    fn key(&self, name: &str) -> Key {
        if self.prefix.is_empty() { Key::from(name) } else { Key::from(format!("{}/{name}", self.prefix)) }
    }

    fn address(&self, key: &Key) -> String {
        format!("s3://{}/{key}", self.bucket)
    }

    pub(super) async fn list(&self) -> Result<Vec<Name>> {
        let prefix = Key::from(self.prefix.as_str());
        let failed = |e| remote("listing", &self.address(&prefix), &e);
        let mut listed = self.store.list(Some(&prefix)).take(MAX_LISTED);
        let mut names = Vec::new();
        while let Some(object) = listed.try_next().await.map_err(failed)? {
            // Only what lies right below the prefix: deeper ones are not ours to delete.
            let name = object.location.filename().and_then(Name::parse);
            names.extend(name.filter(|n| self.key(&n.to_string()) == object.location));
        }
        Ok(names)
    }

    pub(super) async fn put(&self, from: &Path, name: &str) -> Result<String> {
        let key = self.key(name);
        let address = self.address(&key);
        let mut file = File::open(from).map_err(at("opening", from))?;
        let failed = |e| remote("uploading", &address, &e);
        let mut upload = self.store.put_multipart(&key).await.map_err(failed)?;
        let outcome = match parts(&mut file, from, upload.as_mut(), &address).await {
            Ok(()) => upload.complete().await.map(drop).map_err(failed),
            Err(error) => Err(error),
        };
        if let Err(error) = outcome {
            // Parts that nobody completes cost their owner money.
            drop(upload.abort().await);
            return Err(error);
        }
        // What the server says it has is what was sent, or it has nothing.
        let length = file.metadata().map_err(at("looking at", from))?.len();
        let there = self.store.head(&key).await.map_err(|e| remote("looking at", &address, &e))?;
        if there.size != length {
            let detail = format!("it has {} bytes there and {length} here", there.size);
            return Err(BackupError::Remote { doing: "uploading", at: address, detail });
        }
        Ok(address)
    }

    pub(super) async fn delete(&self, name: &str) -> Result<()> {
        let key = self.key(name);
        self.store.delete(&key).await.map_err(|e| remote("deleting", &self.address(&key), &e))
    }

    pub(super) async fn fetch(&self, name: &str, into: &mut File) -> Result<()> {
        let key = self.key(name);
        let address = self.address(&key);
        let failed = |e| remote("downloading", &address, &e);
        let mut bytes = self.store.get(&key).await.map_err(failed)?.into_stream();
        while let Some(some) = bytes.try_next().await.map_err(failed)? {
            into.write_all(&some).map_err(at("writing what was downloaded from", Path::new(&address)))?;
        }
        Ok(())
    }
}

/// Sends one part after the other, so that one is in memory.
async fn parts(file: &mut File, path: &Path, upload: &mut dyn MultipartUpload, address: &str) -> Result<()> {
    loop {
        let mut part = Vec::with_capacity(PART);
        Read::take(&mut *file, PART as u64).read_to_end(&mut part).map_err(at("reading", path))?;
        let length = part.len();
        if length > 0 {
            upload.put_part(Bytes::from(part).into()).await.map_err(|e| remote("uploading", address, &e))?;
        }
        if length < PART {
            return Ok(());
        }
    }
}

/// An error with its chain of reasons, none of which holds a credential. Part of it is the server's own words.
fn remote(doing: &'static str, address: &str, error: &object_store::Error) -> BackupError {
    let mut detail = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(reason) = source {
        let reason_text = reason.to_string();
        if !detail.contains(&reason_text) {
            detail = format!("{detail}: {reason_text}");
        }
        source = reason.source();
    }
    BackupError::Remote { doing, at: address.to_owned(), detail: foreign(&detail) }
}
