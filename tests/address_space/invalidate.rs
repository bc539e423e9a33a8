//! A guest that changes its page tables.

use std::sync::atomic::{AtomicBool, Ordering};

use xenmap::Error;

use crate::common::on_each_host;
use crate::tables::{ALL, GIB_1, KIB_4, LARGE, MIB_2, Tables, untranslated};

#[test]
fn translation_is_stale_until_it_is_invalidated() {
    on_each_host(|host| {
        let tables = Tables::four_levels(host);
        tables.number_frames();
        tables.map(0x1000, 3);
        tables.map(0x2000, 4);
        let memory = host.open();
        let space = tables.open(&memory);
        let read = |address: u64| space.read::<u64>(address).unwrap();
        assert_eq!([read(0x1008), read(0x2008)], [3, 4]);

        tables.map(0x1000, 5);
        tables.set(0x2000, 1, 0);
        assert_eq!([read(0x1008), read(0x2008)], [3, 4], "both are stale");
        assert_eq!(space.translate(0x1008).unwrap().physical, 3 * KIB_4 + 8);

        space.invalidate(0x1FFF..0x2000);
        assert_eq!([read(0x1008), read(0x2008)], [5, 4], "one is stale");
        space.invalidate_all();
        assert_eq!(read(0x1008), 5);
        assert_eq!(untranslated(space.read::<u64>(0x2008)).0, 0x2008);
    });
}

#[test]
fn address_that_was_not_mapped_is_found_as_soon_as_it_is() {
    on_each_host(|host| {
        let tables = Tables::four_levels(host);
        tables.number_frames();
        let memory = host.open();
        let space = tables.open(&memory);
        assert!(space.read::<u64>(0x1000).is_err());
        tables.map(0x1000, 3);
        assert_eq!(space.read::<u64>(0x1000).unwrap(), 3, "failures are not remembered");
    });
}

#[test]
fn tables_above_the_lowest_are_read_again_too() {
    on_each_host(|host| {
        let tables = Tables::four_levels(host);
        tables.number_frames();
        tables.map(GIB_1, 3);
        let memory = host.open();
        let space = tables.open(&memory);
        assert_eq!(space.read::<u64>(GIB_1).unwrap(), 3);
        tables.set(GIB_1, 2, LARGE | ALL); // a page of 2 MiB at 0 in place of the lowest table
        space.invalidate(GIB_1..=GIB_1);
        assert_eq!(space.read::<u64>(GIB_1 + 7 * KIB_4).unwrap(), 7);
        assert_eq!(space.translate(GIB_1).unwrap().page_size, MIB_2);
    });
}

#[test]
fn large_page_is_forgotten_where_it_was_invalidated() {
    on_each_host(|host| {
        let tables = Tables::four_levels(host);
        tables.set(GIB_1, 3, LARGE | ALL);
        let memory = host.open();
        let space = tables.open(&memory);
        let physical = |address: u64| space.translate(address).unwrap().physical;
        assert_eq!([physical(GIB_1), physical(GIB_1 + MIB_2)], [0, MIB_2]);
        tables.set(GIB_1, 3, GIB_1 | LARGE | ALL);
        space.invalidate(GIB_1 + 5..GIB_1 + 6);
        assert_eq!([physical(GIB_1), physical(GIB_1 + MIB_2)], [GIB_1, MIB_2], "in parts of 2 MiB");
        #[expect(clippy::reversed_empty_ranges, reason = "it is empty")]
        space.invalidate(8..4);
        assert_eq!(physical(GIB_1 + MIB_2), MIB_2);
        space.invalidate(..);
        assert_eq!(physical(GIB_1 + MIB_2), GIB_1 + MIB_2);
    });
}

#[test]
fn stale_translation_to_a_frame_that_is_gone_is_an_error() {
    on_each_host(|host| {
        let tables = Tables::four_levels(host);
        tables.number_frames();
        tables.map(0x1000, 3);
        let memory = host.open();
        let space = tables.open(&memory);
        assert_eq!(space.read::<u64>(0x1000).unwrap(), 3);

        tables.guest.balloon_out(tables.gfns[3]);
        assert_eq!(space.read::<u64>(0x1000).unwrap(), 3, "it is still mapped");
        space.cache().invalidate_all();
        let error = space.read::<u64>(0x1000).unwrap_err();
        assert!(matches!(error, Error::GuestAddress { address: 0x3000, .. }), "{error}");
    });
}

#[test]
fn reader_sees_the_old_or_the_new_page_while_another_thread_invalidates() {
    on_each_host(|host| {
        let tables = Tables::four_levels(host);
        tables.number_frames();
        let pages: Vec<u64> = (0..4).map(|page| page * 0x1000).collect();
        for &page in &pages {
            tables.map(page, page / 0x1000);
        }
        let memory = host.open();
        let space = tables.open(&memory);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        for &page in &pages {
                            let frame = space.read::<u64>(page).unwrap();
                            assert!([page / 0x1000, page / 0x1000 + 8].contains(&frame), "{page:#x}: {frame}");
                        }
                    }
                });
            }
            for round in 0..200 {
                for &page in &pages {
                    let frame = page / 0x1000 + round % 2 * 8;
                    tables.map(page, frame);
                    space.invalidate(page..=page);
                    assert_eq!(space.read::<u64>(page).unwrap(), frame, "this thread has invalidated it");
                }
            }
            done.store(true, Ordering::Relaxed);
        });
    });
}

#[test]
fn spaces_that_share_a_cache_have_their_own_translations() {
    on_each_host(|host| {
        let tables = Tables::four_levels(host);
        tables.number_frames();
        tables.map(0x1000, 2);
        let memory = host.open();
        let space = tables.open(&memory);
        let other = xenmap::AddressSpace::with_cache(space.cache().clone(), space.page_tables());
        assert_eq!([space.read::<u64>(0x1000).unwrap(), other.read(0x1000).unwrap()], [2, 2]);
        let mapped = space.cache().statistics().misses;
        tables.map(0x1000, 3);
        other.invalidate_all();
        assert_eq!([space.read::<u64>(0x1000).unwrap(), other.read(0x1000).unwrap()], [2, 3]);
        assert_eq!(space.cache().statistics().misses, mapped, "nothing is mapped again");
    });
}
