//! The pages in the sources: tables and plots out of the results, between marks that stay.
//!
//! In: the results. Out: what is between `<!-- bench-net NAME -->` and `<!-- end of NAME -->` of `docs/BENCHMARKS.md`
//! and `docs/SERVICES.md`, and `docs/figures/*.svg`. Text outside of the marks is people's.

use crate::kubeproxy::CASES;
use crate::plots::{Line, draw};
use anyhow::Result;
use causeway_bench_net::page::{group, replace, short, taken};
use causeway_bench_net::report::Report;
use serde_json::Value;
use std::fmt::Write;
use std::path::Path;

/// Whom ours is compared with.
const PEER: &str = "kube-proxy nftables";
const OURS: &str = "causeway nftables";

/// Writes all of it, as far as there are results.
pub fn write(docs: &Path, report: &Report) -> Result<()> {
    let (services, dns) = (report.part("services"), report.part("dns"));
    if !services.is_null() {
        plots(docs, services)?;
        replace(&docs.join("BENCHMARKS.md"), "bench-net services", &services_page(services)?)?;
        replace(&docs.join("SERVICES.md"), "bench-net services", &services_summary(services)?)?;
    }
    if !dns.is_null() {
        replace(&docs.join("BENCHMARKS.md"), "bench-net dns", &dns_page(dns)?)?;
        replace(&docs.join("SERVICES.md"), "bench-net dns", &dns_summary(dns)?)?;
    }
    Ok(())
}

fn sizes(services: &Value) -> Vec<u64> {
    services["sizes"].as_array().into_iter().flatten().filter_map(Value::as_u64).collect()
}

fn at<'a>(services: &'a Value, case: &str, size: u64) -> &'a Value {
    &services["cases"][case][size.to_string()]
}

/// A table with a row for every case and a column for every size.
fn table(services: &Value, first: &str, cell: impl Fn(&Value) -> Option<String>) -> Result<String> {
    let sizes = sizes(services);
    let mut text = format!("| {first} |");
    for size in &sizes {
        write!(text, " {} |", group(*size as f64))?;
    }
    writeln!(text, "\n|---|{}", "---|".repeat(sizes.len()))?;
    for case in CASES.iter().filter(|c| services["cases"][c.name].is_object()) {
        let cells: Vec<Option<String>> = sizes.iter().map(|size| cell(at(services, case.name, *size))).collect();
        if cells.iter().all(Option::is_none) {
            continue;
        }
        let name = if case.ours { format!("**{}**", case.name) } else { case.name.to_owned() };
        write!(text, "| {name} |")?;
        for (cell, size) in cells.into_iter().zip(&sizes) {
            let figures = at(services, case.name, *size);
            let bound = figures["gaveUpAfterSeconds"].as_f64().map(|s| format!("> {s} s"));
            write!(text, " {} |", cell.or(bound).unwrap_or_else(|| "–".to_owned()))?;
        }
        writeln!(text)?;
    }
    Ok(text)
}

fn number(value: &Value, path: &str) -> Option<f64> {
    value.pointer(path)?.as_f64()
}

fn pair(value: &Value, one: &str, other: &str) -> Option<String> {
    Some(format!("{} / {}", short(number(value, one)?), short(number(value, other)?)))
}

