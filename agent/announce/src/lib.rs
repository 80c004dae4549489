//! Announces the addresses of load balancers: each by exactly one node of the cluster, by ARP (IPv4) and NDP (IPv6).
//!
//! In: Services, EndpointSlices, Nodes and Leases. Out: addresses on this node's uplink, for which the kernel then
//! answers, and a word to the neighbours when an address moves here. What becomes of the packets is kube-proxy's work.
//!
//! [`model`] says which nodes may announce an address, in which order. [`plan`] says what this node does about it,
//! [`pulse`] when its own Lease is due and when the loop must look again, `view` what this node wrote last; these are
//! pure. [`lease`] writes ownership down, [`follow`] watches the Leases of single nodes, [`link`] and [`packet`] touch
//! the world, `announcer` does what the plan says, and [`run`] is the loop.
//!
//! Why no two nodes announce at once: a node announces an address only while its name is on the address' Lease and its
//! own Lease is alive. It counts the life of its own Lease from before the renewal was sent; others count from after
//! they saw it, and a little longer, and look at it once more before they write. The kernel takes the address away by
//! itself when we do not renew it (a node whose process died must not go on answering). Who lets its Lease lapse must
//! write its name on the address' Lease anew, and of that write and another node's only one succeeds. So it does not
//! matter who looks how often: whom a node follows decides how soon it takes over, not whether it may.

mod announcer;
pub mod follow;
pub mod lease;
pub mod link;
pub mod model;
pub mod packet;
pub mod plan;
pub mod pulse;
mod run;
mod view;

pub use run::{AnnounceConfig, run};
