//! How the store is doing: what it cannot do, and its metrics under etcd's names.
//!
//! In: durations and outcomes from the writer and the housekeeper. Out: [`Health`] for the server's health endpoints,
//! and collectors for its metrics.

use parking_lot::Mutex;
use prometheus::core::Collector;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntGauge};
use std::time::{Duration, Instant};

/// A write that takes longer than this makes the store slow.
const SLOW: Duration = Duration::from_secs(5);

/// What the store can do at the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Why writes are refused.
    pub writes: Result<(), String>,
    /// Why values cannot be read.
    pub reads: Result<(), String>,
    /// Since when the device has not come back from a write, if that is for more than 5 s.
    pub slow: Option<Duration>,
}

impl Health {
    /// Everything at once: the first thing that is wrong.
    pub fn verdict(&self) -> Result<(), String> {
        self.reads.clone()?;
        self.writes.clone()?;
        match self.slow {
            Some(since) => Err(format!("a write has been waiting for the disk for {} s", since.as_secs())),
            None => Ok(()),
        }
    }
}

/// What the threads of the store tell about themselves.
pub(crate) struct Status {
    state: Mutex<State>,
    pub fsync: Histogram,
    pub commit: Histogram,
    pub snapshot: Histogram,
    pub refused: IntCounter,
    pub written: IntCounter,
    pub keys: IntGauge,
    pub revision: IntGauge,
    pub compacted: IntGauge,
    pub size: IntGauge,
    pub log: IntGauge,
}

#[derive(Default)]
struct State {
    writes: Option<String>,
    reads: Option<String>,
    writing_since: Option<Instant>,
}

impl Status {
    pub fn new() -> Result<Self, prometheus::Error> {
        // As etcd's, from 1 ms to 8 s.
        let buckets = || prometheus::exponential_buckets(0.001, 2.0, 14);
        let histogram = |name, help| Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets()?));
        Ok(Self {
            state: Mutex::default(),
            fsync: histogram("etcd_disk_wal_fsync_duration_seconds", "How long a batch takes to get to the device")?,
            commit: histogram("etcd_disk_backend_commit_duration_seconds", "How long values take to get into sled")?,
            snapshot: histogram("etcd_snap_db_save_total_duration_seconds", "How long a snapshot takes")?,
            refused: IntCounter::new("etcd_server_proposals_failed_total", "Writes that were refused for the disk")?,
            written: IntCounter::new("etcd_disk_wal_write_bytes_total", "Bytes of keys and values that were logged")?,
            keys: IntGauge::new("etcd_debugging_mvcc_keys_total", "Keys, with those deleted lately")?,
            revision: IntGauge::new("etcd_debugging_mvcc_current_revision", "The newest revision")?,
            compacted: IntGauge::new("etcd_debugging_mvcc_compact_revision", "The compacted revision")?,
            size: IntGauge::new("etcd_mvcc_db_total_size_in_bytes", "Bytes of all of the store's files")?,
            log: IntGauge::new("causeway_store_log_bytes", "Bytes of the log that no snapshot covers yet")?,
        })
    }

    pub fn collectors(&self) -> Vec<Box<dyn Collector>> {
        vec![
            Box::new(self.fsync.clone()),
            Box::new(self.commit.clone()),
            Box::new(self.snapshot.clone()),
            Box::new(self.refused.clone()),
            Box::new(self.written.clone()),
            Box::new(self.keys.clone()),
            Box::new(self.revision.clone()),
            Box::new(self.compacted.clone()),
            Box::new(self.size.clone()),
            Box::new(self.log.clone()),
        ]
    }

    pub fn writing(&self, busy: bool) {
        self.state.lock().writing_since = busy.then(Instant::now);
    }

    /// Why writes are refused; `None` when they are not.
    pub fn set_writes(&self, why: Option<String>) {
        self.state.lock().writes = why;
    }

    pub fn set_reads(&self, why: Option<String>) {
        self.state.lock().reads = why;
    }

    pub fn health(&self) -> Health {
        let state = self.state.lock();
        Health {
            writes: state.writes.clone().map_or(Ok(()), Err),
            reads: state.reads.clone().map_or(Ok(()), Err),
            slow: state.writing_since.map(|since| since.elapsed()).filter(|since| *since > SLOW),
        }
    }
}
