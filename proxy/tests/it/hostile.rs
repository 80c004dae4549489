//! Clients that want a backend to see another request than the ingress saw, and clients that want to use it up. What the
//! backend was sent is recorded byte by byte, and read strictly: one request in, at most one out.

use crate::harness::*;
use causeway_proxy::Limits;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A request that nobody has made.
const HIDDEN: &str = "GET /smuggled HTTP/1.1\r\nHost: h.localhost\r\n\r\n";

/// A backend that answers whatever comes, and keeps it.
struct Recorder {
    address: SocketAddr,
    connections: Arc<parking_lot::Mutex<Vec<Vec<u8>>>>,
}

impl Recorder {
    fn start() -> Self {
        let socket = listener();
        let address = socket.local_addr().unwrap();
        socket.set_nonblocking(true).unwrap();
        let socket = TcpListener::from_std(socket).unwrap();
        let connections: Arc<parking_lot::Mutex<Vec<Vec<u8>>>> = Arc::default();
        let all = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = socket.accept().await {
                let all = Arc::clone(&all);
                let index = {
                    let mut all = all.lock();
                    all.push(Vec::new());
                    all.len() - 1
                };
                tokio::spawn(async move {
                    let mut buffer = vec![0; 65536];
                    while let Ok(n @ 1..) = stream.read(&mut buffer).await {
                        all.lock()[index].extend(&buffer[..n]);
                        // All of a request before its answer, however it comes.
                        while let Ok(Ok(n @ 1..)) =
                            tokio::time::timeout(Duration::from_millis(30), stream.read(&mut buffer)).await
                        {
                            all.lock()[index].extend(&buffer[..n]);
                        }
                        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
                    }
                });
            }
        });
        Self { address, connections }
    }

    /// Forgets what was recorded, and gives it.
    fn take(&self) -> Vec<Vec<u8>> {
        self.connections.lock().iter_mut().map(std::mem::take).filter(|c| !c.is_empty()).collect()
    }
}

/// The targets of the requests that a strict reader finds. What is unclear in any way is an error.
fn strictly(mut bytes: &[u8]) -> Result<Vec<String>, String> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut request = httparse::Request::new(&mut headers);
        let length = match request.parse(bytes) {
            Ok(httparse::Status::Complete(length)) => length,
            // The client went away before the end.
            Ok(httparse::Status::Partial) => return Err("half a head".to_owned()),
            Err(error) => return Err(error.to_string()),
        };
        let head = &bytes[..length];
        let text = String::from_utf8_lossy(head);
        if text.replace("\r\n", "").contains(['\r', '\n', '\0']) {
            return Err(format!("a head with control characters: {text:?}"));
        }
        let all = |name: &str| -> Vec<String> {
            let named = request.headers.iter().filter(|h| h.name.eq_ignore_ascii_case(name));
            named.map(|h| String::from_utf8_lossy(h.value).into_owned()).collect()
        };
        let body = match (all("transfer-encoding").as_slice(), all("content-length").as_slice()) {
            ([], []) => 0,
            ([], [length]) if length.bytes().all(|b| b.is_ascii_digit()) => length.parse().map_err(|_| "length")?,
            ([coding], []) if coding == "chunked" => chunked(&bytes[length..])?,
            (codings, lengths) => return Err(format!("framed by {codings:?} and {lengths:?}")),
        };
        found.push(request.path.unwrap_or_default().to_owned());
        // A body that was broken off is the end of the connection.
        bytes = bytes.get(length + body..).unwrap_or_default();
    }
    Ok(found)
}

/// The length of a chunked body.
fn chunked(bytes: &[u8]) -> Result<usize, String> {
    let mut at = 0;
    loop {
        match httparse::parse_chunk_size(&bytes[at..]) {
            Ok(httparse::Status::Complete((start, size))) => {
                let end = at + start + usize::try_from(size).map_err(|e| e.to_string())?;
                match bytes.get(end..end + 2) {
                    Some(b"\r\n") => at = end + 2,
                    Some(other) => return Err(format!("a chunk ends with {other:?}")),
                    None => return Ok(bytes.len()),
                }
                if size == 0 {
                    return Ok(at);
                }
            }
            Ok(httparse::Status::Partial) => return Ok(bytes.len()),
            Err(error) => return Err(error.to_string()),
        }
    }
}

async fn lab() -> (Lab, Recorder) {
    let recorder = Recorder::start();
    let mut lab = Lab::start(Limits { head_timeout: Duration::from_secs(2), ..Limits::default() });
    let rule = ingress("i", &[("h.localhost", "/", "Prefix", "a", 80)]);
    lab.apply([service("a"), slice("a", recorder.address), rule]);
    (lab, recorder)
}

