//! The device through real file calls, and the store engine on it: power cuts, and faults of the device.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod it {
    pub mod bare_sled;
    pub mod bench;
    pub mod careful;
    pub mod child;
    pub mod cuts;
    pub mod device;
    pub mod faults;
    pub mod flips;
    pub mod model;
}
