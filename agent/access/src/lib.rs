//! How a node gets to the API: the connection ([`connect`]) and who the node is on it ([`identity`]).
//!
//! In: the API's address, the authority that signs for it, a certificate of one's own. Out: a `kube::Client` that
//! speaks HTTPS from the network namespace of whoever uses it, and that notices within seconds when the way is cut and
//! when it is open again.

pub mod connect;
pub mod identity;

pub use connect::{Endpoint, client};
pub use identity::Identity;
