//! The one writer: a thread that takes all queued transactions at once, checks each against what is there, logs them in
//! one synced batch, and only then shows them to readers and watchers and acknowledges them.
//!
//! In: [`Request`]s. Out: acknowledgements, and what [`Shared`] knows. Where sled refuses a batch, the batch is in the
//! log all the same, and is acknowledged: its values stay in memory until sled has been made anew, and until then nothing
//! else is written.

use super::shared::{Shared, Signal};
use crate::disk::log::{AppendError, Log};
use crate::disk::{Entry, Version, failed, has_room, now};
use crate::{KeyValue, MAX_REQUEST, Result, Revision, StoreError, Write};
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::{mpsc, oneshot};

/// At most this many transactions share a sync …
const MAX_GROUP: usize = 512;
/// … and about this many bytes.
const MAX_GROUP_BYTES: usize = 8 << 20;
/// While nothing can be written, how often it is tried again.
const RETRY: std::time::Duration = std::time::Duration::from_secs(1);

/// Of each write: the new (for a deletion: the last) value and the revision.
type Answers = Vec<(KeyValue, Revision)>;

/// What is asked of the writer.
pub(crate) enum Request {
    Write { writes: Vec<Write>, reply: oneshot::Sender<Result<Answers>> },
    Compact { revision: Revision, reply: oneshot::Sender<Result<()>> },
}

/// The writer's state; [`Writer::run`] is its thread.
pub(crate) struct Writer {
    pub shared: Arc<Shared>,
    pub log: Arc<Mutex<Log>>,
    /// Writes are refused when the disk has less room than this.
    pub reserve: u64,
    /// Bytes of a segment of the log.
    pub segment: u64,
    /// Why sled does not take values, and when it was last tried.
    pub stuck: Option<(Instant, StoreError)>,
}

/// A write that passed its check.
struct Planned {
    key: String,
    version: Version,
    value: Option<Bytes>,
}

/// Transactions on their way to the device.
#[derive(Default)]
struct Group {
    planned: Vec<Planned>,
    replies: Vec<(oneshot::Sender<Result<Answers>>, Answers)>,
    /// Where in `planned` a key was last written.
    by_key: HashMap<String, usize>,
    /// Errors that tell of writes in this group: nobody hears of these before they are on the device.
    late: Vec<(oneshot::Sender<Result<Answers>>, StoreError)>,
    compact: Option<Revision>,
    compacting: Vec<oneshot::Sender<Result<()>>>,
}

