//! The ingress with few and with very many routes: what a request costs, how soon traffic follows a change, what a route
//! weighs, and whether a thousand changes lose a request. In: sizes. Out: figures, and `docs/bench/routes.svg`.
//!
//! Each size has a data plane of its own in this process, fed with objects directly as the watches would. Requests are
//! wrk's, from another process; a change moves one Ingress to another backend, and a client that asks without pause sees
//! when that is so.

use crate::Options;
use crate::servers;
use crate::stats::{latency, median, round, spread};
use anyhow::{Context, Result, bail, ensure};
use causeway_proxy::Limits;
use causeway_proxy::config::model::Settings;
use causeway_proxy::config::view::{Update, View};
use causeway_proxy::config::{Dirt, Planner, Shared};
use causeway_proxy::gateway::view::Update as GatewayUpdate;
use causeway_proxy::traffic::listen;
use causeway_tests::cluster::free_port;
use kube::runtime::watcher::Event;
use plotters::prelude::*;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

const SIZES: [usize; 4] = [10, 1_000, 10_000, 100_000];
/// The same with HTTPRoutes of one Gateway, of which only changes are measured.
const HTTP_ROUTES: [usize; 2] = [1_000, 10_000];
/// Changes that are timed at each size, and those under which no request may be lost.
const CHANGES: usize = 200;
const MANY_CHANGES: usize = 1_000;
/// The size with which that is tried.
const MANY_AT: usize = 10_000;
const WRK_CONNECTIONS: usize = 32;

/// Which objects make the routes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ingress,
    HttpRoute,
}

/// A data plane with so many routes.
struct Plane {
    kind: Kind,
    size: usize,
    at: SocketAddr,
    view: View,
    planner: Planner,
    /// What a route weighs, in bytes, the objects that it was made from included.
    weight: f64,
    stop: CancellationToken,
    _runtime: tokio::runtime::Runtime,
}

impl Drop for Plane {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn host(route: usize) -> String {
    format!("host-{route}.example.org")
}

fn object(kind: Kind, route: usize, service: &str) -> Result<Update> {
    let name = format!("route-{route}");
    if kind == Kind::Ingress {
        return servers::rule(&name, &host(route), service);
    }
    let object = json!({
        "metadata": {"name": name, "namespace": "bench", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"parentRefs": [{"name": "g"}], "hostnames": [host(route)], "rules": [
            {"backendRefs": [{"name": service, "port": 80}]}]}});
    Ok(gateway(GatewayUpdate::Http(Event::Apply(serde_json::from_value(object)?))))
}

fn gateway(update: GatewayUpdate) -> Update {
    Update::Gateway(Box::new(update))
}

/// The Gateway of all HTTPRoutes, and its class.
fn parents() -> Result<[Update; 2]> {
    let class = json!({"metadata": {"name": "causeway"},
        "spec": {"controllerName": causeway_proxy::gateway::CONTROLLER}});
    let of_routes = json!({"metadata": {"name": "g", "namespace": "bench"}, "spec": {
        "gatewayClassName": "causeway", "listeners": [{"name": "http", "port": 80, "protocol": "HTTP"}]}});
    Ok([
        gateway(GatewayUpdate::Class(Event::Apply(serde_json::from_value(class)?))),
        gateway(GatewayUpdate::Gateway(Box::new(Event::Apply(serde_json::from_value(of_routes)?)))),
    ])
}

fn resident() -> Result<f64> {
    crate::process::memory(i32::try_from(std::process::id())?, "VmRSS").map(|mib| mib * 1048576.0)
}

impl Plane {
    fn new(kind: Kind, size: usize, backends: [SocketAddr; 2]) -> Result<Self> {
        let before = resident()?;
        let shared = Arc::new(Shared::new()?);
        let settings = Settings { class: "causeway".to_owned(), default_class: true };
        let (mut planner, _reports) = Planner::new(Arc::clone(&shared), settings);
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let socket = TcpListener::bind("127.0.0.1:0")?;
        let (at, stop) = (socket.local_addr()?, CancellationToken::new());
        let mut view = View::default();
        let mut dirt = Dirt::default();
        for (name, backend) in ["a", "b"].into_iter().zip(backends) {
            for update in servers::service(name, backend, None)? {
                dirt.merge(view.handle(update));
            }
        }
        if kind == Kind::HttpRoute {
            planner.with_gateways(causeway_proxy::gateway::Settings { node: "n".to_owned(), address: loopback });
            for update in parents()? {
                dirt.merge(view.handle(update));
            }
        }
        for route in 0..size {
            dirt.merge(view.handle(object(kind, route, "a")?));
        }
        planner.apply(&view, &dirt);
        let weight = (resident()? - before) / size as f64;
        let limits = Arc::new(Limits::default());
        let gateways = (kind == Kind::HttpRoute).then(|| (loopback, Arc::default()));
        runtime.spawn(listen::serve(Arc::clone(&shared), limits, vec![socket], Vec::new(), gateways, stop.clone()));
        let mut this = Self { kind, size, at, view, planner, weight, stop, _runtime: runtime };
        if kind == Kind::HttpRoute {
            let mut opened = shared.opened.subscribe();
            let open = opened.wait_for(|all| !all.is_empty());
            let open = this._runtime.block_on(async { tokio::time::timeout(Duration::from_secs(10), open).await });
            this.at = *open.context("the Gateway's socket was not opened")??.values().next().context("no socket")?;
        }
        Ok(this)
    }

