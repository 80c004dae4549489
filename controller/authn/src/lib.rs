//! Who a caller is: tokens of other issuers (OIDC), webhooks, front proxies, impersonation.
//!
//! In: bearer tokens, client certificates that TLS has checked, request headers, Kubernetes'
//! `AuthenticationConfiguration` and kubeconfig files. Out: [`User`]s, or errors worded as Kubernetes words them. The
//! semantics are those of Kubernetes 1.35. Nothing here knows the store or the authoriser: impersonation hands back
//! the questions to ask ([`impersonation::Request`]).

pub mod cache;
mod cel;
pub mod config;
mod field;
pub mod front_proxy;
mod headers;
pub mod impersonation;
mod jwks;
mod jws;
mod kubeconfig;
pub mod oidc;
mod remote;
pub mod service_account;
mod user;
pub mod webhook;

pub use cache::Cache;
pub use field::FieldError;
pub use user::{
    ANONYMOUS, Authenticated, AuthnError, GROUP_AUTHENTICATED, GROUP_SERVICE_ACCOUNTS, GROUP_UNAUTHENTICATED, User,
};
