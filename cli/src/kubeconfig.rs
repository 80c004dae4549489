//! The administrator's kubeconfig: written by `up`, printed on request, and loaded by our own commands.

use crate::paths::Paths;
use anyhow::{Context, Result};
use kube::client::ClientBuilder;
use kube::config::{KubeConfigOptions, Kubeconfig};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;
use tower::util::MapResponseLayer;

/// Prints it.
pub fn print(paths: &Paths) -> Result<()> {
    print!("{}", read(paths)?);
    Ok(())
}

/// Writes it, readable by its owner only, whole or not at all.
pub fn write(paths: &Paths, text: &str) -> Result<()> {
    let next = paths.kubeconfig().with_extension("next");
    let written = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(&next)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .and_then(|()| fs::rename(&next, paths.kubeconfig()));
    written.with_context(|| format!("writing {}", paths.kubeconfig().display()))
}

/// A client of the cluster, as its administrator.
pub async fn client(paths: &Paths) -> Result<kube::Client> {
    Ok(kube::Client::try_from(config(paths).await?)?)
}

/// The same; what the API server warns of goes to standard error, as kubectl has it. Gives up on a server that does not
/// answer sooner.
pub async fn client_that_warns(paths: &Paths) -> Result<kube::Client> {
    let mut config = config(paths).await?;
    config.connect_timeout = Some(Duration::from_secs(5));
    config.read_timeout = Some(Duration::from_secs(30));
    let builder = ClientBuilder::try_from(config)?;
    Ok(builder.with_layer(&MapResponseLayer::new(tell_warnings)).build())
}

fn tell_warnings<B>(response: http::Response<B>) -> http::Response<B> {
    // `299 - "text"` (RFC 9111, appendix B).
    let texts = response.headers().get_all(http::header::WARNING).iter().filter_map(|value| value.to_str().ok());
    for text in texts {
        let text = text.split_once('"').map_or(text, |(_, rest)| rest.strip_suffix('"').unwrap_or(rest));
        let text = text.replace("\\\"", "\"").replace("\\\\", "\\");
        let _ = writeln!(std::io::stderr(), "Warning: {text}");
    }
    response
}

async fn config(paths: &Paths) -> Result<kube::Config> {
    let config = Kubeconfig::from_yaml(&read(paths)?).context("the cluster's kubeconfig is damaged")?;
    Ok(kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?)
}

fn read(paths: &Paths) -> Result<String> {
    let path = paths.kubeconfig();
    fs::read_to_string(&path).with_context(|| {
        format!(
            "there is no cluster {:?} here ({}); start it with: causeway up --name {}",
            paths.name,
            path.display(),
            paths.name
        )
    })
}
