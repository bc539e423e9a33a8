//! Maps that fail, panic, or come too late.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;

/// Gets a bucket; notes it if that fails.
fn try_to_get(cache: &Cache, number: u64) {
    match cache.pin(number, READ) {
        Ok(pin) => drop(use_it(&pin, number, READ)),
        Err(e) => {
            assert_eq!(e.errno(), libc::ENOMEM);
            cache.source().failed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn try_1(cache: &Cache) {
    try_to_get(cache, 1);
}

fn try_2(cache: &Cache) {
    try_to_get(cache, 2);
}

fn without_memory_for_two() -> Host {
    Host { room: Some(1), ..Host::default() }
}

#[test]
fn want_of_memory_evicts_what_nobody_has_and_no_more() {
    check_on(without_memory_for_two, 3, read_1, [try_1, try_2], |cache| {
        assert!(failed(cache) <= 1, "whoever comes last finds nothing in use");
        assert_eq!(alive(cache), 1);
        get(cache, 3, READ);
    });
}

#[test]
fn want_of_memory_waits_for_what_others_unmap() {
    check_on(without_memory_for_two, 3, read_1, [try_2, |cache| change(cache, 1)], |cache| {
        assert_eq!((failed(cache), alive(cache)), (0, 1));
    });
}

#[test]
fn three_threads_for_which_there_is_too_little_memory() {
    check_on(without_memory_for_two, 3, nothing, [try_1, try_2, try_1], |cache| assert!(failed(cache) <= 2));
}

/// Gets a bucket; notes it if that panics.
fn get_or_panic(cache: &Cache) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| get(cache, 1, READ))) {
        if panic.downcast_ref::<&str>() != Some(&PANIC) {
            resume_unwind(panic); // one of loom's, that has found something
        }
        cache.source().failed.fetch_add(1, Ordering::Relaxed);
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
