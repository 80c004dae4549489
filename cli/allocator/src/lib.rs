//! The allocator of our programs: mimalloc. In: the layouts that the standard library asks for. Out: memory.
//!
//! The crate `mimalloc` asks for every block by `mi_malloc_aligned`, which for blocks of more than 128 bytes takes more
//! memory than is needed and a slower way, there and when they are freed. What is asked of it here is an alignment that
//! `mi_malloc` gives anyway for nearly everything, so that is called instead: a proxied request, which takes eighty
//! blocks, costs a tenth less. Nor does it ask the kernel for huge pages (feature `no_thp`): the buffers of connections
//! that wait, of which little is ever used, would be there in full. This is the only place with `unsafe` in it: the
//! trait cannot be implemented without.
#![allow(unsafe_code)]

use libmimalloc_sys::{
    mi_free, mi_malloc, mi_malloc_aligned, mi_realloc, mi_realloc_aligned, mi_zalloc, mi_zalloc_aligned,
};
use std::alloc::{GlobalAlloc, Layout};

/// The alignment of `mi_malloc`'s blocks of at least so many bytes, as of any `malloc` on 64-bit machines (`max_align_t`);
/// smaller ones are aligned to the largest power of two that is no larger than they are.
const USUAL: usize = 16;

/// The allocator; a program names it with `#[global_allocator]`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Allocator;

/// Whether `mi_malloc` gives this alignment to blocks of this size by itself.
const fn is_usual(align: usize, size: usize) -> bool {
    align <= USUAL && align <= size
}

// SAFETY: all memory comes from mimalloc and goes back to it; `mi_free` and `mi_realloc` take blocks of either way. A
// block has at least the size that was asked for, and its alignment: by mi_malloc's own promise where `is_usual`, which
// the tests below check, and by that of the aligned functions elsewhere. None of the functions unwinds.
unsafe impl GlobalAlloc for Allocator {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: any size may be asked for, and an alignment that is a power of two, as layouts have it.
        unsafe {
            match is_usual(layout.align(), layout.size()) {
                true => mi_malloc(layout.size()).cast(),
                false => mi_malloc_aligned(layout.size(), layout.align()).cast(),
            }
        }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        unsafe {
            match is_usual(layout.align(), layout.size()) {
                true => mi_zalloc(layout.size()).cast(),
                false => mi_zalloc_aligned(layout.size(), layout.align()).cast(),
            }
        }
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, _: Layout) {
        // SAFETY: the caller promises that the block is one of ours and not used any more.
        unsafe { mi_free(block.cast()) }
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller promises that the block is one of ours. The new size decides, as the new block has to be
        // aligned.
        unsafe {
            match is_usual(layout.align(), size) {
                true => mi_realloc(block.cast(), size).cast(),
                false => mi_realloc_aligned(block.cast(), size, layout.align()).cast(),
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn sizes() -> impl Iterator<Item = usize> {
        (1..=1100).chain(
            (11..24).flat_map(|power| [-9, -1, 0, 1, 8, 24].map(|more| (1usize << power).strict_add_signed(more))),
        )
    }

    #[test]
    fn blocks_are_aligned_and_keep_what_is_in_them() {
        let mut blocks = Vec::new();
        for size in sizes() {
            for align in [1, 2, 4, 8, 16, 32, 64, 128, 4096] {
                let layout = Layout::from_size_align(size, align).unwrap();
                // SAFETY: layouts of blocks are kept with them, and no more is touched than was asked for.
                unsafe {
                    let block = Allocator.alloc(layout);
                    assert!(!block.is_null() && block.addr().is_multiple_of(align), "{layout:?}");
                    block.write(7);
                    block.add(size - 1).write(7);
                    let zeroed = Allocator.alloc_zeroed(layout);
                    assert!(zeroed.addr().is_multiple_of(align), "{layout:?}");
                    assert_eq!((zeroed.read(), zeroed.add(size - 1).read()), (0, 0), "{layout:?}");
                    Allocator.dealloc(zeroed, layout);
                    // Some stay, so that not all come from the same places.
                    if size % 3 == 0 {
                        Allocator.dealloc(block, layout);
                        continue;
                    }
                    let new = if size % 3 == 1 { size * 2 + 1 } else { size.div_ceil(3) };
                    let moved = Allocator.realloc(block, layout, new);
                    assert!(moved.addr().is_multiple_of(align), "{layout:?} to {new}");
                    assert_eq!(moved.read(), 7);
                    blocks.push((moved, Layout::from_size_align(new, align).unwrap()));
                }
                if blocks.len() > 3000 {
                    for (block, layout) in blocks.drain(..1500) {
                        // SAFETY: each is freed once.
                        unsafe { Allocator.dealloc(block, layout) }
                    }
                }
            }
        }
        for (block, layout) in blocks {
            // SAFETY: as above.
            unsafe { Allocator.dealloc(block, layout) }
        }
    }
}
