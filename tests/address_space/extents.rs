//! All that an address space maps.

use xenmap::{Error, Result, VirtualExtent};

use crate::common::on_each_host;
use crate::tables::{ALL, DATA, GIB_1, KIB_4, LARGE, Tables};

/// Returns each extent as (address, physical, len), and the address of each table entry that cannot be read.
fn list(extents: impl Iterator<Item = Result<VirtualExtent>>) -> (Vec<(u64, u64, u64)>, Vec<u64>) {
    let (mut found, mut failed) = (Vec::new(), Vec::new());
    for extent in extents {
        match extent {
            Ok(extent) => found.push((extent.address, extent.physical, extent.len)),
            Err(Error::GuestAddress { address, .. }) => failed.push(address),
            Err(other) => panic!("{other}"),
        }
    }
    (found, failed)
}

#[test]
fn extents_are_all_that_is_mapped_now() {
    on_each_host(|host| {
        let tables = Tables::four_levels(host);
        for (page, frame) in [(0, 4), (1, 5), (2, 9), (4, 10)] {
            tables.map(0x7F00_0000_0000 + page * KIB_4, frame);
        }
        tables.set(0xFFFF_8880_0000_0000, 3, LARGE | ALL);
        let memory = host.open();
        let space = tables.open(&memory);
        let user = [
            (0x7F00_0000_0000, 0x4000, 0x2000),
            (0x7F00_0000_2000, 0x9000, 0x1000),
            (0x7F00_0000_4000, 0xA000, 0x1000),
        ];
        let kernel = (0xFFFF_8880_0000_0000, 0, GIB_1);
        assert_eq!(list(space.extents(..)).0, [&user[..], &[kernel]].concat());
        assert_eq!(list(space.extents(..1 << 47)).0, user);
        assert_eq!(
            list(space.extents(0x7F00_0000_1000..0x7F00_0000_2001)).0,
            [(0x7F00_0000_1000, 0x5000, 0x1000), user[1]]
        );

        tables.map(0x7F00_0000_2000, 6);
        assert_eq!(list(space.extents(..1 << 47)).0, [(user[0].0, 0x4000, 0x3000), user[2]], "nothing is remembered");
    });
}

#[test]
fn tables_that_do_not_exist_are_errors_among_the_extents() {
    on_each_host(|host| {
        let tables = Tables::four_levels(host);
        let hole = tables.guest.hole().get() * KIB_4;
        tables.map(0, 4);
        tables.set(GIB_1, 3, hole | ALL);
        tables.map(2 * GIB_1, 5);
        let memory = host.open();
        let (found, failed) = list(tables.open(&memory).extents(..));
        assert_eq!(found, [(0, 0x4000, 0x1000), (2 * GIB_1, 0x5000, 0x1000)]);
        assert_eq!(failed, [hole]);
    });
}

#[test]
fn tables_that_refer_to_themselves_can_be_taken_in_part() {
    on_each_host(|host| {
        let tables = Tables::four_levels(host);
        for index in 0..512 {
            tables.write(DATA, index * 8, DATA << 12 | ALL);
        }
        let memory = host.open();
        let space = tables.open(&memory);
        let (found, failed) = list(space.extents(..).take(5000));
        assert_eq!((found.len(), failed.len()), (5000, 0));
        assert!(found.iter().all(|&(_, physical, len)| (physical, len) == (DATA * KIB_4, KIB_4)));
    });
}
