//! The process that holds the store while the power goes: this test executable once more.
//!
//! In: a [`Plan`] in the environment. Out, as lines on stdout: first what the store holds (revision, lists, a resumed
//! watch), then each write before it is sent and once it is answered, and what readers are told. `model.rs` judges.

use bytes::Bytes;
use causeway_store::{KeyValue, ListRequest, Revision, SledOptions, SledStore, Store, StoreError, WatchEvent};
use causeway_test_disk::Dice;
use futures::StreamExt;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;

const DIR: &str = "CAUSEWAY_DISK_DIR";
const PLAN: &str = "CAUSEWAY_DISK_PLAN";
/// A child that the parent has forgotten ends by itself.
const LIFETIME: Duration = Duration::from_secs(120);

/// What a child is to do.
#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    /// The watch is resumed after this revision.
    pub base: Revision,
    /// The number of its first write.
    pub first: u64,
    /// Writers at a time; without any, it ends when it has told what is there.
    pub writers: u64,
    /// Most values are some hundred KiB.
    pub heavy: bool,
    /// The store's reserve, where it is not the default.
    pub reserve: Option<u64>,
    /// Whether it compacts now and then.
    pub compacts: bool,
}

impl Plan {
    /// The environment of a child with this plan.
    pub fn environment(&self, dir: &Path) -> [(&'static str, String); 2] {
        let numbers = [
            self.seed,
            self.base,
            self.first,
            self.writers,
            self.heavy.into(),
            self.reserve.map_or(0, |r| r + 1),
            self.compacts.into(),
        ];
        [(DIR, dir.display().to_string()), (PLAN, numbers.map(|n| n.to_string()).join(" "))]
    }

    fn from_environment() -> Option<(PathBuf, Self)> {
        let (dir, plan) = (std::env::var(DIR).ok()?, std::env::var(PLAN).ok()?);
        let numbers: Vec<u64> = plan.split(' ').map(|n| n.parse().unwrap()).collect();
        let [seed, base, first, writers, heavy, reserve, compacts] = numbers[..] else { panic!("{plan:?}") };
        let reserve = reserve.checked_sub(1);
        let plan = Self { seed, base, first, writers, heavy: heavy > 0, reserve, compacts: compacts > 0 };
        Some((dir.into(), plan))
    }
}

/// How long a value is and its hash: what is told instead of the value.
pub fn digest(value: &[u8]) -> String {
    format!("{}:{}", value.len(), data_encoding::HEXLOWER.encode(&Sha256::digest(value)[..12]))
}

/// One line at once; without a reader there is no sense in going on.
fn say(line: std::fmt::Arguments) {
    // Errors may have lines of their own.
    let line = line.to_string().replace('\n', " ") + "\n";
    if std::io::stdout().lock().write_all(line.as_bytes()).is_err() {
        std::process::exit(2);
    }
}

macro_rules! say {
    ($($part:tt)*) => { say(format_args!($($part)*)) };
}

/// Not a test by itself.
#[test]
fn child() {
    let Some((dir, plan)) = Plan::from_environment() else { return };
    std::thread::spawn(|| {
        std::thread::sleep(LIFETIME);
        std::process::exit(3);
    });
    // libtest has begun a line.
    say!("");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let options = SledOptions::default();
    // Short logs are closed, covered by snapshots and removed all the time.
    let log = [2 << 10, 16 << 10, 1 << 20, options.log][plan.seed as usize % 4];
    let options = SledOptions { reserve: plan.reserve.unwrap_or(options.reserve), log, ..options };
    runtime.block_on(async {
        let store = match SledStore::open(&dir, options) {
            Ok(store) => Arc::new(store),
            Err(error) => return say!("open-failed {error}"),
        };
        match tell(&store, &plan).await {
            Ok(found) if plan.writers > 0 => {
                let mut tasks = work(&store, &plan, found, &dir);
                told_to_close().await;
                tasks.shutdown().await;
            }
            Ok(_) => {}
            Err(error) => say!("read-failed {error}"),
        }
        drop(store);
        say!("closed");
    });
    std::process::exit(0);
}

/// The parent closes our stdin when the store is to be closed; mostly it kills us instead.
async fn told_to_close() {
    let (sender, closed) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        sender.send(())
    });
    // An error means that the thread is gone, and so is the parent.
    let _ = closed.await;
}

