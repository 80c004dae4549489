//! nftables by netlink, for every part of the node that programs a table of its own.
//!
//! In: tables, chains, rules and sets in the kernel's own terms ([`rule`], [`table`], [`set`]). Out: messages, sent as one
//! atomic transaction, and what is in the kernel now ([`wire`], [`read`]). Nothing here knows what the rules are for.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod family;
pub mod read;
pub mod rule;
pub mod set;
pub mod table;
pub mod wire;
