//! Container logs in the CRI format: `<RFC 3339 nanos> stdout|stderr F|P <text>`. In: bytes as the process writes them.
//! Out: a file that is appended to and, beyond [`MAX_SIZE`], moved aside (`<log>.1` is the latest of [`KEEP`]).

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

/// A longer line is written in parts.
const MAX_LINE: usize = 16 << 10;
const MAX_SIZE: u64 = 10 << 20;
const KEEP: u32 = 4;

/// Which output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    Stdout,
    Stderr,
}

impl Output {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Cuts one output into log lines; the beginning of an unfinished line waits here.
#[derive(Default)]
pub(crate) struct Lines {
    pending: Vec<u8>,
}

impl Lines {
    /// Adds bytes; complete lines and parts of full length go to `out`.
    pub(crate) fn push(&mut self, time: &str, from: Output, mut bytes: &[u8], out: &mut Vec<u8>) {
        loop {
            let room = MAX_LINE - self.pending.len();
            let end = bytes.iter().take(room + 1).position(|b| *b == b'\n');
            match end {
                Some(end) => {
                    line(time, from, 'F', &[&self.pending, &bytes[..end]], out);
                    bytes = &bytes[end + 1..];
                    self.pending.clear();
                }
                None if bytes.len() > room => {
                    line(time, from, 'P', &[&self.pending, &bytes[..room]], out);
                    bytes = &bytes[room..];
                    self.pending.clear();
                }
                None => return self.pending.extend_from_slice(bytes),
            }
        }
    }

    /// Writes what is left: as a full line at the end of the output, as a part when we only stop listening.
    pub(crate) fn finish(&mut self, time: &str, from: Output, ended: bool, out: &mut Vec<u8>) {
        if !self.pending.is_empty() {
            line(time, from, if ended { 'F' } else { 'P' }, &[&self.pending], out);
            self.pending.clear();
        }
    }
}

fn line(time: &str, from: Output, tag: char, parts: &[&[u8]], out: &mut Vec<u8>) {
    out.extend_from_slice(format!("{time} {} {tag} ", from.name()).as_bytes());
    for part in parts {
        out.extend_from_slice(part);
    }
    out.push(b'\n');
}

/// A container's log file.
pub(crate) struct LogFile {
    path: PathBuf,
    file: Option<File>,
    size: u64,
    max_size: u64,
    stdout: Lines,
    stderr: Lines,
    complained: bool,
}

impl LogFile {
    /// Opens (and makes) the file; an empty path means that nobody wants the log.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let mut this = Self {
            path: path.into(),
            file: None,
            size: 0,
            max_size: MAX_SIZE,
            stdout: Lines::default(),
            stderr: Lines::default(),
            complained: false,
        };
        if !path.as_os_str().is_empty() {
            this.reopen()?;
        }
        Ok(this)
    }

    fn reopen(&mut self) -> io::Result<()> {
        if let Some(parent) = self.path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let file = OpenOptions::new().create(true).append(true).open(&self.path)?;
        self.size = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }

    /// Writes through to the file at once: a follower must see it.
    pub(crate) fn write(&mut self, from: Output, bytes: &[u8]) {
        let mut out = Vec::with_capacity(bytes.len() + 256);
        let time = now();
        let lines = match from {
            Output::Stdout => &mut self.stdout,
            Output::Stderr => &mut self.stderr,
        };
        lines.push(&time, from, bytes, &mut out);
        self.append(&out);
    }

    /// Writes unfinished lines.
    pub(crate) fn finish(&mut self, ended: bool) {
        let (time, mut out) = (now(), Vec::new());
        self.stdout.finish(&time, Output::Stdout, ended, &mut out);
        self.stderr.finish(&time, Output::Stderr, ended, &mut out);
        self.append(&out);
    }

    fn append(&mut self, out: &[u8]) {
        if out.is_empty() || self.path.as_os_str().is_empty() {
            return;
        }
        // A full disk must not stop the container: its output is read on, and lost.
        match self.try_append(out) {
            Ok(()) => self.complained = false,
            Err(error) if !self.complained => {
                self.complained = true;
                tracing::warn!(log = %self.path.display(), %error, "container output is lost: the log cannot be written");
            }
            Err(_) => {}
        }
    }

    fn try_append(&mut self, out: &[u8]) -> io::Result<()> {
        if self.size > 0 && self.size + out.len() as u64 > self.max_size {
            self.rotate()?;
        }
        if self.file.is_none() {
            self.reopen()?;
        }
        if let Some(file) = &mut self.file {
            file.write_all(out)?;
            self.size += out.len() as u64;
        }
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let aside = |n: u32| {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".{n}"));
            PathBuf::from(name)
        };
        for n in (1..KEEP).rev() {
            match std::fs::rename(aside(n), aside(n + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        std::fs::rename(&self.path, aside(1))?;
        self.file = None;
        Ok(())
    }
}

fn now() -> String {
    format!("{:.9}", jiff::Timestamp::now())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_parts_and_rest() {
        let (mut lines, mut out) = (Lines::default(), Vec::new());
        lines.push("T", Output::Stdout, b"one\ntw", &mut out);
        lines.push("T", Output::Stdout, b"o\n\nrest", &mut out);
        lines.finish("T", Output::Stdout, true, &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), "T stdout F one\nT stdout F two\nT stdout F \nT stdout F rest\n");
    }

    #[test]
    fn an_interrupted_line_is_a_part() {
        let (mut lines, mut out) = (Lines::default(), Vec::new());
        lines.push("T", Output::Stderr, b"half", &mut out);
        lines.finish("T", Output::Stderr, false, &mut out);
        assert_eq!(out, b"T stderr P half\n");
    }

    #[test]
    fn a_line_of_exactly_the_limit_is_whole() {
        let (mut lines, mut out) = (Lines::default(), Vec::new());
        let mut text = vec![b'x'; MAX_LINE];
        text.push(b'\n');
        lines.push("T", Output::Stdout, &text, &mut out);
        assert!(out.starts_with(b"T stdout F x"));
        assert_eq!(out.iter().filter(|b| **b == b'\n').count(), 1);
    }

    #[test]
    fn a_large_log_is_moved_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pod/0.log");
        let mut log = LogFile::open(&path).unwrap();
        log.max_size = 1000;
        for n in 0..200 {
            log.write(Output::Stdout, format!("line {n}\n").as_bytes());
        }
        let last = std::fs::read_to_string(&path).unwrap();
        assert!(last.ends_with("line 199\n") && last.len() <= 1000);
        assert!(dir.path().join("pod/0.log.4").exists());
        assert!(!dir.path().join("pod/0.log.5").exists());
    }

    proptest! {
        /// However the bytes are cut, the log says the same text.
        #[test]
        fn nothing_is_lost_or_added(chunks in proptest::collection::vec(proptest::collection::vec(
            prop_oneof![8 => Just(b'a'), 1 => Just(b'\n')], 0..9000), 0..8)) {
            let (mut lines, mut out) = (Lines::default(), Vec::new());
            for chunk in &chunks {
                lines.push("T", Output::Stdout, chunk, &mut out);
            }
            lines.finish("T", Output::Stdout, false, &mut out);
            let mut text = Vec::new();
            for line in out.split_inclusive(|b| *b == b'\n') {
                let full = line.starts_with(b"T stdout F ");
                let body = &line[11..line.len() - 1];
                prop_assert!(body.len() <= MAX_LINE);
                text.extend_from_slice(body);
                if full { text.push(b'\n'); }
            }
            prop_assert_eq!(text, chunks.concat());
        }
    }
}
