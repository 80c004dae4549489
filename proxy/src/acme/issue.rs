//! Gets certificates. In: those that should be there. Out: orders at the authority, one after another, and Secrets with
//! what came of them. What fails is tried again later and later: authorities do not like to be asked too often.

use super::MANAGED_LABEL;
use super::challenge::Challenges;
use super::wanted::{Current, Wanted};
use crate::route::ObjectKey;
use anyhow::{Context, bail};
use causeway_api::events::{EventType, Recorder};
use causeway_api::ingress::{AcmeChallenge, AcmeSettings};
use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, ChallengeType, Identifier, NewAccount, NewOrder, OrderStatus,
    RetryPolicy,
};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The Secret with the account at the authority.
const ACCOUNT: &str = "causeway-acme-account";
/// Where that is.
const NAMESPACE: &str = "kube-system";
/// Who writes it, towards the API.
const MANAGER: &str = "causeway-acme";
/// How often it is looked whether a certificate comes to its end.
const LOOK: Duration = Duration::from_secs(3600);
/// The pause after a first failure; doubled for each further one.
const RETRY: Duration = Duration::from_secs(60);
/// The longest such pause.
const MAX_RETRY: Duration = Duration::from_secs(6 * 3600);
/// For an order, from its first word to the certificate.
const PATIENCE: Duration = Duration::from_secs(300);

/// What is needed to get certificates.
pub struct Issuer {
    /// Writes Secrets.
    pub client: Client,
    /// Tells those who asked.
    pub recorder: Recorder,
    /// The authority and how it is spoken to.
    pub settings: AcmeSettings,
    /// What the data plane answers.
    pub challenges: Arc<Challenges>,
    /// The runtime from which the authority can be reached.
    pub outside: Handle,
}

/// When a Secret may be tried again, and after which pause.
type Failures = HashMap<ObjectKey, (Instant, Duration)>;

impl Issuer {
    /// Runs until shutdown.
    pub async fn run(self, mut wanted: watch::Receiver<Arc<Vec<Wanted>>>, shutdown: CancellationToken) {
        let mut failures = Failures::new();
        let mut foreign = Vec::new();
        loop {
            let all = Arc::clone(&wanted.borrow_and_update());
            failures.retain(|key, _| all.iter().any(|w| w.secret == *key));
            self.tell_of_foreign(&all, &mut foreign);
            let (now, unix) = (Instant::now(), Timestamp::now().as_second());
            let is_due = |w: &&Wanted| {
                w.due().is_some_and(|at| at <= unix) && failures.get(&w.secret).is_none_or(|(at, _)| *at <= now)
            };
            if let Some(one) = all.iter().find(is_due) {
                let outcome = tokio::select! {
                    () = shutdown.cancelled() => return,
                    outcome = tokio::time::timeout(PATIENCE, self.get(one)) => outcome,
                };
                self.challenges.clear();
                let outcome = outcome.unwrap_or_else(|_| Err(anyhow::anyhow!("it took too long")));
                self.note(one, outcome, &mut failures);
                // What was written is seen with the next change of the view; until then it must not be got again.
                drop(tokio::time::timeout(Duration::from_secs(5), wanted.changed()).await);
                continue;
            }
            let next = failures.values().map(|(at, _)| *at).filter(|at| *at > now).min();
            let pause = next.map_or(LOOK, |at| (at - now).min(LOOK));
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = wanted.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    fn tell_of_foreign(&self, all: &[Wanted], told: &mut Vec<ObjectKey>) {
        told.retain(|key| all.iter().any(|w| w.secret == *key && w.current == Current::Foreign));
        for one in all.iter().filter(|w| w.current == Current::Foreign) {
            if !told.contains(&one.secret) {
                let message = format!(
                    "Secret {} is there and not written by ACME: it is left alone; delete it, or name another one",
                    one.secret
                );
                self.recorder.record_ref(one.owner.clone(), EventType::Warning, "CertificateNotOurs", message);
                told.push(one.secret.clone());
            }
        }
    }

    fn note(&self, one: &Wanted, outcome: anyhow::Result<()>, failures: &mut Failures) {
        let names = one.names.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        match outcome {
            Ok(()) => {
                // Not again before what was written has been seen.
                failures.insert(one.secret.clone(), (Instant::now() + RETRY, RETRY));
                let message = format!("Secret {} has a certificate for {names}", one.secret);
                tracing::info!(secret = %one.secret, names, "certificate issued");
                self.recorder.record_ref(one.owner.clone(), EventType::Normal, "CertificateIssued", message);
            }
            Err(error) => {
                let before = failures.get(&one.secret).map(|(_, pause)| *pause);
                let pause = before.map_or(RETRY, |p| (p * 2).min(MAX_RETRY));
                failures.insert(one.secret.clone(), (Instant::now() + pause, pause));
                let seconds = pause.as_secs();
                let message = format!("getting a certificate for {names}: {error:#}; the next try is in {seconds} s");
                tracing::warn!(secret = %one.secret, "{message}");
                self.recorder.record_ref(one.owner.clone(), EventType::Warning, "CertificateFailed", message);
            }
        }
    }

    async fn get(&self, one: &Wanted) -> anyhow::Result<()> {
        let known = self.known_account().await?;
        let (settings, challenges) = (self.settings.clone(), Arc::clone(&self.challenges));
        let names = one.names.iter().cloned().collect();
        // The authority is somewhere out there, and nodes may have no way out.
        let ordering = self.outside.spawn(async move { order(settings, known, names, &challenges).await });
        let (fresh, chain, key) = ordering.await.context("ordering a certificate")??;
        if let Some(credentials) = fresh {
            let account = json!({"directory": self.settings.directory, "credentials": credentials});
            let data = json!({"account.json": ByteString(account.to_string().into_bytes())});
            self.write(&ObjectKey::new(NAMESPACE, ACCOUNT), "Opaque", data).await?;
        }
        let data = json!({"tls.crt": ByteString(chain.into_bytes()), "tls.key": ByteString(key.into_bytes())});
        self.write(&one.secret, "kubernetes.io/tls", data).await
    }

    async fn write(&self, key: &ObjectKey, kind: &str, data: serde_json::Value) -> anyhow::Result<()> {
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "type": kind, "data": data,
            "metadata": {"name": &*key.name, "namespace": &*key.namespace, "labels": {MANAGED_LABEL: "true"}}});
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &key.namespace);
        let written = api.patch(&key.name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&secret)).await;
        written.map(drop).with_context(|| format!("writing Secret {key}"))
    }

    /// The account that was made before, at the same authority.
    async fn known_account(&self) -> anyhow::Result<Option<AccountCredentials>> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), NAMESPACE);
        let found = api.get_opt(ACCOUNT).await.with_context(|| format!("reading Secret {NAMESPACE}/{ACCOUNT}"))?;
        let Some(text) = found.and_then(|s| s.data?.remove("account.json")) else { return Ok(None) };
        let Ok(mut account) = serde_json::from_slice::<serde_json::Value>(&text.0) else { return Ok(None) };
        if account["directory"] != self.settings.directory.as_str() {
            return Ok(None);
        }
        Ok(serde_json::from_value(account["credentials"].take()).ok())
    }
}

