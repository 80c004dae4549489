//! Between the pod network and the policies: no pod starts before its policies are in force.
//!
//! In: the node's pod network, around which [`PolicedNetwork`] is put. Out: the same network, whose pods are handed to the
//! kubelet only when this node's rules know them. The kernel alone would keep a new pod in as well, for its address is
//! closed until then; but its first packets would be lost, and an application would wait for a second and more until
//! it tries again. So the kubelet waits instead, for a few milliseconds, and no application ever meets a closed address.

use async_trait::async_trait;
use causeway_network::{NetworkError, PodAddress, PodNetwork, PodRef, Result};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};
use tokio::sync::watch;

/// How long a pod waits at most. The kubelet says so in an event of the pod, and tries again.
const PATIENCE: Duration = Duration::from_secs(30);

type Addresses = BTreeMap<String, BTreeSet<IpAddr>>;

/// Shared by the pod network and the policies of a node. Lives as long as the node, also when one of them starts anew.
#[derive(Debug, Clone)]
pub struct Gate(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// What the pod network has given, by the pod's uid.
    given: watch::Sender<Addresses>,
    /// For which of them the rules are in force.
    covered: watch::Sender<Addresses>,
}

impl Default for Gate {
    fn default() -> Self {
        let shared =
            Shared { given: watch::Sender::new(Addresses::new()), covered: watch::Sender::new(Addresses::new()) };
        Self(Arc::new(shared))
    }
}

impl Gate {
    /// Puts itself around a pod network.
    pub fn around(&self, network: Arc<dyn PodNetwork>) -> PolicedNetwork {
        PolicedNetwork { network, gate: self.clone() }
    }

    /// What the pod network has given, as it changes.
    pub(crate) fn given(&self) -> watch::Receiver<Addresses> {
        self.0.given.subscribe()
    }

    /// Tells that the rules of these are in force, and of no others.
    pub(crate) fn cover(&self, covered: &Addresses) {
        self.0.covered.send_if_modified(|now| {
            let changed = now != covered;
            if changed {
                now.clone_from(covered);
            }
            changed
        });
    }

    fn give(&self, uid: &str, ips: Option<BTreeSet<IpAddr>>) {
        self.0.given.send_if_modified(|given| match ips {
            Some(ips) => given.insert(uid.to_owned(), ips.clone()) != Some(ips),
            None => given.remove(uid).is_some(),
        });
    }

    /// Waits until the rules of a pod are in force.
    async fn pass(&self, pod: &PodRef, ips: &BTreeSet<IpAddr>) -> Result<()> {
        let mut covered = self.0.covered.subscribe();
        let wait = covered.wait_for(|all| all.get(&pod.uid).is_some_and(|known| ips.is_subset(known)));
        match tokio::time::timeout(PATIENCE, wait).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(NetworkError::Kernel {
                doing: format!("waiting for the network policies of pod {}/{}", pod.namespace, pod.name),
                detail: "they are not in force yet; look for \"network-policy\" in the log of this node".to_owned(),
            }),
        }
    }
}

/// A pod network whose pods are under the node's policies from their first packet.
pub struct PolicedNetwork {
    network: Arc<dyn PodNetwork>,
    gate: Gate,
}

#[async_trait]
impl PodNetwork for PolicedNetwork {
    async fn set_up(&self, pod: &PodRef) -> Result<PodAddress> {
        let made = self.network.set_up(pod).await?;
        let ips: BTreeSet<IpAddr> = made.ips.iter().copied().collect();
        self.gate.give(&pod.uid, Some(ips.clone()));
        self.gate.pass(pod, &ips).await?;
        Ok(made)
    }

    async fn tear_down(&self, uid: &str) -> Result<()> {
        self.network.tear_down(uid).await?;
        self.gate.give(uid, None);
        Ok(())
    }

    async fn pods(&self) -> Result<Vec<(String, PodAddress)>> {
        self.network.pods().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    /// Gives everybody the same address.
    struct Everybody;

    #[async_trait]
    impl PodNetwork for Everybody {
        async fn set_up(&self, _: &PodRef) -> Result<PodAddress> {
            Ok(PodAddress { ips: vec![ip(2)], netns: PathBuf::new() })
        }

        async fn tear_down(&self, _: &str) -> Result<()> {
            Ok(())
        }

        async fn pods(&self) -> Result<Vec<(String, PodAddress)>> {
            Ok(Vec::new())
        }
    }

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 244, 1, last])
    }

    fn pod() -> PodRef {
        PodRef { uid: "u".into(), namespace: "d".into(), name: "p".into() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_waits_for_its_own_rules_and_not_for_ever() {
        let gate = Gate::default();
        let network = gate.around(Arc::new(Everybody));
        let error = network.set_up(&pod()).await.unwrap_err().to_string();
        assert!(error.contains("network policies of pod d/p"), "{error}");

        let mut given = gate.given();
        assert_eq!(given.borrow_and_update()["u"], [ip(2)].into());
        let waiting = tokio::spawn(async move { network.set_up(&pod()).await.map(|_| network) });
        // Neither another's rules let it through, nor its own with another address.
        gate.cover(&[("v".to_owned(), [ip(2)].into())].into());
        gate.cover(&[("u".to_owned(), [ip(3)].into())].into());
        tokio::time::sleep(PATIENCE / 2).await;
        assert!(!waiting.is_finished());
        gate.cover(&[("u".to_owned(), [ip(2), ip(3)].into())].into());
        let network = waiting.await.unwrap().unwrap();
        network.tear_down("u").await.unwrap();
        assert!(given.borrow_and_update().is_empty());
    }
}