fn services_page(services: &Value) -> Result<String> {
    let mut text = format!("{}Peer: {}.\n\n", taken(services), services["kubeProxy"].as_str().unwrap_or("none"));
    text +=
        "Full synchronisation: seconds from the start of the process to the first packet / CPU seconds until then\n\n";
    text += &table(services, "Services", |v| pair(v, "/secondsToFlow", "/cpuSecondsToFlow"))?;
    text += "\nThe synchronisation alone, by its own metric, seconds\n\n";
    text += &table(services, "Services", |v| number(v, "/syncSeconds").map(short))?;
    text += "\nA change of one endpoint: milliseconds of the synchronisation by its own metric / CPU milliseconds\n\n";
    text += &table(services, "Services", |v| pair(v, "/change/syncMilliseconds", "/change/cpuMilliseconds"))?;
    text += "\nA change of one endpoint: milliseconds from the write being sent to the API to packets that go to the new pod, p50 / p99\n\n";
    let sent = "/change/sentToPacketsMilliseconds";
    text += &table(services, "Services", |v| pair(v, &format!("{sent}/p50"), &format!("{sent}/p99")))?;
    text += "\nA change of one endpoint: bytes handed to the kernel\n\n";
    text += &table(services, "Services", |v| number(v, "/changeBytes").map(group))?;
    text += "\nConnecting through a service address: µs p50 / p99, and in brackets to a pod by its own address at the same time\n\n";
    text += &table(services, "Services", |v| {
        let service = pair(v, "/connectMicroseconds/p50", "/connectMicroseconds/p99")?;
        Some(format!("{service} ({})", pair(v, "/directMicroseconds/p50", "/directMicroseconds/p99")?))
    })?;
    text += "\nResident memory, MiB, at the end / the most with the programs it starts\n\n";
    text += &table(services, "Services", |v| pair(v, "/rssMiB", "/peakMiB"))?;
    text += "\nA change while a hundred others are made every second: milliseconds from the write being sent to packets, p50 / p99 \
             (share of a core used)\n\n";
    text += &table(services, "Services", |v| {
        let sent = "/underChanges/sentToPacketsMilliseconds";
        let latency = pair(v, &format!("{sent}/p50"), &format!("{sent}/p99"))?;
        Some(format!("{latency} ({})", short(number(v, "/underChanges/cpuShare")?)))
    })?;
    text += "\n![Full synchronisation over the number of Services](figures/services-sync.svg)\n\
             ![CPU time of a change over the number of Services](figures/services-change.svg)\n\
             ![Connect latency over the number of Services](figures/services-connect.svg)\n";
    Ok(text)
}

fn services_summary(services: &Value) -> Result<String> {
    let sizes = sizes(services);
    let mut text = format!("{}\n| nftables, Services of 10 endpoints |", taken(services));
    for size in &sizes {
        write!(text, " {} |", group(*size as f64))?;
    }
    writeln!(text, "\n|---|{}", "---|".repeat(sizes.len()))?;
    let rows = [
        ("full synchronisation: s to the first packet", "/secondsToFlow"),
        ("change of one endpoint: CPU ms", "/change/cpuMilliseconds"),
        ("change of one endpoint: bytes to the kernel", "/changeBytes"),
        ("connect p50, µs", "/connectMicroseconds/p50"),
        ("connect p99, µs", "/connectMicroseconds/p99"),
        ("memory, MiB", "/rssMiB"),
        ("100 changes/s: p50 to packets, ms", "/underChanges/sentToPacketsMilliseconds/p50"),
        ("100 changes/s: p99 to packets, ms", "/underChanges/sentToPacketsMilliseconds/p99"),
    ];
    for (name, path) in rows {
        write!(text, "| {name}: ours, kube-proxy's, ratio |")?;
        for size in &sizes {
            let (ours, theirs) = (number(at(services, OURS, *size), path), number(at(services, PEER, *size), path));
            let bound = at(services, PEER, *size)["gaveUpAfterSeconds"].as_f64();
            let cell = match (ours, theirs, bound) {
                (Some(ours), Some(theirs), _) => {
                    let ratio = if theirs > 0.0 { format!("**{}**", short(ours / theirs)) } else { "–".to_owned() };
                    format!("{}, {}, {ratio}", short(ours), short(theirs))
                }
                (Some(ours), None, Some(bound)) if path == "/secondsToFlow" => {
                    format!("{}, > {bound}, **< {}**", short(ours), short(ours / bound))
                }
                (Some(ours), None, _) => format!("{}, –, –", short(ours)),
                _ => "–".to_owned(),
            };
            write!(text, " {cell} |")?;
        }
        writeln!(text)?;
    }
    Ok(text)
}

fn plots(docs: &Path, services: &Value) -> Result<()> {
    let figures = docs.join("figures");
    std::fs::create_dir_all(&figures)?;
    let lines = |path: &str| -> Vec<Line> {
        let each = CASES.iter().map(|case| {
            let point =
                |size: u64| Some((size as f64, number(at(services, case.name, size), path).filter(|v| *v > 0.0)?));
            Line { name: case.name.to_owned(), points: sizes(services).into_iter().filter_map(point).collect() }
        });
        each.collect()
    };
    let all = [
        ("services-sync.svg", "Full synchronisation: start to first packet", "seconds", "/secondsToFlow"),
        ("services-change.svg", "A change of one endpoint: CPU time", "milliseconds", "/change/cpuMilliseconds"),
        (
            "services-connect.svg",
            "Connecting through a service address, p50",
            "microseconds",
            "/connectMicroseconds/p50",
        ),
    ];
    for (file, title, unit, path) in all {
        draw(&figures.join(file), title, unit, &lines(path))?;
    }
    Ok(())
}

