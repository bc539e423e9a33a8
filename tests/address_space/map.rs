//! Pinning and mapping virtual ranges.

use xenmap::{Access, Error};

use crate::common::{FRAME, ReadOnly, ReadWrite, failures, on_each_host};
use crate::tables::{KIB_4, Tables, untranslated};

#[test]
fn scattered_pages_are_one_mapping() {
    on_each_host(|host| {
        let tables = Tables::four_levels(host);
        tables.number_frames();
        for (page, frame) in [9, 4, 5, 0].into_iter().enumerate() {
            tables.map(0x8000 + page as u64 * KIB_4, frame);
        }
        let memory = host.open();
        let mapping = tables.open(&memory).map(ReadWrite, 0x8FFF, 2 * FRAME).unwrap();
        let view = mapping.view();
        let numbers: Vec<u64> = (0..3).map(|page| view.read(page * FRAME).unwrap()).collect();
        assert_eq!((numbers, view.len()), (vec![9, 4, 5], 3 * FRAME));
        view.write_bytes(FRAME - 1, b"ab").unwrap();
        assert_eq!([tables.read(9, 0xFFF, 1), tables.read(4, 0, 1)].concat(), b"ab");
    });
}

#[test]
fn mapping_and_guards_keep_their_frames() {
    on_each_host(|host| {
        let tables = Tables::four_levels(host);
        tables.number_frames();
        tables.map(0x8000, 3);
        let memory = host.open();
        let space = tables.open(&memory);
        let mapping = space.map(ReadOnly, 0x8000, 1).unwrap();
        let pinned = space.pin(ReadOnly, 0x8000, 8).unwrap();
        tables.map(0x8000, 4);
        space.invalidate_all();
        assert_eq!([mapping.view().read::<u64>(0).unwrap(), pinned[0].read(0).unwrap()], [3, 3]);
        assert_eq!(space.read::<u64>(0x8000).unwrap(), 4);
    });
}

#[test]
fn guards_are_as_few_as_there_are_contiguous_parts() {
    on_each_host(|host| {
        let tables = Tables::four_levels(host);
        tables.number_frames();
        for (page, frame) in [4, 5, 9].into_iter().enumerate() {
            tables.map(0x8000 + page as u64 * KIB_4, frame);
        }
        let memory = host.open();
        let space = tables.open(&memory);
        let pinned = space.pin(ReadWrite, 0x8010, 3 * FRAME - 0x20).unwrap();
        let parts: Vec<(u64, usize)> = pinned.iter().map(|part| (part.address(), part.len())).collect();
        assert_eq!(parts, [(0x4010, 2 * FRAME - 0x10), (0x9000, FRAME - 0x10)]);
        pinned[1].write(0, 7_u8).unwrap();
        assert_eq!(tables.read(9, 0, 1), [7]);
        assert_eq!(space.pin(ReadOnly, 0x8010, 0).unwrap().len(), 0);
    });
}

#[test]
fn page_that_is_missing_is_an_error() {
    on_each_host(|host| {
        let tables = Tables::four_levels(host);
        let hole = tables.guest.hole().get();
        tables.map(0x8000, 3);
        tables.map(0x9000, hole);
        let memory = host.open();
        let space = tables.open(&memory);
        assert_eq!(failures(space.map(ReadOnly, 0x8000, 2 * FRAME)).len(), 1);
        let error = space.pin(ReadOnly, 0x8000, 2 * FRAME).unwrap_err();
        assert!(matches!(error, Error::GuestAddress { address, .. } if address == hole * KIB_4), "{error}");
        assert_eq!(untranslated(space.map(ReadOnly, 0x9FFF, 2)).0, 0xA000);
        assert_eq!(untranslated(space.pin(ReadOnly, 0x9FFF, 2)).0, 0xA000);
        assert!(matches!(space.map(ReadOnly, 0x8000, 0), Err(Error::Empty)));
    });
}
