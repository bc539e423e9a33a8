//! Accesses to buckets without a pin, and pins that were turned into numbers.

#![expect(unsafe_code, reason = "drops pins by number")]

use super::*;

/// The address of the first bucket that a cache maps.
const FIRST: usize = SIZE;

/// Returns the number of the bucket at an address, and the offset in it.
fn look_up(cache: &Cache, at: usize) -> Option<(u64, usize)> {
    cache.find_address(at, |mapped, offset| {
        mapped.memory.with(|_| ());
        thread::yield_now();
        mapped.memory.with(|_| ());
        (mapped.number, offset)
    })
}

fn look_up_first(cache: &Cache) {
    assert!([None, Some((1, 5))].contains(&look_up(cache, FIRST + 5)));
}

#[test]
fn address_is_looked_up_while_its_bucket_is_mapped_evicted_and_invalidated() {
    check(2, nothing, [look_up_first, read_1], |cache| assert_eq!(look_up(cache, FIRST), Some((1, 0))));
    check(1, read_1, [look_up_first, read_2], |cache| assert_eq!(look_up(cache, FIRST), None));
    check(2, read_1, [look_up_first, |cache| change(cache, 1)], |cache| assert_eq!(look_up(cache, FIRST), None));
}

#[test]
fn address_in_a_pinned_bucket_is_found_even_if_the_bucket_is_invalidated() {
    let hold = |cache: &Cache| {
        let pin = cache.pin(1, READ).unwrap();
        let at = pin.bucket().address;
        assert_eq!(look_up(cache, at + 7), Some((1, 7)));
        drop(pin);
    };
    let replace = |cache: &Cache| {
        change(cache, 1);
        read_1(cache);
    };
    check(2, read_1, [hold, replace], |_| ());
}

fn gather_all(cache: &Cache) {
    cache.for_each(|mapped| {
        mapped.memory.with(|_| ());
        cache.source().gather(mapped);
        mapped.memory.with(|_| ());
    });
}

/// Checks that each write was gathered once.
fn check_gathered(cache: &Cache, writes: usize) {
    gather_all(cache);
    assert_eq!(cache.source().gathered.load(Ordering::Relaxed), writes);
}

#[test]
fn no_write_is_lost_when_it_is_gathered_while_its_bucket_is_removed() {
    check(2, write_1, [gather_all, |cache| change(cache, 1)], |cache| check_gathered(cache, 1));
    check(1, write_1, [gather_all, read_2], |cache| check_gathered(cache, 1));
}

#[test]
fn no_write_is_lost_while_others_are_gathered() {
    check(2, nothing, [gather_all, write_1], |cache| check_gathered(cache, 1));
    check(2, read_1, [gather_all, write_1], |cache| check_gathered(cache, 1));
    check(2, write_1, [gather_all, write_1, |cache| change(cache, 1)], |cache| check_gathered(cache, 2));
}

/// Turns a pin into a number, uses the bucket, and drops the pin.
fn use_by_number(cache: &Cache) {
    let pin = cache.pin(1, READ).unwrap();
    let mapped: *const Mapped = pin.bucket();
    let at = pin.bucket().address;
    let number = pin.into_raw();
    // SAFETY: the bucket stays pinned until `unpin` below; if it did not, loom would report it.
    unsafe { &*mapped }.memory.with(|_| ());
    assert_eq!(look_up(cache, at), Some((1, 0)));
    // SAFETY: as above.
    unsafe { &*mapped }.memory.with(|_| ());
    // SAFETY: the number comes from a pin of this cache, and is passed only here.
    unsafe { cache.unpin(number) };
}

/// Turns two pins of one bucket into numbers.
fn make_two_raw_pins(cache: &Cache) {
    let numbers = [(); 2].map(|()| cache.pin(1, READ).unwrap().into_raw());
    assert_eq!(numbers[0], numbers[1]);
    cache.source().raw_pins.lock().unwrap().extend(numbers);
}

fn drop_a_raw_pin(cache: &Cache) {
    let number = cache.source().raw_pins.lock().unwrap().pop().unwrap();
    // SAFETY: the number comes from a pin of this cache, and was just removed from the list.
    unsafe { cache.unpin(number) };
}

#[test]
fn bucket_stays_mapped_while_its_pin_is_a_number() {
    check(2, read_1, [use_by_number, |cache| change(cache, 1)], |cache| assert!(alive(cache) <= 1));
    check(1, read_1, [use_by_number, read_2], |_| ());
    check(2, nothing, [use_by_number, use_by_number], |cache| assert_eq!(maps(cache), 1));
}

#[test]
fn invalidated_bucket_is_unmapped_when_the_last_of_its_raw_pins_is_dropped() {
    check(2, make_two_raw_pins, [drop_a_raw_pin, drop_a_raw_pin], |cache| assert_eq!(alive(cache), 1));
    check(2, make_two_raw_pins, [drop_a_raw_pin, drop_a_raw_pin, |cache| change(cache, 1)], |cache| {
        assert_eq!(alive(cache), 0);
    });
    check(1, make_two_raw_pins, [drop_a_raw_pin, drop_a_raw_pin, read_2], |_| ());
}
