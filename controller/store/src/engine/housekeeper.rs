//! The housekeeper: a thread that forgets history that is old enough, writes snapshots so that the log stays short, and
//! makes the values anew where sled has failed.
//!
//! In: the clock, the log's length, and who found sled failing. Out: compactions (through the writer, which logs
//! them), snapshots, fresh values. All three in one thread, so that none meets another.

use super::shared::Shared;
use super::values::{self, Values};
use super::writer::Request;
use super::{SledOptions, open};
use crate::disk::log::Log;
use crate::disk::{failed, has_room, now, size_of, snapshot, sync_dir};
use crate::{Result, Revision, StoreError, Write};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::fs;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// How often the housekeeper looks.
const NAP: Duration = Duration::from_millis(500);
/// How often files are counted.
const MEASURE: Duration = Duration::from_secs(10);
/// Values that could not be made anew are tried again after this time.
const HEAL_EVERY: Duration = Duration::from_secs(1);
/// Changes that are compacted under one lock.
const PORTION: usize = 1000;

pub(crate) struct Housekeeper {
    pub shared: Arc<Shared>,
    pub log: Arc<Mutex<Log>>,
    pub options: SledOptions,
    /// A weak one: the writer ends when the store lets go of it.
    pub requests: mpsc::WeakSender<Request>,
    /// Bytes of the newest snapshot.
    pub snapshot_bytes: u64,
}

impl Housekeeper {
    /// Works until the store closes its end of `heal`.
    pub fn run(mut self, heal: &Receiver<Wake>) {
        self.shared.set_keeper();
        let mut marks: VecDeque<Mark> = VecDeque::new();
        let mut unhealed = None::<(Instant, StoreError)>;
        let (mut dropped, mut snapshot_failed, mut measured) = (0, None::<Instant>, None::<Instant>);
        loop {
            match heal.recv_timeout(NAP) {
                Ok(Wake::Heal(generation, reply)) => {
                    // Who does not wait any more needs no answer.
                    let _ = reply.send(self.heal(generation, &mut unhealed));
                }
                Ok(Wake::Save(reply)) => drop(reply.send(self.save())),
                Ok(Wake::Scrub(reply)) => drop(reply.send(self.scrub(&mut unhealed))),
                Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {}
            }
            self.look_for_room();
            if unhealed.is_some() {
                // An error is remembered there.
                let _ = self.heal(self.shared.generation(), &mut unhealed);
            }
            self.drop_expired();
            self.compact_old(&mut marks);
            let unread = self.shared.unread();
            if unread > dropped {
                match self.drop_unread(unread) {
                    Ok(()) => dropped = unread,
                    Err(error) => tracing::warn!(%error, "old values were not dropped; they go when sled is made anew"),
                }
            }
            let log = self.log.lock().sealed_bytes();
            let due = log > self.options.log.max(self.snapshot_bytes);
            if due && snapshot_failed.is_none_or(|at| at.elapsed() > Duration::from_secs(30)) {
                snapshot_failed = None;
                if let Err(error) = self.snapshot() {
                    tracing::warn!(%error, "no snapshot was written; the log grows until one is");
                    snapshot_failed = Some(Instant::now());
                }
            }
            if measured.is_none_or(|at| at.elapsed() >= MEASURE) {
                measured = Some(Instant::now());
                self.measure(log);
            }
        }
    }

    /// Writes a snapshot that covers all of the log, but for what is written meanwhile.
    fn save(&mut self) -> Result<()> {
        self.log.lock().renew().map_err(failed("closing the log's segment in", &self.shared.dir))?;
        self.snapshot()
    }

    /// Leaves nothing of what was compacted in any file.
    fn scrub(&mut self, unhealed: &mut Option<(Instant, StoreError)>) -> Result<()> {
        self.save()?;
        self.drop_unread(self.shared.unread())?;
        self.heal(self.shared.generation(), unhealed)
    }

    /// A full disk is told before a write meets it, and no longer than it is full.
    fn look_for_room(&self) {
        let full = StoreError::DiskFull { path: self.shared.dir.display().to_string() }.to_string();
        let status = &self.shared.status;
        let told = status.health().writes == Err(full.clone());
        match has_room(&self.shared.dir, self.options.reserve) {
            true if told => status.set_writes(None),
            false if !told => status.set_writes(Some(full)),
            _ => {}
        }
    }

    /// Has the writer delete what has lived long enough, if nobody writes it again before.
    fn drop_expired(&self) {
        const EXPIRED: usize = 256;
        let due = self.shared.state.write().index.expired(now(), EXPIRED);
        let Some(requests) = self.requests.upgrade() else { return };
        for (i, (key, revision)) in due.iter().enumerate() {
            let (reply, _answer) = oneshot::channel();
            let writes = vec![Write::Delete { key: key.to_string(), expected: Some(*revision) }];
            if requests.try_send(Request::Write { writes, reply }).is_err() {
                // A full queue: they are due once more.
                self.shared.state.write().index.expire_later(&due[i..], now() + 1);
                return;
            }
        }
    }

