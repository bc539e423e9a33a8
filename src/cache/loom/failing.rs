//! Maps that fail, panic, or finish after the cache was closed.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;

/// Gets a bucket, and counts a failure.
fn try_to_get(cache: &Cache, number: u64) {
    match cache.pin(number, READ) {
        Ok(pin) => drop(use_bucket(&pin, number, READ)),
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
fn out_of_memory_evicts_only_buckets_that_are_not_pinned() {
    check_on(without_memory_for_two, 3, read_1, [try_1, try_2], |cache| {
        assert!(failed(cache) <= 1, "the last one finds nothing pinned");
        assert_eq!(alive(cache), 1);
        get(cache, 3, READ);
    });
}

#[test]
fn out_of_memory_waits_for_other_threads_to_unmap() {
    check_on(without_memory_for_two, 3, read_1, [try_2, |cache| change(cache, 1)], |cache| {
        assert_eq!((failed(cache), alive(cache)), (0, 1));
    });
}

#[test]
fn three_threads_run_out_of_memory() {
    check_on(without_memory_for_two, 3, nothing, [try_1, try_2, try_1], |cache| assert!(failed(cache) <= 2));
}

/// Gets a bucket, and counts a panic.
fn get_or_panic(cache: &Cache) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| get(cache, 1, READ))) {
        if panic.downcast_ref::<&str>() != Some(&PANIC) {
            resume_unwind(panic); // loom's own, which reports a bug
        }
        cache.source().failed.fetch_add(1, Ordering::Relaxed);
    }
}

fn panicking() -> Host {
    Host { panics: AtomicBool::new(true), ..Host::default() }
}

#[test]
fn map_that_panics_leaves_no_thread_waiting() {
    check_on(panicking, 2, nothing, [get_or_panic, get_or_panic], |cache| {
        assert_eq!((failed(cache), alive(cache)), (1, 1));
    });
}

#[test]
fn map_that_panics_while_its_bucket_is_invalidated_leaks_nothing() {
    check_on(panicking, 2, nothing, [get_or_panic, |cache| change(cache, 1)], |cache| {
        assert_eq!((failed(cache), alive(cache)), (1, 0));
        assert_eq!(get(cache, 1, READ), 1);
    });
}

#[test]
fn closed_cache_maps_nothing_more_and_unmaps_everything() {
    let try_to = |cache: &Cache| match cache.pin(1, READ) {
        Ok(pin) => drop(use_bucket(&pin, 1, READ)),
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
