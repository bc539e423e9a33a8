//! A hit does not allocate.

#![expect(unsafe_code, reason = "implements an allocator")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use crate::buckets::{BUCKET, cache};
use crate::common::{ReadOnly, ReadWrite, on_each_host};
use xenmap::{Access, GuestKind};

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: forwards every call to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) };
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

#[test]
fn hit_allocates_nothing() {
    on_each_host(|host| {
        let guest = host.create(GuestKind::Hvm, 16);
        let memory = host.open();
        let cache = cache(&memory, guest.domid(), 4);
        cache.track_dirty(true);
        let before = ALLOCATIONS.get();
        cache.prefetch(ReadWrite, 0..4 * BUCKET as u64).unwrap();
        assert!(ALLOCATIONS.get() > before, "the counter does not count");

        let before = ALLOCATIONS.get();
        for address in (0..3 * BUCKET as u64).step_by(100) {
            let pinned = cache.get(ReadOnly, address, 8).unwrap();
            pinned.read::<u64>(0).unwrap();
            let pinned = cache.get(ReadWrite, address, BUCKET).unwrap(); // in two buckets at most
            pinned.write_bytes(1, &[1; 300]).unwrap();
            let at = pinned.views().last().unwrap().as_ptr();
            assert!(cache.address_of(at).is_some());
        }
        assert_eq!(ALLOCATIONS.get(), before);
    });
}