impl Writer {
    /// Serves requests until every sender is gone.
    pub fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        while let Some(first) = requests.blocking_recv() {
            let mut bytes = size(&first);
            let mut queued = vec![first];
            while queued.len() < MAX_GROUP
                && bytes < MAX_GROUP_BYTES
                && let Ok(next) = requests.try_recv()
            {
                bytes += size(&next);
                queued.push(next);
            }
            self.shared.status.writing(true);
            self.commit(queued);
            if let Err(error) = self.log.lock().rotate(self.segment) {
                tracing::warn!(%error, "the next segment of the log cannot be made; nothing is written until it can");
            }
            self.shared.status.writing(false);
        }
    }

    fn commit(&mut self, queued: Vec<Request>) {
        let mut group = Group::default();
        let mut revision = self.shared.revision();
        for request in queued {
            match request {
                Request::Compact { revision: upto, reply } if upto <= self.shared.compacted() => {
                    drop(reply.send(Ok(())));
                }
                Request::Compact { revision: upto, reply } => {
                    group.compact = group.compact.max(Some(upto));
                    group.compacting.push(reply);
                }
                Request::Write { writes, reply } => match self.plan(&group, &writes, revision) {
                    Err(error) if writes.iter().any(|w| group.by_key.contains_key(w.key())) => {
                        group.late.push((reply, error));
                    }
                    Err(error) => drop(reply.send(Err(error))),
                    Ok((planned, answers)) => {
                        revision += planned.len() as u64;
                        for write in planned {
                            group.by_key.insert(write.key.clone(), group.planned.len());
                            group.planned.push(write);
                        }
                        group.replies.push((reply, answers));
                    }
                },
            }
        }
        if group.planned.is_empty() && group.compact.is_none() {
            return;
        }
        match self.persist(&group, revision) {
            Ok(()) => self.publish(group, revision),
            Err(error) => {
                tracing::error!(%error, writes = group.planned.len(), "writes refused");
                self.shared.status.refused.inc_by(group.planned.len() as u64);
                self.shared.status.set_writes(Some(error.to_string()));
                group.replies.into_iter().for_each(|(reply, _)| drop(reply.send(Err(error.clone()))));
                group.late.into_iter().for_each(|(reply, _)| drop(reply.send(Err(error.clone()))));
                group.compacting.into_iter().for_each(|reply| drop(reply.send(Err(error.clone()))));
            }
        }
    }

    /// The writes of a transaction with their revisions, and its answers; or why not.
    fn plan(&self, group: &Group, writes: &[Write], mut revision: Revision) -> Result<(Vec<Planned>, Answers)> {
        let (mut planned, mut answers) = (Vec::with_capacity(writes.len()), Vec::with_capacity(writes.len()));
        for write in writes {
            revision += 1;
            let (key, value) = (write.key().to_owned(), write_value(write));
            let current = match group.by_key.get(&key).and_then(|at| group.planned.get(*at)) {
                Some(earlier) => Some(earlier.version).filter(|v| !v.deleted),
                None => self.shared.state.read().index.newest(&key),
            };
            let value_of = |version: Version| match group.by_key.get(&key).and_then(|at| group.planned.get(*at)) {
                Some(Planned { value: Some(value), .. }) => Ok(version.key_value(&key, value.clone())),
                _ => self.shared.kept(&key, version),
            };
            let expect = |current: Option<Version>, expected: Option<Revision>| {
                let current = current.ok_or_else(|| StoreError::NotFound { key: key.clone() })?;
                match expected.filter(|expected| *expected != current.revision) {
                    None => Ok(current),
                    Some(expected) => {
                        let current = Box::new(value_of(current)?);
                        Err(StoreError::Conflict { key: key.clone(), expected, current })
                    }
                }
            };
            let create_revision = match write {
                Write::Create { .. } if current.is_some() => {
                    return Err(StoreError::AlreadyExists { key });
                }
                Write::Create { .. } => revision,
                Write::Update { expected, .. } => expect(current, Some(*expected))?.create_revision,
                Write::Delete { expected, .. } => {
                    let last = expect(current, *expected)?;
                    answers.push((value_of(last)?, revision));
                    last.create_revision
                }
            };
            let version = Version { revision, create_revision, expires: expires(write), deleted: value.is_none() };
            if let Some(value) = &value {
                answers.push((version.key_value(&key, value.clone()), revision));
            }
            planned.push(Planned { key, version, value });
        }
        Ok((planned, answers))
    }

    fn persist(&mut self, group: &Group, revision: Revision) -> Result<()> {
        self.unstick()?;
        // sled cannot go on after it met a full disk, so it should never meet one: the reserve is its room.
        // What makes room may use some of it.
        let frees = group.planned.iter().all(|p| p.value.is_none());
        if !has_room(&self.shared.dir, if frees { self.reserve / 2 } else { self.reserve }) {
            return Err(StoreError::DiskFull { path: self.shared.dir.display().to_string() });
        }
        let mut entries: Vec<Entry<'_>> =
            group.planned.iter().map(|p| Entry::Write(p.version.record(&p.key, p.value.as_deref()))).collect();
        entries.extend(group.compact.map(Entry::Compacted));
        let begin = Instant::now();
        let mut log = self.log.lock();
        log.append(revision, &entries).map_err(|error| match error {
            AppendError::NotWritten(e) => failed("appending to the log in", &self.shared.dir)(e),
            AppendError::Unknown(e) => {
                StoreError::OutcomeUnknown { doing: "appending to the log".to_owned(), detail: e.to_string() }
            }
        })?;
        drop(log);
        let status = &self.shared.status;
        status.fsync.observe(begin.elapsed().as_secs_f64());
        let values = || group.planned.iter().filter_map(|p| Some((p.version.revision, p.value.as_deref()?)));
        status
            .written
            .inc_by(group.planned.iter().map(|p| p.key.len() + p.value.as_ref().map_or(0, Bytes::len)).sum::<usize>()
                as u64);
        let begin = Instant::now();
        if let Err(error) = self.put(&values) {
            // It is in the log, so it has happened. Nothing more happens until sled goes on.
            tracing::error!(%error, "sled refuses what is in the log; no more is written until it does not");
            let kept = group.planned.iter().filter_map(|p| Some((p.version.revision, p.value.as_ref()?)));
            self.shared.state.write().keep(kept);
            self.shared.status.set_writes(Some(error.to_string()));
            self.stuck = Some((Instant::now(), error));
            return Ok(());
        }
        self.shared.status.commit.observe(begin.elapsed().as_secs_f64());
        self.shared.status.set_writes(None);
        Ok(())
    }

    /// Gives values to sled; where it refuses them, to one made anew.
    fn put<'a, I: Iterator<Item = (Revision, &'a [u8])>>(&self, values: &dyn Fn() -> I) -> Result<()> {
        let put = || {
            let places = self.shared.places.read();
            // While the one is to be exchanged for the other, both must have it.
            [&places.current, &places.next].into_iter().flatten().try_for_each(|to| to.put(values()))
        };
        let current = self.shared.values()?;
        let generation = current.generation();
        // After an error it is not trusted with anything, even where it takes it.
        if current.has_failed() {
            self.shared.heal(generation)?;
            return put();
        }
        put().or_else(|error| {
            tracing::error!(%error, "sled refuses values; they are made anew");
            self.shared.heal(generation)?;
            put()
        })
    }

    /// Where sled has not taken values, tries again, now and then.
    fn unstick(&mut self) -> Result<()> {
        let Some((tried, error)) = &self.stuck else { return Ok(()) };
        if tried.elapsed() < RETRY {
            return Err(error.clone());
        }
        let kept = self.shared.state.read().overflow().clone();
        if let Err(error) = self.put(&|| kept.iter().map(|(revision, value)| (*revision, value.as_ref()))) {
            self.stuck = Some((Instant::now(), error.clone()));
            return Err(error);
        }
        self.shared.state.write().clear_overflow();
        self.stuck = None;
        tracing::info!("sled takes values again");
        Ok(())
    }

    fn publish(&self, group: Group, revision: Revision) {
        {
            let mut state = self.shared.state.write();
            for planned in &group.planned {
                state.apply(&planned.key, planned.version, planned.value.as_ref());
            }
        }
        if let Some(upto) = group.compact {
            self.shared.set_compacted(upto);
        }
        self.shared.signal.send_modify(|signal: &mut Signal| signal.revision = revision);
        group.replies.into_iter().for_each(|(reply, answers)| drop(reply.send(Ok(answers))));
        group.late.into_iter().for_each(|(reply, error)| drop(reply.send(Err(error))));
        group.compacting.into_iter().for_each(|reply| drop(reply.send(Ok(()))));
    }
}

