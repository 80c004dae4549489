//! A file that is appended to and rotated: by size, with so many backups, of such an age. In: bytes through
//! [`std::io::Write`]. Out: the file and its backups beside it.
//!
//! Nothing here uses `tracing`, so that a program can write its own log through it: errors of rotating are handed out
//! by [`RotatingFile::take_error`].

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// After a failed rotation the file grows on, and rotating is tried again after this.
const RETRY: Duration = Duration::from_secs(1);
/// Backups' time stamps, in UTC: `audit-2026-12-01T00-31-32.250.log`.
const STAMP: &str = "%Y-%m-%dT%H-%M-%S%.3f";

/// When a file is rotated, and what is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// A write that would make the file larger than this, in bytes, goes to a new one; 0: never.
    pub max_bytes: u64,
    /// Backups that are kept; 0: all (only with [`Names::Timed`]).
    pub max_backups: usize,
    /// Backups older than this are removed when a file is opened or rotated; only with [`Names::Timed`].
    pub max_age: Option<Duration>,
    /// What backups are called.
    pub names: Names,
}

impl Default for Options {
    /// 100 MiB, ten backups of any age with time stamps.
    fn default() -> Self {
        Self { max_bytes: 100 << 20, max_backups: 10, max_age: None, names: Names::Timed }
    }
}

/// What backups are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Names {
    /// `audit-2026-12-01T00-31-32.250.log`: the time (UTC) of the rotation, as kube-apiserver's audit log has it.
    Timed,
    /// `causeway.log.1`, `causeway.log.2`, …: the lowest is the youngest.
    Numbered,
}

/// The open file. Each `write` writes all of its bytes, and all to the same file.
#[derive(Debug)]
pub struct RotatingFile {
    path: PathBuf,
    options: Options,
    file: File,
    size: u64,
    /// The last write did not end; the next begins a new line.
    torn: bool,
    retry: Option<Instant>,
    error: Option<io::Error>,
}