const SERVERS: [&str; 5] = ["causeway", "CoreDNS", "CoreDNS, zone file", "unbound", "Knot"];

fn dns_page(dns: &Value) -> Result<String> {
    let mut text = format!("{}\n", taken(dns));
    writeln!(
        text,
        "{} Services ({} headless), {} pods; {} rounds; queries: {}.\n",
        group(dns["services"].as_f64().unwrap_or_default()),
        group(dns["headless"].as_f64().unwrap_or_default()),
        group(dns["pods"].as_f64().unwrap_or_default()),
        dns["rounds"],
        dns["mix"].as_str().unwrap_or("?")
    )?;
    writeln!(
        text,
        "| | queries/s | CPU µs a query (ratio to CoreDNS) | p50 / p99 at {}/s, µs | memory, MiB | s to ready | lost | answers |",
        dns["pacedPerSecond"]
    )?;
    writeln!(text, "|---|---|---|---|---|---|---|---|")?;
    let base = number(&dns["servers"]["CoreDNS"], "/cpuMicrosecondsPerQuery/median");
    for name in SERVERS {
        let v = &dns["servers"][name];
        if !v.is_object() {
            continue;
        }
        let of = |path: &str| number(v, path).map_or_else(|| "–".to_owned(), short);
        let cpu = number(v, "/cpuMicrosecondsPerQuery/median").unwrap_or_default();
        let ratio = base.map(|b| format!(" ({})", short(cpu / b))).unwrap_or_default();
        let codes = v["answers"].as_object().into_iter().flatten();
        let codes: Vec<String> =
            codes.map(|(code, share)| format!("{code} {:.1}%", share.as_f64().unwrap_or_default() * 100.0)).collect();
        let shown = if name == "causeway" { format!("**{name}**") } else { name.to_owned() };
        writeln!(
            text,
            "| {shown} | {} | {}{ratio} | {} / {} | {} | {} | {} | {} |",
            of("/queriesPerSecond/median"),
            short(cpu),
            of("/p50Microseconds/median"),
            of("/p99Microseconds/median"),
            of("/rssMiB"),
            of("/secondsToReady"),
            v["lost"],
            codes.join(", ")
        )?;
    }
    text += "\nFrom an EndpointSlice being sent to the API to the changed answer, while a hundred others change every second, ms:\n\n";
    text += "| | p50 | p99 | changes/s |\n|---|---|---|---|\n";
    for name in SERVERS {
        let v = &dns["servers"][name]["underChanges"];
        if let Some(cells) = pair(v, "/sentToAnswerMilliseconds/p50", "/sentToAnswerMilliseconds/p99") {
            writeln!(text, "| {name} | {} | {} |", cells.replace(" / ", " | "), v["changesPerSecond"])?;
        }
    }
    let versions: Vec<String> = SERVERS
        .iter()
        .filter_map(|name| {
            Some(format!("{name}: {}", dns["servers"][name]["version"].as_str().filter(|v| !v.is_empty())?))
        })
        .collect();
    writeln!(text, "\nVersions: {}.", versions.join("; "))?;
    Ok(text)
}

fn dns_summary(dns: &Value) -> Result<String> {
    let mut text = taken(dns);
    text += "\n| 10,000 Services, 100,000 pods | queries/s | CPU µs a query | p99, µs | memory, MiB | change to answer p50 / p99, ms |\n\
             |---|---|---|---|---|---|\n";
    for name in SERVERS {
        let v = &dns["servers"][name];
        let of = |path: &str| number(v, path).map_or_else(|| "–".to_owned(), short);
        if v.is_object() {
            let sent = "/underChanges/sentToAnswerMilliseconds";
            let change = pair(v, &format!("{sent}/p50"), &format!("{sent}/p99")).unwrap_or_else(|| "–".to_owned());
            writeln!(
                text,
                "| {name} | {} | {} | {} | {} | {change} |",
                of("/queriesPerSecond/median"),
                of("/cpuMicrosecondsPerQuery/median"),
                of("/p99Microseconds/median"),
                of("/rssMiB")
            )?;
        }
    }
    Ok(text)
}
