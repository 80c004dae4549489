//! The values that cross the network seam.

use serde::{Deserialize, Serialize};
use std::{net::IpAddr, path::PathBuf};

/// The network's result.
pub type Result<T, E = NetworkError> = std::result::Result<T, E>;

/// Why the pod network could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The node's range is used up.
    #[error("no free pod address in {cidr}: {used} pods use it all; give the node a larger pod CIDR")]
    NoFreeAddress {
        /// The node's pod CIDR.
        cidr: String,
        /// Addresses given out.
        used: usize,
    },
    /// The kernel refused.
    #[error("pod network, while {doing}: {detail}")]
    Kernel {
        /// What was being done, on what.
        doing: String,
        /// The kernel's words.
        detail: String,
    },
    /// State on disk cannot be read or written.
    #[error("pod network state in {path}: {detail}")]
    State {
        /// The file.
        path: String,
        /// What is wrong.
        detail: String,
    },
}

/// A pod to connect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRef {
    /// `metadata.uid`: the key.
    pub uid: String,
    /// `metadata.namespace`, for people.
    pub namespace: String,
    /// `metadata.name`, for people.
    pub name: String,
}

/// What a connected pod has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodAddress {
    /// One address a family, the primary first: `status.podIPs`.
    pub ips: Vec<IpAddr>,
    /// The namespace to start containers in, for example `/run/netns/cw-…`.
    pub netns: PathBuf,
}
