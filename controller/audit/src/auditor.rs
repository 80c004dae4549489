//! The audit of one server. In: a configuration, and requests as they begin. Out: their records, and what became of
//! their events in figures.

use crate::event::Event;
use crate::log::{Log, LogConfig};
use crate::policy::{Level, Policy};
use crate::record::Record;
use crate::webhook::{Sender, WebhookConfig};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::time::Instant;

/// The longest `Audit-ID` that is taken from a client, in bytes.
const MAX_AUDIT_ID: usize = 64;

/// What is audited, and where the events go. Both backends may be on at once, or none.
pub struct Config {
    /// Which requests, in how much detail.
    pub policy: Policy,
    /// Into a file.
    pub log: Option<LogConfig>,
    /// To a webhook.
    pub webhook: Option<WebhookConfig>,
    /// A request's or response's object that is larger than this, in bytes of JSON, is left out of its event.
    pub max_body_bytes: usize,
}

impl Config {
    /// No backends, bodies of at most 512 KiB.
    pub fn new(policy: Policy) -> Self {
        Self { policy, log: None, webhook: None, max_body_bytes: 512 << 10 }
    }
}

/// Why there is no audit, or not of this request.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The log file cannot be opened.
    #[error("audit log {path}: {source}", path = path.display())]
    Log {
        /// Which file.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The webhook's TLS settings are no such.
    #[error("audit webhook: {0}")]
    Webhook(String),
    /// A limit is out of range.
    #[error("invalid audit {0}")]
    Invalid(&'static str),
    /// In mode `blocking-strict`: the request must not be served (500, with this text).
    #[error("failed to store audit event")]
    NotStored,
}

/// Who asks, as authentication has found out.
#[derive(Debug, Clone, Copy)]
pub struct User<'a> {
    /// For example `system:serviceaccount:default:builder`.
    pub name: &'a str,
    /// Empty where there is none.
    pub uid: &'a str,
    /// With `system:authenticated` or `system:unauthenticated`.
    pub groups: &'a [String],
    /// What else authentication knows.
    pub extra: &'a BTreeMap<String, Vec<String>>,
}

/// What a request is about. Texts that do not apply are empty.
#[derive(Debug, Clone, Copy, Default)]
pub struct Resource<'a> {
    /// API group; empty for core.
    pub group: &'a str,
    /// API version.
    pub version: &'a str,
    /// Plural name, for example `pods`.
    pub resource: &'a str,
    /// For example `exec`.
    pub subresource: &'a str,
    /// Empty for cluster-wide resources and requests.
    pub namespace: &'a str,
    /// Empty for lists and creations.
    pub name: &'a str,
}

/// A request as the server knows it when authentication is done and before anything else is.
#[derive(Debug, Clone, Copy)]
pub struct RequestFacts<'a> {
    /// From [`audit_id`]; empty: a new one.
    pub audit_id: &'a str,
    /// Path and query as they came.
    pub uri: &'a str,
    /// The path alone.
    pub path: &'a str,
    /// `get`, `list`, …; of other URLs than resources' the HTTP method in lower case.
    pub verb: &'a str,
    /// `None` before authentication, or when it failed.
    pub user: Option<User<'a>>,
    /// As upstream lists them: `X-Forwarded-For`, `X-Real-Ip`, and last the connection's own.
    pub source_ips: &'a [IpAddr],
    /// The header's value.
    pub user_agent: &'a str,
    /// `None` for URLs that are no resources'.
    pub resource: Option<Resource<'a>>,
    /// When the request came.
    pub received: jiff::Timestamp,
    /// A watch, exec, attach, portforward, proxy or a followed log: it also has an event of its response's beginning.
    pub long_running: bool,
}

/// What a request is called in its events and in the response's header `Audit-ID`: what its client called it, where
/// that is 1 to 64 visible ASCII characters, or a new UUID.
pub fn audit_id(header: Option<&str>) -> String {
    match header {
        Some(id) if (1..=MAX_AUDIT_ID).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic()) => id.to_owned(),
        _ => uuid::Uuid::new_v4().to_string(),
    }
}

/// Counts since the start. Names of upstream's metrics are given where there are such.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Events handed to the backends: `apiserver_audit_event_total`.
    pub events: u64,
    /// Requests by level (`None`, `Metadata`, `Request`, `RequestResponse`): `apiserver_audit_level_total`.
    pub requests: [u64; 4],
    /// Requests refused since their event was not stored: `apiserver_audit_requests_rejected_total`.
    pub rejected: u64,
    /// Events in the log file.
    pub logged: u64,
    /// Events that the log lost: no room in its queue (`apiserver_audit_error_total{plugin="buffered"}`).
    pub log_overflowed: u64,
    /// Events that the log lost: not written (`apiserver_audit_error_total{plugin="log"}`).
    pub log_failed: u64,
    /// Events that the webhook took.
    pub sent: u64,
    /// Events that the webhook lost: no room in its queue (`apiserver_audit_error_total{plugin="buffered"}`).
    pub webhook_overflowed: u64,
    /// Events that the webhook lost: given up after retries (`apiserver_audit_error_total{plugin="webhook"}`).
    pub webhook_failed: u64,
}

/// The audit. Clones are handles of the same one.
#[derive(Clone)]
pub struct Auditor(Arc<Shared>);

pub(crate) struct Shared {
    policy: Policy,
    log: Option<Log>,
    webhook: Option<Sender>,
    pub(crate) max_body_bytes: usize,
    events: AtomicU64,
    requests: [AtomicU64; 4],
    rejected: AtomicU64,
}

