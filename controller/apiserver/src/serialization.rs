//! Between bytes and objects: [`codec`] reads request bodies, [`render`] writes objects, lists, tables and events.

pub mod codec;
pub mod render;
