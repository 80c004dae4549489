//! The way to kubelets: logs are streamed through, exec and attach are upgraded connections whose bytes
//! pass verbatim in both directions.
//!
//! In: a request for a pod's subresource. Out: the kubelet's answer. The API server knows nothing of the frames.

use crate::dialer::NodeDialer;
use crate::engine::{Engine, text};
use crate::exchange::{Incoming, Reply};
use crate::status::{ApiError, ApiResult};
use axum::body::Body;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

/// How long a kubelet may take until it begins to answer.
const ANSWER: Duration = Duration::from_secs(30);
const CONNECT: Duration = Duration::from_secs(10);

/// Talks to kubelets with the API server's client certificate.
pub struct NodeRelay {
    dialer: Arc<dyn NodeDialer>,
    tls: TlsConnector,
}

/// The kubelet of a pod.
struct Place {
    address: SocketAddr,
    node: String,
}

impl NodeRelay {
    /// With a dialer and a TLS configuration that trusts the cluster's authority.
    pub fn new(dialer: Arc<dyn NodeDialer>, tls: Arc<ClientConfig>) -> Self {
        Self { dialer, tls: TlsConnector::from(tls) }
    }

    async fn place(&self, engine: &Engine, pod: &Value) -> ApiResult<Place> {
        let node = text(pod, "/spec/nodeName").to_owned();
        if node.is_empty() {
            let name = text(pod, "/metadata/name");
            return Err(ApiError::bad_request(format!("pod {name} does not have a host assigned")));
        }
        let served = engine.served("", "v1", "nodes")?;
        let object = engine.get(&served, "", &node, None).await?.value();
        let addresses = object.pointer("/status/addresses").and_then(Value::as_array);
        let ip = addresses
            .into_iter()
            .flatten()
            .filter(|a| a["type"] == "InternalIP")
            .find_map(|a| a["address"].as_str()?.parse::<IpAddr>().ok())
            .ok_or_else(|| ApiError::internal(format!("node {node} has no InternalIP in its status")))?;
        // The node itself says where it is: it must not lead us, with our certificate, to a Service.
        let of_services = engine.cluster.service_cidrs.iter().any(|range| range.contains(&ip));
        if of_services || ip.is_unspecified() || ip.is_multicast() {
            return Err(ApiError::internal(format!("the address {ip} in the status of node {node} is no node's")));
        }
        let port = object.pointer("/status/daemonEndpoints/kubeletEndpoint/Port").and_then(Value::as_u64);
        let port = port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p != 0).unwrap_or(10250);
        Ok(Place { address: SocketAddr::new(ip, port), node })
    }

    /// Sends one request to a kubelet; the connection may be upgraded.
    async fn send(
        &self,
        place: &Place,
        method: Method,
        path: &str,
        headers: HeaderMap,
    ) -> ApiResult<http::Response<hyper::body::Incoming>> {
        let failed = |doing: &str, error: &dyn std::fmt::Display| {
            let Place { address, node } = place;
            ApiError::internal(format!("error {doing} the kubelet of node {node} at {address}: {error}"))
        };
        let dialled = tokio::time::timeout(CONNECT, self.dialer.dial(place.address)).await;
        let tcp = dialled.map_err(|e| failed("dialing", &e))?.map_err(|e| failed("dialing", &e))?;
        let _ = tcp.set_nodelay(true);
        let name = ServerName::IpAddress(place.address.ip().into());
        let shaken = tokio::time::timeout(CONNECT, self.tls.connect(name, tcp)).await;
        let tls = shaken.map_err(|e| failed("securing the connection to", &e))?;
        let tls = tls.map_err(|e| failed("securing the connection to", &e))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(tls)).await.map_err(|e| failed("talking to", &e))?;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "connection to a kubelet ended");
            }
        });
        let mut request = Request::new(Body::empty());
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().map_err(|e| failed("addressing", &e))?;
        *request.headers_mut() = headers;
        if let Ok(host) = HeaderValue::from_str(&place.address.to_string()) {
            request.headers_mut().insert(header::HOST, host);
        }
        // Also a stream begins with an answer; what comes after it takes as long as it takes.
        let answered = tokio::time::timeout(ANSWER, sender.send_request(request)).await;
        answered.map_err(|e| failed("waiting for an answer of", &e))?.map_err(|e| failed("asking", &e))
    }

    /// Streams the answer to a plain GET.
    pub async fn get(&self, engine: &Engine, pod: &Value, path: &str) -> ApiResult<Reply> {
        let place = self.place(engine, pod).await?;
        let response = self.send(&place, Method::GET, path, HeaderMap::new()).await?;
        relay_plain(response).await
    }

    /// Upgrades the client's connection and the kubelet's, and copies between them.
    pub async fn upgrade(&self, engine: &Engine, pod: &Value, path: &str, incoming: &Incoming) -> ApiResult<Reply> {
        let websocket = incoming.header("upgrade").eq_ignore_ascii_case("websocket");
        if !websocket {
            // The kubelet says what is wrong, be it the container or, last, the protocol.
            return self.get(engine, pod, path).await;
        }
        let Some(client) = incoming.upgrade.lock().take() else {
            return Err(ApiError::bad_request("this connection cannot be upgraded: use HTTP/1.1"));
        };
        let place = self.place(engine, pod).await?;
        let mut headers = HeaderMap::new();
        for (name, value) in &incoming.headers {
            let wanted = *name == header::CONNECTION
                || *name == header::UPGRADE
                || name.as_str().starts_with("sec-websocket-")
                || *name == header::ORIGIN;
            if wanted {
                headers.append(name.clone(), value.clone());
            }
        }
        let mut response = self.send(&place, Method::GET, path, headers).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return relay_plain(response).await;
        }
        let kubelet = hyper::upgrade::on(&mut response);
        let lasting = incoming.lasting.lock().take();
        tokio::spawn(async move {
            let _lasting = lasting;
            let (Ok(client), Ok(kubelet)) = tokio::join!(client, kubelet) else { return };
            let (mut client, mut kubelet) = (TokioIo::new(client), TokioIo::new(kubelet));
            if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut kubelet).await {
                tracing::debug!(%error, "relayed stream ended");
            }
        });
        let mut reply = http::Response::new(Body::empty());
        *reply.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *reply.headers_mut() = response.headers().clone();
        Ok(Reply(reply))
    }
}

/// The kubelet's own answer; a failure in plain text becomes a Status.
async fn relay_plain(response: http::Response<hyper::body::Incoming>) -> ApiResult<Reply> {
    let (parts, body) = response.into_parts();
    let kind = parts.headers.get(header::CONTENT_TYPE).cloned();
    let json = kind.as_ref().is_some_and(|k| k.as_bytes().starts_with(b"application/json"));
    if !parts.status.is_success() && !json {
        let limited = http_body_util::BodyExt::collect(http_body_util::Limited::new(body, 64 * 1024)).await;
        let text = limited.map(|b| String::from_utf8_lossy(&b.to_bytes()).trim().to_owned()).unwrap_or_default();
        let reason = match parts.status.as_u16() {
            400 => "BadRequest",
            404 => "NotFound",
            403 => "Forbidden",
            501 => "NotImplemented",
            _ => "InternalError",
        };
        return Err(ApiError::new(parts.status.as_u16(), reason, text));
    }
    let mut reply = http::Response::new(Body::new(body));
    *reply.status_mut() = parts.status;
    reply.headers_mut().insert(header::CONTENT_TYPE, kind.unwrap_or_else(|| HeaderValue::from_static("text/plain")));
    Ok(Reply(reply))
}
