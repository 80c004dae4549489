//! Answers of our own: plain text that says what went wrong and where to look.

use bytes::Bytes;
use http::{Method, StatusCode, header};
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;
use pingora::{BError, ErrorSource, ErrorType, OrErr};

/// What a client is told whose request's body is too large.
pub const TOO_LARGE: &str = "The request's body is larger than this route takes (annotation proxy-body-size).";

/// Sends a short text. The connection stays usable where the request has been read.
pub async fn send(session: &mut ServerSession, status: StatusCode, text: &str) -> Result<(), BError> {
    send_with(session, status, text, &[]).await
}

/// The same with further headers.
pub async fn send_with(
    session: &mut ServerSession,
    status: StatusCode,
    text: &str,
    headers: &[(&'static str, String)],
) -> Result<(), BError> {
    if status == StatusCode::NO_CONTENT {
        let mut head = ResponseHeader::build(status, Some(headers.len()))?;
        for (name, value) in headers {
            head.insert_header(*name, value)?;
        }
        session.write_response_header(Box::new(head)).await?;
        return session.finish_body().await;
    }
    let body = Bytes::from(format!("{} {}\n{text}\n", status.as_u16(), status.canonical_reason().unwrap_or("")));
    let mut head = ResponseHeader::build(status, Some(5))?;
    head.insert_header(header::CONTENT_TYPE, "text/plain; charset=utf-8")?;
    head.insert_header(header::CONTENT_LENGTH, body.len())?;
    head.insert_header(header::CACHE_CONTROL, "no-store")?;
    head.insert_header(header::SERVER, "causeway")?;
    for (name, value) in headers {
        head.insert_header(*name, value)?;
    }
    if status == StatusCode::SERVICE_UNAVAILABLE {
        head.insert_header(header::RETRY_AFTER, "1")?;
    }
    let is_head = session.req_header().method == Method::HEAD;
    session.write_response_header(Box::new(head)).await?;
    if is_head {
        session.finish_body().await
    } else {
        session.write_response_body(body, true).await.or_err(ErrorType::WriteError, "sending an error page")
    }
}

/// Sends a text and nothing but it.
pub async fn send_bare(session: &mut ServerSession, text: &str) -> Result<(), BError> {
    let mut head = ResponseHeader::build(StatusCode::OK, Some(2))?;
    head.insert_header(header::CONTENT_TYPE, "application/octet-stream")?;
    head.insert_header(header::CONTENT_LENGTH, text.len())?;
    session.write_response_header(Box::new(head)).await?;
    let body = Bytes::copy_from_slice(text.as_bytes());
    session.write_response_body(body, true).await.or_err(ErrorType::WriteError, "answering an authority")
}

/// What a client is told about an error; none when it is gone.
pub fn of_error(error: &pingora::Error) -> Option<(StatusCode, &'static str)> {
    if let ErrorType::HTTPStatus(413) = error.etype() {
        return Some((StatusCode::PAYLOAD_TOO_LARGE, TOO_LARGE));
    }
    if let ErrorType::HTTPStatus(code) = error.etype() {
        return StatusCode::from_u16(*code).ok().map(|status| (status, "The request could not be served."));
    }
    match (error.esource(), error.etype()) {
        (
            ErrorSource::Upstream,
            ErrorType::ConnectTimedout
            | ErrorType::ReadTimedout
            | ErrorType::WriteTimedout
            | ErrorType::TLSHandshakeTimedout,
        ) => Some((StatusCode::GATEWAY_TIMEOUT, "The service did not answer in time. See its pods' logs.")),
        (ErrorSource::Upstream, ErrorType::ConnectRefused | ErrorType::ConnectNoRoute | ErrorType::ConnectError) => {
            Some((
                StatusCode::BAD_GATEWAY,
                "No endpoint of the service takes connections. Are its pods listening on the targetPort?",
            ))
        }
        (ErrorSource::Upstream, _) => {
            Some((StatusCode::BAD_GATEWAY, "The service broke off or sent no valid answer. See its pods' logs."))
        }
        (ErrorSource::Downstream, ErrorType::ReadTimedout) => {
            Some((StatusCode::REQUEST_TIMEOUT, "The request's body did not arrive in time."))
        }
        (
            ErrorSource::Downstream,
            ErrorType::WriteError | ErrorType::ReadError | ErrorType::ConnectionClosed | ErrorType::WriteTimedout,
        ) => None,
        (ErrorSource::Downstream, _) => Some((StatusCode::BAD_REQUEST, "The request is not valid HTTP.")),
        _ => Some((StatusCode::INTERNAL_SERVER_ERROR, "The ingress failed. See its log.")),
    }
}
