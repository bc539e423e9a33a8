//! Maps that panic, or come too late.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;

/// Gets a bucket; notes it if that panics.
fn get_or_panic(cache: &Cache) {
    match catch_unwind(AssertUnwindSafe(|| get(cache, 1, READ))) {
        Ok(_) => {}
        Err(payload) => {
            assert_eq!(payload.downcast_ref::<&str>(), Some(&PANIC));
            cache.source().failed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn panicking() -> Host {
    Host { panics: AtomicBool::new(true), ..Host::default() }
}

#[test]
fn map_that_panics_keeps_nobody_waiting() {
    check_on(panicking, 2, nothing, [get_or_panic, get_or_panic], |cache| {
        assert_eq!((failed(cache), alive(cache)), (1, 1));
    });
}

#[test]
fn map_that_panics_while_its_bucket_is_invalidated_leaves_nothing_behind() {
    check_on(panicking, 2, nothing, [get_or_panic, |cache| change(cache, 1)], |cache| {
        assert_eq!((failed(cache), alive(cache)), (1, 0));
        assert_eq!(get(cache, 1, READ), 1);
    });
}

#[test]
fn closed_cache_maps_nothing_more_and_keeps_nothing() {
    let try_to = |cache: &Cache| match cache.pin(1, READ) {
        Ok(pin) => drop(use_it(&pin, 1, READ)),
        Err(e) => assert_eq!(e.errno(), libc::ESRCH),
    };
    let close = |cache: &Cache| {
        cache.close();
        cache.source().is_closed.store(true, Ordering::Relaxed);
        assert!(cache.pin(1, READ).is_err());
    };
    check(2, nothing, [try_to, close], |cache| assert_eq!(alive(cache), 0));
    check(2, read_1, [try_to, close], |cache| assert_eq!(alive(cache), 0));
}