fn write_value(write: &Write) -> Option<Bytes> {
    match write {
        Write::Create { value, .. } | Write::Update { value, .. } => Some(value.clone()),
        Write::Delete { .. } => None,
    }
}

/// When a write goes by itself, in seconds since 1970.
fn expires(write: &Write) -> u64 {
    match write {
        Write::Create { ttl: Some(ttl), .. } | Write::Update { ttl: Some(ttl), .. } => {
            now().saturating_add(ttl.as_secs().max(1))
        }
        _ => 0,
    }
}

fn size(request: &Request) -> usize {
    match request {
        Request::Write { writes, .. } => writes.iter().map(Write::bytes).sum(),
        Request::Compact { .. } => 0,
    }
}

/// Whether a transaction is one that the store takes.
pub(crate) fn check(writes: &[Write]) -> Result<()> {
    let invalid = |why: String| Err(StoreError::InvalidTransaction(why));
    if writes.is_empty() || writes.len() > crate::MAX_WRITES {
        return invalid(format!("{} writes, where 1 to {} can be one", writes.len(), crate::MAX_WRITES));
    }
    let bytes: usize = writes.iter().map(Write::bytes).sum();
    let long = writes.iter().map(|w| w.key().len()).max().unwrap_or(0);
    let key = || writes.first().map(|w| w.key().chars().take(200).collect()).unwrap_or_default();
    if long > crate::MAX_KEY {
        return Err(StoreError::TooLarge { key: key(), bytes: long, limit: crate::MAX_KEY });
    }
    if bytes > MAX_REQUEST {
        return Err(StoreError::TooLarge { key: key(), bytes, limit: MAX_REQUEST });
    }
    let mut keys: Vec<&str> = writes.iter().map(Write::key).collect();
    keys.sort_unstable();
    match keys.windows(2).find(|pair| pair.first() == pair.get(1)) {
        Some(pair) => invalid(format!("{} is written twice", pair.first().copied().unwrap_or_default())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{SledOptions, SledStore};

    /// Two creates of one key in one group, and the group is refused: the second is told that the key exists.
    #[test]
    fn nothing_is_told_of_a_write_that_was_refused() {
        let dir = tempfile::tempdir().unwrap();
        let s = SledStore::open(dir.path(), SledOptions::default()).unwrap();
        let (shared, log) = s.parts();
        let mut writer = Writer { shared, log, reserve: u64::MAX, segment: 1 << 20, stuck: None };
        let ask = |n: u8| {
            let (reply, answer) = oneshot::channel();
            let writes = vec![Write::Create { key: "/k".into(), value: Bytes::from(vec![n]), ttl: None }];
            (Request::Write { writes, reply }, answer)
        };
        let ((a, mut first), (b, mut second)) = (ask(1), ask(2));
        writer.commit(vec![a, b]);
        let (first, second) = (first.try_recv().unwrap(), second.try_recv().unwrap());
        assert!(matches!(first, Err(StoreError::DiskFull { .. })), "{first:?}");
        assert!(!matches!(second, Err(StoreError::AlreadyExists { .. })), "nothing was written, and: {second:?}");
    }
}
