//! Events to a webhook. In: lines. Out: POSTs of EventLists, one after the other, so that events arrive in their order.
//!
//! A batch that fails (no connection, no answer in time, any status but 2xx) is sent again, each time later, and given
//! up after so many attempts; redirects are not followed. Meanwhile the queue fills, and what does not fit is lost and
//! counted. A webhook may get an event twice.

mod client;
pub mod kubeconfig;
#[cfg(test)]
mod tests;

use crate::auditor::{AuditError, Counted, Counts, Rarely};
use crate::event;
use crate::queue::{Inbox, Queue, QueueLimits};
use bytes::Bytes;
use client::Client;
use kubeconfig::Webhook;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

/// The webhook backend. The defaults are upstream's.
#[derive(Clone)]
pub struct WebhookConfig {
    /// Where it is.
    pub webhook: Webhook,
    /// What may wait.
    pub queue: QueueLimits,
    /// Events of one POST: 400.
    pub batch_events: usize,
    /// A POST is not filled up beyond this, in bytes: 10 MiB.
    pub batch_bytes: usize,
    /// A batch that is not full is sent after this: 30 s.
    pub batch_wait: Duration,
    /// How many batches are sent a second.
    pub throttle: Option<Throttle>,
    /// The pause before the second attempt: 10 s. Each further one is half as long again, and up to a fifth more by
    /// chance.
    pub backoff: Duration,
    /// Attempts, the first one included: 5.
    pub attempts: u32,
    /// How long one attempt may take: 30 s.
    pub timeout: Duration,
}

impl WebhookConfig {
    /// Upstream's defaults.
    pub fn new(webhook: Webhook) -> Self {
        Self {
            webhook,
            queue: QueueLimits::default(),
            batch_events: 400,
            batch_bytes: 10 << 20,
            batch_wait: Duration::from_secs(30),
            throttle: Some(Throttle::default()),
            backoff: Duration::from_secs(10),
            attempts: 5,
            timeout: Duration::from_secs(30),
        }
    }
}

/// A bucket of tokens; each batch takes one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Throttle {
    /// Tokens that come in a second: 10.
    pub qps: f64,
    /// Tokens that the bucket holds: 15.
    pub burst: u32,
}

impl Default for Throttle {
    fn default() -> Self {
        Self { qps: 10.0, burst: 15 }
    }
}

/// The running backend.
pub(crate) struct Sender {
    queue: Queue,
    counts: Arc<Counts>,
    told: Rarely,
    task: Mutex<Option<tokio::task::JoinHandle<()>>>,
}

impl Sender {
    pub fn start(config: WebhookConfig) -> Result<Self, AuditError> {
        if config.batch_events == 0 || config.batch_bytes == 0 || config.attempts == 0 {
            return Err(AuditError::Invalid("batch webhook size or number of attempts, must be a positive number"));
        }
        if let Some(throttle) = config.throttle
            && !(throttle.qps.is_finite() && throttle.qps >= 0.001 && throttle.burst > 0)
        {
            return Err(AuditError::Invalid("batch webhook throttle QPS or burst, must be a positive number"));
        }
        let runtime = tokio::runtime::Handle::try_current().map_err(|e| AuditError::Webhook(e.to_string()))?;
        let (queue, inbox) = Queue::new(config.queue);
        let counts = Arc::new(Counts::default());
        let worker = Worker {
            client: Client::new(config.webhook.clone()),
            bucket: config.throttle.map(Bucket::new),
            config,
            counts: Arc::clone(&counts),
            told: Rarely::default(),
        };
        let task = Mutex::new(Some(runtime.spawn(worker.work(inbox))));
        Ok(Self { queue, counts, told: Rarely::default(), task })
    }

    pub fn take(&self, line: Bytes) {
        if !self.queue.push(line) {
            self.counts.overflowed.fetch_add(1, Relaxed);
            if self.told.now() {
                tracing::warn!("audit webhook: the queue is full or closed, events are lost");
            }
        }
    }

