//! The store on a real disk: the conformance suite, crashes, a full disk, two owners.

mod it {
    pub mod conformance;
    pub mod crash;
    pub mod faults;
}