impl Shared {
    /// Hands an event to the backends; false when one whose mode is `blocking-strict` has not stored it.
    pub(crate) fn take(&self, event: &Event<'_>) -> bool {
        self.events.fetch_add(1, Relaxed);
        if self.log.is_none() && self.webhook.is_none() {
            return true;
        }
        // An Event holds nothing that JSON cannot express.
        let Ok(line) = event.line() else { return false };
        if let Some(webhook) = &self.webhook {
            webhook.take(line.clone());
        }
        self.log.as_ref().is_none_or(|log| log.take(line))
    }
}

impl Auditor {
    /// Opens the backends. With a webhook it is to be called inside a tokio runtime.
    ///
    /// # Errors
    /// When the log cannot be opened, or a setting is out of range.
    pub fn start(config: Config) -> Result<Self, AuditError> {
        // What metadata can amount to is far below: an event without bodies always fits.
        if config.max_body_bytes > 64 << 20 {
            return Err(AuditError::Invalid("max body size, must be at most 64 MiB"));
        }
        Ok(Self(Arc::new(Shared {
            policy: config.policy,
            log: config.log.map(Log::start).transpose()?,
            webhook: config.webhook.map(Sender::start).transpose()?,
            max_body_bytes: config.max_body_bytes,
            events: AtomicU64::new(0),
            requests: Default::default(),
            rejected: AtomicU64::new(0),
        })))
    }

    /// A request begins, authenticated. `None` when the policy does not ask for it: then nothing is allocated.
    ///
    /// # Errors
    /// [`AuditError::NotStored`] when the log's mode is `blocking-strict` and the event of stage `RequestReceived` is
    /// not written: the request is to be answered with a 500.
    pub fn begin(&self, facts: &RequestFacts<'_>) -> Result<Option<Record>, AuditError> {
        let Some(record) = self.record(facts) else { return Ok(None) };
        if record.received() {
            return Ok(Some(record));
        }
        self.0.rejected.fetch_add(1, Relaxed);
        record.forget();
        Err(AuditError::NotStored)
    }

    /// A request whose authentication failed: one event of stage `ResponseStarted`, as upstream makes it. `attempted`
    /// names the ways that were tried, for example `bearer`; it is empty when there were no credentials.
    pub fn authentication_failed(&self, facts: &RequestFacts<'_>, code: u16, attempted: &str) {
        let facts = RequestFacts { user: None, ..*facts };
        let Some(record) = self.record(&facts) else { return };
        let message = match attempted {
            "" => "Authentication failed, no credentials provided".to_owned(),
            methods => format!("Authentication failed, attempted: {methods}"),
        };
        record.authentication_failed(code, &message);
    }

    fn record(&self, facts: &RequestFacts<'_>) -> Option<Record> {
        let decision = self.0.policy.decide(facts);
        self.0.requests[decision.level as usize].fetch_add(1, Relaxed);
        (decision.level != Level::None).then(|| Record::new(Arc::clone(&self.0), facts, decision))
    }

    /// Counts since the start.
    pub fn figures(&self) -> Figures {
        let log = self.0.log.as_ref().map(Log::figures).unwrap_or_default();
        let webhook = self.0.webhook.as_ref().map(Sender::figures).unwrap_or_default();
        Figures {
            events: self.0.events.load(Relaxed),
            requests: [0, 1, 2, 3].map(|i| self.0.requests[i].load(Relaxed)),
            rejected: self.0.rejected.load(Relaxed),
            logged: log.delivered,
            log_overflowed: log.overflowed,
            log_failed: log.failed,
            sent: webhook.delivered,
            webhook_overflowed: webhook.overflowed,
            webhook_failed: webhook.failed,
        }
    }

    /// Takes no more events (later ones are counted as overflowed) and delivers what waits, for at most so long.
    /// Returns how many events were left behind; these count as failed.
    pub async fn shutdown(&self, patience: Duration) -> u64 {
        let deadline = Instant::now() + patience;
        let log = async {
            match &self.0.log {
                Some(log) => log.stop(deadline).await,
                None => 0,
            }
        };
        let webhook = async {
            match &self.0.webhook {
                Some(webhook) => webhook.stop(deadline).await,
                None => 0,
            }
        };
        let (log, webhook) = tokio::join!(log, webhook);
        log + webhook
    }
}

/// What became of a backend's events.
#[derive(Default)]
pub(crate) struct Counts {
    pub delivered: AtomicU64,
    pub overflowed: AtomicU64,
    pub failed: AtomicU64,
}

/// [`Counts`] at one moment.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Counted {
    pub delivered: u64,
    pub overflowed: u64,
    pub failed: u64,
}

impl Counts {
    pub fn now(&self) -> Counted {
        Counted {
            delivered: self.delivered.load(Relaxed),
            overflowed: self.overflowed.load(Relaxed),
            failed: self.failed.load(Relaxed),
        }
    }
}

/// Lets a message through at most every ten seconds.
#[derive(Default)]
pub(crate) struct Rarely(parking_lot::Mutex<Option<std::time::Instant>>);

impl Rarely {
    pub fn now(&self) -> bool {
        let mut last = self.0.lock();
        let due = last.is_none_or(|at| at.elapsed() > Duration::from_secs(10));
        if due {
            *last = Some(std::time::Instant::now());
        }
        due
    }
}

#[cfg(test)]
mod tests;