/// Tells everything the store holds, and whether its ways of reading agree.
async fn tell(store: &SledStore, plan: &Plan) -> Result<Vec<KeyValue>, StoreError> {
    let (revision, compacted) = (store.revision().await?, store.compacted().await?);
    say!("opened {revision} {compacted}");
    let from = plan.base.max(compacted);
    if plan.base < compacted {
        match store.watch("/", plan.base).await {
            Err(StoreError::Compacted { .. }) => {}
            Err(error) => return Err(error),
            Ok(_) => say!("bad a watch from {} began although {compacted} is compacted", plan.base),
        }
    }
    // The parent knows that `base` was told, so a store that has not got so far has gone back.
    if from > revision {
        say!("bad the store is at {revision}, and {from} was told before");
        return Ok(Vec::new());
    }
    say!("from {from}");
    for kv in list(store, Some(from)).await? {
        say!("old {} {} {} {}", kv.key, kv.mod_revision, kv.create_revision, digest(&kv.value));
    }
    let mut watch = store.watch("/", from).await?;
    let mut seen = from;
    while seen < revision {
        let next = tokio::time::timeout(Duration::from_secs(30), watch.next()).await;
        let Ok(Some(event)) = next else {
            say!("bad the watch from {from} stopped after {seen} and before {revision}");
            break;
        };
        match event? {
            WatchEvent::Put { kv, prev } => {
                let before = prev.map_or(0, |p| p.mod_revision);
                seen = kv.mod_revision;
                say!("event {seen} {} {} {} {before}", kv.key, kv.create_revision, digest(&kv.value));
            }
            WatchEvent::Delete { prev, revision } => {
                seen = revision;
                say!("event {seen} {} {} - {}", prev.key, prev.create_revision, prev.mod_revision);
            }
            WatchEvent::Progress(at) => {
                if at > seen {
                    say!("bad the watch from {from} skipped from {seen} to {at}");
                }
                seen = seen.max(at);
            }
        }
    }
    let found = list(store, None).await?;
    for kv in &found {
        say!("new {} {} {} {}", kv.key, kv.mod_revision, kv.create_revision, digest(&kv.value));
        if store.get(&kv.key, None).await?.0.as_ref() != Some(kv) {
            say!("bad {} is listed otherwise than it is read", kv.key);
        }
    }
    say!("ready");
    Ok(found)
}

/// All keys, in pages at one revision.
async fn list(store: &SledStore, at: Option<Revision>) -> Result<Vec<KeyValue>, StoreError> {
    let (mut all, mut start_after, mut at) = (Vec::new(), None, at);
    loop {
        let page = store.list(ListRequest { prefix: "/".into(), start_after, limit: 40, at }).await?;
        at = Some(page.revision);
        start_after = page.items.last().map(|kv| kv.key.clone());
        all.extend(page.items);
        if page.remaining == 0 {
            return Ok(all);
        }
    }
}

fn work(store: &Arc<SledStore>, plan: &Plan, found: Vec<KeyValue>, dir: &Path) -> JoinSet<()> {
    let (numbers, answered) = (Arc::new(AtomicU64::new(plan.first)), Arc::new(AtomicU64::new(0)));
    let mut dice = Dice::new(plan.seed);
    let known: BTreeMap<String, Revision> = found.into_iter().map(|kv| (kv.key, kv.mod_revision)).collect();
    let mut tasks = JoinSet::new();
    for name in 0..plan.writers {
        let writer = Writer {
            store: store.clone(),
            name,
            dice: dice.fork(),
            known: known.iter().map(|(k, r)| (k.clone(), *r)).collect(),
            numbers: numbers.clone(),
            answered: answered.clone(),
            dir: dir.to_owned(),
            heavy: plan.heavy,
        };
        tasks.spawn(writer.run());
    }
    tasks.spawn(read(store.clone()));
    tasks.spawn(watch(store.clone()));
    if plan.compacts {
        tasks.spawn(compact(store.clone(), dice.fork(), answered));
    }
    tasks
}

/// Tells what a reader is told.
async fn read(store: Arc<SledStore>) {
    loop {
        let Ok(page) = store.list(ListRequest { prefix: "/d/shared/".into(), limit: 2, ..Default::default() }).await
        else {
            return;
        };
        say!("told {}", page.revision);
        tokio::time::sleep(Duration::from_millis(7)).await;
    }
}

/// Tells what a watcher is told.
async fn watch(store: Arc<SledStore>) {
    let Ok(revision) = store.revision().await else { return };
    let Ok(mut watch) = store.watch("/", revision).await else { return };
    while let Some(Ok(event)) = watch.next().await {
        match event {
            WatchEvent::Put { kv, .. } => say!("seen {} {} {}", kv.mod_revision, kv.key, digest(&kv.value)),
            WatchEvent::Delete { prev, revision } => say!("seen {revision} {} -", prev.key),
            WatchEvent::Progress(at) => say!("told {at}"),
        }
    }
}

