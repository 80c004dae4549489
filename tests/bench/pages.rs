//! The tables and plots of `docs/BENCHMARKS.md` that come from here. In: results. Out: what is between the marks
//! `<!-- bench NAME -->` and `<!-- end of NAME -->`, and `docs/bench/*.svg`.

use crate::ingress::NAMES;
use crate::scenario::ALL;
use anyhow::{Context, Result, bail};
use causeway_bench_net::colours::COLOURS;
use causeway_bench_net::page::{group, replace, short, taken};
use causeway_bench_net::report::Report;
use plotters::prelude::*;
use serde_json::Value;
use std::fmt::Write;
use std::path::Path;

/// Writes all of it, as far as there are results.
pub fn write(docs: &Path, report: &Report, parts: &[String]) -> Result<()> {
    let file = docs.join("BENCHMARKS.md");
    std::fs::create_dir_all(docs.join("bench"))?;
    for part in parts {
        let result = report.part(part);
        if result.is_null() {
            println!("there are no results of {part}; its table is left alone");
            continue;
        }
        let text = match part.as_str() {
            "ingress" => ingress(docs, result)?,
            "websockets" => websockets(result)?,
            "routes" => routes(result)?,
            "programming" => programming(result)?,
            "scheduling" => scheduling(result)?,
            "startup" => startup(result)?,
            _ => bail!("no such part: {part}"),
        };
        replace(&file, &format!("bench {part}"), &format!("{}\n{text}", taken(result)))?;
    }
    Ok(())
}

fn number(value: &Value) -> Option<f64> {
    value.as_f64()
}

/// A figure, or that there is none.
fn cell(value: &Value) -> String {
    number(value).map_or_else(|| "–".to_owned(), short)
}

/// The middle one and the range of several.
fn spread(of: &Value, unit: &str) -> String {
    format!("{}{unit} ({}–{})", cell(&of["median"]), cell(&of["min"]), cell(&of["max"]))
}

fn ingress(docs: &Path, result: &Value) -> Result<String> {
    let mut page = String::new();
    let versions = NAMES.iter().filter_map(|n| Some(format!("{n}: {}", result["versions"][n].as_str()?)));
    writeln!(page, "{}. {} rounds.\n", versions.collect::<Vec<_>>().join(", "), result["rounds"])?;
    let titles: Vec<_> = ALL.iter().map(|s| s.title()).collect();
    let mut table = |title: &str, cell: &dyn Fn(&Value) -> Option<String>| -> Result<()> {
        writeln!(page, "{title}\n\n| | {} |\n|---|{}", titles.join(" | "), "---|".repeat(titles.len()))?;
        for name in NAMES {
            let cells =
                ALL.iter().map(|s| cell(&result["scenarios"][s.name()][name]).unwrap_or_else(|| "–".to_owned()));
            let bold = if name == "causeway" { "**" } else { "" };
            writeln!(page, "| {bold}{name}{bold} | {} |", cells.collect::<Vec<_>>().join(" | "))?;
        }
        writeln!(page)?;
        Ok(())
    };
    let rates: Vec<_> = ALL.iter().map(|s| format!("{:.0}", s.rate())).collect();
    let fixed = format!("at a fixed rate ({} a second)", rates.join(", "));
    let loads = [("cpuMicroseconds", "under as much load as goes"), ("cpuMicrosecondsAtFixedRate", &fixed)];
    for (figure, load) in loads {
        table(&format!("CPU time of the proxy a request {load}, µs, and ratio to nginx"), &|of| {
            let cpu = &of[figure];
            Some(format!("{} (**{}**)", short(number(&cpu["median"])?), short(number(&cpu["toNginx"])?)))
        })?;
    }
    table("Requests a second, ratio to nginx", &|of| number(&of["requestsPerSecond"]["toNginx"]).map(short))?;
    table(&format!("p50 / p99 / p99.9 {fixed}, ms"), &|of| {
        let ms = |figure: &str| Some(short(number(&of[figure]["median"])? / 1e3));
        Some(format!("{} / {} / {}", ms("p50Microseconds")?, ms("p99Microseconds")?, ms("p99.9Microseconds")?))
    })?;
    table("Memory (RSS) after it, MiB", &|of| number(&of["rssMiB"]["median"]).map(short))?;
    writeln!(page, "![CPU time a request, ratio to nginx](bench/ingress.svg)")?;
    bars(&docs.join("bench/ingress.svg"), result).context("drawing bench/ingress.svg")?;
    Ok(page)
}

fn scheduling(result: &Value) -> Result<String> {
    let mut page = String::from("| | pods a second | CPU of the whole process a pod |\n|---|---|---|\n");
    for nodes in crate::scheduling::NODES {
        let of = &result[format!("{nodes}Nodes")];
        let (rate, cpu) = (spread(&of["podsPerSecond"], ""), spread(&of["cpuMicrosPerPod"], " µs"));
        writeln!(page, "| {nodes} nodes | {rate} | {cpu} |")?;
    }
    Ok(page)
}

fn programming(result: &Value) -> Result<String> {
    let mut page = String::from(
        "| | sent: p50 | p99 | acknowledged: p50 | p99 | the write: p50 | p99 | probes without answer |\n|---|---|---|---|---|---|---|---|\n",
    );
    for (name, title) in [
        ("serviceAddress", "service address (nftables), TCP from the node"),
        ("dns", "cluster DNS, headless Service"),
        ("ingress", "ingress"),
        (
            "podReadyToServiceAddress",
            "pod's readiness gate → kubelet → EndpointSlice controller → service address: ready",
        ),
        ("podUnreadyToServiceAddress", "the same: not ready"),
    ] {
        let of = &result[name];
        let times = ["sinceSentMilliseconds", "sinceAcknowledgedMilliseconds", "writeMilliseconds"]
            .iter()
            .flat_map(|kind| ["p50", "p99"].map(|figure| cell(&of[kind][figure])));
        let times = times.collect::<Vec<_>>().join(" | ");
        writeln!(page, "| {title} | {times} | {} |", of["probesWithoutAnswer"])?;
    }
    Ok(page)
}

