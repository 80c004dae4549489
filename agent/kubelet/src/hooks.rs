//! postStart and preStop hooks.

use crate::context::Context;
use crate::net;
use k8s_openapi::api::core::v1::{Container, LifecycleHandler};
use std::net::IpAddr;
use std::time::Duration;

/// Runs a hook; the error says what went wrong. `limit` bounds commands and requests.
pub async fn run(
    ctx: &Context,
    c: &Container,
    id: &str,
    ip: Option<IpAddr>,
    handler: &LifecycleHandler,
    limit: Duration,
) -> Result<(), String> {
    let work = async {
        if let Some(exec) = &handler.exec {
            let command = exec.command.clone().unwrap_or_default();
            let out = ctx.runtime.exec_sync(id, &command, limit).await.map_err(|e| e.to_string())?;
            return match out.code {
                Some(0) => Ok(()),
                Some(code) => Err(format!("command '{}' exited with {code}: {}", command.join(" "), out.output)),
                None => Err(format!("command '{}' did not end in time", command.join(" "))),
            };
        }
        if let Some(action) = &handler.http_get {
            let (code, _) = net::http(action, c, ip).await?;
            return if code < 400 { Ok(()) } else { Err(format!("HTTP hook answered {code}")) };
        }
        if let Some(sleep) = &handler.sleep {
            tokio::time::sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))).await;
            return Ok(());
        }
        Err("invalid handler: none of exec, httpGet, sleep".to_owned())
    };
    tokio::time::timeout(limit, work).await.map_err(|_| "did not end in time".to_owned())?
}
