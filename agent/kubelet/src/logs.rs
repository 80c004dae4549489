//! Container logs in the CRI format (`<RFC 3339 time> stdout|stderr F|P <text>`): parsing, the last lines, following.

use jiff::Timestamp;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// Longest termination message.
const MAX_MESSAGE: u64 = 4096;
/// What is taken from the end of the log in its place.
const FALLBACK_BYTES: usize = 2048;
const FALLBACK_LINES: usize = 80;

/// One line of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line<'a> {
    /// As written.
    pub time: &'a str,
    /// `stdout` or `stderr`.
    pub stream: &'a str,
    /// The text goes on in the next line.
    pub partial: bool,
    /// Without the end of line.
    pub text: &'a [u8],
}

/// Takes a line apart; `None` when it is not in the format.
pub fn parse(line: &[u8]) -> Option<Line<'_>> {
    let mut parts = line.splitn(4, |b| *b == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let stream = std::str::from_utf8(parts.next()?).ok()?;
    let partial = match parts.next()? {
        b"P" => true,
        b"F" => false,
        _ => return None,
    };
    Some(Line { time, stream, partial, text: parts.next().unwrap_or_default() })
}

impl Line<'_> {
    /// When it was written.
    pub fn at(&self) -> Option<Timestamp> {
        self.time.parse().ok()
    }
}

/// Where the last `count` full lines begin.
pub fn tail_offset(file: &mut File, count: usize) -> io::Result<u64> {
    const CHUNK: usize = 64 * 1024;
    let end = file.seek(SeekFrom::End(0))?;
    if count == 0 {
        return Ok(end);
    }
    let mut position = end;
    let mut seen = 0;
    // Everything from `position` on, so that lines cut by a chunk are whole when they are looked at.
    let mut tail: Vec<u8> = Vec::new();
    while position > 0 {
        let size = usize::try_from(position).unwrap_or(CHUNK).min(CHUNK);
        position -= size as u64;
        let mut chunk = vec![0; size];
        file.seek(SeekFrom::Start(position))?;
        file.read_exact(&mut chunk)?;
        chunk.append(&mut tail);
        tail = chunk;
        seen = 0;
        let mut stop = tail.len();
        let mut at = tail.len();
        // Walk backwards over whole lines; only full ones count, so a text in parts is one line.
        while at > 0 {
            let begin = tail[..at - 1].iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
            if begin == 0 && position > 0 {
                break;
            }
            let line = &tail[begin..at];
            if parse(line.strip_suffix(b"\n").unwrap_or(line)).is_none_or(|l| !l.partial) {
                if seen == count {
                    return Ok(position + stop as u64);
                }
                seen += 1;
            }
            stop = begin;
            at = begin;
        }
    }
    let _ = seen;
    Ok(0)
}

/// What a container left in its message file, or in the end of its log.
pub fn termination_message(file: &Path, fallback: Option<&Path>) -> String {
    let mut text = Vec::new();
    if let Ok(file) = File::open(file) {
        let _ = file.take(MAX_MESSAGE).read_to_end(&mut text);
    }
    if text.is_empty()
        && let Some(log) = fallback
    {
        text = log_end(log).unwrap_or_default();
    }
    String::from_utf8_lossy(&text).into_owned()
}

fn log_end(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let offset = tail_offset(&mut file, FALLBACK_LINES)?;
    file.seek(SeekFrom::Start(offset))?;
    let mut raw = Vec::new();
    file.take(1 << 20).read_to_end(&mut raw)?;
    let mut text = Vec::new();
    for line in raw.split(|b| *b == b'\n').filter_map(parse) {
        text.extend_from_slice(line.text);
        if !line.partial {
            text.push(b'\n');
        }
    }
    let from = text.len().saturating_sub(FALLBACK_BYTES);
    Ok(text.split_off(from))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn log(lines: &[&str]) -> tempfile::NamedTempFile {
        let mut f = tempfile::NamedTempFile::new().unwrap();
        for l in lines {
            writeln!(f, "2026-01-01T00:00:00.000000001Z {l}").unwrap();
        }
        f
    }

    #[test]
    fn tails() {
        let f = log(&["stdout F a", "stderr P b1", "stderr F b2", "stdout F c"]);
        let tail = |n| {
            let mut file = File::open(f.path()).unwrap();
            let at = tail_offset(&mut file, n).unwrap();
            file.seek(SeekFrom::Start(at)).unwrap();
            let mut s = String::new();
            file.read_to_string(&mut s).unwrap();
            s.lines()
                .map(|l| String::from_utf8_lossy(parse(l.as_bytes()).unwrap().text).into_owned())
                .collect::<Vec<_>>()
        };
        assert!(tail(0).is_empty());
        assert_eq!(tail(1), ["c"]);
        assert_eq!(tail(2), ["b1", "b2", "c"]);
        assert_eq!(tail(9), ["a", "b1", "b2", "c"]);
    }

    #[test]
    fn messages_fall_back_to_the_log() {
        let f = log(&["stderr F boom"]);
        let none = Path::new("/nonexistent/file");
        assert_eq!(termination_message(none, Some(f.path())), "boom\n");
        assert_eq!(termination_message(none, None), "");
    }
}
