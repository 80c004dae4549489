//! How a node gets to the API: the connection ([`connect`]), who the node is on it ([`identity`]), and how a machine
//! becomes a node ([`join`]).
//!
//! In: the API's address, and a certificate of one's own, or a token to get one with. Out: a `kube::Client` that
//! speaks HTTPS from the network namespace of whoever uses it, and that notices within seconds when the way is cut and
//! when it is open again; certificates that are on the disk, and renewed before their end.

pub mod certificate;
pub mod connect;
pub mod discover;
mod disk;
pub mod identity;
pub mod join;

pub use connect::{Endpoint, client};
pub use identity::Identity;
pub use join::{JoinConfig, Membership, join};
