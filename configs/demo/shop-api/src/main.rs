//! The demo shop's API. In: HTTP requests from the web front. Out: JSON, with the number of orders kept in Redis, which
//! is found by its DNS name and opened with the password from a mounted Secret.

use anyhow::{Context, Result};
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use redis::AsyncCommands;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use serde_json::{Value, json};
use std::time::Duration;

const ORDERS: &str = "orders";

#[derive(Clone)]
struct Shop {
    redis: redis::Client,
    pod: String,
}

type Answer = Result<Json<Value>, (StatusCode, Json<Value>)>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let password_file = env("REDIS_PASSWORD_FILE", "/etc/shop/redis/password");
    let password = std::fs::read_to_string(&password_file)
        .with_context(|| format!("reading the Redis password from {password_file}; is the Secret mounted?"))?;
    let host = env("REDIS_HOST", "redis");
    let shop = Shop {
        redis: redis::Client::open(format!("redis://:{}@{host}:6379/", password.trim()))?,
        pod: env("POD_NAME", "unknown"),
    };
    let app = Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(ready))
        .route("/api/", get(orders))
        .route("/api/orders", get(orders))
        .route("/api/orders", post(order))
        .with_state(shop);
    let listener = tokio::net::TcpListener::bind("0.0.0.0:8080").await.context("listening on port 8080")?;
    println!("shop-api listens on {}", listener.local_addr()?);
    axum::serve(listener, app).with_graceful_shutdown(terminated()).await?;
    println!("shop-api has drained");
    Ok(())
}

fn env(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

/// Kubernetes ends a pod with SIGTERM: requests in flight are finished first.
async fn terminated() {
    use tokio::signal::unix::{SignalKind, signal};
    if let Ok(mut signal) = signal(SignalKind::terminate()) {
        signal.recv().await;
    }
}

async fn connect(shop: &Shop) -> Result<ConnectionManager, (StatusCode, Json<Value>)> {
    let config = ConnectionManagerConfig::new()
        .set_connection_timeout(Some(Duration::from_secs(2)))
        .set_response_timeout(Some(Duration::from_secs(2)))
        .set_number_of_retries(1);
    ConnectionManager::new_with_config(shop.redis.clone(), config).await.map_err(|e| unavailable(&e))
}

fn unavailable(error: &redis::RedisError) -> (StatusCode, Json<Value>) {
    (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "error": format!("redis: {error}") })))
}

async fn ready(State(shop): State<Shop>) -> Answer {
    let mut redis = connect(&shop).await?;
    redis.ping::<()>().await.map_err(|e| unavailable(&e))?;
    Ok(Json(json!({ "ready": true })))
}

async fn orders(State(shop): State<Shop>) -> Answer {
    let mut redis = connect(&shop).await?;
    let count: Option<i64> = redis.get(ORDERS).await.map_err(|e| unavailable(&e))?;
    Ok(Json(json!({ "shop": "causeway", "orders": count.unwrap_or(0), "pod": shop.pod })))
}

async fn order(State(shop): State<Shop>) -> Answer {
    let mut redis = connect(&shop).await?;
    let count: i64 = redis.incr(ORDERS, 1).await.map_err(|e| unavailable(&e))?;
    Ok(Json(json!({ "shop": "causeway", "orders": count, "pod": shop.pod })))
}
