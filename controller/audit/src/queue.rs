//! What waits for a backend. In: events as lines, from any thread, never waiting. Out: batches, to one worker.

use bytes::Bytes;
use parking_lot::RwLock;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use tokio::sync::mpsc;

/// How much may wait for a backend that is slow or away; what comes on top is lost, and counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLimits {
    /// Events; upstream's default is 10,000.
    pub events: usize,
    /// Their bytes as JSON.
    pub bytes: usize,
}

impl Default for QueueLimits {
    fn default() -> Self {
        Self { events: 10_000, bytes: 64 << 20 }
    }
}

/// The queue's entrance.
pub struct Queue {
    /// Taken away when the queue closes: what is inside still comes out.
    entrance: RwLock<Option<mpsc::Sender<Bytes>>>,
    shared: Arc<Shared>,
    max_bytes: usize,
}

#[derive(Default)]
struct Shared {
    bytes: AtomicUsize,
    /// Events that came in and are neither delivered nor given up yet.
    inside: AtomicU64,
}

impl Queue {
    /// A queue and its exit.
    pub fn new(limits: QueueLimits) -> (Self, Inbox) {
        let (sender, receiver) = mpsc::channel(limits.events.max(1));
        let shared = Arc::new(Shared::default());
        let queue = Self { entrance: RwLock::new(Some(sender)), shared: Arc::clone(&shared), max_bytes: limits.bytes };
        (queue, Inbox { receiver, shared })
    }

    /// Takes an event; false when there is no room or the queue is closed.
    pub fn push(&self, line: Bytes) -> bool {
        let size = line.len();
        let entrance = self.entrance.read();
        let Some(sender) = entrance.as_ref() else { return false };
        if self.shared.bytes.fetch_add(size, Relaxed) + size > self.max_bytes {
            self.shared.bytes.fetch_sub(size, Relaxed);
            return false;
        }
        self.shared.inside.fetch_add(1, Relaxed);
        if sender.try_send(line).is_err() {
            self.shared.bytes.fetch_sub(size, Relaxed);
            self.shared.inside.fetch_sub(1, Relaxed);
            return false;
        }
        true
    }

    /// Takes nothing more; the worker ends when it has done the rest.
    pub fn close(&self) {
        self.entrance.write().take();
    }

    /// Events inside, those that the worker is delivering among them.
    pub fn inside(&self) -> u64 {
        self.shared.inside.load(Relaxed)
    }
}

/// The queue's exit.
pub struct Inbox {
    receiver: mpsc::Receiver<Bytes>,
    shared: Arc<Shared>,
}

impl Inbox {
    /// The next event, on a thread that may sleep; `None` when the queue is closed and empty.
    pub fn wait(&mut self) -> Option<Bytes> {
        self.receiver.blocking_recv()
    }

    /// The next event; `None` when the queue is closed and empty.
    pub async fn next(&mut self) -> Option<Bytes> {
        self.receiver.recv().await
    }

    /// The next event, if one is there.
    pub fn try_next(&mut self) -> Option<Bytes> {
        self.receiver.try_recv().ok()
    }

    /// These have been delivered or given up: there is room for others.
    pub fn done(&self, events: usize, bytes: usize) {
        self.shared.bytes.fetch_sub(bytes, Relaxed);
        self.shared.inside.fetch_sub(events as u64, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounded_by_count_and_by_bytes_and_drains_after_it_closed() {
        let (queue, mut inbox) = Queue::new(QueueLimits { events: 3, bytes: 10 });
        assert!(queue.push(Bytes::from_static(b"12345")));
        assert!(queue.push(Bytes::from_static(b"12345")));
        assert!(!queue.push(Bytes::from_static(b"1")), "no bytes left");
        assert_eq!(inbox.try_next().unwrap().len(), 5);
        assert!(!queue.push(Bytes::from_static(b"1")), "in delivery still counts");
        inbox.done(1, 5);
        assert!(queue.push(Bytes::from_static(b"1")));
        assert!(queue.push(Bytes::from_static(b"2")));
        assert!(!queue.push(Bytes::from_static(b"3")), "no places left");
        assert_eq!(queue.inside(), 3);
        queue.close();
        assert!(!queue.push(Bytes::from_static(b"4")));
        let rest: Vec<Bytes> = std::iter::from_fn(|| inbox.wait()).collect();
        assert_eq!(rest, [&b"12345"[..], b"1", b"2"]);
    }
}
