//! The gRPC health check (grpc.health.v1.Health/Check) over HTTP/2 without TLS, as far as a probe needs it.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::net::IpAddr;
use tokio::net::TcpStream;

/// `Ok` when the service says `SERVING`.
pub async fn check(ip: Option<IpAddr>, port: u16, service: &str) -> Result<(), String> {
    let ip = ip.ok_or("the pod has no address yet")?;
    let stream = TcpStream::connect((ip, port)).await.map_err(|e| format!("dial tcp {ip}:{port}: {e}"))?;
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    let connection = tokio::spawn(connection);
    let result = call(&mut sender, ip, port, service).await;
    connection.abort();
    result
}

async fn call(
    sender: &mut http2::SendRequest<Full<Bytes>>,
    ip: IpAddr,
    port: u16,
    service: &str,
) -> Result<(), String> {
    let request =
        http::Request::post(format!("http://{}/grpc.health.v1.Health/Check", std::net::SocketAddr::from((ip, port))))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(Bytes::from(request(service))))
            .map_err(|e| e.to_string())?;
    let answer = sender.send_request(request).await.map_err(|e| e.to_string())?;
    let early = code(answer.headers());
    let body = answer.into_body().collect().await.map_err(|e| e.to_string())?;
    let status = early.or_else(|| body.trailers().and_then(code)).unwrap_or(0);
    if status != 0 {
        return Err(format!("error: this server failed the health rpc with gRPC status {status}"));
    }
    match serving(&body.to_bytes()) {
        Some(1) => Ok(()),
        other => Err(format!("service unhealthy (responded with status {})", other.unwrap_or(0))),
    }
}

fn code(headers: &http::HeaderMap) -> Option<u32> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

/// A length-prefixed `HealthCheckRequest { service = 1 }`.
fn request(service: &str) -> Vec<u8> {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.push(u8::try_from(length & 0x7f).unwrap_or(0) | 0x80);
            length >>= 7;
        }
        message.push(u8::try_from(length).unwrap_or(0));
        message.extend_from_slice(service.as_bytes());
    }
    let mut frame = vec![0];
    frame.extend_from_slice(&u32::try_from(message.len()).unwrap_or(0).to_be_bytes());
    frame.extend(message);
    frame
}

/// `HealthCheckResponse.status` (field 1, varint).
fn serving(frame: &[u8]) -> Option<u8> {
    match frame.get(5..)? {
        [] => Some(0),
        [0x08, status, ..] => Some(*status),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames() {
        assert_eq!(request("ab"), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(request(""), [0, 0, 0, 0, 0]);
        assert_eq!(serving(&[0, 0, 0, 0, 2, 8, 1]), Some(1));
    }
}
