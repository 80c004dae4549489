//! What the server keeps in place by itself: the objects every cluster has ([`bootstrap`], [`cluster_info`]), the kinds
//! that definitions add ([`custom`]), the default roles ([`roles`]), the
//! order of requests ([`flow`]), webhooks and policies ([`plugins`]), the certificates that were approved ([`signing`]).

pub mod bootstrap;
pub mod cluster_info;
pub mod custom;
pub mod flow;
pub mod plugins;
pub mod roles;
mod rounds;
pub mod signing;