    /// Moves a route; gives the time that the table took.
    fn change(&mut self, route: usize, service: &str) -> Result<Duration> {
        let begin = Instant::now();
        let dirt = self.view.handle(object(self.kind, route, service)?);
        self.planner.apply(&self.view, &dirt);
        Ok(begin.elapsed())
    }

    fn requests_per_second(&self, seconds: u64) -> Result<f64> {
        let mut wrk = Command::new("wrk");
        wrk.args(["-t1", &format!("-c{WRK_CONNECTIONS}"), &format!("-d{seconds}s")]);
        wrk.args(["-H", &format!("Host: {}", host(self.size / 2)), &format!("http://{}/", self.at)]);
        let said = causeway_tests::run(&mut wrk)?.ok()?;
        ensure!(!said.contains("Non-2xx") && !said.contains("Socket errors"), "{said}");
        let rate = said.lines().find_map(|l| l.trim().strip_prefix("Requests/sec:")).context("wrk said no rate")?;
        Ok(rate.trim().parse()?)
    }
}

/// Answers every request on a connection with one letter.
fn backend(letter: &'static str) -> Result<SocketAddr> {
    let socket = TcpListener::bind(("127.0.0.1", free_port()?))?;
    let at = socket.local_addr()?;
    std::thread::spawn(move || {
        for stream in socket.incoming().flatten() {
            std::thread::spawn(move || {
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{letter}");
                let (mut stream, mut buffer) = (stream, [0; 4096]);
                // A request without a body is one packet here.
                while let Ok(1..) = stream.read(&mut buffer) {
                    if stream.write_all(answer.as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    Ok(at)
}

/// A client that asks for one route over a kept connection.
struct Asker(TcpStream, String);

impl Asker {
    fn new(at: SocketAddr, route: usize) -> Result<Self> {
        let stream = TcpStream::connect(at)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        Ok(Self(stream, format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", host(route))))
    }

    /// The letter of who answers.
    fn ask(&mut self) -> Result<char> {
        self.0.write_all(self.1.as_bytes())?;
        let (mut buffer, mut filled) = ([0; 4096], 0);
        loop {
            let n = self.0.read(&mut buffer[filled..])?;
            if n == 0 {
                bail!("the connection ended");
            }
            filled += n;
            let text = String::from_utf8_lossy(&buffer[..filled]);
            if let Some((head, body)) = text.split_once("\r\n\r\n")
                && let Some(letter) = body.chars().next()
            {
                ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
                return Ok(letter);
            }
        }
    }
}

/// Milliseconds from a change to the first answer by it, and those of the table alone.
fn changes(plane: &mut Plane) -> Result<(Vec<f64>, Vec<f64>)> {
    let route = plane.size / 2;
    let mut asker = Asker::new(plane.at, route)?;
    ensure!(asker.ask()? == 'a');
    let (mut followed, mut tables) = (Vec::new(), Vec::new());
    for number in 0..CHANGES {
        let (service, letter) = if number % 2 == 0 { ("b", 'b') } else { ("a", 'a') };
        let begin = Instant::now();
        tables.push(plane.change(route, service)?.as_secs_f64() * 1e3);
        while asker.ask()? != letter {}
        followed.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    Ok((followed, tables))
}

/// Requests made, and lost, while one change follows another.
fn many_changes(plane: &mut Plane) -> Result<(usize, usize)> {
    let (route, at, stop) = (plane.size / 2, plane.at, AtomicBool::new(false));
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| -> Result<(usize, usize)> {
            let (mut asked, mut lost, mut asker) = (0, 0, Asker::new(at, route)?);
            while !stop.load(Ordering::Relaxed) {
                asked += 1;
                if asker.ask().is_err() {
                    lost += 1;
                    asker = Asker::new(at, route)?;
                }
            }
            Ok((asked, lost))
        });
        // Slow enough for requests between any two of them.
        let changed = (0..MANY_CHANGES).try_for_each(|n| {
            std::thread::sleep(Duration::from_millis(2));
            plane.change(route, ["b", "a"][n % 2]).map(drop)
        });
        stop.store(true, Ordering::Relaxed);
        let counted = asking.join().map_err(|_| anyhow::anyhow!("the client panicked"))?;
        changed.and(counted)
    })
}

/// Measures and draws.
pub fn run(options: &Options) -> Result<Value> {
    let backends = [backend("a")?, backend("b")?];
    let mut planes = SIZES.iter().map(|n| Plane::new(Kind::Ingress, *n, backends)).collect::<Result<Vec<_>>>()?;
    let mut rates = vec![Vec::new(); SIZES.len()];
    for plane in &planes {
        plane.requests_per_second(1)?;
    }
    for number in 0..options.rounds {
        for i in 0..planes.len() {
            let i = (i + number) % planes.len();
            rates[i].push(planes[i].requests_per_second(options.seconds.min(3))?);
        }
    }
    let few = median(&rates[0]);
    let mut result = json!({"rounds": options.rounds, "changes": CHANGES, "wrkConnections": WRK_CONNECTIONS});
    let mut drawn = Vec::new();
    for (plane, rates) in planes.iter_mut().zip(&rates) {
        let (followed, tables) = changes(plane)?;
        let ratio = median(rates) / few;
        println!(
            "    {:>7} routes: {ratio:.3} of the requests/s with {}, a change is followed in {:.2} ms (p99 {:.2}), {:.0} bytes a route",
            plane.size,
            SIZES[0],
            median(&followed),
            crate::stats::percentile(&followed, 0.99),
            plane.weight
        );
        drawn.push((
            plane.size as f64,
            crate::stats::percentile(&followed, 0.5),
            crate::stats::percentile(&followed, 0.99),
        ));
        result[plane.size.to_string()] = json!({
            "requestsPerSecond": spread(rates), "toFewest": round(ratio), "followedMilliseconds": latency(&followed),
            "tableMilliseconds": latency(&tables), "bytesARoute": plane.weight.round(),
        });
    }
    for size in HTTP_ROUTES {
        let (followed, tables) = changes(&mut Plane::new(Kind::HttpRoute, size, backends)?)?;
        let (p50, p99) = (median(&followed), crate::stats::percentile(&followed, 0.99));
        println!("    {size:>7} HTTPRoutes: a change is followed in {p50:.2} ms (p99 {p99:.2})");
        result["httpRoutes"][size.to_string()] =
            json!({"followedMilliseconds": latency(&followed), "tableMilliseconds": latency(&tables)});
    }
    let plane = planes.iter_mut().find(|p| p.size == MANY_AT).context("no such size")?;
    let (asked, lost) = many_changes(plane)?;
    println!("    {MANY_CHANGES} changes with {MANY_AT} routes: {lost} of {asked} requests lost");
    result["manyChanges"] = json!({"routes": MANY_AT, "changes": MANY_CHANGES, "requests": asked, "lost": lost});
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/bench");
    std::fs::create_dir_all(&folder)?;
    draw(&folder.join("routes.svg"), &drawn)?;
    Ok(result)
}

/// From a change to traffic that follows it, by the number of routes.
fn draw(file: &Path, points: &[(f64, f64, f64)]) -> Result<()> {
    let root = SVGBackend::new(file, (720, 400)).into_drawing_area();
    root.fill(&WHITE)?;
    let most = points.iter().map(|p| p.2).fold(1.0, f64::max) * 1.5;
    let least = points.iter().map(|p| p.1).fold(f64::MAX, f64::min) * 0.7;
    let mut chart = ChartBuilder::on(&root)
        .margin(14)
        .caption("from a change of one route to traffic that follows it", ("sans-serif", 16))
        .x_label_area_size(40)
        .y_label_area_size(64)
        .build_cartesian_2d((10.0..100_000.0).log_scale(), (least..most).log_scale())?;
    chart.configure_mesh().x_desc("routes").y_desc("milliseconds").light_line_style(BLACK.mix(0.06)).draw()?;
    let half: Vec<(f64, f64)> = points.iter().map(|p| (p.0, p.1)).collect();
    let nearly_all: Vec<(f64, f64)> = points.iter().map(|p| (p.0, p.2)).collect();
    let series = [("p50", RGBColor(33, 102, 172), half), ("p99", RGBColor(178, 24, 43), nearly_all)];
    for (name, colour, points) in series {
        let line = LineSeries::new(points, colour.stroke_width(2)).point_size(3);
        let drawn = chart.draw_series(line)?;
        drawn.label(name).legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    chart.configure_series_labels().border_style(BLACK.mix(0.2)).background_style(WHITE.mix(0.8)).draw()?;
    root.present()?;
    Ok(())
}
