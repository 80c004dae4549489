//! Acknowledged writes a second: each is on the device before it is acknowledged. Next to it, what the device itself
//! does when one file is appended to and synced record by record.

use crate::Options;
use crate::stats::{median, round, spread};
use anyhow::Result;
use causeway_store::{SledOptions, SledStore, Store};
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

const WRITES: usize = 4000;
const RECORD: usize = 1024;

/// Measures the store.
pub fn run(options: &Options) -> Result<Value> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (mut plain, mut one, mut sixteen) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        plain.push(appended(&options.out)?);
        one.push(runtime.block_on(written(&options.out, 1))?);
        sixteen.push(runtime.block_on(written(&options.out, 16))?);
    }
    Ok(json!({
        "recordBytes": RECORD,
        "appendAndFdatasyncPerSecond": spread(&plain),
        "oneWriterPerSecond": spread(&one),
        "sixteenWritersPerSecond": spread(&sixteen),
        "oneWriterToAppend": round(median(&one) / median(&plain)),
        "sixteenWritersToAppend": round(median(&sixteen) / median(&plain)),
    }))
}

fn appended(dir: &Path) -> Result<f64> {
    let mut file = tempfile::tempfile_in(dir)?;
    let count = WRITES / 4;
    let begin = Instant::now();
    for _ in 0..count {
        file.write_all(&[b'x'; RECORD])?;
        file.sync_data()?;
    }
    Ok(count as f64 / begin.elapsed().as_secs_f64())
}

async fn written(dir: &Path, writers: usize) -> Result<f64> {
    let dir = tempfile::tempdir_in(dir)?;
    let store = Arc::new(SledStore::open(dir.path(), SledOptions::default())?);
    let each = WRITES / writers;
    let begin = Instant::now();
    let tasks = (0..writers).map(|writer| {
        let store = store.clone();
        tokio::spawn(async move {
            for i in 0..each {
                store.create(&format!("/bench/{writer}-{i}"), vec![b'x'; RECORD].into()).await?;
            }
            Ok::<(), causeway_store::StoreError>(())
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await??;
    }
    Ok((each * writers) as f64 / begin.elapsed().as_secs_f64())
}
