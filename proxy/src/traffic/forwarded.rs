//! What a backend is told of the client: the `X-Forwarded-*` headers. What a client says of itself is believed only where
//! it is a proxy that is trusted.

use super::conn::{self, Conn};
use super::http::{HttpApp, authority};
use crate::route::front::FrontKey;
use http::header::FORWARDED;
use http::{HeaderName, HeaderValue};
use pingora::Result;
use pingora::http::RequestHeader;
use pingora::proxy::Session;
use std::net::IpAddr;

const X_FORWARDED_FOR: &str = "X-Forwarded-For";
const X_FORWARDED_PROTO: &str = "X-Forwarded-Proto";
const X_FORWARDED_HOST: &str = "X-Forwarded-Host";
const X_FORWARDED_PORT: &str = "X-Forwarded-Port";
const X_REAL_IP: &str = "X-Real-IP";
const PROXY: HeaderName = HeaderName::from_static("proxy");

/// Our part of the header `Forwarded` (RFC 7239 section 4).
fn forwarded(client: Option<IpAddr>, host: Option<&str>, https: bool) -> String {
    let by = match client.map(|ip| ip.to_canonical()) {
        Some(IpAddr::V4(ip)) => ip.to_string(),
        Some(IpAddr::V6(ip)) => format!("\"[{ip}]\""),
        None => "unknown".to_owned(),
    };
    // A host has been judged before and holds neither quotes nor backslashes.
    let host = host.filter(|h| !h.contains(['"', '\\'])).map(|h| format!(";host=\"{h}\"")).unwrap_or_default();
    format!("for={by}{host};proto={}", if https { "https" } else { "http" })
}

impl HttpApp {
    /// Puts the headers into a request that is sent on; `front` is the Gateway's port it came by.
    pub(super) fn forwarded_headers(
        &self,
        session: &Session,
        request: &mut RequestHeader,
        front: Option<&FrontKey>,
    ) -> Result<()> {
        let client = session.client_addr().and_then(|a| a.as_inet()).map(|a| a.ip());
        let https = session.digest().is_some_and(|d| d.ssl_digest.is_some());
        let trusted = client.is_some_and(|ip| self.trusted(ip));
        // A connection of HTTP/1.1 has written it down once for all its requests.
        let conn = session.as_downstream().stream().and_then(Conn::of);
        let own = conn.and_then(Conn::client).cloned().or_else(|| conn::address(client?));
        if let Some(own) = own {
            let chain = if trusted { request.headers.get(X_FORWARDED_FOR) } else { None };
            let chain = chain.and_then(|v| Some((v.to_str().ok()?, own.to_str().ok()?)));
            match chain.map(|(chain, own)| format!("{chain}, {own}")) {
                Some(chain) => request.insert_header(X_FORWARDED_FOR, chain)?,
                None => request.insert_header(X_FORWARDED_FOR, own.clone())?,
            }
            if !trusted || !request.headers.contains_key(X_REAL_IP) {
                request.insert_header(X_REAL_IP, own)?;
            }
        }
        let mut set = |name: &'static str, value: HeaderValue| -> Result<()> {
            if !trusted || !request.headers.contains_key(name) {
                request.insert_header(name, value)?;
            }
            Ok(())
        };
        set(X_FORWARDED_PROTO, HeaderValue::from_static(if https { "https" } else { "http" }))?;
        let authority = authority(session.req_header());
        if let Some(host) = authority.and_then(|a| HeaderValue::from_bytes(a).ok()) {
            set(X_FORWARDED_HOST, host)?;
        }
        let own = front.map(|f| f.port).or_else(|| conn.map(Conn::port));
        let own = own.or_else(|| session.server_addr().and_then(|a| a.as_inet()).map(std::net::SocketAddr::port));
        if let Some(port) = own {
            // The port the client meant, which is not ours when something forwards to us.
            let meant = authority.and_then(|a| std::str::from_utf8(a).ok()?.rsplit_once(':')?.1.parse().ok());
            set(X_FORWARDED_PORT, HeaderValue::from(meant.unwrap_or(port)))?;
        }
        let before = if trusted { request.headers.get(FORWARDED).and_then(|v| v.to_str().ok()) } else { None };
        if before.is_some() || self.limits().forwarded_header {
            let host = authority.and_then(|a| std::str::from_utf8(a).ok());
            let own = forwarded(client, host, https);
            let all = before.map_or_else(|| own.clone(), |before| format!("{before}, {own}"));
            request.insert_header(FORWARDED, all)?;
        } else {
            request.remove_header(&FORWARDED);
        }
        // Some servers turn it into the environment's HTTP_PROXY.
        request.remove_header(&PROXY);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_part_of_forwarded() {
        let ip = |text: &str| Some(text.parse().unwrap());
        assert_eq!(forwarded(ip("192.0.2.1"), Some("a.b:80"), true), "for=192.0.2.1;host=\"a.b:80\";proto=https");
        assert_eq!(forwarded(ip("::ffff:192.0.2.1"), None, false), "for=192.0.2.1;proto=http");
        assert_eq!(forwarded(ip("2001:db8::1"), Some("a\"b"), false), "for=\"[2001:db8::1]\";proto=http");
    }
}
