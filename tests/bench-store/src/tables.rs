//! The tables of `docs/BENCHMARKS.md`. In: results. Out: Markdown, a section for each part that has results, each with
//! what it was taken on.

use crate::PARTS;
use crate::page::{short, taken};
use crate::parts::WRITERS;
use crate::report::Report;
use crate::rooms::NAMES;
use anyhow::Result;
use serde_json::Value;
use std::fmt::Write;

/// Subjects, as they are called in tables.
const SUBJECTS: [(&str, &str); 5] = [
    ("new", "the store"),
    ("new-log", "the store, no snapshot: all of it log"),
    ("old", "the engine before it (87f2042)"),
    ("etcd34", "etcd 3.4"),
    ("etcd36", "etcd 3.6"),
];

/// All sections.
pub fn page(report: &Report) -> Result<String> {
    let mut page = String::new();
    for part in PARTS {
        let result = report.part(&format!("store-{part}"));
        if result.is_null() {
            continue;
        }
        let (title, text) = match part {
            "writes" => ("Acknowledged writes", writes(result)?),
            "list" => ("A page of very many keys", list(result)?),
            "crash" => ("Opening after SIGKILL", crash(result)?),
            "memory" => ("Memory and disk", memory(result)?),
            "leases" => ("Leases", leases(result)?),
            "values" => ("Rooms for values", values(result)?),
            _ => ("Building the libraries", builds(result)?),
        };
        writeln!(page, "### {title}\n\n{}\n{text}", taken(result))?;
    }
    Ok(page)
}

fn cell(value: &Value) -> String {
    value.as_f64().map_or_else(|| "–".to_owned(), short)
}

/// The middle one and the range.
fn spread(of: &Value) -> String {
    if of.is_null() {
        return "–".to_owned();
    }
    format!("{} ({}–{})", cell(&of["median"]), cell(&of["min"]), cell(&of["max"]))
}

/// The first of two medians in terms of the second.
fn ratio(one: &Value, other: &Value) -> String {
    match (one["median"].as_f64(), other["median"].as_f64()) {
        (Some(one), Some(other)) if other > 0.0 => short(one / other),
        _ => "–".to_owned(),
    }
}

fn versions(result: &Value) -> String {
    let all = result["versions"].as_object().into_iter().flatten().filter_map(|(_, version)| version.as_str());
    all.map(|version| format!("{version}. ")).collect()
}

/// Those that were measured.
fn measured(result: &Value) -> impl Iterator<Item = (&'static str, &'static str, &Value)> {
    let known = SUBJECTS.iter().map(|(name, title)| (*name, *title, &result["subjects"][*name]));
    known.filter(|(.., of)| !of.is_null())
}

fn writes(result: &Value) -> Result<String> {
    let mut page = format!(
        "{}{} rounds of {} s each.\n\n| writers | | a second (range) | to the file | to the engine before | p50, µs | p99, µs | CPU µs a write |\n|---|---|---|---|---|---|---|---|\n",
        versions(result),
        result["rounds"],
        result["seconds"]
    );
    let all = &result["subjects"];
    let file = &all["file"];
    let line = |of: &Value| format!("{} | {}", spread(&of["p50"]), spread(&of["p99"]));
    writeln!(page, "| 1 | one file, appended to | {} | 1.00 | | {} | |", spread(&file["perSecond"]), line(file))?;
    for writers in WRITERS {
        let old = &all[format!("old-{writers}")]["perSecond"];
        for (name, title) in SUBJECTS {
            let of = &all[format!("{name}-{writers}")];
            if of.is_null() {
                continue;
            }
            let rate = &of["perSecond"];
            let ratios = format!("{} | {}", ratio(rate, &file["perSecond"]), ratio(rate, old));
            let cpu = spread(&of["cpuMicroseconds"]);
            writeln!(page, "| {writers} | {title} | {} | {ratios} | {} | {cpu} |", spread(rate), line(of))?;
        }
    }
    Ok(page)
}

fn list(result: &Value) -> Result<String> {
    let mut page = format!(
        "{} of {} keys with {} bytes each, and how many are left; {} rounds of {}.\n\n| | p50, µs (range) | p99, µs (range) | p50 to the engine before |\n|---|---|---|---|\n",
        result["limit"], result["keys"], result["valueBytes"], result["rounds"], result["times"]
    );
    let old = &result["subjects"]["old"]["p50"];
    for (_, title, of) in measured(result) {
        writeln!(page, "| {title} | {} | {} | {} |", spread(&of["p50"]), spread(&of["p99"]), ratio(&of["p50"], old))?;
    }
    Ok(page)
}

