//! Backups as a whole: written, read, damaged, forged.

mod backups;
mod s3;
