//! The API server: a generic resource engine over the registry and the store
