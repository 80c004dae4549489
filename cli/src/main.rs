//! The `causeway` program; `lib.rs` is what it does.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: causeway_allocator::Allocator = causeway_allocator::Allocator;

fn main() -> ExitCode {
    causeway_cli::main()
}
