//! The access log: one line a request, as text or JSON. Lines are written by a task of their own from a bounded queue:
//! a request never waits for the log, and lines that do not fit are counted instead.

use crate::route::front::FrontKey;
use crate::route::{ObjectKey, Route};
use causeway_api::ingress::AccessLog;
use http::header::HeaderName;
use k8s_openapi::jiff::Timestamp;
use pingora::proxy::Session;
use prometheus::IntCounter;
use serde::Serialize;
use std::borrow::Cow;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;

/// Lines that wait to be written.
const WAITING: usize = 8192;
/// The W3C's header by which a request's trace goes from hop to hop. It is passed on as it came: no span is made here.
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Takes lines.
#[derive(Debug, Clone)]
pub struct Log {
    format: AccessLog,
    lines: mpsc::Sender<String>,
    dropped: IntCounter,
}

/// What a line says.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry<'a> {
    /// When the request's head had come.
    pub time: String,
    /// The client's address.
    pub client: Option<IpAddr>,
    /// Method.
    pub method: Cow<'a, str>,
    /// Host, as the client wrote it.
    pub host: Cow<'a, str>,
    /// Path and query.
    pub target: Cow<'a, str>,
    /// `HTTP/1.1`, `HTTP/2.0`.
    pub protocol: String,
    /// Status of the answer; 0: none was sent.
    pub status: u16,
    /// Bytes of the answer's body.
    pub bytes: u64,
    /// Seconds from the head to the end of the answer.
    pub seconds: f64,
    /// The Ingress or route object.
    pub route: Option<String>,
    /// The Gateway and its port.
    pub gateway: Option<String>,
    /// The endpoint that answered.
    pub endpoint: Option<SocketAddr>,
    /// The trace the request belongs to.
    pub trace: Option<Cow<'a, str>>,
}

impl Log {
    /// A log that writes to `to`. None when it is off. `dropped` counts lines that were not written.
    pub fn start(
        format: AccessLog,
        mut to: impl AsyncWrite + Unpin + Send + 'static,
        dropped: IntCounter,
    ) -> Option<Self> {
        if format == AccessLog::Off {
            return None;
        }
        let (lines, mut waiting) = mpsc::channel::<String>(WAITING);
        tokio::spawn(async move {
            let mut block = Vec::new();
            while waiting.recv_many(&mut block, 256).await > 0 {
                let text = block.concat();
                block.clear();
                if to.write_all(text.as_bytes()).await.is_err() || to.flush().await.is_err() {
                    tracing::warn!("the access log cannot be written");
                }
            }
        });
        Some(Self { format, lines, dropped })
    }

    /// Writes a line about a request that is over and `took` so long.
    pub(super) fn write(&self, mut entry: Entry<'_>, took: Duration) {
        entry.seconds = took.as_secs_f64();
        let began = Timestamp::now().checked_sub(took).unwrap_or_default();
        entry.time = began.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string();
        if self.lines.try_send(line(self.format, &entry)).is_err() {
            self.dropped.inc();
        }
    }
}

impl<'a> Entry<'a> {
    /// What can be said before the request is over.
    pub(super) fn of(
        session: &'a Session,
        route: Option<&Route>,
        front: Option<&FrontKey>,
        endpoint: Option<SocketAddr>,
    ) -> Self {
        let request = session.req_header();
        let host = super::http::authority(request).and_then(|a| std::str::from_utf8(a).ok()).unwrap_or("-");
        let trace = request.headers.get(TRACEPARENT).and_then(|v| v.to_str().ok()).and_then(|t| t.split('-').nth(1));
        Self {
            time: String::new(),
            client: session.client_addr().and_then(|a| a.as_inet()).map(|a| a.ip().to_canonical()),
            method: request.method.as_str().into(),
            host: host.into(),
            target: request.uri.path_and_query().map_or("/", |p| p.as_str()).into(),
            protocol: format!("{:?}", request.version),
            status: session.as_downstream().response_written().map_or(0, |r| r.status.as_u16()),
            bytes: session.body_bytes_sent() as u64,
            seconds: 0.0,
            route: route.map(|r| ObjectKey::to_string(&r.owner)),
            gateway: front.map(ToString::to_string),
            endpoint,
            trace: trace.map(Cow::from),
        }
    }

    /// One that outlives the request.
    pub fn into_owned(self) -> Entry<'static> {
        let owned = |text: Cow<'_, str>| Cow::Owned(text.into_owned());
        Entry {
            method: owned(self.method),
            host: owned(self.host),
            target: owned(self.target),
            trace: self.trace.map(owned),
            time: self.time,
            client: self.client,
            protocol: self.protocol,
            status: self.status,
            bytes: self.bytes,
            seconds: self.seconds,
            route: self.route,
            gateway: self.gateway,
            endpoint: self.endpoint,
        }
    }
}

/// One line, with its end.
fn line(format: AccessLog, entry: &Entry<'_>) -> String {
    if format == AccessLog::Json {
        return serde_json::to_string(entry).map(|text| text + "\n").unwrap_or_default();
    }
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    // What a client wrote must not end the line, nor its quotes.
    let target: String = entry.target.escape_debug().collect();
    let host: String = entry.host.escape_debug().collect();
    let mut text = String::with_capacity(160);
    let _ = writeln!(
        text,
        "{} {} \"{} {} {}\" {} {} {} {:.4} {} {} {}",
        entry.time,
        or_dash(entry.client.map(|c| c.to_string())),
        entry.method,
        target,
        entry.protocol,
        host,
        entry.status,
        entry.bytes,
        entry.seconds,
        or_dash(entry.route.clone()),
        or_dash(entry.endpoint.map(|e| e.to_string())),
        entry.trace.as_deref().unwrap_or("-"),
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_line_whatever_a_client_writes() {
        let entry = Entry {
            time: "t".to_owned(),
            client: Some("10.0.0.1".parse().unwrap()),
            method: "GET".into(),
            host: "a\"b".into(),
            target: "/x\n\"y".into(),
            protocol: "HTTP/1.1".to_owned(),
            status: 200,
            bytes: 5,
            seconds: 0.25,
            route: Some("ns/web".to_owned()),
            gateway: None,
            endpoint: Some(SocketAddr::from(([10, 1, 0, 2], 80))),
            trace: None,
        };
        let text = line(AccessLog::Text, &entry);
        assert_eq!(text, "t 10.0.0.1 \"GET /x\\n\\\"y HTTP/1.1\" a\\\"b 200 5 0.2500 ns/web 10.1.0.2:80 -\n");
        let json: serde_json::Value = serde_json::from_str(&line(AccessLog::Json, &entry)).unwrap();
        assert_eq!((json["target"].as_str(), json["status"].as_u64()), (Some("/x\n\"y"), Some(200)));
    }

    #[tokio::test]
    async fn lines_that_do_not_fit_are_counted() {
        let dropped = IntCounter::new("d", "d").unwrap();
        // Nobody reads: the pipe is full at once.
        let (to, _nobody) = tokio::io::duplex(1);
        let log = Log::start(AccessLog::Text, to, dropped.clone()).unwrap();
        tokio::task::yield_now().await;
        for _ in 0..3 * WAITING {
            if log.lines.try_send("x\n".to_owned()).is_err() {
                log.dropped.inc();
            }
        }
        assert!(dropped.get() > 0);
        assert!(Log::start(AccessLog::Off, tokio::io::sink(), dropped).is_none());
    }
}
