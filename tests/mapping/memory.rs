//! Runs tests on both kinds of memory: views and guards of the map cache.

#![allow(clippy::allow_attributes, reason = "not every test program needs it")]
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]
#![allow(clippy::print_stdout, reason = "shows the memory of a failed test")]
#![allow(unreachable_pub, reason = "shared by several test programs")]

use xenmap::{GuestKind, Pinned, Protection, View};

use crate::buckets::{FRAMES, cache};
use crate::common::{FRAME, on_each_host};

/// The bytes of the memory: two frames. For a guard, they are in different buckets.
pub const LEN: usize = 2 * FRAME;

/// Runs a test on each host, with a view and with a guard of the map cache. The macro compiles the test for both types,
/// as a generic function would be.
macro_rules! on_each_memory {
    ($protection:expr, |$memory:ident| $test:expr) => {{
        $crate::memory::with_views($protection, |$memory| $test);
        $crate::memory::with_guards($protection, |$memory| $test);
    }};
}
pub(crate) use on_each_memory;

pub fn with_views(protection: Protection, test: impl Fn(&View<'_>)) {
    on_each_host(|host| {
        println!("a view");
        let guest = host.create(GuestKind::Hvm, 2);
        let mapping = host.open().map_foreign_batch(guest.domid(), protection, &guest.gfns()).unwrap();
        test(&mapping.view());
    });
}

pub fn with_guards(protection: Protection, test: impl Fn(&Pinned<'_>)) {
    on_each_host(|host| {
        println!("a guard");
        let (memory, guest) = (host.open(), host.create(GuestKind::Hvm, 8));
        let cache = cache(&memory, guest.domid(), 2);
        let pinned = cache.get(protection, (FRAMES - 1) * FRAME as u64, LEN).unwrap();
        assert_eq!(pinned.views().count(), 2);
        test(&pinned);
    });
}
