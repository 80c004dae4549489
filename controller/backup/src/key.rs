//! The key of backups: 32 random bytes in a file of their own. In: a path. Out: the key, its fingerprint, and the keys of
//! single backups.
//!
//! The file holds the key in hexadecimal, so that it can be printed or typed; it must belong to its reader alone.

use crate::error::{BackupError, Result, at};
use data_encoding::HEXLOWER_PERMISSIVE;
use ring::rand::{SecureRandom, SystemRandom};
use ring::{aead, digest, hkdf};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Bytes of a key, and of a backup's salt.
pub const LENGTH: usize = 32;
/// A key file is no longer than this; more is something else.
const MAX_FILE: u64 = 1024;

/// A key. It never appears in a backup, in a log or in an error.
#[derive(Clone)]
pub struct Key([u8; LENGTH]);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key({})", self.fingerprint())
    }
}

/// The length of what is derived, as `ring` wants it.
struct Length(usize);

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// Bytes from the system's generator.
pub(crate) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| BackupError::Format("the system gave no random bytes; try again".into()))?;
    Ok(bytes)
}

impl Key {
    /// Makes a key and the file that holds it. A file that is there is never replaced: backups may depend on it.
    pub fn make(path: &Path) -> Result<Self> {
        let key = Self(random()?);
        let mut file = match File::options().write(true).create_new(true).mode(0o600).open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                let what = "is there already, and backups may depend on it; use it, or choose another path".to_owned();
                return Err(BackupError::Key { path: path.to_owned(), what });
            }
            Err(e) => return Err(at("making the key file", path)(e)),
        };
        let text = format!("{}\n", HEXLOWER_PERMISSIVE.encode(&key.0));
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(at("writing the key file", path))?;
        if let Some(parent) = path.parent() {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            crate::files::sync_folder(parent)?;
        }
        Ok(key)
    }

    /// Reads a key file that only its owner can read.
    pub fn read(path: &Path) -> Result<Self> {
        let wrong = |what: String| BackupError::Key { path: path.to_owned(), what };
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::NotFound => {
                let make = format!("causeway store backup-key {}", path.display());
                return Err(wrong(format!(
                    "is not there; make one with `{make}` and keep a copy of it away from this machine, or restore the \
                     copy that you have"
                )));
            }
            Err(e) => return Err(at("opening the key file", path)(e)),
        };
        let meta = file.metadata().map_err(at("looking at the key file", path))?;
        if !meta.is_file() || meta.len() > MAX_FILE {
            return Err(wrong("is no key file".into()));
        }
        if meta.mode() & 0o077 != 0 {
            return Err(wrong("can be read by others than its owner; make a new one, or run chmod 600 on it".into()));
        }
        let mut text = String::new();
        file.take(MAX_FILE).read_to_string(&mut text).map_err(at("reading the key file", path))?;
        let bytes = HEXLOWER_PERMISSIVE.decode(text.trim().as_bytes()).ok();
        let bytes = bytes.and_then(|b| <[u8; LENGTH]>::try_from(b).ok());
        bytes.map(Self).ok_or_else(|| wrong("does not hold 64 hexadecimal digits".into()))
    }

    /// What a backup says of its key, so that a wrong one is told from damage. It gives nothing of the key away.
    pub fn fingerprint(&self) -> String {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(b"causeway backup key\0");
        context.update(&self.0);
        HEXLOWER_PERMISSIVE.encode(context.finish().as_ref().get(..8).unwrap_or_default())
    }

    /// The key of one backup. Its salt makes it that backup's own, so that its chunks can be numbered from nought; its
    /// header goes into it, so that nothing decrypts under a header that was changed.
    pub(crate) fn of_backup(&self, salt: &[u8; LENGTH], header: &[u8]) -> Result<aead::LessSafeKey> {
        let failed = |_| BackupError::Format("the backup's own key could not be derived".into());
        let header = digest::digest(&digest::SHA256, header);
        let info: [&[u8]; 2] = [b"causeway backup 1", header.as_ref()];
        let mut bytes = [0; LENGTH];
        let secret = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(&self.0);
        secret.expand(&info, Length(LENGTH)).and_then(|okm| okm.fill(&mut bytes)).map_err(failed)?;
        let key = aead::UnboundKey::new(&aead::AES_256_GCM, &bytes).map_err(failed)?;
        Ok(aead::LessSafeKey::new(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_is_read_as_it_was_made_and_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let missing = Key::read(&path).unwrap_err().to_string();
        assert!(missing.contains("causeway store backup-key"), "{missing}");
        let made = Key::make(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(Key::read(&path).unwrap().0, made.0);
        assert!(Key::make(&path).unwrap_err().to_string().contains("already"));
        assert_eq!(Key::read(&path).unwrap().fingerprint(), made.fingerprint());
        assert!(!format!("{made:?}").contains(&HEXLOWER_PERMISSIVE.encode(&made.0)));
    }

    #[test]
    fn what_others_can_read_or_is_no_key_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        Key::make(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(Key::read(&path).unwrap_err().to_string().contains("chmod 600"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        for text in ["", "abc", &"0".repeat(63), &"g".repeat(64), &"0".repeat(2000)] {
            fs::write(&path, text).unwrap();
            assert!(Key::read(&path).is_err(), "{text:?}");
        }
    }
}
