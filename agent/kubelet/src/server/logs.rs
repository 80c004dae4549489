//! `GET /containerLogs/{namespace}/{pod}/{container}`: a container's log, from its end or beginning, followed or not.

use super::{Api, attempt};
use crate::logs::{Line, parse, tail_offset};
use crate::observe::Snapshot;
use axum::body::Body;
use axum::extract::{Path as UrlPath, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use causeway_runtime::{ContainerInfo, ContainerState};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::mpsc;

/// How often a followed log is looked at.
const POLL: Duration = Duration::from_millis(100);
/// Read at once.
const CHUNK: usize = 64 * 1024;

/// The query, with Kubernetes' names.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Options {
    follow: Option<String>,
    previous: Option<String>,
    timestamps: Option<String>,
    tail_lines: Option<usize>,
    limit_bytes: Option<usize>,
    since_seconds: Option<i64>,
    since_time: Option<Timestamp>,
}

fn on(flag: &Option<String>) -> bool {
    matches!(flag.as_deref(), Some("true" | "1" | ""))
}

/// The handler.
pub async fn handle(
    State(api): State<Api>,
    UrlPath((namespace, pod, container)): UrlPath<(String, String, String)>,
    Query(options): Query<Options>,
) -> Response {
    match open(&api, &namespace, &pod, &container, &options).await {
        Ok((info, path)) => {
            let (out, body) = mpsc::channel(16);
            let job = Job { api, info, path, options, out };
            tokio::spawn(job.run());
            let stream = tokio_stream::wrappers::ReceiverStream::new(body);
            ([(header::CONTENT_TYPE, "text/plain")], Body::from_stream(stream)).into_response()
        }
        Err(response) => response,
    }
}

async fn open(
    api: &Api,
    namespace: &str,
    name: &str,
    container: &str,
    options: &Options,
) -> Result<(ContainerInfo, PathBuf), Response> {
    let refuse = |text: String| (StatusCode::BAD_REQUEST, text).into_response();
    let (pod, mut all) = api.find(namespace, name, container).await?;
    all.retain(|i| i.state != ContainerState::Created);
    let uid = pod.metadata.uid.as_deref().unwrap_or("");
    let chosen = if on(&options.previous) {
        let at = all.len().checked_sub(2);
        let Some(info) = at.and_then(|i| all.get(i)) else {
            return Err(refuse(format!("previous terminated container \"{container}\" in pod \"{name}\" not found")));
        };
        info.clone()
    } else {
        let Some(info) = all.last() else { return Err(refuse(waiting(&pod, name, container))) };
        info.clone()
    };
    let dir = api.ctx.config.log_dir(namespace, name, uid).join(container);
    let path = dir.join(format!("{}.log", attempt(&chosen)));
    Ok((chosen, path))
}

/// Why there is no log yet.
fn waiting(pod: &k8s_openapi::api::core::v1::Pod, name: &str, container: &str) -> String {
    let status = pod.status.as_ref();
    let all = status
        .into_iter()
        .flat_map(|s| s.container_statuses.iter().flatten().chain(s.init_container_statuses.iter().flatten()));
    let mut reasons = all.filter(|s| s.name == container).filter_map(|s| s.state.as_ref()?.waiting.as_ref());
    let reason = reasons.next().and_then(|w| w.reason.clone()).unwrap_or_else(|| "ContainerCreating".to_owned());
    match reason.as_str() {
        "ImagePullBackOff" | "ErrImagePull" | "InvalidImageName" => {
            format!("container \"{container}\" in pod \"{name}\" is waiting to start: trying and failing to pull image")
        }
        other => format!("container \"{container}\" in pod \"{name}\" is waiting to start: {other}"),
    }
}

struct Job {
    api: Api,
    info: ContainerInfo,
    path: PathBuf,
    options: Options,
    out: mpsc::Sender<io::Result<Bytes>>,
}

impl Job {
    async fn run(self) {
        if let Err(error) = self.copy().await {
            let _ = self.out.send(Err(error)).await;
        }
    }

