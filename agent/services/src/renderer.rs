//! What the loop asks of a renderer: one of the ways to put the model into the kernel.

use crate::model::ServiceModel;
use ipnet::IpNet;

/// The cluster's and the node's ranges.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranges {
    /// All pods.
    pub pods: Vec<IpNet>,
    /// All service addresses.
    pub services: Vec<IpNet>,
    /// The node's addresses and pods.
    pub local: Vec<IpNet>,
}

/// What one synchronisation did.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    /// Elements deleted and added; of iptables, lines.
    pub elements: usize,
    /// Whether everything was made anew.
    pub rebuilt: bool,
    /// Datagram flows that were cut off from endpoints that are gone.
    pub flows: usize,
}

/// Holds what should be in the kernel, and brings it there.
pub trait Renderer: Send + std::fmt::Debug {
    /// Whether a former process' rules were found whole.
    fn adopted(&self) -> bool;

    /// Takes changes over and programs them, all or none of them seen by packets at a time. With `first`, the changes
    /// are all there is. After an error the next call does all that is still to be done; without changes it looks
    /// whether somebody else has changed our rules, and mends them.
    fn sync(
        &mut self,
        changes: Vec<(String, Option<ServiceModel>)>,
        ranges: &Ranges,
        first: bool,
    ) -> anyhow::Result<Done>;
}