fn crash(result: &Value) -> Result<String> {
    let mut page = format!(
        "{} MiB of updates of {} keys, {} bytes each; {} rounds.\n\n| | s to the first answer (range) | to the engine before | memory then, MiB | on disk, MiB | updates a second while writing |\n|---|---|---|---|---|---|\n",
        result["writtenMiB"], result["keys"], result["valueBytes"], result["rounds"]
    );
    let old = &result["subjects"]["old"]["seconds"];
    for (name, title, of) in measured(result) {
        let made = &result["made"][name];
        let ratio = ratio(&of["seconds"], old);
        let (seconds, memory) = (spread(&of["seconds"]), spread(&of["memoryMiB"]));
        let (disk, rate) = (cell(&made["diskMiB"]), cell(&made["writtenPerSecond"]));
        writeln!(page, "| {title} | {seconds} | {ratio} | {memory} | {disk} | {rate} |")?;
    }
    Ok(page)
}

fn memory(result: &Value) -> Result<String> {
    let mut page = format!(
        "{} objects of {} bytes, filled in by 128 writers.\n\n| | memory, MiB | without files | most meanwhile | on disk, MiB | CPU s for filling in | filled in a second | after a new start, MiB | s to its first answer |\n|---|---|---|---|---|---|---|---|---|\n",
        result["objects"], result["valueBytes"]
    );
    let columns =
        ["memoryMiB", "anonymousMiB", "peakMiB", "diskMiB", "cpuSeconds", "perSecond", "againMiB", "againSeconds"];
    for (_, title, of) in measured(result) {
        let cells = columns.map(|column| spread(&of[column]));
        writeln!(page, "| {title} | {} |", cells.join(" | "))?;
    }
    Ok(page)
}

fn leases(result: &Value) -> Result<String> {
    let mut page = format!(
        "{} leases of {} bytes, each renewed every {} s, for {} s; all subjects at the same time.\n\n| | most memory, MiB | without files | most on disk, MiB | CPU s | renewals | p50, µs after it was due | p99, µs |\n|---|---|---|---|---|---|---|---|\n",
        result["leases"], result["valueBytes"], result["everySeconds"], result["seconds"]
    );
    let columns = ["memoryMiB", "anonymousMiB", "diskMiB", "cpuSeconds", "renewed", "p50", "p99"];
    for (_, title, of) in measured(result) {
        writeln!(page, "| {title} | {} |", columns.map(|column| cell(&of[column])).join(" | "))?;
    }
    Ok(page)
}

fn values(result: &Value) -> Result<String> {
    let mut page = format!(
        "{} values of {} bytes; {} rounds. At the end {} MiB are wanted.\n\n| | puts/s | to sled | drops/s | gets/s | to sled | CPU s | memory, MiB | most on disk, MiB | on disk when closed, MiB |\n|---|---|---|---|---|---|---|---|---|---|\n",
        result["puts"],
        result["valueBytes"],
        result["rounds"],
        cell(&result["rooms"]["sled"]["wantedMiB"]["median"])
    );
    let sled = &result["rooms"]["sled"];
    for name in NAMES {
        let of = &result["rooms"][name];
        let title = match name {
            "redb" => "redb, nothing durable",
            "redb-durable" => "redb, durable every 64 MiB",
            "fjall-blobs" => "fjall, values apart from keys",
            "file" => "offsets into files, `pread`",
            other => other,
        };
        let compared = |figure: &str| format!("{} | {}", spread(&of[figure]), ratio(&of[figure], &sled[figure]));
        let rest = ["cpuSeconds", "peakMiB", "mostDiskMiB", "closedDiskMiB"].map(|column| spread(&of[column]));
        writeln!(
            page,
            "| {title} | {} | {} | {} | {} |",
            compared("putsPerSecond"),
            spread(&of["dropsPerSecond"]),
            compared("getsPerSecond"),
            rest.join(" | ")
        )?;
    }
    Ok(page)
}

fn builds(result: &Value) -> Result<String> {
    let mut page = String::from("| | crates, its own included | CPU s | s with two jobs |\n|---|---|---|---|\n");
    for name in ["sled", "redb", "fjall"] {
        let of = &result[name];
        let version = of["version"].as_str().unwrap_or_default();
        writeln!(
            page,
            "| {name} {version} | {} | {} | {} |",
            of["crates"],
            cell(&of["cpuSeconds"]),
            cell(&of["seconds"])
        )?;
    }
    Ok(page)
}
