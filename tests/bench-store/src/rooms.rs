//! Rooms for values by revision: what the store asks of sled, done by others as well.
//!
//! In: batches of values, and which are not wanted any more. Out: a value. None of them has to be durable, since the
//! store's log and snapshots are the truth; all get the same cache (32 MiB), and none compresses.

use anyhow::{Context, Result, bail};
use redb::{Durability, ReadableDatabase, TableDefinition};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The store's own default for sled.
const CACHE: usize = 32 << 20;

/// A room for values.
pub trait Room {
    /// Adds values.
    fn put(&mut self, values: &[(u64, &[u8])]) -> Result<()>;
    /// One value.
    fn get(&self, revision: u64) -> Result<Option<Vec<u8>>>;
    /// Drops values.
    fn remove(&mut self, revisions: &[u64]) -> Result<()>;
}

/// All of them.
pub const NAMES: [&str; 6] = ["sled", "redb", "redb-durable", "fjall", "fjall-blobs", "file"];

/// Makes one in an empty folder.
pub fn open(name: &str, dir: &Path) -> Result<Box<dyn Room>> {
    std::fs::create_dir_all(dir)?;
    Ok(match name {
        "sled" => {
            let config = sled::Config::new().path(dir.join("sled")).cache_capacity(CACHE as u64);
            Box::new(Sled(config.flush_every_ms(None).open()?))
        }
        "redb" => Box::new(Redb::open(dir, u64::MAX)?),
        "redb-durable" => Box::new(Redb::open(dir, 64 << 20)?),
        "fjall" => Box::new(Fjall::open(dir, None)?),
        "fjall-blobs" => Box::new(Fjall::open(dir, Some(fjall::KvSeparationOptions::default()))?),
        "file" => Box::new(Segments::open(dir)?),
        other => bail!("no such room: {other}"),
    })
}

struct Sled(sled::Db);

impl Room for Sled {
    fn put(&mut self, values: &[(u64, &[u8])]) -> Result<()> {
        let mut batch = sled::Batch::default();
        for (revision, value) in values {
            batch.insert(&revision.to_be_bytes(), *value);
        }
        Ok(self.0.apply_batch(batch)?)
    }

    fn get(&self, revision: u64) -> Result<Option<Vec<u8>>> {
        Ok(self.0.get(revision.to_be_bytes())?.map(|value| value.to_vec()))
    }

    fn remove(&mut self, revisions: &[u64]) -> Result<()> {
        let mut batch = sled::Batch::default();
        for revision in revisions {
            batch.remove(&revision.to_be_bytes());
        }
        Ok(self.0.apply_batch(batch)?)
    }
}

const TABLE: TableDefinition<u64, &[u8]> = TableDefinition::new("values");

/// A transaction is for what is put and dropped together: one for both would be cheaper, but the store does them apart.
struct Redb {
    db: redb::Database,
    /// So many bytes are followed by a durable commit.
    every: u64,
    since: u64,
}

impl Redb {
    fn open(dir: &Path, every: u64) -> Result<Self> {
        let db = redb::Builder::new().set_cache_size(CACHE).create(dir.join("redb"))?;
        let transaction = db.begin_write()?;
        transaction.open_table(TABLE)?;
        transaction.commit()?;
        Ok(Self { db, every, since: 0 })
    }

    fn durability(&mut self) -> Durability {
        if self.since < self.every {
            return Durability::None;
        }
        self.since = 0;
        Durability::Immediate
    }
}

impl Room for Redb {
    fn put(&mut self, values: &[(u64, &[u8])]) -> Result<()> {
        self.since += values.iter().map(|(_, value)| value.len() as u64).sum::<u64>();
        let durability = self.durability();
        let mut transaction = self.db.begin_write()?;
        transaction.set_durability(durability)?;
        let mut table = transaction.open_table(TABLE)?;
        for (revision, value) in values {
            table.insert(revision, *value)?;
        }
        drop(table);
        Ok(transaction.commit()?)
    }

    fn get(&self, revision: u64) -> Result<Option<Vec<u8>>> {
        let table = self.db.begin_read()?.open_table(TABLE)?;
        Ok(table.get(revision)?.map(|value| value.value().to_vec()))
    }

