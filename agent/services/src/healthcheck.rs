//! `healthCheckNodePort`: where a load balancer learns whether this node has endpoints of a Service.
//!
//! In: what the models say, Service by Service. Out: a listener for each on the node's addresses; it answers any path with
//! 200 while there are local endpoints and kube-proxy itself is well, and 503 otherwise.

use crate::{health::Health, model::HealthCheck};
use axum::{
    Json, Router,
    http::{HeaderName, StatusCode, header},
    response::IntoResponse,
};
use serde_json::json;
use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// How many local endpoints a balancer may weigh the node by.
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// All health checks of a node. Must be used on a tokio runtime in the node's namespace.
#[derive(Debug)]
pub struct HealthChecks {
    own: Arc<Health>,
    open: HashMap<String, Check>,
}

#[derive(Debug)]
struct Check {
    port: u16,
    local: Arc<AtomicUsize>,
    /// Where it listens; what is wanted beyond could not be bound.
    bound: HashMap<IpAddr, DropGuard>,
}

impl HealthChecks {
    /// None yet; `own` is kube-proxy's health.
    pub fn new(own: Arc<Health>) -> Self {
        Self { own, open: HashMap::new() }
    }

    /// Sets what is asked about a Service (`namespace/name`), on these addresses. To be called again from time to time:
    /// an address that was taken is tried again.
    pub fn set(&mut self, service: &str, wanted: Option<HealthCheck>, ips: &[IpAddr]) {
        let Some(wanted) = wanted else {
            self.open.remove(service);
            return;
        };
        if self.open.get(service).is_some_and(|c| c.port != wanted.port) {
            self.open.remove(service);
        }
        let check = self.open.entry(service.to_owned()).or_insert_with(|| Check {
            port: wanted.port,
            local: Arc::default(),
            bound: HashMap::new(),
        });
        check.local.store(wanted.local, Ordering::Relaxed);
        check.listen(service, &self.own, ips);
    }

    /// Follows the node's addresses, and tries again what could not be bound.
    pub fn refresh(&mut self, ips: &[IpAddr]) {
        for (service, check) in &mut self.open {
            check.listen(service, &self.own, ips);
        }
    }
}

impl Check {
    fn listen(&mut self, service: &str, own: &Arc<Health>, ips: &[IpAddr]) {
        let wanted: BTreeSet<IpAddr> = ips.iter().copied().collect();
        self.bound.retain(|ip, _| wanted.contains(ip));
        for ip in wanted {
            if self.bound.contains_key(&ip) {
                continue;
            }
            let address = SocketAddr::new(ip, self.port);
            let stop = CancellationToken::new();
            match serve(address, service, own.clone(), self.local.clone(), stop.clone()) {
                Ok(()) => {
                    self.bound.insert(ip, stop.drop_guard());
                }
                Err(error) => tracing::warn!(
                    %error, service, %address,
                    "a load balancer's health check cannot be served; trying again. Who else listens there?"
                ),
            }
        }
    }
}

fn serve(
    address: SocketAddr,
    service: &str,
    own: Arc<Health>,
    local: Arc<AtomicUsize>,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let (namespace, name) = service.split_once('/').unwrap_or(("", service));
    let (namespace, name) = (namespace.to_owned(), name.to_owned());
    let answer = move || {
        let (count, healthy) = (local.load(Ordering::Relaxed), own.is_alive());
        let status = if count > 0 && healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let headers = [(WEIGHT, count.to_string()), (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned())];
        let body = json!({"service": {"namespace": namespace, "name": name}, "localEndpoints": count,
            "serviceProxyHealthy": healthy});
        std::future::ready((status, headers, Json(body)).into_response())
    };
    let served = axum::serve(listener, Router::new().fallback(answer)).with_graceful_shutdown(stop.cancelled_owned());
    tokio::spawn(async move {
        if let Err(error) = served.await {
            tracing::error!(%error, %address, "a load balancer's health check ended");
        }
    });
    Ok(())
}
