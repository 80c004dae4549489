//! A store on the disk, its child processes, and the model that judges them: start, follow, cut, judge.
//!
//! In: a seed and plans. Out: failures in words, with all that is needed to see them again. Whatever happens, children
//! are killed and the disk unmounted: both go with their owners, and no wait is without an end.

use super::child::Plan;
use super::model::{Event, Found, Listed, Model};
use causeway_test_disk::{Dice, Disk, NameLoss, own_mounts};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// A child that says nothing for so long hangs.
const SILENCE: Duration = Duration::from_secs(30);

/// The seed of this run: `CAUSEWAY_SEED`, or always the same.
pub fn seed() -> u64 {
    number("CAUSEWAY_SEED", 1)
}

/// A number from the environment.
pub fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// How many cuts a test may make without `CAUSEWAY_CUTS`.
pub const CUTS: u64 = 200;

/// `usual` rounds of something, and as many times more as there are more cuts than usual.
pub fn rounds(usual: u64) -> u64 {
    (usual * number("CAUSEWAY_CUTS", CUTS) / CUTS).max(1)
}

/// A child process, killed when it is dropped.
pub struct Child {
    process: std::process::Child,
    lines: Receiver<String>,
    errors: File,
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Child {
    /// This executable once more, with one of its tests that is none, for the disk.
    pub fn start(test: &str, environment: impl IntoIterator<Item = (&'static str, String)>) -> Self {
        let errors = tempfile::tempfile().unwrap();
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args([test, "--exact", "--nocapture", "--test-threads=1"])
            .envs(environment)
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors.try_clone().unwrap())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(process.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            // What has no end was cut off by the kill, and said nothing.
            while stdout.read_line(&mut line).is_ok() && line.ends_with('\n') {
                line.pop();
                if sender.send(std::mem::take(&mut line)).is_err() {
                    break;
                }
            }
        });
        Self { process, lines, errors }
    }

    /// The next line until then; `None` when that time has come.
    pub fn line(&self, until: Instant) -> Result<Option<String>, Ended> {
        match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(line) => Ok(Some(line)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(Ended),
        }
    }

    /// How it ended, if it did, and its last words on stderr.
    pub fn errors(&mut self) -> String {
        // Its output may end a moment before it does.
        std::thread::sleep(Duration::from_millis(100));
        let ended = self.process.try_wait().ok().flatten().map_or_else(|| "running".to_owned(), |s| s.to_string());
        let mut text = String::new();
        let mut file = &self.errors;
        let _ = file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_string(&mut text));
        let from = text.char_indices().rev().nth(1500).map_or(0, |(i, _)| i);
        format!("{ended}; {}", text[from..].trim())
    }

    /// Kills it, and returns what it had said.
    pub fn kill(&mut self) -> Vec<String> {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let until = Instant::now() + Duration::from_secs(10);
        std::iter::from_fn(|| self.line(until).ok().flatten()).collect()
    }
}

/// The child's output has ended.
#[derive(Debug)]
pub struct Ended;

/// What a line of a child meant for the course of things; `model.rs` has the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// The store is open and its content is judged.
    Ready,
    Acknowledged,
    Full,
    /// A write that the device refused, or whose fate is unknown.
    Failed(String),
    /// A writer has given up.
    Idle,
    Closed,
    Other,
}

/// A store on a disk of its own.
pub struct Bench {
    pub disk: Disk,
    pub model: Model,
    pub dice: Dice,
    seed: u64,
    next: u64,
    base: u64,
    /// How often the power had gone when the child was started.
    cuts: u64,
    found: Found,
}

impl Bench {
    pub fn new(seed: u64) -> Self {
        own_mounts().unwrap();
        let disk = Disk::new(seed).unwrap();
        // To find out what a failure comes from: a disk that lies less.
        match std::env::var("CAUSEWAY_LOSS").as_deref() {
            Ok("none") => disk.set(|f| (f.write_loss, f.name_loss) = (false, NameLoss::None)),
            Ok("writes") => disk.set(|f| f.name_loss = NameLoss::None),
            Ok("names") => disk.set(|f| f.write_loss = false),
            Ok("ordered") => disk.set(|f| f.name_loss = NameLoss::Ordered),
            Ok(other) => panic!("CAUSEWAY_LOSS is none, writes, names or ordered, not {other:?}"),
            Err(_) => {}
        }
        // The folder that a store is put into is an administrator's, and durable.
        fs::create_dir(disk.path().join("store")).unwrap();
        File::open(disk.path()).unwrap().sync_all().unwrap();
        let (model, dice) = (Model::default(), Dice::new(seed));
        Self { disk, model, dice, seed, next: 1, base: 1, cuts: 0, found: Found::default() }
    }

