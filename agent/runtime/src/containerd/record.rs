//! What containerd does not keep of a container: when it was started, how it ended when its task is gone, whether for
//! memory. In: facts as they happen. Out: one small file a container, and the labels that carry our own settings.

use containerd_client::services::v1::Container;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::{io, path::Path};

/// Labels with this prefix are ours and hidden from the caller.
pub(crate) const PREFIX: &str = "io.causeway.runtime/";
pub(crate) const LOG: &str = "log-path";
pub(crate) const CGROUP: &str = "cgroup-path";
pub(crate) const STOP_SIGNAL: &str = "stop-signal";
pub(crate) const TTY: &str = "tty";
pub(crate) const STDIN: &str = "stdin";
pub(crate) const STDIN_ONCE: &str = "stdin-once";

/// A setting of ours on a container.
pub(crate) fn own_label<'a>(container: &'a Container, name: &str) -> Option<&'a str> {
    container.labels.get(&format!("{PREFIX}{name}")).map(String::as_str)
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub started_at: Option<Timestamp>,
    pub exit_code: Option<i32>,
    pub finished_at: Option<Timestamp>,
    #[serde(default)]
    pub oom_killed: bool,
}

impl Record {
    /// What is on disk; nothing when there is none or a crash has damaged it.
    pub(crate) fn load(folder: &Path) -> Self {
        let bytes = std::fs::read(folder.join("record.json")).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    /// Replaces the file as a whole.
    pub(crate) fn save(&self, folder: &Path) -> io::Result<()> {
        std::fs::create_dir_all(folder)?;
        let new = folder.join(format!("record.{}", uuid::Uuid::new_v4()));
        std::fs::write(&new, serde_json::to_vec(self)?)?;
        std::fs::rename(new, folder.join("record.json"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_and_a_damaged_one_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("c");
        assert_eq!(Record::load(&folder), Record::default());
        let record = Record { exit_code: Some(137), oom_killed: true, ..Default::default() };
        record.save(&folder).unwrap();
        assert_eq!(Record::load(&folder), record);
        std::fs::write(folder.join("record.json"), "{").unwrap();
        assert_eq!(Record::load(&folder), Record::default());
    }
}
