//! The pod network: one namespace and one address a pod, veth and bridge by netlink, routes or tunnels between nodes; and
//! the private segment on which the nodes of a local cluster live.
//!
//! In: "pod X starts/stops on this node". Out: a network namespace with the pod's address, reachable from every
//! other pod. What was given out is kept on disk, so a crash leaks no address.

mod bridge;
mod journal;
pub mod local;
pub mod machine;
mod masquerade;
mod netlink;
pub mod netns;
pub mod node_routes;
mod pool;
pub mod routes;
mod types;
pub mod vxlan;

pub use bridge::{BridgeConfig, BridgeNetwork};
pub use netns::{NetNs, NetNsRuntime};
pub use types::*;

use async_trait::async_trait;

/// What the kubelet needs of the pod network. Every call is idempotent.
#[async_trait]
pub trait PodNetwork: Send + Sync + 'static {
    /// Makes the pod's namespace, gives it an address and connects it. A second call returns the same address,
    /// also after a restart of the program; a half-made one is repaired.
    async fn set_up(&self, pod: &PodRef) -> Result<PodAddress>;

    /// Removes the pod's namespace and gives the address back. Succeeds when there is nothing.
    async fn tear_down(&self, uid: &str) -> Result<()>;

    /// Everything that was set up and not torn down, by pod uid; also after a restart.
    async fn pods(&self) -> Result<Vec<(String, PodAddress)>>;
}
