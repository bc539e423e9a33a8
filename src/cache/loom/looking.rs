//! Looking at what is mapped without a pin of it, and pins that are given away as numbers.

#![expect(unsafe_code, reason = "gives back pins that were given away as numbers")]

use super::*;

/// Where the first bucket is that a cache maps.
const FIRST: usize = SIZE;

/// What is mapped at an address: the bucket's number, and the place in it.
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
fn address_in_a_bucket_that_is_in_use_is_found_whatever_becomes_of_it() {
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

/// Each of so many writes is known of, once.
fn check_gathered(cache: &Cache, writes: usize) {
    gather_all(cache);
    assert_eq!(cache.source().gathered.load(Ordering::Relaxed), writes);
}

#[test]
fn no_write_is_lost_when_it_is_gathered_while_its_bucket_goes() {
    check(2, write_1, [gather_all, |cache| change(cache, 1)], |cache| check_gathered(cache, 1));
    check(1, write_1, [gather_all, read_2], |cache| check_gathered(cache, 1));
}

#[test]
fn no_write_is_lost_that_is_made_while_others_are_gathered() {
    check(2, nothing, [gather_all, write_1], |cache| check_gathered(cache, 1));
    check(2, read_1, [gather_all, write_1], |cache| check_gathered(cache, 1));
    check(2, write_1, [gather_all, write_1, |cache| change(cache, 1)], |cache| check_gathered(cache, 2));
}

/// Keeps a bucket pinned by a number only, and uses it.
fn use_by_number(cache: &Cache) {
    let pin = cache.pin(1, READ).unwrap();
    let mapped: *const Mapped = pin.bucket();
    let at = pin.bucket().address;
    let number = pin.into_raw();
    // SAFETY: the bucket is pinned until its number is given back; loom finds it if it is not.
    unsafe { &*mapped }.memory.with(|_| ());
    assert_eq!(look_up(cache, at), Some((1, 0)));
    // SAFETY: as above.
    unsafe { &*mapped }.memory.with(|_| ());
    // SAFETY: it is this cache's, and this is the only time.
    unsafe { cache.unpin(number) };
}

/// Gives two pins of one bucket away.
fn give_two_away(cache: &Cache) {
    let numbers = [(); 2].map(|()| cache.pin(1, READ).unwrap().into_raw());
    assert_eq!(numbers[0], numbers[1]);
    cache.source().given_away.lock().unwrap().extend(numbers);
}

fn give_one_back(cache: &Cache) {
    let number = cache.source().given_away.lock().unwrap().pop().unwrap();
    // SAFETY: it is this cache's, and nobody else finds it in the list.
    unsafe { cache.unpin(number) };
}

#[test]
fn bucket_stays_while_its_pin_is_a_number() {
    check(2, read_1, [use_by_number, |cache| change(cache, 1)], |cache| assert!(alive(cache) <= 1));
    check(1, read_1, [use_by_number, read_2], |_| ());
    check(2, nothing, [use_by_number, use_by_number], |cache| assert_eq!(maps(cache), 1));
}

#[test]
fn bucket_goes_when_the_last_of_its_numbers_is_given_back() {
    check(2, give_two_away, [give_one_back, give_one_back], |cache| assert_eq!(alive(cache), 1));
    check(2, give_two_away, [give_one_back, give_one_back, |cache| change(cache, 1)], |cache| {
        assert_eq!(alive(cache), 0);
    });
    check(1, give_two_away, [give_one_back, give_one_back, read_2], |_| ());
}
