//! Who a node's components are towards the API. In: the API's address, certificates. Out: a client for each component,
//! over HTTPS from the node's own network, so that a node whose link is cut is cut off, on one machine as on many.

use anyhow::{Context, Result};
use causeway_access::{Endpoint, Identity};
use causeway_api::identity::{USER_ANNOUNCE, USER_DNS, USER_INGRESS, USER_NODE, USER_POLICY, UserInfo};
use causeway_apiserver::{CertKey, Pki};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often certificates that we issue ourselves are looked at; they are renewed weeks before their end.
const LOOK: Duration = Duration::from_secs(12 * 3600);

/// The clients of a node's components.
#[derive(Clone)]
pub struct Clients {
    /// Where the API is.
    pub endpoint: Endpoint,
    /// The node itself, and every component that has no identity of its own.
    node: Arc<Identity>,
    own: HashMap<&'static str, Arc<Identity>>,
}

impl Clients {
    /// Every component speaks as the node.
    pub fn of_node(endpoint: Endpoint, node: Arc<Identity>) -> Self {
        Self { endpoint, node, own: HashMap::new() }
    }

    /// A client for a component by its user name. To be called on the node's runtime.
    pub fn client(&self, component: &str) -> Result<kube::Client> {
        causeway_access::client(&self.endpoint, Some(self.own.get(component).unwrap_or(&self.node).clone()))
    }

    /// A client for the kubelet.
    pub fn kubelet(&self) -> Result<kube::Client> {
        causeway_access::client(&self.endpoint, Some(self.node.clone()))
    }
}

/// Issues identities to the nodes of this process from the cluster's authority, and renews them in time.
#[derive(Default)]
pub struct Issued(Mutex<Vec<(Subject, Arc<Identity>)>>);

#[derive(Clone, PartialEq)]
enum Subject {
    Client(UserInfo),
    /// Name and addresses.
    Kubelet(String, Vec<String>),
}

impl Subject {
    fn issue(&self, pki: &Pki) -> Result<CertKey> {
        match self {
            Self::Client(user) => pki.issue_client(user),
            Self::Kubelet(node, sans) => pki.issue_server(&format!("system:node:{node}"), sans),
        }
        .context("issuing a certificate to a node")
    }
}

impl Issued {
    /// The clients of a node, each component with a name of its own.
    pub fn clients(&self, pki: &Pki, endpoint: Endpoint, node: &str) -> Result<Clients> {
        let own = [USER_NODE, USER_ANNOUNCE, USER_DNS, USER_INGRESS, USER_POLICY].map(|user| {
            let identity = self.issue(pki, Subject::Client(UserInfo::component(user, &[])))?;
            Ok((user, identity))
        });
        let own = own.into_iter().collect::<Result<_>>()?;
        Ok(Clients { endpoint, node: self.issue(pki, Subject::Client(UserInfo::node(node)))?, own })
    }

    /// The certificate of a node's kubelet as a server.
    pub fn serving(&self, pki: &Pki, node: &str, sans: Vec<String>) -> Result<Arc<Identity>> {
        self.issue(pki, Subject::Kubelet(node.to_owned(), sans))
    }

    fn issue(&self, pki: &Pki, subject: Subject) -> Result<Arc<Identity>> {
        let mut all = self.0.lock();
        if let Some((_, known)) = all.iter().find(|(s, _)| *s == subject) {
            return Ok(known.clone());
        }
        let issued = subject.issue(pki)?;
        let identity = Arc::new(Identity::new(&issued.cert_pem, &issued.key_pem)?);
        all.push((subject, identity.clone()));
        Ok(identity)
    }

    /// Renews what comes to its end, until told to stop.
    pub async fn renew(&self, pki: &Pki, stop: CancellationToken) -> Result<()> {
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(LOOK) => {}
            }
            for (subject, identity) in self.0.lock().iter() {
                let issued = subject.issue(pki)?;
                identity.replace(&issued.cert_pem, &issued.key_pem)?;
            }
        }
    }
}
