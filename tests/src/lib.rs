//! End-to-end tests on real components, and the benches
