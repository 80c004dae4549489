//! What all benches share: samples and their percentiles, the machine, processes and what they use, the report.
//!
//! In: measurements. Out: JSON values, `results.json`, pages with tables, and children that end with whoever started
//! them. The program
//! `bench-net` beside it measures kube-proxy and cluster DNS without the weight of the rest of Causeway, so that it can
//! be built and run alone; `bench` of the crate `causeway-tests` measures what needs a whole cluster.

pub mod colours;
pub mod machine;
pub mod page;
pub mod process;
pub mod report;
pub mod stats;
