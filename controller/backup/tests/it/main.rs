//! Backups as a whole: written, read, damaged, forged.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod backups;
mod s3;
