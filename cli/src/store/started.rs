//! How a cluster was started, so that a backup can say it. In: this process's command line and its settings file. Out: the
//! folder `settings` of the cluster's data; and, from a folder that came out of a backup, the command to type.

use crate::paths::Paths;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// The arguments.
const COMMAND: &str = "command.json";
/// A copy of the file that `--config` names.
const CONFIG: &str = "config.yaml";
/// Flags of a place or of the moment; the first three have a value.
const LEFT_OUT: [&str; 5] = ["--name", "--data-dir", "--config", "--detach", "--detached"];

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Command {
    arguments: Vec<String>,
}

/// Keeps what this process was started with.
pub fn keep(paths: &Paths, config: Option<&Path>) -> Result<()> {
    let dir = paths.settings();
    fs::DirBuilder::new()
        .mode(0o700)
        .recursive(true)
        .create(&dir)
        .with_context(|| format!("making {}", dir.display()))?;
    let arguments = lasting(std::env::args_os().skip(1).map(|a| a.to_string_lossy().into_owned()));
    write(&dir, COMMAND, &serde_json::to_vec_pretty(&Command { arguments })?)?;
    match config {
        Some(path) => {
            let text = fs::read(path).with_context(|| format!("reading the configuration {}", path.display()))?;
            write(&dir, CONFIG, &text)
        }
        None => match fs::remove_file(dir.join(CONFIG)) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(e).context("removing the settings of an earlier start"),
            _ => Ok(()),
        },
    }
}

/// Replaces a file, whole or not at all.
fn write(dir: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let (path, next) = (dir.join(name), dir.join(name).with_extension("new"));
    let write = || {
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&next)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&next, &path)
    };
    write().with_context(|| format!("writing {}", path.display()))
}

/// The arguments that would be given again, on any machine.
fn lasting(arguments: impl Iterator<Item = String>) -> Vec<String> {
    let mut lasting = Vec::new();
    let mut skip = false;
    for argument in arguments {
        let flag = argument.split('=').next().unwrap_or_default();
        if std::mem::take(&mut skip) {
            continue;
        }
        match LEFT_OUT.iter().position(|left_out| *left_out == flag) {
            Some(at) => skip = at < 3 && !argument.contains('='),
            None => lasting.push(argument),
        }
    }
    lasting
}

/// The command that starts the cluster of a data folder as it was started where its backup was made. What comes out of a
/// backup is only shown: nothing is run, and nothing of it reaches a terminal unquoted.
pub fn command(paths: &Paths, default_dir: bool) -> String {
    let dir = paths.settings();
    let kept = fs::read(dir.join(COMMAND)).ok().and_then(|json| serde_json::from_slice::<Command>(&json).ok());
    let mut words = kept.map_or_else(|| vec!["up".to_owned()], |kept| kept.arguments);
    words.extend(["--name".to_owned(), paths.name.clone()]);
    if !default_dir {
        words.extend(["--data-dir".to_owned(), paths.data.display().to_string()]);
    }
    if dir.join(CONFIG).exists() {
        words.extend(["--config".to_owned(), dir.join(CONFIG).display().to_string()]);
    }
    let words: Vec<String> = words.iter().map(|word| quoted(word)).collect();
    format!("causeway {}", words.join(" "))
}

/// A word as a shell reads it. What is not printable ASCII is shown by its number.
fn quoted(word: &str) -> String {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-_=./:,@%+".contains(&b);
    if !word.is_empty() && word.bytes().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.escape_default().to_string().replace('\'', "\\x27"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lasts_is_kept_and_shown_with_the_place_of_now() {
        let line = [
            "up",
            "--detach",
            "--name",
            "a",
            "--nodes",
            "3",
            "--data-dir=/x",
            "--config",
            "c.yaml",
            "--ip-family=dual",
        ];
        let lasting = lasting(line.iter().map(|s| (*s).to_owned()));
        assert_eq!(lasting, ["up", "--nodes", "3", "--ip-family=dual"]);
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new("prod", Some(dir.path())).unwrap();
        assert_eq!(command(&paths, true), "causeway up --name prod");
        fs::write(dir.path().join("c.yaml"), "name: prod").unwrap();
        keep(&paths, Some(&dir.path().join("c.yaml"))).unwrap();
        assert_eq!(fs::read_to_string(paths.settings().join(CONFIG)).unwrap(), "name: prod");
        keep(&paths, None).unwrap();
        assert!(!paths.settings().join(CONFIG).exists());
        let hostile = serde_json::json!({"arguments": ["up", "--nodes", "3;rm -rf /", "\u{1b}[2J", "a'b"]});
        fs::write(paths.settings().join(COMMAND), hostile.to_string()).unwrap();
        let shown = command(&paths, true);
        assert_eq!(shown, "causeway up --nodes '3;rm -rf /' '\\u{1b}[2J' 'a\\\\x27b' --name prod");
    }
}
