//! One connection to the webhook. In: a body. Out: whether the webhook took it. HTTP/1.1, kept open between POSTs.

use super::kubeconfig::{KubeconfigError, Token, Webhook};
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// An answer's body is read up to this, in bytes, so that the connection can be used again.
const MAX_ANSWER: usize = 64 << 10;

/// Why a POST failed.
#[derive(Debug, thiserror::Error)]
pub enum PostError {
    /// No connection.
    #[error("connecting: {0}")]
    Connect(#[from] std::io::Error),
    /// It broke.
    #[error("asking: {0}")]
    Http(#[from] hyper::Error),
    /// The token is not readable, or no header value.
    #[error("token: {0}")]
    Token(#[from] KubeconfigError),
    /// The request cannot be made.
    #[error("request: {0}")]
    Request(#[from] http::Error),
    /// Not 2xx.
    #[error("answered {0}")]
    Status(StatusCode),
}

/// A webhook and perhaps a connection to it.
pub struct Client {
    webhook: Webhook,
    connection: Option<SendRequest<Full<Bytes>>>,
}

impl Client {
    pub fn new(webhook: Webhook) -> Self {
        Self { webhook, connection: None }
    }

    /// Forgets the connection.
    pub fn close(&mut self) {
        self.connection = None;
    }

    pub async fn post(&mut self, body: Bytes) -> Result<(), PostError> {
        let request = self.request(body).await?;
        let mut connection = match self.connection.take() {
            Some(open) => open,
            None => self.connect().await?,
        };
        // The webhook may have closed it meanwhile.
        if connection.ready().await.is_err() {
            connection = self.connect().await?;
        }
        let answer = connection.send_request(request).await?;
        let (head, body) = answer.into_parts();
        // A longer answer costs the connection and nothing else.
        if Limited::new(body, MAX_ANSWER).collect().await.is_ok() {
            self.connection = Some(connection);
        }
        if head.status.is_success() { Ok(()) } else { Err(PostError::Status(head.status)) }
    }

    async fn request(&self, body: Bytes) -> Result<Request<Full<Bytes>>, PostError> {
        let mut request = Request::post(&self.webhook.path)
            .header(HOST, &self.webhook.authority)
            .header(CONTENT_TYPE, "application/json")
            .header(USER_AGENT, "causeway");
        if let Some(token) = token(&self.webhook.token).await? {
            let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(http::Error::from)?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        Ok(request.body(Full::new(body))?)
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, PostError> {
        let stream = TcpStream::connect((self.webhook.host.as_str(), self.webhook.port)).await?;
        stream.set_nodelay(true)?;
        let Some((config, name)) = &self.webhook.tls else { return drive(stream).await };
        let stream = TlsConnector::from(config.clone()).connect(name.clone(), stream).await?;
        drive(stream).await
    }
}

async fn token(token: &Token) -> Result<Option<String>, KubeconfigError> {
    let Token::File(_) = token else { return token.now() };
    let token = token.clone();
    tokio::task::spawn_blocking(move || token.now())
        .await
        .unwrap_or_else(|e| Err(KubeconfigError::Invalid(e.to_string())))
}

async fn drive<S>(stream: S) -> Result<SendRequest<Full<Bytes>>, PostError>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    // Ends when the sender is dropped; its errors are the sender's.
    tokio::spawn(connection);
    Ok(sender)
}