/// Sends bytes and gives what comes: within a short time, or, where an answer has to come, up to its end.
async fn exchange(at: SocketAddr, bytes: &[u8], answered: bool) -> String {
    let mut stream = TcpStream::connect(at).await.unwrap();
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let reading = async {
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = stream.read(&mut buffer).await {
            answer.extend(&buffer[..n]);
            if answered && answer.ends_with(b"\r\n\r\nok") {
                return;
            }
        }
    };
    let patience = if answered { PATIENCE } else { Duration::from_millis(250) };
    let _ = tokio::time::timeout(patience, reading).await;
    String::from_utf8_lossy(&answer).into_owned()
}

fn judge(case: &str, target: &str, sent: &[Vec<u8>]) {
    let mut all = Vec::new();
    for connection in sent {
        match strictly(connection) {
            Ok(found) => all.extend(found),
            Err(error) => panic!("{case:?}: {error}; the backend was sent {:?}", String::from_utf8_lossy(connection)),
        }
    }
    // What an earlier case sent may come late: each has a target of its own.
    let own = all.iter().filter(|t| t.contains(target)).count();
    assert!(own <= 1 && !all.iter().any(|t| t.contains("smuggled")), "{case:?}: the backend saw {all:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_hides_in_another_one() {
    let (lab, recorder) = lab().await;
    let after = HIDDEN.len() + 5;
    let mut cases = vec![
        // What is clear goes through, as one.
        (
            format!("POST /clear HTTP/1.1\r\nHost: h.localhost\r\nContent-Length: {}\r\n\r\n{HIDDEN}", HIDDEN.len()),
            true,
        ),
        (
            format!(
                "POST /clear HTTP/1.1\r\nHost: h.localhost\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{HIDDEN}\r\n0\r\n\r\n",
                HIDDEN.len()
            ),
            true,
        ),
    ];
    let framings = [
        format!("Content-Length: {after}\r\nTransfer-Encoding: chunked"),
        format!("Transfer-Encoding: chunked\r\nContent-Length: {after}"),
        "Content-Length: 5\r\nContent-Length: 6".to_owned(),
        "Content-Length: 5, 6".to_owned(),
        "Content-Length: +5".to_owned(),
        "Content-Length: -5".to_owned(),
        "Content-Length: 0x5".to_owned(),
        "Content-Length: 5 5".to_owned(),
        "Content-Length: 18446744073709551621".to_owned(),
        "Content-Length: 5\r\nContent-Length : 0".to_owned(),
        "Transfer-Encoding: chunked, identity".to_owned(),
        "Transfer-Encoding: identity, chunked".to_owned(),
        "Transfer-Encoding: xchunked".to_owned(),
        "Transfer-Encoding: \x0bchunked".to_owned(),
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity".to_owned(),
        "Transfer-Encoding : chunked".to_owned(),
        "X: y\r\n Transfer-Encoding: chunked".to_owned(),
        "X: y\nTransfer-Encoding: chunked".to_owned(),
        "X: y\rTransfer-Encoding: chunked".to_owned(),
        "X: \0\r\nTransfer-Encoding: chunked".to_owned(),
        "Transfer\0-Encoding: chunked".to_owned(),
        "Transfer-Encoding:\tchunked\t".to_owned(),
        "Transfer-Encoding: \"chunked\"".to_owned(),
        "Expect: 100-continue\r\nTransfer-Encoding: chunked\r\nContent-Length: 5".to_owned(),
        "Connection: Content-Length\r\nContent-Length: 5".to_owned(),
        "Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked".to_owned(),
    ];
    for framing in framings {
        let head = format!("POST /case HTTP/1.1\r\nHost: h.localhost\r\n{framing}\r\n\r\n");
        // Where the body is taken to end after five bytes, another request seems to follow. Were the first one clear, that
        // would be a request of its own: so it is told to be the last.
        let head = head.replacen("\r\n\r\n", "\r\nConnection: close\r\n\r\n", 1);
        cases.push((format!("{head}0\r\n\r\n{HIDDEN}"), false));
    }
    for chunk in
        ["5\n", "0x5\r\n", "-1\r\n", " 5\r\n", "5 \r\n", "ffffffffffffffff1\r\n", "5;\n", "\r\n", "5\r", "5\r\nabcde"]
    {
        let head =
            "POST /case HTTP/1.1\r\nHost: h.localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
        cases.push((format!("{head}{chunk}0\r\n\r\n{HIDDEN}"), false));
    }
    let whole = [
        "GET /case HTTP/1.1\r\nHost: h.localhost\r\nHost: other\r\nConnection: close\r\n\r\n",
        "GET /case  HTTP/1.1\r\nHost: h.localhost\r\nConnection: close\r\n\r\n",
        "GET /a b HTTP/1.1\r\nHost: h.localhost\r\nConnection: close\r\n\r\n",
        "GET /case HTTP/1.1\r\nHost: h.localhost\r\nConnection: close\r\nA B: c\r\n\r\n",
        "GET /case http/1.1\r\nHost: h.localhost\r\nConnection: close\r\n\r\n",
        "GET /case HTTP/1.10\r\nHost: h.localhost\r\nConnection: close\r\n\r\n",
        "GET /case HTTP/2.0\r\nHost: h.localhost\r\nConnection: close\r\n\r\n",
        "GET http://h.localhost/case HTTP/1.1\r\nHost: other.localhost\r\nConnection: close\r\n\r\n",
        "CONNECT h.localhost:80 HTTP/1.1\r\nHost: h.localhost\r\nConnection: close\r\n\r\n",
        "GET /case\r\n\r\n",
        "GET /case HTTP/1.1\nHost: h.localhost\nConnection: close\n\n",
        "GET /c\rase HTTP/1.1\r\nHost: h.localhost\r\nConnection: close\r\n\r\n",
        "GET /case HTTP/1.1\r\nHost: h.localhost\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\nConnection: close\r\n\r\n",
    ];
    cases.extend(whole.map(|head| (format!("{head}{HIDDEN}"), false)));
    for (index, (case, clear)) in cases.into_iter().enumerate() {
        let target = format!("/case{index}-");
        let case = case.replacen("/case", &target, 1).replacen("/clear", &target, 1);
        let answer = exchange(lab.http, case.as_bytes(), clear).await;
        let sent = recorder.take();
        judge(&case, &target, &sent);
        if clear {
            assert!(answer.starts_with("HTTP/1.1 200") && !sent.is_empty(), "{case:?}: {answer:?}");
        }
    }
}

/// An HTTP/2 frame.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Header fields as HPACK has them without any compression.
fn fields(all: &[(&str, &str)]) -> Vec<u8> {
    let text = |t: &str| [&[u8::try_from(t.len()).unwrap()], t.as_bytes()].concat();
    all.iter().flat_map(|(name, value)| [vec![0], text(name), text(value)].concat()).collect()
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const USUAL: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "http"), (":authority", "h.localhost"), (":path", "/case")];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_in_one_of_http_2() {
    let (lab, recorder) = lab().await;
    let hidden = "/case HTTP/1.1\r\nHost: h.localhost\r\n\r\nGET /smuggled";
    let method = format!("GET {hidden} HTTP/1.1\r\nX: ");
    let value = format!("a\r\n\r\n{HIDDEN}");
    let with = |name: &'static str, instead: &str| -> Vec<(String, String)> {
        USUAL.map(|(n, v)| (n.to_owned(), if n == name { instead.to_owned() } else { v.to_owned() })).into()
    };
    let plus = |more: &[(&str, &str)]| -> Vec<(String, String)> {
        USUAL.iter().chain(more).map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
    };
    let cases = [
        with(":path", hidden),
        with(":path", "/case HTTP/1.1"),
        with(":path", ""),
        with(":method", &method),
        with(":authority", "h.localhost\r\nTransfer-Encoding: chunked"),
        with(":scheme", "http\r\nTransfer-Encoding: chunked"),
        plus(&[("transfer-encoding", "chunked")]),
        plus(&[("content-length", "0")]),
        plus(&[("content-length", "5"), ("content-length", "0")]),
        plus(&[("content-length", "+5")]),
        plus(&[("connection", "transfer-encoding"), ("transfer-encoding", "chunked")]),
        plus(&[("x", &value)]),
        plus(&[("x\r\ntransfer-encoding", "chunked")]),
        plus(&[("x: y\r\ntransfer-encoding", "chunked")]),
        plus(&[("Transfer-Encoding", "chunked")]),
        plus(&[("host", "other.localhost")]),
        plus(&[(":path", "/smuggled")]),
        plus(&[("x", "\0")]),
        plus(&[("upgrade", "h2c"), ("connection", "upgrade")]),
    ];
    for (index, mut case) in cases.into_iter().enumerate() {
        let target = format!("/case{index}-");
        case.iter_mut().for_each(|(_, value)| *value = value.replacen("/case", &target, 1));
        let case: Vec<(&str, &str)> = case.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let mut bytes = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
        bytes.extend(frame(HEADERS, END_HEADERS, 1, &fields(&case)));
        bytes.extend(frame(DATA, END_STREAM, 1, format!("0\r\n\r\n{HIDDEN}").as_bytes()));
        exchange(lab.http, &bytes, false).await;
        judge(&format!("{case:?}"), &target, &recorder.take());
    }
    recorder.take();
    let usual = with(":path", "/usual");
    let usual: Vec<(&str, &str)> = usual.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    let clear = [PREFACE, &frame(SETTINGS, 0, 0, &[]), &frame(HEADERS, END_HEADERS | END_STREAM, 1, &fields(&usual))];
    exchange(lab.http, &clear.concat(), false).await;
    until("a usual one goes through", || recorder.take().iter().any(|c| c.starts_with(b"GET /usual "))).await;
}