/// A new account where there was none, the certificate's chain and its key, in PEM.
type Issued = (Option<AccountCredentials>, String, String);

async fn order(
    settings: AcmeSettings,
    known: Option<AccountCredentials>,
    names: Vec<String>,
    challenges: &Challenges,
) -> anyhow::Result<Issued> {
    let authority = || format!("speaking to {}", settings.directory);
    let builder = match &settings.ca_file {
        Some(path) => Account::builder_with_root(path).with_context(|| format!("reading {}", path.display()))?,
        None => Account::builder()?,
    };
    let (account, fresh) = match known {
        Some(credentials) => (builder.from_credentials(credentials).await.with_context(authority)?, None),
        None => {
            let contact: Vec<String> = settings.email.iter().map(|e| format!("mailto:{e}")).collect();
            let contact: Vec<&str> = contact.iter().map(String::as_str).collect();
            let new = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
            let made = builder.create(&new, settings.directory.clone(), None).await.with_context(authority)?;
            (made.0, Some(made.1))
        }
    };
    let identifiers: Vec<Identifier> = names.into_iter().map(Identifier::Dns).collect();
    let mut order = account.new_order(&NewOrder::new(&identifiers)).await.with_context(authority)?;
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization.with_context(authority)?;
        let name = authorization.identifier().to_string();
        match authorization.status {
            AuthorizationStatus::Valid => continue,
            AuthorizationStatus::Pending => {}
            other => bail!("the authority will not hear of {name} ({other:?})"),
        }
        let kind = match settings.challenge {
            AcmeChallenge::Http01 => ChallengeType::Http01,
            AcmeChallenge::TlsAlpn01 => ChallengeType::TlsAlpn01,
        };
        let Some(mut challenge) = authorization.challenge(kind) else {
            bail!("the authority does not ask for {name} in the way that is configured")
        };
        let answer = challenge.key_authorization();
        match settings.challenge {
            AcmeChallenge::Http01 => challenges.answer(&challenge.token, answer.as_str()),
            AcmeChallenge::TlsAlpn01 => challenges.show(&name, answer.digest().as_ref())?,
        }
        challenge.set_ready().await.with_context(authority)?;
    }
    let retries = RetryPolicy::new().timeout(Duration::from_secs(90));
    let status = order.poll_ready(&retries).await.with_context(authority)?;
    if status != OrderStatus::Ready {
        bail!("{}", refusal(&mut order).await.unwrap_or_else(|| format!("the order is {status:?}")));
    }
    let key = order.finalize().await.with_context(authority)?;
    let chain = order.poll_certificate(&retries).await.with_context(authority)?;
    Ok((fresh, chain, key))
}

/// Why an order was refused, in the authority's words.
async fn refusal(order: &mut instant_acme::Order) -> Option<String> {
    let mut authorizations = order.authorizations();
    while let Some(Ok(authorization)) = authorizations.next().await {
        let name = authorization.identifier().to_string();
        if let Some(problem) = authorization.challenges.iter().find_map(|c| c.error.as_ref()) {
            return Some(format!("the authority did not find that {name} is here: {problem}"));
        }
    }
    None
}