    /// A plan with random parameters for this store as it is now.
    pub fn plan(&mut self) -> Plan {
        // Noted before the cut: a revision that the last one to look was told.
        let settled = self.model.settled().max(1);
        self.base = settled.saturating_sub(self.dice.below(300)).max(1);
        let first = self.next;
        self.next += 1_000_000;
        Plan {
            seed: self.dice.roll(),
            base: self.base,
            first,
            writers: 2 + self.dice.below(6),
            heavy: self.dice.chance(40),
            reserve: None,
            compacts: self.dice.chance(600),
        }
    }

    pub fn start(&mut self, plan: &Plan) -> Child {
        self.found = Found::default();
        self.cuts = self.disk.cuts();
        Child::start("it::child::child", plan.environment(&self.disk.path().join("store")))
    }

    /// Takes what a child says until `enough`, or until then. `None` when the power went meanwhile and it could say no
    /// more, or when time is up.
    pub fn follow(
        &mut self,
        child: &mut Child,
        until: Instant,
        mut enough: impl FnMut(&News) -> bool,
    ) -> Result<Option<News>, String> {
        let mut heard = Instant::now();
        loop {
            match child.line(until.min(heard + SILENCE)) {
                Ok(Some(line)) => {
                    heard = Instant::now();
                    let dead = self.is_cut();
                    let is_error = line.starts_with("open-failed") || line.starts_with("read-failed");
                    if dead && (is_error || line.starts_with("bad")) {
                        return Ok(None);
                    }
                    let news = self.take(&line).map_err(|e| self.words(&e, child))?;
                    if enough(&news) {
                        return Ok(Some(news));
                    }
                }
                Ok(None) if Instant::now() >= until => return Ok(None),
                Ok(None) if self.is_cut() => return Ok(None),
                Ok(None) => return Err(self.words("the child hangs", child)),
                Err(Ended) if self.is_cut() => return Ok(None),
                Err(Ended) => return Err(self.words("the child ended by itself", child)),
            }
        }
    }

    /// Until the store is open and judged. False when the power went before.
    pub fn open(&mut self, child: &mut Child) -> Result<bool, String> {
        let until = Instant::now() + 2 * SILENCE;
        let ready = self.follow(child, until, |news| *news == News::Ready)?;
        if ready.is_none() && Instant::now() >= until {
            return Err(self.words("the store does not open in a minute", child));
        }
        Ok(ready.is_some())
    }

    /// Whether the power has gone since the child was started.
    pub fn is_cut(&self) -> bool {
        self.disk.cuts() != self.cuts
    }

    /// Cuts the power if it has not gone, kills the child, hears its last words, and gives power again.
    pub fn cut(&mut self, mut child: Child) -> Result<(), String> {
        let seed = self.dice.roll();
        if !self.is_cut() {
            self.disk.cut(seed);
        }
        self.last_words(&mut child)?;
        drop(child);
        self.cut_closed()
    }

    /// Kills the child; the power stays.
    pub fn kill(&mut self, mut child: Child) -> Result<(), String> {
        self.last_words(&mut child)
    }

    /// The same where nobody has the store open.
    pub fn cut_closed(&mut self) -> Result<(), String> {
        let seed = self.dice.roll();
        if !self.is_cut() {
            self.disk.cut(seed);
        }
        self.disk.mount().map_err(|e| format!("mounting again: {e}"))
    }

    /// Has the child close the store as it should, which keeps all that was acknowledged.
    pub fn close(&mut self, mut child: Child) -> Result<(), String> {
        drop(child.process.stdin.take());
        let closed = self.follow(&mut child, Instant::now() + SILENCE, |news| *news == News::Closed)?;
        if closed.is_none() && !self.is_cut() {
            return Err(self.words("the store does not close", &mut child));
        }
        self.last_words(&mut child)
    }

