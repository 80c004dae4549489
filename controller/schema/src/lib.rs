//! Kubernetes' own schema knowledge, as pure functions: what fields a kind has, how they decode from protobuf, which
//! are unknown, how patches and applies merge, and how all of it reads as OpenAPI.
//!
//! In: request bodies, JSON objects, the `openAPIV3Schema` of custom resources. Out: JSON objects, errors worded as the
//! Kubernetes API server words them, OpenAPI documents. The knowledge of built-in kinds comes from Kubernetes' `.proto`
//! files (see `build.rs`), that of custom ones from [`crd::structural`]; both end up as the same [`Schema`].

pub mod apply;
pub mod bounds;
mod builtin;
pub mod cel;
pub mod crd;
mod model;
pub mod openapi;
pub mod patch;
pub mod protobuf;
pub mod strict;
mod table;

pub use builtin::{anything, builtin};
pub use model::{Constraints, Field, List, ListKind, Node, PatchMarks, Schema, SchemaRef};
