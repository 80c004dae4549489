//! Validation in Kubernetes' words, one file a concept. In: objects (defaulted). Out: field errors.

pub(crate) mod admission;
pub(crate) mod container;
pub(crate) mod data;
pub(crate) mod definition;
pub(crate) mod endpoints;
pub(crate) mod event;
pub(crate) mod ingress;
pub(crate) mod job;
pub(crate) mod meta;
pub(crate) mod names;
pub(crate) mod network_policy;
pub(crate) mod pod;
pub(crate) mod pod_update;
pub(crate) mod probe;
pub(crate) mod resource_names;
pub(crate) mod resources;
pub(crate) mod scheduling;
pub(crate) mod selector;
pub(crate) mod service;
pub(crate) mod storage;
pub(crate) mod volume;
pub(crate) mod workload;
