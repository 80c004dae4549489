//! `causeway token`: bootstrap tokens, with which machines join. In: the server's kubeconfig. Out: Secrets in
//! `kube-system`, as Kubernetes has them, and the command to type on the machine that shall join.

use crate::args::Cluster;
use crate::kubeconfig;
use crate::paths::Paths;
use anyhow::{Context, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use causeway_api::bootstrap_token::{
    self, CLUSTER_INFO, CLUSTER_INFO_KEY, CLUSTER_INFO_NAMESPACE, NAMESPACE, SECRET_PREFIX, SECRET_TYPE, Token,
};
use clap::Subcommand;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{Api, DeleteParams, ListParams, ObjectMeta, PostParams};
use kube::config::Kubeconfig;
use rand::Rng;
use std::collections::BTreeMap;

/// `causeway token`.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token and print the command that joins a machine with it.
    Create {
        /// How long it is good, for example 30m, 24h or 7d; 0 is for ever.
        #[arg(long, default_value = "24h", value_parser = lifetime)]
        ttl: Lifetime,
        /// What it is for.
        #[arg(long)]
        description: Option<String>,
        #[command(flatten)]
        cluster: Cluster,
    },
    /// List the tokens.
    #[command(alias = "ls")]
    List(Cluster),
    /// Delete a token; nodes that joined with it stay.
    Delete {
        /// The token, or its first part.
        token: String,
        #[command(flatten)]
        cluster: Cluster,
    },
}

/// How long a token is good; `None`: for ever.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lifetime(Option<SignedDuration>);

fn lifetime(text: &str) -> Result<Lifetime, String> {
    if text == "0" {
        return Ok(Lifetime(None));
    }
    // jiff leaves days out of durations of exact length; here a day is 24 hours.
    let days = text.strip_suffix('d').and_then(|d| d.parse::<i64>().ok()).and_then(|d| d.checked_mul(24));
    let duration = match days {
        Some(hours) => SignedDuration::try_from_hours(hours).ok_or("too long")?,
        None => text.parse::<SignedDuration>().map_err(|e| format!("{e}; write 30m, 24h or 7d"))?,
    };
    if duration <= SignedDuration::ZERO {
        return Err("must be longer than nothing; 0 is for ever".to_owned());
    }
    Ok(Lifetime(Some(duration)))
}

impl TokenCommand {
    /// The cluster meant.
    pub fn cluster(&self) -> &Cluster {
        match self {
            Self::Create { cluster, .. } | Self::List(cluster) | Self::Delete { cluster, .. } => cluster,
        }
    }
}

/// Runs the command.
pub fn run(command: &TokenCommand, paths: &Paths) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = kubeconfig::client(paths).await?;
        let secrets: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
        match command {
            TokenCommand::Create { ttl, description, .. } => {
                create(&client, &secrets, *ttl, description.as_deref()).await
            }
            TokenCommand::List(_) => list(&secrets).await,
            TokenCommand::Delete { token, .. } => delete(&secrets, token).await,
        }
    })
}

/// Letters and digits from the system's generator.
fn random(length: usize) -> String {
    const ALPHABET: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let mut random = rand::rng();
    (0..length).map(|_| char::from(ALPHABET[random.random_range(0..ALPHABET.len())])).collect()
}

async fn create(client: &kube::Client, secrets: &Api<Secret>, ttl: Lifetime, description: Option<&str>) -> Result<()> {
    // Before the token, so that none is left behind when this fails.
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), CLUSTER_INFO_NAMESPACE);
    let info = maps.get(CLUSTER_INFO).await.context("reading where the API is reached")?;
    let text = info.data.unwrap_or_default().remove(CLUSTER_INFO_KEY).unwrap_or_default();
    let cluster = Kubeconfig::from_yaml(&text)?.clusters.into_iter().next().and_then(|c| c.cluster);
    let cluster = cluster.context("the cluster's information names no server")?;
    let server = cluster.server.context("the cluster's information names no server")?;
    let ca = STANDARD.decode(cluster.certificate_authority_data.unwrap_or_default())?;
    let hash = causeway_access::discover::hash(std::str::from_utf8(&ca)?)?;

    let (id, secret) = (random(6), random(16));
    let mut data = BTreeMap::from([
        ("token-id".to_owned(), id.clone()),
        ("token-secret".to_owned(), secret.clone()),
        ("usage-bootstrap-authentication".to_owned(), "true".to_owned()),
        ("usage-bootstrap-signing".to_owned(), "true".to_owned()),
        ("auth-extra-groups".to_owned(), format!("{}:causeway:nodes", bootstrap_token::GROUP)),
    ]);
    if let Some(life) = ttl.0 {
        let end = Timestamp::now().checked_add(life).context("--ttl is too long")?;
        data.insert("expiration".to_owned(), end.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
    }
    if let Some(description) = description {
        data.insert("description".to_owned(), description.to_owned());
    }
    let object = Secret {
        metadata: ObjectMeta { name: Some(format!("{SECRET_PREFIX}{id}")), ..ObjectMeta::default() },
        type_: Some(SECRET_TYPE.to_owned()),
        string_data: Some(data),
        ..Secret::default()
    };
    secrets.create(&PostParams::default(), &object).await.context("storing the token")?;
    println!("causeway agent --server {server} --token {id}.{secret} --ca-hash {hash}");
    Ok(())
}

async fn list(secrets: &Api<Secret>) -> Result<()> {
    let all = secrets.list(&ListParams::default().fields(&format!("type={SECRET_TYPE}"))).await?;
    println!("{:<24} {:<21} DESCRIPTION", "TOKEN", "EXPIRES");
    for token in all.items.iter().filter_map(Token::of) {
        let expires = token.expiration.map_or("never".to_owned(), |t| t.to_string());
        println!("{:<24} {expires:<21} {}", format!("{}.{}", token.id, token.secret), token.description);
    }
    Ok(())
}

async fn delete(secrets: &Api<Secret>, token: &str) -> Result<()> {
    let id = bootstrap_token::split(token).map_or(token, |(id, _)| id);
    match secrets.delete(&format!("{SECRET_PREFIX}{id}"), &DeleteParams::default()).await {
        Ok(_) => println!("token {id} deleted"),
        Err(kube::Error::Api(status)) if status.code == 404 => {
            bail!("there is no token {id:?}; see: causeway token list")
        }
        Err(error) => return Err(error).context("deleting the token"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes_as_people_write_them() {
        let hours = |h| Ok(Lifetime(Some(SignedDuration::from_hours(h))));
        assert_eq!(lifetime("24h"), hours(24));
        assert_eq!(lifetime("7d"), hours(168));
        assert_eq!(lifetime("90m"), Ok(Lifetime(Some(SignedDuration::from_mins(90)))));
        assert_eq!(lifetime("0"), Ok(Lifetime(None)));
        for bad in ["", "-1h", "soon", "0s", "9999999999999999d"] {
            assert!(lifetime(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_made_is_well_formed() {
        assert!(bootstrap_token::split(&format!("{}.{}", random(6), random(16))).is_some());
    }
}
