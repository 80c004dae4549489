//! What the engine asks others at fixed points of a write. It knows these traits only; who implements them depends on
//! the engine, never the other way round.

use super::{Call, Engine, Part};
use crate::catalog::Served;
use crate::status::ApiResult;
use async_trait::async_trait;
use causeway_store::{Revision, StoreError};
use serde_json::Value;

/// What is admitted: changes and refusals between defaulting and validation.
#[async_trait]
pub trait Admission: Send + Sync {
    /// A new object, before its last defaults and its validation. May change it.
    async fn create(&self, engine: &Engine, call: &mut Call, object: &mut Value) -> ApiResult<()>;

    /// A new state of an object, or of the `part` of it, before its validation. May change it.
    async fn update(&self, engine: &Engine, call: &mut Call, part: Part, new: &mut Value, old: &Value)
    -> ApiResult<()>;

    /// An object as it is to be stored, after its validation: nothing changes it any more. The last question before it
    /// is written.
    async fn validate(
        &self,
        engine: &Engine,
        call: &mut Call,
        part: Part,
        new: &Value,
        old: Option<&Value>,
    ) -> ApiResult<()>;

    /// The body of a subresource that is created (`eviction`, `token`, `binding`) or connected to (`exec`), before
    /// anything is done or spent for it.
    async fn subresource(
        &self,
        engine: &Engine,
        call: &mut Call,
        name: &str,
        subresource: &str,
        body: &mut Value,
    ) -> ApiResult<()>;

    /// An object that shall go.
    async fn delete(&self, engine: &Engine, call: &mut Call, name: &str, object: &Value) -> ApiResult<()>;
}

/// What an object gets that no other may have (addresses, ports): taken before it is written.
#[async_trait]
pub trait Allocation: Send + Sync {
    /// Fills in and takes what the object needs.
    async fn claim(
        &self,
        engine: &Engine,
        call: &Call,
        new: &mut Value,
        old: Option<&Value>,
    ) -> ApiResult<Box<dyn Claim>>;

    /// An object is gone since `revision`: what it held becomes free.
    async fn released(&self, engine: &Engine, served: &Served, object: &Value, revision: Revision);
}

/// What one write has taken and will give back.
#[async_trait]
pub trait Claim: Send + Sync {
    /// The object is written.
    async fn commit(self: Box<Self>, engine: &Engine);

    /// The object was not written, or nobody knows.
    async fn not_written(self: Box<Self>, engine: &Engine, why: &StoreError);

    /// The object was not written.
    async fn roll_back(self: Box<Self>, engine: &Engine);
}

/// Nothing taken.
pub struct NoClaim;

#[async_trait]
impl Claim for NoClaim {
    async fn commit(self: Box<Self>, _: &Engine) {}

    async fn not_written(self: Box<Self>, _: &Engine, _: &StoreError) {}

    async fn roll_back(self: Box<Self>, _: &Engine) {}
}
