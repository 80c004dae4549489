//! Where backups are kept. In: `/a/folder` or `s3://BUCKET/PREFIX`. Out: which backups are there; one put there whole or not
//! at all, one fetched, one deleted.

mod folder;
mod s3;

pub use folder::Staged;

use crate::error::{BackupError, Result};
use crate::retention::Name;
use std::fs::File;
use std::path::{Path, PathBuf};

/// A place for backups.
#[derive(Debug, Clone)]
pub enum Destination {
    /// A folder of this machine.
    Folder(PathBuf),
    /// A bucket, by the protocol S3. Region, credentials and endpoint come from the environment (`AWS_*`).
    S3 {
        /// The bucket.
        bucket: String,
        /// What the objects' names begin with; empty, or without `/` at both ends.
        prefix: String,
    },
}

/// What makes an address one of S3.
const S3: &str = "s3://";

impl Destination {
    /// Reads one.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = |what: &str| BackupError::Destination { text: text.to_owned(), what: what.to_owned() };
        let Some(rest) = text.strip_prefix(S3) else {
            let path = Path::new(text);
            return match path.is_absolute() {
                true => Ok(Self::Folder(path.to_owned())),
                false => Err(wrong("write an absolute path, or s3://BUCKET/PREFIX")),
            };
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let is_bucket = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
        if !(3..=63).contains(&bucket.len()) || !bucket.bytes().all(is_bucket) {
            return Err(wrong("a bucket has 3 to 63 of a-z, 0-9, - and ."));
        }
        let prefix = prefix.trim_end_matches('/');
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"/._-".contains(&b);
        let names = || prefix.split('/');
        if !prefix.is_empty()
            && (!prefix.bytes().all(is_plain) || names().any(|n| n.is_empty() || n == "." || n == ".."))
        {
            return Err(wrong("a prefix has names of letters, digits, ., _ and - with one / between them"));
        }
        Ok(Self::S3 { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
    }

    /// One backup: its place and its name.
    pub fn parse_backup(text: &str) -> Result<(Self, String)> {
        let wrong = |what: &str| BackupError::Destination { text: text.to_owned(), what: what.to_owned() };
        let Some((place, name)) = text.rsplit_once('/').filter(|(_, name)| !name.is_empty()) else {
            return Err(wrong("name one backup, as in s3://BUCKET/PREFIX/NAME.causeway-backup"));
        };
        Ok((Self::parse(place)?, name.to_owned()))
    }

    /// Whether an address is one of S3, rather than a file's.
    pub fn is_remote(text: &str) -> bool {
        text.starts_with(S3)
    }

    /// A file in which a backup can be written and verified before it is put here: on the same file system where that is
    /// possible, in `else_in` otherwise.
    pub fn stage(&self, cluster: &str, else_in: &Path) -> Result<Staged> {
        match self {
            Self::Folder(dir) => Staged::new(dir, cluster),
            Self::S3 { .. } => Staged::new(else_in, cluster),
        }
    }

    /// Puts a staged backup here under its name. Returns where it is.
    pub async fn put(&self, staged: Staged, name: &Name) -> Result<String> {
        match self {
            Self::Folder(dir) => staged.keep(&dir.join(name.to_string())).map(|p| p.display().to_string()),
            Self::S3 { bucket, prefix } => {
                s3::Bucket::open(bucket, prefix)?.put(staged.path(), &name.to_string()).await
            }
        }
    }

    /// All backups here, of any cluster.
    pub async fn list(&self) -> Result<Vec<Name>> {
        match self {
            Self::Folder(dir) => folder::list(dir),
            Self::S3 { bucket, prefix } => s3::Bucket::open(bucket, prefix)?.list().await,
        }
    }

    /// Deletes one.
    pub async fn delete(&self, name: &Name) -> Result<()> {
        match self {
            Self::Folder(dir) => folder::delete(&dir.join(name.to_string())),
            Self::S3 { bucket, prefix } => s3::Bucket::open(bucket, prefix)?.delete(&name.to_string()).await,
        }
    }

    /// Copies what is here under a name into a file.
    pub async fn fetch(&self, name: &str, into: &mut File) -> Result<()> {
        match self {
            Self::Folder(dir) => folder::fetch(&dir.join(name), into),
            Self::S3 { bucket, prefix } => s3::Bucket::open(bucket, prefix)?.fetch(name, into).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_mistakes_named() {
        assert!(
            matches!(Destination::parse("/backups").unwrap(), Destination::Folder(p) if p == Path::new("/backups"))
        );
        for (text, bucket, prefix) in [
            ("s3://bucket", "bucket", ""),
            ("s3://bucket/", "bucket", ""),
            ("s3://a-bucket.x/my/prefix/", "a-bucket.x", "my/prefix"),
        ] {
            let Destination::S3 { bucket: b, prefix: p } = Destination::parse(text).unwrap() else { panic!("{text}") };
            assert_eq!((b.as_str(), p.as_str()), (bucket, prefix));
        }
        for bad in
            ["", "backups", "s3://", "s3://ab", "s3://Bucket", "s3://bucket//x", "s3://bucket/../x", "s3://bucket/a b"]
        {
            assert!(Destination::parse(bad).is_err(), "{bad}");
        }
        let (place, name) = Destination::parse_backup("s3://bucket/a/b.causeway-backup").unwrap();
        assert!(matches!(place, Destination::S3 { prefix, .. } if prefix == "a"));
        assert_eq!(name, "b.causeway-backup");
        assert!(Destination::parse_backup("s3://bucket/").is_err());
    }
}
