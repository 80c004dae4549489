//! Active health checks, for Services that ask for them. In: the upstreams in use, with their settings. Out: endpoints
//! that are marked unhealthy, or well again.

use super::connect;
use crate::config::Shared;
use crate::route::balance::{Check, ProxyVersion};
use crate::route::upstream::Protocol;
use crate::route::{Endpoint, Upstream};
use bytes::Bytes;
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How often it is looked whether a check is due.
const LOOK: Duration = Duration::from_millis(100);
/// Checks at a time.
const AT_ONCE: usize = 64;
/// Failures one after another that are believed.
const FAILURES: u32 = 3;
/// Successes after that which are.
const SUCCESSES: u32 = 2;

/// What is known of an endpoint.
struct Known {
    endpoint: Weak<Endpoint>,
    due: Instant,
    /// Verdicts one after another that contradict what is believed.
    against: Arc<parking_lot::Mutex<u32>>,
}

/// Checks until shutdown.
pub async fn run(shared: Arc<Shared>, shutdown: CancellationToken) {
    let slots = Arc::new(Semaphore::new(AT_ONCE));
    let mut known: HashMap<u64, Known> = HashMap::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
        let now = Instant::now();
        known.retain(|_, k| k.endpoint.strong_count() > 0);
        for upstream in shared.registry.live() {
            let balance = upstream.balance();
            let Some(check) = &balance.check else {
                forget(&upstream, &mut known);
                continue;
            };
            for endpoint in upstream.endpoints().iter() {
                let entry = known.entry(endpoint.id).or_insert_with(|| Known {
                    endpoint: Arc::downgrade(endpoint),
                    due: now,
                    against: Arc::default(),
                });
                if entry.due > now {
                    continue;
                }
                // All of them are busy: later, then.
                let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else { break };
                entry.due = now + check.interval;
                let (shared, endpoint, against) =
                    (Arc::clone(&shared), Arc::clone(endpoint), Arc::clone(&entry.against));
                let (check, protocol, announce) = (check.clone(), upstream.key.protocol(), balance.announce);
                tokio::spawn(async move {
                    let _slot = slot;
                    let asked = tokio::time::timeout(check.interval, ask(&endpoint, &check, protocol, announce)).await;
                    let well = matches!(asked, Ok(Ok(())));
                    if !well {
                        shared.metrics.check_failures.inc();
                    }
                    believe(&endpoint, well, &mut against.lock());
                });
            }
        }
    }
}

/// Where nothing is checked any more, nothing is known.
fn forget(upstream: &Upstream, known: &mut HashMap<u64, Known>) {
    if known.is_empty() {
        return;
    }
    for endpoint in upstream.endpoints().iter() {
        if known.remove(&endpoint.id).is_some() {
            endpoint.set_down(false);
        }
    }
}

fn believe(endpoint: &Endpoint, well: bool, against: &mut u32) {
    if well != endpoint.is_down() {
        *against = 0;
        return;
    }
    *against += 1;
    if *against >= if well { SUCCESSES } else { FAILURES } {
        tracing::info!(address = %endpoint.address, well, "health checks");
        endpoint.set_down(!well);
        *against = 0;
    }
}

async fn ask(
    endpoint: &Endpoint,
    check: &Check,
    protocol: Protocol,
    announce: Option<ProxyVersion>,
) -> anyhow::Result<()> {
    let stream = connect::own(endpoint.address, announce).await?;
    if protocol != Protocol::Http1 {
        return Ok(());
    }
    let request = http::Request::get(&*check.path)
        .header(http::header::HOST, endpoint.address.to_string())
        .header(http::header::USER_AGENT, "causeway-health-check")
        .header(http::header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let answer = sender.send_request(request).await;
    driver.abort();
    let status = answer?.status();
    anyhow::ensure!(status.is_success() || status.is_redirection(), "answered {status}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_verdict_is_not_believed() {
        let endpoint = Endpoint::new(std::net::SocketAddr::from(([10, 0, 0, 1], 80)));
        let mut against = 0;
        let mut tell = |well: bool| {
            believe(&endpoint, well, &mut against);
            endpoint.is_down()
        };
        let said: Vec<bool> = [false, false, true, false, false, false, true, false, true, true].map(&mut tell).into();
        assert_eq!(said, [false, false, false, false, false, true, true, true, true, false]);
    }
}
