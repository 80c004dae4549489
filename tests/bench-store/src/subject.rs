//! What is measured, behind one small trait: the store, the engine before it, and etcd through its gRPC API.
//!
//! In: the name of a subject and where it is. Out: creates, compare-and-swap updates and pages of it, each done as
//! Kubernetes does it with etcd.

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use bytes::Bytes;
use etcd_client::{Client, Compare, CompareOp, GetOptions, KvClient, Txn, TxnOp};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What is asked before etcd has a leader may be answered seconds later only: it is asked anew after this.
const ATTEMPT: Duration = Duration::from_millis(250);
/// How long etcd may take to be there.
const PATIENCE: Duration = Duration::from_secs(120);

/// A store of keys.
#[async_trait]
pub trait Subject: Send + Sync {
    /// Creates a key that is not there; its revision.
    async fn create(&self, key: &str, value: Bytes) -> Result<u64>;
    /// Replaces the value of a key that is at a revision; the new one.
    async fn update(&self, key: &str, value: Bytes, expected: u64) -> Result<u64>;
    /// The first keys under a prefix with their values: how many came, and how many more there are.
    async fn page(&self, prefix: &str, limit: usize) -> Result<(usize, usize)>;
}

/// Opens a subject by its name: in a folder, or on a port.
pub async fn open(name: &str, dir: &Path, port: u16) -> Result<Arc<dyn Subject>> {
    Ok(match name {
        "new" => Arc::new(New(causeway_store::SledStore::open(dir, causeway_store::SledOptions::default())?)),
        "new-log" => {
            let options = causeway_store::SledOptions { log: 8 << 30, ..causeway_store::SledOptions::default() };
            Arc::new(New(causeway_store::SledStore::open(dir, options)?))
        }
        "old" => Arc::new(Old(causeway_store_old::SledStore::open(dir, causeway_store_old::SledOptions::default())?)),
        _ if port != 0 => Arc::new(Etcd::connect(port).await?),
        other => bail!("no such subject: {other}"),
    })
}

/// Both engines have the same trait, in crates of their own.
macro_rules! embedded {
    ($name:ident, $store:ident) => {
        struct $name($store::SledStore);

        #[async_trait]
        impl Subject for $name {
            async fn create(&self, key: &str, value: Bytes) -> Result<u64> {
                Ok($store::Store::create(&self.0, key, value).await?.mod_revision)
            }

            async fn update(&self, key: &str, value: Bytes, expected: u64) -> Result<u64> {
                Ok($store::Store::update(&self.0, key, value, expected).await?.mod_revision)
            }

            async fn page(&self, prefix: &str, limit: usize) -> Result<(usize, usize)> {
                let request =
                    $store::ListRequest { prefix: prefix.to_owned(), limit, ..$store::ListRequest::default() };
                let page = $store::Store::list(&self.0, request).await?;
                Ok((page.items.len(), page.remaining))
            }
        }
    };
}

embedded!(New, causeway_store);
embedded!(Old, causeway_store_old);

struct Etcd(KvClient);

impl Etcd {
    async fn connect(port: u16) -> Result<Self> {
        let begin = Instant::now();
        loop {
            let tried = async {
                let client = Client::connect([format!("http://127.0.0.1:{port}")], None).await?;
                let mut keys = client.kv_client();
                // It listens before it can answer.
                keys.get("a", None).await?;
                Ok::<_, etcd_client::Error>(keys)
            };
            match tokio::time::timeout(ATTEMPT, tried).await {
                Ok(Ok(keys)) => return Ok(Self(keys)),
                Ok(Err(error)) if begin.elapsed() > PATIENCE => return Err(error).context("etcd does not answer"),
                Err(_) if begin.elapsed() > PATIENCE => bail!("etcd does not answer"),
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }

    async fn put_if(&self, when: Compare, key: &str, value: Bytes) -> Result<u64> {
        let transaction = Txn::new().when([when]).and_then([TxnOp::put(key, value, None)]);
        let answer = self.0.clone().txn(transaction).await?;
        if !answer.succeeded() {
            bail!("{key} was not as expected");
        }
        Ok(u64::try_from(answer.header().context("no header")?.revision())?)
    }
}

#[async_trait]
impl Subject for Etcd {
    async fn create(&self, key: &str, value: Bytes) -> Result<u64> {
        self.put_if(Compare::create_revision(key, CompareOp::Equal, 0), key, value).await
    }

    async fn update(&self, key: &str, value: Bytes, expected: u64) -> Result<u64> {
        self.put_if(Compare::mod_revision(key, CompareOp::Equal, i64::try_from(expected)?), key, value).await
    }

    async fn page(&self, prefix: &str, limit: usize) -> Result<(usize, usize)> {
        let options = GetOptions::new().with_prefix().with_limit(i64::try_from(limit)?);
        let page = self.0.clone().get(prefix, Some(options)).await?;
        let came = page.kvs().len();
        Ok((came, usize::try_from(page.count())? - came))
    }
}