/// Memory in use, in bytes.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// Sends the same bytes again and again until `most` have been sent, or the server has enough. True when it has.
async fn flood(at: SocketAddr, start: &[u8], mut next: impl FnMut(u32) -> Vec<u8>, most: usize, reads: bool) -> bool {
    let mut stream = TcpStream::connect(at).await.unwrap();
    stream.write_all(PREFACE).await.unwrap();
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
    let (mut reader, mut writer) = stream.into_split();
    let ended = tokio::spawn(async move {
        let mut sink = vec![0; 65536];
        // One that does not read lets answers pile up.
        while reads && matches!(reader.read(&mut sink).await, Ok(1..)) {}
        if !reads {
            tokio::time::sleep(PATIENCE).await;
        }
    });
    let mut sent = start.len();
    if writer.write_all(start).await.is_err() {
        return true;
    }
    let mut number = 0;
    while sent < most {
        let mut bytes = Vec::new();
        while bytes.len() < 16 * 1024 {
            bytes.extend(next(number));
            number += 1;
        }
        sent += bytes.len();
        match tokio::time::timeout(Duration::from_secs(1), writer.write_all(&bytes)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return true,
            // It takes no more before we read what it has to say: that bounds it too.
            Err(_) => return true,
        }
    }
    tokio::time::timeout(Duration::from_secs(2), ended).await.is_ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_of_http_2_end_and_others_are_served() {
    let backend = Backend::start("a");
    let mut lab = Lab::start(Limits::default());
    lab.apply([service("a"), slice("a", backend.address), ingress("i", &[("h.localhost", "/", "Prefix", "a", 80)])]);
    let before = resident();
    const MIB: usize = 1 << 20;
    let head = fields(&USUAL);
    // Requests that are taken back at once (CVE-2023-44487).
    let rapid = |n: u32| {
        let open = frame(HEADERS, END_HEADERS | END_STREAM, n * 2 + 1, &head);
        [open, frame(RESET, 0, n * 2 + 1, &8_u32.to_be_bytes())].concat()
    };
    assert!(flood(lab.http, &[], rapid, 64 * MIB, true).await, "rapid reset goes on and on");
    let served = backend.served.load(Ordering::Relaxed);
    assert!(served < 5_000, "the backend was made to serve {served} of them");
    // A head that never ends (CVE-2024-27316).
    let part = fields(&[("x", &"y".repeat(100))]).repeat(100);
    let start = frame(HEADERS, 0, 1, &head);
    let endless = |_| frame(CONTINUATION, 0, 1, &part);
    assert!(flood(lab.http, &start, endless, 64 * MIB, true).await, "a head may have 64 MiB");
    // What must be answered, from one who does not read the answers (CVE-2019-9512, CVE-2019-9515).
    for unread in [frame(PING, 0, 0, &[7; 8]), frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100])] {
        assert!(flood(lab.http, &[], |_| unread.clone(), 64 * MIB, false).await, "answers pile up");
    }
    let grown = resident().saturating_sub(before);
    assert!(grown < 256 * MIB, "{} MiB more", grown / MIB);
    assert_eq!(lab.get("h.localhost", "/").await.0, 200);
}

#[test]
fn the_strict_reader_is_strict() {
    let read = |text: &str| strictly(text.as_bytes());
    let two = format!("POST /a HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc{HIDDEN}");
    assert_eq!(read(&two), Ok(vec!["/a".to_owned(), "/smuggled".to_owned()]));
    let two = format!("POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n{HIDDEN}");
    assert_eq!(read(&two).map(|all| all.len()), Ok(2));
    for bad in [
        "POST /a HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST /a HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
        "POST /a HTTP/1.1\r\nContent-Length: +3\r\n\r\nabc",
        "POST /a HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n\r\n",
        "POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcde",
        "GET /a HTTP/1.1\nX: y\r\n\r\n",
    ] {
        assert!(read(bad).is_err(), "{bad:?}");
    }
}