fn startup(result: &Value) -> Result<String> {
    let mut page = format!("Median (range) of {} starts.\n\n| | |\n|---|---|\n", result["rounds"]);
    for (name, title, unit) in [
        ("secondsToApiReady", "`causeway up --detach` to the API ready", " s"),
        ("secondsToEverythingReady", "to everything ready (1 node)", " s"),
        ("secondsToLoadTheImage", "an image of 2 MB loaded", " s"),
        ("secondsFromApplyToFirst200", "from the deployment applied to the first 200 through the ingress", " s"),
        ("secondsFromUpToFirst200", "from `up` to the first 200", " s"),
        ("idleMiB", "memory of the whole server process after 15 s idle", " MiB"),
        ("idleAnonymousMiB", "of that, without files", " MiB"),
        ("containerdIdleMiB", "its containerd", " MiB"),
        ("shimsIdleMiB", "the pod's shim", " MiB"),
    ] {
        writeln!(page, "| {title} | {} |", spread(&result[name], unit))?;
    }
    Ok(page)
}

fn websockets(result: &Value) -> Result<String> {
    let mut page = String::from(
        "| | WebSocket, idle, KiB each | WebSocket, active, KiB each | HTTP/1.1, kept, KiB each |\n|---|---|---|---|\n",
    );
    for name in NAMES {
        let of = &result["proxies"][name];
        if let [Some(idle), Some(active), Some(kept)] = ["idleKiB", "activeKiB", "keptKiB"].map(|f| number(&of[f])) {
            writeln!(page, "| {name} | {} | {} | {} |", short(idle), short(active), short(kept))?;
        }
    }
    Ok(page)
}

fn routes(result: &Value) -> Result<String> {
    let mut page = String::from(
        "| routes | requests/s, ratio to 10 routes (range of rounds) | a change is followed, ms: p50 / p99 | the table alone, ms: p50 / p99 | bytes a route, objects included |\n|---|---|---|---|---|\n",
    );
    let pair = |of: &Value| format!("{} / {}", cell(&of["p50"]), cell(&of["p99"]));
    let times = |of: &Value| format!("{} | {}", pair(&of["followedMilliseconds"]), pair(&of["tableMilliseconds"]));
    for size in ["10", "1000", "10000", "100000"] {
        let (of, rate) = (&result[size], &result[size]["requestsPerSecond"]);
        let rate = format!("{} ({}–{})", cell(&of["toFewest"]), cell(&rate["min"]), cell(&rate["max"]));
        let bytes = if size == "10" { cell(&Value::Null) } else { cell(&of["bytesARoute"]) };
        writeln!(page, "| {} | {rate} | {} | {bytes} |", group(size.parse()?), times(of))?;
    }
    for size in ["1000", "10000"] {
        let of = times(&result["httpRoutes"][size]);
        writeln!(page, "| {} HTTPRoutes of a Gateway | | {of} | |", group(size.parse()?))?;
    }
    let many = &result["manyChanges"];
    let count = |name: &str| group(number(&many[name]).unwrap_or_default());
    writeln!(
        page,
        "\n{} consecutive changes with {} routes: {} of {} requests lost.\n\n![from a change of one route to traffic that follows it](bench/routes.svg)",
        count("changes"),
        count("routes"),
        count("lost"),
        count("requests")
    )?;
    Ok(page)
}

/// Bars of CPU time a request by kind of requests, ratio to nginx.
fn bars(file: &Path, result: &Value) -> Result<()> {
    let of = |scenario: &str, name: &str| number(&result["scenarios"][scenario][name]["cpuMicroseconds"]["toNginx"]);
    let most = ALL.iter().flat_map(|s| NAMES.iter().filter_map(|n| of(s.name(), n))).fold(1.0, f64::max);
    let root = SVGBackend::new(file, (900, 420)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption("CPU time of the proxy a request, ratio to nginx", ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(34)
        .y_label_area_size(48)
        .build_cartesian_2d(0.0..ALL.len() as f64, 0.0..most * 1.15)?;
    let title = |x: &f64| ALL.get(*x as usize).filter(|_| x.fract() == 0.5).map_or("", |s| s.title()).to_owned();
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(ALL.len() * 2 + 1)
        .x_label_formatter(&title)
        .light_line_style(BLACK.mix(0.06))
        .draw()?;
    for (place, name) in NAMES.iter().enumerate() {
        let (colour, width) = (COLOURS[place], 0.8 / NAMES.len() as f64);
        let drawn = ALL.iter().enumerate().filter_map(|(at, scenario)| {
            let left = at as f64 + 0.1 + place as f64 * width;
            Some(Rectangle::new([(left, 0.0), (left + width * 0.9, of(scenario.name(), name)?)], colour.filled()))
        });
        chart
            .draw_series(drawn)?
            .label(*name)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], colour.filled()));
    }
    let nginx = LineSeries::new([(0.0, 1.0), (ALL.len() as f64, 1.0)], BLACK.mix(0.4));
    chart.draw_series(nginx)?;
    let labels = chart.configure_series_labels().border_style(BLACK.mix(0.2)).background_style(WHITE.mix(0.8)).draw();
    labels?;
    root.present()?;
    Ok(())
}
