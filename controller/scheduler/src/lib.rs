//! Places pods on nodes
