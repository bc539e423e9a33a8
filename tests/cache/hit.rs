//! A hit does not allocate.

use crate::allocations::allocations;
use crate::buckets::{BUCKET, cache};
use crate::common::{ReadOnly, ReadWrite, on_each_host};
use xenmap::{Access, GuestKind};

#[test]
fn hit_allocates_nothing() {
    on_each_host(|host| {
        let guest = host.create(GuestKind::Hvm, 16);
        let memory = host.open();
        let cache = cache(&memory, guest.domid(), 4);
        cache.track_dirty(true);
        let before = allocations();
        cache.prefetch(ReadWrite, 0..4 * BUCKET as u64).unwrap();
        assert!(allocations() > before, "the counter does not count");

        let before = allocations();
        for address in (0..3 * BUCKET as u64).step_by(100) {
            let pinned = cache.get(ReadOnly, address, 8).unwrap();
            pinned.read::<u64>(0).unwrap();
            let pinned = cache.get(ReadWrite, address, BUCKET).unwrap(); // in two buckets at most
            pinned.write_bytes(1, &[1; 300]).unwrap();
            let at = pinned.views().last().unwrap().as_ptr();
            assert!(cache.address_of(at).is_some());
        }
        assert_eq!(allocations(), before);
    });
}
