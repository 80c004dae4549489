//! `causeway bench URL`: puts load on a server and says how long it took to answer. In: the command line. Out: a report
//! on standard output, and files for programs and people who ask for them; exit code 1 when nothing was answered.

use anyhow::{Context, Result, bail};
use causeway_load::report::time;
use causeway_load::{Plan, Progress, Report, plot};
use indicatif::{ProgressBar, ProgressStyle};
use std::fs;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// `causeway bench`.
#[derive(Debug, Clone, clap::Args)]
pub struct BenchArgs {
    /// What to ask: http://… or https://…; names below .localhost are this machine.
    url: String,
    /// Requests a second, sent whether or not earlier ones are answered; latencies count from when each was due. Without
    /// it every connection asks again as soon as it is answered, which shows the most a server can take.
    #[arg(long, short)]
    rate: Option<f64>,
    /// For how long, such as 30s or 2m.
    #[arg(long, short, default_value = "10s", value_parser = duration)]
    duration: Duration,
    /// Before that, requests that are not counted.
    #[arg(long, default_value = "0s", value_parser = duration)]
    warmup: Duration,
    /// Connections.
    #[arg(long, short, default_value_t = 64)]
    connections: usize,
    /// Speak HTTP/2 (without TLS: with prior knowledge).
    #[arg(long)]
    http2: bool,
    /// Requests at a time on an HTTP/2 connection.
    #[arg(long, default_value_t = 1)]
    streams: usize,
    /// A new connection for every request.
    #[arg(long)]
    new_connection: bool,
    /// The method.
    #[arg(long, short = 'X', default_value = "GET")]
    method: http::Method,
    /// A further header, "Name: value"; can be given again.
    #[arg(long = "header", short = 'H', value_name = "NAME: VALUE")]
    headers: Vec<String>,
    /// The body of every request.
    #[arg(long, conflicts_with = "body_file")]
    body: Option<String>,
    /// A file with the body of every request.
    #[arg(long, value_name = "FILE")]
    body_file: Option<PathBuf>,
    /// Connect there, whatever the URL's host.
    #[arg(long, value_name = "ADDRESS:PORT")]
    connect_to: Option<SocketAddr>,
    /// From when a request is due until it has failed.
    #[arg(long, default_value = "10s", value_parser = duration)]
    timeout: Duration,
    /// Believe any certificate.
    #[arg(long, short = 'k')]
    insecure: bool,
    /// Believe the authorities of this file (PEM), and no others.
    #[arg(long, value_name = "FILE", conflicts_with = "insecure")]
    ca: Option<PathBuf>,
    /// Write the result as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the result as SVG.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// `250ms`, `10s`, `2m`, `1h`; a plain number is seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        other => return Err(format!("{other:?} is no unit; use ms, s, m or h")),
    };
    let number: f64 = digits.parse().map_err(|_| format!("{text:?} is no time; write 500ms, 10s or 2m"))?;
    Duration::try_from_secs_f64(number * unit).map_err(|e| e.to_string())
}

/// Runs the command.
pub fn run(args: &BenchArgs) -> Result<()> {
    let plan = plan(args)?;
    plan.check()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let bar = std::io::stderr().is_terminal().then(|| bar(&plan));
    let report = runtime.block_on(async {
        tokio::select! {
            report = causeway_load::run(plan, |progress| show(bar.as_ref(), &progress)) => report,
            interrupted = tokio::signal::ctrl_c() => {
                interrupted?;
                bail!("interrupted")
            }
        }
    });
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    let report = report?;
    print!("{report}");
    write(args, &report)?;
    if report.stats.answered() == 0 {
        bail!("not one request was answered");
    }
    Ok(())
}

fn plan(args: &BenchArgs) -> Result<Plan> {
    let body = match (&args.body, &args.body_file) {
        (Some(text), _) => text.clone().into_bytes(),
        (None, Some(path)) => fs::read(path).with_context(|| format!("reading --body-file {}", path.display()))?,
        (None, None) => Vec::new(),
    };
    Ok(Plan {
        method: args.method.clone(),
        headers: args.headers.iter().map(|h| Plan::header(h)).collect::<Result<_>>()?,
        body: body.into(),
        rate: args.rate,
        duration: args.duration,
        warmup: args.warmup,
        connections: args.connections,
        http2: args.http2,
        streams: args.streams,
        fresh: args.new_connection,
        connect_to: args.connect_to,
        timeout: args.timeout,
        insecure: args.insecure,
        ca: args.ca.clone(),
        ..Plan::new(&args.url)?
    })
}

fn bar(plan: &Plan) -> ProgressBar {
    let bar = ProgressBar::new(1000);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {msg}") {
        bar.set_style(style);
    }
    bar.set_message(format!("connecting to {}", plan.url));
    bar
}

/// Live, for people who watch.
fn show(bar: Option<&ProgressBar>, progress: &Progress) {
    let Some(bar) = bar else { return };
    bar.set_position((progress.part * 1000.0) as u64);
    bar.set_message(if progress.is_warmup {
        "warming up".to_owned()
    } else {
        format!(
            "{:.0}/s  p50 {}  p99 {}  failed {}",
            progress.rate,
            time(progress.p50),
            time(progress.p99),
            progress.failed
        )
    });
}

fn write(args: &BenchArgs, report: &Report) -> Result<()> {
    if let Some(path) = &args.json {
        let text = format!("{:#}\n", report.json());
        fs::write(path, text).with_context(|| format!("writing --json {}", path.display()))?;
    }
    if let Some(path) = &args.svg {
        fs::write(path, plot::svg(report)?).with_context(|| format!("writing --svg {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (text, want) in [("10s", 10_000), ("250ms", 250), ("2m", 120_000), ("1h", 3_600_000), ("1.5", 1500)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(want)), "{text}");
        }
        for bad in ["", "x", "10d", "-1s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
