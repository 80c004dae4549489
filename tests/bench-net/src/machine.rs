//! What a figure was taken on: without it the figure says nothing.

use anyhow::Result;
use serde_json::{Value, json};
use std::process::Command;
use std::time::Instant;

/// Results of a part of a bench, with what they were taken on, how busy that was and how long it took.
///
/// # Errors
/// Those of the measuring, and when the machine cannot be read.
pub fn noting(measure: impl FnOnce() -> Result<Value>) -> Result<Value> {
    let (begin, load) = (Instant::now(), load());
    let mut result = measure()?;
    result["machine"] = describe()?;
    result["loadBefore"] = load.into();
    result["loadAfter"] = self::load().into();
    result["tookSeconds"] = begin.elapsed().as_secs().into();
    Ok(result)
}

/// Processor, memory, kernel, system and build.
pub fn describe() -> Result<Value> {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo")?;
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|l| l.starts_with(name)).unwrap_or_default();
        line.split_once(':').map_or("", |(_, v)| v).trim().to_owned()
    };
    let meminfo = std::fs::read_to_string("/proc/meminfo")?;
    let memory: u64 = field(&meminfo, "MemTotal").split_whitespace().next().unwrap_or("0").parse()?;
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let system =
        release.lines().find_map(|l| l.strip_prefix("PRETTY_NAME=")).unwrap_or("").trim_matches('"').to_owned();
    Ok(json!({
        "processor": field(&cpuinfo, "model name"),
        "cores": cpuinfo.lines().filter(|l| l.starts_with("processor")).count(),
        "memoryMiB": memory / 1024,
        "kernel": std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim(),
        "system": system,
        "commit": said(Command::new("git").args(["describe", "--always", "--dirty"])),
        "build": if cfg!(debug_assertions) { "debug: figures are worthless" } else { "release" },
        "date": said(Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"])),
    }))
}

/// How busy the machine is, in `uptime`'s words.
pub fn load() -> String {
    std::fs::read_to_string("/proc/loadavg").unwrap_or_default().split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// The first line a command says, on whichever stream; empty when it cannot be run.
pub fn said(command: &mut Command) -> String {
    let Ok(output) = command.output() else { return String::new() };
    let both = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&both).lines().next().unwrap_or_default().trim().to_owned()
}