    pub fn figures(&self) -> Counted {
        self.counts.now()
    }

    /// Sends what waits, until the deadline; returns how many events are left.
    pub async fn stop(&self, deadline: Instant) -> u64 {
        self.queue.close();
        let Some(mut task) = self.task.lock().take() else { return 0 };
        if timeout_at(deadline, &mut task).await.is_ok() {
            return 0;
        }
        task.abort();
        // So that the worker counts nothing any more.
        drop(task.await);
        let left = self.queue.inside();
        self.counts.failed.fetch_add(left, Relaxed);
        tracing::warn!(events = left, "audit webhook: not all was sent before the end");
        left
    }
}

struct Worker {
    client: Client,
    bucket: Option<Bucket>,
    config: WebhookConfig,
    counts: Arc<Counts>,
    told: Rarely,
}

impl Worker {
    async fn work(mut self, mut inbox: Inbox) {
        let mut carried = None;
        loop {
            let first = match carried.take() {
                Some(line) => line,
                None => match inbox.next().await {
                    Some(line) => line,
                    None => return,
                },
            };
            let mut batch = vec![first];
            carried = self.fill(&mut batch, &mut inbox).await;
            let (events, bytes) = (batch.len(), batch.iter().map(Bytes::len).sum());
            let delivered = self.send(event::list(&batch)).await;
            let count = if delivered { &self.counts.delivered } else { &self.counts.failed };
            count.fetch_add(events as u64, Relaxed);
            inbox.done(events, bytes);
        }
    }

    /// Fills a batch up; returns an event that did not fit any more.
    async fn fill(&self, batch: &mut Vec<Bytes>, inbox: &mut Inbox) -> Option<Bytes> {
        let deadline = Instant::now() + self.config.batch_wait;
        let mut bytes: usize = batch.iter().map(Bytes::len).sum();
        while batch.len() < self.config.batch_events && bytes < self.config.batch_bytes {
            let Ok(Some(line)) = timeout_at(deadline, inbox.next()).await else { return None };
            bytes += line.len();
            if bytes > self.config.batch_bytes {
                return Some(line);
            }
            batch.push(line);
        }
        None
    }

    async fn send(&mut self, list: Bytes) -> bool {
        let mut pause = self.config.backoff;
        for attempt in 1..=self.config.attempts {
            if let Some(bucket) = &mut self.bucket {
                bucket.take().await;
            }
            let why = match timeout(self.config.timeout, self.client.post(list.clone())).await {
                Ok(Ok(())) => return true,
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer in time".to_owned(),
            };
            // A connection that did not answer must not be asked again.
            self.client.close();
            let last = attempt == self.config.attempts;
            if self.told.now() || last {
                let error = crate::text::cut(&why, 512);
                tracing::warn!(attempt, last, %error, "audit webhook: events are not sent");
            }
            if !last {
                sleep(pause + pause.mul_f64(chance() / 5.0)).await;
                pause = (pause + pause / 2).min(Duration::from_secs(300));
            }
        }
        false
    }
}

/// A number in [0, 1), so that servers that failed together do not come back together.
fn chance() -> f64 {
    f64::from(uuid::Uuid::new_v4().as_fields().0) / (f64::from(u32::MAX) + 1.0)
}

struct Bucket {
    throttle: Throttle,
    tokens: f64,
    at: Instant,
}

impl Bucket {
    fn new(throttle: Throttle) -> Self {
        Self { throttle, tokens: f64::from(throttle.burst), at: Instant::now() }
    }

    async fn take(&mut self) {
        let now = Instant::now();
        let come = now.duration_since(self.at).as_secs_f64() * self.throttle.qps;
        self.tokens = (self.tokens + come).min(f64::from(self.throttle.burst)) - 1.0;
        self.at = now;
        if self.tokens < 0.0 {
            sleep_until(now + Duration::from_secs_f64(-self.tokens / self.throttle.qps)).await;
        }
    }
}