impl RotatingFile {
    /// Opens the file (mode 0600, also where it was there with another) for appending, and makes it and its folder
    /// (mode 0700) where they are missing.
    ///
    /// # Errors
    /// When it is no regular file (a symbolic link is none), or cannot be opened; `InvalidInput` for numbered backups
    /// without a limit.
    pub fn open(path: &Path, options: Options) -> io::Result<Self> {
        if options.names == Names::Numbered && (options.max_backups == 0 || options.max_age.is_some()) {
            let why = "numbered backups need a limit to their number, and have no age";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        if path.file_name().is_none() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{} names no file", path.display())));
        }
        if let Some(folder) = path.parent().filter(|f| !f.as_os_str().is_empty()) {
            DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        let file = open(path)?;
        let size = file.metadata()?.len();
        let mut this = Self { path: path.to_owned(), options, file, size, torn: false, retry: None, error: None };
        this.prune();
        Ok(this)
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file that is written to now. It is another one after a rotation.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Why the last rotation, or a removal of old backups, failed; once for each.
    pub fn take_error(&mut self) -> Option<io::Error> {
        self.error.take()
    }

    /// Renames the file to a backup, begins a new one, and removes backups that are too many or too old.
    ///
    /// # Errors
    /// When it cannot be renamed or a new one not be made: then writes go on into the old one.
    pub fn rotate(&mut self) -> io::Result<()> {
        let backup = match self.options.names {
            Names::Timed => self.free_name(),
            Names::Numbered => self.shift()?,
        };
        match fs::rename(&self.path, backup) {
            // A former rotation got no further than its renaming, or somebody took the file away.
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.file = open(&self.path)?;
        self.size = self.file.metadata()?.len();
        self.torn = false;
        self.prune();
        Ok(())
    }

    /// Rotates when the file has become larger than its limit by what others wrote to it, and tells whether it did. For
    /// a process whose standard output and error are this file: these are to be pointed at [`RotatingFile::file`] then.
    ///
    /// # Errors
    /// As [`RotatingFile::rotate`].
    pub fn rotate_if_grown(&mut self) -> io::Result<bool> {
        self.size = self.file.metadata()?.len();
        let grown = self.options.max_bytes > 0 && self.size > self.options.max_bytes;
        if grown {
            self.rotate()?;
        }
        Ok(grown)
    }

    fn rotate_if_full(&mut self, more: usize) {
        let max = self.options.max_bytes;
        let full = max > 0 && self.size > 0 && self.size.saturating_add(more as u64) > max;
        if !full || self.retry.is_some_and(|at| Instant::now() < at) {
            return;
        }
        self.retry = None;
        if let Err(error) = self.rotate() {
            self.retry = Some(Instant::now() + RETRY);
            self.error = Some(error);
        }
    }

    /// A backup's name that is not taken: a rotation must not overwrite another of the same millisecond.
    fn free_name(&self) -> PathBuf {
        let mut time = jiff::Timestamp::now();
        loop {
            let path = self.path.with_file_name(timed_name(&self.path, time));
            if fs::symlink_metadata(&path).is_err() {
                return path;
            }
            time += Duration::from_millis(1);
        }
    }

    /// Moves every numbered backup one further, the last one away.
    fn shift(&self) -> io::Result<PathBuf> {
        let name = |number: usize| {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".{number}"));
            PathBuf::from(name)
        };
        for number in (1..self.options.max_backups).rev() {
            match fs::rename(name(number), name(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(name(1))
    }

    fn prune(&mut self) {
        if self.options.names == Names::Timed
            && let Err(error) = prune(&self.path, &self.options)
        {
            self.error = Some(error);
        }
    }
}

impl Write for RotatingFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.rotate_if_full(bytes.len());
        if self.torn {
            self.file.write_all(b"\n")?;
            self.size += 1;
            self.torn = false;
        }
        if let Err(error) = self.file.write_all(bytes) {
            // A full disk may have taken a part of it.
            let size = self.file.metadata().map_or(self.size, |m| m.len());
            self.torn = size != self.size;
            self.size = size;
            return Err(error);
        }
        self.size += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn open(path: &Path) -> io::Result<File> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.is_file() => {
            let why = format!("{} is not a regular file", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    if file.metadata()?.permissions().mode() & 0o777 != 0o600 {
        file.set_permissions(Permissions::from_mode(0o600))?;
    }
    Ok(file)
}

fn timed_name(path: &Path, time: jiff::Timestamp) -> OsString {
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push("-");
    name.push(time.strftime(STAMP).to_string());
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    name
}

/// The time in the name of a backup of this file; `None` for any other file.
fn backup_time(path: &Path, name: &OsStr) -> Option<jiff::Timestamp> {
    let stem = path.file_stem()?.to_str()?;
    let rest = name.to_str()?.strip_prefix(stem)?.strip_prefix('-')?;
    let stamp = match path.extension() {
        Some(extension) => rest.strip_suffix(extension.to_str()?)?.strip_suffix('.')?,
        None => rest,
    };
    let time = jiff::civil::DateTime::strptime("%Y-%m-%dT%H-%M-%S%.f", stamp).ok()?;
    let time = time.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp();
    // Nothing but what we would have called it ourselves is removed.
    (timed_name(path, time) == name).then_some(time)
}

/// Removes backups that are too many or too old. Goes on after an error, and hands out the last.
fn prune(path: &Path, options: &Options) -> io::Result<()> {
    if options.max_backups == 0 && options.max_age.is_none() {
        return Ok(());
    }
    let folder = path.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut backups = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if let Some(time) = backup_time(path, &entry.file_name()) {
            backups.push((time, entry.path()));
        }
    }
    backups.sort();
    backups.reverse();
    let oldest = options.max_age.and_then(|age| jiff::Timestamp::now().checked_sub(age).ok());
    let mut result = Ok(());
    for (i, (time, path)) in backups.iter().enumerate() {
        let too_many = options.max_backups > 0 && i >= options.max_backups;
        if (too_many || oldest.is_some_and(|oldest| *time < oldest))
            && let Err(error) = fs::remove_file(path)
        {
            result = Err(error);
        }
    }
    result
}

#[cfg(test)]
mod tests;
