//! What clients do in the comparison of proxies: the kinds of requests, and the programs that send as many as go.

use crate::load::{self, CONNECTIONS, STREAMS};
use crate::process::pin;
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::Command;

/// Where a proxy listens.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    /// HTTP/1.1 in clear text.
    pub http: u16,
    /// TLS, HTTP/1.1 and HTTP/2.
    pub https: u16,
    /// HTTP/2 in clear text, to a backend that speaks gRPC.
    pub grpc: u16,
}

/// A kind of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scenario {
    /// Over kept connections, answers of 1 KiB.
    Keep,
    /// The same, answers of 100 KiB.
    Large,
    /// A connection for each request.
    Fresh,
    /// Kept connections with TLS.
    Https,
    /// HTTP/2 with TLS.
    Http2,
    /// Unary calls.
    Grpc,
}

/// All of them.
pub const ALL: [Scenario; 6] =
    [Scenario::Keep, Scenario::Large, Scenario::Fresh, Scenario::Https, Scenario::Http2, Scenario::Grpc];

impl Scenario {
    /// In results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Keep => "http1",
            Self::Large => "http1-100KiB",
            Self::Fresh => "new-connection",
            Self::Https => "https",
            Self::Http2 => "http2",
            Self::Grpc => "grpc",
        }
    }

    /// For readers.
    pub fn title(self) -> &'static str {
        match self {
            Self::Keep => "HTTP/1.1, 1 KiB",
            Self::Large => "HTTP/1.1, 100 KiB",
            Self::Fresh => "new connection each",
            Self::Https => "HTTPS, 1 KiB",
            Self::Http2 => "HTTP/2 (TLS), 1 KiB",
            Self::Grpc => "gRPC (h2c)",
        }
    }

    /// Requests a second at which latencies are taken, of all proxies alike: some 60% of the most that the slowest of them
    /// can do, and no more than load and backend can do on the core that they share.
    pub fn rate(self) -> f64 {
        match self {
            Self::Keep | Self::Grpc => 4000.0,
            Self::Https | Self::Http2 => 3000.0,
            Self::Fresh => 1500.0,
            Self::Large => 1000.0,
        }
    }

    fn url(self, ports: Ports) -> String {
        match self {
            Self::Keep | Self::Fresh => format!("http://127.0.0.1:{}/", ports.http),
            Self::Large => format!("http://127.0.0.1:{}/large", ports.http),
            Self::Https | Self::Http2 => format!("https://127.0.0.1:{}/", ports.https),
            Self::Grpc => format!("http://127.0.0.1:{}/bench.Echo/Call", ports.grpc),
        }
    }

    /// The arguments of `bench load`.
    pub fn at_rate(self, ports: Ports, seconds: u64) -> [String; 4] {
        let how = match self {
            Self::Keep | Self::Large | Self::Https => "http1",
            Self::Fresh => "fresh",
            Self::Http2 => "http2",
            Self::Grpc => "grpc",
        };
        [
            self.url(ports).replace("127.0.0.1", "bench.localhost"),
            format!("{:.0}", self.rate()),
            seconds.to_string(),
            how.to_owned(),
        ]
    }

    /// As many requests as go, from a core: how many there were, and how many a second.
    pub fn saturate(self, core: usize, ports: Ports, seconds: u64, dir: &Path) -> Result<(f64, f64)> {
        match self {
            Self::Http2 | Self::Grpc => self.h2load(core, ports, seconds, dir),
            _ => self.wrk(core, ports, seconds),
        }
    }

    fn wrk(self, core: usize, ports: Ports, seconds: u64) -> Result<(f64, f64)> {
        let mut command = Command::new("wrk");
        command.args(["-t1", &format!("-c{CONNECTIONS}"), &format!("-d{seconds}s"), "-H", "Host: bench.localhost"]);
        if self == Self::Fresh {
            command.args(["-H", "Connection: close"]);
        }
        let said = causeway_tests::run(&mut pin(core, command.arg(self.url(ports))))?.ok()?;
        if said.contains("Non-2xx") || said.contains("Socket errors") {
            bail!("not every request was answered with 200:\n{said}");
        }
        let word = |line: Option<&str>, at: usize| line.and_then(|l| l.split_whitespace().nth(at)?.parse::<f64>().ok());
        let requests = word(said.lines().find(|l| l.contains("requests in")), 0);
        let rate = word(said.lines().find(|l| l.starts_with("Requests/sec:")), 1);
        requests.zip(rate).with_context(|| format!("wrk said: {said}"))
    }

    fn h2load(self, core: usize, ports: Ports, seconds: u64, dir: &Path) -> Result<(f64, f64)> {
        let mut command = Command::new("h2load");
        command.args(["-t1", &format!("-c{}", CONNECTIONS / STREAMS), &format!("-m{STREAMS}")]);
        command.args([&format!("-D{seconds}"), "-H", ":authority: bench.localhost"]);
        if self == Self::Grpc {
            let message = dir.join("message");
            std::fs::write(&message, load::message())?;
            command.args(["-H", "content-type: application/grpc", "-H", "te: trailers", "-d"]).arg(message);
        }
        let said = causeway_tests::run(&mut pin(core, command.arg(self.url(ports))))?.ok()?;
        // requests: 1 total, 1 started, 1 done, 1 succeeded, 0 failed, 0 errored, 0 timeout
        let line = said.lines().find_map(|l| l.strip_prefix("requests: "));
        let field = |name: &str| -> Option<f64> {
            line?.split(", ").find_map(|part| part.strip_suffix(name)?.trim().parse().ok())
        };
        let rate = said.lines().find(|l| l.starts_with("finished in")).and_then(|l| l.split(", ").nth(1));
        let rate = rate.and_then(|r| r.strip_suffix(" req/s")?.parse().ok());
        let (Some(done), Some(failed), Some(rate)) = (field("succeeded"), field("failed"), rate) else {
            bail!("h2load said: {said}");
        };
        if failed > 0.0 || done == 0.0 {
            bail!("not every request was answered with 200:\n{said}");
        }
        Ok((done, rate))
    }
}
