//! The device through real file calls, and the store engine on it: power cuts, and faults of the device.
//!
//! `CAUSEWAY_SEED` is the seed of the first store (a failure tells the seed of its store: with it that store comes
//! first), `CAUSEWAY_CUTS` how many cuts there are, with all other rounds in proportion, `CAUSEWAY_FLIPS` how many
//! flipped bits. `CAUSEWAY_LOSS` makes the disk lie less, to find out what a failure comes from: `none`, `writes` or
//! `names` says what a cut may take, `ordered` that names go as in a journal. A seed replays the decisions of the
//! device and of the test; the store's threads are timed anew each time, so a failure may need some runs to show again.
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
