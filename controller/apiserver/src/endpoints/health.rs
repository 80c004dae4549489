//! `/healthz`, `/livez`, `/readyz` with their checks, and `/version`.

use crate::endpoints::Endpoints;
use crate::exchange::{Incoming, Reply};
use crate::status::{ApiError, ApiResult};
use causeway_api::version;
use http::StatusCode;
use serde_json::{Value, json};
use std::fmt::Write;
use std::time::Duration;

/// The version document.
pub fn version() -> Value {
    json!({
        "major": version::MAJOR,
        "minor": version::MINOR,
        "gitVersion": version::GIT_VERSION,
        "gitCommit": option_env!("CAUSEWAY_GIT_COMMIT").unwrap_or("unknown"),
        "gitTreeState": "clean",
        "buildDate": option_env!("CAUSEWAY_BUILD_DATE").unwrap_or("1970-01-01T00:00:00Z"),
        "goVersion": "",
        "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, platform()),
    })
}

fn platform() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

impl Endpoints {
    /// Runs the checks of an endpoint (or the one that is named) and tells about them.
    pub(crate) async fn health(&self, endpoint: &str, only: &[&str], incoming: &Incoming) -> ApiResult<Reply> {
        let store = self.engine.store.health();
        let mut checks: Vec<(&str, Result<(), String>)> = vec![("ping", Ok(())), ("log", Ok(()))];
        if endpoint == "livez" {
            // Starting again makes no room on a disk: only what cannot be read is a reason to.
            checks.push(("etcd", store.reads.clone()));
        } else {
            checks.push(("etcd-readiness", store.verdict()));
            let fed = tokio::time::timeout(Duration::from_secs(2), self.engine.feed.catch_up()).await;
            let fed = match fed {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err("the store did not answer within 2 s".to_owned()),
            };
            checks.push(("etcd", fed.clone()));
            checks.push(("informer-sync", fed));
        }
        if endpoint == "readyz" {
            let stopping = self.shutdown.is_cancelled();
            checks.push(("shutdown", if stopping { Err("process is shutting down".to_owned()) } else { Ok(()) }));
            checks.push(("poststarthook/bootstrap-system-objects", self.bootstrapped()));
        }
        if let [name, ..] = only {
            checks.retain(|(check, _)| check == name);
            if checks.is_empty() {
                return Err(ApiError::no_such_path());
            }
        }
        let excluded = incoming.info.query.all("exclude");
        checks.retain(|(check, _)| !excluded.iter().any(|e| e == check));
        let failed = checks.iter().any(|(_, outcome)| outcome.is_err());
        if !failed && !incoming.info.query.flag("verbose") {
            return Ok(Reply::text(StatusCode::OK, "ok"));
        }
        let mut text = String::new();
        for (check, outcome) in &checks {
            let _ = match outcome {
                Ok(()) => writeln!(text, "[+]{check} ok"),
                Err(why) => writeln!(text, "[-]{check} failed: {why}"),
            };
        }
        let verdict = if failed { "failed" } else { "passed" };
        let _ = writeln!(text, "{endpoint} check {verdict}");
        let code = if failed { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::OK };
        Ok(Reply::text(code, text))
    }

    fn bootstrapped(&self) -> Result<(), String> {
        let served = self.engine.served("", "v1", "namespaces").map_err(|e| e.to_string())?;
        let there = self.engine.feed.cache(&served.prefix).get(&served.key("", "default")).is_some();
        if there { Ok(()) } else { Err("namespace default does not exist yet".to_owned()) }
    }
}