    async fn copy(&self) -> io::Result<()> {
        let follow = on(&self.options.follow) && !on(&self.options.previous);
        let mut writer = Writer::new(&self.options);
        let (old, mut file) = match begin(&self.path, self.options.tail_lines) {
            Ok(begun) => begun,
            // Nothing was written so far.
            Err(e) if e.kind() == io::ErrorKind::NotFound && follow => (Vec::new(), self.wait_for_file().await?),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e),
        };
        for path in old {
            let mut file = File::open(path)?;
            if !self.drain(&mut file, &mut writer).await? {
                return Ok(());
            }
        }
        loop {
            // Asked before the last read: what the container wrote until its end must not be missed.
            let ended = !follow || self.ended().await;
            if !self.drain(&mut file, &mut writer).await? || ended {
                return Ok(());
            }
            let rotated =
                std::fs::metadata(&self.path).is_ok_and(|m| file.metadata().is_ok_and(|f| f.ino() != m.ino()));
            if rotated {
                self.drain(&mut file, &mut writer).await?;
                file = File::open(&self.path)?;
                continue;
            }
            tokio::select! {
                () = tokio::time::sleep(POLL) => {}
                () = self.out.closed() => return Ok(()),
            }
        }
    }

    async fn wait_for_file(&self) -> io::Result<File> {
        loop {
            match File::open(&self.path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    if self.ended().await || self.out.is_closed() {
                        return Err(e);
                    }
                    tokio::time::sleep(POLL).await;
                }
                other => return other,
            }
        }
    }

    /// Hands over everything up to the end of the file; `false` when nobody listens or the limit is reached.
    async fn drain(&self, file: &mut File, writer: &mut Writer) -> io::Result<bool> {
        let mut buffer = vec![0; CHUNK];
        loop {
            let count = file.read(&mut buffer)?;
            if count == 0 {
                return Ok(true);
            }
            let text = writer.push(buffer.get(..count).unwrap_or_default());
            if !text.is_empty() && self.out.send(Ok(Bytes::from(text))).await.is_err() || writer.full() {
                return Ok(false);
            }
        }
    }

    async fn ended(&self) -> bool {
        let runs = |all: &Snapshot| {
            let mut all = all.values().flatten();
            all.any(|i| i.id == self.info.id && matches!(i.state, ContainerState::Running { .. }))
        };
        // The node hears of ends by events: as long as it has heard of none, a follower asks the runtime for nothing.
        let observer = &self.api.ctx.observer;
        if runs(&observer.latest().await) {
            return false;
        }
        observer.fresh().await.is_ok_and(|all| !runs(&all))
    }
}

/// Files that were set aside and have to be read first, and the file itself at the place to begin.
fn begin(path: &Path, tail: Option<usize>) -> io::Result<(Vec<PathBuf>, File)> {
    let mut file = File::open(path)?;
    if let Some(count) = tail {
        let offset = tail_offset(&mut file, count)?;
        file.seek(SeekFrom::Start(offset))?;
        return Ok((Vec::new(), file));
    }
    let aside = (1..100).map(|n| PathBuf::from(format!("{}.{n}", path.display())));
    let mut old: Vec<PathBuf> = aside.take_while(|p| p.exists()).collect();
    old.reverse();
    Ok((old, file))
}

/// From lines of the file to what the user sees.
struct Writer {
    since: Option<Timestamp>,
    timestamps: bool,
    left: Option<usize>,
    rest: Vec<u8>,
    mid_line: bool,
}

impl Writer {
    fn new(options: &Options) -> Self {
        let ago = |s| Timestamp::now().checked_sub(SignedDuration::from_secs(s)).ok();
        Self {
            since: options.since_seconds.and_then(ago).or(options.since_time),
            timestamps: on(&options.timestamps),
            left: options.limit_bytes,
            rest: Vec::new(),
            mid_line: false,
        }
    }

    fn full(&self) -> bool {
        self.left == Some(0)
    }

    fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.rest.extend_from_slice(bytes);
        let rest = std::mem::take(&mut self.rest);
        let end = rest.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
        let (whole, cut) = rest.split_at(end);
        let mut text = Vec::with_capacity(whole.len());
        for line in whole.split_inclusive(|b| *b == b'\n') {
            if let Some(line) = parse(line.strip_suffix(b"\n").unwrap_or(line)) {
                self.line(line, &mut text);
            }
        }
        self.rest = cut.to_vec();
        if let Some(left) = &mut self.left {
            text.truncate(*left);
            *left -= text.len();
        }
        text
    }

    fn line(&mut self, line: Line<'_>, into: &mut Vec<u8>) {
        if let Some(since) = self.since
            && line.at().is_some_and(|at| at < since)
        {
            return;
        }
        if self.timestamps && !self.mid_line {
            into.extend_from_slice(line.time.as_bytes());
            into.push(b' ');
        }
        into.extend_from_slice(line.text);
        if !line.partial {
            into.push(b'\n');
        }
        self.mid_line = line.partial;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_joined_stamped_and_limited() {
        let text =
            b"2026-01-01T00:00:00Z stdout P ab\n2026-01-01T00:00:00Z stdout F c\n2026-01-02T00:00:00Z stderr F d\n";
        let all = |o: Options| {
            let mut w = Writer::new(&o);
            let (a, b) = text.split_at(50);
            let mut out = w.push(a);
            out.extend(w.push(b));
            String::from_utf8(out).unwrap()
        };
        assert_eq!(all(Options::default()), "abc\nd\n");
        let stamped = all(Options { timestamps: Some("true".to_owned()), ..Options::default() });
        assert_eq!(stamped, "2026-01-01T00:00:00Z abc\n2026-01-02T00:00:00Z d\n");
        assert_eq!(all(Options { limit_bytes: Some(3), ..Options::default() }), "abc");
        let since = Options { since_time: Some("2026-01-01T12:00:00Z".parse().unwrap()), ..Options::default() };
        assert_eq!(all(since), "d\n");
    }
}
