//! The store on a real disk: the conformance suite, crashes, a full disk, two owners.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod it {
    pub mod conformance;
    pub mod crash;
    pub mod faults;
    pub mod recovery;
}
