//! The demo shop's API. In: HTTP requests from the web front. Out: JSON, with the number of orders kept in Redis, which
//! is found by its DNS name and opened with the password from a mounted Secret.

use anyhow::{Context, Result, bail};
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufStream};
use tokio::net::TcpStream;

const ORDERS: &str = "orders";

#[derive(Clone)]
struct Shop {
    redis: String,
    password: String,
    pod: String,
}

type Answer = Result<Json<Value>, (StatusCode, Json<Value>)>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let password_file = env("REDIS_PASSWORD_FILE", "/etc/shop/redis/password");
    let password = std::fs::read_to_string(&password_file)
        .with_context(|| format!("reading the Redis password from {password_file}; is the Secret mounted?"))?;
    let host = env("REDIS_HOST", "redis");
    let shop =
        Shop { redis: format!("{host}:6379"), password: password.trim().to_owned(), pod: env("POD_NAME", "unknown") };
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

/// Asks Redis one thing, over a connection of its own: the shop is small, and Redis may be another one by the next time.
async fn ask(shop: &Shop, command: &[&str]) -> Result<Option<String>, (StatusCode, Json<Value>)> {
    let talk = async {
        let mut redis = BufStream::new(TcpStream::connect(&shop.redis).await.context("connecting")?);
        say(&mut redis, &["AUTH", &shop.password]).await.context("signing in")?;
        say(&mut redis, command).await.with_context(|| command.join(" "))
    };
    let said = match tokio::time::timeout(Duration::from_secs(2), talk).await {
        Ok(said) => said,
        Err(_) => Err(anyhow::anyhow!("no answer within 2 s")),
    };
    said.map_err(|e| (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "error": format!("redis: {e:#}") }))))
}

/// Sends a command as Redis' protocol (RESP) has it and reads the answer: a text, a number as text, or nothing.
async fn say(redis: &mut BufStream<TcpStream>, command: &[&str]) -> Result<Option<String>> {
    let mut request = format!("*{}\r\n", command.len());
    for word in command {
        request += &format!("${}\r\n{word}\r\n", word.len());
    }
    redis.write_all(request.as_bytes()).await?;
    redis.flush().await?;
    answer(redis).await
}

async fn answer(redis: &mut (impl AsyncBufRead + Unpin)) -> Result<Option<String>> {
    let mut line = String::new();
    redis.take(1024).read_line(&mut line).await?;
    let line = line.trim_end();
    match (line.get(..1), line.get(1..).unwrap_or_default()) {
        (Some("+" | ":"), text) => Ok(Some(text.to_owned())),
        (Some("$"), "-1") => Ok(None),
        (Some("$"), length) => {
            let length: usize = length.parse().context("a text without a length")?;
            let mut text = String::new();
            redis.take(length.min(1024) as u64).read_to_string(&mut text).await?;
            Ok(Some(text))
        }
        (Some("-"), error) => bail!("{error}"),
        _ => bail!("an answer that is none: {line:?}"),
    }
}

async fn ready(State(shop): State<Shop>) -> Answer {
    ask(&shop, &["PING"]).await?;
    Ok(Json(json!({ "ready": true })))
}

async fn orders(State(shop): State<Shop>) -> Answer {
    let count = ask(&shop, &["GET", ORDERS]).await?;
    Ok(counted(&shop, count))
}

async fn order(State(shop): State<Shop>) -> Answer {
    let count = ask(&shop, &["INCR", ORDERS]).await?;
    Ok(counted(&shop, count))
}

fn counted(shop: &Shop, count: Option<String>) -> Json<Value> {
    let orders: i64 = count.and_then(|c| c.parse().ok()).unwrap_or_default();
    Json(json!({ "shop": "causeway", "orders": orders, "pod": shop.pod }))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(bytes: &[u8]) -> Result<Option<String>> {
        answer(&mut &bytes[..]).await
    }

    #[tokio::test]
    async fn answers_of_redis() {
        assert_eq!(read(b"+PONG\r\n").await.unwrap().as_deref(), Some("PONG"));
        assert_eq!(read(b":42\r\n").await.unwrap().as_deref(), Some("42"));
        assert_eq!(read(b"$2\r\n17\r\n").await.unwrap().as_deref(), Some("17"));
        assert_eq!(read(b"$-1\r\n").await.unwrap(), None);
        assert!(read(b"-NOAUTH Authentication required.\r\n").await.unwrap_err().to_string().contains("NOAUTH"));
        for bad in [&b""[..], b"what\r\n", b"$x\r\n"] {
            assert!(read(bad).await.is_err());
        }
    }
}
