//! The second renderer: service addresses in the tables of `iptables` and `ip6tables`.
//!
//! In: the same models as for nftables. Out: restore files with nothing but the chains that have changed. [`render`]
//! says which rules a service needs, [`planner`] keeps all of them and which chains changed, [`restore`] writes and
//! reads the files; these are pure. [`tool`] runs `iptables-restore` and `iptables-save`, [`program`] keeps the kernel
//! as planned.
//!
//! Chains have the names that kube-proxy gives them (`KUBE-SERVICES`, `KUBE-SVC-…`, `KUBE-SEP-…`), also their hashes,
//! so that what people know of debugging services holds. Beyond kube-proxy: above [`shared::NARROW`] rules the shared
//! chains branch by the last digits of the address or by ranges of ports, so that neither a connection's first packet
//! nor a change has to do with all services; ports that a cluster IP does not have are refused, and addresses of the
//! service ranges that nobody has are dropped; and only connections that would not find their way back otherwise
//! are given the node's source address.

pub mod names;
pub mod planner;
pub mod program;
pub mod render;
pub mod restore;
pub mod shared;
pub mod tool;