/// Compacts after some writes, sometimes up to the newest.
async fn compact(store: Arc<SledStore>, mut dice: Dice, answered: Arc<AtomicU64>) {
    loop {
        let next = answered.load(Ordering::Relaxed) + 20 + dice.below(150);
        while answered.load(Ordering::Relaxed) < next {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let Ok(revision) = store.revision().await else { return };
        let to = revision.saturating_sub(dice.below(200)).max(1);
        say!("compacting {to}");
        if store.compact(to).await.is_ok() {
            say!("compacted {to}");
        }
    }
}

struct Writer {
    store: Arc<SledStore>,
    name: u64,
    dice: Dice,
    /// The revisions of keys as far as this writer knows them.
    known: HashMap<String, Revision>,
    numbers: Arc<AtomicU64>,
    answered: Arc<AtomicU64>,
    dir: PathBuf,
    heavy: bool,
}

impl Writer {
    async fn run(mut self) {
        let mut errors = 0;
        // Of its own keys a writer knows all, until an answer leaves it open.
        let mut sure = true;
        while errors < 50 {
            let shared = self.dice.chance(150);
            let key = match shared {
                true => format!("/d/shared/{}", self.dice.below(4)),
                false => format!("/d/{}/{}", self.name, self.dice.below(20)),
            };
            if shared || !sure {
                match self.store.get(&key, None).await {
                    Ok((Some(kv), _)) => drop(self.known.insert(key.clone(), kv.mod_revision)),
                    Ok((None, _)) => drop(self.known.remove(&key)),
                    Err(_) => {}
                }
            }
            let number = self.numbers.fetch_add(1, Ordering::Relaxed);
            let answer = self.write(number, &key).await;
            match answer {
                Ok(revision) => {
                    say!("ack {number} {revision}");
                    self.answered.fetch_add(1, Ordering::Relaxed);
                    errors = 0;
                }
                Err(error @ StoreError::DiskFull { .. }) => {
                    say!("no {number} full {error}");
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Err(
                    error @ (StoreError::AlreadyExists { .. }
                    | StoreError::NotFound { .. }
                    | StoreError::Conflict { .. }),
                ) => {
                    say!("no {number} {error}");
                    if !shared && sure {
                        say!("bad the only writer of {key} is told: {error}");
                    }
                }
                // The answer leaves it open.
                Err(error @ StoreError::OutcomeUnknown { .. }) => {
                    say!("maybe {number} {error}");
                    sure = false;
                    errors += 1;
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                // Any other says that nothing was written.
                Err(error) => {
                    say!("no {number} failed {error}");
                    errors += 1;
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            }
        }
        say!("idle {}", self.name);
    }

    async fn write(&mut self, number: u64, key: &str) -> Result<Revision, StoreError> {
        let store = self.store.clone();
        let Some(current) = self.known.get(key).copied() else {
            let value = self.value(number);
            say!("sent {number} {key} {}", digest(&value));
            let kv = store.create(key, value.clone()).await?;
            if kv.value != value || kv.create_revision != kv.mod_revision {
                say!("bad the answer to {number} is not what was sent");
            }
            self.known.insert(key.to_owned(), kv.mod_revision);
            return Ok(kv.mod_revision);
        };
        if self.dice.chance(300) {
            let expected = self.dice.chance(700).then_some(current);
            say!("sent {number} {key} -");
            let (_, revision) = store.delete(key, expected).await?;
            self.known.remove(key);
            return Ok(revision);
        }
        let value = self.value(number);
        say!("sent {number} {key} {}", digest(&value));
        let kv = store.update(key, value.clone(), current).await?;
        if kv.value != value {
            say!("bad the answer to {number} is not what was sent");
        }
        self.known.insert(key.to_owned(), kv.mod_revision);
        Ok(kv.mod_revision)
    }

    /// Values of all kinds: words, zeros as a hole in a file has them, what the engine itself has written, noise.
    fn value(&mut self, number: u64) -> Bytes {
        let length = match self.dice.below(if self.heavy { 250 } else { 100 }) {
            0..60 => self.dice.below(200),
            60..90 => self.dice.below(6_000),
            90..98 => self.dice.below(50_000),
            _ => 50_000 + self.dice.below(300_000),
        } as usize;
        match self.dice.below(10) {
            0 | 1 => vec![0; length].into(),
            2 | 3 => self.engine_bytes(length).unwrap_or_default().into(),
            4 => vec![0xff; length].into(),
            5 | 6 => {
                let words = (0..length / 8 + 1).flat_map(|_| self.dice.roll().to_le_bytes());
                words.collect::<Vec<u8>>().into()
            }
            _ => {
                let text = format!("write {number} of {} ", self.name);
                let mut text = text.repeat(length / text.len() + 1);
                text.truncate(length.max(20));
                text.into()
            }
        }
    }

    /// The beginning of one of the engine's files, or a piece: its own frames, as they look in its own log.
    fn engine_bytes(&mut self, length: usize) -> Option<Vec<u8>> {
        let mut files = Vec::new();
        let mut folders = vec![self.dir.clone()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).ok()?.flatten() {
                match entry.file_type() {
                    Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                    _ => files.push(entry.path()),
                }
            }
        }
        files.sort();
        let logs: Vec<_> = files.iter().filter(|p| p.to_string_lossy().contains("wal")).cloned().collect();
        let files = if logs.is_empty() { files } else { logs };
        let path = files.get(self.dice.below(files.len() as u64) as usize)?;
        let mut file = std::fs::File::open(path).ok()?;
        if self.dice.chance(300) {
            let end = file.metadata().ok()?.len();
            file.seek(SeekFrom::Start(self.dice.below(end + 1))).ok()?;
        }
        let mut out = Vec::new();
        file.take(length as u64).read_to_end(&mut out).ok()?;
        Some(out)
    }
}