    fn remove(&mut self, revisions: &[u64]) -> Result<()> {
        let mut transaction = self.db.begin_write()?;
        transaction.set_durability(Durability::None)?;
        let mut table = transaction.open_table(TABLE)?;
        for revision in revisions {
            table.remove(revision)?;
        }
        drop(table);
        Ok(transaction.commit()?)
    }
}

struct Fjall {
    db: fjall::Database,
    values: fjall::Keyspace,
}

impl Fjall {
    fn open(dir: &Path, blobs: Option<fjall::KvSeparationOptions>) -> Result<Self> {
        let db = fjall::Database::builder(dir.join("fjall")).cache_size(CACHE as u64).open()?;
        let none = fjall::config::CompressionPolicy::all(fjall::CompressionType::None);
        let blobs = blobs.map(|options| options.compression(fjall::CompressionType::None));
        let options = fjall::KeyspaceCreateOptions::default().data_block_compression_policy(none);
        let values = db.keyspace("values", || options.with_kv_separation(blobs))?;
        Ok(Self { db, values })
    }
}

impl Room for Fjall {
    fn put(&mut self, values: &[(u64, &[u8])]) -> Result<()> {
        let mut batch = self.db.batch();
        for (revision, value) in values {
            batch.insert(&self.values, revision.to_be_bytes().as_slice(), *value);
        }
        Ok(batch.commit()?)
    }

    fn get(&self, revision: u64) -> Result<Option<Vec<u8>>> {
        Ok(self.values.get(revision.to_be_bytes())?.map(|value| value.to_vec()))
    }

    fn remove(&mut self, revisions: &[u64]) -> Result<()> {
        let mut batch = self.db.batch();
        for revision in revisions {
            // Each was put once, so that the marker may go with what it marks.
            batch.remove_weak(&self.values, revision.to_be_bytes().as_slice());
        }
        Ok(batch.commit()?)
    }
}

/// No library: values are appended to a file, and an index in memory says where each is. A file is removed when none of
/// its values is wanted any more, without moving any. The kernel's page cache is the only one.
struct Segments {
    dir: PathBuf,
    index: HashMap<u64, (u64, u64, u32)>,
    segments: BTreeMap<u64, Segment>,
    newest: u64,
    buffer: Vec<u8>,
}

struct Segment {
    file: File,
    bytes: u64,
    wanted: u64,
}

impl Segments {
    const SIZE: u64 = 16 << 20;

    fn open(dir: &Path) -> Result<Self> {
        let mut this = Self {
            dir: dir.to_owned(),
            index: HashMap::new(),
            segments: BTreeMap::new(),
            newest: 0,
            buffer: Vec::new(),
        };
        this.begin()?;
        Ok(this)
    }

    fn path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("segment-{number}"))
    }

    fn begin(&mut self) -> Result<()> {
        self.newest += 1;
        let file = File::options().read(true).write(true).create_new(true).open(self.path(self.newest))?;
        self.segments.insert(self.newest, Segment { file, bytes: 0, wanted: 0 });
        Ok(())
    }
}

impl Room for Segments {
    fn put(&mut self, values: &[(u64, &[u8])]) -> Result<()> {
        let segment = self.segments.get_mut(&self.newest).context("no segment")?;
        self.buffer.clear();
        for (revision, value) in values {
            let at = segment.bytes + self.buffer.len() as u64;
            self.index.insert(*revision, (self.newest, at, u32::try_from(value.len())?));
            self.buffer.extend_from_slice(value);
        }
        segment.file.write_all_at(&self.buffer, segment.bytes)?;
        segment.bytes += self.buffer.len() as u64;
        segment.wanted += values.len() as u64;
        if segment.bytes >= Self::SIZE { self.begin() } else { Ok(()) }
    }

    fn get(&self, revision: u64) -> Result<Option<Vec<u8>>> {
        let Some((number, at, length)) = self.index.get(&revision) else { return Ok(None) };
        let mut value = vec![0; *length as usize];
        self.segments.get(number).context("no segment")?.file.read_exact_at(&mut value, *at)?;
        Ok(Some(value))
    }

    fn remove(&mut self, revisions: &[u64]) -> Result<()> {
        for revision in revisions {
            let Some((number, ..)) = self.index.remove(revision) else { continue };
            let segment = self.segments.get_mut(&number).context("no segment")?;
            segment.wanted -= 1;
            if segment.wanted == 0 && number != self.newest {
                self.segments.remove(&number);
                std::fs::remove_file(self.path(number))?;
            }
        }
        Ok(())
    }
}