    fn last_words(&mut self, child: &mut Child) -> Result<(), String> {
        for line in child.kill() {
            let of_the_dead = ["open-failed", "read-failed", "bad", "ready"].iter().any(|w| line.starts_with(w));
            if !of_the_dead {
                self.take(&line).map_err(|e| self.words(&e, child))?;
            }
        }
        Ok(())
    }

    /// Opens the store only to judge what it holds.
    pub fn judge(&mut self) -> Result<(), String> {
        let plan = Plan { writers: 0, ..self.plan() };
        let mut child = self.start(&plan);
        self.open(&mut child)?;
        self.follow(&mut child, Instant::now() + SILENCE, |news| *news == News::Closed)?;
        Ok(())
    }

    /// A failure, and what is needed to see it again.
    pub fn words(&self, what: &str, child: &mut Child) -> String {
        let flight = self.disk.last_cut();
        let mut files: Vec<String> = self.disk.files().iter().map(|(p, n)| format!("{}:{n}", p.display())).collect();
        let more = files.len().saturating_sub(20);
        files.truncate(20);
        format!(
            "store of seed {}, after {} cuts and {} acknowledged writes: {what}\n  in flight at the last cut: \
             {} writes, {} names, after {} operations\n  files: {} and {more} more\n  child: {}",
            self.seed,
            self.disk.cuts(),
            self.model.acknowledged(),
            flight.writes,
            flight.names,
            flight.operations,
            files.join(" "),
            child.errors()
        )
    }

    fn take(&mut self, line: &str) -> Result<News, String> {
        let mut words = line.split(' ');
        let what = words.next().unwrap_or_default();
        let rest = line.get(what.len() + 1..).unwrap_or_default().to_owned();
        let mut word = || words.next().unwrap_or_default();
        let digest = |text: &str| Some(text).filter(|t| *t != "-").map(str::to_owned);
        match what {
            "opened" => {
                (self.found.revision, self.found.compacted) = (parse(word()), parse(word()));
                self.model.tell(self.found.revision);
            }
            "from" => self.found.from = parse(word()),
            "old" | "new" => {
                let key = word().to_owned();
                let listed = Listed { revision: parse(word()), created: parse(word()), digest: word().to_owned() };
                let list = if what == "old" { &mut self.found.old } else { &mut self.found.new };
                if list.insert(key.clone(), listed).is_some() {
                    return Err(format!("{key} is listed twice"));
                }
            }
            "event" => {
                let (revision, key, created) = (parse(word()), word().to_owned(), parse(word()));
                let (digest, before) = (digest(word()), parse(word()));
                self.found.events.push(Event { revision, key, created, digest, before });
            }
            "ready" => {
                let found = std::mem::take(&mut self.found);
                self.model.check(self.base, &found)?;
                return Ok(News::Ready);
            }
            "sent" => {
                let (number, key) = (parse(word()), word());
                self.model.send(number, key, digest(word()).as_deref());
            }
            "ack" => {
                self.model.acknowledge(parse(word()), parse(word()))?;
                return Ok(News::Acknowledged);
            }
            "no" => {
                self.model.refuse(parse(word()))?;
                return Ok(match word() {
                    "full" => News::Full,
                    "failed" => News::Failed(rest),
                    _ => News::Other,
                });
            }
            "maybe" => return Ok(News::Failed(rest)),
            "told" => self.model.tell(parse(word())),
            "seen" => {
                let (revision, key) = (parse(word()), word());
                self.model.see(revision, key, digest(word()).as_deref())?;
            }
            "compacting" => self.model.ask_compaction(parse(word())),
            "compacted" => self.model.compact(parse(word())),
            "idle" => return Ok(News::Idle),
            "closed" => return Ok(News::Closed),
            "bad" | "open-failed" | "read-failed" => return Err(line.to_owned()),
            // libtest's own words.
            _ => {}
        }
        Ok(News::Other)
    }
}

fn parse(word: &str) -> u64 {
    word.parse().unwrap_or_else(|e| panic!("{word:?}: {e}"))
}