    /// Has the writer log that what is older than the options say is forgotten.
    fn compact_old(&self, marks: &mut VecDeque<Mark>) {
        let (revision, written) = (self.shared.revision(), self.shared.status.written.get());
        if marks.back().is_none_or(|mark| mark.revision < revision) {
            marks.push_back(Mark { at: Instant::now(), revision, written });
        }
        // Time is the measure, but memory and disk have an end.
        let old = |mark: &Mark| {
            mark.at.elapsed() >= self.options.history || written - mark.written > self.options.max_history_bytes
        };
        let mut last = None;
        while marks.front().is_some_and(old) {
            last = marks.pop_front().or(last);
        }
        let target = last.as_ref().map_or(0, |mark| mark.revision);
        if target <= self.shared.compacted() {
            return;
        }
        let Some(requests) = self.requests.upgrade() else { return };
        let (reply, _answer) = oneshot::channel();
        // Where the queue is full, it is done at the next look: the writer may be waiting for this thread.
        if requests.try_send(Request::Compact { revision: target, reply }).is_err() {
            marks.extend(last.take());
            marks.rotate_right(1);
        }
    }

    fn drop_unread(&self, upto: Revision) -> Result<()> {
        loop {
            let (gone, done) = self.shared.state.write().index.compact(upto, PORTION);
            if !gone.is_empty() {
                self.shared.values()?.remove(&gone)?;
            }
            if done {
                return Ok(());
            }
        }
    }

    fn measure(&self, log: u64) {
        let status = &self.shared.status;
        let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        status.size.set(number(size_of(&self.shared.dir)));
        status.log.set(number(log));
        status.compacted.set(number(self.shared.compacted()));
        let state = self.shared.state.read();
        status.revision.set(number(state.revision));
        status.keys.set(number(state.index.len() as u64));
    }

    /// Writes a snapshot of what is there now and removes what it makes superfluous.
    fn snapshot(&mut self) -> Result<()> {
        let begin = Instant::now();
        let pin = self.shared.pin(None)?;
        if !has_room(&self.shared.dir, self.options.reserve + self.snapshot_bytes) {
            return Err(StoreError::DiskFull { path: self.shared.dir.display().to_string() });
        }
        let compacted = self.shared.compacted().min(pin.revision);
        let (path, _) = snapshot::write_file(&self.shared.dir, pin.revision, compacted, |writer| {
            self.shared.fill(&pin, compacted, |revisions, key, value| {
                writer.push(revisions, key, value).map_err(failed("writing a snapshot in", &self.shared.dir))
            })
        })?;
        self.snapshot_bytes = fs::metadata(&path).map_or(0, |meta| meta.len());
        let covered = self.log.lock().take_sealed(pin.revision);
        let segments = covered.len();
        open::remove_covered(&self.shared.dir, pin.revision, covered)?;
        let log = self.shared.dir.join(open::LOG);
        sync_dir(&log).and_then(|()| sync_dir(&self.shared.dir)).map_err(failed("syncing", &log))?;
        self.shared.status.snapshot.observe(begin.elapsed().as_secs_f64());
        tracing::debug!(revision = pin.revision, segments, took = ?begin.elapsed(), "snapshot written");
        Ok(())
    }

    /// Makes the values anew, if those of this generation are still in use. Not again and again for all that ask.
    fn heal(&self, generation: u64, failed: &mut Option<(Instant, StoreError)>) -> Result<()> {
        if self.shared.generation() > generation {
            return Ok(());
        }
        if let Some((_, error)) = failed.as_ref().filter(|(at, _)| at.elapsed() < HEAL_EVERY) {
            return Err(error.clone());
        }
        let healed = self.make_anew(generation + 1);
        match &healed {
            Ok(()) => {
                *failed = None;
                self.shared.status.set_reads(None);
                tracing::info!(generation = generation + 1, "sled's values were made anew from the log");
            }
            Err(error) => {
                *failed = Some((Instant::now(), error.clone()));
                if let Some(next) = self.shared.places.write().next.take() {
                    next.give_up();
                }
                self.shared.status.set_reads(Some(error.to_string()));
                tracing::error!(%error, "sled's values could not be made anew");
            }
        }
        healed
    }

    fn make_anew(&self, generation: u64) -> Result<()> {
        let fresh = Arc::new(Values::create(&self.shared.dir, generation, self.shared.cache)?);
        // From here on the writer writes to both.
        self.shared.places.write().next = Some(fresh.clone());
        // The newest may be on its way from the log to the index.
        let wanted = |key: &str, revision: Revision| {
            let state = self.shared.state.read();
            revision > state.revision || state.index.has(key, revision)
        };
        // Nothing is appended while its end is read.
        let log = self.log.lock();
        open::fill(&self.shared.dir, &fresh, &wanted)?;
        let old = {
            let mut places = self.shared.places.write();
            places.next = None;
            places.current.replace(fresh)
        };
        drop(log);
        if let Some(old) = old {
            old.give_up();
        }
        values::remove_others(&self.shared.dir, Some(generation)).or_else(|error: StoreError| {
            tracing::warn!(%error, "sled's old values were not removed; the next start does that");
            Ok(())
        })
    }
}

/// How far the store was at a time.
struct Mark {
    at: Instant,
    revision: Revision,
    /// Bytes written until then.
    written: u64,
}

/// What the housekeeper is woken for.
#[derive(Debug)]
pub(crate) enum Wake {
    /// Values of this generation are no good.
    Heal(u64, SyncSender<Result<()>>),
    /// A snapshot is wanted now.
    Save(SyncSender<Result<()>>),
    /// What was compacted is to be gone from the files.
    Scrub(SyncSender<Result<()>>),
    Stop,
}
