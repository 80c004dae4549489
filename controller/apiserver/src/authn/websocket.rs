//! Bearer tokens of WebSocket clients that cannot set headers (browsers): one of the subprotocols they offer.
//!
//! In: headers. Out: the token, and headers without it: the other end of a stream must not see it.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::{SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{HeaderMap, HeaderValue};

const PREFIX: &str = "base64url.bearer.authorization.k8s.io.";

/// The token, if one is offered. An error for one that is malformed, for several, and for one without another
/// subprotocol, which the server could choose.
pub fn token(headers: &HeaderMap) -> Result<Option<String>, &'static str> {
    let websocket = headers.get(UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"));
    if !websocket {
        return Ok(None);
    }
    let (mut token, mut others) = (None, false);
    for value in headers.get_all(SEC_WEBSOCKET_PROTOCOL) {
        // No other bytes can be in one of these.
        let Ok(text) = value.to_str() else { continue };
        for protocol in text.split(',') {
            let Some(encoded) = protocol.trim().strip_prefix(PREFIX) else {
                others = true;
                continue;
            };
            let decoded = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| "invalid base64.bearer.authorization token")?;
            let decoded = String::from_utf8(decoded).map_err(|_| "invalid base64.bearer.authorization token")?;
            if token.replace(decoded).is_some() {
                return Err("multiple base64.bearer.authorization tokens specified");
            }
        }
    }
    match token {
        Some(_) if !others => Err("missing additional subprotocol"),
        found => Ok(found.filter(|token| !token.is_empty())),
    }
}

/// Removes tokens from the subprotocols.
pub fn strip(headers: &mut HeaderMap) {
    let holds = |value: &HeaderValue| value.as_bytes().windows(PREFIX.len()).any(|part| part == PREFIX.as_bytes());
    if !headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().any(holds) {
        return;
    }
    let all = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    let others: Vec<&str> = all.flat_map(|text| text.split(',')).map(str::trim).collect();
    let others: Vec<&str> = others.into_iter().filter(|protocol| !protocol.starts_with(PREFIX)).collect();
    let left = HeaderValue::from_str(&others.join(", ")).ok().filter(|left| !left.is_empty());
    headers.remove(SEC_WEBSOCKET_PROTOCOL);
    if let Some(left) = left {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(protocols: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(UPGRADE, HeaderValue::from_static("WebSocket"));
        for protocol in protocols {
            headers.append(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_str(protocol).unwrap());
        }
        headers
    }

    #[test]
    fn offered_once_and_with_another() {
        let own = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode("secret"));
        let two = format!("{own}, {own}, v5.channel.k8s.io");
        let wrong = format!("{PREFIX}%, v5.channel.k8s.io");
        type Row<'a> = (&'a [&'a str], Result<Option<&'a str>, ()>);
        let table: &[Row<'_>] = &[
            (&[], Ok(None)),
            (&["v5.channel.k8s.io"], Ok(None)),
            (&["v5.channel.k8s.io", &own], Ok(Some("secret"))),
            (&[&format!("{own},v5.channel.k8s.io")], Ok(Some("secret"))),
            (&[&own], Err(())),
            (&[&two], Err(())),
            (&[&wrong], Err(())),
        ];
        for (protocols, want) in table {
            let found = token(&headers(protocols)).map_err(drop);
            assert_eq!(found, want.map(|token| token.map(str::to_owned)), "{protocols:?}");
        }
        let mut plain = headers(&["v5.channel.k8s.io", &own]);
        plain.remove(UPGRADE);
        assert_eq!(token(&plain), Ok(None));
    }

    #[test]
    fn nothing_of_it_goes_on() {
        let own = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode("secret"));
        let mut some = headers(&["v5.channel.k8s.io", &format!("{own}, v4.channel.k8s.io")]);
        strip(&mut some);
        let left: Vec<_> = some.get_all(SEC_WEBSOCKET_PROTOCOL).iter().collect();
        assert_eq!(left, ["v5.channel.k8s.io, v4.channel.k8s.io"]);
        let mut only = headers(&[&own]);
        strip(&mut only);
        assert!(!only.contains_key(SEC_WEBSOCKET_PROTOCOL));
    }
}
